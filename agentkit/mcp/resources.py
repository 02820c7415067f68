"""Resources of servers: as two tools for the model, and as messages that put them before a conversation."""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from agentkit.errors import AgentkitError, MCPServerError, ToolError
from agentkit.mcp.prompts import pages, resource_text
from agentkit.mcp.translate import clean, output
from agentkit.messages import Message, user
from agentkit.tools import Tool, ToolOutput

if TYPE_CHECKING:
    from mcp import Client, types

    from agentkit.mcp.connection import Connection
    from agentkit.mcp.screen import Filter

__all__ = [
    "Resource",
    "has_resources",
    "list_resources",
    "read_as_messages",
    "read_resource",
    "resource_tools",
]

PAGE = 50  # resources on a page that the model is shown
CHARS = 16_000  # of a resource's text at once
DESCRIPTION = 200  # characters of a description in a listing


@dataclass(frozen=True, slots=True)
class Resource:
    """Something a server lets us read. The URI of a template has {gaps}, named by `arguments`."""

    server: str
    uri: str
    name: str = ""
    description: str = ""
    mime: str = ""
    size: int | None = None  # bytes
    arguments: tuple[str, ...] = ()


async def has_resources(client: Client) -> bool:
    """Whether the server has any; that it announces them says little, for some SDKs always do."""
    if not client.server_capabilities.resources:
        return False
    return bool((await client.list_resources()).resources or (await _templates(client, first=True)))


async def list_resources(
    servers: Sequence[Connection],
) -> tuple[tuple[Resource, ...], tuple[str, ...]]:
    """The resources and templates of all servers, and a sentence for each server that failed to list its own."""
    found: list[Resource] = []
    problems: list[str] = []
    for server in servers:
        try:
            found += await _listed(server)
        except (MCPServerError, ToolError) as exc:
            problems.append(f"{server.spec.name}: {exc}")
    return tuple(found), tuple(problems)


async def _listed(server: Connection) -> list[Resource]:
    name = server.spec.name

    async def ask(client: Client) -> list[Resource]:
        if not client.server_capabilities.resources:
            return []
        plain = await pages(lambda cursor: client.list_resources(cursor=cursor), "resources")
        found = [
            Resource(name, r.uri, r.name, r.description or r.title or "", r.mime_type or "", r.size)
            for r in plain
        ]
        for t in await _templates(client):
            gaps = tuple(_gaps(t.uri_template))
            about = t.description or t.title or ""
            found.append(Resource(name, t.uri_template, t.name, about, t.mime_type or "", None, gaps))
        return found

    return await server.with_client(ask, "resources/list")


async def _templates(client: Client, *, first: bool = False) -> list[types.ResourceTemplate]:
    from mcp import MCPError, types

    try:
        if first:
            return (await client.list_resource_templates()).resource_templates
        return await pages(lambda c: client.list_resource_templates(cursor=c), "resource_templates")
    except MCPError as exc:
        if exc.code == types.METHOD_NOT_FOUND:  # resources without templates
            return []
        raise


def _gaps(template: str) -> list[str]:
    from mcp.shared.uri_template import InvalidUriTemplate, UriTemplate

    try:
        return UriTemplate.parse(template).variable_names
    except InvalidUriTemplate:
        return re.findall(r"\w+", " ".join(re.findall(r"\{([^}]*)\}", template)))


async def read_resource(
    servers: Sequence[Connection], uri: str, arguments: Mapping[str, Any] | None = None
) -> list[types.TextResourceContents | types.BlobResourceContents]:
    """What the resource at *uri* holds: read from the server named before it ("docs:file:///a.md"), else from the one
    that lists it, else from the first one that knows it. The gaps of a template are filled from *arguments*.

    Raises `ToolError` where no server can read it, `MCPServerError` where the only one that could is lost.
    """
    return (await _read(servers, uri, arguments or {}))[1]


