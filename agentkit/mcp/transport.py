"""How a server is reached: a process, streamable HTTP, or the older SSE. Imports the SDK, which is slow."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import mcp.client.sse
import mcp.client.stdio
from mcp import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from agentkit.errors import MCPServerError
from agentkit.mcp.command import environment, find_command
from agentkit.mcp.config import ServerSpec, Transport
from agentkit.mcp.lines import WholeLines
from agentkit.mcp.logs import ServerLog

__all__ = ["GUARD", "address", "streams"]

GUARD = Path(__file__).with_name("guard.py")
EVENT_BYTES = 64 * 2**20  # of one server-sent event; the SDK's own limit of 1 MiB cuts off results
SILENCE = 300.0  # seconds without a byte before a stream is taken for dead; servers send a sign of life

# Two places where the SDK reads more slowly, or less, than servers write; it has no settings for them.
mcp.client.stdio.TextReceiveStream = WholeLines  # type: ignore[assignment, attr-defined]
# The older SSE transport takes no limit, and an event above the default ends the whole connection. This is the
# one function that it opens its stream with, and it does take one.
if (_opened := getattr(mcp.client.sse, "sse_within_origin", None)) is not None:
    mcp.client.sse.sse_within_origin = partial(_opened, max_event_size=EVENT_BYTES)  # type: ignore[attr-defined]


def streams(
    spec: ServerSpec,
    transport: Transport,
    *,
    log: ServerLog | None = None,
    auth: httpx2.Auth | None = None,
    note_status: Callable[[int], None] = lambda status: None,
) -> AbstractAsyncContextManager[Any]:
    """The SDK's pair of message streams, to and from the server. `log` gets what a process writes to stderr;
    `note_status` is told the HTTP status of each answer to a message of ours."""
    if transport == "stdio":
        stderr: Any = log  # the SDK asks for text, and hands its file number on
        return stdio_client(_process(spec), errlog=stderr)
    if transport == "sse":
        return mcp.client.sse.sse_client(
            spec.url or "", dict(spec.headers), timeout=30, sse_read_timeout=_silence(spec), auth=auth
        )
    return _http(spec, auth, note_status)


@contextlib.asynccontextmanager
async def _http(
    spec: ServerSpec, auth: httpx2.Auth | None, note_status: Callable[[int], None]
) -> AsyncGenerator[Any]:
    url = spec.url or ""

    async def note(response: httpx2.Response) -> None:
        if response.request.method == "POST" and response.request.url == httpx2.URL(url):
            note_status(response.status_code)

    http = httpx2.AsyncClient(
        headers=dict(spec.headers),
        auth=auth,
        timeout=httpx2.Timeout(30, read=_silence(spec)),
        event_hooks={"response": [note]},
    )
    async with http, streamable_http_client(url, http_client=http, max_sse_event_size=EVENT_BYTES) as pair:
        yield pair


def _silence(spec: ServerSpec) -> float:
    return max(SILENCE, spec.tool_timeout)  # a call may be silent for as long as it may take


def _process(spec: ServerSpec) -> StdioServerParameters:
    """How the server is started: under the guard, where there is one for this system."""
    if spec.cwd is not None and not os.path.isdir(spec.cwd):
        raise MCPServerError(f"its cwd {spec.cwd} is not a directory")
    env = environment(spec.env)
    command, args = find_command(spec.command or "", spec.args, env)
    if sys.platform == "linux":
        args = ["-I", "-S", str(GUARD), str(os.getpid()), command, *args]
        command = sys.executable
    return StdioServerParameters(
        command=command, args=args, env=env, cwd=spec.cwd, encoding_error_handler="replace"
    )


def address(spec: ServerSpec) -> str:
    """The server's URL without what may be secret in it."""
    parts = urlsplit(spec.url or "")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
