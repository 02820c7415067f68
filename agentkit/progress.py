"""How a tool that is running tells whoever watches the run how far it has come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

__all__ = ["Watcher", "report_progress", "watched", "watcher"]

Watcher: TypeAlias = Callable[[float, float | None, str], Awaitable[None]]

_watcher: ContextVar[Watcher | None] = ContextVar("agentkit_progress", default=None)


async def report_progress(done: float, total: float | None = None, message: str = "") -> None:
    """Call this in an async tool to say how far it is: 3 of 10, or 3 of who knows. Nobody need be watching."""
    watch = _watcher.get()
    if watch is not None:
        await watch(done, total, message)


def watcher() -> Watcher | None:
    """Whoever watches the call that this task is making; to be asked at its start, for tasks that it has none of."""
    return _watcher.get()


@contextmanager
def watched(watch: Watcher) -> Iterator[None]:
    """In the body, which carries out one call, progress goes to *watch*; what comes after it is dropped."""
    over = False

    async def while_it_lasts(done: float, total: float | None, message: str) -> None:
        if not over:
            await watch(done, total, message)

    token = _watcher.set(while_it_lasts)
    try:
        yield
    finally:
        over = True
        _watcher.reset(token)
