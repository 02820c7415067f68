"""`agentkit chat`: a conversation on the terminal. Ctrl-C stops the turn, Ctrl-D ends the program."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import click

from agentkit.cli.show import Show, tool_table
from agentkit.errors import AgentkitError
from agentkit.messages import Message, user

__all__ = ["converse"]

HELP = """/think, /no_think   Qwen3's thinking mode on or off
/tools              list the tools
/context            how many tokens the conversation takes
/reset              forget the conversation
/exit               end (or Ctrl-D); Ctrl-C stops the model's turn"""


async def converse(agent: Any, show: Show) -> None:
    history: list[Message] = []
    async with agent:
        read = _reader()
        while (line := await read()) is not None:
            match line.strip():
                case "":
                    pass
                case "/exit" | "/quit":
                    return
                case "/help":
                    click.echo(HELP, err=True)
                case "/reset":
                    history = []
                    click.echo("The conversation is forgotten.", err=True)
                case "/tools":
                    tool_table(agent.open_tools)
                case "/context":
                    click.echo(await _context(agent, history), err=True)
                case "/think" | "/no_think" as switch:
                    agent.settings = replace(agent.settings, thinking=switch == "/think")
                    click.echo(f"Thinking is {'on' if switch == '/think' else 'off'}.", err=True)
                case unknown if unknown.startswith("/") and " " not in unknown:
                    click.echo(f"There is no command {unknown}; /help lists them.", err=True)
                case text:
                    history = await _turn(agent, [*history, user(text)], show) or history


async def _context(agent: Any, history: list[Message]) -> str:
    try:
        use = await agent.context_use(history or [user("")])
    except AgentkitError as exc:
        return f"agentkit: {exc}"
    if use is None:
        return "This server does not count tokens."
    of = f" of {use.limit:,}" if use.limit else ""
    return f"{use.prompt:,}{of} tokens, {use.tools:,} of them for the tools."


async def _turn(agent: Any, conversation: list[Message], show: Show) -> list[Message] | None:
    """One answer; the conversation with it, or None when it was stopped or failed."""
    try:
        with anyio.CancelScope() as scope, _interrupt(scope.cancel):
            async with agent.stream(conversation) as running:
                async for event in running:
                    show.event(event)
            result = running.result
            if not show.printed(result.output):
                click.echo(result.output)
            if result.stopped != "answer":
                click.echo(f"(stopped: {result.stopped})", err=True)
            click.echo()
            return list(result.messages)
        click.echo("\n(stopped)", err=True)
    except AgentkitError as exc:
        click.echo(f"agentkit: {exc}", err=True)
    finally:
        show.__exit__(None, None, None)
    return None


@contextmanager
def _interrupt(then: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C calls *then* instead of ending the program."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, then)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _reader() -> Callable[[], Awaitable[str | None]]:
    """Reads the next line: with editing and history on a terminal, plainly from a pipe. None at the end."""
    if not sys.stdin.isatty():

        async def plain() -> str | None:
            return await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True) or None

        return plain

    from platformdirs import user_state_path
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory

    path: Path = user_state_path("agentkit", ensure_exists=True) / "chat_history"
    os.close(os.open(path, os.O_CREAT | os.O_APPEND, 0o600))  # it holds what people say: theirs alone
    session: PromptSession[str] = PromptSession(history=FileHistory(str(path)))

    async def edited() -> str | None:
        while True:
            try:
                return await session.prompt_async("> ")
            except KeyboardInterrupt:
                continue
            except EOFError:
                return None

    return edited
