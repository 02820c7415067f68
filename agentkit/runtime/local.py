"""A model by its name, run on this machine: engine and weights are found, and the server started, when it is opened."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from agentkit.errors import EngineError, ModelNotFound
from agentkit.runtime.engine import Chunk, Request

if TYPE_CHECKING:
    from agentkit.runtime.hosted import Hosted
    from agentkit.runtime.server import HostedServer

__all__ = ["ENGINES", "Local", "choose", "engine_for", "served_name", "split"]

ENGINES = ("vllm", "sglang", "llama.cpp")


class Local:
    """The engine behind `Agent(model="qwen3-4b")`: the server of `agentkit model serve`, else what `choose` says."""

    def __init__(
        self, model: str | None, notify: Callable[[str], object] | None = None, *, keep_alive: float = 300.0
    ) -> None:
        self.model = split(model)[1] or ""
        self._asked, self._notify, self._keep_alive = model, notify, keep_alive
        self._engine: Hosted | None = None
        self._opening = anyio.Lock()

    async def __aenter__(self) -> Local:
        async with self._opening:
            if self._engine is None:
                self._engine = await anyio.to_thread.run_sync(self._find, abandon_on_cancel=True)
                self.model = self._engine.model
            await self._engine.__aenter__()
        return self

    def _find(self) -> Hosted:
        from agentkit.runtime.hosted import Hosted
        from agentkit.runtime.models import DEFAULT
        from agentkit.runtime.server import serving

        engine, model = split(self._asked)
        served = serving(served_name(model or DEFAULT), engine)
        path = Path(model or DEFAULT).expanduser()
        if served and path.exists() and path.resolve() != Path(served.weights).resolve():
            served = None  # another of the same name
        if served is None:
            chosen = choose(self._asked, self._notify, keep_alive=self._keep_alive)
            served = (
                None if path.exists() else serving(chosen.model, engine)
            )  # the demo model, in another's stead
            if served is None:
                return chosen
        found = Hosted(served.model, keep_alive=self._keep_alive, notify=self._notify)
        found.joining, found.kind = served, None if served.engine == "llama.cpp" else served.engine
        return found

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._engine is not None:
            await self._engine.__aexit__(kind, exc, tb)

    def _running(self) -> Hosted:
        if self._engine is None:
            raise EngineError(
                "The model is not running; use the engine inside `async with`, or give it to an Agent."
            )
        return self._engine

    @property
    def server(self) -> HostedServer | None:
        """The server, while it runs."""
        return self._running().server

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        async with aclosing(self._running().stream(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def context_length(self) -> int | None:
        return await self._running().context_length()

    async def count_tokens(self, request: Request) -> int | None:
        return await self._running().count_tokens(request)


def split(model: str | None) -> tuple[str | None, str | None]:
    """`vllm:Qwen/Qwen3-4B` -> ("vllm", "Qwen/Qwen3-4B"); without a prefix the engine is None: ours to choose."""
    engine, colon, name = (model or "").partition(":")
    if colon and engine.lower() in ENGINES:
        return engine.lower(), name or None
    return None, model


def served_name(model: str) -> str:
    """What a server calls the model that a user calls *model*."""
    from agentkit.runtime.models import catalogue_name

    known = catalogue_name(model)
    if known:
        return known
    path = Path(model).expanduser()
    return path.stem if path.suffix == ".gguf" else path.name or model


def engine_for(model: str | None) -> tuple[str, str]:
    """Which engine runs *model*, and why, in a few words (none where there was nothing to choose).

    A GPU and vLLM: vLLM, for what it can run. Else llama.cpp, for what that can. Nothing is fetched or started.
    """
    from agentkit.runtime.installed import find_installation, gpus
    from agentkit.runtime.models import catalogue_name, is_weights, on_hub

    engine, name = split(model)
    if engine:
        return engine, ""
    if name is not None and (is_weights(name) or on_hub(name)):
        for other in ("vllm", "sglang"):
            if find_installation(other):
                return other, ""
        return ("vllm" if is_weights(name) else "llama.cpp"), ""
    if name is not None and not catalogue_name(name):
        return "llama.cpp", ""
    vllm = find_installation("vllm")
    if vllm is None:
        return "llama.cpp", "there is a GPU, but no vLLM" if gpus() else ""
    if not gpus():
        return "llama.cpp", "vLLM is installed, but there is no GPU"
    return "vllm", f"{gpus()} GPU{'s' * (gpus() > 1)} and vLLM {vllm}"


def fetch(model: str, notify: Callable[[str], object]) -> tuple[str, str]:
    """Get what would run *model*; returns its name, and the path of its weights."""
    from agentkit.runtime import models

    engine, _ = engine_for(model)
    name = split(model)[1] or models.DEFAULT
    if engine == "llama.cpp":
        found = models.resolve(name, notify)
        return found.name, str(found.path)
    path, served = models.weights(name, notify)
    return served, path


def choose(
    model: str | None,
    notify: Callable[[str], object] | None = None,
    *,
    keep_alive: float = 0.0,
    context: int | None = None,
    args: tuple[str, ...] = (),
) -> Hosted:
    """The engine that is to run *model*, its weights found (and fetched); `notify` hears which, where it was a choice."""
    from agentkit.runtime import models
    from agentkit.runtime.installed import find_installation
    from agentkit.runtime.llama_cpp import LlamaCpp
    from agentkit.runtime.sglang import SGLang
    from agentkit.runtime.vllm import Vllm

    say = notify or (lambda _: None)
    explicit, name = split(model)
    engine, why = engine_for(model)
    options: dict[str, Any] = {"keep_alive": keep_alive, "notify": notify, "context": context, "args": args}
    if engine != "llama.cpp":
        server = Vllm if engine == "vllm" else SGLang
        if find_installation(engine) is None:
            raise EngineError(server.missing)
        try:
            weights, found = models.weights(name or models.DEFAULT, say)
        except ModelNotFound as exc:
            if explicit or not why:
                raise
            engine, why = "llama.cpp", str(exc)  # which may have it in its own form
        else:
            if why:
                say(f"{found} runs on vLLM: {why}")
            return server(weights, name=found, **options)
    if why:
        say(f"{name or models.DEFAULT} runs on llama.cpp: {why}")
    gguf = models.resolve(name, say)
    return LlamaCpp(gguf.path, name=gguf.name, **options)
