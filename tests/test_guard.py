"""Runs that go round in circles: told so, then without the tools, then ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from agentkit import Agent, React, ToolError, tool
from agentkit.messages import ToolCall, to_chat
from agentkit.planner import Aids
from agentkit.testing import ScriptedEngine
from agentkit.tools import Tool

pytestmark = pytest.mark.anyio


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def tools(say: Callable[[], object]) -> list[Tool]:
    @tool
    def ping() -> str:
        """Ping."""
        return f"pong {say()}"

    @tool
    def look(where: str) -> str:
        """Look somewhere."""
        return f"nothing in {where}"

    return [ping, look]


async def test_a_model_that_goes_round_in_circles_is_held_to_what_it_can_still_do() -> None:
    engine = ScriptedEngine([call("ping"), call("ping"), '{"answer": "It answers."}'])
    result = await Agent(engine, tools=tools(lambda: "!")).run("?")
    assert result.output == "It answers."
    assert [bool(request.schema) for request in engine.requests] == [False, False, True]
    assert '"ping"' not in json.dumps(engine.requests[2].schema)
    assert engine.requests[2].tools == engine.requests[0].tools  # so the prompt begins as before


def offered(engine: ScriptedEngine) -> list[set[str]]:
    """What can be called, turn by turn; a guided turn names tools that it rules out, so that its prompt begins as before."""
    named = [{t["function"]["name"] for t in request.tools} for request in engine.requests]
    ruled = [json.dumps(request.schema) for request in engine.requests]
    return [{n for n in ns if r == "null" or f'"{n}"' in r} for ns, r in zip(named, ruled, strict=True)]


async def test_two_calls_in_turn_are_a_circle_too() -> None:
    engine = ScriptedEngine([call("ping"), call("look", where="a")] * 8)
    result = await Agent(engine, tools=tools(lambda: "!")).run("?")
    assert (result.stopped, result.turns) == ("loop", 6)
    assert offered(engine)[:4] == [{"ping", "look"}] * 4 and offered(engine)[4] == set()


async def test_the_same_call_with_another_result_is_progress() -> None:
    page = iter(["one", "two", "three", "four", "five"])
    engine = ScriptedEngine([call("ping")] * 5 + ["Five pages."])
    result = await Agent(engine, tools=tools(lambda: next(page))).run("?")
    assert (result.stopped, result.output) == ("answer", "Five pages.")


async def test_a_clock_that_goes_on_is_not_progress() -> None:
    clock = count(1)
    engine = ScriptedEngine([call("ping")] * 9)
    result = await Agent(engine, tools=tools(lambda: next(clock))).run("?")
    assert (result.stopped, result.turns) == ("loop", 4)
    assert next(clock) == 3  # it was hidden when it was called the third time


async def test_a_tool_comes_back_once_something_else_was_done() -> None:
    engine = ScriptedEngine([call("ping"), call("ping"), call("look", where="a"), "done"])
    await Agent(engine, tools=tools(lambda: "!")).run("?")
    assert offered(engine) == [{"ping", "look"}, {"ping", "look"}, {"look"}, {"ping", "look"}]


async def test_a_long_result_stands_in_the_conversation_once() -> None:
    @tool
    def read(path: str) -> str:
        """Read a file."""
        return f"{path}: " + "all of it " * 500

    turns = [call("read", path="a"), call("read", path="b"), call("read", path="a"), "done"]
    engine = ScriptedEngine(turns)
    result = await Agent(engine, tools=[read]).run("?")
    first, other, again = [m.results[0].content for m in result.messages if m.role == "tool"]
    assert len(first) == len(other) > 5_000
    assert len(again) < 800 and again.startswith("a: all of it") and "stands above" in again
    engine = ScriptedEngine(turns)
    result = await Agent(engine, tools=[read], planner=React(aids=Aids(guard=False))).run("?")
    assert [len(m.results[0].content) > 5_000 for m in result.messages if m.role == "tool"] == [True] * 3


@pytest.mark.parametrize("forget", [True, False])
async def test_calls_that_guess_what_the_first_would_say_are_forgotten_when_they_fail(forget: bool) -> None:
    @tool
    def read(path: str) -> str:
        """Read a file."""
        return "5, 7"

    @tool
    def add(numbers: list[float]) -> float:
        """Add numbers."""
        return sum(numbers)

    plan = f"I read it. {call('read', path='a')} Once I have the numbers: {call('add', numbers='numbers')}"
    engine = ScriptedEngine([plan, call("add", numbers=[5, 7]), "12"])
    result = await Agent(engine, tools=[read, add], planner=React(aids=Aids(forget=forget))).run("?")
    shown = engine.requests[1].messages
    made = [c.name for m in shown for c in m.calls if isinstance(c, ToolCall)]
    assert made == (["read"] if forget else ["read", "add"])
    assert [r.name for m in shown for r in m.results] == (["read"] if forget else ["read", "add"])
    assert ("Once I have" in to_chat(shown[2])[0]["content"]) is not forget
    assert [r.is_error for m in result.messages for r in m.results] == [False, True, False]  # nothing is lost


async def test_of_two_calls_of_one_tool_the_one_that_failed_is_told() -> None:
    @tool
    def weather(city: str) -> str:
        """The weather in a city."""
        if city == "Atlantis":
            raise ToolError("There is no such city.")
        return "sunny"

    engine = ScriptedEngine(
        [call("weather", city="Paris") + call("weather", city="Atlantis"), "Sunny in Paris."]
    )
    await Agent(engine, tools=[weather]).run("?")
    assert [r.is_error for m in engine.requests[1].messages for r in m.results] == [False, True]


async def test_the_guard_can_be_switched_off() -> None:
    engine = ScriptedEngine([call("ping")] * 9 + ["done"])
    result = await Agent(engine, tools=tools(lambda: "!"), planner=React(aids=Aids(guard=False))).run("?")
    assert result.stopped == "answer" and all(names == {"ping", "look"} for names in offered(engine))
