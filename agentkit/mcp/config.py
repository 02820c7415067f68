"""MCP config files -> server specs. Reads one file and the environment, and does no other I/O.

Two forms are read, with // and /* */ comments and trailing commas allowed:

    {"mcpServers": {"time": {"command": "uvx", "args": ["mcp-server-time"]}}}    Claude, Cursor, Qwen-Agent, …
    {"servers": {"docs": {"type": "http", "url": "https://example.org/mcp"}}}    VS Code

`${VAR}`, `${VAR:-default}` and `${env:VAR}` stand for environment variables in command, args, env, url,
headers and cwd. A server runs in the current directory unless it has a `cwd`. A relative `cwd`, and a
command with a slash in it, are relative to the folder of the config file (in a mapping: to the current
directory); args are passed as they are.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

from agentkit.errors import ConfigError

__all__ = ["ServerSpec", "Transport", "load_config"]

log = logging.getLogger(__name__)

Transport: TypeAlias = Literal["stdio", "http", "sse"]

TRANSPORTS: Mapping[str, Transport] = {  # spelled as clients do, lower case, without - and _
    "stdio": "stdio",
    "local": "stdio",
    "http": "http",
    "streamablehttp": "http",
    "remote": "http",
    "sse": "sse",
}
MODES = ("auto", "legacy", "2026-07-28")
# keys of other clients that change nothing here: not worth a warning
HARMLESS = {"autoApprove", "alwaysAllow", "trust", "name", "description", "icon", "gallery", "$schema"}
TIMEOUT = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """One MCP server: how to start or reach it, and which of its tools to take.

    `startup_timeout` bounds start, handshake and tool listing, `tool_timeout` each call; both in seconds.
    `include` and `exclude` are globs on the server's own tool names; an empty `include` takes all. `mode`
    is how the protocol version is agreed: "auto" asks for the newest, "legacy" starts with the handshake of
    2025-11-25 and before.
    """

    name: str
    command: str | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold secrets, as headers may
    cwd: str | None = None
    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    transport: Transport = "stdio"
    disabled: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    startup_timeout: float = TIMEOUT
    tool_timeout: float = TIMEOUT
    mode: str = "auto"

    def takes(self, tool: str) -> bool:
        """Whether the server's tool of that name is wanted."""
        if any(fnmatchcase(tool, glob) for glob in self.exclude):
            return False
        return not self.include or any(fnmatchcase(tool, glob) for glob in self.include)


def load_config(source: str | Path | Mapping[str, Any]) -> tuple[ServerSpec, ...]:
    """The servers of a config file, or of the same thing as a mapping, in its order; disabled ones included.

    Raises `ConfigError`, which names the file, the server and the key.
    """
    if isinstance(source, Mapping):
        where, folder, config = "MCP config", Path.cwd(), source
    else:
        path = Path(source).expanduser()
        where, folder, config = str(source), path.parent.absolute(), _read(path, str(source))

    servers = config.get("mcpServers", config.get("servers"))
    if servers is None:
        raise ConfigError(f'{where}: no "mcpServers" in it; expected {{"mcpServers": {{"name": {{…}}}}}}')
    if not isinstance(servers, Mapping):
        raise ConfigError(f"{where}: the servers must be an object of name: settings, not {_kind(servers)}")
    if not servers:
        raise ConfigError(f"{where}: it names no servers")
    return tuple(
        _server(f"{where}: server {name!r}", str(name), entry, folder) for name, entry in servers.items()
    )


def _read(path: Path, where: str) -> Mapping[str, Any]:
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{where}: there is no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{where}: is a directory; expected a JSON file") from None
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{where}: is not UTF-8 text (byte {exc.start})") from None
    except (OSError, ValueError) as exc:  # ValueError: a path with a NUL in it
        raise ConfigError(f"{where}: cannot be read: {getattr(exc, 'strerror', None) or exc}") from None
    try:
        config = json.loads(_plain_json(text))
    except json.JSONDecodeError as exc:
        raise ConfigError(
            f"{where}, line {exc.lineno}, column {exc.colno}: not valid JSON: {exc.msg}"
        ) from None
    except (ValueError, RecursionError) as exc:  # a number too long, or too deep
        raise ConfigError(f"{where}: not usable JSON: {exc}") from None
    if not isinstance(config, dict):
        raise ConfigError(f'{where}: must be an object, {{"mcpServers": {{…}}}}, not {_kind(config)}')
    return config


