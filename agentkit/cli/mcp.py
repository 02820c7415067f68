"""`agentkit mcp`: the user's MCP servers, what they offer and what they cost. What is slow is imported late."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agentkit.cli import ANSWERED, ERROR, Duration, agent_options, command, in_loop

if TYPE_CHECKING:
    from mcp import Client

    from agentkit.mcp import ServerReport, ServerSpec
    from agentkit.mcp.connection import Connection
    from agentkit.mcp.imports import Found

__all__ = ["mcp"]


@click.group()
def mcp() -> None:
    """MCP servers: yours, and agentkit as one.

    \b
    agentkit mcp import                          take over what Claude, Cursor, VS Code, … have
    agentkit mcp add time -- uvx mcp-server-time
    agentkit mcp add docs https://example.org/mcp --header "Authorization: Bearer \\${TOKEN}"
    agentkit mcp call time get_current_time timezone=Asia/Tokyo
    agentkit run --mcp time "What time is it in Tokyo?"
    """


# -- the user's config ------------------------------------------------------------------------------------


@command(mcp, name="import")
@click.argument("paths", nargs=-1, type=click.Path(exists=True))
@click.option("-n", "--dry-run", is_flag=True, help="Only show what there is.")
@click.option("-s", "--server", "only", multiple=True, help="Take this one only (may be given again).")
@click.option("-f", "--force", is_flag=True, help="Replace servers of the same name in your config.")
def import_(paths: tuple[str, ...], dry_run: bool, only: tuple[str, ...], force: bool) -> int:
    """Take over the servers that other clients have in their config files into your own.

    With PATHS, from these files instead, or from the files that clients have in these folders. Of two
    servers of one name the later wins. Variables and ${input:…} stay as they are written.
    """
    from agentkit.mcp.imports import change_user_config, find_servers
    from agentkit.mcp.inputs import variable_of

    found = [f for f in find_servers(paths) if not only or f.name in only]
    mine = _my_entries()
    take: dict[str, Found] = {}
    _echo_by_file(found, lambda f: _plan(f, mine, take, force))
    for name in sorted(set(only) - {f.name for f in found}):
        click.echo(f"agentkit: no client has a server {name!r}", err=True)
    if not found:
        click.echo(
            "agentkit: no servers found in the config files of other clients; name the file.", err=True
        )
    if take and not dry_run:
        _keep_inputs_apart(take)
        taken = {name: f.entry for name, f in take.items()}
        path = change_user_config(taken, [i for f in take.values() for i in f.inputs])
        click.echo(f"{len(take)} written to {_short_path(path)}")
        for name, entry in taken.items():
            _warn_of_secrets(name, entry, path)
        for id in sorted({i["id"] for f in take.values() for i in f.inputs}):
            _say(f"the input {id!r} is asked when it is needed; {variable_of(id)} answers it")
    bad = any(f.error for f in found) or any(name not in {f.name for f in found} for name in only)
    return ERROR if not found or (bad and not take) else ANSWERED


def _plan(f: Found, mine: Mapping[str, Any], take: dict[str, Found], force: bool) -> str:
    """What is to become of a server that was found, in a line; it is put into `take` if it is taken."""
    from agentkit.mcp.imports import scoped, shown

    if f.error:
        return f"✗ {f.name}  {_reason(f)}" if f.name else f"✗ {f.error}"
    about = f"{f.name}  {shown(f.entry)}{'  (disabled)' if f.entry.get('disabled') else ''}"
    if mine.get(f.name) in (f.entry, scoped(f).entry):
        return f"= {about}  is in your config already"
    if f.name in mine and not force:
        return f"! {about}  differs from {f.name} in your config, which is kept (--force replaces it)"
    again = take.get(f.name)
    take[f.name] = f
    if again and again.entry != f.entry:
        return f"+ {about}  instead of the one of {again.client or _short_path(again.path)}"
    return f"+ {about}"


def _keep_inputs_apart(take: dict[str, Found]) -> None:
    """One file's answer must not go to another file's server because their inputs have one name."""
    from agentkit.mcp.imports import scoped

    used = json.dumps(
        [entry for name, entry in _my_entries().items() if name not in take], ensure_ascii=False
    )
    owners: dict[str, Path | None] = dict.fromkeys(re.findall(r"\$\{input:([^}]+)\}", used))
    for name, f in take.items():
        if any(owners.get(i["id"], f.path) != f.path for i in f.inputs):
            take[name] = f = scoped(f)
        owners |= {i["id"]: f.path for i in f.inputs}


def _reason(f: Found) -> str:
    """What is wrong with a server, whose file and name are known already."""
    return f.error.partition(f"server {f.name!r}: ")[2] or f.error


@command(mcp)
@click.argument("name")
@click.argument("target", nargs=-1, required=True, metavar="URL | -- COMMAND…")
@click.option(
    "-H", "--header", "headers", multiple=True, help='"Name: value"; ${VAR} in it stays a variable.'
)
@click.option("-e", "--env", "variables", multiple=True, help="NAME=value for the server's environment.")
@click.option("--cwd", type=click.Path(file_okay=False), help="The directory that the server runs in.")
@click.option("--transport", type=click.Choice(["stdio", "http", "sse"]), help="Else by what URL looks like.")
@click.option("--timeout", type=Duration(), help="Longest time for a call.  [default: 60s]")
@click.option("-f", "--force", is_flag=True, help="Replace the server of that name.")
def add(
    name: str,
    target: tuple[str, ...],
    headers: tuple[str, ...],
    variables: tuple[str, ...],
    cwd: str | None,
    transport: str | None,
    timeout: float | None,
    force: bool,
) -> int:
    """Add a server to your config: a command to start, or the URL of one that runs."""
    from agentkit.mcp.config import open_config
    from agentkit.mcp.imports import change_user_config, entry_of

    if not name.strip() or "/" in name or name.endswith(".json"):
        raise click.UsageError(f"{name!r} would be taken for a file; call the server something else")
    if name in _my_entries() and not force:
        raise click.UsageError(f"there is a server {name!r} already; --force replaces it")
    is_url = target[0].startswith(("http://", "https://", "${"))
    if is_url and len(target) > 1:
        raise click.UsageError("one URL, please; options such as --header go before it or after it")
    entry = {
        **({"url": target[0]} if is_url else {"command": target[0], "args": list(target[1:])}),
        **({"type": transport} if transport else {}),
        **({"headers": _pairs(headers, ":=", "--header", "Name: value")} if headers else {}),
        **({"env": _pairs(variables, "=", "--env", "NAME=value")} if variables else {}),
        **({"cwd": cwd} if cwd else {}),
        **({"tool_timeout": timeout} if timeout else {}),
    }
    spec = open_config({"mcpServers": {name: entry}}).spec(name, None)  # says what is wrong with it
    entry = entry_of(spec)
    path = change_user_config({name: entry})
    click.echo(f"{name} written to {_short_path(path)}; `agentkit mcp check {name}` tries it")
    _warn_of_secrets(name, entry, path)
    return ANSWERED


def _pairs(given: Sequence[str], separators: str, option: str, form: str) -> dict[str, str]:
    pairs = {}
    for one in given:
        match = re.match(rf"([^{separators}\s]+)\s*[{separators}]\s*(.*)", one, re.DOTALL)
        if match is None:
            raise click.UsageError(f"{option} {one!r}: expected {form}")
        pairs[match[1]] = match[2]
    return pairs


@command(mcp)
@click.argument("names", nargs=-1, required=True)
def remove(names: tuple[str, ...]) -> int:
    """Take servers out of your config."""
    from agentkit.mcp.imports import change_user_config

    mine = _my_entries()
    missing = [name for name in names if name not in mine]
    if missing:
        click.echo(f"agentkit: no server {', '.join(missing)} in your config; nothing was removed.", err=True)
        return ERROR
    path = change_user_config(dict.fromkeys(names))
    click.echo(f"{', '.join(names)} removed from {_short_path(path)}")
    return ANSWERED


@command(mcp, name="list")
@click.argument("sources", nargs=-1, metavar="[FILE]…")
@click.option("-a", "--all", "everybody", is_flag=True, help="Those of other clients too.")
@click.option("--json", "as_json", is_flag=True, help="As a JSON list.")
def list_(sources: tuple[str, ...], everybody: bool, as_json: bool) -> int:
    """List servers, where each comes from, and which are disabled. Starts none of them."""
    from agentkit.mcp.config import user_config
    from agentkit.mcp.imports import find_servers, shown

    paths: list[str | Path] = list(sources) or ([user_config()] if _my_entries() else [])
    found = list(find_servers(paths)) if paths else []
    if everybody:
        found += find_servers(project=Path.cwd())
    if as_json:
        rows = [
            {
                "name": f.name,
                "server": shown(f.entry) if not f.error else None,
                "file": str(f.path),
                "client": f.client or None,
                "disabled": bool(f.entry.get("disabled")),
                "error": f.error or None,
            }
            for f in found
        ]
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return ANSWERED
    if not found:
        _say("no servers yet; `agentkit mcp add` adds one, `agentkit mcp import` those of other clients")
    width = max((len(f.name) for f in found), default=0)

    def line(f: Found) -> str:
        state = "  (disabled)" if f.entry.get("disabled") else ""
        return f"{f.name:{width}}  {_reason(f) if f.error else shown(f.entry)}{state}"

    _echo_by_file(found, line)
    return ANSWERED


def _echo_by_file(found: Sequence[Found], line: Callable[[Found], str]) -> None:
    where = None
    for f in found:
        if f.path != where:
            where = f.path
            click.echo(f"{_short_path(f.path)}{f'  ({f.client})' if f.client else ''}")
        click.echo(f"  {_plain(line(f))}")


# -- what servers offer -----------------------------------------------------------------------------------


@command(mcp)
@click.argument("sources", nargs=-1, metavar="[FILE | NAME]…")
def check(sources: tuple[str, ...]) -> int:
    """Start the servers of config FILEs, or yours by NAME, list their tools, say exactly what fails.

    Without arguments, all of yours.
    """
    from agentkit.cli.show import mcp_report
    from agentkit.mcp import check as check_servers

    specs, unusable = _specs(sources)
    reports = (*(in_loop(lambda: check_servers(specs)) if specs else ()), *unusable)
    mcp_report(reports)
    if off := [spec.name for spec in specs if spec.disabled]:
        _say(f"disabled: {', '.join(off)}")
    return ANSWERED if all(r.ok for r in reports) else ERROR


_mcp_option = click.option("--mcp", "sources", multiple=True, help="Look for SERVER in this config file.")


@command(mcp)
@click.argument("server")
@click.argument("tool")
@click.argument("arguments", nargs=-1, metavar="[JSON | KEY=VALUE…]")
@_mcp_option
@click.option(
    "-o", "--output", type=click.Path(file_okay=False), default=".", help="Where files go.  [default: .]"
)
@click.option("--timeout", type=Duration(), help="Longest time for the call.")
@click.option("--json", "as_json", is_flag=True, help="The whole result, as the server gave it.")
def call(
    server: str,
    tool: str,
    arguments: tuple[str, ...],
    sources: tuple[str, ...],
    output: str,
    timeout: float | None,
    as_json: bool,
) -> int:
    """Call a TOOL of a SERVER of yours (or of a config file with one server) and print the result.

    Arguments are one JSON object, `-` to read it from stdin, or KEY=VALUE; a VALUE is read as JSON unless the
    tool wants a string there. Images and other files are saved. The exit code is 1 if the tool failed.
    """
    from agentkit.errors import ConfigError

    spec = _one(server, sources)
    if timeout:
        spec = replace(spec, tool_timeout=timeout)
    if arguments == ("-",):
        arguments = (sys.stdin.read(),)
    _arguments(arguments, {})  # what is wrong with them is said before anything is started

    async def ask() -> Any:
        async with _connection(spec) as connection:
            tools = await connection.with_client(
                lambda client: _all(client.list_tools, "tools"), "tools/list"
            )
            known = {t["name"]: t for t in tools}
            if tool not in known:
                has = f"it has {', '.join(known)}" if known else "it has none"
                raise ConfigError(f"MCP server {spec.name!r} has no tool {tool!r}; {has}")
            return await connection.call(
                tool, _arguments(arguments, known[tool].get("inputSchema") or {}), repeatable=False
            )

    result = in_loop(ask)
    if as_json:
        click.echo(result.model_dump_json(by_alias=True, exclude_none=True, indent=2))
    else:
        _print_result(tool, result, Path(output))
    return ERROR if result.is_error else ANSWERED


def _arguments(given: Sequence[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, from the command line."""
    if len(given) == 1 and given[0].lstrip().startswith("{"):
        try:
            values = json.loads(given[0])
        except ValueError as exc:
            raise click.UsageError(f"the arguments are not valid JSON: {exc}") from None
        if not isinstance(values, dict):
            raise click.UsageError("the arguments must be a JSON object")
        return values
    properties = schema.get("properties")
    values = {}
    for one in given:
        key, equals, text = one.partition("=")
        if not equals:
            raise click.UsageError(f"{one!r}: expected KEY=VALUE, or one JSON object")
        values[key] = text
        wanted = properties.get(key) if isinstance(properties, Mapping) else None
        if _types(wanted) - {"null"} != {"string"}:
            with contextlib.suppress(ValueError):
                values[key] = json.loads(text)
    return values


