"""A real vLLM, hosted by agentkit: the demo model behind Qwen3's own chat template, on the CPU. Minutes, not seconds.

Needs AGENTKIT_VLLM (the Python of an environment with vLLM) and AGENTKIT_VLLM_MODEL (what benchmarks/demo_safetensors.py
made); skipped without. The model is no Qwen3 and does not think, so where a test needs Qwen3's exact form the server is
held to it by a regular expression: what is tested is the way there and back, not the model.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import httpx2
import jsonschema  # type: ignore[import-untyped]
import pytest

from agentkit import Agent, Limits, Message, ModelSettings, React, Tool, tool
from agentkit.events import TextDelta
from agentkit.messages import Usage, to_chat, user
from agentkit.planner import Step
from agentkit.runtime.engine import Chunk, Request
from agentkit.runtime.openai_compatible import OpenAICompatible

MODEL = os.environ.get("AGENTKIT_VLLM_MODEL", "")
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.vllm,
    pytest.mark.skipif(
        not (MODEL and os.environ.get("AGENTKIT_VLLM")), reason="AGENTKIT_VLLM and AGENTKIT_VLLM_MODEL"
    ),
]
TEMPLATE = Path(__file__).with_name("qwen3_chat_template.jinja")
NAME = "qwen3-demo"
CONTEXT = 8_192

# Holds the server as any program of a user's does; killed by the last test.
HOLDER = """
import json, sys
import anyio
from agentkit.runtime.vllm import Vllm

