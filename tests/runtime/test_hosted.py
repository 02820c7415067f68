"""Hosting vLLM and its like: found where it is, started, watched while it loads, put away with all its processes."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentkit.errors import EngineError
from agentkit.messages import user
from agentkit.runtime import connect
from agentkit.runtime.engine import Request
from agentkit.runtime.installed import Installation, find_installation, gpus
from agentkit.runtime.local import Local, choose, engine_for
from agentkit.runtime.server import ServerCommand, hosted, running
from agentkit.runtime.vllm import Vllm

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]
AGENTKIT = str(Path(sys.executable).with_name("agentkit"))

# A `vllm` that loads as vLLM does (engine and worker processes, the log's words), and answers "pong".
FAKE = r"""#!%(python)s
import http.server, json, multiprocessing.shared_memory, os, subprocess, sys, time
words = sys.argv[1:]
value = lambda option: words[words.index(option) + 1]
key, model, port = os.environ["VLLM_API_KEY"], value("--served-model-name"), int(value("--port"))
log = lambda text: print(text, file=sys.stderr, flush=True)
shared = multiprocessing.shared_memory.SharedMemory(create=True, size=64)
log("shared " + shared.name)
log("INFO [gpu_model_runner.py:5040] Starting to load model /weights...")
child = "import os, sys, time; os.setsid() if sys.argv[1] else None; print(os.getpid(), flush=True); time.sleep(600)"
for own_session in ("", "yes"):
    process = subprocess.Popen([sys.executable, "-c", child, own_session], stdout=subprocess.PIPE, text=True)
    log("child " + process.stdout.readline().strip())
if "--slowly" in words:
    for step in ("checkpoint shards:   0%%| Completed | 0/2 [00:00<?]\r", "checkpoint shards:  50%%| Completed | 1/2 [00:01]\r",
                 "checkpoint shards: 100%%| Completed | 2/2 [00:02]\n", "Capturing CUDA graphs (decode):   1%%\r",
                 "Capturing CUDA graphs (decode):   9%%\r"):
        sys.stderr.write("Loading safetensors " + step)
        sys.stderr.flush()
        if "2/2" in step or "graphs" in step:
            time.sleep(0.55)  # longer than the time between two looks at the log

class Handler(http.server.BaseHTTPRequestHandler):
    def send(self, kind, body):
        self.send_response(200 if self.headers["Authorization"] == "Bearer " + key else 401)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.send("application/json", json.dumps({"data": [{"id": model, "max_model_len": 4096}]}).encode())
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/tokenize"):
            return self.send("application/json", b'{"count": 7, "max_model_len": 4096}')
        delta = {"choices": [{"index": 0, "delta": {"content": "pong"}, "finish_reason": "stop"}]}
        self.send("text/event-stream", b"data: " + json.dumps(delta).encode() + b"\n\ndata: [DONE]\n\n")
    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class Place:
    """A user's machine: a home, a `vllm` in some environment, and a directory of weights."""

    def __init__(self, path: Path) -> None:
        self.path, self.vllm, self.weights = path, path / "env/vllm", path / "Qwen3-tiny"

    def program(self, name: str, text: str) -> Path:
        (self.path / "bin").mkdir(exist_ok=True)
        file = self.path / "bin" / name
        file.write_text(text)
        file.chmod(0o755)
        return file


@pytest.fixture
def place(short_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place(short_home)
    place.vllm.parent.mkdir()
    place.vllm.write_text(FAKE % {"python": sys.executable})
    place.vllm.chmod(0o755)
    place.weights.mkdir()
    (place.weights / "config.json").write_text("{}")
    (place.weights / "model.safetensors").touch()
    monkeypatch.setenv("AGENTKIT_VLLM", str(place.vllm))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(short_home / "hub"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus.cache_clear()
    yield place
    gpus.cache_clear()


def is_gone(pid: int, within: float = 10.0) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], within)[0])
    finally:
        os.close(handle)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children_of(log: str) -> list[int]:
    return [int(pid) for pid in re.findall("child ([0-9]+)", Path(log).read_text())]


def shared_by(log: str) -> Path:
    return Path("/dev/shm", re.findall("shared (.*)", Path(log).read_text())[0])


async def text_of(engine: Any) -> str:
    return "".join([chunk.text async for chunk in engine.stream(Request([user("ping")]))])


async def test_a_model_is_served_answers_and_leaves_none_of_its_processes(place: Place) -> None:
    said: list[str] = []
    engine = Vllm(place.weights, notify=said.append, args=["--slowly"])
    with pytest.raises(EngineError, match="not running"):
        await text_of(engine)
    async with engine, engine:  # two runs that share it
        assert engine.server is not None and engine.model == "Qwen3-tiny"
        assert await text_of(engine) == "pong"
        assert await engine.context_length() == 4096
        assert await engine.count_tokens(Request([user("ping")])) == 7
        processes = [engine.server.pid, *children_of(engine.server.log)]
        shared = shared_by(engine.server.log)
        assert shared.exists()
        command = Path(f"/proc/{engine.server.pid}/cmdline").read_text()
        assert engine.server.api_key not in command and str(place.weights) in command
    assert len(processes) == 3 and all(is_gone(pid, 0) for pid in processes) and not shared.exists()
    assert said[0] == "starting vllm with Qwen3-tiny" and said[-1].startswith("vllm is ready after ")
    progress = said[1:-1]
    assert "  loading weights" in progress[0] and progress[-1] == "  capturing graphs"
    assert "  loading weights 2/2" in progress and len(set(progress)) == len(progress)


