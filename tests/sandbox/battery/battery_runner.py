"""Let hostile code loose in one sandbox, and look at what became of the host; one line of JSON for each case.

    python battery_runner.py BACKEND [--escapes] [--abuse] [--ordinary] [--quick] [--only TEXT]

Runs as whoever starts it, so that a test can have it done by several users. Verdicts: an escape is "blocked" or
"allowed"; abuse is "kept", "restarted" or "failed"; ordinary code "works" or "failed"; each can be "skipped".
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import functools
import importlib.util
import json
import os
import platform
import resource
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio

from agentkit.sandbox import Execution, Limits, Sandbox
from agentkit.sandbox.workspace import take_snapshot

HERE = Path(__file__).parent
TIMEOUT = 4.0
HANGS = 45.0  # seconds after which even a killed run should long have been given up
MIB = 1 << 20
LIMITS = Limits(memory=1 << 30, total_memory=1200 * MIB, disk=700 * MIB, file=256 * MIB, output=100_000)
_libc = ctypes.CDLL(None, use_errno=True)

PRELUDE = """
import ctypes, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def syscall(number, *arguments):
    return libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
def reached(*what):
    print('@WORD@', *what)
def in_child(function):
    if (child := os.fork()) == 0:
        try: os._exit(7 if function() else 0)
        finally: os._exit(1)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7: reached()
def sockets():
    for fd in map(int, os.listdir('/proc/self/fd')):
        try:
            if os.readlink(f'/proc/self/fd/{fd}').startswith('socket:'): yield fd
        except OSError: pass
def nolimit():
    print('@WORD@')
