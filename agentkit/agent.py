"""The agent: one loop over engine, parser and tools."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, cast

import anyio

from agentkit import planner as words
from agentkit.calling import call_tool
from agentkit.context import ContextUse, Conversation, measure, shortened
from agentkit.errors import ConfigError, ContextOverflow
from agentkit.events import (
    Event,
    Notice,
    ToolFinished,
    ToolStarted,
    TurnStarted,
)
from agentkit.messages import BadCall, Message, ToolCall, ToolResult, Usage, from_chat, user
from agentkit.parsing import Repetition
from agentkit.planner import Limits, Parser, Planner, React, Step
from agentkit.runtime.engine import Engine, ModelSettings, Request
from agentkit.runtime.presets import OUTPUT_TOKENS, recommended, soft_switch, thinks
from agentkit.tools import Tool, ToolRegistry, Toolset, function_tool

__all__ = ["Agent", "Run", "RunResult", "Stopped"]

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    OutputT = TypeVar("OutputT", default=str)
else:  # a default for the type is of use to type checkers only
    from typing import TypeVar

    OutputT = TypeVar("OutputT")
Stopped: TypeAlias = Literal[
    "answer",  # the model answered
    "max_turns",
    "max_tool_calls",
    "max_tokens",
    "timeout",
    "loop",  # the same call again and again, or the same words without end
    "length",  # the answer was cut by the model's output limit or context
    "empty",  # the model said nothing, twice
    "invalid_output",  # no answer validated against output_type
]
Task: TypeAlias = str | Message | Sequence[Message | Mapping[str, Any]]
Emit: TypeAlias = Callable[[Event], Awaitable[None]]
AnyTool: TypeAlias = Tool | Toolset | Callable[..., Any] | str | Mapping[str, Any]

_OUTPUT_TRIES = 3  # answers that may fail to validate before the run gives up
_REPEATS_HIDDEN, _REPEATS_ENDED = 2, 4  # the same calls in a row: their tools are hidden, the run ends
_PENALTY = 1.5  # presence_penalty after endless repetition; Qwen3's card allows 0 to 2 against it
_THOUGHTS_KEPT = 2_000  # characters of thoughts that were cut off, given back to the model
_WARM = 0.7  # temperature once a model repeats itself: a greedy one would do so for ever


@dataclass(frozen=True, slots=True)
class RunResult(Generic[OutputT]):
    """How a run ended, with everything that was said.

    `output` is the answer: text, or a value of the agent's `output_type`. When `stopped` is not "answer" it is the last
    text the model wrote (perhaps ""), and None for another `output_type` than str. `usage` sums all turns. `cuts` says what the
    model was no longer shown because the context was full; `messages` has it all.
    """

    output: OutputT
    stopped: Stopped
    messages: tuple[Message, ...]
    usage: Usage
    turns: int
    cuts: tuple[str, ...] = ()

    @property
    def artifacts(self) -> tuple[Any, ...]:
        """Figures and files that the tools made, in order."""
        return tuple(a for m in self.messages for r in m.results for a in r.artifacts)


class Run(Generic[OutputT]):
    """A run in progress: iterate it for events, then read `result`."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self._events = events
        self._result: RunResult[OutputT] | None = None

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._events

    @property
    def result(self) -> RunResult[OutputT]:
        """The result; RuntimeError before the last event has been read."""
        if self._result is None:
            raise RuntimeError("the run has not finished; iterate it to the end first")
        return self._result


@dataclass(frozen=True, slots=True)
class _Open:
    """What a run needs that has been opened: the engine, and the tools that outlive one run."""

    engine: Engine
    tools: Sequence[Tool]
    per_run: Sequence[Toolset]
    notices: Sequence[str]


