"""`agentkit run` asks before a call that may destroy something, and makes none where nobody is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COMMAND = (str(Path(sys.executable).with_name("agentkit")),)
CALL = '<tool_call>\n{"name": "write_file", "arguments": {"path": "a.txt", "text": "new"}}\n</tool_call>'
TOOLS = '''
from agentkit import tool


@tool(effects=["writes", "destroys"])
def write_file(path: str, text: str) -> str:
    """Write a file."""
    open(path, "w").write(text)
    return "written"
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tools.py").write_text(TOOLS)
    (tmp_path / "a.txt").write_text("old")
    return tmp_path


def run(folder: Path, url: str, *options: str, config: str = "") -> subprocess.CompletedProcess[str]:
    home = folder / "home"
    (home / "agentkit").mkdir(parents=True, exist_ok=True)
    if config:
        (home / "agentkit" / "permissions.toml").write_text(config)
    command = [*COMMAND, "run", "-m", url, "-t", "./tools.py", *options, "--json", "Write it."]
    environment = {**os.environ, "XDG_CONFIG_HOME": str(home)}
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("options", "config", "written", "by"),
    [
        ((), "", False, "nobody"),
        (("--yes",), "", True, "user"),
        (("--allow", "write_file(path=*.txt)"), "", True, "rule"),
        (("--yes", "--deny", "write_file"), "", False, "rule"),
        ((), 'allow = ["write_file"]', True, "rule"),
        ((), 'default = "deny"', False, "default"),
    ],
)
@pytest.mark.e2e
def test_what_may_destroy_is_made_only_where_somebody_said_so(
    serve: Callable[..., Any], folder: Path, options: tuple[str, ...], config: str, written: bool, by: str
) -> None:
    model = serve(lambda x: x.answer(CALL), lambda x: x.answer("Done."))
    done = run(folder, model.url, *options, config=config)
    assert (folder / "a.txt").read_text() == ("new" if written else "old"), done.stderr
    (decision,) = json.loads(done.stdout)["decisions"]
    assert (decision["allowed"], decision["by"]) == (written, by)
    assert ("--allow write_file or --yes does" in done.stderr) == (by == "nobody")


def test_a_rule_that_cannot_be_read_is_one_sentence(serve: Callable[..., Any], folder: Path) -> None:
    done = run(folder, serve().url, "--deny", "#everything")
    assert done.returncode == 1
    assert "agentkit: permissions: '#everything': an effect is one of reads, writes" in done.stderr


@pytest.mark.parametrize(("typed", "written"), [("y\r", True), ("\r", False)])
def test_on_a_terminal_it_is_asked_with_the_arguments_shown(
    serve: Callable[..., Any], folder: Path, typed: str, written: bool, on_terminal: Callable[..., str]
) -> None:
    model = serve(lambda x: x.answer(CALL), lambda x: x.answer("Done."))
    command = [*COMMAND, "run", "-m", model.url, "-t", "./tools.py", "Write it."]
    environment = {**os.environ, "XDG_CONFIG_HOME": str(folder)}
    screen = on_terminal(command, folder, environment, [("ne[v]er [n]:", typed)])
    assert "The model wants to call write_file (destroys, writes):" in screen
    assert "path = a.txt" in screen and "text = new" in screen
    assert (folder / "a.txt").read_text() == ("new" if written else "old")
