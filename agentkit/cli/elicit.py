"""What the user is asked on the terminal: by MCP servers, by tools, and whether a call may be made."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import anyio
import click

from agentkit.cli.show import Show
from agentkit.mcp.host import Asked, Host, Question, wrong
from agentkit.mcp.pins import ask_on_terminal
from agentkit.permissions import Answer
from agentkit.permissions import Asked as AskedCall

__all__ = ["Form", "line_asker", "read_value", "terminal_form", "terminal_host"]

# Asks for one line. EOFError: the user declines (Ctrl-D); KeyboardInterrupt: the user breaks off (Ctrl-C).
AskLine: TypeAlias = Callable[[str], Awaitable[str]]
SHOWN = 1_000  # characters of what a server wants to tell the model


def terminal_form(show: Show) -> Form | None:
    """Who asks the user; None where there is no terminal, and so nobody to be asked."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return Form(line_asker(), lambda: show.__exit__(None, None, None))


def terminal_host(form: Form | None) -> Host:
    """What a program on a terminal offers to servers."""
    if form is None:
        return Host()
    return Host(elicit=form.elicit, approve=form.approve, approve_tools=ask_on_terminal)


def line_asker() -> AskLine:
    """Asks on stderr, for stdout may be going somewhere else."""

    async def ask(prompt: str) -> str:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output import create_output

        session: PromptSession[str] = PromptSession(output=create_output(sys.stderr))
        return await session.prompt_async(prompt)

    return ask


