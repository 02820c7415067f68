"""One request to a worker, followed to its end: what it puts out, what it says of itself, when it has to stop."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final, Literal

import anyio

from agentkit.sandbox.execution import ExecutionError, Limits, OnOutput, Status, Stream
from agentkit.sandbox.process import Process, ProtocolError
from agentkit.sandbox.workspace import create_file

__all__ = ["Run", "WholeOutput"]

_GRACE: Final = 2.0  # seconds from the interrupt to the end


class Run:
    """One request to a worker, followed to its end."""

    def __init__(
        self,
        process: Process,
        request: int,
        limits: Limits,
        on_output: OnOutput | None,
        whole: WholeOutput | None,
    ) -> None:
        self.process, self.request, self.limits, self.on_output = process, request, limits, on_output
        self.whole = whole
        self.streams: dict[Literal["stdout", "stderr"], Stream] = {
            "stdout": Stream(limits.output),
            "stderr": Stream(limits.output),
        }
        self._names: dict[int, Literal["stdout", "stderr"]] = {process.out: "stdout", process.err: "stderr"}
        self.facts: dict[str, str] = {}
        self.stopped: Status | None = None  # why it was interrupted
        self.ended = False  # the process is no longer fit for use
        self.died: int | None = None  # exit status of the worker that was replaced in it
        self.lost_before = False  # it had been replaced before
        self.allowed = 0.0
        self._output = 0

    @property
    def status(self) -> Status:
        if self.stopped is not None:
            return self.stopped
        if "E" in self.facts:
            return "memory" if self.facts["E"] == "MemoryError" else "error"
        return "error" if self.exit_code else "ok"

    @property
    def exit_code(self) -> int | None:
        return _number(self.facts.get("C", ""))

    @property
    def error(self) -> ExecutionError | None:
        facts = self.facts
        if "E" not in facts:
            return None
        return ExecutionError(facts["E"], facts.get("M", ""), facts.get("T", ""), _number(facts.get("L", "")))

    async def follow(self, code: str, timeout: float) -> None:
        """Have *code* run; interrupt it after *timeout* or too much output, end it if that does not help."""
        self.allowed = timeout
        deadline = anyio.current_time() + timeout
        try:
            with anyio.CancelScope(deadline=deadline):
                await self.process.send(self.request, code)
            await self._listen(deadline)
        except (OSError, ProtocolError):
            self.ended = True
        if not self.ended:
            for fd in (self.process.out, self.process.err):
                for _ in range(32):  # what a pipe can hold, and no more: a thread may go on writing
                    if not self._take(fd):
                        break
        for name, stream in self.streams.items():
            self._show(name, stream.feed(b"", final=True))

    async def interrupted(self) -> bool:
        """Stop the code now; false if it cannot be."""
        self.on_output = None
        self._stop("timeout")
        try:
            await self._listen(anyio.current_time() + _GRACE)
        except (OSError, ProtocolError):
            return False
        return not self.ended

    def _stop(self, why: Status) -> None:
        self.stopped = why
        self.process.interrupt()

    async def _listen(self, deadline: float) -> None:
        process = self.process
        while True:
            with anyio.CancelScope(deadline=deadline) as waiting:
                await anyio.wait_readable(process.poll)
            if waiting.cancelled_caught:
                if self.stopped is not None:
                    self.ended = True
                    return
                self._stop("timeout")
                deadline = anyio.current_time() + _GRACE
            for fd, _ in process.poll.poll(0):
                if fd in self._names:
                    self._take(fd)
                elif not process.receive():
                    self.ended = True
            for kind, request, text in process.facts():
                if kind == "X":
                    self._note_death(request, text)
                elif request == self.request:
                    self.facts[kind] = text
            if "D" in self.facts or self.ended or self.died is not None:
                return
            if self._output > self.limits.flood and self.stopped is None:
                self._stop("output")
                deadline = anyio.current_time() + _GRACE

    def _note_death(self, request: int, status: str) -> None:
        if request == self.request:
            number = _number(status)
            self.died = 1 if number is None else number
        elif request:  # that it had run, after which it died
            self.lost_before = True

    def _take(self, fd: int) -> bool:
        data = self.process.read(fd)
        if data is None:
            return False
        self._output += len(data)
        if self.whole is not None:
            self.whole.feed(data)
        name = self._names[fd]
        self._show(name, self.streams[name].feed(data))
        return True

    def _show(self, name: Literal["stdout", "stderr"], text: str) -> None:
        if text and self.on_output is not None:
            self.on_output(name, text)


class WholeOutput:
    """All that a run puts out; from *limit* bytes on, it is in a file of the workspace."""

    def __init__(self, workspace: Path, limit: int, owner: int | None) -> None:
        self._workspace, self._limit, self._owner = workspace, limit, owner
        self._held = bytearray()
        self._file: int | None = None
        self.name: str | None = None

    def feed(self, data: bytes) -> None:
        if self.name is None:
            self._held += data
            if len(self._held) <= self._limit:
                return
            data = bytes(self._held)
        try:
            if self.name is None:
                self._file, self.name = create_file(self._workspace, "output", ".txt", self._owner)
            elif self._file is None:
                self._file = os.open(self._workspace / self.name, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
            os.write(self._file, data)
        except OSError:  # the disk is full, or the code removed it: what is kept for the model is not touched
            self._limit, self.name = sys.maxsize, None

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _number(text: str) -> int | None:
    """A number that a worker sent; None for anything else, for the code may have sent it."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
