"""The recorder between real clients and a scripted model server, all on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx2
import pytest

from agentkit import Agent, ToolError, tool
from agentkit.errors import ConfigError, EngineError
from agentkit.evals import Call, Case
from agentkit.evals.ledger import Lines
from agentkit.evals.recorder import Recorder, Session
from agentkit.messages import Thinking, user
from agentkit.runtime.engine import ModelSettings
from agentkit.runtime.engine import Request as EngineRequest
from agentkit.runtime.openai_compatible import OpenAICompatible
from agentkit.tools import Tool, ToolOutput

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]
Serve = Callable[..., Any]

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
LONG = "What is said in more than one piece, with ünïcode, 漢字 and a \n line end; " * 4


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def case(**rest: Any) -> Case:
    return Case("one", "simple", ((user("hello"),),), **{"max_tokens": 99, **rest})


def completion(
    text: str | None = None, *calls: tuple[str, Any], finish: str = "", **more: Any
) -> dict[str, Any]:
    """An answer as vLLM and llama-server send it."""
    message: dict[str, Any] = {"role": "assistant", "content": text, **more}
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{i}", "type": "function", "function": {"name": n, "arguments": json.dumps(a)}}
            for i, (n, a) in enumerate(calls)
        ]
    finish = finish or ("tool_calls" if calls else "stop")
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "stub-model",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 500, "completion_tokens": 7, "total_tokens": 507},
    }


def says(text: str | None = None, *calls: tuple[str, Any], **more: Any) -> Callable[[Any], None]:
    return lambda x: x.reply(200, json.dumps(completion(text, *calls, **more)))


@asynccontextmanager
async def recording(url: str, folder: Path, **rest: Any) -> AsyncIterator[Recorder]:
    async with Recorder(url, "stub-model", folder=folder, **rest) as recorder:
        yield recorder


@asynccontextmanager
async def talking(session: Session) -> AsyncIterator[httpx2.AsyncClient]:
    """A plain client with the session's key."""
    headers = {"Authorization": f"Bearer {session.api_key}"}
    async with httpx2.AsyncClient(headers=headers, timeout=30, trust_env=False) as client:
        yield client


def asking(text: str = "hello", **rest: Any) -> dict[str, Any]:
    return {"model": "stub-model", "messages": [{"role": "user", "content": text}], **rest}


async def ask(client: httpx2.AsyncClient, session: Session, **rest: Any) -> httpx2.Response:
    return await client.post(session.base_url + "/chat/completions", json=asking(**rest))


