"""`agentkit doctor`: what is here, what would be used, what is missing and how to get it."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console
from rich.markup import escape

__all__ = ["examine"]


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    state: Literal[
        "ok", "missing", "off"
    ]  # missing: something asked for cannot work; off: optional and not there
    detail: str
    fix: str = ""


def examine(model: str | None, as_json: bool) -> int:
    """Print the findings; exit code 1 when the model could not be run."""
    findings = [*_engines(model), *_model(model), *_sandbox(), *_mcp()]
    if as_json:
        print(json.dumps([asdict(f) for f in findings], indent=2))
    else:
        console = Console(highlight=False, soft_wrap=True)
        console.print(
            f"[dim]Python {platform.python_version()} on {platform.system()} {platform.machine()}, "
            f"{os.cpu_count()} CPUs, {_memory()}[/]"
        )
        for f in findings:
            mark = {"ok": "[green]✓[/]", "missing": "[red]✗[/]", "off": "[dim]–[/]"}[f.state]
            console.print(
                f"{mark} {f.what:20} {escape(f.detail)}" + (f"  [dim]→ {escape(f.fix)}[/]" if f.fix else "")
            )
    return int(any(f.state == "missing" for f in findings))


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GB of memory"
    except (ValueError, OSError):
        return "memory unknown"


def _engines(model: str | None) -> Iterator[Finding]:
    from agentkit.errors import EngineError
    from agentkit.runtime.installed import find_installation, gpus
    from agentkit.runtime.local import engine_for

    try:
        chosen, why = engine_for(model)
    except EngineError as exc:
        yield Finding("engine", "missing", str(exc))
        return

    def absent(engine: str) -> Literal["missing", "off"]:
        return "missing" if engine == chosen else "off"

    server = shutil.which("llama-server")
    if server:
        yield Finding("llama.cpp", "ok", server)
    elif importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("uvicorn"):
        yield Finding("llama.cpp", "ok", f"llama-cpp-python {_version('llama-cpp-python')}")
    else:
        yield Finding("llama.cpp", absent("llama.cpp"), "not installed", "pip install 'agentkit[llama-cpp]'")
    for what, package, fix in (
        ("vLLM", "vllm", "pip install 'agentkit[vllm]', or AGENTKIT_VLLM=…/bin/python"),
        ("SGLang", "sglang", "pip install sglang, or AGENTKIT_SGLANG=…/bin/python"),
    ):
        try:
            found = find_installation(package)
        except EngineError as exc:
            yield Finding(what, "missing", str(exc))
            continue
        if found:
            yield Finding(what, "ok", str(found))
        else:
            yield Finding(what, absent(package), "not installed", fix)
    yield Finding("GPU", "ok" if gpus() else "off", f"{gpus()} found" if gpus() else "none found")
    yield Finding("engine", "ok", f"{chosen} would be used" + (f": {why}" if why else ""))


def _model(name: str | None) -> Iterator[Finding]:
    from agentkit.runtime.models import describe

    for label, state, detail, fix in describe(name):
        yield Finding(label, state, detail, fix)


def _sandbox() -> Iterator[Finding]:
    from agentkit.sandbox import cgroup, detect

    found = detect()
    for what, probe in (("bubblewrap", found.bwrap), ("Landlock", found.landlock)):
        used = "used: " if probe.ok and found.backend == what.lower().replace("bubblewrap", "bwrap") else ""
        state: Literal["ok", "missing", "off"] = "ok" if probe.ok else "off" if found.backend else "missing"
        yield Finding(f"sandbox: {what}", state, used + probe.detail, probe.fix)
    for name in ("docker", "monty"):
        probe = getattr(found, name)
        detail = f"when named: {probe.detail}" if probe.ok else probe.detail
        yield Finding(f"sandbox: {name}", "ok" if probe.ok else "off", detail, probe.fix)
    if cgroup.available():
        yield Finding("sandbox: limits", "ok", "control groups, and a watch")
    else:
        yield Finding("sandbox: limits", "off", "a watch alone: no control groups can be made here")
    absent = [m for m in ("numpy", "pandas", "matplotlib") if importlib.util.find_spec(m) is None]
    if absent:
        yield Finding(
            "sandbox: libraries", "off", f"without {', '.join(absent)}", "pip install 'agentkit[interpreter]'"
        )
    else:
        yield Finding("sandbox: libraries", "ok", "numpy, pandas, matplotlib")


def _mcp() -> Iterator[Finding]:
    yield Finding("mcp", "ok", f"SDK {_version('mcp')}")
    for runner, gets in (("uvx", "pip install uv"), ("npx", "install Node.js")):
        found = shutil.which(runner)
        note = "" if found else "servers installed with pip are found without it" if runner == "uvx" else ""
        yield Finding(
            f"  {runner}",
            "ok" if found else "off",
            found or f"not there; {note}".rstrip("; "),
            "" if found else gets,
        )


def _version(distribution: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return "of unknown version"
