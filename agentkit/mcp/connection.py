"""One MCP server's connection, on the official SDK. Importing this imports the SDK, which is slow."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn
from urllib.parse import urlsplit

import anyio
import httpx2
from anyio.abc import TaskGroup, TaskStatus
from mcp import Client, MCPError, StdioServerParameters, stdio_client, types
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

from agentkit.errors import MCPServerError, ToolError
from agentkit.mcp.command import environment, find_command
from agentkit.mcp.config import ServerSpec
from agentkit.mcp.translate import mend_listing
from agentkit.tools import Notify

__all__ = ["Connection"]

# The SDK logs what a server writes wrongly, with tracebacks; a program that set up logging still gets it
# all, but one that did not must not have it on its terminal.
logging.getLogger("mcp").addHandler(logging.NullHandler())

try:
    WE = types.Implementation(name="agentkit", version=version("agentkit"))
except PackageNotFoundError:  # run from its source
    WE = types.Implementation(name="agentkit", version="0")
GUARD = Path(__file__).with_name("guard.py")
CLOSE_TIMEOUT = 8.0  # seconds; the SDK gives a process 2 to leave, 2 after SIGTERM, and kills it then
EVENT_BYTES = 64 * 2**20  # of one server-sent event; the SDK's own limit of 1 MiB cuts off results
FAILURES = 3  # in a row, before a server is left alone for a while
REST = 60.0  # seconds
# how the SDK says that an HTTP session is over and the call was not taken, and that the answer broke off
NOT_TAKEN = ("Session terminated", "Session not found")
BROKEN_OFF = "SSE stream ended"


class _Link:
    """One life of a connection; a restarted server gets a new one."""

    def __init__(self) -> None:
        self.client: Client
        self.over = anyio.Event()  # lost, or no longer wanted
        self.closed = anyio.Event()  # put away: its process has ended
        self.stderr: IO[bytes] | None = None
        self.last_words = ""  # what stderr ended with
        self.problems: list[str] = []  # what is wrong with its tool listing
        self.noise = False  # something on stdout is not the protocol
        self.counted = False  # its loss, as a failure of the server
        self.http_status = 0  # of the last POST, if it was refused

    def end(self) -> None:
        self.last_words = self.tail()
        if self.stderr is not None:
            self.stderr.close()
        self.over.set()
        self.closed.set()

    def tail(self) -> str:
        """The end of what the server wrote to stderr so far, stack frames left out."""
        if self.stderr is None:
            return ""
        size = self.stderr.seek(0, os.SEEK_END)
        self.stderr.seek(max(0, size - 4000))
        lines = self.stderr.read().decode(errors="replace").splitlines()
        frame = re.compile(r"\s|Traceback|Node\.js v|During handling|The above exception")
        said = [line.strip()[:300] for line in lines if line.strip() and not frame.match(line)]
        return " | ".join(said[-3:])


class Connection:
    """One server, started by `start` and again by the next call after it was lost. Any task may call.

    The SDK's client must be left by the task that entered it, and cancels that task when its transport
    fails. So each connection has an owner task of its own, in `owners`, that does nothing else.
    """

    def __init__(self, spec: ServerSpec, owners: TaskGroup, notify: Notify) -> None:
        self.spec = spec
        self.tools: list[types.Tool] = []  # what it listed when it was first started
        self.server: types.Implementation | None = None
        self.protocol = ""
        self._owners = owners
        self._notify = notify
        self._link: _Link | None = None
        self._lock = anyio.Lock()
        self._failures = 0
        self._rest_until = 0.0
        self._closed = False

    async def start(self) -> None:
        """Start the server and list its tools. Raises `MCPServerError`."""
        await self._connected()

    def close(self) -> None:
        """Let the owner task put the server away; the task group that it lives in waits for that."""
        self._closed = True
        if self._link is not None:
            self._link.over.set()

    async def call(
        self, tool: str, arguments: Mapping[str, Any], *, repeatable: bool
    ) -> types.CallToolResult:
        """Call a tool by the server's own name for it, restarting a server that was lost.

        A call that may have reached a server is repeated, once, only if it is `repeatable`. Raises
        `MCPServerError` when the server is lost, silent or cannot be started, and `ToolError` for its own
        error answers.
        """
        may_repeat = repeatable
        may_renew = True
        while True:
            link = await self._connected()
            try:
                with anyio.fail_after(self.spec.tool_timeout):
                    result = await link.client.call_tool(tool, dict(arguments))
            except TimeoutError:
                limit = f"{self.spec.tool_timeout:g} s"
                raise MCPServerError(
                    f"MCP server {self.spec.name!r} gave no answer to {tool!r} in {limit}"
                ) from None
            except Exception as exc:  # the SDK also lets pydantic's, anyio's and RuntimeErrors through
                not_taken = str(exc) in NOT_TAKEN
                if not (not_taken or link.over.is_set() or str(exc).startswith(BROKEN_OFF)):
                    self._refused(tool, exc, link)
                with anyio.move_on_after(CLOSE_TIMEOUT):
                    link.over.set()
                    await link.closed.wait()
                if not_taken and may_renew:
                    may_renew = False
                    continue
                if not link.counted:  # other calls were lost with it
                    link.counted = True
                    self._failed()
                if may_repeat:
                    may_repeat = False
                    continue
                words = f"; its last words: {link.last_words}" if link.last_words else ""
                raise MCPServerError(
                    f"MCP server {self.spec.name!r} was lost during {tool!r}{words}"
                ) from exc
            self._failures = 0
            return result

    def _refused(self, tool: str, exc: Exception, link: _Link) -> NoReturn:
        """An error for this call alone; the connection is still good."""
        server = f"MCP server {self.spec.name!r}"
        if isinstance(exc, MCPError):
            status = f" (HTTP {link.http_status})" if link.http_status else ""
            raise ToolError(f"{exc.message}{status}") from exc
        if isinstance(exc, ValidationError):
            first = exc.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ToolError(f"{server} answered {tool!r} off the protocol: {where}: {first['msg']}") from exc
        raise ToolError(f"{server} answered {tool!r} in a way that cannot be used: {exc}") from exc

    def _failed(self) -> None:
        self._failures += 1
        if self._failures > FAILURES:
            self._rest_until = anyio.current_time() + REST

    async def _connected(self) -> _Link:
        async with self._lock:
            if self._closed:
                raise MCPServerError(f"MCP server {self.spec.name!r} is closed")
            if self._link is not None and not self._link.over.is_set():
                return self._link
            left = self._rest_until - anyio.current_time()
            if left > 0:
                raise MCPServerError(
                    f"MCP server {self.spec.name!r} failed {self._failures} times in a row"
                    f" and is not started again in the next {math.ceil(left)} s"
                )
            try:
                self._link = await self._owners.start(self._own)
            except MCPServerError:
                self._failed()
                raise
            if self._closed:  # meanwhile
                self._link.over.set()
            return self._link

    async def _own(self, *, task_status: TaskStatus[_Link]) -> None:
        """The owner task: enter the client, wait until it is over, leave the client."""
        link = _Link()
        ready = False
        deadline = anyio.current_time() + self.spec.startup_timeout
        try:
            with anyio.CancelScope(deadline=deadline) as scope:
                async with Client(self._transport(link), mode=self.spec.mode, client_info=WE) as client:
                    link.client = client
                    tools = await _list_tools(client, link.problems)
                    if not self.tools:
                        self.tools, self.server, self.protocol = (
                            tools,
                            client.server_info,
                            client.protocol_version,
                        )
                        for problem in link.problems:
                            self._notify(f"MCP server {self.spec.name!r}: {problem}")
                    scope.deadline = math.inf
                    ready = True
                    task_status.started(link)
                    await link.over.wait()
                    scope.deadline = anyio.current_time() + CLOSE_TIMEOUT
            if not ready:
                raise TimeoutError
        except Exception as exc:
            if not ready:
                raise MCPServerError(
                    f"MCP server {self.spec.name!r} did not start: {self._why(exc, link)}"
                ) from exc
            logging.getLogger(__name__).debug("MCP server %r was lost", self.spec.name, exc_info=True)
        finally:
            link.end()

    @contextlib.asynccontextmanager
    async def _transport(self, link: _Link) -> AsyncGenerator[Any]:
        spec = self.spec
        async with contextlib.AsyncExitStack() as stack:
            if spec.transport == "stdio":
                link.stderr = tempfile.TemporaryFile()  # noqa: SIM115 - link.end() closes it
                stderr: Any = link.stderr  # the SDK asks for text, and hands its file number on
                streams = await stack.enter_async_context(stdio_client(_process(spec), errlog=stderr))
            elif spec.transport == "sse":
                streams = await stack.enter_async_context(sse_client(spec.url or "", dict(spec.headers)))
            else:

                async def note_status(response: httpx2.Response) -> None:
                    if response.request.method == "POST":
                        link.http_status = response.status_code if response.status_code >= 400 else 0

                # a call may be silent for as long as it may take; its own timeout is elsewhere
                timeout = httpx2.Timeout(30, read=max(300, spec.tool_timeout))
                hooks = {"response": [note_status]}
                http = httpx2.AsyncClient(headers=dict(spec.headers), timeout=timeout, event_hooks=hooks)
                await stack.enter_async_context(http)
                streams = await stack.enter_async_context(
                    streamable_http_client(spec.url or "", http_client=http, max_sse_event_size=EVENT_BYTES)
                )
            incoming, outgoing = streams
            yield _Incoming(incoming, link), outgoing

    def _why(self, exc: Exception, link: _Link) -> str:
        """In one sentence, why the server did not start."""
        spec = self.spec
        cause = _first(exc)
        if isinstance(cause, httpx2.HTTPStatusError):
            link.http_status = cause.response.status_code
        if isinstance(cause, TimeoutError):
            why = f"no answer in {spec.startup_timeout:g} s"
        elif link.http_status in (401, 403):
            why = (
                f"{_address(spec)} refused the credentials (HTTP {link.http_status});"
                ' they go under \'headers\', as "Authorization": "Bearer ${TOKEN}"'
            )
        elif link.http_status:
            why = f"{_address(spec)} answered HTTP {link.http_status}; is that the address of an MCP server?"
        elif isinstance(cause, httpx2.TransportError):
            why = f"{_address(spec)} cannot be reached: {cause}"
        elif isinstance(cause, MCPServerError):
            why = str(cause)
        elif isinstance(cause, MCPError) and cause.message == "Connection closed":
            why = "it ended before it answered" if spec.command else f"{_address(spec)} closed the connection"
        elif isinstance(cause, MCPError):
            why = cause.message
        elif isinstance(cause, ValidationError):
            why = "its answer is off the protocol"
        else:
            why = str(cause) or type(cause).__name__
        if link.noise:
            why += "; it writes text on stdout, which belongs to the protocol"
        if words := link.tail():
            why += f"; its last words: {words}"
        return why


def _process(spec: ServerSpec) -> StdioServerParameters:
    """How the server is started: under the guard, where there is one for this system."""
    if spec.cwd is not None and not os.path.isdir(spec.cwd):
        raise MCPServerError(f"its cwd {spec.cwd} is not a directory")
    env = environment(spec.env)
    command, args = find_command(spec.command or "", spec.args, env)
    if sys.platform == "linux":
        args = ["-I", "-S", str(GUARD), str(os.getpid()), command, *args]
        command = sys.executable
    return StdioServerParameters(
        command=command, args=args, env=env, cwd=spec.cwd, encoding_error_handler="replace"
    )


async def _list_tools(client: Client, problems: list[str]) -> list[types.Tool]:
    """All pages of the server's tools; `problems` is told of those that cannot be used."""
    tools: dict[str, types.Tool] = {}
    cursors: set[str | None] = set()
    cursor: str | None = None
    while cursor not in cursors:  # some servers give the same one for ever
        cursors.add(cursor)
        try:
            page = await client.list_tools(cursor=cursor)
        except MCPError as exc:
            if exc.code == types.METHOD_NOT_FOUND:
                return []  # a server without tools
            raise
        for tool in page.tools:
            if tool.name in tools:
                problems.append(f"the tool {tool.name!r} is listed twice; the first one is taken")
            tools.setdefault(tool.name, tool)
        cursor = page.next_cursor
        if cursor is None:
            break
    return list(tools.values())


class _Incoming:
    """A transport's messages on their way to the SDK's client: listings are mended, the end is noticed."""

    def __init__(self, stream: Any, link: _Link) -> None:
        self._stream = stream
        self._link = link

    @property
    def last_context(self) -> Any:
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> SessionMessage | Exception:
        item: SessionMessage | Exception = await self._stream.receive()
        if isinstance(item, Exception):
            self._link.noise = True
            return item
        message = item.message
        if isinstance(message, types.JSONRPCResponse) and isinstance(message.result.get("tools"), list):
            tools, problems = mend_listing(message.result["tools"])
            self._link.problems += problems
            item.message = message.model_copy(update={"result": {**message.result, "tools": tools}})
        return item

    async def aclose(self) -> None:
        await self._stream.aclose()

    def __aiter__(self) -> _Incoming:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> _Incoming:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.over.set()  # before the client tells the callers: they ask whether the connection is over
        await self._stream.__aexit__(kind, exc, trace)


def _first(exc: BaseException) -> BaseException:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc


def _address(spec: ServerSpec) -> str:
    """The server's URL without what may be secret in it."""
    parts = urlsplit(spec.url or "")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
