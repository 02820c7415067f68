"""Packages for a sandbox: fetched once by the host, as wheels only so that nothing of them runs there, then read-only."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import anyio
import anyio.to_thread

from agentkit.errors import ConfigError

__all__ = ["fetch", "folder_of_all", "name_of"]

# a name, perhaps with extras and versions: no path, no address, no option of pip
_REQUIREMENT = re.compile(
    r"([A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?)(\[[\w,. -]+\])?\s*((?:[=<>!~]=?=?\s*[\w.*+!-]+\s*,?\s*)*)"
)
_SECONDS = 600


def name_of(requirement: str) -> str:
    """The name of the package in `Seaborn>=0.13`, as indexes spell it.

    Raises:
        ConfigError: it is not of that form.
    """
    match = _REQUIREMENT.fullmatch(requirement.strip())
    if match is None:
        raise ConfigError(
            f"{requirement!r} is not a package: give a name, such as 'seaborn' or 'seaborn>=0.13'"
        )
    return re.sub(r"[-_.]+", "-", match[1]).lower()


@functools.cache
def _tag(python: str) -> str:
    """What wheels for *python* depend on."""
    code = "import sys, sysconfig; print(sys.implementation.cache_tag, sysconfig.get_platform())"
    try:
        done = subprocess.run(
            [python, "-I", "-c", code], capture_output=True, check=True, timeout=30, cwd="/"
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise ConfigError(
            f"the interpreter {python!r} does not run ({exc}); pass the path of a Python"
        ) from exc
    return "-".join(done.stdout.decode().split())


async def folder_of_all(python: str | None = None) -> Path:
    """The directory below which the packages for *python* are."""
    from platformdirs import user_cache_path

    tag = await anyio.to_thread.run_sync(_tag, python or sys.executable)
    folder = user_cache_path("agentkit") / "packages" / tag
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def fetch(requirements: Iterable[str], python: str | None = None) -> Path:
    """The folder with these packages and what they need, as pip (or uv) resolves them for *python*; from the cache, if
    they have been asked for before.

    Raises:
        ConfigError: they cannot be had as wheels, or neither pip nor uv is here.
    """
    wanted = sorted({re.sub(r"\s+", "", requirement) for requirement in requirements})
    for requirement in wanted:
        name_of(requirement)
    python = python or sys.executable
    above = await folder_of_all(python)
    place = above / hashlib.blake2b("\n".join(wanted).encode(), digest_size=10).hexdigest()
    if place.exists():
        return place
    making = Path(tempfile.mkdtemp(prefix=".", dir=above))
    try:
        making.chmod(0o755)  # the sandbox's uid reads it
        command = await _installer(python)
        target = [*command, "--only-binary", ":all:", "--target", str(making), "--", *wanted]
        with anyio.move_on_after(_SECONDS) as patience:
            done = await anyio.run_process(
                target,
                stderr=subprocess.STDOUT,
                check=False,
                cwd="/",
                env={**os.environ, "PIP_NO_INPUT": "1"},
            )
        if patience.cancelled_caught:
            raise ConfigError(f"{', '.join(wanted)} could not be fetched within {_SECONDS} s")
        if done.returncode:
            said = [line for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
            why = next(
                (line for line in reversed(said) if "rror" in line), said[-1] if said else "no reason given"
            )
            raise ConfigError(
                f"{', '.join(wanted)} cannot be had as ready-made packages (wheels): {why.strip()}"
            )
        try:
            making.rename(place)
        except OSError:  # another process was first
            if not place.exists():
                raise
    except OSError as exc:
        raise ConfigError(f"packages cannot be kept in {above}: {exc}") from exc
    finally:
        await anyio.to_thread.run_sync(functools.partial(shutil.rmtree, making, ignore_errors=True))
    return place


async def _installer(python: str) -> Sequence[str]:
    done = await anyio.run_process([python, "-I", "-m", "pip", "--version"], check=False, cwd="/")
    if done.returncode == 0:
        return [python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "pip", "install", "--quiet", "--python", python]
    raise ConfigError(f"to fetch packages for the sandbox, {python} needs pip: {python} -m ensurepip")
