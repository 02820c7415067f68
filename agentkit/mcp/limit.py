"""Time limits that stand still while a person is asked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import anyio

__all__ = ["Limit", "Limits"]


class Limits:
    """The limits of all that one server is doing: whom it asks, and for which call, cannot be told apart."""

    def __init__(self) -> None:
        self.running: set[Limit] = set()
        self.asking = 0

    def limit(self, seconds: float, total: float = math.inf) -> Limit:
        """`with limits.limit(60):` raises `TimeoutError` when the body takes longer."""
        return Limit(self, seconds, total)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """In the body, time does not count."""
        self.asking += 1
        if self.asking == 1:
            for limit in self.running:
                limit.stop()
        try:
            yield
        finally:
            self.asking -= 1
            if not self.asking:
                for limit in self.running:
                    limit.go_on()


class Limit:
    """How long one start or call may take: `seconds`, and again so many after each sign of life, but at most
    `total`."""

    def __init__(self, limits: Limits, seconds: float, total: float) -> None:
        now = anyio.current_time()
        self.scope = anyio.CancelScope(deadline=now + seconds)
        self._limits = limits
        self._seconds = seconds
        self._end = now + total
        self._stopped_at: float | None = None

    def __enter__(self) -> Limit:  # a class, for it is on the way of every call
        self._limits.running.add(self)
        if self._limits.asking:
            self.stop()
        self.scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.lift()
        swallowed = self.scope.__exit__(kind, exc, trace)
        if self.scope.cancelled_caught:
            raise TimeoutError from None
        return bool(swallowed)

    def lift(self) -> None:
        """Let the body take as long as it likes, from here on, whoever is asked."""
        self._limits.running.discard(self)

    def alive(self) -> None:
        """The server has shown that it is at work."""
        if self._stopped_at is None:
            self.scope.deadline = min(anyio.current_time() + self._seconds, self._end)

    def stop(self) -> None:
        self._stopped_at = anyio.current_time()
        self._left = self.scope.deadline - self._stopped_at
        self.scope.deadline = math.inf

    def go_on(self) -> None:
        if self._stopped_at is not None:
            now = anyio.current_time()
            self._end += now - self._stopped_at
            self._stopped_at = None
            self.scope.deadline = now + self._left
