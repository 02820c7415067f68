"""Requests with tools made into text, and the model's answers to them read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentkit import ModelSettings
from agentkit.messages import (
    BadCall,
    Message,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    assistant,
    system,
    to_chat,
    user,
    wire,
)
from agentkit.parsing import parse_turn
from agentkit.runtime.engine import Request
from agentkit.runtime.protocols import (
    Remade,
    hermes,
    inline_thoughts,
    last_question,
    plain,
    python,
    react,
    soft_switched,
)

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"The tool {name} – ☃.",
            "parameters": {
                "type": "object",
                "properties": {"q": {"type": "string"}, "n": {"type": "integer"}},
            },
        },
    }
    for name in ("search", "add")
]


def call(id: str, name: str, **arguments: Any) -> ToolCall:
    return ToolCall(id, name, arguments, json.dumps(arguments, ensure_ascii=False))


LOOP = [
    system("Be brief."),
    user("What is new?"),
    Message(
        "assistant",
        (
            Thinking("Two things to look up."),
            Text("One moment."),
            call("1", "search", q="☃"),
            call("2", "add", n=1),
        ),
    ),
    Message(
        "tool",
        (ToolResult("1", "snow", name="search"), ToolResult("2", "2"), Text("Answer the user now.")),
    ),
    Message("assistant", (Thinking("Once more."), call("3", "search", q="ice"))),
    Message("tool", (ToolResult("3", "cold", name="search"),)),
]


def rendered(
    messages: Sequence[Message], tools: Sequence[Any] = (), field: str | None = "reasoning_content"
) -> str:
    """What Qwen3's chat template makes of it, as vLLM renders it."""
    jinja2 = pytest.importorskip("jinja2")
    file = Path(__file__).parent.parent / "e2e" / "qwen3_chat_template.jinja"
    env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    chats = [c for m in messages for c in to_chat(m, field)]
    return str(
        env.from_string(file.read_text()).render(messages=chats, tools=tools, add_generation_prompt=True)
    )


def test_hermes_gives_the_prompt_that_qwen3s_template_gives_for_native_tools() -> None:
    made = hermes(Request(LOOP, TOOLS))
    assert not made.tools and {m.role for m in made.messages} <= {"system", "user", "assistant"}
    assert rendered(made.messages) == rendered(LOOP, TOOLS)


def test_thoughts_in_the_text_give_the_prompt_that_thoughts_in_their_field_give() -> None:
    inline = [inline_thoughts(m) if m.role == "assistant" else m for m in LOOP]
    assert rendered(inline, TOOLS) == rendered(LOOP, TOOLS) != rendered(LOOP, TOOLS, None)


def test_without_a_system_text_the_tools_become_one() -> None:
    made = hermes(Request([user("hi")], TOOLS))
    assert [m.role for m in made.messages] == ["system", "user"]
    assert rendered(made.messages) == rendered([user("hi")], TOOLS)


def test_results_that_come_as_messages_of_their_own_are_joined() -> None:
    apart = [
        *LOOP[:3],
        Message("tool", (ToolResult("1", "snow", name="search"),)),
        Message("tool", (ToolResult("2", "2"),)),
    ]
    made = hermes(Request(apart, TOOLS))
    assert [m.role for m in made.messages] == ["system", "user", "assistant", "user"]
    assert rendered(made.messages) == rendered(apart, TOOLS)


def test_a_result_is_not_taken_for_the_users_next_question() -> None:
    for translate in (hermes, react, python):
        assert last_question(translate(Request(LOOP, TOOLS)).messages) == 1
    assert last_question([system("s")]) == -1


def test_the_text_of_a_call_goes_back_as_the_model_wrote_it() -> None:
    wrote = 'Let me see.\n<tool_call>\n{"name": "add",  "arguments": {"n": 1}}\n</tool_call>'
    reply = parse_turn(wrote, tools=TOOLS)
    made = hermes(Request([user("x"), reply], TOOLS))
    assert to_chat(made.messages[2])[0] == {"role": "assistant", "content": wrote}
    wrote = 'Thought: I add.\nAction: add\nAction Input: {"n":   1}\n'
    reply = parse_turn(wrote, tools=TOOLS)
    made = react(Request([user("x"), reply], TOOLS))
    assert to_chat(made.messages[2], "reasoning_content") == [{"role": "assistant", "content": wrote}]


def test_a_call_that_could_not_be_read_goes_back_too() -> None:
    broken = Message("assistant", (BadCall("1", "{broken", "it is broken"),))
    for translate in (hermes, react, python):
        assert to_chat(translate(Request([user("x"), broken], TOOLS)).messages[-1])[0]["content"] == "{broken"


