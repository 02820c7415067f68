"""Of several samples of a turn, the one that most agree with is what a run sees."""

from __future__ import annotations

import random
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import anyio
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit import Agent, ConfigError, ContextOverflow, EngineError, ModelSettings, React, Usage, tool
from agentkit.events import CallFragment
from agentkit.messages import user
from agentkit.planner import Aids
from agentkit.runtime.engine import Chunk, Counting, Engine, Request
from agentkit.runtime.openai_compatible import OpenAICompatible
from agentkit.testing import ScriptedEngine
from agentkit.voting import Voting, elected, settled

pytestmark = pytest.mark.anyio


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def paint(colors: list[str], wet: bool = False) -> str:
    """Paint."""
    return ", ".join(colors)


ASKED = Request((user("?"),), (add.schema, paint.schema), ModelSettings(temperature=0.0, seed=7))


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


ONE, TWO = call("add", '{"a": 1, "b": 1}'), call("add", '{"a": 2, "b": 2}')
BROKEN = '<tool_call>\n{"name": "add", "arguments": {"a" 1 "b"\n</tool_call>'
CUT = [Chunk(text="Well, it"), Chunk(finish_reason="length")]


async def answer(engine: Engine, request: Request = ASKED) -> str:
    return "".join([c.text async for c in engine.stream(request)])


@pytest.mark.parametrize(
    ("samples", "winner"),
    [
        ([ONE, TWO, TWO], 1),
        ([ONE, TWO, ONE], 0),
        ([ONE, TWO, "It is 2."], 0),  # each alone: the first
        ([ONE, "It is 2.", "Two, of course."], 1),  # answers are one group, whatever they say
        ([ONE + TWO, ONE, TWO + ONE], 0),
        ([ONE, call("add", '{"b": "2", "a": 2}'), call("add", '{"a": 2.0, "b": 2}')], 1),
        ([ONE, call("paint", '{"colors": "red"}'), call("paint", '{"colors": ["red"]}')], 1),
        (
            [ONE, call("paint", '{"colors": ["red", "blue"]}'), call("paint", '{"colors": ["blue", "red"]}')],
            0,
        ),
        ([ONE, ONE + ONE, ONE + ONE], 1),
        ([BROKEN, ONE, TWO], 1),
        ([BROKEN, BROKEN, TWO], 2),
        ([CUT, TWO, ONE], 1),
        ([CUT, CUT, "It is 2."], 2),
        (["", "", TWO], 2),
        (["over and over, " * 500, "over and over, " * 500, TWO], 2),
        ([BROKEN, CUT, ""], 0),
    ],
)
async def test_the_biggest_group_wins_and_its_first_sample_is_replayed(
    samples: list[str | list[str | Chunk]], winner: int
) -> None:
    engine = ScriptedEngine(samples)
    wanted = await answer(ScriptedEngine([samples[winner]]))
    assert await answer(Voting(engine)) == wanted
    assert engine.closed == len(engine.requests)


async def test_the_first_sample_is_asked_as_it_is_and_the_others_warmer_with_seeds_of_their_own() -> None:
    engine = ScriptedEngine([ONE, TWO, "no"])
    await answer(Voting(engine))
    asked = [(r.settings.temperature, r.settings.seed) for r in engine.requests]
    assert asked == [(0.0, 7), (0.6, 8), (0.6, 9)]
    assert all(r.messages is ASKED.messages and r.tools is ASKED.tools for r in engine.requests)


async def test_a_temperature_above_the_least_is_kept() -> None:
    engine = ScriptedEngine([ONE, TWO, "no"])
    await answer(Voting(engine), Request((user("?"),), (add.schema,), ModelSettings(temperature=0.9)))
    assert [(r.settings.temperature, r.settings.seed) for r in engine.requests] == [
        (0.9, None),
        (0.9, 1),
        (0.9, 2),
    ]


@pytest.mark.parametrize(
    "request_",
    [Request((user("?"),)), Request((user("?"),), (add.schema,), schema={"type": "object"})],
    ids=["no tools", "guided"],
)
async def test_what_calls_no_tools_of_its_own_will_is_asked_once(request_: Request) -> None:
    engine = ScriptedEngine(["hello"])
    assert await answer(Voting(engine, 5), request_) == "hello"
    assert engine.requests == [request_]


async def test_a_majority_ends_the_vote_and_gives_the_others_up() -> None:
    silent = anyio.Event()

    class Slow(ScriptedEngine):
        async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
            if request.settings.seed == 8:
                try:
                    await anyio.sleep_forever()
                finally:
                    silent.set()
            async for chunk in super().stream(request):
                yield chunk

    with anyio.fail_after(10):
        assert await answer(Voting(Slow([ONE, ONE]))) == ONE
    assert silent.is_set()