def streamed(content: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in content.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


# ------------------------------------------------------------------ what is asked, and what is asked again


async def test_what_a_request_leaves_open_is_filled_in_and_nothing_else_is_touched(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(says("hi"))
    async with recording(server.url, tmp_path, seed=5, api_key="upstream's") as recorder:
        with recorder.session("x/one", case(), []) as session:
            async with talking(session) as client:
                extra = {"chat_template_kwargs": {"enable_thinking": False}, "tools": [ADD], "top_p": None}
                await client.post(
                    session.base_url + "/chat/completions", json={"messages": asking()["messages"], **extra}
                )
                own = {"temperature": 0.7, "seed": 9, "model": "other"}
                await ask(client, session, stream=True, stream_options={}, max_tokens=20, **own)
                await ask(client, session, max_completion_tokens=5000)
                await ask(client, session, max_completion_tokens=50, temperature=None)
    filled = {"model": "stub-model", "temperature": 0.0, "seed": 5, "max_tokens": 99}
    assert server.requests[0] == {"messages": asking()["messages"], **extra, **filled}
    assert server.requests[1] == {**asking(), **own, "max_tokens": 20}
    assert server.requests[2] == {**asking(), **filled}
    assert server.requests[3] == {**asking(), **filled, "max_tokens": 50}
    assert {h["Authorization"] for h in server.headers} == {"Bearer upstream's"}


async def test_the_same_question_is_asked_once_whether_or_not_it_is_streamed(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(says("hi", ("add", {"a": 1, "b": 2})))
    strict = {"type": "function", "function": {**ADD["function"], "strict": False}}  # type: ignore[dict-item]
    same: list[dict[str, Any]] = [
        {"tools": [ADD]},
        {"tools": [ADD], "stream": True},
        {
            "tools": [ADD],
            "stream": True,
            "stream_options": {"include_usage": True},
            "user": "u",
            "store": False,
        },
        {"tools": [strict], "temperature": 0.0, "top_p": None, "tool_choice": "auto", "metadata": {"a": "b"}},
        {"tools": [ADD], "messages": [{"role": "user", "content": "hello", "name": None}]},
        {"tools": [ADD], "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]},
        {"tools": [ADD], "max_tokens": 99, "seed": 0},
        {"tools": [ADD], "max_completion_tokens": 100_000},
    ]
    async with recording(server.url, tmp_path) as recorder:
        with recorder.session("x/one", case(max_requests=99), []) as session:
            async with talking(session) as client:
                for body in same:
                    assert (await ask(client, session, **body)).status_code == 200
            assert session.requests == len(same)
            assert (session.prompt_tokens, session.completion_tokens) == (500 * len(same), 7 * len(same))
            first = next(iter(Lines(tmp_path / "turns.jsonl")))["seconds"]
            assert session.model_seconds == pytest.approx(first * len(same))
    assert len(server.requests) == 1
    assert [t["replayed"] for t in Lines(tmp_path / "turns.jsonl")] == [False] + [True] * (len(same) - 1)


async def test_another_question_is_asked_even_if_only_the_order_in_a_schema_is_another(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(says("hi"))
    parameters = {
        "type": "object",
        "properties": {"b": {"type": "integer"}, "a": {"type": "integer"}},
        "required": ["a", "b"],
    }
    turned = {"type": "function", "function": {**ADD["function"], "parameters": parameters}}  # type: ignore[dict-item]
    nullable = {**parameters, "default": None}  # a null within a schema means something
    null = {"type": "function", "function": {**ADD["function"], "parameters": nullable}}  # type: ignore[dict-item]
    image = [{"type": "image_url", "image_url": {"url": "data:"}}, {"type": "text", "text": "hello"}]
    others: list[dict[str, Any]] = [
        {"tools": [ADD]},
        {"tools": [turned]},
        {"tools": [null]},
        {"tools": [{**ADD, "function": {**ADD["function"], "strict": True}}]},  # type: ignore[dict-item]
        {},
        {"seed": 1},
        {"temperature": 0.1},
        {"max_tokens": 5},
        {"tool_choice": "required", "tools": [ADD]},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"messages": [{"role": "user", "content": image}]},
        {"text": "Hello"},
    ]
    async with recording(server.url, tmp_path) as recorder:
        with recorder.session("x/one", case(max_requests=99), []) as session:
            async with talking(session) as client:
                for body in [*others, *others]:
                    assert (await ask(client, session, **body)).status_code == 200
    assert len(server.requests) == len(others)


async def test_many_who_ask_the_same_at_once_wait_for_one_answer(serve: Serve, tmp_path: Path) -> None:
    server = serve(says("hi"))
    async with recording(server.url, tmp_path, parallel=8) as recorder:
        with recorder.session("x/one", case(max_requests=99), []) as session:
            async with talking(session) as client, anyio.create_task_group() as tasks:
                for _ in range(12):
                    tasks.start_soon(partial(ask, client, session))
            assert session.requests == 12
    assert len(server.requests) == 1


@pytest.mark.parametrize("parallel", [1, 3])
async def test_no_more_requests_than_allowed_are_upstream_at_once(
    serve: Serve, tmp_path: Path, parallel: int
) -> None:
    there, most, lock, full = 0, 0, threading.Lock(), threading.Barrier(parallel)

    def answer(x: Any) -> None:
        nonlocal there, most
        with lock:
            there += 1
            most = max(most, there)
        full.wait(10)  # nobody is answered before so many are there
        with lock:
            there -= 1
        says("hi")(x)

    server = serve(answer)
    async with recording(server.url, tmp_path, parallel=parallel) as recorder:
        with recorder.session("x/one", case(max_requests=99), []) as session:
            async with talking(session) as client, anyio.create_task_group() as tasks:
                for n in range(6):
                    tasks.start_soon(partial(ask, client, session, text=str(n)))
            assert session.requests == 6
    assert most == parallel


# ------------------------------------------------------------------ real clients


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_a_stream_is_the_answer_piece_by_piece_thoughts_first(
    serve: Serve, tmp_path: Path, field: str
) -> None:
    arguments = {"a": 1, "b": 2, "why": LONG}
    answer = completion(LONG, ("add", arguments), ("add", {}), **{field: LONG + "?"})
    server = serve(lambda x: x.reply(200, json.dumps(answer)))
    async with recording(server.url, tmp_path) as recorder:
        with recorder.session("x/one", case(), []) as session:
            async with talking(session) as client:
                whole = await ask(client, session)
                response = await ask(client, session, stream=True, stream_options={"include_usage": True})
    assert whole.json() == answer
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, last = streamed(response.text)
    assert last["choices"] == [] and last["usage"] == answer["usage"]
    assert {(e["id"], e["object"], e["model"]) for e in events} == {
        ("chatcmpl-1", "chat.completion.chunk", "stub-model")
    }
    choices = [e["choices"][0] for e in events]
    assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["tool_calls"]
    deltas = [c["delta"] for c in choices]
    assert deltas[0]["role"] == "assistant" and deltas[-1] == {}
    assert "".join(d.get(field) or "" for d in deltas) == LONG + "?"
    assert "".join(d.get("content") or "" for d in deltas) == LONG
    order = [next(iter(d)) for d in deltas[1:-1]]
    assert list(dict.fromkeys(order)) == [field, "content", "tool_calls"] and order.count(field) > 3
    fragments = [c for d in deltas for c in d.get("tool_calls", ())]
    assert [(f["index"], f["id"]) for f in fragments if "id" in f] == [(0, "call_0"), (1, "call_1")]
    written = "".join(f["function"]["arguments"] for f in fragments if f["index"] == 0)
    assert json.loads(written) == arguments


async def test_what_servers_do_in_their_own_ways_is_read_all_the_same(serve: Serve, tmp_path: Path) -> None:
    answer = completion(None, ("add", {}))
    answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] = {"a": 1}
    del answer["usage"], answer["choices"][0]["finish_reason"]
    answer["timings"] = {"prompt_n": 10, "prompt_ms": 1500.5, "predicted_n": 7, "predicted_ms": 250}
    server = serve(lambda x: x.reply(200, json.dumps(answer)))
    async with recording(server.url, tmp_path) as recorder:
        with recorder.session("x/one", case(), []) as session:
            async with talking(session) as client:
                events = streamed((await ask(client, session, stream=True)).text)
    deltas = [e["choices"][0]["delta"] for e in events]
    assert deltas[2]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert session.model_seconds == pytest.approx(1.7505)  # its own clock: in its queue nobody worked
    assert (session.requests, session.prompt_tokens) == (1, 0)


async def test_the_openai_package_reads_it_streaming_and_not_sync_and_async(
    serve: Serve, tmp_path: Path
) -> None:
    openai = pytest.importorskip("openai")
    server = serve(says("so", ("add", {"a": 1, "b": 2}), reasoning_content="hm"))
    async with recording(server.url, tmp_path) as recorder:
        with recorder.session("x/one", case(max_requests=4), []) as session:
            given: dict[str, Any] = {"base_url": session.base_url, "api_key": session.api_key}
            asked: dict[str, Any] = {**asking(), "tools": [ADD]}

            async with openai.AsyncOpenAI(**given) as client:
                answers = [await client.chat.completions.create(**asked)]
                async with client.chat.completions.stream(**asked) as stream:
                    async for _ in stream:
                        pass
                    answers.append(await stream.get_final_completion())

            def sync() -> None:
                with openai.OpenAI(**given) as client:
                    answers.append(client.chat.completions.create(**asked))
                    with client.chat.completions.stream(**asked) as stream:
                        stream.until_done()
                        answers.append(stream.get_final_completion())

            await anyio.to_thread.run_sync(sync)
            assert session.requests == 4
            with pytest.raises(openai.BadRequestError, match="agentkit-eval: budget"):
                async with openai.AsyncOpenAI(**given) as client:
                    await client.chat.completions.create(**asked)
    assert len(server.requests) == 1 and len(list(Lines(tmp_path / "turns.jsonl"))) == 5
    for answer in answers:
        message = answer.choices[0].message
        assert message.content == "so" and answer.choices[0].finish_reason == "tool_calls"
        assert message.to_dict()["reasoning_content"] == "hm"
        (call,) = message.tool_calls
        assert (call.id, call.function.name) == ("call_0", "add")
        assert json.loads(call.function.arguments) == {"a": 1, "b": 2}


async def test_an_agent_runs_through_it_and_its_calls_are_recorded(serve: Serve, tmp_path: Path) -> None:
    server = serve(
        says(None, ("add", {"a": 1, "b": 2}), ("add", {"a": "x", "b": 2}), reasoning_content="I add."),
        says("3."),
    )
    async with recording(server.url, tmp_path) as recorder:
        with recorder.session("agentkit/one", case(), [add]) as session:
            agent = Agent(
                OpenAICompatible(session.base_url, "stub-model", session.api_key), tools=session.tools
            )
            result = await agent.run("What is 1 plus 2?")
            assert result.output == "3." and result.usage.input_tokens == session.prompt_tokens == 1000
            thoughts = [p.text for m in result.messages for p in m.parts if isinstance(p, Thinking)]
            assert thoughts == ["I add."]
            assert session.requests == 2 and session.ended is None and session.waited > 0
            first, second = sorted(session.calls, key=lambda c: c.is_error)
            assert first == Call("add", {"a": 1, "b": 2}, 0, 1, "3")
            assert (second.arguments, second.round, second.is_error) == ({"a": "x", "b": 2}, 1, True)
    assert "stream" not in server.requests[0]


async def test_guided_answers_and_settings_go_through_as_the_engine_sends_them(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(says('{"n": 3}'))
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    request = EngineRequest(
        (user("Three."),), settings=ModelSettings(thinking=False, temperature=0.6), schema=schema
    )
    async with recording(server.url, tmp_path) as recorder:
        with recorder.session("agentkit/one", case(), []) as session:
            engine = OpenAICompatible(session.base_url, "stub-model", session.api_key, kind="vllm")
            chunks = [chunk async for chunk in engine.stream(request)]
    assert "".join(c.text for c in chunks) == '{"n": 3}'
    (sent,) = server.requests
    assert sent["response_format"]["json_schema"]["schema"] == schema
    assert sent["chat_template_kwargs"] == {"enable_thinking": False} and sent["temperature"] == 0.6
    assert [t["text"] for t in Lines(tmp_path / "turns.jsonl")] == ['{"n": 3}']


# ------------------------------------------------------------------ what else is asked of the server


class LlamaServer:
    """The paths beside the completions, as llama-server has them."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, x: Any) -> None:
        self.asked.append(x.http.path)
        if x.http.path == "/apply-template":
            x.reply(200, json.dumps({"prompt": "<|im_start|>" + x.body["messages"][-1]["content"]}))
        elif x.http.path == "/tokenize":
            x.reply(200, json.dumps({"tokens": list(range(len(x.body["content"].split())))}))
        elif x.http.path == "/v1/embeddings?a=b%20c":
            x.reply(418, "no tea", "text/plain; charset=utf-8", server="teapot")
        else:
            says("hi")(x)


async def test_tokens_are_counted_by_the_server_behind_it(serve: Serve, tmp_path: Path) -> None:
    behind = LlamaServer()
    server = serve(behind)
    async with recording(server.url, tmp_path) as recorder:
        with recorder.session("agentkit/one", case(), []) as session:
            engine = OpenAICompatible(session.base_url, "stub-model", session.api_key, kind="llama.cpp")
            assert await engine.count_tokens(EngineRequest((user("one two three"),))) == 3
            assert await engine.models() == ["stub-model"]
            assert session.requests == 0
    assert behind.asked == ["/apply-template", "/tokenize"]


async def test_other_paths_are_passed_on_as_they_are_but_for_those_that_make_text(
    serve: Serve, tmp_path: Path
) -> None:
    behind = LlamaServer()
    server = serve(behind)
    async with recording(server.url, tmp_path) as recorder:
        with recorder.session("agentkit/one", case(), []) as session:
            async with talking(session) as client:
                answer = await client.post(session.base_url + "/embeddings?a=b%20c", json={"input": "x"})
                assert (answer.status_code, answer.text) == (418, "no tea")
                assert "teapot" in answer.headers["server"]
                above = session.base_url.removesuffix("/v1")
                for path in ("v1/completions", "v1/responses", "completion", "chat/completions", "api/chat"):
                    answer = await client.post(f"{above}/{path}", json=asking())
                    assert answer.status_code == 400 and "nowhere else" in answer.text
    assert len(server.requests) == 1


# ------------------------------------------------------------------ budgets


async def test_requests_beyond_the_budget_of_a_turn_are_refused(serve: Serve, tmp_path: Path) -> None:
    server = serve(says("hi"))
    async with recording(server.url, tmp_path) as recorder:
        with recorder.session("x/one", case(max_requests=2), []) as session:
            async with talking(session) as client:
                for text in "ab":
                    assert (await ask(client, session, text=text)).status_code == 200
                assert (await client.post(session.turn_url)).status_code == 204
                for text in "cd":
                    assert (await ask(client, session, text=text)).status_code == 200
                assert session.ended is None
                for text in "ea":  # not even what is known
                    refused = await ask(client, session, text=text, stream=True)
                    assert refused.status_code == 400
                    error = refused.json()["error"]
                    assert (error["message"], error["code"]) == ("agentkit-eval: budget", "budget")
            assert session.ended == "budget" and session.requests == 4
            with pytest.raises(EngineError, match="agentkit-eval: budget"):
                await Agent(OpenAICompatible(session.base_url, "m", session.api_key)).run("hello")

    assert len(server.requests) == 4
    turns = [(t["turn"], t["round"], t.get("refused")) for t in Lines(tmp_path / "turns.jsonl")]
    assert turns[:4] == [(0, 1, None), (0, 2, None), (1, 1, None), (1, 2, None)]
    assert [t[2] for t in turns[4:]] == ["budget"] * 3  # the agent's engine has not asked twice


async def test_with_first_round_the_calls_of_one_answer_are_all_there_is(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(says(None, ("add", {"a": 1, "b": 2}), ("add", {"a": 3, "b": 4})))
    async with recording(server.url, tmp_path) as recorder:
        with recorder.session("agentkit/one", case(first_round=True), [add]) as session:
            agent = Agent(
                OpenAICompatible(session.base_url, "stub-model", session.api_key), tools=session.tools
            )
            with pytest.raises(EngineError, match="agentkit-eval: first_round"):
                await agent.run("Add.")
            assert session.ended == "first_round"
            assert sorted(c.result for c in session.calls) == ["3", "7"]
            async with talking(session) as client:  # and nothing that comes after it
                late = await client.post(session.tools_url + "/add", json={"a": 5, "b": 6})
                assert late.json() == {"content": "agentkit-eval: first_round", "is_error": True}
            assert len(session.calls) == 2
    assert len(server.requests) == 1


async def test_with_first_round_a_model_that_calls_nothing_may_go_on(serve: Serve, tmp_path: Path) -> None:
    server = serve(says("hi"))
    async with recording(server.url, tmp_path) as recorder:
        with recorder.session("x/one", case(first_round=True), [add]) as session:
            async with talking(session) as client:
                for text in "ab":
                    assert (await ask(client, session, text=text)).status_code == 200
            assert session.ended is None


async def test_a_request_that_the_server_does_not_like_is_told_so_and_costs_nothing(
    serve: Serve, tmp_path: Path
) -> None:
    said = '{"error": {"message": "seed is not supported", "odd": [1]}}'
    server = serve(
        lambda x: x.reply(400, said), lambda x: x.reply(500, "template"), says("hi"), says("again")
    )
    async with recording(server.url, tmp_path) as recorder:
        with recorder.session("x/one", case(max_requests=1), []) as session:
            async with talking(session) as client:
                first = await ask(client, session, stream=True)
                assert (first.status_code, first.text) == (400, said)
                # it answers otherwise: that 500 is about what was asked
                assert (await ask(client, session)).status_code == 500
                assert (await ask(client, session)).status_code == 200
            assert session.requests == 1 and session.ended is None and session.failure is None
    assert [t.get("error") for t in Lines(tmp_path / "turns.jsonl")] == [
        "seed is not supported",
        "template",
        None,
    ]
    assert len(list(Lines(tmp_path / "answers.jsonl"))) == 1


# ------------------------------------------------------------------ tools


async def test_tools_are_called_by_http_and_whatever_happens_is_an_answer(
    serve: Serve, tmp_path: Path
) -> None:
    async def take(arguments: Mapping[str, Any]) -> ToolOutput:
        assert isinstance(arguments, dict)
        arguments["items"].append("more")
        return ToolOutput(str(len(arguments["items"])))

    @tool
    def refuse() -> None:
        """Says no."""
        raise ToolError("not today")

    @tool
    def crash() -> None:
        """Breaks."""
        raise ZeroDivisionError("by zero")

    @tool(timeout=0.01)
    async def hang() -> None:
        """Never comes back."""
        await anyio.sleep_forever()

    tools: list[Tool] = [add, refuse, crash, hang, Tool("a.b/take", "", {"type": "object"}, take)]
    async with recording(serve(says("hi")).url, tmp_path) as recorder:
        with recorder.session("peer/one", case(), tools) as session:

            async def call(name: str, content: str) -> tuple[str, bool]:
                answer = await client.post(f"{session.tools_url}/{name}", content=content)
                assert answer.status_code == 200
                assert set(answer.json()) == {"content", "is_error"}
                return answer.json()["content"], answer.json()["is_error"]

            async with talking(session) as client:
                await ask(client, session)
                assert await call("add", '{"a": 1, "b": 2}') == ("3", False)
                assert await call("refuse", "{}") == ("not today", True)
                assert await call("crash", "{}") == ("ZeroDivisionError: by zero", True)
                assert (await call("hang", "{}"))[1] is True
                assert (await call("add", '{"a": 1}'))[1] is True
                assert await call("a.b/take", '{"items": ["ü"]}') == ("2", False)
                await ask(client, session, text="more")
                session.next_turn()
                assert await call("add", '{"a": 2, "b": 2}') == ("4", False)
                recorded = len(session.calls)
                assert await call("sub", "{}") == ("There is no tool 'sub'.", True)
                assert (await call("add", "[1, 2]"))[1] is True
                assert (await call("add", '{"a": 1'))[1] is True
            assert len(session.calls) == recorded == 7  # what reached a tool
    made = [(c.name, c.turn, c.round, c.is_error) for c in session.calls]
    assert made == [
        ("add", 0, 1, False),
        ("refuse", 0, 1, True),
        ("crash", 0, 1, True),
        ("hang", 0, 1, True),
        ("add", 0, 1, True),
        ("a.b/take", 0, 1, False),
        ("add", 1, 0, False),
    ]
    assert session.calls[5].arguments == {"items": ["ü"]}  # as it was sent


async def test_calls_are_in_the_order_they_were_made_though_they_end_in_another(
    serve: Serve, tmp_path: Path
) -> None:
    go = anyio.Event()

    @tool
    async def slow() -> str:
        """Waits."""
        await go.wait()
        return "slow"

    @tool
    async def quick() -> str:
        """Does not."""
        go.set()
        return "quick"

    async def run(wrapped: Tool) -> None:
        await wrapped.handler({})

    async with recording(serve(says("hi")).url, tmp_path) as recorder:
        with recorder.session("x/one", case(), [slow, quick]) as session:
            async with anyio.create_task_group() as tasks:
                for wrapped in session.tools:
                    tasks.start_soon(run, wrapped)
            assert [(c.name, c.result) for c in session.calls] == [("slow", "slow"), ("quick", "quick")]
    assert session.tools[0].parameters == slow.parameters and session.tools[0].fn is slow.fn


# ------------------------------------------------------------------ who may


async def test_only_the_sessions_own_key_opens_it_and_only_while_it_lasts(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(says("hi"))
    async with recording(server.url, tmp_path) as recorder, httpx2.AsyncClient(trust_env=False) as client:
        with (
            recorder.session("x/one", case(), [add]) as session,
            recorder.session("y/one", case(), [add]) as other,
        ):
            urls = (
                session.base_url + "/chat/completions",
                session.tools_url + "/add",
                session.turn_url,
                session.base_url + "/models",
                session.base_url.removesuffix("/v1") + "/tokenize",
            )
            for key in ("", "Bearer", "Bearer wrong", f"Bearer {other.api_key}", session.api_key):
                for url in urls:
                    answer = await client.post(url, json=asking(), headers={"Authorization": key})
                    assert answer.status_code == 401, (url, key)
                assert (await client.get(urls[3], headers={"Authorization": key})).status_code == 401
            assert server.requests == [] and session.calls == [] and session.requests == 0
            mine = {"Authorization": f"Bearer {session.api_key}"}
            await client.post(urls[1], json={"a": 1, "b": 2}, headers=mine)
            await client.post(urls[0], json=asking(), headers=mine)
            assert (len(session.calls), session.requests) == (1, 1)
            assert (other.calls, other.requests, other.prompt_tokens, other.waited) == ([], 0, 0, 0)
            assert session.base_url != other.base_url
        for url in urls:
            answer = await client.post(url, json=asking(), headers=mine)
            assert answer.status_code == 404 and answer.json()["error"]["message"] == "agentkit-eval: over"
    assert len(session.calls) == 1


async def test_nothing_it_writes_is_readable_by_others(serve: Serve, tmp_path: Path) -> None:
    async with recording(serve(says("hi")).url, tmp_path / "a" / "b", api_key="very secret") as recorder:
        with recorder.session("x/one", case(), []) as session:
            async with talking(session) as client:
                await ask(client, session)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {f.name for f in files} == {"answers.jsonl", "turns.jsonl"}
    for file in files:
        assert file.stat().st_mode & 0o777 == 0o600
        assert "very secret" not in file.read_text() and session.api_key not in file.read_text()


async def test_two_recorders_do_not_write_to_one_folder(serve: Serve, tmp_path: Path) -> None:
    url = serve(says("hi")).url
    async with recording(url, tmp_path):
        with pytest.raises(ConfigError, match="Another run"):
            async with recording(url, tmp_path):
                pass
    async with recording(url, tmp_path):
        pass


# ------------------------------------------------------------------ when things go wrong


async def test_nobody_waits_for_an_answer_that_is_not_wanted_any_more(serve: Serve, tmp_path: Path) -> None:
    there, gone = threading.Event(), threading.Event()

    def first(x: Any) -> None:
        there.set()
        x.http.connection.settimeout(20)
        assert x.http.connection.recv(1) == b""  # the recorder hangs up
        gone.set()
        raise BrokenPipeError

    server = serve(first, first, says("hi"))
    async with recording(server.url, tmp_path) as recorder:
        # the client leaves
        with recorder.session("x/one", case(), []) as session:
            async with talking(session) as client, anyio.create_task_group() as tasks:
                tasks.start_soon(partial(ask, client, session))
                await anyio.to_thread.run_sync(there.wait)
                tasks.cancel_scope.cancel()
            assert await anyio.to_thread.run_sync(gone.wait, 20)
        there.clear()
        gone.clear()
        # the run is over, and the client does not know
        async with anyio.create_task_group() as tasks:
            with recorder.session("x/two", case(), []) as session:
                answers: list[int] = []

                async def wait(session: Session = session) -> None:
                    async with talking(session) as client:
                        answers.append((await ask(client, session)).status_code)

                tasks.start_soon(wait)
                await anyio.to_thread.run_sync(there.wait)
            assert await anyio.to_thread.run_sync(gone.wait, 20)
        assert answers == [404]
        # and the next one has the server for itself
        with recorder.session("x/three", case(), []) as session:
            async with talking(session) as client:
                assert (await ask(client, session)).status_code == 200


async def test_a_server_that_is_not_there_ends_the_run_and_not_with_a_result(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    async with recording(url, tmp_path) as recorder:
        with (
            pytest.raises(EngineError, match=r"The model server at http://127.0.0.1:\d+/v1 gave no answer"),
            recorder.session("x/one", case(), []) as session,
        ):
            async with talking(session) as client:
                for _ in range(2):
                    answer = await ask(client, session)
                    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "server")
            assert session.ended is None
        with recorder.session("x/two", case(), []) as session:
            async with talking(session) as client:
                assert (await client.get(session.base_url + "/models")).status_code == 502
    assert list(Lines(tmp_path / "answers.jsonl")) == []


async def test_what_any_request_would_be_told_is_no_result_either(serve: Serve, tmp_path: Path) -> None:
    told = [
        (401, "no such key"),
        (404, "no such model"),
        (429, "slow down"),
        (503, "loading"),
        (200, "a web page"),
        (200, '{"choices": []}'),
        (200, "[]"),
    ]
    server = serve(*(lambda x, t=t: x.reply(*t) for t in told))
    async with recording(server.url, tmp_path) as recorder:
        for _, said in told:
            with (
                pytest.raises(EngineError) as raised,
                recorder.session("x/one", case(), []) as session,
            ):
                async with talking(session) as client:
                    assert (await ask(client, session)).status_code == 400
            assert said in str(raised.value) and "run this again" in str(raised.value)
    assert len(server.requests) == len(told) and list(Lines(tmp_path / "answers.jsonl")) == []


async def test_an_error_of_the_body_is_not_hidden_by_the_servers(serve: Serve, tmp_path: Path) -> None:
    async with recording(serve(lambda x: x.reply(503, "")).url, tmp_path) as recorder:
        with pytest.raises(KeyError), recorder.session("x/one", case(), []) as session:
            async with talking(session) as client:
                await ask(client, session)
            raise KeyError


async def test_a_request_that_is_none_is_refused(serve: Serve, tmp_path: Path) -> None:
    server = serve(says("hi"))
    async with recording(server.url, tmp_path) as recorder:
        with recorder.session("x/one", case(), []) as session:
            async with talking(session) as client:
                for content in (
                    "",
                    "nonsense",
                    "[]",
                    "{}",
                    '{"messages": "hello"}',
                    '{"messages": [1, null]}',
                ):
                    answer = await client.post(session.base_url + "/chat/completions", content=content)
                    assert answer.status_code == (200 if "null" in content else 400), content
    assert len(server.requests) == 1


# ------------------------------------------------------------------ killed, and begun again

SYSTEM = """
import sys
from pathlib import Path
import anyio, httpx2
from agentkit.evals import Case
from agentkit.evals.recorder import Recorder

async def main():
    case = Case("one", "simple", (), max_requests=99)
    async with Recorder(sys.argv[1], "m", folder=Path(sys.argv[2])) as recorder:
        with recorder.session("x/one", case, []) as session:
            headers = {"Authorization": f"Bearer {session.api_key}"}
            async with httpx2.AsyncClient(headers=headers, trust_env=False, timeout=30) as client:
                for n in range(8):
                    body = {"messages": [{"role": "user", "content": f"{n} " * 20_000}]}
                    answer = await client.post(session.base_url + "/chat/completions", json=body)
                    print(answer.json()["choices"][0]["message"]["content"], flush=True)
            print(session.requests, session.model_seconds > 0, flush=True)

anyio.run(main)
"""


@pytest.fixture
def system(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(url: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SYSTEM, url, str(tmp_path)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


async def test_killed_in_the_middle_it_asks_only_what_had_not_been_answered(
    serve: Serve, tmp_path: Path, system: Callable[[str], subprocess.Popen[str]]
) -> None:
    asked: list[str] = []
    processes: list[subprocess.Popen[str]] = []

    def answer(x: Any) -> None:
        n = x.body["messages"][0]["content"].split()[0]
        asked.append(n)
        if n == "5" and asked.count(n) == 1:
            os.kill(processes[0].pid, signal.SIGKILL)
            raise BrokenPipeError
        says(f"answer {n}")(x)

    url = serve(answer).url
    processes.append(system(url))
    out, _ = await anyio.to_thread.run_sync(processes[0].communicate)
    assert processes[0].returncode == -signal.SIGKILL and out.splitlines()[-1] == "answer 4"

    answers = tmp_path / "answers.jsonl"  # and its last line has not reached the disk whole
    answers.write_bytes(answers.read_bytes()[:-1000])
    processes.append(system(url))
    out, _ = await anyio.to_thread.run_sync(processes[1].communicate)
    assert out.splitlines() == [f"answer {n}" for n in range(8)] + ["8 True"]
    assert asked == ["0", "1", "2", "3", "4", "5", "4", "5", "6", "7"]
    assert all(json.loads(line) for line in answers.read_bytes().splitlines())
