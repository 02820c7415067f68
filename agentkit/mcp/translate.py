"""MCP's shapes to ours: listings, tool names, schemas, results. Nothing here does I/O or imports the SDK.

What comes from a server is taken as hostile: what a reader cannot see, and what a chat template would read as
its own, is taken out; a schema is built anew from the parts of it that are valid.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import mimetypes
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from agentkit.messages import Artifact
from agentkit.tools import Effect, ToolOutput

if TYPE_CHECKING:
    from mcp import types

__all__ = ["Definition", "clean", "clean_schema", "define", "mend_listing", "output", "shorten", "tool_names"]

NAME_LENGTH = 64  # what model APIs allow, of [a-zA-Z0-9_-]
DEPTH = 16  # of a schema; what lies deeper may be anything
LONGEST = 20_000  # characters of a description, before it is cut to what it may have
NODES = 2_000  # of a schema, references followed: they can name each other a thousandfold


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
        tool: dict[str, Any] = {"name": raw["name"], "inputSchema": _mend_schema(raw.get("inputSchema"))}
        if isinstance(raw.get("description"), str):
            tool["description"] = raw["description"]
        if isinstance(raw.get("annotations"), dict):
            hints = ("readOnlyHint", "idempotentHint", "destructiveHint", "openWorldHint")
            tool["annotations"] = {k: v for k in hints if isinstance(v := raw["annotations"].get(k), bool)}
        mended.append(tool)
    return mended, problems


def _mend_schema(schema: Any) -> dict[str, Any]:
    """The schema with what the SDK checks of it made right, and the rest as it is."""
    mended = dict(schema) if isinstance(schema, dict) else {}
    mended["type"] = "object"
    if "properties" in mended:
        properties = mended["properties"] if isinstance(mended["properties"], dict) else {}
        mended["properties"] = {n: p for n, p in properties.items() if isinstance(p, dict | bool)}
    if "required" in mended:
        required = mended["required"] if isinstance(mended["required"], list) else []
        mended["required"] = [name for name in required if isinstance(name, str)]
    if not isinstance(mended.get("$schema", ""), str):
        del mended["$schema"]
    return mended


@dataclass(frozen=True, slots=True)
class Definition:
    """A server's tool as a model may be shown it. `name` is the server's own, for calls."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    repeatable: bool = False  # the server says that calling it twice does no more than once
    effects: frozenset[Effect] | None = None  # as the server says


def define(tool: types.Tool) -> Definition:
    """A listed tool, cleaned."""
    hints = tool.annotations
    repeatable = bool(hints and (hints.read_only_hint or hints.idempotent_hint))
    description = _cut(clean(tool.description or "").strip(), LONGEST)
    return Definition(
        tool.name,
        description,
        clean_schema(tool.input_schema),
        repeatable,
        _effects(hints) if hints else None,
    )


def _effects(hints: types.ToolAnnotations) -> frozenset[Effect] | None:
    """What a server claims; a tool that is said to write destroys unless that is denied, as the specification has it."""
    if hints.read_only_hint is None and hints.destructive_hint is None:
        return None
    effects: set[Effect] = {"reads"} if hints.read_only_hint else {"writes"}
    if not hints.read_only_hint and hints.destructive_hint is not False:
        effects.add("destroys")
    if hints.open_world_hint:
        effects.add("network")
    return frozenset(effects)


def shorten(definition: Definition, limit: int) -> Definition:
    """*definition* with each of its descriptions, the arguments' too, cut to *limit* characters."""

    def cut(node: Any, named: bool = False) -> Any:
        if isinstance(node, list):
            return [cut(item) for item in node]
        if not isinstance(node, Mapping):
            return node
        return {
            key: _cut(value, limit)
            if key == "description" and not named
            else value
            if key in _VALUES and not named
            else cut(value, named=key == "properties" and not named)
            for key, value in node.items()
        }

    return Definition(
        definition.name,
        _cut(definition.description, limit),
        cut(definition.parameters),
        definition.repeatable,
    )


