"""smolagents: `CodeAgent`, its flagship, with `OpenAIModel(api_base=…)`, as in its README and guided tour.

https://huggingface.co/docs/smolagents/guided_tour. Tools are `Tool`s made of the schemas' properties, as its MCP client
makes them, and also take arguments by position, as models write calls. The last request of a turn is the one in
which it asks for an answer when `max_steps` are used up. Messages before the user's become steps of its memory.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from smolagents import ActionStep, CodeAgent, LogLevel, OpenAIModel, TaskStep, Timing, ToolCallingAgent
from smolagents import Tool as BaseTool

if TYPE_CHECKING:
    from benchmarks.peers.worker import Case, Messages, Tool

PACKAGES = ("smolagents", "openai")

TYPES = {"string", "boolean", "integer", "number", "array", "object", "any", "null"}


def as_input(schema: dict[str, Any], required: bool) -> dict[str, Any]:
    """A property as smolagents wants it: with a description, a type that it knows, and "nullable" if it may be left out."""
    known = {"description": "see tool description", **schema}
    if not all("type" in choice for choice in known.get("anyOf", ())):
        del known["anyOf"]
    kinds = known.get("type")
    if not (kinds in TYPES if isinstance(kinds, str) else kinds and TYPES.issuperset(kinds)):
        known["type"] = "any"
    return known if required else {**known, "nullable": True}


class Remote(BaseTool):
    skip_forward_signature_validation = True  # the arguments are only known when it is made
    output_type = "string"

    def __init__(self, tool: Tool) -> None:
        name = re.sub(r"\W", "_", tool.name)
        self.name = f"{name}_" if keyword.iskeyword(name) else f"_{name}" if name[0].isdigit() else name
        self.description = tool.description
        required = tool.parameters.get("required", ())
        self.inputs = {
            key: as_input(schema, key in required)
            for key, schema in tool.parameters.get("properties", {}).items()
        }
        self._tool = tool
        super().__init__()

    def forward(self, *args: Any, **kwargs: Any) -> str:
        if len(args) > len(self.inputs):
            raise TypeError(f"{self.name}() takes {len(self.inputs)} arguments but {len(args)} were given")
        given = {**dict(zip(self.inputs, args, strict=False)), **kwargs}
        # None, for what may be left out, is a Python function's way to leave it out
        optional = {key for key, known in self.inputs.items() if known.get("nullable")}
        return self._tool.call({k: v for k, v in given.items() if v is not None or k not in optional})


def conversation(agent: CodeAgent | ToolCallingAgent) -> Callable[[Messages], str | None]:
    def ask(messages: Messages) -> str | None:
        *before, user = messages
        for m in before:
            if m["role"] == "assistant":
                timing = Timing(start_time=0.0, end_time=0.0)
                agent.memory.steps.append(ActionStep(1, timing, model_output=m["content"]))
            else:
                agent.memory.steps.append(TaskStep(task=m["content"]))
        said = agent.run(user["content"], reset=False)
        return "" if said is None else str(said)

    return ask


def settings(case: Case, **sampling: Any) -> dict[str, Any]:
    """What both of its agents are made with."""
    return {
        "tools": [Remote(tool) for tool in case.tools],
        "model": OpenAIModel(
            model_id=case.model,
            api_base=case.base_url,
            api_key=case.api_key,
            temperature=case.temperature,
            seed=case.seed,
            max_tokens=case.max_tokens,
            **sampling,
        ),
        "instructions": case.system,
        "max_steps": max(1, case.max_requests - 1),
        "verbosity_level": LogLevel.OFF,
    }


def start(case: Case) -> Callable[[Messages], str | None]:
    return conversation(CodeAgent(**settings(case)))
