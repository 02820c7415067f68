"""An agent as a tool: what its caller, its caller's user and its model see of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
import pytest
from pydantic import BaseModel

from agentkit import (
    Agent,
    Artifact,
    ConfigError,
    ContextOverflow,
    EngineError,
    Limits,
    Tool,
    ToolOutput,
    Usage,
    tool,
)
from agentkit.events import Notice, ToolProgress
from agentkit.messages import Message
from agentkit.progress import report_progress
from agentkit.runtime.engine import Chunk, Request
from agentkit.subagents import SubAgent, agent_tool
from agentkit.testing import ScriptedEngine
from agentkit.tools import AskUser, Notify, Toolset

pytestmark = pytest.mark.anyio

ASK = '<tool_call>\n{"name": "helper", "arguments": {"task": "Find x."}}\n</tool_call>'
LOOK = '<tool_call>\n{"name": "look", "arguments": {"where": "there"}}\n</tool_call>'


@tool
async def look(where: str) -> str:
    """Look."""
    await report_progress(1, 2, "half way")
    return f"x is {where}"


def helper(agent: Agent[Any], **options: Any) -> SubAgent:
    return agent_tool(agent, "helper", "Finds things.", **options)


def results(message: Message) -> list[tuple[str, bool]]:
    return [(r.content, r.is_error) for r in message.results]


class Opened(ScriptedEngine):
    """Counts who holds it open."""

    model = "some-model"
    users = most = 0

    async def __aenter__(self) -> Opened:
        self.users += 1
        self.most = max(self.most, self.users)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.users -= 1


async def test_an_agent_s_answer_is_the_result_of_the_call() -> None:
    inner, outer = ScriptedEngine([LOOK, "It is there."]), ScriptedEngine([ASK, "x is there."])
    agent = Agent(inner, instructions="Be brief.", tools=[look])
    result = await Agent(outer, tools=[helper(agent)]).run("Find out where x is.")
    assert result.output == "x is there."
    assert results(outer.requests[1].messages[-1]) == [("It is there.", False)]


async def test_an_agent_says_by_itself_how_it_is_a_tool() -> None:
    engine = ScriptedEngine([ASK, "It is there.", "x is there."])
    found = Agent(tools=[look]).as_tool("helper", "Finds things.")
    assert (await Agent(engine, tools=[found]).run("Find out where x is.")).output == "x is there."
    assert engine.requests[0].tools[0]["function"]["description"] == "Finds things."


async def test_it_works_in_a_conversation_of_its_own_with_tools_of_its_own() -> None:
    inner, outer = ScriptedEngine([LOOK, "It is there."]), ScriptedEngine([ASK, "x is there."])
    agent = Agent(inner, instructions="Be brief.", tools=[look])
    await Agent(outer, instructions="Be long.", tools=[helper(agent)]).run("Find out where x is.")
    head, task = inner.requests[0].messages
    assert "Be brief." in head.text and "Be long." not in head.text
    assert task.text == "Find x."
    assert [t["function"]["name"] for t in inner.requests[0].tools] == ["look"]
    assert [t["function"]["name"] for t in outer.requests[0].tools] == ["helper"]
    assert inner.requests[0].session != outer.requests[0].session


async def test_the_task_s_argument_can_have_another_name() -> None:
    asked = '<tool_call>\n{"name": "helper", "arguments": {"question": "Why?"}}\n</tool_call>'
    inner, outer = ScriptedEngine(["Because."]), ScriptedEngine([asked, "ok"])
    await Agent(outer, tools=[helper(Agent(inner), argument="question")]).run("?")
    assert inner.requests[0].messages[-1].text == "Why?"
    assert outer.requests[0].tools[0]["function"]["parameters"]["required"] == ["question"]


@pytest.mark.parametrize("named", [None, "some-model"])
async def test_an_agent_that_names_no_model_or_its_caller_s_asks_the_one_its_caller_has_open(
    named: str | None,
) -> None:
    engine = Opened([ASK, "It is there.", "x is there."])
    result = await Agent(engine, tools=[helper(Agent(named))]).run("Find out where x is.")
    assert result.output == "x is there."
    assert (engine.users, len(engine.requests)) == (0, 3)


async def test_an_agent_with_a_model_of_its_own_has_it_open_as_long_as_its_caller_is() -> None:
    inner = Opened(["It is there.", "Still there."])
    async with Agent(ScriptedEngine([ASK, "1", ASK, "2"]), tools=[helper(Agent(inner))]) as caller:
        assert inner.users == 1
        await caller.run("?")
        await caller.run("?")
    assert (inner.users, inner.most, len(inner.requests)) == (0, 1, 2)


async def test_an_agent_can_be_open_for_itself_and_serve_two_callers() -> None:
    inner = Opened(["alone", "first", "second"])
    async with Agent(inner) as agent:
        assert (await agent.run("?")).output == "alone"
        for answer in ("first", "second"):
            outer = ScriptedEngine([ASK, "ok"])
            await Agent(outer, tools=[helper(agent)]).run("?")
            assert results(outer.requests[1].messages[-1]) == [(answer, False)]
        assert inner.users == 1


async def test_calls_in_one_turn_are_runs_side_by_side() -> None:
    """Each run's first request waits for the other one's."""
    both = anyio.Event()

    class Meeting(ScriptedEngine):
        async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
            async for chunk in super().stream(request):
                if len(self.requests) == 2:
                    both.set()
                await both.wait()
                yield chunk

    outer = ScriptedEngine([ASK + ASK.replace("x", "y"), "ok"])
    with anyio.fail_after(10):
        await Agent(outer, tools=[helper(Agent(Meeting(["one", "two"])))]).run("?")
    assert sorted(results(outer.requests[1].messages[-1])) == [("one", False), ("two", False)]


@pytest.mark.parametrize(("most", "stopped"), [(None, "answer"), (1_100, "max_tokens")])
async def test_what_it_uses_up_counts_as_the_caller_s(most: int | None, stopped: str) -> None:
    def turn(text: str, tokens: int) -> list[str | Chunk]:
        return [text, Chunk(usage=Usage(tokens))]

    agent = Agent(ScriptedEngine([turn(LOOK, 100), turn("It is there.", 1_000)]), tools=[look])
    outer = ScriptedEngine([turn(ASK, 1), turn("x is there.", 10)])
    result = await Agent(outer, tools=[helper(agent)], limits=Limits(max_tokens=most)).run(
        "Find out where x is."
    )
    assert (result.stopped, result.usage.input_tokens) == (stopped, 1_111 if most is None else 1_101)


@pytest.mark.parametrize(
    ("turns", "limits", "told"),
    [
        ([LOOK], Limits(max_turns=1), "helper ended without an answer (max turns)."),
        (
            ["So far:" + LOOK],
            Limits(max_turns=1),
            "helper ended without an answer (max turns). Its last words: So far:",
        ),
        ([LOOK], Limits(max_tool_calls=0), "helper ended without an answer (max tool calls)."),
        (["", ""], Limits(), "helper ended without an answer (empty)."),
    ],
)
async def test_an_agent_that_ends_by_a_limit_is_an_error_that_says_so(
    turns: list[str], limits: Limits, told: str
) -> None:
    outer = ScriptedEngine([ASK, "ok"])
    await Agent(outer, tools=[helper(Agent(ScriptedEngine(turns), tools=[look], limits=limits))]).run("?")
    assert results(outer.requests[1].messages[-1]) == [(told, True)]


class Found(BaseModel):
    where: str


async def test_a_typed_answer_is_the_result_as_json() -> None:
    outer = ScriptedEngine([ASK, "ok"])
    agent = Agent(ScriptedEngine(['Here: {"where":  "there"}']), output_type=Found)
    await Agent(outer, tools=[helper(agent)]).run("?")
    assert results(outer.requests[1].messages[-1]) == [('{"where":"there"}', False)]


async def test_no_typed_answer_is_an_error_without_words() -> None:
    outer = ScriptedEngine([ASK, "ok"])
    agent = Agent(ScriptedEngine(["a", "b", "c"]), output_type=Found)
    await Agent(outer, tools=[helper(agent)]).run("?")
    assert results(outer.requests[1].messages[-1]) == [
        ("helper ended without an answer (invalid output).", True)
    ]


async def test_files_that_it_makes_come_with_its_answer() -> None:
    file = Artifact("x.txt", "text/plain", b"x")

    async def handler(arguments: Mapping[str, Any]) -> ToolOutput:
        return ToolOutput("drawn", artifacts=(file,))

    look = Tool("look", "Look.", {"type": "object", "properties": {}}, handler)
    result = await Agent(
        ScriptedEngine([ASK, "ok"]), tools=[helper(Agent(ScriptedEngine([LOOK, "done"]), tools=[look]))]
    ).run("?")
    assert result.artifacts == (file,)


async def test_what_it_does_is_its_call_s_progress() -> None:
    agent = Agent(ScriptedEngine([LOOK, "It is there."]), tools=[look])
    async with Agent(ScriptedEngine([ASK, "ok"]), tools=[helper(agent)]).stream("?") as run:
        seen = [(e.call.name, e.progress, e.message) async for e in run if isinstance(e, ToolProgress)]
    assert seen == [("helper", 1, 'look {"where": "there"}'), ("helper", 1, "look: half way")]


@pytest.mark.parametrize("depth", [2, 3])
async def test_progress_and_answers_come_up_from_any_depth(depth: int) -> None:
    agent = Agent(ScriptedEngine([LOOK, "It is there."]), tools=[look])
    for _ in range(depth - 1):
        agent = Agent(ScriptedEngine([ASK, "It is there."]), tools=[helper(agent)])
    async with Agent(ScriptedEngine([ASK, "ok"]), tools=[helper(agent)]).stream("?") as run:
        seen = [e.message async for e in run if isinstance(e, ToolProgress)]
    assert seen[-1] == "helper: " * (depth - 1) + "look: half way"
    assert results(run.result.messages[-2]) == [("It is there.", False)]


async def test_an_error_of_its_model_server_ends_the_caller_s_run() -> None:
    class Down(ScriptedEngine):
        async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
            raise EngineError("the server is gone")
            yield Chunk()

    with pytest.raises(EngineError, match="gone"):
        await Agent(ScriptedEngine([ASK]), tools=[helper(Agent(Down([])))]).run("?")


async def test_a_task_that_is_too_long_for_it_is_the_caller_s_to_shorten() -> None:
    class Short(ScriptedEngine):
        async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
            raise ContextOverflow("the context has 100 tokens")
            yield Chunk()

    outer = ScriptedEngine([ASK, "ok"])
    await Agent(outer, tools=[helper(Agent(Short([])))]).run("?")
    told = "helper cannot take this task: the context has 100 tokens"
    assert results(outer.requests[1].messages[-1]) == [(told, True)]


@dataclass
class Late:
    """A toolset that knows its tools only once it is opened."""

    tools: list[Toolset | Tool] = field(default_factory=list)
    scope: Literal["run", "agent"] = "agent"
    engine: Any = None

    def with_model(self, engine: Any) -> Late:
        return Late(self.tools, self.scope, engine)

    @asynccontextmanager
    async def open(self, notify: Notify) -> AsyncIterator[Sequence[Tool]]:
        notify("late, but here")
        (inner,) = self.tools
        if isinstance(inner, Tool):
            yield [inner]
            return
        async with inner.open(notify) as tools:
            yield tools


async def test_an_agent_among_its_own_tools_is_refused_by_name() -> None:
    late = Late()
    agent = Agent(ScriptedEngine([]), tools=[late])
    late.tools.append(helper(agent))
    with pytest.raises(ConfigError, match="'helper' is among its own tools"):
        await agent.run("?")


@pytest.mark.parametrize("opened", [True, False])
async def test_an_agent_that_is_called_by_what_it_called_itself_is_refused_by_name(opened: bool) -> None:
    @tool(name="look")
    async def ask_again(where: str) -> str:
        return (await other.run("?")).output

    agent: Agent[str] = Agent(ScriptedEngine([LOOK, LOOK]), tools=[ask_again])
    other = Agent(ScriptedEngine([ASK]), tools=[helper(agent)])
    caller = Agent(ScriptedEngine([ASK]), tools=[helper(agent)])
    with pytest.raises(ConfigError, match="'helper' is among its own tools"):
        async with AsyncExitStack() as stack:
            if opened:
                await stack.enter_async_context(other)
            await caller.run("?")


async def test_what_went_wrong_as_it_was_opened_is_the_caller_s_notice_once() -> None:
    agent = Agent(ScriptedEngine([ASK.replace("helper", "look"), "done"]), tools=[Late([look])])
    async with Agent(ScriptedEngine([ASK, "ok"]), tools=[helper(agent)]).stream("?") as run:
        events = [e async for e in run]
    assert [e.text for e in events if isinstance(e, Notice)] == ["helper: late, but here"]
    assert not [e for e in events if isinstance(e, ToolProgress) and "late" in e.message]


@dataclass(frozen=True)
class Curious:
    """A toolset that asks the user, and is told what the user wrote."""

    ask: AskUser | None = None
    task: str = ""
    scope: Literal["run", "agent"] = "run"

    @asynccontextmanager
    async def open(self, notify: Notify) -> AsyncIterator[Sequence[Tool]]:
        async def handler(arguments: Mapping[str, Any]) -> ToolOutput:
            return ToolOutput(str(await self.ask("Where?", ()) if self.ask else self.task))

        yield [Tool("look", "Look.", {"type": "object", "properties": {}}, handler)]


class Asking(Curious):
    def with_user(self, ask: AskUser) -> Asking:
        return Asking(ask)


class Knowing(Curious):
    def with_task(self, text: str) -> Knowing:
        return Knowing(None, text)


async def test_its_tools_reach_the_caller_s_user_where_it_has_none_itself() -> None:
    async def here(question: str, choices: Sequence[str]) -> str:
        return "here"

    async def there(question: str, choices: Sequence[str]) -> str:
        return "there"

    for own, answer in ((None, "here"), (there, "there")):
        inner = ScriptedEngine([LOOK, "ok"])
        agent = Agent(inner, tools=[Asking()], ask_user=own)
        await Agent(ScriptedEngine([ASK, "ok"]), tools=[helper(agent)], ask_user=here).run("?")
        assert results(inner.requests[1].messages[-1]) == [(answer, False)]


async def test_a_task_that_a_model_wrote_does_not_count_as_the_user_s_words() -> None:
    asked = ScriptedEngine([LOOK, "ok"])
    agent = Agent(asked, tools=[Knowing()])
    await agent.run("Find x.")
    assert results(asked.requests[1].messages[-1]) == [("Find x.", False)]

    called = ScriptedEngine([LOOK, "ok"])
    agent = Agent(called, tools=[Knowing()])
    await Agent(ScriptedEngine([ASK, "ok"]), tools=[helper(agent)]).run("Find out where x is.")
    assert results(called.requests[1].messages[-1]) == [("", False)]


async def test_leaving_the_caller_s_stream_ends_the_agent_s_run() -> None:
    closed = anyio.Event()

    @tool(name="look")
    async def wait(where: str) -> str:
        try:
            await anyio.sleep_forever()
        finally:
            closed.set()
        return ""

    agent = Agent(ScriptedEngine([LOOK]), tools=[wait])
    with anyio.fail_after(10):
        async with Agent(ScriptedEngine([ASK]), tools=[helper(agent)]).stream("?") as run:
            async for event in run:
                if isinstance(event, ToolProgress):
                    break
        assert closed.is_set()
