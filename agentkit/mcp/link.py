"""One life of a connection to an MCP server, on the official SDK. Importing this imports the SDK, which is slow."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any

import anyio
import httpx2
from anyio.abc import TaskStatus
from mcp import Client, MCPError, types
from mcp.client.auth import OAuthFlowError, OAuthRegistrationError
from mcp.client.subscriptions import SubscriptionLost
from mcp.shared.message import SessionMessage
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from agentkit.errors import MCPServerError, ToolError
from agentkit.mcp.cache import Hints, ListedTool, Listing
from agentkit.mcp.config import ServerSpec, Transport
from agentkit.mcp.host import Host, client_options, connected, progress_callback, visited
from agentkit.mcp.limit import Limit, Limits
from agentkit.mcp.logs import ServerLog
from agentkit.mcp.oauth import OnRedirect, auth_for
from agentkit.mcp.resources import has_resources
from agentkit.mcp.tasks import begun, call_as_task, run_as_tasks
from agentkit.mcp.translate import mend_listing
from agentkit.mcp.transport import address, streams

__all__ = ["Link"]

log = logging.getLogger(__name__)

# The SDK logs what a server writes wrongly, with tracebacks; a program that set up logging still gets it
# all, but one that did not must not have it on its terminal.
logging.getLogger("mcp").addHandler(logging.NullHandler())

try:
    WE = types.Implementation(name="agentkit", version=version("agentkit"))
except PackageNotFoundError:  # run from its source
    WE = types.Implementation(name="agentkit", version="0")

PAGES, TOOLS = 200, 5_000  # of a listing; a server that has more would go on for ever
CLOSE_TIMEOUT = 8.0  # seconds; the SDK gives a process 2 to leave, 2 after SIGTERM, and kills it then
PING_TIMEOUT = 5.0  # seconds for a server that gave no answer to show that it is alive
ASIDE = 5.0  # seconds for what a server can do without
OLD_SERVER = (400, 404, 405)  # what a server of the older SSE transport answers to a POST
PAGES = 200  # of a listing; some servers have no end of them


class Link:
    """A connection from its start until it is lost or no longer wanted; a restarted server gets a new one.

    The SDK's client must be left by the task that entered it, and cancels that task when its transport
    fails. So each link has an owner task of its own, `own`, that does nothing else. Any task may use it.
    """

    def __init__(
        self,
        spec: ServerSpec,
        transport: Transport,
        host: Host,
        on_redirect: OnRedirect | None,
        notify: Callable[[str], None],
        on_listing: Callable[[Listing], Awaitable[None]],
    ) -> None:
        self.spec = spec
        self.transport = transport  # in the end, the one that works
        self.host = host
        self.client: Client
        self.limits = Limits()
        self.over = anyio.Event()  # lost, or no longer wanted
        self.closed = anyio.Event()  # put away: its process has ended
        self.counted = False  # its loss, as a failure of the server
        self.doubted = False  # it left a call unanswered
        self.calls = 0  # under way
        self.used_at = anyio.current_time()
        self.noise = False  # something on stdout is not the protocol
        self.http_status = 0  # of the last POST, if it was refused
        self.last_words = ""  # how it ended, as far as it said so
        self.fresh = anyio.Event()  # no other listing has been announced since the last one was read
        self._stale = anyio.Event()
        self._notify = notify
        self._on_listing = on_listing
        self._on_redirect = on_redirect
        self._tasks: set[str] = set()  # tools that only run as tasks
        self._problems: list[str] = []  # what is wrong with the tool listing
        self._log: ServerLog | None = None
        self._ready = False

    # --- the owner task

    async def own(self, *, task_status: TaskStatus[None]) -> None:
        """Enter the client, list the tools, wait until it is over, leave the client. Raises `MCPServerError`
        if it does not get as far as the tools."""
        try:
            with self.limits.limit(self.spec.startup_timeout) as limit:
                try:
                    await self._live(limit, task_status)
                except Exception as exc:
                    status = self.http_status
                    if self._ready or self.transport != "http" or status not in OLD_SERVER:
                        raise
                    self.transport = "sse"
                    self.over = anyio.Event()
                    try:
                        await self._live(limit, task_status)
                    except Exception:
                        if self._ready:
                            raise
                        self.http_status = status
                        raise exc from None  # what was meant to work
        except Exception as exc:
            cause = _cause(exc)
            if not self._ready:
                why = self._why(cause)
                raise MCPServerError(f"MCP server {self.spec.name!r} did not start: {why}") from exc
            if isinstance(cause, MCPServerError | OAuthFlowError):
                self.last_words = str(cause)
            log.debug("MCP server %r was lost", self.spec.name, exc_info=True)
        finally:
            if self._log is not None:
                self.last_words = self.last_words or self._log.tail()
                self._log.close()
            self.over.set()
            self.fresh.set()
            self.closed.set()

    async def _live(self, limit: Limit, task_status: TaskStatus[None]) -> None:
        spec = self.spec
        pause = self.limits.pause
        options = client_options(self.host, spec, pause)
        if self.transport == "stdio" and self._log is None:
            self._log = ServerLog(spec)
        auth = (
            None if self.transport == "stdio" else auth_for(spec, on_redirect=self._on_redirect, pause=pause)
        )
        pair = streams(spec, self.transport, log=self._log, auth=auth, note_status=self._note_status)
        async with Client(_Watched(pair, self), mode=spec.mode, client_info=WE, **options) as client:
            self.client = client
            with anyio.move_on_after(ASIDE):
                await connected(client, self.host)
            await self._read_listing()
            self.fresh.set()
            limit.lift()
            limit.scope.deadline = math.inf
            async with anyio.create_task_group() as watchers:
                watchers.start_soon(self._follow_listing)
                watchers.start_soon(self._subscribe)
                watchers.start_soon(self._retire)
                self._ready = True
                task_status.started()
                await self.over.wait()
                watchers.cancel_scope.cancel()
            limit.scope.deadline = anyio.current_time() + CLOSE_TIMEOUT

    def _note_status(self, status: int) -> None:
        self.http_status = status if status >= 400 else 0

    async def _read_listing(self) -> None:
        client = self.client
        self._problems.clear()
        tools = await _list_tools(client, self._problems)
        for problem in self._problems:
            self._notify(f"MCP server {self.spec.name!r}: {problem}")
        info = client.server_info
        resources = False
        with anyio.move_on_after(ASIDE), contextlib.suppress(Exception):  # they are not worth a server
            resources = await has_resources(client)
        listing = Listing(
            tuple(_listed(tool) for tool in tools),
            info.name if info else "",
            info.version if info else "",
            client.protocol_version,
            client.instructions or "",
            client.server_capabilities.model_dump(mode="json", by_alias=True, exclude_none=True),
            resources,
        )
        with self.limits.pause():  # someone may be asked about it
            await self._on_listing(listing)

    async def _follow_listing(self) -> None:
        """Read the listing again whenever the server says that it changed."""
        while True:
            await self._stale.wait()
            self._stale = anyio.Event()
            try:
                with self.limits.limit(self.spec.startup_timeout):
                    await self._read_listing()
            except Exception:  # lost, or off the protocol: what was listed stays
                log.debug("MCP server %r could not be listed again", self.spec.name, exc_info=True)
            if not self._stale.is_set():
                self.fresh.set()

    async def _subscribe(self) -> None:
        """Since 2026-07-28 a server says that its listing changed only to those who ask for it."""
        tools = self.client.server_capabilities.tools
        if self.client.protocol_version not in MODERN_PROTOCOL_VERSIONS or not (tools and tools.list_changed):
            return
        while True:
            try:
                async with self.client.listen(tools_list_changed=True) as changes:
                    async for _ in changes:
                        pass  # `_Watched` has seen it
                return  # the server wants to be left alone
            except SubscriptionLost:
                await anyio.sleep(1)
                self.listing_changed()  # perhaps
            except Exception:
                log.debug("MCP server %r takes no subscription", self.spec.name, exc_info=True)
                return

    async def _retire(self) -> None:
        """End a server that nobody has called for as long as its config says."""
        idle = self.spec.idle
        while idle is not None:
            left = self.used_at + idle - anyio.current_time()
            if left <= 0 and not self.calls:
                self.over.set()
                return
            await anyio.sleep(max(left, 0.1))

    def listing_changed(self) -> None:
        if self.fresh.is_set():
            self.fresh = anyio.Event()
        self._stale.set()

    def mended(self, result: dict[str, Any]) -> dict[str, Any] | None:
        """A raw result that the SDK would refuse, so that it takes it; None for any other."""
        if isinstance(listed := result.get("tools"), list):
            self._tasks |= run_as_tasks(listed)
            tools, problems = mend_listing(listed)
            self._problems += problems
            return {**result, "tools": tools}
        return begun(result)

    # --- any task

    async def call_tool(self, tool: str, arguments: Mapping[str, Any], limit: Limit) -> types.CallToolResult:
        report = progress_callback(self.host, self.spec, tool)

        async def came(progress: float, total: float | None, message: str | None) -> None:
            limit.alive()
            if report is not None:
                await report(progress, total, message)

        if tool in self._tasks:
            return await call_as_task(self.client, tool, arguments, came)
        try:
            return await self.client.call_tool(tool, dict(arguments), progress_callback=came)
        except MCPError as exc:
            if not await visited(self.host, self.spec, exc, self.limits.pause):
                raise
        return await self.client.call_tool(tool, dict(arguments), progress_callback=came)

    async def answers(self) -> bool:
        """Whether the server is there at all: one that hangs is not."""
        client = self.client
        with anyio.move_on_after(min(PING_TIMEOUT, self.spec.startup_timeout)):
            try:
                if client.protocol_version in MODERN_PROTOCOL_VERSIONS:  # without ping
                    await client.session.send_discover(client.protocol_version)
                else:
                    await client.session.send_ping()
            except Exception:  # an error is an answer too
                return not self.over.is_set()
            return True
        return False

    async def put_away(self) -> None:
        """Let the owner task end the connection, and wait for that."""
        self.over.set()
        with anyio.move_on_after(CLOSE_TIMEOUT):
            await self.closed.wait()

    def trim_log(self) -> None:
        if self._log is not None:
            self._log.trim()

    def was_not_taken(self, exc: Exception) -> bool:
        """Whether the error says that the HTTP session is over: then the server did nothing yet."""
        if not isinstance(exc, MCPError):
            return False
        words = exc.message.lower()
        if words in ("session terminated", "session not found"):
            return True
        return self.http_status in (400, 404) and ("session" in words or "not initialized" in words)

    def is_lost_by(self, exc: Exception) -> bool:
        """Whether the error means that the answer will never come, rather than being the answer."""
        return self.over.is_set() or str(exc).startswith("SSE stream ended")

    def refusal(self, what: str, exc: Exception) -> ToolError:
        """An error for this request alone, as the model reads it; the connection is still good."""
        server = f"MCP server {self.spec.name!r}"
        if isinstance(exc, MCPError):
            status = f" (HTTP {self.http_status})" if self.http_status else ""
            return ToolError(f"{server} refused {what!r}: {exc.message}{status}")
        if isinstance(exc, ValidationError):
            first = exc.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            return ToolError(f"{server} answered {what!r} off the protocol: {where}: {first['msg']}")
        return ToolError(f"{server} answered {what!r} in a way that cannot be used: {exc}")

    def _why(self, cause: BaseException) -> str:
        """In one sentence, why the server did not start."""
        spec = self.spec
        if isinstance(cause, httpx2.HTTPStatusError):
            self.http_status = cause.response.status_code
        if isinstance(cause, TimeoutError):
            why = f"no answer in {spec.startup_timeout:g} s"
        elif isinstance(cause, MCPServerError):
            why = str(cause)
        elif isinstance(cause, OAuthFlowError) and (
            spec.auth is not None or not isinstance(cause, OAuthRegistrationError)
        ):
            why = f"signing in to {address(spec)} failed: {cause}"
        elif isinstance(cause, OAuthFlowError) or self.http_status in (
            401,
            403,
        ):  # it offers no way to sign in
            why = (
                f"{address(spec)} refused the credentials (HTTP {self.http_status});"
                ' they go under \'headers\', as "Authorization": "Bearer ${TOKEN}"'
            )
        elif self.http_status:
            why = f"{address(spec)} answered HTTP {self.http_status}; is that the address of an MCP server?"
        elif isinstance(cause, httpx2.TransportError):
            why = f"{address(spec)} cannot be reached: {cause}"
        elif isinstance(cause, MCPError) and cause.message == "Connection closed":
            why = "it ended before it answered" if spec.command else f"{address(spec)} closed the connection"
        elif isinstance(cause, MCPError):
            why = cause.message
        elif isinstance(cause, ValidationError):
            why = "its answer is off the protocol"
        else:
            why = str(cause) or type(cause).__name__
        if self.noise:
            why += "; it writes text on stdout, which belongs to the protocol"
        if words := self._log.tail() if self._log else "":
            why += f"; its last words: {words}"
        return why


async def _list_tools(client: Client, problems: list[str]) -> list[types.Tool]:
    """All pages of the server's tools; `problems` is told of those that cannot be used."""
    tools: dict[str, types.Tool] = {}
    cursors: set[str | None] = set()
    cursor: str | None = None
    while cursor not in cursors:  # some servers give the same one for ever
        if len(cursors) == PAGES:
            problems.append(f"it lists more than {PAGES} pages of tools; the rest is left out")
            break
        cursors.add(cursor)
        try:
            page = await client.list_tools(cursor=cursor, cache_mode="refresh")
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
        if len(cursors) == PAGES or len(tools) >= TOOLS:
            problems.append(f"it lists tools without end; the first {len(tools)} are taken")
            break
    return list(tools.values())


