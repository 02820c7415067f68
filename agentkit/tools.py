"""The tool type, its decorator, sets of tools that must be opened, and the registry of installed packs."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, overload, runtime_checkable

import anyio.to_thread

from agentkit.errors import ConfigError, UnknownTool
from agentkit.messages import Artifact, Usage
from agentkit.spelling import closest

__all__ = [
    "AskUser",
    "AsksUser",
    "Effect",
    "Notify",
    "Tool",
    "ToolOutput",
    "ToolRegistry",
    "Toolset",
    "closest",
    "tool",
]

log = logging.getLogger("agentkit")


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What a tool hands back when a plain value is not enough."""

    content: str  # what the model reads
    is_error: bool = False
    artifacts: tuple[Artifact, ...] = ()
    usage: Usage | None = None  # what models used up for it; counts as the run's


# What a call may do besides computing its result: look at what is not in its arguments, change something, overwrite or
# delete something, run code, reach other machines.
Effect: TypeAlias = Literal["reads", "writes", "destroys", "executes", "network"]
Handler: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[ToolOutput]]


@dataclass(frozen=True, slots=True)
class Tool:
    """Something the model may call by name.

    `parameters` is the JSON schema of its arguments (an object). `handler` is awaited with the arguments the model
    sent, and checks them itself; it raises `ToolError` to say no. `timeout` is in seconds. `on_error` says what becomes
    of any other exception: "report" tells the model and the run goes on, "raise" ends the run with `ToolCrashed`.
    `effects` are what a call may do besides answering; None: it does not say.
    A tool made from a function is still that function to Python code: calling it calls the function.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    handler: Handler
    timeout: float | None = None
    on_error: Literal["report", "raise"] = "report"
    fn: Callable[..., Any] | None = None
    effects: frozenset[Effect] | None = None
    source: str = ""  # whose words its results are; the model is shown those as data
    approved: bool = False  # its configuration says that it need not be asked about

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.fn is None:
            raise TypeError(
                f"the tool {self.name!r} is not a Python function; only a model's call can run it"
            )
        return self.fn(*args, **kwargs)

    @property
    def schema(self) -> dict[str, Any]:
        """The tool as chat-completions requests name it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@runtime_checkable
class AsksModel(Protocol):
    """A toolset whose tools may ask the agent's model: the one that is opened is given it first."""

    def with_model(self, engine: Any) -> Toolset: ...


# A question and some answers to choose from -> the answer; None: nobody is there, or wants to say.
AskUser: TypeAlias = Callable[[str, Sequence[str]], Awaitable[str | None]]


@runtime_checkable
class AsksUser(Protocol):
    """A toolset whose tools may ask the user: the one that is opened is given the agent's `ask_user` first."""

    def with_user(self, ask: AskUser) -> Toolset: ...


@runtime_checkable
class KnowsTask(Protocol):
    """A toolset of scope "run" whose tools treat what the user named otherwise than what the model came up with: it is given
    all that the user wrote."""

    def with_task(self, text: str) -> Toolset: ...


Notify: TypeAlias = Callable[[str], None]


@runtime_checkable
class Toolset(Protocol):
    """Tools that live only while something is open: a server's connection, an interpreter's process.

    `scope` says how long: "run" opens anew for each run, "agent" stays open inside `async with agent:`
    (and, outside of that, for one run). `open` tells `notify` what went wrong without being fatal.
    """

    @property
    def scope(self) -> Literal["run", "agent"]: ...

    def open(self, notify: Notify) -> AbstractAsyncContextManager[Sequence[Tool]]: ...


