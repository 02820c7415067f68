"""Hosting a model server: who may use it, how long it lives, and what is said when it does not."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from agentkit.errors import EngineError
from agentkit.runtime.server import ServerCommand, find, hosted, running, stop

pytestmark = pytest.mark.anyio

T = TypeVar("T")

# The "model server". It gets its key from a file and asks for it, as real ones do.
SERVER = """
import http.server, os, pathlib, signal, socket, subprocess, sys
mode, port, directory = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
key = (directory / "key").read_text()
print("loading the model", flush=True)
if mode == "dies":
    sys.exit("ggml_backend_alloc: failed to allocate buffer of size 1 GB")
if mode == "hangs":
    signal.pause()
if mode == "clashes" and not (directory / "tried").exists():
    (directory / "tried").touch()
    first = socket.create_server(("127.0.0.1", port))
    second = socket.create_server(("127.0.0.1", port))
if mode == "leaves a child":
    child = subprocess.Popen(["sleep", "60"])
    print("child", child.pid, flush=True)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        allowed = self.headers["Authorization"] == "Bearer " + key
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(b'{"data": []}')
    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""

# A process that holds a server until its standard input ends.
CLIENT = """
import json, sys
import anyio
from agentkit.runtime.server import ServerCommand, hosted

async def main():
    async with hosted(ServerCommand(**json.loads(sys.argv[1])), keep_alive=float(sys.argv[2])) as server:
        print(json.dumps({"pid": server.pid, "url": server.base_url}), flush=True)
        sys.stdin.read()

anyio.run(main)
"""


@dataclass
class Place:
    """A home of one's own for everything that hosting leaves on the disk."""

    path: Path

    def command(self, mode: str = "serves", **changes: Any) -> ServerCommand:
        fields: dict[str, Any] = {
            "engine": "toy",
            "model": "tiny",
            "argv": (sys.executable, "-I", "-S", str(self.path / "server.py"), mode, "{port}", "{dir}"),
            "files": {"key": "{api_key}"},
            "ready_timeout": 20.0,
        }
        return ServerCommand(**fields | changes)

    def client(self, command: ServerCommand, keep_alive: float) -> subprocess.Popen[bytes]:
        fields = {
            "engine": command.engine,
            "model": command.model,
            "argv": list(command.argv),
            "files": dict(command.files),
        }
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT, json.dumps(fields), str(keep_alive)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def leftovers(self) -> list[str]:
        return [path.name for path in (self.path / "run/agentkit/servers").iterdir() if path.name != "lock"]


@pytest.fixture
def place(short_home: Path) -> Place:
    (short_home / "server.py").write_text(SERVER)
    return Place(short_home)


def get(url: str, key: str = "") -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        exc.close()
        return exc.code


def is_gone(pid: int, within: float = 10.0) -> bool:
    """Whether the process ends in time; told by the kernel, the very moment it does."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], within)[0])
    finally:
        os.close(handle)


def soon(look: Callable[[], T | None], within: float = 10.0) -> T:
    """The first true answer."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if found := look():
            return found
        threading.Event().wait(0.02)
    raise TimeoutError


def text(path: str) -> str:
    return Path(path).read_text()


def keeper_of(pid: int) -> int:
    return int(text(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])


