"""An engine whose server we run: what vLLM, SGLang and llama.cpp have in common."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

import anyio
import anyio.to_thread

from agentkit.errors import ConfigError, EngineError
from agentkit.runtime.engine import Chunk, Request
from agentkit.runtime.families import Family, chat_template_of, family_of, yarn_factor
from agentkit.runtime.installed import Installation, find_installation, gpus
from agentkit.runtime.openai_compatible import OpenAICompatible
from agentkit.runtime.server import HostedServer, RunningServer, ServerCommand, hosted

__all__ = ["Hosted", "HostedWeights", "ServerOptions", "arguments"]

_NOT_RUNNING = "The server is not running; use the engine inside `async with`, or give it to an Agent."


class Hosted:
    """Runs a model server for as long as an `async with` lasts; several may be open at once, and share it."""

    kind: str | None = None  # how the server is talked to: a row of `agentkit.runtime.servers`; None: ask it

    def __init__(
        self, model: str, *, keep_alive: float = 0.0, notify: Callable[[str], object] | None = None
    ) -> None:
        self.model = model  # the name it is served under
        self.server: HostedServer | None = None  # while it runs
        self.joining: RunningServer | None = None  # to be held rather than one of our own
        self.port, self.by_name = 0, False  # see `ServerCommand`
        self._keep_alive, self._notify = keep_alive, notify
        self._context: int | None = None  # tokens, where we set it
        self._opening = anyio.Lock()
        self._users = 0  # how many `async with` hold the server
        self._stack: AsyncExitStack | None = None
        self._wire: OpenAICompatible | None = None

    def command(self) -> ServerCommand:
        """How to run the server. May block, and raise what the engine's constructor says."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        async with self._opening:
            if self._users == 0:
                await self._start()
            self._users += 1
        return self

    async def _start(self) -> None:
        if self.joining:
            command = ServerCommand(self.joining.engine, self.model, ())
        else:
            command = await anyio.to_thread.run_sync(self.command, abandon_on_cancel=True)
            command = replace(command, port=self.port, by_name=self.by_name)
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(
                hosted(command, keep_alive=self._keep_alive, on_progress=self._notify, joining=self.joining)
            )
            wire = OpenAICompatible(server.base_url, self.model, server.api_key, kind=self.kind)
            self._wire = await stack.enter_async_context(wire)
            self.server = server
            self._stack = stack.pop_all()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._users -= 1
        if self._users == 0 and self._stack is not None:
            stack, self._stack, self.server, self._wire = self._stack, None, None, None
            await stack.aclose()

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        if self._wire is None or self.server is None:
            raise EngineError(_NOT_RUNNING)
        try:
            async with aclosing(self._wire.stream(request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except EngineError as exc:
            gone = await self.server.why_gone(0.5)
            if gone:
                raise EngineError(gone) from exc
            raise

    async def context_length(self) -> int | None:
        if self._wire is None:
            raise EngineError(_NOT_RUNNING)
        return await self._wire.context_length() or self._context

    async def count_tokens(self, request: Request) -> int | None:
        if self._wire is None:
            raise EngineError(_NOT_RUNNING)
        return await self._wire.count_tokens(request)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What a server of weights was asked for; None leaves a choice to our tables, and to the server."""

    model: str  # a directory, or a repository on the hub
    name: str
    family: Family | None = None
    context: int | None = None
    tensor_parallel: int | None = None
    dtype: str | None = None
    quantization: str | None = None
    chat_template: str | None = None
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def served(self) -> dict[str, str | int | None]:
        """The options that say as what and where it is served, which vLLM and SGLang spell alike."""
        return {"--served-model-name": self.name, "--host": "127.0.0.1", "--port": "{port}"}

    def loaded(self) -> dict[str, str | int | None]:
        """Those of them that say how the weights are loaded, where they were asked for."""
        asked = {
            "--dtype": self.dtype,
            "--quantization": self.quantization,
            "--chat-template": self.chat_template,
        }
        return {option: value for option, value in asked.items() if value}

    def parallel(self, gpus: int) -> int:
        """Among how many GPUs the model is divided: a power of two divides what its layers have."""
        return self.tensor_parallel or (1 << gpus.bit_length() - 1 if gpus else 1)


class HostedWeights(Hosted):
    """Runs a model as its makers publish it, with a server of another environment. See `Vllm`."""

    package: str
    missing: str  # what to say where it is not installed

    def __init__(
        self,
        model: str | os.PathLike[str] = "Qwen/Qwen3-4B",
        *,
        name: str | None = None,
        context: int | None = None,
        python: str | None = None,
        tensor_parallel: int | None = None,
        dtype: str | None = None,
        quantization: str | None = None,
        chat_template: str | os.PathLike[str] | None = None,
        tool_parser: str | None = None,
        reasoning_parser: str | None = None,
        keep_alive: float = 0.0,
        notify: Callable[[str], object] | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        weights = os.path.expanduser(model)
        weights = os.path.abspath(weights) if os.path.exists(weights) else os.fspath(model)
        super().__init__(name or os.path.basename(weights), keep_alive=keep_alive, notify=notify)
        self._python = python
        self._context = context
        template = chat_template_of(weights)
        if chat_template is not None:
            chat_template = os.path.abspath(os.path.expanduser(chat_template))
            template = _text(chat_template)
        self.options = ServerOptions(
            model=weights,
            name=self.model,
            family=family_of(weights, self.model, template=template),
            context=context,
            tensor_parallel=tensor_parallel,
            dtype=dtype,
            quantization=quantization,
            chat_template=chat_template,
            tool_parser=tool_parser,
            reasoning_parser=reasoning_parser,
            args=tuple(args),
            env=dict(env or {}),
        )
        yarn_factor(
            self.model, self.options.family, context
        )  # what cannot be is refused before anything starts

    def build(self, found: Installation, gpus: int) -> ServerCommand:
        """The command for `options`."""
        raise NotImplementedError

    def command(self) -> ServerCommand:
        found = find_installation(self.package, self._python)
        if found is None:
            raise EngineError(self.missing)
        family = self.options.family
        if self._notify and self.options.tool_parser is None and (family is None or family.calls is None):
            self._notify(
                f"how {self.model} writes tool calls is not known: {self.package} runs without a parser for them"
            )
        command = self.build(found, gpus())
        # what compiles kernels at the start (ninja) is looked for beside its Python first
        path = os.pathsep.join((os.path.dirname(found.program), os.environ.get("PATH", os.defpath)))
        return replace(command, env={"PATH": path, **command.env})


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"The chat template {path} cannot be read: {exc}") from exc


def arguments(
    ours: Mapping[str, str | int | None],
    theirs: Sequence[str],
    names: Mapping[str, str],
    refused: Sequence[str],
) -> tuple[str, ...]:
    """Our options (None: one without a value), but for those that the user gives too, then the user's.

    `names` are other spellings of an option. Raises `ConfigError` for an option that only we can set.
    """
    given = set()
    for part in theirs:
        if part.startswith("-"):
            option = part.partition("=")[0].replace("_", "-")
            given.add(names.get(option, option))
    for option in refused:
        if option in given:
            raise ConfigError(f"{option} cannot be given to a hosted server: agentkit sets it.")
    argv: list[str] = []
    for option, value in ours.items():
        if option not in given and "--no" + option[1:] not in given:
            argv += [option] if value is None else [option, str(value)]
    return (*argv, *theirs)
