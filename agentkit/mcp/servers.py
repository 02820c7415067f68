"""MCP servers as a toolset of an agent, and the check that says what works and what does not."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import anyio

from agentkit.errors import MCPServerError, ToolError
from agentkit.mcp import cache
from agentkit.mcp.config import ServerSpec, load_config
from agentkit.mcp.connection import Connection
from agentkit.mcp.host import Host, offers
from agentkit.mcp.resources import resource_tools
from agentkit.mcp.screen import Safety, Screen
from agentkit.mcp.translate import Definition, clean, tool_names
from agentkit.tools import Notify, Tool, ToolOutput

if TYPE_CHECKING:
    from mcp import types

    from agentkit.mcp.oauth import OnRedirect
    from agentkit.runtime.engine import Engine

__all__ = ["MCPServers", "ServerReport", "check"]

ERROR_CHARS = 4_000  # of what a server says is wrong
OURS = ("read_result", "list_resources", "read_resource")  # names that no server's tool gets


class MCPServers:
    """The tools of MCP servers, from config files, mappings in the same form, or specs.

        async with MCPServers("mcp_configs/time.json").open(print) as tools: ...

    A server whose tools are known from before is started when one is first called, unless it is not `lazy` or
    all are to be `eager`; the others start side by side. One that does not start is told to `notify` while the
    others serve. Of two servers with one name the later wins. A tool keeps its name where no other server has
    it, else it is `server__tool`. When a server changes its tools, the list that `open` gave is changed in
    place: what stays keeps its place, what is new comes last.

    `host` is what servers may ask of us, `safety` how they are kept in bounds. `on_redirect` answers where a
    person would have to sign in: it gets the address and returns where that led. Raises `ConfigError` at once
    for a config that cannot be used.
    """

    scope: Literal["run", "agent"] = "agent"

    def __init__(
        self,
        *sources: str | Path | Mapping[str, Any] | ServerSpec,
        host: Host = Host(),
        safety: Safety = Safety(),
        eager: bool = False,
        on_redirect: OnRedirect | None = None,
    ) -> None:
        specs: dict[str, ServerSpec] = {}
        for source in sources:
            found = (source,) if isinstance(source, ServerSpec) else load_config(source)
            specs |= {spec.name: spec for spec in found}
        self.specs = tuple(specs.values())
        self.host = host
        self.safety = safety
        self.eager = eager
        self.on_redirect = on_redirect
        self.connections: tuple[Connection, ...] = ()  # while it is open, for prompts and resources

    def with_model(self, engine: Engine) -> MCPServers:
        """The same servers, with *engine* answering those that ask a model, unless `host` has one that does."""
        same = copy.copy(self)
        same.host = self.host.with_model(engine)
        return same

    @contextlib.asynccontextmanager
    async def open(self, notify: Notify) -> AsyncGenerator[Sequence[Tool]]:
        """Start the servers that are needed at once; all that were started end when the body does."""
        tools: list[Tool] = []
        safety = self.safety
        if safety.approve is None:
            safety = replace(safety, approve=self.host.approve_tools)
        with Screen(safety, notify, tools) as screen:
            offer = _Offer(screen, tools)
            connecting = _connections(
                self.specs, notify, offer.update, self.host, self.on_redirect, eager=self.eager
            )
            async with connecting as connections:

                async def prepare(connection: Connection) -> None:
                    if connection.listing is not None:
                        await offer.update(connection)
                        return
                    try:
                        await connection.start()
                    except MCPServerError as exc:
                        notify(str(exc))

                async with anyio.create_task_group() as starts:
                    for connection in connections:
                        starts.start_soon(prepare, connection)
                offer.begin(connections)
                self.connections = tuple(connections)
                try:
                    yield tools
                finally:
                    self.connections = ()


@dataclass(frozen=True, slots=True)
class ServerReport:
    """What `check` found: the server's tools, or the error that keeps it from starting."""

    name: str
    ok: bool
    error: str = ""
    notes: tuple[str, ...] = ()  # flaws that cost single tools
    tools: tuple[Tool, ...] = ()
    server: str = ""  # what it calls itself, with its version
    protocol: str = ""
    seconds: float = 0.0  # until its tools were listed


async def check(
    specs: Iterable[ServerSpec], *, host: Host = Host(), on_redirect: OnRedirect | None = None
) -> tuple[ServerReport, ...]:
    """Start each server that is not disabled, side by side, list its tools and end it again."""
    wanted = [spec for spec in specs if not spec.disabled]
    reports: dict[str, ServerReport] = {}

    async def report(spec: ServerSpec) -> None:
        notes: list[str] = []
        tools: list[Tool] = []
        screen = Screen(Safety(pin=False), notes.append, tools)
        offer = _Offer(screen, tools)
        started = time.monotonic()
        connecting = _connections([spec], notes.append, offer.update, host, on_redirect, eager=True)
        async with connecting as [connection]:
            try:
                await connection.start()
            except MCPServerError as exc:
                reports[spec.name] = ServerReport(spec.name, False, str(exc), tuple(notes))
                return
            seconds = time.monotonic() - started
            offer.begin([connection])
            found = connection.listing or cache.Listing()
            reports[spec.name] = ServerReport(
                spec.name,
                True,
                notes=tuple(notes),
                tools=tuple(tools),
                server=f"{found.server} {found.version}".strip(),
                protocol=found.protocol,
                seconds=seconds,
            )

    # the SDK is imported before the clocks run
    import agentkit.mcp.link  # noqa: F401

    async with anyio.create_task_group() as tasks:
        for spec in wanted:
            tasks.start_soon(report, spec)
    return tuple(reports[spec.name] for spec in wanted)


