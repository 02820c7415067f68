"""The way of a run's events to whoever watches it."""

from __future__ import annotations

from collections import deque

import anyio

from agentkit.events import Event, TextDelta, ThinkingDelta

__all__ = ["Feed"]

_AHEAD = 256  # pieces of text that may wait to be read


class Feed:
    """Events from a run's tasks to one reader, in their order.

    `put` returns when the reader has taken the event, so that a run does nothing that its reader does not know of; only
    pieces of text may wait, as a turn of the event loop for each of them would cost more than the rest of the way.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._come: anyio.Event | None = None  # the reader waits for it
        self._taken: anyio.Event | None = None  # writers wait for it: all events are taken
        self._closed = False

    async def put(self, event: Event) -> None:
        self._events.append(event)
        self._wake()
        if isinstance(event, TextDelta | ThinkingDelta) and len(self._events) < _AHEAD:
            return
        if self._taken is None:
            self._taken = anyio.Event()
        await self._taken.wait()

    def close(self) -> None:
        """No more events come: the reader ends once it has taken what there is."""
        self._closed = True
        self._wake()

    def __aiter__(self) -> Feed:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            self._come = anyio.Event()
            await self._come.wait()
        event = self._events.popleft()
        if not self._events and self._taken is not None:
            self._taken.set()
            self._taken = None
        return event

    def _wake(self) -> None:
        if self._come is not None:
            self._come.set()
            self._come = None