async def _read(
    servers: Sequence[Connection], uri: str, arguments: Mapping[str, Any]
) -> tuple[str, list[types.TextResourceContents | types.BlobResourceContents]]:
    """The server that had it, and what it holds."""
    asked, uri = _choose(servers, uri)
    uri = _fill(uri, arguments)
    if len(asked) > 1:
        listed, _ = await list_resources(asked)
        owners = [r.server for r in listed if r.uri == uri] or [r.server for r in listed if _fits(r, uri)]
        asked = sorted(asked, key=lambda server: server.spec.name not in owners)  # stable
    problem: Exception = ToolError(f"No server has resources; {uri} cannot be read.")
    first = True
    for server in asked:
        try:
            result = await server.with_client(lambda c: c.read_resource(uri), f"resource {uri}")
            return server.spec.name, result.contents
        except (MCPServerError, ToolError) as exc:
            if first:  # the likeliest owner's reason
                problem, first = exc, False
    raise problem


def _choose(servers: Sequence[Connection], uri: str) -> tuple[list[Connection], str]:
    """The servers to ask, and the URI without the name of a server before it."""
    for server in servers:
        rest = uri.removeprefix(f"{server.spec.name}:")
        if rest != uri and re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", rest):
            return [server], rest
    return list(servers), uri


def _fill(uri: str, arguments: Mapping[str, Any]) -> str:
    if "{" not in uri:
        return uri
    from mcp.shared.uri_template import InvalidUriTemplate, UriTemplate

    try:
        template = UriTemplate.parse(uri)
    except InvalidUriTemplate as exc:
        raise ToolError(f"{uri} is not a template that can be filled in: {exc}; give the whole URI.") from exc
    optional = template.query_variable_names
    if missing := [n for n in template.variable_names if n not in arguments and n not in optional]:
        raise ToolError(f"{uri} needs arguments: {', '.join(missing)}.")
    values = {
        n: [str(item) for item in v] if isinstance(v, list) else str(v)
        for n, v in arguments.items()
        if v is not None
    }
    return template.expand(values)


def _fits(resource: Resource, uri: str) -> bool:
    if not resource.arguments:
        return False
    from mcp.shared.uri_template import InvalidUriTemplate, UriTemplate

    try:
        return UriTemplate.parse(resource.uri).match(uri) is not None
    except InvalidUriTemplate:
        return False


async def read_as_messages(servers: Sequence[Connection], uris: Sequence[str]) -> list[Message]:
    """Resources as a user's messages, to be put before a task: "file:///a.md", or "docs:file:///a.md" of the server docs.

    Raises `AgentkitError` for one that cannot be read.
    """
    messages: list[Message] = []
    for uri in uris:
        try:
            contents = await read_resource(servers, uri)
        except ToolError as exc:
            raise AgentkitError(f"The resource {uri} cannot be read: {exc}") from exc
        messages += [user(resource_text(_as_text(content))) for content in contents]
    return messages


# ------------------------------------------------------------------ as tools


