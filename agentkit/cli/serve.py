"""`agentkit model serve`: a model server in the foreground, for `run`, `chat` and any other program."""

from __future__ import annotations

import math
import signal
import sys

import anyio
import anyio.to_thread
import click

from agentkit.errors import AgentkitError, EngineError
from agentkit.runtime.local import choose, split
from agentkit.runtime.server import HostedServer, stop

__all__ = ["until_stopped"]

_SECONDS = 1.0  # that a killed `serve` leaves its server; those who use it may ask for more


async def until_stopped(
    name: str | None, engine: str | None, context: int | None, port: int, args: tuple[str, ...]
) -> int:
    """Run the server of model *name*, say where it is, and stop it at SIGINT or SIGTERM. Returns the exit code."""
    asked = f"{engine}:{split(name)[1] or ''}" if engine else name
    found = await anyio.to_thread.run_sync(
        lambda: choose(asked, _say, keep_alive=_SECONDS, context=context, args=args), abandon_on_cancel=True
    )
    found.port, found.by_name = port, True
    failures: list[AgentkitError] = []

    async def serve() -> None:
        try:
            async with found:
                assert found.server is not None
                try:
                    _introduce(found.server)
                    failures.append(EngineError(await found.server.why_gone(math.inf) or ""))
                finally:
                    with anyio.CancelScope(shield=True):  # with all who use it
                        await anyio.to_thread.run_sync(stop, found.server.id)
        except AgentkitError as exc:
            failures.append(exc)
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            tasks.start_soon(serve)
            async for _ in signals:
                tasks.cancel_scope.cancel()
                break
    if failures:
        raise failures[0]
    return 0


def _introduce(server: HostedServer) -> None:
    click.echo(f"{server.engine} serves {server.model}; Ctrl-C stops it")
    click.echo(f"  URL  {server.base_url}")
    if sys.stdout.isatty():  # a log may be read by others
        click.echo(f"  key  {server.api_key}")
        click.echo(f"  any OpenAI client: OPENAI_BASE_URL={server.base_url} OPENAI_API_KEY={server.api_key}")
    else:
        click.echo("  key  shown on a terminal only")
    click.echo(f'  agentkit run -m {server.model} "…"')


def _say(text: str) -> None:
    click.echo(text, err=True)
