"""Calls that a model writes as Python."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.messages import BadCall, Message, ToolCall, user
from agentkit.parsing import parse_turn
from agentkit.runtime.engine import Request
from agentkit.runtime.protocols import python


def tool(name: str, required: tuple[str, ...] = (), **properties: str) -> dict[str, Any]:
    known = {k: {"type": kind} for k, kind in properties.items()}
    parameters = {"type": "object", "properties": known, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": "Do it.", "parameters": parameters}}


TOOLS = [
    tool("weather", ("city",), days="integer", city="string"),
    tool("math_sqrt", ("x",), x="number"),
    tool("plot", ("f",), f="string"),
    tool("save", ("rows",), rows="array", options="object"),
]


def calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    made = parse_turn(text, tools=TOOLS).calls
    return [(c.name, dict(c.arguments)) for c in made if isinstance(c, ToolCall)]


OSLO = ("weather", {"city": "Oslo"})


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ('```python\nweather(city="Oslo")\n```', [OSLO]),
        ('I look it up.\n\n```py\nweather("Oslo")\n```\n\nThen I will tell you.', [OSLO]),
        ('```\nweather("Oslo")', [OSLO]),
        ('weather(city="Oslo")', [OSLO]),
        ('```tool_code\nprint(weather(city="Oslo"))\n```', [OSLO]),
        ('```python\nimport json\nresult = weather("Oslo")\nprint(result)\n```', [OSLO]),
        ('```python\ncity = "Oslo"\nweather(city, days=2)\n```', [("weather", {"city": "Oslo", "days": 2})]),
        ("```python\nweather('Oslo', 3)\n```", [("weather", {"city": "Oslo", "days": 3})]),
        (
            '```python\nweather("Oslo")\n```\nand\n```python\nmath.sqrt(-2.5)\n```',
            [OSLO, ("math_sqrt", {"x": -2.5})],
        ),
        ("```python\nplot(lambda x: x**2)\n```", [("plot", {"f": "lambda x: x ** 2"})]),
        (
            '```python\nsave(rows=[1, (2, None)], options={"deep": {"a": True}})\n```',
            [("save", {"rows": [1, [2, None]], "options": {"deep": {"a": True}}})],
        ),
    ],
)
def test_a_block_that_only_calls_tools_is_calls(text: str, made: list[Any]) -> None:
    assert calls(text) == made


@pytest.mark.parametrize(
    "text",
    [
        '```python\nx = weather("Oslo")\nmath_sqrt(x)\n```',
        '```python\nmath_sqrt(weather("Oslo"))\n```',
        '```python\nx = weather("Oslo")\nprint(math_sqrt(x=x["wind"]))\n```',
    ],
)
def test_a_call_that_needs_the_result_of_another_waits_for_it(text: str) -> None:
    assert calls(text) == [OSLO]


@pytest.mark.parametrize(
    "text",
    [
        '```python\nfor city in ["Oslo"]:\n    weather(city)\n```',  # a program
        'def weather(city):\n    return "sunny"',
        '```python\nprint("weather")\n```',
        "```python\n" + "weather(" * 5_000 + "```",
        '```python\nprint("weather"\n```',
        'You can call `weather(city="Oslo")` for that.',
        "The weather (city centre) is fine.",
        "weather",
        "```python\nweather(*cities)\n```",
        "```python\nweather(**given)\n```",
        '```python\nweather("Oslo", 1, 2)\n```',
    ],
)
def test_what_does_more_than_call_or_is_no_code_is_an_answer(text: str) -> None:
    message = parse_turn(text, tools=TOOLS)
    assert not message.calls and message.text == text


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ('```python\nx = weather("Oslo")\nif x["rain"]:\n    save(rows=[x])\n```', [OSLO]),
        ('```python\nprint(len(weather("Oslo")))\n```', [OSLO]),
        ('```python\nx = 2 * float(weather("Oslo")) + 1\n```', [OSLO]),
        ('```python\nall = [weather(city) for city in ["Oslo"]]\nprint(all)\n```', []),
    ],
)
def test_the_calls_that_a_block_begins_with_are_made_and_the_rest_waits(text: str, made: list[Any]) -> None:
    assert calls(text) == made


def test_what_is_given_without_a_name_is_not_what_is_given_by_name_as_well() -> None:
    assert calls('```python\nweather(3, city="Oslo")\n```') == [("weather", {"days": 3, "city": "Oslo"})]


RUNS = tool("run_python", ("code",), code="string")
PROGRAM = "import csv\n\nrows = list(csv.reader(open('a.csv')))\nprint(len(rows))"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"```python\n{PROGRAM}\n```", PROGRAM),
        (f"```py\n{PROGRAM}", PROGRAM),
        ("```python\nx = 2\nx ** 10\n```", "x = 2\nx ** 10"),
        ('```python\nx = weather("Oslo")\nprint(x["rain"])\nfor y in x: print(y)\n```', 'x = weather("Oslo")\nprint(x["rain"])\nfor y in x: print(y)'),
    ],
)  # fmt: skip
def test_a_program_that_shows_something_is_for_the_tool_that_runs_programs(text: str, code: str) -> None:
    made = parse_turn(text, tools=[*TOOLS, RUNS]).calls
    assert [(c.name, dict(c.arguments)) for c in made if isinstance(c, ToolCall)] == [
        ("run_python", {"code": code})
    ]
    assert not any(
        c.name == "run_python" for c in parse_turn(text, tools=TOOLS).calls if isinstance(c, ToolCall)
    )


@pytest.mark.parametrize(
    "text",
    [
        f"This counts the rows:\n\n```python\n{PROGRAM}\n```",  # it was asked to write one
        f"```python\n{PROGRAM}\n```\nand\n```python\n{PROGRAM}\n```",
        f"```\n{PROGRAM}\n```",
        "```python\ndef f(x):\n    return x\n```",
        "```python\nprint(\n```",
        '```python\n"text"\n```',
    ],
)
def test_code_that_only_shows_how_is_an_answer(text: str) -> None:
    message = parse_turn(text, tools=[*TOOLS, RUNS])
    assert not message.calls and message.text == text


@pytest.mark.parametrize("code", ['weather("Oslo"', "weather --city Oslo", "print(weather(Oslo..Bergen))"])
def test_a_block_that_begins_with_a_tool_and_is_no_python_is_a_call_that_cannot_be_read(code: str) -> None:
    (made,) = parse_turn(f"```python\n{code}\n```", tools=TOOLS).calls
    assert isinstance(made, BadCall) and code in made.raw and made.reason == "it is not a Python call"


def test_code_that_stands_in_thoughts_is_not_called() -> None:
    assert calls('<think>\n```python\nweather("Oslo")\n```\n</think>\n\nIt is sunny.') == []


@given(st.text("weathr('Oslo\")=\n`python,[]{}1.x\\ ", max_size=60))
def test_no_code_makes_it_raise(text: str) -> None:
    parse_turn(f"```python\nweather(\n{text}\n```", tools=TOOLS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(JSON), st.dictionaries(st.text(), JSON), st.text())
def test_what_the_protocol_writes_is_read_as_it_was(
    rows: list[Any], options: dict[str, Any], city: str
) -> None:
    made = (
        ToolCall("1", "save", {"rows": rows, "options": options}),
        ToolCall("2", "weather", {"city": city}),
    )
    said = python(Request([user("?"), Message("assistant", made)], TOOLS)).messages[-1].text
    assert calls(said) == [(c.name, dict(c.arguments)) for c in made]
