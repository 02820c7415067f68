"""One turn of a model, in whatever pieces it comes -> events, and the Message they add up to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentkit.events import (
    Assembly,
    CallFragment,
    CallReady,
    Event,
    TextDelta,
    TextWasThinking,
    ThinkingDelta,
)
from agentkit.messages import BadCall, Message, Text, ToolCall
from agentkit.parsing.calls import Schemas, Unreadable, Wanted, only_text, read_arguments
from agentkit.parsing.described import described_calls
from agentkit.parsing.pythonic import code_calls
from agentkit.parsing.scan import SLICE, Scanner, slices
from agentkit.tools import Tool

__all__ = ["TurnParser", "parse_turn"]

AnyTool = Tool | Mapping[str, Any]

_LOOKED_AT = 500  # pieces of a call; in a longer one each look, at what may be a program, would take too long


class TurnParser:
    """Reads one turn as it is written.

    Calls are trusted in this order: what the server parsed; tags in the text (`<tool_call>` JSON, Qwen3-Coder's XML); JSON
    that names one of *tools* (fenced, bare, wrapped in a tag); ReAct text; the same in the thinking, if the turn has nothing
    else; a call that the text describes, with its arguments; Python that does nothing but call tools. `tools` are Tools or OpenAI-style dicts. Calls without an id of the server's get `call_prefix` and a number.

    `feed` and `close` return events as soon as they are certain; however the text is cut, they add up to the same message.
    Nothing a model can write makes it raise.
    """

    def __init__(self, tools: Iterable[AnyTool] = (), call_prefix: str = "call") -> None:
        self._schemas: Schemas = dict(_schema(t) for t in tools)
        self._prefix = call_prefix
        self._events: list[Event] = []  # that are still to be returned
        self._turn = Assembly()
        self._content: list[str] = []  # as the server sent it
        self._thoughts: list[str] = []
        self._server: list[list[CallFragment]] = []  # the pieces of each call that the server has parsed
        self._slots: dict[int, list[CallFragment]] = {}  # index -> the call that its pieces go to now
        self._told: list[
            tuple[str, Mapping[str, Any]]
        ] = []  # of the server's calls, those that were returned
        self._ids: set[str] = set()
        self._scanner = Scanner(self._schemas, self)
        self._within = False  # it is thoughts that are read: tags in them are text
        self._thinking = False
        self._may_close = True  # a </think> without its opening tag may still come
        self._carry = ""  # of the thinking, what may be the start of its closing tag
        self._space: list[str] = []  # not said before more text follows
        self._strip = (
            ""  # what to strip from the text that comes next: after thoughts newlines, after a call all space
        )
        self._echo: str | None = None
        self._waiting: list[Event] = []  # after the echo, until it is known what that is
        self._maybe: tuple[Sequence[Wanted], list[str]] | None = (
            None  # calls, their text and the space after it
        )
        self._in_text = False  # calls were found in the content
        self.spoke = self.called = False

    def feed(self, text: str = "", reasoning: str = "", calls: Sequence[CallFragment] = ()) -> list[Event]:
        if reasoning:
            self._may_close = False
            self._think(reasoning)
        if text:
            self._content.append(text)
            for piece in (text,) if len(text) <= SLICE else slices(text):
                self._read(piece)
        for fragment in calls:
            slot = self._slot(fragment)
            slot.append(fragment)
            if fragment.arguments.endswith("}") and len(slot) < _LOOKED_AT:  # it may be whole
                self._server_calls(whole=False)
        return self._new()

    @property
    def settled(self) -> bool:
        """Whether the calls read so far are calls whatever comes: nothing before them can turn out to be thoughts.

        Thoughts whose opening tag is in the prompt begin with words, not with a call.
        """
        return not self._may_close or not self.spoke

    def _slot(self, fragment: CallFragment) -> list[CallFragment]:
        """The call that a piece belongs to: what has its index, unless it begins another one there, as some servers do."""
        slot = self._slots.get(fragment.index)
        known = next((f.id for f in slot or () if f.id), "")
        if slot is None or (fragment.name and fragment.id and known and fragment.id != known):
            self._server_calls(whole=False)  # those before it are complete
            slot = self._slots[fragment.index] = []
            self._server.append(slot)
        return slot

    def close(self, finish_reason: str = "stop") -> list[Event]:
        """The turn is over; "length" as the reason says that the token limit ended it."""
        cut = finish_reason == "length"
        if self._thinking:
            self._think(self._carry)
        while rest := self._scanner.close(cut=cut):  # what was held had a think tag in it
            self._read(rest)
            if self._thinking:
                self._think(self._carry)
        self._server_calls(cut=cut)
        maybe, self._maybe = self._maybe, None
        if maybe is not None and not self.spoke:
            self.calls(maybe[0])
        if not self.spoke and not self.called and not self._within:
            self._calls_in_thinking(cut)
        if self._schemas and self.spoke and not self.called and not cut and not self._within:
            said = "".join(part.text for part in self._turn.parts() if isinstance(part, Text))
            self.calls(described_calls(said, self._schemas) or code_calls(said, self._schemas))
        if not self.called:
            rest = "".join(self._space)
            if rest and (self.spoke or not self._thoughts):
                self._say(rest)
        self._settle_echo(text=True)
        return self._new()

    def message(self) -> Message:
        """The turn as a message, after `close`."""
        raw = "".join(self._content) if self._in_text and not self._server else None
        return Message("assistant", self._turn.parts(), raw)

    def _new(self) -> list[Event]:
        new, self._events = self._events, []
        return new

    # ------------------------------------------------------------ thinking and text

    def _read(self, text: str) -> None:
        while text:
            if not self._thinking:
                text = self._scanner.feed(text)
                continue
            text = self._carry + text
            end = text.find("</think>")
            if end < 0:
                begun = text.rfind("<", -7)
                keep = begun if begun >= 0 and "</think>".startswith(text[begun:]) else len(text)
                self._carry = text[keep:]
                self._think(text[:keep])
                return
            self._think(text[:end])
            text = text[end + len("</think>") :]
            self._carry, self._thinking, self._space, self._strip = "", False, [], "\n"

    def think_tag(self, opens: bool) -> bool:
        if self._within:
            return False
        if opens:
            self._may_close, self._thinking, self._space = False, True, []
            return True
        if not self._may_close:
            return False
        # Thinking-2507: the opening tag is in the prompt, so all that came before is thought
        thought = "".join(self._content).partition("</think>")[0].strip()
        self._thoughts = [thought]
        self._may_close = self.spoke = self.called = self._in_text = False
        self._told = []
        self._space, self._strip, self._echo, self._maybe, self._waiting = [], "\n", None, None, []
        self._ids.clear()
        self._emit(TextWasThinking(thought))
        return True

    def _think(self, text: str) -> None:
        """Thoughts without the space around them."""
        body = text.strip() if not self._thoughts else text.rstrip()
        if not body:
            if self._thoughts:
                self._space.append(text)
            return
        start = text.lstrip() if not self._thoughts else "".join(self._space) + text
        self._space = [start[len(start.rstrip()) :]]
        self._thoughts.append(start.rstrip())
        self._emit(ThinkingDelta(start.rstrip()))

    def thought(self, text: str) -> None:
        if text:
            self._thoughts.append(text)
            self._emit(ThinkingDelta(text))

    def text(self, text: str) -> None:
        if not text:
            return
        if self._maybe is not None:
            if text.isspace():
                self._maybe[1].append(text)
                return
            text, self._maybe = "".join([*self._maybe[1], text]), None
        said = text.rstrip()
        space = text[len(said) :]
        if not said:
            self._space.append(text)
            return
        if self._space:
            said, self._space = "".join(self._space) + said, []
        if self._strip:
            said, self._strip = said.lstrip(None if self._strip == " " else "\n"), ""
        if space:
            self._space.append(space)
        self._say(said)

    def _say(self, text: str) -> None:
        self.spoke = True
        self._emit(TextDelta(text))

    def _emit(self, event: Event) -> None:
        if self._echo is not None:
            self._waiting.append(event)
            return
        self._events.append(event)
        self._turn.add(event)

    # ------------------------------------------------------------ calls

    def calls(self, calls: Sequence[Wanted | Unreadable]) -> None:
        if calls:
            self._in_text = True
            if self._maybe is not None:
                early, self._maybe = self._maybe[0], None
                self.calls(early)
            self._settle_echo(text=False)
            self._space, self._strip = [], " "
        for call in calls:
            if isinstance(call, Unreadable) or (call.name, call.arguments) not in self._told:
                self._call(call)

    def maybe_calls(self, calls: Sequence[Wanted], source: str) -> None:
        self._maybe = (calls, [source])

    def echo(self, source: str) -> None:
        if self._echo is not None:
            self._settle_echo(text=True)
        self._echo = "".join(self._space) + source
        self._space = []

    def _settle_echo(self, *, text: bool) -> None:
        if self._echo is not None:
            echo, self._echo, waiting, self._waiting = self._echo, None, self._waiting, []
            if text:
                self._say(echo)
            for event in waiting:
                self._emit(event)

    def _call(self, call: Wanted | Unreadable, id: str = "") -> None:
        self.called = True
        while not id or id in self._ids:
            id = f"{self._prefix}_{len(self._ids) + 1}"
            if id in self._ids:
                id = f"{self._prefix}_{len(self._ids) + 1}_{len(self._ids)}"
        self._ids.add(id)
        if isinstance(call, Wanted):
            self._emit(CallReady(ToolCall(id, call.name, call.arguments, call.raw)))
        else:
            self._emit(CallReady(BadCall(id, call.text, call.reason)))

    def _server_calls(self, *, cut: bool = False, whole: bool = True) -> None:
        """Tell of the server's calls; in a turn that is not *whole* yet, of those whose arguments are."""
        seen = [(part.name, part.arguments) for part in self._turn.parts() if isinstance(part, ToolCall)]
        for position, fragments in enumerate(self._server[len(self._told) :], len(self._told) + 1):
            name = "".join(f.name for f in fragments).strip()
            text = "".join(f.arguments for f in fragments)
            if not (whole or (name and _is_object(text))):
                return
            ended = cut and position == len(self._server)
            read = read_arguments(text, cut=ended, only=only_text(self._schemas.get(name, {})))
            if isinstance(read, Unreadable) or not name:
                reason = read.reason if isinstance(read, Unreadable) else "it has no name"
                self._told.append(("", {}))
                call: Wanted | Unreadable = Unreadable(f"{name} {text}".strip(), reason)
            else:
                self._told.append((name, read[0]))
                if (name, read[0]) in seen:
                    continue
                call = Wanted(name, *read)
            self._settle_echo(text=False)
            self._call(call, next((f.id for f in fragments if f.id), ""))

    def _calls_in_thinking(self, cut: bool) -> None:
        """A turn that is nothing but thoughts may have its call in them: it was not closed, or the server split it so."""
        thoughts = "".join(self._thoughts)
        if not thoughts:
            return
        inner = TurnParser((), self._prefix)
        inner._schemas, inner._within = self._schemas, True
        inner._scanner = Scanner(self._schemas, inner)
        found: list[Event] = []
        for event in inner.feed(thoughts) + inner.close("length" if cut else "stop"):
            if isinstance(event, CallReady):
                found.append(event)
            elif isinstance(event, TextDelta):
                found.clear()  # it thought on after that call: it only considered it
        for event in found:
            self._emit(event)
        self.called = bool(found)
        self._in_text = self._in_text or (bool(found) and "<think>" in "".join(self._content))


def parse_turn(
    content: str | None,
    *,
    reasoning: str | None = None,
    tool_calls: Iterable[Mapping[str, Any]] = (),
    tools: Iterable[AnyTool] = (),
    finish_reason: str = "stop",
    call_prefix: str = "call",
) -> Message:
    """A whole turn as a message: what a server answered, read in `TurnParser`'s order of trust.

    `content`, `reasoning` and `tool_calls` are the fields of a chat-completions message; `tools` what was offered to the
    model, as Tools or OpenAI-style dicts. A call that cannot be read is a `BadCall`; nothing makes it raise.
    """
    parser = TurnParser(tools, call_prefix)
    parser.feed(content or "", reasoning or "", [_fragment(i, c) for i, c in enumerate(tool_calls or ())])
    parser.close(finish_reason)
    return parser.message()


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _fragment(index: int, call: Mapping[str, Any]) -> CallFragment:
    function = call.get("function")
    function = function if isinstance(function, Mapping) else call
    arguments = function.get("arguments")
    text = (
        arguments if isinstance(arguments, str) else json.dumps(arguments, default=str) if arguments else ""
    )
    return CallFragment(index, str(call.get("id") or ""), str(function.get("name") or ""), text)


def _schema(tool: AnyTool) -> tuple[str, Mapping[str, Any]]:
    if isinstance(tool, Tool):
        return tool.name, tool.parameters
    function = tool.get("function")
    function = function if isinstance(function, Mapping) else tool
    parameters = function.get("parameters")
    return str(function.get("name", "")), parameters if isinstance(parameters, Mapping) else {}
