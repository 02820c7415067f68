"""How a worker is started: what its interpreter needs to see, its environment, its plan, its command."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import py_compile
import resource
import secrets
import site
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentkit.errors import SandboxUnavailable
from agentkit.sandbox import detect, docker
from agentkit.sandbox.execution import Limits
from agentkit.sandbox.inside import confine, start, supervise

_INSIDE = Path(start.__file__ or supervise.__file__).parent  # imported here so that their bytecode is cached
_ETC = ("/etc/ld.so.cache", "/etc/localtime", "/etc/fonts", "/etc/alternatives")
_PROC = (
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/filesystems",
    "/sys/devices/system/cpu",
)
_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/dev/random")
_OPEN_FILES = 256
_ENGINE_VARIABLES = frozenset(
    "PATH HOME DOCKER_HOST DOCKER_CONTEXT DOCKER_CONFIG DOCKER_TLS_VERIFY DOCKER_CERT_PATH XDG_RUNTIME_DIR "
    "CONTAINER_HOST AGENTKIT_SANDBOX_IMAGE".split()
)
SANDBOX_UIDS = range(61_184, 65_520)  # nobody's: systemd, too, takes its dynamic uids from here
_OF_A_PYTHON = frozenset(("bin", "etc", "include", "lib", "lib64", "libexec", "man", "pyvenv.cfg", "share"))
_HARMLESS = frozenset((".gitignore", ".lock", "CACHEDIR.TAG", "BUILD", "conda-meta", "compiler_compat"))


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python and what of the file system it needs, /usr aside."""

    executable: str
    visible: tuple[str, ...]
    paths: tuple[str, ...]  # sys.path entries that its isolated mode leaves out: the user's own site-packages
    boot: str | None = None  # does for it, in less time, what `site` would


@functools.cache
def inspect_interpreter(python: str) -> Interpreter:
    """Find out what *python* needs to see.

    Raises:
        SandboxUnavailable: it does not run.
    """
    _compile_inside()
    boot = None
    if python == sys.executable:
        boot = _boot_without_site()
        prefixes = [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix]
        user_site = site.getusersitepackages() if site.ENABLE_USER_SITE else ""
    else:
        report = (
            "import json, site, sys; print(json.dumps([[sys.prefix, sys.base_prefix, sys.exec_prefix, "
            "sys.base_exec_prefix], site.getusersitepackages() if site.ENABLE_USER_SITE else '']))"
        )
        try:
            done = subprocess.run(
                [python, "-c", report], capture_output=True, cwd="/", check=True, timeout=30
            )
            prefixes, user_site = json.loads(done.stdout)
        except (OSError, subprocess.SubprocessError, ValueError) as exc:
            raise SandboxUnavailable(
                f"The sandbox's interpreter {python!r} does not run ({exc}); pass the path of a Python."
            ) from exc
    needed: set[str] = set()
    for prefix in prefixes:
        if set(os.listdir(prefix)) <= _OF_A_PYTHON | _HARMLESS:
            needed.add(prefix)
        else:  # `python -m venv .` puts it beside a project's files
            needed.update(os.path.join(prefix, name) for name in ("bin", "lib", "lib64", "pyvenv.cfg"))
    path = os.path.abspath(python)
    for _ in range(20):  # every link on the way to the executable
        needed.add(path)
        if not os.path.islink(path):
            break
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    needed.add(os.path.realpath(path))
    if user_site and os.path.isdir(user_site):
        needed.add(user_site)
    visible: list[str] = []
    for path in sorted(p for p in needed if os.path.exists(p) and not f"{p}/".startswith("/usr/")):
        if not any(path.startswith(above + "/") for above in visible):
            visible.append(path)
    return Interpreter(
        os.path.abspath(python), tuple(visible), (user_site,) if user_site in needed else (), boot
    )