class _Watched:
    """A transport whose messages we see on their way to the SDK's client."""

    def __init__(self, pair: Any, link: Link) -> None:
        self._pair = pair
        self._link = link

    async def __aenter__(self) -> tuple[_Incoming, Any]:
        incoming, outgoing = await self._pair.__aenter__()
        return _Incoming(incoming, self._link), outgoing

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> Any:
        return await self._pair.__aexit__(kind, exc, trace)


class _Incoming:
    """What comes from the server: listings are mended, changes of them and the end are noticed."""

    def __init__(self, stream: Any, link: Link) -> None:
        self._stream = stream
        self._link = link

    @property
    def last_context(self) -> Any:
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> SessionMessage | Exception:
        return self._seen(await self._stream.receive())

    def _seen(self, item: SessionMessage | Exception) -> SessionMessage | Exception:
        if isinstance(item, Exception):
            rescued = _rescued(item)
            if rescued is None:
                self._link.noise = True
                return item
            item = rescued
        match item.message:
            case types.JSONRPCNotification(method="notifications/tools/list_changed"):
                self._link.listing_changed()
            case types.JSONRPCResponse() as answer:
                if (result := self._link.mended(answer.result)) is not None:
                    item.message = answer.model_copy(update={"result": result})
        return item

    async def aclose(self) -> None:
        await self._stream.aclose()

    def __aiter__(self) -> _Incoming:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return self._seen(await self._stream.receive())
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


