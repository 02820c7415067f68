"""The code_interpreter tool: what models send it, what they get to read."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentkit.errors import ToolError
from agentkit.sandbox import detect
from agentkit.tools import Tool, Toolset
from agentkit_tools.code_interpreter import CodeInterpreter, code_interpreter

pytestmark = pytest.mark.anyio


@pytest.fixture
async def tool(tmp_path: Path) -> AsyncIterator[Tool]:
    if detect().backend is None:
        pytest.skip(f"nothing isolates here: {detect()}")
    async with CodeInterpreter(workspace=tmp_path / "work", timeout=20, max_output=1000).open(print) as tools:
        yield tools[0]


async def test_it_is_a_toolset_with_one_tool_that_says_what_it_is(tool: Tool) -> None:
    assert isinstance(code_interpreter, Toolset) and code_interpreter.scope == "run"
    assert tool.name == "code_interpreter" and tool.parameters["required"] == ["code"]
    assert "numpy" in tool.description


WANTED = "x = 6\nprint(x * 7)"


@pytest.mark.parametrize(
    "arguments",
    [
        {"code": WANTED},
        {"python": WANTED},
        {"input": WANTED},
        {"anything": WANTED},
        {"code": WANTED.splitlines()},
        {"code": f"```python\n{WANTED}\n```"},
        {"code": f"Let me compute:\n```py\n{WANTED}\n```\nDone."},
        {"code": f"```\n{WANTED}"},
        {"code": f'"""\n{WANTED}\n"""'},
        {"code": f"'''{WANTED}'''"},
        {"code": WANTED.replace("\n", "\\n")},
        {"code": 'x = 6\\nprint(f\\"{x * 7}\\")'},
        {"code": json.dumps({"code": WANTED})},
        {"code": "    x = 6\n    print(x * 7)"},
        WANTED,
        json.dumps({"code": WANTED}),
        {"code": "6 * 7"},
    ],
)
async def test_however_the_code_is_sent_it_runs(tool: Tool, arguments: Any) -> None:
    assert (await tool.handler(arguments)).content == "42"


@pytest.mark.parametrize(
    "code",
    [
        'print("a\\nb")',
        '"""doc"""\nprint("a\\nb")',
        "print('''a\nb''')",
        's = """```python\nx\n```"""; print("a\\nb")',
    ],
)
async def test_code_that_is_right_is_left_alone(tool: Tool, code: str) -> None:
    assert (await tool.handler({"code": code})).content == "a\nb"


@pytest.mark.parametrize(
    "arguments", [{}, {"code": ""}, {"code": 3}, {"a": 1, "b": 2}, {"code": "```bash\nls\n```"}]
)
async def test_a_call_without_code_is_told_the_right_shape(tool: Tool, arguments: dict[str, Any]) -> None:
    with pytest.raises(ToolError, match="code"):
        await tool.handler(arguments)


async def test_silence_is_explained(tool: Tool) -> None:
    assert (await tool.handler({"code": "x = 2 + 2"})).content == "(no output; print() the value you need)"


async def test_output_value_error_and_files_are_read_in_that_order(tool: Tool) -> None:
    output = await tool.handler({"code": "print('out')\nopen('f.txt', 'w').write('x' * 24000)"})
    assert output.content == "out\n24000\nFiles: f.txt (24 kB)"
    assert [a.name for a in output.artifacts] == ["f.txt"]
    output = await tool.handler({"code": "print('out')\n1 / 0"})
    assert output.is_error
    assert output.content.startswith("out\nError in line 2:\n") and output.content.endswith(
        "division by zero"
    )


async def test_long_output_keeps_its_ends_and_says_what_is_missing(tool: Tool) -> None:
    content = (await tool.handler({"code": "print('first' + 'x' * 5000 + 'last')"})).content
    assert content.startswith("first") and content.endswith("last")
    assert "4009 characters left out" in content and len(content) < 1100


async def test_a_lost_interpreter_is_told(tool: Tool) -> None:
    output = await tool.handler({"code": "import os; os._exit(1)"})
    assert output.is_error and "variables and imports are lost" in output.content


async def test_a_run_of_its_own_has_a_private_workspace_that_is_kept_only_for_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if detect().backend is None:
        pytest.skip("nothing isolates here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    async with CodeInterpreter().open(print) as tools:
        await tools[0].handler({"code": "import os; os.mkdir('empty')"})
    workspaces = tmp_path / "agentkit" / "workspaces"
    assert list(workspaces.iterdir()) == []
    async with CodeInterpreter().open(print) as tools:
        output = await tools[0].handler({"code": "open('kept', 'w').write('1')"})
    path = output.artifacts[0].path
    assert path is not None and os.stat(path).st_size == 1
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
