"""`agentkit chat`: a conversation on the terminal. Ctrl-C stops the turn, Ctrl-D ends the program."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import anyio.to_thread
import click

from agentkit.cli.show import Show, tool_table
from agentkit.errors import AgentkitError
from agentkit.messages import Message, user

__all__ = ["converse"]

ReadLine: TypeAlias = Callable[..., Awaitable[str | None]]  # may be given what to show before the line

HELP = """/prompt             list the prompts of the MCP servers; /prompt NAME key=value … sends one
/resource           list their resources; /resource URI reads one into the conversation
/think, /no_think   Qwen3's thinking mode on or off
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
                case "/prompt" | "/resource" as which:
                    click.echo(await _offered(agent.mcp_servers, which), err=True)
                case text if text.startswith("/prompt "):
                    if messages := await _prompt(agent.mcp_servers, text.split(maxsplit=1)[1], read):
                        history = await _turn(agent, [*history, *messages], show) or history
                case text if text.startswith("/resource "):
                    history += await _resource(agent.mcp_servers, text.split(maxsplit=1)[1])
                case unknown if unknown.startswith("/") and " " not in unknown:
                    click.echo(f"There is no command {unknown}; /help lists them.", err=True)
                case text:
                    history = await _turn(agent, [*history, user(text)], show) or history


async def _offered(servers: Sequence[Any], which: str) -> str:
    """A line for each prompt or resource that the servers have."""
    from agentkit.mcp.prompts import list_prompts
    from agentkit.mcp.resources import list_resources

    lines: list[str] = []
    if which == "/prompt":
        prompts, problems = await list_prompts(servers)
        for p in prompts:
            takes = "".join(f" {a.name}=…" if a.required else f" [{a.name}=…]" for a in p.arguments)
            lines.append(f"{p.server}:{p.name}{takes}" + (f"   {p.description}" if p.description else ""))
    else:
        resources, problems = await list_resources(servers)
        lines = [f"{r.server}:{r.uri}   {r.description or r.name}".rstrip() for r in resources]
    return "\n".join([*lines, *(f"! {problem}" for problem in problems)]) or "No MCP server has any."


async def _prompt(servers: Sequence[Any], line: str, read: ReadLine) -> list[Message]:
    """The messages of a server's prompt; what it needs and the line does not say is asked for."""
    from agentkit.mcp.prompts import complete, find_prompt, get_prompt, list_prompts

    try:
        name, *words = shlex.split(line)
        given = dict(word.split("=", 1) for word in words if "=" in word)
        if bare := [word for word in words if "=" not in word]:
            raise AgentkitError(f"{bare[0]!r} is not key=value.")
        prompt = find_prompt((await list_prompts(servers))[0], name)
        if extra := given.keys() - {a.name for a in prompt.arguments}:
            known = ", ".join(a.name for a in prompt.arguments) or "none"
            raise AgentkitError(
                f"The prompt {prompt.name!r} has no {', '.join(sorted(extra))}; it takes: {known}."
            )
        for a in prompt.arguments:
            if a.required and a.name not in given:
                if suggested := await complete(servers, prompt, a.name, "", given):
                    click.echo(f"  such as: {', '.join(suggested[:10])}", err=True)
                value = await read(f"{a.name}{f' ({a.description})' if a.description else ''}: ")
                if value is None:
                    return []
                given[a.name] = value.strip()
        return list(await get_prompt(servers, prompt, given))
    except (AgentkitError, ValueError) as exc:  # ValueError: a quotation mark that is not closed
        click.echo(f"agentkit: {exc}", err=True)
        return []


async def _resource(servers: Sequence[Any], uri: str) -> list[Message]:
    from agentkit.mcp.resources import read_as_messages

    try:
        messages = await read_as_messages(servers, [uri])
    except AgentkitError as exc:
        click.echo(f"agentkit: {exc}", err=True)
        return []
    click.echo(f"{sum(len(m.text) for m in messages):,} characters are in the conversation now.", err=True)
    return messages


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


def _reader() -> ReadLine:
    """Reads the next line: with editing and history on a terminal, plainly from a pipe. None at the end."""
    if not sys.stdin.isatty():

        async def plain(prompt: str = "") -> str | None:
            return await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True) or None

        return plain

    from platformdirs import user_state_path
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory

    path: Path = user_state_path("agentkit", ensure_exists=True) / "chat_history"
    os.close(os.open(path, os.O_CREAT | os.O_APPEND, 0o600))  # it holds what people say: theirs alone
    session: PromptSession[str] = PromptSession(history=FileHistory(str(path)))

    async def edited(prompt: str = "> ") -> str | None:
        while True:
            try:
                return await session.prompt_async(prompt)
            except KeyboardInterrupt:
                continue
            except EOFError:
                return None

    return edited
