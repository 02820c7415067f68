"""A worker as its host holds it: started from a thread that never ends, and put away whole."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from agentkit.errors import SandboxUnavailable
from agentkit.sandbox import cgroup
from agentkit.sandbox.launch import Launch

_START_SECONDS = 30
_MAX_FACT = 256 << 10  # bytes of one fact, as sent by the worker

_T = TypeVar("_T")

# Linux kills a child with "die with parent" when the *thread* that made it ends. This one outlives every
# sandbox.
_spawner: ThreadPoolExecutor | None = None
_spawner_lock = threading.Lock()


def _in_spawner(function: Callable[[], _T]) -> Future[_T]:
    global _spawner
    with _spawner_lock:
        if _spawner is None:
            _spawner = ThreadPoolExecutor(1, thread_name_prefix="agentkit-sandbox")
        return _spawner.submit(function)


def _forget_spawner() -> None:  # a forked child has no threads but one
    global _spawner, _spawner_lock
    _spawner, _spawner_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_spawner)


class ProtocolError(Exception):
    """The worker sent what no worker sends: the code has got hold of its descriptors."""


class Process:
    """One worker. `poll` becomes readable when there is output, a fact, or the end of it."""

    def __init__(self, popen: subprocess.Popen[bytes], control: socket.socket, out: int, err: int) -> None:
        self.popen, self.control, self.out, self.err = popen, control, out, err
        self.poll = select.epoll()
        for fd in (control.fileno(), out, err):
            self.poll.register(fd, select.EPOLLIN)
        self._fds = [out, err]
        self._ended = self._hold(popen.pid)
        self._worker = self._root = -1  # descriptors of processes, once it is ready
        self._worker_pid = 0
        self._root_signal = signal.SIGKILL
        self._received = b""
        self._group: Future[cgroup.Group | None] | None = None

    def _hold(self, pid: int) -> int:
        fd = os.pidfd_open(pid)
        self._fds.append(fd)
        return fd

    async def ready(self, *, supervised: bool) -> None:
        """Wait for the worker's word that it is confined.

        Raises:
            SandboxUnavailable: it ended before.
        """
        with anyio.move_on_after(_START_SECONDS):
            await anyio.wait_readable(self.control)
        head, ancillary, _, _ = self._receive_first()
        if not head:
            self.popen.kill()
            with contextlib.suppress(BlockingIOError):
                raw = os.read(self.err, 65536).decode(errors="replace").strip()
                raise SandboxUnavailable(f"The sandbox did not start: {raw[-2000:] or 'no reason given'}")
            raise SandboxUnavailable(f"The sandbox did not start within {_START_SECONDS} s.")
        self._received += head
        # the kernel's word, in our numbering, for who sent it
        pid = struct.unpack("=iii", ancillary[0][2][:12])[0]
        self.control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        self._worker, self._worker_pid = self._hold(pid), pid
        if supervised:  # the supervisor ends what there is, then itself
            self._root, self._root_signal = self._ended, signal.SIGTERM
        else:  # the first process of the namespace takes all others with it
            self._root = self._hold(_parent(pid))
        list(self.facts())

    def _receive_first(self) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        try:
            return self.control.recvmsg(65536, socket.CMSG_SPACE(12))
        except BlockingIOError:
            return b"", [], 0, None

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    async def send(self, request: int, code: str) -> None:
        source = code.encode("utf-8", "surrogatepass")
        data = memoryview(struct.pack(">II", len(source), request) + source)
        while data:
            try:
                data = data[self.control.send(data) :]
            except BlockingIOError:
                await anyio.wait_writable(self.control)

    def facts(self) -> Iterator[tuple[str, int, str]]:
        """The facts that have come whole: kind, request, text."""
        data, at = self._received, 0
        while len(data) - at >= 9:
            size = int.from_bytes(data[at : at + 4], "big")
            if size > _MAX_FACT:
                raise ProtocolError
            if len(data) - at < 9 + size:
                break
            kind = chr(data[at + 4])
            request = int.from_bytes(data[at + 5 : at + 9], "big")
            text = data[at + 9 : at + 9 + size].decode("utf-8", "replace")
            at += 9 + size
            yield kind, request, text
        self._received = data[at:]

    def receive(self) -> bool:
        """Read what the worker has sent; false at its end."""
        try:
            data = self.control.recv(1 << 18)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._received += data
        return bool(data)

    def read(self, fd: int) -> bytes | None:
        """Some output; nothing (None) for now; at its end, never again."""
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return None
        if not data:
            with contextlib.suppress(OSError):
                self.poll.unregister(fd)
            return None
        return data

    def interrupt(self) -> None:
        """Do what Ctrl-C does: the code's children get it, too."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._worker, 0)  # its number is still its own
            os.killpg(self._worker_pid, signal.SIGINT)

    def limit(self, memory: int, tasks: int) -> None:
        """Have the kernel hold all of it to these limits, from soon on, if it can."""

        def join() -> cgroup.Group | None:
            group = cgroup.make(memory, tasks)
            for _ in range(20 if group else 0):  # what a process starts meanwhile is not in it
                outside = [pid for pid in self.tree() if pid not in group] if group else []
                if not outside or group is None:
                    break
                group.add(outside)
            return group

        self._group = _in_spawner(join)  # it takes the kernel some milliseconds; nobody waits for it

    def out_of_memory(self) -> bool:
        """Whether the kernel has ended any of it for using more memory than `limit` allowed."""
        group = self._group.result() if self._group is not None and self._group.done() else None
        return group is not None and group.killed()

    def kill(self) -> None:
        """End every process of the sandbox, soon."""
        if self._root < 0:
            self.popen.kill()
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._root, self._root_signal)

    async def close(self, patience: float = 0.0) -> int:
        """End it (if it does not end by itself within *patience* seconds), wait until all of it is gone, and
        return its exit status."""
        for seconds, end in ((patience, self.kill), (10.0, self.popen.kill), (10.0, self.popen.kill)):
            with anyio.move_on_after(seconds):
                await anyio.wait_readable(self._ended)
                break
            end()
        status = self.popen.wait()
        if self._group is not None:
            group = await anyio.to_thread.run_sync(self._group.result)
            if group is not None:
                await anyio.to_thread.run_sync(group.remove)
        self.poll.close()
        self.control.close()
        for fd in self._fds:
            os.close(fd)
        return status

    def tree(self) -> list[int]:
        """The processes of the sandbox, ours around it included."""
        found, todo = [], [self.popen.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                for task in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{task}/children") as children:
                        todo += map(int, children.read().split())
        return found

    def usage(self) -> tuple[int, int]:
        """Bytes of memory that no other process shares the cause of, and the number of tasks."""
        memory = tasks = 0
        for pid in self.tree():
            with contextlib.suppress(OSError, ValueError, IndexError):
                tasks += os.stat(f"/proc/{pid}/task").st_nlink - 2
                with open(f"/proc/{pid}/status") as status:
                    for line in status:
                        if line.startswith(("RssAnon:", "RssShmem:")):
                            memory += int(line.split()[1]) << 10
        return memory, tasks

    def shared_out_memory(self) -> int:
        """The same, with shared pages counted once: exact, and slow."""
        memory = 0
        for pid in self.tree():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as rollup:
                for line in rollup:
                    if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                        memory += int(line.split()[1]) << 10
        return memory

    def unlinked_disk(self) -> int:
        """Bytes of files that are open and have no name any more."""
        sizes: dict[tuple[int, int], int] = {}
        for pid in self.tree():
            with contextlib.suppress(OSError):
                for fd in os.listdir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        info = os.stat(f"/proc/{pid}/fd/{fd}")
                        if info.st_nlink == 0:
                            sizes[info.st_dev, info.st_ino] = info.st_blocks * 512
        return sum(sizes.values())


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[1])


