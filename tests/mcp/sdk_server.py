"""A server made with the SDK: `sdk_server.py stdio|streamable-http|sse [PORT]`; over HTTP on a free port if none is given."""

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


@server.tool()
async def grow(ctx: Context) -> str:
    """Adds a tool."""

    def grown() -> str:
        """Was not there at first."""
        return "grown"

    server.add_tool(grown)
    await ctx.notify_tools_changed()  # to subscribers, since 2026-07-28
    if ctx.request_context.protocol_version < "2026-07-28":
        await ctx.session.send_tool_list_changed()
    return "grew"


@server.tool()
async def patient(seconds: float) -> str:
    """Says on stderr that it was cancelled."""
    print("patient began", file=sys.stderr, flush=True)
    try:
        await anyio.sleep(seconds)
    except anyio.get_cancelled_exc_class():
        print("patient was cancelled", file=sys.stderr, flush=True)
        raise
    return "done"


kind = sys.argv[1]
port = int(sys.argv[2]) if len(sys.argv) > 2 else 0
if kind == "stdio":
    server.run()
elif kind == "sse":
    server.run("sse", port=port)
else:
    server.run("streamable-http", port=port)
