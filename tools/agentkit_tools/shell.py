"""The shell: bash in the sandbox of the code interpreter, with the same files."""

from __future__ import annotations

import re
import shlex
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from agentkit.errors import ToolError
from agentkit.sandbox import Backend, Execution, relayed_output, shared_sandbox
from agentkit.tools import Notify, Tool, ToolOutput
from agentkit_tools.code_interpreter import effects_of

__all__ = ["Shell", "read_command", "shell"]

_DESCRIPTION: Final = """\
Run a bash command and get its output and exit code. The current folder and exported variables are kept between \
calls. It is a sandbox without network and keyboard; files in the first folder are given to the user."""
_PARAMETERS: Final = {
    "type": "object",
    "properties": {"command": {"type": "string", "description": "The command, or a script of several lines"}},
    "required": ["command"],
}
_FENCE: Final = re.compile(r"```[ \t]*(\w*)[^\n`]*\n(.*?)(?:\n?```|\Z)", re.DOTALL)
_SHELLS: Final = ("", "bash", "sh", "shell", "zsh", "console", "terminal", "text")
_PROMPT: Final = re.compile(r"\$ +(?=\S)")


@dataclass(frozen=True, slots=True)
class Shell:
    """`shell`: bash for the model, isolated. With `CodeInterpreter` of equal settings it shares sandbox and workspace.

    Args:
        backend: what isolates, as for `agentkit.sandbox.Sandbox`.
        timeout: seconds for one command, after which it is ended with all that it started.
        workspace: the folder it begins in and may write to; None: a new one for each run, kept if there are files
            in it.
        max_output: characters of a command's output that the model gets to read; longer output is kept in a file.
        python: the interpreter whose sandbox it is; None: this one.
    """

    backend: Backend = "auto"
    timeout: float = 60.0
    workspace: Path | str | None = None
    max_output: int = 8000
    python: str | None = None
    scope: Literal["run", "agent"] = "run"

    @asynccontextmanager
    async def open(self, notify: Notify) -> AsyncIterator[Sequence[Tool]]:
        async with shared_sandbox(self.workspace, backend=self.backend, python=self.python) as box:

            async def run(arguments: Mapping[str, Any]) -> ToolOutput:
                command = read_command(arguments)
                async with relayed_output() as on_output:
                    execution = await box.shell(command, self.timeout, on_output, self.max_output)
                return describe(execution, self.max_output)

            yield [Tool("shell", _DESCRIPTION, _PARAMETERS, run, effects=effects_of(box))]


shell: Final = Shell()


def read_command(arguments: Mapping[str, Any]) -> str:
    """The command that a call means, whichever way the model wrote it. Raises `ToolError` if there is none."""
    command = arguments.get("command")
    if isinstance(command, list) and command and all(isinstance(word, str) for word in command):
        if len(command) == 3 and command[0] in ("bash", "sh") and command[1] in ("-c", "-lc"):
            command = command[2]
        else:  # words of one command, or lines of a script
            lines = any(" " in word or "\n" in word for word in command[:1])
            command = "\n".join(command) if lines else shlex.join(command)
    if not isinstance(command, str) or not command.strip():
        raise ToolError('shell takes one argument, the command as a string: {"command": "ls -l"}')
    if "\0" in command:
        raise ToolError("a command cannot have NUL bytes")
    return _without_prompts(_without_fences(command)).strip("\n")


def _without_fences(command: str) -> str:
    fences = _FENCE.findall(command) if command.lstrip().startswith("```") else []
    if not fences:
        bare = command.strip()
        return bare[1:-1] if re.fullmatch(r"`[^`\n]+`", bare) else command
    if any(label.lower() not in _SHELLS for label, _ in fences):
        raise ToolError(f"shell runs bash, not {fences[0][0]}; write it as a bash command")
    return "\n".join(source for _, source in fences)


def _without_prompts(command: str) -> str:
    """Of a transcript, what was typed: the lines with "$ " and those that they go on in."""
    if not _PROMPT.match(command.lstrip()):
        return command
    typed, on = [], False
    for line in command.strip().splitlines():
        prompt = _PROMPT.match(line)
        if prompt or on:
            typed.append(line[prompt.end() :] if prompt else line.removeprefix("> "))
            on = line.endswith("\\")
    return "\n".join(typed)


def describe(execution: Execution, max_output: int) -> ToolOutput:
    """What the model reads of it: output, exit code, files."""
    parts = [execution.stdout.rstrip(), execution.stderr.rstrip()]
    body = _shorten("\n".join(part for part in parts if part), max_output)
    notes = []
    if execution.saved_output is not None:
        notes.append(f"[all of it is in {execution.saved_output}; use grep, head or tail on it]")
    if execution.exit_code is not None:
        code = execution.exit_code
        if code or not body:
            notes.append(f"[exit code {code}{_MEANINGS.get(code, '')}]")
    else:
        reason = execution.detail or execution.status
        notes.append(f"[ended: {reason}]")
    if execution.state_lost:
        notes.append("[the sandbox was restarted: folder and variables are as at the start, files are kept]")
    if execution.artifacts:
        names = [a.name for a in execution.artifacts if a.name != execution.saved_output]
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        if names:
            notes.append(f"[files: {', '.join(names[:10])}{more}]")
    content = "\n".join(part for part in (body, *notes) if part)
    return ToolOutput(content, is_error=not execution.ok, artifacts=execution.artifacts)


_MEANINGS: Final = {
    126: ": it may not be executed",
    127: ": there is no such command",
    137: ": it was killed",
    139: ": it crashed",
}


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head, tail = limit - limit // 2, limit // 2
    return f"{text[:head]}\n… {len(text) - limit} characters left out …\n{text[len(text) - tail :]}"
