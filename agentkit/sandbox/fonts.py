"""Matplotlib's list of fonts, made once for each interpreter: to make it takes longer than to import matplotlib."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import anyio
import anyio.to_thread

_FONTS = ("/usr/share/fonts", "/usr/local/share/fonts")


@functools.cache
def _place(python: str) -> Path:
    """Where the list is; it is another one when fonts have been installed."""
    from platformdirs import user_cache_path

    seen = [python, str(os.stat(python).st_mtime_ns)]
    for top in _FONTS:
        for directory, _, _ in os.walk(top):
            seen.append(f"{directory} {os.stat(directory).st_mtime_ns}")
    key = hashlib.blake2b("\n".join(seen).encode(), digest_size=8).hexdigest()
    return user_cache_path("agentkit") / "fonts" / key


def find_list(python: str) -> tuple[str, str] | None:
    """The list of fonts for *python*'s matplotlib, if it has been made: its file's name, its text."""
    try:
        file = next(_place(python).glob("fontlist-*.json"))
        return file.name, file.read_text(encoding="utf-8")
    except (StopIteration, OSError):
        return None


async def make_list(python: str) -> None:
    """Make the list, if there is none; without matplotlib there will be none."""
    place = await anyio.to_thread.run_sync(_place, python)
    if place.exists():
        return
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=".", dir=place.parent))
    except OSError:  # no cache can be had: the sandbox makes its own
        return
    try:
        # no home: fonts of the user's own are not there in the sandbox
        environment = {"PATH": os.defpath, "HOME": str(making), "MPLCONFIGDIR": str(making)}
        command = [python, "-I", "-c", "import matplotlib.font_manager"]
        await anyio.run_process(command, env=environment, cwd="/", check=False)
        os.rename(making, place)
    except OSError:  # another process was first
        pass
    finally:
        shutil.rmtree(making, ignore_errors=True)
