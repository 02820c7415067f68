"""What the model is told of calls that failed, once it knows more."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentkit import Agent, React, ToolError, tool
from agentkit.messages import ToolCall, ToolResult
from agentkit.planner import Aids
from agentkit.testing import ScriptedEngine
from agentkit.undone import Undone

pytestmark = pytest.mark.anyio


@tool
def table_names() -> str:
    """The tables."""
    return "purchase, customer_note"


@tool
def count(table: str) -> int:
    """How many rows a table has."""
    if table != "purchase":
        raise ToolError(f"no such table: {table}")
    return 16


@tool
def read_folder(path: str) -> str:
    """What is in a folder."""
    raise ToolError(f"{path} is a file, table_names is for those")


def called(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


async def told(turns: list[str], **aids: Any) -> list[str]:
    """What the last message of each request was."""
    engine = ScriptedEngine(turns)
    tools = [table_names, count, read_folder]
    await Agent(engine, tools=tools, planner=React(aids=Aids(**aids))).run("How many purchases?")
    return [
        request.messages[-1].text
        + "".join(p.content for p in request.messages[-1].parts if isinstance(p, ToolResult))
        for request in engine.requests
    ]


async def test_a_call_that_failed_is_asked_for_again_once_another_tool_has_told_what_was_wrong() -> None:
    turns = [
        called("count", table="purchases"),
        called("table_names"),
        called("count", table="purchase"),
        "16",
    ]
    _, failed, listed, done = await told(turns)
    assert "in place of" not in failed
    assert "Your call of count failed before. Write 'purchase' in place of 'purchases'." in listed
    assert "failed before" not in done


async def test_an_error_says_what_stood_in_an_earlier_result() -> None:
    turns = [called("table_names"), called("count", table="customers_note"), "?"]
    assert "Write 'customer_note' in place of 'customers_note'." in (await told(turns))[-1]


@pytest.mark.parametrize(
    ("turns", "aids"),
    [
        (
            [called("read_folder", path="a.txt"), called("table_names"), "Two."],
            {},
        ),  # its error named that tool
        ([called("count", table="purchases"), called("table_names"), "Two."], {"redo": False}),
        ([called("table_names"), called("count", table="purchase"), "16"], {}),
    ],
)
async def test_else_the_model_is_asked_for_its_answer(turns: list[str], aids: dict[str, Any]) -> None:
    assert "failed before" not in (await told(turns, **aids))[-1]


async def test_without_hints_no_word_is_suggested() -> None:
    turns = [called("count", table="purchases"), called("table_names"), "?"]
    listed = (await told(turns, hints=False))[-1]
    assert "Your call of count failed before." in listed and "in place of" not in listed


def test_a_word_that_may_be_two_others_is_not_replaced() -> None:
    undone = Undone()
    undone.turn([ToolCall("1", "a", {})], [ToolResult("1", "order1 order2", name="a")])
    undone.turn(
        [ToolCall("2", "b", {"t": ["order3"]})], [ToolResult("2", "no order3", is_error=True, name="b")]
    )
    assert undone.tools == ("b",) and not undone.instead


def test_a_call_that_was_denied_is_not_undone() -> None:
    undone = Undone()
    undone.turn([ToolCall("1", "a", {})], [ToolResult("1", "denied", is_error=True, name="a")], {"1"})
    assert not undone.tools
