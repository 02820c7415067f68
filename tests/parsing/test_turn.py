"""Turns as models write them, whole and in pieces."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.events import CallFragment, CallReady, TextDelta, assemble
from agentkit.messages import BadCall, Message, ToolCall
from agentkit.parsing import TurnParser, parse_turn

CASES = [json.loads(line) for line in Path(__file__).with_name("cases.jsonl").read_text().splitlines()]


def in_pieces(cuts: list[str], reasoning: str, tools: Any, finish_reason: str) -> Message:
    parser = TurnParser(tools)
    events = list(parser.feed(reasoning=reasoning)) if reasoning else []
    for piece in cuts:
        events += parser.feed(piece)
    events += parser.close(finish_reason)
    assert assemble(events) == parser.message().parts
    return parser.message()


@pytest.mark.parametrize("case", CASES, ids=[c["id"] for c in CASES])
def test_a_turn_is_read_as_it_was_meant(case: dict[str, Any]) -> None:
    content, reasoning, tools = case["content"], case["reasoning"], case["tools"]
    message = parse_turn(content, reasoning=reasoning, tools=tools, finish_reason=case["finish_reason"])
    known = {t["function"]["name"] for t in tools}
    calls = [c for c in message.calls if isinstance(c, ToolCall)]
    seen = {
        "calls": [{"name": c.name, "arguments": c.arguments} for c in calls if c.name in known],
        "bad": len(message.calls) - len(calls),
        "text": message.text,
        "thinking": message.thinking,
        "unknown": [c.name for c in calls if c.name not in known],
    }
    assert {key: seen[key] for key in case["expect"]} == case["expect"]
    one_by_one = in_pieces(list(content or ""), reasoning or "", tools, case["finish_reason"])
    assert one_by_one == message and one_by_one.raw == message.raw


def offer(*names: str, **schemas: dict[str, Any]) -> list[dict[str, Any]]:
    properties = {name: {"type": "object", "properties": {"q": {"type": "string"}}} for name in names}
    properties |= {n: {"type": "object", "properties": s} for n, s in schemas.items()}
    return [{"type": "function", "function": {"name": n, "parameters": p}} for n, p in properties.items()]


TOOLS = offer(
    "search",
    "now",
    python={"code": {"type": "string"}},
    add={"a": {"type": "integer"}, "b": {"type": "number"}},
)
SEARCH = ("search", {"q": "x"})
CODE = 'def f(s):\n    return f"{s!r} \\"q\\" </tool_call> {{}}"\n'

# (what the model wrote, the calls in it, the text beside them)
TURNS: dict[str, tuple[str, list[Any], str]] = {
    "unicode": ('<tool_call>\n{"name": "search", "arguments": {"q": "naïve 北京 🦙"}}\n</tool_call>', [("search", {"q": "naïve 北京 🦙"})], ""),
    "code-with-everything": (f'<tool_call>\n{json.dumps({"name": "python", "arguments": {"code": CODE}})}\n</tool_call>', [("python", {"code": CODE})], ""),
    "fence-in-code": ('<tool_call>{"name": "python", "arguments": {"code": "s = \'```json\'\\nprint(s)"}}</tool_call>', [("python", {"code": "s = '```json'\nprint(s)"})], ""),
    "fence-in-fenced-code": ('```json\n{"name": "python", "arguments": {"code": "s = \'```\'"}}\n```', [("python", {"code": "s = '```'"})], ""),
    "triple-quotes": ('<tool_call>\n{"name": "python", "arguments": {"code": """\nprint("hi")\nx = {1: 2}\n"""}}\n</tool_call>', [("python", {"code": '\nprint("hi")\nx = {1: 2}\n'})], ""),
    "text-around": ('I will look.\n\n<tool_call>\n{"name": "search", "arguments": {"q": "x"}}\n</tool_call>\n\nWait.', [SEARCH], "I will look.Wait."),
    "two-in-one-tag": ('<tool_call>\n{"name": "search", "arguments": {"q": "x"}}\n{"name": "now", "arguments": {}}\n</tool_call>', [SEARCH, ("now", {})], ""),
    "list-in-a-tag": ('<tool_call>[{"name": "search", "arguments": {"q": "x"}}, {"name": "now", "arguments": {}}]</tool_call>', [SEARCH, ("now", {})], ""),
    "stray-opening-tag-as-closing": ('<tool_call>\n{"name": "search", "arguments": {"q": "x"}}\n<tool_call>', [SEARCH], ""),
    "tag-opened-twice": ('<tool_call>\n<tool_call>\n{"name": "search", "arguments": {"q": "x"}}\n</tool_call>', [SEARCH], ""),
    "fence-in-a-tag": ('<tool_call>\n```json\n{"name": "search", "arguments": {"q": "x"}}\n```\n</tool_call>', [SEARCH], ""),
    "tag-in-a-fence": ('```\n<tool_call>\n{"name": "search", "arguments": {"q": "x"}}\n</tool_call>\n```', [SEARCH], ""),
    "doubled-braces": ('{{"name": "search", "arguments": {"q": "x"}}}', [SEARCH], ""),
    "doubled-braces-in-tools": ('<tools>\n{{"name": "search", "arguments": {"q": "x"}}}\n{{"name": "now", "arguments": {}}\n</tools>', [SEARCH, ("now", {})], ""),
    "function-call-tag": ('<function_call>\n{"name": "search", "arguments": {"q": "x"}}\n</function_call>', [SEARCH], ""),
    "wrapped-list": ('<response>\n[{"name": "search", "arguments": {"q": "x"}}, {"name": "now", "arguments": {}}]\n</response>', [SEARCH, ("now", {})], ""),
    "openai-form": ('{"type": "function", "function": {"name": "search", "arguments": "{\\"q\\": \\"x\\"}"}}', [SEARCH], ""),
    "tool-calls-form": ('{"tool_calls": [{"id": "1", "type": "function", "function": {"name": "search", "arguments": {"q": "x"}}}]}', [SEARCH], ""),
    "bare-list": ('[{"name": "search", "arguments": {"q": "x"}}, {"name": "now", "arguments": {}}]', [SEARCH, ("now", {})], ""),
    "bare-after-prose": ('Let me search: {"name": "search", "arguments": {"q": "x"}}', [SEARCH], "Let me search:"),
    "bare-before-prose": ('{"name": "search", "arguments": {"q": "x"}}\nThis searches.', [SEARCH], "This searches."),
    "two-bare": ('{"name": "search", "arguments": {"q": "x"}}\n{"name": "now", "arguments": {}}', [SEARCH, ("now", {})], ""),
    "two-fences": ('```json\n{"name": "search", "arguments": {"q": "x"}}\n```\nand\n```json\n{"name": "now", "arguments": {}}\n```', [SEARCH, ("now", {})], "and"),
    "two-in-a-fence": ('```json\n{"name": "search", "arguments": {"q": "x"}}\n{"name": "now", "arguments": {}}\n```', [SEARCH, ("now", {})], ""),
    "fence-then-prose": ('```json\n{"name": "search", "arguments": {"q": "x"}}\n```\n\nThis {will} find `x`.', [SEARCH], "This {will} find `x`."),
    "fence-without-label": ('```\n{"name": "search", "arguments": {"q": "x"}}\n```', [SEARCH], ""),
    "fence-never-closed": ('```json\n{"name": "search", "arguments": {"q": "x"}}', [SEARCH], ""),
    "trailing-commas-and-comments": ('<tool_call>{"name": "search", /* the */ "arguments": {"q": "x",},}</tool_call>', [SEARCH], ""),
    "unquoted-keys": ('<tool_call>{name: "search", arguments: {q: "x"}}</tool_call>', [SEARCH], ""),
    "single-quotes-with-apostrophe": ("<tool_call>{'name': 'search', 'arguments': {'q': \"it's\"}}</tool_call>", [("search", {"q": "it's"})], ""),
    "one-brace-too-many": ('<tool_call>\n{"name": "search", "arguments": {"q": "x"}}}\n</tool_call>', [SEARCH], ""),
    "two-braces-missing": ('<tool_call>\n{"name": "search", "arguments": {"q": "x"\n</tool_call>', [SEARCH], ""),
    "unknown-in-a-tag": ('<tool_call>{"name": "serach", "arguments": {"q": "x"}}</tool_call>', [("serach", {"q": "x"})], ""),
    "unknown-alone": ('```json\n{"name": "serach", "arguments": {"q": "x"}}\n```', [("serach", {"q": "x"})], ""),
    "name-only-in-a-tag": ("<tool_call>now</tool_call>", [("now", {})], ""),
    "name-then-json": ('<tool_call>search\n{"q": "x"}</tool_call>', [SEARCH], ""),
    "coder-xml": ("<tool_call>\n<function=python>\n<parameter=code>\nif 1 < 2:\n    print('a')\n</parameter>\n</function>\n</tool_call>", [("python", {"code": "if 1 < 2:\n    print('a')"})], ""),
    "coder-xml-types": ("<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n2.5\n</parameter>\n</function>", [("add", {"a": 1, "b": 2.5})], ""),
    "coder-xml-twice": ("<tool_call><function=now></function></tool_call>\n<tool_call><function=search><parameter=q>x</parameter></function></tool_call>", [("now", {}), SEARCH], ""),
    "react": ('Thought: look\nAction: search\nAction Input: {"q": "x"}\nObservation: made up', [SEARCH], ""),
    "react-plain-input": ("Thought: look\nAction: search\nAction Input: x", [SEARCH], ""),
    "react-multi-line": ('Action: python\nAction Input: {\n  "code": "a\\nb"\n}', [("python", {"code": "a\nb"})], ""),
    "react-after-prose": ('I need it.\nAction: search\nAction Input: {"q": "x"}', [SEARCH], "I need it."),
    "think-then-fence": ('<think>\nhm {"name": "now"}\n</think>\n\n```json\n{"name": "search", "arguments": {"q": "x"}}\n```', [SEARCH], ""),
    "lone-close-after-a-quoted-call": ('I could <tool_call>{"name": "now", "arguments": {}}</tool_call> but\n</think>\n\n<tool_call>{"name": "search", "arguments": {"q": "x"}}</tool_call>', [SEARCH], ""),
    "think-closed-and-nothing-else": ('<think>\n<tool_call>{"name": "search", "arguments": {"q": "x"}}</tool_call>\n</think>\n', [SEARCH], ""),
    "call-quoted-in-think-then-answer": ('<think>\n<tool_call>{"name": "now", "arguments": {}}</tool_call>?\n</think>\n\nIt is 5.', [], "It is 5."),
    # what is no call is text, every character of it
    "prose": ("a < b, {x}, [1] and `code`.\n\n- *list*\n", [], "a < b, {x}, [1] and `code`.\n\n- *list*\n"),
    "code-block": ("Run:\n```python\nprint({'name': 'search'})\n```\nDone.\n", [], "Run:\n```python\nprint({'name': 'search'})\n```\nDone.\n"),
    "json-example": ('Like so:\n```json\n{"name": "Ada", "arguments": 2}\n```', [], 'Like so:\n```json\n{"name": "Ada", "arguments": 2}\n```'),
    "unknown-call-in-prose": ('An example is\n```json\n{"name": "foo", "arguments": {"a": 1}}\n```\nas you see.', [], 'An example is\n```json\n{"name": "foo", "arguments": {"a": 1}}\n```\nas you see.'),
    "json-answer": ('{"city": "Oslo", "people": 7}', [], '{"city": "Oslo", "people": 7}'),
    "mention-of-the-tag": ("Use <tool_call> tags.", [], "Use <tool_call> tags."),
    "mention-in-code": ("Write `<tool_call>{}</tool_call>` or `</think>`.", [], "Write `<tool_call>{}</tool_call>` or `</think>`."),
    "example-of-a-call": ('So:\n```xml\n<tool_call>\n{"name": "search", "arguments": {}}\n</tool_call>\n```', [], 'So:\n```xml\n<tool_call>\n{"name": "search", "arguments": {}}\n</tool_call>\n```'),
    "html": ("<p>{x}</p><b>[1]</b>", [], "<p>{x}</p><b>[1]</b>"),
    "echo-without-a-call": ('<tools>\n{"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}\n</tools>\nThese.', [], '<tools>\n{"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}\n</tools>\nThese.'),
    "react-answer": ("Thought: I know.\nFinal Answer: forty-two\nand more", [], "forty-two\nand more"),
    "thought-in-prose": ("Thought: a nice word.", [], "Thought: a nice word."),
}  # fmt: skip


@pytest.mark.parametrize("name", TURNS)
def test_a_turn_of_any_form_gives_its_calls_and_its_text(name: str) -> None:
    content, calls, text = TURNS[name]
    message = parse_turn(content, tools=TOOLS)
    found = [(c.name, c.arguments) if isinstance(c, ToolCall) else c for c in message.calls]
    assert (found, message.text) == (calls, text)
    for size in (1, 2, 3, 7):
        assert (
            in_pieces([content[i : i + size] for i in range(0, len(content), size)], "", TOOLS, "stop")
            == message
        )


@pytest.mark.parametrize(
    "content",
    [
        '<tool_call>\n{"name": "python", "arguments": {"code": "rm = 1\\nprint(',
        '<tool_call>\n{"name": "search", "arguments": {"q": "x", "r": ',
        '```json\n{"name": "python", "arguments": {"code": "print(1)\\n',
        "<tool_call>\n<function=python>\n<parameter=code>\nprint(1)\npri",
        'Thought: x\nAction: python\nAction Input: {"code": "pri',
    ],
)
def test_half_a_program_cut_by_the_token_limit_is_never_run(content: str) -> None:
    (call,) = parse_turn(content, tools=TOOLS, finish_reason="length").calls
    assert isinstance(call, BadCall) and "cut off" in call.reason


def test_a_number_that_the_token_limit_may_have_cut_is_not_taken_for_whole() -> None:
    content = '<tool_call>{"name": "add", "arguments": {"a": 1'
    (call,) = parse_turn(content, tools=TOOLS, finish_reason="length").calls
    assert isinstance(call, BadCall)


def test_a_program_whose_string_never_ends_is_not_run() -> None:
    (call,) = parse_turn('<tool_call>{"name": "python", "arguments": {"code": "print(1)', tools=TOOLS).calls
    assert isinstance(call, BadCall)


def test_a_call_that_thinking_talks_itself_out_of_is_not_run() -> None:
    content = "<think>\n<tool_call>now</tool_call> but no, I should not"
    assert parse_turn(content, tools=TOOLS).calls == ()


def test_a_whole_call_before_the_cut_is_run() -> None:
    content = '<tool_call>{"name": "now", "arguments": {}}</tool_call>\n<tool_call>{"name": "python", "arguments": {"code": "a'
    good, bad = parse_turn(content, tools=TOOLS, finish_reason="length").calls
    assert isinstance(good, ToolCall) and isinstance(bad, BadCall)


@pytest.mark.parametrize(
    "raw", ['{"name": "g", "argum', '{"arguments": {}}', "[1, 2]", '{"name": "a", "arguments": 3}', "{oops"]
)
def test_a_hopeless_call_is_kept_as_it_was_written_and_loses_no_good_one(raw: str) -> None:
    content = f'<tool_call>{raw}</tool_call>\n<tool_call>{{"name": "now", "arguments": {{}}}}</tool_call>'
    bad, good = parse_turn(content, tools=TOOLS).calls
    assert isinstance(bad, BadCall) and bad.raw == raw and bad.reason
    assert isinstance(good, ToolCall) and good.name == "now"


def test_calls_of_the_server_come_first_and_their_arguments_are_mended() -> None:
    given = [
        {"id": "a", "function": {"name": "search", "arguments": '{"q": "x",}'}},
        {"id": "a", "function": {"name": "now", "arguments": ""}},
        {"id": "", "function": {"name": "add", "arguments": '{"a": '}},
    ]
    first, second, third = parse_turn("so:", tool_calls=given, tools=TOOLS).calls
    assert isinstance(first, ToolCall) and (first.id, first.arguments) == ("a", {"q": "x"})
    assert isinstance(second, ToolCall) and second.arguments == {} and second.id not in ("", "a")
    assert isinstance(third, BadCall) and third.id


def test_text_with_calls_is_kept_to_be_sent_back_unchanged() -> None:
    content = '<think>\nx\n</think>\n\n<tool_call>{"name": "now"}</tool_call>'
    assert parse_turn(content, tools=TOOLS).raw == content
    assert parse_turn("plain", tools=TOOLS).raw is None
    assert parse_turn(None, tool_calls=[{"function": {"name": "now"}}], tools=TOOLS).raw is None


SUM = '```json\n{"a": 1, "b": 2}\n```'


@pytest.mark.parametrize(
    "said",
    [
        "To find the sum, I would need to call the `add` function with the following arguments:\n" + SUM,
        "I will use `add` with these parameters:\n\n" + SUM + "\nIt returns the sum.",
        "Hello. You can use the `add` tool. You need the `add` function: use `add` with the arguments\n"
        + SUM,
    ],
)
def test_a_call_that_is_described_with_its_arguments_is_made(said: str) -> None:
    message = parse_turn(said, tools=TOOLS)
    assert [(c.name, c.arguments) for c in message.calls if isinstance(c, ToolCall)] == [
        ("add", {"a": 1, "b": 2})
    ]
    assert message.text.startswith(said.split("`")[0].strip())
    assert message.raw == said


@pytest.mark.parametrize(
    "said",
    [
        "I called the `add` function with these arguments:\n" + SUM,  # it was done
        "Use the `add` function. The result of `sum` with these arguments:\n" + SUM,  # of another
        "I will use the `add` function, which returns\n" + SUM,  # what came of it
        'I will use the `add` function with the arguments\n```json\n{"a": 1, "c": 2}\n```',  # not its arguments
        "I will use the `nope` function with the arguments\n" + SUM,
        "I will use the `add` function with the arguments\n" + SUM.removesuffix("\n```"),
        "I will use the `add` function with the arguments\n```json\n[1, 2]\n```",
        "<think>I will use the `add` function with the arguments\n" + SUM + "</think>3",
        "I will use the `add` function with the arguments\n"
        + SUM
        + "</think>3",  # its opening tag was in the prompt
    ],
)
def test_what_only_looks_like_a_described_call_is_an_answer(said: str) -> None:
    message = parse_turn(said, tools=TOOLS)
    assert message.calls == ()


def test_a_described_call_that_the_token_limit_may_have_cut_is_not_made() -> None:
    said = "I will use the `add` function with the arguments\n" + SUM
    assert parse_turn(said, tools=TOOLS, finish_reason="length").calls == ()


def test_prose_is_said_as_it_comes() -> None:
    parser = TurnParser(TOOLS)

    def said(text: str) -> str:
        return "".join(e.text for e in parser.feed(text) if isinstance(e, TextDelta))

    assert said("2 < 3, so <thin") == "2 < 3, so"
    assert said("g it") == " <thing it"
    assert said("\n```python\nprint(1)") == "\n```python\nprint(1)"


def test_a_call_is_ready_at_its_closing_tag() -> None:
    parser = TurnParser(TOOLS)
    (event,) = parser.feed('<tool_call>{"name": "now", "arguments": {}}</tool_call>')
    assert isinstance(event, CallReady)


def ready(parser: TurnParser, text: str) -> list[str]:
    return [
        e.call.name for e in parser.feed(text) if isinstance(e, CallReady) and isinstance(e.call, ToolCall)
    ]


@pytest.mark.parametrize(
    "opens", ["```json\n[", "[", "<tool_call>\n[", "```\n", "Both at once:\n\n```json\n[\n  "]
)
def test_a_call_in_a_list_is_ready_before_the_next_one_is_written(opens: str) -> None:
    parser = TurnParser(TOOLS)
    first = '{"name": "search", "arguments": {"q": "{x}"}}'
    second = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
    assert ready(parser, opens) == []
    assert ready(parser, first[:-1]) == []
    assert ready(parser, f"{first[-1]}, {second[:-1]}") == ["search"]
    assert ready(parser, second[-1]) == ["add"]
    assert parser.close() == []
    assert parser.message().text == ("Both at once:" if opens[0] == "B" else "")


def test_what_stands_behind_a_call_of_a_list_does_not_undo_it() -> None:
    call = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
    cut = parse_turn(f'[{call}, {{"name": "search", "arg', tools=TOOLS, finish_reason="length")
    assert [type(c) for c in cut.calls] == [ToolCall, BadCall]
    data = parse_turn(f'```json\n[{call}, {{"price": 3}}]\n```', tools=TOOLS)
    assert [c.name for c in data.calls if isinstance(c, ToolCall)] == ["add"] and data.text == ""
    braces = parse_turn(f"```json\n{call}}}\n```", tools=TOOLS)
    assert [c.name for c in braces.calls if isinstance(c, ToolCall)] == ["add"] and braces.text == ""


SHARDS = st.sampled_from(
    [
        "<think>", "</think>", "<tool_call>", "</tool_call>", "<tools>", "</tools>", "<response>", "</response>", "```", "```json\n",
        "`", "\n", " ", '{"name": "search", "arguments": {"q": "x"}}', '{"name": "search", ', '"arguments": {', "{", "}", "[", "]", '"', "'",
        '"""', "\\", "<function=search>", "<parameter=q>", "</parameter>", "</function>", "Thought: ", "\nAction: search", "\nAction Input: ",
        "Final Answer: ", "plain words", "a < b", '{"name": "nope", "arguments": {}}', "'name': 'now'", ",", ":", "\ud800", "\0",
    ]
)  # fmt: skip
MESSY = st.lists(SHARDS | st.text(max_size=6), max_size=14).map("".join)


