"""Another framework's agent, in its own environment: does cases that come as lines of JSON on stdin, for compare.py.

    PYTHON worker.py ADAPTER

PYTHON has what adapters/ADAPTER.py imports, and need not have agentkit. The first line out is {"ready", "versions"}. A
case in is {"id", "base_url", "tools_url", "turn_url", "api_key", "model", "turns", "tools", "max_requests",
"max_tokens", "temperature", "seed"}, the line out for it {"id", "answers", "error"}: an answer for each turn, fewer if
the recorder refused a request or the framework's own limit was reached (no error), or something broke (an error).

An adapter has PACKAGES, whose versions are told, and `start(case)`: the agent, as a function, plain or async, that takes
the messages of a turn, the user's last, keeps the conversation, and returns the answer; None if it stopped at its limit.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import sys
import traceback
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from types import ModuleType
from typing import Any, TypeAlias

Messages: TypeAlias = Sequence[Mapping[str, str]]  # role and content
Ask: TypeAlias = Callable[[Messages], "Awaitable[str | None] | str | None"]

# What the recorder says when a case is over
REFUSED = "agentkit-eval:"

# Nothing but the given URLs is to be reached, and nobody's account or proxy used
FOREIGN = ("OPENAI_", "AZURE_", "LANGCHAIN_", "LANGSMITH_", "LOGFIRE_", "OTEL_", "DASHSCOPE_", "QWEN_AGENT_")
QUIET = {
    "NO_PROXY": "*",
    "DO_NOT_TRACK": "1",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "OTEL_SDK_DISABLED": "true",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def post(url: str, key: str, body: object) -> bytes:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        said: bytes = response.read()
    return said


@dataclass(frozen=True)
class Tool:
    """A tool of the case. What went wrong is text, too: all of the frameworks can show it to the model as a result."""

    name: str
    description: str
    parameters: dict[str, Any]  # JSON schema, of an object
    url: str
    key: str
    one_by_one: asyncio.Lock  # calls made at once reach the world in their order, in every framework

    def call(self, arguments: Mapping[str, Any]) -> str:
        said: str = json.loads(post(self.url, self.key, dict(arguments)))["content"]
        return said

    async def acall(self, arguments: Mapping[str, Any]) -> str:
        async with self.one_by_one:
            return await asyncio.to_thread(self.call, arguments)


@dataclass(frozen=True)
class Case:
    base_url: str
    api_key: str
    model: str
    system: str | None  # what system messages there are before the first turn
    tools: list[Tool]
    max_requests: int  # in a turn
    max_tokens: int
    temperature: float
    seed: int


def read(line: Mapping[str, Any]) -> tuple[Case, list[Messages]]:
    first, *later = line["turns"]
    given = [message["content"] for message in first if message["role"] == "system"]
    url, key, lock = line["tools_url"], line["api_key"], asyncio.Lock()
    case = Case(
        base_url=line["base_url"],
        api_key=key,
        model=line["model"],
        system="\n\n".join(given) or None,
        tools=[
            Tool(t["name"], t["description"], t["parameters"], f"{url}/{t['name']}", key, lock)
            for t in line["tools"]
        ],
        max_requests=line["max_requests"],
        max_tokens=line["max_tokens"],
        temperature=line["temperature"],
        seed=line["seed"],
    )
    return case, [[message for message in first if message["role"] != "system"], *later]


async def answer(adapter: ModuleType, line: Mapping[str, Any]) -> dict[str, Any]:
    answers: list[str] = []
    error = ""
    try:
        case, turns = read(line)
        ask: Ask = adapter.start(case)
        for number, turn in enumerate(turns):
            if number:
                await asyncio.to_thread(post, line["turn_url"], case.api_key, {})
            said = ask(turn)
            said = await said if inspect.isawaitable(said) else said
            if said is None:
                break
            answers.append(said)
    except (Exception, SystemExit) as exc:
        if not any(REFUSED in str(e) for e in chain(exc)):
            traceback.print_exc()
            error = " ".join(f"{type(exc).__name__}: {exc}".split())[:500]
    return {"id": line["id"], "answers": answers, "error": error}


def chain(exc: BaseException) -> Iterator[BaseException]:
    """An error, and what it came of."""
    seen: list[BaseException] = []
    todo: list[BaseException | None] = [exc]
    while todo:
        each = todo.pop()
        if each is None or each in seen:
            continue
        seen.append(each)
        yield each
        todo += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            todo += each.exceptions


def main(name: str) -> None:
    # frameworks print, and code that models write reads: the lines are kept apart from both
    inbox, out = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", 1, encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    for variable in list(os.environ):
        if variable.startswith(FOREIGN) or variable.lower().endswith("_proxy"):
            del os.environ[variable]
    os.environ.update(QUIET)
    adapter = importlib.import_module(f"adapters.{name}")
    print(
        json.dumps({"ready": name, "versions": {p: version(p) for p in adapter.PACKAGES}}),
        file=out,
    )
    with asyncio.Runner() as runner:  # of one loop: clients are kept from case to case by some
        for line in inbox:
            print(json.dumps(runner.run(answer(adapter, json.loads(line)))), file=out)


if __name__ == "__main__":
    main(sys.argv[1])