def _plain_json(text: str) -> str:
    """Comments and trailing commas become spaces, so that errors still name the file's lines and columns."""

    def blank(match: re.Match[str]) -> str:
        found = match[0]
        return found if found.startswith('"') else re.sub(r"[^\n]", " ", found)

    string = r'"(?:\\.|[^"\\\n])*"'
    text = re.sub(string + r"|//[^\n]*|/\*.*?\*/", blank, text, flags=re.DOTALL)
    return re.sub(string + r"|,(?=\s*[}\]])", blank, text)


class _Settings:
    """The keys of one server, each taken once under any of its names; what is left over is unknown."""

    def __init__(self, where: str, entry: Mapping[str, Any]) -> None:
        self.where = where
        self.left = {str(key): value for key, value in entry.items()}

    def take(self, *names: str) -> tuple[str, Any]:
        """The first of `names` that is set, and its value; the others go with it. Null is as good as
        unset."""
        found = [(name, self.left.pop(name)) for name in names if name in self.left]
        return next((pair for pair in found if pair[1] is not None), (names[0], None))

    def wrong(self, key: str, what: str) -> ConfigError:
        return ConfigError(f"{self.where}: {key!r} {what}")

    def string(self, *names: str) -> str | None:
        key, value = self.take(*names)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.wrong(key, f"must be a string, not {_kind(value)}")
        if not value.strip():
            raise self.wrong(key, "is empty")
        return self.expand(key, value)

    def strings(self, *names: str) -> tuple[str, ...]:
        key, value = self.take(*names)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise self.wrong(key, f"must be a list of strings, not {_kind(value)}")
        return tuple(self.scalar(key, item) for item in value)

    def mapping(self, *names: str) -> dict[str, str]:
        key, value = self.take(*names)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.wrong(key, f"must be an object of strings, not {_kind(value)}")
        return {
            str(name): self.scalar(f"{key}.{name}", item) for name, item in value.items() if item is not None
        }

    def scalar(self, key: str, value: Any) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int | float):
            return json.dumps(value) if abs(value) < 1e300 else "inf"
        if not isinstance(value, str):
            raise self.wrong(key, f"must hold strings, not {_kind(value)}")
        return self.expand(key, value)

    def seconds(self, *names: str, maybe_ms: bool = False) -> float | None:
        key, value = self.take(*names)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise self.wrong(key, f"must be a positive number of seconds, not {_kind(value)}")
        if maybe_ms and value >= 1000:
            log.warning("%s: %r is %s; taken as milliseconds", self.where, key, value)
            return value / 1000
        return float(value)

    def flag(self, name: str) -> bool | None:
        key, value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, f"must be true or false, not {_kind(value)}")
        return value

    def expand(self, key: str, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            name, default = match["name"], match["default"]
            if name is None:
                raise self.wrong(
                    key, f"has {match[0]!r}, which is not understood; write ${{VAR}} or ${{VAR:-default}}"
                )
            found = os.environ.get(name)
            if default is not None:
                return found or default  # as in a shell, ":-" also stands in for an empty value
            if found is None:
                raise self.wrong(key, f"needs the environment variable {name}, which is not set")
            return found

        return re.sub(
            r"\$\{(?:(?:env:)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?|[^}]*)\}", value, text
        )


def _server(where: str, name: str, entry: Any, folder: Path) -> ServerSpec:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: must be an object, not {_kind(entry)}")
    settings = _Settings(where, entry)
    disabled = bool(settings.flag("disabled"))
    enabled = settings.flag("enabled")
    if disabled or enabled is False:
        return ServerSpec(name, disabled=True)  # its variables need not be set

    kind = settings.string("type", "transport", "transportType")
    command = settings.string("command")
    has_http_url = settings.left.get("httpUrl") is not None
    url = settings.string("httpUrl", "url", "serverUrl")
    transport: Transport
    if kind is not None:
        found = TRANSPORTS.get(re.sub("[-_]", "", kind).lower())
        if found is None:
            raise settings.wrong("type", f"is {kind!r}; known are stdio, http and sse")
        transport = found
        if transport == "stdio" and not command:
            raise settings.wrong("command", f"is missing, and 'type' is {kind!r}")
        if transport != "stdio" and not url:
            raise settings.wrong("url", f"is missing, and 'type' is {kind!r}")
    elif command and url:
        raise ConfigError(f"{where}: has both 'command' and 'url'; keep one, or say which with 'type'")
    elif command:
        transport = "stdio"
    elif url:
        transport = "sse" if not has_http_url and re.search(r"/sse(/|\?|$)", url) else "http"
    else:
        raise ConfigError(
            f"{where}: has neither 'command' (a program to start) nor 'url' (a server to reach)"
        )
    if transport == "stdio":
        url = None
    else:
        command = None
        _check_url(settings, url or "")

    include, exclude = _globs(settings)
    cwd = settings.string("cwd")
    mode = settings.string("mode") or "auto"
    if mode not in MODES:
        raise settings.wrong("mode", f"is {mode!r}; known are {', '.join(MODES)}")
    timeout = settings.seconds("timeout", maybe_ms=True)
    spec = ServerSpec(
        name,
        command=_path(folder, command)
        if command and ("/" in command or command.startswith("~"))
        else command,
        args=settings.strings("args"),
        env=settings.mapping("env"),
        cwd=_path(folder, cwd) if cwd else None,
        url=url,
        headers=settings.mapping("headers", "http_headers"),
        transport=transport,
        include=include,
        exclude=exclude,
        startup_timeout=settings.seconds("startup_timeout", "startupTimeout", "startup_timeout_sec")
        or TIMEOUT,
        tool_timeout=settings.seconds("tool_timeout", "toolTimeout", "tool_timeout_sec")
        or timeout
        or TIMEOUT,
        mode=mode,
    )
    unknown = sorted(settings.left.keys() - HARMLESS)
    if unknown:
        log.warning("%s: not used: %s", where, ", ".join(unknown))
    return spec


def _globs(settings: _Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which tools to take and which to leave out, under any of the names that clients use."""
    include = settings.strings("includeTools", "allowedTools", "enabled_tools")
    exclude = settings.strings("excludeTools") + settings.strings("disabledTools", "disabled_tools")
    tools = settings.left.get("tools")
    if isinstance(tools, Mapping):  # {"include": […], "exclude": […]}
        settings.left.pop("tools")
        inner = _Settings(f"{settings.where}: 'tools'", tools)
        include += inner.strings("include")
        exclude += inner.strings("exclude")
        if inner.left:
            log.warning("%s: not used: %s", inner.where, ", ".join(sorted(inner.left)))
    else:
        include += settings.strings("tools")
    return include, exclude


def _check_url(settings: _Settings, url: str) -> None:
    try:
        parts = urlsplit(url)
        good = (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        good = False
    if not good:
        raise settings.wrong("url", f"must be an http:// or https:// address, not {url!r}")


def _path(folder: Path, path: str) -> str:
    try:
        return str(folder / Path(path).expanduser())
    except RuntimeError:  # ~nobody: no such user
        return path


_KINDS: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda value: value is None, "null"),
    (lambda value: isinstance(value, bool), "true or false"),
    (lambda value: isinstance(value, str), "a string"),
    (lambda value: isinstance(value, int | float), "the number {}"),
    (lambda value: isinstance(value, list | tuple), "a list"),
    (lambda value: isinstance(value, Mapping), "an object"),
)


def _kind(value: Any) -> str:
    """What a JSON value is, in a reader's words."""
    for holds, words in _KINDS:
        if holds(value):
            return words.format(f"{value:.12g}" if isinstance(value, float) else str(value)[:20])
    return type(value).__name__
