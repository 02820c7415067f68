"""Code as models send it, read as the code they mean."""

from __future__ import annotations

import ast
import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentkit.errors import ToolError
from agentkit_tools.python_source import read_cell, read_code

WANTED = "x = 6\nprint(x * 7)"
SMART = "name = “A”\nprint(name, ‘b’)"


@pytest.mark.parametrize(
    "sent",
    [
        f"```python\n{WANTED}\n```",
        f"```python\n{WANTED}",
        f"{WANTED}\n```",
        f"Let me see:\n```py\n{WANTED}\n```\nand so on\n```output\n42\n```",
        "```python\nx = 6\n```\nthen\n```python\nprint(x * 7)\n```",
        f"<code>\n{WANTED}\n</code>",
        f"<tool_code>{WANTED}</tool_code>",
        f"<|python_tag|>{WANTED}<|im_end|>",
        f"python\n{WANTED}",
        f"`{WANTED}`",
        f'"""\n{WANTED}\n"""',
        f'"""{WANTED}',
        json.dumps(WANTED),
        json.dumps({"code": WANTED}),
        json.dumps({"code": json.dumps({"code": WANTED})}),
        json.dumps({"arguments": {"python": WANTED}, "code": {"code": WANTED}}),
        '{"code": "' + WANTED + '"}',
        WANTED.replace("\n", "\\n"),
        "    x = 6\n    print(x * 7)",
        "x = 6\n    print(x * 7)",
    ],
)
@pytest.mark.parametrize("shape", [str, lambda code: {"code": code}, lambda code: {"script": code}])
def test_what_is_around_the_code_is_taken_off(sent: str, shape: Any) -> None:
    assert read_code(shape(sent)).strip() == WANTED


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ({"code": WANTED.split("\n")}, WANTED),
        ({"code": ["x = 6\n", "print(x * 7)\n"]}, WANTED + "\n"),
        (SMART, SMART.translate(str.maketrans("“”‘’", "\"\"''"))),
        ('print(f\\"{6 * 7}\\")', 'print(f"{6 * 7}")'),
        ('x = 1\\nprint(\\"a\\\\nb\\")', 'x = 1\nprint("a\\nb")'),
    ],
)
def test_lines_quotes_and_escapes_are_put_right(sent: Any, meant: str) -> None:
    assert read_code(sent) == meant


@pytest.mark.parametrize("sent", [{}, {"code": ""}, {"code": 3}, {"a": 1, "b": 2}, "```bash\nls\n```", "  "])
def test_a_call_without_python_is_told_what_is_wanted(sent: Any) -> None:
    with pytest.raises(ToolError, match="Python|print"):
        read_code(sent)


_NAME = st.sampled_from(["x", "data", "print", "python_1", "_", "é"])
_STRING = st.text(alphabet="ab \\n\n`\"'“”{}%!<code>/py", max_size=30).map(repr)
_EXPRESSION = st.recursive(
    st.one_of(
        _NAME, _STRING, st.integers().map(repr), st.just("f'{x}%'"), st.just("'''\n```python\n```\n'''")
    ),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from([" % ", " + ", " != "]), inner).map("".join),
        inner.map(lambda e: f"print({e})"),
        st.tuples(inner, inner).map(lambda pair: f"{{{pair[0]}: {pair[1]}}}"),
    ),
    max_leaves=5,
)
_STATEMENT = st.one_of(
    _EXPRESSION,
    st.tuples(_NAME, _EXPRESSION).map(" = ".join),
    _EXPRESSION.map(lambda e: f"if {e}:\n    pass\nelse:\n\t{e}"),
    st.just("import os  # ```"),
    st.just("async def f():\n    await g()\nawait f()"),
    st.just('"""a docstring\n!ls\n%pip install x\n"""'),
)
_PROGRAM = st.lists(_STATEMENT, min_size=1, max_size=4).map("\n".join)


def is_only_data(code: str) -> bool:
    """A program that is nothing but one string, or one dict: it is taken for quoted code, or for JSON."""
    body = ast.parse(code).body
    return (
        len(body) == 1
        and isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant | ast.Dict)
    )


@given(_PROGRAM)
@example("x = 7 \\\n%3")
@example("'''doc'''\nprint('```')")
def test_code_that_compiles_is_passed_on_unchanged(code: str) -> None:
    try:
        compile(code, "<code>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if is_only_data(code):
            return
    except (SyntaxError, ValueError):
        return
    assert read_code({"code": code}) == code
    assert read_cell(code).code == code


@given(st.text(max_size=200))
def test_nothing_that_is_sent_breaks_the_reading(text: str) -> None:
    for sent in (text, {"code": text}):
        with contextlib.suppress(ToolError):
            read_cell(read_code(sent))


@pytest.mark.parametrize(
    ("code", "meant"),
    [
        ("%matplotlib inline\nx = 1", "pass\nx = 1"),
        ("if x:\n    !ls -l\n", "if x:\n    __shell__('ls -l')\n"),
        ("files = !ls", "files = __shell__('ls', capture=True)"),
        ("%time x = 1", "x = 1"),
        ("%%time\nx = 1", "x = 1"),
        ("%cd data\nx", "__import__('os').chdir(__import__('os').path.expanduser('data'))\nx"),
    ],
)
def test_notebook_commands_become_python(code: str, meant: str) -> None:
    assert read_cell(code).code == meant


@pytest.mark.parametrize(
    "line",
    [
        "!pip install -q seaborn 'polars>=1'",
        "%pip install seaborn polars>=1",
        "pip install seaborn polars>=1",
        "!python -m pip install seaborn polars>=1  # now",
    ],
)
def test_installing_is_asked_for_and_not_done(line: str) -> None:
    cell = read_cell(f"{line}\nimport seaborn")
    assert (cell.installs, cell.code) == (("seaborn", "polars>=1"), "pass\nimport seaborn")


def test_other_notebook_commands_are_refused_with_their_line() -> None:
    with pytest.raises(ToolError, match="Line 2: %sql is a notebook command"):
        read_cell("x = 1\n%sql select 1")
    assert read_cell("%%bash\nls").is_shell


def test_a_mistake_of_the_model_stays_where_it_is() -> None:
    assert read_cell(read_code("x = 1\nprint(x y)")).code == "x = 1\nprint(x y)"
