"""Twenty everyday questions that each need one tool, asked of a real model; prints the table.

    python benchmarks/everyday.py                 # the demo model
    python benchmarks/everyday.py -m qwen3-4b     # any model that `agentkit run -m` takes
    python benchmarks/everyday.py --only 3,7 -v

A question counts when the right tool was called (without an error in the end) and the answer holds the right fact. All
questions see the same tools and the same prompt, agentkit's own; nothing in it knows a question.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import anyio

from agentkit import Agent, Limits, RunResult
from agentkit.agent import AnyTool
from agentkit.messages import ToolCall
from agentkit.runtime import connect
from agentkit_tools.files import ReadFile

Check = Callable[[str], bool]


@dataclass(frozen=True)
class Question:
    text: str
    tools: tuple[str, ...]  # any of these is the right call
    check: Check


def holds(*facts: str) -> Check:
    """Every fact is in the answer; numbers match with or without separators."""
    plain = [re.sub(r"(?<=\d)[,_ ](?=\d)", "", f).lower() for f in facts]
    return lambda answer: all(f in re.sub(r"(?<=\d)[,_ ](?=\d{3})", "", answer).lower() for f in plain)


def now_in(zone: str) -> Check:
    """The answer holds the zone's time of a moment ago, on a 24- or 12-hour clock."""

    def check(answer: str) -> bool:
        moments = [datetime.now(ZoneInfo(zone)) - timedelta(minutes=m) for m in range(4)]
        forms = {form for m in moments for form in (f"{m:%H:%M}", f"{m:%I:%M}", f"{m:%I:%M}".lstrip("0"))}
        return any(form in answer for form in forms)

    return check


TIME, CODE, FILE, GIT = (
    ("get_current_time", "convert_time"),
    ("code_interpreter",),
    ("read_file",),
    ("git_log",),
)

QUESTIONS = [
    Question("What time is it in Tokyo right now?", TIME, now_in("Asia/Tokyo")),
    Question("What is the current time in New York?", TIME, now_in("America/New_York")),
    Question(
        "I need to call a colleague in Berlin. What time is it there now?", TIME, now_in("Europe/Berlin")
    ),
    Question("When it is 14:30 in London, what time is it in Tokyo?", TIME, holds(":30")),
    Question("Tell me the time in Sydney, Australia.", TIME, now_in("Australia/Sydney")),
    Question("What is 2 to the power of 100?", CODE, holds("1267650600228229401496703205376")),
    Question("What is the 100th prime number?", CODE, holds("541")),
    Question("How many seconds are there in 365 days?", CODE, holds("31536000")),
    Question("What is the sum of all whole numbers from 1 to 1000?", CODE, holds("500500")),
    Question(
        "Use Python to sort these numbers: 42, 7, 19, 3, 88.",
        CODE,
        lambda a: bool(re.search(r"3\D+7\D+19\D+42\D+88", a)),
    ),
    Question("What does the file notes.txt say?", FILE, holds("dentist")),
    Question("Read todo.txt and tell me what is on the list.", FILE, holds("milk")),
    Question("Which port is set in config.ini?", FILE, holds("8471")),
    Question("Look into people.csv: how old is Maria?", FILE, holds("34")),
    Question("Please open recipe.md and tell me how much flour is needed.", FILE, holds("250")),
    Question("What is the message of the latest commit in the git repository {repo}?", GIT, holds("parser")),
    Question("Who made the last commit in the git repository at {repo}?", GIT, holds("Ada")),
    Question("Show me the git log of {repo}.", GIT, holds("parser")),
    Question(
        "How many commits does the git repository {repo} have?",
        GIT,
        lambda a: bool(re.search(r"\b(3|three)\b", a.lower())),
    ),
    Question("What was the first commit of the git repository {repo} about?", GIT, holds("start")),
]

FILES = {
    "notes.txt": "Dentist appointment on Thursday at 9.\n",
    "todo.txt": "buy milk\nwater the plants\ncall Sam\n",
    "config.ini": "[server]\nhost = localhost\nport = 8471\n",
    "people.csv": "name,age\nJohn,51\nMaria,34\nLi,28\n",
    "recipe.md": "# Pancakes\n\n- 250 g flour\n- 2 eggs\n- 500 ml milk\n",
}


def prepare(folder: Path) -> Path:
    for name, text in FILES.items():
        (folder / name).write_text(text)
    repo = folder / "project"
    repo.mkdir()
    git = ["git", "-C", str(repo), "-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    for message in ("Start the project", "Add a reader for the input", "Fix the parser for empty lines"):
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", message], check=True)
    return repo


def servers(repo: Path) -> dict[str, Any]:
    return {
        "mcpServers": {
            "time": {"command": "uvx", "args": ["mcp-server-time", "--local-timezone=UTC"]},
            "git": {
                "command": "uvx",
                "args": ["mcp-server-git", "--repository", str(repo)],
                "includeTools": ["git_log", "git_status", "git_show"],
            },
        }
    }


def judge(question: Question, result: RunResult[str]) -> tuple[bool, bool, list[str]]:
    made = [c for m in result.messages for c in m.calls if isinstance(c, ToolCall)]
    failed = {r.call_id for m in result.messages for r in m.results if r.is_error}
    called = any(c.name in question.tools and c.id not in failed for c in made)
    return called, result.stopped == "answer" and question.check(result.output), [c.name for c in made]


async def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", default="demo")
    parser.add_argument("--only", help="numbers of questions, comma-separated")
    parser.add_argument("--json", type=Path, help="also write each run to this file, a line of JSON each")
    parser.add_argument("-v", "--verbose", action="store_true")
    options = parser.parse_args()
    chosen = {int(n) for n in options.only.split(",")} if options.only else set(range(1, len(QUESTIONS) + 1))
    passed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        repo = prepare(folder)
        engine = connect(options.model, lambda text: print(text, file=sys.stderr))
        tools: list[AnyTool] = ["code_interpreter", ReadFile(folder)]
        async with Agent(engine, tools=tools, mcp=servers(repo), limits=Limits(max_turns=8)) as agent:
            print(f"{'#':>2}  {'call':4}  {'fact':4}  {'s':>5}  question → calls → answer", flush=True)
            for number, question in enumerate(QUESTIONS, 1):
                if number not in chosen:
                    continue
                began = time.monotonic()
                result = await agent.run(question.text.format(repo=repo))
                called, right, names = judge(question, result)
                passed += called and right
                mark = {True: "ok", False: "—"}
                said = " ".join(result.output.split())[:90]
                print(
                    f"{number:>2}  {mark[called]:4}  {mark[right]:4}  {time.monotonic() - began:5.1f}  "
                    f"{question.text.format(repo='…/project')} → {', '.join(names) or 'none'} → {said}",
                    flush=True,
                )
                if options.verbose:
                    for m in result.messages:
                        print("   ", m.role, m.raw or m.text or m.parts)
                if options.json:
                    with options.json.open("a") as file:
                        record = {
                            "n": number,
                            "called": called,
                            "right": right,
                            "calls": names,
                            "output": result.output,
                        }
                        file.write(json.dumps(record, ensure_ascii=False) + "\n")
    print(f"\n{passed} of {len(chosen)} ended in the right call and the right answer ({options.model})")
    return 0


if __name__ == "__main__":
    sys.exit(anyio.run(main))
