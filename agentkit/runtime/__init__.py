"""Model servers: who runs them, and how to talk to one."""

from __future__ import annotations

import re
from collections.abc import Callable

from agentkit.errors import ConfigError
from agentkit.runtime.engine import Chunk, Engine, ModelSettings, Request

__all__ = ["Chunk", "Engine", "ModelSettings", "Request", "connect"]

_SERVERS = re.compile(r"(?:(.+?)@)?(https?://.+)")


def connect(
    model: str | Engine | None, notify: Callable[[str], None] | None = None, *, keep_alive: float = 300.0
) -> Engine:
    """The engine that *model* names: see `Agent`. Nothing is started before it is opened with `async with`.

    A name or path may have the engine before it: `vllm:`, `sglang:`, `llama.cpp:`, or `transformers:` for this process. Else
    vLLM runs what it can where it is installed and there is a GPU, and llama.cpp the rest. Several URLs, with commas between
    them, are `Replicas`.

    A model server that has to be started stays warm for `keep_alive` seconds after its last use, and is found by the next
    program that wants the same model. `notify` is told what takes a while.
    """
    if model is not None and not isinstance(model, str):
        return model
    if given := _SERVERS.fullmatch(model or ""):
        import os

        name, key = given[1], os.environ.get("AGENTKIT_API_KEY")
        urls = [url.strip() for url in given[2].split(",")]
        if not all(url.startswith(("http://", "https://")) for url in urls):
            raise ConfigError(
                f"{model} is not how several servers of one model are named; write NAME@http://HOST:PORT/v1,http://HOST:PORT/v1."
            )
        if len(urls) > 1:
            from agentkit.runtime.replicas import Replicas

            return Replicas(urls, name, key)
        from agentkit.runtime.openai_compatible import OpenAICompatible

        return OpenAICompatible(urls[0], name, key)
    if model and model.startswith("transformers:"):
        from agentkit.runtime.transformers import Transformers

        return Transformers(model.removeprefix("transformers:"))
    from agentkit.runtime.local import Local

    return Local(model, notify, keep_alive=keep_alive)
