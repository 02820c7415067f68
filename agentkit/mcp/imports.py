"""Servers into the user's own config file, and out of the files of other clients. Writes that one file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agentkit.errors import ConfigError
from agentkit.mcp.clients import CLIENTS, files_of
from agentkit.mcp.config import TIMEOUT, ConfigFile, ServerSpec, open_config, user_config
from agentkit.mcp.documents import plain_json, read
from agentkit.mcp.private import write_private

__all__ = ["Found", "change_user_config", "entry_of", "find_servers", "scoped", "secrets_in", "shown"]


@dataclass(frozen=True, slots=True)
class Found:
    """A server in somebody's config file: its settings as we would write them, or why they are of no use."""

    name: str
    client: str  # "" for a file that is nobody's
    path: Path
    entry: Mapping[str, Any] = field(default_factory=dict, repr=False)
    inputs: tuple[Mapping[str, Any], ...] = ()  # those that the settings name
    error: str = ""


def find_servers(paths: Sequence[str | Path] = (), project: Path | None = None) -> Iterator[Found]:
    """The servers in these files (folders: in what files clients have there), or in all that the clients known
    to us have here. Variables stay as they are written. A file that cannot be read is one `Found` with the
    error and no name.
    """
    if not paths:
        files = [file for client in CLIENTS for file in files_of(client, project) if file.is_file()]
    else:
        files = [file for path in paths for file in _files(Path(path).expanduser())]
    for file in dict.fromkeys(files):
        try:
            config = open_config(file, maybe_empty=not paths)
        except ConfigError as exc:
            yield Found("", "", file, error=str(exc))
            continue
        for name in config.servers:
            yield _found(config, name, file)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    known = [path / file for client in CLIENTS for file in client.project]
    return [file for file in known if file.is_file()] or sorted(path.glob("*.json"))


def _found(config: ConfigFile, name: str, path: Path) -> Found:
    try:
        entry = entry_of(config.spec(name, None), config.env_file(name))
    except ConfigError as exc:
        return Found(name, config.client.name, path, error=str(exc))
    named = set(re.findall(r"\$\{input:([^}]+)\}", json.dumps(entry, ensure_ascii=False)))
    declared = config.inputs if isinstance(config.inputs, list) else []
    inputs = tuple(i for i in declared if isinstance(i, Mapping) and i.get("id") in named)
    return Found(name, config.client.name, path, entry, inputs)


def scoped(found: Found) -> Found:
    """The same server with inputs of its own: two files may call different secrets by one name."""

    def rename(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: rename(item) for key, item in value.items()}
        if isinstance(value, list):
            return [rename(item) for item in value]
        return value.replace("${input:", f"${{input:{found.name}-") if isinstance(value, str) else value

    inputs = tuple({**i, "id": f"{found.name}-{i['id']}"} for i in found.inputs)
    return replace(found, entry=rename(found.entry), inputs=inputs)


def entry_of(spec: ServerSpec, env_file: str | None = None) -> dict[str, Any]:
    """A server's settings as a config file has them; what is as usual is left out."""
    tools = {"include": list(spec.include), "exclude": list(spec.exclude)}
    auth = dict(spec.auth) if spec.auth is not None else None
    if spec.scopes:
        auth = (auth or {}) | {"scopes": list(spec.scopes)}
    entry = {
        "command": spec.command,
        "args": list(spec.args) or None,
        "env": dict(spec.env) or None,
        "envFile": env_file,
        "cwd": spec.cwd,
        "type": spec.transport if spec.url else None,
        "url": spec.url,
        "headers": dict(spec.headers) or None,
        "oauth": auth,
        "tools": {key: globs for key, globs in tools.items() if globs} or None,
        "autoApprove": list(spec.approve) or None,
        "startup_timeout": spec.startup_timeout if spec.startup_timeout != TIMEOUT else None,
        "tool_timeout": spec.tool_timeout if spec.tool_timeout != TIMEOUT else None,
        "idle_timeout": spec.idle,
        "sampling": spec.sampling,
        "mode": spec.mode if spec.mode != "auto" else None,
        "lazy": None if spec.lazy else False,
        "log": str(spec.log) if spec.log else None,
        "disabled": spec.disabled or None,
    }
    return {key: value for key, value in entry.items() if value is not None}


