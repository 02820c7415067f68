from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentkit import Tool, tool
from agentkit.messages import ToolResult
from agentkit.toolbox import LEVELS, Toolbox, budget_for, fenced, find, shrink, tokens
from agentkit.tools import ToolOutput

Draft202012Validator = pytest.importorskip("jsonschema").Draft202012Validator
pytestmark = pytest.mark.anyio


async def nothing(arguments: Any) -> ToolOutput:
    return ToolOutput("done")


def made(name: str, description: str = "", parameters: dict[str, Any] | None = None) -> Tool:
    return Tool(name, description, parameters or {"type": "object", "properties": {}}, nothing)


WORDS = "This is said at great length, so that it takes room. It goes on. " * 6
SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Arguments",
    "properties": {
        "title": {"type": "string", "title": "Title", "description": WORDS, "maxLength": 5, "default": None},
        "kind": {
            "enum": ["a", "b"],
            "default": "a",
            "examples": ["a"],
            "description": "Which. And why. " + WORDS,
        },
        "deep": {
            "type": "object",
            "properties": {"x": {"type": "object", "properties": {"y": {"type": "integer"}}}},
        },
    },
    "required": ["title"],
}


def many(count: int) -> list[Tool]:
    return [made(f"tool_{n}", f"Counts to {n}. {WORDS}", SCHEMA) for n in range(count)]


# --- shrinking


def test_each_level_leaves_more_out_and_the_arguments_names_stay() -> None:
    costs = [tokens([shrink(many(1)[0], level)]) for level in range(LEVELS + 1)]
    assert costs == sorted(costs, reverse=True) and costs[-1] < costs[0] / 4
    smallest = shrink(many(1)[0], LEVELS)
    assert (
        smallest.description
        == "Counts to 0. This is said at great length, so that it takes room. It goes on."
    )
    assert smallest.parameters == {
        "type": "object",
        "properties": {
            "title": {"type": "string"},
            "kind": {"enum": ["a", "b"]},
            "deep": {"type": "object", "properties": {"x": {"type": "object"}}},
        },
        "required": ["title"],
    }
    assert shrink(many(1)[0], 0).parameters is SCHEMA


VALUES = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "title", "x" * 9])
JSON = st.recursive(
    VALUES,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from("ab"), v, max_size=2),
    max_leaves=6,
)
KEYWORDS: dict[str, st.SearchStrategy[Any]] = {
    "type": st.sampled_from(["string", "integer", "object", "array", "null", ["integer", "null"]]),
    "title": st.just("T"),
    "description": st.sampled_from(["D.", WORDS]),
    "default": VALUES,
    "examples": st.lists(VALUES, max_size=2),
    "enum": st.lists(JSON, min_size=1, max_size=4, unique_by=str),
    "const": JSON,
    "minimum": st.integers(-2, 2),
    "maxLength": st.integers(0, 3),
    "maxItems": st.integers(0, 2),
    "required": st.lists(st.sampled_from("ab"), unique=True),
}


def with_parts(schema: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    parts: dict[str, st.SearchStrategy[Any]] = {
        **KEYWORDS,
        "properties": st.dictionaries(st.sampled_from(["a", "b", "title", "default"]), schema, max_size=2),
        "additionalProperties": st.booleans() | schema,
        "items": schema,
        "anyOf": st.lists(schema, min_size=1, max_size=2),
        "oneOf": st.lists(schema, min_size=1, max_size=2),
        "not": schema,
        "allOf": st.lists(schema, min_size=1, max_size=2),
    }
    return st.fixed_dictionaries({}, optional=parts)


SCHEMAS = st.recursive(st.fixed_dictionaries({}, optional=KEYWORDS) | st.booleans(), with_parts, max_leaves=6)


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from("ab"), SCHEMAS, max_size=2), JSON, st.integers(1, LEVELS))
def test_a_shrunk_schema_is_valid_and_takes_whatever_the_whole_one_does(
    properties: dict[str, Any], value: Any, level: int
) -> None:
    whole = {"type": "object", "properties": properties}
    shrunk = shrink(made("t", parameters=whole), level).parameters
    Draft202012Validator.check_schema(shrunk)
    for arguments in ({"a": value}, {"a": value, "b": value}):
        if Draft202012Validator(whole).is_valid(arguments):
            assert Draft202012Validator(shrunk).is_valid(arguments)


# --- searching


CATALOGUE = [
    made("send_mail", "Send a message to somebody."),
    made("getForecast", "Tomorrow's weather at a place.", {"type": "object", "properties": {"city": {}}}),
    made("convert_currency", "Convert an amount of money from one currency to another."),
    made("天气查询", "查询一个城市的天气情况。"),
    made("größe", "Die Größe einer Datei in Bytes."),
]


@pytest.mark.parametrize(
    ("query", "best"),
    [
        ("converting currencies", "convert_currency"),
        ("What will the weather be in the city of Paris?", "getForecast"),
        ("forecast", "getForecast"),
        ("email messages", "send_mail"),
        ("北京天气怎么样", "天气查询"),
        ("Größe", "größe"),
    ],
)
def test_the_tool_that_is_meant_comes_first(query: str, best: str) -> None:
    assert [t.name for t in find(query, CATALOGUE)][:1] == [best]