def _cut(text: Any, limit: int) -> Any:
    return f"{text[: limit - 2].rstrip()} …" if isinstance(text, str) and len(text) > limit else text


# --- names


def tool_names(
    tools: Sequence[tuple[str, str]], known: Mapping[tuple[str, str], str] | None = None
) -> list[str]:
    """A name for each (server, tool) that a model API accepts; no two are equal.

    A tool keeps its name where no other server's tool has it; else it is `server__tool`. Those in `known`
    have been given their names before, and keep them.
    """
    known = known or {}
    bare = [_safe(tool) for _, tool in tools]
    count = Counter(bare)
    taken = {known[tool] for tool in tools if tool in known}
    left = dict(known)  # each is given once, should one pair be there twice
    names: list[str] = []
    for (server, tool), name in zip(tools, bare, strict=True):
        before = left.pop((server, tool), None)
        if before is not None:
            names.append(before)
            continue
        if count[name] > 1 or name in taken:
            name = _safe(f"{_safe(server)}__{name}")
        first, number = name, 2
        while name in taken or (name != first and name in count):
            name = _safe(f"{first[: NAME_LENGTH - 6]}_{number}")
            number += 1
        taken.add(name)
        names.append(name)
    return names


def _safe(name: str) -> str:
    safe = re.sub(r"[^a-zA-Z0-9_-]+", "_", name)
    if safe != name or not safe:
        safe = safe.strip("_") or "tool"
    if len(safe) > NAME_LENGTH:
        safe = f"{safe[: NAME_LENGTH - 9]}_{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"
    return safe


# --- text

