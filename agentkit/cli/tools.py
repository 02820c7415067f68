"""`agentkit tools`: what is installed, and a first tool of your own. What is slow is imported late."""

from __future__ import annotations

import json
from pathlib import Path

import click

from agentkit.cli import command, in_loop, warn

__all__ = ["tools"]


class _ListsWhenBare(click.Group):
    """`agentkit tools calculator --schema` is `agentkit tools list calculator --schema`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ListsWhenBare)
def tools() -> None:
    """Tools: those that are installed, and yours.

    \b
    agentkit tools                               what is installed
    agentkit tools calculator --schema           as the model gets it
    agentkit tools ./my_tools.py                 what a file or a folder has
    agentkit tools new word_count                a first tool of your own, with its test
    """


@command(tools, name="list")
@click.option("--schema", is_flag=True, help="Print each tool's JSON schema as the model gets it.")
@click.option(
    "--mcp", multiple=True, help="Also the tools of an MCP config file, or of a server of yours by its name."
)
@click.argument("names", nargs=-1)
def list_(names: tuple[str, ...], mcp: tuple[str, ...], schema: bool) -> None:
    """List the installed tools, or those that NAMES (names, files, folders) stand for."""
    from contextlib import AsyncExitStack

    from agentkit.agent import resolve_tools
    from agentkit.cli.show import tool_table
    from agentkit.errors import AgentkitError
    from agentkit.tools import Tool, ToolRegistry, Toolset

    async def collect() -> list[Tool]:
        found: list[Tool] = []
        async with AsyncExitStack() as stack:

            async def take(t: Tool | Toolset) -> None:
                found.extend([t] if isinstance(t, Tool) else await stack.enter_async_context(t.open(warn)))

            if names or mcp:
                for t in resolve_tools(names, mcp):
                    await take(t)
                return found
            registry = ToolRegistry()
            for name in registry.names():
                try:
                    await take(registry.get(name))
                except AgentkitError as exc:  # one that lacks something does not hide the others
                    warn(f"{name}: {exc}")
        return found

    found = in_loop(collect)
    if schema:
        click.echo(json.dumps([t.schema for t in found], ensure_ascii=False, indent=2))
    else:
        tool_table(found)


@command(tools)
@click.argument("name")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("."),
    help="Where to put it.  [default: here]",
)
@click.option("--pack", is_flag=True, help="A package that can be installed, and shared.")
def new(name: str, folder: Path, pack: bool) -> None:
    """Write a first tool called NAME, ready to run, and its test.

    With --pack, a whole package: once it is installed, the tool is found by its name everywhere.
    """
    from agentkit.errors import ConfigError

    _check(name)
    files = _pack(name) if pack else {f"{name}.py": _TOOL, f"test_{name}.py": _TEST}
    root = folder / _project(name) if pack else folder
    there = [p for p in (root / f for f in files) if p.exists()] + ([root] if pack and root.exists() else [])
    if there:
        raise ConfigError(f"{there[0]} exists already; nothing was written.")
    for file, text in files.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("NAME", name).replace("PROJECT", _project(name)), encoding="utf-8")
    show = root / f"src/{_module(name)}/{name}.py" if pack else root / f"{name}.py"
    click.echo(f"{show} is yours to change.")
    click.echo(f"Test it:  python -m pytest {root if pack else root / f'test_{name}.py'}")
    if pack:
        click.echo(f'Use it:   pip install -e {root} && agentkit run -t {name} "…"')
    else:
        click.echo(f'Use it:   agentkit run -t {show} "…"')


def _check(name: str) -> None:
    """A tool's name is that of a function, a file and, perhaps, a package: to models, lower case is the usual one."""
    import builtins
    import re
    import sys
    from keyword import iskeyword, issoftkeyword

    from agentkit.tools import ToolRegistry

    why = None
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}[a-z0-9]|[a-z]", name) or "__" in name:
        why = "use small letters, digits and single _, as in word_count"
    elif iskeyword(name) or issoftkeyword(name) or hasattr(builtins, name) or name in sys.stdlib_module_names:
        why = "Python has that name itself"
    elif name in _TAKEN:
        why = "the files that are written use that name for something else"
    elif name.startswith("test_") or name.endswith("_test"):
        why = "pytest would take it for a test"
    elif name in ToolRegistry().names():
        why = "a tool of that name is installed"
    if why:
        raise click.BadParameter(f"{name!r} cannot be a new tool's name: {why}.", param_hint="NAME")


