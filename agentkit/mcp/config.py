"""MCP config files -> server specs. Reads files and the environment, and may ask a person; no other I/O.

The servers stand under `mcpServers` (Claude, Cursor, Qwen-Agent, fastmcp and most others), `servers` (VS
Code, with its `inputs`), `context_servers` (Zed), `mcp_servers` (Codex), `mcp` (opencode), or are the whole
file. JSON may have comments and trailing commas; TOML and YAML are told by the file's ending.

    {"mcpServers": {"time": {"command": "uvx", "args": ["mcp-server-time"]}}}
    {"servers": {"docs": {"type": "http", "url": "https://example.org/mcp"}}}

Everywhere in a server's settings these stand for something else:

    ${VAR} ${VAR:-default} ${env:VAR}        an environment variable
    ${input:id}                              what a person answers, or the variable AGENTKIT_INPUT_ID
    ${workspaceFolder} ${userHome} ${cwd}    the project that the file is of, the home and the current directory

A server runs in the current directory unless it has a `cwd`. A relative `cwd` or `envFile`, and a command
with a slash in it, are relative to the folder of the config file, or the project if that is a folder such as
.vscode (in a mapping: to the current directory); args are passed as they are.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

from agentkit.errors import ConfigError
from agentkit.mcp.clients import Client, client_of
from agentkit.mcp.documents import kind_of, line_of, read
from agentkit.mcp.inputs import Ask, Inputs, ask_on_terminal

__all__ = ["ConfigFile", "ServerSpec", "Transport", "load_config", "open_config", "user_config"]

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
HARMLESS = set(
    "name description display_name icon gallery version metadata bundled source $schema".split()
) | set("dev watchPaths keep_alive max_sse_event_size".split())
TIMEOUT = 60.0  # seconds
NO_TIMEOUT = 86_400.0  # seconds; what "timeout": 0 says


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """One MCP server: how to start or reach it, and which of its tools to take.

    `startup_timeout` bounds start, handshake and tool listing, `tool_timeout` each call; both in seconds.
    `include` and `exclude` are globs on the server's own tool names; an empty `include` takes all. `mode`
    is how the protocol version is agreed: "auto" asks for the newest, "legacy" starts with the handshake of
    2025-11-25 and before.

    `approve` are globs on the tools that run without asking. `auth` are settings for OAuth, where a server's
    own discovery is not enough: client_id, client_secret, redirect_port and others (`agentkit.mcp.oauth`);
    {"enabled": False} is never to try it. `scopes` is what to ask for. A `lazy` server starts when it is
    first called, if its tools are known from before. `idle` is after how many seconds without a call it may
    be ended, None for never. `sampling` says whether it may use our model: True without asking, None after
    asking, False never. `log` is the file that its stderr goes to, None for the usual place. `origin`
    says where it was read.
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
    approve: tuple[str, ...] = ()
    auth: Mapping[str, Any] | None = field(default=None, repr=False)
    scopes: tuple[str, ...] = ()
    lazy: bool = True
    idle: float | None = None
    sampling: bool | None = None
    log: Path | None = None
    origin: str = field(default="", compare=False)

    def takes(self, tool: str) -> bool:
        """Whether the server's tool of that name is wanted."""
        if any(fnmatchcase(tool, glob) for glob in self.exclude):
            return False
        return not self.include or any(fnmatchcase(tool, glob) for glob in self.include)


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A config file, or the same thing as a mapping, taken apart: the settings of each server by its name,
    as they were written, and where in the file they stand."""

    where: str  # how errors name it
    text: str = field(repr=False)  # may hold secrets
    folder: Path  # what relative paths are relative to
    workspace: Path | None  # the project that it is of; None if it is of the user, wherever that is
    client: Client
    servers: Mapping[str, tuple[tuple[str | int, ...], Any]] = field(repr=False)
    inputs: Any = field(repr=False)

    def spec(self, name: str, inputs: Inputs | None) -> ServerSpec:
        """One server's settings understood. Without `inputs`, variables stay as they are written.

        Raises `ConfigError`, which names the file, the line, the server and the key.
        """
        keys, entry = self.servers[name]
        return _server(_Settings(self, name, keys, entry, inputs))

    def env_file(self, name: str) -> str | None:
        """The path of the file that a server's variables are in; its own variables stay as they are written."""
        settings = _Settings(self, name, *self.servers[name], None)
        path = settings.string("envFile", "env_file")
        return settings.path(path) if path else None

    def place(self, *keys: str | int) -> str:
        line = line_of(self.text, keys) if self.text else 0
        return f"{self.where}, line {line}" if line else self.where


