"""What a run of code is allowed and what it comes back with. Plain data."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from agentkit.messages import Artifact

__all__ = ["Execution", "ExecutionError", "Limits", "OnOutput", "Status"]

OnOutput: TypeAlias = Callable[[Literal["stdout", "stderr"], str], None]
Status: TypeAlias = Literal["ok", "error", "timeout", "memory", "disk", "output", "crashed"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the code of one sandbox may use. Sizes are in bytes."""

    memory: int = 2 << 30  # of one process
    total_memory: int = 3 << 30  # of all its processes together
    processes: int = 64  # and threads
    disk: int = 1 << 30  # of the workspace
    file: int = 256 << 20
    files: int = 20_000  # in the workspace
    output: int = (
        120_000  # characters kept of each stream: five sixths from its start, one sixth from its end
    )
    flood: int = 64 << 20  # output of one run after which it is stopped


@dataclass(frozen=True, slots=True)
class ExecutionError:
    """The exception that ended the code."""

    name: str
    value: str
    traceback: str = ""
    line: int | None = None  # of the code that was run, counted from 1


@dataclass(frozen=True, slots=True)
class Execution:
    """What one run of code came to.

    `error` is None when the code was ended from outside before it could raise: `status` then says why and
    `detail` says it in words. With `state_lost`, the interpreter was replaced: variables are gone, files are
    not.
    """

    status: Status
    stdout: str = ""
    stderr: str = ""
    result: str | None = None  # repr of the last expression
    error: ExecutionError | None = None
    artifacts: tuple[Artifact, ...] = ()  # new and changed files of the workspace, figures among them
    state_lost: bool = False
    seconds: float = 0.0
    truncated: int = 0  # characters left out of stdout and stderr
    detail: str = ""
    exit_code: int | None = None  # of a shell command that came to its end
    held: str = ""  # what the variables of the line that failed hold: "sales is a DataFrame of 181 rows with the columns …"
    assigned: str | None = None  # "x = 4", if the code ends so: a short form of the value
    saved_output: str | None = None  # all output, if it was more than asked: a file of the workspace
    lost: str = ""  # with state_lost, the names of the variables that there were
    backend: str = ""  # what protected the machine

    @property
    def ok(self) -> bool:
        return self.status == "ok"


class Stream:
    """Bytes of one output stream as they come; of their text, the start and the end are kept."""

    def __init__(self, limit: int) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode
        self._head: list[str] = []
        self._room = limit - limit // 6
        self._tail = ""
        self._tail_size = limit // 6
        self.omitted = 0

    def feed(self, data: bytes, final: bool = False) -> str:
        """The part of the text that is kept from the start, for those who watch."""
        text = self._decode(data, final)
        shown = text[: self._room]
        if shown:
            self._room -= len(shown)
            self._head.append(shown)
        rest = text[len(shown) :]
        if rest:
            tail = self._tail + rest
            self._tail = tail[-self._tail_size :] if self._tail_size else ""
            self.omitted += len(tail) - len(self._tail)
        return shown

    def text(self) -> str:
        gap = f"\n… {self.omitted} characters left out …\n" if self.omitted else ""
        return "".join(self._head) + gap + self._tail
