"""Text that may be a call, in the pieces it comes in: where it ends, and the calls that it begins with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

from agentkit.parsing.calls import Wanted

__all__ = ["Held", "Kind", "split_values"]

Kind: TypeAlias = Literal["tag", "wrap", "fence", "bare", "xml", "react"]

# What a held call goes on with, whatever comes after it: outside of its strings, when they are known to be in double quotes, and
# within one. The tokens below are looked for after that.
_OUTSIDE = re.compile(r"""(?:[^"\\{}\[\]<`]+|\\.|<(?=[^/t])|"(?!"")[^"\\<`]*+"(?!""|"?\Z))*""", re.DOTALL)
_INSIDE = re.compile(r"""(?:[^"\\<`]+|\\.|<(?=[^/t]))*""", re.DOTALL)
_UNFINISHED = re.compile(r"(?:<[^<>]{0,40}|`{1,2}|\\)\Z")  # may be the start of a token of a held call
_TOKENS = r'\\.|"""|[{}\[\]"\']|</?think>|</?tool_call>'
_ENDS: dict[Kind, re.Pattern[str]] = {
    "tag": re.compile(_TOKENS, re.DOTALL),
    "wrap": re.compile(_TOKENS + r"|</[A-Za-z_][\w-]{0,30}>", re.DOTALL),
    "fence": re.compile(_TOKENS + "|```+", re.DOTALL),
    "bare": re.compile(_TOKENS + "|```+", re.DOTALL),
    "xml": re.compile(r"<parameter[=\s]|</parameter>|</?function[=\s>]|</?tool_call>|</?think>"),
    "react": re.compile(r"</?tool_call>|<function=|</?think>"),
}


class Held:
    """Text that may be a call, in the pieces it came in, and where in its JSON it has got to."""

    def __init__(self, kind: Kind, lead: str, name: str) -> None:
        self.kind, self.lead, self.name = kind, lead, name
        self.maybe_end: tuple[int, str] | None = (
            None  # an end inside a string, which counts if no other comes
        )
        self.made = 0  # up to where it is calls that have been made, which it begins with
        self.listed = False  # it is a list of objects
        self._first = kind in ("tag", "fence", "bare")  # all objects so far are such calls
        self._objects: list[tuple[int, int]] = []  # that are complete, and not read
        self._opened = 0  # where the one begins that is being read
        self._unread: list[str] = []  # the pieces from `made` on
        self._pieces: list[str] = []
        self._length = 0
        self._before = ""  # the character before the carry
        self._carry = ""  # the end of the last piece, which may be half of a token
        self._depth = 0
        self._quote = ""
        self._quotes = ""  # the quote that the object is written with, once known
        self._in_parameter = False

    def take(self) -> str:
        return "".join(self._pieces)

    def first_calls(self, read: Callable[[str], Wanted | None]) -> Iterator[Wanted]:
        """What *read* makes of the objects that have come to their end, until it makes nothing of one."""
        objects, self._objects = self._objects, []
        for begin, end in objects:
            text, at = "".join(self._unread), self.made
            call = read(text[begin - at : end - at])
            if call is None:
                self._first = False
                self._unread.clear()
                return
            self._unread, self.made = [text[end - at :]], end
            yield call

    def scan(self, text: str, *, final: bool) -> tuple[int, str] | None:
        """Take in *text*; where and with which token what is held ends, if its end is there."""
        self._pieces.append(text)
        if self._first:
            self._unread.append(text)
        text = self._carry + text
        base, done = self._length, 0
        search = _ENDS[self.kind].search
        while True:
            if self._quotes == '"' and self._quote in ("", '"'):
                done = (_INSIDE if self._quote else _OUTSIDE).match(text, done).end()  # type: ignore[union-attr]
                if done == len(text):
                    break
            token = search(text, done)
            if token is None:
                unfinished = None if final else _UNFINISHED.search(text, max(done, len(text) - 42))
                done = unfinished.start() if unfinished else len(text)
                break
            word = token[0]
            # a quote or a fence at the very end may go on in the next piece
            if (
                not final
                and word[0] in '"`'
                and len(text) - token.start() < 3 + len(word)
                and not text[token.end() :].strip(word[0])
            ):
                done = token.start()
                break
            done = token.end()
            if word[:9] == "<function":
                if base + token.start() == 0:
                    continue
                if (
                    self._in_parameter and self.maybe_end is not None
                ):  # the end in the value was the call's after all
                    return self.maybe_end
            # in broken JSON a fence ends it only on a line of its own: in a line it may be the program's
            if (
                word[:3] == "```"
                and self._depth > 0
                and not (text[: token.start()] or self._before).endswith("\n")
            ):
                continue
            before = text[max(0, token.start() - 1) : token.start()] or self._before
            if self.kind == "react" and word.endswith("think>") and before in ('"', "'", "`"):
                continue  # it is quoted
            if self._takes(word):
                if self._first and word in "{[}" and not self._quote:
                    self._note(word, base + token.start())
                continue
            at = base + (token.end() if word in "}]" else token.start())
            word = "" if word in "}]" else word
            if self._quote or self._in_parameter:
                if self.maybe_end is None:
                    self.maybe_end = (at, word)
                continue
            return at, word
        self._before = text[done - 1] if done else self._before
        self._carry = text[done:]
        self._length += done
        return None

    def _note(self, bracket: str, at: int) -> None:
        """An object begins or ends: one at the top, or in the list that is there."""
        if bracket == "[":
            self.listed = self.listed or (self._depth == 1 and not self.made and not self._objects)
        elif bracket == "{" and self._depth == self.listed + 1:
            self._opened = at
        elif bracket == "}" and self._depth == self.listed:
            self._objects.append((self._opened, at + 1))

    def _takes(self, token: str) -> bool:
        """Whether *token* is part of what is held, and not its end."""
        if self.kind == "xml":
            if token.startswith("<parameter"):
                self._in_parameter = True
            elif token == "</parameter>":
                self._in_parameter = False
            else:
                return False
            return True
        if token in ("{", "[", "}", "]"):
            if not self._quote:
                self._depth += 1 if token in "{[" else -1
                return not (self.kind == "bare" and self._depth <= 0)
            return True
        if token[0] == "\\":
            return True
        if token in ('"""', '"', "'"):
            if self._quote:
                if token == self._quote:
                    self._quote = ""
            elif not (token == "'" and self._quotes == '"'):
                self._quote = token
                self._quotes = self._quotes or token[0]
            return True
        if self.kind == "wrap":
            return token not in (f"</{self.name}>", "<tool_call>", "</tool_call>", "<think>", "</think>")
        return False


def split_values(text: str) -> tuple[list[str], str]:
    """JSON values that stand one after another, and the text after the last one that is complete."""
    held, values, start = Held("bare", "", ""), [], 0
    for token in _ENDS["bare"].finditer(text):
        if held._takes(token[0]) or token[0] not in ("}", "]"):
            continue
        begin = re.compile(r"[\s,;]*").match(text, start)
        assert begin is not None
        values.append(text[begin.end() : token.end()])
        start, held = token.end(), Held("bare", "", "")
        following = re.compile(r"[\s,;]*").match(text, start)
        if following is None or text[following.end() : following.end() + 1] not in ("{", "["):
            break
    return values, text[start:]
