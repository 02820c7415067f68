"""LangChain on LangGraph: `create_agent` with `ChatOpenAI(base_url=…)`, as its docs have it for compatible servers.

https://docs.langchain.com/oss/python/langchain/agents, …/integrations/chat/openai. Tools are `StructuredTool`s with the
JSON schema, as langchain-mcp-adapters makes them; the limit is its `ModelCallLimitMiddleware`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from langchain.agents import create_agent
from langchain.agents.middleware import ModelCallLimitMiddleware
from langchain.agents.middleware.model_call_limit import ModelCallLimitExceededError
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

if TYPE_CHECKING:
    from benchmarks.peers.worker import Case, Messages, Tool

PACKAGES = ("langchain", "langgraph", "langchain-openai", "openai")


def as_tool(tool: Tool) -> StructuredTool:
    async def coroutine(**arguments: Any) -> str:
        return await tool.acall(arguments)

    return StructuredTool(
        name=tool.name, description=tool.description, args_schema=tool.parameters, coroutine=coroutine
    )


def start(case: Case) -> Callable[[Messages], Awaitable[str | None]]:
    agent = create_agent(
        ChatOpenAI(
            model=case.model,
            base_url=case.base_url,
            api_key=SecretStr(case.api_key),
            temperature=case.temperature,
            seed=case.seed,
            max_tokens=case.max_tokens,
        ),
        [as_tool(tool) for tool in case.tools],
        system_prompt=case.system,
        middleware=[ModelCallLimitMiddleware(run_limit=case.max_requests, exit_behavior="error")],
    )
    said: list[Any] = []

    async def ask(messages: Messages) -> str | None:
        try:
            state = await agent.ainvoke({"messages": [*said, *messages]})
        except ModelCallLimitExceededError:
            return None
        said[:] = state["messages"]
        return str(said[-1].text)

    return ask