def test_react_stops_before_the_model_makes_up_a_result() -> None:
    made = react(Request(LOOP, TOOLS, ModelSettings(stop=("END",))))
    assert made.settings.stop == ("END", "Observation:") and not made.tools
    assert react(made).settings.stop == made.settings.stop
    head = made.messages[0].text
    assert head.startswith("Be brief.\n\n") and "one of [search, add]" in head and "☃" in head
    assert made.messages[3].text == "Observation: snow\nObservation: 2\n\nAnswer the user now."


def test_a_tool_is_shown_to_python_as_a_function_with_what_is_required_first() -> None:
    properties = {
        "days": {"type": "integer", "default": 1, "description": "How many\n  days."},
        "city": {"type": "string"},
        "unit": {"enum": ["C", "F"]},
        "spots": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
        "of": {"type": "object", "properties": {"hour": {"type": "integer", "description": "When."}}},
    }
    parameters = {"type": "object", "properties": properties, "required": ["city"]}
    weather = {"name": "weather", "description": "The weather.", "parameters": parameters}
    made = python(Request([user("?")], [{"type": "function", "function": weather}, *TOOLS]))
    assert (
        "def weather(city: str, days: int = 1, unit: Literal['C', 'F'] = None, spots: list[str | None] = None, "
        "of: dict = None):\n"
        '    """The weather.\n    \n        days: How many days.\n        of: A dict with\n'
        '            "hour" (int): When.\n    """\n\n'
        "def search(q: str = None, n: int = None):" in made.messages[0].text
    )
    assert not made.tools and made.messages[1].text == "?"


NAMES = st.sampled_from(["search", "add"])
VALUES = st.dictionaries(
    st.sampled_from(["q", "n"]),
    st.one_of(st.integers(), st.text(), st.lists(st.text(max_size=5), max_size=3), st.none()),
    max_size=2,
)


@given(st.lists(st.tuples(NAMES, VALUES), min_size=1, max_size=3, unique_by=str), st.booleans())
@example([("search", {"q": "<think>"}), ("add", {"q": "</think>"})], True)
def test_what_a_translation_writes_the_parser_reads(
    calls: list[tuple[str, dict[str, Any]]], with_raw: bool
) -> None:
    made = tuple(
        ToolCall(str(i), name, args, json.dumps(args, ensure_ascii=False) if with_raw else "")
        for i, (name, args) in enumerate(calls)
    )
    for translate in (hermes, react):
        request = translate(Request([user("x"), Message("assistant", made)], TOOLS))
        read = parse_turn(request.messages[2].text, tools=TOOLS)
        assert [(c.name, c.arguments) for c in read.calls if isinstance(c, ToolCall)] == calls
        assert not read.text


@given(st.integers(1, len(LOOP)), st.sampled_from([hermes, react, python]))
def test_a_longer_conversation_begins_with_the_bytes_of_the_shorter_one(length: int, translate: Any) -> None:
    def sent(messages: Sequence[Message]) -> list[bytes]:
        return [wire(m, "reasoning_content") for m in translate(Request(messages, TOOLS)).messages]

    assert sent(LOOP)[:length] == sent(LOOP[:length])


def test_a_message_is_translated_and_serialised_once() -> None:
    remade = Remade()
    first, second = (hermes(Request(LOOP, TOOLS), remade).messages for _ in range(2))
    assert all(a is b for a, b in zip(first[1:], second[1:], strict=True))
    assert wire(first[2]) is wire(second[2])


def test_only_the_newest_of_very_many_messages_are_kept() -> None:
    remade = Remade()
    first = [Message("tool", (ToolResult(str(i), str(i)),)) for i in range(3_000)]
    made = [remade(m, inline_thoughts) for m in first]
    assert made == first and len(remade._made) <= 2_000


def test_a_template_without_a_system_role_gets_its_text_with_the_first_question() -> None:
    made = plain(hermes(Request([system("Be brief."), user("a"), user("b"), assistant("c")], TOOLS)))
    assert [m.role for m in made.messages] == ["user", "assistant"]
    assert made.messages[0].text.startswith("Be brief.\n\n# Tools") and made.messages[0].text.endswith(
        "a\n\nb"
    )
    assert [m.role for m in plain(Request([system("only this")])).messages] == ["user"]


@pytest.mark.parametrize(("thinking", "switch"), [(True, "/think"), (False, "/no_think")])
def test_the_soft_switch_stands_behind_the_users_last_words(thinking: bool, switch: str) -> None:
    made = soft_switched(Request(LOOP, TOOLS), thinking)
    assert made.messages[1].text == f"What is new? {switch}" and list(made.messages[2:]) == LOOP[2:]
    assert soft_switched(Request([system("s")]), thinking) == Request([system("s")])
