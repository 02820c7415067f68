"""Whether a process that runs agents all day grows: 10,000 runs in one process, memory and descriptors drawn as a curve.

    python benchmarks/leaks.py [--runs 10000] [-o benchmarks/results/leaks.png]

A run is two tool calls and an answer, of overhead/stub.py, a server in a process of its own. Four go on at once: one to its end, one
watched while it streams, one whose stream is left after a few events, each time at another one, and one whose tool fails.
Their two agents stay open throughout; at each sample, every 100 runs, another one is opened, run once and closed. What is
sampled, after a full garbage collection, is memory (RSS), open file descriptors, asyncio tasks and objects that the collector
tracks. Answers must be right. The samples are written beside the picture as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import anyio

HERE = Path(__file__).resolve().parent
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != HERE]  # mcp.py is not the SDK
sys.path.insert(0, str(HERE.parent))

from agentkit import Agent  # noqa: E402
from agentkit.errors import ToolError  # noqa: E402
from benchmarks.speed import expected, machine, say  # noqa: E402

EVERY = 100  # runs between two samples
WARM = 1000  # runs after which memory should stay as it is
STEPS, WORDS = 2, 20
TASK = "Please add the numbers with the tool, one after the other, then tell me the sum."


@dataclass(frozen=True, slots=True)
class Sample:
    run: int
    megabytes: float
    descriptors: int
    tasks: int
    objects: int


def sample(run: int) -> Sample:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(
        run,
        pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        len(os.listdir("/proc/self/fd")),
        len(asyncio.all_tasks()),
        len(gc.get_objects()),
    )


def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


def add_failing(a: int, b: int) -> int:
    """Add two integers."""
    raise ToolError("the adder is broken")


add_failing.__name__ = "add"


@asynccontextmanager
async def server() -> AsyncGenerator[str]:
    """The URL of a stub that lives as long as the body."""
    command = [sys.executable, "-I", str(HERE / "overhead" / "stub.py")]
    # which says on stderr when whoever asked went away, as they do here
    async with await anyio.open_process(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stdin is not None
        port = json.loads(await process.stdout.receive())["port"]
        yield f"http://127.0.0.1:{port}/steps-{STEPS}_words-{WORDS}_run-all/v1"
        await process.stdin.aclose()


async def to_its_end(agent: Agent[str], answer: str) -> None:
    result = await agent.run(TASK)
    assert result.output == answer, result


async def watched(agent: Agent[str]) -> None:
    async with agent.stream(TASK) as run:
        async for _ in run:
            pass
    assert run.result.output == expected(STEPS, WORDS), run.result


async def left(agent: Agent[str], events: int) -> None:
    seen = 0
    async with agent.stream(TASK) as run:
        async for _ in run:
            seen += 1
            if seen == events:
                break
    assert seen == events


async def measure(runs: int) -> list[Sample]:
    right, none = expected(STEPS, WORDS), expected(0, WORDS)
    async with (
        server() as url,
        Agent(f"stub@{url}", tools=[add]) as agent,
        Agent(f"stub@{url}", tools=[add_failing]) as failing,
    ):
        samples = [sample(0)]
        for done in count(4, 4):
            async with anyio.create_task_group() as group:
                group.start_soon(to_its_end, agent, right)
                group.start_soon(watched, agent)
                group.start_soon(left, agent, done // 4 % 20 + 1)
                group.start_soon(to_its_end, failing, none)
            if done % EVERY == 0 or done >= runs:
                async with Agent(f"stub@{url}", tools=[add]) as another:
                    await to_its_end(another, right)
                samples.append(sample(done))
                if done % (10 * EVERY) == 0:
                    say(f"{done:,} runs, {samples[-1].megabytes:.1f} MB")
            if done >= runs:
                return samples
    raise AssertionError


# ------------------------------------------------------------------ what came of it


def growth(samples: Sequence[Sample]) -> float:
    """MB per 1,000 runs once all is warm, by least squares; of too few runs, of their second half."""
    warm = [s for s in samples if s.run >= WARM]
    if len(warm) < 3:
        warm = list(samples[len(samples) // 2 - 1 :])
    slope = statistics.linear_regression([s.run for s in warm], [s.megabytes for s in warm]).slope
    return slope * 1000


def verdict(samples: Sequence[Sample]) -> str:
    first, last = samples[0], samples[-1]
    warm = next((s for s in samples if s.run >= WARM), samples[len(samples) // 2])
    return (
        f"{last.run:,} runs: memory grows by {growth(samples):.3f} MB per 1,000 runs from run {warm.run:,} on "
        f"({warm.megabytes:.1f} MB there, {last.megabytes:.1f} MB at the end). Open file descriptors: {first.descriptors} "
        f"before the first run, {warm.descriptors} at run {warm.run:,}, {last.descriptors} at the end; asyncio tasks: "
        f"{first.tasks}, {warm.tasks} and {last.tasks}; objects that the garbage collector tracks: {first.objects:,}, "
        f"{warm.objects:,} and {last.objects:,}."
    )


def draw(samples: Sequence[Sample], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    curves: dict[str, list[float]] = {
        "memory, MB": [s.megabytes for s in samples],
        "open file descriptors": [s.descriptors for s in samples],
        "asyncio tasks": [s.tasks for s in samples],
        "tracked objects": [s.objects for s in samples],
    }
    for axes, (name, values) in zip(figure.subplots(4, sharex=True), curves.items(), strict=True):
        axes.plot([s.run for s in samples], values)
        axes.set_ylim(0, max(values) * 1.15)
        axes.set_ylabel(name)
    axes.set_xlabel("runs")
    figure.suptitle(f"{growth(samples):.3f} MB per 1,000 runs")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=HERE / "results" / "leaks.png",
        help="the picture; .json is beside it",
    )
    given = parser.parse_args()
    if importlib.util.find_spec("matplotlib") is None:  # imported at the end, as it takes memory
        raise SystemExit("the picture needs: pip install 'agentkit[interpreter]'")
    samples, about = anyio.run(measure, given.runs), machine()
    print(f"{about['processor']}, {about['cores']} cores, {about['system']}, Python {about['python']}")
    print(verdict(samples))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    record = {"machine": about, "verdict": verdict(samples), "samples": [asdict(s) for s in samples]}
    given.output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(samples, given.output)


if __name__ == "__main__":
    main()
