"""Text of a turn -> pieces: prose, calls with the text they were read from, think tags. Incremental; never raises.

The scanner is a small machine. Prose runs through; at something that may open a call it starts to hold text back, and
lets go as soon as it knows. What turns out to be no call is handed on as text. Nothing is scanned twice but text held
for a call that never ended, and each such disappointment switches that kind of call off for the rest of the turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from agentkit.parsing.calls import CUT_OFF, Schemas, Unreadable, Wanted, read_arguments, read_calls
from agentkit.parsing.coder_xml import read_function
from agentkit.parsing.react import read_step

__all__ = ["Found", "Markup", "Piece", "Prose", "Scanner", "ThinkTag", "Thought"]


@dataclass(frozen=True, slots=True)
class Prose:
    text: str


@dataclass(frozen=True, slots=True)
class Found:
    """Calls, and the text they were read from."""

    calls: tuple[Wanted | Unreadable, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Markup:
    """Text around calls that says nothing; `echo` where it is only markup if a call follows."""

    text: str
    echo: bool = False


@dataclass(frozen=True, slots=True)
class Thought:
    """The thought of a turn in ReAct form."""

    text: str


@dataclass(frozen=True, slots=True)
class ThinkTag:
    opens: bool


Piece: TypeAlias = Prose | Found | Markup | Thought | ThinkTag
Kind: TypeAlias = Literal["tag", "wrap", "fence", "bare"]

_SLICE = 4096  # text is scanned in slices of this many characters, so that putting text back stays cheap
_RETRIES = 16  # how often the text after a call that ran too far is read again

_SPOT = re.compile(r"[<`{\[]")
_TAG = re.compile(r"""<(/?)([A-Za-z_][\w-]{0,30})(=[^<>\n]{1,100}|\s+name\s*=\s*["'][^"'<>\n]{1,100}["'])?\s?>""")
_TAG_START = re.compile(r"</?([A-Za-z_][\w-]{0,30}([=\s][^<>\n]{0,120})?)?\Z")
_BACKTICKS = re.compile(r"`+")
_SPACE = re.compile(r"\s*")
_FENCE_INFO = re.compile(r"[^\n`{\[<]{0,60}")
_FENCE_END = re.compile(r"(?:\A|\n)[ \t]{0,20}```+")
_FENCE_END_START = re.compile(r"\n[ \t]{0,20}`*\Z")
_NAMED_PLAINLY = re.compile(r"""["'](?:name|function|tool|tool_name|function_name|action)["']\s*:\s*["']([^"'\n]{1,200})["']""")
_KEYS = frozenset(
    "name function tool tool_name function_name type id arguments parameters args tool_calls function_calls calls "
    "tool_call function_call action thought thoughts reasoning input action_input tool_input".split()
)
_HTML = frozenset("a b code div em i li p pre span strong td".split())
# what ends a call that is not well-formed, wherever it stands
_BOUNDARY = {
    "tag": re.compile(r"</?tool_call>"),
    "wrap": re.compile(r"</?tool_call>|</[A-Za-z_][\w-]{0,30}>"),
    "fence": re.compile(r"</?tool_call>|```"),
    "bare": re.compile(r"</?tool_call>|```"),
}
_BOUNDARY_LENGTH = 40
_LOOSE_END = re.compile(r"</?tool_call>|\n[ \t]*\n")
_LOOSE_LENGTH = 400
_XML_TOKEN = re.compile(r"<parameter[=\s]|</parameter>|</function>|</?tool_call>|<function[=\s]")
_GLUE = {"tag": re.compile(r"[\s,;}\]]+"), "other": re.compile(r"[\s,;]+")}
_REACT_START = ("Thought:", "Action:", "Final Answer:")


class Scanner:
    """Scans one stretch of a turn: its thinking, or what is not thinking.

    In thinking, think tags and ReAct labels are text. Out of it, a think tag stops the scanner: `rest()` has what
    came after the tag.
    """

    def __init__(self, tools: Schemas, *, thinking: bool = False) -> None:
        self._tools = tools
        self._thinking = thinking
        self._pieces: list[Piece] = []
        self._todo: list[str] = []  # slices to scan, last first
        self._buffer = ""  # the slice that is being scanned, and where in it we are
        self._at = 0
        self._state: Callable[[], bool] = self._prose if thinking else self._start
        self._stopped = False
        self._off: set[Kind | Literal["react"]] = {"react"} if thinking else set()
        self._spoke = False  # there was visible text
        self._found = False  # there were calls
        self._tagged = False  # there was a <tool_call>
        self._retries = _RETRIES
        self._fenced = False  # a fence was opened that had a tagged call in it
        # of the call that is being held back
        self._kind: Kind = "bare"
        self._lead = ""  # what opened it
        self._held: list[str] = []
        self._object = _Object()
        self._glue: list[str] = []  # between two calls
        self._sole: tuple[Wanted, ...] = ()  # of an unknown name, which counts if nothing else is said
        self._backticks = 0
        self._in_parameter = False
        self._line = False

    def feed(self, text: str) -> list[Piece]:
        if len(text) <= _SLICE:
            self._todo.append(text)
        else:
            self._put_back(text)
        self._run()
        return self._take()

    def close(self, *, cut: bool = False) -> list[Piece]:
        """The turn is over; `cut` by the token limit."""
        while not self._stopped:
            self._finish(cut)
            if not self._todo:
                break
            self._run()
        return self._take()

    def abandon(self) -> list[Piece]:
        """The thinking is over: what was held back is text."""
        self._say(self._lead_text() + self._buffer[self._at :])
        return self._take()

    def rest(self) -> list[str]:
        """What is left after a think tag, in slices, last first."""
        return [*self._todo, self._buffer[self._at :]]

    @property
    def plain(self) -> bool:
        """Whether text without `<`, a backtick, a bracket or `Action:` would run through as it is."""
        return self._at == len(self._buffer) and self._state == self._prose

    # -------------------------------------------------------------- the engine of the machine

    def _run(self) -> None:
        while self._todo and not self._stopped:
            self._buffer = self._buffer[self._at :] + self._todo.pop()
            self._at = 0
            while not self._stopped and self._state():
                pass

    def _take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _put_back(self, text: str) -> None:
        self._todo += [text[i : i + _SLICE] for i in range(0, len(text), _SLICE)][::-1]

    def _again(self, text: str) -> None:
        """Scan *text* (again), before what follows."""
        self._put_back(text + self._buffer[self._at :])
        self._buffer, self._at = self._todo.pop() if self._todo else "", 0

    def _say(self, text: str) -> None:
        if text:
            self._pieces.append(Prose(text))
            self._spoke = self._spoke or not text.isspace()

    def _mark(self, text: str) -> None:
        if text:
            self._pieces.append(Markup(text))

    def _call(self, calls: tuple[Wanted | Unreadable, ...], source: str) -> None:
        self._pieces.append(Found(calls, source))
        self._found = True

    def _lead_text(self) -> str:
        text = self._lead + "".join(self._held) + "".join(self._glue)
        self._lead = ""
        self._held = []
        self._glue = []
        return text

    # -------------------------------------------------------------- prose

    def _start(self) -> bool:
        """The first visible characters tell whether the turn is in ReAct form."""
        b = self._buffer
        at = _SPACE.match(b, self._at).end()  # type: ignore[union-attr]
        self._say(b[self._at : at])
        self._at = at
        if at == len(b):
            return False
        head = b[at : at + 20].lstrip("*")
        for label in _REACT_START:
            if head.startswith(label):
                self._state = self._react if label != "Action:" else self._react_check
                return True
            if label.startswith(head) or (not head and len(b) - at < 3):
                return False
        self._state = self._prose
        return True

    def _prose(self) -> bool:
        b, at = self._buffer, self._at
        spot = _SPOT.search(b, at)
        end = spot.start() if spot else len(b)
        if "react" not in self._off and self._tools:
            action = b.find("\nAction:", at, end)
            if action >= 0:
                self._say(b[at : action + 1])
                self._at = action + 1
                self._state = self._react_check
                return True
            if not spot:  # may the end become one?
                newline = b.rfind("\n", max(at, end - 7))
                if newline >= 0 and "\nAction:".startswith(b[newline:]):
                    end = newline
        if end > at:
            self._say(b[at:end])
            self._at = end
        if not spot:
            return False
        match b[end]:
            case "<":
                return self._angle()
            case "`":
                return self._backtick()
            case _:
                opens = "bare" not in self._off and self._opens_call(end)
                if opens:
                    return self._hold("bare", "", end)
        return self._literal(opens)

    def _literal(self, opens: bool | None, length: int = 1) -> bool:
        """What looked special is text; when that is not known yet, wait."""
        if opens is None:
            return False
        self._say(self._buffer[self._at : self._at + length])
        self._at += length
        return True

    def _opens_call(self, at: int, *, any_key: bool = False) -> bool | None:
        """Whether a JSON object that may be a call opens at *at*; None when that cannot be known yet."""
        b = self._buffer
        i, limit = at, at + 200
        while i < len(b) and i < limit and (b[i] in "{[" or b[i].isspace()):
            i += 1
        if i == len(b):
            return None if i < limit else False
        if b[i] not in "\"'" or "{" not in b[at:i]:
            return False
        if any_key:
            return True
        end = b.find(b[i], i + 1, i + 20)
        if end < 0:
            return None if len(b) < i + 20 else False
        return b[i + 1 : end] in _KEYS

    def _angle(self) -> bool:
        b, at = self._buffer, self._at
        tag = _TAG.match(b, at)
        if tag is None:
            return self._literal(None if _TAG_START.match(b, at) else False)
        closing, name, attribute = tag[1] == "/", tag[2], tag[3]
        if name == "think" and not attribute and not self._thinking:
            self._pieces.append(ThinkTag(not closing))
            self._at = tag.end()
            self._stopped = True
            return True
        if closing:
            if name == "tool_call" and self._tagged:
                self._mark(tag[0])
                self._at = tag.end()
                return True
            return self._literal(False, len(tag[0]))
        if name == "tool_call" and not attribute:
            self._lead = tag[0]
            self._at = tag.end()
            self._state = self._tag
            return True
        if name == "function" and attribute:
            self._state = self._xml
            self._in_parameter = False
            self._lead = ""
            self._line = False
            return True
        if attribute or "wrap" in self._off:
            return self._literal(False, len(tag[0]))
        opens_at = _SPACE.match(b, tag.end(), tag.end() + 100).end()  # type: ignore[union-attr]
        opens = None if opens_at == len(b) else b[opens_at] in "{[" and self._opens_call(opens_at)
        if opens:
            return self._hold("wrap", b[at:opens_at], opens_at)
        return self._literal(opens, len(tag[0]))

    def _backtick(self) -> bool:
        b, at = self._buffer, self._at
        run = _BACKTICKS.match(b, at)
        assert run is not None
        length = run.end() - at
        if length < 3:
            if run.end() == len(b):
                return False
            self._backticks = length
            self._state = self._inline
            return self._literal(False, length)
        self._at = at + 3
        if self._fenced:
            self._fenced = False
            self._mark("```")
            return True
        self._lead = "```"
        self._state = self._fence
        return True

    def _inline(self) -> bool:
        """Code in backticks, until they come again or the line ends."""
        b, at = self._buffer, self._at
        m = re.compile(r"`+|\n").search(b, at)
        self._say(b[at : m.start() if m else len(b)])
        if m is None:
            self._at = len(b)
            return False
        self._at = m.start()
        if m[0] == "\n":
            self._state = self._prose
            return True
        if m.end() == len(b) and len(m[0]) < 3:
            return False
        if len(m[0]) == self._backticks:
            self._state = self._prose
        return self._literal(False, len(m[0]))

    def _fence(self) -> bool:
        """After three backticks: a fenced call, or code."""
        b, at = self._buffer, self._at
        info = _FENCE_INFO.match(b, at)
        assert info is not None
        after = info.end()
        if after == len(b) and after - at < 60:
            return False
        if after < len(b) and b[after] == "`":  # ```code``` in a line, or more backticks
            more = _BACKTICKS.match(b, after)
            assert more is not None
            self._say(self._lead + b[at : more.end()])
            self._lead = ""
            self._at = more.end()
            self._state = self._fence if after == at else self._prose
            return True
        opens: bool | None = False
        start = _SPACE.match(b, after, after + 100).end()  # type: ignore[union-attr]
        if start == len(b) and start < after + 100:
            return False
        if start < len(b) and "fence" not in self._off:
            label = info[0].strip().lower()
            if b[start] in "{[":
                opens = self._opens_call(start, any_key=label in ("", "json", "tool_call", "tool_code"))
            elif b[start] == "<" and (label.startswith("tool") or not self._spoke):
                tag = _TAG.match(b, start)
                if tag is None:
                    opens = None if _TAG_START.match(b, start) else False
                elif (tag[2], tag[1]) == ("tool_call", "") or (tag[2] == "function" and tag[3]):
                    self._mark(self._lead + b[at:start])
                    self._lead = ""
                    self._at = start
                    self._fenced = True
                    self._state = self._prose
                    return True
        if opens is None:
            return False
        if opens:
            return self._hold("fence", self._lead + b[at:start], start)
        self._say(self._lead + b[at:after])
        self._lead = ""
        self._at = after
        self._state = self._code
        return True

    def _code(self) -> bool:
        """A fenced block of an answer, until its fence closes."""
        b, at = self._buffer, self._at
        end = _FENCE_END.search(b, at)
        if end is not None and end[0].startswith("\n"):
            self._say(b[at : end.end()])
            self._at = end.end()
            self._state = self._prose
            return True
        partial = _FENCE_END_START.search(b, max(at, len(b) - 24))
        stop = partial.start() if partial else len(b)
        self._say(b[at:stop])
        self._at = stop
        return False

    # -------------------------------------------------------------- calls in JSON

    def _hold(self, kind: Kind, lead: str, at: int) -> bool:
        self._kind = kind
        self._lead = lead
        self._held = []
        self._glue = []
        self._object = _Object()
        self._at = at
        self._state = self._json if self._retries else self._broken
        return True

    def _tag(self) -> bool:
        """After `<tool_call>`."""
        b = self._buffer
        at = _SPACE.match(b, self._at).end()  # type: ignore[union-attr]
        self._held.append(b[self._at : at])
        self._at = at
        if at == len(b):
            return False
        if b[at] in "{[":
            return self._hold("tag", self._lead_text(), at)
        if b[at] == "`":
            fence = re.compile(r"```\w*\s").match(b, at)
            if fence is None:
                if len(b) - at < 20:
                    return False
                self._state = self._loose
                return True
            self._held.append(fence[0])
            self._at = fence.end()
            return True
        if b[at] == "<":
            tag = _TAG.match(b, at)
            if tag is None and _TAG_START.match(b, at):
                return False
            if tag is not None and tag[2] == "function" and tag[3] and not tag[1]:
                self._lead = self._lead_text()
                self._state = self._xml
                self._in_parameter = False
                self._line = False
                self._tagged = True
                return True
            if tag is not None and tag[2] == "tool_call":  # an empty pair, or the opening tag twice
                if tag[1] and not self._found:
                    self._call((Unreadable("", "the call is empty"),), self._lead_text() + tag[0])
                    self._state = self._prose
                else:
                    self._mark(self._lead_text() + ("" if not tag[1] else tag[0]))
                    self._lead = "" if tag[1] else tag[0]
                    self._state = self._prose if tag[1] else self._tag
                self._at = tag.end()
                self._tagged = True
                return True
        self._state = self._loose
        return True

    def _loose(self) -> bool:
        """`<tool_call>` and then something that is neither JSON nor XML: a mention of the tag, or a bad call."""
        b, at = self._buffer, self._at
        end = _LOOSE_END.search(b, at, at + _LOOSE_LENGTH)
        if end is None and len(b) - at < _LOOSE_LENGTH:
            return False
        inner = b[at : end.start()].strip() if end else ""
        self._state = self._prose
        if end is None or end[0] != "</tool_call>" or not self._is_meant(inner):
            self._say(self._lead_text())
            return True
        self._at = end.end()
        self._tagged = True
        self._call((self._read_loose(inner),), self._lead_text() + b[at : end.end()])
        return True

    def _is_meant(self, inner: str) -> bool:
        return any(c in inner for c in '{("') or inner in self._tools

    def _read_loose(self, inner: str) -> Wanted | Unreadable:
        """`f`, `f {"a": 1}` and the like."""
        if inner in self._tools:
            return Wanted(inner, {})
        m = re.match(r"([\w.-]+)\s*[:(]?\s*(\{.*\})\s*\)?\Z", inner, re.DOTALL)
        if m is not None and m[1] in self._tools:
            read = read_arguments(m[2])
            if not isinstance(read, Unreadable):
                return Wanted(m[1], *read)
        return Unreadable(inner, 'write a call as {"name": …, "arguments": {…}}')

    def _json(self) -> bool:
        b = self._buffer
        at, verdict = self._object.scan(b, self._at)
        self._held.append(b[self._at : at])
        self._at = at
        match verdict:
            case "more":
                return False
            case "done":
                return self._object_done()
            case "edge":
                end = _BOUNDARY[self._kind].match(b, at)
                if end is not None:
                    return self._segment_ended()
                if len(b) - at < _BOUNDARY_LENGTH and (_TAG_START.match(b, at) or b[at:] in ("`", "``")):
                    return False
            case _:
                pass
        # not well-formed: from here on a boundary counts wherever it stands, and so does one we took for a string's
        text = "".join(self._held)
        end = _BOUNDARY[self._kind].search(text)
        if end is not None:
            self._retries -= 1
            self._held = [text[: end.start()]]
            self._again(text[end.start() :])
            return self._segment_ended()
        self._held = [text]
        self._state = self._broken
        return True

    def _broken(self) -> bool:
        """A call that is not well-formed, until something that must be its end."""
        b, at = self._buffer, self._at
        end = _BOUNDARY[self._kind].search(b, at)
        if end is not None:
            self._held.append(b[at : end.start()])
            self._at = end.start()
            return self._segment_ended()
        keep = len(b)
        for mark in ("<", "`"):
            last = b.rfind(mark, max(at, len(b) - _BOUNDARY_LENGTH), keep)
            if last >= 0 and (mark == "`" or _TAG_START.match(b, last)):
                keep = last
        while mark == "`" and keep > at and len(b) - keep < 3 and b[keep - 1] == "`":
            keep -= 1
        self._held.append(b[at:keep])
        self._at = keep
        return False

    def _object_done(self) -> bool:
        text = "".join(self._held)
        reading = read_calls(text, self._tools, repair=self._kind == "bare")
        if isinstance(reading, Unreadable) and not reading.empty and self._kind != "bare":
            self._held = [text]
            self._state = self._broken
            return True
        self._settle(reading, text)
        return True

    def _segment_ended(self) -> bool:
        text = "".join(self._held)
        self._settle(read_calls(text, self._tools, repair=True), text)
        return True

    def _settle(self, reading: list[Wanted] | Unreadable, text: str) -> None:
        """Decide whether what was read is a call here, and go on after it."""
        kind, lead, glue = self._kind, self._lead, "".join(self._glue)
        self._lead, self._held, self._glue = "", [], []
        self._state = self._after
        if isinstance(reading, Unreadable):
            if kind == "tag" or (not reading.empty and self._names_tool(text)):
                self._call((Unreadable(text.strip(), reading.reason),), lead + glue + text)
                self._tagged = self._tagged or kind == "tag"
            elif lead.startswith("<tools>"):
                self._pieces.append(Markup(lead + glue + text, echo=True))
            else:
                self._say(lead + glue + text)
                self._state = self._code if kind == "fence" else self._prose
                if lead == "" and kind == "wrap":
                    self._state = self._prose
            return
        known = any(call.name in self._tools for call in reading)
        if kind == "tag":
            trusted = True
            self._tagged = True
        elif known:
            trusted = all(call.exact or call.arguments for call in reading) and (
                all(call.exact for call in reading) or '"arguments"' in text or '"parameters"' in text
            )
        else:
            name = re.match(r"<([\w-]+)", lead)
            trusted = kind == "wrap" and self._exact(reading, text) and (name is None or name[1] not in _HTML)
            if kind in ("bare", "fence") and not self._spoke and not self._found and self._tools:
                if len(reading) == 1 and self._exact(reading, text) and not glue:
                    self._sole = tuple(reading)
                    self._lead = lead
                    self._held = [text]
                    self._state = self._sole_call
                    return
        if trusted:
            self._call(tuple(reading), lead + glue + text)
        else:
            self._say(lead + glue + text)
            self._state = self._code if kind == "fence" else self._prose

    def _exact(self, reading: list[Wanted], text: str) -> bool:
        return all(call.exact for call in reading) and re.search(r"""["'](arguments|parameters)["']""", text) is not None

    def _names_tool(self, text: str) -> bool:
        name = _NAMED_PLAINLY.search(text, 0, 2000)
        return name is not None and name[1].strip() in self._tools

    def _after(self) -> bool:
        """After a call: its closing tag or fence, another call, or something else."""
        b = self._buffer
        glue = _GLUE["tag" if self._kind == "tag" else "other"].match(b, self._at)
        if glue is not None:
            self._glue.append(glue[0])
            self._at = glue.end()
        at = self._at
        if at == len(b):
            return False
        if b[at] in "{[":
            opens = True if self._kind == "tag" else self._opens_call(at)
            if opens is None:
                return False
            if opens:
                self._object = _Object()
                self._state = self._json if self._retries else self._broken
                return True
        elif b[at] == "`" and self._kind in ("tag", "fence"):
            if b[at:] in ("`", "``"):
                return False
            if b.startswith("```", at):
                self._mark("".join(self._glue) + "```")
                self._glue = []
                self._at = at + 3
                self._state = self._prose if self._kind == "fence" else self._after
                return True
        elif b[at] == "<" and self._kind != "bare":
            tag = _TAG.match(b, at)
            if tag is None and _TAG_START.match(b, at):
                return False
            if tag is not None and tag[1] and tag[2] != "think":
                self._mark("".join(self._glue) + tag[0])
                self._glue = []
                self._at = tag.end()
                self._state = self._after if self._kind == "fence" else self._prose
                return True
        elif b[at] == "<":
            if b.startswith("</tool_call>", at):
                self._mark("".join(self._glue) + "</tool_call>")
                self._glue = []
                self._at = at + len("</tool_call>")
                self._state = self._prose
                return True
            if "</tool_call>".startswith(b[at:]):
                return False
        text, self._glue = "".join(self._glue), []
        if self._kind in ("tag", "wrap"):
            self._mark(text)
        else:
            self._say(text)
        self._state = self._code if self._kind == "fence" else self._prose
        return True

    def _sole_call(self) -> bool:
        """After a call of an unknown name, the first thing said: it is a call if it stays the only thing."""
        b = self._buffer
        at = _SPACE.match(b, self._at).end()  # type: ignore[union-attr]
        self._held.append(b[self._at : at])
        self._at = at
        if at == len(b):
            return False
        if self._kind == "fence":
            if b[at:] in ("`", "``"):
                return False
            if b.startswith("```", at):
                self._held.append("```")
                self._at = at + 3
                self._kind = "bare"
                return True
        self._say(self._lead_text())
        self._state = self._code if self._kind == "fence" else self._prose
        return True

    # -------------------------------------------------------------- calls in XML

    def _xml(self) -> bool:
        b = self._buffer
        while True:
            token = _XML_TOKEN.search(b, self._at)
            if token is None:
                break
            at = token.start()
            line = (b[self._at : at] or ("\n" if self._line else "-")).rstrip(" \t").endswith("\n")
            word = token[0]
            ends = word[:10] not in ("<parameter", "</paramete")
            if word.startswith("<function") and not self._held:
                ends = False
            elif self._in_parameter and ends and not line:
                if word != "</function>":
                    ends = False
                else:
                    tail = b[token.end() : token.end() + 40].lstrip()
                    ends = tail.startswith("</tool_call>")
                    if not ends and "</tool_call>".startswith(tail) and len(b) - token.end() < 40:
                        self._keep_xml(at)
                        return False
            if ends:
                stop = token.end() if word == "</function>" else at
                self._held.append(b[self._at : stop])
                self._at = stop
                return self._xml_done()
            if word.startswith("<parameter"):
                self._in_parameter = True
            elif word == "</parameter>":
                self._in_parameter = False
            self._held.append(b[self._at : token.end()])
            self._at = token.end()
            self._line = False
        last = b.rfind("<", max(self._at, len(b) - 14))
        keep = last if last >= 0 else len(b)
        self._keep_xml(keep)
        return False

    def _keep_xml(self, keep: int) -> None:
        """Hold what cannot be the start of a token; a newline before it is part of what is looked at."""
        held = self._buffer[self._at : keep]
        if held:
            self._line = held.rstrip(" \t").endswith("\n") or (self._line and not held.strip(" \t"))
            self._held.append(held)
            self._at = keep

    def _xml_done(self, cut: bool = False) -> bool:
        text = "".join(self._held)
        call = read_function(text, self._tools, cut=cut)
        self._call((call,), self._lead_text())
        self._kind = "tag"
        self._tagged = True
        self._state = self._after
        return True

    # -------------------------------------------------------------- ReAct

    def _react_check(self) -> bool:
        """At `Action:`: only when `Action Input:` follows is it more than a word."""
        b, at = self._buffer, self._at
        line = re.compile(r"\**Action:[^\n]{1,200}(\n\s{0,20})").match(b, at)
        if line is None:
            waiting = "\n" not in b[at:] and len(b) - at < 210
        else:
            word = b[line.end() : line.end() + 17].lstrip("*")
            waiting = "Action Input:".startswith(word) and len(word) < 13
            if word.startswith("Action Input:") and self._tools:
                self._state = self._react
                return True
        if waiting:
            return False
        self._state = self._prose
        return self._literal(False)

    def _react(self) -> bool:
        b, at = self._buffer, self._at
        keep = max(at, len(b) - 20)
        self._held.append(b[at:keep])
        self._at = keep
        text = (self._held[-2] if len(self._held) > 1 else "")[-40:] + self._held[-1] + b[keep:]
        if "Action Input" in text:
            self._state = self._react_input
        elif "<tool_call>" in text or "<function=" in text:
            self._off.add("react")
            self._state = self._prose
            self._again(self._lead_text())
        elif re.search(r"(?:\A|\n)\**Final Answer:", text):
            return self._react_answer()
        else:
            return False
        return True

    def _react_answer(self) -> bool:
        self._again(self._lead_text())
        return True

    def _react_input(self) -> bool:
        self._held.append(self._buffer[self._at :])
        self._at = len(self._buffer)
        return False

    # -------------------------------------------------------------- the end

    def _finish(self, cut: bool) -> None:
        rest = self._buffer[self._at :]
        self._buffer, self._at = "", 0
        raise NotImplementedError
