"""OpenAI Agents SDK: `Runner.run` and `run_streamed`, `OpenAIChatCompletionsModel`, tracing off as its docs have it for other servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

PACKAGES = ("openai-agents", "openai")

set_tracing_disabled(True)


class Adapter:
    def __init__(self, url: str, tools: list[Callable[..., Any]], stream: bool, system: str) -> None:
        self.stream = stream
        model = OpenAIChatCompletionsModel(
            model="stub", openai_client=AsyncOpenAI(base_url=url, api_key="none")
        )
        self.agent = Agent(
            name="agent", instructions=system, model=model, tools=[function_tool(f) for f in tools]
        )

    async def run(self, prompt: str) -> tuple[str, int]:
        if not self.stream:
            return (await Runner.run(self.agent, prompt, max_turns=100_000)).final_output, 0
        deltas = 0
        run = Runner.run_streamed(self.agent, prompt, max_turns=100_000)
        async for event in run.stream_events():
            if event.type == "raw_response_event":
                deltas += event.data.type == "response.output_text.delta"
        return run.final_output, deltas
