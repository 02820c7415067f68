"""Run the model's Python in a sandbox, with variables that stay between calls."""

from __future__ import annotations

import ast
import re
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from agentkit import Tool, ToolError, ToolOutput
from agentkit.sandbox import Backend, Execution, Sandbox
from agentkit.tools import Notify

_LIBRARIES = ("numpy", "pandas", "matplotlib", "scipy", "sympy", "sklearn")
_PARAMETERS = {
    "type": "object",
    "properties": {"code": {"type": "string", "description": "The Python code to run."}},
    "required": ["code"],
}
_NAMES = ("code", "input", "script", "python", "source", "program")  # what models call the one argument


@dataclass(frozen=True, slots=True)
class CodeInterpreter:
    """The tool `code_interpreter`: one sandboxed Python for each run.

    `workspace` is the only folder the code can write to; by default a new one in the user's cache, which is kept when the
    code leaves files in it. `timeout` is in seconds, for one call. `max_output` is how many characters of output the
    model is shown; of more, the beginning and the end. `backend` is "auto" (bubblewrap, else Landlock), one of them by
    name, or "unsafe-local", which gives the code your files, network and keys.
    """

    workspace: str | Path | None = None
    timeout: float = 30.0
    max_output: int = 8000
    backend: Backend = "auto"
    scope: Literal["run", "agent"] = "run"

    @asynccontextmanager
    async def open(self, notify: Notify) -> AsyncIterator[Sequence[Tool]]:
        folder = Path(self.workspace).expanduser() if self.workspace else _new_workspace()
        try:
            async with Sandbox(folder, backend=self.backend, timeout=self.timeout) as box:

                async def run(arguments: Mapping[str, Any]) -> ToolOutput:
                    return _report(await box.run(_code(arguments)), self.max_output)

                yield [Tool("code_interpreter", _description(), _PARAMETERS, run)]
        finally:
            if self.workspace is None and not any(folder.iterdir()):
                folder.rmdir()


def _new_workspace() -> Path:
    from platformdirs import user_cache_path

    parent = user_cache_path("agentkit") / "workspaces"
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="run-", dir=parent))  # mode 0700


def _description() -> str:
    there = [name for name in _LIBRARIES if find_spec(name)]
    libraries = f" Installed libraries: {', '.join(there)}." if there else ""
    return (
        "Run Python code and get back what it prints and the value of its last line. Use it for calculations, data and "
        "everything that has to be exact. Variables stay between calls. Files are read and written in the current "
        f"folder; there is no network.{libraries}"
    )


def _code(arguments: Mapping[str, Any]) -> str:
    """The code in what the model sent, whatever it calls it and however it wraps it."""
    given = next((arguments[name] for name in _NAMES if name in arguments), None)
    if given is None and len(arguments) == 1:
        (given,) = arguments.values()
    if isinstance(given, list) and all(isinstance(line, str) for line in given):
        given = "\n".join(given)
    if not isinstance(given, str) or not given.strip():
        raise ToolError('Send the Python code as text: {"code": "print(1 + 1)"}')
    fenced = re.search(r"```(?:python|py|Python)?[ \t]*\n(.*?)(?:```|\Z)", given, re.DOTALL)
    code = fenced[1] if fenced else given
    quoted = re.fullmatch(r"""\s*(\"""|''')(.*)\1\s*""", code, re.DOTALL)
    if quoted and quoted[1] not in quoted[2]:
        code = quoted[2]
    if not _compiles(code) and "\\n" in code and "\n" not in code.strip():  # escaped once too often
        unescaped = code.replace("\\n", "\n").replace('\\"', '"').replace("\\t", "\t")
        code = unescaped if _compiles(unescaped) else code
    return code


def _compiles(code: str) -> bool:
    try:
        compile(code, "<cell>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _report(done: Execution, limit: int) -> ToolOutput:
    """What the model reads of a run: output, value, error, files."""
    parts = [done.stdout.rstrip(), done.result or "", done.stderr.rstrip()]
    if done.error is not None and done.status == "error":
        parts.append(done.error.traceback.strip() or f"{done.error.name}: {done.error.value}")
    elif done.detail:
        parts.append(f"Error: {done.detail}" if done.status != "ok" else done.detail)
    if done.state_lost:
        parts.append("The interpreter was started anew: variables and imports are lost, files are kept.")
    if done.truncated:
        parts.append(f"({done.truncated} characters of output were left out.)")
    if done.artifacts:
        parts.append("Files: " + ", ".join(f"{a.name} ({_size(a.size)})" for a in done.artifacts))
    text = "\n".join(part for part in parts if part)
    if not text:
        text = "(The code ran and printed nothing. print() the value you need.)"
    return ToolOutput(_shorten(text, limit), done.status != "ok", done.artifacts)


def _size(size: int) -> str:
    return f"{size} bytes" if size < 10_000 else f"{size / 1000:.0f} kB"


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail]}\n[… {len(text) - limit} characters left out …]\n{text[-tail:]}"


code_interpreter = CodeInterpreter()
