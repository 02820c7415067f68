"""The code interpreter: Python in a sandbox, one per run, with its variables and files kept between calls."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from agentkit.errors import ToolError
from agentkit.sandbox import Backend, Execution, Sandbox
from agentkit.tools import Tool, ToolOutput

__all__ = ["CodeInterpreter", "code_interpreter"]

_DESCRIPTION: Final = """\
Run Python code and get back what it prints and the value of its last expression. Use it for arithmetic, data,
files and plots. Variables and imports are kept between calls. The current directory is your workspace: files
that you write there, and figures that you draw, are given to the user. There is no network, nothing can be installed, and there is no input()."""
_LIBRARIES: Final = (
    *("numpy", "pandas", "matplotlib", "scipy", "sympy", "sklearn", "statsmodels", "seaborn", "networkx"),
    *("PIL", "openpyxl"),
)
_PARAMETERS: Final = {
    "type": "object",
    "properties": {"code": {"type": "string", "description": "Python source code to run"}},
    "required": ["code"],
}
_OTHER_NAMES: Final = ("python", "script", "source", "input", "program", "query", "cmd", "command")
_FENCE: Final = re.compile(r"```[ \t]*([\w+-]*)[^\n`]*\n(.*?)(?:\n?```|\Z)", re.DOTALL)
_TRACEBACK_LINES: Final = 12


@dataclass(frozen=True)
class CodeInterpreter:
    """Python for the model, isolated; each run of an agent has an interpreter and a workspace of its own.

    Args:
        backend: what isolates, as for `agentkit.sandbox.Sandbox`.
        timeout: seconds for one call.
        workspace: a directory for the code's files; None: a new one for each run, kept if there are files in
            it.
        max_output: characters of a call's output that the model gets to read.
        python: the interpreter to run, with the packages it has; None: this one.
    """

    backend: Backend = "auto"
    timeout: float = 30.0
    workspace: Path | str | None = None
    max_output: int = 8000
    python: str | None = None

    @property
    def scope(self) -> Literal["run"]:
        return "run"

    def open(self, notify: Callable[[str], None]) -> AbstractAsyncContextManager[Sequence[Tool]]:
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Sequence[Tool]]:
        workspace = Path(self.workspace) if self.workspace is not None else _new_workspace()
        try:
            async with Sandbox(
                workspace, backend=self.backend, timeout=self.timeout, python=self.python
            ) as box:

                async def run(arguments: Mapping[str, Any]) -> ToolOutput:
                    return describe(await box.run(read_code(arguments)), self.max_output)

                yield [Tool("code_interpreter", self._description(), _PARAMETERS, run)]
        finally:
            if self.workspace is None:
                _remove_if_unused(workspace)

    def _description(self) -> str:
        if self.python is not None:
            return _DESCRIPTION
        from importlib.util import find_spec

        installed = ", ".join(name for name in _LIBRARIES if find_spec(name) is not None)
        return f"{_DESCRIPTION} Installed libraries: {installed}." if installed else _DESCRIPTION


code_interpreter: Final = CodeInterpreter()


def _new_workspace() -> Path:
    from platformdirs import user_cache_path

    path = user_cache_path("agentkit") / "workspaces" / secrets.token_hex(6)
    path.mkdir(mode=0o700, parents=True)
    return path


def _remove_if_unused(workspace: Path) -> None:
    """Remove it unless there is a file in it that the user may want to open."""
    for path in sorted(workspace.rglob("*"), reverse=True):  # what is below a directory comes first
        if path.is_dir() and not path.is_symlink():
            try:
                path.rmdir()
            except OSError:
                return
        elif path.parent.name == "__pycache__":
            path.unlink(missing_ok=True)
    try:
        workspace.rmdir()
    except OSError:
        return


def read_code(arguments: Mapping[str, Any] | str) -> str:
    """The code that a call means, whichever way the model wrote it.

    Raises:
        ToolError: there is none in it.
    """
    code: Any = arguments
    if isinstance(arguments, Mapping):
        code = next((arguments[name] for name in ("code", *_OTHER_NAMES) if name in arguments), None)
        if code is None and len(arguments) == 1:
            code = next(iter(arguments.values()))
        if isinstance(code, list) and all(isinstance(line, str) for line in code):
            code = "\n".join(code)
    if isinstance(code, str) and code.lstrip().startswith("{"):
        code = _unwrap(code)
    if not isinstance(code, str) or not code.strip():
        raise ToolError(
            'code_interpreter takes one argument, the source as a string: {"code": "print(2 + 2)"}'
        )
    return _clean(code)


def _unwrap(text: str) -> str:
    """The code in arguments that were sent as a string of JSON; any other text as it is."""
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        return text
    if isinstance(value, dict):
        for name in ("code", *_OTHER_NAMES):
            if isinstance(value.get(name), str):
                return str(value[name])
    return text


def _clean(code: str) -> str:
    if _compiles(code) and not code.strip().startswith(('"""', "'''")):
        return code
    fences = _FENCE.findall(code)
    if fences:
        sources = [source for label, source in fences if label.lower() in ("", "python", "py", "python3")]
        if not sources:
            raise ToolError(f"code_interpreter runs Python, not {fences[0][0]}; write it as Python code.")
        return "\n".join(sources)
    bare = code.strip()
    for quote in ('"""', "'''"):
        if bare.startswith(quote) and bare.endswith(quote) and len(bare) > 6 and quote not in bare[3:-3]:
            return bare[3:-3].strip("\n")
    if "\\n" in code and "\n" not in bare and not _compiles(code):
        unescaped = re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), code)
        if _compiles(unescaped):
            return unescaped
        newlines_only = code.replace("\\n", "\n")
        if _compiles(newlines_only):
            return newlines_only
    dedented = _dedent(code)
    return dedented if _compiles(dedented) else code  # the error will name its line


