"""Arguments as small models write them, and what they are told where those cannot be used."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any, Literal

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from agentkit import Tool, ToolOutput, tool
from agentkit.calling import call_tool
from agentkit.faults import WrongArguments, example, faults
from agentkit.messages import ToolCall, ToolResult
from agentkit.planner import Aids
from agentkit.repair import fit
from agentkit.spelling import meant

pytestmark = pytest.mark.anyio

COLOURS = {"enum": ["red", "dark blue", "green"]}
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "colours": {"items": COLOURS}},
    "required": ["city"],
}


def holding(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties]}


# --- values


@pytest.mark.parametrize(
    ("value", "schema", "wanted"),
    [
        ("1,000", {"type": "integer"}, 1000),
        ("1,234.5", {"type": "number"}, 1234.5),
        ("1_000", {"type": "integer"}, 1000),
        ("yes", {"type": "boolean"}, True),
        ("No", {"type": "boolean"}, False),
        (1, {"type": "boolean"}, True),
        (True, {"type": "string"}, "true"),
        (10**400, {"type": "string"}, str(10**400)),
        ("None", {"type": ["integer", "null"]}, None),
        ("['a', \"b\"]", {"type": "array", "items": {"type": "string"}}, ["a", "b"]),
        ("{'a': True}", {"type": "object"}, {"a": True}),
        ('["1", "2"]', {"type": "array", "items": {"type": "integer"}}, [1, 2]),
        ([3], {"type": "integer"}, 3),
        ("[3]", {"type": "integer"}, 3),
        (["3"], {"type": "integer"}, 3),
        ({"value": "3"}, {"type": "integer"}, 3),
        ({"v": 3}, {"type": "integer"}, 3),
        (3, {"type": "array", "items": {"type": "string"}}, ["3"]),
        ({"n": "1"}, {"type": "array", "items": holding(n={"type": "integer"})}, [{"n": 1}]),
        ("1, 2", {"type": "array", "items": {"type": "integer"}}, [1, 2]),
        ("red, green", {"type": "array", "items": COLOURS}, ["red", "green"]),
        ("Paris, France", {"type": "array", "items": {"type": "string"}}, ["Paris, France"]),
        ("3", {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}]}, 3),
        ("3", {"anyOf": [{"type": "integer"}, {"type": "string"}]}, "3"),
        ("Dark-Blue", COLOURS, "dark blue"),
        (["RED"], {"anyOf": [{"type": "array", "items": COLOURS}, {"type": "null"}]}, ["red"]),
        ("3", {"enum": [1, 2, 3]}, 3),
        (3, {"enum": ["1", "2", "3"]}, "3"),
    ],
)
def test_a_value_becomes_what_its_schema_asks_for(value: Any, schema: Any, wanted: Any) -> None:
    made = fit({"v": value}, {"type": "object", "properties": {"v": schema}, "required": ["v"]})
    assert made == {"v": wanted} and type(made["v"]) is type(wanted)


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        ("5 km", {"type": "number"}),
        ("50%", {"type": "number"}),
        ("$5", {"type": "number"}),
        ("1,00", {"type": "number"}),
        ("007", {"type": "integer"}),
        (3.7, {"type": "integer"}),
        (True, {"type": "integer"}),
        (2, {"type": "boolean"}),
        ("maybe", {"type": "boolean"}),
        ([1, 2], {"type": "integer"}),
        ("NaN", {"type": "number"}),
        ("1e999", {"type": "number"}),
        ("1,200", {"type": "array", "items": {"type": "integer"}}),  # one number, or two
        ({"a": 1}, {"type": "string"}),
        (None, {"type": "integer"}),
        ("tomorrow", {"type": "string", "format": "date"}),
        ("None", {"type": "string"}),
        (float("inf"), {"type": "string"}),
    ],
)
def test_a_value_is_left_where_something_would_be_lost_or_made_up(value: Any, schema: Any) -> None:
    assert fit({"v": value}, holding(v=schema)) == {"v": value}


@pytest.mark.parametrize(
    ("value", "values", "wanted"),
    [
        ("C", ["celsius", "fahrenheit"], "celsius"),
        ("asc", ["ascending", "descending"], "ascending"),
        ("kilometers", ["kilometer", "mile"], "kilometer"),
        ("city", ["cities", "rivers"], "cities"),
        ("celcius", ["celsius", "fahrenheit"], "celsius"),
        ("in_progress", ["In Progress", "Done"], "In Progress"),
        ("'red'", ["red", "blue"], "red"),
        ("a", ["age", "area"], None),  # two begin so
        ("no", ["north", "south"], None),
        ("inactive", ["active", "archived"], None),
        ("maximum", ["minimum"], None),
        ("v1", ["v2", "v3"], None),
        ("c++", ["c#", "c"], None),
        ("1", ["-1", "0"], None),
        ("decrease", ["increase"], None),
        ("usd to eur", ["eur to usd"], None),
    ],
)
def test_of_the_allowed_values_the_one_that_is_meant_is_taken_unless_two_can_be(
    value: str, values: list[str], wanted: str | None
) -> None:
    assert fit({"v": value}, holding(v={"enum": values})) == {"v": value if wanted is None else wanted}


# --- objects and names


@pytest.mark.parametrize(
    "written",
    [
        {"arguments": {"city": "Oslo", "days": "3"}},
        {"parameters": '{"city": "Oslo", "days": 3}'},
        {"kwargs": "{'city': 'Oslo', 'days': 3}"},
        {"input": {"City": "Oslo", "Days": 3}},
        {"forecast": {"city": "Oslo", "days": 3}},
        {"name": "forecast", "arguments": {"city": "Oslo", "days": 3}},
        {"arguments": {"arguments": {"city": "Oslo", "days": 3}}},
        {"city": ["Oslo"], "days": "3"},
        {"city_name": "Oslo", "days": 3},
        {"cities": "Oslo", "DAYS": 3},
        {"town": "Oslo", "days": 3},  # the one that is missing, and the one that is unknown
        {"city": "Oslo", "days": 3, "colours": ""},
        {"city": "Oslo", "days": 3, "colours": None, "zip": None},
    ],
)
def test_arguments_are_found_however_they_are_wrapped_and_named(written: dict[str, Any]) -> None:
    schema = copy.deepcopy(CITY)
    schema["properties"]["colours"]["type"] = "array"
    assert fit(written, schema, tool="forecast") == {"city": "Oslo", "days": 3}


@pytest.mark.parametrize(
    ("arguments", "properties", "required"),
    [
        ({"max_price": 5}, {"price": {"type": "number"}, "item": {}}, []),  # the price can be left out
        ({"start_date": "x"}, {"end_date": {"type": "string"}, "n": {}}, ["end_date"]),
        ({"a": 1, "b": 2}, {"c": {"type": "integer"}}, ["c"]),
        ({"a": 1}, {"b": {"type": "integer"}, "c": {"type": "integer"}}, ["b", "c"]),
        ({"size": "big"}, {"n": {"type": "integer"}}, ["n"]),
        ({"user": "x"}, {"user_id": {"type": "string"}, "user_name": {"type": "string"}}, []),
    ],
)
def test_a_name_that_can_mean_another_argument_or_none_is_left(
    arguments: dict[str, Any], properties: dict[str, Any], required: list[str]
) -> None:
    schema = {"type": "object", "properties": properties, "required": required}
    assert fit(arguments, schema) == arguments


def test_an_argument_that_has_a_wrappers_name_is_no_wrapper() -> None:
    schema = holding(input={"type": "object", "properties": {"city": {"type": "string"}}})
    assert fit({"input": {"city": "Oslo"}}, schema) == {"input": {"city": "Oslo"}}


def test_what_belongs_into_the_only_argument_is_put_there() -> None:
    schema = holding(request=CITY)
    assert fit({"city": "Oslo", "days": "3"}, schema) == {"request": {"city": "Oslo", "days": 3}}
    assert fit({"city": "Oslo", "size": 3}, schema) == {"city": "Oslo", "size": 3}


def test_references_and_combinations_are_followed() -> None:
    schema = {
        "type": "object",
        "properties": {
            "tree": {"$ref": "#/$defs/Node"},
            "at": {"allOf": [holding(x={"type": "integer"}), holding(y={"type": "integer"})]},
        },
        "$defs": {
            "Node": {
                "type": "object",
                "properties": {
                    "n": {"type": "integer"},
                    "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                },
            }
        },
    }
    written = {
        "tree": '{"n": "1", "next": "{\\"n\\": \\"2\\", \\"next\\": \\"null\\"}"}',
        "at": {"X": "1", "y": "2"},
    }
    assert fit(written, schema) == {"tree": {"n": 1, "next": {"n": 2, "next": None}}, "at": {"x": 1, "y": 2}}


def test_unknown_arguments_stay_where_more_are_allowed() -> None:
    schema = {"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "integer"}}
    assert fit({"A": "1", "b": None}, schema, drop=True) == {"A": 1, "b": None}
    assert fit({"b": "1"}, {"type": "object"}, drop=True) == {"b": "1"}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"properties": {"a": {"$ref": "#/properties/a"}}},
        {"properties": {"a": {"anyOf": [{"$ref": "#/properties/a"}, {"$ref": "#/properties/a"}]}}},
        {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
    ],
)
def test_a_schema_that_means_itself_changes_nothing(schema: dict[str, Any]) -> None:
    assert fit({"a": "1"}, schema) == {"a": "1"} and faults({"a": "1"}, schema) == []


def test_a_schema_that_doubles_at_each_step_is_given_up_in_time() -> None:
    steps = {f"s{i}": {"anyOf": [{"$ref": f"#/$defs/s{i + 1}"}] * 2} for i in range(60)}
    schema = {"properties": {"a": {"$ref": "#/$defs/s0"}}, "$defs": {**steps, "s60": {"type": "integer"}}}
    assert faults({"a": "x"}, schema) == [] or fit({"a": "x"}, schema)


# --- for any schema


def leaves() -> st.SearchStrategy[dict[str, Any]]:
    words = st.lists(st.text("abAB_ 1,", max_size=4), min_size=1, max_size=3, unique=True)
    return st.one_of(
        st.sampled_from(["string", "integer", "number", "boolean", "null"]).map(lambda t: {"type": t}),
        words.map(lambda w: {"type": "string", "enum": w}),
        words.map(lambda w: {"enum": w}),
        st.just({"type": ["integer", "null"]}),
    )


def objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["a", "as", "a_b", "aB", "b", "name", "a_name", "input"])
    return st.dictionaries(names, inner, max_size=4).flatmap(
        lambda properties: st.fixed_dictionaries(
            {
                "type": st.just("object"),
                "properties": st.just(properties),
                "required": st.lists(st.sampled_from(sorted(properties)), unique=True)
                if properties
                else st.just([]),
            },
            optional={"additionalProperties": st.just(False)},
        )
    )


SCHEMAS = st.recursive(
    leaves(),
    lambda inner: st.one_of(
        objects(inner),
        inner.map(lambda s: {"type": "array", "items": s}),
        st.lists(inner, min_size=1, max_size=3).map(lambda s: {"anyOf": s}),
    ),
    max_leaves=6,
)
OBJECTS = objects(SCHEMAS)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9999) | st.floats(allow_nan=False) | st.text("abAB_ 1,[]{}'\":null", max_size=9),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["a", "A", "a_b", "aB", "c", "input", "value"]), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def instances(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values that are valid by the schema, without properties that it does not name."""
    if "anyOf" in schema:
        return st.one_of([instances(s) for s in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema["type"]:
        case "object":
            named = {n: instances(s) for n, s in schema["properties"].items()}
            needed = {n: s for n, s in named.items() if n in schema["required"]}
            return st.fixed_dictionaries(needed, optional={n: s for n, s in named.items() if n not in needed})
        case "array":
            return st.lists(instances(schema["items"]), max_size=3)
        case "string":
            return st.text("abAB_ 1,[]{}'\":null", max_size=9)
        case "number":
            return st.floats(allow_nan=False, allow_infinity=False) | st.integers()
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "integer":
            return st.integers()
    return st.none() | st.integers()


@given(OBJECTS.flatmap(lambda s: st.tuples(st.just(s), instances(s))))
def test_valid_arguments_stay_as_they_are(drawn: tuple[dict[str, Any], dict[str, Any]]) -> None:
    schema, arguments = drawn
    jsonschema.Draft202012Validator(schema).validate(arguments)
    before = json.dumps(arguments)
    assert json.dumps(fit(arguments, schema, tool="input")) == before
    assert faults(arguments, schema) == []


@given(
    OBJECTS,
    st.dictionaries(st.sampled_from(["a", "A", "as", "a_b", "b", "name", "input", "c"]), JSON, max_size=4),
)
def test_fitting_twice_is_fitting_once_and_what_it_makes_valid_is_so_for_others(
    schema: dict[str, Any], arguments: dict[str, Any]
) -> None:
    before = copy.deepcopy(arguments)
    once = fit(arguments, schema, tool="t", drop=True)
    assert arguments == before and json.dumps(fit(once, schema, tool="t", drop=True)) == json.dumps(once)
    # every schema here is one of those of which all can be told
    assert (not faults(once, schema)) == jsonschema.Draft202012Validator(schema).is_valid(once)


@given(JSON, JSON, JSON)
def test_no_schema_and_no_arguments_make_it_fail(arguments: Any, schema: Any, inner: Any) -> None:
    for odd in (schema, {"properties": {"a": schema, "aB": inner}, "required": inner, "enum": schema}):
        fit(arguments if isinstance(arguments, dict) else {"a": arguments}, odd)
        assert str(WrongArguments("t", odd, faults(arguments, odd)))
        example(odd)


@given(SCHEMAS)
def test_an_example_is_valid_by_its_schema(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema).validate(example(schema, "n"))


# --- what the model is told


def json_tool(parameters: Mapping[str, Any], **more: Any) -> Tool:
    async def handler(arguments: Mapping[str, Any]) -> ToolOutput:
        return ToolOutput(json.dumps(arguments))

    return Tool(more.pop("name", "forecast"), "", parameters, handler, **more)


async def told(
    made: Tool, arguments: Mapping[str, Any], aids: Aids = Aids(), name: str | None = None
) -> ToolResult:
    return await call_tool(ToolCall("1", name or made.name, arguments), {made.name: made}, aids=aids)


FORECAST = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "default": 3},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "at": {"type": "object", "properties": {"x": {"type": "integer", "minimum": 5}}, "required": ["x"]},
    },
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"city": "Oslo", "days": "many"}, 'days must be an integer, not "many". For example: "days": 3.'),
        (
            {"city": "Oslo", "unit": "kelvin"},
            'unit must be one of "celsius", "fahrenheit", not "kelvin". For example: "unit": "celsius".',
        ),
        ({"days": 1}, 'city is missing, it must be a string. For example: "city": "<city>".'),
        ({"city": "Oslo", "at": {"x": "far"}}, 'at.x must be an integer, not "far". For example: "x": 5.'),
        (
            {"city": "Oslo", "tags": ["a", {}]},
            'tags[1] must be a string, not {}. For example: "tags": ["<tags>"].',
        ),
        ({"city": "Oslo", "daily": True}, "it has no argument daily (did you mean days?)."),
        ({"city": "Oslo", "zzz": 1}, "it has no argument zzz, only city, days, unit, tags, at."),
    ],
)
async def test_the_model_is_told_of_the_wrong_argument_only_with_its_type_and_an_example(
    arguments: dict[str, Any], said: str
) -> None:
    result = await told(json_tool(FORECAST), arguments)
    assert result.is_error
    assert result.content == f"Wrong arguments for forecast: {said} Call forecast again with that corrected."


