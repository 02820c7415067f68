"""From a Python function to what the model sees, and back."""

from __future__ import annotations

import enum
import json
import pkgutil
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from agentkit import ConfigError, Tool, ToolError, ToolRegistry, Toolset, UnknownTool, tool
from agentkit.repair import fit
from agentkit.schema import signature, simplify, to_text
from agentkit_tools import TOOLS

pytestmark = pytest.mark.anyio


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: int
    y: int = 0


class Node(BaseModel):
    value: int
    children: list[Node] = []


def google(city: str, days: int = 1) -> str:
    """Forecast for a city.

    Args:
        city: Its name.
        days: How many days.
    """
    return ""


def numpy(city: str, days: int = 1) -> str:
    """Forecast for a city.

    Parameters
    ----------
    city : str
        Its name.
    days : int
        How many days.
    """
    return ""


def sphinx(city: str, days: int = 1) -> str:
    """Forecast for a city.

    :param city: Its name.
    :param days: How many days.
    """
    return ""


@pytest.mark.parametrize("fn", [google, numpy, sphinx])
def test_a_docstring_of_any_style_describes_the_tool_and_its_arguments(fn: Any) -> None:
    made = tool(fn)
    assert made.description == "Forecast for a city."
    assert made.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Its name."},
            "days": {"type": "integer", "description": "How many days.", "default": 1},
        },
        "required": ["city"],
    }


def test_every_kind_of_annotation_becomes_the_value_it_names() -> None:
    def paint(
        schema: str,
        colour: Colour,
        at: Point,
        tree: Node,
        mode: Literal["fast", "slow"] = "fast",
        *,
        model_id: Annotated[int, "the id"] = 1,
        extra: Optional[list[int]] = None,  # noqa: UP045  the old spelling too
        _weight: Annotated[float, Field(ge=0)] = 1.0,
    ) -> None: ...

    read = signature(paint)
    arguments = {
        "schema": "s",
        "colour": "red",
        "at": {"x": 3},
        "tree": {"value": 1, "children": [{"value": 2}]},
        "model_id": 7,
    }
    assert read.bind(arguments) == (
        (),
        {
            "schema": "s",
            "colour": Colour.RED,
            "at": Point(3, 0),
            "tree": Node(value=1, children=[Node(value=2)]),
            "mode": "fast",
            "model_id": 7,
            "extra": None,
            "_weight": 1.0,
        },
    )
    assert read.parameters["properties"]["model_id"]["description"] == "the id"
    assert read.parameters["properties"]["colour"] == {"enum": ["red", "blue"], "type": "string"}
    json.dumps(read.parameters)


def test_a_class_that_a_function_defined_can_be_an_annotation() -> None:
    class Local(BaseModel):
        n: int

    @tool
    def use(value: Local) -> int:
        return value.n

    assert use.parameters["properties"]["value"]["properties"] == {"n": {"type": "integer"}}


def test_positional_only_arguments_work() -> None:
    def power(base: int, exponent: int, /) -> int:
        return int(base**exponent)

    args, kwargs = signature(power).bind({"base": 2, "exponent": "3"})
    assert power(*args, **kwargs) == 8


def test_a_tool_is_still_the_function_it_was() -> None:
    assert tool(lambda a: a + 1)(41) == 42


def test_what_has_no_schema_is_refused_where_it_is_defined() -> None:
    class Opaque: ...

    with pytest.raises(ConfigError, match="no JSON schema"):

        @tool
        def use(value: Opaque) -> None: ...


async def test_what_the_model_sent_is_validated_and_coerced() -> None:
    made = tool(google)
    assert (await made.handler({"city": "Oslo", "days": "3"})).content == ""
    with pytest.raises(ToolError, match="city is missing"):
        await made.handler({"days": 1})


@pytest.mark.parametrize(
    ("value", "schema", "wanted"),
    [
        ("3", {"type": "integer"}, 3),
        ("3.5", {"type": "number"}, 3.5),
        ("True", {"type": "boolean"}, True),
        ("[1, 2]", {"type": "array", "items": {"type": "integer"}}, [1, 2]),
        ('{"a": "1"}', {"type": "object", "properties": {"a": {"type": "integer"}}}, {"a": 1}),
        (5, {"type": "string"}, "5"),
        ("x", {"type": "array", "items": {"type": "string"}}, ["x"]),
        (3.0, {"type": "integer"}, 3),
        ("null", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, None),
        ("12", {"type": "string"}, "12"),
        ("many", {"type": "integer"}, "many"),
        ("12", {}, "12"),
    ],
)
def test_a_value_is_fitted_to_its_schema_where_that_loses_nothing(
    value: Any, schema: Any, wanted: Any
) -> None:
    assert fit({"v": value}, {"type": "object", "properties": {"v": schema}}) == {"v": wanted}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "type", "items"]), JSON, max_size=3), JSON)
def test_no_argument_and_no_schema_makes_fitting_fail(arguments: dict[str, Any], schema: Any) -> None:
    fit(arguments, {"type": "object", "properties": {"a": schema, "b": {"type": ["integer", "null"]}}})


def test_references_are_replaced_by_what_they_name_and_titles_go() -> None:
    schema = {
        "title": "T",
        "type": "object",
        "properties": {"title": {"$ref": "#/$defs/P"}, "$ref": {"type": "string"}},
        "$defs": {
            "P": {"title": "P", "type": "object", "properties": {"x": {"type": "integer", "title": "X"}}}
        },
    }
    assert simplify(schema) == {
        "type": "object",
        "properties": {
            "title": {"type": "object", "properties": {"x": {"type": "integer"}}},
            "$ref": {"type": "string"},
        },
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        (None, "done"),
        ({"a": [1, 2]}, '{"a":[1,2]}'),
        (Point(1, 2), '{"x":1,"y":2}'),
        (Node(value=1), '{"value":1,"children":[]}'),
        (True, "true"),
        (1.5, "1.5"),
    ],
)
def test_a_return_value_is_text_for_the_model(value: Any, text: str) -> None:
    assert to_text(value) == text


@pytest.mark.parametrize("name", TOOLS)
def test_every_built_in_loads_by_its_name(name: str) -> None:
    assert isinstance(pkgutil.resolve_name(TOOLS[name]), Tool | Toolset)


def test_an_unknown_name_says_what_was_meant_and_what_there_is() -> None:
    with pytest.raises(UnknownTool, match="did you mean 'calculator'.*clock"):
        ToolRegistry().get("calculater")
