"""Two real llama.cpp servers of the demo model: a conversation stays on one, and ends on the other when that is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import pairwise

import pytest

from agentkit import Agent, Limits, ModelSettings
from agentkit.messages import Message, user
from agentkit.runtime.demo import demo_model
from agentkit.runtime.engine import Chunk, Request
from agentkit.runtime.llama_cpp import LlamaCpp
from agentkit.runtime.openai_compatible import OpenAICompatible
from agentkit.runtime.replicas import Replicas

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.usefixtures("demo_model")]


class Watched(OpenAICompatible):
    """The engine of one server, which keeps what it was asked."""

    def __init__(self, hosted: LlamaCpp) -> None:
        assert hosted.server is not None
        server = hosted.server
        super().__init__(server.base_url, server.model, server.api_key, retries=0)
        self.pid = server.pid
        self.requests: list[Request] = []

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.requests.append(request)
        async with aclosing(super().stream(request)) as chunks:
            async for chunk in chunks:
                yield chunk


async def test_five_turns_stay_on_one_server_and_killing_it_in_a_run_leads_to_an_answer_of_the_other() -> (
    None
):
    asked_in_vain: list[Watched] = []

    def get_weather(city: str) -> str:
        """Get the current weather of a city."""
        if not asked_in_vain:
            asked_in_vain.append(home)
            os.kill(home.pid, signal.SIGKILL)
        return "21 degrees, sunny"

    weights = demo_model()
    async with (
        LlamaCpp(weights, name="demo", context=4_096, threads=1) as one,
        LlamaCpp(weights, name="demo", context=4_096, threads=1) as two,
    ):
        both = [Watched(one), Watched(two)]
        limits, settings = Limits(max_turns=4), ModelSettings(temperature=0, max_tokens=80)
        async with Agent(Replicas(both), tools=[get_weather], limits=limits, settings=settings) as agent:
            said: tuple[Message, ...] = ()
            for word in "one two three four five".split():
                result = await agent.run([*said, user(f"Say the word {word}, and call no tool.")])
                said = result.messages
            (home,) = [e for e in both if e.requests]
            assert len(home.requests) >= 5
            assert all(b.messages[: len(a.messages)] == a.messages for a, b in pairwise(home.requests))
            before = len(home.requests)
            result = await agent.run([*said, user("What is the weather in Lisbon? Call the tool.")])
        (other,) = [e for e in both if e is not home]
        assert asked_in_vain == [home] and len(home.requests) == before + 2
        assert result.stopped == "answer" and "21" in result.output and other.requests
        assert {r.session for r in other.requests} == {home.requests[-1].session}
