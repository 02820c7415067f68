"""One framework in a process of its environment: runs that come as lines of JSON on stdin, for speed.py.

    PYTHON worker.py ADAPTER            {"versions"}, then a line out for each line in
    PYTHON worker.py ADAPTER URL        one run with one tool, as a script would do it: {"text", "rss"}

A line in is {"do": "run", "url", "stream", "tools", "marks"} or {"do": "many", …, "runs", "expected"}. An adapter has PACKAGES,
whose versions are told, and `Adapter(url, tools, stream, system)` with `run(prompt) -> (text, deltas)`, plain or async;
`deltas` is how many pieces of text came while it was written.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import tools

SYSTEM = "You are a careful assistant. Use the tools you are given."
PROMPT = "Please add the numbers with the tool, one after the other, then tell me the sum."


def kilobytes(what: str) -> int:
    """VmRSS is what the process holds in memory, VmHWM the most that it has held."""
    found = re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


class Worker:
    def __init__(self, name: str) -> None:
        self.module = importlib.import_module(f"adapters.{name}")
        self.runner = asyncio.Runner()

    def adapter(self, asked: Mapping[str, Any]) -> Any:
        functions = [tools.named(name) for name in asked["tools"]]
        return self.module.Adapter(asked["url"], functions, asked["stream"], SYSTEM)

    def once(self, adapter: Any) -> tuple[str, int]:
        said = adapter.run(PROMPT)
        done: tuple[str, int] = self.runner.run(said) if inspect.iscoroutine(said) else said
        return done

    def run(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        adapter = self.adapter(asked)
        tools.calls, tools.marks = 0, [] if asked.get("marks") else None
        gc.collect()
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        text, deltas = self.once(adapter)
        cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
        marks = tools.marks or ()
        return {
            "text": text,
            "deltas": deltas,
            "calls": tools.calls,
            "cpu": cpu / 1e6,
            "wall": wall / 1e6,
            "first": marks[0][1] if marks else None,  # call, on the clock of all processes
            "steps": [(b[0] - a[0]) / 1e6 for a, b in pairwise(marks)],
        }

    def many(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Many runs at once: on one loop, or in a thread for each."""
        adapter, runs = self.adapter(asked), asked["runs"]
        tools.calls = 0
        gc.collect()
        before = kilobytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        wall, cpu = time.perf_counter(), time.process_time()
        if inspect.iscoroutinefunction(adapter.run):

            async def all_of_them() -> list[Any]:
                waiting = [adapter.run(PROMPT) for _ in range(runs)]
                return await asyncio.gather(*waiting, return_exceptions=True)

            said = self.runner.run(all_of_them())
        else:
            with ThreadPoolExecutor(runs) as threads:
                made = [threads.submit(adapter.run, PROMPT) for _ in range(runs)]
            said = [one.exception() or one.result() for one in made]
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        failed = [s for s in said if not (isinstance(s, tuple) and s[0].strip() == asked["expected"])]
        return {
            "cpu": cpu,
            "wall": wall,
            "calls": tools.calls,
            "failed": len(failed),
            "why": repr(failed[0])[:300] if failed else "",
            "kilobytes": (kilobytes("VmHWM") - before) / runs,
        }


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    from importlib.metadata import version

    return {p: version(p) for p in packages}


def main(name: str, url: str | None = None) -> None:
    out = os.fdopen(os.dup(1), "w", 1)  # frameworks print
    os.dup2(2, 1)
    worker = Worker(name)
    if url is not None:
        said = worker.once(worker.adapter({"url": url, "tools": ["add"], "stream": name == "qwen_agent"}))
        print(json.dumps({"text": said[0], "rss": kilobytes("VmRSS") / 1024}), file=out, flush=True)
        os._exit(0)  # how long it takes to end is not asked
    print(json.dumps({"versions": versions(worker.module.PACKAGES)}), file=out)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            result = {"run": worker.run, "many": worker.many}[asked["do"]](asked)
        except Exception as exc:
            result = {"error": f"{type(exc).__name__}: {exc}"[:500]}
        print(json.dumps(result), file=out)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