def _types(schema: Any) -> set[str]:
    """The types that a schema names at its top."""
    if not isinstance(schema, Mapping):
        return set()
    named = schema.get("type")
    types = {named} if isinstance(named, str) else {t for t in named or () if isinstance(t, str)}
    for one in [*(schema.get("anyOf") or ()), *(schema.get("oneOf") or ())]:
        types |= _types(one)
    return types


def _print_result(tool: str, result: Any, folder: Path) -> None:
    """Text on stdout; where files were saved on stderr."""
    import base64
    import mimetypes

    def save(data: str, mime: str | None, name: str = "") -> None:
        mime = mime or "application/octet-stream"
        stem = (
            re.sub(r"[^\w.-]+", "_", Path(name).name).strip("._")
            or f"{tool}{mimetypes.guess_extension(mime) or '.bin'}"
        )
        path = _new_file(folder, stem, base64.b64decode(data))
        click.echo(f"saved {path} ({mime}, {path.stat().st_size} bytes)", err=True)

    said = False
    for block in result.content:
        if block.type == "text":
            said = True
            click.echo(_plain(block.text))
        elif block.type in ("image", "audio"):
            save(block.data, block.mime_type)
        elif block.type == "resource_link":
            click.echo(_plain(block.uri))
        elif block.type == "resource" and hasattr(block.resource, "text"):
            said = True
            click.echo(_plain(block.resource.text))
        elif block.type == "resource":
            save(block.resource.blob, block.resource.mime_type, block.resource.uri.rpartition("/")[2])
    if not said and result.structured_content is not None:
        click.echo(json.dumps(result.structured_content, ensure_ascii=False, indent=2))