@pytest.mark.parametrize("victim", ["keeper", "watcher", "server"])
async def test_whoever_is_killed_nothing_stays(place: Place, victim: str) -> None:
    async with Vllm(place.weights, keep_alive=30) as engine:
        assert engine.server is not None
        server, keeper = engine.server.pid, parent_of(engine.server.pid)
        watcher = parent_of(keeper)
        processes = [server, keeper, watcher, *children_of(engine.server.log)]
        shared = shared_by(engine.server.log)
        assert shared.exists()
        os.kill({"keeper": keeper, "watcher": watcher, "server": server}[victim], signal.SIGKILL)
        assert all(is_gone(pid) for pid in processes) and not shared.exists()
        why = await engine.server.why_gone()
        assert why and re.match("the vllm server for Qwen3-tiny (is gone|was killed|was stopped)", why)


TRACEBACK = "\n".join(f'(APIServer pid=1)   File "api_server.py", line {n}, in serve' for n in range(40))
FAILURES = {
    "RuntimeError: Failed to infer device type, please set the environment variable": "it finds no GPU",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.16 GiB": "the GPU has not enough memory",
    "ValueError: To serve at least one request with the model's max seq len (40960), (5.62 GiB KV cache is needed, "
    "which is larger than the available KV cache memory (1.20 GiB).": "ask for a shorter context",
    "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0.": 'ask for dtype "half"',
    "OSError: We couldn't connect to 'https://huggingface.co' to load the files": "the model hub cannot be reached",
    "OSError: /nowhere is not a local folder and is not a valid model identifier": "there are no weights under",
    "ValueError: Model architectures ['FooForCausalLM'] are not supported for now.": "model's architecture: upgrade",
    "OSError: [Errno 98] Address already in use": "another program has the port",
    "RuntimeError: operator torchvision::nms does not exist": "uninstall the three",
    "ValueError: Free memory on device cuda:0 (3.1/23.6 GiB) on startup is less than desired GPU memory": "stop them",
    "api_server.py: error: unrecognized arguments: --enable-reasoning": "it does not know one of its options",
}


@pytest.mark.parametrize("line", FAILURES)
async def test_a_server_that_cannot_start_says_the_likeliest_cause_in_words(place: Place, line: str) -> None:
    log = f"INFO loading\n{line}\n{TRACEBACK}\nRuntimeError: Engine core initialization failed."
    command = ServerCommand("vllm", "tiny", ("/bin/sh", "-c", 'echo "$0"; exit 1', log))
    with pytest.raises(EngineError) as error:
        async with hosted(command):
            raise AssertionError("it was never ready")
    first, *rest = str(error.value).splitlines()
    assert first.startswith(
        "the vllm server for tiny ended with exit code 1 before it was ready; most likely "
    )
    assert FAILURES[line] in first
    assert rest[0] == f"  {line}" and rest[-1] == "  RuntimeError: Engine core initialization failed."


# which engine