def _dedent(code: str) -> str:
    from textwrap import dedent

    return dedent(code.strip("\n"))


def _compiles(code: str) -> bool:
    import ast
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(code, "<code>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def describe(execution: Execution, max_output: int) -> ToolOutput:
    """What the model reads of it: output, value, error, files; and what was lost."""
    parts = [execution.stdout.rstrip(), execution.result or ""]
    if execution.stderr.strip():
        parts.append(f"stderr:\n{execution.stderr.rstrip()}")
    body = _shorten("\n".join(part for part in parts if part), max_output)
    notes = []
    if execution.error is not None and execution.status in ("error", "memory"):
        error = execution.error
        lines = error.traceback.rstrip().splitlines()[-_TRACEBACK_LINES:] or [f"{error.name}: {error.value}"]
        where = f"Error in line {error.line}:\n" if error.line is not None else "Error:\n"
        notes.append(where + _shorten("\n".join(lines), max_output // 2))
    if execution.status not in ("ok", "error"):
        at = f" in line {execution.error.line}" if execution.error and execution.error.line else ""
        notes.append(f"Stopped ({execution.status}){at}: {execution.detail}.")
    elif execution.detail:
        notes.append(f"Note: {execution.detail}.")
    if execution.state_lost:
        notes.append("The interpreter was restarted: variables and imports are lost, files are kept.")
    elif execution.status in ("timeout", "output"):
        notes.append("Variables are kept.")
    if execution.artifacts:
        notes.append("Files: " + ", ".join(f"{a.name} ({_size(a.size)})" for a in execution.artifacts))
    if not body and not notes:
        notes.append("(no output; print() the value you need)")
    content = "\n".join(part for part in (body, *notes) if part)
    return ToolOutput(content, is_error=not execution.ok, artifacts=execution.artifacts)


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head, tail = limit - limit // 4, limit // 4
    return f"{text[:head]}\n… {len(text) - limit} characters left out …\n{text[len(text) - tail :]}"


def _size(size: float) -> str:
    if size < 1000:
        return f"{size:.0f} bytes"
    unit, size = ("kB", size / 1000) if size < 1_000_000 else ("MB", size / 1_000_000)
    return f"{size:.1f} {unit}" if size < 10 else f"{size:.0f} {unit}"
