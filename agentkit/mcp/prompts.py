"""Prompts that servers offer: list them, fill one in, get it as messages of a conversation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentkit.errors import AgentkitError, MCPServerError, ToolError
from agentkit.mcp.translate import clean
from agentkit.messages import Message, Text

if TYPE_CHECKING:
    from mcp import Client, types

    from agentkit.mcp.connection import Connection

__all__ = [
    "Prompt",
    "PromptArgument",
    "as_text",
    "complete",
    "find_prompt",
    "get_prompt",
    "list_prompts",
    "resource_text",
]

PAGES = 100  # of a listing; a server that has more is going in circles


@dataclass(frozen=True, slots=True)
class PromptArgument:
    name: str
    description: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of a server, to be filled in with its arguments."""

    server: str
    name: str
    description: str = ""
    arguments: tuple[PromptArgument, ...] = ()


async def list_prompts(servers: Sequence[Connection]) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """The prompts of all servers, in their order, and a sentence for each server that failed to list its own."""
    found: list[Prompt] = []
    problems: list[str] = []
    for server in servers:
        try:
            listed = await server.with_client(_list, "prompts/list")
        except (MCPServerError, ToolError) as exc:
            problems.append(f"{server.spec.name}: {exc}")
            continue
        for p in listed:
            arguments = tuple(
                PromptArgument(a.name, a.description or "", bool(a.required)) for a in p.arguments or ()
            )
            found.append(Prompt(server.spec.name, p.name, p.description or p.title or "", arguments))
    return tuple(found), tuple(problems)


async def _list(client: Client) -> list[types.Prompt]:
    if not client.server_capabilities.prompts:
        return []
    return await pages(lambda cursor: client.list_prompts(cursor=cursor), "prompts")


async def pages(list_page: Callable[[str | None], Awaitable[Any]], key: str) -> list[Any]:
    """All pages of a listing together."""
    found: list[Any] = []
    cursor: str | None = None
    for _ in range(PAGES):
        page = await list_page(cursor)
        found += getattr(page, key)
        if page.next_cursor is None or page.next_cursor == cursor:
            break
        cursor = page.next_cursor
    return found


def find_prompt(prompts: Sequence[Prompt], name: str) -> Prompt:
    """The prompt called NAME or SERVER:NAME. Raises `AgentkitError` for none, or for more than one."""
    matches = [p for p in prompts if name in (p.name, f"{p.server}:{p.name}")]
    if len(matches) == 1:
        return matches[0]
    if matches:
        choices = ", ".join(f"{p.server}:{p.name}" for p in matches)
        raise AgentkitError(f"More than one server has a prompt {name!r}; say which: {choices}.")
    known = ", ".join(f"{p.server}:{p.name}" for p in prompts) or "none"
    raise AgentkitError(f"There is no prompt {name!r}; there are: {known}.")


async def get_prompt(
    servers: Sequence[Connection], prompt: Prompt, arguments: Mapping[str, str] | None = None
) -> tuple[Message, ...]:
    """*prompt*, filled in, as the messages of a conversation.

    Raises `AgentkitError` where an argument is missing or the server refuses, `MCPServerError` where it is lost.
    """
    given = dict(arguments or {})
    missing = [a.name for a in prompt.arguments if a.required and a.name not in given]
    if missing:
        raise AgentkitError(f"The prompt {prompt.name!r} also needs: {', '.join(missing)}.")
    server = _of(servers, prompt.server)
    try:
        result = await server.with_client(lambda c: c.get_prompt(prompt.name, given), "prompts/get")
    except ToolError as exc:
        raise AgentkitError(
            f"MCP server {prompt.server!r} refused the prompt {prompt.name!r}: {exc}"
        ) from exc
    return tuple(Message(m.role, (Text(as_text(m.content)),)) for m in result.messages)


async def complete(
    servers: Sequence[Connection],
    prompt: Prompt,
    argument: str,
    value: str,
    given: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """What the server suggests for an argument that begins with *value*; nothing where it does not complete."""
    from mcp import types

    async def ask(client: Client) -> tuple[str, ...]:
        if not client.server_capabilities.completions:
            return ()
        ref = types.PromptReference(name=prompt.name)
        result = await client.complete(ref, {"name": argument, "value": value}, dict(given or {}) or None)
        return tuple(result.completion.values)

    try:
        return await _of(servers, prompt.server).with_client(ask, "completion/complete")
    except ToolError:
        return ()


def _of(servers: Sequence[Connection], name: str) -> Connection:
    for server in servers:
        if server.spec.name == name:
            return server
    raise AgentkitError(f"MCP server {name!r} is not open.")


def as_text(block: types.ContentBlock) -> str:
    """What a model that reads only text is shown of a piece of content."""
    match block.type:
        case "text":
            return clean(block.text)
        case "resource":
            return resource_text(block.resource)
        case "resource_link":
            return clean(f"[resource {block.name}: {block.uri}]")
        case _:
            return clean(f"[{block.type}, {block.mime_type}: cannot be shown as text]")


def resource_text(resource: types.TextResourceContents | types.BlobResourceContents) -> str:
    """A resource's text, marked off from what the user says."""
    uri = clean(resource.uri).replace('"', "%22")
    if not hasattr(resource, "text"):
        return f"[resource {uri}: {clean(resource.mime_type or 'binary')}, cannot be shown as text]"
    text = clean(resource.text).replace("</resource>", "‹/resource>")
    return f'<resource uri="{uri}">\n{text}\n</resource>'
