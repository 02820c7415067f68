"""A model by its name, run on this machine: its weights are found and its server is started when it is opened."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING

import anyio.to_thread

from agentkit.errors import EngineError
from agentkit.runtime.engine import Chunk, Request

if TYPE_CHECKING:
    from agentkit.runtime.llama_cpp import LlamaCpp

__all__ = ["Local"]


class Local:
    """The engine behind `Agent(model="qwen3-4b")`: `resolve`, then `LlamaCpp`."""

    def __init__(
        self, model: str | None, notify: Callable[[str], object] | None = None, *, keep_alive: float = 300.0
    ) -> None:
        self.model = model or ""
        self._asked, self._notify, self._keep_alive = model, notify, keep_alive
        self._engine: LlamaCpp | None = None
        self._opening = anyio.Lock()

    async def __aenter__(self) -> Local:
        from agentkit.runtime.llama_cpp import LlamaCpp
        from agentkit.runtime.models import resolve

        async with self._opening:
            if self._engine is None:
                notify = self._notify or (lambda _: None)
                weights = await anyio.to_thread.run_sync(resolve, self._asked, notify, abandon_on_cancel=True)
                self.model = weights.name
                self._engine = LlamaCpp(
                    weights.path, name=weights.name, keep_alive=self._keep_alive, notify=self._notify
                )
            await self._engine.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._engine is not None:
            await self._engine.__aexit__(kind, exc, tb)

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        if self._engine is None:
            raise EngineError(
                "The model is not running; use the engine inside `async with`, or give it to an Agent."
            )
        async with aclosing(self._engine.stream(request)) as chunks:
            async for chunk in chunks:
                yield chunk
