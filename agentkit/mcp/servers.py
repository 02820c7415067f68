"""MCP servers as a toolset of an agent, and the check that says what works and what does not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio

from agentkit.errors import MCPServerError, ToolError
from agentkit.mcp.config import ServerSpec, load_config
from agentkit.mcp.translate import clean_schema, output, tool_names
from agentkit.tools import Notify, Tool, ToolOutput

if TYPE_CHECKING:
    from agentkit.mcp.connection import Connection

__all__ = ["MCPServers", "ServerReport", "check"]


class MCPServers:
    """The tools of MCP servers, from config files, mappings in the same form, or specs.

        async with MCPServers("mcp_configs/time.json").open(print) as tools: ...

    Servers start side by side, and one that does not start is told to `notify` while the others serve. Of
    two servers with one name the later wins. A tool keeps its name where no other server has it, else it is
    `server__tool`. Raises `ConfigError` at once for a config that cannot be used.
    """

    scope: Literal["run", "agent"] = "agent"

    def __init__(self, *sources: str | Path | Mapping[str, Any] | ServerSpec) -> None:
        specs: dict[str, ServerSpec] = {}
        for source in sources:
            found = (source,) if isinstance(source, ServerSpec) else load_config(source)
            specs |= {spec.name: spec for spec in found}
        self.specs = tuple(specs.values())

    @contextlib.asynccontextmanager
    async def open(self, notify: Notify) -> AsyncGenerator[Sequence[Tool]]:
        """Start the servers that are not disabled; they end when the body does."""
        async with _connections(self.specs, notify) as connections:

            async def start(connection: Connection) -> None:
                try:
                    await connection.start()
                except MCPServerError as exc:
                    notify(str(exc))

            async with anyio.create_task_group() as starts:
                for connection in connections:
                    starts.start_soon(start, connection)
            yield _tools(connections)


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


async def check(specs: Iterable[ServerSpec]) -> tuple[ServerReport, ...]:
    """Start each server that is not disabled, side by side, list its tools and end it again."""
    wanted = [spec for spec in specs if not spec.disabled]
    reports: dict[str, ServerReport] = {}

    async def report(spec: ServerSpec) -> None:
        notes: list[str] = []
        started = time.monotonic()
        async with _connections([spec], notes.append) as [connection]:
            try:
                await connection.start()
            except MCPServerError as exc:
                reports[spec.name] = ServerReport(spec.name, False, str(exc), tuple(notes))
                return
            seconds = time.monotonic() - started
            info = connection.server
            reports[spec.name] = ServerReport(
                spec.name,
                True,
                notes=tuple(notes),
                tools=tuple(_tools([connection])),
                server=f"{info.name} {info.version}".strip() if info else "",
                protocol=connection.protocol,
                seconds=seconds,
            )

    # the SDK is imported before the clocks run
    import agentkit.mcp.connection  # noqa: F401

    async with anyio.create_task_group() as tasks:
        for spec in wanted:
            tasks.start_soon(report, spec)
    return tuple(reports[spec.name] for spec in wanted)


@contextlib.asynccontextmanager
async def _connections(specs: Iterable[ServerSpec], notify: Notify) -> AsyncGenerator[list[Connection]]:
    """A connection for each server, not yet started; at the end all are put away."""
    from agentkit.mcp.connection import Connection  # the SDK is slow to import

    failure: Exception | None = None
    async with anyio.create_task_group() as owners:
        connections = [Connection(spec, owners, notify) for spec in specs if not spec.disabled]
        try:
            yield connections
        except Exception as exc:
            failure = exc  # carried around the task group, which would wrap it in an ExceptionGroup
        finally:
            for connection in connections:
                connection.close()
    if failure is not None:
        raise failure


def _tools(connections: Sequence[Connection]) -> list[Tool]:
    """The wanted tools of the servers that are up: servers in config order, tools in the server's."""
    found = [(c, tool) for c in connections for tool in c.tools if c.spec.takes(tool.name)]
    names = tool_names([(c.spec.name, tool.name) for c, tool in found])
    tools = []
    for (connection, tool), name in zip(found, names, strict=True):
        hints = tool.annotations
        repeatable = bool(hints and (hints.read_only_hint or hints.idempotent_hint))
        handler = partial(_call, connection, tool.name, repeatable)
        tools.append(Tool(name, tool.description or "", clean_schema(tool.input_schema), handler))
    return tools


async def _call(
    connection: Connection, tool: str, repeatable: bool, arguments: Mapping[str, Any]
) -> ToolOutput:
    try:
        result = await connection.call(tool, arguments, repeatable=repeatable)
    except MCPServerError as exc:
        raise ToolError(str(exc)) from exc
    return output(tool, result)
