"""The floor: a loop by hand on httpx2, without a client library for the API."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from typing import Any

import httpx2

from tools import offered

PACKAGES = ("httpx2",)


async def carried_out(functions: dict[str, Callable[..., Any]], calls: list[Any]) -> list[Any]:
    async def one(call: Any) -> Any:
        function, given = functions[call["function"]["name"]], json.loads(call["function"]["arguments"])
        if inspect.iscoroutinefunction(function):
            return await function(**given)
        return await asyncio.to_thread(function, **given) if len(calls) > 1 else function(**given)

    return await asyncio.gather(*map(one, calls)) if len(calls) > 1 else [await one(calls[0])]


class Adapter:
    def __init__(self, url: str, tools: list[Callable[..., Any]], stream: bool, system: str) -> None:
        self.url, self.stream, self.system = f"{url}/chat/completions", stream, system
        self.functions = {f.__name__: f for f in tools}
        self.offered = [offered(f) for f in tools]
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
        self.client = httpx2.AsyncClient(timeout=600, limits=limits)

    async def run(self, prompt: str) -> tuple[str, int]:
        messages: list[Any] = [
            {"role": "system", "content": self.system},
            {"role": "user", "content": prompt},
        ]
        deltas = 0
        while True:
            body = {"model": "stub", "messages": messages, "tools": self.offered}
            if self.stream:
                message, pieces = await self.streamed({**body, "stream": True})
                deltas += pieces
            else:
                response = await self.client.post(self.url, json=body)
                message = response.json()["choices"][0]["message"]
            calls = message.get("tool_calls")
            if not calls:
                return message["content"], deltas
            messages.append(message)
            for call, result in zip(calls, await carried_out(self.functions, calls), strict=True):
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": str(result)})

    async def streamed(self, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
        text: list[str] = []
        calls: dict[int, dict[str, Any]] = {}
        async with self.client.stream("POST", self.url, json=body) as response:
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                choices = json.loads(line[6:])["choices"]
                delta = choices[0]["delta"] if choices else {}
                if delta.get("content"):
                    text.append(delta["content"])
                for call in delta.get("tool_calls") or ():
                    function = call["function"]
                    if call["index"] not in calls:
                        calls[call["index"]] = {"id": call["id"], "name": function["name"], "pieces": []}
                    calls[call["index"]]["pieces"].append(function["arguments"])
        message: dict[str, Any] = {"role": "assistant", "content": "".join(text) or None}
        if calls:
            message["tool_calls"] = [
                {
                    "id": c["id"],
                    "type": "function",
                    "function": {"name": c["name"], "arguments": "".join(c["pieces"])},
                }
                for c in calls.values()
            ]
        return message, len(text)
