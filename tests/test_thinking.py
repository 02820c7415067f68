"""When a model thinks and how it is then sampled, and what is done about thoughts that go wrong."""

from __future__ import annotations

from typing import Any

import pytest

from agentkit import Agent, ConfigError, ModelSettings, React, tool
from agentkit.events import Notice
from agentkit.messages import Message, system, user
from agentkit.runtime.engine import Chunk
from agentkit.runtime.presets import recommended, soft_switch, thinks
from agentkit.testing import ScriptedEngine

pytestmark = pytest.mark.anyio

CARD_THINKING = (0.6, 0.95, 20, 0.0)
CARD_NOT_THINKING = (0.7, 0.8, 20, 0.0)


def sampled(s: ModelSettings) -> tuple[Any, ...]:
    return (s.temperature, s.top_p, s.top_k, s.min_p)


def call(a: int) -> str:
    return f'<tool_call>\n{{"name": "half", "arguments": {{"a": {a}}}}}\n</tool_call>'


@tool
def half(a: int) -> int:
    """Halve an even number."""
    if a % 2:
        raise ValueError("odd")
    return a // 2


class Qwen3(ScriptedEngine):
    model = "Qwen/Qwen3-4B"


@pytest.mark.parametrize(
    ("model", "settings", "switch", "expected"),
    [
        ("Qwen/Qwen3-4B", ModelSettings(), None, True),
        ("qwen3-4b", ModelSettings(thinking=True), None, True),
        ("qwen3-4b", ModelSettings(thinking=False), None, False),
        ("qwen3-4b", ModelSettings(), False, False),
        ("qwen3-4b", ModelSettings(thinking=True), False, False),
        ("qwen3-4b", ModelSettings(thinking=False), True, False),
        ("Qwen3-4B-Instruct-2507", ModelSettings(thinking=True), True, False),
        ("Qwen3-4B-Thinking-2507", ModelSettings(thinking=False), False, True),
        ("Qwen3-Coder-30B-A3B-Instruct", ModelSettings(), None, False),
        ("llama-3", ModelSettings(thinking=True), None, None),
    ],
)
def test_who_thinks_when(
    model: str, settings: ModelSettings, switch: bool | None, expected: bool | None
) -> None:
    assert thinks(model, settings, switch) is expected
    if expected is not None:
        card = CARD_THINKING if expected else CARD_NOT_THINKING
        assert sampled(recommended(model, settings, switch)) == card


@pytest.mark.parametrize(
    ("messages", "switch"),
    [
        ([user("hello")], None),
        ([user("hello /no_think")], False),
        ([user("/think hello")], True),
        ([system("/no_think"), user("hello")], False),
        ([system("/no_think"), user("hello /think")], True),
        ([user("a /think"), user("b /no_think"), user("c")], False),
        ([user("first /no_think then /think")], True),
        ([user("see http://x/think and ~/no_think/x")], None),
    ],
)
def test_the_most_recent_soft_switch_counts(messages: list[Message], switch: bool | None) -> None:
    assert soft_switch(messages) is switch


async def test_a_soft_switch_in_the_task_changes_the_sampling_too() -> None:
    engine = Qwen3(["hi"])
    await Agent(engine).run("Say hi. /no_think")
    assert sampled(engine.requests[0].settings) == CARD_NOT_THINKING


@pytest.mark.parametrize("thinking", [None, True, "auto"])
async def test_greedy_decoding_of_a_model_that_thinks_is_refused_with_the_reason(thinking: Any) -> None:
    agent = Agent(Qwen3(["hi"]), settings=ModelSettings(temperature=0, thinking=thinking))
    with pytest.raises(ConfigError, match="endless repetitions"):
        await agent.run("hi")


async def test_greedy_decoding_without_thinking_is_the_users_choice() -> None:
    engine = Qwen3(["hi"])
    await Agent(engine, settings=ModelSettings(temperature=0, thinking=False)).run("hi")
    assert engine.requests[0].settings.temperature == 0


async def test_auto_thinks_about_the_task_and_after_errors_but_not_in_between() -> None:
    engine = Qwen3([call(8), call(3), call(2), "done"])
    await Agent(engine, tools=[half], settings=ModelSettings(thinking="auto")).run("?")
    assert [r.settings.thinking for r in engine.requests] == [True, False, True, False]
    assert [sampled(r.settings) for r in engine.requests] == [
        CARD_THINKING, CARD_NOT_THINKING, CARD_THINKING, CARD_NOT_THINKING,
    ]  # fmt: skip


async def test_an_answer_may_have_the_tokens_that_the_card_recommends_where_they_fit() -> None:
    class Long(Qwen3):
        async def context_length(self) -> int | None:
            return 40_960

        async def count_tokens(self, request: Any) -> int | None:
            return None

    engine = Long(["a", "b", "c"])
    await Agent(engine).run("?")
    await Agent(engine).run("x" * 20_000)
    await Agent(engine, settings=ModelSettings(max_tokens=7)).run("?")
    assert [r.settings.max_tokens for r in engine.requests] == [32_768, None, 7]


async def test_thoughts_that_were_cut_off_are_followed_by_a_turn_without_thinking() -> None:
    thoughts = Chunk(reasoning="let me see, it may be four"), Chunk(finish_reason="length")
    engine = Qwen3([thoughts, "4"])
    result = await Agent(engine).run("2 + 2?")
    assert result.output == "4" and result.stopped == "answer"
    again = engine.requests[1]
    assert again.settings.thinking is False and sampled(again.settings) == CARD_NOT_THINKING
    assert "it may be four" in again.messages[-1].text


