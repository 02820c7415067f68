"""What agentkit adds to the MCP SDK: starting ten servers, a call of a running one, the first call of a lazy one.

    python benchmarks/mcp.py [--rounds N]

Everything is measured in one run, ours and the other thing in turn, and compared by its median; the machine then matters
little. "ready" is ten stdio servers that take 0.1 to 1 s each, against the slowest of them started alone by the SDK. "call"
is a tool's handler as an agent runs it, against the bare `Client.call_tool`, over stdio. "first call" is that of a server
that is not running, whose tools are known, against the SDK's start, listing and call.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

# a script finds its own folder first, where this file has the name of the SDK
sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]
if __name__ == "mcp":  # another script here wants the SDK
    del sys.modules["mcp"]

from mcp import Client, StdioServerParameters, stdio_client  # noqa: E402

from agentkit.mcp import MCPServers, ServerSpec  # noqa: E402

SERVER = """
import json, sys, time
time.sleep(float(sys.argv[1]))
tool = {"name": "echo", "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}}}
for line in sys.stdin:
    m = json.loads(line)
    if "id" not in m:
        continue
    reply = {"jsonrpc": "2.0", "id": m["id"]}
    if m["method"] == "initialize":
        reply["result"] = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}},
                           "serverInfo": {"name": "echo", "version": "1"}}
    elif m["method"] == "tools/list":
        reply["result"] = {"tools": [tool]}
    elif m["method"] == "tools/call":
        reply["result"] = {"content": [{"type": "text", "text": m["params"]["arguments"]["text"]}]}
    else:
        reply["error"] = {"code": -32601, "message": "Method not found"}
    print(json.dumps(reply), flush=True)
"""
ARGUMENTS = {"text": "hello " * 20}


def command(delay: float) -> list[str]:
    return ["-I", "-S", "-c", SERVER, str(delay)]


def spec(name: str, delay: float) -> ServerSpec:
    return ServerSpec(name, sys.executable, tuple(command(delay)))


@asynccontextmanager
async def bare(delay: float) -> AsyncGenerator[Client]:
    """The SDK alone, as far as a list of tools."""
    async with Client(
        stdio_client(StdioServerParameters(command=sys.executable, args=command(delay)))
    ) as client:
        await client.list_tools()
        yield client


async def seconds(do: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await do()
    return time.perf_counter() - started


async def ready(rounds: int) -> None:
    servers = MCPServers(*(spec(f"s{n}", n / 10) for n in range(1, 11)), eager=True)
    ours, alone = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        async with servers.open(print) as tools:
            ours.append(time.perf_counter() - started)
            assert len(tools) == 10
        started = time.perf_counter()
        async with bare(1.0):
            alone.append(time.perf_counter() - started)
    show("ready, ten servers", ours, alone, 1.3)


async def call(rounds: int) -> None:
    ours, theirs = [], []
    async with bare(0) as client, MCPServers(spec("echo", 0), eager=True).open(print) as [tool]:

        async def one() -> None:
            ours.append(await seconds(lambda: tool.handler(ARGUMENTS)))

        async def other() -> None:
            theirs.append(await seconds(lambda: client.call_tool("echo", dict(ARGUMENTS))))

        for number in range(rounds * 200):
            for measure in (one, other) if number % 2 else (other, one):
                await measure()
    show("call", ours[100:], theirs[100:], 1.15)


async def first_call(rounds: int) -> None:
    servers = MCPServers(spec("echo", 0))
    async with servers.open(print):
        pass
    opened, ours, theirs = [], [], []
    for _ in range(rounds):
        started = time.perf_counter()
        async with servers.open(print) as [tool]:
            opened.append(time.perf_counter() - started)
            await tool.handler(ARGUMENTS)
            ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        async with bare(0) as client:
            await client.call_tool("echo", dict(ARGUMENTS))
            theirs.append(time.perf_counter() - started)
    show("first call, lazy", ours, theirs, None)
    print(f"{'':20} {1000 * statistics.median(opened):9.2f} ms until the tools of a lazy server are there")


def show(what: str, ours: list[float], theirs: list[float], goal: float | None) -> None:
    a, b = statistics.median(ours), statistics.median(theirs)
    wanted = f", at most {goal} wanted" if goal else ""
    print(
        f"{what:20} {1000 * a:9.2f} ms, the other {1000 * b:9.2f} ms: {a / b:.2f} times{wanted}", flush=True
    )


async def main(rounds: int) -> None:
    await ready(rounds)
    await call(rounds)
    await first_call(rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    with tempfile.TemporaryDirectory() as home:  # nothing is known from before
        for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
            os.environ[name] = home
        anyio.run(main, parser.parse_args().rounds)
