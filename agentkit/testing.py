"""Stand-ins for the slow part, for your tests and ours: an engine with a script, and recorded conversations."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import anyio.lowlevel

from agentkit.events import CallFragment
from agentkit.messages import Usage
from agentkit.runtime.engine import Chunk, Engine, Request

__all__ = ["RecordingEngine", "ReplayEngine", "ScriptedEngine"]

Turn: TypeAlias = str | Sequence[str | Chunk]


class ScriptedEngine:
    """Answers turn after turn from a script: each turn a text, or a list of text pieces and `Chunk`s.

    `requests` keeps what was asked, `closed` counts the answers that were read to the end or given up.
    Raises IndexError when more turns are asked for than there are.
    """

    def __init__(self, turns: Iterable[Turn]) -> None:
        self._turns = list(turns)
        self.requests: list[Request] = []
        self.closed = 0

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        turn = self._turns[len(self.requests)]
        self.requests.append(request)
        try:
            for piece in [turn] if isinstance(turn, str) else turn:
                await anyio.lowlevel.checkpoint()
                yield Chunk(text=piece) if isinstance(piece, str) else piece
        finally:
            self.closed += 1


class RecordingEngine:
    """Passes requests on to *engine* and writes each answer's chunks to *path*, one turn a line of JSON."""

    def __init__(self, engine: Engine, path: str | Path) -> None:
        self._engine, self._path = engine, Path(path)

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        chunks: list[Chunk] = []
        async with aclosing(self._engine.stream(request)) as answer:
            async for chunk in answer:
                chunks.append(chunk)
                yield chunk
        line = json.dumps([{k: v for k, v in asdict(c).items() if v} for c in chunks], ensure_ascii=False)
        async with await anyio.open_file(self._path, "a", encoding="utf-8") as file:
            await file.write(line + "\n")


class ReplayEngine(ScriptedEngine):
    """Answers from a file that `RecordingEngine` wrote, in the order it was recorded."""

    def __init__(self, path: str | Path) -> None:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        super().__init__([[_chunk(c) for c in json.loads(line)] for line in lines])


def _chunk(saved: dict[str, Any]) -> Chunk:
    calls = tuple(CallFragment(**c) for c in saved.pop("calls", ()))
    usage = saved.pop("usage", None)
    return Chunk(**saved, calls=calls, usage=Usage(**usage) if usage else None)
