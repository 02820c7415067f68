"""Calls that failed and were not made again since: which tools', and what in them was probably meant to be something else."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentkit.messages import BadCall, ToolCall, ToolResult
from agentkit.spelling import meant

__all__ = ["Undone"]

_WORD = re.compile(r"[^\W\d]\w{3,}")
_READ = 20_000  # characters of a result
_RESULTS = 50  # the last ones
_SEEN = 5_000  # words of all results
_FAULTY = 8  # words of a call


@dataclass(slots=True)
class Undone:
    """`tools`: those whose last call failed. `instead`: words of these calls that their errors name, and the words of other
    results that they can only be misspellings of, or plurals: "no such table: orders", where a list has "order"."""

    instead: dict[str, str] = field(default_factory=dict)
    # tool -> those words of its call, and what it came back with
    _failed: dict[str, tuple[tuple[str, ...], str]] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)  # words of good results …
    _unread: list[str] = field(default_factory=list)  # … and those whose words nobody has asked for yet

    @property
    def tools(self) -> tuple[str, ...]:
        return tuple(self._failed)

    def turn(
        self,
        calls: Sequence[ToolCall | BadCall],
        results: Sequence[ToolResult],
        denied: Collection[str] = (),
    ) -> None:
        """A turn is over; *results* are those that the model is told of. That a call was *denied*, by its id, is final."""
        made = {call.id: call for call in calls}
        self._unread += [result.content for result in results if not result.is_error]
        del self._unread[:-_RESULTS]
        for result in results:
            call = made.get(result.call_id)
            if isinstance(call, ToolCall) and result.is_error and result.call_id not in denied:
                said = set(_WORD.findall(result.content[:_READ]))
                faulty = tuple(w for w in _words(call.arguments) if w in said)[:_FAULTY]
                self._failed[call.name] = faulty, result.content
        self.instead = {}
        if not self._failed:
            return
        while self._unread:
            words = _WORD.findall(self._unread.pop()[:_READ])
            self._seen.update(words[: _SEEN - len(self._seen)])
        worked = {result.name for result in results if not result.is_error}
        for tool, (faulty, error) in list(self._failed.items()):
            # a word of what others wrote, but only one that is nearly the model's own
            hints = {w: m for w in faulty if w not in self._seen and (m := meant(w, self._like(w)))}
            # an error may name the tool to be called instead of its own
            if tool in worked or (not hints and any(_names(error, name) for name in worked)):
                del self._failed[tool]
            else:
                self.instead |= hints

    def _like(self, word: str) -> list[str]:
        """What of all that it is worth to compare it with."""
        return [w for w in self._seen if w[0].lower() == word[0].lower() and abs(len(w) - len(word)) <= 2]


def _names(text: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", text) is not None


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from _WORD.findall(value)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _words(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _words(inner)
