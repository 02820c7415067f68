"""Qwen-Agent: `Assistant` with an OpenAI-compatible `model_server`, tools in the prompt ("nous", its default), as in its README.

https://github.com/QwenLM/Qwen-Agent. Sampling is in `generate_cfg`; it always streams. Tools read their arguments with
json5, as the README's do, and have the keys of a schema that it accepts, as its MCP client leaves them. The limit is
its MAX_LLM_CALL_PER_RUN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import json5
import qwen_agent.agents.fncall_agent as fncall_agent
from qwen_agent.agents import Assistant
from qwen_agent.tools.base import BaseTool

if TYPE_CHECKING:
    from benchmarks.peers.worker import Case, Messages, Tool

PACKAGES = ("qwen-agent", "openai")


class Remote(BaseTool):
    def __init__(self, tool: Tool) -> None:
        self.name, self.description = tool.name, tool.description
        schema = {"properties": {}, "required": [], **tool.parameters}
        self.parameters = {key: schema[key] for key in ("type", "properties", "required")}
        super().__init__()
        self._tool = tool

    def call(self, params: str, **_: object) -> str:
        given = json5.loads(params or "{}")
        if not isinstance(given, dict):
            raise ValueError("Parameters must be a JSON object!")
        return self._tool.call(given)


def start(case: Case) -> Callable[[Messages], str | None]:
    fncall_agent.MAX_LLM_CALL_PER_RUN = case.max_requests
    agent = Assistant(
        llm={
            "model": case.model,
            "model_type": "oai",
            "model_server": case.base_url,
            "api_key": case.api_key,
            "generate_cfg": {
                "temperature": case.temperature,
                "seed": case.seed,
                "max_tokens": case.max_tokens,
            },
        },
        function_list=[Remote(tool) for tool in case.tools],
        system_message=case.system,
    )
    said: list[Any] = []

    def ask(messages: Messages) -> str | None:
        said.extend(messages)
        response: list[Any] = []
        for response in agent.run(said):  # noqa: B007 - each is the whole of it, so far
            pass
        said.extend(response)
        if not response or response[-1]["role"] != "assistant":
            return None  # its limit was reached as a tool had answered
        return str(response[-1]["content"])

    return ask