@dataclass
class Form:
    """Asks line by line, one question at a time; `before` makes room for it on the screen."""

    ask: AskLine
    before: Callable[[], None] = lambda: None
    say: Callable[[str], None] = lambda text: click.echo(text, err=True)
    _one: anyio.Lock = field(default_factory=anyio.Lock)
    _always: set[str] = field(default_factory=set)  # servers that need not ask again

    async def elicit(self, question: Question) -> Mapping[str, Any] | Literal["decline", "cancel"]:
        """A `Host.elicit`."""
        async with self._one:
            self.before()
            self.say(f"? MCP server {question.server!r} asks: {_plain(question.message)}")
            try:
                if question.url:
                    return await self._visit(question.url)
                self.say("  (Enter takes what is in brackets, Ctrl-D declines, Ctrl-C breaks off)")
                return await self._fill(question.schema)
            except EOFError:
                return "decline"
            except KeyboardInterrupt:
                return "cancel"

    async def approve(self, asked: Asked) -> bool:
        """A `Host.approve`."""
        async with self._one:
            if asked.server in self._always:
                return True
            self.before()
            settings = asked.request.settings
            self.say(f"? MCP server {asked.server!r} wants the model to answer this:")
            for message in asked.request.messages:
                text = _plain(message.text or "\n".join(result.content for result in message.results))
                cut = text if len(text) <= SHOWN else f"{text[:SHOWN]} … ({len(text):,} characters)"
                self.say("\n".join(f"  {message.role}: {line}" for line in cut.splitlines() or [""]))
            liked = f"; it would like {_plain(', '.join(asked.models))}" if asked.models else ""
            self.say(f"  (up to {settings.max_tokens:,} tokens{liked})")
            try:
                reply = (await self._ask_one("Allow it? [y]es, [n]o, [a]lways", ("y", "n", "a"), "n"))[0]
            except (EOFError, KeyboardInterrupt):
                return False
            if reply == "a":
                self._always.add(asked.server)
            return reply != "n"

    async def permit(self, asked: AskedCall) -> Answer:
        """A `Permissions.approve`."""
        async with self._one:
            self.before()
            tool = f"{asked.tool.source}:{asked.tool.name}" if asked.tool.source else asked.tool.name
            self.say(f"? The model wants to call {_plain(tool)}{_why(asked)}:")
            for name, value in asked.arguments.items():
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                self.say("\n".join(f"  {line}" for line in _ends(f"{name} = {_plain(text)}").splitlines()))
            try:
                reply = await self._ask_one(
                    f"Allow it? [y]es, [a]lways ({asked.always}), [n]o, ne[v]er", ("y", "a", "n", "v"), "n"
                )
            except (EOFError, KeyboardInterrupt):
                return "no"
            answers: dict[str, Answer] = {"y": "once", "a": "always", "n": "no", "v": "never"}
            return answers["v" if reply.startswith("never") else reply[0]]

    async def answer(self, question: str, choices: Sequence[str]) -> str | None:
        """An `Agent`'s `ask_user`; a number stands for that choice."""
        async with self._one:
            self.before()
            self.say(f"? {_plain(question)}")
            for number, choice in enumerate(choices, 1):
                self.say(f"    {number}. {_plain(choice)}")
            try:
                reply = (await self.ask("  answer: ")).strip()
            except (EOFError, KeyboardInterrupt):
                return None
            if reply.isdecimal() and 1 <= int(reply) <= len(choices):
                return choices[int(reply) - 1]
            return reply or None

    async def _visit(self, url: str) -> Mapping[str, Any] | Literal["decline"]:
        """Shown and not opened: it is for the user to look at the address first."""
        self.say(f"  Open this page yourself, if you trust it: {_plain(url)}")
        reply = await self._ask_one("Have you? [y]es, [n]o", ("y", "n"), "n")
        return {} if reply[0] == "y" else "decline"

    async def _ask_one(self, prompt: str, letters: Sequence[str], default: str) -> str:
        while True:
            reply = (await self.ask(f"{prompt} [{default}]: ")).strip().lower() or default
            if reply[0] in letters:
                return reply

    async def _fill(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        properties = schema.get("properties")
        required = schema.get("required") or ()
        values: dict[str, Any] = {}
        for name, about in (properties if isinstance(properties, Mapping) else {}).items():
            value = await self.ask_field(name, about if isinstance(about, Mapping) else {}, name in required)
            if value is not None:
                values[name] = value
        if not properties and (await self._ask_one("Agree? [y]es, [n]o", ("y", "n"), "n"))[0] == "n":
            raise EOFError  # as Ctrl-D does
        return values

    async def ask_field(self, name: str, about: Mapping[str, Any], required: bool) -> Any:
        """A valid value for one field, asked for until there is one; None where an optional one is left out."""
        choices = _choices(about)
        self.say(
            "  "
            + " - ".join(
                part
                for part in (
                    _plain(str(about.get("title") or name)),
                    _plain(str(about.get("description") or "")),
                )
                if part
            )
        )
        for number, (value, title) in enumerate(choices, 1):
            self.say(f"    {number}. {_plain(title)}" + (f" ({_plain(value)})" if title != value else ""))
        default = about.get("default")
        hint = _hint(about, bool(choices))
        if "default" in about:
            hint += f" [{_plain(_shown(default))}]"
        elif not required:
            hint += " [leave out]"
        while True:
            line = (await self.ask(f"  {name}{f' ({hint.strip()})' if hint.strip() else ''}: ")).strip()
            if not line and "default" in about:
                return default
            if not line and not required:
                return None
            if not line and about.get("type") != "string":
                continue
            try:
                return read_value(line, about)
            except ValueError as exc:
                self.say(f"  {exc}")


def _why(asked: AskedCall) -> str:
    does = ", ".join(sorted(asked.tool.effects or ()))
    return f" ({does})" if does else ""


def _ends(text: str) -> str:
    """All of it, or its beginning and end: what matters must not be hidden behind much that does not."""
    if len(text) <= SHOWN:
        return text
    half = SHOWN // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters …\n{text[-half:]}"


def read_value(line: str, about: Mapping[str, Any]) -> Any:
    """What a typed line means for a field of this schema. Raises ValueError, saying why it is nothing."""
    kind = about.get("type")
    value: Any = line
    if choices := _choices(about):
        picked = [_pick(part.strip(), choices) for part in (line.split(",") if kind == "array" else [line])]
        value = picked if kind == "array" else picked[0]
    elif kind == "array":
        value = [part.strip() for part in line.split(",") if part.strip()]
    elif kind == "boolean":
        words = {
            "y": True,
            "yes": True,
            "true": True,
            "1": True,
            "n": False,
            "no": False,
            "false": False,
            "0": False,
        }
        if line.lower() not in words:
            raise ValueError("Answer yes or no.")
        value = words[line.lower()]
    elif kind in ("integer", "number"):
        try:
            value = int(line) if kind == "integer" else float(line)
        except ValueError:
            raise ValueError(
                f"That is not {'a whole number' if kind == 'integer' else 'a number'}."
            ) from None
    if problem := wrong(value, about):
        raise ValueError(f"That does not fit: {problem}.")
    return value


def _choices(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The values that a field can have, each with what to call it. Both ways to write them, single and multiple."""
    items = about.get("items")
    source = items if about.get("type") == "array" and isinstance(items, Mapping) else about
    for key in ("oneOf", "anyOf"):
        options = source.get(key)
        if isinstance(options, list) and all(isinstance(o, Mapping) and "const" in o for o in options):
            return [(str(o["const"]), str(o.get("title") or o["const"])) for o in options]
    values = source.get("enum")
    if not isinstance(values, list):
        return []
    titles = source.get("enumNames")
    named = titles if isinstance(titles, list) and len(titles) == len(values) else values
    return [(str(value), str(title)) for value, title in zip(values, named, strict=True)]


def _pick(text: str, choices: Sequence[tuple[str, str]]) -> str:
    for value, title in choices:
        if text.lower() in (value.lower(), title.lower()):
            return value
    if text.isdecimal() and 1 <= int(text) <= len(choices):
        return choices[int(text) - 1][0]
    raise ValueError(f"{text!r} is none of the choices; give a number from 1 to {len(choices)}.")


def _hint(about: Mapping[str, Any], has_choices: bool) -> str:
    kind = about.get("type")
    if kind == "array":
        return "several, with commas"
    if has_choices:
        return "number"
    if kind == "boolean":
        return "yes/no"
    words = {"integer": "whole number", "number": "number"}
    return words.get(str(kind), "") or str(about.get("format") or "")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)


def _plain(text: str) -> str:
    """Without what would move the cursor or colour the screen: the text is a server's."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)
