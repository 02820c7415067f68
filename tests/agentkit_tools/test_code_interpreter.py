"""The code_interpreter tool: what models send it, what they get to read."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentkit import Agent
from agentkit.errors import ConfigError, ToolError
from agentkit.messages import ToolResult
from agentkit.progress import watched
from agentkit.sandbox import detect
from agentkit.testing import ScriptedEngine
from agentkit.tools import Tool, Toolset
from agentkit_tools.code_interpreter import CodeInterpreter, code_interpreter

pytestmark = pytest.mark.anyio


@pytest.fixture
async def tool(tmp_path: Path) -> AsyncIterator[Tool]:
    if detect().backend is None:
        pytest.skip(f"nothing isolates here: {detect()}")
    interpreter = CodeInterpreter(workspace=tmp_path / "work", timeout=20, max_output=1000, warm=False)
    async with interpreter.open(print) as tools:
        yield tools[0]


@pytest.mark.parametrize(
    ("code", "held"),
    [
        ("data = [{'day': 1, 'units': 2}]\nsum(d['n'] for d in data['july'])",
         "There, data is a list of 1, the first is a dict with the keys 'day', 'units'."),
        ("def first(of):\n    return of['x']\nfirst({'a': 1})", "There, of is a dict with the keys 'a'."),
        ("text = 'a,b'\ntext.rows", "There, text is the str 'a,b'."),
        ("import pandas\nsales = pandas.DataFrame({'day': [1], 'units': [2]})\nsales['Units'].sum()",
         "There, sales is a DataFrame of 1 row with the columns 'day', 'units'."),
    ],
)  # fmt: skip
async def test_an_error_says_what_the_data_in_its_line_is(tool: Tool, code: str, held: str) -> None:
    if "pandas" in code:
        pytest.importorskip("pandas")
    assert (await tool.handler({"code": code})).content.endswith(held)


async def test_an_error_that_is_none_of_data_says_no_more(tool: Tool) -> None:
    assert "There," not in (await tool.handler({"code": "data = [1]\nopen(str(data))"})).content


async def test_it_is_a_toolset_with_one_tool_that_says_what_it_is(tool: Tool) -> None:
    assert isinstance(code_interpreter, Toolset) and code_interpreter.scope == "run"
    assert tool.name == "code_interpreter" and tool.parameters["required"] == ["code"]
    assert "numpy" in tool.description


@pytest.mark.parametrize(
    "arguments",
    [{"code": "6 * 7"}, {"python": "```py\nprint(6 * 7)\n```"}, {"code": ["x = 6", "x * 7"]}, "x = 42"],
)
async def test_however_the_code_is_sent_it_runs(tool: Tool, arguments: Any) -> None:
    assert (await tool.handler(arguments)).content.removeprefix("x = ") == "42"


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
    assert (await tool.handler({"code": "x = 2 + 2"})).content == "x = 4"
    said = "(no output; print() the value you need)"
    assert (await tool.handler({"code": "def f(): pass"})).content == said


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
    assert content.startswith("first") and "4009 characters left out" in content and len(content) < 1200
    assert "xlast\nThe full output is in output-1.txt" in content
    assert (await tool.handler({"code": "len(open('output-1.txt').read())"})).content == "5010"


async def test_a_lost_interpreter_is_told(tool: Tool) -> None:
    await tool.handler({"code": "import os; total = 3"})
    output = await tool.handler({"code": "os._exit(1)"})
    assert output.is_error and "variables and imports (os, total) are lost" in output.content


async def test_a_run_of_its_own_has_a_private_workspace_that_is_kept_only_for_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if detect().backend is None:
        pytest.skip("nothing isolates here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    async with CodeInterpreter(warm=False).open(print) as tools:
        await tools[0].handler({"code": "import os; os.mkdir('empty')"})
    workspaces = tmp_path / "agentkit" / "workspaces"
    assert list(workspaces.iterdir()) == []
    async with CodeInterpreter(warm=False).open(print) as tools:
        output = await tools[0].handler({"code": "open('kept', 'w').write('1')"})
    path = output.artifacts[0].path
    assert path is not None and os.stat(path).st_size == 1
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700


async def test_commands_of_notebooks_work_and_installing_is_answered(tool: Tool) -> None:
    code = "%matplotlib inline\n!echo hello; echo there\nwords = !echo one two\nwords"
    assert (await tool.handler({"code": code})).content == "hello\nthere\n['one two']"
    assert (await tool.handler({"code": "%%bash\nx=7; echo $x; exit 3"})).content == (
        "7\nThe command ended with exit status 3."
    )
    await tool.handler({"code": "!pip install pytest\n"})  # which is there
    with pytest.raises(ToolError, match="seaborn-x cannot be installed: nothing can be installed here"):
        await tool.handler({"code": "!pip install seaborn-x\nimport seaborn_x"})
    assert "nothing can be installed here" in (await tool.handler({"code": "import seaborn_x"})).content
    content = (
        await tool.handler({"code": "import socket; socket.create_connection(('1.1.1.1', 80))"})
    ).content
    assert content.endswith("Note: the network is not available here.") and "Traceback" not in content


async def test_output_is_shown_while_the_code_runs(tool: Tool) -> None:
    seen: list[tuple[float, str]] = []

    async def watch(done: float, total: float | None, message: str) -> None:
        seen.append((done, message))

    with watched(watch):
        code = "import sys\nprint('one')\nsys.stderr.write('two\\n')\n1 / 0"
        assert (await tool.handler({"code": code})).is_error
    assert "".join(text for _, text in seen) in ("one\ntwo\n", "two\none\n") and seen[-1][0] == 8


async def test_an_agents_interpreter_keeps_its_variables_from_run_to_run_and_a_runs_does_not() -> None:
    if detect().backend is None:
        pytest.skip("nothing isolates here")

    def call(code: str) -> str:
        arguments = {"name": "code_interpreter", "arguments": {"code": code}}
        return f"<tool_call>{json.dumps(arguments)}</tool_call>"

    for scope, after in (("agent", "41"), ("run", "NameError: name 'x' is not defined")):
        engine = ScriptedEngine([call("x = 41"), "done", call("x"), "done"])
        interpreter = CodeInterpreter(scope=scope, warm=False)  # type: ignore[arg-type]
        async with Agent(engine, tools=[interpreter]) as agent:
            await agent.run("one")
            result = await agent.run("two")
        told = [part.content for m in result.messages for part in m.parts if isinstance(part, ToolResult)]
        assert told[-1].endswith(after)


async def test_files_of_the_user_are_there_and_named(tmp_path: Path) -> None:
    if detect().backend is None:
        pytest.skip("nothing isolates here")
    (tmp_path / "sales.csv").write_text("a,b\n1,2\n")
    interpreter = CodeInterpreter(workspace=tmp_path / "w", files=[tmp_path / "sales.csv"], warm=False)
    async with interpreter.open(print) as tools:
        assert "Files from the user in the workspace: sales.csv (8 bytes)." in tools[0].description
        assert (await tools[0].handler({"code": "open('sales.csv').read()"})).content == "'a,b\\n1,2\\n'"


def test_settings_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ConfigError, match="is a list"):
        CodeInterpreter(files="data.csv")
    with pytest.raises(ConfigError, match="is not a package"):
        CodeInterpreter(pip=["git+https://example.org/x"])


@pytest.mark.e2e
async def test_the_model_may_install_what_it_is_allowed_to(tmp_path: Path) -> None:
    if detect().backend is None:
        pytest.skip("nothing isolates here")
    interpreter = CodeInterpreter(workspace=tmp_path, pip=["cowsay"])
    async with interpreter.open(print) as tools:
        await tools[0].handler({"code": "x = 1"})
        try:
            output = await tools[0].handler(
                {"code": "!pip install -q cowsay\nimport cowsay\ncowsay.__name__, x"}
            )
        except ToolError as exc:
            pytest.skip(f"no package index: {exc}")
        assert output.content == "('cowsay', 1)\nInstalled: cowsay."
        with pytest.raises(ToolError, match="`%pip install NAME` installs cowsay"):
            await tools[0].handler({"code": "!pip install six-x"})
