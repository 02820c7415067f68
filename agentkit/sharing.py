"""What the toolsets of one run (or of one open agent) have in common, such as a sandbox: opened once, by whoever asks first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

__all__ = ["shared", "sharing"]

_T = TypeVar("_T")
_HERE: ContextVar[tuple[AsyncExitStack, dict[Hashable, Any]] | None] = ContextVar("sharing", default=None)


@contextmanager
def sharing(stack: AsyncExitStack) -> Iterator[None]:
    """Toolsets that are opened in the body share what they open with `shared`; *stack* closes it after them."""
    token = _HERE.set((stack, {}))
    try:
        yield
    finally:
        _HERE.reset(token)


@asynccontextmanager
async def shared(key: Hashable, make: Callable[[], AbstractAsyncContextManager[_T]]) -> AsyncIterator[_T]:
    """What another toolset has opened under *key* already, or else what *make* opens.

    For use in `Toolset.open`. A toolset that is opened by itself, outside of an agent, has it to itself.
    """
    here = _HERE.get()
    if here is None:
        async with make() as value:
            yield value
        return
    stack, opened = here
    if key not in opened:
        opened[key] = await stack.enter_async_context(make())
    yield cast("_T", opened[key])
