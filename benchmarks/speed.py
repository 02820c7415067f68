"""What agentkit itself costs beside a model, and other frameworks, and two loops written by hand: all in one run.

    python benchmarks/speed.py                     all of it, about an hour and a half; 20 minutes with --quick
    python benchmarks/speed.py step chunks         these measurements
    python benchmarks/speed.py --systems agentkit,raw_httpx2,raw_openai --quick

The model is overhead/stub.py, a server in a process of its own that answers at once; how each framework is driven says its
module in overhead/adapters/, at its default settings. Systems take turns, round by round, so that all of them see the same
machine; figures are medians, of processor time unless it says otherwise, and the ratios are what to look at. In each run
the answer, the number of calls and of requests must be right; one that is not, or that takes over 150 s, is listed, and
not counted.

    start    a new process until the answer of a run with one tool call, and its memory then; `import` alone
    step     one step of a run of 20: answer read, tool called, next request sent; not streaming, and streaming
    chunks   each piece of a streamed answer, and of a call's arguments, between 200 and 4,000 of them
    history  a step when 400 messages stand in the conversation, and 4,000
    many     200, 1,000 and 5,000 runs of 3 steps at once: wall time, memory for each while the server makes them wait
    parallel 8 calls of 0.2 s in one turn: wall time, with tools that are async and that block
    overlap  two calls, half a second apart: wall time from the end of the first until its tool begins
    sent     bytes of a request with those tools
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.compare import environments  # noqa: E402

HERE = Path(__file__).resolve().parent / "overhead"
FLOORS = {"raw_httpx2": "openai", "raw_openai": "openai"}  # adapter -> whose environment it needs
PEERS = {
    "openai_agents": "openai_agents",
    "pydantic_ai": "pydantic_ai",
    "langgraph": "langgraph",
    "strands": "strands",
    "smolagents": "smolagents",
    "qwen_agent": "qwen_agent",
}
SYSTEMS = ("agentkit", *FLOORS, *PEERS)
ASYNC = frozenset({"agentkit", *FLOORS, *PEERS} - {"smolagents", "qwen_agent"})
IMPORTS = {
    "agentkit": "from agentkit import Agent",
    "raw_httpx2": "import httpx2",
    "raw_openai": "from openai import AsyncOpenAI",
    "openai_agents": "from agents import Agent, Runner, OpenAIChatCompletionsModel",
    "pydantic_ai": "from pydantic_ai import Agent; from pydantic_ai.models.openai import OpenAIChatModel",
    "langgraph": "from langchain.agents import create_agent; from langchain_openai import ChatOpenAI",
    "strands": "from strands import Agent; from strands.models.openai import OpenAIModel",
    "smolagents": "from smolagents import ToolCallingAgent, OpenAIModel",
    "qwen_agent": "from qwen_agent.agents import Assistant",
}
QUIET = {"NO_PROXY": "*", "OTEL_SDK_DISABLED": "true", "LANGSMITH_TRACING": "false", "DO_NOT_TRACK": "1"}
# modules are found compiled after the first round, as pip leaves them
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | QUIET
LONG = 150.0  # seconds; what takes longer is stopped, and listed


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Stub:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", str(HERE / "stub.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.port = json.loads(self.process.stdout.readline())["port"]
        self.runs = 0

    def url(self, **scenario: object) -> tuple[str, str]:
        """A base URL of a scenario, and the name under which its requests are counted."""
        self.runs += 1
        run = f"r{self.runs}"
        path = "_".join(f"{key}-{value}" for key, value in {**scenario, "run": run}.items())
        return f"http://127.0.0.1:{self.port}/{path}/v1", run

    def stats(self, run: str) -> dict[str, int]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats/{run}") as response:
            counted: dict[str, int] = json.load(response)
        return counted

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Worker:
    """A process of overhead/worker.py."""

    def __init__(self, name: str, python: Path) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [str(python), str(HERE / "worker.py"), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
        )
        self.versions = self._line().get("versions")
        if self.versions is None:
            raise SystemExit(f"{name} does not start with {python}")

    def ask(self, **asked: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(asked).encode() + b"\n")
            self.process.stdin.flush()
        return self._line()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], LONG)[0]:
            self.close()
            return {"error": f"its process ended, stopped after {LONG:g} s"}
        line = self.process.stdout.readline()
        said: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        return said

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def expected(steps: int, words: int) -> str:
    pieces = [
        f"The answer is {steps * (steps + 1) // 2}.",
        *(f" w{i % 97}" for i in range(words - 2)),
        " END",
    ]
    return "".join(pieces)


class Bench:
    def __init__(self, systems: Sequence[str], quick: bool) -> None:
        needed = {s: (FLOORS | PEERS)[s] for s in systems if s != "agentkit"}
        pythons = environments(needed.values())
        self.pythons = {s: pythons[needed[s]] if s in needed else Path(sys.executable) for s in systems}
        self.systems, self.quick = systems, quick
        self.stub = Stub()
        self.workers: dict[str, Worker] = {}
        self.versions: dict[str, Any] = {}
        self.right, self.wrong = 0, list[str]()

    def worker(self, system: str) -> Worker:
        if system not in self.workers:
            self.workers[system] = Worker(system, self.pythons[system])
            self.versions[system] = self.workers[system].versions
        return self.workers[system]

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()

    def rounds(self, number: int, systems: Sequence[str]) -> list[str]:
        """Each system so often, in turn, the order turned round each time."""
        return [s for n in range(number) for s in (systems if n % 2 else systems[::-1])]

    def run(
        self, system: str, *, stream: bool, tool: str = "add", marks: bool = False, **scenario: int
    ) -> dict[str, Any] | None:
        """One run, looked at: None if it went wrong."""
        steps, words, calls = (
            scenario.setdefault("steps", 3),
            scenario.setdefault("words", 20),
            scenario.get("calls", 1),
        )
        url, name = self.stub.url(**scenario, **({} if tool == "add" else {"tool": tool.split("_")[0]}))
        done = self.worker(system).ask(do="run", url=url, stream=stream, tools=[tool], marks=marks)
        counted = self.stub.stats(name)
        faults = []
        if "error" in done:
            faults.append(done["error"])
            if "ended" in done["error"]:
                self.workers.pop(system).close()
        else:
            end = {"add": expected(steps, words), "note": expected(0, words)}.get(tool, "")
            said = done["text"].strip()
            if tool == "note":
                said = said.replace(f" {len(note(scenario['long']))}.", " 0.", 1)
            if end and said != end:
                faults.append(f"it says {done['text'][:80]!r}")
            if done["calls"] != steps * calls:
                faults.append(f"{done['calls']} calls")
            if counted["requests"] != steps + 1:
                faults.append(f"{counted['requests']} requests")
            if stream and tool == "add" and done["deltas"] < words // 2:
                faults.append(f"{done['deltas']} deltas of {words}")
        if faults:
            self.wrong.append(f"{system}, {scenario}: {'; '.join(faults)}")
            return None
        self.right += 1
        return done | counted

    # ------------------------------------------------------------ what is measured

    def start(self) -> dict[str, Any]:
        walls, memory, imports = (defaultdict[str, list[float]](list) for _ in range(3))
        for n, system in enumerate(self.rounds(4 if self.quick else 8, self.systems)):
            warm = n >= len(self.systems)  # the first round fills the caches of files
            python, url = self.pythons[system], self.stub.url(steps=1, words=20)[0]
            began = time.perf_counter()
            done = subprocess.run(
                [str(python), str(HERE / "worker.py"), system, url],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=ENVIRONMENT,
            )
            wall = time.perf_counter() - began
            said = json.loads(done.stdout or b"{}")
            if said.get("text", "").strip() != expected(1, 20):
                self.wrong.append(f"{system}, start: {done.stdout[:100]!r}")
                continue
            self.right += 1
            code = f"import time; t = time.perf_counter(); {IMPORTS[system]}; print(time.perf_counter() - t)"
            took = subprocess.run(
                [str(python), "-c", code], stdout=subprocess.PIPE, env=ENVIRONMENT, check=True
            ).stdout
            if warm:
                walls[system].append(wall * 1000)
                memory[system].append(said["rss"])
                imports[system].append(float(took) * 1000)
        return {
            "new process to first answer, ms of wall time": medians(walls),
            "memory then, MB": medians(memory),
            "import, ms of wall time": medians(imports),
        }

    def step(self) -> dict[str, Any]:
        took: dict[bool, dict[str, list[float]]] = {False: defaultdict(list), True: defaultdict(list)}
        for n, system in enumerate(self.rounds(3 if self.quick else 8, self.systems)):
            for stream in took:
                if system == "qwen_agent" and not stream:
                    continue
                done = self.run(system, stream=stream, steps=20, words=200, marks=True)
                if done and n >= len(self.systems):
                    took[stream][system] += done["steps"]
        return {
            "a step, ms": medians(took[False]),
            "a step, streaming, ms": medians(took[True]),
        }

    def chunks(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for kind in ("text", "arguments"):
            took = {n: defaultdict[str, list[float]](list) for n in (200, 1000, 4000)}
            for i, system in enumerate(self.rounds(2 if self.quick else 4, self.systems)):
                for n in took:
                    if kind == "text":
                        done = self.run(system, stream=True, steps=0, words=n)
                    else:
                        done = self.run(system, stream=True, steps=1, tool="note", long=n)
                    if done and i >= len(self.systems):
                        took[n][system].append(done["cpu"])
            cpu = {n: medians(by) for n, by in took.items()}
            both = [s for s in self.systems if all(s in by for by in cpu.values())]
            for a, b in ((200, 1000), (1000, 4000)):
                out[f"a piece of {kind}, {a} to {b}, us"] = {
                    s: (cpu[b][s] - cpu[a][s]) / (b - a) * 1000 for s in both
                }
        return out

    def history(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for messages, systems in ((400, self.systems), (4000, [s for s in self.systems if s in LIGHT])):
            took = defaultdict[str, list[float]](list)
            for system in self.rounds(1 if self.quick else 2, systems):
                done = self.run(system, stream=system == "qwen_agent", steps=messages // 2 + 5, marks=True)
                if done:
                    took[system] += done["steps"][messages // 2 - 10 : messages // 2 + 4]
            out[f"a step at {messages} messages, ms"] = medians(took)
        return out

    def many(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for runs in (200, 1000) if self.quick else (200, 1000, 5000):
            walls, memory = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
            systems = [s for s in self.systems if s in ASYNC or runs == 200]
            for system in self.rounds(1 if runs > 200 else 2, systems):
                for delay in (0, 500):  # once as fast as it goes, once to see what one that waits takes
                    self.close_one(system)  # memory is measured in a new process
                    self.run(system, stream=system == "qwen_agent", steps=1)
                    url, name = self.stub.url(steps=3, words=20, delay=delay)
                    done = self.worker(system).ask(
                        do="many",
                        url=url,
                        stream=system == "qwen_agent",
                        tools=["add"],
                        runs=runs,
                        expected=expected(3, 20),
                    )
                    counted = self.stub.stats(name)
                    if "error" in done or done["failed"] or counted["requests"] != 4 * runs:
                        self.wrong.append(f"{system}, {runs} runs: {done}, {counted}")
                        break
                    self.right += 1
                    (memory if delay else walls)[system].append(done["kilobytes" if delay else "wall"])
                self.close_one(system)
            out[f"{runs} runs at once, s of wall time"] = medians(walls)
            out[f"{runs} runs that wait, kB each"] = medians(memory)
        return out

    def close_one(self, system: str) -> None:
        if worker := self.workers.pop(system, None):
            worker.close()

    def parallel(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for tool, what in (("slow_async", "async"), ("slow", "blocking")):
            took = defaultdict[str, list[float]](list)
            systems = [s for s in self.systems if s in ASYNC or tool == "slow"]
            for system in self.rounds(2, systems):
                done = self.run(system, stream=system == "qwen_agent", steps=1, calls=8, tool=tool)
                if done:
                    took[system].append(done["wall"])
            out[f"8 {what} calls of 0.2 s, ms of wall time"] = medians(took)
        return out

    def overlap(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for text, what in ((0, "of the API"), (1, "written into the text")):
            took = defaultdict[str, list[float]](list)
            systems = [s for s in self.systems if s in READ_TEXT] if text else self.systems
            for system in self.rounds(4, systems):
                done = self.run(
                    system, stream=True, steps=1, calls=2, tool="slow", marks=True, pause=500, text=text
                )
                if done and done["first"]:
                    took[system].append((done["first"] - done["paused"]) / 1e6)
            out[f"a call {what} until its tool begins, ms of wall time"] = medians(took)
        return out

    def sent(self) -> dict[str, Any]:
        size = {}
        for system in self.systems:
            url, name = self.stub.url(steps=0)
            self.worker(system).ask(
                do="run", url=url, stream=system == "qwen_agent", tools=["add", "note", "slow"]
            )
            size[system] = float(self.stub.stats(name)["largest"])
        return {"a first request with three tools, bytes": size}


LIGHT = ("agentkit", "raw_httpx2")
READ_TEXT = ("agentkit", "qwen_agent")  # calls that the server has not parsed
PHASES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "start": Bench.start,
    "step": Bench.step,
    "chunks": Bench.chunks,
    "history": Bench.history,
    "many": Bench.many,
    "parallel": Bench.parallel,
    "overlap": Bench.overlap,
    "sent": Bench.sent,
}


def note(long: int) -> str:
    return "".join(f" w{i % 97}" for i in range(long))


def medians(by: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in by.items() if values}


def table(results: dict[str, dict[str, float]], systems: Sequence[str]) -> str:
    """Each figure by system; then agentkit's share of the best peer's, and of the loop on httpx2."""
    lines = [
        f"| | {' | '.join(systems)} | of the best peer | of raw httpx2 |",
        "|---" * (len(systems) + 3) + "|",
    ]
    for what, by in results.items():
        cells = [_cell(by.get(s)) for s in systems]
        ours = by.get("agentkit")
        peers = [value for s, value in by.items() if s in PEERS]
        shares = [
            f"{ours / other:.2f}" if ours is not None and other else ""
            for other in (min(peers, default=0.0), by.get("raw_httpx2", 0.0))
        ]
        lines.append(f"| {what} | {' | '.join(cells)} | {' | '.join(shares)} |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def machine() -> dict[str, Any]:
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "processor": cpu[0] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "phases", nargs="*", metavar="MEASUREMENT", help=f"{', '.join(PHASES)}; all by default"
    )
    parser.add_argument(
        "--systems", default=",".join(SYSTEMS), help="names with commas between; all by default"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("-o", "--output", type=Path, help="where to write the figures, as JSON")
    given = parser.parse_args()
    systems = given.systems.split(",")
    if unknown := {*given.phases} - {*PHASES} or {*systems} - {*SYSTEMS}:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    bench, results = Bench(systems, given.quick), dict[str, dict[str, float]]()
    try:
        for phase in given.phases or PHASES:
            say(phase)
            results |= PHASES[phase](bench)
            bench.close()
    finally:
        bench.close()
        bench.stub.close()
    about = machine()
    print(f"{about['processor']}, {about['cores']} cores, {about['system']}, Python {about['python']}")
    print(
        "; ".join(f"{s}: {' '.join(f'{p} {v}' for p, v in vs.items())}" for s, vs in bench.versions.items())
    )
    print(f"{bench.right} runs were right, {len(bench.wrong)} were not:", *bench.wrong, sep="\n  ")
    print(table(results, systems))
    if given.output:
        record = {"machine": about, "versions": bench.versions, "results": results, "wrong": bench.wrong}
        given.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
