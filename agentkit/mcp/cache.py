"""What servers list, kept from one program's run to the next, so that a server can be started when it is called.

Reads and writes small files in the user's cache directory. The SDK is not needed for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agentkit.mcp.config import ServerSpec
from agentkit.mcp.private import write_private

__all__ = ["Hints", "ListedTool", "Listing", "load", "save"]

FORMAT = 2
MAX_AGE = 7 * 86400.0  # seconds; so that a server that nobody calls is asked now and then


@dataclass(frozen=True, slots=True)
class Hints:
    """As in the SDK's `ToolAnnotations`."""

    read_only_hint: bool | None = None
    idempotent_hint: bool | None = None
    destructive_hint: bool | None = None
    open_world_hint: bool | None = None


@dataclass(frozen=True, slots=True)
class ListedTool:
    """The part of the SDK's `Tool` that we use, for programs that have no need of the SDK yet."""

    name: str
    description: str | None
    input_schema: Mapping[str, Any]
    annotations: Hints


@dataclass(frozen=True, slots=True)
class Listing:
    """What a server said of itself when it was last started."""

    tools: tuple[ListedTool, ...] = ()
    server: str = ""
    version: str = ""
    protocol: str = ""
    instructions: str = ""
    capabilities: Mapping[str, Any] = field(default_factory=dict)  # in the protocol's own form
    resources: bool = False  # there is at least one


def load(spec: ServerSpec, offers: str = "") -> Listing | None:
    """What the server of exactly this config listed, in answer to a client with these offers, if it is known."""
    try:
        kept = json.loads(_path(spec).read_bytes())
        fresh = kept["format"] == FORMAT and 0 <= time.time() - kept["at"] < MAX_AGE
        if not fresh or kept["key"] != _key(spec, offers):
            return None
        listing = kept["listing"]
        tools = [
            ListedTool(**(tool | {"annotations": Hints(**tool["annotations"])})) for tool in listing["tools"]
        ]
        return Listing(**(listing | {"tools": tuple(tools)}))
    except (OSError, ValueError, TypeError, KeyError):  # none, or not one of ours
        return None


def save(spec: ServerSpec, listing: Listing, offers: str = "") -> None:
    """Keep the listing. Where that cannot be done, the server is started at once the next time."""
    kept = {"format": FORMAT, "at": time.time(), "key": _key(spec, offers), "listing": asdict(listing)}
    with contextlib.suppress(OSError):
        write_private(_path(spec), json.dumps(kept).encode())


def _path(spec: ServerSpec) -> Path:
    """One file for each server, whatever its settings: so that old ones do not pile up."""
    import platformdirs

    place = json.dumps([spec.name, spec.command, spec.args, spec.cwd, spec.url])
    name = re.sub(r"[^\w.-]+", "-", spec.name)[:40]
    return (
        platformdirs.user_cache_path("agentkit")
        / "mcp"
        / f"{name}-{hashlib.sha256(place.encode()).hexdigest()[:12]}.json"
    )


def _key(spec: ServerSpec, offers: str) -> str:
    """What a listing depends on. Secrets among it are only hashed."""
    config = [spec.command, spec.args, dict(spec.env), spec.cwd, spec.url, dict(spec.headers), spec.transport]
    parts = json.dumps([*config, spec.mode, offers], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()
