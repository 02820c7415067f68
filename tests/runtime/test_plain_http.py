"""HTTP/1.1 by hand, against servers that say exactly these bytes, and against a real one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import anyio
import h11
import httpx2
import pytest
from anyio.abc import SocketStream
from hypothesis import given
from hypothesis import strategies as st

from agentkit.runtime.plain_http import PlainHTTP

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\n"


@dataclass
class Server:
    """Says *answers*, one for each request, in the pieces that they are in; None closes the connection instead."""

    answers: list[Sequence[bytes] | None]
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    url: str = ""
    closed: anyio.Event = field(default_factory=anyio.Event)  # a client has gone

    async def serve(self, socket: SocketStream) -> None:
        self.connections += 1
        async with socket:
            reader = h11.Connection(h11.SERVER)
            try:
                while True:
                    got = b""
                    while (event := reader.next_event()) is not h11.PAUSED:
                        if event is h11.NEED_DATA:
                            data = await socket.receive()
                            got += data
                            reader.receive_data(data)
                        elif isinstance(event, h11.EndOfMessage):
                            break
                    self.requests.append(got)
                    pieces = self.answers.pop(0)
                    if pieces is None:
                        return
                    for piece in pieces:
                        await socket.send(piece)
                        await anyio.lowlevel.checkpoint()
                    if b"Connection: close" in pieces[0] or b"HTTP/1.0" in pieces[0]:
                        return
                    reader = h11.Connection(h11.SERVER)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                self.closed.set()


@asynccontextmanager
async def serving(*answers: Sequence[bytes] | None) -> AsyncIterator[Server]:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        server = Server(list(answers))
        server.url = f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}/v1"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, server.serve)
            yield server
            tasks.cancel_scope.cancel()


def client(**options: float | None) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=PlainHTTP(), timeout=httpx2.Timeout(5, **options), trust_env=False)


def whole(text: bytes) -> list[bytes]:
    return [OK + b"Content-Length: %d\r\n\r\n" % len(text) + text]


CHUNKED = OK + b"Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=5),
    st.lists(st.integers(1, 300), max_size=8),
    st.booleans(),
)
async def test_where_an_answer_in_chunks_is_cut_does_not_matter(
    chunks: list[bytes], cuts: list[int], dressed: bool
) -> None:
    extension, trailer = (b";a=b", b"X-Sum: 1\r\n") if dressed else (b"", b"")
    body = b"".join(b"%x%s\r\n%s\r\n" % (len(c), extension, c) for c in chunks)
    said = CHUNKED + body + b"0\r\n" + trailer + b"\r\n"
    places = sorted({0, len(said), *(c for c in cuts if c < len(said))})
    pieces = [said[a:b] for a, b in pairwise(places)]
    async with serving(pieces, pieces) as server, client() as asking:
        for _ in range(2):
            response = await asking.post(server.url, content=b"?")
            assert (response.status_code, response.content) == (200, b"".join(chunks))
            assert response.headers["content-type"] == "text/plain"
        assert server.connections == 1


async def test_the_request_is_what_httpx2_makes_of_it() -> None:
    async with serving(whole(b"yes")) as server, client() as asking:
        body = json.dumps({"é": "ü" * 40_000}, ensure_ascii=False).encode()
        response = await asking.post(
            f"{server.url}/chat?a=b%20c", content=body, headers={"X-Session-ID": "run"}
        )
    assert response.text == "yes"
    head, _, sent = server.requests[0].partition(b"\r\n\r\n")
    assert sent == body and head.startswith(b"POST /v1/chat?a=b%20c HTTP/1.1\r\n")
    assert b"X-Session-ID: run" in head and b"Content-Length: %d" % len(body) in head


async def test_a_connection_that_was_closed_as_it_lay_idle_is_replaced() -> None:
    async with serving(whole(b"one"), None, whole(b"two")) as server, client() as asking:
        assert (await asking.get(server.url)).text == "one"
        assert (await asking.get(server.url)).text == "two"
        assert server.connections == 2


async def test_a_new_connection_that_is_closed_without_an_answer_is_an_error() -> None:
    async with serving(None) as server, client() as asking:
        with pytest.raises(httpx2.RemoteProtocolError, match="without an answer"):
            await asking.get(server.url)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ([b"HTTP/1.1 100 Continue\r\n\r\n", *whole(b"yes")], "yes"),
        ([OK + b"Connection: close\r\n\r\nas long", b" as it lasts"], "as long as it lasts"),
        ([b"HTTP/1.0 200 OK\r\n\r\nold"], "old"),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], ""),
        ([b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok"], "ok"),
    ],
)
async def test_bodies_end_where_their_head_says(said: list[bytes], text: str) -> None:
    async with serving(said) as server, client() as asking:
        assert (await asking.get(server.url)).text == text


@pytest.mark.parametrize(
    "said",
    [
        b"220 mail.example.org ESMTP\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        OK + b"no colon\r\n\r\n",
        OK + b"Content-Length: many\r\n\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"5\r\nhe",
        OK + b"Content-Length: 9\r\n\r\nshort",
        OK + b"X: " + b"x" * 400_000,
    ],
)
async def test_what_is_not_http_is_an_error_and_not_an_answer(said: bytes) -> None:
    async with serving([said, b""], None) as server, client() as asking:
        server.answers[0] = [said.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n", 1)]
        with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
            await asking.get(server.url)


async def test_a_silent_server_is_waited_for_as_long_as_the_timeout_says() -> None:
    async with serving([OK + b"Content-Length: 9\r\n\r\n"]) as server, client(read=0.05) as asking:
        with pytest.raises(httpx2.ReadTimeout):
            await asking.get(server.url)


async def test_nobody_there_is_a_connect_error() -> None:
    async with serving() as server:
        url = server.url
    async with client() as asking:
        with pytest.raises(httpx2.ConnectError):
            await asking.get(url)


async def test_giving_up_an_answer_closes_its_connection() -> None:
    async with serving([CHUNKED + b"3\r\none\r\n"]) as server, client() as asking:
        async with asking.stream("GET", server.url) as response:
            async for data in response.aiter_bytes():
                assert data == b"one"
                break
        with anyio.fail_after(5):
            await server.closed.wait()


async def test_cancelling_a_request_closes_its_connection() -> None:
    async with serving([CHUNKED + b"3\r\none\r\n"]) as server, client() as asking:
        with anyio.move_on_after(0.05):
            await asking.get(server.url)
        with anyio.fail_after(5):
            await server.closed.wait()


async def test_requests_at_once_have_a_connection_each_and_share_them_afterwards() -> None:
    async with serving(*[whole(b"yes")] * 30) as server, client() as asking:
        for _ in range(3):
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(asking.get, server.url)
        assert server.connections <= 10


async def test_runs_that_end_together_may_put_away_the_same_old_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agentkit.runtime.plain_http._IDLE", -1.0)  # all are too old as soon as they lie idle
    async with serving(*[whole(b"hello")] * 100) as server, client() as http:

        async def ask() -> None:
            for _ in range(5):
                assert (await http.get(server.url)).text == "hello"

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask)
    assert server.connections == 100