def load_config(
    *sources: str | Path | Mapping[str, Any] | ServerSpec, ask: Ask = ask_on_terminal
) -> tuple[ServerSpec, ...]:
    """The servers of config files, or of mappings in the same form, in their order; disabled ones included.

    Of two servers of one name the later wins. A source that is no file but the name of a server in the user's
    own config is that server. `ask` is what answers a file's inputs, each of them once.

    Raises `ConfigError`, which names the file, the line, the server and the key.
    """
    specs: dict[str, ServerSpec] = {}
    for source in sources:
        if isinstance(source, ServerSpec):
            found = [source]
        elif isinstance(source, str) and _is_name(source):
            file = open_config(user_config())
            keys, entry = file.servers[source]
            if isinstance(entry, Mapping):  # who names it wants it
                entry = {k: v for k, v in entry.items() if k not in ("disabled", "enabled")}
            file = replace(file, servers={source: (keys, entry)})
            found = [file.spec(source, Inputs(file.inputs, ask))]
        else:
            file = open_config(source)
            inputs = Inputs(file.inputs, ask)
            found = [file.spec(name, inputs) for name in file.servers]
        specs |= {spec.name: spec for spec in found}
    return tuple(specs.values())


def user_config() -> Path:
    """The user's own config file, whether it exists or not: `agentkit mcp add` and `import` write there."""
    import platformdirs  # slow to import

    return Path(platformdirs.user_config_dir("agentkit")) / "mcp.json"


def _is_name(source: str) -> bool:
    if os.sep in source or source.endswith(".json") or Path(source).is_file():
        return False
    mine = user_config()
    names = list(open_config(mine, maybe_empty=True).servers) if mine.is_file() else []
    if source in names:
        return True
    if Path(source).exists() or "\0" in source:
        return False  # a directory, or not a path at all: its own error says so
    known = f"which has {', '.join(names)}" if names else "which has none"
    raise ConfigError(f"{source}: there is no such file, and no server of that name in {mine}, {known}")


def open_config(source: str | Path | Mapping[str, Any], *, maybe_empty: bool = False) -> ConfigFile:
    """A config file taken apart, its servers not yet understood. Raises `ConfigError`."""
    here = Path.cwd()
    if isinstance(source, Mapping):
        where, text, values = "MCP config", "", source
        client, folder = Client(""), here
        workspace: Path | None = here
    else:
        path, where = Path(source).expanduser(), str(source)
        values, text = read(path, where)
        client, project = client_of(path)
        folder = project or path.parent.absolute()
        workspace = None if path.absolute() == user_config() else project

    servers: dict[str, tuple[tuple[str | int, ...], Any]] = {}
    inputs: Any = ()
    for keys, holder, found in _places(values, client):
        if isinstance(found, Sequence) and not isinstance(found, str) and found:
            if not all(isinstance(e, Mapping) and isinstance(e.get("name"), str) for e in found):
                raise ConfigError(
                    f"{where}: the servers must be an object of name: settings, not {kind_of(found)}"
                )
            servers |= {e["name"]: ((*keys, number), e) for number, e in enumerate(found)}
        elif isinstance(found, Mapping):
            servers |= {str(name): ((*keys, str(name)), entry) for name, entry in found.items()}
        else:
            raise ConfigError(
                f"{where}: the servers must be an object of name: settings, not {kind_of(found)}"
            )
        inputs = holder.get("inputs", inputs)
    if not servers and not maybe_empty:
        if any(_places(values, client)):
            raise ConfigError(f"{where}: it names no servers")
        raise ConfigError(f'{where}: no "mcpServers" in it; expected {{"mcpServers": {{"name": {{…}}}}}}')
    return ConfigFile(where, text, folder, workspace, client, servers, inputs)


