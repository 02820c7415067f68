"""What a model sends as Python code, read as the code that it means. Code that is right is never changed."""

from __future__ import annotations

import ast
import json
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import dedent
from typing import Any, Final

from agentkit.errors import ToolError

__all__ = ["Cell", "read_cell", "read_code"]

_NAMES: Final = ("code", "python", "script", "source", "input", "program", "query", "cmd", "command")
_PYTHON: Final = ("python", "py", "python3", "ipython", "ipython3", "jupyter", "code", "tool_code")
_FENCE: Final = re.compile(r"```[ \t]*([\w+-]*)[^\n`]*\n(.*?)(?:\n?[ \t]*```|\Z)", re.DOTALL)
_TAGS: Final = re.compile(r"<\|[\w|]{1,40}\|>|</?(?:code|python|py|tool_code|execute|pre)>")
_QUOTES: Final = str.maketrans({**dict.fromkeys("“”„‟″", '"'), **dict.fromkeys("‘’‚‛′", "'"), "\u00a0": " "})
_LOOKS_LIKE_CODE: Final = re.compile(r"\n|\w\(|^\s*\w[\w.]*\s*=|^(?:import|from|for|print)\b")
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": ""}


def read_code(arguments: Mapping[str, Any] | str) -> str:
    """The code that a call means, whichever way the model wrote it.

    Raises:
        ToolError: there is none in it.
    """
    code = _find(arguments)
    if code is None or not code.strip():
        raise ToolError(
            'code_interpreter takes one argument, the source as a string: {"code": "print(2 + 2)"}'
        )
    return _clean(code)


def _find(value: Any, depth: int = 0) -> str | None:
    """The text of the code in arguments of any shape."""
    if isinstance(value, Mapping):
        given = next((value[name] for name in _NAMES if name in value), None)
        if given is None and len(value) == 1:
            given = next(iter(value.values()))
        return _find(given, depth + 1)
    if isinstance(value, list) and value and all(isinstance(line, str) for line in value):
        whole = all("\n" in line for line in value)  # cells, or lines that end
        return ("" if all(line.endswith("\n") for line in value) else "\n\n" if whole else "\n").join(value)
    if not isinstance(value, str):
        return None
    if depth < 4 and value.lstrip().startswith("{"):  # arguments sent as a string of JSON
        try:
            inner = json.loads(value, strict=False)
        except (ValueError, RecursionError):
            return value
        if isinstance(inner, dict) and any(isinstance(inner.get(n), str | list | dict) for n in _NAMES):
            return _find(inner, depth + 1)
    return value


def _clean(code: str) -> str:
    if _compiles(code) and (bare := _wrapped(code)) is None:
        return code
    elif _compiles(code) and bare is not None:
        return _clean(bare)
    peeled = _peel(code)
    for guess in _guesses(peeled):
        if _compiles(_without_magics(guess)):
            return guess
    return peeled  # the error will name its line


def _wrapped(code: str) -> str | None:
    """The code in a program that does nothing because it is only a string of code, or starts with a label."""
    first, _, rest = code.strip().partition("\n")
    if first.strip() in _PYTHON and rest.strip():
        return rest
    if not code.strip().startswith(('"', "'")):
        return None
    try:
        only = ast.literal_eval(code.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(only, str) or not _LOOKS_LIKE_CODE.search(only.strip()):
        return None
    return only if any(_compiles(guess) for guess in _guesses(_peel(only))) else None


def _peel(code: str) -> str:
    """Take off what is around the code: fences, tags, quotes, a label."""
    fences = _FENCE.findall(code)
    if fences:
        labels = [label.lower() for label, _ in fences]
        wanted = [s for label, (_, s) in zip(labels, fences, strict=True) if label in _PYTHON]
        sources = wanted or [s for label, (_, s) in zip(labels, fences, strict=True) if not label]
        if not sources:
            raise ToolError(f"code_interpreter runs Python, not {labels[0]}; write it as Python code.")
        return "\n".join(map(dedent, sources))
    code = re.sub(r"\n?[ \t]*```[ \t]*\Z", "", code.rstrip())
    code = _TAGS.sub("", code)
    for quote in ('"""', "'''", "`"):
        bare = code.strip()
        if bare.startswith(quote) and quote not in bare[len(quote) :].removesuffix(quote):
            code = bare[len(quote) :].removesuffix(quote)
    first, newline, rest = code.strip("\n").partition("\n")
    return rest if newline and first.strip().lower() in _PYTHON else code.strip("\n")


def _guesses(code: str) -> Iterator[str]:
    yield code
    yield dedent(code)
    yield code.strip()
    plain = dedent(code)
    if "\\n" in plain or '\\"' in plain or "\\'" in plain:  # escaped twice
        if "\n" not in plain.strip():
            yield re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), plain)
            yield plain.replace("\\n", "\n")
        yield plain.replace('\\"', '"').replace("\\'", "'")
    yield plain.translate(_QUOTES)
    # what comes first is flush with the margin, what follows is not
    first, _, rest = plain.partition("\n")
    yield f"{first.strip()}\n{dedent(rest)}"


