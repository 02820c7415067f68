"""What the model is still shown when the conversation no longer fits, and what is said about it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit import Agent, ContextOverflow, Limits, Message, tool
from agentkit.context import Conversation, shortened
from agentkit.events import Notice
from agentkit.messages import Text, ToolCall, ToolResult, Usage, assistant, system, to_chat, user
from agentkit.runtime.engine import Chunk, Request
from agentkit.testing import ScriptedEngine

pytestmark = pytest.mark.anyio

BIG = "the quick brown fox jumps over the lazy dog. " * 3_000  # 135,000 characters


def tokens(request: Request) -> int:
    """Four characters each, as of English text."""
    text = "".join(c["content"] for m in request.messages for c in to_chat(m))
    return len(text) // 4 + 8 * len(request.messages) + len(str(request.tools)) // 4


class Small(ScriptedEngine):
    """A model with a short context that refuses what is too long, as servers do; it may tell how long it is, or not."""

    def __init__(self, turns: list[Any], context: int, *, tells: bool = True, counts: bool = True) -> None:
        super().__init__(turns)
        self.context, self.tells, self.counts, self.refused = context, tells, counts, 0

    async def context_length(self) -> int | None:
        return self.context if self.tells else None

    async def count_tokens(self, request: Request) -> int | None:
        return tokens(request) if self.counts else None

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        if tokens(request) > self.context:
            self.refused += 1
            raise ContextOverflow("The conversation is longer than the model's context: too many tokens.")
        async for chunk in super().stream(request):
            yield chunk


@tool
def read(n: int) -> str:
    """Read a page."""
    return f"page {n}: {BIG}"


def call(n: int) -> str:
    return f'<tool_call>\n{{"name": "read", "arguments": {{"n": {n}}}}}\n</tool_call>'


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("counts", [True, False])
async def test_huge_tool_results_never_end_a_run(tells: bool, counts: bool) -> None:
    engine = Small([call(1), call(2), call(3), "done"], 8_192, tells=tells, counts=counts)
    agent = Agent(engine, tools=[read], limits=Limits(result_chars=10_000_000))
    result = await agent.run("Read the pages.")
    assert result.stopped == "answer" and result.output == "done"
    assert result.cuts and "shortened" in result.cuts[0]
    assert BIG in result.messages[3].results[0].content, "the result has it all"
    if tells and counts:
        assert engine.refused == 0
    last = engine.requests[-1].messages
    assert [m.role for m in last] == [m.role for m in result.messages[:-1]], "only results were cut"
    assert last[0] == engine.requests[0].messages[0] and last[1].text == "Read the pages."


async def test_what_is_cut_is_told_as_it_happens() -> None:
    engine = Small([call(1), "done"], 8_192)
    async with Agent(engine, tools=[read], limits=Limits(result_chars=10**7)).stream("?") as run:
        notices = [e.text async for e in run if isinstance(e, Notice)]
    assert notices == ["1 tool result was shortened to fit the context"] == list(run.result.cuts)


async def test_old_turns_go_before_the_current_one_and_the_system_prompt_stays() -> None:
    history: list[Message] = []
    for n in range(40):
        history += [user(f"question {n} " + "x y " * 200), assistant(f"answer {n} " + "a b " * 200)]
    engine = Small(["done"], 8_192)
    result = await Agent(engine, instructions="Be kind.").run([*history, user("And now?")])
    shown = engine.requests[0].messages
    assert shown[0] == system("Be kind.") and shown[-1].text.endswith("And now?")
    assert shown[1].role == "user" and shown[1].text.startswith("(") and "left out" in shown[1].text
    assert "question 39" in "".join(m.text for m in shown) and "question 0 " not in "".join(
        m.text for m in shown
    )
    assert "left out" in result.cuts[0] and len(result.messages) == 83


async def test_what_cannot_be_cut_is_an_error_that_says_so() -> None:
    with pytest.raises(ContextOverflow, match="longer than the model's context"):
        await Agent(Small(["never"], 512), instructions=BIG).run("?")


async def test_a_cut_stays_cut_so_that_the_next_prompt_extends_the_last() -> None:
    @tool
    def read(n: int) -> str:
        return BIG[:60_000]

    engine = Small([*map(call, range(5)), "done"], 40_960)
    await Agent(engine, tools=[read], limits=Limits(result_chars=100_000)).run("?")
    cut = next(i for i, r in enumerate(engine.requests) if "left out" in str(r.messages))
    before, after = engine.requests[cut].messages, engine.requests[cut + 1].messages
    assert after[: len(before)] == before


async def test_a_short_conversation_asks_the_server_nothing() -> None:
    class Nosy(Small):
        async def context_length(self) -> int | None:
            raise AssertionError("asked")

    await Agent(Nosy(["hi"], 100_000)).run("?")


@given(st.text(max_size=2000), st.integers(10, 500))
def test_a_shortened_text_keeps_its_beginning_and_end(text: str, limit: int) -> None:
    short = shortened(text, limit)
    if len(text) <= limit:
        assert short == text
    else:
        assert short.startswith(text[: limit - limit // 4]) and short.endswith(text[-(limit // 4) :])


PARTS = st.lists(
    st.tuples(st.sampled_from(["user", "assistant", "call"]), st.text(max_size=3000)), min_size=1, max_size=12
)


@given(PARTS, st.integers(100, 100_000))
async def test_whatever_is_cut_the_current_request_stays_and_calls_keep_their_results(
    parts: list[tuple[str, str]], context: int
) -> None:
    messages: list[Message] = [system("S"), user("first")]
    for n, (kind, text) in enumerate(parts):
        if kind == "call":
            messages.append(Message("assistant", (ToolCall(f"c{n}", "read", {"n": n}),)))
            messages.append(Message("tool", (ToolResult(f"c{n}", text * 20, name="read"), Text("note"))))
        else:
            messages.append(user(text) if kind == "user" else assistant(text))
    talk = Conversation(messages)
    engine = Small([], context)
    await talk.fit(engine, Request(tuple(messages)), lambda shown: Request(tuple(shown)))
    shown = talk.shown
    assert talk.messages == messages and shown[0] == messages[0]
    last = next(m for m in reversed(messages) if m.role == "user")
    assert next(m for m in reversed(shown) if m.role == "user").text.endswith(last.text)
    for i, m in enumerate(shown):
        assert m.role != "tool" or [c.id for c in shown[i - 1].calls] == [r.call_id for r in m.results]


def test_usage_of_the_server_counts_for_what_has_been_sent() -> None:
    talk = Conversation([user("x" * 100_000)])
    talk.limit = 50_000
    request = Request(tuple(talk.shown))
    assert not talk.room_for(request, 10_000)
    talk.counted(Usage(25_000, 10))
    assert talk.room_for(request, 10_000)