class Agent(Generic[OutputT]):
    """A model with tools, asked to do a task.

    `model` is a name ("qwen3-4b", the default; "demo"), a path to a .gguf file, a server ("http://127.0.0.1:8000/v1", or with the name
    of one of its models "Qwen3-4B@http://127.0.0.1:8000/v1"), or an `Engine`.
    `tools` mixes Python functions, names of installed tools ("code_interpreter"), `Tool`s, `Toolset`s and MCP
    configurations ({"mcpServers": {…}}); `mcp` takes paths of MCP config files, or such mappings.
    `output_type` is what the answer must be: a pydantic model, a dataclass, or any type pydantic can validate.
    `settings` are the model's sampling settings; what they leave open is as the model's card recommends.

    `run` and `stream` open what they need and put it away. Inside `async with agent:` the model and the MCP servers stay
    open between runs. Runs may be concurrent.
    """

    def __init__(
        self,
        model: str | Engine | None = None,
        *,
        instructions: str | None = None,
        tools: Sequence[AnyTool] = (),
        mcp: Any = (),
        output_type: type[OutputT] = cast("type[OutputT]", str),
        limits: Limits = Limits(),
        settings: ModelSettings = ModelSettings(),
        planner: Planner | None = None,
    ) -> None:
        self.limits = limits
        self.planner = planner or React()
        self.settings = settings
        self._instructions = instructions
        self._validate: Callable[[Any], Any] | None = None
        if output_type is not str:
            from agentkit.schema import output_adapter

            self._validate, schema = output_adapter(output_type)
            ask = words.answer_as(json.dumps(schema, ensure_ascii=False))
            self._instructions = f"{instructions}\n\n{ask}" if instructions else ask
        self._model = model
        self._tools = resolve_tools(tools, mcp)
        self._opened: _Open | None = None
        self._stack: AsyncExitStack | None = None

    async def __aenter__(self) -> Agent[OutputT]:
        stack = AsyncExitStack()
        self._opened = await stack.enter_async_context(self._open())
        self._stack = stack
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._opened, stack, self._stack = None, self._stack, None
        if stack is not None:
            await stack.__aexit__(kind, exc, tb)

    @property
    def open_tools(self) -> Sequence[Tool]:
        """The tools that are open inside `async with agent:`; those that are opened anew for each run are not here."""
        return self._opened.tools if self._opened else ()

    async def context_use(self, task: Task) -> ContextUse | None:
        """How many tokens *task*'s first prompt has; inside `async with agent:`. None where the server cannot count."""
        if self._opened is None:
            raise RuntimeError("the agent is not open; use `async with agent:`")
        tools = self._opened.tools
        messages = self.planner.start(_conversation(task), self._instructions, tools)
        request = self.planner.request(messages, tools, self.settings, Step(1, ""))
        return await measure(self._opened.engine, request)

    def run_sync(self, task: Task) -> RunResult[OutputT]:
        """`run` for programs that are not async."""
        return anyio.run(self.run, task)

    async def run(self, task: Task) -> RunResult[OutputT]:
        """Do *task* (a text, or a conversation as Messages or chat dicts) and return how it ended.

        Raises an `AgentkitError` when something other than the model fails: the server, the configuration.
        """
        return await self._run(task, _nobody_watches)

    @asynccontextmanager
    async def stream(self, task: Task) -> AsyncIterator[Run[OutputT]]:
        """Run *task* while the body watches; leaving the body early cancels the run."""
        send, receive = anyio.create_memory_object_stream[Event](0)
        run: Run[OutputT] = Run(receive)

        async def drive() -> None:
            async with send:
                run._result = await self._run(task, send.send)

        with _one_error():
            async with receive, anyio.create_task_group() as group:
                group.start_soon(drive)
                yield run
                group.cancel_scope.cancel()

    async def _run(self, task: Task, emit: Emit) -> RunResult[OutputT]:
        async with AsyncExitStack() as stack:
            opened = self._opened
            if opened is None:
                opened = await stack.enter_async_context(self._open())
            for text in opened.notices:
                await emit(Notice(text))
            tools = list(opened.tools)
            late: list[str] = []
            for toolset in opened.per_run:
                tools += await stack.enter_async_context(toolset.open(late.append))
            for text in late:
                await emit(Notice(text))
            return await self._loop(_conversation(task), opened.engine, _by_name(tools), emit)
        raise AssertionError("an exit stack that swallows exceptions")

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[_Open]:
        notices: list[str] = []
        with _one_error():
            async with AsyncExitStack() as stack:
                from agentkit.runtime import connect

                engine = connect(self._model, notices.append)
                if hasattr(engine, "__aenter__"):
                    engine = await stack.enter_async_context(cast("Any", engine))
                tools: list[Tool] = []
                for t in self._tools:
                    if isinstance(t, Tool):
                        tools.append(t)
                    elif t.scope == "agent":
                        tools += await stack.enter_async_context(t.open(notices.append))
                per_run = [t for t in self._tools if not isinstance(t, Tool) and t.scope == "run"]
                yield _Open(engine, tools, per_run, notices)

    async def _loop(
        self, task: Sequence[Message], engine: Engine, tools: dict[str, Tool], emit: Emit
    ) -> RunResult[OutputT]:
        limits, run = self.limits, _Progress(session=secrets.token_hex(8), switch=soft_switch(task))
        talk = Conversation(self.planner.start(task, self._instructions, tuple(tools.values())))

        def ended(stopped: Stopped, output: Any = None) -> RunResult[OutputT]:
            if output is None and self._validate is None:
                output = next((m.text for m in reversed(talk.messages) if m.role == "assistant"), "")
            return RunResult(
                output, stopped, tuple(talk.messages), run.usage, run.step.turn, tuple(talk.cuts)
            )

        with anyio.move_on_after(limits.timeout):
            while True:
                if run.step.turn == limits.max_turns:
                    return ended("max_turns")
                if limits.max_tokens is not None and run.usage.total_tokens >= limits.max_tokens:
                    return ended("max_tokens")
                run.step = replace(run.step, turn=run.step.turn + 1)
                offered = tools
                if run.repeats >= _REPEATS_HIDDEN:
                    offered = {name: t for name, t in tools.items() if name not in run.repeated}
                reply, finish_reason = await self._ask(talk, engine, tools, offered, run, emit)
                run.step = Step(run.step.turn, run.session, think=run.think)  # until more is known
                if not reply.calls:
                    output, complaint, stopped = self._read_answer(reply, finish_reason, run)
                    if complaint is None or reply.text.strip():  # thoughts alone only fill the context
                        talk.append(reply)
                    if complaint is None:
                        return ended(stopped, output)
                    if complaint:
                        talk.append(user(complaint))
                    continue
                talk.append(reply)
                run.count_repeats(reply)
                over = (
                    limits.max_tool_calls is not None and run.calls + len(reply.calls) > limits.max_tool_calls
                )
                if over or run.repeats >= _REPEATS_ENDED:
                    why = "the limit of tool calls is reached" if over else "it was made too often"
                    talk.append(_not_run(reply, f"Not run: {why}."))
                    return ended("max_tool_calls" if over else "loop")
                run.calls += len(reply.calls)
                results = await self._act(reply.calls, tools, offered, emit)
                run.step = replace(
                    run.step,
                    failed=any(r.is_error for r in results),
                    unreadable=any(isinstance(c, BadCall) for c in reply.calls),
                )
                talk.append(self.planner.results(results, run.repeats))
        return ended("timeout")

    async def _ask(
        self,
        talk: Conversation,
        engine: Engine,
        tools: dict[str, Tool],
        offered: dict[str, Tool],
        run: _Progress,
        emit: Emit,
    ) -> tuple[Message, str]:
        """One model turn: the reply and why it ended. It may call tools that are hidden from it, and be told so."""
        penalty: float | None = None

        def model() -> str:
            return getattr(engine, "model", None) or ""

        def request(shown: Sequence[Message]) -> Request:
            made = self.planner.request(shown, tuple(offered.values()), self.settings, run.step)
            settings = recommended(model(), made.settings, run.switch)
            if offered is not tools:
                settings = replace(settings, temperature=max(settings.temperature or 0, _WARM))
            if penalty is not None:
                settings = replace(settings, presence_penalty=penalty)
            return replace(made, settings=settings)

        while True:
            for text in await talk.fit(engine, request):
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
                usage, finish_reason = await self._turn(engine, asked, parser, run, emit)
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
            if finish_reason == "repetition" and reply.calls:
                reply = _once_each(reply)
            elif finish_reason == "repetition" and penalty is None:
                penalty = _PENALTY
                await emit(Notice("the model repeated itself without end; it is asked again"))
                continue
            if usage is not None and reply.calls:
                talk.counted(usage)
            return reply, finish_reason

    async def _turn(
        self, engine: Engine, request: Request, parser: Parser, run: _Progress, emit: Emit
    ) -> tuple[Usage | None, str]:
        """Read one answer into *parser*: what it took, and why it ended."""
        await emit(TurnStarted(run.step.turn))
        finish_reason, usage, repetition = "stop", None, Repetition()
        async with aclosing(engine.stream(request)) as chunks:
            async for chunk in chunks:
                for event in parser.feed(chunk.text, chunk.reasoning, chunk.calls):
                    await emit(event)
                if chunk.finish_reason:
                    finish_reason = chunk.finish_reason
                if chunk.usage:
                    usage = chunk.usage
                    run.usage += usage
                wrote = chunk.text or chunk.reasoning or "".join(c.arguments for c in chunk.calls)
                if repetition.feed(wrote):
                    finish_reason = "repetition"
                    break
        cut = "length" if finish_reason == "repetition" else finish_reason
        for event in parser.close(cut):
            await emit(event)
        return usage, finish_reason

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
        if self._validate is None:
            return text, None, "answer"
        from agentkit.parsing import find_json

        try:
            return self._validate(find_json(text)), None, "answer"
        except ValueError as exc:
            run.invalid += 1
            return (
                None,
                (words.wrong_output(str(exc)) if run.invalid < _OUTPUT_TRIES else None),
                "invalid_output",
            )

    async def _act(
        self,
        calls: Sequence[ToolCall | BadCall],
        tools: Mapping[str, Tool],
        offered: Mapping[str, Tool],
        emit: Emit,
    ) -> list[ToolResult]:
        """Run the calls side by side; results come back in the order they were asked for."""
        results: dict[str, ToolResult] = {}

        async def one(call: ToolCall | BadCall) -> None:
            began = time.monotonic()
            if isinstance(call, ToolCall):
                await emit(ToolStarted(call))
            if isinstance(call, ToolCall) and call.name in tools and call.name not in offered:
                result = ToolResult(call.id, words.hidden(call.name), is_error=True, name=call.name)
            else:
                result = await call_tool(call, offered)
            result = replace(result, content=shortened(result.content, self.limits.result_chars))
            results[call.id] = result
            await emit(ToolFinished(call, result, time.monotonic() - began))

        with _one_error():
            async with anyio.create_task_group() as group:
                for call in calls:
                    group.start_soon(one, call)
        return [results[call.id] for call in calls]


