"""A real model, real MCP servers, a real sandbox: what a user sees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("demo_model")]

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("agentkit"))


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """Servers of this module only; they stay warm between its tests, and are stopped at its end."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o700)
        env = {**os.environ, "XDG_RUNTIME_DIR": name}
        yield env
        subprocess.run([COMMAND, "model", "stop", "--all"], env=env, check=True, timeout=60)


def run(env: dict[str, str], *args: str) -> Any:
    done = subprocess.run(
        [COMMAND, *args],
        env=env,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert "Traceback" not in done.stderr.replace("Traceback (most recent call last): ⏎", ""), done.stderr
    return done


def test_the_main_job(environment: dict[str, str]) -> None:
    """The README's first command, without its installation."""
    question = "What time is it in Shanghai right now? Also use Python to compute 2**100."
    done = run(
        environment,
        "run",
        "--json",
        "-m",
        "demo",
        "--mcp",
        "mcp_configs/time.json",
        "-t",
        "code_interpreter",
        question,
    )
    said = json.loads(done.stdout)
    called = {m["name"] for m in said["messages"] if m["role"] == "tool"}
    assert {"get_current_time", "code_interpreter"} <= called, done.stdout
    assert said["stopped"] == "answer" and said["output"] and done.returncode == 0


def test_a_warm_server_is_found_and_listed(environment: dict[str, str]) -> None:
    run(environment, "run", "-m", "demo", "Say hi.")
    (first,) = json.loads(run(environment, "model", "ps", "--json").stdout)
    done = run(environment, "run", "-m", "demo", "Say hi.")
    (second,) = json.loads(run(environment, "model", "ps", "--json").stdout)
    assert first["pid"] == second["pid"] and first["model"] == "demo" and "kept warm" in done.stderr


def test_a_prompt_that_is_too_long_is_said_so(environment: dict[str, str]) -> None:
    long = subprocess.run(
        [COMMAND, "run", "-m", "demo"],
        env=environment,
        input="word " * 20_000,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert long.returncode == 1 and "longer than the model's context" in long.stderr


def processes(marker: str) -> list[int]:
    """The processes whose environment or arguments have *marker* in them."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if marker in (folder / "environ").read_text("utf-8", "replace") + (
                    folder / "cmdline"
                ).read_text("utf-8", "replace"):
                    found.append(int(folder.name))
            except OSError:
                pass
    return found


@pytest.mark.parametrize("stage", ["starting llama.cpp", "llama.cpp is ready", "▶ "])
def test_kill_9_leaves_nothing_that_nobody_owns(stage: str) -> None:
    """No model server after its keep-alive, and no MCP server and no interpreter at all."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o700)
        env = {**os.environ, "XDG_RUNTIME_DIR": name, "TMPDIR": name}
        question = "Use Python to run this: import time; time.sleep(30)"
        command = [
            COMMAND,
            "run",
            "-m",
            "demo",
            "--keep-alive",
            "1s",
            "--mcp",
            "mcp_configs/time.json",
            "-t",
            "code_interpreter",
        ]
        process = subprocess.Popen(
            [*command, question],
            env=env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        for line in process.stderr:
            if stage in line:
                break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        deadline = time.monotonic() + 60
        while (left := processes(name)) and time.monotonic() < deadline:
            time.sleep(0.1)  # the end of a process of another's cannot be waited for
        assert left == []
