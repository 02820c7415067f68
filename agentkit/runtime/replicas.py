"""One engine of several servers of the same model: a conversation stays where its prefix is cached, and leaves what fails."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import anyio

from agentkit.errors import ConfigError, EngineError, one_error
from agentkit.messages import Message, wire
from agentkit.runtime.engine import Chunk, Request
from agentkit.runtime.openai_compatible import BUSY, PATIENCE, OpenAICompatible, backoff

__all__ = ["Replicas"]

_REMEMBERED = 20_000  # runs and conversations; those that rested longest are forgotten first
_CHECK = 2.0  # seconds; somebody's request waits for it
_DOUBLED = 6  # times, at most
_NOTHING = Chunk()  # many servers say first whose turn it is

_log = logging.getLogger(__name__)


class Replicas:
    """An engine for several servers of the same model: their base URLs, or `OpenAICompatible` engines where they differ.

    What belongs to one conversation goes to one server, whose prefix cache has read it: the requests of a run, and later runs
    whose messages go on from it. A new conversation goes to the server with the fewest requests in flight.

    A server that cannot be reached, fails or is busy before the first words of an answer is passed over, and the request goes to
    the next one, its conversation with it. It is left alone for `backoff` seconds, doubled with each failure in a row up to 64
    times, and then looked at (`/health`, or `/models`) before it is asked again; if no other is left it is asked all the same.
    While all that answer are busy, they are asked again for five minutes. After the first words an error is raised, and so is at
    once what any server would say: a wrong key, a bad request, a prompt that is too long.

    With `hedge`, a request without a first word after so many seconds is sent to a second server as well; whichever speaks first
    is read and the other request cancelled. Usage does not count that one.

    `model`, `api_key` and further options of `OpenAICompatible` hold for all URLs; without `model`, the name that the first
    server to answer lists. Engines are used as they are: with `retries=0` they are not asked again before another one is.

    Inside `async with` each server has one connection pool for all runs. Raises `ConfigError` for no server at all or the same
    one twice, `EngineError` when none of them answers, and else what `OpenAICompatible` does.
    """

    def __init__(
        self,
        servers: Sequence[str | OpenAICompatible],
        model: str | None = None,
        api_key: str | None = None,
        *,
        hedge: float | None = None,
        backoff: float = 1.0,
        **options: Any,
    ) -> None:
        engines = [
            OpenAICompatible(s, model, api_key, **{"retries": 0, **options}) if isinstance(s, str) else s
            for s in servers
        ]
        self.base_urls = tuple(engine.base_url for engine in engines)
        if not engines or len(set(self.base_urls)) < len(engines):
            raise ConfigError(
                f"Replicas are different servers, at least one: {', '.join(self.base_urls) or 'none'}."
            )
        self.hedge = hedge
        self._backoff = backoff
        self._replicas = [_Replica(engine) for engine in engines]
        self._homes: OrderedDict[str | int, _Replica] = OrderedDict()  # a run's id, or what `_openings` makes
        self._opening = anyio.Lock()
        self._users = 0  # how many `async with` hold the engines open
        self._stack: AsyncExitStack | None = None

    def __repr__(self) -> str:
        return f"Replicas({list(self.base_urls)!r}, {self.model!r})"

    @property
    def model(self) -> str | None:
        """The name the servers serve the model under; None until one has told."""
        return next((r.engine.model for r in self._replicas if r.engine.model), None)

    async def __aenter__(self) -> Replicas:
        if not self._users:
            async with self._opening:
                if not self._users:
                    async with AsyncExitStack() as stack:
                        await self._open(stack)
                        self._stack = stack.pop_all()
        self._users += 1
        return self

    async def _open(self, stack: AsyncExitStack) -> None:
        """An engine without a name asks for one; the first that has one gives it to all, so that nobody waits for a dead server."""
        opened: list[OpenAICompatible] = []

        async def enter(engine: OpenAICompatible) -> None:
            await stack.enter_async_context(engine)
            opened.append(engine)
            if engine.model is not None:
                group.cancel_scope.cancel()

        with one_error():
            async with anyio.create_task_group() as group:
                for replica in self._replicas:
                    group.start_soon(enter, replica.engine)
        name = self.model
        for replica in self._replicas:
            replica.engine.model = replica.engine.model or name
            if replica.engine not in opened:
                await stack.enter_async_context(replica.engine)

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._users -= 1
        if not self._users and self._stack is not None:
            stack, self._stack = self._stack, None
            await stack.aclose()

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """The answer, chunk by chunk as it comes; closing the generator closes the request."""
        async with self, aclosing(await self._begin(request)) as answer:
            if answer.first is not None:
                yield answer.first
            try:
                async for chunk in answer.chunks:
                    yield chunk
            except EngineError as exc:
                if exc.elsewhere:
                    answer.replica.put_aside(exc, self._backoff)
                raise

    async def context_length(self) -> int | None:
        """How many tokens a prompt and its answer can have together on every server that tells; None where none does."""

        async def ask(replica: _Replica) -> None:
            replica.context = await replica.engine.context_length()
            if replica.context is not None:  # the others have not much longer
                group.cancel_scope.deadline = anyio.current_time() + _CHECK

        unknown = [r for r in self._well() if r.context is None]
        if unknown:
            with one_error():
                async with self, anyio.create_task_group() as group:
                    for replica in unknown:
                        group.start_soon(ask, replica)
        return min((r.context for r in self._replicas if r.context is not None), default=None)

    async def count_tokens(self, request: Request) -> int | None:
        """How many tokens the first server that tells makes of *request*'s prompt; None where none does."""
        async with self:
            for replica in sorted(self._well(), key=lambda r: r.running):
                tokens = await replica.engine.count_tokens(request)
                if tokens is not None:
                    return tokens
        return None

    # ------------------------------------------------------------------ who is asked

    async def _begin(self, request: Request) -> _Answer:
        """The answer of the first server that has one, its first words read."""
        home, start = self._whereabouts(request)
        refused: dict[_Replica, EngineError] = {}
        waits, patience = 0, time.monotonic() + PATIENCE
        while True:
            replica = await self._choose(home, start, refused)
            if replica is not None:
                asked = _Answer(replica, request)
                begun = await (
                    self._ask(asked, refused) if self.hedge is None else self._race(asked, refused)
                )
                if begun is not None:
                    self._settle(request, begun.replica)
                    return begun
                continue
            busy = [error for error in refused.values() if error.status in BUSY]
            if not busy or time.monotonic() > patience:
                raise self._nobody(list(refused.values()))
            await anyio.sleep(min(backoff(waits) if e.after is None else e.after for e in busy))
            waits += 1
            now = time.monotonic()
            refused = {r: e for r, e in refused.items() if e.status not in BUSY and r.until > now}

    async def _choose(
        self, home: _Replica | None, start: _Replica | None, refused: Mapping[_Replica, EngineError]
    ) -> _Replica | None:
        """Who is asked next; None when all have *refused*."""
        ill: set[_Replica] = set()
        while True:
            left = [r for r in self._replicas if r not in refused]
            now = time.monotonic()
            ready = [r for r in left if r.until <= now and r not in ill]
            if not ready:  # whether those that are left are put aside rightly, the request itself finds out
                return min(left, key=lambda r: r.until, default=None)
            # where another conversation began with the same words is as good as anywhere, and has read them
            chosen = home if home in ready else min(ready, key=lambda r: (r.running, r is not start, r.asked))
            if not chosen.failures:
                return chosen
            chosen.fail(self._backoff)  # nobody else asks it before it has said its first words
            with anyio.move_on_after(_CHECK):
                if await chosen.engine.healthy():
                    return chosen
            ill.add(chosen)

    async def _ask(self, answer: _Answer, refused: dict[_Replica, EngineError]) -> _Answer | None:
        """The answer, begun; None if another server is to be asked, which *refused* then says."""
        try:
            await answer.begin()
        except EngineError as exc:
            if not exc.elsewhere:
                raise
            answer.replica.put_aside(exc, self._backoff)
            refused[answer.replica] = exc
            return None
        answer.replica.recover()
        return answer

    async def _race(self, first: _Answer, refused: dict[_Replica, EngineError]) -> _Answer | None:
        """`_ask`, and after `hedge` seconds of silence the same of a second one: the first to begin."""
        answers, over = [first], anyio.Event()
        won: _Answer | None = None
        kept: _Answer | None = None

        async def ask(answer: _Answer) -> None:
            nonlocal won
            begun = await self._ask(answer, refused)
            if won is None and begun is not None:
                won = begun
                group.cancel_scope.cancel()
            over.set()

        try:
            with one_error():
                async with anyio.create_task_group() as group:
                    group.start_soon(ask, first)
                    with anyio.move_on_after(self.hedge):
                        await over.wait()
                    others = [r for r in self._replicas if r.well and r is not first.replica]
                    if others and not over.is_set():
                        second = min(others, key=lambda r: (r.running, r.asked))
                        answers.append(_Answer(second, first.request))
                        group.start_soon(ask, answers[-1])
            kept = won
            return kept
        finally:
            async with AsyncExitStack() as stack:
                for answer in answers:
                    if answer is not kept:
                        stack.push_async_callback(answer.aclose)

    def _well(self) -> list[_Replica]:
        """Those that nothing is known against; all if there are none."""
        return [r for r in self._replicas if r.well] or self._replicas

    def _nobody(self, errors: Sequence[EngineError]) -> EngineError:
        if len(errors) == 1:
            return errors[0]
        error = EngineError(f"None of the {len(errors)} replicas answers. " + " ".join(map(str, errors)))
        error.__cause__ = errors[-1]
        return error

    # ------------------------------------------------------------------ whose conversation is where

    def _whereabouts(self, request: Request) -> tuple[_Replica | None, _Replica | None]:
        """Where the conversation goes on, and if it is new, where another one began with the same words."""
        if request.session and (home := self._homes.get(request.session)):
            return home, None
        for before, opening in enumerate(reversed(_openings(request.messages))):
            if home := self._homes.get(opening):
                return (home, None) if before else (None, home)
        return None, None

    def _settle(self, request: Request, replica: _Replica) -> None:
        names: list[str | int] = [request.session] if request.session else []
        if not names or self._homes.get(names[0]) is not replica:  # else its opening is known, too
            names += _openings(request.messages)[-1:]
        for name in names:
            self._homes[name] = replica
            self._homes.move_to_end(name)
        while len(self._homes) > _REMEMBERED:
            self._homes.popitem(last=False)


