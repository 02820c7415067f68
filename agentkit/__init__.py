"""Tool-using agents on a local model."""

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
from agentkit.planner import Limits, React
from agentkit.progress import report_progress
from agentkit.runtime.engine import Engine, ModelSettings
from agentkit.tools import Tool, ToolOutput, ToolRegistry, Toolset, tool

__all__ = [
    "Agent",
    "AgentkitError",
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