def _rescued(exc: Exception) -> SessionMessage | None:
    """A message that the SDK cannot read, as far as it can be read: half a surrogate pair makes a whole line
    invalid to it, and whoever waits for the answer would wait for ever."""
    line = exc.errors(include_url=False)[0]["input"] if isinstance(exc, ValidationError) else None
    message: Any = None
    try:
        message = json.loads(line, parse_constant=lambda _: None) if isinstance(line, str) else None
        if not isinstance(message, dict):
            return None
        text = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")
        return SessionMessage(types.jsonrpc_message_adapter.validate_json(text, by_name=False))
    except (ValueError, RecursionError):
        pass
    asked = message.get("id") if isinstance(message, dict) else None
    if not isinstance(asked, int | str) or "method" in message:
        return None
    error = types.ErrorData(code=types.INTERNAL_ERROR, message="The server's answer is off the protocol.")
    return SessionMessage(types.JSONRPCError(jsonrpc="2.0", id=asked, error=error))


def _listed(tool: types.Tool) -> ListedTool:
    hints = tool.annotations
    return ListedTool(
        tool.name,
        tool.description,
        tool.input_schema,
        Hints(hints.read_only_hint, hints.idempotent_hint, hints.destructive_hint, hints.open_world_hint)
        if hints
        else Hints(),
    )


def _cause(exc: BaseException) -> BaseException:
    """What to tell of a group of errors: ours if there is one, else the first."""
    leaves = list(_leaves(exc))
    return next((leaf for leaf in leaves if isinstance(leaf, MCPServerError | OAuthFlowError)), leaves[0])


def _leaves(exc: BaseException) -> list[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        return [leaf for inner in exc.exceptions for leaf in _leaves(inner)]
    return [exc]
