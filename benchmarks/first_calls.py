"""How many first turns of a model come out as well-formed calls: agentkit beside the server's own parser.

    pip install --no-deps bfcl-eval          # the questions: Berkeley function calling leaderboard, Apache-2.0
    python benchmarks/first_calls.py --url http://127.0.0.1:8000/v1 [--model NAME] [--guided always] [--jsonl FILE]

Takes the first ten questions each of simple, multiple and parallel and the first eight of irrelevance. A run ends at its
first calls, or answer. "server" is where the server's own parser found a call, "known" where agentkit found one to a known
tool, "valid" where all calls of the turn were valid against their tool's schema, "answer" where there was none.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import jsonschema  # type: ignore[import-untyped]

from agentkit import Agent, Limits, ModelSettings, React, Tool, ToolOutput
from agentkit.messages import ToolCall
from agentkit.runtime.engine import Chunk, Request
from agentkit.runtime.openai_compatible import OpenAICompatible
from agentkit.repair import fit

QUESTIONS = {"simple_python": 10, "multiple": 10, "parallel": 10, "irrelevance": 8}
TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}  # the data's own names


@dataclass(frozen=True)
class Row:
    id: str
    server: bool
    known: bool
    valid: bool
    answer: bool
    calls: list[str]
    text: str


class Watched(OpenAICompatible):
    """The engine, which notes whether the server's own parser found a call."""

    found = False

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        async with aclosing(super().stream(request)) as chunks:
            async for chunk in chunks:
                self.found = self.found or any(c.name for c in chunk.calls)
                yield chunk


def json_schema(node: Any) -> Any:
    if isinstance(node, list):
        return [json_schema(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    made = {key: json_schema(value) for key, value in node.items()}
    if isinstance(made.get("type"), str):
        made["type"] = TYPES.get(made["type"], made["type"])
    return made


def tool_of(function: Mapping[str, Any]) -> Tool:
    async def handler(arguments: Mapping[str, Any]) -> ToolOutput:
        return ToolOutput("")

    name = re.sub(r"[^\w-]", "_", function["name"])
    return Tool(name, function["description"], json_schema(function["parameters"]), handler)


async def first_turn(case: Mapping[str, Any], args: argparse.Namespace) -> Row:
    tools = {t.name: t for t in map(tool_of, case["function"])}
    engine = Watched(args.url, args.model, os.environ.get("AGENTKIT_API_KEY"))
    agent = Agent(
        engine,
        tools=list(tools.values()),
        planner=React(guided=args.guided),
        settings=ModelSettings(temperature=0, max_tokens=400),
        limits=Limits(max_turns=3, max_tool_calls=0),
    )
    result = await agent.run(case["question"][0])
    reply = next((m for m in reversed(result.messages) if m.role == "assistant"), None)
    calls = reply.calls if reply else ()
    known = [c for c in calls if isinstance(c, ToolCall) and c.name in tools]
    valid = [
        jsonschema.Draft202012Validator(tools[c.name].parameters).is_valid(
            fit(c.arguments, tools[c.name].parameters)
        )
        for c in known
    ]
    return Row(
        case["id"],
        engine.found,
        bool(known),
        bool(calls) and sum(valid) == len(calls),
        not calls and bool(result.output),
        [f"{c.name}({json.dumps(dict(c.arguments))})" if isinstance(c, ToolCall) else c.raw for c in calls],
        result.output,
    )


async def main(args: argparse.Namespace) -> None:
    spec = find_spec("bfcl_eval")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("The questions are missing; run: pip install --no-deps bfcl-eval")
    data = Path(spec.submodule_search_locations[0]) / "data"
    rows: dict[str, list[Row]] = {category: [] for category in QUESTIONS}
    eight = anyio.CapacityLimiter(8)

    async def one(category: str, case: Mapping[str, Any]) -> None:
        async with eight:
            row = await first_turn(case, args)
        rows[category].append(row)
        print(f"{row.id:20} {'; '.join(row.calls) or row.text!r}"[:110], flush=True)
        if args.jsonl:
            async with await anyio.open_file(args.jsonl, "a", encoding="utf-8") as file:
                await file.write(json.dumps(asdict(row)) + "\n")

    async with anyio.create_task_group() as group:
        for category, many in QUESTIONS.items():
            lines = (data / f"BFCL_v4_{category}.json").read_text(encoding="utf-8").splitlines()[:many]
            for line in lines:
                group.start_soon(one, category, json.loads(line))
    print(f"\n{'':14} {'questions':>9} {'server':>7} {'known':>7} {'valid':>7} {'answer':>7}")
    for category, many in QUESTIONS.items():
        counts = [sum(getattr(r, c) for r in rows[category]) for c in ("server", "known", "valid", "answer")]
        print(f"{category:14} {many:9}" + "".join(f"{n:8}" for n in counts))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", required=True)
    parser.add_argument("--model")
    parser.add_argument("--guided", choices=["auto", "always", "never"], default="auto")
    parser.add_argument("--jsonl", help="Also write each row there.")
    anyio.run(main, parser.parse_args())
