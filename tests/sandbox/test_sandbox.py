"""The sandbox by its public door, with real processes: what it gives, and what it does not let through."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from agentkit.errors import ConfigError, SandboxUnavailable
from agentkit.sandbox import Backend, Detection, Limits, Probe, Sandbox, detect

pytestmark = pytest.mark.anyio


def need(backend: Backend) -> None:
    probe = detect().bwrap if backend == "bwrap" else detect().landlock
    if not probe.ok:
        pytest.skip(f"{backend}: {probe.detail}; {probe.fix}")


@pytest.fixture(params=["bwrap", pytest.param("landlock", marks=pytest.mark.e2e)])
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    need(chosen)
    return chosen


@pytest.fixture
async def box(backend: Backend, tmp_path: Path) -> AsyncIterator[Sandbox]:
    limits = Limits(memory=512 << 20, disk=64 << 20, file=32 << 20, flood=8 << 20, output=6000)
    async with Sandbox(tmp_path / "work", backend=backend, timeout=20, limits=limits) as box:
        yield box


# ------------------------------------------------------------------ what it gives


async def test_variables_last_and_the_last_expression_is_the_result(box: Sandbox) -> None:
    assert (await box.run("import math\nx = 41")).result is None
    run = await box.run("x += 1\nprint('é 你好')\nx * 2")
    assert (run.ok, run.stdout, run.result) == (True, "é 你好\n", "84")
    assert (await box.run("await __import__('asyncio').sleep(0, 'slept')")).result == "'slept'"


async def test_an_error_names_its_line_and_shows_no_frame_of_ours(box: Sandbox) -> None:
    run = await box.run("def f():\n    return 1 / 0\n\nf()")
    assert run.error is not None and run.status == "error"
    assert (run.error.name, run.error.value, run.error.line) == ("ZeroDivisionError", "division by zero", 2)
    assert "return 1 / 0" in run.error.traceback and "worker" not in run.error.traceback
    run = await box.run("x = 1\ny = = 2")
    assert run.error is not None and (run.error.name, run.error.line) == ("SyntaxError", 2)


async def test_output_of_code_and_of_its_children_is_streamed_as_it_comes(box: Sandbox) -> None:
    first = anyio.Event()
    seen: list[tuple[str, str]] = []

    def watch(stream: str, text: str) -> None:
        seen.append((stream, text))
        first.set()

    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            code = "import os, sys, time\nprint('one')\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
            result = await box.run(
                code + "os.system('echo two'); print('three', file=sys.stderr)", on_output=watch
            )
            assert (result.stdout, result.stderr) == ("one\ntwo\n", "three\n")

        tasks.start_soon(run)
        await first.wait()
        assert seen == [("stdout", "one\n")]
        (box.workspace / "go").touch()
    assert ("stderr", "three\n") in seen


async def test_figures_and_files_come_back_as_artifacts(box: Sandbox) -> None:
    pytest.importorskip("matplotlib")
    run = await box.run(
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nplt.figure(); plt.plot([1]); "
        "plt.savefig('own.svg')\nopen('data.csv', 'w').write('a,b\\n')"
    )
    assert run.error is None and run.stderr == ""
    assert [(a.name, a.mime) for a in run.artifacts] == [
        ("data.csv", "text/csv"),
        ("figure-1.png", "image/png"),
        ("own.svg", "image/svg+xml"),
    ]
    for artifact in run.artifacts:
        assert artifact.path is not None and os.stat(artifact.path).st_size == artifact.size > 0
    assert [a.name for a in (await box.run("plt.plot([3])")).artifacts] == ["figure-2.png"]
    assert (await box.run("1")).artifacts == ()


async def test_reset_forgets_variables_and_keeps_files(box: Sandbox) -> None:
    await box.run("x = 1; open('f', 'w').close()")
    await box.reset()
    run = await box.run("import os; ('x' in globals(), os.listdir())")
    assert (run.result, run.state_lost) == ("(False, ['f'])", False)


async def test_a_chosen_python_brings_its_own_packages(backend: Backend) -> None:
    other = "/usr/bin/python3"
    if not os.access(other, os.X_OK):
        pytest.skip("no second Python")
    async with Sandbox(backend=backend, python=other) as box:
        assert (await box.run("import sys; sys.prefix")).result == "'/usr'"


# ------------------------------------------------------------------ limits


async def test_time_out_interrupts_and_keeps_the_variables(box: Sandbox) -> None:
    await box.run("x = 1")
    run = await box.run("import time\ntime.sleep(1000)", timeout=0.2)
    assert (run.status, run.state_lost) == ("timeout", False)
    assert run.error is not None and run.error.line == 2 and "worker" not in run.error.traceback
    assert (await box.run("x")).result == "1"


@pytest.mark.e2e  # it takes the two seconds that the code is given
async def test_code_that_does_not_yield_to_the_interrupt_is_killed(box: Sandbox) -> None:
    run = await box.run(
        "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, {2})\nwhile True: time.sleep(9)",
        timeout=0.1,
    )
    assert (run.status, run.state_lost) == ("timeout", True)
    run = await box.run("'x' in globals()")
    assert (run.result, run.state_lost) == ("False", False)  # told once


async def test_cancelling_a_run_stops_the_code_and_leaves_the_sandbox_usable(box: Sandbox) -> None:
    await box.run("x = 1")
    with anyio.move_on_after(0.1):
        await box.run("while True: pass")
    assert (await box.run("x")).result == "1"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os._exit(3)", "exit status 3"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
        ("import os; os.closerange(0, 300)", "exit"),
        ("import os\nfor fd in range(3, 20):\n try: os.write(fd, b'\\xff' * 99)\n except OSError: pass", ""),
    ],
)
async def test_a_broken_interpreter_is_replaced_and_that_is_said(box: Sandbox, code: str, said: str) -> None:
    run = await box.run(code)
    assert (run.status, run.state_lost) == ("crashed", True)
    assert said in run.detail
    assert (await box.run("1 + 1")).result == "2"


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.stdout.close(); sys.stderr = None",
        "import os; os.close(1); os.close(2)",
        "import sys; sys.exit(3)",
        "def f(): return f()\nf()",
        "class A:\n  def __repr__(self): raise ValueError\nA()",
        "input('? ')",
        "(" * 20000 + ")" * 20000,
        "x = 'a\0b'",
    ],
)
async def test_what_python_survives_the_state_survives(box: Sandbox, code: str) -> None:
    await box.run("kept = 7")
    await box.run(code)
    assert (await box.run("print('out'); kept")).result == "7"
    assert (await box.run("print('out')")).stdout == "out\n"


async def test_floods_of_output_are_cut_in_the_middle_and_stopped(box: Sandbox) -> None:
    run = await box.run("print('first'); print('x' * 20000); print('last')")
    assert run.ok and run.stdout.startswith("first\n") and run.stdout.endswith("last\n")
    assert run.truncated > 13000 and f"{run.truncated} characters left out" in run.stdout
    run = await box.run("while True: print('y' * 100000)")
    assert (run.status, run.state_lost) == ("output", False)
    assert len(run.stdout) < 7000


@pytest.mark.e2e
async def test_bombs_are_bounded(box: Sandbox) -> None:
    run = await box.run("blocks = [bytearray(64 << 20) for _ in range(40)]")
    assert (run.status, run.state_lost) == ("memory", False)
    run = await box.run(
        "import os, time\nn = 0\ntry:\n  while n < 300:\n    if os.fork() == 0: time.sleep(60); os._exit(0)\n"
        "    n += 1\nexcept BlockingIOError: print('limit')\nn"
    )
    assert run.stdout == "limit\n" or run.status == "crashed"
    await box.reset()
    run = await box.run("with open('big', 'wb') as f:\n  for _ in range(40): f.write(bytes(1 << 20))")
    assert run.error is not None and run.error.name == "OSError"
    run = await box.run("for i in range(9):\n  with open(f'b{i}', 'wb') as f: f.write(bytes(16 << 20))")
    assert run.status == "disk"
    assert (await box.run("import os\nfor n in os.listdir(): os.remove(n)")).ok


# ------------------------------------------------------------------ what it does not let through

ESCAPES = {
    "read the password file": "open('/etc/shadow').read()",
    "read a secret of the host": "open('@secret').read()",
    "read it through a symlink in the workspace": "import os; os.symlink('@secret', 'l'); open('l').read()",
    "read it through /proc": "import os; open(f'/proc/{os.getppid()}/root@secret').read()",
    "read the environment of the host": "open('/proc/@pid/environ').read()",
    "write outside the workspace": "open('@outside/new', 'w')",
    "write beside the workspace": "open('../new', 'w')",
    "delete outside the workspace": "import os; os.remove('@secret')",
    "change modes": "import os\nos.chmod('@secret', 0o777)\nassert os.stat('@secret').st_mode & 1",
    "connect to the host": "import socket; socket.create_connection(('127.0.0.1', @port), 2)",
    "write to a socket": "import socket; socket.socketpair(type=2)[0].sendto(b'', '@outside/socket')",
    "reach the machine's hypervisor": "import socket; socket.socket(40, 1)",
    "kill a process of the host": "import os; os.kill(@pid, 9)",
    "limit a process of the host": "import resource; resource.prlimit(@pid, resource.RLIMIT_CPU, (1, 1))",
    "slow a process of the host": "import os; os.setpriority(os.PRIO_PROCESS, @pid, 19)",
    "trace a process of the host": "import ctypes; assert ctypes.CDLL(None).ptrace(16, @pid, 0, 0) == 0",
    "become root": "import os; os.setuid(0); assert os.getuid() == 0; open('/etc/shadow')",
    "make a namespace": "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "mount": "import ctypes; assert ctypes.CDLL(None).mount(b'none', b'.', b'tmpfs', 0, None) == 0",
    "set set-uid": "import os\nos.mkdir('s')\nos.chmod('s', 0o4755)\nassert os.stat('s').st_mode & 2048",
    "set the core pattern": "open('/proc/sys/kernel/core_pattern', 'w')",
    "hide memory from the limits": "import os; os.memfd_create('x')",
    "share memory with the host": "import ctypes; assert ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0",
    "keep a privilege": "assert 'CapEff:\\t0000000000000000' not in open('/proc/self/status').read()",
}


@pytest.fixture
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Things of the host that code must not reach, and whose state shows whether it did."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret").write_text("SECRET")
    (outside / "secret").chmod(0o644)
    outside.chmod(0o777)
    listener = socket.create_server(("127.0.0.1", 0))
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    unix.bind(str(outside / "socket"))
    (outside / "socket").chmod(0o777)
    victim = subprocess.Popen(["sleep", "600"], env={"TOKEN": "SECRET"})
    yield {
        "@secret": str(outside / "secret"),
        "@outside": str(outside),
        "@port": str(listener.getsockname()[1]),
        "@pid": str(victim.pid),
    }
    assert victim.poll() is None
    assert {p.name for p in outside.iterdir()} == {"secret", "socket"}
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()
    unix.setblocking(False)
    with pytest.raises(BlockingIOError):
        unix.recv(1)
    listener.close()
    unix.close()
    victim.kill()
    victim.wait()


async def test_no_escape_works(box: Sandbox, host: dict[str, str]) -> None:
    for name, code in ESCAPES.items():
        for mark, value in host.items():
            code = code.replace(mark, value)
        run = await box.run(code)
        assert run.status in ("error", "crashed"), f"it can {name}: {run}"


async def test_the_environment_of_the_user_stays_outside(backend: Backend) -> None:
    code = (
        "import anyio, os\nfrom agentkit.sandbox import Sandbox\nasync def main():\n"
        f"  async with Sandbox(backend={backend!r}) as box:\n"
        "    run = await box.run('import os; print(os.environ, open(\"/proc/self/environ\").read())')\n"
        "    print(run.ok, 'SECRET' in run.stdout)\nanyio.run(main)"
    )
    env = {**os.environ, "API_KEY": "SECRET"}
    done = await anyio.run_process([sys.executable, "-c", code], env=env)
    assert done.stdout == b"True False\n"


async def test_what_the_code_leaves_in_the_workspace_is_not_followed_out_of_it(box: Sandbox) -> None:
    run = await box.run("import os; os.symlink('/etc', 'd'); os.symlink('/etc/passwd', 'f')")
    assert (run.status, run.artifacts) == ("ok", ())
    assert (box.workspace / "d").is_symlink()


async def test_workspace_modules_do_not_run_outside_the_sandbox(backend: Backend, tmp_path: Path) -> None:
    for module in ("ctypes", "os", "worker", "inside", "resource", "struct"):
        (tmp_path / f"{module}.py").write_text("open('ran', 'w')\nraise SystemExit('taken over')")
    async with Sandbox(tmp_path, backend=backend) as box:
        assert (await box.run("1 + 1")).result == "2"
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------ the end of it


def directories() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("agentkit-*"))


def processes_of(marker: Path) -> list[int]:
    """The processes that have *marker* among the files they hold open."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                fds = [os.readlink(fd) for fd in (directory / "fd").iterdir()]
            except OSError:
                continue
            if any(Path(fd).name == marker.name for fd in fds):
                found.append(int(directory.name))
    return found


