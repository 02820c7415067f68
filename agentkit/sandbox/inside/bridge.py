"""The worker's socket and pipes, carried over the one pair of pipes that `docker run -i` has.

Outside stands a process that the host takes for the worker; inside, the container's first process, which starts
the worker. Between them: a channel (1 byte), a length (4 bytes), data. Channels: c the control socket, o and e
what the worker writes, i interrupt it. Each side ends when the other does, so the container dies with the host.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import FrameType
    from typing import Any

_PIECE = 1 << 16


def outside(host: int, command: Sequence[str], end: Sequence[str]) -> None:
    """Run *command* (a container with `inside` in it) for the socket and pipes that are fd 0, 1, 2; *end* ends
    it for sure. Never returns."""
    from . import supervise

    supervise.die_with(host, signal.SIGTERM)
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, lambda number, frame: None)  # told by the wakeup
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    control = os.dup(0)
    # in a group of its own: an interrupt is for the worker
    engine = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
    assert engine.stdin is not None and engine.stdout is not None
    to, back = engine.stdin.fileno(), engine.stdout.fileno()
    try:
        poll = select.poll()
        for fd in (control, back, woken):
            poll.register(fd, select.POLLIN)
        targets = {b"c": control, b"o": 1, b"e": 2}
        while True:
            for fd, _ in poll.poll():
                if fd == woken:
                    if signal.SIGINT in os.read(woken, 64):
                        _send(to, b"i", b"")
                elif fd == control:
                    if not (data := os.read(control, _PIECE)):
                        sys.exit(0)
                    _send(to, b"c", data)
                else:
                    channel, data = _receive(back)
                    _write(targets[channel], data)
    except (EOFError, OSError, KeyError):
        pass  # the container has ended, or sends what ours would not
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        engine.stdin.close()
        try:
            status = engine.wait(0.5)
        except subprocess.TimeoutExpired:
            subprocess.run(end, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=20, check=False)
            engine.kill()
            status = engine.wait()
        os._exit(status if status >= 0 else 128 - status)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def inside(plan: Mapping[str, Any]) -> None:
    """Be the container's first process: start a worker, and carry its words. Never returns."""
    from . import confine, start

    ours, theirs = socket.socketpair()
    pipes = {b"o": os.pipe(), b"e": os.pipe()}
    worker = os.fork()
    if worker == 0:
        for fd, target in ((theirs.fileno(), 0), (pipes[b"o"][1], 1), (pipes[b"e"][1], 2)):
            os.dup2(fd, target)
        os.closerange(3, 64)
        confine.apply_filter(confine.filter_program(namespaces=True))
        start.start(plan)
    theirs.close()
    sources = {ours.fileno(): b"c"}
    for channel, (reading, writing) in pipes.items():
        os.close(writing)
        os.set_blocking(reading, False)
        sources[reading] = channel
    poll = select.poll()
    for fd in (0, *sources):
        poll.register(fd, select.POLLIN)
    status = None
    while True:
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == worker:
                    status = os.waitstatus_to_exitcode(ended[1])
        except ChildProcessError:
            pass
        ready = poll.poll(0 if status is not None else 1000)
        if status is not None and not ready:
            os._exit(status if status >= 0 else 128 - status)
        for fd, _ in ready:
            if fd:
                try:
                    data = os.read(fd, _PIECE)
                except BlockingIOError:  # it has been read just now
                    continue
                if not data:
                    poll.unregister(fd)
                    continue
                if fd == ours.fileno():  # what was written before a fact arrives before it
                    for reading in (reading for reading, _ in pipes.values()):
                        for _ in range(32):  # what a pipe can hold
                            try:
                                output = os.read(reading, _PIECE)
                            except BlockingIOError:
                                break
                            _send(1, sources[reading], output)
                            if not output:
                                break
                _send(1, sources[fd], data)
                continue
            try:
                channel, data = _receive(0)
            except EOFError:
                os._exit(0)  # and with us all others
            if status is not None:
                continue
            if channel == b"c":
                _write(ours.fileno(), data)
            else:
                os.killpg(worker, signal.SIGINT)


def _send(fd: int, channel: bytes, data: bytes) -> None:
    _write(fd, channel + len(data).to_bytes(4, "big") + data)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _receive(fd: int) -> tuple[bytes, bytes]:
    head = _read(fd, 5)
    size = int.from_bytes(head[1:], "big")
    if size > _PIECE:
        raise OSError("not what ours would send")
    return head[:1], _read(fd, size)


def _read(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(fd, size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data
