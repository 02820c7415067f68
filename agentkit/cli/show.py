"""What the terminal shows: answers on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, get_args

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table
from rich.text import Text

from agentkit.events import (
    CallReady,
    Event,
    Notice,
    TextDelta,
    TextWasThinking,
    ThinkingDelta,
    ToolFinished,
    ToolProgress,
    ToolStarted,
    TurnStarted,
)
from agentkit.messages import BadCall, ToolCall
from agentkit.tools import Effect, Tool

__all__ = ["Show", "mcp_report", "server_table", "tool_table"]


class Show:
    """Events as they come. `live` writes the model's text to stdout while it is being written."""

    def __init__(self, *, quiet: bool, live: bool) -> None:
        self._err = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._live = live
        self._status: Status | None = None
        self._text: list[str] = []  # written to stdout in this turn
        self._open = False  # a line of thoughts or text is unfinished

    def __enter__(self) -> Show:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._wait(None)
        self._end_line()

    def progress(self, text: str) -> None:
        """Something that takes a while: starting a server, downloading weights."""
        self._wait(None)
        self._err.print(Text(text, style="dim"))

    def printed(self, output: str) -> bool:
        """Whether the answer has been shown as it was written."""
        shown = self._live and "".join(self._text).strip() == output.strip()
        return shown and bool(output)

    def event(self, event: Event) -> None:
        match event:
            case TurnStarted():
                self._end_line()
                self._text = []
                self._wait("waiting for the model …")
            case ThinkingDelta(text):
                self._wait(None)
                self._open = not self._err.quiet
                self._err.print(Text(text, style="dim italic"), end="")
            case TextDelta(text):
                if self._open and not self._text:
                    self._end_line()
                if self._live:
                    self._wait(None)
                    self._text.append(text)
                    sys.stdout.write(text)
                    sys.stdout.flush()
                    self._open = not text.endswith("\n")
            case TextWasThinking():
                self._end_line()
                self._text = []
            case CallReady(BadCall(_, raw, reason)):
                self._end_line()
                self._err.print(
                    f"[yellow]✗ unreadable call[/] [dim]{escape(_short(raw))} — {escape(reason)}[/]"
                )
            case ToolStarted(call):
                self._end_line()
                self._err.print(f"[cyan]▶ {escape(call.name)}[/]{escape(_arguments(call))}")
                self._wait(f"running {call.name} …")
            case ToolProgress(call, progress, total, message):
                far = f"{progress:g}/{total:g}" if total else f"{progress:g}"
                if self._status is not None:
                    self._status.update(Text(_short(f"running {call.name} … {far} {message}"), style="dim"))
            case ToolFinished(call, result, seconds):
                self._wait(None)
                mark = "[red]✗[/]" if result.is_error else "[green]✓[/]"
                name = escape(call.name) if isinstance(call, ToolCall) else "call"
                self._err.print(
                    f"{mark} {name} [dim]{seconds:.2f} s  {escape(_short(result.content, 400))}[/]"
                )
                for a in result.artifacts:
                    self._err.print(f"  [magenta]{escape(a.name)}[/] [dim]{escape(a.path or a.mime)}[/]")
            case Notice(text):
                self._end_line()
                self._err.print(f"[yellow]! {escape(text)}[/]")
            case _:
                pass

    def _wait(self, what: str | None) -> None:
        """A spinner, on a terminal only."""
        if self._status is not None:
            self._status.stop()
            self._status = None
        if what and self._err.is_terminal:
            self._status = self._err.status(Text(what, style="dim"))
            self._status.start()

    def _end_line(self) -> None:
        self._wait(None)
        if self._open:
            self._open = False
            (sys.stdout.write if self._text else self._err.file.write)("\n")
            sys.stdout.flush()


def _arguments(call: ToolCall) -> str:
    if list(call.arguments) == ["code"]:
        return "\n" + "\n".join(f"  {line}" for line in str(call.arguments["code"]).splitlines())
    return (
        "("
        + ", ".join(
            f"{k}={json.dumps(v, ensure_ascii=False, default=str)}" for k, v in call.arguments.items()
        )
        + ")"
    )


def _short(text: str, limit: int = 200) -> str:
    line = " ⏎ ".join(text.strip().splitlines())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def tool_table(tools: Sequence[Tool]) -> None:
    """One row for each tool."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("tool", "effects", "arguments", "description"):
        table.add_column(column, overflow="fold")
    for t in tools:
        effects = ("unknown",) if t.effects is None else [e for e in get_args(Effect) if e in t.effects]
        first = (t.description.splitlines() or [""])[0]
        arguments = ", ".join(t.parameters.get("properties") or ())
        table.add_row(
            Text(t.name, style="cyan"), Text(", ".join(effects) or "–"), Text(arguments), Text(first)
        )
    Console().print(table)


def mcp_report(reports: Sequence[Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for r in reports:
        if not r.ok:
            console.print(f"[red]✗ {escape(r.name)}[/]  {escape(r.error or '')}")
            continue
        about = " ".join(part for part in (r.server, r.protocol) if part)
        console.print(f"[green]✓ {escape(r.name)}[/]  [dim]{escape(about)}, {r.seconds:.1f} s[/]")
        for t in r.tools:
            arguments = ", ".join(t.parameters.get("properties") or ())
            console.print(
                f"    [cyan]{escape(t.name)}[/]({escape(arguments)})  [dim]{escape(_short(t.description, 80))}[/]"
            )


def server_table(servers: Sequence[Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(s) for s in servers], indent=2, default=str))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "engine", "pid", "url", "in use by", "stops in"):
        table.add_column(column, overflow="fold")
    for s in servers:
        left = "" if s.expires_in is None else f"{s.expires_in:.0f} s"
        table.add_row(s.model, s.engine, str(s.pid), s.url, str(s.leases), left)
    if servers:
        Console().print(table)
    else:
        Console(stderr=True).print("no model server is running", style="dim")