DAEMON = """
import os, time
held = open('{marker}', 'w')
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
os.wait()
"""


async def test_closing_leaves_no_process_and_no_directory(backend: Backend) -> None:
    before = directories()
    async with Sandbox(backend=backend) as box:
        marker = box.workspace / f"held-{os.urandom(8).hex()}"
        await box.run(DAEMON.format(marker=marker.name))
        assert len(processes_of(marker)) == 2
        (await box.run("import os\nos.makedirs('a/b'); open('a/b/c', 'w'); os.chmod('a/b', 0o300)"))
    assert processes_of(marker) == []
    assert directories() <= before


async def test_a_killed_host_leaves_no_process(backend: Backend, tmp_path: Path) -> None:
    marker = tmp_path / f"held-{os.urandom(8).hex()}"
    code = (
        "import anyio, pathlib, sys\nfrom agentkit.sandbox import Sandbox\nasync def main():\n"
        f"  async with Sandbox(pathlib.Path({str(tmp_path)!r}), backend={backend!r}) as box:\n"
        f"    await box.run({DAEMON.format(marker=marker.name)!r})\n    print('up', flush=True)\n"
        "    await box.run('while True: pass')\nanyio.run(main)"
    )
    host = await anyio.open_process([sys.executable, "-c", code], stderr=None)
    assert host.stdout is not None and (await host.stdout.receive()).startswith(b"up")
    assert len(processes_of(marker)) == 2
    held = [os.pidfd_open(pid) for pid in processes_of(marker)]
    host.kill()
    await host.wait()
    await host.aclose()
    with anyio.fail_after(10):
        for fd in held:
            await anyio.wait_readable(fd)
            os.close(fd)


