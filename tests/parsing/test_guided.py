"""Turns under guided decoding: what the schema admits, and how such a text is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit import tool
from agentkit.events import TextDelta
from agentkit.messages import ToolCall
from agentkit.parsing import GuidedParser, guided_schema

jsonschema = pytest.importorskip("jsonschema")

NESTED: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "plan",
        "parameters": {
            "type": "object",
            "properties": {
                "title": {"type": "string", "pattern": "^a+$", "maxLength": 3, "title": "T"},
                "pattern": {"type": "integer", "minimum": 3, "multipleOf": 2},
                "steps": {"type": "array", "items": {"$ref": "#/$defs/Step"}, "minItems": 1},
            },
            "required": ["steps"],
            "$defs": {
                "Step": {
                    "type": "object",
                    "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Step"}, {"type": "null"}]}},
                    "required": ["next"],
                }
            },
        },
    },
}


@tool
def add(a: int, b: int = 2) -> int:
    """Add."""
    return a + b


def admits(value: Any, tools: Any = (add, NESTED)) -> bool:
    return bool(jsonschema.Draft202012Validator(guided_schema(tools)).is_valid(value))


@pytest.mark.parametrize(
    "value",
    [
        {"answer": "yes"},
        {"name": "add", "arguments": {"a": 1}},
        [{"name": "add", "arguments": {"a": 1, "b": 3}}, {"name": "add", "arguments": {"a": 2}}],
        {"name": "plan", "arguments": {"steps": [{"next": {"next": None}}], "pattern": 1}},
    ],
)
def test_calls_and_answers_are_admitted(value: Any) -> None:
    assert admits(value)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"answer": 3},
        {"answer": "x", "name": "add"},
        [],
        {"name": "sub", "arguments": {}},
        {"name": "add", "arguments": {}},
        {"name": "add", "arguments": {"a": "1"}},
        {"name": "add", "arguments": {"a": 1, "c": 1}},
        {"name": "plan", "arguments": {"steps": [{"next": 1}]}},
    ],
)
def test_anything_else_is_not(value: Any) -> None:
    assert not admits(value)


def test_grammars_are_given_no_keyword_they_cannot_hold_but_properties_of_such_names_stay() -> None:
    text = json.dumps(guided_schema([NESTED]))
    assert '"pattern": {"type": "integer"}' in text and '"title": {"type": "string"}' in text
    assert "maxLength" not in text and "multipleOf" not in text


def test_without_tools_only_an_answer_is_admitted() -> None:
    assert admits({"answer": ""}, ()) and not admits([], ())


@given(st.text(), st.data())
def test_an_answer_is_said_whole_however_it_is_cut(answer: str, data: st.DataObject) -> None:
    text = json.dumps({"answer": answer}, ensure_ascii=data.draw(st.booleans()))
    cut = data.draw(st.integers(0, len(text)))
    parser = GuidedParser([add])
    assert parser.feed(text[:cut]) == parser.feed(text[cut:]) == []
    assert parser.close() == [TextDelta(answer)]
    assert parser.message().text == answer and not parser.message().calls


def test_calls_are_read_and_thoughts_kept() -> None:
    parser = GuidedParser([add], "call_3")
    parser.feed(reasoning="hm")
    parser.feed('[{"name": "add", "arguments": {"a": 1}}, {"name": "add", "arguments": {"a": 2}}]')
    parser.close()
    message = parser.message()
    assert message.calls == (ToolCall("call_3_1", "add", {"a": 1}), ToolCall("call_3_2", "add", {"a": 2}))
    assert message.thinking == "hm" and message.raw is None


@pytest.mark.parametrize(
    ("text", "said", "called"),
    [
        ('<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>', "", 1),
        ("Just an answer.", "Just an answer.", 0),
        ('{"tool_calls": [{"name": "add", "arguments": {"a": 1}}', "", 1),
        ('{"name": "add", "arguments": {"a": 1}}', "", 1),
    ],
)
def test_a_server_that_guides_nothing_is_read_as_ever(text: str, said: str, called: int) -> None:
    parser = GuidedParser([add])
    parser.feed(text)
    parser.close()
    assert parser.message().text == said and len(parser.message().calls) == called


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c))
)
def test_no_json_makes_it_raise(value: Any) -> None:
    for body in (value, {"answer": value}, [value], {"name": value, "arguments": value}):
        parser = GuidedParser([add])
        parser.feed(json.dumps(body))
        parser.close()
        parser.message()
