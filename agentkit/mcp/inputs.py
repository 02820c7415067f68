"""`${input:id}` in config files: what VS Code's `inputs` say about an answer, and how a person gives it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from agentkit.errors import ConfigError

__all__ = ["Ask", "Input", "Inputs", "ask_on_terminal", "variable_of"]


@dataclass(frozen=True, slots=True)
class Input:
    """A question that a config file asks: free text, a secret, or one of `options`."""

    id: str
    description: str = ""
    default: str | None = None
    options: tuple[str, ...] = ()
    password: bool = False


Ask: TypeAlias = Callable[[Input], str | None]
"""Puts the question to a person and returns the answer; None where nobody can be asked."""


def variable_of(id: str) -> str:
    """The environment variable that answers an input: AGENTKIT_INPUT_GITHUB_TOKEN for github-token."""
    return "AGENTKIT_INPUT_" + re.sub(r"[^A-Z0-9]+", "_", id.upper())


class Inputs:
    """The inputs of one file, each asked at most once. Answers live in memory, for as long as this does."""

    def __init__(self, declared: Any, ask: Ask) -> None:
        entries = declared if isinstance(declared, Sequence) and not isinstance(declared, str) else ()
        self._ask = ask
        self._inputs = {i.id: i for entry in entries if (i := _input(entry)) is not None}
        self._answers: dict[str, str] = {}

    def answer(self, id: str) -> str:
        """From the environment, else from the person, else the default. Raises `ConfigError`, without the
        place."""
        if id not in self._answers:
            self._answers[id] = self._find(id)
        return self._answers[id]

    def _find(self, id: str) -> str:
        variable = variable_of(id)
        declared = self._inputs.get(id)
        given = os.environ.get(variable)
        if given is None and declared is not None:
            given = self._ask(declared)
            given = declared.default if given is None else given
        if given is None:
            about = f" ({declared.description})" if declared and declared.description else ""
            unknown = "" if declared else ", which is not among the file's 'inputs'"
            raise ConfigError(f"needs the input {id!r}{about}{unknown}; answer it by setting {variable}")
        if declared and declared.options and given not in declared.options:
            raise ConfigError(
                f"needs the input {id!r} ({variable}) to be one of {', '.join(declared.options)}"
            )
        return given


def _input(entry: Any) -> Input | None:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("id"), str):
        return None
    options = [
        str(option.get("value", option.get("label")) if isinstance(option, Mapping) else option)
        for option in entry.get("options") or ()
    ]
    default = entry.get("default")
    return Input(
        entry["id"],
        str(entry.get("description") or ""),
        None if default is None else str(default),
        tuple(options),
        entry.get("password") is True,
    )


def ask_on_terminal(question: Input) -> str | None:
    """Ask on the terminal, a password without showing it. None if stdin or stderr is not a terminal."""
    if sys.stdin is None or not sys.stdin.isatty() or not sys.stderr.isatty():
        return None
    text = question.description or question.id
    for number, option in enumerate(question.options, 1):
        print(f"  {number}. {option}", file=sys.stderr)
    if question.default is not None:
        text += " [****]" if question.password else f" [{question.default}]"
    while True:
        if question.password:
            import getpass

            try:
                given = getpass.getpass(f"{text}: ")
            except EOFError:
                return None
        else:
            print(f"{text}: ", end="", file=sys.stderr, flush=True)  # not on stdout, which may be a file
            line = sys.stdin.readline()
            if not line:
                return None
            given = line.rstrip("\n")
        if not given and question.default is not None:
            return question.default
        if question.options and given.isdigit() and 1 <= int(given) <= len(question.options):
            given = question.options[int(given) - 1]
        if not question.options or given in question.options:
            return given
