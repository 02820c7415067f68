"""The loop: ask the model, read its turn, run its calls, until it answers or a limit is reached."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import anyio

from agentkit import planner as words
from agentkit.acting import Acting
from agentkit.calling import ONLY_LOOKS, May, call_tool
from agentkit.context import Conversation, shortened
from agentkit.errors import ContextOverflow, one_error
from agentkit.events import CallReady, Event, Notice, ToolFinished, ToolProgress, ToolStarted, TurnStarted
from agentkit.guard import Guard
from agentkit.messages import BadCall, Message, Text, ToolCall, ToolResult, Usage, user
from agentkit.parsing import Repetition
from agentkit.planner import Limits, Parser, Planner, Step
from agentkit.progress import watched
from agentkit.result import RunResult, Stopped
from agentkit.runtime.engine import Counting, Engine, ModelSettings, Request
from agentkit.runtime.presets import OUTPUT_TOKENS, recommended, thinks
from agentkit.toolbox import Toolbox, budget_for, fenced, tokens
from agentkit.tools import Tool
from agentkit.undone import Undone

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from agentkit.permissions import Decision

__all__ = ["Emit", "Loop"]

Emit: TypeAlias = Callable[[Event], Awaitable[None]]

_OUTPUT_TRIES = 3  # answers that may fail to validate before the run gives up
_PENALTY = 1.5  # presence_penalty after endless repetition; Qwen3's card allows 0 to 2 against it
_THOUGHTS_KEPT = 2_000  # characters of thoughts that were cut off, given back to the model
_FEW_TOOLS = 1_000  # tokens; not even asked how long the context is
_WARM = 0.7  # temperature once a model repeats itself: a greedy one would do so for ever


@dataclass(frozen=True, slots=True)
class Loop:
    """What a run has to work with; `run` does the work."""

    engine: Engine
    planner: Planner
    tools: Callable[
        [], Mapping[str, Tool]
    ]  # by name; asked before each turn, as servers may change what they offer
    limits: Limits
    settings: ModelSettings
    validate: Callable[[Any], Any] | None  # the answer's JSON -> the output; ValueError where it is none
    emit: Emit
    switch: bool | None = None  # the task's /think or /no_think
    may: May | None = None  # decides on each call; None: all are made

    async def run(self, start: Sequence[Message]) -> RunResult[Any]:
        """Ask, read, call, until there is an answer or a limit is reached."""
        run, talk = _Progress(os.urandom(8).hex()), Conversation(start)
        task = next((m.text for m in reversed(start) if m.role == "user"), "")
        box = Toolbox(tuple(self.tools().values()), await self._budget(), task)
        stopped: Stopped = "timeout"
        output: Any = None
        with one_error(), anyio.move_on_after(self.limits.timeout):
            async with anyio.create_task_group() as group:
                stopped, output = await self._turns(talk, box, run, group)
        if output is None and self.validate is None:
            output = next((m.text for m in reversed(talk.messages) if m.role == "assistant"), "")
        return RunResult(
            output,
            stopped,
            tuple(talk.messages),
            run.usage,
            run.step.turn,
            tuple(talk.cuts),
            tuple(run.decisions),
        )

    async def _turns(
        self, talk: Conversation, box: Toolbox, run: _Progress, group: TaskGroup
    ) -> tuple[Stopped, Any]:
        """Turn after turn; why the last one was the last, and the output if it was an answer."""
        limits = self.limits
        while True:
            if run.step.turn == limits.max_turns:
                return "max_turns", None
            if limits.max_tokens is not None and run.usage.total_tokens >= limits.max_tokens:
                return "max_tokens", None
            run.step = replace(run.step, turn=run.step.turn + 1)
            box.update(tuple(self.tools().values()))
            tools = box.tools
            offered = {name: t for name, t in tools.items() if name not in run.step.hidden}
            asked = run.step
            acting = Acting(group, partial(self._carry_out, tools, offered, run))
            reply, finish_reason = await self._ask(talk, tools, box.shown(), run, acting)
            run.step = Step(run.step.turn, run.session, hidden=run.guard.circle, think=run.think)
            if not reply.calls:
                text = reply.text.strip()
                said = [*talk.messages, reply]
                if text and (onward := self.planner.answered(said, tuple(tools.values()), asked)):
                    talk.append(reply)
                    talk.append(user(onward))
                    continue
                output, complaint, stopped = self._read_answer(reply, finish_reason, run)
                if complaint is None or text:  # thoughts alone only fill the context
                    talk.append(reply)
                if complaint is None:
                    return stopped, output
                if complaint:
                    talk.append(user(complaint))
                continue
            talk.append(reply)
            run.calls += len(reply.calls)
            if limits.max_tool_calls is not None and run.calls > limits.max_tool_calls:
                talk.append(_not_run(reply))
                return "max_tool_calls", None
            results = await acting.results(reply.calls)
            box.load(r.name for r in results)
            run.usage = sum((r.usage for r in results if r.usage), run.usage)
            run.refusals = run.refusals + 1 if any(r.refused for r in results) else 0
            if self.planner.aids.guard:
                run.guard.turn(reply.calls, results, asked.hidden)
                known = [run.guard.stands_above(*made) for made in zip(reply.calls, results, strict=True)]
                if not talk.cuts:  # else it may stand there no longer
                    results = [
                        replace(r, content=words.again(r.content)) if k else r
                        for r, k in zip(results, known, strict=True)
                    ]
            told = results
            denied = {d.call_id for d in run.decisions if not d.allowed}
            if self.planner.aids.forget and (guesses := _guessed(results, denied)):
                told = [r for r in results if r.call_id not in guesses]
                talk.shown[-1] = _without(reply, guesses)
            run.step = replace(
                run.step,
                failed=any(r.is_error for r in told),
                astray=run.refusals > 1
                or bool(run.guard.circle)
                or any(isinstance(c, BadCall) and not c.is_code for c in reply.calls),
                hidden=run.guard.circle,
            )
            run.undone.turn(reply.calls, [r for r in told if r.name in tools], denied)
            repeats = run.guard.repeats
            whole = self.planner.results(results, repeats, run.undone)
            talk.append(whole, whole if told is results else self.planner.results(told, repeats, run.undone))
            if run.guard.ended:
                return "loop", None

    async def _budget(self) -> int:
        """Tokens that the tools may take."""
        if isinstance(self.engine, Counting) and tokens(self.tools().values()) > _FEW_TOOLS:
            return budget_for(await self.engine.context_length())
        return budget_for(None)

    async def _ask(
        self,
        talk: Conversation,
        tools: Mapping[str, Tool],
        shown: Sequence[Tool],
        run: _Progress,
        acting: Acting,
    ) -> tuple[Message, str]:
        """One model turn: the reply and why it ended. It may call tools that it is not shown; of hidden ones it is told so."""
        engine, emit = self.engine, self.emit
        penalty: float | None = None

        def model() -> str:
            return getattr(engine, "model", None) or ""

        def request(history: Sequence[Message]) -> Request:
            made = self.planner.request(history, shown, self.settings, run.step)
            settings = recommended(model(), made.settings, self.switch)
            if run.step.hidden:
                settings = replace(settings, temperature=max(settings.temperature or 0, _WARM))
            if penalty is not None:
                settings = replace(settings, presence_penalty=penalty)
            return replace(made, settings=settings)

        while True:
            asked = request(talk.shown)
            if cut := await talk.fit(engine, asked, request):
                for text in cut:
                    await emit(Notice(text))
                asked = request(talk.shown)
            if (
                asked.settings.max_tokens is None
                and thinks(model(), asked.settings) is not None
                and await talk.learn_limit(engine)
                and talk.room_for(asked, OUTPUT_TOKENS)  # else the server gives what is left of the context
            ):
                asked = replace(asked, settings=replace(asked.settings, max_tokens=OUTPUT_TOKENS))
            parser = self.planner.parser(tuple(tools.values()), run.step)
            try:
                usage, finish_reason, repeats = await self._turn(asked, parser, run, tools, acting)
            except ContextOverflow as exc:
                for text in talk.overflowed(exc):
                    await emit(Notice(text))
                continue
            reply = parser.message()
            said = run.said_in_thoughts(reply, asked.settings)
            if said:
                parser = self.planner.parser(tuple(tools.values()), run.step)
                for event in parser.feed(said) + parser.close(finish_reason):
                    await emit(event)
                reply = parser.message()
            if repeats and reply.calls:
                reply = _once_each(reply)
            elif finish_reason == "repetition" and penalty is None:
                penalty = _PENALTY
                await emit(Notice("the model repeated itself without end; it is asked again"))
                continue
            if usage is not None and reply.calls:
                talk.counted(usage)
            return reply, finish_reason

    async def _turn(
        self, request: Request, parser: Parser, run: _Progress, tools: Mapping[str, Tool], acting: Acting
    ) -> tuple[Usage | None, str, bool]:
        """Read one answer into *parser*: what it took, why it ended, and whether its end is one piece repeated."""
        await self.emit(TurnStarted(run.step.turn))
        finish_reason, usage, repetition = "stop", None, Repetition()
        no_thoughts = (
            thinks(getattr(self.engine, "model", None) or "", request.settings, self.switch) is False
        )
        async with aclosing(self.engine.stream(request)) as chunks:
            async for chunk in chunks:
                for event in parser.feed(chunk.text, chunk.reasoning, chunk.calls):
                    await self.emit(event)
                    if isinstance(event, CallReady) and self._may_begin(
                        event.call, no_thoughts or parser.settled, tools
                    ):
                        acting.begin(event.call)
                if chunk.finish_reason:
                    finish_reason = chunk.finish_reason
                if chunk.usage:
                    usage = chunk.usage
                    run.usage += usage
                wrote = chunk.text or chunk.reasoning or "".join(c.arguments for c in chunk.calls)
                if repetition.feed(wrote):
                    finish_reason = "repetition"
                    break
        repeats = repetition.seen
        for event in parser.close("length" if finish_reason == "repetition" else finish_reason):
            await self.emit(event)
        return usage, "repetition" if repeats and finish_reason == "length" else finish_reason, repeats

    def _read_answer(
        self, reply: Message, finish_reason: str, run: _Progress
    ) -> tuple[Any, str | None, Stopped]:
        """The output of a turn without calls, or what the model must be told to make it one ("": nothing)."""
        text, thoughts = reply.text.strip(), reply.thinking.strip()
        if finish_reason in ("length", "repetition"):
            if text or not thoughts or run.cut_off:
                return None, None, "length" if finish_reason == "length" else "loop"
            run.cut_off = True
            run.step = replace(run.step, think=False)
            return None, words.CUT_OFF + thoughts[-_THOUGHTS_KEPT:], "length"
        if not text and thoughts and run.think:
            # a model that did not close its thoughts, or one that never thinks behind a reasoning parser that takes all it
            # says for thoughts: both may answer with thinking switched off
            run.think, run.unsaid = False, thoughts
            run.step = replace(run.step, think=False)
            return None, "", "empty"
        if not text:
            run.empty += 1
            return None, (words.EMPTY if run.empty == 1 else None), "empty"
        if self.validate is None:
            return text, None, "answer"
        from agentkit.parsing import find_json

        try:
            return self.validate(find_json(text)), None, "answer"
        except ValueError as exc:
            run.invalid += 1
            return (
                None,
                (words.wrong_output(str(exc)) if run.invalid < _OUTPUT_TRIES else None),
                "invalid_output",
            )

    async def _report(self, call: ToolCall | BadCall, done: float, total: float | None, message: str) -> None:
        if isinstance(call, ToolCall):
            await self.emit(ToolProgress(call, done, total, message))

    def _may_begin(
        self, call: ToolCall | BadCall, settled: bool, tools: Mapping[str, Tool]
    ) -> TypeGuard[ToolCall]:
        """Whether a call may be carried out while the model still writes."""
        if not (self.planner.overlap and settled and self.limits.max_tool_calls is None):
            return False
        tool = tools.get(call.name) if isinstance(call, ToolCall) else None
        # nobody is asked for leave in the middle of an answer
        return tool is not None and (
            self.may is None or (tool.effects is not None and tool.effects <= ONLY_LOOKS)
        )

    async def _carry_out(
        self, tools: Mapping[str, Tool], offered: Mapping[str, Tool], run: _Progress, call: ToolCall | BadCall
    ) -> ToolResult:
        began = time.monotonic()
        if isinstance(call, ToolCall):
            await self.emit(ToolStarted(call))
        if isinstance(call, ToolCall) and call.name in tools and call.name not in offered:
            result = ToolResult(call.id, words.hidden(call.name), is_error=True, name=call.name)
        else:
            with watched(partial(self._report, call)):
                may = partial(self._decided, run) if self.may else None
                result = await call_tool(call, offered, may, self.planner.aids)
        result = replace(result, content=shortened(result.content, self.limits.result_chars))
        source = tools[result.name].source if result.name in tools else ""
        await self.emit(ToolFinished(call, result, time.monotonic() - began))
        return fenced(result, source) if source else result

    async def _decided(
        self, run: _Progress, call_id: str, tool: Tool, arguments: Mapping[str, Any]
    ) -> Decision:
        assert self.may is not None
        decision = await self.may(call_id, tool, arguments)
        run.decisions.append(decision)
        return decision


@dataclass(slots=True)
class _Progress:
    """What a run has used up so far."""

    session: str
    step: Step = field(init=False)
    calls: int = 0
    usage: Usage = Usage()
    empty: int = 0
    invalid: int = 0
    cut_off: bool = False  # thoughts ran into the output limit
    think: bool = True  # False once a turn was nothing but thoughts …
    unsaid: str = ""  # … which were these
    misparsed: bool = False  # the server takes all that the model says for thoughts
    guard: Guard = field(default_factory=Guard)
    decisions: list[Decision] = field(default_factory=list)
    undone: Undone = field(default_factory=Undone)
    refusals: int = 0  # turns in a row with a call that was refused

    def __post_init__(self) -> None:
        self.step = Step(0, self.session)

    def said_in_thoughts(self, reply: Message, settings: ModelSettings) -> str:
        """What a turn that is nothing but thoughts, or nothing at all after such a one, has really said."""
        thoughts = reply.thinking.strip()
        if reply.text.strip() or reply.calls:
            return ""
        if not thoughts and self.unsaid:  # without thinking it says nothing: then that was it
            thoughts, self.unsaid, self.misparsed, self.think = self.unsaid, "", True, True
        return thoughts if settings.thinking is False or self.misparsed else ""


def _guessed(results: Sequence[ToolResult], denied: Collection[str]) -> frozenset[str]:
    """The ids of calls that failed after another tool's call of the same turn had worked.

    A small model writes its whole plan at once, and makes up what the first steps would have told it. Two calls of one tool
    ask for two things, and that one of them failed is a result; so is that a call was *denied*.
    """
    worked = {r.name for r in results if not r.is_error}
    first = next((n for n, r in enumerate(results) if not r.is_error), len(results))
    return frozenset(
        r.call_id for r in results[first:] if r.is_error and r.name not in worked and r.call_id not in denied
    )


def _without(reply: Message, calls: frozenset[str]) -> Message:
    """*reply* without these calls, and without what it says from there on."""
    parts: list[Any] = []
    over = False
    for part in reply.parts:
        if isinstance(part, ToolCall | BadCall) and part.id not in calls:
            parts.append(part)
        elif isinstance(part, ToolCall | BadCall):
            while not over and parts and isinstance(parts[-1], Text):  # it leads over to the call
                parts.pop()
            over = True
        elif not over:
            parts.append(part)
    return Message(reply.role, tuple(parts))


def _once_each(reply: Message) -> Message:
    """Of the calls that a model wrote down over and over, each once."""
    parts: list[Any] = []
    seen: list[Any] = []
    for part in reply.parts:
        if isinstance(part, ToolCall | BadCall):
            what = (part.name, part.arguments) if isinstance(part, ToolCall) else part.raw
            if what in seen:
                continue
            seen.append(what)
        parts.append(part)
    return Message(reply.role, tuple(parts))


def _not_run(reply: Message) -> Message:
    """Results for calls that the limit stopped, so that the conversation can be taken up again."""
    why = "Not run: the limit of tool calls is reached."
    return Message("tool", tuple(ToolResult(c.id, why, is_error=True) for c in reply.calls))