kept = 12345
"""


class Host:
    """Things of the host that code must not reach. `touched` says which it has, and sets them right again."""

    def __init__(self, top: Path) -> None:
        self.secret, self.word, self.random = (secrets.token_hex(12) for _ in range(3))
        self.dir, self.home, self.beside = top / "host", top / "home", top / "beside"
        for directory in (self.dir, self.home, self.beside):
            directory.mkdir()
            directory.chmod(0o777)
        self.workspace = self.beside / "work"
        os.environ["HOME"] = str(self.home)
        (self.home / ".sandbox-canary").write_text(self.secret)
        self.listeners = {
            "TCP": self._listen(socket.AF_INET, ("127.0.0.1", 0)),
            "SOCKET": self._listen(socket.AF_UNIX, str(self.dir / "socket")),
            "ABSTRACT": self._listen(socket.AF_UNIX, "\0" + self.random),
        }
        if socket.has_ipv6 and os.path.exists("/proc/net/if_inet6"):
            self.listeners["TCP6"] = self._listen(socket.AF_INET6, ("::1", 0))
        self.datagrams = {
            "UDP": socket.socket(type=socket.SOCK_DGRAM),
            "datagrams": socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        }
        self.datagrams["UDP"].bind(("127.0.0.1", 0))
        self.datagrams["datagrams"].bind(str(self.dir / "datagrams"))
        for socket_ in self.datagrams.values():
            socket_.setblocking(False)
        for name in ("socket", "datagrams"):
            (self.dir / name).chmod(0o777)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.free: int = free.getsockname()[1]
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # kept for us to look at
        self.memory = _libc.shmget(0, 4096, 0o1666)
        self._plant()
        self._start_victim()

    def _listen(self, family: int, address: Any) -> socket.socket:
        listener = socket.socket(family)
        listener.bind(address)
        listener.listen(64)
        listener.setblocking(False)
        return listener

    def _plant(self) -> None:
        for name, text, mode in (("secret", self.secret, 0o644), ("theirs", "original", 0o666)):
            (self.dir / name).unlink(missing_ok=True)
            (self.dir / name).write_text(text)
            (self.dir / name).chmod(mode)
        self.files = self._look_at_files()

    def _start_victim(self) -> None:
        self.victim = subprocess.Popen(["sleep", "600"], env={"SECRET": self.secret}, start_new_session=True)
        while Path(f"/proc/{self.victim.pid}/comm").read_text() != "sleep\n":  # exec comes after fork
            time.sleep(0.001)
        self.state = self._look_at_processes()

    def _look_at_files(self) -> object:
        found: dict[str, object] = {}
        for path in sorted(self.dir.iterdir()):
            info = path.lstat()
            text = path.read_text() if path.is_file() else ""
            found[path.name] = (
                info.st_ino,
                info.st_mode,
                info.st_uid,
                info.st_mtime_ns,
                info.st_nlink,
                os.listxattr(path),
                text,
            )
        return found, self.dir.stat().st_mode, self.dir.stat().st_uid

    def _look_at_processes(self) -> object:
        pid = self.victim.pid
        return (
            os.getpriority(os.PRIO_PROCESS, pid),
            os.sched_getaffinity(pid),
            os.sched_getscheduler(pid),
            _libc.syscall(252, 1, pid) if platform.machine() == "x86_64" else 0,  # ioprio_get
            resource.prlimit(pid, resource.RLIMIT_CPU),
            Path(f"/proc/{pid}/oom_score_adj").read_text(),
            Path("/proc/self/oom_score_adj").read_text(),
            Path("/proc/sys/kernel/core_pattern").read_text(),
            os.uname().nodename,
        )

    def fill(self, code: str, run: int) -> str:
        marks: dict[str, object] = {
            "DIR": self.dir,
            "HOME": self.home,
            "PID": os.getpid(),
            "VICTIM": self.victim.pid,
            "TCP": self.listeners["TCP"].getsockname()[1],
            "TCP6": self.listeners["TCP6"].getsockname()[1] if "TCP6" in self.listeners else 1,
            "UDP": self.datagrams["UDP"].getsockname()[1],
            "FREE": self.free,
            "SOCKET": self.dir / "socket",
            "ABSTRACT": self.random,
            "SIGNAL": int(signal.SIGUSR1),
            "SHM": self.memory,
            "WORD": self.word,
            "RANDOM": self.random,
            "RUN": run,
            "BIG": "x = [" + "1," * 2_500_000 + "]\nlen(x)",
            "DEEP": "(" * 20_000 + ")" * 20_000,
        }
        for mark, value in marks.items():
            code = code.replace(f"@{mark}@", str(value))
        return code

    def touched(self, run: Execution, *, may_kill: bool) -> str:
        """What *run* has reached; nothing: "". A signal may take a moment to be felt, where one was sent."""
        said = f"{run.stdout}{run.stderr}{run.result}{run.error}{run.detail}{[a.path for a in run.artifacts]}"
        if self.secret in said:
            return "a secret was read"
        for artifact in run.artifacts:
            if artifact.path and self.secret.encode() in Path(artifact.path).read_bytes():
                return f"the artifact {artifact.name} is a file of the host"
            if not artifact.name.isprintable():
                return "a file's name holds terminal commands"
        problem = self._network() or self._changes(may_kill)
        if problem:
            return problem
        line = next((line for line in said.splitlines() if line.startswith(self.word)), None)
        return "" if line is None else line.replace(self.word, "").strip()[:100] or "it says so"

    def _network(self) -> str:
        for name, listener in self.listeners.items():
            if came(listener.accept):
                return f"a connection came to {name}"
        for name, receiver in self.datagrams.items():
            if came(functools.partial(receiver.recv, 100)):
                return f"a datagram came to {name}"
        try:
            socket.create_connection(("127.0.0.1", self.free), 1).close()
        except OSError:
            return ""
        return "the host could connect to it"

    def _changes(self, may_kill: bool) -> str:
        if signal.SIGUSR1 in signal.sigpending():
            signal.sigtimedwait({signal.SIGUSR1}, 0)
            return "the host process was signalled"
        try:
            status = self.victim.wait(0.1 if may_kill else 0)
        except subprocess.TimeoutExpired:
            status = None
        if status is not None:
            self._start_victim()
            return f"a process of the host was ended ({status})"
        if (now := self._look_at_processes()) != self.state:
            before, self.state = self.state, now
            return f"the host's state was {before} and is {now}"
        if self._look_at_files() != self.files:
            for path in self.dir.iterdir():
                if path.name not in ("secret", "theirs", "socket", "datagrams"):
                    path.unlink()
            self._plant()
            return "files of the host were changed"
        for path in self._strays():
            path.unlink()
            return f"{path} was made"
        for top, directories, files in os.walk(self.workspace):
            for name in (*directories, *files):
                try:
                    info = os.lstat(os.path.join(top, name))
                except OSError:
                    continue
                if not stat.S_ISLNK(info.st_mode) and info.st_mode & 0o6000:
                    return f"{name} has set-id bits"
                if info.st_uid == 0 and name == "probe":
                    return f"{name} belongs to root"
        return ""

    def _strays(self) -> Iterator[Path]:
        yield from (path for path in self.beside.iterdir() if path != self.workspace)
        yield from (path for path in self.home.iterdir() if path.name != ".sandbox-canary")
        for directory in ("/tmp", "/dev/shm", "/var/tmp", "/run", "/dev/mqueue"):
            if (path := Path(directory, f"sandbox-canary-{self.random}")).exists():
                yield path

    def held(self) -> bool:
        """Whether any process still holds the lock that the code has on the file "held" in its workspace."""
        try:
            with open(self.workspace / "held") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    def close(self) -> None:
        _libc.shmctl(self.memory, 0, None)
        self.victim.kill()
        self.victim.wait()
        for socket_ in (*self.listeners.values(), *self.datagrams.values()):
            socket_.close()


class Battery:
    def __init__(self, backend: Any, host: Host, python: str | None) -> None:
        self.backend, self.host, self.python = backend, host, python
        self.box = self._new_box()
        self.runs = 0

    def _new_box(self) -> Sandbox:
        self.runs = 0
        return Sandbox(
            self.host.workspace, backend=self.backend, timeout=TIMEOUT, limits=LIMITS, python=self.python
        )

    async def run(self, code: str) -> Execution:
        """Each run has a number, counted from 1, which forgers need to know."""
        self.runs += 1
        with anyio.fail_after(HANGS):
            return await self.box.run(self.host.fill(code, self.runs))

    async def case(self, kind: str, case: dict[str, Any]) -> tuple[str, str]:
        if case.get("needs", platform.machine()) != platform.machine():
            return "skipped", "another machine"
        if self.backend not in case.get("only", [self.backend]):
            return "skipped", "not for this backend"
        if self.backend in case.get("lacks", []):
            return "skipped", "this backend does not have it"
        if "module" in case and importlib.util.find_spec(case["module"]) is None:
            return "skipped", f"without {case['module']}"
        if not (await self.run(PRELUDE)).ok:  # what the last one left was still busy
            await self.box.reset()
            await self.run(PRELUDE)
        if "first" in case:
            await self.run(case["first"])
        fds = len(os.listdir("/proc/self/fd"))
        memory = resident()
        run = await self.run(case["code"])
        grown = resident() - memory
        if grown > 150 * MIB:
            return (
                "allowed" if kind == "escapes" else "failed"
            ), f"the host process grew by {grown // MIB} MiB"
        match kind:
            case "escapes":
                reached = self.host.touched(run, may_kill="VICTIM" in case["code"] or "kill" in case["code"])
                if self.host.held():
                    await self.box.__aexit__(None, None, None)
                    survived = self.host.held()
                    self.box = self._new_box()
                    await self.box.__aenter__()
                    reached = reached or ("it still runs after the end" if survived else "")
                if not reached and not run.state_lost and len(os.listdir("/proc/self/fd")) > fds:
                    reached = "the host process took descriptors"
                if reached:
                    await self.box.reset()  # the next one is not to be taken for it
                return ("allowed", reached) if reached else ("blocked", brief(run))
            case "abuse":
                return await self._judge_abuse(case, run)
            case _:
                said = f"{run.stdout}{run.result}{run.error and run.error.name}"
                good = (
                    run.status == ("error" if "fails" in case else "ok")
                    and case.get("fails", case.get("says", "")) in said
                )
                return ("works" if good else "failed"), brief(run)

    async def _judge_abuse(self, case: dict[str, Any], run: Execution) -> tuple[str, str]:
        after = await self.run("print('alive', globals().get('kept'))")
        if not after.ok:  # a thread or child may have broken it after the run had ended
            after = await self.run("print('alive', globals().get('kept'))")
        kept = "alive 12345" in after.stdout
        if case.get("stays"):
            await self.box.reset()
        problems = [
            problem
            for problem, found in {
                "not usable afterwards": not (after.ok and "alive" in after.stdout),
                "no limit": self.host.word in run.stdout,
                "reported as ok": case.get("fails", False) and run.ok,
                "its output is missing": case.get("says", "") not in run.stdout,
                "the variables are lost": case.get("kept", False) and not kept,
                "it ran into the time limit": case.get("quick", False) and run.status == "timeout",
                "its report is too long": len(f"{run.stdout}{run.stderr}{run.result}{run.error}")
                > 3 * LIMITS.output,
            }.items()
            if found
        ]
        if problems:
            return "failed", f"{'; '.join(problems)}: {brief(run)}"
        return ("kept" if kept else "restarted"), brief(run)

    def tidy(self) -> None:
        """An empty workspace for the next case."""
        workspace = self.host.workspace
        workspace.chmod(0o700)
        take_snapshot(workspace, max_entries=1_000_000)  # opens closed directories; follows no link
        for path in map(str, workspace.iterdir()):  # what the code left may still be at work in it
            subprocess.run(["rm", "-rf", "--", path], check=False, stderr=subprocess.DEVNULL)


def came(receive: Callable[[], object]) -> bool:
    """Take all that has come."""
    for count in range(1000):
        try:
            receive()
        except BlockingIOError:
            return count > 0
    return True


def brief(run: Execution) -> str:
    error = f"{run.error.name}: {run.error.value}" if run.error else ""
    return " ".join(f"{run.status} {run.detail or error or run.stdout[-80:]}".split())[:160]


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


async def run_all(options: argparse.Namespace, top: Path) -> None:
    host = Host(top)
    battery = Battery(options.backend, host, options.python)
    await battery.box.__aenter__()
    try:
        print(json.dumps({"detail": battery.box.detail, "backend": battery.box.backend}))
        for kind in ("escapes", "abuse", "ordinary"):
            if not getattr(options, kind):
                continue
            cases = tomllib.loads((HERE / f"{kind}.toml").read_text())["case"]
            for case in cases:
                if (options.only and options.only not in case["name"]) or (
                    options.quick and case.get("slow")
                ):
                    continue
                begun = time.monotonic()
                try:
                    verdict, why = await battery.case(kind, case)
                except TimeoutError:
                    verdict, why = "failed", f"no answer within {HANGS:g} s"
                    battery.box = battery._new_box()
                    await battery.box.__aenter__()
                battery.tidy()
                seconds = round(time.monotonic() - begun, 2)
                line = {
                    "kind": kind,
                    "name": case["name"],
                    "verdict": verdict,
                    "why": why,
                    "seconds": seconds,
                }
                print(json.dumps(line), flush=True)
    finally:
        await battery.box.__aexit__(None, None, None)
        host.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("backend")
    for option in ("escapes", "abuse", "ordinary", "quick"):
        parser.add_argument(f"--{option}", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--python")
    options = parser.parse_args()
    if options.backend == "unsafe-local" and os.geteuid() == 0:
        sys.exit("unsafe-local would really do to this machine what the cases try: not as root")
    top = Path(tempfile.mkdtemp(prefix="agentkit-battery-", dir="/var/tmp"))
    top.chmod(0o755)
    try:
        anyio.run(run_all, options, top)
    finally:
        shutil.rmtree(top, ignore_errors=True)


if __name__ == "__main__":
    main()
