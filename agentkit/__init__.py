"""Tool-using agents on a local model."""
from agentkit.errors import *
from agentkit.tools import Tool, ToolOutput, ToolRegistry, Toolset, tool
