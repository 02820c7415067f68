"""The calculator, the clock and the file reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentkit import Tool, ToolError
from agentkit_tools.calculator import calculator
from agentkit_tools.clock import clock
from agentkit_tools.files import ReadFile

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 3 * 4", "14"),
        ("0.1 + 0.2", "0.3"),
        ("2^10", "1024"),
        ("(1 + 2) ** 3 / 2", "13.5"),
        ("sqrt(16) + factorial(5)", "124.0"),
        ("17 % 5 - -3", "5"),
        ("round(10 / 3, 2)", "3.33"),
        ("2**100", str(2**100)),
    ],
)
def test_arithmetic_is_exact(expression: str, value: str) -> None:
    assert calculator(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os')",
        "9**9**9**9",
        "factorial(10**9)",
        "1/0",
        "a + 1",
        "(1).real",
        "",
        "[1]*9",
        "'a'*9",
        "sqrt(x=1)",
        "2**0.5**-9e9",
    ],
)
def test_what_is_not_arithmetic_or_too_big_is_refused_in_words(expression: str) -> None:
    with pytest.raises(ToolError):
        calculator(expression)


def test_the_clock_knows_time_zones_and_says_so_when_it_does_not() -> None:
    assert clock("Asia/Shanghai").endswith("CST (UTC+0800)")
    with pytest.raises(ToolError, match="no IANA time zone"):
        clock("Mars/Olympus")


async def opened(root: Path) -> dict[str, Tool]:
    async with ReadFile(root).open(lambda text: None) as tools:
        return {t.name: t for t in tools}


async def test_a_file_is_read_whole_or_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"line {n}\n" for n in range(1, 11)))
    read = (await opened(tmp_path))["read_file"]
    assert "line 10" in (await read.handler({"path": "a.txt"})).content
    part = (await read.handler({"path": "a.txt", "start_line": 3, "max_lines": 2})).content
    assert part == "line 3\nline 4\n\n[the file goes on; read on with start_line=5]"


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "link", "missing", "folder"])
async def test_nothing_outside_of_the_root_is_read(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (root / "link").symlink_to(tmp_path / "secret")
    tools = await opened(root)
    with pytest.raises(ToolError):
        await tools["read_file"].handler({"path": path})


async def test_a_folder_is_listed(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("12345")
    assert (await (await opened(tmp_path))["list_files"].handler({})).content == "a.txt (5 bytes)\nb/"