def _compile_inside() -> None:
    """Have bytecode of what runs inside, also where Python was told to write none: each start would compile it."""
    for source in _INSIDE.glob("*.py"):
        info = source.stat()
        fresh = b"\0\0\0\0" + struct.pack("<II", int(info.st_mtime) & 0xFFFFFFFF, info.st_size & 0xFFFFFFFF)
        with contextlib.suppress(OSError, py_compile.PyCompileError):
            try:
                with open(importlib.util.cache_from_source(str(source)), "rb") as file:
                    head = file.read(16)
            except FileNotFoundError:
                head = b""
            if head != importlib.util.MAGIC_NUMBER + fresh:
                py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)


# their "import" lines change nothing that the code would miss; what an editable install points to is not visible
_NEEDLESS_PTH = ("distutils-precedence.pth", "_virtualenv.pth", "__editable__")


def _boot_without_site() -> str | None:
    """What to run in this Python, started with -S, for it to be as if `site` had been there; None: have `site`."""
    extra: list[str] = []
    for directory in site.getsitepackages():
        if not os.path.isdir(directory):
            continue
        extra.append(directory)
        for name in sorted(os.listdir(directory)):
            if name.endswith(".pth") and not name.startswith("."):
                with open(os.path.join(directory, name), encoding="utf-8-sig", errors="replace") as file:
                    lines = [line.strip() for line in file]
                if any(line.startswith(("import ", "import\t")) for line in lines):
                    if not name.startswith(_NEEDLESS_PTH):
                        return None
                    continue
                paths = (os.path.join(directory, line) for line in lines if line and line[0] != "#")
                extra += [path for path in paths if os.path.exists(path)]
    return (
        f"sys.path += {list(dict.fromkeys(extra))!r}; sys.prefix, sys.exec_prefix = {sys.prefix!r}, "
        f"{sys.exec_prefix!r}; import builtins, _sitebuiltins as s; builtins.help = s._Helper(); "
        "builtins.exit, builtins.quit = s.Quitter('exit', ''), s.Quitter('quit', ''); "
    )


@dataclass(frozen=True, slots=True)
class Launch:
    """A command that becomes a confined worker, and what to say about it."""

    command: Sequence[str]
    environment: Mapping[str, str]
    data: Sequence[
        bytes
    ]  # to be readable on descriptors, whose numbers go into the command at "{0}", "{1}", …
    uid: int | None  # the workspace must belong to it
    detail: str
    limits: tuple[int, int] | None = None  # bytes of memory and tasks, for a control group


