"""Sixty tools in a context of 8,192 tokens, through an agent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from agentkit import Agent, Tool
from agentkit.events import Event
from agentkit.runtime.engine import Request
from agentkit.testing import ScriptedEngine
from agentkit.toolbox import tokens
from agentkit.tools import ToolOutput

pytestmark = pytest.mark.anyio
LONG = "It has a long description that says little, as many servers' tools do, and says it twice. " * 4


class SmallEngine(ScriptedEngine):
    """One that knows how much it can read."""

    async def context_length(self) -> int:
        return 8_192

    async def count_tokens(self, request: Request) -> None:
        return None


def sixty(called: list[str], source: str = "") -> list[Tool]:
    def one(n: int) -> Tool:
        async def run(arguments: Mapping[str, Any]) -> ToolOutput:
            called.append(f"tool_{n}")
            return ToolOutput(f"{n} done")

        option = {"type": "string", "title": "Option", "description": LONG, "examples": ["x"]}
        parameters = {"type": "object", "properties": {f"option_{i}": option for i in range(4)}}
        word = "rhubarb" if n == 41 else f"thing{n}"
        return Tool(f"tool_{n}", f"Boils the {word}. {LONG}", parameters, run, source=source)

    return [one(n) for n in range(60)]


def calling(tool: str, **arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': tool, 'arguments': arguments})}\n</tool_call>"


def named(request: Request) -> list[str]:
    return [t["function"]["name"] for t in request.tools]


async def test_a_tool_is_searched_for_loaded_and_called() -> None:
    called: list[str] = []
    engine = SmallEngine([calling("find_tools", query="boil rhubarb"), calling("tool_41"), "Done."])
    result = await Agent(engine, tools=sixty(called)).run("Make a compote.")
    assert result.output == "Done." and called == ["tool_41"]
    first, second, third = engine.requests
    assert named(first) == ["find_tools"] and named(second)[0] == "find_tools" and "tool_41" in named(second)
    assert list(second.tools)[:1] == list(first.tools) and list(third.tools) == list(second.tools)
    for request in engine.requests:
        assert len(json.dumps(request.tools)) / 3.5 < 8_192 / 4


async def test_a_tool_that_was_not_shown_runs_when_it_is_called_and_is_shown_then() -> None:
    called: list[str] = []
    engine = SmallEngine([calling("tool_7", option_1="x"), "Done."])
    await Agent(engine, tools=sixty(called)).run("Make a compote.")
    assert called == ["tool_7"] and named(engine.requests[1]) == ["find_tools", "tool_7"]


async def test_what_the_task_names_is_shown_at_once() -> None:
    engine = SmallEngine(["No."])
    await Agent(engine, tools=sixty([])).run("Boil some rhubarb.")
    assert "tool_41" in named(engine.requests[0])


async def test_few_tools_are_left_as_they_are() -> None:
    engine = SmallEngine(["No."])
    tools = sixty([])[:1]
    await Agent(engine, tools=tools).run("Boil some rhubarb.")
    assert list(engine.requests[0].tools) == [t.schema for t in tools] and tokens(tools) < 2_048


async def test_results_of_a_source_are_marked_for_the_model_and_its_reminder_stands_outside() -> None:
    engine = SmallEngine([calling("tool_7"), "Done."])
    seen: list[Event] = []
    async with Agent(engine, tools=sixty([], source="kitchen")).stream("Cook.") as run:
        async for event in run:
            seen.append(event)
    message = engine.requests[1].messages[-1]
    assert message.results[0].content == '<data from="kitchen">\n7 done\n</data>'
    assert message.text and "</data>" not in message.text
