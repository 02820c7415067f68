"""What a run tells whoever is watching, in the order it happens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from agentkit.messages import BadCall, Part, Text, Thinking, ToolCall, ToolResult

__all__ = [
    "Assembly",
    "CallFragment",
    "CallReady",
    "Event",
    "Notice",
    "TextDelta",
    "TextWasThinking",
    "ThinkingDelta",
    "ToolFinished",
    "ToolProgress",
    "ToolStarted",
    "TurnStarted",
    "assemble",
]


@dataclass(frozen=True, slots=True)
class CallFragment:
    """A piece of a tool call that the server itself has parsed; pieces with one index belong together."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """The model is asked for its next turn; turns count from 1."""

    turn: int


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the text that the model writes, as it comes."""

    text: str


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    """A piece of its reasoning, as it comes."""

    text: str


@dataclass(frozen=True, slots=True)
class TextWasThinking:
    """All of this turn so far was reasoning: a lone `</think>` came, its opening tag was in the prompt."""

    text: str  # the reasoning in full


@dataclass(frozen=True, slots=True)
class CallReady:
    """A call that the model has written to its end; a BadCall is one that cannot be read."""

    call: ToolCall | BadCall


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """A call begins to be carried out."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class ToolProgress:
    """How far a call has come: `progress` of `total`, where the tool knows that."""

    call: ToolCall
    progress: float
    total: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class ToolFinished:
    """A call is done, after so many seconds; `result` is what came of it, no longer than `Limits.result_chars`."""

    call: ToolCall | BadCall
    result: ToolResult
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the user should know that does not end the run, such as an MCP server that did not start."""

    text: str


Event: TypeAlias = (
    TurnStarted
    | TextDelta
    | ThinkingDelta
    | TextWasThinking
    | CallReady
    | ToolStarted
    | ToolProgress
    | ToolFinished
    | Notice
)


class Assembly:
    """Folds the events of one model turn, as they come, into the parts they add up to; other events are passed over."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._pieces: list[str] = []  # of the text or thinking that is being written, joined once
        self._kind: type[TextDelta] | type[ThinkingDelta] = TextDelta

    def add(self, event: Event) -> None:
        if isinstance(event, (TextDelta, ThinkingDelta)):  # each token is one
            if type(event) is not self._kind:
                self._settle()
                self._kind = type(event)
            self._pieces.append(event.text)
        elif isinstance(event, TextWasThinking):
            self._pieces.clear()
            self._parts = [Thinking(event.text)] if event.text else []
        elif isinstance(event, CallReady):
            self._settle()
            self._parts.append(event.call)

    def parts(self) -> tuple[Part, ...]:
        """What they add up to so far."""
        return (*self._parts, *self._written())

    def _settle(self) -> None:
        self._parts += self._written()
        self._pieces.clear()

    def _written(self) -> list[Part]:
        text = "".join(self._pieces)
        return [Text(text) if self._kind is TextDelta else Thinking(text)] if self._pieces else []


def assemble(events: Iterable[Event]) -> tuple[Part, ...]:
    """Fold the events of one model turn into the parts they add up to; other events are passed over."""
    assembly = Assembly()
    for event in events:
        assembly.add(event)
    return assembly.parts()
