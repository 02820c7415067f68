"""The agent: a model, its tools and how to run them, opened and put away."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, cast

import anyio

from agentkit import planner as words
from agentkit.calling import May
from agentkit.context import ContextUse, measure
from agentkit.errors import ConfigError, one_error
from agentkit.events import Event, Notice
from agentkit.feed import Feed
from agentkit.loop import Emit, Loop
from agentkit.messages import Message, from_chat, user
from agentkit.planner import Limits, Planner, React, Step
from agentkit.result import OutputT, RunResult, Stopped
from agentkit.runtime.engine import Counting, Engine, ModelSettings
from agentkit.runtime.presets import soft_switch
from agentkit.sharing import sharing
from agentkit.toolbox import Toolbox, budget_for
from agentkit.tools import AsksModel, AsksUser, AskUser, KnowsTask, Tool, ToolRegistry, Toolset, function_tool

if TYPE_CHECKING:
    from agentkit.permissions import Permissions

__all__ = ["Agent", "Run", "RunResult", "Stopped"]

Task: TypeAlias = str | Message | Sequence[Message | Mapping[str, Any]]
AnyTool: TypeAlias = Tool | Toolset | Callable[..., Any] | str | os.PathLike[str] | Mapping[str, Any]

MCP_CONFIGS = (".json", ".jsonc", ".toml", ".yaml", ".yml")  # of MCP servers


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
    tools: Sequence[Sequence[Tool]]  # one list for each toolset, which may change it between turns
    per_run: Sequence[Toolset]
    toolsets: Sequence[Toolset]  # whose lists those are
    notices: Sequence[str]


class Agent(Generic[OutputT]):
    """A model with tools, asked to do a task.

    `model` is a name ("qwen3-4b", the default; "demo"), a path to a .gguf file, a server ("http://127.0.0.1:8000/v1", or with the name
    of one of its models "Qwen3-4B@http://127.0.0.1:8000/v1"; several servers of one model: their URLs with commas between them), or an
    `Engine`.
    `tools` mixes Python functions, names of installed tools ("code_interpreter"), files and folders of them ("./my_tools.py"), `Tool`s,
    `Toolset`s, tools of Qwen-Agent and LangChain, and MCP configurations ({"mcpServers": {…}}); `mcp` takes paths of MCP config files, such mappings, or names of servers in the user's own
    config. `host` is what those servers may ask for (`agentkit.mcp.Host`), `context` which of their resources ("server:uri") are put
    before each conversation.
    `output_type` is what the answer must be: a pydantic model, a dataclass, or any type pydantic can validate.
    `permissions` say which calls may be made, of all that `tools` and `mcp` offer (`agentkit.permissions.Permissions`); None: all of them.
    `ask_user` is how tools reach the user: an async function from a question and suggested answers to an answer, or None.
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
        host: Any = None,
        context: Sequence[str] = (),
        output_type: type[OutputT] = cast("type[OutputT]", str),
        limits: Limits = Limits(),
        settings: ModelSettings = ModelSettings(),
        planner: Planner | None = None,
        permissions: Permissions | None = None,
        ask_user: AskUser | None = None,
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
        self._tools = resolve_tools(tools, mcp, host)
        self._context = tuple(context)
        self._ask_user = ask_user
        self._may: May | None = None
        if permissions is not None:
            from agentkit.permissions import Gate

            self._may = Gate(permissions).decide
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
        return tuple(chain.from_iterable(self._opened.tools)) if self._opened else ()

    @property
    def mcp_servers(self) -> Sequence[Any]:
        """The connections to the MCP servers that are open."""
        return _connections(self._opened) if self._opened else ()

    async def context_use(self, task: Task) -> ContextUse | None:
        """How many tokens *task*'s first prompt has; inside `async with agent:`. None where the server cannot count."""
        if self._opened is None:
            raise RuntimeError("the agent is not open; use `async with agent:`")
        tools = self.open_tools
        messages = self.planner.start(_conversation(task), self._instructions, tools)
        engine = self._opened.engine
        budget = budget_for(await engine.context_length() if isinstance(engine, Counting) else None)
        shown = Toolbox(tools, budget, messages[-1].text).shown()
        return await measure(engine, self.planner.request(messages, shown, self.settings, Step(1, "")))

    def as_tool(self, name: str, description: str, *, argument: str = "task") -> Toolset:
        """This agent as a tool for another one's `tools`: it is given a task, and its answer is the result.

        Each call is a run of its own, with this agent's tools, limits and permissions. Without a model of its own it asks the
        one that the other has open. More in `agentkit.subagents.agent_tool`.
        """
        from agentkit.subagents import agent_tool

        return agent_tool(self, name, description, argument=argument)

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
        feed = Feed()
        run: Run[OutputT] = Run(feed)

        async def drive() -> None:
            try:
                run._result = await self._run(task, feed.put)
            finally:
                feed.close()

        with one_error():
            async with anyio.create_task_group() as group:
                group.start_soon(drive)
                yield run
                group.cancel_scope.cancel()

    async def _run(self, task: Task, emit: Emit) -> RunResult[OutputT]:
        messages = _conversation(task)
        async with AsyncExitStack() as stack:
            opened = self._opened
            if opened is None:
                opened = await stack.enter_async_context(self._open())
            for text in opened.notices:
                await emit(Notice(text))
            tools = list(opened.tools)
            late: list[str] = []
            with sharing(stack):
                for toolset in opened.per_run:
                    ready = self._equipped(toolset, opened.engine)
                    if isinstance(ready, KnowsTask):
                        ready = ready.with_task("\n".join(m.text for m in messages if m.role == "user"))
                    tools.append(await stack.enter_async_context(ready.open(late.append)))
            for text in late:
                await emit(Notice(text))
            named = _ByName(tools)
            if self._context:
                from agentkit.mcp.resources import read_as_messages

                messages = [*await read_as_messages(_connections(opened), self._context), *messages]
            engine = opened.engine
            if self.planner.aids.votes > 1:
                from agentkit.voting import Voting

                engine = Voting(engine, self.planner.aids.votes)
            loop = Loop(
                engine,
                self.planner,
                named,
                self.limits,
                self.settings,
                self._validate,
                emit,
                soft_switch(messages),
                self._may,
            )
            return await loop.run(self.planner.start(messages, self._instructions, tuple(named().values())))
        raise AssertionError("an exit stack that swallows exceptions")

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[_Open]:
        notices: list[str] = []
        with one_error():
            async with AsyncExitStack() as stack:
                from agentkit.runtime import connect

                engine = connect(self._model, notices.append)
                if hasattr(engine, "__aenter__"):
                    engine = await stack.enter_async_context(cast("Any", engine))
                tools: list[Sequence[Tool]] = []
                toolsets: list[Toolset] = []
                with sharing(stack):
                    for t in self._tools:
                        if isinstance(t, Tool):
                            tools.append((t,))
                        elif t.scope == "agent":
                            toolsets.append(self._equipped(t, engine))
                            tools.append(await stack.enter_async_context(toolsets[-1].open(notices.append)))
                per_run = [t for t in self._tools if not isinstance(t, Tool) and t.scope == "run"]
                yield _Open(engine, tools, per_run, toolsets, notices)

    def _equipped(self, toolset: Toolset, engine: Engine) -> Toolset:
        """*toolset* with the model and the user, where its tools may ask those."""
        if isinstance(toolset, AsksModel):
            toolset = toolset.with_model(engine)
        if isinstance(toolset, AsksUser) and self._ask_user is not None:
            toolset = toolset.with_user(self._ask_user)
        return toolset


