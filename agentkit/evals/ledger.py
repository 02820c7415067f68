"""Files of JSON lines that only grow, and that a process may be killed over at any time: what was done stays done."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from agentkit.errors import ConfigError

__all__ = ["Ledger", "Lines"]


class Lines:
    """A file with a JSON object on each line, for its owner's eyes only.

    Any number may read it; who appends keeps the others from appending until it is closed, or the process has ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The objects that are there now. A line that is not one was torn as its writer died, and is passed over."""
        content = self.path.read_bytes() if self.path.exists() else b""
        for line in content.split(b"\n")[:-1]:  # what the last line end is missing from is not whole
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value

    def append(self, value: Mapping[str, Any]) -> None:
        """Add a line, whole. Raises `ConfigError` where it has no room, or another process appends."""
        try:
            line = json.dumps(value, ensure_ascii=False, default=str).encode() + b"\n"
        except UnicodeEncodeError:  # half of a surrogate pair, which models do write
            line = json.dumps(value, default=str).encode() + b"\n"
        file, written = self.open(), 0
        end = os.lseek(file, 0, os.SEEK_END)
        with suppress(OSError):
            written = os.write(file, line)
        if written < len(line):
            os.ftruncate(file, end)
            raise ConfigError(f"{self.path} cannot grow; make room on its disk and run this again.")

    def open(self) -> int:
        """Be the one who appends, from here on."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                os.close(file)
                raise ConfigError(f"Another run writes to {self.path.parent}; wait for its end.") from exc
            os.fchmod(file, 0o600)
            os.ftruncate(file, self.path.read_bytes().rfind(b"\n") + 1)  # without the line that was torn
            self._file = file
        return self._file

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)


class Ledger:
    """The rows of an evaluation, one for each case that a system has done."""

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path)
        self.rows: list[dict[str, Any]] = list(self._lines)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row. Raises `ConfigError` if another process adds to the same file."""
        self._lines.append(row)
        self.rows.append(dict(row))

    def done(self, suite: str, system: str) -> set[str]:
        """The ids of the cases that the system has done."""
        return {row["id"] for row in self.rows if row["suite"] == suite and row["system"] == system}

    def close(self) -> None:
        self._lines.close()