@dataclass(slots=True)
class _Progress:
    """What a run has used up so far."""

    session: str
    switch: bool | None  # the task's /think or /no_think
    step: Step = field(init=False)
    calls: int = 0
    usage: Usage = Usage()
    empty: int = 0
    invalid: int = 0
    cut_off: bool = False  # thoughts ran into the output limit
    think: bool = True  # False once a turn was nothing but thoughts …
    unsaid: str = ""  # … which were these
    misparsed: bool = False  # the server takes all that the model says for thoughts
    repeats: int = 0  # how often in a row the model has made just the same calls
    last: str = ""
    repeated: frozenset[str] = frozenset()  # the tools they called

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

    def count_repeats(self, reply: Message) -> None:
        made = json.dumps(
            [[c.name, c.arguments] if isinstance(c, ToolCall) else c.raw for c in reply.calls],
            sort_keys=True,
            default=str,
        )
        self.repeats = self.repeats + 1 if made == self.last else 1
        self.last = made
        self.repeated = frozenset(c.name for c in reply.calls if isinstance(c, ToolCall))


def _conversation(task: Task) -> list[Message]:
    if isinstance(task, str):
        return [user(task)]
    if isinstance(task, Message):
        return [task]
    try:
        return [m if isinstance(m, Message) else from_chat(m) for m in task]
    except (ValueError, KeyError, AttributeError, TypeError) as exc:
        raise ConfigError(f"The task holds something that is not a chat message: {exc}.") from exc