async def test_a_server_sees_a_sample_that_is_given_up_hang_up(serve: Callable[..., Any]) -> None:
    waiting, hung_up = threading.Event(), threading.Event()

    def answer_or_wait(exchange: Any) -> None:
        seed = exchange.body.get("seed")
        if seed != 2:
            assert seed is None or waiting.wait(10)
            exchange.answer(ONE)
            return
        waiting.set()
        exchange.begin()
        exchange.delta(content="Let me")
        if exchange.http.connection.recv(1) == b"":
            hung_up.set()

    server = serve(answer_or_wait)
    request = Request((user("?"),), (add.schema,), ModelSettings(temperature=0.0))
    with anyio.fail_after(20):
        async with Voting(OpenAICompatible(server.url)) as voting:
            assert voting.model == "stub-model"
            assert await answer(voting, request) == ONE
    assert await anyio.to_thread.run_sync(hung_up.wait, 10)
    asked = sorted((body["temperature"], body.get("seed")) for body in server.requests[1:])
    assert (server.requests[0].get("seed"), asked) == (None, [(0.6, 1), (0.6, 2)])


async def test_the_samples_run_side_by_side() -> None:
    """Each waits in the middle of its answer until all have begun."""
    begun, all_there = 0, anyio.Event()

    class Meeting(ScriptedEngine):
        async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
            nonlocal begun
            async for chunk in super().stream(request):
                yield chunk
                begun += 1
                if begun == 3:
                    all_there.set()
                await all_there.wait()

    with anyio.fail_after(10):
        assert await answer(Voting(Meeting([ONE, TWO, ONE]))) == ONE


async def test_the_others_are_asked_only_once_the_first_has_begun_to_answer() -> None:
    seen: list[int] = []

    class Watched(ScriptedEngine):
        async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
            async for chunk in super().stream(request):
                seen.append(len(self.requests))
                yield chunk

    await answer(Voting(Watched([[*ONE], TWO, "no"])))
    assert seen[0] == 1


async def test_the_usage_of_all_samples_counts_and_the_last_one_is_the_answer_s() -> None:
    def sample(text: str, tokens: int) -> list[str | Chunk]:
        return [text, Chunk(usage=Usage(100, tokens))]

    engine = ScriptedEngine([sample(TWO, 1), sample(ONE, 20), sample("no", 300)])
    usages = [c.usage async for c in Voting(engine).stream(ASKED) if c.usage]
    assert (sum(usages, Usage()), usages[-1]) == (Usage(300, 321), Usage(100, 1))

    said = [sample("It is 2.", tokens) for tokens in (4_000, 50_000, 600_000)]
    result = await Agent(
        Voting(ScriptedEngine([sample(TWO, 1), sample(ONE, 20), sample("no", 300), *said])), tools=[add]
    ).run("?")
    assert result.usage.output_tokens in (54_321, 604_321, 654_321)  # what is given up is not counted


async def test_calls_that_the_server_parsed_are_counted_too() -> None:
    def parsed(a: int) -> list[str | Chunk]:
        return [Chunk(calls=(CallFragment(0, f"c{a}", "add", f'{{"a": {a}, "b": 0}}'),))]

    chunks = [c async for c in Voting(ScriptedEngine([parsed(1), parsed(2), parsed(2)])).stream(ASKED)]
    assert [f.id for c in chunks for f in c.calls] == ["c2"]


@pytest.mark.parametrize("fails", [0, 1, 2])
async def test_an_error_of_the_first_sample_is_the_request_s_and_of_another_one_a_vote_less(
    fails: int,
) -> None:
    class Failing(ScriptedEngine):
        async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
            n = len(self.requests)
            async for chunk in super().stream(request):
                yield chunk
            if n == fails:
                raise ContextOverflow("too long")

    voting = Voting(Failing([ONE, TWO, TWO]))
    if fails == 0:
        with pytest.raises(ContextOverflow, match="too long"):
            await answer(voting)
    else:
        assert await answer(voting) == ONE


async def test_a_server_that_dies_under_all_samples_is_one_error() -> None:
    together = anyio.Event()

    class Dying(ScriptedEngine):
        async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
            async for chunk in super().stream(request):
                yield chunk
            if len(self.requests) == 3:
                together.set()
            await together.wait()
            raise EngineError("the server is gone")

    with anyio.fail_after(10), pytest.raises(EngineError, match="gone"):
        await answer(Voting(Dying([ONE, TWO, TWO])))


