"""SGLang as an engine: a child server on loopback, started with the options that its model and its version need."""

from __future__ import annotations

import json

from agentkit.runtime.families import YARN_CONTEXT, yarn_factor
from agentkit.runtime.hosted import HostedWeights, ServerOptions, arguments
from agentkit.runtime.installed import Installation
from agentkit.runtime.server import ServerCommand

__all__ = ["SGLang", "sglang_command"]

_READY_TIMEOUT = 1200.0  # seconds
_TODAY = (0, 5, 23)  # what an installation that tells no version is taken for
_OTHER_NAMES = {"--tensor-parallel-size": "--tp-size", "--tp": "--tp-size", "--model": "--model-path"}
_REFUSED = "--host --port --api-key --admin-api-key --config --model-path --served-model-name --ssl-keyfile --ssl-certfile"


class SGLang(HostedWeights):
    """Runs a model with SGLang for as long as the `async with` lasts; its arguments are those of `Vllm`.

    The SGLang is that of the `python` (or `sglang` command) named, else of AGENTKIT_SGLANG, else on the PATH, else in
    this interpreter's packages; 0.4.6.post1 or later. It gets its key in a file that only you can read; before 0.5.3
    it takes one only among its arguments, which every user of the machine can read.
    Raises `ConfigError` for options that cannot be, `EngineError` when the server cannot be started.
    """

    kind = package = "sglang"
    missing = (
        "SGLang is not installed; run: pip install sglang, or name the Python of an environment that has it "
        "(AGENTKIT_SGLANG)."
    )

    def build(self, found: Installation, gpus: int) -> ServerCommand:
        return sglang_command(self.options, found, gpus)


def sglang_command(options: ServerOptions, sglang: Installation, gpus: int) -> ServerCommand:
    """How the SGLang found is to be run for *options* on a machine with so many GPUs. Nothing is looked up here."""
    version, family = sglang.version or _TODAY, options.family
    if sglang.python:
        launcher: tuple[str, ...] = (sglang.program, "-m", "sglang.launch_server")
    else:
        launcher = (sglang.program, "serve")
    ours = options.served()
    if options.context is not None:
        ours["--context-length"] = options.context
    factor = yarn_factor(options.name, family, options.context)
    if factor is not None:
        yarn = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": YARN_CONTEXT}
        longest = {"max_position_embeddings": int(factor * YARN_CONTEXT)}  # it does not derive it
        ours["--json-model-override-args"] = json.dumps({**longest, "rope_scaling": yarn})
    if options.parallel(gpus) > 1:
        ours["--tp-size"] = options.parallel(gpus)
    ours |= options.loaded()
    calls = thoughts = ""
    if family and family.calls == "json":
        calls = "qwen25"
    elif family and family.calls == "xml" and version >= (0, 5):
        calls = "qwen3_coder"
    if family:
        thoughts = {"switched": "qwen3", "always": "deepseek-r1", "never": ""}[family.thinks]
    calls = calls if options.tool_parser is None else options.tool_parser
    thoughts = thoughts if options.reasoning_parser is None else options.reasoning_parser
    if calls:
        ours["--tool-call-parser"] = calls
    if thoughts:
        ours["--reasoning-parser"] = thoughts
    ours["--enable-cache-report"] = None  # cached tokens in the usage; the cache itself is always on
    files = {}
    if version >= (0, 5, 3):
        ours["--config"] = "{dir}/key.yaml"
        files["key.yaml"] = 'api-key: "{api_key}"\n'
    else:
        ours["--api-key"] = "{api_key}"
    return ServerCommand(
        "sglang",
        options.name,
        (
            *(*launcher, "--model-path", options.model),
            *arguments(ours, options.args, _OTHER_NAMES, _REFUSED.split()),
        ),
        weights=options.model,
        env=options.env,
        files=files,
        ready_path="/health",  # 503 until it has warmed up
        ready_timeout=_READY_TIMEOUT,
    )
