"""llama.cpp as an engine: a child server on loopback for one GGUF file."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

import anyio

from agentkit.errors import EngineError
from agentkit.messages import Message, Text, system
from agentkit.runtime.engine import Chunk, Request
from agentkit.runtime.gguf import Header, read_header
from agentkit.runtime.openai_compatible import OpenAICompatible
from agentkit.runtime.server import HostedServer, ServerCommand, hosted

__all__ = ["LlamaCpp"]

# More than this is asked for by name: the cache of 16,384 tokens takes 0.5 GB (1.5B model) to 2.4 GB (Qwen3-4B).
_CONTEXT = 16_384


class LlamaCpp:
    """Runs a GGUF file with llama.cpp for as long as the `async with` lasts.

    Takes `llama-server` where it is on the PATH, else llama-cpp-python's server (extra `llama-cpp`). It listens on
    127.0.0.1, with a random key. `context` is in tokens; by default what the model was trained for, at most 16,384.
    `threads` is by default one for each core. `keep_alive` is how many seconds the server stays warm for others after
    its last use; with 0 it is this engine's own. `args` are more arguments for `llama-server`.
    Raises `ModelNotFound` for a file that is none, `EngineError` when the server cannot be started.
    """

    def __init__(
        self,
        gguf: str | os.PathLike[str],
        *,
        name: str | None = None,
        context: int | None = None,
        threads: int | None = None,
        keep_alive: float = 0.0,
        notify: Callable[[str], object] | None = None,
        args: Sequence[str] = (),
    ) -> None:
        self.path = Path(gguf).expanduser()
        self.model = name or self.path.stem
        self._context, self._threads, self._args = context, threads, tuple(args)
        self._keep_alive, self._notify = keep_alive, notify
        self._header: Header | None = None
        self._stack: AsyncExitStack | None = None
        self._opening = anyio.Lock()
        self._users = 0  # how many `async with` hold the server
        self._server: HostedServer | None = None
        self._wire: OpenAICompatible | None = None

    async def __aenter__(self) -> LlamaCpp:
        async with self._opening:
            if self._users == 0:
                await self._start()
            self._users += 1
        return self

    async def _start(self) -> None:
        async with AsyncExitStack() as stack:
            command = self._command()
            server = hosted(command, keep_alive=self._keep_alive, on_progress=self._notify)
            self._server = await stack.enter_async_context(server)
            wire = OpenAICompatible(self._server.base_url, self.model, self._server.api_key)
            self._wire = await stack.enter_async_context(wire)
            self._stack = stack.pop_all()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._users -= 1
        if self._users == 0 and self._stack is not None:
            stack, self._stack, self._server, self._wire = self._stack, None, None, None
            await stack.aclose()

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        if self._wire is None or self._server is None:
            raise EngineError(
                "The server is not running; use the engine inside `async with`, or give it to an Agent."
            )
        try:
            async with aclosing(self._wire.stream(self._adapted(request))) as chunks:
                async for chunk in chunks:
                    yield chunk
        except EngineError as exc:
            gone = await self._server.why_gone(0.5)
            if gone:
                raise EngineError(gone) from exc
            raise

    def _adapted(self, request: Request) -> Request:
        """For llama-cpp-python's server, which ignores `chat_template_kwargs`: Qwen3's soft switch in the system text."""
        thinking = request.settings.thinking
        if thinking is None or _llama_server():
            return request
        settings = replace(request.settings, thinking=None)
        if self._header is None or not self._header.architecture.startswith("qwen3"):
            return replace(request, settings=settings)
        switch = "/think" if thinking else "/no_think"  # Qwen3 model card: in user or system text
        first, *rest = request.messages
        if first.role == "system":
            messages = [Message("system", (Text(f"{first.text}\n\n{switch}"),)), *rest]
        else:
            messages = [system(switch), first, *rest]
        return replace(request, messages=messages, settings=settings)

    def _command(self) -> ServerCommand:
        self._header = read_header(self.path)
        context = self._context or min(self._header.context or _CONTEXT, _CONTEXT)
        weights = str(self.path.resolve())
        program = _llama_server()
        if program:
            argv = [
                program,
                "--model",
                weights,
                "--alias",
                self.model,
                "--host",
                "127.0.0.1",
                "--port",
                "{port}",
            ]
            argv += ["--ctx-size", str(context), "--jinja", "--no-webui"]
            argv += ["--threads", str(self._threads)] if self._threads else []
            env = {"LLAMA_API_KEY": "{api_key}"}
            return ServerCommand(
                "llama.cpp", self.model, (*argv, *self._args), weights, env, ready_path="/health"
            )
        if find_spec("llama_cpp") is None or find_spec("uvicorn") is None:
            raise EngineError(
                "llama.cpp is not installed; run: pip install 'agentkit[llama-cpp]' "
                "(or put llama-server on the PATH)."
            )
        settings = {
            "model": weights,
            "model_alias": self.model,
            "n_ctx": context,
            "logits_all": False,  # its default keeps the logits of every position: 10 GB at 16k tokens
            "use_mlock": False,
            "verbose": False,
            "n_threads": self._threads or _threads(),  # its default is half of two CPUs: one
            **({"n_threads_batch": self._threads} if self._threads else {}),
        }
        config = {
            "host": "127.0.0.1",
            "port": "{port}",
            "api_key": "{api_key}",
            "interrupt_requests": False,  # its default ends a running answer when another request comes
            "models": [settings],
        }
        argv = [sys.executable, "-m", "llama_cpp.server"]
        return ServerCommand(
            "llama.cpp",
            self.model,
            tuple(argv),
            weights,
            env={"CONFIG_FILE": "{dir}/config.json"},
            files={"config.json": json.dumps(config)},
        )


def _threads() -> int:
    """Half of the logical CPUs, which is about one for each core, but two where there are two."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, max(2, cpus // 2))


def _llama_server() -> str | None:
    return shutil.which("llama-server")
