"""The file that a server's stderr goes to: where it is, how it is kept small, what stands at its end."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from pathlib import Path

from agentkit.mcp.config import ServerSpec
from agentkit.mcp.private import private_dir

__all__ = ["ServerLog", "log_path"]

START_SIZE = 2**20  # bytes; a longer log is emptied when its server starts
RUN_SIZE = 8 * 2**20  # and while it runs
FRAME = re.compile(r"\s|--- |Traceback|Node\.js v|During handling|The above exception")


def log_path(spec: ServerSpec) -> Path:
    """Where the server's stderr is kept."""
    if spec.log is not None:
        return Path(spec.log)
    import platformdirs

    name = re.sub(r"[^\w.-]+", "-", spec.name)
    if name != spec.name or len(name) > 60:
        name = f"{name[:50]}-{hashlib.sha256(spec.name.encode()).hexdigest()[:8]}"
    return platformdirs.user_log_path("agentkit") / "mcp" / f"{name}.log"


class ServerLog:
    """A server's log during one life of it. All programs that start the server append to the same file."""

    def __init__(self, spec: ServerSpec) -> None:
        path = log_path(spec)
        try:
            private_dir(path.parent)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._trim(START_SIZE)
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            os.write(self._file, f"--- {now} {spec.name}, for process {os.getpid()}\n".encode())
        except OSError:  # a server must not fail for want of a log
            with tempfile.TemporaryFile() as file:
                self._file = os.dup(file.fileno())
        self._start = os.fstat(self._file).st_size
        self._closed = False

    def fileno(self) -> int:
        return self._file

    def tail(self) -> str:
        """The end of what the server wrote so far, stack frames left out; "" once it is closed."""
        if self._closed:
            return ""
        size = os.fstat(self._file).st_size
        start = self._start if self._start <= size else 0  # emptied meanwhile
        lines = os.pread(self._file, 4000, max(start, size - 4000)).decode(errors="replace").splitlines()
        said = [line.strip()[:300] for line in lines if line.strip() and not FRAME.match(line)]
        return " | ".join(said[-3:])

    def trim(self) -> None:
        """Empty it if the server has written more than it should."""
        if not self._closed:
            self._trim(RUN_SIZE)

    def _trim(self, size: int) -> None:
        if os.fstat(self._file).st_size > size:
            os.ftruncate(self._file, 0)  # the server appends, so it goes on at the new end

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._file)
