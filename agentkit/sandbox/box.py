"""The sandbox itself: one interpreter that cannot get out, its workspace, and the limits it is held to."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias, get_args

import anyio
import anyio.to_thread

from agentkit.errors import ConfigError, SandboxUnavailable
from agentkit.sandbox import fonts
from agentkit.sandbox import process as processes
from agentkit.sandbox.detect import detect
from agentkit.sandbox.execution import Execution, Limits, OnOutput, Status
from agentkit.sandbox.inside.worker import SETUP, SHELL
from agentkit.sandbox.launch import SANDBOX_UIDS, inspect_interpreter, plan_launch
from agentkit.sandbox.request import Run, WholeOutput
from agentkit.sandbox.workspace import (
    Snapshot,
    changed_files,
    copy_in,
    hand_over,
    remove,
    take_snapshot,
)

__all__ = ["Backend", "OnOutput", "Sandbox"]

Backend: TypeAlias = Literal["auto", "bwrap", "landlock", "docker", "monty", "unsafe-local"]

_WATCH, _WATCH_IDLE = 0.25, 0.5  # seconds between looks at what the processes use
_FEW_FILES: Final = 300  # to look at them takes less time than to have a thread do it


class Sandbox:
    """A Python interpreter that keeps its variables between runs and is cut off from all but its workspace.

    Use it as `async with Sandbox() as box:` and close it in the task that opened it; the process starts with
    the first run. Runs wait for each other.

    Args:
        workspace: the only directory that the code can write to, and its current one, of no other sandbox at
            the same time; None: one that is removed at the end.
        backend: "auto" takes bubblewrap, or else Landlock; a backend that is named is used or refused, never
            replaced. "docker" is a container of Docker or Podman, "monty" an interpreter for a part of Python
            without files and libraries; "unsafe-local" isolates nothing.
        timeout: seconds for one run. Code that takes longer is interrupted, and its variables are kept; if it
            does not stop for that, it is killed, and they are lost.
        python: the interpreter to run, with the packages it has; None: this one.

    Raises:
        SandboxUnavailable: (on entering) the backend does not work here; the message says why and what to do.
    """

    def __init__(
        self,
        workspace: Path | None = None,
        *,
        backend: Backend = "auto",
        timeout: float = 30.0,
        limits: Limits | None = None,
        python: str | None = None,
    ) -> None:
        if backend not in get_args(Backend):
            raise ConfigError(f"no sandbox backend {backend!r}: it is one of {', '.join(get_args(Backend))}")
        self.backend: str = backend  # once entered, the one that protects
        self.detail = ""  # and how, in words
        self.timeout = timeout
        self.limits = limits or Limits()
        self._given_workspace = workspace
        self._python = python or sys.executable
        self._temporary: list[Path] = []
        self._scratch: Path | None = None  # the worker's /tmp, where it has no mounts of its own
        self._owner: tuple[int, int] | None = None  # uid and gid that get the workspace back
        self._process: processes.Process | None = None
        self._lock = anyio.Lock(fast_acquire=True)
        self._has_state = False  # a worker runs, or has ended without anybody having been told
        self._running = False
        self._preload: tuple[str, ...] = ()
        self._exposed: list[str] = []  # directories of the host that the code may read
        self._paths: list[str] = []  # and import from
        self._names = ""  # of the variables
        self._breach: tuple[Status, str] | None = None  # the limit for which the watch ended the process

    @property
    def workspace(self) -> Path:
        """The workspace as the host sees it."""
        return self._workspace

    async def __aenter__(self) -> Self:
        if self.backend != "unsafe-local":
            detection = await anyio.to_thread.run_sync(detect)
            self.backend = detection.require(self.backend)
        self._interpreter = await anyio.to_thread.run_sync(inspect_interpreter, self._python)
        try:
            await anyio.to_thread.run_sync(self._set_up)
        except OSError as exc:
            await anyio.to_thread.run_sync(self._clean_up)
            where = self._given_workspace or tempfile.gettempdir()
            raise ConfigError(f"{where} cannot be used as the sandbox's workspace: {exc}") from exc
        except SandboxUnavailable:
            await anyio.to_thread.run_sync(self._clean_up)
            raise
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    def _set_up(self) -> None:
        if self._given_workspace is None:
            self._workspace = Path(tempfile.mkdtemp(prefix="agentkit-workspace-"))
            self._temporary.append(self._workspace)
        else:
            self._workspace = self._given_workspace.resolve()
            self._workspace.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.backend != "bwrap":
            self._scratch = Path(tempfile.mkdtemp(prefix="agentkit-sandbox-"))
            self._temporary.append(self._scratch)
        self._plan()
        self._snapshot = take_snapshot(self._workspace, self._max_entries)

    def _plan(self) -> None:
        visible = (*self._interpreter.visible, *self._exposed)
        interpreter = replace(self._interpreter, visible=visible)
        self._launch = plan_launch(self.backend, interpreter, self._workspace, self._scratch, self.limits)
        self.detail = self._launch.detail
        if self._launch.uid is not None:
            info = self._workspace.stat()
            if self._owner is None:
                stale = info.st_uid in SANDBOX_UIDS  # of a host process that was killed
                self._owner = (os.geteuid(), os.getegid()) if stale else (info.st_uid, info.st_gid)
            hand_over(self._workspace, info.st_uid, self._launch.uid, self._launch.uid)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tasks.cancel_scope.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)  # so that *error* leaves as it is, not in a group
        finally:
            with anyio.CancelScope(shield=True):
                await self._stop()
                await anyio.to_thread.run_sync(self._clean_up)

    def _clean_up(self) -> None:
        if self._owner is not None and self._launch.uid is not None:
            with contextlib.suppress(OSError):  # the user may have removed it
                hand_over(self._workspace, self._launch.uid, *self._owner)
        for directory in self._temporary:
            remove(directory)

    def warm_up(self, *modules: str) -> None:
        """Start the interpreter in the background, and import *modules* there, so that the first run finds both
        done; a run that comes earlier does not wait for them. Each new interpreter is then made so."""
        self._preload = modules
        self._tasks.start_soon(self._start_ahead)

    async def _start_ahead(self) -> None:
        with contextlib.suppress(SandboxUnavailable):  # the first run will say so
            async with self._lock:
                if self._process is None:
                    self._process = await self._start()
        if self._has_host_fonts and any(name.startswith("matplotlib") for name in self._preload):
            await fonts.make_list(self._interpreter.executable)

    async def add_files(self, files: Sequence[Path | str]) -> dict[str, int]:
        """Copy *files* into the workspace; their names there, and their sizes in bytes.

        Of two with one name the second gets a number. Raises `ConfigError` for what is no readable file.
        """
        names: dict[str, int] = {}
        for source in map(Path, files):
            name, number = source.name, 1
            while name in names:
                number += 1
                name = f"{source.stem}-{number}{source.suffix}"
            try:
                await anyio.to_thread.run_sync(copy_in, source, self._workspace, name, self._launch.uid)
                names[name] = source.stat().st_size
            except OSError as exc:
                raise ConfigError(f"{source} cannot be given to the sandbox: {exc.strerror or exc}") from exc
        self._snapshot = await self._look()
        return names

    async def expose(self, directory: Path) -> None:
        """Let the code read *directory*, under the same path. An interpreter that runs is replaced."""
        if str(directory) not in self._exposed:
            async with self._lock:
                await self._stop()
                self._exposed.append(str(directory))
                await anyio.to_thread.run_sync(self._plan)

    async def add_packages(self, folder: Path) -> None:
        """Let the code import what is in *folder*, which lies in a directory that it can read."""
        async with self._lock:
            if str(folder) not in self._paths:
                self._paths.append(str(folder))
                if self._process is not None and self._process.alive:
                    await self._process.send(0, f"{SETUP}path {folder}")

    async def run(
        self,
        code: str,
        timeout: float | None = None,
        on_output: OnOutput | None = None,
        keep: int | None = None,
    ) -> Execution:
        """Run *code* and say what came of it; what the code does wrong raises nothing here.

        Args:
            timeout: seconds, if other than the sandbox's.
            on_output: called with ("stdout" or "stderr", text) as output comes, up to `Limits.output`.
            keep: output and result of more characters than this are saved, whole, in a file of the workspace.

        Raises:
            SandboxUnavailable: the interpreter could not be started.
        """
        return await self._run(code, timeout, on_output, keep)

    async def shell(
        self,
        command: str,
        timeout: float | None = None,
        on_output: OnOutput | None = None,
        keep: int | None = None,
    ) -> Execution:
        """Run *command* in a bash (or, without one, sh) of the same sandbox and workspace; the rest is as for `run`.

        The directory it ends in and the variables it exports are the next command's. `Execution.exit_code` is
        its exit status; other than 0, the execution's `status` is "error". After a time-out it is ended with all
        that it started, and the interpreter's variables are kept.
        """
        return await self._run(SHELL + command, timeout, on_output, keep)

    async def _run(
        self, source: str, timeout: float | None, on_output: OnOutput | None, keep: int | None
    ) -> Execution:
        async with self._lock:
            gone = self._process is None or not self._process.alive
            lost_before, before = gone and self._has_state, self._breach
            if self._process is None or gone:
                await self._stop()
                self._process = await self._start()
            self._has_state = True
            begun = anyio.current_time()
            number = 1 + secrets.randbelow(2**32 - 1)  # that code of an earlier run cannot give results for
            whole = None if keep is None else WholeOutput(self._workspace, keep, self._launch.uid)
            run = Run(self._process, number, self.limits, on_output, whole)
            self._running = True
            try:
                await run.follow(source, self.timeout if timeout is None else timeout)
            except BaseException:  # cancelled, or on_output raised: the code must not go on
                with anyio.CancelScope(shield=True):
                    if not await run.interrupted():
                        await self._stop()
                raise
            finally:
                self._running = False
                if whole is not None:
                    whole.close()
            return await self._conclude(run, begun, lost_before or run.lost_before, before)

    async def reset(self) -> None:
        """Forget all variables; the workspace stays."""
        async with self._lock:
            await self._stop()
            self._has_state, self._names = False, ""

    async def _start(self) -> processes.Process:
        self._breach = None
        if self._scratch is not None:  # the last worker's supervisor removed it
            self._scratch.mkdir(mode=0o700, exist_ok=True)
            if self._launch.uid is not None:
                os.chown(self._scratch, self._launch.uid, self._launch.uid)
        process = await processes.start(self._launch, supervised=self.backend != "bwrap")
        try:
            await process.send(0, SETUP + await anyio.to_thread.run_sync(self._settings))
        except OSError as exc:
            await process.close()
            raise SandboxUnavailable(f"The sandbox's interpreter ended as it started: {exc}") from exc
        except BaseException:
            with anyio.CancelScope(shield=True):
                await process.close()
            raise
        self._tasks.start_soon(self._watch, process)
        return process

    @property
    def _has_host_fonts(self) -> bool:
        return self.backend not in ("docker", "monty")

    def _settings(self) -> str:
        """What the worker is to get ready, as it reads it."""
        lines = [f"path {path}" for path in self._paths] + [f"preload {name}" for name in self._preload]
        fonts_file = fonts.find_list(self._interpreter.executable) if self._has_host_fonts else None
        name, text = fonts_file or ("", "")
        return "\n".join([*lines, *([f"fonts {name}"] if name else [])]) + f"\n\n{text}"

    async def _stop(self, patience: float = 0.0) -> int | None:
        """End the process, if there is one; its exit status."""
        process, self._process = self._process, None
        if process is None:
            return None
        with anyio.CancelScope(shield=True):
            status = await process.close(patience)
        return status

    @property
    def _max_entries(self) -> int:
        return self.limits.files + 100

    async def _conclude(
        self, run: Run, begun: float, lost_before: bool, breach_before: tuple[Status, str] | None
    ) -> Execution:
        status, detail = run.status, ""
        killed = run.ended or run.died is not None
        if killed and self._breach is None and self._process is not None and self._process.out_of_memory():
            limit = self.limits.total_memory >> 20
            self._breach = "memory", f"its processes used more than {limit} MiB of memory"
            run.ended = True
        if run.ended:
            exit_status = await self._stop(patience=0.0 if run.stopped else 0.5)
            self._has_state = False
            if self._breach is not None:
                status, detail = self._breach
            elif run.stopped is None:
                status, detail = "crashed", _describe_exit(exit_status)
            if self._preload:
                self._tasks.start_soon(self._start_ahead)
        elif run.died is not None and run.stopped is None:
            status, detail = "crashed", _describe_exit(run.died)
        state_lost = killed or lost_before
        lost = self._names if state_lost else ""
        self._names = run.facts.get("N", "" if state_lost else self._names)
        if detail:
            pass
        elif status == "timeout":
            how = "killed" if killed else "interrupted"
            detail = f"it took longer than {_seconds(run.allowed)} and was {how}"
        elif status == "output":
            detail = f"it was stopped after {self.limits.flood >> 20} MiB of output"
        elif status == "memory":
            detail = f"a process may use {self.limits.memory >> 20} MiB of memory"
        elif status == "error":
            detail = run.facts.get("H", "")
        if run.whole is not None and run.facts.get("V"):
            run.whole.feed(run.facts["V"].encode())
            run.whole.close()
        snapshot = await self._look()
        if self._over(snapshot) and status == "ok":
            status, detail = "disk", self._too_much(snapshot)
        artifacts = changed_files(self._workspace, self._snapshot, snapshot)
        self._snapshot = snapshot
        if lost_before:
            cause = breach_before[1] if breach_before else "its process had ended"
            note = f"the interpreter was restarted before this run ({cause})"
            detail = f"{detail}; {note}" if detail else note
        return Execution(
            status=status,
            stdout=run.streams["stdout"].text(),
            stderr=run.streams["stderr"].text(),
            result=run.facts.get("V"),
            assigned=run.facts.get("A"),
            held=run.facts.get("S", ""),
            error=run.error,
            artifacts=artifacts,
            state_lost=state_lost,
            lost=lost,
            backend=self.backend,
            saved_output=run.whole.name if run.whole is not None else None,
            seconds=anyio.current_time() - begun,
            truncated=sum(stream.omitted for stream in run.streams.values()),
            detail=detail,
            exit_code=run.exit_code,
        )

    async def _look(self) -> Snapshot:
        if self._snapshot.entries < _FEW_FILES:
            return take_snapshot(self._workspace, self._max_entries)
        return await anyio.to_thread.run_sync(take_snapshot, self._workspace, self._max_entries)

    def _over(self, snapshot: Snapshot, unlinked: int = 0) -> bool:
        """Too full, and fuller than it was: whoever makes room must be let."""
        return (
            snapshot.disk + unlinked > max(self.limits.disk, self._snapshot.disk)
            or snapshot.entries > max(self.limits.files, self._snapshot.entries)
            or (snapshot.deep and not self._snapshot.deep)
        )

    def _too_much(self, snapshot: Snapshot) -> str:
        if snapshot.entries > self.limits.files or snapshot.deep:
            return f"the workspace holds more than {self.limits.files} files, or they are nested too deep"
        return f"the workspace holds more than {self.limits.disk >> 20} MiB"

    async def _watch(self, process: processes.Process) -> None:
        """End *process* when its processes, all together, use more than they may."""
        looks = 0
        while True:
            await anyio.sleep(_WATCH if self._running or not looks else _WATCH_IDLE)
            looks += 1
            if process is not self._process or not process.alive:
                return
            breach = await self._find_breach(process, disk=looks % 4 == 0)
            if breach is not None and process is self._process:
                self._breach = breach
                process.kill()
                return

    async def _find_breach(self, process: processes.Process, *, disk: bool) -> tuple[Status, str] | None:
        limits = self.limits
        memory, tasks = process.usage()
        if memory > limits.total_memory:
            memory = await anyio.to_thread.run_sync(process.shared_out_memory)
        if memory > limits.total_memory:
            return "memory", f"its processes used more than {limits.total_memory >> 20} MiB of memory"
        if tasks > limits.processes + 8:  # the kernel does not hold uid 0 to its limit
            return "crashed", f"it had more than {limits.processes} processes"
        if disk:
            snapshot = await self._look()
            if self._over(snapshot, process.unlinked_disk()):
                return "disk", self._too_much(snapshot)
        return None


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _describe_exit(status: int | None) -> str:
    if status is None:
        return "its process ended"
    number = status - 128 if status > 128 else -status
    try:
        return f"its process was ended by {signal.Signals(number).name}"
    except ValueError:
        return f"its process ended with exit status {status}"
