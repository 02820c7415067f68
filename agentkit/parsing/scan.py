"""Visible text of a turn -> prose, calls and think tags, as it comes. Nothing here does I/O or raises.

Prose runs through. Where a call may begin, text is held until its end is seen, then read as a whole by the pure functions
beside this module; what turns out to be no call is handed on as the text it was. Every decision waits for the characters
it depends on, so it does not matter how the text was cut. Nothing is read twice, but for a few retries after a call that
ran past its end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, Protocol

from agentkit.parsing.calls import CUT_OFF, Schemas, Unreadable, Wanted, asked_call, only_text, read_calls
from agentkit.parsing.coder_xml import read_function
from agentkit.parsing.held import Held, Kind, split_values
from agentkit.parsing.react import read_step

__all__ = ["SLICE", "Scanner", "Sink", "slices"]


class Sink(Protocol):
    """Whoever is told what the scanner found."""

    def text(self, text: str) -> None: ...

    def calls(self, calls: Sequence[Wanted | Unreadable]) -> None: ...

    def maybe_calls(self, calls: Sequence[Wanted], source: str) -> None:
        """Calls of unknown names, which count if they are all that was said."""

    def echo(self, source: str) -> None:
        """The tools' descriptions, repeated: nothing if a call follows, else text."""

    def think_tag(self, opens: bool) -> bool:
        """A think tag; False if it is only text here. After True the scanner is left alone until it is fed again."""

    def thought(self, text: str) -> None: ...

    @property
    def spoke(self) -> bool: ...

    @property
    def called(self) -> bool: ...


_ACTION = "\nAction:"
_LABELS = ("Thought:", "Action:", "Final Answer:", "**Thought:", "**Action:", "**Final Answer:")
_TAG = re.compile(
    r"""<(/?)([A-Za-z_][\w-]{0,30})(=[^<>\n]{1,100}|\s+name\s*=\s*["'][^"'<>\n]{1,100}["'])?\s?>"""
)
_TAG_START = re.compile(
    r"</?(?:[A-Za-z_][\w-]{0,30}(?:=[^<>\n]{0,101}|\s(?:\s{0,9}n(?:a(?:m(?:e\s?(?:=[^<>\n]{0,101})?)?)?)?)?)?)?\Z"
)
_TICKS = re.compile(r"`{1,64}")
_FENCE_HEAD = re.compile(r"```([^\n`{\[<]{0,60})(\s{0,100})")
_FENCE_END = re.compile(r"\n[ \t]{0,20}```+")
_FENCE_END_START = re.compile(r"\n[ \t]{0,20}`{0,2}\Z")
_JSON_HEAD = re.compile(r"""[\[{\s]{1,40}["'](\w{1,20})["']\s{0,20}:""")
_JSON_HEAD_START = re.compile(r"""[\[{\s]{1,40}(?:["'](?:\w{1,20}(?:["']\s{0,20})?)?)?\Z""")
_KEYS = frozenset(
    "name function tool tool_name function_name type id arguments parameters args tool_calls "
    "function_calls calls tool_call function_call action thought thoughts reasoning input "
    "action_input tool_input".split()
)
_HTML = frozenset("a b br hr code div em i li p pre span strong td th tr ul ol table script style".split())
# Prose, up to where a call, a tag that matters or code may begin. What it passes over is prose whatever comes after it; where it
# stops, the steps of `Scanner` decide. Nothing follows the last `*`, so that it never goes back.
_PLAIN = re.compile(
    rf"""[^<`{{\[\n]*+ (?: (?:
        \n (?! Act | A?c?\Z )
      | ` [^`\n]++ (?: ` (?!`|\Z) | (?=\n) )                                         # code in a line
      | < (?: (?= [^A-Za-z_/] | /[^A-Za-z_] )
            | /?+ (?!think|tool_call) [A-Za-z_][\w-]{{0,30}}+ (?= [^\w\-=\s>] | \s[^\sn>] )
            | (?: {"|".join(sorted(_HTML))} | /(?!think|tool_call) [A-Za-z_][\w-]{{0,30}}+ ) >
            | (?!think|tool_call) [A-Za-z_][\w-]{{0,30}}+ > (?= \s{{0,50}}+ [^\s{{\[] )    # no JSON in it
        )
      | [{{\[] (?= [\[{{\s]{{0,30}}+ (?: [^\[{{\s"'] | ["'] (?!(?:{"|".join(sorted(_KEYS))})["']) \w{{0,20}}+ \W ) )
    ) [^<`{{\[\n]*+ )*""",
    re.VERBOSE,
)
_NAMED = re.compile(
    r"""["'](?:name|function|tool|tool_name|function_name|action)["']\s*:\s*["']([^"'\n]{1,200})["']"""
)
_ARGUED = re.compile(r"""["'](?:arguments|parameters|args|input|tool_input|action_input)["']\s*:""")
_LOOSE_END = re.compile(r"</?tool_call>|\n[ \t]*\n")
_TEXT_BESIDE = re.compile(
    r"\s*(?P<call>\{[^\n]*\})\s*(?:<code>\n?(?P<tagged>.*?)\n?</code>|```\w*\n(?P<fenced>.*?)\n?```)\s*\Z",
    re.DOTALL,
)
_LOOSE_LENGTH = 400  # characters after a <tool_call> without JSON, in which its end must come
SLICE = 4096  # characters scanned at a time
_RETRIES = 16  # how often the text after a call that ran past its end is scanned again