@given(MESSY, st.lists(st.integers(0, 200), max_size=6), st.sampled_from(["stop", "length"]))
def test_where_the_text_is_cut_does_not_matter(content: str, at: list[int], finish: str) -> None:
    whole = parse_turn(content, tools=TOOLS, finish_reason=finish)
    cuts = sorted({min(i, len(content)) for i in at} | {0, len(content)})
    pieces = [content[a:b] for a, b in itertools.pairwise(cuts)]
    assert in_pieces(pieces, "", TOOLS, finish) == whole
    assert in_pieces(list(content), "", TOOLS, finish) == whole


@given(st.text(st.characters(exclude_characters="<`{[\n:*"), max_size=80).filter(str.strip))
def test_text_without_markup_comes_through_to_the_letter(content: str) -> None:
    assert parse_turn(content, tools=TOOLS).text == content


@given(
    MESSY,
    MESSY,
    st.lists(
        st.dictionaries(
            st.sampled_from(["id", "function", "name", "arguments"]), MESSY | st.none(), max_size=3
        ),
        max_size=3,
    ),
)
def test_nothing_makes_it_raise(content: str, reasoning: str, calls: list[dict[str, Any]]) -> None:
    message = parse_turn(content, reasoning=reasoning, tool_calls=calls, tools=TOOLS)
    ids = [c.id for c in message.calls]
    assert len(ids) == len(set(ids)) and all(ids)


