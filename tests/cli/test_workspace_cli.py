"""The code interpreter on the command line: files given to it, and variables that last as long as a chat."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentkit.sandbox import detect

COMMAND = str(Path(sys.executable).with_name("agentkit"))
pytestmark = pytest.mark.skipif(detect().backend is None, reason="nothing here isolates code")


def code(source: str) -> str:
    return f"<tool_call>{json.dumps({'name': 'code_interpreter', 'arguments': {'code': source}})}</tool_call>"


def run(*command: str, cwd: Path, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *command], cwd=cwd, input=said, capture_output=True, text=True, timeout=60
    )


def test_a_file_is_put_into_the_workspace(serve: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "sales.csv").write_text("a,b\n1,2\n")
    model = serve(lambda x: x.answer(code("open('sales.csv').read()")), lambda x: x.answer("Done."))
    done = run(
        "run", "-m", model.url, "-t", "code_interpreter", "-f", "sales.csv", "Sum it up.", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "sales.csv (8 bytes)" in model.requests[0]["tools"][0]["function"]["description"]
    assert "a,b\\n1,2\\n" in model.requests[1]["messages"][-1]["content"]


def test_a_file_without_an_interpreter_is_one_sentence(serve: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "sales.csv").write_text("a")
    done = run("run", "-m", serve().url, "-t", "calculator", "-f", "sales.csv", "Sum it up.", cwd=tmp_path)
    assert done.returncode == 1 and "add -t code_interpreter" in done.stderr


def test_variables_last_as_long_as_a_chat(serve: Callable[..., Any], tmp_path: Path) -> None:
    model = serve(
        lambda x: x.answer(code("x = 41")),
        lambda x: x.answer("Set."),
        lambda x: x.answer(code("x + 1")),
        lambda x: x.answer("It is 42."),
    )
    done = run("chat", "-m", model.url, "-t", "code_interpreter", cwd=tmp_path, said="Set x.\nAdd one.\n")
    assert done.returncode == 0, done.stderr
    assert model.requests[3]["messages"][-1]["content"].startswith("<tool_response>\n42\n")
