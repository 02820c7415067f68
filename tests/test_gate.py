"""A request that has no word in common with any tool: `Aids(gate=True)`."""

from __future__ import annotations

import json

import pytest

from agentkit import Agent, React, tool
from agentkit.planner import Aids
from agentkit.testing import ScriptedEngine

pytestmark = pytest.mark.anyio


@tool
def body_mass_index(weight: float, height: float) -> float:
    """The body mass index of a person."""
    return round(weight / height**2, 1)


CALL = json.dumps({"name": "body_mass_index", "arguments": {"weight": 80, "height": 2}})
CALLED = f"<tool_call>{CALL}</tool_call>"


async def offered(task: str, turns: list[str], *, gate: bool = True) -> tuple[str, list[bool]]:
    """The answer, and for each request whether it offered the tool."""
    engine = ScriptedEngine(turns)
    agent = Agent(engine, tools=[body_mass_index], planner=React(aids=Aids(gate=gate)))
    return (await agent.run(task)).output, [bool(request.tools) for request in engine.requests]


async def test_the_model_answers_by_itself_where_no_tool_has_to_do_with_the_request() -> None:
    assert await offered("Who wrote Hamlet?", ["Shakespeare."]) == ("Shakespeare.", [False])


async def test_it_gets_the_tools_once_it_says_that_it_cannot_answer() -> None:
    turns = ["I'm sorry, I don't have that.", CALLED, "20.0"]
    assert await offered("Am I too heavy with 80 kg?", turns) == ("20.0", [False, True, True])


@pytest.mark.parametrize("task", ["What is my mass index?", "Weights of 80 at a height of 2?"])
async def test_a_word_in_common_is_enough(task: str) -> None:
    assert await offered(task, [CALLED, "20.0"]) == ("20.0", [True, True])


async def test_by_default_tools_are_always_offered() -> None:
    assert await offered("Who wrote Hamlet?", ["Shakespeare."], gate=False) == ("Shakespeare.", [True])
