"""Reason-act: how a run begins, what to ask next, and what to say when the model goes astray. Nothing here does I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from agentkit.events import CallFragment, Event
from agentkit.messages import Message, Text, ToolResult, system
from agentkit.parsing import GuidedParser, TurnParser, guided_schema
from agentkit.runtime.engine import ModelSettings, Request
from agentkit.runtime.protocols import JSON_FORM
from agentkit.toolbox import find
from agentkit.tools import Tool
from agentkit.undone import Undone

__all__ = ["Aids", "Limits", "Parser", "Planner", "React", "Step"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a run stops, with a result that says so. None is no limit.

    `max_tokens` counts prompt and answer tokens of all turns together, as the server reports them; `timeout` is in
    seconds and begins when the first request is sent. `result_chars` is how much of one tool result the model is shown:
    of a longer one the beginning and the end.
    """

    max_turns: int = 16
    max_tool_calls: int | None = None
    max_tokens: int | None = None
    timeout: float | None = None
    result_chars: int = 20_000


@dataclass(frozen=True, slots=True)
class Aids:
    """What is done so that a small model gets more right, each with its switch.

    `coerce`: arguments become what the tool's schema asks for, where that loses nothing.
    `hints`: an error says what was probably meant.
    `guard`: a model that goes round in circles (the same calls with the same results, up to three turns long) is told so and shown
    only the beginning of a result that it has, then the tools are hidden, then the run ends.
    `forget`: of several calls, those that failed after another tool's had worked are not shown to the model: they were guesses at
    what that would say.
    `gate`: a request that has no word in common with any tool is first asked without them, and with them once the model says
    that it cannot answer. For sets of narrow tools: one that reads any file has few words in common with what is looked for in it.
    `redo`: once another tool has worked, the model is told to make the call that failed before it again.
    `votes`: so many samples are taken of each turn that may call tools, and the one that most agree with counts (see
    `agentkit.voting.Voting`); less than 3 make no majority.
    """

    coerce: bool = True
    hints: bool = True
    guard: bool = True
    forget: bool = True
    gate: bool = False
    redo: bool = True
    votes: int = 1


@dataclass(frozen=True, slots=True)
class Step:
    """Where a run stands as the model is asked for its next turn."""

    turn: int  # from 1
    session: str  # the run's id
    failed: bool = False  # a tool of the last turn failed
    astray: bool = False  # its call could not be read, was refused twice, or goes round in circles
    hidden: frozenset[str] = (
        frozenset()
    )  # tools that cannot be called in this turn, as they only led in a circle
    think: bool = True  # False: it has been thinking and said nothing, and is to answer without


class Parser(Protocol):
    """Reads one turn as it is written: see `TurnParser`."""

    def feed(
        self, text: str = "", reasoning: str = "", calls: Sequence[CallFragment] = ()
    ) -> list[Event]: ...

    @property
    def settled(self) -> bool:
        """Whether nothing that may yet come can make anything else of the calls that it has returned."""
        ...

    def close(self, finish_reason: str = "stop") -> list[Event]: ...

    def message(self) -> Message: ...


class Planner(Protocol):
    """Decides what the model is asked; the loop in `Agent` does the asking and runs the tools."""

    @property
    def aids(self) -> Aids: ...

    @property
    def overlap(self) -> bool:
        """Whether a call begins as soon as it is read, while the model writes on."""
        ...

    def start(
        self, task: Sequence[Message], instructions: str | None, tools: Sequence[Tool]
    ) -> list[Message]: ...

    def request(
        self, history: Sequence[Message], tools: Sequence[Tool], settings: ModelSettings, step: Step
    ) -> Request: ...

    def parser(self, tools: Sequence[Tool], step: Step) -> Parser: ...

    def answered(self, history: Sequence[Message], tools: Sequence[Tool], step: Step) -> str | None:
        """What is said to a text without a call, the last of *history*, for the run to go on; None: it is the answer."""
        ...

    def results(
        self, results: Sequence[ToolResult], repeats: int, undone: Undone | None = None
    ) -> Message: ...


