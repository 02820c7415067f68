"""Everything agentkit raises.

- AgentkitError
  - ConfigError         a config file, an option or a model name that cannot be used as written
  - EngineError         the model server could not be started, reached, or understood
    - ContextOverflow   the request is longer than the model's context
  - ModelNotFound       no weights for that model could be had; says what was tried
  - MCPServerError      an MCP server could not be started, or died during a call
  - SandboxUnavailable  nothing on this machine can isolate the code interpreter
  - UnknownTool         a tool name that nothing installed provides
  - ToolCrashed         a tool marked on_error="raise" raised; the cause is chained
- ToolError             raised *by* tools; its message goes to the model, which carries on

What the model gets wrong is not here: a malformed call is a `BadCall` in the history, and a limit that was
reached is `RunResult.stopped`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "AgentkitError",
    "ConfigError",
    "ContextOverflow",
    "EngineError",
    "MCPServerError",
    "ModelNotFound",
    "SandboxUnavailable",
    "ToolCrashed",
    "ToolError",
    "UnknownTool",
    "one_error",
]


class AgentkitError(Exception):
    """Base of every error that leaves a run. Its text is one message a user can act on."""


class ConfigError(AgentkitError):
    """A config file, an option or a model name that cannot be used as written."""


class EngineError(AgentkitError):
    """The model server could not be started, reached, or understood.

    `elsewhere` says whether another server of the same model may well do what was asked: this one is away, broken or busy.
    `status` is the HTTP status that it answered, and `after` how many seconds it asks to be left alone, where it does.
    """

    def __init__(
        self,
        text: str = "",
        *,
        elsewhere: bool = False,
        status: int | None = None,
        after: float | None = None,
    ) -> None:
        super().__init__(text)
        self.elsewhere, self.status, self.after = elsewhere, status, after


class ContextOverflow(EngineError):
    """The request is longer than the model's context."""


class ModelNotFound(AgentkitError):
    """No weights for that model could be had; the message lists what was tried and what to run next."""


class MCPServerError(AgentkitError):
    """An MCP server could not be started, or died during a call."""


class SandboxUnavailable(AgentkitError):
    """Nothing on this machine can isolate the code interpreter; the message says how to get something that can."""


class UnknownTool(AgentkitError):
    """A tool name that nothing installed provides."""


class ToolCrashed(AgentkitError):
    """A tool marked `on_error="raise"` raised something other than `ToolError`; the cause is chained."""


class ToolError(Exception):
    """Raise this in a tool to tell the model what went wrong and let it carry on."""


@contextmanager
def one_error() -> Iterator[None]:
    """Let a task group's only error out as itself, so callers can catch it by its type."""
    try:
        yield
    except BaseExceptionGroup as group:
        only: BaseException = group
        while isinstance(only, BaseExceptionGroup) and len(only.exceptions) == 1:
            only = only.exceptions[0]
        raise only from only.__cause__
