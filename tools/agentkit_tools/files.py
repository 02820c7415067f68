"""Reading the user's files, below one folder."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from agentkit import Tool, ToolError, tool
from agentkit.tools import Notify

_LONGEST = 100_000  # characters of one answer; a longer file is read in pieces


@dataclass(frozen=True, slots=True)
class ReadFile:
    """`read_file` and `list_files` for everything below *root* (by default where the program runs), and nothing else."""

    root: str | Path = "."
    scope: Literal["run", "agent"] = "agent"

    @asynccontextmanager
    async def open(self, notify: Notify) -> AsyncIterator[Sequence[Tool]]:
        root = Path(self.root).resolve()

        def inside(path: str) -> Path:
            real = (root / Path(path).expanduser()).resolve()  # follows links: where the file is decides
            if not real.is_relative_to(root):
                raise ToolError(f"{path!r} is outside of the folder that may be read ({root})")
            return real

        @tool
        def read_file(path: str, start_line: int = 1, max_lines: int = 1000) -> str:
            """Read a text file.

            Args:
                path: Path of the file, relative to the working folder.
                start_line: First line to read, counted from 1.
                max_lines: How many lines to read at most.
            """
            first = max(start_line, 1)
            shown = _lines(inside(path), path, first, max(max_lines, 1) + 1)
            text = "".join(shown[:max_lines])
            more = len(shown) > max_lines or len(text) > _LONGEST
            return text[:_LONGEST] + (
                f"\n[the file goes on; read on with start_line={first + max_lines}]" if more else ""
            )

        @tool
        def list_files(path: str = ".") -> str:
            """List the files and folders in a folder.

            Args:
                path: Path of the folder, relative to the working folder.
            """
            folder = inside(path)
            try:
                entries = sorted(os.scandir(folder), key=lambda e: e.name)
            except OSError as exc:
                raise ToolError(f"{path!r} cannot be listed: {exc.strerror}") from None
            names = [
                f"{e.name}/" if e.is_dir() else f"{e.name} ({e.stat().st_size} bytes)" for e in entries[:500]
            ]
            return "\n".join(names) or "(empty)"

        yield [read_file, list_files]


def _lines(real: Path, path: str, first: int, count: int) -> list[str]:
    try:
        if not real.is_file():  # a pipe or a device would be waited for
            raise ToolError(f"{path!r} is a folder" if real.is_dir() else f"there is no file {path!r}")
        with real.open(encoding="utf-8", errors="replace") as file:
            return list(islice(file, first - 1, first - 1 + count))
    except OSError as exc:
        raise ToolError(f"{path!r} cannot be read: {exc.strerror}") from None


read_file = ReadFile()
