"""What agentkit looks like from outside, and which way its imports point."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import agentkit

HOME = Path(agentkit.__file__).parent
LOW = {"errors", "messages", "events"}
BELOW: dict[str, set[str]] = {  # each room may import only from these (and from itself)
    "errors": set(),
    "messages": set(),
    "events": {"messages"},
    "spelling": set(),
    "faults": {"errors", "spelling"},
    "repair": {"faults", "spelling"},
    "simple": set(),
    "schema": {"errors", "faults", "simple"},
    "tools": {"errors", "messages", "schema", "spelling"},
    "parsing": LOW | {"schema", "tools"},
    "runtime": LOW | {"parsing"},  # the probe reads calls out of text
    "mcp": LOW | {"parsing", "progress", "runtime", "schema", "tools"},
    "progress": set(),
    "mcp/serve.py": LOW | {"agent", "calling", "mcp", "progress", "schema", "tools"},  # above the agent
    "toolbox": LOW | {"schema", "tools"},
    "sharing": set(),
    "permissions": LOW | {"tools"},
    "sandbox": LOW | {"progress", "sharing"},
    "adopt": LOW | {"schema", "tools"},
    "planner": LOW | {"parsing", "runtime", "toolbox", "tools", "undone"},
    "guard": LOW,
    "undone": LOW | {"spelling"},
    "voting": LOW | {"parsing", "repair", "runtime"},
    "calling": LOW | {"faults", "permissions", "planner", "repair", "spelling", "tools"},
    "context": LOW | {"runtime"},
    "acting": {"messages"},
    "feed": {"events"},
    "formats": set(),
    "result": LOW | {"permissions"},
    "loop": LOW
    | {
        "acting",
        "calling",
        "context",
        "guard",
        "parsing",
        "permissions",
        "planner",
        "progress",
        "result",
        "runtime",
    }
    | {"toolbox", "tools", "undone"},
    "agent": LOW
    | {"adopt", "calling", "context", "feed", "loop", "mcp", "permissions", "planner", "result", "runtime"}
    | {"schema", "sharing", "subagents", "toolbox", "tools", "voting"},
    "subagents": LOW | {"agent", "context", "progress", "runtime", "schema", "tools"},  # above the agent
    "testing": LOW | {"runtime"},
    "evals": LOW | {"agent", "mcp", "planner", "result", "runtime", "sharing", "tools"},
    "cli": LOW
    | {"agent", "evals", "mcp", "parsing", "permissions", "planner", "runtime", "sandbox"}
    | {"schema", "tools"},
}
HEAVY = {
    "httpx2",
    "huggingface_hub",
    "importlib.metadata",
    "mcp",
    "openai",
    "pydantic",
    "rich",
    "torch",
    "vllm",
}


@pytest.mark.parametrize(
    "path",
    [p for p in HOME.rglob("*.py") if p != HOME / "__init__.py"],
    ids=lambda p: str(p.relative_to(HOME)),
)
def test_imports_point_down(path: Path) -> None:
    relative = path.relative_to(HOME)
    room = str(relative) if str(relative) in BELOW else relative.parts[0].removesuffix(".py")
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "agentkit":
            imported |= {alias.name for alias in node.names if (HOME / alias.name).exists()}
            imported |= {alias.name for alias in node.names if (HOME / f"{alias.name}.py").exists()}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("agentkit."):
            imported.add(node.module.split(".")[1])
    assert imported - {room} <= BELOW[room]


def run(code: str) -> str:
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout.strip()


def test_importing_the_agent_pulls_in_nothing_heavy() -> None:
    code = "import sys; from agentkit import *"
    assert run(f"{code}; print(sorted({HEAVY!r} & sys.modules.keys()))") == "[]"


def test_importing_agentkit_imports_none_of_its_modules() -> None:
    assert run("import sys, agentkit; print([m for m in sys.modules if m.startswith('agentkit.')])") == "[]"


def test_the_commands_help_pulls_in_nothing_heavy() -> None:
    code = "import sys; from agentkit.cli import main; main(['--help'], standalone_mode=False)"
    heavy = HEAVY | {"agentkit.agent", "asyncio"}
    assert run(f"{code}; print(sorted({heavy!r} & sys.modules.keys()))").splitlines()[-1] == "[]"


def test_listing_the_tools_imports_none_of_them() -> None:
    listed = "import sys; from agentkit import ToolRegistry; ToolRegistry().names()"
    assert run(listed + "; print([m for m in sys.modules if m.startswith('agentkit_tools.')])") == "[]"


def test_every_name_agentkit_promises_is_there() -> None:
    assert [name for name in agentkit.__all__ if not hasattr(agentkit, name)] == []
    assert set(agentkit.__all__) <= set(dir(agentkit))
    with pytest.raises(AttributeError, match="'agentkit' has no attribute 'Agnet'"):
        _ = agentkit.Agnet  # type: ignore[attr-defined]


def test_the_built_in_tools_are_a_pack_like_any_other() -> None:
    assert [e.value for e in entry_points(group="agentkit.tools", name="builtin")] == ["agentkit_tools:TOOLS"]


def test_agentkit_does_not_know_its_tool_pack() -> None:
    assert [p for p in HOME.rglob("*.py") if "agentkit_tools" in p.read_text(encoding="utf-8")] == []
