"""A whole run with no model: the engine answers from a script. Useful in your own tests."""

from agentkit import Agent, tool
from agentkit.testing import ScriptedEngine


@tool
def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a + b


call = '<tool_call>\n{"name": "add", "arguments": {"a": 20, "b": 22}}\n</tool_call>'
result = Agent(ScriptedEngine([call, "It is 42."]), tools=[add]).run_sync("What is 20 + 22?")
print(result.output)
