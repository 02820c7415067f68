"""The shell tool: what models send it, what they get to read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from agentkit.errors import ToolError
from agentkit.sandbox import detect
from agentkit.sharing import sharing
from agentkit.tools import Tool, Toolset
from agentkit_tools.code_interpreter import CodeInterpreter
from agentkit_tools.shell import Shell, read_command, shell

pytestmark = pytest.mark.anyio


@pytest.fixture
async def tool(tmp_path: Path) -> AsyncIterator[Tool]:
    if detect().backend is None:
        pytest.skip(f"nothing isolates here: {detect()}")
    async with Shell(workspace=tmp_path / "work", timeout=20, max_output=1000).open(print) as tools:
        yield tools[0]


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("ls -l", "ls -l"),
        ("```bash\nls -l\n```", "ls -l"),
        ("```\nls -l", "ls -l"),
        ("`ls -l`", "ls -l"),
        ("$ ls -l", "ls -l"),
        ("$ cd a\n$ ls \\\n  -l\ntotal 0", "cd a\nls \\\n  -l"),
        (["ls", "-l", "a b"], "ls -l 'a b'"),
        (["bash", "-c", "ls | wc"], "ls | wc"),
        (["cd a", "ls"], "cd a\nls"),
        ("echo `date`", "echo `date`"),
        ("echo $HOME", "echo $HOME"),
        ("cat <<E\n```\n$ x\n```\nE", "cat <<E\n```\n$ x\n```\nE"),
    ],
)
def test_however_a_command_is_sent_it_is_what_was_meant(sent: Any, meant: str) -> None:
    assert read_command({"command": sent}) == meant


@pytest.mark.parametrize("command", ["", "  ", 3, None, [], ["ls", 3], "a\0b", "```python\nprint(1)\n```"])
def test_what_is_no_command_is_refused_in_words(command: Any) -> None:
    with pytest.raises(ToolError):
        read_command({"command": command})


async def test_folder_and_variables_last_and_exit_codes_are_told(tool: Tool) -> None:
    assert isinstance(shell, Toolset) and tool.effects == frozenset(("executes",))
    made = await tool.handler({"command": "mkdir d && cd d && export A=1"})
    assert made.content == "[exit code 0]" and not made.is_error
    assert (await tool.handler({"command": "echo $A; basename $PWD"})).content == "1\nd"
    failed = await tool.handler({"command": "echo so far; exit 4"})
    assert failed.is_error and failed.content == "so far\n[exit code 4]"


async def test_programs_that_wait_for_a_keyboard_end(tool: Tool) -> None:
    assert (await tool.handler({"command": "cat; read line; echo over"})).content == "over"


async def test_long_output_is_cut_and_kept_in_a_file(tool: Tool) -> None:
    content = (await tool.handler({"command": "seq 1 20000"})).content
    assert content.startswith("1\n2\n") and "20000" in content and len(content) < 1200
    name = content.split("all of it is in ")[1].split(";")[0]
    assert (await tool.handler({"command": f"wc -l < {name}"})).content.startswith("20000")


async def test_a_command_that_takes_too_long_is_ended_and_told(tmp_path: Path) -> None:
    if detect().backend is None:
        pytest.skip("nothing isolates here")
    async with Shell(workspace=tmp_path / "work", timeout=0.3).open(print) as (tool,):
        output = await tool.handler({"command": "echo begun; sleep 60"})
        assert output.is_error and output.content.startswith("begun\n[ended: it took longer than 0.3 s")


async def test_shell_and_interpreter_of_one_run_see_the_same_files(tmp_path: Path) -> None:
    if detect().backend is None:
        pytest.skip("nothing isolates here")
    work = tmp_path / "work"
    async with AsyncExitStack() as stack:
        with sharing(stack):
            (bash,) = await stack.enter_async_context(Shell(workspace=work).open(print))
            (python,) = await stack.enter_async_context(
                CodeInterpreter(workspace=work, warm=False).open(print)
            )
        await bash.handler({"command": "echo 42 > answer"})
        assert "42" in (await python.handler({"code": "print(open('answer').read())"})).content
