"""Messages to chat-completions JSON and back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.messages import (
    BadCall,
    Message,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    assistant,
    from_chat,
    system,
    to_chat,
    user,
    wire,
)

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
calls = st.builds(ToolCall, st.just("c1"), words, st.dictionaries(words, st.integers() | words, max_size=3))
messages = st.one_of(
    st.builds(user, words),
    st.builds(system, words),
    st.builds(assistant, words),
    st.builds(lambda t, x, c: Message("assistant", (Thinking(t), Text(x), c)), words, words, calls),
    st.builds(lambda i, x, n: Message("tool", (ToolResult(i, x, name=n),)), words, words, words),
)


@given(messages)
def test_a_message_survives_the_way_to_json_and_back(message: Message) -> None:
    (chat,) = to_chat(message, "reasoning_content")
    assert from_chat(json.loads(json.dumps(chat))) == message


@given(st.text(st.characters(), max_size=20))
def test_any_text_can_be_sent_even_half_a_character(text: str) -> None:
    json.loads(wire(user(text)))


def test_a_message_is_serialised_once() -> None:
    message = user("hi")
    assert wire(message) is wire(message)


def test_text_that_held_its_calls_goes_back_as_it_was_written() -> None:
    raw = '<think>\nhm\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    message = Message("assistant", (Thinking("hm"), ToolCall("c1", "f", {})), raw)
    assert to_chat(message, "reasoning") == [{"role": "assistant", "content": raw}]
    assert to_chat(message)[0]["content"].startswith("<tool_call>")


def test_a_call_that_could_not_be_read_goes_back_as_text() -> None:
    message = Message("assistant", (Text("so:"), BadCall("c1", '{"name": ', "cut off")))
    assert to_chat(message) == [{"role": "assistant", "content": 'so:\n{"name": '}]


def test_the_parts_of_multi_part_content_are_read() -> None:
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {}},
        {"type": "text", "text": "b"},
    ]
    assert from_chat({"role": "user", "content": parts}).text == "ab"


def test_an_unknown_role_is_an_error() -> None:
    with pytest.raises(ValueError, match="robot"):
        from_chat({"role": "robot", "content": "x"})