@contextlib.asynccontextmanager
async def _connections(
    specs: Iterable[ServerSpec],
    notify: Notify,
    update: Callable[[Connection], Awaitable[None]],
    host: Host,
    on_redirect: OnRedirect | None,
    *,
    eager: bool,
) -> AsyncGenerator[list[Connection]]:
    """A connection for each server, not yet started; at the end all are put away. Those that need not be
    started at once have a listing."""

    async def listed(connection: Connection) -> None:
        if connection.listing is not None:
            cache.save(connection.spec, connection.listing, offers(host, connection.spec))
        await update(connection)

    failure: Exception | None = None
    async with anyio.create_task_group() as owners:
        connections = [
            Connection(
                spec,
                owners,
                notify,
                host=host,
                on_redirect=on_redirect,
                listing=cache.load(spec, offers(host, spec)) if spec.lazy and not eager else None,
                on_listing=listed,
            )
            for spec in specs
            if not spec.disabled
        ]
        try:
            yield connections
        except Exception as exc:
            failure = exc  # carried around the task group, which would wrap it in an ExceptionGroup
        finally:
            for connection in connections:
                connection.close()
    if failure is not None:
        raise failure


class _Offer:
    """The list of tools that the model is offered, kept up to date in place."""

    def __init__(self, screen: Screen, tools: list[Tool]) -> None:
        self._screen = screen
        self._tools = tools
        self._connections: Sequence[Connection] = ()
        self._known: dict[str, list[Definition]] = {}  # by server
        self._names: dict[tuple[str, str], str] = {("", name): name for name in OURS}
        self._made: dict[str, tuple[Definition, Tool]] = {}
        self._with_resources: list[Connection] = []
        self._lock = anyio.Lock()

    def begin(self, connections: Sequence[Connection]) -> None:
        """Make the list of what the servers have said so far: servers in config order, tools in the server's."""
        self._connections = connections
        self._arrange()

    async def update(self, connection: Connection) -> None:
        """The server has listed its tools."""
        spec = connection.spec
        async with self._lock:  # someone may be asked, and one question at a time is enough
            listed = connection.listing.tools if connection.listing else ()
            wanted = [tool for tool in listed if spec.takes(tool.name)]
            self._known[spec.name] = await self._screen.definitions(spec, cast("list[types.Tool]", wanted))
            self._arrange()

    def _arrange(self) -> None:
        found = [(c, d) for c in self._connections for d in self._known.get(c.spec.name, ())]
        pairs = [*((("", name)) for name in OURS), *((c.spec.name, d.name) for c, d in found)]
        names = tool_names(pairs, self._names)
        self._names.update(zip(pairs, names, strict=True))
        made: dict[str, Tool] = {}
        for (connection, definition), name in zip(found, names[len(OURS) :], strict=True):
            before = self._made.get(name)
            if before is None or before[0] != definition:
                handler = partial(_call, connection, definition, self._screen)
                server = connection.spec.name
                tool = Tool(
                    name,
                    definition.description,
                    definition.parameters,
                    handler,
                    effects=definition.effects,
                    source=server,
                    approved=any(fnmatchcase(definition.name, glob) for glob in connection.spec.approve),
                )
                self._made[name] = definition, tool
            made[name] = self._made[name][1]
        with_resources = [c for c in self._connections if c.listing is not None and c.listing.resources]
        if with_resources != self._with_resources:
            self._with_resources = with_resources
            self._tools[:] = [tool for tool in self._tools if tool.name not in OURS[1:]]
            made |= {tool.name: tool for tool in resource_tools(with_resources, self._screen.safety.filter)}
        stay = [
            made.pop(tool.name, tool)
            for tool in self._tools
            if tool.name in made or tool.name not in self._made
        ]
        self._tools[:] = [*stay, *made.values()]


async def _call(
    connection: Connection, definition: Definition, screen: Screen, arguments: Mapping[str, Any]
) -> ToolOutput:
    try:
        result = await connection.call(definition.name, arguments, repeatable=definition.repeatable)
    except (MCPServerError, ToolError) as exc:
        raise ToolError(clean(str(exc))[:ERROR_CHARS]) from exc
    return await screen.output(connection.spec.name, definition.name, result)
