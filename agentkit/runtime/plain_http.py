"""HTTP/1.1 to a server on this machine, for httpx2: without TLS, proxies and a pool that is searched for each request."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Awaitable
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import anyio
import httpx2

if TYPE_CHECKING:
    from anyio.abc import SocketStream

__all__ = ["PlainHTTP"]

_Place: TypeAlias = tuple[str, int]
_T = TypeVar("_T")

_IDLE = 4.5  # seconds; uvicorn, before vLLM and others, closes a connection that was idle for 5
_RECEIVED = 65_536  # bytes at once
_HEAD = 1 << 18  # bytes that the head of an answer may have
_BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class PlainHTTP(httpx2.AsyncBaseTransport):
    """A transport for `httpx2.AsyncClient`, for URLs that begin with http://.

    Requests share connections one after the other, the last one used first. A connection that the server has closed
    meanwhile is replaced by a new one. Timeouts and errors are httpx2's.
    """

    def __init__(self) -> None:
        self._idle: defaultdict[_Place, deque[tuple[float, SocketStream]]] = defaultdict(deque)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        timeouts: dict[str, float | None] = request.extensions.get("timeout", {})
        place = (request.url.host, request.url.port or 80)
        while True:
            socket = await self._kept(place)
            used = socket is not None
            if socket is None:
                new = anyio.connect_tcp(*place)
                limit = timeouts.get("connect")
                socket = await _in_time(new, limit, httpx2.ConnectError, httpx2.ConnectTimeout)
            answer = _Answer(self, place, socket, timeouts.get("read"))
            try:
                sent = socket.send(await _message(request))
                await _in_time(sent, timeouts.get("write"), httpx2.WriteError, httpx2.WriteTimeout)
                status, headers = await answer.begin(request.method)
            except (httpx2.WriteError, httpx2.ReadError, httpx2.RemoteProtocolError):
                await _close(socket)
                if used and not answer.begun:  # it was closed as it lay idle: nobody has read the request
                    continue
                raise
            except BaseException:
                await _close(socket)
                raise
            return httpx2.Response(status, headers=headers, stream=answer)

    async def _kept(self, place: _Place) -> SocketStream | None:
        idle = self._idle[place]
        while idle:
            since, socket = idle.pop()
            if time.monotonic() - since < _IDLE:
                return socket
            await _close(socket)
        return None

    async def keep(self, place: _Place, socket: SocketStream) -> None:
        """The connection may be used again."""
        idle, now = self._idle[place], time.monotonic()
        idle.append((now, socket))
        # other runs take some, and put some back, while one is closed
        while idle and now - idle[0][0] > _IDLE:
            await _close(idle.popleft()[1])

    async def aclose(self) -> None:
        for idle in self._idle.values():
            while idle:
                await _close(idle.pop()[1])


class _Answer(httpx2.AsyncByteStream):
    """The body of an answer, as it comes: what has arrived by then in one piece."""

    def __init__(
        self, transport: PlainHTTP, place: _Place, socket: SocketStream, timeout: float | None
    ) -> None:
        self._transport, self._place = transport, place
        self._socket: SocketStream | None = socket
        self._timeout = timeout
        self._pending = bytearray()  # received, and not read yet
        self._chunked = self._again = False
        self._left: int | None = (
            0  # bytes of the body, or of its current chunk; None: until the connection is closed
        )
        self.begun = False  # whether anything has come

    async def begin(self, method: str) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Read the head: the status and the headers."""
        while True:
            while (end := self._pending.find(b"\r\n\r\n")) < 0:
                if len(self._pending) > _HEAD or not await self._receive():
                    raise httpx2.RemoteProtocolError(
                        "the server closed the connection without an answer"
                        if not self._pending
                        else "the head of the answer is not HTTP"
                    )
            first, *lines = bytes(self._pending[:end]).split(b"\r\n")
            del self._pending[: end + 4]
            version, _, rest = first.partition(b" ")
            code = rest[:3]
            if not version.startswith(b"HTTP/1.") or not (code.isdigit() and len(code) == 3):
                raise httpx2.RemoteProtocolError("the answer is not HTTP/1.1")
            if code[:1] != b"1":  # 100 Continue and the like come before the answer
                break
        headers = []
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon or not name or name != name.strip():
                raise httpx2.RemoteProtocolError("a header of the answer is not HTTP")
            headers.append((name, value.strip()))
        known = {name.lower(): value.lower() for name, value in headers}
        self._again = version == b"HTTP/1.1" and b"close" not in known.get(b"connection", b"")
        if method == "HEAD" or code in (b"204", b"304"):
            self._left = 0
        elif b"chunked" in known.get(b"transfer-encoding", b""):
            self._chunked = True
        elif (length := known.get(b"content-length")) is not None:
            if not length.isdigit():
                raise httpx2.RemoteProtocolError("the answer's Content-Length is no number")
            self._left = int(length)
        else:
            self._left, self._again = None, False
        return int(code), headers

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        read = self._chunks if self._chunked else self._rest
        while True:
            data, over = read()
            if data:
                yield data
            if over:
                await self._over()
                return
            if not data and not await self._receive():
                if self._left is None:
                    return
                raise httpx2.RemoteProtocolError(
                    "peer closed connection without sending complete message body"
                )

    def _rest(self) -> tuple[bytes, bool]:
        """What has come of a body without chunks, and whether that is its end."""
        if self._left is None:
            data, self._pending = bytes(self._pending), bytearray()
            return data, False
        data = bytes(self._pending[: self._left])
        del self._pending[: len(data)]
        self._left -= len(data)
        return data, not self._left

    def _chunks(self) -> tuple[bytes, bool]:
        """What has come of a body in chunks (RFC 9112, 7.1), and whether that is its end."""
        pending, at, parts = self._pending, 0, []
        assert self._left is not None
        over = False
        while True:
            if self._left:  # bytes of a chunk, and the two behind it
                part = bytes(pending[at : at + self._left])
                at += len(part)
                self._left -= len(part)
                parts.append(part[: len(part) + min(0, self._left - 2)] if self._left < 2 else part)
                if self._left:
                    break
            end = pending.find(b"\r\n", at)
            if end < 0:
                break
            try:
                size = int(pending[at:end].partition(b";")[0], 16)
            except ValueError:
                raise httpx2.RemoteProtocolError("a chunk of the answer has no size") from None
            if size:
                self._left, at = size + 2, end + 2
                continue
            tail = pending.find(b"\r\n\r\n", end)  # trailers, which nobody asked for
            over = tail >= 0
            at = tail + 4 if over else at
            break
        del pending[:at]
        return b"".join(parts), over

    async def _receive(self) -> bool:
        """Wait for more; False at the connection's end."""
        assert self._socket is not None
        more = self._socket.receive(_RECEIVED)
        try:
            self._pending += await _in_time(more, self._timeout, httpx2.ReadError, httpx2.ReadTimeout)
        except anyio.EndOfStream:
            return False
        self.begun = True
        return True

    async def _over(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None and self._again and not self._pending:
            await self._transport.keep(self._place, socket)
        elif socket is not None:
            await _close(socket)

    async def aclose(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:  # given up before its end
            await _close(socket)


async def _message(request: httpx2.Request) -> bytes:
    assert isinstance(request.stream, httpx2.AsyncByteStream)
    lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
    lines += [b"%s: %s" % (name, value) for name, value in request.headers.raw]
    return b"\r\n".join([*lines, b"", b"".join([part async for part in request.stream])])


async def _in_time(
    work: Awaitable[_T],
    seconds: float | None,
    failed: type[httpx2.NetworkError],
    late: type[httpx2.TimeoutException],
) -> _T:
    try:
        with anyio.move_on_after(seconds):
            return await work
    except _BROKEN as exc:
        cause = exc.__cause__ or exc
        raise failed(str(cause) or type(cause).__name__) from exc
    raise late(f"{seconds:g} s were not enough")


async def _close(socket: SocketStream) -> None:
    await anyio.aclose_forcefully(socket)
