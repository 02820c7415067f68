"""Qwen3-Coder's calls, `<function=f><parameter=a>…</parameter></function>` -> a call. Pure functions."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from agentkit.parsing.calls import CUT_OFF, Schemas, Unreadable, Wanted, only_text, read_arguments

__all__ = ["read_function"]

_FUNCTION = re.compile(r"""<function(?:=|\s+name\s*=)\s*["']?([^"'<>\n]+?)["']?\s*>""")
_PARAMETER = re.compile(r"""<parameter(?:=|\s+name\s*=)\s*["']?([^"'<>\n]+?)["']?\s*>""")
# where a value ends; a next parameter or the function's end on a line of its own will do if its own closer is missing
_VALUE_END = re.compile(
    r"</parameter>|\n[ \t]{0,40}<parameter[=\s]|</function>\s{0,40}(?:</tool_call>|\Z)|\Z"
)


def read_function(text: str, tools: Schemas, *, cut: bool = False) -> Wanted | Unreadable:
    """Read one call, from `<function=` on. `cut` says that the token limit ended the text before `</function>`."""
    head = _FUNCTION.match(text)
    if cut or head is None:
        return Unreadable(text, CUT_OFF if cut else "write <function=NAME> and then its parameters")
    name = head[1].strip()
    schema = tools.get(name, {})
    properties = schema.get("properties") or {}
    arguments: dict[str, Any] = {}
    at = head.end()
    first = _PARAMETER.search(text, at)
    if first is None:
        body = text[at:].removesuffix("</function>").strip()
        if not body:
            return Wanted(name, {})
        read = read_arguments(body, only=only_text(schema))  # <function=f>{"a": 1}</function>
        return Unreadable(text, read.reason) if isinstance(read, Unreadable) else Wanted(name, *read)
    while (parameter := _PARAMETER.search(text, at)) is not None:
        end = _VALUE_END.search(text, parameter.end())
        assert end is not None  # \Z always matches
        value = text[parameter.end() : end.start()].removeprefix("\n").removesuffix("\n")
        key = parameter[1].strip()
        arguments[key] = _value(value, properties.get(key))
        at = end.start()
    return Wanted(name, arguments)


def _value(text: str, schema: Any) -> Any:
    """*text* as the type that the tool asks for; where it cannot be had, or no type is known, the text itself."""
    types = _types(schema)
    if not types or "string" in types:
        return None if text.strip() == "null" and "null" in types else text
    bare = text.strip()
    if bare == "null" and "null" in types:
        return None
    if "boolean" in types and bare.lower() in ("true", "false"):
        return bare.lower() == "true"
    try:
        return json.loads(bare, strict=False)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(bare) if len(bare) < 10_000 and types & {"object", "array"} else text
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return text


def _types(schema: Any) -> set[str]:
    if not isinstance(schema, Mapping):
        return set()
    given = schema.get("type")
    types = {given} if isinstance(given, str) else {t for t in given or () if isinstance(t, str)}
    for key in ("anyOf", "oneOf"):
        for option in schema.get(key) or ():
            types |= _types(option)
    if not types and isinstance(schema.get("enum"), list):
        types = {"string"} if all(isinstance(v, str) for v in schema["enum"]) else {"number"}
    if "$ref" in schema and not types:
        types = {"object"}
    return types