def resolve_tools(tools: Sequence[AnyTool], mcp: Any = ()) -> list[Tool | Toolset]:
    """Each entry of `tools` as a Tool or Toolset; all MCP configuration together as one set."""
    registry, resolved = ToolRegistry(), list[Tool | Toolset]()
    sources: list[Any] = [mcp] if isinstance(mcp, str | Mapping) or hasattr(mcp, "__fspath__") else list(mcp)
    for t in tools:
        if isinstance(t, Tool):
            resolved.append(t)
        elif isinstance(t, str):
            if t.endswith(".json"):
                sources.append(t)
            else:
                resolved.append(registry.get(t))
        elif isinstance(t, Mapping) or hasattr(t, "__fspath__"):
            sources.append(t)
        elif isinstance(t, Toolset):
            resolved.append(t)
        else:
            resolved.append(function_tool(t))
    if sources:
        from agentkit.mcp import MCPServers

        resolved.append(MCPServers(*sources))
    return resolved


def _by_name(tools: Sequence[Tool]) -> dict[str, Tool]:
    """Tools by the names the model calls them; a second tool of one name is told apart by a number."""
    named: dict[str, Tool] = {}
    for t in tools:
        name, n = t.name, 2
        while name in named:
            name, n = f"{t.name}_{n}", n + 1
        named[name] = t if name == t.name else replace(t, name=name)
    return named


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


def _not_run(reply: Message, why: str) -> Message:
    """Results for calls that a limit stopped, so that the conversation can be taken up again."""
    return Message("tool", tuple(ToolResult(c.id, why, is_error=True) for c in reply.calls))


@contextmanager
def _one_error() -> Iterator[None]:
    """Let a task group's only error out as itself, so callers can catch it by its type."""
    try:
        yield
    except BaseExceptionGroup as group:
        only: BaseException = group
        while isinstance(only, BaseExceptionGroup) and len(only.exceptions) == 1:
            only = only.exceptions[0]
        raise only from only.__cause__


async def _nobody_watches(event: Event) -> None:
    pass
