"""What one system does one case with: a model and tools that count and record how they are used."""

from __future__ import annotations

import copy
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from agentkit.errors import AgentkitError, ToolError, one_error
from agentkit.evals.suite import Call, Case, Ended
from agentkit.tools import Tool, ToolOutput

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["Session", "carried_out"]

T = TypeVar("T")


class Session:
    """What one system has to do one case with: `base_url` and `tools`, or `tools_url` for one in another process.

    It is over as the `with` ends: whoever is still at work for it is refused. Leaving it raises `EngineError` if the model
    server failed meanwhile, as what came of the case then says nothing of the system.
    """

    def __init__(
        self, run: str, case: Case, tools: Sequence[Tool], url: str, forget: Callable[[], object]
    ) -> None:
        self.run, self.case = run, case
        self.base_url, self.tools_url, self.turn_url = f"{url}/v1", f"{url}/tools", f"{url}/turn"
        self.api_key = secrets.token_urlsafe(32)  # as Bearer, on all of these
        self.tools = [replace(tool, handler=partial(self._recorded, tool)) for tool in tools]
        self.calls: list[Call] = []
        self.requests = self.prompt_tokens = self.completion_tokens = 0  # that were answered
        self.model_seconds = 0.0  # of the model server, also where it was not asked again
        self.waited = 0.0  # seconds that there was a request waiting for its answer
        self.limit: anyio.CancelScope | None = None  # its deadline waits while the model is at work
        self.ended: Ended | None = None  # why requests are refused
        self.failure: AgentkitError | None = None  # why what came of it does not count
        self._forget = forget
        self._turn = self._round = 0
        self._waiting, self._since, self._left = 0, 0.0, inf
        self._work: set[anyio.CancelScope] = set()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
        if exc is None and self.failure is not None:
            raise self.failure

    def close(self) -> None:
        self._forget()
        for scope in list(self._work):
            scope.cancel()

    def next_turn(self) -> None:
        """The user says the next thing: requests to the model are counted anew."""
        self._turn, self._round = self._turn + 1, 0

    # ------------------------------------------------------------------ for the recorder

    def place(self) -> dict[str, Any]:
        return {"run": self.run, "turn": self._turn, "round": self._round}

    def refuses(self) -> str | None:
        if self.failure is not None:
            return "server"
        if self.ended is None and self.case.first_round and self.calls:
            self.ended = "first_round"
        if self.ended is None and self._round >= self.case.max_requests:
            self.ended = "budget"
        return self.ended

    @contextmanager
    def asking(self) -> Iterator[None]:
        """A request to the model. It counts unless it fails."""
        turn = self._turn
        self._round += 1
        if not self._waiting:
            self._since = time.perf_counter()
            if self.limit is not None:
                self._left, self.limit.deadline = self.limit.deadline - anyio.current_time(), inf
        self._waiting += 1
        try:
            yield
        except BaseException:
            self._round -= self._turn == turn
            raise
        finally:
            self._waiting -= 1
            if not self._waiting:
                self.waited += time.perf_counter() - self._since
                if self.limit is not None:
                    self.limit.deadline = anyio.current_time() + self._left

    def count(self, answer: Mapping[str, Any], seconds: float) -> None:
        usage = answer.get("usage") or {}
        self.requests += 1
        self.prompt_tokens += usage.get("prompt_tokens") or 0
        self.completion_tokens += usage.get("completion_tokens") or 0
        self.model_seconds += seconds

    async def wanted(self, request: Request, work: Callable[[], Awaitable[T]]) -> T:
        """What *work* comes to, unless nobody waits for it any more."""
        from starlette.exceptions import HTTPException

        with one_error():
            async with anyio.create_task_group() as tasks:

                async def watch() -> None:
                    while (await request.receive())["type"] != "http.disconnect":
                        pass
                    tasks.cancel_scope.cancel()

                tasks.start_soon(watch)
                self._work.add(tasks.cancel_scope)
                try:
                    result = await work()
                finally:
                    self._work.discard(tasks.cancel_scope)
                tasks.cancel_scope.cancel()
                return result
        raise HTTPException(404, "over")

    async def _recorded(self, tool: Tool, arguments: Mapping[str, Any]) -> ToolOutput:
        if self.ended is not None:
            raise ToolError(f"agentkit-eval: {self.ended}")
        # as it was sent: tools may change what they are given
        call = Call(tool.name, copy.deepcopy(dict(arguments)), self._turn, self._round, is_error=True)
        place = len(self.calls)
        self.calls.append(call)
        try:
            output = await tool.handler(arguments)
        except Exception as exc:
            self.calls[place] = replace(call, result=str(exc))
            raise
        self.calls[place] = replace(call, result=output.content, is_error=output.is_error)
        return output


async def carried_out(tool: Tool, arguments: Mapping[str, Any]) -> ToolOutput:
    """The call as it is. Whatever a framework does to help its model, it does before and after."""
    try:
        with anyio.fail_after(tool.timeout):
            return await tool.handler(arguments)
    except ToolError as exc:
        return ToolOutput(str(exc), is_error=True)
    except Exception as exc:
        return ToolOutput(f"{type(exc).__name__}: {exc}", is_error=True)