def _places(
    values: Mapping[str, Any], client: Client
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any], Any]]:
    """Where in a file servers are: the keys that lead there, what they are in, and they themselves."""
    paths: list[tuple[str, ...]] = [
        ("mcpServers",),
        ("servers",),
        ("mcp_servers",),
        ("context_servers",),
        ("mcp", "servers"),
        ("amp.mcpServers",),
        ("experimental", "modelContextProtocolServers"),
    ]
    if client.name == "Goose":
        paths.insert(0, ("extensions",))
    found = [place for path in paths if (place := _place(values, path))][:1]
    if client.name == "Claude Code" and (
        place := _place(values, ("projects", str(Path.cwd()), "mcpServers"))
    ):
        found.append(place)
    if found:
        yield from found
        return
    for keys, servers in ((("mcp",), values.get("mcp")), ((), values)):  # opencode; fastmcp
        if isinstance(servers, Mapping) and servers and all(map(_is_server, servers.values())):
            yield keys, values, servers
            return


def _place(
    values: Mapping[str, Any], path: tuple[str, ...]
) -> tuple[tuple[str, ...], Mapping[str, Any], Any] | None:
    holder: Any = values
    for key in path[:-1]:
        holder = holder.get(key) if isinstance(holder, Mapping) else None
    if not isinstance(holder, Mapping) or holder.get(path[-1]) is None:
        return None
    return path, holder, holder[path[-1]]


def _is_server(entry: Any) -> bool:
    return isinstance(entry, Mapping) and ("command" in entry or "url" in entry)


class _Settings:
    """The keys of one server, each taken once under any of its names; what is left over is unknown."""

    def __init__(
        self, file: ConfigFile, name: str, keys: tuple[str | int, ...], entry: Any, inputs: Inputs | None
    ) -> None:
        self.file = file
        self.name = name
        self.keys = keys
        self.inputs = inputs
        if not isinstance(entry, Mapping):
            raise ConfigError(f"{self.place()} must be an object, not {kind_of(entry)}")
        self.left = {str(key): value for key, value in entry.items()}

    def place(self, *keys: str | int) -> str:
        return f"{self.file.place(*self.keys, *keys)}: server {self.name!r}:"

    def inner(self, key: str) -> _Settings:
        """The settings in one of the keys, which is taken."""
        return _Settings(self.file, self.name, (*self.keys, key), self.left.pop(key), self.inputs)

    def take(self, *names: str) -> tuple[str, Any]:
        """The first of `names` that is set, and its value; the others go with it. Null is as good as
        unset."""
        found = [(name, self.left.pop(name)) for name in names if name in self.left]
        return next((pair for pair in found if pair[1] is not None), (names[0], None))

    def wrong(self, key: str, what: str, *under: str | int) -> ConfigError:
        shown = ".".join([key, *(name for name in under if isinstance(name, str))])
        return ConfigError(f"{self.place(key, *under)} {shown!r} {what}")

    def warn_of_the_rest(self) -> None:
        if unknown := sorted(self.left.keys() - HARMLESS):
            log.warning("%s not used: %s", self.place(unknown[0]), ", ".join(unknown))

    def string(self, *names: str) -> str | None:
        key, value = self.take(*names)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.wrong(key, f"must be a string, not {kind_of(value)}")
        if not value.strip():
            raise self.wrong(key, "is empty")
        return self.expand(value, key)

    def strings(self, *names: str) -> tuple[str, ...]:
        key, value = self.take(*names)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise self.wrong(key, f"must be a list of strings, not {kind_of(value)}")
        return tuple(self.scalar(item, key, number) for number, item in enumerate(value))

    def mapping(self, *names: str) -> dict[str, str]:
        key, value = self.take(*names)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.wrong(key, f"must be an object of strings, not {kind_of(value)}")
        return {
            str(name): self.scalar(item, key, str(name)) for name, item in value.items() if item is not None
        }

    def scalar(self, value: Any, key: str, *under: str | int) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int | float):
            return json.dumps(value) if abs(value) < 1e300 else "inf"
        if not isinstance(value, str):
            raise self.wrong(key, f"must hold strings, not {kind_of(value)}", *under)
        return self.expand(value, key, *under)

    def seconds(self, *names: str, unit: float | None = 1.0) -> float | None:
        """A time; a `unit` of None is one that has to be guessed."""
        key, value = self.take(*names)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise self.wrong(key, f"must be a positive number of seconds, not {kind_of(value)}")
        if unit is None and value >= 1000:
            log.warning("%s %r is %s; taken as milliseconds", self.place(key), key, value)
            unit = 0.001
        return float(value) * (unit or 1.0)

    def flag(self, name: str) -> bool | None:
        key, value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, f"must be true or false, not {kind_of(value)}")
        return value

    def path(self, path: str) -> str:
        """Made absolute; one that begins with a variable that was kept stays as it is."""
        if path.startswith("${"):
            return path
        try:
            return str(self.file.folder / Path(path).expanduser())
        except RuntimeError:  # ~nobody: no such user
            return path

    def expand(self, text: str, key: str, *under: str | int) -> str:
        file = self.file
        workspace = file.workspace or Path.cwd()
        if file.client.bare_variables:
            text = re.sub(r"\$(?=[A-Za-z_])([A-Za-z0-9_]+)", r"${\1}", text)
        if file.client.name == "opencode":
            text = re.sub(r"\{env:([A-Za-z0-9_]+)\}", r"${\1:-}", text)
        folders = {
            "workspaceFolder": str(workspace),
            "workspaceFolderBasename": workspace.name,
            "userHome": os.path.expanduser("~"),
            "cwd": os.getcwd(),
            "pathSeparator": os.sep,
            "/": os.sep,
        }

        def value(match: re.Match[str]) -> str:
            folder, name, default, id = match["folder"], match["name"], match["default"], match["id"]
            if folder is not None:
                kept = self.inputs is None and not (folder.startswith("workspace") and file.workspace)
                return match[0] if kept else folders[folder]
            if name is None and id is None:
                what = "which is not understood; write ${VAR}, ${VAR:-default} or ${input:id}"
                raise self.wrong(key, f"has {match[0]!r}, {what}", *under)
            if self.inputs is None:
                return match[0]
            if id is not None:
                try:
                    return self.inputs.answer(id)
                except ConfigError as exc:
                    raise self.wrong(key, str(exc), *under) from None
            found = os.environ.get(name)
            if default is not None:
                return found or default  # as in a shell, ":-" also stands in for an empty value
            if found is None:
                raise self.wrong(key, f"needs the environment variable {name}, which is not set", *under)
            return found

        return re.sub(
            r"\$\{(?:(?P<folder>workspaceFolder(?=\})|workspaceFolderBasename|userHome|cwd|pathSeparator|/)"
            r"|input:(?P<id>[^}]+)"
            r"|(?:env:)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?"
            r"|[^}]*)\}",
            value,
            text,
        )


