"""The small process that owns one model server: starts it, and stops it when nobody needs it.

A server that stays warm between runs outlives the run that started it, so a run cannot be its owner. The
keeper is. Who needs the server holds a *lease*: an open connection to the keeper's socket. The kernel closes
it when the holder dies, however it dies. Once the last lease is gone the server is kept for `keep_alive`
seconds, then stopped, and the keeper ends. On Linux a second process, its watcher, outlives it: should the
keeper be killed, the kernel kills the server, and the watcher kills what the server had started.

Run by `agentkit.runtime.server` as `python -I -S keeper.py`: it imports nothing of agentkit and little of the
standard library, so that it starts in milliseconds and stays small. Its standard input is the first lease,
and the first line on it says what to run. Lines of JSON both ways:

    client: {"op": "lease", "keep_alive": s} | {"op": "status"} | {"op": "stop"}
    keeper: {"event": "listening"} | {"event": "ready", …} | {"event": "status", …} | {"event": "stopped"}
            {"event": "failed" | "died", "code": exit code or null, "tail": last log lines}
            the last word on a lease is followed by the end of the connection
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import sys
import time
from typing import Any, NoReturn

_POLL = 0.1  # seconds between two looks at a server that is loading
_GRACE = 5.0  # seconds from SIGTERM to SIGKILL
_CLEANING = 3.0  # seconds that what cleans up behind the dead may take
_TAIL = 40_000  # bytes of the log that an error is looked for in: vLLM's is far from its end
_PORTS = 3  # tries when another process took the port in the moment between choosing and binding it


class _Keeper:
    def __init__(self, first: socket.socket, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.leases: dict[socket.socket, None] = {}
        self.clients: dict[socket.socket, bytes] = {}  # -> what of a line has come so far
        self.keep_alive = float(spec["keep_alive"])
        self.idle_since = self.started = time.monotonic()
        self.ready = False
        self.pid = 0
        self.port = 0
        self.tries = 0
        # the lock says "in use" to whoever sweeps up what a killed keeper left
        self.alive = os.open(os.path.join(spec["dir"], "alive"), os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self.alive, fcntl.LOCK_EX)
        self.selector = selectors.DefaultSelector()
        wake, wakeup = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(wakeup, False)
        self.wake = wake
        signal.set_wakeup_fd(wakeup)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)  # seen in the loop, through the wakeup pipe
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self.selector.register(wake, selectors.EVENT_READ)
        self.listener: socket.socket | None = None
        if spec["shared"]:
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(os.path.join(spec["dir"], "socket"))
            self.listener.listen(64)
            self.listener.setblocking(False)
            self.selector.register(self.listener, selectors.EVENT_READ)
        self.welcome(first)
        self.leases[first] = None
        self.send(first, {"event": "listening"})

    # the server

    def start(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(self.spec["port"] > 0))
            try:
                probe.bind(("127.0.0.1", self.spec["port"]))  # 0: the system names a free one
            except OSError as exc:  # perhaps by a server that would pass for ours
                tail = f"{exc.strerror}: port {self.spec['port']}"
                self.end({"event": "failed", "code": 1, "tail": tail})
            self.port = probe.getsockname()[1]
        self.tries += 1

        def fill(text: str) -> str:
            filled = text.replace("{port}", str(self.port)).replace("{api_key}", self.spec["api_key"])
            return filled.replace("{dir}", self.spec["dir"])

        for name, text in self.spec["files"].items():
            path = os.path.join(self.spec["dir"], name)
            with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
                file.write(fill(text).encode("utf-8", "surrogateescape"))
        argv = [fill(part) for part in self.spec["argv"]]
        env = {name: fill(value) for name, value in self.spec["env"].items()}
        log = os.open(self.spec["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND, 0o600)
        keeper = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            _become(argv, env, log, keeper)
        os.close(log)
        _group(self.pid)

    def look(self) -> bool:
        """Whether the server answers its ready path; asked by hand: a client library weighs too much."""
        request = (
            f"GET {self.spec['ready_path']} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Authorization: Bearer {self.spec['api_key']}\r\nConnection: close\r\n\r\n"
        )
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(request.encode())
                status = connection.recv(64).split(b" ", 2)
        except OSError:
            return False
        return len(status) > 1 and status[1] == b"200"

    def exit_code(self) -> int | None:
        """The server's exit code (negative: the signal that killed it); None while it runs."""
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)  # orphans of its making come to us
            if not pid:
                return None
            if pid == self.pid:
                break
        self.pid = 0
        _bury(pid)
        return os.waitstatus_to_exitcode(status)

    def stop_server(self) -> None:
        if not self.pid:
            return
        _kill(self.pid, signal.SIGTERM)
        for client in self.clients:  # nothing more is read from them
            self.selector.unregister(client)
        deadline = time.monotonic() + _GRACE
        while self.exit_code() is None:
            left = deadline - time.monotonic()
            if left <= 0:
                os.kill(self.pid, signal.SIGKILL)
            self.selector.select(left if left > 0 else _POLL)  # SIGCHLD ends the wait
            self.signals()

    def tail(self) -> str:
        try:
            with open(self.spec["log"], "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
                return file.read(_TAIL).decode("utf-8", "replace")
        except OSError as exc:
            return f"(the log cannot be read: {exc})"

    # its clients

    def welcome(self, client: socket.socket) -> None:
        client.setblocking(False)
        self.clients[client] = b""
        self.selector.register(client, selectors.EVENT_READ)

    def send(self, client: socket.socket, message: dict[str, Any]) -> None:
        try:
            client.sendall(json.dumps(message).encode() + b"\n")
        except OSError:  # gone, or it reads nothing: then it is of no use either
            self.drop(client)

    def drop(self, client: socket.socket) -> None:
        if self.clients.pop(client, None) is None:
            return
        if client in self.selector.get_map():
            self.selector.unregister(client)
        client.close()
        if client in self.leases:
            del self.leases[client]
            self.idle_since = time.monotonic()

    def read(self, client: socket.socket) -> None:
        try:
            data = client.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data and list(self.leases) == [client] and not (self.ready and self.keep_alive > 0):
            self.end({"event": "stopped"})  # which its last holder may still be waiting to hear
        if not data or len(self.clients[client]) > 65536:
            return self.drop(client)
        *lines, self.clients[client] = (self.clients[client] + data).split(b"\n")
        for line in lines:
            if client not in self.clients:  # dropped, for it did not take the answer to an earlier line
                return
            try:
                message = json.loads(line)
                op = message["op"]
            except (ValueError, TypeError, KeyError):
                return self.drop(client)
            if op == "lease":
                self.keep_alive = float(message["keep_alive"])  # the latest wish counts
                self.leases[client] = None
                if self.ready:
                    self.send(client, self.greeting())
            elif op == "status":
                self.send(client, self.status())
            elif op == "stop":
                self.end({"event": "stopped"})

    def greeting(self) -> dict[str, Any]:
        return {**self.status(), "event": "ready", "api_key": self.spec["api_key"]}

    def status(self) -> dict[str, Any]:
        idle = None if self.leases else time.monotonic() - self.idle_since
        return {
            "event": "status",
            "id": os.path.basename(self.spec["dir"]),
            **{name: self.spec[name] for name in ("engine", "model", "weights", "log", "by_name")},
            "url": f"http://127.0.0.1:{self.port}{self.spec['base_path']}",
            "pid": self.pid,
            "keeper_pid": os.getpid(),
            "ready": self.ready,
            "leases": len(self.leases),
            "age": time.monotonic() - self.started,
            "expires_in": None if idle is None else max(0.0, self.keep_alive - idle),
        }

    # the loop

    def signals(self) -> bytes:
        try:
            return os.read(self.wake, 512)
        except BlockingIOError:
            return b""

    def run(self) -> NoReturn:
        self.start()
        deadline = time.monotonic() + float(self.spec["ready_timeout"])
        tries = 1 if self.spec["port"] else _PORTS
        while True:
            now = time.monotonic()
            if self.leases:
                wait = 3600.0
            elif self.ready:
                wait = min(self.idle_since + self.keep_alive - now, 3600.0)
                if wait <= 0:
                    self.end({"event": "stopped"})
            else:  # nobody waits for it any more
                self.end({"event": "stopped"})
            for key, _ in self.selector.select(wait if self.ready else min(wait, _POLL)):
                if key.fileobj is self.listener and self.listener is not None:
                    try:
                        self.welcome(self.listener.accept()[0])
                    except OSError:
                        continue
                elif key.fileobj == self.wake:
                    if signal.SIGTERM in self.signals():
                        self.end({"event": "stopped"})
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in self.clients:
                    self.read(key.fileobj)
            code = self.exit_code()
            if code is not None:
                tail = self.tail()
                if not self.ready and self.tries < tries and "address already in use" in tail.lower():
                    self.start()
                    continue
                self.end({"event": "died" if self.ready else "failed", "code": code, "tail": tail})
            if not self.ready:
                if self.look():
                    self.ready = True
                    for client in list(self.leases):
                        self.send(client, self.greeting())
                elif time.monotonic() > deadline:
                    self.end({"event": "failed", "code": None, "tail": self.tail()})

    def end(self, last_word: dict[str, Any]) -> NoReturn:
        # first out of sight, so that a new run starts a server of its own rather than lean on this one
        if self.listener is not None:
            self.selector.unregister(self.listener)
        _clear(self.spec["dir"])
        if self.listener is not None:
            self.listener.close()
        self.stop_server()
        for client in list(self.leases):  # who only just came hears nothing, and may try again elsewhere
            self.send(client, last_word)
        os._exit(0)


def _become(argv: list[str], env: dict[str, str], log: int, keeper: int) -> NoReturn:
    """In the forked child: turn into the server."""
    try:
        _group(os.getpid())
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        _end_with(keeper, signal.SIGKILL)
        os.chdir("/")
        os.execvpe(argv[0], argv, env)
    except BaseException as exc:
        os.write(2, f"cannot run {argv[0]}: {exc}\n".encode())
    os._exit(127)


def _watch() -> None:
    """Fork: the child goes on, to become the keeper; the parent stays to bury what a killed keeper leaves."""
    watcher = os.getpid()
    _adopt_orphans()
    keeper = os.fork()
    if not keeper:
        _end_with(watcher, signal.SIGTERM)  # without it, nobody would watch
        _adopt_orphans()
        return
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the lease is the keeper's to close
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while os.wait()[0] != keeper:
        pass
    _bury(0)
    os._exit(0)


def _adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that none gets out of sight."""
    _prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def _bury(group: int) -> None:
    """Kill what a dead server (of that process group) has left: its children are ours now, and then their children.

    Not at once Python's trackers of shared memory: once the others are gone, they give it back and end.
    """
    if sys.platform != "linux":
        return _kill(group, signal.SIGKILL)
    alone_since = None  # when only trackers were left
    with contextlib.suppress(ChildProcessError):  # no children are left
        while True:
            children = _children()
            others = [pid for pid, tracks in children if not tracks]
            if others:
                alone_since = None
            else:
                alone_since = alone_since or time.monotonic()
                if time.monotonic() - alone_since > _CLEANING:
                    others = [pid for pid, _ in children]
            for pid in others:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            time.sleep(_POLL / 10)


def _children() -> list[tuple[int, bool]]:
    """Our children, and whether each is such a tracker."""
    me, found = str(os.getpid()), []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
            if stat.read().rpartition(b") ")[2].split()[1].decode() == me:
                with open(f"/proc/{name}/cmdline", "rb") as command:
                    found.append((int(name), b"multiprocessing.resource_tracker" in command.read()))
    return found


def _end_with(parent: int, number: int) -> None:
    """Have the kernel send us *number* when *parent* dies."""
    if sys.platform == "linux":
        _prctl(1, number)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def _prctl(option: int, value: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _clear(directory: str) -> None:
    """Remove it; directories that the server made in it stay until the next start sweeps them up."""
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(directory, name))
        os.rmdir(directory)


def _group(pid: int) -> None:
    """Make it a process group; done on both sides of the fork, so that whoever comes first can rely on it."""
    with contextlib.suppress(OSError):  # the other side was faster, or it is gone already
        os.setpgid(pid, pid)


def _kill(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _first_line(first: socket.socket) -> dict[str, Any] | None:
    line = b""
    while not line.endswith(b"\n"):
        data = first.recv(65536)
        if not data:
            return None  # the client died before it said what to run
        line += data
    spec: dict[str, Any] = json.loads(line)
    return spec


def main() -> None:
    if os.fork():  # not a child of the client: it need not reap what may outlive it
        os._exit(0)
    os.setsid()
    if sys.platform == "linux":
        _watch()
    first = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    spec = _first_line(first)
    if spec is None:
        return
    keeper = None
    try:
        keeper = _Keeper(first, spec)
        keeper.run()
    except OSError as exc:  # no space for its files, no more processes, …
        failure = {"event": "failed", "code": None, "tail": "", "why": str(exc)}
        if keeper is not None:
            keeper.end(failure)
        _clear(spec["dir"])
        first.sendall(json.dumps(failure).encode() + b"\n")


if __name__ == "__main__":
    main()
