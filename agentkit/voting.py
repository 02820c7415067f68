"""Several samples of each turn that may call tools, of which the one that most agree with is taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Hashable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import Any

import anyio

from agentkit.errors import ConfigError, EngineError, one_error
from agentkit.messages import BadCall, Usage
from agentkit.parsing import Repetition, TurnParser
from agentkit.repair import fit
from agentkit.runtime.engine import Chunk, Counting, Engine, Request

__all__ = ["Voting"]

_WARM = 0.6  # temperature, at least: greedy samples would all be the same


class Voting:
    """*engine*, asked `samples` times for each turn that may call tools: the calls that most samples make are made.

    The first sample is taken at the request's own settings, the others at a temperature of 0.6 or more, each with a seed of
    its own. They are asked once the first one's answer begins, so that the server has read their common prompt and they run
    side by side; once the rest cannot change the outcome it is given up. Two samples agree if they make the same calls, in
    whatever order, or both make none. A sample that is cut off or cannot be read has no vote; of several groups of one size
    the one with the earliest sample wins.

    A turn comes in one piece, after the vote. The usage is that of all samples; those given up are not in it. Requests without
    tools and those with a schema go through as they are. Raises `ConfigError` for less than one sample.
    """

    def __init__(self, engine: Engine, samples: int = 3) -> None:
        if samples < 1:
            raise ConfigError(f"A vote takes at least one sample, not {samples}.")
        self.engine, self.samples = engine, samples

    @property
    def model(self) -> str | None:
        """The name of the engine's model, by which its settings are chosen."""
        return getattr(self.engine, "model", None)

    async def __aenter__(self) -> Voting:
        engine: Any = self.engine
        if hasattr(engine, "__aenter__"):
            await engine.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        engine: Any = self.engine
        if hasattr(engine, "__aexit__"):
            await engine.__aexit__(kind, exc, tb)

    async def context_length(self) -> int | None:
        return await self.engine.context_length() if isinstance(self.engine, Counting) else None

    async def count_tokens(self, request: Request) -> int | None:
        return await self.engine.count_tokens(request) if isinstance(self.engine, Counting) else None

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        if self.samples > 1 and request.tools and request.schema is None:
            for chunk in await self._elected(request):
                yield chunk
            return
        async with aclosing(self.engine.stream(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _elected(self, request: Request) -> list[Chunk]:
        samples: list[list[Chunk]] = [[] for _ in range(self.samples)]
        votes: list[Hashable | None] = [None] * self.samples
        missing, begun = self.samples, anyio.Event()

        async def ask(n: int) -> None:
            nonlocal missing
            if n:
                await begun.wait()
            try:
                async with aclosing(self.engine.stream(_sampled(request, n))) as chunks:
                    repetition = Repetition()
                    async for chunk in chunks:
                        samples[n].append(chunk)
                        begun.set()
                        wrote = chunk.text or chunk.reasoning or "".join(c.arguments for c in chunk.calls)
                        if repetition.feed(wrote):
                            samples[n].append(Chunk(finish_reason="length"))  # whoever reads it is told
                            break
                    else:
                        votes[n] = None if repetition.seen else _vote(samples[n], request.tools)
            except EngineError:
                if n == 0:  # what it cannot do at all; another sample is only a vote less
                    raise
            begun.set()
            missing -= 1
            if settled(votes, missing):
                group.cancel_scope.cancel()

        with one_error():
            async with anyio.create_task_group() as group:
                for n in range(self.samples):
                    group.start_soon(ask, n)
        winner = elected(votes)
        others = (c.usage for n, chunks in enumerate(samples) if n != winner for c in chunks if c.usage)
        spent = sum(others, Usage())
        # ahead, in a chunk of its own: the last usage stays the one of the answer, which says how long the context is
        return [*([Chunk(usage=spent)] if spent.total_tokens else []), *samples[winner]]


def elected(votes: Sequence[Hashable | None]) -> int:
    """Which sample is taken: the first of the biggest group, and the first of all if nobody voted; None is no vote."""
    sizes = Counter(v for v in votes if v is not None)
    most = max(sizes.values(), default=0)
    return next((n for n, v in enumerate(votes) if v is not None and sizes[v] == most), 0)


def settled(votes: Sequence[Hashable | None], missing: int) -> bool:
    """Whether the biggest group stays the biggest, whatever the missing samples vote for."""
    first, second, *_ = *sorted(Counter(v for v in votes if v is not None).values(), reverse=True), 0, 0
    return first > second + missing


def _sampled(request: Request, n: int) -> Request:
    settings = request.settings
    if n:
        warm = max(settings.temperature or 0.0, _WARM)
        settings = replace(settings, temperature=warm, seed=(settings.seed or 0) + n)
    return replace(request, settings=settings)


def _vote(chunks: Sequence[Chunk], tools: Sequence[Mapping[str, Any]]) -> Hashable | None:
    """The calls of a turn that was read to its end, whatever their order: none are the vote for an answer."""
    parser = TurnParser(tools)
    for chunk in chunks:
        parser.feed(chunk.text, chunk.reasoning, chunk.calls)
    cut = any(c.finish_reason == "length" for c in chunks)
    parser.close("length" if cut else "stop")
    reply = parser.message()
    if (cut or not reply.text.strip()) and not reply.calls:
        return None
    schemas = {t["function"]["name"]: t["function"].get("parameters", {}) for t in tools}
    made: Counter[Hashable] = Counter()
    for call in reply.calls:
        if isinstance(call, BadCall):
            return None
        made[call.name, _frozen(fit(call.arguments, schemas.get(call.name, {}), tool=call.name))] += 1
    return frozenset(made.items())


def _frozen(value: Any) -> Hashable:
    """JSON as something that can be counted; 3 and 3.0 are one."""
    if isinstance(value, Mapping):
        return frozenset((name, _frozen(inner)) for name, inner in value.items())
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return value  # type: ignore[no-any-return]
