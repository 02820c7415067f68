"""Watch a run as it happens: thoughts, text, tool calls and their results."""

import sys

import anyio

from agentkit import Agent
from agentkit.events import TextDelta, ThinkingDelta, ToolFinished, ToolStarted


async def main() -> None:
    agent = Agent(model=sys.argv[1] if len(sys.argv) > 1 else "demo", tools=["code_interpreter"])
    async with agent.stream("Use Python to find the 20th Fibonacci number.") as run:
        async for event in run:
            match event:
                case TextDelta(text) | ThinkingDelta(text):
                    print(text, end="", flush=True)
                case ToolStarted(call):
                    print(f"\n→ {call.name}{dict(call.arguments)}")
                case ToolFinished(_, result):
                    print(f"← {result.content}")
    print("\nanswer:", run.result.output)


anyio.run(main)
