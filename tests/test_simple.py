"""Parameters of JSON's own types, held against what pydantic makes of them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Literal, Optional

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentkit.errors import AgentkitError
from agentkit.faults import WrongArguments
from agentkit.schema import Signature, signature

TYPES: tuple[Any, ...] = (
    *(str, int, float, bool, list[str], list[int], list[float], list[bool], Literal["a", "b"]),
    *(str | None, Optional[int], float | None, list[bool] | None, Literal["a", "b"] | None),  # noqa: UP045
)
NOTHING = object()
DEFAULTS = st.sampled_from([NOTHING, None, "a", "", 0, -3, 2.5, float("inf"), True, False])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(), max_size=4), st.just("1")
)
VALUES = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.text(max_size=2), SCALARS, max_size=2)
)


def reads(hint: Any, default: Any, *, by_pydantic: bool) -> Signature:
    def fn(a: Any, other: Any = None) -> None:
        """Do it.

        Args:
            a: What to do.
        """

    def alone(a: Any) -> None:
        """Do it.

        Args:
            a: What to do.
        """

    made = (
        fn if by_pydantic else alone
    )  # a parameter of any type is left to pydantic, and so are those beside it
    made.__annotations__ = {**made.__annotations__, "a": hint}
    made.__defaults__ = (
        ((None,) if by_pydantic else None)
        if default is NOTHING
        else (default, None)
        if by_pydantic
        else (default,)
    )
    return signature(made, title="it")


def bound(read: Signature, arguments: dict[str, Any]) -> str:
    try:
        return repr(read.bind(arguments)[1].get("a"))  # with its type
    except WrongArguments as exc:
        return exc.plain.partition("Its arguments")[0]


@given(st.sampled_from(TYPES), DEFAULTS, VALUES)
@example(float, NOTHING, 2**53 + 1)
@example(str, NOTHING, "\ud800")
@example(int, NOTHING, "3")
@example(str, None, None)
def test_pydantic_would_say_the_same(hint: Any, default: Any, value: Any) -> None:
    ours, theirs = (reads(hint, default, by_pydantic=by) for by in (False, True))
    assert json.dumps(ours.parameters["properties"]["a"]) == json.dumps(theirs.parameters["properties"]["a"])
    assert ours.parameters.get("required") == theirs.parameters.get("required")
    for arguments in ({"a": value}, {}):
        assert bound(ours, arguments) == bound(theirs, arguments)


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(WrongArguments, match="b"):
        reads(int, NOTHING, by_pydantic=False).bind({"a": 1, "b": 2})
    assert not issubclass(WrongArguments, AgentkitError)  # it is the model's fault


def test_a_tool_of_simple_types_is_called_without_pydantic() -> None:
    code = """
import sys
from agentkit import Agent, tool
from agentkit.testing import ScriptedEngine

@tool
def add(a: int, b: int = 2, how: list[str] | None = None) -> int:
    '''Add.'''
    return a + b

engine = ScriptedEngine(['<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>', "3"])
result = Agent(engine, tools=[add]).run_sync("?")
assert result.messages[-2].results[0].content == "3"
print([name for name in ("pydantic", "pydantic_core") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
