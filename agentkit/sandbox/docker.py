"""The command that becomes a worker in a container: `docker run` or `podman run`."""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentkit.sandbox.detect import Probe
from agentkit.sandbox.execution import Limits

IMAGE = "python:3.13-slim"
_ENGINES = ("docker", "podman")


def image() -> str:
    """The image that containers are made of: AGENTKIT_SANDBOX_IMAGE, or a bare Python. It is never pulled here."""
    return os.environ.get("AGENTKIT_SANDBOX_IMAGE") or IMAGE


def find_engine() -> tuple[str, Probe]:
    """The engine to use, and whether it answers; asked once for each that is on the PATH."""
    reasons = []
    for path in filter(None, map(shutil.which, _ENGINES)):
        if not (reason := _ask(path)):
            return path, Probe(True, f"{path}, containers of {image()} without a network")
        reasons.append(f"{path} does not answer: {reason}")
    if reasons:
        return "", Probe(False, "; ".join(reasons), "start its service, or ask for the right to use it")
    return "", Probe(False, "neither docker nor podman is installed", "install Docker or Podman")


@functools.cache
def _ask(engine: str) -> str:
    command = [engine, "version", "--format", "{{.Client.Version}}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    return "" if done.returncode == 0 else " ".join(done.stderr.split()) or f"exit status {done.returncode}"


def container_command(
    engine: str,
    workspace: Path,
    library: Path,
    readable: Sequence[str],
    environment: Mapping[str, str],
    user: tuple[int, int],
    limits: Limits,
    plan: Mapping[str, Any],
) -> list[str]:
    """A command that, on a worker's descriptors, is a worker in a new container; it ends the container with itself.

    *library* is the directory `inside`; *readable* are directories that the code may read, where they are.
    """
    name = f"agentkit-{secrets.token_hex(8)}"
    run = [engine, "run", "-i", "--rm", "--pull", "never", "--name", name, "--hostname", "sandbox"]
    run += ["--network", "none", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    run += ["--user", f"{user[0]}:{user[1]}", "--workdir", "/"]
    if os.path.basename(engine) == "podman" and os.geteuid() != 0:
        run += ["--userns", "keep-id"]
    run += ["--memory", str(limits.total_memory), "--memory-swap", str(limits.total_memory)]
    run += ["--pids-limit", str(limits.processes + 16)]
    run += ["--tmpfs", f"/tmp:rw,nosuid,nodev,size={256 << 20},mode=1777", "--shm-size", str(128 << 20)]
    run += ["--mount", _bind(str(workspace), "/workspace")]
    run += ["--mount", _bind(str(library), "/run/agentkit/inside") + ",readonly"]
    for directory in readable:
        run += ["--mount", _bind(directory, directory) + ",readonly"]
    for variable, value in environment.items():
        run += ["--env", f"{variable}={value}"]
    boot = (
        f"import sys; sys.path.insert(0, '/run/agentkit'); from inside import bridge; bridge.inside({plan!r})"
    )
    run += ["--entrypoint", "python3", image(), "-I", "-B", "-c", boot]
    end = [engine, "kill", name]
    boot = (
        f"import sys; sys.path.insert(0, {str(library.parent)!r}); from inside import bridge; "
        f"bridge.outside({os.getpid()}, {run!r}, {end!r})"
    )
    return [sys.executable, "-I", "-B", "-c", boot]


def _bind(source: str, target: str) -> str:
    def quoted(field: str) -> str:  # the option is a line of CSV
        return '"' + field.replace('"', '""') + '"' if set(field) & {",", '"'} else field

    return f"type=bind,{quoted(f'source={source}')},{quoted(f'target={target}')}"
