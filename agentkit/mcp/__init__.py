"""MCP servers as tools: config files in, opened servers out. The SDK is imported when one is first opened."""

from __future__ import annotations

from agentkit.mcp.config import ServerSpec, load_config
from agentkit.mcp.servers import MCPServers, ServerReport, check

__all__ = ["MCPServers", "ServerReport", "ServerSpec", "check", "load_config"]