@pytest.mark.e2e  # seconds of a busy processor
@pytest.mark.parametrize("size", [1, 4096])
@pytest.mark.parametrize(
    "shard",
    ["word ", "<tool_call>", '{"name": ', "[", "{", "`", "```\n", "<", "\n", '"', "<think>", "</tool_call>", '<tool_call>{"name": "', "<tools>{\"name\": \"a\"}", "\nAction: x", "<function=f>", "\\", '<response>{"a": '],
)  # fmt: skip
def test_a_megabyte_of_anything_is_read_in_good_time(shard: str, size: int) -> None:
    """A cost that grows with the square of the length would take hours here."""
    length = 1_000_000 if size > 1 and shard not in "[{<`" else 100_000
    content = shard * (length // len(shard))
    parser = TurnParser(TOOLS)
    for i in range(0, len(content), size):
        parser.feed(content[i : i + size])
    parser.close()
    parser.message()


def test_two_calls_of_a_server_that_gives_both_one_index_stay_two() -> None:
    parser = TurnParser([])
    for id, name, text in (("a", "f", '{"x"'), ("", "", ": 1}"), ("b", "g", "{}"), ("c", "f", '{"x": 2}')):
        parser.feed(calls=[CallFragment(0, id, name, text)])
    parser.close()
    assert [(c.id, c.name, c.arguments) for c in parser.message().calls] == [  # type: ignore[union-attr]
        ("a", "f", {"x": 1}), ("b", "g", {}), ("c", "f", {"x": 2}),
    ]  # fmt: skip
