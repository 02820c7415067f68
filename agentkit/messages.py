"""What a conversation is made of, and its form as chat-completions JSON. Nothing here does I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

__all__ = [
    "Artifact",
    "BadCall",
    "Message",
    "Part",
    "Role",
    "Text",
    "Thinking",
    "ToolCall",
    "ToolResult",
    "Usage",
    "assistant",
    "from_chat",
    "system",
    "to_chat",
    "user",
]

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Thinking:
    """Reasoning the model wrote before it answered; goes back to it only inside the same tool loop."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model asked for, arguments already parsed from its text.

    `raw` is the argument text as the model wrote it, when that is valid JSON for an object (it is then sent back
    unchanged, so that the prompt prefix stays the same); else it is empty and the arguments are written anew.
    """

    id: str
    name: str
    arguments: Mapping[str, Any]
    raw: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class BadCall:
    """Text that was meant as a call and could not be read as one; the reason is told to the model."""

    id: str
    raw: str
    reason: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """Something a tool made besides its text: a figure, a file. `data` or `path` holds it."""

    name: str
    mime: str
    data: bytes | None = field(default=None, repr=False)
    path: str | None = None
    size: int = 0  # bytes


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a call came back with: the text that the model reads, and artifacts for the user."""

    call_id: str
    content: str
    is_error: bool = False
    name: str = ""
    artifacts: tuple[Artifact, ...] = ()


Part: TypeAlias = Text | Thinking | ToolCall | BadCall | ToolResult


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as the server counted them; zero where it does not say."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0  # the part of input_tokens that the server's prefix cache held

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    `raw` is an assistant's content exactly as the server sent it, where the calls were written into the text:
    it goes back to the model unchanged, so that each prompt extends the last one byte for byte.
    """

    role: Role
    parts: tuple[Part, ...]
    raw: str | None = field(default=None, compare=False, repr=False)
    # wire form -> JSON bytes: a message is serialised once, however often it is sent
    _wire: dict[str, bytes] = field(default_factory=dict, compare=False, repr=False, init=False)

    @property
    def text(self) -> str:
        """The visible text, thinking and calls left out."""
        return "".join(p.text for p in self.parts if isinstance(p, Text))

    @property
    def thinking(self) -> str:
        return "".join(p.text for p in self.parts if isinstance(p, Thinking))

    @property
    def calls(self) -> tuple[ToolCall | BadCall, ...]:
        return tuple(p for p in self.parts if isinstance(p, ToolCall | BadCall))

    @property
    def results(self) -> tuple[ToolResult, ...]:
        return tuple(p for p in self.parts if isinstance(p, ToolResult))


def system(text: str) -> Message:
    return Message("system", (Text(text),))


def user(text: str) -> Message:
    return Message("user", (Text(text),))


def assistant(text: str) -> Message:
    return Message("assistant", (Text(text),))
