"""Files that only their owner may read, and that are never found half written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["private_dir", "write_private"]


def private_dir(path: Path) -> Path:
    """The directory, made with mode 0700 where it is missing. Raises `OSError`."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def write_private(path: Path, data: bytes) -> None:
    """Write a file of mode 0600; whoever reads it meanwhile gets the old one whole. Raises `OSError`."""
    handle, part = tempfile.mkstemp(dir=private_dir(path.parent), prefix=f".{path.name}.")  # 0600
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise
