"""Tool-using agents on a local model. Each name is imported from its module when it is first used: a program that only looks
something up, such as `agentkit --help`, does not wait for the rest."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentkit.agent import Agent, Run, RunResult
    from agentkit.errors import (
        AgentkitError,
        ConfigError,
        ContextOverflow,
        EngineError,
        MCPServerError,
        ModelNotFound,
        SandboxUnavailable,
        ToolCrashed,
        ToolError,
        UnknownTool,
    )
    from agentkit.messages import Artifact, Message, ToolCall, ToolResult, Usage
    from agentkit.permissions import Permissions
    from agentkit.planner import Aids, Limits, React
    from agentkit.progress import report_progress
    from agentkit.runtime.engine import Engine, ModelSettings
    from agentkit.tools import Tool, ToolOutput, ToolRegistry, Toolset, tool

__all__ = [
    "Agent",
    "AgentkitError",
    "Aids",
    "Artifact",
    "ConfigError",
    "ContextOverflow",
    "Engine",
    "EngineError",
    "Limits",
    "MCPServerError",
    "Message",
    "ModelNotFound",
    "ModelSettings",
    "Permissions",
    "React",
    "Run",
    "RunResult",
    "SandboxUnavailable",
    "Tool",
    "ToolCall",
    "ToolCrashed",
    "ToolError",
    "ToolOutput",
    "ToolRegistry",
    "ToolResult",
    "Toolset",
    "UnknownTool",
    "Usage",
    "report_progress",
    "tool",
]
__version__ = "0.1.0"

_MODULES = {
    "agent": ("Agent", "Run", "RunResult"),
    "errors": (
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
    ),
    "messages": ("Artifact", "Message", "ToolCall", "ToolResult", "Usage"),
    "permissions": ("Permissions",),
    "planner": ("Aids", "Limits", "React"),
    "progress": ("report_progress",),
    "runtime.engine": ("Engine", "ModelSettings"),
    "tools": ("Tool", "ToolOutput", "ToolRegistry", "Toolset", "tool"),
}
_FROM = {name: f"agentkit.{module}" for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:  # a type checker knows all names by now, and which ones there are not

    def __getattr__(name: str) -> object:
        if name not in _FROM:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_FROM[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
