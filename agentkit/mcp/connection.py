"""One MCP server, started when it is needed and again after it was lost. Imports the SDK when it starts one."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from agentkit.errors import MCPServerError
from agentkit.mcp.cache import Listing
from agentkit.mcp.config import ServerSpec, Transport
from agentkit.mcp.host import Host
from agentkit.tools import Notify

if TYPE_CHECKING:
    from mcp import Client, types

    from agentkit.mcp.limit import Limit
    from agentkit.mcp.link import Link
    from agentkit.mcp.oauth import OnRedirect

__all__ = ["Connection"]

T = TypeVar("T")

FAILURES = 3  # in a row, before a server is left alone for a while
REST = 60.0  # seconds
BACKOFF = 0.25  # seconds before the second start after a failure, doubled for each further one
TOTAL = 10  # times its timeout: how long a call may take that tells of progress


class Connection:
    """One server, started by `start` or by the first call, and again by the next call after it was lost.

    Any task may call. The connection itself lives in a task of `owners`. `listing` is what is known of the
    server: from a cache before it was started, from the server itself since; `on_listing` is awaited when the
    server has listed its tools, and again when it lists others.
    """

    def __init__(
        self,
        spec: ServerSpec,
        owners: TaskGroup,
        notify: Notify,
        *,
        host: Host = Host(),
        on_redirect: OnRedirect | None = None,
        listing: Listing | None = None,
        on_listing: Callable[[Connection], Awaitable[None]] | None = None,
    ) -> None:
        self.spec = spec
        self.listing = listing
        self._owners = owners
        self._notify = notify
        self._told: set[str] = set()
        self._host = host
        self._on_redirect = on_redirect
        self._on_listing = on_listing
        self._transport: Transport = spec.transport
        self._link: Link | None = None
        self._lock = anyio.Lock()
        self._starts = 0
        self._start_error: MCPServerError | None = None  # of the last start
        self._failures = 0
        self._rest_until = 0.0
        self._closed = False
        self._heard = False  # the listing is the server's own, and no cached one

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
        return await self._ask(
            lambda link, limit: link.call_tool(tool, arguments, limit), tool, repeatable=repeatable
        )

    async def with_client(
        self, ask: Callable[[Client], Awaitable[T]], what: str, *, repeatable: bool = True
    ) -> T:
        """What `ask` gets from the live SDK client: `with_client(lambda c: c.list_prompts(), "prompts/list")`.

        Starts, times out, restarts and raises as `call` does; `what` names the request in errors.
        """
        return await self._ask(lambda link, _: ask(link.client), what, repeatable=repeatable)

    async def _ask(self, ask: Callable[[Link, Limit], Awaitable[T]], what: str, *, repeatable: bool) -> T:
        may_repeat = repeatable
        may_renew = True
        seconds = self.spec.tool_timeout
        while True:
            link = await self._connected()
            link.calls += 1
            try:
                with link.limits.limit(seconds, seconds * TOTAL) as limit:
                    result = await ask(link, limit)
            except TimeoutError:
                link.doubted = True
                if may_repeat and not await self._is_well(link):
                    may_repeat = False
                    continue
                raise MCPServerError(
                    f"MCP server {self.spec.name!r} gave no answer to {what!r} in {seconds:g} s"
                ) from None
            except Exception as exc:  # the SDK also lets pydantic's, anyio's and RuntimeErrors through
                not_taken = link.was_not_taken(exc)
                if not (not_taken or link.is_lost_by(exc)):
                    raise link.refusal(what, exc) from exc
                await link.put_away()
                if not_taken and may_renew:
                    may_renew = False
                    continue
                self._failed(link)
                if may_repeat:
                    may_repeat = False
                    continue
                words = f"; its last words: {link.last_words}" if link.last_words else ""
                raise MCPServerError(
                    f"MCP server {self.spec.name!r} was lost during {what!r}{words}"
                ) from exc
            finally:
                link.calls -= 1
                link.used_at = anyio.current_time()
            self._failures = 0
            link.trim_log()
            if not link.fresh.is_set():  # the call changed the listing: whoever looks next wants the new one
                with anyio.move_on_after(2):
                    await link.fresh.wait()
            return result

    async def _is_well(self, link: Link) -> bool:
        """Whether a server that left a call unanswered still answers at all; one that hangs is put away."""
        if link.over.is_set():
            return False
        if await link.answers():
            link.doubted = False
            return True
        self._failed(link)
        await link.put_away()
        return False

    def _failed(self, link: Link | None = None) -> None:
        if link is not None:
            if link.counted:  # other calls were lost with it
                return
            link.counted = True
        self._failures += 1
        if self._failures > FAILURES:
            self._rest_until = anyio.current_time() + REST

    async def _connected(self) -> Link:
        link = self._link
        if link is not None and not (link.doubted or link.over.is_set() or self._closed):
            return link  # the lock would cost as much as the rest of a call
        starts = self._starts
        async with self._lock:
            if self._closed:
                raise MCPServerError(f"MCP server {self.spec.name!r} is closed")
            if (link := self._link) is not None and not link.over.is_set():
                if not link.doubted or await self._is_well(link):
                    return link
            elif self._starts != starts and self._start_error is not None:  # failed while this one waited
                raise MCPServerError(str(self._start_error)) from self._start_error
            left = self._rest_until - anyio.current_time()
            if left > 0:
                raise MCPServerError(
                    f"MCP server {self.spec.name!r} failed {self._failures} times in a row"
                    f" and is not started again in the next {math.ceil(left)} s"
                )
            if self._failures > 1:
                await anyio.sleep(BACKOFF * 2 ** (self._failures - 2))
            return await self._started()

    async def _started(self) -> Link:
        # imported beside the other tasks, not in their way
        sdk = await anyio.to_thread.run_sync(import_module, "agentkit.mcp.link")
        link: Link = sdk.Link(
            self.spec, self._transport, self._host, self._on_redirect, self._tell, self._listed
        )
        self._starts += 1
        self._start_error = None
        try:
            await self._owners.start(link.own)
        except MCPServerError as exc:
            self._start_error = exc
            self._failed()
            raise
        self._transport = link.transport
        self._link = link
        if self._closed:  # meanwhile
            link.over.set()
        return link

    def _tell(self, problem: str) -> None:
        if problem not in self._told:
            self._told.add(problem)
            self._notify(problem)

    async def _listed(self, listing: Listing) -> None:
        known = self.listing if self._heard else None
        self._heard, self.listing = True, listing
        if listing != known and self._on_listing is not None:
            await self._on_listing(self)
