"""Servers of ours for tests: `served.py tools|agent|ask stdio|http`; over HTTP it prints its address and token."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import anyio
from mcp import types

from agentkit import Agent, Artifact, ToolError, ToolOutput, tool
from agentkit.mcp.serve import Address, Offer, Prompt, Resource, caller, serve_http, serve_stdio
from agentkit.testing import ScriptedEngine

PNG = b"\x89PNG\r\n\x1a\n"


@tool
def noisy(text: str) -> str:
    """Prints, in every way there is, and answers."""
    print("printed:", text)
    os.write(1, b"written\n")
    os.system("echo echoed")
    return text


@tool
def no() -> str:
    """Says no."""
    raise ToolError("not today")


@tool
def broken() -> str:
    """Raises."""
    return str(1 // 0)


@tool
def files() -> ToolOutput:
    """A picture, a sound, a text, bytes, and a file that is too large to send."""
    large = Path(os.environ["FILES"]) / "large.bin"
    large.write_bytes(b"x" * (9 * 2**20))
    artifacts = (
        Artifact("a.png", "image/png", PNG),
        Artifact("b.wav", "audio/wav", b"RIFF"),
        Artifact("c.csv", "text/csv", b"a,b\n"),
        Artifact("d.bin", "application/octet-stream", b"\xff\x00"),
        Artifact("large.bin", "application/octet-stream", path=str(large), size=9 * 2**20),
    )
    return ToolOutput("five files", artifacts=artifacts)


@tool
async def wait(note: str) -> str:
    """Never ends; leaves a note when it starts, and when it is cancelled."""
    folder = Path(os.environ["FILES"])
    (folder / f"{note} started").touch()
    try:
        await anyio.sleep_forever()
    finally:
        (folder / f"{note} cancelled").touch()
    return "never"


@tool
async def rename(old: str) -> str:
    """Asks the user for a new name, then whether that is final."""
    client = caller()
    assert client is not None
    text = {"type": "object", "properties": {"new": {"type": "string"}}, "required": ["new"]}
    new = await client.elicit(f"What shall {old} be called?", text, "new")
    if new.action != "accept" or not new.content:
        return f"{old} stays"
    sure = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
    final = await client.elicit(f"Call it {new.content['new']}?", sure, "sure")
    return f"{old} -> {new.content['new']}: {final.content}"


@tool
async def think(about: str) -> str:
    """Asks the client's model."""
    client = caller()
    assert client is not None
    said = types.SamplingMessage(role="user", content=types.TextContent(text=about))
    params = types.CreateMessageRequestParams(messages=[said], max_tokens=9)
    answers = await client.ask({"thought": types.CreateMessageRequest(params=params)})
    return str(answers["thought"])


async def note(day: str) -> str:
    return f"nothing happened on {day}"


async def logo() -> bytes:
    return PNG


async def review(arguments: Mapping[str, str]) -> str:
    return f"Review {arguments['file']}."


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def offer(what: str) -> Offer:
    if what == "agent":
        script = [
            '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>',
            "It is 5.",
            '<tool_call>{"name": "files", "arguments": {}}</tool_call>',
            "There they are.",
            '<tool_call>{"name": "wait", "arguments": {"note": "agent"}}</tool_call>',
        ]
        return Offer(agent=Agent(ScriptedEngine(script), tools=[add, files, wait]))
    return Offer(
        tools=[noisy, no, broken, files, wait, rename, think],
        resources=[
            Resource("notes://{day}", note, "Note"),
            Resource("logo://small", logo, "Logo", mime="image/png"),
        ],
        prompts=[Prompt("review", review, "Review a file", {"file": "Which one"})],
        instructions="Be kind.",
    )


def show(address: Address) -> None:
    print(address.url, address.token, flush=True)


async def main(what: str, transport: str) -> None:
    if transport == "stdio":
        await serve_stdio(offer(what))
    else:
        await serve_http(offer(what), started=show)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2])
