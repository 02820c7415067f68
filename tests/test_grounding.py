"""Values that nobody has said: a first call with nothing else is put back, once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit import Agent, Aids, React, Tool, ToolOutput
from agentkit.grounding import made_up
from agentkit.testing import ScriptedEngine

pytestmark = pytest.mark.anyio


def schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties]}


GROUNDED = React(aids=Aids(grounding=True))
NUMBER, TEXT = {"type": "number"}, {"type": "string"}
FIELD = schema(current=NUMBER, distance=NUMBER)


def field(made: list[dict[str, Any]]) -> Tool:
    async def handler(arguments: Any) -> ToolOutput:
        made.append(dict(arguments))
        return ToolOutput("3 tesla")

    return Tool("field_strength", "The field around a wire.", FIELD, handler)


def call(**arguments: Any) -> str:
    made = json.dumps({"name": "field_strength", "arguments": arguments})
    return f"<tool_call>\n{made}\n</tool_call>"


async def test_a_model_that_makes_values_up_is_told_so_before_anything_runs() -> None:
    made: list[dict[str, Any]] = []
    engine = ScriptedEngine([call(current=1.5, distance=2), "How strong is the current, and how far away?"])
    result = await Agent(engine, tools=[field(made)], planner=GROUNDED).run(
        "How strong is the field around my wire?"
    )
    assert result.output.startswith("How strong") and made == []
    (told,) = result.messages[-2].results
    assert told.is_error and "has not said current: 1.5, distance: 2" in told.content


async def test_a_model_that_stands_by_its_call_is_believed() -> None:
    made: list[dict[str, Any]] = []
    engine = ScriptedEngine([call(current=1.5, distance=2)] * 2 + ["3 tesla"])
    await Agent(engine, tools=[field(made)], planner=GROUNDED).run("How strong is the field around my wire?")
    assert made == [{"current": 1.5, "distance": 2}]


async def test_only_the_first_calls_are_looked_at_and_only_if_all_of_them_are_made_up() -> None:
    made: list[dict[str, Any]] = []
    turns = [call(current=4, distance=7) + call(current=9, distance=9), call(current=55, distance=66), "done"]
    await Agent(ScriptedEngine(turns), tools=[field(made)], planner=GROUNDED).run(
        "What about four ampere in 7 metres?"
    )
    assert len(made) == 3


async def test_what_stands_in_the_instructions_has_been_said() -> None:
    made: list[dict[str, Any]] = []
    agent = Agent(
        ScriptedEngine([call(current=1.5, distance=2), "done"]),
        tools=[field(made)],
        planner=GROUNDED,
        instructions="The wire carries 1.5 A; measure at 2 m.",
    )
    await agent.run("How strong is the field around my wire?")
    assert len(made) == 1


async def test_it_has_to_be_asked_for() -> None:
    made: list[dict[str, Any]] = []
    engine = ScriptedEngine([call(current=1.5, distance=2), "done"])
    await Agent(engine, tools=[field(made)]).run("How strong is the field around my wire?")
    assert len(made) == 1


@pytest.mark.parametrize(
    ("said", "property", "value"),
    [
        ("what is 1,500 times three", NUMBER, 1500),
        ("what is 1,500 times three", NUMBER, 3),
        ("a rate of 5% on my loan", NUMBER, 0.05),
        ("remind me in 2 hours please", NUMBER, 120),
        ("the mean of 3,4,5 and 2", {"type": "array"}, [3, 4, 5, 2]),
        ("is it cold in Rom now", TEXT, "Rome"),
        ("prices of Italian wine", TEXT, "Italy"),
        ("how many dollars is that", TEXT, "USD"),
        ("sort my files by their names", TEXT, "sorted(os.listdir('.'))"),
        ("sort my files by their names", TEXT, "."),
        ("tell me something about yourself", TEXT, "a friendly hello to all"),
        ("how many are there", {"type": "integer", "default": 7}, 7),
        ("how many are there", {"enum": ["A4", "A5"]}, "A5"),
        ("罗马今天的天气怎么样 现在 呢", TEXT, "Rome"),
        ("?", NUMBER, 17),
    ],
)
def test_what_may_well_have_been_meant_is_not_made_up(said: str, property: Any, value: Any) -> None:
    assert made_up({"x": value}, schema(x=property), said) == {}


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("how strong is my magnet", 1.5),
        ("who won the last election", 2023),
        ("log me in to the shop", "your_username"),
        ("find me a train to the sea", "Los Angeles, CA"),
        ("rate my character please now", [5, 4, 3, 2, 1]),
        ("rate my character please now", "[5, 4, 3]"),
        ("book me a table for tonight", "2023-04-15"),
    ],
)
def test_what_nobody_said_is_made_up(said: str, value: Any) -> None:
    assert made_up({"x": value}, schema(x={}), said) == {"x": value}


def test_optional_arguments_are_the_models_to_fill() -> None:
    parameters = {"type": "object", "properties": {"days": NUMBER}, "required": []}
    assert made_up({"days": 17}, parameters, "how is the weather there") == {}


@given(
    st.one_of(st.integers(), st.floats(0, 1e6).map(lambda n: round(n, 2)), st.text("abcXYZ _12", min_size=1))
)
def test_a_value_that_was_said_is_never_made_up(value: Any) -> None:
    assert made_up({"x": value}, schema(x={}), f"please do it with {value} now") == {}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from("ab"), _JSON), st.text())
def test_no_call_makes_it_raise(arguments: dict[str, Any], said: str) -> None:
    made_up(arguments, schema(a={}, b={}), said)
