"""Asking the user: through the agent's `ask_user`, or else on the terminal, or else the model goes on without."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final, Literal

import anyio
from anyio.lowlevel import RunVar

from agentkit import Tool, ToolError, tool
from agentkit.tools import AskUser, Notify

__all__ = ["AskTheUser", "ask_on_terminal", "ask_user"]

_NOBODY: Final = (
    "Nobody is there to answer. Go on with your best guess, and say in your answer what you assumed."
)
_SILENT: Final = (
    "The user did not answer. Go on with your best guess, and say in your answer what you assumed."
)
_QUESTION, _CHOICE, _CHOICES, _ANSWER = 2000, 200, 20, 4000  # characters, and how many choices
_ONE: RunVar[anyio.Lock] = RunVar("asking")  # one question at a time, whichever agent asks


@dataclass(frozen=True, slots=True)
class AskTheUser:
    """`ask_user`: the model asks its user a question, with or without answers to choose from.

    `ask` is who is asked; None: the terminal that the program runs on. Where there is none, the model is told so.
    """

    ask: AskUser | None = None
    scope: Literal["run", "agent"] = "agent"

    def with_user(self, ask: AskUser) -> AskTheUser:
        """The same, asking *ask*; one that was given before stays."""
        return self if self.ask is not None else replace(self, ask=ask)

    @asynccontextmanager
    async def open(self, notify: Notify) -> AsyncIterator[Sequence[Tool]]:
        @tool(effects=())
        async def ask_user(question: str, choices: list[str] | None = None) -> str:
            """Ask the user, when you cannot go on without knowing.

            Args:
                question: One short question.
                choices: Answers to choose from, if there are only a few.
            """
            asked = _clean(question, _QUESTION)
            if not asked:
                raise ToolError("question is empty; say what you want to know")
            offered = [
                text for c in (choices or [])[:_CHOICES] if (text := _clean(c, _CHOICE, one_line=True))
            ]
            ask = self.ask or (ask_on_terminal if _on_terminal() else None)
            if ask is None:
                return _NOBODY
            async with _lock():
                answer = await ask(asked, offered)
            return answer.strip()[:_ANSWER] if answer and answer.strip() else _SILENT

        yield [ask_user]


ask_user: Final = AskTheUser()


async def ask_on_terminal(question: str, choices: Sequence[str]) -> str | None:
    """An `AskUser`: asks on stderr and reads a line from stdin. None: Ctrl-D, or an empty line."""
    numbered = "".join(f"  {n}. {choice}\n" for n, choice in enumerate(choices, 1))
    how = "Number or your own words" if choices else "Answer"
    sys.stderr.write(f"\n? {question}\n{numbered}  {how} (Enter to skip): ")
    sys.stderr.flush()
    await anyio.wait_readable(sys.stdin)  # a thread that reads would take the next line after it was given up
    line = sys.stdin.readline()
    if not line:
        sys.stderr.write("\n")
    answer = line.strip()
    if answer.isdecimal() and 1 <= int(answer) <= len(choices):
        return choices[int(answer) - 1]
    return answer or None


def _on_terminal() -> bool:
    """Whether somebody can be asked there: not if the program was put in the background."""
    try:
        return sys.stdin.isatty() and sys.stderr.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):  # closed, or replaced by what is no file
        return False


def _lock() -> anyio.Lock:
    try:
        return _ONE.get()
    except LookupError:
        lock = anyio.Lock()
        _ONE.set(lock)
        return lock


def _clean(text: str, limit: int, one_line: bool = False) -> str:
    """Without what would move a terminal's cursor, recolour it, or turn the order of letters round."""
    kept = "".join(
        c
        for c in text.replace("\r\n", "\n").replace("\t", " ")
        if c == "\n" or c == "\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
    )
    kept = " ".join(kept.split()) if one_line else kept.strip()
    return kept if len(kept) <= limit else f"{kept[:limit]} …"