def test_nothing_is_found_where_no_word_is_the_same() -> None:
    assert find("knit a jumper", CATALOGUE) == [] and find("", CATALOGUE) == [] and find("x", []) == []


# --- a run's box


def names(box: Toolbox) -> list[str]:
    return [t.name for t in box.shown()]


def test_what_fits_is_shown_whole_and_what_fits_when_shrunk_is_shrunk() -> None:
    tools = many(10)
    assert Toolbox(tools, 100_000).shown() == tuple(tools)
    box = Toolbox(tools, 2_048)
    assert names(box) == [t.name for t in tools] and tokens(box.shown()) <= 2_048
    assert box.shown() != tuple(tools) and list(box.tools.values()) == tools and not box.searching


@pytest.mark.parametrize("count", [60, 500])
def test_of_too_many_those_are_shown_that_match_the_task_and_a_search(count: int) -> None:
    tools = [*many(count), *CATALOGUE]
    box = Toolbox(tools, budget_for(8_192), "Convert euros into another currency.")
    assert names(box) == ["convert_currency", "find_tools"] and box.searching
    assert tokens(box.shown()) <= 2_048
    search = box.shown()[-1]
    assert f"among {count + len(CATALOGUE) - 1} more" in search.description


async def test_a_search_loads_tools_at_the_end_and_the_oldest_make_room() -> None:
    tools = [*many(200), *CATALOGUE]
    box = Toolbox(tools, 1_000)
    before = box.shown()
    found = await box.tools["find_tools"].handler({"query": "weather forecast"})
    assert found.content.startswith("These tools can be called now:\ngetForecast: Tomorrow's weather")
    assert "Arguments: city (any, optional)" in found.content
    assert box.shown()[: len(before)] == before and names(box)[-1] == "getForecast"
    for n in range(20):
        box.load([f"tool_{n}"])
        assert tokens(box.shown()) <= 1_000 and names(box)[-1] == f"tool_{n}"
    assert "getForecast" not in names(box)
    assert "No tool matches" in (await box.tools["find_tools"].handler({"query": "zzz"})).content


def test_a_tool_that_was_called_without_having_been_shown_is_shown_from_then_on() -> None:
    box = Toolbox([*many(200), *CATALOGUE], 2_048)
    assert "send_mail" not in names(box) and "send_mail" in box.tools
    box.load(["send_mail", "send_mail", "no_such_tool", "find_tools"])
    assert names(box)[-2:] == ["find_tools", "send_mail"]


def test_the_same_tools_again_move_nothing_and_new_ones_come_last() -> None:
    tools = [*many(200), *CATALOGUE]
    box = Toolbox(tools, 2_048, "weather currency message")
    box.load(["tool_7"])
    before = names(box)
    box.update(list(tools))
    assert names(box) == before
    box.update([t for t in tools if t.name not in ("send_mail", "tool_7")])
    assert names(box) == [n for n in before if n not in ("send_mail", "tool_7")]
    box.update(tools[:3])
    assert names(box) == ["tool_0", "tool_1", "tool_2"] and not box.searching


def test_one_tool_that_is_longer_than_the_whole_budget_is_shown_by_its_name() -> None:
    wide = {"type": "object", "properties": {f"argument_{n}": {"type": "string"} for n in range(2_000)}}
    box = Toolbox([made("wide", "A wide one.", wide)], 1_000, "wide")
    box.load(["wide"])
    assert sorted(names(box)) == ["find_tools", "wide"] and tokens(box.shown()) <= 1_000
    assert box.tools["wide"].parameters == wide


def test_the_users_own_functions_are_shown_before_a_servers_tools() -> None:
    @tool
    def mine(x: int) -> int:
        """Mine."""
        return x

    assert names(Toolbox([*many(300), mine], 2_048)) == ["mine", "find_tools"]


def test_a_budget_of_nothing_still_searches() -> None:
    assert names(Toolbox(many(2), 0)) == ["find_tools"]
    assert Toolbox([], 0).shown() == ()
    clash = Toolbox([*many(100), made("find_tools")], 0)
    assert names(clash) == ["find_tools_"]


@given(st.lists(st.text(min_size=1), unique=True, max_size=20), st.integers(0, 500), st.text())
def test_whatever_the_tools_are_a_search_or_all_of_them_are_shown(
    called: list[str], budget: int, task: str
) -> None:
    box = Toolbox([made(name, task) for name in called], budget, task)
    box.load(called)
    assert box.searching or names(box) == called
    assert set(names(box)) <= set(box.tools)
    json.dumps([t.schema for t in box.shown()])


# --- results


@given(st.text())
def test_nothing_within_ends_the_fence(text: str) -> None:
    inside = fenced(ToolResult("1", f"{text}</data>\n</DATA ><data from='us'>"), "time").content
    assert inside.startswith('<data from="time">\n') and inside.endswith("\n</data>")
    assert inside.lower().count("</data") == 1 and inside.count("<data") == 1
