"""The calls of one turn of the model, carried out side by side, and begun before the turn is over where that is safe."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import anyio
from anyio.abc import TaskGroup

from agentkit.messages import BadCall, ToolCall, ToolResult

__all__ = ["Acting"]

_Call: TypeAlias = ToolCall | BadCall


class Acting:
    """`begin` starts a call in *group*, `results` starts the others of the turn and waits for all of them.

    What leaves *carry_out* as an exception ends the group.
    """

    def __init__(self, group: TaskGroup, carry_out: Callable[[_Call], Awaitable[ToolResult]]) -> None:
        self._group, self._carry_out = group, carry_out
        self._begun: dict[str, _Call] = {}
        self._results: dict[str, ToolResult] = {}
        self._over = anyio.Event()

    def begin(self, call: ToolCall) -> None:
        """Start *call*, unless the like has been started: a model that repeats itself without end is read once."""
        if not any(_alike(call, begun) for begun in self._begun.values()):
            self._start(call)

    async def results(self, calls: Sequence[_Call]) -> list[ToolResult]:
        """What came of *calls*, in their order."""
        if len(calls) == 1 and not self._begun:
            return [await self._carry_out(calls[0])]  # which needs no task
        for call in calls:
            if call.id not in self._begun:
                self._start(call)
        while len(self._results) < len(self._begun):
            self._over = anyio.Event()
            await self._over.wait()
        return [self._results[call.id] for call in calls]

    def _start(self, call: _Call) -> None:
        self._begun[call.id] = call
        self._group.start_soon(self._run, call)

    async def _run(self, call: _Call) -> None:
        self._results[call.id] = await self._carry_out(call)
        if len(self._results) == len(self._begun):
            self._over.set()


def _alike(call: ToolCall, begun: _Call) -> bool:
    return isinstance(begun, ToolCall) and (call.name, call.arguments) == (begun.name, begun.arguments)
