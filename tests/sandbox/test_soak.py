"""A thousand runs of all sorts, and what is left of them."""

from __future__ import annotations

import os
import resource
import tempfile
from pathlib import Path

import pytest

from agentkit.sandbox import Backend, Limits, Sandbox, detect

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

CALLS = 1000
FINE = [
    "x = 1",
    "x = globals().get('x', 0) + 1; x",
    "print('line\\n' * 50)",
    "open('f', 'a').write('y')",
    "1 / 0",
]
ROUGH = {
    "an exit": "import os; os._exit(0)",
    "a segfault": "import ctypes; ctypes.string_at(0)",
    "a fork bomb": "import os, time\nfor _ in range(300):\n  if os.fork() == 0: time.sleep(60); os._exit(0)",
    "a memory bomb": "blocks = [bytearray(64 << 20) for _ in range(40)]",
    "a memory bomb in children": "import os, time\nfor _ in range(6):\n  if os.fork() == 0: b = bytearray(100 << 20); time.sleep(60)",
    "a time-out": "import time; time.sleep(60)",
    "a time-out that must be killed": "import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(60)",
    "a flood": "while True: print('z' * 100000)",
    "a daemon": "import os, time\nif os.fork() == 0:\n  os.setsid()\n  time.sleep(600)",
    "garbage for us": "import os\nfor fd in range(3, 30):\n  try: os.write(fd, b'\\xff' * 999)\n  except OSError: pass",
}
KILLED = frozenset(("a time-out that must be killed",))  # takes seconds


def descendants() -> set[int]:
    found, todo = set(), [os.getpid()]
    while todo:
        for task in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            children = [int(pid) for pid in task.read_text().split()]
            found.update(children)
            todo += children
    return found


def groups() -> set[str]:
    return {top for top, _, _ in os.walk("/sys/fs/cgroup") if "/agentkit-" in top}


def left_over() -> tuple[object, ...]:
    """What there is of processes, files, mounts, control groups and descriptors."""
    files = {path.name for path in Path(tempfile.gettempdir()).glob("agentkit-*")}
    mounts = Path("/proc/self/mountinfo").read_text().count("\n")
    return descendants(), files, mounts, groups(), len(os.listdir("/proc/self/fd"))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("backend", ["bwrap", "landlock"])
async def test_a_thousand_runs_leave_nothing_behind(backend: Backend) -> None:
    probe = detect().bwrap if backend == "bwrap" else detect().landlock
    if not probe.ok:
        pytest.skip(f"{backend}: {probe.detail}; {probe.fix}")
    limits = Limits(memory=512 << 20, total_memory=500 << 20, processes=40, flood=4 << 20, output=6000)
    async with Sandbox(backend=backend) as box:  # what is opened once and kept
        await box.run("1")
    before, memory = left_over(), 0
    rough = list(ROUGH)
    statuses: dict[str, int] = {}
    async with Sandbox(backend=backend, timeout=0.7, limits=limits) as box:
        for call in range(CALLS):
            name = rough[call // 5 % len(rough)]
            if call % 5 == 0 and (name not in KILLED or call % 100 < 50):
                run = await box.run(ROUGH[name])
            else:
                run = await box.run(FINE[call % len(FINE)], timeout=20)
                assert run.status in ("ok", "error"), run
            statuses[run.status] = statuses.get(run.status, 0) + 1
            if call == CALLS // 4:
                memory = resident()
        assert resident() - memory < 20 << 20
    assert sum(statuses.values()) == CALLS
    assert {"ok", "error", "crashed", "memory", "timeout", "output"} <= set(statuses)
    assert left_over() == before
