"""What an evaluation is made of: cases, the world each of them is run in, what came of it. Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from agentkit.messages import Message
from agentkit.tools import Tool

__all__ = ["Call", "Case", "Ended", "Outcome", "Suite", "Verdict", "World"]

Ended: TypeAlias = Literal["answer", "first_round", "budget", "timeout", "error"]


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to be done, the same for every system that is measured.

    `turns` are what the user says, one after the other as each has been answered; of a turn with several messages the
    last is the user's, and what is before it is put into the conversation as it is. The budget is `max_requests` to
    the model in each turn, `max_tokens` of one answer, and `timeout` seconds of all but the model, so that a slow one gets
    no less done. With `first_round` it is over once the calls of one model turn have been carried out.
    """

    id: str
    category: str
    turns: tuple[tuple[Message, ...], ...]
    max_requests: int = 8
    max_tokens: int = 1024
    timeout: float = 300.0
    first_round: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A call that reached a tool."""

    name: str
    arguments: Mapping[str, Any]
    turn: int  # of the user, from 0
    round: int  # how many requests to the model there had been in this turn, from 1
    result: str = ""
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a system made of a case."""

    answers: tuple[str, ...]  # one for each turn that was answered
    calls: tuple[Call, ...]  # in the order they were made
    ended: Ended
    error: str = ""  # of the system, in a line


@dataclass(frozen=True, slots=True)
class Verdict:
    passed: bool
    why: str = ""  # in a few words, if it did not


class World(Protocol):
    """What a case is run in: files, servers, the tools that work on them. Made anew for each run of it."""

    @property
    def tools(self) -> Sequence[Tool]: ...

    async def check(self, outcome: Outcome) -> Verdict:
        """Judge the outcome by what has been said, called, and by what the world has become."""
        ...


class Suite(Protocol):
    """Cases that belong together."""

    @property
    def name(self) -> str: ...

    def cases(self) -> Sequence[Case]:
        """All of them, always in the same order. Raises `ConfigError` where their data is not installed."""
        ...

    def open(self, case: Case) -> AbstractAsyncContextManager[World]: ...
