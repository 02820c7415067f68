"""MCP servers as tools: config files in, opened servers out. The SDK is imported when one is first opened."""

from __future__ import annotations

from agentkit.mcp.config import ServerSpec, load_config
from agentkit.mcp.host import Host
from agentkit.mcp.screen import Safety
from agentkit.mcp.servers import MCPServers, ServerReport, check

__all__ = ["Host", "MCPServers", "Safety", "ServerReport", "ServerSpec", "check", "load_config"]
