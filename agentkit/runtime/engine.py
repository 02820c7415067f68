"""The seam between the loop and a model server: one request in, chunks of the answer out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from agentkit.events import CallFragment
from agentkit.messages import Message, Usage

__all__ = ["Chunk", "Counting", "Engine", "ModelSettings", "Request"]


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How the model samples. None leaves a value to the server's default (for Qwen3: its generation_config).

    `thinking` is Qwen3's hard switch (`enable_thinking` of its chat template): True and False set it, None leaves it
    to the model and to `/think` and `/no_think` in the conversation; "auto" thinks about a new task and after a failed
    tool, not about the steps between. `extra` is merged into the request body as it is.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    max_tokens: int | None = None  # of one answer, thinking included
    seed: int | None = None
    stop: tuple[str, ...] = ()
    thinking: bool | Literal["auto"] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """What a model is asked: the conversation, the tools that it may call, how it is sampled."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()  # OpenAI form: {"type": "function", "function": {…}}
    settings: ModelSettings = ModelSettings()
    session: str | None = None  # the run's id, sent as X-Session-ID: a router keeps the run on one replica
    schema: Mapping[str, Any] | None = None  # guided decoding: the text must be JSON that is valid against it


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one event of the stream brought; most fields are empty most of the time."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallFragment, ...] = ()
    finish_reason: str | None = None  # "stop" | "tool_calls" | "length" | …
    usage: Usage | None = None


@runtime_checkable
class Engine(Protocol):
    """Something that answers requests. An engine that must be started is an async context manager as well."""

    def stream(self, request: Request) -> AsyncGenerator[Chunk, None]: ...


@runtime_checkable
class Counting(Protocol):
    """An engine that knows how much it can read. Both may say None: the server does not tell."""

    async def context_length(self) -> int | None:
        """How many tokens a prompt and its answer can have together."""
        ...

    async def count_tokens(self, request: Request) -> int | None:
        """How many tokens the server makes of *request*'s prompt: its chat template and tools included, exactly."""
        ...