def _server(settings: _Settings) -> ServerSpec:
    file, name = settings.file, settings.name
    disabled = settings.flag("disabled")
    enabled = settings.flag("enabled")
    disabled = bool(disabled) or enabled is False
    if disabled and settings.inputs is not None:
        return ServerSpec(name, disabled=True, origin=file.where)  # its variables need not be set
    _flatten(settings)

    kind = settings.string("type", "transport", "transportType")
    command = settings.string("command", "cmd")
    has_http_url = settings.left.get("httpUrl") is not None
    url = settings.string("httpUrl", "url", "serverUrl", "uri")
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
        raise ConfigError(
            f"{settings.place()} has both 'command' and 'url'; keep one, or say which with 'type'"
        )
    elif command:
        transport = "stdio"
    elif url:
        sse = not has_http_url and (file.client.url_is_sse or re.search(r"/sse(/|\?|$)", url))
        transport = "sse" if sse else "http"
    else:
        raise ConfigError(
            f"{settings.place()} has neither 'command' (a program to start) nor 'url' (a server to reach)"
        )
    if transport == "stdio":
        url = None
    else:
        command = None
        _check_url(settings, url or "")

    approve = _approve(settings)
    include, exclude, approve_too = _globs(settings)
    headers, auth, scopes = _credentials(settings)
    cwd = settings.string("cwd")
    mode = settings.string("mode") or "auto"
    if mode not in MODES:
        raise settings.wrong("mode", f"is {mode!r}; known are {', '.join(MODES)}")
    startup_timeout, tool_timeout = _timeouts(settings)
    lazy, eager = settings.flag("lazy"), settings.flag("eager")
    logged = settings.string("log")
    spec = ServerSpec(
        name,
        command=settings.path(command)
        if command and ("/" in command or command.startswith("~"))
        else command,
        args=settings.strings("args"),
        env=_environment(settings),
        cwd=settings.path(cwd) if cwd else None,
        url=url,
        headers=headers,
        transport=transport,
        disabled=disabled,
        include=include,
        exclude=exclude,
        startup_timeout=startup_timeout,
        tool_timeout=tool_timeout,
        mode=mode,
        approve=approve + approve_too,
        auth=auth,
        scopes=scopes,
        lazy=lazy if lazy is not None else not eager,
        idle=settings.seconds("idle_timeout", "idleTimeout"),
        sampling=settings.flag("sampling"),
        log=Path(settings.path(logged)) if logged else None,
        origin=file.where,
    )
    settings.warn_of_the_rest()
    return spec