async def start(launch: Launch, *, supervised: bool) -> Process:
    """Start a worker and wait until it is confined.

    Raises:
        SandboxUnavailable: it could not be started.
    """
    opened: list[int] = []

    def pipe() -> tuple[int, int]:
        ends = os.pipe()
        opened.extend(ends)
        return ends

    ours, theirs = socket.socketpair()
    try:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ours.setblocking(False)
        out, out_in = pipe()
        err, err_in = pipe()
        os.set_blocking(out, False)
        os.set_blocking(err, False)
        given = []
        for data in launch.data:
            reading, writing = pipe()
            os.write(writing, data)
            os.close(writing)
            opened.remove(writing)
            given.append(reading)
        command = _with_descriptors(launch.command, given)

        def spawn() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=out_in,
                stderr=err_in,
                env=dict(launch.environment),
                cwd="/",
                pass_fds=given,
                start_new_session=True,
            )

        popen = await anyio.to_thread.run_sync(lambda: _in_spawner(spawn).result())
        process = Process(popen, ours, out, err)
        opened.remove(out)
        opened.remove(err)
    except BaseException as exc:
        ours.close()
        if isinstance(exc, OSError):
            raise SandboxUnavailable(f"The sandbox could not be started: {exc}") from exc
        raise
    finally:
        theirs.close()
        for fd in opened:
            os.close(fd)
    try:
        await process.ready(supervised=supervised)
        if launch.limits is not None:
            process.limit(*launch.limits)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await process.close()
        raise
    return process


def _with_descriptors(command: Sequence[str], given: Sequence[int]) -> list[str]:
    numbers = {f"{{{n}}}": str(fd) for n, fd in enumerate(given)}
    return [numbers.get(word, word) for word in command]
