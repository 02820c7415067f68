"""Pydantic AI: `Agent.run` and `run_stream`, `OpenAIChatModel` with `OpenAICompatibleProvider`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic_ai import Agent, Tool, UsageLimits
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

PACKAGES = ("pydantic-ai-slim", "openai")


class Adapter:
    def __init__(self, url: str, tools: list[Callable[..., Any]], stream: bool, system: str) -> None:
        self.stream = stream
        provider = OpenAICompatibleProvider("local", base_url=url, api_key="none")
        self.agent = Agent(
            OpenAIChatModel("stub", provider=provider),
            system_prompt=system,
            tools=[Tool(f, name=f.__name__) for f in tools],
        )

    async def run(self, prompt: str) -> tuple[str, int]:
        limits = UsageLimits(request_limit=100_000)
        if not self.stream:
            return (await self.agent.run(prompt, usage_limits=limits)).output, 0
        async with self.agent.run_stream(prompt, usage_limits=limits) as run:
            text = [delta async for delta in run.stream_text(delta=True, debounce_by=None)]
        return "".join(text), len(text)