def _flatten(settings: _Settings) -> None:
    """The commands of some clients are more than a string: bring their parts to where others have them."""
    left = settings.left
    if isinstance(left.get("transport"), Mapping):  # Continue
        left |= left.pop("transport")
    command = left.get("command")
    if isinstance(command, Mapping):  # Zed
        left.pop("command")
        left |= {"command" if key == "path" else key: value for key, value in command.items()}
    elif isinstance(command, list | tuple) and command:  # opencode
        left["command"], *rest = command
        more = left.get("args")
        left["args"] = [*rest, *more] if isinstance(more, list | tuple) else rest if more is None else more


def _environment(settings: _Settings) -> dict[str, str]:
    """`env`, on top of what its `envFile` says and of variables that are named to be passed on."""
    passed_on: dict[str, str] = {}
    key, names = settings.take("env_vars", "env_keys")
    for entry in names if isinstance(names, list | tuple) else ():
        variable = entry.get("name") if isinstance(entry, Mapping) else entry
        if not isinstance(variable, str) or not re.fullmatch(r"[A-Za-z_]\w*", variable):
            raise settings.wrong(key, f"must be a list of names of variables, not of {kind_of(variable)}")
        if settings.inputs is None:
            passed_on[variable] = f"${{{variable}:-}}"
        elif variable in os.environ:
            passed_on[variable] = os.environ[variable]
    env_file = settings.string("envFile", "env_file")
    if env_file and settings.inputs is not None:
        passed_on |= _read_env_file(settings, settings.path(env_file))
    return passed_on | settings.mapping("env", "environment", "envs")


def _read_env_file(settings: _Settings, path: str) -> dict[str, str]:
    """NAME=value lines, as in a shell: `export`, quotes and comments; variables in values are not expanded."""
    try:
        text = Path(path).read_text("utf-8-sig")
    except (OSError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or "is not UTF-8 text"
        raise settings.wrong("envFile", f"{path} cannot be read: {why}") from None
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"(?:export\s+)?([A-Za-z_][\w.]*)\s*=\s*(.*)", line)
        if match is None:
            raise settings.wrong("envFile", f"{path}, line {number}, is not NAME=value")
        name, value = match[1], match[2]
        if quoted := re.match(r"""'([^']*)'|"((?:\\.|[^"\\])*)\"""", value):
            value = quoted[1] if quoted[1] is not None else _unescape(quoted[2])
        else:
            value = re.sub(r"\s+#.*", "", value)
        found[name] = value
    return found


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t", "r": "\r"}.get(m[1], m[1]), text)


def _timeouts(settings: _Settings) -> tuple[float, float]:
    """Seconds for the start and for a call. What `timeout` means depends on the client that it is of."""
    unit = settings.file.client.timeout_unit
    startup = settings.seconds("startup_timeout", "startupTimeout", "startup_timeout_sec")
    startup = startup or settings.seconds("startup_timeout_ms", "connectionTimeout", unit=0.001)
    call = settings.seconds("tool_timeout", "toolTimeout", "tool_timeout_sec")
    if isinstance(settings.left.get("timeout"), Mapping):  # opencode
        inner = settings.inner("timeout")
        startup = startup or inner.seconds("startup", unit=0.001)
        other = inner.seconds("request", unit=0.001)
    elif settings.left.get("timeout") == 0 and settings.left["timeout"] is not False:
        settings.left.pop("timeout")
        other = NO_TIMEOUT
    else:
        other = settings.seconds("timeout", unit=unit)
    silence = settings.seconds("sse_read_timeout")
    return startup or TIMEOUT, call or other or silence or TIMEOUT


