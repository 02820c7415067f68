"""The client that the conformance suite runs, with the URL of a server as last argument: a config, opened by agentkit.

What a scenario wants called is called through the tools that the config gives, as an agent calls them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import anyio
import httpx2

from agentkit.errors import ToolError
from agentkit.mcp import MCPServers
from agentkit.mcp.host import Host, Question
from agentkit.tools import Tool

SCENARIO = os.environ["MCP_CONFORMANCE_SCENARIO"]
CONTEXT: Mapping[str, Any] = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
LEGACY = os.environ.get("MCP_CONFORMANCE_PROTOCOL_VERSION", "") < "2026-07-28"
CLIENT_METADATA_URL = "https://conformance-test.local/client-metadata.json"
KEYS = {
    "client_id": "clientId",
    "client_secret": "clientSecret",
    "private_key_pem": "privateKey",
    "signing_algorithm": "algorithm",
}
MRTR = ("test_mrtr_echo_state", "test_mrtr_unrelated", "test_mrtr_no_state", "test_mrtr_no_result_type")
STUBS: Mapping[str, Any] = {"integer": 0, "number": 0, "boolean": False, "object": {}, "array": []}


def config(url: str) -> dict[str, Any]:
    server: dict[str, Any] = {
        "type": "http",
        "url": url,
        "mode": "legacy" if LEGACY else "auto",
        "lazy": False,
    }
    if SCENARIO.startswith("auth/"):
        given = {KEYS[name]: value for name, value in CONTEXT.items() if name in KEYS}
        server["oauth"] = {**given, "clientMetadataUrl": CLIENT_METADATA_URL}
    if SCENARIO.startswith("auth/client-credentials"):
        server["oauth"]["grant"] = "client_credentials"
    return {"mcpServers": {"conformance": server}}


async def answer(question: Question) -> dict[str, Any]:
    """Leave every field at its default, and say yes."""
    properties = question.schema.get("properties", {})
    required = question.schema.get("required", [])
    return {
        name: True if p.get("type") == "boolean" else "x"
        for name, p in properties.items()
        if name in required and "default" not in p
    }


async def sign_in(url: str) -> str:
    """What a user does who agrees at once: open the page, and be sent back."""
    async with httpx2.AsyncClient() as browser:
        page = await browser.get(url)
    return page.headers["location"]


def calls(tools: Mapping[str, Tool]) -> list[tuple[str, Mapping[str, Any]]]:
    """What the scenario wants called: what it says, else each tool once."""
    if "toolCalls" in CONTEXT:
        return [
            (call["name"], call.get("arguments") or {})
            for call in CONTEXT["toolCalls"]
            if call["name"] in tools
        ]
    if SCENARIO == "sep-2322-client-request-state":
        return [(name, {}) for name in MRTR]
    if SCENARIO == "json-schema-2020-12-preservation":
        return [("json_schema_echo", {"schema": tools["json_schema_2020_12_tool"].parameters})]
    return [
        (name, {"a": 5, "b": 3} if name == "add_numbers" else stubs(tool)) for name, tool in tools.items()
    ]


def stubs(tool: Tool) -> dict[str, Any]:
    properties = tool.parameters.get("properties", {})
    return {
        name: STUBS.get(properties.get(name, {}).get("type"), "x")
        for name in tool.parameters.get("required", ())
    }


async def main(url: str) -> int:
    notices: list[str] = []
    host = Host(elicit=answer)
    async with MCPServers(config(url), host=host, on_redirect=sign_in).open(notices.append) as opened:
        tools = {tool.name: tool for tool in opened}
        for name, arguments in calls(tools):
            try:
                await tools[name].handler(arguments)
            except ToolError as exc:
                print(f"{name}: {exc}", file=sys.stderr)
    print(*notices, sep="\n", file=sys.stderr)
    return 1 if notices and not tools else 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:  # nobody was here before
        for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
            os.environ[name] = home
        code = anyio.run(main, sys.argv[-1])
    sys.exit(code)
