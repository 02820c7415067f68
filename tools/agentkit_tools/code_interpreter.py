"""The code interpreter: Python in a sandbox, with its variables and files kept between calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from agentkit.errors import ConfigError, ToolError
from agentkit.sandbox import Backend, Execution, Sandbox, packages, relayed_output, shared_sandbox
from agentkit.tools import Effect, Tool, ToolOutput
from agentkit_tools.python_source import Cell, read_cell, read_code

__all__ = ["CodeInterpreter", "code_interpreter"]

_DESCRIPTION: Final = """\
Run Python code and get back what it prints and the value of its last expression. Use it for arithmetic, data,
files and plots. Variables and imports are kept between calls. The current directory is your workspace: files
that you write there, and figures that you draw, are given to the user. There is no network and no input()."""
_LIBRARIES: Final = (
    *("numpy", "pandas", "matplotlib", "scipy", "sympy", "sklearn", "statsmodels", "seaborn", "networkx"),
    *("PIL", "openpyxl"),
)
_WARM: Final = ("numpy", "pandas", "matplotlib.pyplot")
_PARAMETERS: Final = {
    "type": "object",
    "properties": {"code": {"type": "string", "description": "Python source code to run"}},
    "required": ["code"],
}
_TRACEBACK_LINES: Final = 12


@dataclass(frozen=True)
class CodeInterpreter:
    """Python for the model, isolated.

    Args:
        backend: what isolates, as for `agentkit.sandbox.Sandbox`.
        timeout: seconds for one call.
        workspace: a directory for the code's files; None: a new one, kept if there are files in it.
        max_output: characters of a call's output that the model gets to read; of more, all is in a file.
        python: the interpreter to run, with the packages it has; None: this one.
        scope: "run": each run of an agent has an interpreter of its own; "agent": variables and workspace last as
            long as `async with agent:` does, in a chat as long as the chat.
        files: the user's files, copied into the workspace before the first call.
        packages: what the interpreter has besides, such as ("seaborn", "polars>=1"): fetched from the package index
            by this process, as wheels only, and cached.
        pip: packages that the model itself may have fetched so, with `%pip install NAME`; ("*",): any. What they
            are called reaches the index, so "any" is a way out for words.
        warm: start the interpreter when the toolset is opened, with numpy, pandas and matplotlib imported (where
            they are installed). That takes up to 90 MB and a second of one core; without it, the first call starts
            the interpreter, in about 50 ms.
    """

    backend: Backend = "auto"
    timeout: float = 30.0
    workspace: Path | str | None = None
    max_output: int = 8000
    python: str | None = None
    scope: Literal["run", "agent"] = "run"
    files: Sequence[Path | str] = ()
    packages: Sequence[str] = ()
    pip: Sequence[str] = ()
    warm: bool = True

    def __post_init__(self) -> None:
        for field in ("files", "packages", "pip"):
            if isinstance(getattr(self, field), str):
                raise ConfigError(f"CodeInterpreter({field}=…) is a list: {field}=[{getattr(self, field)!r}]")
        for requirement in (*self.packages, *(name for name in self.pip if name != "*")):
            packages.name_of(requirement)

    def open(self, notify: Callable[[str], None]) -> AbstractAsyncContextManager[Sequence[Tool]]:
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Sequence[Tool]]:
        async with shared_sandbox(self.workspace, backend=self.backend, python=self.python) as box:
            if self.packages or self.pip:
                await box.expose(await packages.folder_of_all(self.python))
            if self.packages:
                await box.add_packages(await packages.fetch(self.packages, self.python))
            given = await box.add_files(self.files) if self.files else {}
            if self.warm:
                box.warm_up(*_WARM)

            async def run(arguments: Mapping[str, Any]) -> ToolOutput:
                return await self._run(box, read_cell(read_code(arguments)))

            description = self._description(given)
            yield [Tool("code_interpreter", description, _PARAMETERS, run, effects=effects_of(box))]

    async def _run(self, box: Sandbox, cell: Cell) -> ToolOutput:
        for requirement in cell.installs:
            await self._install(box, requirement)
        async with relayed_output() as on_output:
            run = box.shell if cell.is_shell else box.run
            execution = await run(cell.code, self.timeout, on_output, self.max_output)
        installed = f"Installed: {', '.join(cell.installs)}." if cell.installs else ""
        return describe(execution, self.max_output, installed, self._about_installing())

    async def _install(self, box: Sandbox, requirement: str) -> None:
        """Have it, if that may be.

        Raises:
            ToolError: it may or can not.
        """
        try:
            name = packages.name_of(requirement)
        except ConfigError as exc:
            raise ToolError(f"{exc}.") from exc
        known = await box.run(f"__import__('importlib.metadata', fromlist=['version']).version({name!r});")
        if known.ok and not set(requirement) & set("=<>~!["):
            return
        if name not in map(packages.name_of, (n for n in self.pip if n != "*")) and "*" not in self.pip:
            raise ToolError(f"{requirement} cannot be installed: {self._about_installing()}.")
        try:
            await box.add_packages(await packages.fetch([requirement], self.python))
        except ConfigError as exc:
            raise ToolError(f"{exc}.") from exc

    def _about_installing(self) -> str:
        if not self.pip:
            return "nothing can be installed here; use what is there, or plain Python"
        what = "any package" if "*" in self.pip else ", ".join(self.pip)
        return f"`%pip install NAME` installs {what}"

    def _description(self, given: Mapping[str, int]) -> str:
        parts = [_DESCRIPTION]
        parts.append(f"{self._about_installing()}." if self.pip else "Nothing can be installed.")
        installed = [*map(packages.name_of, self.packages)]
        if self.python is None:
            from importlib.util import find_spec

            installed = [*(name for name in _LIBRARIES if find_spec(name) is not None), *installed]
        if installed:
            parts.append(f"Installed libraries: {', '.join(dict.fromkeys(installed))}.")
        if given:
            names = [f"{name} ({_size(size)})" for name, size in given.items()]
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            parts.append(f"Files from the user in the workspace: {', '.join(names[:20])}{more}.")
        return " ".join(parts)


code_interpreter: Final = CodeInterpreter()


def effects_of(box: Sandbox) -> frozenset[Effect]:
    """What code in *box* may do."""
    return frozenset(get_args(Effect) if box.backend == "unsafe-local" else ("executes",))


def describe(execution: Execution, max_output: int, said: str = "", installing: str = "") -> ToolOutput:
    """What the model reads of it: output, value, error, files; and what was lost."""
    parts = [execution.stdout.rstrip(), execution.result or ""]
    if execution.stderr.strip():
        parts.append(f"stderr:\n{execution.stderr.rstrip()}")
    body = "\n".join(part for part in parts if part)
    if not body and execution.assigned and not execution.artifacts:
        body = execution.assigned
    notes = [said]
    if len(body) > max_output or execution.truncated:
        body = _shorten(body, max_output)
        if execution.saved_output is not None:
            notes.append(
                f"The full output is in {execution.saved_output}; read the part of it that you need."
            )
    error = execution.error
    if error is not None and execution.status in ("error", "memory"):
        where = f"Error in line {error.line}:\n" if error.line is not None else "Error:\n"
        lines = error.traceback.rstrip().splitlines()[-_TRACEBACK_LINES:]
        if execution.detail or not lines:  # a cause in words is worth more than where it was noticed
            lines = [f"{error.name}: {error.value}"]
        notes.append(where + _shorten("\n".join(lines), max_output // 2))
        if execution.held:
            notes.append(f"There, {execution.held}.")
        if error.name == "ModuleNotFoundError" and installing:
            notes.append(f"Note: {installing}.")
    elif execution.exit_code:
        notes.append(f"The command ended with exit status {execution.exit_code}.")
    if execution.status not in ("ok", "error"):
        at = f" in line {error.line}" if error is not None and error.line is not None else ""
        notes.append(f"Stopped ({execution.status}){at}: {execution.detail}.")
    elif execution.detail:
        notes.append(f"Note: {execution.detail}.")
    if execution.state_lost:
        lost = f" ({execution.lost})" if execution.lost else ""
        notes.append(f"The interpreter was restarted: variables and imports{lost} are lost, files are kept.")
    elif execution.status in ("timeout", "output"):
        notes.append("Variables are kept.")
    new = [a for a in execution.artifacts if a.name != execution.saved_output]
    if new:
        notes.append("Files: " + ", ".join(f"{a.name} ({_size(a.size)})" for a in new))
    if not body and not any(notes):
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
