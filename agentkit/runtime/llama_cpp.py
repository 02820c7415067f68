"""llama.cpp as an engine: a child server on loopback for one GGUF file."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from agentkit.errors import ConfigError, EngineError
from agentkit.runtime.gguf import read_header
from agentkit.runtime.hosted import Hosted
from agentkit.runtime.server import ServerCommand

__all__ = ["LlamaCpp"]

# More than this is asked for by name: the cache of 16,384 tokens takes 0.5 GB (1.5B model) to 2.4 GB (Qwen3-4B).
_CONTEXT = 16_384


class LlamaCpp(Hosted):
    """Runs a GGUF file with llama.cpp for as long as the `async with` lasts.

    Takes `llama-server` where it is on the PATH, else llama-cpp-python's server (extra `llama-cpp`). It listens on
    127.0.0.1, with a random key. `context` is in tokens; by default what the model was trained for, at most 16,384.
    `threads` is by default one for each core. `keep_alive` is how many seconds the server stays warm for others after
    its last use; with 0 it is this engine's own. `args` are more options for `llama-server`, and for that only.
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
        super().__init__(name or self.path.stem, keep_alive=keep_alive, notify=notify)
        self._asked, self._threads, self._args = context, threads, tuple(args)

    def command(self) -> ServerCommand:
        context = self._asked or min(read_header(self.path).context or _CONTEXT, _CONTEXT)
        self._context = context
        weights = str(self.path.resolve())
        program = _llama_server()
        self.kind = "llama.cpp" if program else "llama-cpp-python"
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
                "llama.cpp",
                self.model,
                (*argv, *self._args),
                weights,
                env,
                ready_path="/health",
            )
        if find_spec("llama_cpp") is None or find_spec("uvicorn") is None:
            raise EngineError(
                "llama.cpp is not installed; run: pip install 'agentkit[llama-cpp]' "
                "(or put llama-server on the PATH)."
            )
        if self._args:
            raise ConfigError(
                f"llama-cpp-python's server takes no options ({' '.join(self._args)}); llama-server on the PATH does."
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