_SECRET_NAME = re.compile(r"(?i)key|token|secret|passw|auth|credential|cookie|\bpat\b|bearer")
_SECRET_VALUE = re.compile(
    r"^(Bearer\s+\S|sk-|gh[pousr]_|github_pat_|glpat-|xox[abprs]-|AKIA|AIza|eyJ[\w-]+\.)"
)


def secrets_in(entry: Mapping[str, Any]) -> list[str]:
    """The keys of settings that seem to hold a secret in the clear, such as env.GITHUB_TOKEN."""
    found = [
        f"{group}.{name}"
        for group in ("env", "headers", "oauth")
        for name, value in (entry.get(group) or {}).items()
        if isinstance(value, str) and value and "${" not in value
        if (_SECRET_NAME.search(name) and name != "client_id" and not name.endswith("_url"))
        or _SECRET_VALUE.search(value)
    ]
    query = str(entry.get("url") or "").partition("?")[2].split("&")
    found += ["url" for part in query if "=" in part and "${" not in part and _SECRET_NAME.search(part)][:1]
    return found + [f"args[{number}]" for number in _secret_args(entry.get("args") or ())]


def _secret_args(args: Sequence[str]) -> Iterator[int]:
    for number, arg in enumerate(args):
        name, _, value = arg.partition("=")
        option = arg.startswith("-") and _SECRET_NAME.search(name)
        after = number > 0 and args[number - 1].startswith("-") and "=" not in args[number - 1]
        after = bool(after and not arg.startswith("-") and _SECRET_NAME.search(args[number - 1]))
        if "${" not in arg and (_SECRET_VALUE.search(arg) or (option and value) or after):
            yield number


def shown(entry: Mapping[str, Any]) -> str:
    """What a server's settings come to, in a line and without secrets."""
    if url := entry.get("url"):
        address, _, rest = str(url).partition("?")
        return re.sub(r"//[^/@]*@", "//", address) + ("?…" if rest else "")
    args = list(entry.get("args") or ())
    for number in _secret_args(args):
        option, equals, _ = args[number].partition("=")
        args[number] = f"{option}=…" if equals and option.startswith("-") else "…"
    return " ".join([str(entry.get("command", "")), *args])


def change_user_config(
    servers: Mapping[str, Mapping[str, Any] | None], inputs: Iterable[Mapping[str, Any]] = ()
) -> Path:
    """Write these servers into the user's config, taking out those that are None, and leave the rest as it is.

    The file is the user's alone to read (mode 0600), and replaced as a whole or not at all. Comments do not
    survive; a file that had some is kept beside it as mcp.json.old.
    """
    path = user_config().resolve()  # of a link, what it points to
    values: dict[str, Any] = {}
    text = ""
    if path.is_file():
        found, text = read(path, str(path))
        values = dict(found)
    key = next((k for k in ("mcpServers", "servers") if k in values), "mcpServers")
    entries = dict(values.get(key) or {})
    for name, entry in servers.items():
        if entry is None:
            entries.pop(name, None)
        else:
            entries[name] = dict(entry)
    values[key] = entries
    declared = {i.get("id"): i for i in [*(values.get("inputs") or []), *inputs] if isinstance(i, Mapping)}
    if declared:
        values["inputs"] = list(declared.values())
    if text and plain_json(text) != text:
        write_private(path.with_name(path.name + ".old"), text.encode())
    write_private(path, (json.dumps(values, ensure_ascii=False, indent=2) + "\n").encode(errors="replace"))
    return path