def _openings(messages: Sequence[Message]) -> list[int]:
    """A number for the conversation up to each thing that the user said.

    A later run goes on from one of them. The system prompt is none: conversations share it that have nothing else in common.
    """
    so_far, found = 0, []
    for message in messages:
        so_far = hash((so_far, wire(message)))
        if message.role == "user":
            found.append(so_far)
    return found


@dataclass(slots=True, eq=False)
class _Replica:
    """A server and what is known of it. Times are those of time.monotonic."""

    engine: OpenAICompatible
    running: int = 0  # requests in flight
    asked: float = 0.0  # when it last was
    failures: int = 0  # in a row
    until: float = 0.0  # when it may be asked again
    context: int | None = None  # tokens, once it has told

    @property
    def well(self) -> bool:
        return not self.failures and self.until <= time.monotonic()

    def put_aside(self, error: EngineError, seconds: float) -> None:
        now = time.monotonic()
        if error.status in BUSY:
            self.until = now + (seconds if error.after is None else error.after)
        elif self.until <= now:  # else it is one failure, which several requests met
            self.fail(seconds)
        _log.info("%s is left alone for %.1f s: %s", self.engine.base_url, self.until - now, error)

    def fail(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds * 2 ** min(self.failures, _DOUBLED)
        self.failures += 1

    def recover(self) -> None:
        self.failures, self.until = 0, 0.0


class _Answer:
    """A request to one server: a part of its load from now until it is closed."""

    def __init__(self, replica: _Replica, request: Request) -> None:
        replica.running += 1
        replica.asked = time.monotonic()
        self.replica, self.request = replica, request
        self.chunks = replica.engine.stream(request)
        self.first: Chunk | None = None  # that says something
        self._open = True

    async def begin(self) -> None:
        """Read up to the first chunk that says something; whatever is raised closes it."""
        try:
            async for chunk in self.chunks:
                if chunk != _NOTHING:
                    self.first = chunk
                    return
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            self.replica.running -= 1
            await self.chunks.aclose()