async def test_a_sandbox_started_in_a_thread_outlives_the_thread(backend: Backend) -> None:
    from anyio.from_thread import start_blocking_portal

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Sandbox(backend=backend)) as box,
    ):

        def start() -> None:
            portal.call(box.run, "x = 1")

        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
        assert portal.call(box.run, "x").result == "1"


async def test_files_made_inside_belong_to_whoever_owns_the_workspace(
    backend: Backend, tmp_path: Path
) -> None:
    (tmp_path / "given").write_text("1")
    async with Sandbox(tmp_path, backend=backend) as box:
        assert (await box.run("open('given', 'a').write('2'); open('made', 'w').close()")).ok
        if os.geteuid() == 0:
            assert (tmp_path / "made").stat().st_uid != 0
    assert {(tmp_path / name).stat().st_uid for name in (".", "given", "made")} == {os.geteuid()}


# ------------------------------------------------------------------ what cannot be had


async def test_a_named_backend_that_is_missing_is_refused_with_the_fix() -> None:
    none = Detection(
        Probe(False, "bwrap is not installed", "install bubblewrap"), Probe(False, "no Landlock", "x")
    )
    for backend in ("auto", "bwrap", "landlock"):
        with pytest.raises(SandboxUnavailable, match=r"install bubblewrap|To fix it, x"):
            none.require(backend)
    assert Detection(none.bwrap, Probe(True, "")).require("auto") == "landlock"
    with pytest.raises(SandboxUnavailable, match="not installed"):
        Detection(none.bwrap, Probe(True, "")).require("bwrap")
    with pytest.raises(ConfigError, match="lxc"):
        Sandbox(backend="lxc")  # type: ignore[arg-type]


async def test_unsafe_local_runs_only_by_name_and_says_so(tmp_path: Path) -> None:
    async with Sandbox(tmp_path, backend="unsafe-local") as box:
        assert (await box.run("import os; os.getcwd()")).result == repr(str(tmp_path))
        assert "nothing" in box.detail


async def test_a_python_that_does_not_run_is_named_in_the_error(backend: Backend) -> None:
    with pytest.raises(SandboxUnavailable, match="/nowhere/python"):
        async with Sandbox(backend=backend, python="/nowhere/python"):
            pass


async def test_an_error_in_the_body_leaves_as_it_is(backend: Backend) -> None:
    with pytest.raises(KeyError):
        async with Sandbox(backend=backend) as box:
            await box.run("1")
            raise KeyError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