def test_a_named_vllm_is_found_and_one_that_is_not_there_is_an_error(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_installation("vllm") == Installation("vllm", str(place.vllm), python=False)
    with pytest.raises(EngineError, match="There is no program /no/python: name the Python that has vllm"):
        find_installation("vllm", "/no/python")
    package = place.path / "site/vllm"
    (package / "entrypoints/openai").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('never imported')")
    (package / "_version.py").write_text("__version__ = version = '0.9.2.dev3+cpu'\n")
    (package / "entrypoints/openai/api_server.py").touch()
    python = place.program("python3", f"#!/bin/sh\nexec {sys.executable} -c \"import sys; sys.path.insert(0, '{package.parent}'); "
                           'sys.argv = sys.argv[1:]; exec(sys.argv[0])" "$3" "$4" "$5"\n')  # fmt: skip
    found = find_installation("vllm", str(python))
    assert found == Installation("vllm", str(python), True, "vllm.entrypoints.openai.api_server", (0, 9, 2))
    with pytest.raises(EngineError, match="has no sglang; install it there"):
        find_installation("sglang", sys.executable)
    monkeypatch.delenv("AGENTKIT_VLLM")
    monkeypatch.setenv("PATH", str(place.path))
    assert find_installation("vllm") is None


@pytest.mark.parametrize(
    ("program", "lists", "environment", "count"),
    [
        ("nvidia-smi", "GPU 0: NVIDIA A10\n  MIG 1g.6gb\nGPU 1: NVIDIA A10", {}, 2),
        ("nvidia-smi", "GPU 0: NVIDIA A10\nGPU 1: NVIDIA A10", {"CUDA_VISIBLE_DEVICES": "1"}, 1),
        ("nvidia-smi", "GPU 0: NVIDIA A10", {"CUDA_VISIBLE_DEVICES": ""}, 0),
        ("nvidia-smi", "NVIDIA-SMI has failed", {}, 0),
        (
            "rocm-smi",
            "GPU[0] : Device Name: MI300X\nGPU[0] : Device ID: 1\nGPU[1] : Device Name: MI300X",
            {},
            2,
        ),
    ],
)
def test_gpus_are_those_that_a_server_would_see(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    lists: str,
    environment: dict[str, str],
    count: int,
) -> None:
    place.program(program, f"#!/bin/sh\ncat <<'END'\n{lists}\nEND\n")
    monkeypatch.setenv("PATH", f"{place.path / 'bin'}:/usr/bin:/bin")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert gpus() == count


def test_vllm_runs_what_it_can_where_there_is_a_gpu_and_llama_cpp_the_rest(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine_for(None) == ("llama.cpp", "vLLM is installed, but there is no GPU")
    assert engine_for("vllm:qwen3-4b") == ("vllm", "") and engine_for("llama.cpp:qwen3-4b") == (
        "llama.cpp",
        "",
    )
    assert engine_for(str(place.weights)) == engine_for("Qwen/Qwen3-4B-Instruct-2507") == ("vllm", "")
    place.program("nvidia-smi", "#!/bin/sh\necho 'GPU 0: NVIDIA A10'\n")
    monkeypatch.setenv("PATH", f"{place.path / 'bin'}:{os.environ['PATH']}")
    gpus.cache_clear()
    for name in (None, "qwen3-4b", "Qwen/Qwen3-4B"):
        assert engine_for(name)[0] == "vllm"
    assert engine_for("model.gguf")[0] == engine_for("demo")[0] == "llama.cpp"
    monkeypatch.delenv("AGENTKIT_VLLM")
    assert engine_for("qwen3-4b") == ("llama.cpp", "there is a GPU, but no vLLM")
    with pytest.raises(EngineError, match="vLLM is not installed; run: pip install"):
        choose(str(place.weights))


def test_weights_in_the_hubs_cache_are_run_from_there_and_others_need_the_hub(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def python(
        code: str,
    ) -> subprocess.CompletedProcess[str]:  # the hub's client reads its variables but once
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    place.program("nvidia-smi", "#!/bin/sh\necho 'GPU 0: NVIDIA A10'\n")
    monkeypatch.setenv("PATH", f"{place.path / 'bin'}:{os.environ['PATH']}")
    choose = "from agentkit.runtime.local import choose; print(type(choose('qwen3-8b', print)).__name__)"
    absent = python(choose)
    assert absent.stdout.startswith("qwen3-8b runs on llama.cpp: Qwen/Qwen3-8B is not in the hub's cache")
    assert "ModelNotFound: qwen3-8b is not in the hub's cache" in absent.stderr
    snapshot = place.path / "hub/models--Qwen--Qwen3-8B/snapshots/1234"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("1234")
    (snapshot / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "model-1.safetensors").touch()
    explicit = choose.replace("qwen3-8b", "vllm:qwen3-8b")
    assert (
        "ModelNotFound: Qwen/Qwen3-8B is not in the hub's cache" in python(explicit).stderr
    )  # one file is missing
    (snapshot / "model-2.safetensors").touch()
    assert re.fullmatch(r"qwen3-8b runs on vLLM: 1 GPU and vLLM .*\nVllm\n", python(choose).stdout)


# agentkit model serve


async def test_a_served_model_is_found_by_run_whatever_its_options_and_ctrl_c_stops_it(place: Place) -> None:
    serve = subprocess.Popen(  # noqa: ASYNC220
        [AGENTKIT, "model", "serve", str(place.weights), "--context", "2048", "--", "--enforce-eager"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert serve.stdout is not None and serve.stderr is not None
        assert serve.stdout.readline() == "vllm serves Qwen3-tiny; Ctrl-C stops it\n"
        url = serve.stdout.readline().split()[1]
        assert serve.stdout.readline() == "  key  shown on a terminal only\n"
        (listed,) = running()
        assert listed.url == url and listed.by_name
        command = Path(f"/proc/{listed.pid}/cmdline").read_text()
        assert "--enforce-eager" in command and "2048" in command
        engine = connect(str(place.weights), keep_alive=30)
        assert isinstance(engine, Local)
        async with engine:
            assert await text_of(engine) == "pong"
            assert [s.pid for s in running()] == [listed.pid]
        processes = [listed.pid, *children_of(listed.log)]
    finally:
        serve.send_signal(signal.SIGINT)
        _, errors = serve.communicate(timeout=20)
    assert serve.returncode == 0 and "Traceback" not in errors
    assert all(is_gone(pid, 0) for pid in processes) and running() == []


def test_a_server_can_be_given_a_port_unless_another_has_it(place: Place) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = subprocess.run(
            [AGENTKIT, "model", "serve", str(place.weights), "--port", str(port)],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert taken.returncode == 1 and taken.stdout == ""
    assert "most likely another program has the port" in taken.stderr and str(port) in taken.stderr
    assert "Traceback" not in taken.stderr