def _new_file(folder: Path, name: str, data: bytes) -> Path:
    """A file that was not there before: name.png, name-2.png, …"""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = folder / name
    number = 1
    while True:
        path = wanted if number == 1 else wanted.with_stem(f"{wanted.stem}-{number}")
        try:
            with path.open("xb") as file:
                file.write(data)
            return path
        except FileExistsError:
            number += 1


@command(mcp)
@click.argument("server")
@_mcp_option
@click.option("--json", "as_json", is_flag=True, help="As JSON, with whole schemas.")
def inspect(server: str, sources: tuple[str, ...], as_json: bool) -> None:
    """What a SERVER is and has: protocol, capabilities, instructions, tools, resources, prompts."""
    spec = _one(server, sources)

    async def look() -> dict[str, Any]:
        async with _connection(spec) as connection:
            return await connection.with_client(_about, "what it has")

    about = in_loop(look)
    if as_json:
        click.echo(json.dumps(about, ensure_ascii=False, indent=2))
        return
    info = about["server"] or {}
    click.echo(_plain(f"{spec.name}  {info.get('name', '')} {info.get('version', '')}".rstrip()))
    click.echo(f"  protocol      {about['protocol']}")
    click.echo(f"  capabilities  {', '.join(about['capabilities']) or 'none'}")
    if about["instructions"]:
        click.echo(f"  instructions  {_one_line(about['instructions'], 300)}")
    for kind, line in _LINES.items():
        if about[kind]:
            click.echo(f"  {kind}")
        for item in about[kind]:
            said = _one_line(item.get("description") or "", 80)
            click.echo(f"    {_plain(line(item))}{f'  {said}' if said else ''}")