def _approve(settings: _Settings) -> tuple[str, ...]:
    """Globs on the tools that run without asking."""
    every = settings.flag("trust") is True
    every |= settings.take("default_tools_approval_mode")[1] == "approve"
    globs: tuple[str, ...] = ()
    for key in ("autoApprove", "alwaysAllow"):
        if isinstance(settings.left.get(key), bool):
            every |= settings.left.pop(key)
        else:
            globs += settings.strings(key)
    return ("*",) if every else tuple(dict.fromkeys(globs))


def _globs(settings: _Settings) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Which tools to take, which to leave out and which to approve, under any of the names that clients use."""
    include = settings.strings("includeTools", "allowedTools", "enabled_tools", "available_tools")
    exclude = settings.strings("excludeTools") + settings.strings("disabledTools", "disabled_tools")
    approve: tuple[str, ...] = ()
    if isinstance(settings.left.get("tools"), Mapping):
        inner = settings.inner("tools")
        for tool in [key for key, value in inner.left.items() if isinstance(value, Mapping)]:
            one = inner.inner(tool)  # Codex and fastmcp: settings by tool
            if one.flag("enabled") is False:
                exclude += (tool,)
            if one.take("approval_mode")[1] == "approve":
                approve += (tool,)
            one.warn_of_the_rest()
        include += inner.strings("include")
        exclude += inner.strings("exclude")
        inner.warn_of_the_rest()
    else:
        include += settings.strings("tools")
    return include, exclude, approve


_AUTH_KEYS = {  # as clients spell them, lower case, without - and _
    "clientid": "client_id",
    "clientsecret": "client_secret",
    "callbackport": "redirect_port",
    "redirectport": "redirect_port",
    "redirecturi": "redirect_uri",
    "clientmetadataurl": "client_metadata_url",
    "authorizationurl": "authorization_url",
    "tokenurl": "token_url",
    "authmethod": "auth_method",
    "grant": "grant",
    "privatekey": "private_key",
    "algorithm": "algorithm",
    "issuer": "issuer",
    "enabled": "enabled",
}


def _credentials(settings: _Settings) -> tuple[dict[str, str], dict[str, Any] | None, tuple[str, ...]]:
    """Headers, OAuth settings and its scopes. A token is a header; `false` is never to try OAuth."""
    headers = settings.mapping("headers", "http_headers")
    headers |= {
        header: settings.expand(f"${{{variable}}}", "env_http_headers", header)
        for header, variable in settings.mapping("env_http_headers").items()
    }
    if variable := settings.string("bearer_token_env_var"):
        headers["Authorization"] = settings.expand(f"Bearer ${{{variable}}}", "bearer_token_env_var")
    scopes = _scopes(settings)
    key, value = settings.take("oauth", "auth", "authentication")
    if value is None:
        return headers, None, scopes
    if isinstance(value, bool):
        return headers, {} if value else {"enabled": False}, scopes
    if isinstance(value, str):
        if value.lower() == "oauth":
            return headers, {}, scopes
        return headers | {"Authorization": f"Bearer {settings.expand(value, key)}"}, None, scopes
    settings.left[key] = value
    inner = settings.inner(key)
    scopes = _scopes(inner) or scopes
    auth: dict[str, Any] = {}
    for name in list(inner.left):
        if known := _AUTH_KEYS.get(re.sub("[-_]", "", name).lower()):
            item = inner.left.pop(name)
            auth[known] = inner.expand(item, name) if isinstance(item, str) else item
    inner.warn_of_the_rest()
    return headers, auth, scopes


def _scopes(settings: _Settings) -> tuple[str, ...]:
    for key in ("scopes", "scope"):
        if isinstance(settings.left.get(key), str):
            settings.left[key] = settings.left[key].replace(",", " ").split()
    return settings.strings("scopes", "scope")


def _check_url(settings: _Settings, url: str) -> None:
    if settings.inputs is None and "${" in url:
        return
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