async def main():
    engine = Vllm(
        sys.argv[1], name=sys.argv[2], context=int(sys.argv[3]), chat_template=sys.argv[4], dtype="bfloat16",
        tool_parser="hermes", reasoning_parser="qwen3", keep_alive=1, notify=lambda text: print(text, file=sys.stderr),
        args=["--max-num-seqs", "8", "--enforce-eager", "--structured-outputs-config", '{"enable_in_reasoning": true}'],
        env={"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"},
    )
    async with engine:
        server = engine.server
        print(json.dumps({"url": server.base_url, "key": server.api_key, "pid": server.pid}), flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


@dataclass
class Server:
    holder: subprocess.Popen[str]
    url: str
    key: str
    pid: int
    said: Path

    def engine(self) -> Watched:
        return Watched(self.url, NAME, self.key, kind="vllm")

    async def post(self, path: str, **body: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.key}"}
        async with httpx2.AsyncClient(base_url=self.url.removesuffix("/v1"), headers=headers) as client:
            answer = await client.post(path, json={"model": NAME, **body}, timeout=60)
            return answer.raise_for_status().json()

    async def metric(self, name: str) -> float:
        async with httpx2.AsyncClient() as client:
            text = (await client.get(self.url.removesuffix("/v1") + "/metrics")).text
        return sum(float(v) for v in re.findall(rf"^{name}{{.*}} ([\d.e+]+)$", text, re.MULTILINE))

    async def rendered(self, request: Request) -> tuple[list[int], str]:
        """The prompt that the server makes of a request, as tokens and as text."""
        users = [i for i, m in enumerate(request.messages) if m.role == "user"]
        chats = [
            chat
            for i, m in enumerate(request.messages)
            for chat in to_chat(m, "reasoning" if i > users[-1] else None)
        ]
        kwargs = (
            {"enable_thinking": request.settings.thinking} if request.settings.thinking is not None else {}
        )
        made = await self.post(
            "/tokenize", messages=chats, tools=list(request.tools) or None, chat_template_kwargs=kwargs
        )
        text = await self.post("/detokenize", tokens=made["tokens"])
        return made["tokens"], text["prompt"]


class Watched(OpenAICompatible):
    """The engine, which keeps what it was asked and what the server counted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.requests: list[Request] = []
        self.usages: list[Usage] = []

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.requests.append(request)
        async with aclosing(super().stream(request)) as chunks:
            async for chunk in chunks:
                if chunk.usage:
                    self.usages.append(chunk.usage)
                yield chunk


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    said = tmp_path_factory.mktemp("vllm") / "said"
    with open(said, "w") as stderr:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, MODEL, NAME, str(CONTEXT), str(TEMPLATE)],
            stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip
    assert holder.stdout is not None
    line = holder.stdout.readline()
    assert line, said.read_text()
    yield Server(holder, **json.loads(line), said=said)
    holder.kill()
    holder.wait()
    holder.stdout.close()


@dataclass(frozen=True, slots=True)
class Forced(React):
    """Holds the model to a regular expression for each turn: what Qwen3 would have written."""

    turns: tuple[str, ...] = ()

    def request(
        self, history: Sequence[Message], tools: Sequence[Tool], settings: ModelSettings, step: Step
    ) -> Request:
        made = React.request(self, history, tools, settings, step)
        regex = self.turns[step.turn - 1] if step.turn <= len(self.turns) else ""
        extra = {"structured_outputs": {"regex": regex}} if regex else {}
        return replace(made, settings=replace(made.settings, extra=extra))


def forced(*turns: str, thought: str = "") -> Forced:
    think = f"<think>\n{thought}\n</think>\n\n" if thought else ""
    return Forced(
        turns=tuple(re.escape(think + turn).replace("\\\n", r"\n").replace("\\ ", " ") for turn in turns)
    )


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@tool
def look(n: int) -> str:
    """Look behind a door; behind each is a note.

    Args:
        n: The number of the door.
    """
    return (
        f"Behind door {n} there is a note: the red key opens door {n + 1}, and the garden is far away. " * 3
    )


def test_it_starts_and_says_so_while_it_loads(server: Server) -> None:
    said = server.said.read_text()
    assert "starting vllm" in said and "ready after" in said
    assert "weights" in said


async def test_it_cannot_be_used_without_the_key(server: Server) -> None:
    async with httpx2.AsyncClient() as client:
        assert (await client.get(server.url + "/models")).status_code == 401


async def test_the_context_and_the_prompts_length_are_the_servers_own(server: Server) -> None:
    engine = server.engine()
    async with engine:
        assert await engine.context_length() == CONTEXT
        await Agent(engine, tools=[look], planner=forced("ok"), settings=ModelSettings(thinking=False)).run(
            "Hi!"
        )
        assert await engine.count_tokens(engine.requests[0]) == engine.usages[0].input_tokens


async def test_an_answer_streams_in_pieces(server: Server) -> None:
    numbers = "one two three four five six seven eight nine ten"
    agent = Agent(server.engine(), planner=forced(numbers), settings=ModelSettings(thinking=False))
    async with agent.stream("Count from one to ten, in words.") as run:
        pieces = [e.text async for e in run if isinstance(e, TextDelta)]
    assert len(pieces) > 5 and "".join(pieces) == run.result.output == numbers


@pytest.mark.parametrize("thinking", [True, False])
async def test_a_tool_loop_reads_what_can_be_read_from_the_prefix_cache(
    server: Server, thinking: bool
) -> None:
    thought = "The garden may be behind the next door." if thinking else ""
    planner = forced(*(call("look", n=n) for n in range(1, 6)), "It is far away.", thought=thought)
    engine = server.engine()
    agent = Agent(engine, tools=[look], planner=planner, settings=ModelSettings(thinking=thinking))
    result = await agent.run(f"Where is the garden? Begin at the first door. ({thinking})")
    assert result.stopped == "answer" and result.output == "It is far away."
    assert [c.arguments for m in result.messages for c in m.calls] == [{"n": n} for n in range(1, 6)]  # type: ignore[union-attr]

    size = 128  # tokens of a block, vLLM's on the CPU
    cacheable = cached = 0
    prompts = [(await server.rendered(r))[0] for r in engine.requests]
    for before, prompt, usage in zip(prompts, prompts[1:], engine.usages[1:], strict=False):
        assert usage.input_tokens == len(prompt), "the prompt was rendered from something else"
        same = next((i for i, (a, b) in enumerate(zip(before, prompt, strict=False)) if a != b), len(before))
        cacheable += same // size * size
        cached += usage.cached_tokens
    assert cacheable > 1_000
    assert cached >= 0.95 * cacheable
    if thinking:  # each prompt goes on where the last answer ended
        assert all(after[: len(before)] == before for before, after in pairwise(prompts))


async def test_thoughts_go_back_inside_the_tool_loop_and_are_gone_after_it(server: Server) -> None:
    engine = server.engine()
    planner = forced(call("look", n=1), "It is far away.", thought="I should look behind the first door.")
    agent = Agent(engine, tools=[look], planner=planner, settings=ModelSettings(thinking=True))
    first = await agent.run("Where is the garden?")
    assert first.messages[2].thinking == "I should look behind the first door."
    inside = (await server.rendered(engine.requests[1]))[1]
    assert "<think>\nI should look behind the first door.\n</think>\n\n<tool_call>" in inside
    assert engine.usages[1].input_tokens == len((await server.rendered(engine.requests[1]))[0])
    await agent.run([*first.messages, user("And the key?")])
    after = (await server.rendered(engine.requests[2]))[1]
    assert "I should look" not in after and '{"name": "look", "arguments": {"n": 1}}' in after
    assert engine.usages[2].input_tokens == len((await server.rendered(engine.requests[2]))[0])


async def test_the_hard_switch_closes_the_thoughts_in_the_prompt(server: Server) -> None:
    engine = server.engine()
    await Agent(engine, planner=forced("ok"), settings=ModelSettings(thinking=False)).run("Hi!")
    assert (await server.rendered(engine.requests[0]))[1].endswith("<think>\n\n</think>\n\n")


async def test_calls_that_the_servers_parser_does_not_find_are_found(server: Server) -> None:
    engine = server.engine()
    fenced = '```json\n{"name": "look", "arguments": {"n": 3}}\n```'
    planner = forced(fenced, "It is far away.")
    result = await Agent(engine, tools=[look], planner=planner, settings=ModelSettings(thinking=False)).run(
        "?"
    )
    assert [r.name for m in result.messages for r in m.results] == ["look"]


async def test_a_megabyte_of_tool_result_does_not_end_the_run(server: Server) -> None:
    @tool
    def dump() -> str:
        """Dump the log."""
        return "".join(f"{n} nothing happened here\n" for n in range(40_000))

    agent = Agent(
        server.engine(),
        tools=[dump],
        planner=forced(call("dump"), "Nothing happened."),
        limits=Limits(result_chars=10_000_000),
        settings=ModelSettings(thinking=False, max_tokens=64),
    )
    result = await agent.run("What happened?")
    assert result.output == "Nothing happened." and result.cuts
    assert len(result.messages[3].results[0].content) > 1_000_000


QUESTIONS = [
    "What is behind door 7?",
    "Look behind the doors 2 and 3.",
    "What is the capital of France?",
    "Say hi.",
    "Is there a note behind door 12? Also look behind door 13.",
    "door?",
]


async def test_guided_always_every_call_is_valid(server: Server) -> None:
    async def one(question: str) -> None:
        limits, settings = Limits(max_turns=1), ModelSettings(max_tokens=120, temperature=0)
        agent = Agent(
            server.engine(), tools=[look], planner=React(guided="always"), limits=limits, settings=settings
        )
        result = await agent.run(question)
        reply = next(m for m in result.messages if m.role == "assistant")
        assert reply.calls or reply.text
        for made in reply.calls:
            jsonschema.validate(made.arguments, dict(look.parameters))  # type: ignore[union-attr]
            assert made.name == "look"  # type: ignore[union-attr]

    async with anyio.create_task_group() as group:
        for question in QUESTIONS:
            group.start_soon(one, question)


async def test_an_unreadable_call_is_followed_by_a_guided_turn(server: Server) -> None:
    planner = forced('<tool_call>\n{"name": "look", "arguments": {"n": \n</tool_call>')
    engine = server.engine()
    settings = ModelSettings(thinking=False, temperature=0, max_tokens=100)
    agent = Agent(engine, tools=[look], planner=planner, settings=settings, limits=Limits(max_turns=2))
    result = await agent.run("Look behind door 3.")
    assert engine.requests[1].schema
    assert result.messages[4].calls or result.messages[4].text


async def test_leaving_a_stream_frees_its_place_on_the_server(server: Server) -> None:
    settings = ModelSettings(thinking=False, max_tokens=4_000, extra={"min_tokens": 4_000})
    async with Agent(server.engine(), settings=settings).stream("Tell a long story.") as run:
        async for event in run:
            if isinstance(event, TextDelta):
                break
        assert await server.metric("vllm:num_requests_running") >= 1
    with anyio.fail_after(60):
        while await server.metric("vllm:num_requests_running"):
            await anyio.sleep(0.1)


async def test_twenty_agents_share_a_server_of_eight_places(server: Server) -> None:
    outputs: list[str] = []

    async def one(n: int) -> None:
        planner = forced(call("look", n=n), f"Agent {n} is done.")
        settings = ModelSettings(thinking=False, max_tokens=64)
        result = await Agent(server.engine(), tools=[look], planner=planner, settings=settings).run(
            f"Go, {n}!"
        )
        assert f"door {n}" in result.messages[3].results[0].content
        outputs.append(result.output)

    async with anyio.create_task_group() as group:
        for n in range(20):
            group.start_soon(one, n)
    assert sorted(outputs) == sorted(f"Agent {n} is done." for n in range(20))


def test_the_command_line_runs_an_agent_on_it(server: Server) -> None:
    asked = subprocess.run(
        [Path(sys.executable).with_name("agentkit"), "run", "-m", f"{NAME}@{server.url}", "--no-think", "--json",
         "-t", "calculator", "--guided", "always", "--max-turns", "4", "Say hi."],
        env={**os.environ, "AGENTKIT_API_KEY": server.key}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    said = json.loads(asked.stdout)
    assert said["output"] and said["usage"]["input_tokens"] > 100


async def test_nothing_is_left_when_its_holder_is_killed(server: Server) -> None:
    tree = [server.pid, *children(server.pid)]
    assert len(tree) > 1, "vLLM runs its engine in a process of its own"
    server.holder.kill()
    with anyio.fail_after(60):
        while any(Path(f"/proc/{pid}").exists() for pid in tree):
            await anyio.sleep(0.1)


def children(pid: int) -> list[int]:
    """All that a process has started, and what those have."""
    own = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return [*own, *(below for child in own for below in children(child))]
