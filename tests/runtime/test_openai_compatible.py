"""The wire to a model server, against real sockets."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from agentkit import Agent, ContextOverflow, EngineError, ModelSettings
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


def in_chunks(x: Any) -> None:
    """Begin an answer whose end is marked, so that its connection can be used again."""
    x.http.protocol_version, x.http.close_connection = "HTTP/1.1", False
    x.http.send_response(200)
    x.http.send_header("Content-Type", "text/event-stream")
    x.http.send_header("Transfer-Encoding", "chunked")
    x.http.end_headers()
    said = {"choices": [{"index": 0, "delta": {"content": "ok"}, "finish_reason": "stop"}]}
    for data in (f"data: {json.dumps(said)}\n\n", "data: [DONE]\n\n"):
        x.http.wfile.write(f"{len(data):x}\r\n{data}\r\n".encode())


async def test_requests_that_follow_one_another_share_a_connection(serve: Serve) -> None:
    clients = set()

    def answer(x: Any) -> None:
        clients.add(x.http.client_address)
        in_chunks(x)
        x.http.wfile.write(b"0\r\n\r\n")

    async with OpenAICompatible(serve(answer).url, "m") as engine:
        assert [text(await collect(engine)) for _ in range(5)] == ["ok"] * 5
    assert len(clients) == 1


async def test_a_server_that_keeps_an_answer_open_is_not_waited_for(serve: Serve) -> None:
    release = threading.Event()

    def answer(x: Any) -> None:
        in_chunks(x)
        release.wait(10)

    server = serve(answer)
    with anyio.fail_after(5):
        assert text(await collect(OpenAICompatible(server.url, "m"))) == "ok"
    release.set()


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


# ------------------------------------------------------------------ servers that take no tools, or no roles

TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "description": "x" * 2000, "parameters": {"type": "object"}},
    }
]
LOOP = [
    system("Be brief."),
    user("hi"),
    Message("assistant", (ToolCall("c1", "add", {"a": 1}, '{"a": 1}'),)),
    Message("tool", (ToolResult("c1", "2", name="add"),)),
]


def refuses(said: str, status: int, when: Callable[[Any], bool]) -> Callable[[Any], None]:
    def answer(x: Any) -> None:
        if when(x.body):
            x.reply(status, json.dumps({"error": {"message": said}}))
        else:
            x.answer("ok")

    return answer


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            400,
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
        ),  # vLLM
        (500, "tools param requires --jinja flag"),  # llama-server
        (500, "Unsupported param: tools"),  # an older one
        (400, "registry.ollama.ai/library/gemma:2b does not support tools"),
        (400, "Only user and assistant roles are supported!"),  # chat templates
        (400, "Conversation roles must alternate user/assistant/user/assistant/..."),
        (404, "No endpoints found that support tool use."),
        (422, "'tool' is not one of ['system', 'assistant', 'user', 'function'] - 'messages.2.role'"),
    ],
)
async def test_a_server_that_refuses_tools_gets_them_in_the_prompt_at_once_and_from_then_on(
    serve: Serve, status: int, said: str
) -> None:
    def speaks_of_tools(body: Any) -> bool:
        return "tools" in body or any(m["role"] == "tool" for m in body["messages"])

    server = serve(refuses(said, status, speaks_of_tools))
    engine = OpenAICompatible(server.url, "m")
    assert text(await collect(engine, Request([user("hi")], TOOLS))) == "ok"
    assert engine.protocol == "hermes" and len(server.requests) == 2
    assert text(await collect(engine, Request(LOOP, TOOLS))) == "ok" and len(server.requests) == 3
    assert [m["role"] for m in server.requests[2]["messages"]] == ["system", "user", "assistant", "user"]
    assert "<tools>" in server.requests[2]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("protocol", "wrote", "result"),
    [
        (
            None,
            '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>',
            "<tool_response>\n3",
        ),
        ("react", 'Thought: I add.\nAction: add\nAction Input: {"a": 1, "b": 2}\n', "Observation: 3"),
    ],
)
async def test_an_agent_uses_its_tools_on_a_server_that_knows_none(
    serve: Serve, protocol: Any, wrote: str, result: str
) -> None:
    def add(a: int, b: int) -> int:
        return a + b

    def model(x: Any) -> None:
        if "tools" in x.body:
            x.reply(400, '{"error": "m does not support tools"}')
        elif x.body["messages"][-1]["content"].startswith(result):
            x.answer("It is 3.")
        else:
            x.answer(*wrote)

    server = serve(model)
    engine = OpenAICompatible(server.url, "m", protocol=protocol)
    answer = await Agent(engine, tools=[add]).run("What is 1 + 2?")
    assert answer.output == "It is 3." and answer.turns == 2
    first, last = (r["messages"] for r in server.requests[-2:])
    assert last[: len(first)] == first and last[2] == {"role": "assistant", "content": wrote}


async def test_a_forced_protocol_is_kept(serve: Serve) -> None:
    server = serve(refuses("this model does not support tools", 400, lambda body: "tools" in body))
    with pytest.raises(EngineError, match="does not support tools"):
        await collect(OpenAICompatible(server.url, "m", protocol="native"), Request([user("hi")], TOOLS))
    engine = OpenAICompatible(server.url, "m", protocol="react")
    assert text(await collect(engine, Request(LOOP, TOOLS))) == "ok"
    assert server.requests[-1]["stop"] == ["Observation:"]
    assert server.requests[-1]["messages"][3] == {"role": "user", "content": "Observation: 2"}


async def test_another_refusal_of_a_request_with_tools_is_told(serve: Serve) -> None:
    server = serve(refuses("tools.0.function.name: must not be empty", 400, lambda body: "tools" in body))
    with pytest.raises(EngineError, match="must not be empty"):
        await collect(OpenAICompatible(server.url, "m"), Request([user("hi")], TOOLS))
    assert len(server.requests) == 1


async def test_a_template_that_knows_no_system_role_gets_its_text_from_the_user(serve: Serve) -> None:
    def alternates(body: Any) -> bool:
        roles = [m["role"] for m in body["messages"]]
        return roles != (["user", "assistant"] * len(roles))[: len(roles)]

    server = serve(refuses("Conversation roles must alternate user/assistant", 400, alternates))
    engine = OpenAICompatible(server.url, "m")
    assert text(await collect(engine, Request([*LOOP, user("Go on.")], TOOLS))) == "ok"
    assert [m["role"] for m in server.requests[-1]["messages"]] == ["user", "assistant", "user"]
    assert server.requests[-1]["messages"][2]["content"].endswith("</tool_response>\n\nGo on.")
    assert text(await collect(engine, Request([system("s"), user("hi")]))) == "ok"
    assert len(server.requests) == 4


def counts(tokens: int, **delta: Any) -> Callable[[Any], None]:
    def answer(x: Any) -> None:
        x.begin()
        x.delta("stop", **(delta or {"content": "I have no tools."}))
        x.event({"choices": [], "usage": {"prompt_tokens": tokens, "completion_tokens": 5}})
        x.event("[DONE]")

    return answer


CALL = {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "add", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    ("first", "protocol"),
    [
        (counts(9), "hermes"),  # 2,000 bytes of tools are more tokens than that
        (counts(600), "native"),
        (counts(9, **CALL), "native"),  # it has read them, whatever it counts
        (counts(0), "native"),  # it does not count
    ],
)
async def test_tools_that_were_passed_over_are_in_the_next_prompt(
    serve: Serve, first: Any, protocol: str
) -> None:
    server = serve(first, lambda x: x.answer("ok"))
    engine = OpenAICompatible(server.url, "m")
    request = Request([user("hi")], TOOLS)
    assert len(await collect(engine, request)) == 2  # what came is given on, as it came
    await collect(engine, request)
    assert engine.protocol == protocol and ("tools" in server.requests[1]) == (protocol == "native")


async def test_ollama_counts_only_what_its_cache_did_not_hold(serve: Serve) -> None:
    server = serve(counts(9))
    engine = OpenAICompatible(server.url, "m", kind="ollama")
    await collect(engine, Request([user("hi")], TOOLS))
    assert engine.protocol == "native"


async def test_fields_that_a_server_does_not_know_are_left_out_from_then_on(serve: Serve) -> None:
    server = serve(
        refuses("Unrecognized request argument supplied: top_k", 400, lambda body: "top_k" in body)
    )
    engine = OpenAICompatible(server.url, "m")
    settings = ModelSettings(top_k=20, temperature=0.6)
    for _ in range(2):
        assert text(await collect(engine, Request([user("hi")], (), settings))) == "ok"
    assert len(server.requests) == 3 and server.requests[-1]["temperature"] == 0.6
    with pytest.raises(EngineError, match="top_k"):  # but not what was asked for by name
        await collect(engine, Request([user("hi")], (), ModelSettings(extra={"top_k": 20})))


async def test_a_schema_that_a_servers_grammar_cannot_hold_is_left_out_of_that_request(serve: Serve) -> None:
    said = "The provided JSON schema contains features not supported by xgrammar."
    server = serve(refuses(said, 400, lambda body: "odd" in json.dumps(body.get("response_format"))))
    engine = OpenAICompatible(server.url, "m", kind="vllm")
    for schema in ({"odd": 1}, {"type": "object"}):
        assert text(await collect(engine, Request([user("hi")], schema=schema))) == "ok"
    assert ["response_format" in r for r in server.requests] == [True, False, True]


@pytest.mark.e2e
async def test_runs_that_are_refused_side_by_side_all_go_on(serve: Serve) -> None:
    server = serve(refuses("this model does not support tools", 400, lambda body: "tools" in body))
    done: list[str] = []

    async def run(engine: OpenAICompatible) -> None:
        done.append(text(await collect(engine, Request([user("hi")], TOOLS))))

    async with OpenAICompatible(server.url, "m") as engine, anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(run, engine)
    assert done == ["ok"] * 8 and len(server.requests) <= 16


# ------------------------------------------------------------------ many at once


@pytest.mark.e2e
async def test_twenty_runs_on_a_server_with_eight_places_all_finish(serve: Serve) -> None:
    """It turns away whom it has no place for, and now and then breaks a connection."""
    places, count = threading.Semaphore(8), iter(range(10_000))
    turned_away = threading.Event()

    def busy(x: Any) -> None:
        n = next(count)
        if n % 7 == 0:  # the connection is reset
            x.http.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            x.http.close_connection = True
        elif not places.acquire(blocking=False):
            turned_away.set()
            x.reply(429 if n % 2 else 503, "{}", retry_after="0.01")
        else:
            try:
                turned_away.wait(10)  # all places are held until somebody found none
                x.answer("done")
            finally:
                places.release()

    server = serve(busy)
    done: list[str] = []

    async def run(engine: OpenAICompatible, n: int) -> None:
        for turn in range(3):
            request = Request([user(f"{n}.{turn}")], session=str(n))
            done.append(text(await collect(engine, request)))

    with anyio.fail_after(60):
        async with OpenAICompatible(server.url, "m", retries=8) as engine, anyio.create_task_group() as group:
            for n in range(20):
                group.start_soon(run, engine, n)
    assert done == ["done"] * 60 and turned_away.is_set()


async def test_a_server_that_stays_busy_is_asked_more_often_than_one_that_fails(serve: Serve) -> None:
    away = [lambda x: x.reply(503, "{}", retry_after="0")] * 12
    server = serve(*away, lambda x: x.answer("at last"))
    assert text(await collect(OpenAICompatible(server.url, "m"))) == "at last"
    server = serve(lambda x: x.reply(500, "{}", retry_after="0"))
    with pytest.raises(EngineError, match="HTTP 500"):
        await collect(OpenAICompatible(server.url, "m"))
    assert len(server.requests) == 5


async def test_an_account_that_is_used_up_is_told_at_once(serve: Serve) -> None:
    server = serve(lambda x: x.reply(429, '{"error": {"message": "You exceeded your current quota"}}'))
    with pytest.raises(EngineError, match="quota"):
        await collect(OpenAICompatible(server.url, "m"))
    assert len(server.requests) == 1


async def test_a_request_that_waited_in_vain_is_not_sent_to_the_end_of_the_queue(serve: Serve) -> None:
    release = threading.Event()
    server = serve(lambda x: release.wait(10))
    with pytest.raises(EngineError, match="sent nothing for 0.2 s"):
        await collect(OpenAICompatible(server.url, "m", timeout=0.2))
    release.set()
    assert len(server.requests) == 1
