"""The interpreter inside: what is ready before it is asked for, what it tells, and what outlives a crash."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from agentkit.errors import ConfigError
from agentkit.sandbox import Backend, Execution, Limits, Sandbox, detect, packages

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["bwrap", pytest.param("landlock", marks=pytest.mark.e2e)])
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    probe = detect().bwrap if chosen == "bwrap" else detect().landlock
    if not probe.ok:
        pytest.skip(f"{chosen}: {probe.detail}; {probe.fix}")
    return chosen


@pytest.fixture
async def box(backend: Backend, tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with Sandbox(tmp_path / "work", backend=backend, timeout=20, limits=Limits(output=6000)) as box:
        yield box


async def preloaded(box: Sandbox, module: str) -> None:
    """Have a worker that has *module*: the one that comes after the first is made when it is imported."""
    box.warm_up(module)
    await box.run("import os; os._exit(1)")


async def test_a_warm_interpreter_has_its_modules_and_a_crash_costs_it_only_the_variables(
    box: Sandbox,
) -> None:
    await preloaded(box, "wave")
    tree = box._process
    for crash, said in (
        ("import os; os._exit(0)", "status 0"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os.closerange(0, 300)", "status 70"),
    ):
        await box.run("x, y = 1, 2")
        run = await box.run(crash)
        assert (run.status, run.state_lost) == ("crashed", True) and said in run.detail
        assert {"x", "y"} <= set(run.lost.split(", "))
        run = await box.run("'x' in globals(), 'wave' in __import__('sys').modules")
        assert (run.result, run.state_lost) == ("(False, True)", False)  # told once
    assert box._process is tree
    run = await box.run("import time; time.sleep(60)", timeout=0.2)
    assert (run.status, run.state_lost) == ("timeout", False)


async def test_an_interpreter_that_dies_between_runs_is_told_with_the_next(box: Sandbox) -> None:
    await preloaded(box, "wave")
    await box.run("x = 1\nimport os, threading\nthreading.Timer(0.01, os._exit, [3]).start()")
    with anyio.fail_after(10):
        while not (run := await box.run("'x' in globals()")).state_lost:
            pass
    assert "x" in run.lost and ("restarted before this run" in run.detail or run.status == "crashed")


async def test_a_template_that_the_code_kills_is_replaced(box: Sandbox) -> None:
    await preloaded(box, "wave")
    run = await box.run("import os; os.kill(os.getppid(), 9)\nwhile True: pass")
    assert (run.status, run.state_lost) == ("crashed", True)
    assert (await box.run("1 + 1")).result == "2"


async def test_a_run_does_not_wait_for_what_is_being_imported(box: Sandbox) -> None:
    (box.workspace / "slow.py").write_text("import time\ntime.sleep(60)\n")
    box.warm_up("slow")
    with anyio.fail_after(20):
        assert (await box.run("6 * 7")).result == "42"


async def test_workers_of_one_template_do_not_draw_the_same_numbers(box: Sandbox) -> None:
    pytest.importorskip("numpy")
    await preloaded(box, "numpy")
    draw = "import numpy, random; (numpy.random.rand(), random.random())"
    first = (await box.run(draw)).result
    await box.run("import os; os._exit(1)")
    assert (await box.run(draw)).result != first


async def test_a_child_that_the_code_forks_does_not_answer_for_it(box: Sandbox) -> None:
    for child in ("x = 1", "1 / 0", "print('child')", "raise SystemExit(3)"):
        run = await box.run(f"import os\nif os.fork(): os.wait()\nelse:\n  {child}")
        assert (run.status, run.state_lost) == ("ok", False)
        assert [(await box.run("1 + 1")).result for _ in range(2)] == ["2", "2"]


# ------------------------------------------------------------------ what it tells


async def test_errors_show_the_code_and_nothing_of_ours(box: Sandbox) -> None:
    code = "try:\n  1 / 0\nexcept ZeroDivisionError:\n  display(type('A', (), {'__repr__': lambda s: {}['k']})())"
    run = await box.run(code)
    assert run.error is not None and run.error.line == 4
    assert "During handling" in run.error.traceback and "worker" not in run.error.traceback
    run = await box.run(
        "try:\n  while True: pass\nexcept KeyboardInterrupt:\n  raise ValueError", timeout=0.2
    )
    assert run.error is not None and "_on_interrupt" not in run.error.traceback
    assert "longer than 0.2 s" in run.detail


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("x = 2 + 2", "x = 4"),
        ("x: int = 5\nx += 1", "x = 6"),
        ("big = list(range(10**6))", "big = [0, 1, 2, 3"),
        ("x = None", None),
        ("a, b = 1, 2", None),
        ("def f(): pass", None),
    ],
)
async def test_a_last_assignment_is_told_in_short(box: Sandbox, code: str, told: str | None) -> None:
    assigned = (await box.run(code)).assigned
    assert assigned == told if told is None else assigned is not None and assigned.startswith(told)
    assert len(assigned or "") < 200


async def test_a_semicolon_keeps_the_last_value_quiet(box: Sandbox) -> None:
    assert (await box.run("1 + 1;")).result is None


async def test_the_network_is_said_not_to_be_there(box: Sandbox) -> None:
    for code in (
        "import urllib.request; urllib.request.urlopen('http://example.org')",
        "import socket; socket.create_connection(('93.184.216.34', 80))",
    ):
        run = await box.run(code)
        assert (run.status, run.detail) == ("error", "the network is not available here")


async def test_wide_and_long_tables_are_compact_and_name_all_columns(box: Sandbox) -> None:
    pytest.importorskip("pandas")
    run = await box.run("import pandas as pd\npd.DataFrame({f'column{n}': range(5000) for n in range(60)})")
    assert run.result is not None and len(run.result) < 9000
    assert "[5000 rows x 60 columns]" in run.result and "column29, column30" in run.result


async def test_pictures_of_any_kind_become_files(box: Sandbox) -> None:
    code = (
        "class P:\n  def _repr_png_(self): return b'\\x89PNG'\n"
        "class S:\n  def _repr_svg_(self): return '<svg/>'\ndisplay(S(), 'words', 7)\nP()"
    )
    run = await box.run(code)
    assert [a.name for a in run.artifacts] == ["display-1.png", "display-1.svg"]
    assert (run.stdout, run.result) == ("words\n7\n", None)


async def test_more_output_than_asked_for_is_whole_in_a_file(box: Sandbox) -> None:
    run = await box.run("for n in range(5000): print(n)\n'end'", keep=1000)
    assert run.truncated and run.saved_output == "output-1.txt"
    whole = (box.workspace / "output-1.txt").read_text()
    assert whole.startswith("0\n1\n") and "\n4999\n" in whole and whole.endswith("'end'")
    assert (await box.run("print(1)", keep=1000)).saved_output is None
    (box.workspace / "output-2.txt").symlink_to(box.workspace.parent / "elsewhere")
    assert (await box.run("print('x' * 2000)", keep=1000)).saved_output == "output-3.txt"
    assert not (box.workspace.parent / "elsewhere").exists()


# ------------------------------------------------------------------ the shell


async def test_a_shell_keeps_its_directory_and_variables_and_shares_the_files(box: Sandbox) -> None:
    run = await box.shell("mkdir -p d && cd d && export WORD='a b\nc'; echo one >f; false")
    assert (run.status, run.exit_code) == ("error", 1)
    run = await box.shell('echo "$WORD"; basename "$PWD"; cat f; nowhere')
    assert (run.stdout, run.exit_code) == ("a b\nc\nd\none\n", 127) and "line 1: nowhere" in run.stderr
    assert (await box.run("x = open('d/f').read(); x")).result == "'one\\n'"
    assert (await box.shell("cat <<E\nhere\nE\nexit 3")).exit_code == 3
    for broken in ("kill -9 $$", "for i in", "exec true", "# nothing"):
        await box.shell(broken)
    assert (await box.shell("basename $PWD")).stdout == "d\n"


@pytest.mark.e2e
async def test_a_shell_that_takes_too_long_is_ended_with_what_it_started(box: Sandbox) -> None:
    await box.run("x = 1")
    run = await box.shell(
        "trap '' INT; (while :; do echo $$ >alive; sleep 0.05; done) & sleep 60", timeout=0.3
    )
    assert (run.status, run.exit_code, run.state_lost) == ("timeout", None, False)
    run = await box.run(
        "import os, time\nos.path.exists('alive') and os.remove('alive')\ntime.sleep(0.3)\nos.path.exists('alive'), x"
    )
    assert run.result == "(False, 1)"


# ------------------------------------------------------------------ what the user gives


async def test_files_of_the_user_are_copied_in_and_no_link_is_followed(box: Sandbox, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data.csv").write_text(folder)
    (tmp_path / "victim").write_text("safe")
    (box.workspace / "data.csv").symlink_to(tmp_path / "victim")
    names = await box.add_files([tmp_path / "a/data.csv", str(tmp_path / "b/data.csv")])
    assert names == {"data.csv": 1, "data-2.csv": 1}
    run = await box.run("open('data.csv').read() + open('data-2.csv', 'r+').read()")
    assert (run.result, run.artifacts) == ("'ab'", ())
    assert (tmp_path / "victim").read_text() == "safe"
    for wrong in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=str(wrong)):
            await box.add_files([wrong])


async def test_packages_are_importable_and_read_only(box: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "packages" / "one"
    folder.mkdir(parents=True)
    for directory in (*folder.parents, folder):
        if directory.is_relative_to(tmp_path.parent):
            directory.chmod(0o755)
    (folder / "brought.py").write_text("value = 7\n")
    await box.expose(folder.parent)
    await box.run("x = 1")
    await box.add_packages(folder)
    assert (await box.run("import brought; brought.value + x")).result == "8"
    run = await box.run(f"open({str(folder / 'brought.py')!r}, 'w')")
    assert run.error is not None and run.error.name in ("PermissionError", "OSError")


@pytest.mark.parametrize(
    "name", ["--index-url=x", "git+https://a/b", "/tmp/x", "a b", "x; rm", "x @ file:///a", ""]
)
def test_only_names_and_versions_are_packages(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a package"):
        packages.name_of(name)
    assert packages.name_of("Scikit_Learn[extra]>=1.2,<2") == "scikit-learn"


@pytest.mark.e2e
async def test_a_package_is_fetched_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        folder = await packages.fetch(["iniconfig"])
    except ConfigError as exc:
        pytest.skip(f"no package index: {exc}")
    before = (folder / "iniconfig").stat().st_ino
    assert (await packages.fetch(["iniconfig"])) == folder and (folder / "iniconfig").stat().st_ino == before
    with pytest.raises(ConfigError, match="cannot be had"):
        await packages.fetch(["agentkit-no-such-package"])
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


@pytest.mark.e2e
async def test_many_mixed_runs_leave_nothing(backend: Backend, tmp_path: Path) -> None:
    """Crashes, time-outs, floods, forks, shells: the tree stays small, the descriptors few."""
    codes = (
        *(
            "x = 1",
            "x",
            "1 / 0",
            "import os; os._exit(1)",
            "import ctypes; ctypes.string_at(0)",
            "print('y' * 10**5)",
        ),
        *(
            "import os\nif os.fork() == 0:\n  os.setsid()\n  import time; time.sleep(600)",
            "raise SystemExit(3)",
        ),
    )
    descriptors = len(os.listdir("/proc/self/fd"))
    async with Sandbox(tmp_path / "work", backend=backend, timeout=5) as box:
        box.warm_up("wave")
        runs: list[Execution] = []
        for n in range(200):
            runs.append(await box.run(codes[n % len(codes)]))
            if n % 40 == 0:
                runs.append(await box.run("while True: pass", timeout=0.1))
                runs.append(await box.shell("sleep 60", timeout=0.1))
        assert (await box.run("6 * 7")).result == "42"
        assert box._process is not None and len(box._process.tree()) < 40
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 2
