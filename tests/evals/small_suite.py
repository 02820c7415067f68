"""A suite of sums for tests, as users write theirs, and a scripted model that can do them."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from agentkit import tool
from agentkit.evals import Case, Outcome, Verdict
from agentkit.messages import user


def one(id: str, category: str, *asked: str, **rest: Any) -> Case:
    return Case(id, category, tuple((user(text),) for text in asked), max_requests=3, max_tokens=99, **rest)


class World:
    def __init__(self, case: Case) -> None:
        @tool
        def add(a: int, b: int) -> int:
            """Add two numbers."""
            return a + b

        self.tools = [add]
        self._case = case

    async def check(self, outcome: Outcome) -> Verdict:
        if self._case.category == "quiet":
            return Verdict(not outcome.calls, "it called something")
        asked = [turn[-1].text for turn in self._case.turns]
        right = [str(sum(map(int, re.findall(r"\d+", text)))) for text in asked]
        called = [call.turn for call in outcome.calls] == list(range(len(asked)))
        return Verdict(called and list(outcome.answers) == right, f"{outcome.answers}")


class Sums:
    name = "sums"

    def cases(self) -> Sequence[Case]:
        return [
            *(one(f"sum-{n}", "sum", f"What is {n} plus {n + 1}?") for n in range(1, 7)),
            one("talk", "talk", "What is 10 plus 20?", "And 30 plus 40?"),
            one("hello", "quiet", "Say hello.", first_round=True),
            one("eager", "quiet", "What is 5 plus 5? Do not add!", first_round=True),
            one("spin", "endless", "Go on for ever."),
        ]

    @asynccontextmanager
    async def open(self, case: Case) -> AsyncIterator[World]:
        yield World(case)


suite = Sums()


def model(x: Any) -> None:
    """Answers one request: it adds what it is asked to, repeats what a tool says, and may go on for ever."""
    messages = x.body["messages"]
    asked = next(m["content"] for m in reversed(messages) if m["role"] == "user")
    numbers = [int(n) for n in re.findall(r"\d+", asked)]
    if "for ever" in asked:
        numbers = [len(messages), 0]
    message: dict[str, Any] = {"role": "assistant", "content": "Hello."}
    if messages[-1]["role"] == "tool" and "for ever" not in asked:
        message["content"] = re.findall(r"\d+", messages[-1]["content"])[0]
    elif numbers:
        arguments = json.dumps({"a": numbers[0], "b": numbers[1]})
        call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}
        message |= {"content": None, "tool_calls": [call]}
    finish = "tool_calls" if "tool_calls" in message else "stop"
    choice = {"index": 0, "message": message, "finish_reason": finish}
    usage = {"prompt_tokens": 500, "completion_tokens": 5, "total_tokens": 505}
    x.reply(200, json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}))
