"""The tools that every framework offers to the model: plain functions, which their adapters wrap as their docs have it.

`calls` counts them, `marks` are the processor and wall time in nanoseconds at each call, while it is a list.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

calls = 0
marks: list[tuple[int, int]] | None = None


def _called() -> None:
    global calls
    calls += 1
    if marks is not None:
        marks.append((time.process_time_ns(), time.perf_counter_ns()))


def add(a: int, b: int) -> int:
    """Add two integers.

    Args:
        a: the first number
        b: the second number
    """
    _called()
    return a + b


def slow(n: int) -> int:
    """Wait a little and return the number.

    Args:
        n: a number
    """
    _called()
    time.sleep(0.2)
    return n


async def slow_async(n: int) -> int:
    """Wait a little and return the number.

    Args:
        n: a number
    """
    _called()
    await asyncio.sleep(0.2)
    return n


slow_async.__name__ = "slow"


def note(text: str) -> int:
    """Store a note and return its length.

    Args:
        text: the text of the note
    """
    _called()
    return len(text)


def named(name: str) -> Callable[..., Any]:
    """`add`, `slow`, `slow_async` (whose tool is called slow as well) or `note`."""
    tools: dict[str, Callable[..., Any]] = {"add": add, "slow": slow, "slow_async": slow_async, "note": note}
    return tools[name]


def _schema(**properties: str) -> dict[str, Any]:
    kinds = {"text": "string"}
    return {
        "type": "object",
        "properties": {
            k: {"type": kinds.get(k, "integer"), "description": about} for k, about in properties.items()
        },
        "required": list(properties),
    }


# for those that take schemas rather than functions
SCHEMAS = {
    "add": _schema(a="the first number", b="the second number"),
    "slow": _schema(n="a number"),
    "note": _schema(text="the text of the note"),
}
ABOUT = {
    "add": "Add two integers.",
    "slow": "Wait a little and return the number.",
    "note": "Store a note and return its length.",
}


def offered(function: Callable[..., Any]) -> dict[str, Any]:
    """A function as chat completions have it."""
    name = function.__name__
    return {
        "type": "function",
        "function": {"name": name, "description": ABOUT[name], "parameters": SCHEMAS[name]},
    }
