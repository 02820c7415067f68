"""Control groups for a sandbox's processes, where this process may make some: the kernel then counts, not we."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "agentkit-"
_REMOVAL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Group:
    """One group in each hierarchy that has one: in version 2 there is one in all, in version 1 two."""

    directories: tuple[Path, ...]

    def add(self, pids: Iterable[int]) -> None:
        for directory in self.directories:
            for pid in pids:
                with contextlib.suppress(OSError):  # it has ended
                    (directory / "cgroup.procs").write_text(str(pid))

    def __contains__(self, pid: int) -> bool:
        text = _of(pid)
        return all(f"/{directory.name}\n" in text for directory in self.directories)

    def killed(self) -> bool:
        """Whether the kernel has ended a process of it for want of memory."""
        for directory in self.directories:
            for file in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError):
                    words = (directory / file).read_text().split()
                    if "oom_kill" in words and words[words.index("oom_kill") + 1] != "0":
                        return True
        return False

    def remove(self) -> None:
        """Remove it; what is left of it is removed when the next one is made."""
        end = time.monotonic() + _REMOVAL_SECONDS  # a process leaves its group a little after its end
        for directory in self.directories:
            while not _rmdir(directory) and time.monotonic() < end:
                time.sleep(0.01)


def make(memory: int, tasks: int) -> Group | None:
    """A group that may use that much memory (bytes) and that many tasks; None where there can be none.

    Groups that killed processes have left are removed.
    """
    made: list[Path] = []
    name = f"{_PREFIX}{os.getpid()}-{_birth(os.getpid())}-{os.urandom(4).hex()}"
    for parent, files in _parents():
        _remove_stale(parent)
        try:
            (parent / name).mkdir()
            made.append(parent / name)
            for file, value in (("memory", memory), ("tasks", tasks)):
                if file in files:
                    (parent / name / files[file]).write_text(str(value))
        except OSError:
            Group(tuple(made)).remove()
            return None
    return Group(tuple(made)) if made else None


def available() -> bool:
    """Whether groups can be made here."""
    group = make(1 << 30, 100)
    if group is not None:
        group.remove()
    return group is not None


def _parents() -> Iterator[tuple[Path, dict[str, str]]]:
    """Where groups of ours go, and the files there that hold limits; only what may be written to."""
    mounts = {}
    with open("/proc/self/mountinfo") as table:
        for line in table:
            words = line.split()
            kind, _, options = words[words.index("-") + 1 :][:3]
            if kind.startswith("cgroup") and words[3] == "/":
                mounts.update({name: Path(words[4]) for name in ("v2",) if kind == "cgroup2"})
                mounts.update({name: Path(words[4]) for name in options.split(",") if kind == "cgroup"})
    for line in _of(os.getpid()).splitlines():
        _, names, path = line.split(":", 2)
        for name, files in (("memory", {"memory": "memory.limit_in_bytes"}), ("pids", {"tasks": "pids.max"})):
            if name in names.split(",") and name in mounts:
                directory = mounts[name] / path.lstrip("/")
                if os.access(directory, os.W_OK):
                    yield directory, files
        if not names and "v2" in mounts:
            # a group that has processes of its own cannot limit groups below: ours is the parent's
            directory = (mounts["v2"] / path.lstrip("/")).parent
            with contextlib.suppress(OSError):
                controllers = (directory / "cgroup.subtree_control").read_text().split()
                movable = os.access(directory / "cgroup.procs", os.W_OK) and path != "/"
                if movable and os.access(directory, os.W_OK) and {"memory", "pids"} <= set(controllers):
                    yield directory, {"memory": "memory.max", "tasks": "pids.max"}


def _remove_stale(parent: Path) -> None:
    for directory in parent.glob(f"{_PREFIX}*-*-*"):
        pid, birth = directory.name.removeprefix(_PREFIX).split("-")[:2]
        if _birth(int(pid)) != birth:
            _rmdir(directory)


def _rmdir(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""


def _birth(pid: int) -> str:
    """When it started, in the kernel's ticks: with the pid, a name that is never given twice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
