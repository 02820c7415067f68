"""Endless repetition, seen while the model is still writing: the same words over and over, as far back as one looks."""

from __future__ import annotations

import time

__all__ = ["Repetition"]

_LOOK = 512  # characters between two looks
_KEPT = 8_192  # characters that are looked back on
_PROBE = 48  # characters: the last so many are searched for, to find the period
_LEAST = 1_500  # characters that must repeat
_TIMES = 5  # how often, at least
_PATIENCE = (
    2.0  # seconds: what comes faster costs nothing to read to its end, which may be what was asked for
)


class Repetition:
    """`feed` it what the model writes; it says True once the end of that is one piece repeated, and no end is in sight.

    A piece of up to 1,600 characters that stands there at least five times, 1,500 characters or more in all: a long table, a
    list, a hexadecimal dump do not; the loops that Qwen3's card warns of do, within a few hundred tokens. `seen` says whether
    the end of the last 8,192 characters is like that, however fast they came.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._tail = ""
        self._new: list[str] = []
        self._count = 0

    @property
    def seen(self) -> bool:
        return repeats(self._look())

    def feed(self, text: str) -> bool:
        self._new.append(text)
        self._count += len(text)
        if self._count < _LOOK:
            return False
        return repeats(self._look()) and time.monotonic() - self._began >= _PATIENCE

    def _look(self) -> str:
        self._tail = (self._tail + "".join(self._new))[-_KEPT:]
        self._new, self._count = [], 0
        return self._tail


def repeats(text: str) -> bool:
    """Whether *text* ends in one piece, repeated."""
    if len(text) < _LEAST:
        return False
    probe = text[-_PROBE:]
    before = text.rfind(probe, 0, len(text) - 1)
    if before < 0:
        return False
    period = len(text) - _PROBE - before
    length = max(_LEAST, _TIMES * period)
    return len(text) >= length and text[-length:-period] == text[period - length :]