@dataclass(frozen=True, slots=True)
class React:
    """Think, call tools, look at the results, repeat until the model answers without a call.

    `guidance` is put before the instructions when there are tools, `reminder` after each turn's results: without it a
    small model makes its call again, or another one, instead of answering. Dates and other things that change stay out of
    both: a prompt that begins the same each time is read from the server's prefix cache.

    `guided` is when the server holds the model to "one of these calls, or an answer" by guided decoding: "auto" for the turn
    after a call that could not be read, was refused twice, or goes round in circles; "always" for models that cannot keep to a
    form by themselves, or "never". A model does not think in such a turn.

    With `overlap` a call begins as soon as it is read, while the model writes the next one. Those that wait for the turn's end
    all the same: of an agent with permissions the calls that do more than look something up, of one with a limit of tool calls all
    of them.
    """

    guidance: str = (
        "You are a helpful assistant with tools. When a tool can give you a fact you do not have or a result you "
        "would have to guess, call it. If the request asks for several things, make all the calls at once, one for each "
        f"of them{JSON_FORM}. "
        "When you have what you need, answer the user in plain text, using the tools' results exactly as they are."
    )

    reminder: str = (
        "Answer the user now in plain text, with the facts from this result that were asked for. "
        "Only if something is still missing, call another tool."
    )

    guided: Literal["auto", "always", "never"] = "auto"

    overlap: bool = True

    aids: Aids = Aids()

    def start(
        self, task: Sequence[Message], instructions: str | None, tools: Sequence[Tool]
    ) -> list[Message]:
        parts = [self.guidance] if tools else []
        if tools and self.guided == "always":
            parts.append(GUIDED)
        if instructions:
            parts.append(instructions)
        ours = "\n\n".join(parts)
        # a conversation that is taken up again begins with ours
        given = [m.text.removeprefix(ours).strip() for m in task if m.role == "system"]
        head = "\n\n".join(part for part in (ours, *given) if part)
        return [*([system(head)] if head else []), *(m for m in task if m.role != "system")]

    def request(
        self, history: Sequence[Message], tools: Sequence[Tool], settings: ModelSettings, step: Step
    ) -> Request:
        open_ = [t.schema for t in tools if t.name not in step.hidden]
        if self._gated(history, tools, step):
            open_ = []
        if self._guides(tools, step):
            # the prompt names the hidden ones all the same: it then begins as before, and the server has read that already
            settings = replace(settings, thinking=False)
            schemas = [t.schema for t in tools]
            if self.guided == "auto":  # which its instructions say nothing of
                history = [*history[:-1], _with(history[-1], GUIDED)]
            return Request(tuple(history), schemas, settings, step.session, guided_schema(open_))
        if not step.think:
            settings = replace(settings, thinking=False)
        elif (
            settings.thinking == "auto"
        ):  # about the task and about what went wrong, not about the steps between
            settings = replace(settings, thinking=step.turn == 1 or step.failed)
        return Request(tuple(history), open_, settings, step.session)

    def parser(self, tools: Sequence[Tool], step: Step) -> Parser:
        reads = GuidedParser if self._guides(tools, step) else TurnParser
        return reads(tools, call_prefix=f"call_{step.turn}")

    def _guides(self, tools: Sequence[Tool], step: Step) -> bool:
        return bool(tools) and (self.guided == "always" or (self.guided == "auto" and step.astray))

    def answered(self, history: Sequence[Message], tools: Sequence[Tool], step: Step) -> str | None:
        if self._gated(history, tools, step) and _CANNOT.search(history[-1].text):
            return OFFERED
        return None

    def _gated(self, history: Sequence[Message], tools: Sequence[Tool], step: Step) -> bool:
        """Whether the model is first asked without its tools: none of them shares a word with what the user wants."""
        if not (self.aids.gate and tools and step.turn == 1):
            return False
        return not find(_request(history), tools)

    def results(self, results: Sequence[ToolResult], repeats: int, undone: Undone | None = None) -> Message:
        """The results as the model reads them; *repeats* is how often in a row it has made just these calls, *undone* what
        failed, now or before."""
        hint = instead(undone.instead) if undone and self.aids.hints else ""
        if repeats > 1:
            note = REPEATED + hint
        elif any(r.is_error for r in results):
            note = FAILED + hint
        elif undone and undone.tools and self.aids.redo:
            note = redo(undone.tools, hint)
        else:
            note = self.reminder
        return Message("tool", (*results, *((Text(note),) if note else ())))


