"""A server made with the SDK: `sdk_server.py stdio|streamable-http|sse`; over HTTP on a free port."""

from __future__ import annotations

import os
import sys

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Image
from mcp.types import ToolAnnotations

server = MCPServer("sdk", version="1.0", log_level="INFO")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def variable(name: str) -> str:
    """An environment variable of the server."""
    return os.environ.get(name, "(unset)")


@server.tool()
def picture() -> Image:
    """A small picture."""
    return Image(data=b"\x89PNG\r\n\x1a\n", format="png")


@server.tool()
def big(n: int) -> str:
    """A text of n characters."""
    return "a" + "x" * (n - 2) + "z"


@server.tool()
async def wait(seconds: float) -> str:
    """Answers late."""
    await anyio.sleep(seconds)
    return "waited"


@server.tool()
def header(name: str, ctx: Context) -> str:
    """A header of the request."""
    request = ctx.request_context.request
    return str(request.headers.get(name)) if request else "no request"


@server.tool()
def crash() -> str:
    """Ends the server at once."""
    print("ValueError: out of cheese", file=sys.stderr, flush=True)
    os._exit(3)


kind = sys.argv[1]
if kind == "stdio":
    server.run()
elif kind == "sse":
    server.run("sse", port=0)
else:
    server.run("streamable-http", port=0)
