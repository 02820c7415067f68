"""The kinds of servers: recognised by what they say, and spoken to as each of them wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest

from agentkit import ConfigError, ModelSettings
from agentkit.messages import Message, Thinking, ToolCall, ToolResult, system, user
from agentkit.runtime.engine import Chunk, Counting, Request
from agentkit.runtime.openai_compatible import OpenAICompatible
from agentkit.runtime.servers import KINDS, recognise

pytestmark = pytest.mark.anyio

Routes = dict[
    str, Any
]  # "GET /path" -> JSON to answer with, or a function from the body of the request to it
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
LOOP = [
    system("s"),
    user("q"),
    Message("assistant", (Thinking("hm"), ToolCall("c1", "f", {}, "{}"))),
    Message("tool", (ToolResult("c1", "42", name="f"),)),
]


@dataclass
class Pretended:
    url: str
    asked: list[str] = field(default_factory=list)
    bodies: dict[str, Any] = field(default_factory=dict)  # path -> the last body sent there


@pytest.fixture
def pretend() -> Iterator[Callable[..., Pretended]]:
    """`pretend(routes)` starts a server that answers just these, and any chat completion with "ok"."""
    running: list[ThreadingHTTPServer] = []

    def start(routes: Routes, server_header: str = "uvicorn", base: str = "/v1") -> Pretended:
        class Answer(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                what = f"{self.command} {self.path}"
                made.asked.append(what)
                made.bodies[self.path] = body
                found = routes.get(what)
                if self.path.endswith("/chat/completions") and found is None:
                    delta = {"choices": [{"delta": {"content": "ok"}, "finish_reason": "stop"}]}
                    self.reply(f"data: {json.dumps(delta)}\n\ndata: [DONE]\n\n", "text/event-stream")
                elif found is None:
                    self.reply('{"detail": "Not Found"}', status=404)
                else:
                    self.reply(json.dumps(found(body) if callable(found) else found))

            do_GET = do_POST = answer

            def reply(self, text: str, kind: str = "application/json", status: int = 200) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def version_string(self) -> str:
                return server_header

            def log_message(self, format: str, *args: Any) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        running.append(http)
        made = Pretended(f"http://127.0.0.1:{http.server_address[1]}{base}")
        return made

    yield start
    for http in running:
        http.shutdown()
        http.server_close()


def models(**entry: Any) -> Any:
    return {"object": "list", "data": [{"id": "m", "object": "model", **entry}]}


# What each server answers, as their sources have it.
SERVERS: dict[str, tuple[Routes, str]] = {
    "vllm": (
        {
            "GET /v1/models": models(owned_by="vllm", max_model_len=8192),
            "GET /version": {"version": "0.32.0"},
            "POST /tokenize": lambda body: {"count": 10 + len(body["messages"]), "max_model_len": 8192},
        },
        "uvicorn",
    ),
    "sglang": (
        {
            "GET /v1/models": models(owned_by="sglang", max_model_len=4096),
            "POST /v1/tokenize": lambda body: {"count": 10 + len(body["messages"]), "tokens": []},
        },
        "uvicorn",
    ),
    "llama.cpp": (
        {
            "GET /v1/models": models(owned_by="llamacpp", meta={"n_ctx_train": 40960}),
            "GET /props": {"default_generation_settings": {"n_ctx": 2048}, "total_slots": 4},
            "POST /apply-template": lambda body: {"prompt": "x" * len(body["messages"])},
            "POST /tokenize": lambda body: {"tokens": [0] * (10 + len(body["content"]))},
        },
        "llama.cpp",
    ),
    "llama-cpp-python": ({"GET /v1/models": models(owned_by="me", permissions=[])}, "uvicorn"),
    "ollama": (
        {
            "GET /v1/models": models(owned_by="someone"),
            "GET /api/version": {"version": "0.17.0"},
            "GET /api/ps": {"models": [{"name": "m:latest", "context_length": 4096}]},
        },
        "",
    ),
    "lmstudio": (
        {
            "GET /v1/models": models(owned_by="whoever"),
            "GET /api/v0/models": {
                "data": [
                    {
                        "id": "m",
                        "compatibility_type": "gguf",
                        "state": "loaded",
                        "max_context_length": 32768,
                        "loaded_context_length": 5000,
                    }
                ]
            },
        },
        "",
    ),
    "mlx-lm": ({"GET /v1/models": models(created=1)}, "BaseHTTP/0.6 Python/3.12.1"),
    "ktransformers": ({"GET /v1/models": [{"id": "m", "name": "m"}]}, "uvicorn"),
}
CONTEXTS = {"vllm": 8192, "sglang": 4096, "llama.cpp": 2048, "ollama": 4096, "lmstudio": 5000}


async def ask(engine: OpenAICompatible, *messages: Message, **request: Any) -> list[Chunk]:
    return [c async for c in engine.stream(Request(messages or (user("hi"),), **request))]


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_server_is_recognised_by_what_it_says(pretend: Any, kind: str) -> None:
    server = pretend(*SERVERS[kind])
    async with httpx2.AsyncClient(trust_env=False) as client:
        assert await recognise(client, server.url, {}) == kind
    assert len(server.asked) <= 3 and not any("completions" in what for what in server.asked)


@pytest.mark.parametrize("owner", ["library", "organization_owner"])
async def test_ollama_and_lm_studio_are_mostly_known_from_the_list_alone(pretend: Any, owner: str) -> None:
    server = pretend({"GET /v1/models": models(owned_by=owner)})
    engine = OpenAICompatible(server.url)
    await ask(engine, settings=ModelSettings(thinking=False))
    assert engine.kind in ("ollama", "lmstudio") and server.asked[0] == "GET /v1/models"
    assert len(server.asked) == 2  # the list, and the completion


async def test_model_studio_is_known_by_its_host_without_being_asked() -> None:
    async with httpx2.AsyncClient(trust_env=False) as client:
        for host in ("dashscope", "dashscope-intl", "ws1.eu-central-1.maas"):
            url = f"https://{host}.aliyuncs.com/compatible-mode/v1"
            assert await recognise(client, url, {}) == "dashscope"


@pytest.mark.parametrize(
    "routes",
    [
        {},
        {"GET /v1/models": models(owned_by="openai")},
        {"GET /v1/models": "nonsense"},
        {"GET /v1/models": {"data": [None]}},
        {"GET /v1/models": models(), "GET /api/version": models(), "GET /api/v0/models": {"data": 3}},
    ],
)
async def test_a_server_that_says_nothing_known_is_plain_chat_completions(
    pretend: Any, routes: Routes
) -> None:
    server = pretend(routes, "BaseHTTP/0.6")
    engine = OpenAICompatible(server.url, "m")
    assert await engine.context_length() is None
    assert await engine.count_tokens(Request([user("hi")])) is None
    assert engine.kind is None and isinstance(engine, Counting)
    await ask(engine)
    assert server.bodies["/v1/chat/completions"].keys() == {"model", "messages", "stream", "stream_options"}


async def test_a_plain_request_costs_one_request(pretend: Any) -> None:
    server = pretend(*SERVERS["vllm"])
    await ask(OpenAICompatible(server.url, "m"), tools=TOOLS, settings=ModelSettings(temperature=0.5))
    assert server.asked == ["POST /v1/chat/completions"]


async def test_what_a_server_is_is_asked_once(pretend: Any) -> None:
    server = pretend(*SERVERS["ollama"])
    async with OpenAICompatible(server.url, "m") as engine:
        for _ in range(3):
            await ask(engine, *LOOP, settings=ModelSettings(thinking=True))
            assert await engine.context_length() == 4096
    asked = [what for what in server.asked if "completions" not in what]
    assert sorted(asked) == ["GET /api/ps", "GET /api/version", "GET /v1/models"]


@pytest.mark.parametrize("kind", SERVERS)
async def test_the_length_of_the_context_is_known_where_the_server_tells(pretend: Any, kind: str) -> None:
    server = pretend(*SERVERS[kind])
    assert await OpenAICompatible(server.url, "m").context_length() == CONTEXTS.get(kind)
    assert await OpenAICompatible(server.url, kind=kind).context_length() == CONTEXTS.get(kind)


async def test_ollama_loads_a_model_to_say_how_long_its_context_is(pretend: Any) -> None:
    running: list[Any] = []

    def load(body: Any) -> Any:
        running.append({"name": body["model"], "context_length": 8192})
        return {"done": True}

    server = pretend({"POST /api/generate": load, "GET /api/ps": lambda _: {"models": running}})
    engine = OpenAICompatible(server.url, "qwen3:4b", kind="ollama")
    assert await engine.context_length() == 8192 and server.bodies["/api/generate"] == {"model": "qwen3:4b"}


@pytest.mark.parametrize("kind", SERVERS)
async def test_tokens_are_counted_where_the_server_counts_exactly(pretend: Any, kind: str) -> None:
    server = pretend(*SERVERS[kind])
    request = Request(LOOP, TOOLS, ModelSettings(thinking=False))
    counted = await OpenAICompatible(server.url, "m").count_tokens(request)
    assert counted == (14 if kind in ("vllm", "sglang", "llama.cpp") else None)
    if kind == "vllm":
        body = server.bodies["/tokenize"]
        assert body["tools"] == TOOLS and body["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("kind", "thinking", "fields"),
    [
        ("vllm", False, {"chat_template_kwargs": {"enable_thinking": False}}),
        ("sglang", True, {"chat_template_kwargs": {"enable_thinking": True}}),
        ("llama.cpp", False, {"chat_template_kwargs": {"enable_thinking": False}}),
        ("mlx-lm", False, {"chat_template_kwargs": {"enable_thinking": False}, "max_tokens": 32768}),
        ("dashscope", True, {"enable_thinking": True}),
        ("dashscope", None, {}),
        ("ollama", False, {"reasoning_effort": "none"}),
        ("ollama", True, {}),
        ("lmstudio", False, {}),
        ("llama-cpp-python", True, {}),
        ("ktransformers", False, {}),
    ],
)
async def test_each_server_is_told_to_think_in_its_own_way(
    pretend: Any, kind: str, thinking: bool | None, fields: Any
) -> None:
    server = pretend({})
    await ask(OpenAICompatible(server.url, "Qwen3-4B", kind=kind), settings=ModelSettings(thinking=thinking))
    body = server.bodies["/v1/chat/completions"]
    words = {True: " /think", False: " /no_think", None: ""}[
        thinking if KINDS[kind].thinking == "words" else None
    ]
    assert body.pop("messages") == [{"role": "user", "content": "hi" + words}]
    assert body == {"model": "Qwen3-4B", "stream": True, "stream_options": {"include_usage": True}} | fields


@pytest.mark.parametrize("model", ["gemma-3", "Qwen3-4B-Instruct-2507", "Qwen3-4B-Thinking-2507"])
async def test_only_a_qwen3_with_both_modes_is_told_in_words(pretend: Any, model: str) -> None:
    server = pretend({})
    engine = OpenAICompatible(server.url, model, kind="llama-cpp-python")
    await ask(engine, settings=ModelSettings(thinking=False))
    assert server.bodies["/v1/chat/completions"]["messages"] == [{"role": "user", "content": "hi"}]


async def test_settings_that_a_server_does_not_take_are_left_out(pretend: Any) -> None:
    server = pretend({})
    settings = ModelSettings(top_k=20, min_p=0.0, max_tokens=7)
    await ask(OpenAICompatible(server.url, "qwen3-4b", kind="dashscope"), settings=settings)
    body = server.bodies["/v1/chat/completions"]
    assert body["top_k"] == 20 and "min_p" not in body and body["max_tokens"] == 7


STRICT = {
    "type": "json_schema",
    "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
}


@pytest.mark.parametrize(
    ("kind", "form"),
    [(kind, STRICT) for kind in ("vllm", "sglang", "llama.cpp", "ollama", "lmstudio", "dashscope", None)]
    + [("llama-cpp-python", {"type": "json_object", "schema": SCHEMA}), ("mlx-lm", None)],
)
async def test_a_schema_goes_out_in_the_form_that_the_server_reads(
    pretend: Any, kind: str | None, form: Any
) -> None:
    server = pretend({})
    await ask(OpenAICompatible(server.url, "m", kind=kind), tools=TOOLS, schema=SCHEMA)
    body = server.bodies["/v1/chat/completions"]
    assert body.get("response_format") == form
    assert body.get("enable_thinking") == (False if kind == "dashscope" else None)


async def test_llama_server_is_not_given_tools_and_a_schema_at_once(pretend: Any) -> None:
    server = pretend({})
    engine = OpenAICompatible(server.url, "m", kind="llama.cpp")
    await ask(engine, tools=TOOLS, schema=SCHEMA)
    body = server.bodies["/v1/chat/completions"]
    assert "tools" not in body and "<tools>" in body["messages"][0]["content"]
    await ask(engine, tools=TOOLS)
    assert server.bodies["/v1/chat/completions"]["tools"] == TOOLS and engine.protocol == "native"


@pytest.mark.parametrize(
    ("kind", "version", "where"),
    [
        ("vllm", "0.32.0", "reasoning"),
        ("vllm", "0.13.1rc1", "reasoning_content"),
        ("vllm", "0.8.5.post1", "content"),
        ("vllm", None, "reasoning"),
        ("sglang", None, "reasoning_content"),
        ("llama.cpp", None, "reasoning_content"),
        ("ollama", None, "reasoning"),
        ("dashscope", None, "reasoning_content"),
        ("mlx-lm", None, "reasoning_content"),
        ("llama-cpp-python", None, "content"),
        ("lmstudio", None, "content"),
    ],
)
async def test_thoughts_go_back_where_the_server_reads_them_even_before_its_first_answer(
    pretend: Any, kind: str, version: str | None, where: str
) -> None:
    server = pretend({"GET /version": {"version": version}} if version else {})
    engine = OpenAICompatible(server.url, "m", kind=kind)
    await ask(engine, *LOOP)
    sent = server.bodies["/v1/chat/completions"]["messages"][2]
    assert sent[where] == ("<think>\nhm\n</think>\n\n" if where == "content" else "hm")
    assert not {"reasoning", "reasoning_content"} & (sent.keys() - {where}) and sent["tool_calls"]
    await ask(engine, *LOOP, user("next"))
    sent = server.bodies["/v1/chat/completions"]["messages"][2]
    assert sent["content"] == "" and not {"reasoning", "reasoning_content"} & sent.keys()


async def test_where_thoughts_are_read_can_differ_from_where_they_come_out(pretend: Any) -> None:
    delta = {"choices": [{"message": {"reasoning": "hm", "content": "ok"}, "finish_reason": "stop"}]}
    for kind, field_read in (("mlx-lm", "reasoning_content"), ("vllm", "reasoning"), (None, "reasoning")):
        server = pretend({"POST /v1/chat/completions": delta, "GET /version": {"version": "0.13.0"}})
        engine = OpenAICompatible(server.url, "m", kind=kind)
        await ask(engine)
        await ask(engine, *LOOP)
        assert server.bodies["/v1/chat/completions"]["messages"][2][field_read] == "hm"


def test_a_kind_or_protocol_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match="no kind of server 'tgi'"):
        OpenAICompatible("http://127.0.0.1:1/v1", kind="tgi")
    with pytest.raises(ConfigError, match="not 'xml'"):
        OpenAICompatible("http://127.0.0.1:1/v1", protocol="xml")  # type: ignore[arg-type]
