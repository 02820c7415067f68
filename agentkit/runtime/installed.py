"""Which model servers and GPUs this machine has; nothing of them is imported."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from agentkit.errors import EngineError

__all__ = ["Installation", "find_installation", "gpus"]

_SERVES = {"vllm": "vllm.entrypoints.openai.api_server", "sglang": "sglang.launch_server"}
# Run by the server's own Python: where the package is, its version, and whether it has that module.
_PROBE = """
import importlib.metadata, importlib.util, json, os, re, sys
name, module = sys.argv[1:]
spec = importlib.util.find_spec(name)
place = spec and list(spec.submodule_search_locations or [None])[0]
version = None
for distribution in (name, name + "-cpu"):
    try:
        version = importlib.metadata.version(distribution)
        break
    except importlib.metadata.PackageNotFoundError:
        pass
for file in ("_version.py", "version.py"):
    if place and not version and os.path.exists(os.path.join(place, file)):
        with open(os.path.join(place, file)) as source:
            found = re.search(r"^__version__.*?[\\"'](\\d[^\\"']*)", source.read(), re.M)
        version = found and found[1]
file = place and os.path.join(os.path.dirname(place), *module.split(".")) + ".py"
print(json.dumps({"version": version, "module": bool(file) and os.path.exists(file), "there": bool(place)}))
"""


@dataclass(frozen=True, slots=True)
class Installation:
    """A model server's package, and what runs it."""

    package: str  # "vllm" or "sglang"
    program: str  # its Python, or where that is not known its command
    python: bool = True
    module: str | None = None  # what serves, run with `python -m`; None: its command does
    version: tuple[int, ...] | None = None  # None: not known, taken for today's

    def __str__(self) -> str:
        version = ".".join(map(str, self.version)) if self.version else "of unknown version"
        return f"{version}, {self.program}"


def find_installation(package: str, named: str | None = None) -> Installation | None:
    """The *package* of the Python or command *named*, of AGENTKIT_<PACKAGE>, on the PATH, or of this interpreter.

    Raises `EngineError` where one is named that is not there.
    """
    variable = f"AGENTKIT_{package.upper()}"
    named = named or os.environ.get(variable)
    if named:
        path = shutil.which(os.path.expanduser(named))
        if path is None:
            raise EngineError(
                f"There is no program {named}: name the Python that has {package}, or its command "
                f"(python=…, or {variable})."
            )
    else:
        path = shutil.which(package) or (sys.executable if find_spec(package) else None)
        if path is None:
            return None
    try:
        found = _installation(package, os.path.abspath(path))  # it is run from another directory
    except EngineError:
        if named:
            raise
        return None  # a broken one that nobody asked for
    if found is None and named:
        raise EngineError(f"{named} has no {package}; install it there, or name another Python.")
    return found


@lru_cache
def _installation(package: str, path: str) -> Installation | None:
    python = _python_of(path)
    if python is None:
        return Installation(package, path, python=False)
    probe = [python, "-E", "-c", _PROBE, package, _SERVES[package]]
    try:
        done = subprocess.run(probe, cwd="/", capture_output=True, text=True, timeout=60, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as exc:
        said = exc.stderr.splitlines()[-1:] if isinstance(exc, subprocess.CalledProcessError) else []
        raise EngineError(f"{python} cannot say which {package} it has: {(said or [exc])[0]}") from exc
    if not found["there"]:  # a command is run as it is, wherever its package may be
        return None if python == path else Installation(package, path, python=False)
    numbers = re.match(r"\d+(\.\d+)*", found["version"] or "")
    version = tuple(map(int, numbers[0].split("."))) if numbers else None
    return Installation(package, python, True, _SERVES[package] if found["module"] else None, version)


def _python_of(path: str) -> str | None:
    """The interpreter of a script, as its first line has it; of an interpreter, itself."""
    if re.match(r"(python|pypy)[\d.]*$", Path(path).name):
        return path
    try:
        with open(path, "rb") as file:
            head = file.read(1024).decode("utf-8", "replace")
    except OSError:
        return None
    # pip writes the second form where the path is too long for the kernel
    found = re.match(r"#! *(/\S*/(?:python|pypy)[\d.]*)\b", head) or re.search(
        r"exec' \"?(/.*?/(?:python|pypy)[\d.]*)", head
    )
    return found[1] if found and os.access(found[1], os.X_OK) else None


@lru_cache
def gpus() -> int:
    """How many NVIDIA or AMD GPUs a server would see, CUDA_VISIBLE_DEVICES and its like heeded."""
    for program, option, line, variables in (
        ("nvidia-smi", "-L", r"^GPU \d+:", ("CUDA_VISIBLE_DEVICES",)),
        ("rocm-smi", "--showid", r"^GPU\[(\d+)\]", ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")),
    ):
        path = shutil.which(program)
        if path is None:
            continue
        try:
            listed = subprocess.run([path, option], capture_output=True, text=True, timeout=30).stdout
        except (OSError, subprocess.TimeoutExpired):
            continue
        count = len(set(re.findall(line, listed, re.MULTILINE)))
        for variable in variables:
            visible = os.environ.get(variable)
            if visible is not None:
                named = [device for device in visible.split(",") if device.strip() not in ("", "-1")]
                count = min(count, len(named))
        if count:
            return count
    return 0
