"""Tool-using agents on a local model."""

from typing import TYPE_CHECKING

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
from agentkit.planner import Aids, Limits, React
from agentkit.progress import report_progress
from agentkit.runtime.engine import Engine, ModelSettings
from agentkit.tools import Tool, ToolOutput, ToolRegistry, Toolset, tool

if TYPE_CHECKING:
    from agentkit.permissions import Permissions

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


if not TYPE_CHECKING:  # a type checker knows all names by now, and which ones there are not

    def __getattr__(name: str) -> object:
        if name == "Permissions":  # few programs have any, and each module costs a start
            from agentkit.permissions import Permissions

            return Permissions
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