def resource_tools(servers: Sequence[Connection], see: Filter | None = None) -> list[Tool]:
    """`list_resources` and `read_resource` over *servers*, which should be those that have resources; [] for none.

    `see` is given (server, tool, text) of what the model is about to read, as `Safety.filter` is.
    """
    if not servers:
        return []

    async def list_(arguments: Mapping[str, Any]) -> ToolOutput:
        only = str(arguments.get("server") or "")
        chosen = [s for s in servers if only in ("", s.spec.name)]
        if not chosen:
            raise ToolError(f"No server is named {only!r}; there are: {_names(servers)}.")
        page = max(1, _whole(arguments, "page", 1))
        found, problems = await list_resources(chosen)
        shown = found[(page - 1) * PAGE : page * PAGE]
        seen = [(see or _all)(r.server, "list_resources", _line(r, len(servers) > 1)) for r in shown]
        lines = [line for line in seen if line is not None]
        if len(found) > page * PAGE:
            lines.append(f"[{len(found) - page * PAGE} more: page={page + 1}]")
        lines += [f"[{problem}]" for problem in problems]
        return ToolOutput("\n".join(lines) or "(no resources)")

    async def read(arguments: Mapping[str, Any]) -> ToolOutput:
        uri = str(arguments.get("uri") or "")
        if not uri:
            raise ToolError("uri is missing; list_resources says which there are.")
        given = arguments.get("arguments")
        offset = max(0, _whole(arguments, "offset", 0))
        try:
            server, contents = await _read(servers, uri, given if isinstance(given, Mapping) else {})
        except MCPServerError as exc:
            raise ToolError(str(exc)) from exc
        piece = _output(contents, offset)
        text = (see or _all)(server, "read_resource", piece.content)
        if text is None:
            raise ToolError("The resource was withheld by the user's filter.")
        return replace(piece, content=text)

    where = f" of: {_names(servers)}" if len(servers) > 1 else ""
    return [
        Tool(
            "list_resources",
            f"List the documents and data that can be read with read_resource{where}.",
            {
                "type": "object",
                "properties": {
                    "server": {"type": "string", "description": "Only those of this server."},
                    "page": {"type": "integer", "description": "Which page of a long list; the first is 1."},
                },
            },
            list_,
            effects=frozenset({"reads"}),
            source="resources",
        ),
        Tool(
            "read_resource",
            "Read a document or data by its URI, as list_resources gives it.",
            {
                "type": "object",
                "properties": {
                    "uri": {"type": "string", "description": "The URI, whole or with {gaps}."},
                    "arguments": {"type": "object", "description": "Values for the {gaps} of the URI."},
                    "offset": {
                        "type": "integer",
                        "description": "Where to read on in a long text, in characters.",
                    },
                },
                "required": ["uri"],
            },
            read,
            effects=frozenset({"reads"}),
            source="resources",
        ),
    ]


def _all(server: str, tool: str, text: str) -> str | None:
    return text


def _names(servers: Sequence[Connection]) -> str:
    return ", ".join(server.spec.name for server in servers)


def _whole(arguments: Mapping[str, Any], name: str, default: int) -> int:
    try:
        return int(arguments.get(name) or default)
    except (TypeError, ValueError, OverflowError):
        raise ToolError(f"{name} must be a whole number.") from None


def _line(resource: Resource, with_server: bool) -> str:
    about = " ".join(clean(resource.description or resource.name).split())
    about = about if len(about) <= DESCRIPTION else about[: DESCRIPTION - 1] + "…"
    facts = ", ".join(
        fact for fact in (resource.mime, f"{resource.size:,} bytes" if resource.size else "") if fact
    )
    uri = f"{resource.server}:{resource.uri}" if with_server else resource.uri
    return uri + (f" - {about}" if about else "") + (f" ({facts})" if facts else "")


def _output(
    contents: Sequence[types.TextResourceContents | types.BlobResourceContents], offset: int
) -> ToolOutput:
    from mcp import types

    blocks: list[types.ContentBlock] = [types.EmbeddedResource(resource=_as_text(c)) for c in contents]
    whole = output("resource", types.CallToolResult(content=blocks))
    length = len(whole.content)
    if offset and offset >= length:
        raise ToolError(f"It has only {length} characters.")
    shown, left = whole.content[offset : offset + CHARS], length - offset - CHARS
    if left > 0:
        shown += f"\n[{left:,} of {length:,} characters left: offset={offset + CHARS}]"
    return replace(whole, content=shown)


def _as_text(
    content: types.TextResourceContents | types.BlobResourceContents,
) -> types.TextResourceContents | types.BlobResourceContents:
    """What is text and was sent as bytes, as text."""
    from mcp import types

    mime = content.mime_type or ""
    if isinstance(content, types.BlobResourceContents) and (
        mime.startswith("text/") or mime == "application/json"
    ):
        with contextlib.suppress(ValueError):  # binascii.Error and UnicodeDecodeError are ones
            text = base64.b64decode(content.blob, validate=True).decode()
            return types.TextResourceContents(uri=content.uri, mime_type=mime, text=text)
    return content