def _connections(opened: _Open) -> list[Any]:
    return [c for t in opened.toolsets for c in getattr(t, "connections", ())]


def _conversation(task: Task) -> list[Message]:
    if isinstance(task, str):
        return [user(task)]
    if isinstance(task, Message):
        return [task]
    try:
        return [m if isinstance(m, Message) else from_chat(m) for m in task]
    except (ValueError, KeyError, AttributeError, TypeError) as exc:
        raise ConfigError(f"The task holds something that is not a chat message: {exc}.") from exc


def resolve_tools(tools: Sequence[AnyTool], mcp: Any = (), host: Any = None) -> list[Tool | Toolset]:
    """Each entry of `tools` as a Tool or Toolset; all MCP configuration together as one set."""
    registry, resolved = ToolRegistry(), list[Tool | Toolset]()
    sources: list[Any] = [mcp] if isinstance(mcp, str | Mapping) or hasattr(mcp, "__fspath__") else list(mcp)
    for t in tools:
        if hasattr(t, "__fspath__"):
            t = str(t)
            t = t if os.sep in t else os.path.join(os.curdir, t)  # a path, where a name may be one of a tool
        if isinstance(t, Tool):
            resolved.append(t)
        elif isinstance(t, str):
            if t.endswith(MCP_CONFIGS):
                sources.append(t)
            elif t in registry.names():
                resolved.append(registry.get(t))
            else:
                from agentkit.adopt import named

                resolved += named(t)
        elif isinstance(t, Mapping):
            if isinstance(t.get("name"), str):  # as in Qwen-Agent's function_list
                from agentkit.adopt import named

                resolved += named(t["name"], {k: v for k, v in t.items() if k != "name"})
            else:
                sources.append(t)
        elif isinstance(t, Toolset) and not isinstance(t, type):
            resolved.append(t)
        elif type(t).__module__ == "builtins" and not isinstance(t, type):
            resolved.append(function_tool(t))
        else:
            from agentkit.adopt import adopt

            adopted = adopt(t)
            resolved.append(function_tool(t) if adopted is None else adopted)
    if sources:
        from agentkit.mcp import MCPServers

        resolved.append(MCPServers(*sources, host=host) if host is not None else MCPServers(*sources))
    return resolved


class _ByName:
    """The tools by the names the model calls them, as their toolsets have them now; a second one of a name gets a number."""

    def __init__(self, sources: Sequence[Sequence[Tool]]) -> None:
        self._sources = sources
        self._seen: list[Tool] = []
        self._named: dict[str, Tool] = {}

    def __call__(self) -> Mapping[str, Tool]:
        now = list(chain.from_iterable(self._sources))
        if len(now) != len(self._seen) or any(a is not b for a, b in zip(now, self._seen, strict=True)):
            self._seen, self._named = now, {}
            for t in now:
                name, n = t.name, 2
                while name in self._named:
                    name, n = f"{t.name}_{n}", n + 1
                self._named[name] = t if name == t.name else replace(t, name=name)
        return self._named


async def _nobody_watches(event: Event) -> None:
    pass
