"""A tool as the Python function that a model is shown: its signature with types, its docstring, no body."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agentkit.parsing.pythonic import parameter_order

__all__ = ["python_stub"]

_TYPES = {
    "string": "str", "integer": "int", "number": "float", "boolean": "bool", "array": "list", "object": "dict",
    "null": "None",
}  # fmt: skip


def python_stub(tool: Mapping[str, Any]) -> str:
    """*tool*, in OpenAI's form, as a function. Parameters that are not required come last, with their default or None."""
    function = tool.get("function", tool)
    schema = function.get("parameters") or {}
    properties, required = schema.get("properties") or {}, schema.get("required") or ()
    parameters, about = [], []
    for name in parameter_order(schema):
        known = properties[name] if isinstance(properties[name], Mapping) else {}
        default = "" if name in required else f" = {known.get('default')!r}"
        parameters.append(f"{name}: {_type(known)}{default}")
        about += _about(name, known, "    ")
    lines = [" ".join(str(function.get("description") or "").split()), *(["", *about] if about else [])]
    return (
        f'def {function.get("name")}({", ".join(parameters)}):\n    """'
        + "\n    ".join(lines).rstrip()
        + '\n    """'
    )


def _about(name: str, known: Mapping[str, Any], indent: str) -> list[str]:
    text = " ".join(str(known.get("description") or "").split())
    inner = known.get("properties")
    if not isinstance(inner, Mapping):
        return [f"{indent}{name}: {text}"] if text else []
    lines = [f"{indent}{name}: {text}".rstrip() + " A dict with"]
    for key, value in inner.items():
        value = value if isinstance(value, Mapping) else {}
        more = " ".join(str(value.get("description") or "").split())
        lines.append(
            f"{indent}    {json.dumps(key, ensure_ascii=False)} ({_type(value)}): {more}".rstrip(": ")
        )
    return lines


def _type(schema: Mapping[str, Any]) -> str:
    if isinstance(choices := schema.get("enum"), list) and choices:
        return f"Literal[{', '.join(map(repr, choices))}]"
    if isinstance(some := schema.get("anyOf"), list) and some:
        kinds = [_type(s) for s in some if isinstance(s, Mapping)]
        return " | ".join(dict.fromkeys(kinds)) or "Any"
    kind = schema.get("type")
    if isinstance(kind, list):
        return " | ".join(_TYPES.get(str(k), "Any") for k in kind)
    if kind == "array" and isinstance(items := schema.get("items"), Mapping) and items:
        return f"list[{_type(items)}]"
    return _TYPES.get(str(kind), "Any")