# what stands in the files that are written, and the commands of `agentkit tools`
_TAKEN = frozenset(
    "agentkit agent answer arguments call conftest engine load_tools new pytest result setup tool".split()
)


def _project(name: str) -> str:
    return f"agentkit-{name.replace('_', '-')}"


def _module(name: str) -> str:
    return f"agentkit_{name}"


def _pack(name: str) -> dict[str, str]:
    module = _module(name)
    return {
        "pyproject.toml": _PYPROJECT.replace("MODULE", module),
        "README.md": _README,
        f"src/{module}/__init__.py": _INIT.replace("MODULE", module),
        f"src/{module}/{name}.py": _TOOL,
        f"src/{module}/py.typed": "",
        f"tests/test_{name}.py": _PACK_TEST.replace("MODULE", module),
    }


_TOOL = '''"""NAME: a tool for agentkit."""

from agentkit import ToolError, tool


# () for a tool that only computes; else any of "reads", "writes", "destroys",
# "executes", "network". The model reads the docstring, the types and the defaults.
@tool(effects=())
def NAME(text: str, least: int = 1) -> dict[str, int]:
    """Count how often each word occurs in a text.

    Args:
        text: The text.
        least: Leave out words that occur less often.
    """
    words = text.lower().split()
    if not words:  # the model reads this, and carries on
        raise ToolError("text is empty; give a text with words.")
    counts = {word: words.count(word) for word in words}
    return {word: n for word, n in counts.items() if n >= least}
'''

_TESTS = """
def test_it_counts():
    assert NAME("to be or not to be", least=2) == {"to": 2, "be": 2}


def test_a_model_can_call_it():
    arguments = {"text": "to be or not to be", "least": 2}
    call = json.dumps({"name": "NAME", "arguments": arguments})
    # what a model would say, turn by turn: none is needed
    engine = ScriptedEngine([f"<tool_call>{call}</tool_call>", "Two do."])
    result = Agent(engine, tools=[NAME]).run_sync("Which words occur twice?")
    (answer,) = [r for m in result.messages for r in m.results]
    assert not answer.is_error
    assert json.loads(answer.content) == {"to": 2, "be": 2}
"""

_TEST = f'''"""NAME, as Python calls it and as a model does."""

import json
from pathlib import Path

from agentkit import Agent
from agentkit.adopt import load_tools
from agentkit.testing import ScriptedEngine

(NAME,) = load_tools(Path(__file__).with_name("NAME.py"))

{_TESTS}'''

_PACK_TEST = f'''"""NAME, as Python calls it and as a model does."""

import json

from agentkit import Agent
from agentkit.testing import ScriptedEngine
from MODULE.NAME import NAME

{_TESTS}'''

_PYPROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "PROJECT"
version = "0.1.0"
description = "NAME: a tool for agentkit"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["agentkit"]

[project.entry-points."agentkit.tools"]
NAME = "MODULE:TOOLS"

[tool.hatch.build.targets.wheel]
packages = ["src/MODULE"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["src"]
"""

_INIT = '''"""Each tool's name and where it lives; nothing is imported until it is asked for."""

TOOLS = {
    "NAME": "MODULE.NAME:NAME",
}
'''

_README = """# PROJECT

A tool for [agentkit](https://pypi.org/project/agentkit/).

    pip install PROJECT
    agentkit run -t NAME "How often does each word occur in: to be or not to be?"
"""
