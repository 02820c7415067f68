"""`agentkit tools`, as a process: what it lists, what it writes, and that what it writes works."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

COMMAND = str(Path(sys.executable).with_name("agentkit"))


def run(*args: str, cwd: Path, **environment: str) -> Any:
    """A process of a user who has nothing of their own yet."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "AGENTKIT_", "PYTEST_"))}
    env = {**kept, "HOME": str(cwd), "COLUMNS": "160", "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(args, env=env, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_bare_it_lists_tools_with_what_they_do(tmp_path: Path) -> None:
    done = run(COMMAND, "tools", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0].split() == ["tool", "effects", "arguments", "description"]
    assert any(line.split()[:2] == ["code_interpreter", "executes"] for line in done.stdout.splitlines())
    done = run(COMMAND, "tools", "--schema", "calculator", cwd=tmp_path)
    assert [t["function"]["name"] for t in json.loads(done.stdout)] == ["calculator"]


def test_a_new_tool_is_listed_tested_and_not_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from agentkit.cli import main

    monkeypatch.chdir(tmp_path)
    new = ["tools", "new", "word_count", "--folder", "mine"]
    done = CliRunner().invoke(main, new)
    assert done.exit_code == 0 and len(done.output.splitlines()) == 3
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["test_word_count.py", "word_count.py"]
    done = CliRunner().invoke(main, ["tools", "mine/"])
    assert "word_count  –        text, least" in done.output
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-W", "error", "mine/test_word_count.py"]
    ran = run(*pytest_, cwd=tmp_path, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert ran.returncode == 0 and "2 passed" in ran.stdout, ran.stdout
    (tmp_path / "mine/word_count.py").write_text("mine = 1\n")
    done = CliRunner().invoke(main, new)
    assert done.exit_code == 1
    assert done.stderr == "agentkit: mine/word_count.py exists already; nothing was written.\n"
    assert (tmp_path / "mine/word_count.py").read_text() == "mine = 1\n"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Word", "small letters"),
        ("../x", "small letters"),
        ("class", "Python"),
        ("calculator", "is installed"),
        ("result", "use that name"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused_before_anything_is_written(
    tmp_path: Path, name: str, why: str
) -> None:
    from click.testing import CliRunner

    from agentkit.cli.tools import tools

    done = CliRunner().invoke(tools, ["new", name, "--folder", str(tmp_path)])
    assert done.exit_code == 2 and why in done.output and not list(tmp_path.iterdir())


def pack(tmp_path: Path, name: str, entry: str, text: str) -> None:
    """A package that is installed in *tmp_path*, as pip leaves it."""
    about = tmp_path / f"{name}-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[agentkit.tools]\n{name} = {entry}\n")
    (tmp_path / f"{name}.py").write_text(text)


def test_a_pack_that_is_broken_does_not_hide_the_others_and_none_replaces_ours(tmp_path: Path) -> None:
    good = "from agentkit import tool\n@tool\ndef fine() -> int:\n    'Fine.'\n    return 1\n"
    pack(
        tmp_path,
        "good_pack",
        "good_pack:TOOLS",
        good + "TOOLS = {'fine': 'good_pack:fine', 'clock': 'good_pack:fine'}",
    )
    pack(tmp_path, "bad_pack", "bad_pack:TOOLS", "import no_such_module\n")
    pack(tmp_path, "half_pack", "half_pack:TOOLS", "TOOLS = {'half': 'half_pack.gone:half'}")
    done = run(COMMAND, "tools", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    listed = [line.split()[0] for line in done.stdout.splitlines() if line[:1].strip()]
    assert {"fine", "clock", "calculator"} <= set(listed) and listed.count("fine") == 1
    assert "half: The tool 'half' (half_pack.gone:half) cannot be loaded" in done.stderr
    assert all(word in done.stderr for word in ("bad_pack", "no_such_module", "good_pack", "'clock'"))


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Path]:
    """A virtual environment that has all that this one has, and can be installed into."""
    if importlib.util.find_spec("hatchling") is None or importlib.util.find_spec("editables") is None:
        pytest.skip("pip install hatchling editables: what builds the package must be here to work offline")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    here = [p for p in sys.path if p.endswith("site-packages")]
    (site / "here.pth").write_text("".join(f"import site; site.addsitedir({p!r})\n" for p in here))
    yield tmp_path / "venv/bin/python"


@pytest.mark.e2e
def test_a_new_pack_is_installed_offline_tested_and_found_by_name(tmp_path: Path, environment: Path) -> None:
    done = run(COMMAND, "tools", "new", "word_count", "--pack", cwd=tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3
    done = run(str(environment), "-m", "pytest", "-q", "-W", "error", "agentkit-word-count", cwd=tmp_path)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout
    options = "--no-build-isolation --no-deps --no-index -q -e agentkit-word-count".split()
    done = run(str(environment), "-m", "pip", "install", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run(str(environment), "-c", "from agentkit.cli import main; main()", "tools", cwd=tmp_path)
    assert any(line.split()[:1] == ["word_count"] for line in done.stdout.splitlines()), done.stderr
