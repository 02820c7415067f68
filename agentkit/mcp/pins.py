"""What each MCP server said of its tools when they were first seen, and what has changed since.

Small files, of mode 0600, one for each server: what was approved, and its hash.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import anyio.to_thread

from agentkit.mcp.config import ServerSpec
from agentkit.mcp.private import write_private
from agentkit.mcp.translate import Definition
from agentkit.schema import spell

__all__ = ["Approve", "ToolChange", "ask_on_terminal", "load", "pin_file", "save"]

FORMAT = 1
LONGEST = 300  # characters of one quotation in a change's description


@dataclass(frozen=True, slots=True)
class ToolChange:
    """A tool that no longer is what it was when it was first seen, or last approved."""

    tool: str
    before: Definition
    after: Definition

    def __str__(self) -> str:
        """What has changed, in words."""
        return f"{self.tool}: {'; '.join(_changes(self.before, self.after))}"


# asked with the server's name and all its changed tools; True takes them as they are now
Approve: TypeAlias = Callable[[str, Sequence[ToolChange]], Awaitable[bool]]


def fingerprint(definition: Definition) -> str:
    """The same for definitions that a model reads alike: white space does not count."""
    seen = [" ".join(definition.description.split()), definition.parameters]
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def pin_file(spec: ServerSpec, folder: Path | None = None) -> Path:
    """Where a server's pins are. One that is started or reached otherwise than before is another one."""
    if folder is None:
        from platformdirs import user_data_path

        folder = user_data_path("agentkit") / "mcp-pins"
    identity = json.dumps([spec.name, spec.command, spec.args, spec.url])
    name = "".join(c for c in spec.name if c.isascii() and (c.isalnum() or c in "-_"))[:40]
    return folder / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"


def load(path: Path) -> dict[str, Definition]:
    """The pinned tools. Raises `ValueError` for a file that is none of ours, and `OSError`."""
    try:
        kept = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    try:
        pinned = {
            name: Definition(name, str(entry["description"]), dict(entry["parameters"]))
            for name, entry in kept["tools"].items()
        }
        damaged = any(fingerprint(d) != kept["tools"][name]["sha256"] for name, d in pinned.items())
    except (AttributeError, KeyError, TypeError) as exc:
        raise ValueError(f"{path} does not hold pinned tools") from exc
    if damaged or kept.get("format") != FORMAT:
        raise ValueError(f"{path} does not hold what was pinned")
    return pinned


def save(path: Path, server: str, pinned: Mapping[str, Definition]) -> None:
    """Raises `OSError`."""
    tools = {
        name: {"sha256": fingerprint(d), "description": d.description, "parameters": d.parameters}
        for name, d in pinned.items()
    }
    write_private(path, json.dumps({"format": FORMAT, "server": server, "tools": tools}, indent=1).encode())


async def ask_on_terminal(server: str, changes: Sequence[ToolChange]) -> bool:
    """An `approve` for programs with a terminal; where there is none, the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False

    def ask() -> bool:
        print(f"MCP server {server!r} has changed tools since they were approved:", file=sys.stderr)
        for change in changes:
            print(f"  {change}", file=sys.stderr)
        print("Offer them to the model as they are now? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    return await anyio.to_thread.run_sync(ask, abandon_on_cancel=True)


def _changes(before: Definition, after: Definition) -> list[str]:
    said = []
    if before.description.split() != after.description.split():
        said.append(f"its description {_reworded(before.description, after.description)}")
    old, new = _arguments(before), _arguments(after)
    for name in new.keys() - old.keys():
        said.append(f"it has a new argument {_told(name, new[name], after)}")
    for name in old.keys() - new.keys():
        said.append(f"its argument {name!r} is gone")
    for name in [n for n in new if n in old and new[n] != old[n]]:
        was, now = _words(old[name]), _words(new[name])
        if was != now:
            said.append(f"the description of its argument {name!r} {_reworded(was, now)}")
        else:
            was, now = _told(name, old[name], before), _told(name, new[name], after)
            said.append(
                f"its argument {was} is now {now}"
                if was != now
                else f"its argument {name!r} takes other values"
            )
    required = [set(d.parameters.get("required", ())) for d in (before, after)]
    for name in sorted(required[0] ^ required[1]):
        if name in old and name in new:
            said.append(f"its argument {name!r} is {'now' if name in required[1] else 'no longer'} required")
    return said or ["its schema is another"]


def _arguments(definition: Definition) -> Mapping[str, Any]:
    found: Mapping[str, Any] = definition.parameters.get("properties", {})
    return found


def _words(schema: Any) -> str:
    return str(schema.get("description", "")) if isinstance(schema, Mapping) else ""


def _told(name: str, schema: Any, definition: Definition) -> str:
    required = [r for r in definition.parameters.get("required", ()) if r == name]
    told = spell({"properties": {name: schema}, "required": required})
    return f"{told}: {_quoted(words)}" if (words := _words(schema)) else told


def _reworded(before: str, after: str) -> str:
    old, new = before.split(), after.split()
    said = []
    for kind, a, b, c, d in difflib.SequenceMatcher(
        None, old[:2000], new[:2000], autojunk=False
    ).get_opcodes():
        gone, come = " ".join(old[a:b]), " ".join(new[c:d])
        if kind == "insert":
            said.append(f"now also says {_quoted(come)}")
        elif kind == "delete":
            said.append(f"no longer says {_quoted(gone)}")
        elif kind == "replace":
            said.append(f"says {_quoted(come)} where it said {_quoted(gone)}")
    shown = said[:5] or ["is another"]
    return ", ".join(shown) + (f", and {len(said) - 5} more changes" if len(said) > 5 else "")


def _quoted(text: str) -> str:
    return json.dumps(text if len(text) <= LONGEST else f"{text[: LONGEST - 2]} …", ensure_ascii=False)
