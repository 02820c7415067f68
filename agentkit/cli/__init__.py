"""The `agentkit` command: run, chat, model, tools, mcp, eval, doctor. What each needs is imported when it is called."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Literal, TypeVar

import click

__all__ = ["main"]

ANSWERED, ERROR, USAGE, LIMIT = 0, 1, 2, 3  # exit codes; click itself exits with 2 for wrong usage
_F = TypeVar("_F", bound=Callable[..., Any])


class _Main(click.Group):
    """`eval`, `mcp` and `tools` are many commands: modules of their own, imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "eval", "mcp", "tools"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "eval":
            from agentkit.cli.eval import evals

            return evals
        if cmd_name == "mcp":
            from agentkit.cli.mcp import mcp

            return mcp
        if cmd_name == "tools":
            from agentkit.cli.tools import tools

            return tools
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(None, "-V", "--version", package_name="agentkit")
def main() -> None:
    """Tool-using agents on a local model.

    \b
    agentkit run -t code_interpreter "What is the 1000th prime?"
    agentkit run --mcp mcp_configs/time.json "What time is it in Tokyo?"
    agentkit chat
    agentkit doctor
    """


def command(group: click.Group, *args: Any, **kwargs: Any) -> Callable[[_F], click.Command]:
    """A click command with `--debug`, whose AgentkitErrors are one sentence on stderr and exit code 1."""

    def make(fn: _F) -> click.Command:
        @functools.wraps(fn)
        def guarded(*a: Any, debug: bool, **k: Any) -> None:
            from agentkit.errors import AgentkitError

            try:
                code = fn(*a, **k)
            except KeyboardInterrupt:
                sys.exit(130)  # as a shell reports a process that SIGINT ended
            except (AgentkitError, OSError) as exc:
                if debug:
                    raise
                if k.get("as_json"):
                    click.echo(json.dumps({"error": str(exc)}, ensure_ascii=False))
                click.echo(f"agentkit: {_sentence(exc)}", err=True)
                sys.exit(ERROR)
            sys.exit(code or ANSWERED)

        debugged = click.option("--debug", is_flag=True, envvar="AGENTKIT_DEBUG", help="Show tracebacks.")(
            guarded
        )
        made: click.Command = group.command(*args, **kwargs)(debugged)
        return made

    return make


def _sentence(exc: BaseException) -> str:
    if isinstance(exc, OSError) and exc.strerror:
        where = f" ({exc.filename})" if exc.filename else ""
        return f"{exc.strerror}{where}."
    return str(exc)


