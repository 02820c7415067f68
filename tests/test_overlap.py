"""Calls that begin while the model still writes, and those that wait."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import anyio
import pytest

from agentkit import Agent, Limits, ModelSettings, Permissions, React, tool
from agentkit.agent import Run
from agentkit.events import CallFragment, TextWasThinking, ToolStarted
from agentkit.messages import ToolCall
from agentkit.runtime.engine import Chunk, Request

pytestmark = pytest.mark.anyio


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def server_call(index: int, name: str, **arguments: Any) -> Chunk:
    return Chunk(calls=(CallFragment(index, f"s{index}", name, json.dumps(arguments)),))


class Slow:
    """A model that has written *first*, and writes *then* once *go* says so; after the results it says "done"."""

    def __init__(self, first: Sequence[str | Chunk], then: str | Chunk, model: str = "some-model") -> None:
        self.first, self.then, self.model = first, then, model
        self.go, self.paused = anyio.Event(), anyio.Event()
        self.requests: list[Request] = []

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.requests.append(request)
        if len(self.requests) > 1:
            yield Chunk("done")
            return
        for piece in self.first:
            yield Chunk(piece) if isinstance(piece, str) else piece
        self.paused.set()
        await self.go.wait()
        yield Chunk(self.then) if isinstance(self.then, str) else self.then


def looking(engine: Slow, begun: list[str]) -> Callable[..., Any]:
    @tool(effects=["reads"])
    async def look(at: str) -> str:
        """Look at something."""
        begun.append(at)
        engine.go.set()
        return f"{at} is there"

    return look


async def test_a_call_begins_while_the_model_writes_the_next_one() -> None:
    begun: list[str] = []
    engine = Slow([call("look", at="a")], call("look", at="b"))
    with anyio.fail_after(5):  # the model only goes on once the first call runs
        result = await Agent(engine, tools=[looking(engine, begun)]).run("?")
    assert result.output == "done" and begun == ["a", "b"]
    assert [r.content for r in result.messages[-2].results] == ["a is there", "b is there"]


@pytest.mark.parametrize(
    "first",
    [
        [server_call(0, "look", at="a")],
        [
            Chunk(calls=(CallFragment(0, "s0" * (not n), "look" * (not n), piece),))
            for n, piece in enumerate(('{"at"', ': "a', '"', "}"))
        ],
    ],
)
async def test_a_call_of_the_server_begins_as_its_arguments_are_whole(first: list[Chunk]) -> None:
    begun: list[str] = []
    engine = Slow(first, server_call(1, "look", at="b"))
    with anyio.fail_after(5):
        result = await Agent(engine, tools=[looking(engine, begun)]).run("?")
    assert result.output == "done" and begun == ["a", "b"]
    made = [c for c in result.messages[-3].calls if isinstance(c, ToolCall)]
    assert [(c.id, dict(c.arguments)) for c in made] == [("s0", {"at": "a"}), ("s1", {"at": "b"})]


async def waits(engine: Slow, agent: Agent[str]) -> list[str]:
    """The tools that have begun by the time the model has written its first call and the loop has had every chance."""
    begun: list[str] = []

    async def watch(run: Run[str]) -> None:
        async for event in run:
            if isinstance(event, ToolStarted):
                begun.append(event.call.name)

    early: list[str] = []
    with anyio.fail_after(5):
        async with agent.stream("?") as run, anyio.create_task_group() as tasks:
            tasks.start_soon(watch, run)
            await engine.paused.wait()
            await anyio.wait_all_tasks_blocked()
            early = list(begun)
            engine.go.set()
    assert run.result.output == "done" and begun
    return early


@pytest.mark.parametrize(
    ("more", "early"),
    [
        ({}, ["look"]),
        ({"planner": React(overlap=False)}, []),
        ({"limits": Limits(max_tool_calls=5)}, []),
        ({"permissions": Permissions()}, ["look"]),
    ],
)
async def test_what_makes_a_call_wait_for_the_end_of_the_turn(more: dict[str, Any], early: list[str]) -> None:
    engine = Slow([call("look", at="a")], "")
    assert await waits(engine, Agent(engine, tools=[looking(engine, [])], **more)) == early


async def test_nobody_is_asked_for_leave_in_the_middle_of_an_answer() -> None:
    @tool(effects=["destroys"])
    def delete(path: str) -> str:
        """Delete a file."""
        return "gone"

    for permissions, early in (
        (Permissions(ask=["#destroys"], approve=lambda _: "once"), []),
        (None, ["delete"]),
    ):
        engine = Slow([call("delete", path="a")], "")
        assert await waits(engine, Agent(engine, tools=[delete], permissions=permissions)) == early


@pytest.mark.parametrize(
    ("model", "first", "early"),
    [
        (
            "some-model",
            ["I look. ", call("look", at="a")],
            [],
        ),  # may be thoughts, whose opening tag is in the prompt
        ("some-model", ["<think>\nI look.\n</think>\n\n", "So. ", call("look", at="a")], ["look"]),
        ("some-model", [Chunk(reasoning="I look."), "So. ", call("look", at="a")], ["look"]),
        ("Qwen3-4B", ["I look. ", call("look", at="a")], ["look"]),  # thinking is switched off
    ],
)
async def test_what_may_turn_out_to_be_thoughts_waits(
    model: str, first: list[str | Chunk], early: list[str]
) -> None:
    engine = Slow(first, "", model)
    agent = Agent(engine, tools=[looking(engine, [])], settings=ModelSettings(thinking=False))
    assert await waits(engine, agent) == early


async def test_a_call_in_thoughts_that_only_turn_out_to_be_some_is_never_made() -> None:
    begun: list[str] = []
    engine = Slow(["I could do ", call("look", at="a")], " but need not.\n</think>\n\ndone")
    engine.go.set()
    async with Agent(engine, tools=[looking(engine, begun)]).stream("?") as run:
        events = [event async for event in run]
    assert run.result.output == "done" and not begun
    assert any(isinstance(event, TextWasThinking) for event in events)


async def test_a_call_that_is_repeated_without_end_is_made_once() -> None:
    begun: list[str] = []
    engine = Slow([*[call("look", at="a")] * 40, Chunk(finish_reason="length")], "")
    engine.go.set()
    await Agent(engine, tools=[looking(engine, begun)]).run("?")
    assert begun == ["a"]


async def test_a_tool_that_began_early_is_stopped_with_the_run() -> None:
    stopped = anyio.Event()
    engine = Slow([call("hang")], "")

    @tool
    async def hang() -> None:
        """Hang."""
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()

    with anyio.fail_after(5):
        async with Agent(engine, tools=[hang]).stream("?") as run:
            async for event in run:
                if isinstance(event, ToolStarted):
                    break
    assert stopped.is_set()
