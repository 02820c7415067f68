"""How long the code interpreter lets one wait, in ratios of one run, beside ipykernel and smolagents.

    python benchmarks/interpreter.py [--rounds 9] [--backend bwrap] [--peers PYTHON] [--jsonl FILE]

PYTHON is an interpreter that has `ipykernel`, `smolagents` and `matplotlib` (a venv of its own will do); neither of the
two isolates anything. Medians of interleaved rounds, in milliseconds. "bare" is `python -c pass`, "start" from nothing
to the first result, "call" a call of `1 + 1` to a warm interpreter, "plot" a first figure, "crash" from `os._exit` to the
next result, "interrupt" from the end of the time limit until it is reported, "memory" PSS in MiB when idle.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the peers' interpreter, which runs this file as well, does not have it
    from agentkit.sandbox import Backend

PLOT = "import matplotlib.pyplot as plt; plt.plot([1, 3, 2]); plt.title('t'); plt.show()"
WARM = ("numpy", "pandas", "matplotlib.pyplot")
TIMEOUT = 0.3
CALLS = 200

Figures = dict[str, list[float]]


class Clock:
    """`with Clock() as c: …` and then `c.ms`."""

    def __enter__(self) -> Clock:
        self.began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.ms = (time.perf_counter() - self.began) * 1000


def memory(pid: int) -> float:
    """MiB of this process and all below it, what they share counted once."""
    total = 0.0
    todo = [pid]
    while todo:
        each = todo.pop()
        try:
            with open(f"/proc/{each}/smaps_rollup") as rollup:
                total += sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) / 1024
            for task in os.listdir(f"/proc/{each}/task"):
                with open(f"/proc/{each}/task/{task}/children") as children:
                    todo += map(int, children.read().split())
        except OSError:
            continue
    return total


def bare() -> float:
    with Clock() as clock:
        subprocess.run([sys.executable, "-c", "pass"], check=True)
    return clock.ms


async def ours(backend: Backend, figures: Figures) -> None:
    from agentkit.sandbox import Sandbox

    async with Sandbox(backend=backend) as box:
        with Clock() as clock:
            assert (await box.run("1 + 1")).result == "2"
        figures["start"].append(clock.ms)
        calls = []
        for _ in range(CALLS):
            with Clock() as clock:
                await box.run("1 + 1")
            calls.append(clock.ms)
        figures["call"].append(statistics.median(calls))
        figures["memory"].append(memory(box._process.popen.pid) if box._process else 0)
        with Clock() as clock:
            await box.run("while True: pass", timeout=TIMEOUT)
        figures["interrupt"].append(clock.ms - TIMEOUT * 1000)
        with Clock() as clock:
            await box.run("import os; os._exit(1)")
            assert (await box.run("1 + 1")).result == "2"
        figures["crash"].append(clock.ms)


async def ours_warm(backend: Backend, figures: Figures) -> None:
    from agentkit.sandbox import Sandbox

    async with Sandbox(backend=backend) as box:
        box.warm_up(*WARM)
        with Clock() as clock:
            await box.run("1 + 1")
        figures["start while it imports"].append(clock.ms)
        # the worker that comes after the first is made when all is imported
        await box.run("import os; os._exit(1)")
        await box.run("1 + 1")
        with Clock() as clock:
            run = await box.run(PLOT)
        assert [a.mime for a in run.artifacts] == ["image/png"], run
        figures["plot"].append(clock.ms)
        with Clock() as clock:
            await box.run("import os; os._exit(1)")
            assert (await box.run("1 + 1")).result == "2"
        figures["crash when warm"].append(clock.ms)
        figures["memory when warm"].append(memory(box._process.popen.pid) if box._process else 0)


# ------------------------------------------------------------------ the peers, in their own interpreter


def peer_ipykernel() -> dict[str, float]:
    from jupyter_client.manager import KernelManager  # type: ignore[import-not-found,import-untyped,unused-ignore]

    figures = {}
    began = Clock().__enter__()
    kernel = KernelManager()
    kernel.start_kernel(extra_arguments=["--matplotlib=inline"], stderr=subprocess.DEVNULL)
    client = kernel.client()
    client.start_channels()

    def run(code: str, patience: float = 60) -> None:
        client.execute_interactive(code, output_hook=lambda message: None, timeout=patience)

    client.wait_for_ready(timeout=60)
    run("1 + 1")
    began.__exit__()
    figures["start"] = began.ms
    calls = []
    for _ in range(CALLS // 4):
        with Clock() as clock:
            run("1 + 1")
        calls.append(clock.ms)
    figures["call"] = statistics.median(calls)
    figures["memory"] = memory(kernel.provisioner.pid)
    with Clock() as clock:
        run(PLOT)
    figures["plot"] = clock.ms
    with Clock() as clock:
        try:
            run("while True: pass", TIMEOUT)
        except TimeoutError:
            kernel.interrupt_kernel()
            run("1")
    figures["interrupt"] = clock.ms - TIMEOUT * 1000
    with Clock() as clock:
        client.execute("import os; os._exit(1)")
        while kernel.is_alive():
            time.sleep(0.001)
        kernel.restart_kernel(now=True)
        client.wait_for_ready(timeout=60)
        run("1 + 1")
    figures["crash"] = clock.ms
    client.stop_channels()
    kernel.shutdown_kernel(now=True)
    return figures


def peer_smolagents() -> dict[str, float]:
    from smolagents.local_python_executor import LocalPythonExecutor  # type: ignore[import-not-found,import-untyped,unused-ignore]

    with Clock() as clock:
        executor = LocalPythonExecutor(["matplotlib.*"])
        executor.send_tools({})
        executor("1 + 1")
    figures = {"start": clock.ms}
    calls = []
    for _ in range(CALLS):
        with Clock() as clock:
            executor("1 + 1")
        calls.append(clock.ms)
    figures["call"] = statistics.median(calls)
    return figures


def ask_peer(python: str, name: str, figures: Figures) -> None:
    done = subprocess.run(
        [python, __file__, "--as-peer", name], capture_output=True, text=True, check=False, timeout=180
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"{name}: left out ({reason})", file=sys.stderr)
        return
    for key, value in json.loads(done.stdout.splitlines()[-1]).items():
        figures[key].append(value)


# ------------------------------------------------------------------ the table


async def measure(arguments: argparse.Namespace) -> dict[str, Figures]:
    found: dict[str, Figures] = defaultdict(lambda: defaultdict(list))
    for n in range(arguments.rounds):
        for _ in range(3):
            found["bare"]["bare"].append(bare())
        await ours(arguments.backend, found["agentkit"])
        if n % 3 == 0:
            await ours_warm(arguments.backend, found["agentkit"])
            if arguments.peers:
                for name in ("ipykernel", "smolagents"):
                    ask_peer(arguments.peers, name, found[name])
    return found


def report(found: dict[str, Figures]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"who": who, "what": what, "ms": round(statistics.median(values), 3), "rounds": len(values)}
        for who, figures in found.items()
        for what, values in figures.items()
    ]
    bare_ms = statistics.median(found["bare"]["bare"])
    for row in rows:
        unit = "MiB" if "memory" in row["what"] else "ms "
        print(f"{row['who']:12} {row['what']:24} {row['ms']:10.2f} {unit} {row['ms'] / bare_ms:8.2f} x bare")
    us = {what: statistics.median(values) for what, values in found["agentkit"].items()}
    goals = {
        "start at most 2 x bare": us["start"] <= 2 * bare_ms,
        "call at most 0.3 ms": us["call"] <= 0.3,
        "first plot of a warm interpreter at most 150 ms": us["plot"] <= 150,
    }
    for goal, met in goals.items():
        print(f"{'pass' if met else 'FAIL'}  {goal}")
    return [*rows, {"goals": goals}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--peers", metavar="PYTHON")
    parser.add_argument("--jsonl", metavar="FILE")
    parser.add_argument("--as-peer", choices=("ipykernel", "smolagents"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_peer:
        peer = peer_ipykernel if arguments.as_peer == "ipykernel" else peer_smolagents
        print(json.dumps(peer()))
        return
    import anyio

    rows = report(anyio.run(measure, arguments))
    if arguments.jsonl:
        with open(arguments.jsonl, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
