"""The tool type, its decorator, sets of tools that must be opened, and the registry of installed packs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from agentkit.messages import Artifact

__all__ = ["Tool", "ToolOutput", "Toolset"]


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What a tool hands back when a plain value is not enough."""

    content: str  # what the model reads
    is_error: bool = False
    artifacts: tuple[Artifact, ...] = ()


Handler: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[ToolOutput]]


@dataclass(frozen=True, slots=True)
class Tool:
    """Something the model may call by name.

    `parameters` is the JSON schema of its arguments (an object). `handler` is awaited with the arguments the model sent,
    and checks them itself; it raises `ToolError` to say no. `timeout` is in seconds.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    handler: Handler
    timeout: float | None = None


Notify: TypeAlias = Callable[[str], None]


@runtime_checkable
class Toolset(Protocol):
    """Tools that live only while something is open: a server's connection, an interpreter's process.

    `scope` says how long: "run" opens anew for each run, "agent" stays open inside `async with agent:`
    (and, outside of that, for one run). `open` tells `notify` what went wrong without being fatal.
    """

    @property
    def scope(self) -> Literal["run", "agent"]: ...

    def open(self, notify: Notify) -> AbstractAsyncContextManager[Sequence[Tool]]: ...