def in_loop(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    import anyio

    return anyio.run(main)


def seconds(value: str) -> float:
    """A duration: `300`, `90s`, `10m`, `1h`; `0` is none."""
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (value[:-1], units[value[-1]]) if value[-1:] in units else (value, 1)
    result = float(number) * unit
    if not 0 <= result < 1e9:
        raise ValueError(value)
    return result


class Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return value if isinstance(value, float) else seconds(value)
        except ValueError:
            self.fail(f"{value!r} is no duration; write 300, 90s, 10m or 1h", param, ctx)


model_option = click.option(
    "-m",
    "--model",
    envvar="AGENTKIT_MODEL",
    help="Name, path, URL or NAME@URL (NAME@URL,URL: replicas); vllm:NAME or llama.cpp:NAME.  [default: qwen3-4b]",
)


def agent_options(fn: _F) -> _F:
    """What `run` and `chat` have in common."""
    for option in reversed(
        [
            model_option,
            click.option(
                "-t",
                "--tool",
                "--tools",
                "tools",
                multiple=True,
                help="A tool by name (see `agentkit tools`), or a file or folder of yours: ./my_tools.py.",
            ),
            click.option(
                "--mcp", multiple=True, help="An MCP config file, or the name of a server of yours."
            ),
            click.option(
                "--allow",
                multiple=True,
                metavar="RULE",
                help="Calls to make without asking: write_file, '#destroys', 'shell(git *)'.",
            ),
            click.option("--ask", multiple=True, metavar="RULE", help="Calls to ask about first."),
            click.option("--deny", multiple=True, metavar="RULE", help="Calls never to make."),
            click.option(
                "--permissions",
                type=click.Path(exists=True, dir_okay=False),
                help="A file of such rules.  [default: permissions.toml in the user's configuration, else ask about #destroys]",
            ),
            click.option("-y", "--yes", is_flag=True, help="Ask about nothing: make what is not denied."),
            click.option(
                "-f",
                "--file",
                "files",
                multiple=True,
                type=click.Path(exists=True),
                help="A file for the code interpreter's workspace.",
            ),
            click.option("-i", "--instructions", help="Instructions for the model (the system prompt)."),
            click.option("--think/--no-think", default=None, help="Qwen3's thinking mode on or off."),
            click.option("--think-auto", is_flag=True, help="Think about the task and after errors only."),
            click.option(
                "--guided",
                type=click.Choice(["auto", "always", "never"]),
                default="auto",
                show_default=True,
                help="Let the server hold the model to the form of a call: after one it got wrong, or always.",
            ),
            click.option("--temperature", type=click.FloatRange(0, 2), help="Sampling temperature."),
            click.option("--max-turns", type=click.IntRange(1), default=16, show_default=True),
            click.option("--timeout", type=Duration(), help="Longest time for a run, such as 90s or 10m."),
            click.option(
                "--keep-alive",
                type=Duration(),
                default="5m",
                show_default=True,
                help="How long a model server that was started stays warm.",
            ),
        ]
    ):
        fn = option(fn)
    return fn


def make_agent(
    *,
    model: str | None,
    tools: tuple[str, ...],
    mcp: tuple[str, ...],
    files: tuple[str, ...],
    instructions: str | None,
    think: bool | None,
    think_auto: bool,
    guided: Literal["auto", "always", "never"],
    temperature: float | None,
    max_turns: int,
    timeout: float | None,
    keep_alive: float,
    allow: tuple[str, ...],
    ask: tuple[str, ...],
    deny: tuple[str, ...],
    permissions: str | None,
    yes: bool,
    notify: Callable[[str], None],
    form: Any = None,
    lasting: bool = False,
) -> Any:
    """*form* asks the user; None: nobody is there to be asked. With *lasting*, what tools can keep from run to run is kept."""
    from agentkit import Agent, Limits, ModelSettings, React
    from agentkit.cli.elicit import terminal_host
    from agentkit.runtime import connect

    rules = user_permissions(permissions).extended(allow=allow, ask=ask, deny=deny)

    return Agent(
        connect(model, notify, keep_alive=keep_alive),
        instructions=instructions,
        tools=_set_up(tools, files, lasting),
        mcp=mcp,
        host=terminal_host(form),
        limits=Limits(max_turns=max_turns, timeout=timeout),
        settings=ModelSettings(thinking="auto" if think_auto else think, temperature=temperature),
        planner=React(guided=guided),
        permissions=replace(rules, approve=_yes if yes else form.permit if form else None),
        ask_user=form.answer if form else None,
    )


def _set_up(names: tuple[str, ...], files: tuple[str, ...], lasting: bool) -> list[Any]:
    """The tools, with *files* in the workspaces that there are, and those with a workspace kept open between runs if *lasting*."""
    from agentkit.agent import MCP_CONFIGS, resolve_tools
    from agentkit.errors import ConfigError

    configs = [name for name in names if name.endswith(MCP_CONFIGS)]
    found: list[Any] = list(resolve_tools([name for name in names if name not in configs]))
    fields = [getattr(t, "__dataclass_fields__", {}) for t in found]
    if files and not any("files" in has for has in fields):
        raise ConfigError(
            "--file puts a file into the code interpreter's workspace; add -t code_interpreter."
        )
    for i, has in enumerate(fields):
        if files and "files" in has:
            found[i] = replace(found[i], files=files)
        if lasting and "workspace" in has:
            found[i] = replace(found[i], scope="agent")
    return [*found, *configs]


def _yes(asked: Any) -> Literal["once"]:
    return "once"


def user_permissions(path: str | None) -> Any:
    """The rules in that file, or in the user's own; without any, calls that may destroy something are asked about."""
    from platformdirs import user_config_path

    from agentkit.permissions import Permissions

    own = user_config_path("agentkit") / "permissions.toml"
    if path is None and not own.is_file():
        return Permissions(ask=["#destroys"])
    return Permissions.load(path or own)


@command(main)
@click.argument("question", required=False)
@agent_options
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object: output, stopped, messages, usage."
)
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors.")
def run(question: str | None, as_json: bool, quiet: bool, **options: Any) -> int:
    """Answer QUESTION; text on stdin is added to it, or is the question when there is none.

    The answer goes to stdout, thoughts and tool calls to stderr.
    Exit code: 0 answered, 1 error, 2 wrong usage, 3 a limit was reached.
    """
    from agentkit.cli.elicit import terminal_form
    from agentkit.cli.show import Show

    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read().strip()
    text = "\n\n".join(part for part in (question if question != "-" else "", piped) if part)
    if not text:
        raise click.UsageError(
            'ask something: agentkit run "What time is it in Tokyo?" --mcp mcp_configs/time.json'
        )
    show = Show(quiet=quiet, live=not as_json and sys.stdout.isatty())
    agent = make_agent(notify=show.progress, form=terminal_form(show), **options)

    async def ask() -> Any:
        async with agent.stream(text) as running:
            async for event in running:
                show.event(event)
        return running.result

    with show:
        result = in_loop(ask)
    if as_json:
        click.echo(json.dumps(as_dict(result), ensure_ascii=False, indent=2))
    elif not show.printed(result.output):
        click.echo(result.output)
    if unasked := sorted({d.tool for d in result.decisions if d.by == "nobody"}):
        click.echo(
            f"agentkit: nobody was there to allow {', '.join(unasked)}; --allow {unasked[0]} or --yes does.",
            err=True,
        )
    if result.stopped != "answer":
        click.echo(
            f"agentkit: stopped without an answer: {WHY.get(result.stopped, result.stopped)}", err=True
        )
        return LIMIT
    return ANSWERED


