"""The wire to a model server, against real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from agentkit import ContextOverflow, EngineError, ModelSettings
from agentkit.messages import Message, Text, Thinking, ToolCall, ToolResult, Usage, system, user
from agentkit.runtime.engine import Chunk, Request
from agentkit.runtime.openai_compatible import OpenAICompatible

pytestmark = pytest.mark.anyio
Serve = Callable[..., Any]
HELLO = Request([user("hi")])


async def collect(engine: OpenAICompatible, request: Request = HELLO) -> list[Chunk]:
    async with aclosing(engine.stream(request)) as chunks:
        return [c async for c in chunks]


def text(chunks: list[Chunk]) -> str:
    return "".join(c.text for c in chunks)


async def test_text_and_usage_come_through(serve: Serve) -> None:
    server = serve(lambda x: x.answer("Hel", "lo ☃"))
    chunks = await collect(OpenAICompatible(server.url, "m"))
    assert text(chunks) == "Hello ☃"
    assert [c.usage for c in chunks if c.usage] == [Usage(7, 2)]
    assert server.requests[0]["stream"] is True and server.requests[0]["stream_options"] == {
        "include_usage": True
    }


async def test_without_a_model_name_the_servers_first_is_asked(serve: Serve) -> None:
    server = serve(lambda x: x.answer("ok"))
    await collect(OpenAICompatible(server.url))
    assert server.requests[0]["model"] == "stub-model"


async def test_settings_and_session_are_sent_and_unset_ones_are_not(serve: Serve) -> None:
    server = serve(lambda x: x.answer("ok"))
    settings = ModelSettings(temperature=0.6, top_k=20, thinking=False, extra={"guided": 1})
    await collect(OpenAICompatible(server.url, "m", "key"), Request([user("x")], (), settings, "run-1"))
    body, headers = server.requests[0], server.headers[0]
    assert (body["temperature"], body["top_k"], body["guided"]) == (0.6, 20, 1)
    assert body["chat_template_kwargs"] == {"enable_thinking": False} and "top_p" not in body
    assert headers["X-Session-ID"] == "run-1" and headers["Authorization"] == "Bearer key"


async def test_reasoning_goes_back_under_the_name_it_came_with_and_only_in_its_own_turn(serve: Serve) -> None:
    def answer(x: Any) -> None:
        x.begin()
        x.delta(reasoning="hm")
        x.delta("stop", content="ok")
        x.event("[DONE]")

    server = serve(answer)
    engine = OpenAICompatible(server.url, "m")
    chunks = await collect(engine)
    assert "".join(c.reasoning for c in chunks) == "hm"
    old = Message("assistant", (Thinking("old thought"), Text("old")))
    new = Message("assistant", (Thinking("new thought"), ToolCall("c1", "f", {"a": 1}, '{"a":1}')))
    result = Message("tool", (ToolResult("c1", "2", name="f"),))
    await collect(engine, Request([system("s"), user("1"), old, user("2"), new, result]))
    sent = server.requests[-1]["messages"]
    assert sent[2] == {"role": "assistant", "content": "old"}
    assert (
        sent[4]["reasoning"] == "new thought"
        and sent[4]["tool_calls"][0]["function"]["arguments"] == '{"a":1}'
    )
    assert sent[5] == {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "2"}


async def test_a_server_that_does_not_stream_is_understood(serve: Serve) -> None:
    body = '{"choices": [{"message": {"content": "whole\\nanswer"}, "finish_reason": "stop"}],\n "usage": {"prompt_tokens": 1}}'
    server = serve(lambda x: x.reply(200, body))
    assert text(await collect(OpenAICompatible(server.url, "m"))) == "whole\nanswer"


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_busy_server_is_asked_again(serve: Serve, status: int) -> None:
    server = serve(lambda x: x.reply(status, "{}", retry_after="0"), lambda x: x.answer("at last"))
    assert text(await collect(OpenAICompatible(server.url, "m"))) == "at last"
    assert len(server.requests) == 2


async def test_a_refusal_is_not_asked_again(serve: Serve) -> None:
    server = serve(lambda x: x.reply(400, '{"error": {"message": "bad tools"}}'))
    with pytest.raises(EngineError, match="HTTP 400: bad tools"):
        await collect(OpenAICompatible(server.url, "m"))
    assert len(server.requests) == 1


async def test_nothing_is_asked_again_once_text_has_been_shown(serve: Serve) -> None:
    def breaks_off(x: Any) -> None:
        x.begin()
        x.delta(content="half an ")

    server = serve(breaks_off)
    seen: list[str] = []
    with pytest.raises(EngineError, match="broke off"):
        async for chunk in OpenAICompatible(server.url, "m").stream(HELLO):
            seen.append(chunk.text)
    assert seen == ["half an "] and len(server.requests) == 1


@pytest.mark.parametrize(
    "said",
    ["This model's maximum context length is 8 tokens", "Requested tokens (9) exceed context window of 8"],
)
async def test_a_prompt_that_is_too_long_has_its_own_error(serve: Serve, said: str) -> None:
    server = serve(lambda x: x.reply(400, f'{{"error": {{"message": "{said}"}}}}'))
    with pytest.raises(ContextOverflow):
        await collect(OpenAICompatible(server.url, "m"))


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (lambda x: x.reply(200, "<html>hello</html>", "text/html"), "web page"),
        (lambda x: x.reply(200, "not json at all", "text/plain"), "not JSON"),
        (lambda x: x.reply(200, b"\xff\xfe\x00garbage", "application/octet-stream"), "not JSON"),
        (lambda x: x.reply(200, "data: [1, 2]\n\n", "text/event-stream"), "not JSON"),
        (
            lambda x: x.reply(200, 'data: {"error": {"message": "CUDA died"}}\n\n', "text/event-stream"),
            "CUDA died",
        ),
        (lambda x: x.reply(404, "<html>nginx</html>", "text/html"), "404"),
        (lambda x: x.reply(401, '{"detail": "no key"}'), "refused the API key"),
        (lambda x: x.reply(200, ""), "broke off"),
    ],
)
async def test_a_server_that_talks_nonsense_is_named_in_one_sentence(
    serve: Serve, handler: Any, words: str
) -> None:
    server = serve(handler)
    with pytest.raises(EngineError, match=words) as caught:
        await collect(OpenAICompatible(server.url, "m", retries=0))
    assert "\n" not in str(caught.value)


async def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(EngineError, match="is the server running there"):
        await collect(OpenAICompatible(url, "m", retries=0))


async def test_closing_the_stream_closes_the_request(serve: Serve) -> None:
    hung_up = threading.Event()

    def endless(x: Any) -> None:
        x.begin()
        try:
            while True:
                x.delta(content="more ")
        except OSError:
            hung_up.set()

    server = serve(endless)
    with anyio.fail_after(10):
        async with aclosing(OpenAICompatible(server.url, "m").stream(HELLO)) as chunks:
            async for _ in chunks:
                break
        assert await anyio.to_thread.run_sync(hung_up.wait, 5)


async def test_a_silent_server_is_given_up(serve: Serve) -> None:
    release = threading.Event()
    server = serve(lambda x: (x.begin(), release.wait(10)))
    with pytest.raises(EngineError, match="sent nothing for 0.2 s"):
        await collect(OpenAICompatible(server.url, "m", timeout=0.2, retries=0))
    release.set()


async def test_a_stream_that_stays_empty_is_asked_for_whole_to_hear_why(serve: Serve) -> None:
    said = '{"error": {"message": "This model\'s maximum context length is 8 tokens"}}'
    server = serve(lambda x: x.reply(200, "", "text/event-stream"), lambda x: x.reply(400, said))
    with pytest.raises(ContextOverflow):
        await collect(OpenAICompatible(server.url, "m"))
    assert [r["stream"] for r in server.requests] == [True, False]


async def test_a_stream_that_breaks_before_its_first_event_is_asked_for_whole_too(serve: Serve) -> None:
    def breaks(x: Any) -> None:
        x.http.send_response(200)
        x.http.send_header("Content-Type", "text/event-stream")
        x.http.send_header("Transfer-Encoding", "chunked")
        x.http.end_headers()
        x.http.close_connection = True

    said = '{"error": {"message": "This model\'s maximum context length is 8 tokens"}}'
    server = serve(breaks, lambda x: x.reply(400, said))
    with pytest.raises(ContextOverflow):
        await collect(OpenAICompatible(server.url, "m"))


async def test_a_key_never_shows(serve: Serve) -> None:
    assert "s3cret" not in repr(OpenAICompatible("http://127.0.0.1:1/v1", "m", "s3cret"))
