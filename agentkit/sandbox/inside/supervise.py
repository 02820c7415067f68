"""A trusted parent for a worker without a PID namespace: it ends whatever the worker leaves behind."""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # signal itself takes milliseconds to import
import os
import time

from .confine import cover, prctl

_SET_DEATH_SIGNAL, _SET_SUBREAPER = 1, 36


def fork_worker(host: int, covered: dict[str, list[str]], required: bool, scratch: str | None) -> None:
    """Return in a new child, to become the worker. The parent stays here; once the worker or the host process
    is gone it kills every descendant, removes *scratch*, and exits with the worker's status."""
    prctl(_SET_SUBREAPER, 1)
    die_with(host, signal.SIGTERM)
    if covered:
        cover(covered, required)
    waited = {signal.SIGTERM, signal.SIGCHLD}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    me = os.getpid()
    worker = os.fork()
    if worker == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        stay_with(me)
        return

    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, 64)
    status = 143
    while True:
        number = signal.sigwait(waited)
        ended = _reap()
        if worker in ended:
            code = os.waitstatus_to_exitcode(ended[worker])
            status = code if code >= 0 else 128 - code
            break
        if number == signal.SIGTERM:
            break
    while _kill_children():
        time.sleep(0.002)
    if scratch:
        import shutil  # takes long to import; nobody waits for it here

        shutil.rmtree(scratch, ignore_errors=True)
    os._exit(status)


def stay_with(parent: int) -> None:
    """Die when *parent* does; to be repeated after a change of uid, which forgets it."""
    die_with(parent, signal.SIGKILL)


def die_with(parent: int, number: int) -> None:
    """Be sent that signal when *parent* ends."""
    prctl(_SET_DEATH_SIGNAL, number)
    if os.getppid() != parent:
        os._exit(1)


def _reap() -> dict[int, int]:
    ended: dict[int, int] = {}
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return ended
            ended[pid] = status
    except ChildProcessError:
        return ended


def _kill_children() -> bool:
    """Kill all that there are now, theirs come to us; true until none is left."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        children = [int(pid) for pid in file.read().split()]
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    _reap()
    return bool(children)
