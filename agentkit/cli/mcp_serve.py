"""`agentkit mcp serve`: tools, or an agent, as an MCP server for Claude Desktop, VS Code and other clients."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import click

from agentkit.mcp.serve import Address, Offer, serve_http, serve_stdio

__all__ = ["serve"]


async def serve(
    *,
    agent: bool,
    http: bool,
    host: str,
    port: int,
    token: str | None,
    auth: bool,
    allow_hosts: tuple[str, ...],
    description: str,
    name: str,
    **options: Any,
) -> None:
    """Serve what the command line names until the client, or a signal, ends it."""
    with contextlib.redirect_stdout(sys.stderr):  # what a tool's module prints on import is not the protocol
        offer = _offer(agent, description, name, options)
    if not http:
        await serve_stdio(offer, _say)
        return
    if auth and token is None and not sys.stderr.isatty():  # a log may be read by others
        raise click.UsageError(
            "there is no terminal to show a token on; set AGENTKIT_MCP_TOKEN to one, or say --no-auth"
        )
    await serve_http(
        offer,
        host=host,
        port=port,
        token=token,
        auth=auth,
        allow_hosts=allow_hosts,
        started=_introduce,
        notify=_say,
    )


def _offer(agent: bool, description: str, name: str, options: dict[str, Any]) -> Offer:
    if agent:
        from agentkit.cli import make_agent

        made = make_agent(notify=_say, **options)
        return Offer(agent=made, agent_description=description, name=name)
    if not options["tools"] and not options["mcp"]:
        raise click.UsageError("say what to serve: -t code_interpreter, --mcp FILE, or --agent")
    return Offer(tools=options["tools"], mcp=options["mcp"], name=name)


def _introduce(address: Address) -> None:
    click.echo(f"serving MCP at {address.url}; Ctrl-C stops it", err=True)
    if address.token is None:
        click.echo("  everyone who reaches this address may use it (--no-auth)", err=True)
    elif sys.stderr.isatty():
        click.echo(f"  header  Authorization: Bearer {address.token}", err=True)


def _say(text: str) -> None:
    click.echo(f"agentkit: {text}", err=True)