def started(client: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert client.stdout is not None
    answer: dict[str, Any] = json.loads(client.stdout.readline())
    return answer


def let_go(*clients: subprocess.Popen[bytes]) -> None:
    for client in clients:
        client.communicate()
        assert client.returncode == 0


def killed(client: subprocess.Popen[bytes]) -> None:
    client.kill()
    client.communicate()


async def test_a_private_server_answers_to_its_key_only_and_is_gone_after_the_block(place: Place) -> None:
    said: list[str] = []
    async with hosted(place.command(), on_progress=said.append) as server:
        assert get(server.base_url + "/models", server.api_key) == 200
        assert get(server.base_url + "/models", "another") == 401
        assert (server.model, server.engine) == ("tiny", "toy")
        assert await server.why_gone(0) is None
        assert running() == []  # nobody else's business
        keeper = keeper_of(server.pid)
    assert is_gone(server.pid, 0) and is_gone(keeper)
    assert place.leftovers() == []
    assert said[0] == "starting toy with tiny" and said[1].startswith("toy is ready after ")


async def test_neither_the_key_nor_the_users_secrets_can_be_seen_where_they_do_not_belong(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "hush")
    monkeypatch.setenv("VLLM_API_KEY", "hush")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    async with hosted(place.command(env={"PORT": "{port}"})) as server:
        for pid in (server.pid, keeper_of(server.pid)):
            seen = text(f"/proc/{pid}/cmdline") + text(f"/proc/{pid}/environ")
            assert server.api_key not in seen and "hush" not in seen
            assert "OMP_NUM_THREADS=3" in seen
        (port,) = re.findall("PORT=([0-9]+)", text(f"/proc/{server.pid}/environ"))
        assert server.base_url == f"http://127.0.0.1:{port}/v1"
        assert server.api_key not in repr(server)
        (directory,) = (place.path / "run/agentkit/servers").glob("private-*")
        assert directory.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


async def test_a_warm_server_is_used_again_and_expires_after_keep_alive_seconds(
    place: Place,
) -> None:
    said: list[str] = []
    async with hosted(place.command(), keep_alive=30) as first:
        pass
    async with hosted(place.command(), keep_alive=0.3, on_progress=said.append) as second:
        assert (second.pid, second.api_key) == (first.pid, first.api_key)
        assert get(second.base_url + "/models", second.api_key) == 200
        keeper = keeper_of(second.pid)
    assert said == ["toy is ready, kept warm from an earlier run"]
    assert is_gone(first.pid) and is_gone(keeper)
    assert place.leftovers() == [] and running() == []


async def test_another_command_gets_another_server(place: Place) -> None:
    async with (
        hosted(place.command(), keep_alive=30) as one,
        hosted(place.command(env={"CONTEXT": "8192"}), keep_alive=30) as other,
    ):
        assert one.pid != other.pid and one.api_key != other.api_key


@pytest.mark.e2e
async def test_two_processes_that_start_at_once_share_one_server(place: Place) -> None:
    clients = [place.client(place.command(), keep_alive=0.3) for _ in range(2)]
    one, other = (started(client) for client in clients)
    assert one == other
    assert [server.leases for server in running()] == [2]
    let_go(clients[0])
    assert not is_gone(one["pid"], 0)  # the other still holds it
    let_go(clients[1])
    assert is_gone(one["pid"])


async def test_warm_servers_can_be_listed_found_and_stopped(place: Place) -> None:
    weights = place.path / "tiny.gguf"
    weights.write_bytes(b"GGUF")
    command = place.command(weights=str(weights))
    async with hosted(command, keep_alive=30) as server:
        (listed,) = running()
        assert (listed.model, listed.engine, listed.pid) == ("tiny", "toy", server.pid)
        assert listed.url == server.base_url and listed.ready and listed.leases == 1
        assert listed.expires_in is None and listed.keeper_pid == keeper_of(server.pid)
    soon(lambda: running()[0].leases == 0)
    expires_in = running()[0].expires_in
    assert expires_in is not None and 0 < expires_in <= 30
    for name in ("tiny", str(weights)):
        found = find(name)
        assert found is not None and found.pid == server.pid
    assert find("huge") is None and stop("huge") == []
    assert [stopped.pid for stopped in stop("tiny")] == [server.pid]
    assert is_gone(server.pid, 0) and running() == [] and find("tiny") is None
    assert text(server.log).startswith("loading the model")  # a warm server's log stays


async def test_who_holds_a_server_that_somebody_stops_is_told_so(place: Place) -> None:
    async with hosted(place.command(), keep_alive=30) as server:
        await anyio.to_thread.run_sync(stop)
        why = await server.why_gone()
    assert why is not None and "was stopped by `agentkit model stop`" in why


async def test_a_changed_model_file_is_not_served_from_the_old_server(place: Place) -> None:
    weights = place.path / "tiny.gguf"
    weights.write_bytes(b"GGUF")
    async with hosted(place.command(weights=str(weights)), keep_alive=30) as before:
        pass
    weights.write_bytes(b"GGUF, but better")
    async with hosted(place.command(weights=str(weights)), keep_alive=30) as after:
        assert after.pid != before.pid


@pytest.mark.parametrize("keep_alive", [0, 30])
async def test_a_server_that_dies_early_is_reported_with_its_likeliest_cause_and_its_log(
    place: Place, keep_alive: float
) -> None:
    with pytest.raises(EngineError) as error:
        async with hosted(place.command("dies"), keep_alive=keep_alive):
            raise AssertionError("it was never ready")
    assert str(error.value) == (
        "the toy server for tiny ended with exit code 1 before it was ready; most likely there is not enough"
        " memory for it: take a smaller model or a shorter context, or free some memory."
        " The end of its log:\n"
        "  loading the model\n"
        "  ggml_backend_alloc: failed to allocate buffer of size 1 GB"
    )
    assert place.leftovers() == []


async def test_a_program_that_is_not_there_is_an_error_that_names_it(place: Place) -> None:
    with pytest.raises(EngineError, match=r"most likely its program cannot be run(.|\n)*/no/such/program"):
        async with hosted(place.command(argv=("/no/such/program",))):
            raise AssertionError("it was never ready")


async def test_when_another_took_the_port_it_is_tried_on_another_port(place: Place) -> None:
    async with hosted(place.command("clashes")) as server:
        assert get(server.base_url + "/models", server.api_key) == 200


async def test_a_server_that_is_not_ready_in_time_is_stopped_and_reported(place: Place) -> None:
    with pytest.raises(EngineError, match=r"the toy server for tiny was not ready after 0\.3 s[ .]"):
        async with hosted(place.command("hangs", ready_timeout=0.3), keep_alive=30):
            raise AssertionError("it was never ready")
    assert running() == [] and place.leftovers() == []


async def test_when_the_starting_process_is_killed_while_loading_nothing_is_left(place: Place) -> None:
    client = place.client(place.command("hangs"), keep_alive=30)
    loading = soon(lambda: next((server for server in running() if server.pid), None))
    assert not loading.ready and find("tiny") is None
    killed(client)
    assert is_gone(loading.pid) and is_gone(loading.keeper_pid)
    assert place.leftovers() == []


@pytest.mark.parametrize("keep_alive", [0, 0.3])
@pytest.mark.e2e
async def test_when_the_using_process_is_killed_nothing_is_left_after_keep_alive(
    place: Place, keep_alive: float
) -> None:
    client = place.client(place.command(), keep_alive)
    server = started(client)
    keeper = keeper_of(server["pid"])
    killed(client)
    assert is_gone(server["pid"]) and is_gone(keeper)
    assert place.leftovers() == []


async def test_a_killed_keeper_takes_the_server_with_it_and_the_next_start_sweeps_up(place: Place) -> None:
    async with hosted(place.command(), keep_alive=30) as server:
        os.kill(keeper_of(server.pid), signal.SIGKILL)
        assert is_gone(server.pid)
        why = await server.why_gone()
        assert why == "the toy server for tiny is gone: its keeper process was killed; run it again"
    assert place.leftovers() != []
    async with hosted(place.command(), keep_alive=30) as successor:
        assert successor.pid != server.pid and len(place.leftovers()) == 1


async def test_a_killed_server_is_noticed_and_nobody_claims_to_know_why(place: Place) -> None:
    async with hosted(place.command("leaves a child"), keep_alive=30) as server:
        child = int(re.findall("child ([0-9]+)", text(server.log))[0])
        os.kill(server.pid, signal.SIGKILL)
        whys: list[str | None] = []

        async def ask() -> None:
            whys.append(await server.why_gone(10))

        async with anyio.create_task_group() as tasks:  # as two runs would that share it
            tasks.start_soon(ask)
            tasks.start_soon(ask)
        whys.append(await server.why_gone(0))
        assert set(whys) == {whys[0]} and whys[0] is not None
        assert whys[0].startswith(
            "the toy server for tiny was killed (perhaps out of memory) while it was in use."
        )
        assert is_gone(child)  # the server's own processes go with it
    assert running() == []


async def test_cancelling_while_another_process_starts_a_server_leaves_the_way_free(place: Place) -> None:
    running()  # makes the directory
    lock = os.open(place.path / "run/agentkit/servers/lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with anyio.move_on_after(0.1) as scope:
        async with hosted(place.command()):
            raise AssertionError("it did not wait for the lock")
    assert scope.cancelled_caught
    os.close(lock)
    with anyio.fail_after(10):
        async with hosted(place.command()) as server:
            assert get(server.base_url + "/models", server.api_key) == 200


async def test_cancelling_while_it_loads_stops_it(place: Place) -> None:
    async with anyio.create_task_group() as tasks:

        async def load() -> None:
            async with hosted(place.command("hangs"), keep_alive=30):
                raise AssertionError("it was never ready")

        tasks.start_soon(load)
        loading = await anyio.to_thread.run_sync(
            soon, lambda: next((server for server in running() if server.pid), None)
        )
        tasks.cancel_scope.cancel()
    assert is_gone(loading.pid, 0) and place.leftovers() == []


@pytest.mark.parametrize("mode", [0o755, 0o777, None])
async def test_a_runtime_directory_that_is_not_private_is_quietly_replaced_by_the_cache(
    place: Place, mode: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode is None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    else:
        (place.path / "run").chmod(mode)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert running() == []
    servers = place.path / "cache/agentkit/run/servers"
    assert warned == [] and servers.stat().st_mode & 0o777 == 0o700
    assert not (place.path / "run/agentkit").exists()


async def test_a_runtime_directory_that_cannot_be_used_is_one_sentence(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.path / "run/agentkit").write_text("a file where the directory should be")
    for attempt in (running, stop):
        with pytest.raises(EngineError) as error:
            attempt()
        assert "\n" not in str(error.value) and "set XDG_RUNTIME_DIR" in str(error.value)
    with pytest.raises(EngineError, match=r"cannot use .*agentkit/servers for the sockets"):
        async with hosted(place.command()):
            raise AssertionError("it had no place to start in")
    (place.path / "run/agentkit").unlink()

    long = place.path / ("x" * 80)
    long.mkdir(mode=0o700)
    with monkeypatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(long))
        with pytest.raises(
            EngineError, match="too long for sockets: set XDG_RUNTIME_DIR to a short directory"
        ):
            running()


async def test_a_log_that_cannot_be_written_is_one_sentence_and_leaves_nothing(place: Place) -> None:
    async with hosted(place.command(), keep_alive=30) as server:
        pass
    stop()
    os.unlink(server.log)
    os.mkdir(server.log)  # the keeper finds out
    with pytest.raises(EngineError) as error:
        async with hosted(place.command(), keep_alive=30):
            raise AssertionError("it had no log")
    assert re.fullmatch(r"cannot start toy with tiny: .*\.log'; free some space, or set .*", str(error.value))
    shutil.rmtree(place.path / "state")
    (place.path / "state").write_text("a file where the directory should be")  # we find out
    with pytest.raises(EngineError) as error:
        async with hosted(place.command(), keep_alive=30):
            raise AssertionError("it had no log")
    assert re.fullmatch(r"cannot start toy with tiny: .*; free some space, or set .*", str(error.value))
    assert place.leftovers() == [] and running() == []