@overload
def tool(fn: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float | None = None,
    on_error: Literal["report", "raise"] = "report",
    effects: Iterable[Effect] | None = None,
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float | None = None,
    on_error: Literal["report", "raise"] = "report",
    effects: Iterable[Effect] | None = None,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a function a tool; its name, docstring and type hints are what the model sees.

    The function may be async; a sync one runs in a worker thread. `timeout` is in seconds: a slower call is given up
    (a thread cannot be stopped, its result is dropped). `effects` say what a call may do: () for one that only computes,
    any of "reads", "writes", "destroys", "executes", "network"; permissions can go by them. Raises `ConfigError` for a signature without a JSON schema.

        @tool
        def weather(city: str, days: int = 1) -> str:
            \"\"\"Forecast for a city.\"\"\"
    """
    names = _names_around()

    def make(fn: Callable[..., Any]) -> Tool:
        return function_tool(
            fn,
            names,
            name=name,
            description=description,
            timeout=timeout,
            on_error=on_error,
            effects=effects,
        )

    return make if fn is None else make(fn)


def _names_around() -> dict[str, Any]:
    """The local names where `@tool` stands: annotations may use classes that a function defined."""
    frame = inspect.currentframe()
    caller = frame.f_back.f_back if frame and frame.f_back else None
    return dict(caller.f_locals) if caller else {}


def function_tool(
    fn: Callable[..., Any],
    names: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float | None = None,
    on_error: Literal["report", "raise"] = "report",
    effects: Iterable[Effect] | None = None,
) -> Tool:
    """`tool` without the decorator's look at where it stands: `names` are what annotations may use."""
    from agentkit.schema import (
        signature,
        to_text,
    )  # they need pydantic, which a program without tools does not

    if not callable(fn):
        raise ConfigError(f"A tool is a function, a tool's name or an MCP config, not {fn!r}.")
    called = name or str(getattr(fn, "__name__", type(fn).__name__))
    read = signature(fn, names=names, title=called)
    is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)

    async def handler(arguments: Mapping[str, Any]) -> ToolOutput:
        args, kwargs = read.bind(arguments)
        if is_async:
            value = await fn(*args, **kwargs)
        else:
            value = await anyio.to_thread.run_sync(lambda: fn(*args, **kwargs), abandon_on_cancel=True)
        return value if isinstance(value, ToolOutput) else ToolOutput(to_text(value))

    return Tool(
        called,
        description or read.description,
        read.parameters,
        handler,
        timeout,
        on_error,
        fn,
        None if effects is None else frozenset(effects),
    )


class ToolRegistry:
    """Installed tools by name; a tool's module is imported when the tool is first asked for.

    A pack is an entry point in the group `agentkit.tools`: a mapping from names to "module:object", where the object is
    a `Tool` or a `Toolset`.
    """

    def __init__(self) -> None:
        self._installed: dict[str, str] | None = None

    def names(self) -> list[str]:
        return sorted(self._places())

    def get(self, name: str) -> Tool | Toolset:
        """The tool of that name. Raises `UnknownTool`, naming those there are."""
        import pkgutil

        places = self._places()
        if name not in places:
            hint = closest(name, places)
            raise UnknownTool(
                f"No tool is named {name!r}{f'; did you mean {hint!r}?' if hint else '.'} "
                f"Installed tools: {', '.join(self.names())}."
            )
        try:
            found = pkgutil.resolve_name(places[name])
        except Exception as exc:  # it is somebody else's module
            raise ConfigError(
                f"The tool {name!r} ({places[name]}) cannot be loaded: {type(exc).__name__}: {exc}."
            ) from exc
        if not isinstance(found, Tool | Toolset):
            raise ConfigError(
                f"The tool pack's entry {name!r} ({places[name]}) is neither a Tool nor a Toolset."
            )
        return found

    def _places(self) -> dict[str, str]:
        if self._installed is None:
            from importlib.metadata import entry_points  # slow to import; only names need it

            self._installed = {}
            for pack in sorted(entry_points(group="agentkit.tools"), key=lambda pack: pack.name != "builtin"):
                try:
                    places = dict(pack.load())
                except Exception as exc:  # the tools of others must not be lost with it
                    log.warning("the tool pack %s (%s) cannot be used: %s", pack.name, pack.value, exc)
                    continue
                for name in places.keys() & self._installed.keys():
                    log.warning("the tool pack %s has a second %r; the first one is used", pack.name, name)
                self._installed = places | self._installed
        return self._installed
