"""MCP's shapes to ours: listings, tool names, schemas, results. Nothing here does I/O or imports the SDK."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import mimetypes
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agentkit.messages import Artifact
from agentkit.tools import ToolOutput

if TYPE_CHECKING:
    from mcp import types

__all__ = ["clean_schema", "mend_listing", "output", "tool_names"]

NAME_LENGTH = 64  # what model APIs allow, of [a-zA-Z0-9_-]
RESULT_CHARS = 100_000  # of a result's text; more is cut from its middle


def mend_listing(tools: Sequence[Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """A server's raw tool list reduced to what we use and made valid, and a sentence for each tool dropped.

    The SDK refuses a whole listing, and then every call, for one tool that is off the schema. Output
    schemas are left out: we promise nothing about them, and the SDK turns a result that strays from one
    into an error.
    """
    mended = []
    problems = []
    for raw in tools:
        if not isinstance(raw, dict) or not isinstance(raw.get("name"), str) or not raw["name"]:
            problems.append("a tool without a name was left out")
            continue
        schema = raw.get("inputSchema")
        tool: dict[str, Any] = {
            "name": raw["name"],
            "inputSchema": {**(schema if isinstance(schema, dict) else {}), "type": "object"},
        }
        if isinstance(raw.get("description"), str):
            tool["description"] = raw["description"]
        if isinstance(raw.get("annotations"), dict):
            hints = ("readOnlyHint", "idempotentHint")
            tool["annotations"] = {k: v for k in hints if isinstance(v := raw["annotations"].get(k), bool)}
        mended.append(tool)
    return mended, problems


def tool_names(tools: Sequence[tuple[str, str]]) -> list[str]:
    """A name for each (server, tool) that a model API accepts; no two are equal.

    A tool keeps its name where no other server's tool has it; else it is `server__tool`.
    """
    bare = [_safe(tool) for _, tool in tools]
    count = Counter(bare)
    names: list[str] = []
    for (server, _), name in zip(tools, bare, strict=True):
        if count[name] > 1:
            name = _safe(f"{_safe(server)}__{name}")
        first, number = name, 2
        while name in names or (name != first and name in count):
            name = _safe(f"{first[: NAME_LENGTH - 6]}_{number}")
            number += 1
        names.append(name)
    return names


def _safe(name: str) -> str:
    safe = re.sub(r"[^a-zA-Z0-9_-]+", "_", name)
    if safe != name or not safe:
        safe = safe.strip("_") or "tool"
    if len(safe) > NAME_LENGTH:
        safe = f"{safe[: NAME_LENGTH - 9]}_{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"
    return safe


# the values of these are schemas by name, or plain values: a "title" in them is not the keyword
SCHEMAS_BY_NAME = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
VALUES = {"default", "const", "enum", "examples"}


def clean_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's input schema as model APIs take it: an object with properties, without `$schema` and
    titles."""
    cleaned: dict[str, Any] = {"type": "object", "properties": {}} | _without_titles(schema)
    cleaned["type"] = "object"
    if not isinstance(cleaned["properties"], dict):
        cleaned["properties"] = {}
    cleaned.pop("$schema", None)
    return cleaned


def _without_titles(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_titles(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    result = {}
    for key, value in node.items():
        if key == "title" and isinstance(value, str):
            continue
        if key in SCHEMAS_BY_NAME and isinstance(value, Mapping):
            result[key] = {name: _without_titles(inner) for name, inner in value.items()}
        else:
            result[key] = value if key in VALUES else _without_titles(value)
    return result


def output(tool: str, result: types.CallToolResult) -> ToolOutput:
    """What the model reads of a result, and what the user gets of it as files.

    Structured content is used where there is no text: servers send both, with the same in them.
    """
    texts: list[str] = []
    mentions: list[str] = []
    artifacts: list[Artifact] = []

    def keep(data: str, mime: str | None, name: str | None = None) -> None:
        mime = mime or "application/octet-stream"
        name = name or f"{tool}-{len(artifacts) + 1}{mimetypes.guess_extension(mime) or '.bin'}"
        try:
            content = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            mentions.append(f"[{name}: {mime} that could not be decoded]")
            return
        artifacts.append(Artifact(name, mime, content, size=len(content)))
        mentions.append(f"[{name}: {mime}, {len(content)} bytes, given to the user]")

    for block in result.content:
        match block.type:
            case "text":
                texts.append(block.text)
            case "image" | "audio":
                keep(block.data, block.mime_type)
            case "resource_link":
                mentions.append(f"[resource {block.name}: {block.uri}]")
            case "resource":
                if hasattr(block.resource, "text"):
                    texts.append(block.resource.text)
                else:
                    keep(block.resource.blob, block.resource.mime_type, block.resource.uri.rpartition("/")[2])

    if not any(texts) and result.structured_content is not None:
        texts = [json.dumps(result.structured_content, ensure_ascii=False)]
    text = "\n".join(part for part in [*texts, *mentions] if part) or "(no output)"
    return ToolOutput(_cut(text), is_error=result.is_error, artifacts=tuple(artifacts))


def _cut(text: str) -> str:
    if len(text) <= RESULT_CHARS:
        return text
    head, tail = RESULT_CHARS * 7 // 10, RESULT_CHARS * 3 // 10
    left_out = len(text) - head - tail
    return f"{text[:head]}\n[… {left_out:,} of {len(text):,} characters left out …]\n{text[-tail:]}"
