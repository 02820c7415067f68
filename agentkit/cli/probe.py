"""`agentkit doctor --url`: what a model server was found to do, as a table or as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape

from agentkit.runtime.probe import CHECKS, Report

__all__ = ["show_report"]

_MARKS = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "missing": "[red]✗[/]", "unknown": "[dim]–[/]"}
_OFFERED = {
    "native": "native: the server's own tool calls",
    "python": "python: functions described in the prompt, calls in code",
    "hermes": "hermes: tools described in the prompt, calls in <tool_call> tags",
    "react": "react: tools described in the prompt, Thought / Action / Observation text",
}


def show_report(report: Report, as_json: bool) -> int:
    """Print the report; exit code 1 when something is broken."""
    if as_json:
        findings = [{"id": f.id, "what": CHECKS[f.id], **asdict(f)} for f in report.findings]
        head = {"url": report.url, "kind": report.kind, "model": report.model, "protocol": report.protocol}
        print(json.dumps({**head, "findings": findings}, ensure_ascii=False, indent=2))
    else:
        console = Console(highlight=False, soft_wrap=True)
        for f in report.findings:
            if f.detail == "not asked":
                continue
            fix = f"  [dim]→ {escape(f.fix)}[/]" if f.fix else ""
            console.print(f"{_MARKS[f.state]} {CHECKS[f.id]:20} {escape(f.detail)}{fix}")
        if any(f.id.startswith("tools.") and f.state != "unknown" for f in report.findings):
            console.print(f"[dim]agentkit would offer its tools as[/] {_OFFERED[report.protocol]}")
        console.print(f"[dim]{report.requests} requests[/]")
    return int(any(f.state == "missing" for f in report.findings))
