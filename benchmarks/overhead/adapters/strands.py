"""Strands Agents: `invoke_async` and `stream_async`, `OpenAIModel(client_args=…)`; an agent is one conversation, so one for each run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from strands import Agent, tool
from strands.models.openai import OpenAIModel

PACKAGES = ("strands-agents", "openai")


class Adapter:
    def __init__(self, url: str, tools: list[Callable[..., Any]], stream: bool, system: str) -> None:
        self.stream, self.system = stream, system
        self.model = OpenAIModel(
            client_args={"base_url": url, "api_key": "none"}, model_id="stub", stream=stream
        )
        self.tools = [tool(f, name=f.__name__) for f in tools]

    async def run(self, prompt: str) -> tuple[str, int]:
        agent = Agent(self.model, tools=self.tools, system_prompt=self.system, callback_handler=None)
        deltas, result = 0, None
        if not self.stream:
            result = await agent.invoke_async(prompt)
        else:
            async for event in agent.stream_async(prompt):
                deltas += "data" in event
                result = event.get("result", result)
        return "".join(block.get("text", "") for block in result.message["content"]), deltas