async def test_thoughts_that_are_cut_off_twice_end_the_run() -> None:
    thoughts = [Chunk(reasoning="hm"), Chunk(finish_reason="length")]
    assert (await Agent(Qwen3([thoughts, thoughts])).run("?")).stopped == "length"


async def test_endless_repetition_is_stopped_and_asked_again_with_a_presence_penalty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agentkit.parsing.repetition._PATIENCE", 0.0)
    engine = Qwen3([["<think>", *["I should check that again. "] * 5_000], "4"])
    async with Agent(engine).stream("2 + 2?") as run:
        notices = [e.text async for e in run if isinstance(e, Notice)]
    assert run.result.output == "4" and "repeated itself" in notices[0]
    assert [r.settings.presence_penalty for r in engine.requests] == [None, 1.5]
    assert engine.closed == 2


async def test_a_model_that_repeats_itself_again_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentkit.parsing.repetition._PATIENCE", 0.0)
    loop = ["and so on "] * 5_000
    result = await Agent(Qwen3([loop, loop])).run("?")
    assert result.stopped == "loop" and len(result.output) < 20_000


async def test_a_repetition_that_came_at_once_is_an_answer_if_it_ended_by_itself() -> None:
    row = "0 0 0 0 0 0 0 0\n"
    result = await Agent(Qwen3([[row] * 1_000])).run("A thousand rows of zeros, please.")
    assert (result.stopped, result.output) == ("answer", (row * 1_000).strip())
    engine = Qwen3([[row * 1_000, Chunk(finish_reason="length")], "4"])
    assert (await Agent(engine).run("2 + 2?")).output == "4"
    assert engine.requests[1].settings.presence_penalty == 1.5


async def test_a_call_that_is_written_over_and_over_is_made_once() -> None:
    engine = Qwen3([[call(8) + "\n"] * 500, "4"])
    result = await Agent(engine, tools=[half]).run("?")
    assert result.output == "4" and [r.content for m in result.messages for r in m.results] == ["4"]


async def test_an_answer_that_arrives_as_thoughts_is_taken_when_thinking_is_off() -> None:
    engine = Qwen3([[Chunk(reasoning="It is 4."), Chunk(finish_reason="stop")]])
    result = await Agent(engine, settings=ModelSettings(thinking=False)).run("?")
    assert result.output == "It is 4." and result.turns == 1


async def test_a_turn_of_thoughts_alone_is_asked_for_again_without_thinking() -> None:
    thought = [Chunk(reasoning="It is 4."), Chunk(finish_reason="stop")]
    engine = Qwen3([thought, thought])
    result = await Agent(engine).run("?")
    assert result.output == "It is 4." and result.turns == 2
    first, second = engine.requests
    assert second.settings.thinking is False and second.messages == first.messages


async def test_what_a_model_says_only_as_thoughts_counts_if_it_says_nothing_without_thinking() -> None:
    fenced = 'I halve it:\n```json\n{"name": "half", "arguments": {"a": 8}}\n```\nThat gives 4.'
    thought = [Chunk(reasoning=fenced), Chunk(finish_reason="stop")]
    engine = Qwen3([thought, "", [Chunk(reasoning="It is 4."), Chunk(finish_reason="stop")]])
    result = await Agent(engine, tools=[half]).run("?")
    assert result.output == "It is 4." and [r.content for m in result.messages for r in m.results] == ["4"]
    assert [r.settings.thinking for r in engine.requests] == [None, False, None]


async def test_a_call_that_arrives_as_thoughts_is_run_when_thinking_is_off() -> None:
    fenced = 'I halve it:\n```json\n{"name": "half", "arguments": {"a": 8}}\n```\nThat gives 4.'
    engine = Qwen3([[Chunk(reasoning=fenced), Chunk(finish_reason="stop")], "4"])
    result = await Agent(engine, tools=[half], settings=ModelSettings(thinking=False)).run("?")
    assert [r.content for m in result.messages for r in m.results] == ["4"]


async def test_after_an_unreadable_call_one_turn_is_guided() -> None:
    broken = '<tool_call>\n{"name": "half", "arguments": {"a": \n</tool_call>'
    guided = '{"name": "half", "arguments": {"a": 8}}'
    engine = Qwen3([broken, guided, "4"])
    result = await Agent(engine, tools=[half]).run("?")
    assert result.output == "4"
    assert [bool(r.schema) for r in engine.requests] == [False, True, False]
    assert engine.requests[1].settings.thinking is False


async def test_after_a_call_that_is_refused_for_the_second_time_one_turn_is_guided() -> None:
    wrong = '<tool_call>{"name": "half", "arguments": {"a": "many"}}</tool_call>'
    engine = Qwen3([wrong, wrong, '{"name": "half", "arguments": {"a": 8}}', "4"])
    result = await Agent(engine, tools=[half]).run("?")
    assert result.output == "4"
    assert [bool(r.schema) for r in engine.requests] == [False, False, True, False]
    assert len(engine.requests[2].tools) == 1  # which is not hidden for having been refused


async def test_guided_always_and_never_mean_it() -> None:
    engine = Qwen3(['{"name": "half", "arguments": {"a": 8}}', '{"answer": "It is 4."}'])
    result = await Agent(engine, tools=[half], planner=React(guided="always")).run("?")
    assert result.output == "It is 4." and all(r.schema for r in engine.requests)
    engine = Qwen3(['<tool_call>{"name": "half", "arguments": {"a": </tool_call>', "sorry"])
    await Agent(engine, tools=[half], planner=React(guided="never")).run("?")
    assert not any(r.schema for r in engine.requests)