async def test_without_hints_it_is_told_what_is_wrong_and_nothing_else() -> None:
    off = Aids(hints=False)
    plain = await told(json_tool(FORECAST), {"city": "Oslo", "days": "many"}, off)
    assert (
        plain.content
        == 'Wrong arguments for forecast: days must be an integer, not "many". Call forecast again.'
    )
    plain = await told(json_tool(FORECAST), {"city": "Oslo", "daily": 1}, off)
    assert plain.content == "Wrong arguments for forecast: it has no argument daily. Call forecast again."
    plain = await told(json_tool(FORECAST), {}, off, name="forecat_it")
    assert "mean" not in plain.content


class Place(BaseModel):
    x: int
    y: int = Field(ge=0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"n": "x"}, 'n must be an integer or a list of integers, not "x". For example: "n": 1.'),
        (
            {"n": 1, "at": {"x": "a"}},
            'at.x must be an integer, not "a"; at.y is missing, it must be an integer.',
        ),
        ({"n": 1, "at": {"x": 1, "y": -1}}, "at.y: input should be greater than or equal to 0, not -1."),
        ({"n": 1, "mode": "medium"}, 'mode must be one of "fast", "slow", not "medium".'),
        ({"n": 1, "nmae": 1, "b": 2}, "it has no argument nmae, only n, at, mode; it has no argument b"),
    ],
)
async def test_what_a_function_does_not_take_is_told_in_the_same_words(arguments: Any, said: str) -> None:
    @tool(name="shoot")
    def fn(n: int | list[int], at: Place | None = None, mode: Literal["fast", "slow"] = "fast") -> str:
        return "shot"

    result = await told(fn, arguments)
    assert result.is_error and result.content.startswith(f"Wrong arguments for shoot: {said}")
    plain = await told(fn, arguments, Aids(hints=False))
    assert "For example" not in plain.content and plain.content.endswith("Call shoot again.")


