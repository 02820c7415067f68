"""No process may be left, whatever ends first."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from agentkit.mcp import MCPServers, ServerSpec
from agentkit.mcp.transport import GUARD

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="the guard is for Linux"),
]
RAW = str(Path(__file__).with_name("raw_server.py"))

HOST = f"""
import sys, anyio
from agentkit.mcp import MCPServers, ServerSpec
async def main():
    spec = ServerSpec("raw", sys.executable, ("-I", "-S", {RAW!r}, *sys.argv[1:]))
    async with MCPServers(spec).open(print) as tools:
        print((await tools[0].handler({{}})).content, flush=True)
        await anyio.sleep_forever()
anyio.run(main)
"""


def server(*options: str) -> ServerSpec:
    return ServerSpec("raw", sys.executable, ("-I", "-S", RAW, *options))


def watch(text: str) -> list[int]:
    """A pidfd for each process id in a `pids` answer."""
    return [os.pidfd_open(int(pid)) for pid in text.split(": ")[1].split() if pid != "0"]


def gone(pidfds: Sequence[int], seconds: float = 15) -> bool:
    for fd in pidfds:
        ended = bool(select.select([fd], [], [], seconds)[0])
        os.close(fd)
        if not ended:
            return False
    return True


@pytest.mark.parametrize("options", [(), ("stubborn", "daemon")])
def test_killing_the_host_leaves_nothing(options: tuple[str, ...]) -> None:
    with subprocess.Popen([sys.executable, "-c", HOST, *options], stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        pidfds = watch(host.stdout.readline())
        assert len(pidfds) == 1 + ("daemon" in options)
        host.kill()
        assert gone(pidfds)


@pytest.mark.anyio
async def test_closing_ends_a_server_that_ignores_eof_and_sigterm_and_its_daemon() -> None:
    async with MCPServers(server("stubborn", "daemon")).open(print) as tools:
        pidfds = watch((await tools[0].handler({})).content)
    assert gone(pidfds, 0)


@pytest.mark.anyio
async def test_a_daemon_ends_with_the_server_that_crashed() -> None:
    async with MCPServers(server("daemon")).open(print) as tools:
        pidfds = watch((await tools[0].handler({})).content)
        signal.pidfd_send_signal(pidfds[0], signal.SIGKILL)
        assert gone(pidfds)


def test_a_loop_in_a_worker_thread_keeps_its_servers_until_it_closes_them() -> None:
    answers: list[str] = []

    async def main() -> None:
        async with MCPServers(server()).open(print) as tools:
            for _ in range(2):
                answers.append((await tools[0].handler({})).content)

    thread = threading.Thread(target=anyio.run, args=(main,))
    thread.start()
    thread.join()
    assert len(answers) == 2 and answers[0] == answers[1]


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["no-such-program"], 127),
    ],
)
def test_the_guard_ends_as_its_command_ends(command: list[str], status: int) -> None:
    guard = subprocess.run(
        [sys.executable, "-I", "-S", GUARD, str(os.getpid()), *command], capture_output=True
    )
    assert guard.returncode == status


def test_the_command_talks_to_the_host_directly_and_its_eof_arrives() -> None:
    command = ["sh", "-c", "cat; exec >&-; read never < /dev/zero"]
    guard = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), *command]
    with subprocess.Popen(guard, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"hello")
        process.stdin.close()
        assert process.stdout.read() == b"hello"  # closed by the command while it still runs
        process.terminate()


def test_a_guard_whose_host_is_already_gone_does_not_stay() -> None:
    other = subprocess.Popen(["true"])
    other.wait()
    guard = [sys.executable, "-I", "-S", str(GUARD), str(other.pid), "sleep", "600"]
    assert subprocess.run(guard, timeout=30).returncode == 128 + signal.SIGTERM
