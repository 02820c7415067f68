"""Where a small model's old text is in a file, and the file with the new one there. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from agentkit.errors import ToolError

__all__ = ["replace_text"]

_MOST_LINES: Final = 20_000  # of a file that is searched for what comes near
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r"}


@dataclass(frozen=True, slots=True)
class _Span:
    """A stretch of the file's lines that the old text means, and what to indent the new one's lines by."""

    first: int
    last: int  # not in it any more
    old_indent: str = ""
    indent: str = ""


def replace_text(text: str, old: str, new: str, everywhere: bool = False) -> tuple[str, str]:
    """*text* with *new* for *old*, and in words where that was.

    An old text that differs only in white space is taken for what is there, if that is in one place only. Raises
    `ToolError`, with what comes nearest, if *old* is not there, or more than once without *everywhere*.
    """
    if not old:
        raise ToolError("old_text is empty; give the text to replace, or use write_file with append=true")
    if old == new:
        raise ToolError("old_text and new_text are the same; nothing to change")
    ends = "\r\n" if "\r\n" in text and text.count("\n") == text.count("\r\n") else "\n"
    for was, becomes in _readings(old, new):
        was, becomes = (re.sub(r"\r?\n", ends, part) for part in (was, becomes))
        count = text.count(was) if was else 0
        if count > 1 and not everywhere:
            lines = ", ".join(str(n) for n in _lines_of(text, was)[:8])
            raise ToolError(
                f"old_text is there {count} times (lines {lines}); add lines around it, or use replace_all=true"
            )
        if count:
            at = ", ".join(f"line {n}" for n in _lines_of(text, was)[:8])
            return text.replace(was, becomes), at + (f" and {count - 8} more" if count > 8 else "")
    spans = _loose(text, old)
    if len(spans) == 1:
        changed = _put(text, spans[0], new, ends)
        if changed == text:
            raise ToolError("new_text is there already; nothing to change")
        first, last = spans[0].first + 1, spans[0].last
        return changed, f"lines {first}-{last}, which differed from old_text only in white space"
    if len(spans) > 1:
        at = ", ".join(str(span.first + 1) for span in spans[:8])
        raise ToolError(
            f"old_text is not there exactly, and nearly in {len(spans)} places (lines {at}); copy one of them "
            "exactly, with lines around it"
        )
    if len(new.strip()) >= 8 and new.strip() in text.replace("\r\n", "\n"):
        raise ToolError("old_text is not in the file, and new_text is there already; read the file again")
    raise ToolError(_nearest(text, old))


def _readings(old: str, new: str) -> list[tuple[str, str]]:
    """As it was sent, and as it was meant if its line ends were escaped twice."""
    readings = [(old, new)]
    if "\\n" in old and "\n" not in old.strip("\n"):
        readings.append((_unescaped(old), _unescaped(new)))
    return readings


def _unescaped(text: str) -> str:
    return re.sub(r"\\([ntr\"'\\])", lambda m: _ESCAPES.get(m[1], m[1]), text)


def _lines_of(text: str, part: str) -> list[int]:
    numbers: list[int] = []
    at, line, counted = 0, 1, 0
    while (at := text.find(part, at)) >= 0 and len(numbers) < 9:
        line += text.count("\n", counted, at)
        counted = at
        numbers.append(line)
        at += len(part)
    return numbers


def _loose(text: str, old: str) -> list[_Span]:
    """The stretches of lines that are *old* but for white space at their ends, or one indentation for all."""
    wanted = [line.rstrip() for line in old.splitlines()]
    while wanted and not wanted[0]:
        del wanted[0]
    while wanted and not wanted[-1]:
        del wanted[-1]
    if not wanted:
        return []
    lines = [line.rstrip() for line in text.split("\n")]
    count, key = len(wanted), wanted[0].strip()
    spans = []
    for first, line in enumerate(lines[: len(lines) - count + 1]):
        if line.strip() != key:
            continue
        had, has = _indent(wanted[0]), _indent(line)
        here = lines[first : first + count]
        if here == wanted or (
            has != had
            and all(
                not there if not line else line.startswith(had) and there == has + line[len(had) :]
                for line, there in zip(wanted, here, strict=True)
            )
        ):
            spans.append(_Span(first, first + count, had, has))
    return spans


def _put(text: str, span: _Span, new: str, ends: str) -> str:
    lines = text.split("\n")
    replacement = [line.rstrip("\r") for line in new.strip("\n").split("\n")] if new.strip() else []
    if span.old_indent != span.indent:
        if any(line.strip() and not line.startswith(span.old_indent) for line in replacement):
            raise ToolError("old_text is indented otherwise in the file; copy it exactly, with its spaces")
        replacement = [
            span.indent + line[len(span.old_indent) :] if line.strip() else line for line in replacement
        ]
    tail = "\r" if ends == "\r\n" else ""
    put = [line + tail for line in replacement]
    if span.last == len(lines) and put:  # the file's last line has no end
        put[-1] = put[-1].removesuffix("\r")
    return "\n".join(lines[: span.first] + put + lines[span.last :])


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _nearest(text: str, old: str) -> str:
    """What the model is told: the lines that have most in common with what it looked for."""
    lines = text.splitlines()[:_MOST_LINES]
    wanted = [line.strip() for line in old.splitlines() if line.strip()]
    if not wanted or not any(line.strip() for line in lines):
        return "old_text is not in the file; read it first"
    places: dict[str, list[int]] = {}
    for n, line in enumerate(lines):
        places.setdefault(line.strip(), []).append(n)
    votes: dict[int, int] = {}
    for offset, line in enumerate(wanted[:200]):
        for n in places.get(line, ())[:50]:
            votes[max(n - offset, 0)] = votes.get(max(n - offset, 0), 0) + 1
    if votes:
        first = max(votes, key=lambda n: (votes[n], -n))
    else:
        short = [line for line in places if line and len(line) < 300][:3000]
        near = get_close_matches(max(wanted[:5], key=len)[:300], short, n=1, cutoff=0.5)
        if not near:
            return "old_text is not in the file; read it again and copy the text exactly"
        offset = wanted.index(max(wanted[:5], key=len))
        first = max(places[near[0]][0] - offset, 0)
    count = min(max(len(old.splitlines()), 1), 12)
    found = "\n".join(line[:300] for line in lines[first : first + count])
    return f"old_text is not in the file. Nearest is line {first + 1}:\n{found}\nCopy exactly what is there into old_text"