def plan_launch(
    backend: str, interpreter: Interpreter, workspace: Path, scratch: Path | None, limits: Limits
) -> Launch:
    """Decide how to start a worker of *backend*; *scratch* is its /tmp where it has no mount namespace."""
    root = os.geteuid() == 0
    uid: int | None = None
    if backend == "docker":
        return _in_container(interpreter, workspace, limits)
    if backend == "monty":
        boot = (
            f"import sys; sys.path.insert(0, {str(_INSIDE.parent)!r}); from inside import calculate; "
            f"calculate.serve({os.getpid()}, {limits.memory})"
        )
        command = [sys.executable, "-I", "-B", "-c", boot]
        return Launch(command, {"LANG": "C.UTF-8"}, (), None, detect.detect().monty.detail)
    covered: dict[str, list[str]] = {}
    cover_required = False
    shared_uid = True
    if backend == "bwrap":
        uid = _new_uid() if root else None
        detail = detect.detect().bwrap.detail
    elif backend == "landlock":
        detail = detect.detect().landlock.detail
        needed = [*interpreter.visible, str(_INSIDE), str(workspace), str(scratch)]
        if root:
            closed = _closed_ancestors(needed)
            can_drop = all(
                map(detect.has_capability, (detect.CAP_SETUID, detect.CAP_SETGID, detect.CAP_CHOWN))
            ) and all(_others_may_read(path) for path in interpreter.visible)
            if can_drop and (not closed or detect.has_capability(detect.CAP_SYS_ADMIN)):
                uid, covered, cover_required, shared_uid = _new_uid(), closed, bool(closed), False
                detail += ", an unprivileged uid"
            else:
                detail += (
                    ", uid 0 without capabilities (no other uid could read this Python and the workspace)"
                )
        covered = _with_home(covered, needed)
    else:
        detail = "nothing: the code has this user's files, network and keys"

    inside = backend == "bwrap"
    work = "/workspace" if inside else str(workspace)
    temporary = "/tmp" if inside else str(scratch)
    library = "/run/agentkit" if inside else str(_INSIDE.parent)
    landlock = None
    if backend == "landlock":
        read = [*_SYSTEM, *_ETC, *_PROC, str(_INSIDE), *interpreter.visible]
        landlock = (read, [work, temporary], list(_DEVICES))
    plan: dict[str, Any] = {
        "host": 0 if inside else os.getpid(),
        "covered": covered,
        "cover_required": cover_required,
        "scratch": None if inside else temporary,
        "uid": uid,
        "workspace": work,
        "paths": list(interpreter.paths),
        "landlock": landlock,
        "shared_uid": shared_uid,
        "own_signals": shared_uid and confine.landlock_abi() < 6,
        "rlimits": _rlimits(limits, private=uid is not None or (inside and _namespace_counts_processes())),
    }
    # isolated: neither the workspace nor anything of the user's may be imported before we are confined
    boot = (
        f"import sys; {interpreter.boot or ''}sys.path.insert(0, {library!r}); from inside import start; "
        f"start.start({plan!r})"
    )
    fast = ["-S"] if interpreter.boot else []
    command = [interpreter.executable, "-I", *fast, "-B", "-c", boot]
    environment = _environment(interpreter, work, temporary)
    # above those of the watch, which says what happened; three processes are ours
    group = (limits.total_memory + limits.total_memory // 8, limits.processes + 16)
    if not inside:
        return Launch(command, environment, (), uid, detail, group)
    passwd = f"sandbox:x:{uid or os.geteuid()}:{uid or os.getegid()}:sandbox:/workspace:/bin/sh\n"
    data = (
        confine.filter_program(namespaces=True),
        passwd.encode(),
        b"127.0.0.1 localhost sandbox\n::1 localhost\n",
    )
    return Launch(
        [*_bwrap(interpreter, workspace, environment, drop=uid is not None), *command],
        {},
        data,
        uid,
        detail,
        group,
    )


def _in_container(interpreter: Interpreter, workspace: Path, limits: Limits) -> Launch:
    root = os.geteuid() == 0
    engine, probe = docker.find_engine()
    if not engine:
        raise SandboxUnavailable(f"The sandbox backend 'docker' does not work here: {probe.detail}.")
    uid = _new_uid() if root else None
    own = inspect_interpreter(interpreter.executable).visible  # the container has another Python
    readable = [path for path in interpreter.visible if path not in own]
    environment = _environment(interpreter, "/workspace", "/tmp")
    del environment["PATH"]
    plan: dict[str, Any] = {
        "host": 0,
        "uid": None,
        "workspace": "/workspace",
        "paths": [],
        "landlock": None,
        "own_signals": False,
        "rlimits": _rlimits(limits, private=root),
    }
    user = (uid, uid) if uid is not None else (os.geteuid(), os.getegid())
    command = docker.container_command(engine, workspace, _INSIDE, readable, environment, user, limits, plan)
    # what the engine's client needs to find the engine
    kept = {name: value for name, value in os.environ.items() if name in _ENGINE_VARIABLES}
    return Launch(command, kept, (), uid, probe.detail)


def _bwrap(
    interpreter: Interpreter, workspace: Path, environment: Mapping[str, str], *, drop: bool
) -> list[str]:
    path = detect.find_bwrap()
    assert path is not None
    command = [path, *detect.NAMESPACES, "--hostname", "sandbox", "--clearenv"]
    if drop:
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user"]
    for name, value in environment.items():
        command += ["--setenv", name, value]
    command += ["--size", str(256 << 20), "--perms", "1777", "--tmpfs", "/tmp"]
    binds = {source: source for source in interpreter.visible}
    binds[str(_INSIDE)] = "/run/agentkit/inside"
    # bwrap makes the directories above a mount 0700: another uid could not pass
    for directory in sorted({"/etc", *(str(p) for target in binds.values() for p in Path(target).parents)}):
        if directory not in ("/", "/tmp"):
            command += ["--perms", "0755", "--dir", directory]
    command += ["--ro-bind", "/usr", "/usr"]
    for directory in _SYSTEM[1:]:
        if os.path.islink(directory):
            command += ["--symlink", os.readlink(directory), directory]
        else:
            command += ["--ro-bind-try", directory, directory]
    for file in _ETC:
        command += ["--ro-bind-try", file, file]
    command += ["--seccomp", "{0}"]
    for descriptor, file in (("{1}", "/etc/passwd"), ("{2}", "/etc/hosts")):
        command += ["--perms", "0644", "--ro-bind-data", descriptor, file]
    # root's files under /proc/sys stay writable for whoever is uid 0 outside, whatever the namespace
    command += ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev"]
    command += ["--size", str(128 << 20), "--perms", "1777", "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    for source, target in binds.items():
        command += ["--ro-bind", source, target]
    return [*command, "--bind", str(workspace), "/workspace", "--chdir", "/", "--remount-ro", "/", "--"]


def _environment(interpreter: Interpreter, work: str, temporary: str) -> dict[str, str]:
    """All that the code sees of any environment: nothing of the user's."""
    threads = str(min(4, os.cpu_count() or 1))
    return {
        "PATH": f"{os.path.dirname(interpreter.executable)}:/usr/local/bin:/usr/bin:/bin",
        "HOME": work,
        "USER": "sandbox",
        "LOGNAME": "sandbox",
        "TMPDIR": temporary,
        "XDG_CACHE_HOME": f"{temporary}/.cache",
        "XDG_CONFIG_HOME": f"{temporary}/.config",
        "MPLCONFIGDIR": f"{temporary}/.matplotlib",
        "MPLBACKEND": "agg",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": threads,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "MALLOC_ARENA_MAX": "2",
    }


def _rlimits(limits: Limits, *, private: bool) -> list[tuple[int, int]]:
    processes = limits.processes
    if not private:  # the limit counts all of this user's
        processes += _tasks_of(os.geteuid())
    return [
        (resource.RLIMIT_DATA, limits.memory),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_FSIZE, limits.file),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ]


def _namespace_counts_processes() -> bool:
    """Since Linux 5.14 RLIMIT_NPROC counts within a user namespace."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int("".join(filter(str.isdigit, minor)) or 0)) >= (5, 14)


def _tasks_of(uid: int) -> int:
    tasks = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == uid:
                    tasks += os.stat(f"/proc/{entry.name}/task").st_nlink - 2
            except OSError:
                continue
    return tasks


def _new_uid() -> int:
    return secrets.choice(SANDBOX_UIDS)


def _closed_ancestors(paths: Iterable[str]) -> dict[str, list[str]]:
    """For each highest directory that other users may not pass, the *paths* that lie below it."""
    closed: dict[str, list[str]] = {}
    for path in paths:
        for ancestor in reversed(Path(path).parents):
            if not ancestor.stat().st_mode & 0o001:
                closed.setdefault(str(ancestor), []).append(path)
                break
    return closed


def _with_home(covered: dict[str, list[str]], needed: Sequence[str]) -> dict[str, list[str]]:
    """Cover the home directory, too: Landlock keeps files from being opened, not from being seen to exist."""
    home = os.path.realpath(os.path.expanduser("~"))
    if not os.path.isdir(home) or home in ("/", "/usr", "/tmp", *needed):
        return covered
    if any(f"{home}/".startswith(f"{above}/") for above in covered):
        return covered
    return {**covered, home: [path for path in needed if path.startswith(f"{home}/")]}


def _others_may_read(path: str) -> bool:
    mode = os.stat(path).st_mode
    return bool(mode & 0o004) and (not os.path.isdir(path) or bool(mode & 0o001))