WHY = {
    "max_turns": "the turn limit was reached (--max-turns raises it).",
    "max_tool_calls": "the limit of tool calls was reached.",
    "max_tokens": "the token limit was reached.",
    "timeout": "the time limit was reached (--timeout raises it).",
    "loop": "the model made the same call again and again.",
    "length": "the answer was cut off at the model's output limit.",
    "empty": "the model said nothing.",
}


def as_dict(result: Any) -> dict[str, Any]:
    """A RunResult as JSON, its messages in the chat-completions form."""
    from dataclasses import asdict

    from agentkit.messages import to_chat

    return {
        "output": result.output,
        "stopped": result.stopped,
        "turns": result.turns,
        "messages": [chat for m in result.messages for chat in to_chat(m, "reasoning_content")],
        "decisions": [asdict(d) for d in result.decisions],
        "usage": {**asdict(result.usage), "total_tokens": result.usage.total_tokens},
        "artifacts": [
            {"name": a.name, "mime": a.mime, "path": a.path, "size": a.size} for a in result.artifacts
        ],
    }


@command(main)
@agent_options
def chat(**options: Any) -> None:
    """Talk with the model; it keeps the conversation. /help lists the commands."""
    from agentkit.cli.chat import converse
    from agentkit.cli.elicit import terminal_form
    from agentkit.cli.show import Show

    show = Show(quiet=False, live=True)
    form = terminal_form(show)
    with show:
        in_loop(lambda: converse(make_agent(notify=show.progress, form=form, lasting=True, **options), show))


def warn(text: str) -> None:
    click.echo(f"agentkit: {text}", err=True)


@main.group()
def model() -> None:
    """Models and the servers that run them."""


@command(model)
@click.argument("name", default="qwen3-4b")
def pull(name: str) -> None:
    """Get the weights of a model: qwen3-4b, demo, owner/repo:file.gguf or vllm:owner/repo on the hub."""
    from agentkit.runtime.local import fetch

    found, path = fetch(name, warn)
    click.echo(f"{found}: {path}")


@command(model)
@click.argument("name", required=False)
@click.argument("args", nargs=-1, metavar="[-- SERVER OPTIONS]")
@click.option("--engine", type=click.Choice(["vllm", "sglang", "llama.cpp"]), help="Else chosen.")
@click.option("--context", type=click.IntRange(1), help="Tokens of a prompt and its answer together.")
@click.option("--port", type=click.IntRange(1, 65535), help="Else a free one.")
def serve(
    name: str | None, args: tuple[str, ...], engine: str | None, context: int | None, port: int | None
) -> int:
    """Run a model server until Ctrl-C; `run` and `chat` find it by the model's name.

    What follows `--` goes to the server: agentkit model serve qwen3-4b -- --enforce-eager
    """
    from agentkit.cli.serve import until_stopped

    if name is not None and name.startswith("-"):  # of the server's options, with no name before them
        args, name = (name, *args), None
    return int(in_loop(lambda: until_stopped(name, engine, context, port or 0, args)))


@command(model)
@click.option("--json", "as_json", is_flag=True, help="As a JSON list.")
def ps(as_json: bool) -> None:
    """List the model servers that are running."""
    from agentkit.cli.show import server_table
    from agentkit.runtime.server import running

    server_table(running(), as_json)


@command(model)
@click.argument("name", required=False)
@click.option("-a", "--all", "everything", is_flag=True, help="Stop every server.")
def stop(name: str | None, everything: bool) -> int:
    """Stop the server of a model."""
    from agentkit.runtime.server import stop as stop_servers

    if not name and not everything:
        raise click.UsageError("name a model, or say --all")
    stopped = stop_servers(None if everything else name)
    for one in stopped:
        click.echo(f"stopped {one.model} ({one.engine}, pid {one.pid})")
    if not stopped and name:
        click.echo(f"agentkit: no server runs {name!r}; `agentkit model ps` lists those that run.", err=True)
        return ERROR
    return ANSWERED


@command(main)
@click.option("-m", "--model", envvar="AGENTKIT_MODEL", help="The model to look for.  [default: qwen3-4b]")
@click.option("--url", help="Look at the model server there instead (key from AGENTKIT_API_KEY).")
@click.option(
    "--timeout", type=Duration(), default="45s", show_default=True, help="With --url: its longest silence."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(model: str | None, url: str | None, timeout: float, as_json: bool) -> int:
    """What is installed, which engine and model would be used, what is missing and how to get it.

    With --url: what the model server there does with some 15 small requests, and what to change in it.
    """
    if url is None:
        from agentkit.cli.doctor import examine

        return examine(model, as_json)
    import os

    from agentkit.cli.probe import show_report
    from agentkit.runtime.probe import probe_server

    source = click.get_current_context().get_parameter_source("model")
    named = model if source is click.core.ParameterSource.COMMANDLINE else None  # not one meant for `run`
    key = os.environ.get("AGENTKIT_API_KEY")
    report = in_loop(lambda: probe_server(url, named, key, timeout=timeout))
    return show_report(report, as_json)