_LINES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "tools": lambda i: f"{i['name']}({', '.join((i.get('inputSchema') or {}).get('properties') or ())})",
    "resources": lambda i: f"{i['uri']}  {i['name']}",
    "templates": lambda i: f"{i['uriTemplate']}  {i['name']}",
    "prompts": lambda i: f"{i['name']}({', '.join(a['name'] for a in i.get('arguments') or ())})",
}


async def _about(client: Client) -> dict[str, Any]:
    """What the server says of itself, in the protocol's own words, as JSON."""
    can = client.server_capabilities
    return {
        "server": _as_json(client.server_info),
        "protocol": client.protocol_version,
        "capabilities": _as_json(can),
        "instructions": client.instructions,
        "tools": await _all(client.list_tools, "tools"),
        "resources": await _all(client.list_resources, "resources") if can.resources else [],
        "templates": await _all(client.list_resource_templates, "resource_templates")
        if can.resources
        else [],
        "prompts": await _all(client.list_prompts, "prompts") if can.prompts else [],
    }


async def _all(ask: Callable[..., Awaitable[Any]], field: str) -> list[dict[str, Any]]:
    """All pages of a list; nothing if the server does not have it after all."""
    from mcp import MCPError

    found: list[dict[str, Any]] = []
    cursors: list[str | None] = [None]
    while True:
        try:
            page = await ask(cursor=cursors[-1])
        except MCPError:
            return found
        found += [_as_json(item) for item in getattr(page, field)]
        if page.next_cursor is None or page.next_cursor in cursors:
            return found
        cursors.append(page.next_cursor)


