"""Which program a stdio server's `command` means on this machine, and the environment it gets."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from agentkit.errors import MCPServerError

__all__ = ["environment", "find_command"]

# A server sees HOME, LOGNAME, PATH, SHELL, TERM and USER (the SDK's choice), what its config says under
# "env", and these: where certificates lie, how text and time are written, where files go. None of them
# carries a secret. Proxies and package indexes may hold a password, so they have to be named: "env":
# {"HTTPS_PROXY": "${HTTPS_PROXY}"}.
PASSED_ON = (
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
)

# options of uvx and npx that take a value, so that the value is not taken for the package
VALUE_OPTIONS = {
    "--from",
    "--with",
    "--python",
    "-p",
    "--index",
    "--default-index",
    "--package",
    "--cache",
    "-c",
}


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """What a server's process gets on top of the SDK's few variables; `own` is its config's `env` and
    wins."""
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ} | dict(own)


def find_command(command: str, args: Sequence[str], env: Mapping[str, str]) -> tuple[str, list[str]]:
    """The program to run and its arguments.

    A command is looked up on PATH (`env`'s, if it sets one), then beside this Python. Where `uvx` or `npx`
    is not installed but the package they would run is, that is run instead; `python` may be this Python.

    Raises `MCPServerError` when there is nothing to run.
    """
    path = env.get("PATH", os.environ.get("PATH"))
    if found := _program(command, path):
        return found, list(args)
    if command in ("python", "python3"):
        return sys.executable, list(args)
    if command in ("uvx", "npx"):
        package, rest = _package(args)
        if package:
            if found := _program(package, path):
                return found, rest
            module = package.replace("-", "_")
            if command == "uvx" and _is_runnable(module):
                return sys.executable, ["-m", module, *rest]
            get = {
                "uvx": f"pip install {package}, or install uv",
                "npx": "install Node.js, which brings npx",
            }[command]
            raise MCPServerError(f"{command} isn't installed and {package} isn't either; {get}")
    if "/" in command:
        why = "is not an executable file" if os.path.exists(command) else "does not exist"
        raise MCPServerError(f"the command {command} {why}")
    raise MCPServerError(f"the command {command!r} isn't installed (not on PATH)")


def _program(name: str, path: str | None) -> str | None:
    return shutil.which(name, path=path) or shutil.which(name, path=str(Path(sys.executable).parent))


def _package(args: Sequence[str]) -> tuple[str, list[str]]:
    """The program that `uvx ARGS` or `npx ARGS` would run, without scope and version, and its arguments."""
    rest = list(args)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option in VALUE_OPTIONS and rest:
            rest.pop(0)
    if not rest:
        return "", []
    name = rest.pop(0)
    name = name.rpartition("/")[2] if name.startswith("@") else name
    return re.split(r"[@\[=<>~!]", name)[0], rest


def _is_runnable(module: str) -> bool:
    """Whether `python -m module` would find something. Nothing of it is imported."""
    if not module.isidentifier():
        return False
    spec = importlib.util.find_spec(module)
    return bool(spec and spec.origin and (Path(spec.origin).parent / "__main__.py").is_file())