class Scanner:
    """Feed it text and close it; the sink is told what it is."""

    def __init__(self, tools: Schemas, sink: Sink) -> None:
        self._tools, self._told = tools, sink
        self._decided: list[str] = []  # prose that the sink is told of before anything else
        self._buffer = ""  # prose that is not decided yet
        self._mode: Literal["start", "prose", "code", "inline", "held"] = "start"
        self._before = ""  # the last character of the prose that was decided
        self._ticks = 0  # of the inline code we are in
        self._retries = _RETRIES
        self._open_fence = False  # a fence was dropped that held a tagged call; its end is dropped too
        self._held: Held | None = None

    @property
    def _sink(self) -> Sink:
        """The sink, which has been told of all that was decided before."""
        self._tell()
        return self._told

    def _tell(self) -> None:
        if self._decided:
            said = "".join(self._decided)
            self._decided.clear()
            self._told.text(said)

    def feed(self, text: str) -> str:
        """Scan *text*; what comes after a think tag is returned, and not scanned."""
        if self._held is None and not self._buffer:  # for most of all text there is no more to do
            plain = self._plain(text)
            if plain:
                self._told.text(text[:plain])
                self._before = text[plain - 1]
            if plain == len(text):
                return ""
            text = text[plain:]
        rest = self._run(text, final=False)
        self._tell()
        return rest

    def close(self, *, cut: bool = False) -> str:
        """The text is over; `cut` says that the token limit ended it. What comes after a think tag is returned, as by
        `feed`: read it, and close again."""
        rest = ""
        while True:
            pieces = [*slices(rest), ""]
            for i, piece in enumerate(pieces, 1):
                after = self._run(piece, final=i == len(pieces))
                self._tell()
                if after:
                    return after + "".join(pieces[i:])
            if self._held is None:
                return ""
            rest = self._give_up(cut)

    # ------------------------------------------------------------ prose

    def _run(self, text: str, *, final: bool) -> str:
        while True:
            if self._held is not None:
                end = self._held.scan(text, final=final)
                self._make_first(self._held)
                if end is None:
                    return ""
                text, stop = self._ended(*end)
                if stop:
                    return text
            else:
                self._buffer += text
                while self._held is None and self._buffer:
                    decided = _STEPS[self._mode](self, final)
                    if decided is None:
                        return ""
                    if decided:  # a think tag
                        text, self._buffer = self._buffer, ""
                        return text
                if self._held is None:
                    return ""
                text, self._buffer = self._buffer, ""

    def _say(self, length: int) -> None:
        """The first *length* characters of the buffer are prose."""
        if length:
            self._decided.append(self._buffer[:length])
            self._before = self._buffer[length - 1]
            self._buffer = self._buffer[length:]

    def _plain(self, text: str) -> int:
        """How much of *text* is prose, or a program in a fence, before there is something to decide."""
        if self._mode == "prose":
            if (
                "<" not in text
                and "`" not in text
                and "{" not in text
                and "[" not in text
                and "\n" not in text
            ):
                return len(text)  # a quicker look than that of the pattern
            return _PLAIN.match(text).end()  # type: ignore[union-attr]
        return len(text) if self._mode == "code" and "\n" not in text else 0

    # Each step returns None to wait for more text, True after a think tag, False to go on.

    def _start(self, final: bool) -> bool | None:
        """The first visible characters tell whether the turn is in ReAct form."""
        head = self._buffer.lstrip()
        self._say(len(self._buffer) - len(head))
        if not head or (not final and any(label.startswith(head) for label in _LABELS)):
            return self._literal(len(head)) if final else None
        if self._tools and head.startswith(_LABELS):
            return self._hold("react", 0)
        self._mode = "prose"
        return False

    def _literal(self, length: int) -> bool:
        self._say(length)
        return False

    def _prose(self, final: bool) -> bool | None:
        self._say(self._plain(self._buffer))
        match self._buffer[:1]:
            case "":
                return False
            case "<":
                return self._angle(final)
            case "`":
                return self._backtick(final)
            case "\n":
                if not self._buffer.startswith(_ACTION):
                    undecided = not final and _ACTION.startswith(self._buffer)
                    return None if undecided else self._literal(1)
                return self._hold("react", 0) if self._tools else self._literal(len(_ACTION))
            case _:
                opens = self._opens_call(self._buffer, final)
                return self._hold("bare", 0) if opens else None if opens is None else self._literal(1)

    def _opens_call(self, text: str, final: bool) -> bool | None:
        """Whether *text* begins like the JSON of a call; None while that cannot be known."""
        head = _JSON_HEAD.match(text)
        if head is not None:
            return head[1] in _KEYS and "{" in head[0]
        return None if not final and _JSON_HEAD_START.match(text) else False

    def _angle(self, final: bool) -> bool | None:
        b = self._buffer
        tag = _TAG.match(b)
        if tag is None:
            return None if not final and _TAG_START.match(b) else self._literal(1)
        closing, name, attribute = bool(tag[1]), tag[2], tag[3]
        if name == "think" and not attribute:
            if self._before not in "`\"'" or not self._before:
                self._buffer = b[tag.end() :]
                if self._sink.think_tag(not closing):
                    self._before, self._mode = "", "start"
                    return True
                self._buffer = b
            return self._literal(tag.end())
        after = b[tag.end() :].lstrip()
        if closing:
            if name == "tool_call" and self._sink.called:
                self._buffer = b[tag.end() :]
                return False
            return self._literal(tag.end())
        if name == "function" and attribute:
            return self._hold("xml", 0)
        if name == "tool_call" and not attribute:
            if not after and not final:
                return None
            if after.startswith(("<function", "<tool_call>")):
                self._buffer = after
                return False
            if after[:1] in ("{", "[") or after.startswith("```") or not after:
                return self._hold("tag", tag.end())
            if not final and any(t.startswith(after) for t in ("```", "<function", "<tool_call>")):
                return None
            return self._loose(tag.end(), final)
        if attribute or name in _HTML:
            return self._literal(tag.end())
        if not after:
            return None if not final and len(b) < tag.end() + 100 else self._literal(tag.end())
        opens = after[0] in "{[" and self._opens_call(after, final)
        if opens is None:
            return None
        return self._hold("wrap", tag.end()) if opens else self._literal(tag.end())

    def _loose(self, after: int, final: bool) -> bool | None:
        """`<tool_call>` and then neither JSON nor XML: a mention of the tag, or a call written in some other way."""
        b = self._buffer
        end = _LOOSE_END.search(b, after, after + _LOOSE_LENGTH)
        if end is None:
            return None if not final and len(b) < after + _LOOSE_LENGTH else self._literal(after)
        inner = b[after : end.start()].strip()
        if end[0] != "</tool_call>" or not (inner in self._tools or any(c in inner for c in '{("')):
            return self._literal(after)
        self._buffer = b[end.end() :]
        self._sink.calls([self._read_loose(inner)])
        return False

    def _read_loose(self, inner: str) -> Wanted | Unreadable:
        """`f`, `f {"a": 1}` and the like."""
        if inner in self._tools:
            return Wanted(inner, {})
        named = re.match(r"([\w.-]+)\s*[:(]?\s*(\{.*\})\s*\)?\Z", inner, re.DOTALL)
        if named is not None and named[1] in self._tools:
            read = read_calls(f'{{"name": "{named[1]}", "arguments": {named[2]}}}', self._tools, repair=True)
            if not isinstance(read, Unreadable):
                return read[0]
        return Unreadable(inner, 'write a call as {"name": …, "arguments": {…}}')

    def _backtick(self, final: bool) -> bool | None:
        b = self._buffer
        ticks = _TICKS.match(b)
        assert ticks is not None
        run = len(ticks[0])
        if run == len(b) and run < 64 and not final:
            return None
        if run < 3:
            self._mode, self._ticks = "inline", run
            return self._literal(run)
        if self._open_fence:
            self._open_fence = False
            self._buffer = b[run:]
            return False
        head = _FENCE_HEAD.match(b)
        assert head is not None
        after = b[head.end() :]
        if not after and not final:
            return None
        label = head[1].strip().lower()
        if after[:1] in ("{", "["):
            anything = label in ("", "json", "tool_call", "tool_code")
            opens = bool(re.match(r"""[\[{\s]*["']""", after)) if anything else self._opens_call(after, final)
            if not final and (opens is None or (not opens and not after.strip("[{ \t\r\n"))):
                return None
            if opens:
                return self._hold("fence", head.end())
        elif after[:1] == "<" and (label.startswith("tool") or not self._sink.spoke):
            if not final and any(t.startswith(after) for t in ("<tool_call>", "<function=")):
                return None
            if after.startswith(("<tool_call>", "<function=")):
                self._buffer, self._open_fence = after, True
                return False
        self._mode = "code"
        return self._literal(run + len(head[1]) if run == 3 else run)

    def _code(self, final: bool) -> bool | None:
        """A fenced block of an answer, until its fence closes."""
        b = self._buffer
        end = _FENCE_END.search(b)
        if end is not None and (final or end.end() < len(b)):
            self._mode = "prose"
            return self._literal(end.end())
        partial = end or (None if final else _FENCE_END_START.search(b, max(0, len(b) - 24)))
        self._say(partial.start() if partial else len(b))
        return None if partial else False

    def _inline(self, final: bool) -> bool | None:
        """Code in backticks, until as many backticks come again or the line ends."""
        b = self._buffer
        stop = re.search(r"`+|\n", b)
        if stop is None:
            return self._literal(len(b))
        if stop.end() == len(b) and stop[0] != "\n" and not final:
            self._say(stop.start())
            return None
        if stop[0] == "\n":
            self._mode = "prose"
            self._say(stop.start())
            return False
        if len(stop[0]) == self._ticks:
            self._mode = "prose"
        return self._literal(stop.end())

    # ------------------------------------------------------------ calls

    def _hold(self, kind: Kind, lead: int) -> bool:
        """Hold text back from here on; the first *lead* characters opened the call."""
        name = self._buffer[1 : lead - 1].strip() if kind == "wrap" else ""
        self._held = Held(kind, self._buffer[:lead], name)
        self._buffer = self._buffer[lead:]
        return False

    def _ended(self, at: int, token: str) -> tuple[str, bool]:
        """The end of what is held was seen at *at*: (the text after it, whether a think tag stopped the scanner)."""
        held = self._held
        assert held is not None
        self._held = None
        text = held.take()
        inner, rest = text[:at], text[at:]
        self._mode = "prose"
        if token.endswith("think>"):
            self._before = inner[-1:]
            if self._before not in ('"', "'", "`") and self._sink.think_tag(token == "<think>"):
                # the sink has taken all before the tag for thought, or the call is over and thinking begins
                self._mode, self._before = "start", ""
                return rest.removeprefix(token), True
        if held.kind == "react":
            # a tagged call says more than the labels around it
            self._sink.text(inner)
            return rest, False
        if token.startswith("</") or token.startswith("```"):
            closed, rest = token, rest[len(token) :]
        else:
            closed = ""
        if held.kind == "xml" and token == "</function>":
            inner, closed = inner + token, ""
        elif token == "</tool_call>" and held.kind != "tag":
            closed, rest = "", token + rest
        elif held.kind == "bare" and closed:
            closed, rest = "", closed + rest
        self._settle(held, inner, closed, cut=False)
        return rest, False

    def _give_up(self, cut: bool) -> str:
        """The text is over and the end of what is held was not seen: read what there is; returns what is left to scan."""
        held = self._held
        assert held is not None
        self._held, self._mode = None, "prose"
        text = held.take()
        if (
            held.maybe_end is not None
            and self._retries
            and isinstance(read_calls(text, self._tools), Unreadable)
        ):
            self._retries -= 1
            at, token = held.maybe_end
            self._settle(held, text[:at], token if token.startswith(("</", "```")) else "", cut=False)
            return text[at + len(token) :] if token.startswith(("</", "```")) else text[at:]
        self._settle(held, text, "", cut=cut)
        return ""

    def _make_first(self, held: Held) -> None:
        """Calls that a tag, a fence or a list begins with, written as models are told to, are calls whatever comes after them:
        they need not wait for the others."""
        for call in held.first_calls(self._asked):
            self._sink.calls([call])

    def _asked(self, source: str) -> Wanted | None:
        call = asked_call(source)
        known = call is not None and call.name in self._tools and self._missing_text(call) is None
        return call if known else None

    def _after_first(self, held: Held, text: str, closed: str, cut: bool) -> None:
        """What stands behind the calls that are made: more calls, and text."""
        text = text[held.made :].lstrip(" \t\r\n,")
        if held.listed:
            text = text[1:] if text.startswith("]") else f"[{text}"
        found, rest = self._read(text, cut) if text.strip()[:1] in ("{", "[") else ([], text)
        found = [f for f in found if isinstance(f, Wanted) or not f.empty]
        if all(self._likely(c, text) for c in found if isinstance(c, Wanted)):
            self._sink.calls(found)
        else:
            rest = text
        if rest.strip(" \t\r\n,;]}") and not (held.kind == "tag" and closed):
            self._sink.text(rest)

    def _settle(self, held: Held, text: str, closed: str, *, cut: bool) -> None:
        """Decide whether what was held is a call, and say what it is."""
        if held.made:
            self._after_first(held, text, closed, cut)
            return
        sink, source = self._sink, held.lead + text + closed
        if held.kind == "react":
            step = read_step(text, self._tools, cut=cut)
            if step is None:
                sink.text(text)
                return
            sink.thought(step.thought)
            if step.answer is not None:
                sink.text(step.answer.strip())
            sink.calls(step.calls)
            return
        if held.kind == "xml":
            sink.calls(
                [read_function(text, self._tools, cut=cut and not text.rstrip().endswith("</function>"))]
            )
            return
        if held.kind == "tag":
            found, rest = self._read(text, cut)
            if not found and not rest.strip():
                if not sink.called and closed:
                    found = [Unreadable("", "the call is empty")]
                elif not sink.called:
                    sink.text(source)
            elif not found:
                found = [Unreadable(text.strip(), CUT_OFF if cut else "there is no JSON object in it")]
            sink.calls(found)
            if rest.strip() and not closed:
                sink.text(rest)
            return
        found, rest = self._read(text, cut)
        found = [f for f in found if isinstance(f, Wanted) or not f.empty]  # good JSON that is no call
        calls = [c for c in found if isinstance(c, Wanted)]
        if any(c.name in self._tools for c in calls) and all(self._likely(c, text) for c in calls):
            sink.calls([c for c in found if isinstance(c, Wanted) or self._names_tool(c.text)])
            if rest.strip():
                sink.text(rest)
            return
        if found and not calls and self._names_tool(text) and _ARGUED.search(text):
            sink.calls(found)
            return
        exact = (
            bool(calls) and len(calls) == len(found) and all(c.exact for c in calls) and _ARGUED.search(text)
        )
        if exact and held.kind == "wrap":
            sink.calls(calls)
        elif held.name == "tools" and closed:
            sink.echo(source)
        elif (
            exact
            and len(calls) == 1
            and self._tools
            and not sink.spoke
            and not sink.called
            and not rest.strip()
        ):
            sink.maybe_calls(calls, source)
        else:
            sink.text(source)
            if held.kind == "fence" and not closed:
                self._mode = "code"

    def _read(self, text: str, cut: bool) -> tuple[list[Wanted | Unreadable], str]:
        """The calls of one or more JSON values one after another, and the text after them."""
        body = re.sub(r"\A\s*```\w*\s|\s*```\s*\Z", "", text) if text.lstrip().startswith("```") else text
        if not body.strip():
            return [], ""
        beside = None if cut else self._with_text_beside(body)
        if beside is not None:
            return [beside], ""
        whole = read_calls(body, self._tools, repair=not cut, cut=cut)
        if not isinstance(whole, Unreadable):
            return list(whole), ""
        found: list[Wanted | Unreadable] = []
        values, rest = split_values(body)
        if len(values) == 1 and not rest.strip(" \t\r\n,;]}"):
            values, rest = [], body
        for value in values:
            read = read_calls(value, self._tools, repair=True)
            found += [read] if isinstance(read, Unreadable) else read
        if rest.lstrip().startswith(("{", "[")):
            read = read_calls(rest, self._tools, repair=not cut, cut=cut)
            found += [read] if isinstance(read, Unreadable) else read
            rest = ""
        return found, rest

    def _with_text_beside(self, body: str) -> Wanted | None:
        """A call whose only argument, a text, stands after its JSON: Qwen's own way to call a code interpreter."""
        match = _TEXT_BESIDE.match(body)
        if match is None:
            return None
        read = read_calls(match["call"], self._tools)
        if isinstance(read, Unreadable) or len(read) != 1:
            return None
        only = self._missing_text(read[0])
        if only is None:
            return None
        return Wanted(read[0].name, {only: match["tagged"] or match["fenced"] or ""})

    def _missing_text(self, call: Wanted) -> str | None:
        """The only argument of a tool, a text, where it is not in the call: it may stand after it."""
        only = only_text(self._tools.get(call.name, {}))
        return None if only is None or call.arguments.get(only) else only

    def _likely(self, call: Wanted, text: str) -> bool:
        """Whether an object that names a tool is meant as a call of it: nothing in it that a call does not have."""
        if call.exact or _ARGUED.search(text):
            return True
        return call.arguments.keys() <= (self._tools.get(call.name, {}).get("properties") or {}).keys()

    def _names_tool(self, text: str) -> bool:
        named = _NAMED.search(text, 0, 2000)
        return named is not None and named[1].strip() in self._tools


_STEPS = {
    "start": Scanner._start,
    "prose": Scanner._prose,
    "code": Scanner._code,
    "inline": Scanner._inline,
}


def slices(text: str) -> list[str]:
    """*text* in pieces: what is undecided is copied at each decision, so there should not be much of it."""
    return [text[i : i + SLICE] for i in range(0, len(text), SLICE)]
