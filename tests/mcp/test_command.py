from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from agentkit.errors import MCPServerError
from agentkit.mcp.command import environment, find_command

EMPTY = {"PATH": "/nowhere"}


def program(folder: Path, name: str) -> str:
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_a_command_on_the_path_is_taken_as_it_is(tmp_path: Path) -> None:
    uvx = program(tmp_path, "uvx")
    assert find_command("uvx", ["mcp-server-time"], {"PATH": str(tmp_path)}) == (uvx, ["mcp-server-time"])


@pytest.mark.parametrize(
    "args",
    [
        ["mcp-server-time", "--local-timezone=UTC"],
        ["mcp-server-time@latest", "--local-timezone=UTC"],
        ["mcp-server-time==2025.1", "--local-timezone=UTC"],
        ["--python", "3.12", "-q", "mcp-server-time", "--local-timezone=UTC"],
        ["--from", "git+https://example.org/x", "mcp-server-time", "--local-timezone=UTC"],
    ],
)
def test_without_uvx_the_installed_script_beside_this_python_is_run(args: list[str]) -> None:
    script = str(Path(sys.executable).with_name("mcp-server-time"))
    assert find_command("uvx", args, EMPTY) == (script, ["--local-timezone=UTC"])


def test_without_uvx_and_script_the_module_is_run() -> None:
    # anything with a __main__ and no script of its name
    assert find_command("uvx", ["ensurepip", "--version"], EMPTY) == (
        sys.executable,
        ["-m", "ensurepip", "--version"],
    )


def test_without_npx_an_installed_script_of_the_package_is_run(tmp_path: Path) -> None:
    script = program(tmp_path, "server-files")
    found = find_command("npx", ["-y", "@scope/server-files@1.2", "."], {"PATH": str(tmp_path)})
    assert found == (script, ["."])


@pytest.mark.parametrize(
    ("command", "args", "message"),
    [
        (
            "uvx",
            ["no-such"],
            "uvx isn't installed and no-such isn't either; pip install no-such, or install uv",
        ),
        ("npx", ["-y", "@a/no-such"], "npx isn't installed and no-such isn't either; install Node.js"),
        ("uvx", [], "the command 'uvx' isn't installed"),
        ("no-such", [], r"the command 'no-such' isn't installed \(not on PATH\)"),
        ("/no/such", [], "the command /no/such does not exist"),
        (__file__, [], "the command .*test_command.py is not an executable file"),
    ],
)
def test_what_cannot_be_run_says_how_to_get_it(command: str, args: list[str], message: str) -> None:
    with pytest.raises(MCPServerError, match=message):
        find_command(command, args, EMPTY)


@pytest.mark.parametrize("command", ["python", "python3"])
def test_python_is_this_python_where_there_is_none_on_the_path(command: str) -> None:
    found, args = find_command(command, ["-m", "x"], EMPTY)
    assert os.path.samefile(found, sys.executable) and args == ["-m", "x"]


def test_only_named_variables_are_passed_on_and_the_config_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/certs")
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy")
    got = environment({"TZ": "Asia/Tokyo"})
    assert got["SSL_CERT_FILE"] == "/certs" and got["TZ"] == "Asia/Tokyo" and "HTTPS_PROXY" not in got
