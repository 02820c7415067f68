"""The template: it imports what takes long, and forks the workers, which then have it.

A worker is there from the start, for a cell that comes before all is imported. Once it is, that worker makes room
for one that has everything, unless it has run something by then; and one that dies is replaced at once.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # signal itself takes milliseconds to import
import gc
import mmap
import os
import select
import sys

from . import worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

_UNUSED = 71  # exit status of a worker that made room
_ABANDONED = 3  # workers that may die one after the other without having run anything


def serve(control: int, workspace: str, modules: Sequence[str], *, alone: bool) -> None:
    """Keep a worker at *control* until it is closed. Never returns.

    *alone*: no process but those of the sandbox can be reached, so that "all" may be killed.
    """
    child = 0

    def forward(number: int, frame: object) -> None:
        if child:
            _signal(os.killpg, child, signal.SIGINT)

    signal.signal(signal.SIGINT, forward)
    begun = mmap.mmap(-1, 4)  # the request that the worker runs or has run last
    imported, all_imported = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(all_imported)
        _become_worker(control, workspace, begun, make_room=imported)
    os.close(imported)
    _import(modules)
    os.close(all_imported)
    idle = 0
    while True:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        dead, child = child, 0
        status = os.waitstatus_to_exitcode(os.waitpid(dead, 0)[1])
        if status == worker.HOST_GONE:
            os._exit(0)
        if status != _UNUSED:
            idle = 0 if any(begun[:]) else idle + 1
            if idle > _ABANDONED:
                os._exit(70)
            _signal(os.kill, -1, signal.SIGKILL) if alone else _signal(os.killpg, dead, signal.SIGKILL)
            _reap()
            worker.send_fact(control, b"X", bytes(begun[:]), str(status if status >= 0 else 128 - status))
        begun[:] = b"\0\0\0\0"
        child = _fork()
        if child == 0:
            _become_worker(control, workspace, begun)


def _signal(kill: Callable[[int, int], None], target: int, number: int) -> None:
    try:
        kill(target, number)
    except OSError:  # it is gone, or has not made its group yet and runs nothing
        return


def _fork() -> int:
    """Fork without being told that there are threads: those of BLAS know how to handle it."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _become_worker(control: int, workspace: str, begun: Any, make_room: int | None = None) -> None:
    os.setpgid(0, 0)  # an interrupt goes to it and to what it starts, not to the template
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # or all workers would draw the same numbers
    if make_room is not None:
        waiting = select.poll()
        waiting.register(control, select.POLLIN)
        waiting.register(make_room, 0)
        if all(fd == make_room for fd, _ in waiting.poll()):
            os._exit(_UNUSED)
        os.close(make_room)

    def note(request: bytes) -> None:
        begun[:] = request

    worker.serve(control, workspace, note)


def _import(modules: Sequence[str]) -> None:
    gc.disable()
    for name in modules:
        try:
            __import__(name)
        except Exception:  # it is missing, or broken: whoever imports it will be told
            continue
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        _rehearse(pyplot)
    gc.enable()
    gc.freeze()  # what is never collected is never written to: the workers share its memory


def _rehearse(pyplot: Any) -> None:
    """Draw a figure, so that fonts and the drawing code are loaded."""
    import io

    try:
        figure, axes = pyplot.subplots()
        axes.plot([0, 1], label="1")
        axes.set_title("a")
        figure.savefig(io.BytesIO(), bbox_inches="tight")
        pyplot.close("all")
    except Exception:  # whoever draws will be told
        pass
