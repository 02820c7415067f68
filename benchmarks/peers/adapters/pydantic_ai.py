"""Pydantic AI: `OpenAIChatModel` with `OpenAICompatibleProvider`, tools by `Tool.from_schema`, as its docs have it.

https://ai.pydantic.dev/models/openai/#openai-compatible-models, https://ai.pydantic.dev/tools-advanced/. `retries` is
the case's budget rather than 1: what a small model gets wrong is told to it for as long as there are requests left.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from pydantic_ai import Agent, Tool, UsageLimitExceeded, UsageLimits
from pydantic_ai.messages import ModelRequest, ModelResponse, SystemPromptPart, TextPart, UserPromptPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIChatModelSettings
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

if TYPE_CHECKING:
    from benchmarks.peers import worker

PACKAGES = ("pydantic-ai-slim", "openai")


def as_tool(tool: worker.Tool) -> Any:
    async def function(**arguments: Any) -> str:
        return await tool.acall(arguments)

    return Tool.from_schema(function, tool.name, tool.description, tool.parameters)


def as_message(role: str, content: str) -> Any:
    if role == "assistant":
        return ModelResponse([TextPart(content)])
    return ModelRequest([SystemPromptPart(content) if role == "system" else UserPromptPart(content)])


def start(case: worker.Case) -> Callable[[worker.Messages], Awaitable[str | None]]:
    provider = OpenAICompatibleProvider("local", base_url=case.base_url, api_key=case.api_key)
    agent = Agent(
        OpenAIChatModel(case.model, provider=provider),
        instructions=case.system,
        tools=[as_tool(tool) for tool in case.tools],
        retries=case.max_requests,
        model_settings=OpenAIChatModelSettings(
            temperature=case.temperature, seed=case.seed, max_tokens=case.max_tokens
        ),
    )
    limits = UsageLimits(request_limit=case.max_requests)
    said: list[Any] = []

    async def ask(messages: worker.Messages) -> str | None:
        *before, user = messages
        said.extend(as_message(m["role"], m["content"]) for m in before)
        try:
            result = await agent.run(user["content"], message_history=said, usage_limits=limits)
        except UsageLimitExceeded:
            return None
        said[:] = result.all_messages()
        return result.output

    return ask
