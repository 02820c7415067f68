"""Qwen-Agent: `Assistant` with a `model_server`, tools in the prompt, its default; not async, and it always streams."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import qwen_agent.agents.fncall_agent as fncall_agent
from qwen_agent.agents import Assistant
from qwen_agent.tools.base import BaseTool

from tools import ABOUT, SCHEMAS

PACKAGES = ("qwen-agent", "openai")

logging.getLogger("qwen_agent_logger").setLevel(logging.ERROR)
fncall_agent.MAX_LLM_CALL_PER_RUN = 100_000


class Function(BaseTool):
    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = function.__name__
        self.description, self.parameters = ABOUT[self.name], SCHEMAS[self.name]
        super().__init__()
        self._function = function

    def call(self, params: str, **_: object) -> str:
        return str(self._function(**json.loads(params)))


class Adapter:
    def __init__(self, url: str, tools: list[Callable[..., Any]], stream: bool, system: str) -> None:
        if not stream:
            raise NotImplementedError("it always streams")
        self.agent = Assistant(
            llm={
                "model": "stub",
                "model_type": "oai",
                "model_server": url,
                "api_key": "none",
                "generate_cfg": {"max_input_tokens": 10_000_000},
            },
            function_list=[Function(f) for f in tools],
            system_message=system,
        )

    def run(self, prompt: str) -> tuple[str, int]:
        deltas, response = 0, []
        messages = [{"role": "user", "content": prompt}]
        for response in self.agent.run(messages):  # noqa: B007 - each is the whole of it, so far
            deltas += 1
        return response[-1]["content"], deltas
