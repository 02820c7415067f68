"""Every code block of the README runs. The two commands themselves are run by .ci/run, word for word."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^<!-- (\w+): (\w+) -->\n```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def blocks(kind: str) -> list[object]:
    found = [(speed, code) for k, speed, _, code in BLOCKS if k == kind]
    marks = {"quick": (), "e2e": (pytest.mark.e2e,)}
    return [
        pytest.param(speed, code, marks=marks[speed], id=f"{kind}-{n}")
        for n, (speed, code) in enumerate(found)
    ]


def execute(command: list[str]) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("speed", "code"), blocks("python"))
def test_a_python_block_runs(speed: str, code: str, request: pytest.FixtureRequest) -> None:
    if speed == "e2e":
        request.getfixturevalue("demo_model")
    execute([sys.executable, "-c", code])


@pytest.mark.parametrize(("speed", "code"), blocks("shell"))
def test_a_shell_block_runs(speed: str, code: str, request: pytest.FixtureRequest) -> None:
    if speed == "e2e":
        request.getfixturevalue("demo_model")
    execute(["bash", "-euo", "pipefail", "-c", code])


def test_every_block_says_how_it_is_run() -> None:
    assert len(BLOCKS) == README.count("\n```") // 2
    assert {kind for kind, *_ in BLOCKS} == {"command", "python", "recorded", "shell"}