async def test_without_coercion_a_json_tool_gets_what_the_model_sent_or_says_what_is_wrong() -> None:
    off = Aids(coerce=False)
    assert (
        await told(json_tool(CITY), {"city": "Oslo", "Days": 1}, off)
    ).content == '{"city": "Oslo", "Days": 1}'
    assert (await told(json_tool(CITY), {"city": "Oslo", "days": "1"}, off)).is_error
    assert (
        await told(json_tool(CITY), {"city": "Oslo", "days": "1"})
    ).content == '{"city": "Oslo", "days": 1}'


async def test_an_argument_that_a_tool_does_not_have_is_left_out_only_where_a_call_changes_nothing() -> None:
    sent = {"city": "Oslo", "dry_run": True}
    assert (await told(json_tool(FORECAST, effects=frozenset(["reads"])), sent)).content == '{"city": "Oslo"}'
    for effects in (None, frozenset(["reads", "destroys"])):
        refused = await told(json_tool(FORECAST, effects=effects), sent)
        assert refused.is_error and "it has no argument dry_run" in refused.content
    opened = {k: v for k, v in FORECAST.items() if k != "additionalProperties"}
    assert json.loads((await told(json_tool(opened, effects=frozenset()), sent)).content) == sent


@pytest.mark.parametrize(
    ("name", "arguments", "called"),
    [
        ("forcast", {"city": "Oslo"}, True),
        ("functions.forecast", {"city": "Oslo"}, True),
        ("forecasts", {"City": "Oslo"}, True),
        ("forcast", {"city": "Oslo", "speed": 1}, False),  # it may have been another tool
        ("forcast", {}, False),
        ("forecast_all", {"city": "Oslo"}, False),
        ("broadcast", {"city": "Oslo"}, False),
    ],
)
async def test_a_misspelt_tool_is_called_if_the_arguments_are_its_own(
    name: str, arguments: dict[str, Any], called: bool
) -> None:
    result = await told(json_tool(CITY), arguments, name=name)
    assert result.is_error is not called
    assert result.name == ("forecast" if called else name)
    assert called or f"There is no tool '{name}'" in result.content
    assert (await told(json_tool(CITY), arguments, Aids(coerce=False), name=name)).is_error


def test_a_name_between_two_means_neither() -> None:
    assert meant("weather_get", ["get_weather", "set_weather"]) == "get_weather"
    assert meant("read_files", ["read_file", "read_filed"]) == "read_file"
    assert meant("serch_web", ["search_web", "serche_web"]) is None
    assert meant("delete_all_files", ["delete_files"]) is None
    assert meant("eur_to_usd", ["usd_to_eur"]) is None
    assert meant("unlock", ["lock"]) is None