def _compiles(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(code, "<code>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


# ------------------------------------------------------------------ what notebooks know besides Python

_MAGIC: Final = re.compile(r"^([ \t]*)(?:([A-Za-z_]\w*)\s*=\s*)?([!%]{1,2})\s*(\S.*)$")
_PIP: Final = re.compile(
    r"^(?:(?:python3?|py)\s+-m\s+)?(?:uv\s+)?(?:pip3?|conda|mamba)\s+install\s+(?P<what>.*)$"
)
_BARE_PIP: Final = re.compile(r"^[ \t]*(?:python3? -m )?pip3? install [^()]*$")
_DROPPED: Final = frozenset("matplotlib load_ext autoreload reload_ext config pylab inline".split())
_SHELL: Final = frozenset(("ls", "cat", "mkdir", "rm", "cp", "mv", "head", "tail", "wc", "grep", "sx"))


@dataclass(frozen=True)
class Cell:
    """Code as Python can run it, and the packages that it asks to have installed."""

    code: str
    installs: tuple[str, ...] = ()
    is_shell: bool = False


def read_cell(code: str) -> Cell:
    """Notebook commands in *code* as what they do here; code that is Python stays as it is.

    Raises:
        ToolError: there is a command in it that has no meaning here.
    """
    if _compiles(code):
        return Cell(code)
    first, _, rest = code.lstrip().partition("\n")
    if re.match(r"%%(?:bash|sh|shell|script\s+(?:bash|sh))\b", first):
        return Cell(rest, is_shell=True)
    if first.startswith("%%"):
        code = rest if re.match(r"%%(?:time|timeit|capture|python3?|px)\b", first) else code
    installs: list[str] = []
    lines = []
    for number, line in enumerate(code.split("\n"), 1):
        lines.append(_translate(line, number, installs))
    translated = "\n".join(lines)
    if _compiles(translated) or installs or _fault(translated) > _fault(code):
        return Cell(translated, tuple(dict.fromkeys(installs)))
    return Cell(code)


def _without_magics(code: str) -> str:
    try:
        cell = read_cell(code)
    except ToolError:
        return ""  # it will be said when it is run
    return "" if cell.is_shell else cell.code


def _fault(code: str) -> int:
    """The line of the syntax error."""
    try:
        compile(code, "<code>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError as exc:
        return exc.lineno or 0
    except (ValueError, MemoryError, RecursionError):
        return 0
    return 1 << 30


def _translate(line: str, number: int, installs: list[str]) -> str:
    if _BARE_PIP.match(line):
        line = "!" + line.strip()
    match = _MAGIC.match(line)
    if match is None:
        return line
    indent, target, mark, command = match.groups()
    if pip := _PIP.match(command):
        installs += _requirements(pip["what"])
        return f"{indent}pass"
    if mark.startswith("!"):
        if target:
            return f"{indent}{target} = __shell__({command!r}, capture=True)"
        return f"{indent}__shell__({command!r})"
    name, _, rest = command.partition(" ")
    if name in _DROPPED:
        return f"{indent}pass"
    if name in ("time", "timeit", "prun"):
        return f"{indent}{rest.strip()}"
    if name == "cd":
        return f"{indent}__import__('os').chdir(__import__('os').path.expanduser({rest.strip()!r}))"
    if name == "pwd":
        return f"{indent}__import__('os').getcwd()"
    if name in _SHELL:
        return f"{indent}__shell__({command!r})"
    if re.match(r"[A-Za-z_]+$", name) is None or target:
        return line  # Python's own %, continued from the line before
    raise ToolError(
        f"Line {number}: {mark}{name} is a notebook command that does not work here; write it in Python."
    )


def _requirements(words: str) -> Sequence[str]:
    try:
        found = shlex.split(words, comments=True)
    except ValueError:
        found = words.split()
    return [word for word in found if not word.startswith("-")]
