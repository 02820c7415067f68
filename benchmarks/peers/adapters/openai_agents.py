"""OpenAI Agents SDK: `OpenAIChatCompletionsModel` with its own client, tracing off, as its docs have it for other servers.

https://openai.github.io/openai-agents-python/models/. Tools are `FunctionTool`s with the schema as it is (not strict, as
for MCP servers, its default). A name that does not exist is told to the model (`tool_not_found_behavior`); by default
it ends the run.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from agents import (
    Agent,
    FunctionTool,
    MaxTurnsExceeded,
    ModelSettings,
    OpenAIChatCompletionsModel,
    RunConfig,
    Runner,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

if TYPE_CHECKING:
    from benchmarks.peers.worker import Case, Messages, Tool

PACKAGES = ("openai-agents", "openai")

set_tracing_disabled(True)


def as_tool(tool: Tool) -> Any:
    async def invoke(_: object, arguments: str) -> str:
        try:
            given = json.loads(arguments or "{}")
        except ValueError as exc:  # as its function_tool has it
            return f"An error occurred while parsing tool arguments. Please try again with valid JSON. Error: {exc}"
        if not isinstance(given, dict):
            return "An error occurred while parsing tool arguments. Please try again with a JSON object."
        return await tool.acall(given)

    return FunctionTool(tool.name, tool.description, tool.parameters, invoke, strict_json_schema=False)


def start(case: Case) -> Callable[[Messages], Awaitable[str | None]]:
    client = AsyncOpenAI(base_url=case.base_url, api_key=case.api_key)
    agent = Agent(
        name="Assistant",
        instructions=case.system,
        model=OpenAIChatCompletionsModel(model=case.model, openai_client=client),
        tools=[as_tool(tool) for tool in case.tools],
        model_settings=ModelSettings(
            temperature=case.temperature, max_tokens=case.max_tokens, extra_args={"seed": case.seed}
        ),
    )
    config = RunConfig(tracing_disabled=True, tool_not_found_behavior="return_error_to_model")
    said: list[Any] = []

    async def ask(messages: Messages) -> str | None:
        try:
            given: Any = [*said, *messages]
            result = await Runner.run(agent, given, max_turns=case.max_requests, run_config=config)
        except MaxTurnsExceeded:
            return None
        said[:] = result.to_input_list()
        return str(result.final_output)

    return ask
