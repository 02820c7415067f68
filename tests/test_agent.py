"""The loop, from the outside: what a run does with what the model says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import anyio
import pytest
from pydantic import BaseModel

from agentkit import (
    Agent,
    ConfigError,
    EngineError,
    Limits,
    ModelSettings,
    Tool,
    ToolCrashed,
    ToolError,
    ToolOutput,
    Usage,
    tool,
)
from agentkit.events import (
    CallFragment,
    CallReady,
    Notice,
    TextDelta,
    ThinkingDelta,
    ToolFinished,
    ToolStarted,
    TurnStarted,
)
from agentkit.messages import Message, ToolResult, user
from agentkit.planner import hidden
from agentkit.runtime.engine import Chunk, Request
from agentkit.testing import RecordingEngine, ReplayEngine, ScriptedEngine

pytestmark = pytest.mark.anyio


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
async def divide(a: int, b: int) -> float:
    """Divide."""
    if b == 0:
        raise ToolError("b must not be 0")
    return a / b


def results(message: Message) -> list[tuple[str, bool]]:
    return [(r.content, r.is_error) for r in message.results]


async def test_a_tool_result_reaches_the_next_request() -> None:
    engine = ScriptedEngine([call("add", '{"a": 1, "b": 2}'), "It is 3."])
    result = await Agent(engine, tools=[add]).run("1 + 2?")
    assert (result.output, result.stopped, result.turns) == ("It is 3.", "answer", 2)
    assert results(engine.requests[1].messages[-1]) == [("3", False)]


def test_run_sync_is_the_same_run() -> None:
    assert Agent(ScriptedEngine(["hello"])).run_sync("hi").output == "hello"


async def test_a_plain_function_is_a_tool() -> None:
    def shout(text: str) -> str:
        return text.upper()

    engine = ScriptedEngine([call("shout", '{"text": "hey"}'), "done"])
    await Agent(engine, tools=[shout]).run("?")
    assert results(engine.requests[1].messages[-1]) == [("HEY", False)]


async def test_a_built_in_tool_can_be_asked_for_by_name() -> None:
    engine = ScriptedEngine([call("calculator", '{"expression": "2**100"}'), "done"])
    await Agent(engine, tools=["calculator"]).run("?")
    assert results(engine.requests[1].messages[-1]) == [(str(2**100), False)]


async def test_calls_the_server_parsed_are_run_too() -> None:
    fragments = [
        Chunk(calls=(CallFragment(0, "c7", "add", '{"a": 1,'),)),
        Chunk(calls=(CallFragment(0, arguments=' "b": 1}'),)),
    ]
    engine = ScriptedEngine([[*fragments, Chunk(finish_reason="tool_calls")], "2"])
    result = await Agent(engine, tools=[add]).run("?")
    assert result.messages[-2].results[0] == ToolResult("c7", "2", name="add")


async def test_calls_in_one_reply_answer_in_the_order_they_were_asked() -> None:
    engine = ScriptedEngine(
        [call("divide", '{"a": 1, "b": 0}') + "\n" + call("add", '{"a": 1, "b": 1}'), "ok"]
    )
    result = await Agent(engine, tools=[add, divide]).run("?")
    assert results(result.messages[-2]) == [("b must not be 0", True), ("2", False)]


@pytest.mark.parametrize("blocking", [True, False])
async def test_calls_in_one_reply_run_side_by_side(blocking: bool) -> None:
    """Each of three calls waits for the other two: one after the other they would never end."""
    meeting, arrived = threading.Barrier(3), anyio.Event()
    waiting = 0

    def meet_in_thread(n: int) -> str:
        meeting.wait(10)
        return f"met {n}"

    async def meet(n: int) -> str:
        nonlocal waiting
        waiting += 1
        if waiting == 3:
            arrived.set()
        await arrived.wait()
        return f"met {n}"

    reply = "".join(call("meet", f'{{"n": {n}}}') for n in range(3))
    met = tool(name="meet")(meet_in_thread if blocking else meet)
    with anyio.fail_after(15):
        result = await Agent(ScriptedEngine([reply, "ok"]), tools=[met]).run("?")
    assert results(result.messages[-2]) == [(f"met {n}", False) for n in range(3)]


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (call("ad", '{"a": 1, "b": 2}'), "Did you mean 'add'?"),
        ("<tool_call>{oops</tool_call>", "could not be read"),
        (call("add", '{"a": 1}'), "b is missing"),
        (
            call("add", '{"a": 1, "b": "many"}'),
            'b must be an integer, not "many". For example: "b": 1. Call add again',
        ),
        (call("add", '{"a": 1, "b": 2, "c": 3}'), "it has no argument c"),
    ],
)
async def test_the_models_mistakes_go_back_to_the_model_in_words(reply: str, told: str) -> None:
    result = await Agent(ScriptedEngine([reply, "sorry"]), tools=[add]).run("?")
    ((content, is_error),) = results(result.messages[-2])
    assert is_error and told in content and result.output == "sorry"


async def test_arguments_that_only_look_wrong_are_made_right() -> None:
    engine = ScriptedEngine([call("Add", '{"a": "1", "b": 2.0}'), "3"])
    assert results((await Agent(engine, tools=[add]).run("?")).messages[-2]) == [("3", False)]


async def test_a_tool_that_raises_is_told_to_the_model_and_the_run_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @tool
    def read(path: str) -> str:
        raise FileNotFoundError(path)

    result = await Agent(ScriptedEngine([call("read", '{"path": "x"}'), "no such file"]), tools=[read]).run(
        "?"
    )
    assert results(result.messages[-2]) == [("read failed with FileNotFoundError: x", True)]
    assert "the tool read raised" in caplog.text


async def test_a_tool_may_ask_to_end_the_run_when_it_raises() -> None:
    @tool(on_error="raise")
    def broken() -> str:
        raise ZeroDivisionError("bug")

    with pytest.raises(ToolCrashed, match="broken raised ZeroDivisionError") as caught:
        await Agent(ScriptedEngine([call("broken", "{}")]), tools=[broken]).run("?")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_a_slow_tool_is_given_up() -> None:
    @tool(timeout=0.05)
    async def slow() -> str:
        await anyio.sleep_forever()
        return ""

    result = await Agent(ScriptedEngine([call("slow", "{}"), "too slow"]), tools=[slow]).run("?")
    assert results(result.messages[-2]) == [("slow gave no result within 0.05 s.", True)]


async def test_a_huge_result_is_shown_in_part() -> None:
    @tool
    def flood() -> str:
        return "a" * 1_000_000 + "end"

    result = await Agent(ScriptedEngine([call("flood", "{}"), "ok"]), tools=[flood]).run("?")
    ((content, _),) = results(result.messages[-2])
    assert len(content) < 21_000 and content.endswith("end") and "980003 characters left out" in content


@pytest.mark.parametrize(
    ("limits", "turns", "stopped"),
    [
        (
            Limits(max_turns=2),
            [call("add", '{"a": 1, "b": 1}'), call("add", '{"a": 2, "b": 1}')],
            "max_turns",
        ),
        (
            Limits(max_tool_calls=1),
            [call("add", '{"a": 1, "b": 1}'), call("add", '{"a": 2, "b": 1}')],
            "max_tool_calls",
        ),
        (Limits(max_tokens=10), [[call("add", '{"a": 1, "b": 1}'), Chunk(usage=Usage(8, 4))]], "max_tokens"),
        (Limits(), [call("add", '{"a": 1, "b": 1}')] * 5, "loop"),
        (Limits(), [["The answer is", Chunk(finish_reason="length")]], "length"),
        (Limits(), ["", " \n"], "empty"),
    ],
)
async def test_a_limit_is_a_result_that_says_so(limits: Limits, turns: list[Any], stopped: str) -> None:
    result = await Agent(ScriptedEngine(turns), tools=[add], limits=limits).run("?")
    assert result.stopped == stopped


async def test_wall_time_is_a_limit_and_what_was_said_is_kept() -> None:
    @tool
    async def wait() -> str:
        await anyio.sleep_forever()
        return ""

    engine = ScriptedEngine(["let me see " + call("wait", "{}")])
    result = await Agent(engine, tools=[wait], limits=Limits(timeout=0.1)).run("?")
    assert (result.stopped, result.output) == ("timeout", "let me see")


async def test_a_conversation_that_hit_a_limit_can_be_taken_up_again() -> None:
    turns = [call("add", '{"a": 1, "b": 1}'), "It was 2."]
    engine = ScriptedEngine(turns)
    agent = Agent(engine, tools=[add], limits=Limits(max_tool_calls=0), instructions="Be brief.")
    first = await agent.run("?")
    again = await agent.run([*first.messages, user("and now?")])
    assert again.output == "It was 2."
    assert [m.role for m in again.messages] == ["system", "user", "assistant", "tool", "user", "assistant"]


async def test_a_tool_that_is_called_again_just_the_same_is_hidden_and_the_others_stay() -> None:
    engine = ScriptedEngine([call("add", '{"a": 1, "b": 1}')] * 3 + ["2"])
    result = await Agent(engine, tools=[add, divide]).run("?")
    assert "same call" in result.messages[5].text and result.output == "2"
    allowed = [json.dumps(r.schema or list(r.tools)) for r in engine.requests]
    assert [('"add"' in a, '"divide"' in a) for a in allowed] == [(True, True)] * 2 + [(False, True)] * 2
    assert results(result.messages[7]) == [(hidden("add"), True)]


async def test_an_empty_answer_is_asked_for_once_more() -> None:
    result = await Agent(ScriptedEngine(["<think>\nhm\n</think>\n\n", "42"])).run("?")
    assert (result.output, result.stopped) == ("42", "answer")


async def test_events_arrive_in_the_order_things_happen() -> None:
    engine = ScriptedEngine([["<think>h", "m</think>let me ", "see ", call("add", '{"a": 1, "b": 2}')], "3"])
    async with Agent(engine, tools=[add]).stream("?") as run:
        kinds = [type(event) async for event in run]
    wanted = [
        TurnStarted,
        ThinkingDelta,
        TextDelta,
        CallReady,
        ToolStarted,
        ToolFinished,
        TurnStarted,
        TextDelta,
    ]
    assert [k for i, k in enumerate(kinds) if i == 0 or kinds[i - 1] is not k] == wanted
    assert run.result.output == "3"


async def test_the_result_is_not_there_before_the_end() -> None:
    async with Agent(ScriptedEngine(["a"])).stream("?") as run:
        with pytest.raises(RuntimeError, match="has not finished"):
            _ = run.result


async def test_leaving_the_stream_early_closes_the_engine_and_cancels_the_tools() -> None:
    cancelled = anyio.Event()

    @tool
    async def wait() -> str:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()
        return ""

    engine = ScriptedEngine([call("wait", "{}")])
    with anyio.fail_after(5):
        async with Agent(engine, tools=[wait]).stream("?") as run:
            async for event in run:
                if isinstance(event, ToolStarted):
                    break
    assert engine.closed == 1 and cancelled.is_set()


async def test_an_engines_error_is_caught_by_its_own_type_while_streaming() -> None:
    class Broken:
        async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
            raise EngineError("gone")
            yield Chunk()

    with pytest.raises(EngineError, match="gone"):
        async with Agent(Broken()).stream("?") as run:
            async for _ in run:
                pass


class City(BaseModel):
    name: str
    people: int


async def test_output_type_gives_a_validated_object_from_whatever_wraps_it() -> None:
    engine = ScriptedEngine(['Here it is:\n```json\n{"name": "Oslo", "people": "700000"}\n```'])
    result = await Agent(engine, output_type=City).run("?")
    assert result.output == City(name="Oslo", people=700_000)
    assert "JSON schema" in engine.requests[0].messages[0].text


async def test_a_wrong_answer_is_asked_for_again_with_the_reason() -> None:
    engine = ScriptedEngine(['{"name": "Oslo"}', "Oslo!", '{"name": "Oslo", "people": 7}'])
    result = await Agent(engine, output_type=City).run("?")
    assert result.output == City(name="Oslo", people=7)
    assert "people: Field required" in engine.requests[1].messages[-1].text


async def test_an_answer_that_stays_wrong_ends_the_run_without_one() -> None:
    result = await Agent(ScriptedEngine(["no"] * 3), output_type=City).run("?")
    assert result.stopped == "invalid_output" and not result.output


@pytest.mark.parametrize(
    ("output_type", "said", "value"),
    [(int, "It is 42.", 42), (list[int], "[1, 2]", [1, 2]), (bool, "true", True)],
)
async def test_output_type_may_be_any_type(output_type: Any, said: str, value: Any) -> None:
    assert (await Agent(ScriptedEngine([said]), output_type=output_type).run("?")).output == value


async def test_chat_dicts_are_a_task_as_the_model_cards_quickstart_writes_them() -> None:
    engine = ScriptedEngine(["hi"])
    await Agent(engine).run([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}])
    assert [(m.role, m.text) for m in engine.requests[0].messages] == [
        ("system", "Be kind."),
        ("user", "hello"),
    ]


async def test_a_task_that_is_no_message_says_so() -> None:
    with pytest.raises(ConfigError, match="role"):
        await Agent(ScriptedEngine([])).run([{"role": "robot", "content": "x"}])


@dataclass(frozen=True)
class Counted:
    """A toolset that counts how often it is opened and closed."""

    log: list[str]
    scope: Literal["run", "agent"] = "agent"

    @asynccontextmanager
    async def open(self, notify: Any) -> AsyncIterator[Sequence[Tool]]:
        self.log.append("open")
        notify("one part is missing")
        try:
            yield [add]
        finally:
            self.log.append("close")


async def test_inside_async_with_what_is_opened_stays_open_between_runs() -> None:
    shared, fresh = Counted([]), Counted([], "run")
    async with Agent(ScriptedEngine(["a", "b"]), tools=[shared, fresh]) as agent:
        await agent.run("1")
        await agent.run("2")
        assert shared.log == ["open"] and fresh.log == ["open", "close"] * 2
    assert shared.log == ["open", "close"]


async def test_what_went_wrong_without_ending_the_run_is_a_notice() -> None:
    async with Agent(ScriptedEngine(["a"]), tools=[Counted([])]).stream("?") as run:
        events = [e async for e in run]
    assert events[0] == Notice("one part is missing")


async def test_two_tools_of_one_name_are_told_apart() -> None:
    engine = ScriptedEngine([call("add_2", '{"a": 1, "b": 2}'), "3"])
    result = await Agent(engine, tools=[add, tool(name="add")(lambda a, b: f"other {a}{b}")]).run("?")
    assert results(result.messages[-2]) == [("other 12", False)]


async def test_artifacts_of_tools_are_on_the_result() -> None:
    from agentkit import Artifact

    @tool
    def draw() -> ToolOutput:
        return ToolOutput("drawn", artifacts=(Artifact("a.png", "image/png", b"x"),))

    result = await Agent(ScriptedEngine([call("draw", "{}"), "see"]), tools=[draw]).run("?")
    assert [a.name for a in result.artifacts] == ["a.png"]


async def test_settings_the_card_recommends_fill_what_the_user_left_open() -> None:
    engine = ScriptedEngine(["a"])
    engine.model = "Qwen/Qwen3-4B"  # type: ignore[attr-defined]
    await Agent(engine, settings=ModelSettings(top_k=5, thinking=False)).run("?")
    settings = engine.requests[0].settings
    assert (settings.temperature, settings.top_p, settings.top_k) == (0.7, 0.8, 5)


async def test_a_recorded_run_can_be_replayed(tmp_path: Any) -> None:
    script = ScriptedEngine(
        [[call("add", '{"a": 1, "b": 2}'), Chunk(usage=Usage(3, 4, 1), finish_reason="stop")], "3"]
    )
    first = await Agent(RecordingEngine(script, tmp_path / "r.jsonl"), tools=[add]).run("?")
    again = await Agent(ReplayEngine(tmp_path / "r.jsonl"), tools=[add]).run("?")
    assert again.messages == first.messages and again.usage == first.usage == Usage(3, 4, 1)


async def test_many_runs_at_once_do_not_mix() -> None:
    @tool
    def echo(text: str) -> str:
        return text

    async def one(n: int) -> None:
        engine = ScriptedEngine([call("echo", f'{{"text": "{n}"}}'), f"it was {n}"])
        result = await Agent(engine, tools=[echo]).run("?")
        assert result.output == f"it was {n}" and result.messages[-2].results[0].content == str(n)

    began = time.monotonic()
    async with anyio.create_task_group() as group:
        for n in range(100):
            group.start_soon(one, n)
    assert time.monotonic() - began < 30


async def test_a_toolset_may_change_its_tools_between_turns() -> None:
    class Growing:
        scope: Literal["agent"] = "agent"

        @asynccontextmanager
        async def open(self, notify: Any) -> AsyncIterator[Sequence[Tool]]:
            tools: list[Tool] = []

            @tool
            def learn() -> str:
                tools.append(add)
                return "There is a tool more."

            tools.append(learn)
            yield tools

    engine = ScriptedEngine([call("learn", "{}"), call("add", '{"a": 1, "b": 2}'), "3"])
    result = await Agent(engine, tools=[Growing()]).run("?")
    assert result.output == "3"
    assert [[t["function"]["name"] for t in r.tools] for r in engine.requests] == [
        ["learn"], ["learn", "add"], ["learn", "add"],
    ]  # fmt: skip
