"""LangChain on LangGraph: `create_agent` with `ChatOpenAI`, `ainvoke` and `astream(stream_mode="messages")`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

PACKAGES = ("langchain", "langgraph", "langchain-openai", "openai")


def as_tool(f: Callable[..., Any]) -> StructuredTool:
    if inspect.iscoroutinefunction(f):
        return StructuredTool.from_function(coroutine=f, name=f.__name__, parse_docstring=True)
    return StructuredTool.from_function(f, name=f.__name__, parse_docstring=True)


class Adapter:
    def __init__(self, url: str, tools: list[Callable[..., Any]], stream: bool, system: str) -> None:
        self.stream = stream
        model = ChatOpenAI(model="stub", base_url=url, api_key=SecretStr("none"))
        self.agent = create_agent(model, [as_tool(f) for f in tools], system_prompt=system)

    async def run(self, prompt: str) -> tuple[str, int]:
        task: Any = {"messages": [{"role": "user", "content": prompt}]}
        config: Any = {"recursion_limit": 1_000_000}
        if not self.stream:
            return (await self.agent.ainvoke(task, config))["messages"][-1].content, 0
        text: list[str] = []
        of = None
        async for message, _ in self.agent.astream(task, config, stream_mode="messages"):
            if message.type in ("AIMessageChunk", "ai"):
                if message.id != of:
                    text, of = [], message.id
                if message.content:
                    text.append(message.content)
        return "".join(text), len(text)
