"""agentkit: `Agent` with the URL of a server, open for as long as the process lives, `run` or `stream`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agentkit import Agent, Limits
from agentkit.events import TextDelta

PACKAGES = ("agentkit",)


class Adapter:
    def __init__(self, url: str, tools: list[Callable[..., Any]], stream: bool, system: str) -> None:
        self.stream = stream
        limits = Limits(max_turns=100_000)
        self.agent = Agent(f"stub@{url}", instructions=system, tools=tools, limits=limits)
        self.opened = False

    async def run(self, prompt: str) -> tuple[str, int]:
        if not self.opened:
            self.opened = True
            await self.agent.__aenter__()
        if not self.stream:
            return (await self.agent.run(prompt)).output, 0
        deltas = 0
        async with self.agent.stream(prompt) as run:
            async for event in run:
                deltas += type(event) is TextDelta
        return run.result.output, deltas