_ESCAPES = re.compile(  # what a terminal would obey: CSI, OSC and its like, and the two-letter ones
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]{0,2000}(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]"
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_UNSEEN = re.compile(
    "[\x80-\x9f\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
# they spell some scripts and emoji: but not beside ASCII, nor several in a row
_JOINERS = re.compile(
    "(?<=[\x00-\x7f])[\u200c\u200d]+|[\u200c\u200d]+(?=[\x00-\x7f]|\\Z)|[\u200c\u200d]{2,}|[\ufe00-\ufe0f]{2,}"
)
# Tags and control tokens of chat templates: a server's tokenizer takes them for its own wherever they stand.
_TOKENS = re.compile(r"<(?=\|[\w-]{1,40}\|>|/?(?:tool_call|tool_response|tools|think)>)")


def clean(text: str) -> str:
    """*text* without what nobody would see (escape sequences, control, zero-width, bidi and tag characters),
    and with the control tokens of chat templates spelled so that they are none: `‹|im_end|>`.
    """
    if "\x1b" in text:
        text = _ESCAPES.sub("", text)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _CONTROL.sub("", text)
    if not text.isascii():
        text = text.replace("\u2028", "\n").replace("\u2029", "\n")
        text = re.sub("[\ud800-\udfff]", "\ufffd", text)
        text = _JOINERS.sub("", _UNSEEN.sub("", text))
    return _TOKENS.sub("‹", text) if "<" in text else text


# --- schemas

_TYPES = ("string", "integer", "number", "boolean", "object", "array", "null")
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
_COUNTS = {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
_VALUES = {"default", "const", "enum", "examples"}
_VALUE_CHARS = 2_000  # of a default or example, as JSON
_BESIDE_REF = {"description", "title", "default", "examples", "deprecated"}  # do not narrow what is meant


def clean_schema(schema: Any) -> dict[str, Any]:
    """A tool's input schema as models and their servers take it: an object with properties, valid JSON schema.

    It allows whatever the server's own allows, and may allow more. References are replaced by what they name
    (where that is recursive, by anything), `nullable` by the type null, `oneOf` by `anyOf`; titles, unknown
    keywords, conditions, and what is no valid JSON schema are left out.
    """
    left = NODES
    root = schema if isinstance(schema, Mapping) else {}

    def walk(node: Any, within: tuple[str, ...], depth: int) -> dict[str, Any]:
        nonlocal left
        left -= 1
        if not isinstance(node, Mapping) or depth > DEPTH or left < 0:
            return {}
        reference = node.get("$ref")
        if reference is not None:
            beside = {k: v for k, v in node.items() if k != "$ref"}
            named = _named(root, reference) if isinstance(reference, str) else None
            if reference in within:
                kind = named.get("type") if isinstance(named, Mapping) else None
                target: dict[str, Any] = {"type": kind} if kind in _TYPES else {}
            else:
                target = walk(named, (*within, str(reference)), depth + 1)
            own = walk(beside, within, depth + 1)
            if beside.keys() <= _BESIDE_REF or not target or not own:
                return target | own
            return {"allOf": [target, own]}
        found: dict[str, Any] = {}
        kinds = node.get("type")
        kinds = kinds if isinstance(kinds, list) else [kinds]
        kinds = list(dict.fromkeys(k for k in kinds if k in _TYPES))
        if kinds:
            found["type"] = kinds[0] if len(kinds) == 1 else kinds
        if isinstance(text := node.get("description"), str) and (text := clean(text).strip()):
            found["description"] = _cut(text, LONGEST)
        left_out = False  # some of its properties: then others cannot be forbidden
        if isinstance(properties := node.get("properties"), Mapping):
            found["properties"] = {}
            for name, inner in properties.items():
                if inner is False or not isinstance(name, str) or clean(name) != name or len(name) > 200:
                    left_out = True
                else:
                    found["properties"][name] = walk(inner, within, depth + 1)
        if isinstance(required := node.get("required"), list):
            names = [n for n in dict.fromkeys(n for n in required if isinstance(n, str)) if clean(n) == n]
            if names:
                found["required"] = names
        if "patternProperties" not in node and not left_out:
            more = node.get("additionalProperties")
            if more is False:
                found["additionalProperties"] = False
            elif isinstance(more, Mapping) and (inner := walk(more, within, depth + 1)):
                found["additionalProperties"] = inner
        items = node.get("items")
        prefix = items if isinstance(items, list) else node.get("prefixItems")
        if isinstance(prefix, list) and prefix:
            found["prefixItems"] = [walk(item, within, depth + 1) for item in prefix]
        if isinstance(items, Mapping):
            found["items"] = walk(items, within, depth + 1)
        for key in ("anyOf", "oneOf"):
            branches = node.get(key)
            if isinstance(branches, list):
                walked = [walk(b, within, depth + 1) for b in branches if b is not False]
                # one of them allows anything: so do all together
                if walked and not any(b == {} for b in walked):
                    if "anyOf" in found:
                        found["allOf"] = [{"anyOf": walked}]
                    else:
                        found["anyOf"] = walked
        if isinstance(node.get("allOf"), list):
            parts = [p for b in node["allOf"] if (p := walk(b, within, depth + 1))]
            if parts:
                found["allOf"] = [*found.get("allOf", ()), *parts]
        _values(node, found)
        if node.get("nullable") is True:
            found = _nullable(found)
        return found

    cleaned = walk(root, ("#",), 0)
    return {"type": "object", "properties": {}} | cleaned | {"type": "object"}


def _values(node: Mapping[str, Any], found: dict[str, Any]) -> None:
    """The keywords that hold no schemas."""
    if isinstance(node.get("enum"), list):
        values = [v for v in node["enum"] if _plain(v)]
        if values and len(values) == len(node["enum"]):
            found["enum"] = values
    for key in ("const", "default"):
        if key in node and _plain(node[key]):
            found[key] = node[key]
    if isinstance(node.get("examples"), list) and _plain(node["examples"]):
        found["examples"] = node["examples"]
    for key in _BOUNDS:
        if _number(node.get(key)):
            found[key] = node[key]
    if _number(node.get("multipleOf")) and node["multipleOf"] > 0:
        found["multipleOf"] = node["multipleOf"]
    for key in _COUNTS:
        if _number(node.get(key)) and node[key] >= 0 and node[key] == int(node[key]):
            found[key] = int(node[key])
    if node.get("uniqueItems") is True:
        found["uniqueItems"] = True
    for key in ("format", "pattern"):
        text = node.get(key)
        if isinstance(text, str) and len(text) <= 200 and clean(text) == text:
            found[key] = text
    if "pattern" in found:
        try:
            re.compile(found["pattern"])
        except (re.error, RecursionError, OverflowError):  # another language's, or nobody's
            del found["pattern"]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _plain(value: Any) -> bool:
    """Whether a value can be shown: JSON, not long, nothing hidden in it."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return False
    return len(text) <= _VALUE_CHARS and clean(text) == text


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    kinds = schema.get("type")
    if kinds is None or "const" in schema or "allOf" in schema or "anyOf" in schema:
        return {"anyOf": [schema, {"type": "null"}]} if schema else schema
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "enum" in schema and None not in schema["enum"]:
        schema["enum"] = [*schema["enum"], None]
    return schema | {"type": kinds if "null" in kinds else [*kinds, "null"]}


def _named(root: Mapping[str, Any], reference: str) -> Any:
    """What a reference within the schema names; nothing else is ever fetched."""
    if not reference.startswith("#"):
        return None
    node: Any = root
    for part in unquote(reference[1:]).split("/")[1:] if reference != "#" else ():
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, Mapping):
            node = node.get(part)
        elif isinstance(node, list) and part.isdecimal() and len(part) < 6 and int(part) < len(node):
            node = node[int(part)]
        else:
            return None
    return node


# --- results


def output(tool: str, result: types.CallToolResult) -> ToolOutput:
    """What the model reads of a result, cleaned, and what the user gets of it as files.

    Structured content is added where the text does not say the same: servers are to send both.
    """
    texts: list[str] = []
    mentions: list[str] = []
    artifacts: list[Artifact] = []

    def keep(data: str, mime: str | None, name: str = "") -> None:
        mime = (
            mime
            if mime and re.fullmatch(r"[\w.+-]{1,60}/[\w.+-]{1,60}", mime)
            else "application/octet-stream"
        )
        name = _file_name(name)
        if not name or any(name == a.name for a in artifacts):
            name = f"{_file_name(tool) or 'result'}-{len(artifacts) + 1}{mimetypes.guess_extension(mime) or '.bin'}"
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
                more = f" ({_line(block.description)})" if block.description else ""
                mentions.append(f"[resource {_line(block.name)}: {_line(str(block.uri), 1_000)}{more}]")
            case "resource":
                if hasattr(block.resource, "text"):
                    texts.append(block.resource.text)
                else:
                    name = str(block.resource.uri).rpartition("/")[2]
                    keep(block.resource.blob, block.resource.mime_type, name)

    if result.structured_content is not None and not _says(texts, result.structured_content):
        texts.append(json.dumps(result.structured_content, ensure_ascii=False))
    text = "\n".join(part for part in [*texts, *mentions] if part)
    return ToolOutput(
        clean(text) or "(no output)", is_error=bool(result.is_error), artifacts=tuple(artifacts)
    )


def _file_name(name: str) -> str:
    """*name* as that of a file in any folder: no paths, nothing hidden."""
    return re.sub(r"[^\w.+-]+", "_", clean(name)).lstrip("._-")[-100:]


def _line(text: str, limit: int = 200) -> str:
    return str(_cut(" ".join(clean(text).split()), limit))


def _says(texts: Sequence[str], structured: Any) -> bool:
    """Whether the text holds what the structured content does: as JSON, or value for value."""
    text = "\n".join(texts)
    if not text:
        return False
    checked = 0
    for leaf in _leaves(structured, 0):
        if leaf not in text and json.dumps(leaf, ensure_ascii=False)[1:-1] not in text:
            return False
        checked += 1
        if checked == 200:
            break
    return checked > 0 or not structured


def _leaves(value: Any, depth: int) -> Iterator[str]:
    if depth > 100:
        return
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _leaves(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, depth + 1)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield json.dumps(value)
