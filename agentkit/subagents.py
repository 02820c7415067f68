"""An agent as a tool of another one: it is given a task, works on it with tools of its own, and its answer is the result."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from agentkit.context import shortened
from agentkit.errors import ConfigError, ContextOverflow, ToolError
from agentkit.events import Event, Notice, ToolProgress, ToolStarted
from agentkit.progress import report_progress
from agentkit.schema import to_text
from agentkit.tools import AskUser, KnowsTask, Notify, Tool, ToolOutput, Toolset

if TYPE_CHECKING:
    from agentkit.agent import Agent
    from agentkit.runtime.engine import Engine

__all__ = ["SubAgent", "agent_tool"]

_AT_WORK: ContextVar[tuple[Agent[Any], ...]] = ContextVar("agentkit_subagents", default=())

_TASK = "What to do, with all that is needed to know for it: nothing else of this conversation is seen."


def agent_tool(agent: Agent[Any], name: str, description: str, *, argument: str = "task") -> SubAgent:
    """*agent* as a tool that takes a task, in the argument of that name, and returns the agent's answer.

    Each call is a run of its own, with the agent's instructions, tools, limits and permissions (the caller's do not hold for
    what it does); it sees nothing of the caller's conversation. What it does is reported as the call's progress, and the files
    it makes come with the answer. A run that ends without an answer is an error that the caller can act on; other errors, such
    as the model server's, end the caller's run. An agent that names no model, or its caller's, asks the one that the caller
    has open, and one without `ask_user` reaches the caller's user.
    Raises `ConfigError` when it turns out to be among its own tools.
    """
    return SubAgent(agent, name, description, argument)


@dataclass(frozen=True, slots=True)
class SubAgent:
    """The toolset that `agent_tool` makes."""

    agent: Agent[Any]
    name: str
    description: str
    argument: str = "task"
    engine: Engine | None = None  # the caller's, open
    ask: AskUser | None = None  # the caller's user
    scope: Literal["agent"] = "agent"

    def with_model(self, engine: Engine) -> SubAgent:
        return replace(self, engine=engine)

    def with_user(self, ask: AskUser) -> SubAgent:
        return replace(self, ask=ask)

    @asynccontextmanager
    async def open(self, notify: Notify) -> AsyncIterator[Sequence[Tool]]:
        agent = copy(self.agent)  # it may be open elsewhere, by itself or for others
        agent._tools = [
            t if isinstance(t, Tool) or not isinstance(t, KnowsTask) else _NotTheUsers(t)
            for t in agent._tools
        ]
        agent._ask_user = agent._ask_user or self.ask
        if self.engine is not None and agent._model in (None, getattr(self.engine, "model", None)):
            agent._model = self.engine
        async with AsyncExitStack() as stack:
            with self._at_work():
                await stack.enter_async_context(agent)
            notices = tuple(agent._opened.notices) if agent._opened else ()
            for text in notices:
                notify(f"{self.name}: {text}")
            yield [self._tool(agent, notices)]

    def _tool(self, agent: Agent[Any], known: Sequence[str]) -> Tool:
        async def handler(arguments: Mapping[str, Any]) -> ToolOutput:
            task = to_text(arguments[self.argument])
            try:
                with self._at_work():
                    async with agent.stream(task) as run:
                        done = 0
                        async for event in run:
                            done += isinstance(event, ToolStarted)
                            if said := _said(event, known):
                                await report_progress(done, None, said)
            except ContextOverflow as exc:
                raise ToolError(f"{self.name} cannot take this task: {exc}") from exc
            result = run.result
            said = to_text(result.output) if result.output is not None else ""
            if result.stopped == "answer":
                return ToolOutput(said, False, result.artifacts, result.usage)
            why = f"{self.name} ended without an answer ({result.stopped.replace('_', ' ')})."
            said = f"{why} Its last words: {said}" if said else why
            return ToolOutput(said, True, result.artifacts, result.usage)

        parameters = {
            "type": "object",
            "properties": {self.argument: {"type": "string", "description": _TASK}},
            "required": [self.argument],
        }
        return Tool(self.name, self.description, parameters, handler)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Around the agent's opening and its runs, so that neither goes on within itself for ever."""
        around = _AT_WORK.get()
        if any(agent is self.agent for agent in around):
            raise ConfigError(f"The agent {self.name!r} is among its own tools: take it out of them.")
        token = _AT_WORK.set((*around, self.agent))
        try:
            yield
        finally:
            _AT_WORK.reset(token)


@dataclass(frozen=True, slots=True)
class _NotTheUsers:
    """A toolset that is not told the task: a model wrote that, and the user's own words count for more."""

    toolset: Toolset

    @property
    def scope(self) -> Literal["run", "agent"]:
        return self.toolset.scope

    def open(self, notify: Notify) -> AbstractAsyncContextManager[Sequence[Tool]]:
        return self.toolset.open(notify)


def _said(event: Event, known: Sequence[str]) -> str:
    """What the caller's watcher is told of the run."""
    match event:
        case ToolStarted(call):
            return (
                f"{call.name} {shortened(json.dumps(call.arguments, ensure_ascii=False, default=str), 200)}"
            )
        case ToolProgress(call, message=message) if message:
            return f"{call.name}: {message}"
        case Notice(text) if text not in known:
            return text
    return ""
