"""What a run tells whoever is watching, in the order it happens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from agentkit.messages import BadCall, Part, Text, Thinking, ToolCall, ToolResult

__all__ = [
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
    text: str


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    text: str


@dataclass(frozen=True, slots=True)
class TextWasThinking:
    """All of this turn so far was reasoning: a lone `</think>` came, its opening tag was in the prompt."""

    text: str  # the reasoning in full


@dataclass(frozen=True, slots=True)
class CallReady:
    call: ToolCall | BadCall


@dataclass(frozen=True, slots=True)
class ToolStarted:
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


def assemble(events: Iterable[Event]) -> tuple[Part, ...]:
    """Fold the events of one model turn into the parts they add up to; other events are passed over."""
    parts: list[Part] = []
    pieces: list[str] = []  # of the text or thinking that is being written, joined once
    kind: type[Text] | type[Thinking] = Text

    def flush() -> None:
        if pieces:
            parts.append(kind("".join(pieces)))
            pieces.clear()

    for event in events:
        match event:
            case TextDelta(text) | ThinkingDelta(text):
                wanted = Text if isinstance(event, TextDelta) else Thinking
                if wanted is not kind:
                    flush()
                    kind = wanted
                pieces.append(text)
            case TextWasThinking(thought):
                pieces.clear()
                parts = [Thinking(thought)] if thought else []
            case CallReady(call):
                flush()
                parts.append(call)
            case _:
                pass
    flush()
    return tuple(parts)
