"""The other floor: a loop by hand on OpenAI's async client."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from typing import Any

from openai import AsyncOpenAI

from tools import offered

PACKAGES = ("openai", "httpx2")


class Adapter:
    def __init__(self, url: str, tools: list[Callable[..., Any]], stream: bool, system: str) -> None:
        self.stream, self.system = stream, system
        self.functions = {f.__name__: f for f in tools}
        self.offered: Any = [offered(f) for f in tools]
        self.client = AsyncOpenAI(base_url=url, api_key="none")

    async def run(self, prompt: str) -> tuple[str, int]:
        messages: list[Any] = [
            {"role": "system", "content": self.system},
            {"role": "user", "content": prompt},
        ]
        deltas = 0
        while True:
            if self.stream:
                text, calls, pieces = await self.streamed(messages)
                deltas += pieces
            else:
                response = await self.client.chat.completions.create(
                    model="stub", messages=messages, tools=self.offered
                )
                message = response.choices[0].message
                text = message.content or ""
                calls = [
                    (c.id, c.function.name, c.function.arguments)
                    for c in message.tool_calls or ()
                    if c.type == "function"
                ]
            if not calls:
                return text, deltas
            made = [
                {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
                for id, name, arguments in calls
            ]
            messages.append({"role": "assistant", "content": text or None, "tool_calls": made})
            for (id, _, _), result in zip(calls, await self.carried_out(calls), strict=True):
                messages.append({"role": "tool", "tool_call_id": id, "content": str(result)})

    async def carried_out(self, calls: list[tuple[str, str, str]]) -> list[Any]:
        async def one(name: str, arguments: str) -> Any:
            function, given = self.functions[name], json.loads(arguments)
            if inspect.iscoroutinefunction(function):
                return await function(**given)
            return await asyncio.to_thread(function, **given) if len(calls) > 1 else function(**given)

        return await asyncio.gather(*(one(name, arguments) for _, name, arguments in calls))

    async def streamed(self, messages: list[Any]) -> tuple[str, list[tuple[str, str, str]], int]:
        text: list[str] = []
        calls: dict[int, tuple[str, str, list[str]]] = {}
        async for chunk in await self.client.chat.completions.create(
            model="stub", messages=messages, tools=self.offered, stream=True
        ):
            delta = chunk.choices[0].delta if chunk.choices else None
            if delta is None:
                continue
            if delta.content:
                text.append(delta.content)
            for call in delta.tool_calls or ():
                assert call.function is not None
                if call.index not in calls:
                    calls[call.index] = (call.id or "", call.function.name or "", [])
                calls[call.index][2].append(call.function.arguments or "")
        made = [(id, name, "".join(pieces)) for id, name, pieces in calls.values()]
        return "".join(text), made, len(text)
