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
    "wire",
]

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Text:
    """What the user, the model or a tool says."""

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

    @property
    def is_code(self) -> bool:
        """Whether it was written as Python, not as JSON."""
        return self.raw.startswith("```")


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
    usage: Usage | None = None  # what models used up for it, such as an agent that is a tool
    refused: bool = False  # not run: unreadable, of a tool that there is not, or with wrong arguments


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


def to_chat(message: Message, reasoning_field: str | None = None) -> list[dict[str, Any]]:
    """The message as chat-completions dicts: one, or one for each result of a tool message.

    `reasoning_field` names the key under which the server reads an assistant's thoughts ("reasoning" for
    vLLM >= 0.20, "reasoning_content" elsewhere); None leaves the thoughts out, as the Qwen3 model card asks for
    turns before the last user message.
    """
    if message.role == "tool":
        chats: list[dict[str, Any]] = [
            {
                "role": "tool",
                "tool_call_id": r.call_id,
                **({"name": r.name} if r.name else {}),
                "content": r.content,
            }
            for r in message.results
        ]
        if message.text and chats:  # what the planner says about the results
            chats[-1]["content"] += f"\n\n{message.text}"
        return chats
    if message.role != "assistant":
        return [{"role": message.role, "content": message.text}]
    if (
        message.raw is not None
    ):  # the calls stand in the text, and so do thoughts unless the server split them off
        content = message.raw if reasoning_field else message.raw.rpartition("</think>")[2].lstrip("\n")
        chat: dict[str, Any] = {"role": "assistant", "content": content}
        thoughts = message.thinking if "</think>" not in message.raw else ""
    else:
        bad = [p.raw for p in message.parts if isinstance(p, BadCall)]
        chat = {"role": "assistant", "content": "\n".join([message.text, *bad] if message.text else bad)}
        thoughts = message.thinking
        calls = [p for p in message.parts if isinstance(p, ToolCall)]
        if calls:
            chat["tool_calls"] = [
                {
                    "id": c.id,
                    "type": "function",
                    "function": {
                        "name": c.name,
                        "arguments": c.raw or json.dumps(c.arguments, ensure_ascii=False),
                    },
                }
                for c in calls
            ]
    if reasoning_field and thoughts:
        chat[reasoning_field] = thoughts
    return [chat]


def from_chat(chat: Mapping[str, Any]) -> Message:
    """A chat-completions dict as a Message; the inverse of `to_chat`. Raises ValueError for an unknown role."""
    role, content = chat.get("role"), chat.get("content")
    if isinstance(content, list):  # the multi-part form: its text parts are read
        content = "".join(p.get("text", "") for p in content if p.get("type") == "text")
    text = content or ""
    if role == "tool":
        return Message("tool", (ToolResult(chat.get("tool_call_id", ""), text, name=chat.get("name") or ""),))
    if role == "system" or role == "user":
        return Message(role, (Text(text),))
    if role == "developer":  # OpenAI's newer word for it
        return system(text)
    if role != "assistant":
        raise ValueError(f"a message's role is system, user, assistant or tool, not {role!r}")
    parts: list[Part] = []
    thoughts = chat.get("reasoning") or chat.get("reasoning_content")
    if thoughts:
        parts.append(Thinking(thoughts))
    if text:
        parts.append(Text(text))
    for call in chat.get("tool_calls") or ():
        function = call["function"]
        raw = function.get("arguments") or "{}"
        try:
            arguments = json.loads(raw) if isinstance(raw, str) else raw
        except ValueError:
            arguments = None
        if isinstance(arguments, Mapping):
            parts.append(
                ToolCall(call["id"], function["name"], arguments, raw if isinstance(raw, str) else "")
            )
        else:
            parts.append(
                BadCall(
                    call["id"],
                    json.dumps(function, ensure_ascii=False),
                    "its arguments are not a JSON object",
                )
            )
    return Message("assistant", tuple(parts))


def wire(message: Message, reasoning_field: str | None = None) -> bytes:
    """`to_chat` as comma-joined JSON, made once for each form and kept on the message."""
    key = (reasoning_field or "") if message.role == "assistant" else ""  # others have no thoughts
    made = message._wire.get(key)
    if made is None:
        chats = to_chat(message, reasoning_field)
        text = ",".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in chats)
        made = message._wire[key] = text.encode("utf-8", "replace")  # a lone surrogate is not UTF-8
    return made
