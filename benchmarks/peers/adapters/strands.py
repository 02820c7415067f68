"""Strands Agents: `Agent` with `OpenAIModel(client_args={"base_url": …})`, as its docs have it for compatible servers.

https://strandsagents.com/latest/documentation/docs/user-guide/concepts/model-providers/openai/. Tools are
`PythonAgentTool`s with the JSON schema; the limit is `limits={"turns": …}`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from strands import Agent
from strands.models.openai import OpenAIModel
from strands.tools.tools import PythonAgentTool

if TYPE_CHECKING:
    from benchmarks.peers.worker import Case, Messages, Tool

PACKAGES = ("strands-agents", "openai")


def as_tool(tool: Tool) -> Any:
    async def function(use: Any, **_: object) -> Any:
        if not isinstance(use["input"], dict):
            said, status = "The arguments must be a JSON object.", "error"
        else:
            said, status = await tool.acall(use["input"]), "success"
        return {"toolUseId": use["toolUseId"], "status": status, "content": [{"text": said}]}

    spec: Any = {
        "name": tool.name,
        "description": tool.description,
        "inputSchema": {"json": tool.parameters},
    }
    return PythonAgentTool(tool.name, spec, function)


def start(case: Case) -> Callable[[Messages], Awaitable[str | None]]:
    model = OpenAIModel(
        client_args={"base_url": case.base_url, "api_key": case.api_key},
        model_id=case.model,
        params={"temperature": case.temperature, "seed": case.seed, "max_tokens": case.max_tokens},
    )
    tools = [as_tool(tool) for tool in case.tools]
    agent = Agent(model, tools=tools, system_prompt=case.system, callback_handler=None)

    async def ask(messages: Messages) -> str | None:
        *before, user = messages
        for m in before:  # it knows no system messages but the first: the user's, then
            role = "assistant" if m["role"] == "assistant" else "user"
            agent.messages.append({"role": role, "content": [{"text": m["content"]}]})
        result = await agent.invoke_async(user["content"], limits={"turns": case.max_requests})
        if result.stop_reason == "limit_turns":
            return None
        return "".join(block.get("text", "") for block in result.message["content"])

    return ask
