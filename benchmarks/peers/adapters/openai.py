"""The bare loop of OpenAI's guide to function calling: the client, `tools=`, results as messages of role "tool".

https://platform.openai.com/docs/guides/function-calling. Arguments that cannot be read and names that do not exist are
told to the model; everything else is the client's default.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from openai import OpenAI, omit

if TYPE_CHECKING:
    from benchmarks.peers.worker import Case, Messages

PACKAGES = ("openai",)


def start(case: Case, first_choice: Any = omit) -> Callable[[Messages], str | None]:
    client = OpenAI(base_url=case.base_url, api_key=case.api_key)
    tools: Any = [
        {
            "type": "function",
            "function": {"name": t.name, "description": t.description, "parameters": t.parameters},
        }
        for t in case.tools
    ]
    by_name = {tool.name: tool for tool in case.tools}
    said: list[Any] = [{"role": "system", "content": case.system}] if case.system else []

    def carried_out(name: str, arguments: str) -> str:
        if name not in by_name:
            return f"Error: there is no function {name}."
        try:
            given = json.loads(arguments or "{}")
        except ValueError as exc:
            return f"Error: the arguments are not JSON: {exc}"
        if not isinstance(given, dict):
            return "Error: the arguments are not a JSON object."
        return by_name[name].call(given)

    def ask(messages: Messages) -> str | None:
        said.extend(messages)
        for number in range(case.max_requests):
            choice = first_choice if number == 0 and tools else omit
            response = client.chat.completions.create(
                model=case.model,
                messages=said,
                tools=tools or omit,
                tool_choice=choice,
                temperature=case.temperature,
                seed=case.seed,
                max_tokens=case.max_tokens,
            )
            message = response.choices[0].message
            said.append(message.to_dict())
            if not message.tool_calls:
                return message.content or ""
            for call in message.tool_calls:
                assert call.type == "function"
                result = carried_out(call.function.name, call.function.arguments)
                said.append({"role": "tool", "tool_call_id": call.id, "content": result})
        return None

    return ask
