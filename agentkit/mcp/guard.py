"""Runs one command and leaves no process behind, even when the host is killed or the command ignores EOF.

    python -I -S guard.py HOST_PID COMMAND [ARG…]

Every stdio server is started through this file. The command gets our stdin, stdout and stderr and talks to
the host directly; we only wait. Once the command has ended, the host is gone or SIGTERM has come,
everything the command started is ended too, daemons included: as a "child subreaper" we inherit what its
children leave behind. Linux only, standard library only, and it imports little: its start is on the path of
every server's start.
"""

import ctypes
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
GRACE = (
    0.7  # seconds after EOF, and again after SIGTERM; both fit into the 2 s after which the SDK sends SIGKILL
)


def main() -> int:
    host, command = int(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake, wake_end = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(wake_end, False)
    terminated = False

    def on_signal(number: int, _frame: object) -> None:
        nonlocal terminated
        terminated = terminated or number != signal.SIGCHLD

    signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, on_signal)

    child = os.fork()
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        for number in (
            signal.SIGTERM,
            signal.SIGINT,
            signal.SIGHUP,
            signal.SIGCHLD,
            signal.SIGPIPE,
            signal.SIGXFSZ,
        ):
            signal.signal(number, signal.SIG_DFL)  # Python ignores the last two, and exec would pass that on
        try:
            os.execvp(command[0], command)
        except OSError as exc:
            os.write(2, f"{command[0]} cannot be run: {exc.strerror}\n".encode(errors="replace"))
            os._exit(127)

    # the pipes are the command's alone now: the host must see EOF when the command closes them
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)

    poller = select.poll()
    poller.register(wake, select.POLLIN)
    watched = False
    try:
        poller.register(os.pidfd_open(host), select.POLLIN)
        watched = True
    except (OSError, AttributeError):
        pass  # the host is gone already, or the kernel has no pidfd: asking for our parent then has to do
    status = None
    while status is None and not terminated and os.getppid() == host:
        poller.poll(None if watched else 500)
        _drain(wake)
        status = _reap(child)
    if status is None and not terminated:
        status = _wait(child)  # the host's end has closed the command's stdin: let it leave by itself
    # SIGKILL more than once: something may have been started just before it came
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL, signal.SIGKILL):
        if _descendants():
            _signal_all(number)
            late = _wait(child, until_alone=True)
            status = late if status is None else status
    return 0 if status is None else min(status, 255) if status >= 0 else 128 - status


def _wait(child: int, *, until_alone: bool = False) -> "int | None":
    """Wait up to GRACE seconds for the command, or for all it started; its exit status if it ended."""
    deadline = time.monotonic() + GRACE
    status = None
    while (left := deadline - time.monotonic()) > 0:
        alone = not _descendants()  # asked first: it passes over the dead, and they must be reaped
        ended = _reap(child)
        status = ended if status is None else status
        if alone if until_alone else status is not None:
            break
        time.sleep(min(left, 0.02))  # a dead host keeps its pidfd readable, so poll() would spin here
    return status


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 512):
            pass
    except BlockingIOError:
        pass


def _reap(child: int) -> "int | None":
    """Collect every process that has ended; the exit status of the command if it was among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            found = os.waitstatus_to_exitcode(status)


def _descendants() -> "list[int]":
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    # "pid (name) state ppid …", and the name may hold anything
                    state, ppid = file.read().rpartition(b")")[2].split()[:2]
            except (OSError, ValueError):
                continue  # ended while we looked
            if state not in (b"Z", b"X"):
                children.setdefault(int(ppid), []).append(int(entry))
    found: list[int] = []
    ring = [os.getpid()]
    while ring:
        ring = [pid for parent in ring for pid in children.get(parent, [])]
        found += ring
    return found


def _signal_all(number: int) -> None:
    for pid in _descendants():
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            pass  # set-uid: not ours to end


if __name__ == "__main__":
    sys.exit(main())