async def test_leaving_a_vote_early_closes_every_sample() -> None:
    open_ = 0

    class Endless(ScriptedEngine):
        async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
            nonlocal open_
            open_ += 1
            if open_ == 3:
                scope.cancel()
            try:
                yield Chunk(text="a")
                await anyio.sleep_forever()
            finally:
                open_ -= 1

    with anyio.CancelScope() as scope:
        await answer(Voting(Endless([])))
    assert scope.cancelled_caught
    assert open_ == 0


async def test_it_is_opened_named_and_measured_as_the_engine_that_it_asks() -> None:
    class Whole(ScriptedEngine):
        model, opened = "qwen3-4b", 0

        async def __aenter__(self) -> Whole:
            self.opened += 1
            return self

        async def __aexit__(self, *exc: object) -> None:
            self.opened -= 1

        async def context_length(self) -> int | None:
            return 4096

        async def count_tokens(self, request: Request) -> int | None:
            return 12

    engine = Whole(["hello"])
    async with Voting(engine) as voting:
        assert engine.opened == 1
        assert isinstance(voting, Counting)
        assert (voting.model, await voting.context_length(), await voting.count_tokens(ASKED)) == (
            "qwen3-4b",
            4096,
            12,
        )
    assert engine.opened == 0
    async with Agent(Voting(engine)) as agent:
        assert engine.opened == 1
        assert (await agent.run("hi")).output == "hello"


async def test_an_engine_that_knows_nothing_of_itself_has_no_name_and_no_measure() -> None:
    async with Voting(ScriptedEngine([])) as voting:
        assert (voting.model, await voting.context_length(), await voting.count_tokens(ASKED)) == (
            None,
            None,
            None,
        )


def test_a_vote_without_samples_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one sample, not 0"):
        Voting(ScriptedEngine([]), 0)


async def test_a_run_acts_on_what_was_voted_for() -> None:
    engine = ScriptedEngine([ONE, TWO, TWO, "It is 4.", "It is 4.", "Four."])
    result = await Agent(Voting(engine), tools=[add]).run("?")
    assert (result.output, result.messages[-2].results[0].content) == ("It is 4.", "4")


async def test_a_planner_can_ask_for_votes() -> None:
    engine = ScriptedEngine([ONE, TWO, TWO, "It is 4.", "It is 4.", "Four."])
    result = await Agent(engine, tools=[add], planner=React(aids=Aids(votes=3))).run("?")
    assert (result.output, result.messages[-2].results[0].content) == ("It is 4.", "4")


async def test_votes_are_not_taken_unless_asked_for() -> None:
    engine = ScriptedEngine([ONE, "It is 2."])
    assert (await Agent(engine, tools=[add]).run("?")).output == "It is 2."


turns = st.lists(
    st.one_of(
        st.sampled_from([ONE, TWO, ONE + TWO, "an answer", BROKEN, ""]),
        st.text(st.characters(codec="utf-8"), max_size=20),
    ),
    min_size=1,
    max_size=5,
)
votes = st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=1, max_size=7)


@given(turns, st.integers(1, 4))
def test_one_sample_is_the_plain_engine(pieces: list[str], size: int) -> None:
    turn: Sequence[str | Chunk] = [*pieces, Chunk(finish_reason="stop", usage=Usage(3, size))]

    async def chunks(wrap: Callable[[ScriptedEngine], Engine]) -> tuple[list[Chunk], Sequence[Request]]:
        engine = ScriptedEngine([turn])
        return [c async for c in wrap(engine).stream(ASKED)], engine.requests

    plain = anyio.run(chunks, lambda engine: engine)
    assert anyio.run(chunks, lambda engine: Voting(engine, 1)) == plain


@given(turns.filter(lambda made: len(made) > 1))
def test_whatever_the_samples_say_one_of_them_is_taken(samples: list[str]) -> None:
    assert anyio.run(answer, Voting(ScriptedEngine(samples), len(samples))) in samples


@given(votes, st.randoms())
def test_the_order_of_the_samples_matters_only_between_groups_of_one_size(
    cast: list[int | None], random: random.Random
) -> None:
    sizes = {v: cast.count(v) for v in cast if v is not None}
    most = max(sizes.values(), default=0)
    biggest = [v for v in sizes if sizes[v] == most]
    mixed = random.sample(cast, len(cast))
    winner = mixed[elected(mixed)]
    if len(biggest) == 1:
        assert winner == biggest[0]
    elif biggest:
        assert winner == next(v for v in mixed if v in biggest)
    else:
        assert elected(mixed) == 0


@given(votes, votes)
def test_what_is_settled_no_further_vote_changes(cast: list[int | None], further: list[int | None]) -> None:
    if settled(cast, len(further)):
        before = cast[elected(cast)]
        assert [*cast, *further][elected([*cast, *further])] == before
        assert [*further, *cast][elected([*further, *cast])] == before