def _as_json(model: Any) -> Any:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True) if model is not None else None


# -- what servers cost ------------------------------------------------------------------------------------


@command(mcp)
@click.argument("sources", nargs=-1, metavar="[FILE | NAME]…")
@click.option("-m", "--model", help="The URL of a model server that counts tokens; else they are estimated.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def cost(sources: tuple[str, ...], model: str | None, as_json: bool) -> int:
    """How many tokens of the model's context the tools of each server take.

    With -m URL they are counted by that server (vLLM, SGLang or llama.cpp), else estimated: bytes / 4.
    """
    from agentkit.mcp import check as check_servers

    specs, unusable = _specs(sources)

    async def weigh() -> tuple[tuple[ServerReport, ...], dict[str, list[int]], int]:
        reports = (*await check_servers(specs), *unusable)
        schemas = {r.name: [t.schema for t in r.tools] for r in reports if r.ok}
        if model is None:
            return reports, {n: [_estimate(s) for s in found] for n, found in schemas.items()}, 0
        return reports, *await _count(model, schemas)

    reports, tokens, frame = in_loop(weigh)
    total = frame + sum(map(sum, tokens.values()))
    left = {f"{size}k": size * 1024 - total for size in (8, 16, 40)}
    servers = sorted(
        (
            (
                sum(tokens[r.name]),
                r.name,
                sorted(zip(tokens[r.name], [t.name for t in r.tools], strict=True), reverse=True),
            )
            for r in reports
            if r.ok
        ),
        reverse=True,
    )
    if as_json:
        rows = [
            {"name": name, "tokens": sum_, "tools": [{"name": t, "tokens": n} for n, t in tools]}
            for sum_, name, tools in servers
        ]
        click.echo(
            json.dumps(
                {"exact": model is not None, "total": total, "frame": frame, "left": left, "servers": rows},
                indent=2,
            )
        )
    elif servers:
        for sum_, name, tools in servers:
            click.echo(f"{sum_:>8,}  {name}")
            for n, tool in tools:
                click.echo(f"{n:>8,}    {tool}")
        if frame:
            click.echo(f"{frame:>8,}  what the chat template says around them")
        counted = f"as {model} counts" if model else "estimated at 4 bytes a token; -m URL counts"
        click.echo(f"{total:>8,}  tokens in all ({counted})")
        rest = [f"{n:,} of {size}" if n > 0 else f"nothing of {size}" for size, n in left.items()]
        click.echo(f"          leaves {', '.join(rest)}")
    for r in reports:
        if not r.ok:
            _say(r.error)
    return ANSWERED if all(r.ok for r in reports) else ERROR


def _estimate(schema: Mapping[str, Any]) -> int:
    return -(-len(json.dumps(schema, ensure_ascii=False).encode(errors="replace")) // 4)


async def _count(model: str, schemas: Mapping[str, Sequence[Any]]) -> tuple[dict[str, list[int]], int]:
    """Tokens of each tool, and of what the chat template puts around them all."""
    from agentkit.errors import EngineError
    from agentkit.messages import user
    from agentkit.runtime import connect
    from agentkit.runtime.engine import Counting, Request

    async with contextlib.AsyncExitStack() as stack:
        engine: Any = connect(model, _say)
        if hasattr(engine, "__aenter__"):
            engine = await stack.enter_async_context(engine)

        async def prompt(*tools: Any) -> int:
            request = Request([user("hi")], tools)
            found = await engine.count_tokens(request) if isinstance(engine, Counting) else None
            if found is None:
                raise EngineError(f"{model} does not count tokens; leave out -m for an estimate")
            return int(found)

        bare = await prompt()
        frame: int | None = None
        tokens: dict[str, list[int]] = {}
        for name, tools in schemas.items():
            counts = tokens.setdefault(name, [])
            for tool in tools:
                with_one = await prompt(tool)
                if frame is None:  # the frame is there once, however many tools there are
                    frame = 2 * with_one - await prompt(tool, tool) - bare
                counts.append(with_one - bare - frame)
        return tokens, frame or 0


# -- agentkit as a server ---------------------------------------------------------------------------------


@command(mcp)
@click.option("--agent", is_flag=True, help="Serve the agent that the other options make, as one tool.")
@click.option("--http", is_flag=True, help="Over streamable HTTP; else over stdin and stdout.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Else a free one.")
@click.option(
    "--token", envvar="AGENTKIT_MCP_TOKEN", help="What HTTP clients must send.  [default: a new one]"
)
@click.option("--auth/--no-auth", default=True, help="Let in only those who send the token.")
@click.option(
    "--allow-host", "allow_hosts", multiple=True, help="A Host header to accept besides loopback's."
)
@click.option("--description", default="", help="What the agent is for, told to clients.")
@click.option("--name", default="agentkit", show_default=True, help="The server's name.")
@agent_options
def serve(**options: Any) -> None:
    """Be an MCP server: of tools (-t), of other MCP servers' tools (--mcp), or of an agent (--agent).

    For another client's config: {"command": "agentkit", "args": ["mcp", "serve", "-t", "code_interpreter"]}
    """
    from agentkit.cli.mcp_serve import serve as serve_until_stopped

    in_loop(lambda: serve_until_stopped(**options))


# -- in common --------------------------------------------------------------------------------------------


def _my_entries() -> dict[str, Any]:
    """The servers in the user's config, as they are written there."""
    from agentkit.mcp.config import open_config, user_config

    path = user_config()
    if not path.is_file():
        return {}
    return {name: entry for name, (_, entry) in open_config(path, maybe_empty=True).servers.items()}


def _specs(sources: Sequence[str]) -> tuple[list[ServerSpec], list[ServerReport]]:
    """The servers of these files or names, or all of the user's; and what is wrong with single ones."""
    from agentkit.errors import ConfigError
    from agentkit.mcp import ServerReport, load_config
    from agentkit.mcp.config import open_config, user_config
    from agentkit.mcp.inputs import Inputs, ask_on_terminal

    specs: dict[str, ServerSpec] = {}
    unusable: list[ServerReport] = []
    named: Sequence[str | Path] = sources or [user_config()]
    for source in named:
        if not sources and not _my_entries():
            raise click.UsageError(
                "you have no servers yet: name a config file, or see `agentkit mcp add -h`"
            )
        if isinstance(source, str) and not Path(source).is_file():
            try:
                specs |= {spec.name: spec for spec in load_config(source)}
            except ConfigError as exc:
                if source not in _my_entries():
                    raise
                unusable.append(ServerReport(source, False, str(exc)))
            continue
        file = open_config(source)
        inputs = Inputs(file.inputs, ask_on_terminal)
        for name in file.servers:
            try:
                specs[name] = file.spec(name, inputs)
            except ConfigError as exc:
                unusable.append(ServerReport(name, False, str(exc)))
    return list(specs.values()), unusable


def _one(server: str, sources: Sequence[str]) -> ServerSpec:
    """The server of that name in these files, in the user's config, or the only one of a file."""
    from agentkit.errors import ConfigError
    from agentkit.mcp.config import load_config, open_config
    from agentkit.mcp.inputs import Inputs, ask_on_terminal

    for source in reversed(sources):
        file = open_config(source)
        if server in file.servers:  # the others may need variables that are not set
            spec = file.spec(server, Inputs(file.inputs, ask_on_terminal))
            if spec.disabled:
                raise ConfigError(f"{file.place(*file.servers[server][0])}: server {server!r} is disabled")
            return spec
    if sources:
        raise ConfigError(f"{', '.join(sources)}: no server {server!r} in it")
    specs = [spec for spec in load_config(server) if not spec.disabled]
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs) or "none that is not disabled"
        raise ConfigError(f"{server}: has {names}; say which: SERVER, with --mcp {server}")
    return specs[0]


@contextlib.asynccontextmanager
async def _connection(spec: ServerSpec) -> AsyncGenerator[Connection]:
    """The server, started."""
    import anyio

    from agentkit.cli.elicit import terminal_form, terminal_host
    from agentkit.cli.show import Show
    from agentkit.errors import one_error
    from agentkit.mcp.connection import Connection

    with one_error():
        async with anyio.create_task_group() as owners:
            host = terminal_host(terminal_form(Show(quiet=False, live=False)))
            connection = Connection(spec, owners, _say, host=host)
            try:
                await connection.start()
                yield connection
            finally:
                connection.close()


def _warn_of_secrets(name: str, entry: Mapping[str, Any], path: Path) -> None:
    from agentkit.mcp.imports import secrets_in

    if keys := secrets_in(entry):
        hold = "holds a secret" if len(keys) == 1 else "hold secrets"
        _say(
            f"{name}: {', '.join(keys)} {hold} in the clear in {_short_path(path)} (which only you can read);"
            " better is ${VAR}, and the variable set elsewhere"
        )


def _say(text: str) -> None:
    click.echo(f"agentkit: {text}", err=True)


def _short_path(path: Path) -> str:
    home = str(Path.home())
    return f"~{str(path)[len(home) :]}" if str(path).startswith(home + "/") else str(path)


def _plain(text: str) -> str:
    """What a server wrote, without what would drive the terminal; a pipe gets it as it is."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "�", text) if sys.stdout.isatty() else text


def _one_line(text: str, limit: int) -> str:
    line = " ".join(_plain(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
