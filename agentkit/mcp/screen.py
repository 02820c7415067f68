"""Between MCP servers and the model: which of their tools it is offered, and what it reads of their results."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import anyio.to_thread

from agentkit.errors import ToolError
from agentkit.mcp import pins
from agentkit.mcp.config import ServerSpec
from agentkit.mcp.pins import Approve, ToolChange
from agentkit.mcp.translate import Definition, clean, define, output, shorten
from agentkit.tools import Notify, Tool, ToolOutput

if TYPE_CHECKING:
    from mcp import types

__all__ = ["Filter", "Safety", "Screen"]

Filter: TypeAlias = Callable[[str, str, str], str | None]

BYTES_PER_TOKEN = 3  # of English about 4, of Chinese 3; only a guess
KEPT = 256 * 2**20  # bytes of results that were cut; of more, the oldest is given up
LARGE = 200_000  # characters; the work on so much is done in a thread


@dataclass(frozen=True, slots=True)
class Safety:
    """How MCP servers are kept in bounds.

    `pin`: a tool is remembered as it was when it was first seen (in `pins`, by default in the user's data
    folder). One whose description or arguments are then changed by its server is not offered, unless
    `approve`, an async function, says yes to (server, changes). Nobody is asked where it is None.

    `filter(server, tool, text)` is given what the model is about to read, descriptions and results, and
    returns what it shall read instead; None leaves the tool, or the result, out.

    `description_chars` is how long a description may be, a tool's or an argument's. `result_tokens` is about
    how much of one result the model is shown at once; of a longer one it can read all with `read_result`.
    """

    pin: bool = True
    approve: Approve | None = None
    filter: Filter | None = None
    description_chars: int = 2_000
    result_tokens: int = 4_000
    pins: str | Path | None = None


class Screen:
    """What is remembered while servers are open: refusals, and long results. `tools` is the list that the
    model is offered; `read_result` is added to it once there is something to read.
    """

    def __init__(self, safety: Safety, notify: Notify, tools: list[Tool]) -> None:
        self.safety = safety
        self._notify = notify
        self._tools = tools
        self._refused: set[tuple[str, str, str]] = set()
        self._kept: dict[str, IO[bytes]] = {}  # files without a name: they end with us, however we end
        self._bytes = 0
        self._count = 0

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for file in self._kept.values():
            file.close()
        self._kept.clear()

    # --- tools

    async def definitions(self, spec: ServerSpec, tools: Iterable[types.Tool]) -> list[Definition]:
        """The tools of one server that may be offered, as the model is to see them. Others are told of, once."""
        offered = [define(tool) for tool in tools]
        if self.safety.pin:
            offered = await self._approved(spec, offered)
        offered = [shorten(d, self.safety.description_chars) for d in offered]
        if self.safety.filter is None:
            return offered
        passed = []
        for d in offered:
            text = self.safety.filter(spec.name, d.name, d.description)
            if text is None:
                self._refuse(spec, d, "is not offered: the filter says no to its description")
            else:
                passed.append(replace(d, description=text))
        return passed

    async def _approved(self, spec: ServerSpec, tools: list[Definition]) -> list[Definition]:
        path = pins.pin_file(spec, Path(self.safety.pins) if self.safety.pins is not None else None)
        try:
            pinned = pins.load(path)
        except (OSError, ValueError) as exc:
            self._notify(f"MCP server {spec.name!r}: its tools are pinned anew: {exc}")
            pinned = {}
        now = {d.name: d for d in tools}
        changed = [
            ToolChange(name, pinned[name], d)
            for name, d in now.items()
            if name in pinned and pins.fingerprint(pinned[name]) != pins.fingerprint(d)
        ]
        new = {name: d for name, d in now.items() if name not in pinned}
        unknown = [c for c in changed if self._key(spec, c.after) not in self._refused]
        approve = self.safety.approve
        if unknown and approve is not None and await approve(spec.name, unknown):
            new |= {c.tool: c.after for c in unknown}
            changed = [c for c in changed if c not in unknown]
        for change in changed:
            self._refuse(
                spec,
                change.after,
                f"has changed since it was first seen and is not offered ({change}). To take it as it is now, "
                f"say yes when asked on a terminal, or delete {path}",
            )
        if new:
            try:
                pins.save(path, spec.name, pinned | new)
            except OSError as exc:
                self._notify(f"MCP server {spec.name!r}: its tools cannot be pinned: {exc.strerror}: {path}")
        refused = {c.tool for c in changed}
        return [d for d in tools if d.name not in refused]

    def _key(self, spec: ServerSpec, definition: Definition) -> tuple[str, str, str]:
        return spec.name, definition.name, pins.fingerprint(definition)

    def _refuse(self, spec: ServerSpec, definition: Definition, why: str) -> None:
        key = self._key(spec, definition)
        if key not in self._refused:
            self._refused.add(key)
            self._notify(f"MCP server {spec.name!r}: its tool {clean(definition.name)!r} {why}")

    # --- results

    async def output(self, server: str, tool: str, result: types.CallToolResult) -> ToolOutput:
        """A result as the model is to read it: cleaned, filtered, and no longer than it may be."""
        size = sum(len(getattr(block, "text", "")) for block in result.content)
        if size > LARGE or result.structured_content is not None:
            made = await anyio.to_thread.run_sync(output, tool, result)
        else:
            made = output(tool, result)
        if self.safety.filter is not None:
            text = self.safety.filter(server, tool, made.content)
            if text is None:
                return ToolOutput("(The result was withheld by the user's filter.)", is_error=True)
            made = replace(made, content=text)
        text = made.content
        chars = self._chars(text)
        if len(text) <= chars:
            return made
        return replace(made, content=await anyio.to_thread.run_sync(self._cut, text, chars))

    def _chars(self, text: str) -> int:
        """How many characters of *text* may be shown."""
        limit = self.safety.result_tokens * BYTES_PER_TOKEN
        if text.isascii() or len(text) * 4 <= limit:
            return limit
        sample = text[:LARGE]
        return limit * len(sample) // len(sample.encode(errors="replace"))

    def _cut(self, text: str, chars: int) -> str:
        tail = chars // 5
        head = chars - tail
        name = self._keep(text)
        how = (
            f"all of it is kept: go on with read_result(name={name!r}, offset={head})"
            if name
            else "it is lost"
        )
        left_out = f"{len(text) - chars:,} of {len(text):,} characters left out; {how}"
        return f"{text[:head]}\n[… {left_out} …]\n{text[-tail:] if tail else ''}"

    def _keep(self, text: str) -> str:
        """Put a long result away; the name to read it by, "" where there is no room."""
        data = text.encode(errors="replace")
        self._count += 1
        name = f"result-{self._count}"
        try:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
            try:
                file.write(data)
                file.flush()
            except OSError:
                with contextlib.suppress(OSError):
                    file.close()
                raise
        except OSError:
            return ""
        self._kept[name] = file
        self._bytes += len(data)
        while self._bytes > KEPT and len(self._kept) > 1:
            oldest = self._kept.pop(next(iter(self._kept)))
            self._bytes -= oldest.seek(0, 2)
            oldest.close()
        if not any(t.name == "read_result" for t in self._tools):
            self._tools.append(_read_result(self))
        return name

    async def read(self, arguments: Mapping[str, Any]) -> ToolOutput:
        """A piece of a long result. Raises `ToolError` for one that is not there."""
        name, offset, find = arguments.get("name"), arguments.get("offset", 0), arguments.get("find", "")
        if not isinstance(offset, int) or not isinstance(find, str):
            raise ToolError("offset must be an integer, find a text.")
        if name not in self._kept:
            raise ToolError(f"There is no result {name!r}. There are: {', '.join(self._kept) or 'none'}.")
        return await anyio.to_thread.run_sync(partial(self._piece, self._kept[name], max(offset, 0), find))

    def _piece(self, file: IO[bytes], offset: int, find: str) -> ToolOutput:
        file.seek(0)
        text = file.read().decode()
        begin = offset
        if find:
            at = text.lower().find(find.lower(), offset) if text.isascii() else text.find(find, offset)
            if at < 0:
                raise ToolError(f"{find!r} does not occur in it from character {offset:,} on.")
            begin = max(offset, at - 200)
        if begin >= len(text):
            raise ToolError(f"It ends at character {len(text):,}.")
        shown = text[begin : begin + self._chars(text)]
        end = begin + len(shown)
        more = f"; go on with offset={end}" if end < len(text) else ", the end"
        return ToolOutput(f"{shown}\n[characters {begin:,} to {end:,} of {len(text):,}{more}]")


def _read_result(screen: Screen) -> Tool:
    parameters = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "description": "As the cut result says, like result-1."},
            "offset": {"type": "integer", "description": "The character to read from.", "default": 0},
            "find": {"type": "string", "description": "Go to where this text comes next."},
        },
        "required": ["name"],
    }
    return Tool(
        "read_result",
        "Read more of a tool result that was cut.",
        parameters,
        screen.read,
        effects=frozenset(),
        source="read_result",
    )
