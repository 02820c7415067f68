"""Notices when a run goes round in circles: what it has called and what came back, turn by turn."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from agentkit.messages import BadCall, ToolCall, ToolResult

__all__ = ["Guard"]

_LONGEST = 3  # turns that a circle may have
_ENDED = {1: 4, 2: 3, 3: 3}  # turns that a circle has -> how often it is gone round before the run ends


@dataclass(slots=True)
class Guard:
    """`repeats` is how often in a row the same turns were made with the same results, `circle` the tools they called.

    A call that is made again is run again: what it reads may have changed, and then it is no circle. Results are the
    same if they differ only in digits: a clock's, a timing's.
    """

    repeats: int = 1
    circle: frozenset[str] = frozenset()
    _turns: list[str] = field(default_factory=list)
    _names: list[frozenset[str]] = field(default_factory=list)
    _said: dict[str, str] = field(default_factory=dict)  # call -> its last result, without its digits
    _shown: dict[str, str] = field(default_factory=dict)  # call -> its last result
    _period: int = 1

    @property
    def ended(self) -> bool:
        return self.repeats >= _ENDED[self._period]

    def turn(
        self, calls: Sequence[ToolCall | BadCall], results: Sequence[ToolResult], hidden: frozenset[str]
    ) -> None:
        """A turn is over. Calls of *hidden* tools were not run: they count as if they had said the same again."""
        made = []
        for call, result in zip(calls, results, strict=True):
            key = _spell(call)
            if result.name not in hidden or key not in self._said:
                self._said[key] = re.sub(r"\d+", "0", result.content)
            made.append(f"{key}\n{self._said[key]}")
        self._turns.append("\n".join(sorted(made)))
        self._names.append(frozenset(c.name for c in calls if isinstance(c, ToolCall)))
        self.repeats, self._period = max((self._rounds(p), -p) for p in range(1, _LONGEST + 1))
        self._period = -self._period
        borne = 1 + any(r.refused for r in results)  # what was refused twice may yet be made as it should
        round_ = self._names[-self._period :] if self.repeats > borne else []
        self.circle = frozenset().union(*round_)

    def stands_above(self, call: ToolCall | BadCall, result: ToolResult) -> bool:
        """Whether the last call with these arguments came back with just this text; remembers it."""
        key = _spell(call)
        before, self._shown[key] = self._shown.get(key), result.content
        return before == result.content

    def _rounds(self, period: int) -> int:
        """How often the last *period* turns have been made in a row."""
        last, rounds = self._turns[-period:], 1
        while self._turns[-period * (rounds + 1) : -period * rounds] == last:
            rounds += 1
        return rounds


def _spell(call: ToolCall | BadCall) -> str:
    made = [call.name, call.arguments] if isinstance(call, ToolCall) else call.raw
    return json.dumps(made, sort_keys=True, default=str)
