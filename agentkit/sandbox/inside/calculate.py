"""Serve the host as a worker does, with Monty in place of Python: a part of the language, no libraries, no files."""

from __future__ import annotations

import os
import signal
import sys

from . import supervise, worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def serve(host: int, memory: int) -> None:
    """Answer requests on fd 0. Never returns."""
    del sys.path[0]  # where we came from
    supervise.fork_worker(host, {}, False, None)  # Monty's own process is to end with us
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Monty cannot be stopped and go on: it is ended
    import pydantic_monty  # type: ignore[import-not-found,unused-ignore]

    control = os.dup(0)
    with (
        pydantic_monty.Monty() as pool,
        pool.checkout(limits={"max_memory": memory}, script_name="cell") as session,
    ):
        worker.send_fact(control, b"R", b"\0\0\0\0", "")
        while True:
            request, source = worker.read_frame(control)
            if source.startswith(worker.SETUP):
                continue
            for kind, text in _facts(session, source):
                worker.send_fact(control, kind, request, text)
            worker.send_fact(control, b"D", request, "")


def _facts(session: Any, source: str) -> list[tuple[bytes, str]]:
    import pydantic_monty

    if source.startswith(worker.SHELL):
        return [(b"E", "PermissionError"), (b"M", "the sandbox backend 'monty' has no shell")]
    try:
        value = session.feed_run(source, print_callback=_write)
    except pydantic_monty.MontyCrashedError:
        os._exit(1)  # its process; the host starts another, and says so
    except pydantic_monty.MontyError as error:
        inner = error.exception()
        trace = error.display()
        facts = [(b"E", type(inner).__name__), (b"M", str(inner)), (b"T", trace)]
        frames = error.traceback() if hasattr(error, "traceback") else []
        return [*facts, (b"L", str(frames[-1].line))] if frames else facts
    return [] if value is None else [(b"V", repr(value)[:60_000])]


def _write(stream: str, text: str) -> None:
    data = text.encode("utf-8", "backslashreplace")
    while data:
        data = data[os.write(1 if stream == "stdout" else 2, data) :]
