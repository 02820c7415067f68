"""The agent: one loop over engine, parser and tools."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, cast

import anyio

from agentkit import planner as words
from agentkit.errors import AgentkitError, ConfigError, ToolCrashed, ToolError
from agentkit.events import (
    Event,
    Notice,
    ToolFinished,
    ToolStarted,
    TurnStarted,
)
from agentkit.messages import BadCall, Message, ToolCall, ToolResult, Usage, from_chat, user
from agentkit.planner import Limits, Planner, React
from agentkit.runtime.engine import Engine, ModelSettings, recommended
from agentkit.tools import Tool, ToolOutput, ToolRegistry, Toolset, closest, function_tool, same_name

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
    "loop",  # the same call again and again
    "length",  # the answer was cut by the model's output limit or context
    "empty",  # the model said nothing, twice
    "invalid_output",  # no answer validated against output_type
]
Task: TypeAlias = str | Message | Sequence[Message | Mapping[str, Any]]
Emit: TypeAlias = Callable[[Event], Awaitable[None]]
AnyTool: TypeAlias = Tool | Toolset | Callable[..., Any] | str | Mapping[str, Any]

_OUTPUT_TRIES = 3  # answers that may fail to validate before the run gives up
_REPEATS_HIDDEN, _REPEATS_ENDED = 2, 4  # the same calls in a row: their tools are hidden, the run ends
_WARM = 0.7  # temperature once a model repeats itself: a greedy one would do so for ever

log = logging.getLogger("agentkit")


@dataclass(frozen=True, slots=True)
class RunResult(Generic[OutputT]):
    """How a run ended, with everything that was said.

    `output` is the answer: text, or a value of the agent's `output_type`. When `stopped` is not "answer" it is the last
    text the model wrote (perhaps ""), and None for another `output_type` than str. `usage` sums all turns.
    """

    output: OutputT
    stopped: Stopped
    messages: tuple[Message, ...]
    usage: Usage
    turns: int

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
        limits, run = self.limits, _Progress(session=secrets.token_hex(8))
        settings = recommended(getattr(engine, "model", None) or "", self.settings)
        history = self.planner.start(task, self._instructions, tuple(tools.values()))

        def ended(stopped: Stopped, output: Any = None) -> RunResult[OutputT]:
            if output is None and self._validate is None:
                output = next((m.text for m in reversed(history) if m.role == "assistant"), "")
            return RunResult(output, stopped, tuple(history), run.usage, run.turn)

        with anyio.move_on_after(limits.timeout):
            while True:
                if run.turn == limits.max_turns:
                    return ended("max_turns")
                if limits.max_tokens is not None and run.usage.total_tokens >= limits.max_tokens:
                    return ended("max_tokens")
                run.turn += 1
                offered = tools
                if run.repeats >= _REPEATS_HIDDEN:
                    offered = {name: t for name, t in tools.items() if name not in run.repeated}
                    settings = replace(settings, temperature=max(settings.temperature or 0, _WARM))
                reply, finish_reason = await self._ask(history, engine, tools, offered, settings, run, emit)
                history.append(reply)
                if not reply.calls:
                    output, complaint, stopped = self._read_answer(reply, finish_reason, run)
                    if complaint is None:
                        return ended(stopped, output)
                    history.append(user(complaint))
                    continue
                run.count_repeats(reply)
                over = (
                    limits.max_tool_calls is not None and run.calls + len(reply.calls) > limits.max_tool_calls
                )
                if over or run.repeats >= _REPEATS_ENDED:
                    why = "the limit of tool calls is reached" if over else "it was made too often"
                    history.append(_not_run(reply, f"Not run: {why}."))
                    return ended("max_tool_calls" if over else "loop")
                run.calls += len(reply.calls)
                history.append(await self._act(reply.calls, tools, offered, run, emit))
        return ended("timeout")

    async def _ask(
        self,
        history: Sequence[Message],
        engine: Engine,
        tools: dict[str, Tool],
        offered: dict[str, Tool],
        settings: ModelSettings,
        run: _Progress,
        emit: Emit,
    ) -> tuple[Message, str]:
        """One model turn: the reply and why it ended. It may call tools that are hidden from it, and be told so."""
        await emit(TurnStarted(run.turn))
        parser = self.planner.parser(tuple(tools.values()), run.turn)
        request = self.planner.request(history, tuple(offered.values()), settings, run.session)
        finish_reason = "stop"
        async with aclosing(engine.stream(request)) as chunks:
            async for chunk in chunks:
                for event in parser.feed(chunk.text, chunk.reasoning, chunk.calls):
                    await emit(event)
                if chunk.finish_reason:
                    finish_reason = chunk.finish_reason
                if chunk.usage:
                    run.usage += chunk.usage
        for event in parser.close(finish_reason):
            await emit(event)
        return parser.message(), finish_reason

    def _read_answer(
        self, reply: Message, finish_reason: str, run: _Progress
    ) -> tuple[Any, str | None, Stopped]:
        """The output of a turn without calls, or what the model must be told to make it one."""
        text = reply.text.strip()
        if finish_reason == "length":
            return None, None, "length"
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
        tools: dict[str, Tool],
        offered: dict[str, Tool],
        run: _Progress,
        emit: Emit,
    ) -> Message:
        """Run the calls side by side; results come back in the order they were asked for."""
        results: dict[str, ToolResult] = {}

        async def one(call: ToolCall | BadCall) -> None:
            began = time.monotonic()
            if isinstance(call, ToolCall):
                await emit(ToolStarted(call))
            if isinstance(call, ToolCall) and call.name in tools and call.name not in offered:
                result = ToolResult(call.id, words.hidden(call.name), is_error=True, name=call.name)
            else:
                result = await _call(call, offered)
            result = replace(result, content=_shorten(result.content, self.limits.result_chars))
            results[call.id] = result
            await emit(ToolFinished(call, result, time.monotonic() - began))

        with _one_error():
            async with anyio.create_task_group() as group:
                for call in calls:
                    group.start_soon(one, call)
        return self.planner.results([results[call.id] for call in calls], run.repeats)


@dataclass(slots=True)
class _Progress:
    """What a run has used up so far."""

    session: str
    turn: int = 0
    calls: int = 0
    usage: Usage = Usage()
    empty: int = 0
    invalid: int = 0
    repeats: int = 0  # how often in a row the model has made just the same calls
    last: str = ""
    repeated: frozenset[str] = frozenset()  # the tools they called

    def count_repeats(self, reply: Message) -> None:
        made = json.dumps(
            [[c.name, c.arguments] if isinstance(c, ToolCall) else c.raw for c in reply.calls],
            sort_keys=True,
            default=str,
        )
        self.repeats = self.repeats + 1 if made == self.last else 1
        self.last = made
        self.repeated = frozenset(c.name for c in reply.calls if isinstance(c, ToolCall))


async def _call(call: ToolCall | BadCall, tools: Mapping[str, Tool]) -> ToolResult:
    """Run one call. What is the model's fault or the tool's comes back as a result the model can act on."""
    from agentkit.schema import fit, missing, wrong_arguments

    if isinstance(call, BadCall):
        return ToolResult(call.id, words.unreadable(call.reason), is_error=True)
    found = tools.get(call.name) or tools.get(same_name(call.name, tools) or "")
    if found is None:
        said = words.no_such_tool(call.name, closest(call.name, tools), tools)
        return ToolResult(call.id, said, is_error=True, name=call.name)
    arguments = fit(call.arguments, found.parameters)
    try:
        if found.fn is None and (absent := missing(arguments, found.parameters)):
            problems = [f"{name} is missing" for name in absent]
            raise ToolError(wrong_arguments(found.name, found.parameters, problems))
        with anyio.fail_after(found.timeout):
            output = await found.handler(arguments)
    except ToolError as exc:
        output = ToolOutput(str(exc), is_error=True)
    except TimeoutError as exc:
        text = (
            f"{found.name} gave no result within {found.timeout:g} s."
            if found.timeout
            else f"TimeoutError: {exc}"
        )
        output = ToolOutput(text, is_error=True)
    except AgentkitError:
        raise
    except Exception as exc:
        if found.on_error == "raise":
            raise ToolCrashed(f"The tool {found.name} raised {type(exc).__name__}: {exc}") from exc
        log.warning("the tool %s raised; the model is told and the run goes on", found.name, exc_info=exc)
        output = ToolOutput(f"{found.name} failed with {type(exc).__name__}: {exc}", is_error=True)
    return ToolResult(call.id, output.content, output.is_error, found.name, output.artifacts)


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


def _not_run(reply: Message, why: str) -> Message:
    """Results for calls that a limit stopped, so that the conversation can be taken up again."""
    return Message("tool", tuple(ToolResult(c.id, why, is_error=True) for c in reply.calls))


def _shorten(text: str, limit: int) -> str:
    """The beginning and the end of *text*, with what was left out said in the middle."""
    if len(text) <= limit:
        return text
    tail = limit // 4
    return f"{text[: limit - tail]}\n[… {len(text) - limit} characters left out …]\n{text[-tail:]}"


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