def _request(history: Sequence[Message]) -> str:
    return next((m.text for m in reversed(history) if m.role == "user"), "")


def _with(message: Message, text: str) -> Message:
    return replace(message, parts=(*message.parts, Text(f"\n\n{text}")))


_SHORT = 600  # characters
_CANNOT = re.compile(  # what a model says that lacks a tool or a fact
    r"\b(can ?not|can['’]t|could(n['’]t| not)|unable|not able|(do not|don['’]t) have|no access|provide|sorry|as an ai)\b",
    re.IGNORECASE,
)
# What the model is told about its own mistakes; a 4B model needs the right form in front of it, not an error code.


def unreadable(reason: str, code: bool = False) -> str:
    if code:
        return f"That call could not be read: {reason}. Write the whole call again, as name(argument=value)."
    return (
        f"That tool call could not be read: {reason}. Write the whole call again, as\n"
        '<tool_call>\n{"name": "<tool>", "arguments": {<its arguments as JSON>}}\n</tool_call>'
    )


def no_such_tool(name: str, hint: str | None, tools: Mapping[str, Tool]) -> str:
    if not tools:
        return f"There is no tool {name!r}: no tools can be called now. Answer the user in plain text."
    meant = f" Did you mean {hint!r}?" if hint else ""
    return (
        f"There is no tool {name!r}.{meant} The tools are: {', '.join(tools)}. "
        "If none of them helps, answer the user in plain text."
    )


def redo(tools: Sequence[str], hint: str = "") -> str:
    """Behind results that are good, when calls of *tools* failed before them."""
    return (
        f"Your call of {' and '.join(tools)} failed before.{hint} With what you know now, make it again, corrected. "
        "If you need it no more, answer the user now in plain text, with the facts that were asked for."
    )


def instead(words: Mapping[str, str]) -> str:
    """Of the words of calls that failed, what there is instead."""
    return "".join(f" Write {known!r} in place of {word!r}." for word, known in words.items())


def denied(name: str, by: str) -> str:
    """Instead of the result of a call that may not be made; *by* is a `Decision.by`."""
    who = {"user": "The user did not allow", "nobody": "Nobody is there to allow"}
    said = who.get(by, "The user's permissions do not allow")
    return f"Not run. {said} this call of {name}. Do not make it again; go on without it, or say what could not be done."


def again(content: str) -> str:
    """A result that stands above already, shortened: a small model that reads one file five times has no room to answer."""
    if len(content) <= _SHORT:
        return content
    fence = "\n</data>" if content.endswith("\n</data>") else ""  # of what others wrote
    return f"{content[:_SHORT]} …{fence}\n[The same as before: the whole result of this call stands above.]"


def hidden(name: str) -> str:
    return f"{name} cannot be called again now. Use another tool, or answer the user in plain text."


GUIDED = (
    'Reply with JSON only. To call a tool: {"name": "<tool>", "arguments": {<its arguments>}}, to call several: a list of '
    "these. If a tool can do what is asked, do not work it out yourself. When you have the results, or no tool helps: "
    '{"answer": "<text>"}.'
)

REPEATED = (
    "(This is the same call with the same arguments as before. You have its result. "
    "Do something else, or answer the user now.)"
)

FAILED = (
    "Do not make the same call again: correct it, use another tool, or answer the user as well as you can."
)


OFFERED = "You have tools for this now. If one of them can do it, call it; else give me your answer."

EMPTY = "Your last message was empty. Answer my request now, in plain text, or call a tool."


CUT_OFF = (
    "You ran out of room while you were still thinking. Do not think it over again: answer my request now, or call a tool. "
    "The end of your thoughts was:\n"
)


def answer_as(schema: str) -> str:
    """Added to the instructions when the caller wants a typed answer."""
    return (
        "When you have the answer, reply with nothing but a JSON value that is valid against this JSON schema:\n"
        f"{schema}"
    )


def wrong_output(reason: str) -> str:
    return f"That is not a valid answer: {reason}. Reply again, with nothing but the corrected JSON value."
