"""The backends that are used only when named: containers (with a stand-in for the engine), and Monty."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from agentkit.errors import SandboxUnavailable
from agentkit.sandbox import Detection, Limits, Probe, Sandbox, detect
from agentkit.sandbox.detect import find_bwrap

pytestmark = pytest.mark.anyio

# what `docker run` would do, by bubblewrap: the mounts, the user, the program
ENGINE = """#!{python}
import csv, json, os, pathlib, sys
words = sys.argv[1:]
if words[0] != "run":
    with open({log!r}, "a") as log: log.write(json.dumps(words) + "\\n")
    sys.exit(0)
with open({log!r}, "a") as log: log.write(json.dumps(words) + "\\n")
root = os.geteuid() == 0
own = ["--unshare-" + what for what in ("ipc", "pid", "net", "uts")] if root else ["--unshare-all"]
command = [{bwrap!r}, *own, "--die-with-parent", "--clearenv", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
for path in ("/usr", "/bin", "/lib", "/lib64"):
    command += ["--ro-bind-try", path, path]
flags = {{"-i", "--rm", "--read-only"}}
at = 1
while words[at].startswith("-"):
    word, value = words[at], words[at + 1]
    if word in flags:
        at += 1
        continue
    if word == "--mount":
        fields = dict(field.partition("=")[::2] for field in next(csv.reader([value])))
        for above in reversed(pathlib.Path(fields["target"]).parents):
            if root and str(above) != "/": command += ["--perms", "0755", "--dir", str(above)]
        command += ["--ro-bind" if "readonly" in fields else "--bind", fields["source"], fields["target"]]
    elif word == "--env":
        command += ["--setenv", *value.split("=", 1)]
    elif word == "--user":
        user, group = value.split(":")
        drop = ["/usr/bin/setpriv", "--reuid", user, "--regid", group, "--clear-groups", "--bounding-set=-all"]
    elif word == "--entrypoint":
        program = value
    at += 2
if root: command += ["--cap-drop", "ALL", *(w for c in "SETUID SETGID SETPCAP".split() for w in ("--cap-add", "CAP_" + c)), *drop]
os.execvp(command[0], [*command, "/usr/bin/" + program, *words[at + 1:]])
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A `docker` on the PATH, and the file that tells how it was called."""
    if not detect().bwrap.ok or not os.access("/usr/bin/python3", os.X_OK) or not shutil.which("setpriv"):
        pytest.skip("the stand-in for an engine needs bubblewrap, setpriv and /usr/bin/python3")
    log = tmp_path / "calls"
    directory = tmp_path / "bin"
    directory.mkdir()
    (directory / "docker").write_text(ENGINE.format(python=sys.executable, log=str(log), bwrap=find_bwrap()))
    (directory / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    yield log


def calls(log: Path) -> list[list[str]]:
    """How containers were started."""
    words = [json.loads(line) for line in log.read_text().splitlines()]
    return [call for call in words if call[0] == "run"]


async def test_a_container_is_as_closed_as_an_engine_can_make_it(engine: Path, tmp_path: Path) -> None:
    limits = Limits(total_memory=1 << 30, processes=20)
    workspace = tmp_path / "a, b"
    async with Sandbox(workspace, backend="docker", limits=limits) as box:
        await box.run("1")
    words = calls(engine)[0]
    for option, value in (
        ("--network", "none"),
        ("--cap-drop", "ALL"),
        ("--security-opt", "no-new-privileges"),
        ("--pull", "never"),
        ("--memory", "1073741824"),
        ("--memory-swap", "1073741824"),
        ("--pids-limit", "36"),
        ("--tmpfs", "/tmp:rw,nosuid,nodev,size=268435456,mode=1777"),
    ):
        assert words[words.index(option) + 1] == value
    assert {"-i", "--rm", "--read-only"} <= set(words)
    assert not words[words.index("--user") + 1].startswith("0:")
    mounts = [next(csv.reader([word])) for word in words if word.startswith("type=bind")]
    assert mounts[0] == ["type=bind", f"source={workspace}", "target=/workspace"]
    assert all("readonly" in mount for mount in mounts[1:])


@pytest.mark.e2e
async def test_a_worker_in_a_container_is_like_any_other(engine: Path, tmp_path: Path) -> None:
    async with Sandbox(tmp_path / "work", backend="docker", timeout=20) as box:
        run = await box.run("x = 41\nprint('é')\nimport sys; print('to stderr', file=sys.stderr)\nx + 1")
        assert (run.ok, run.stdout, run.stderr, run.result) == (True, "é\n", "to stderr\n", "42")
        run = await box.run("import os; open('made', 'w').write('1'); os.getcwd()")
        assert (run.result, [a.name for a in run.artifacts]) == ("'/workspace'", ["made"])
        run = await box.run("import time\ntime.sleep(1000)", timeout=0.2)
        assert (run.status, run.state_lost) == ("timeout", False)
        assert (await box.run("x")).result == "41"
        run = await box.run("import os; os._exit(3)")
        assert (run.status, run.state_lost) == ("crashed", True) and "exit status 3" in run.detail
        run = await box.run("for _ in range(300): print('z' * 10000)")
        assert run.truncated > 2_000_000
        run = await box.run("print(open('/proc/self/status').read())")
        assert "Seccomp:\t2" in run.stdout and "NoNewPrivs:\t1" in run.stdout
        assert "containers" in box.detail
    assert len(calls(engine)) == 2


async def test_a_container_ends_with_the_host(engine: Path, tmp_path: Path) -> None:
    code = (
        "import anyio, pathlib\nfrom agentkit.sandbox import Sandbox\nasync def main():\n"
        f"  async with Sandbox(pathlib.Path({str(tmp_path / 'work')!r}), backend='docker') as box:\n"
        "    await box.run('1')\n    print('up', flush=True)\n    await box.run('while True: pass')\nanyio.run(main)"
    )
    host = await anyio.open_process([sys.executable, "-c", code], stderr=None)
    assert host.stdout is not None and (await host.stdout.receive()).startswith(b"up")
    name = calls(engine)[0][calls(engine)[0].index("--name") + 1]
    held = [os.pidfd_open(pid) for pid in processes_with(name)]
    assert held
    host.kill()
    await host.wait()
    await host.aclose()
    with anyio.fail_after(10):
        for fd in held:
            await anyio.wait_readable(fd)
            os.close(fd)


def processes_with(word: str) -> list[int]:
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                if word.encode() in (directory / "cmdline").read_bytes():
                    found.append(int(directory.name))
            except OSError:
                continue
    return found


async def test_an_engine_that_does_not_answer_is_refused_with_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\necho Cannot connect to the daemon >&2; exit 1\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match=r"Cannot connect to the daemon.*start its service"):
        detect().require("docker")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(SandboxUnavailable, match="neither docker nor podman is installed"):
        detect().require("docker")


async def test_what_must_be_named_is_never_chosen() -> None:
    no = Probe(False, "not here", "do this")
    with pytest.raises(SandboxUnavailable, match="name another backend"):
        Detection(no, no).require("auto")


async def test_monty_calculates_and_has_no_files() -> None:
    if importlib.util.find_spec("pydantic_monty") is None:
        with pytest.raises(SandboxUnavailable, match=r"agentkit\[monty\]"):
            detect().require("monty")
        return
    async with Sandbox(backend="monty", timeout=20) as box:
        assert (await box.run("x = 41\nprint('hi')")).stdout == "hi\n"
        assert (await box.run("x + 1")).result == "42"
        run = await box.run("y = 1\n1 / 0")
        assert run.error is not None and (run.error.name, run.error.line) == ("ZeroDivisionError", 2)
        for code in ("open('/etc/passwd').read()", "import ctypes", "import os; os.system('true')"):
            assert (await box.run(code)).status == "error"
        run = await box.run("while True: pass", timeout=0.2)
        assert (run.status, run.state_lost) == ("timeout", True)
        assert (await box.run("1 + 1")).result == "2"
        assert "not the system" in box.detail
