"""smolagents: `ToolCallingAgent` with `OpenAIModel`; not async, and an agent for each run, as it keeps its conversation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smolagents import FinalAnswerStep, LogLevel, OpenAIModel, ToolCallingAgent, tool

PACKAGES = ("smolagents", "openai")


class Adapter:
    def __init__(self, url: str, tools: list[Callable[..., Any]], stream: bool, system: str) -> None:
        self.stream, self.system = stream, system
        self.model = OpenAIModel(model_id="stub", api_base=url, api_key="none")
        self.tools = [tool(f) for f in tools]

    def run(self, prompt: str) -> tuple[str, int]:
        agent = ToolCallingAgent(
            self.tools,
            self.model,
            instructions=self.system,
            verbosity_level=LogLevel.OFF,
            stream_outputs=self.stream,
            max_steps=100_000,
        )
        if not self.stream:
            return str(agent.run(prompt)), 0
        deltas, said = 0, ""
        for event in agent.run(prompt, stream=True):
            deltas += type(event).__name__ == "ChatMessageStreamDelta"
            if isinstance(event, FinalAnswerStep):
                said = str(event.output)
        return said, deltas
