"""What a JSON schema asks for and what is wrong with a value by it, in words for a small model. Pure functions.

It finds no more than a repair or a sentence can be made of: types, allowed values, what is missing, what is not known.
Whoever carries out the call judges the rest (patterns, limits, conditions).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from agentkit.errors import ToolError
from agentkit.spelling import closest

__all__ = [
    "Fault",
    "Walk",
    "WrongArguments",
    "choices",
    "example",
    "faults",
    "item_schema",
    "kinds",
    "listed",
    "mapping",
    "place",
    "same",
    "schema_at",
    "types",
]

Path: TypeAlias = tuple[str | int, ...]

_TYPES = {
    "string": ("a string", "strings"),
    "integer": ("an integer", "integers"),
    "number": ("a number", "numbers"),
    "boolean": ("true or false", "true or false"),
    "array": ("a list", "lists"),
    "object": ("an object", "objects"),
    "null": ("null", "null"),
}
_FORMATS = {
    "date": "2025-01-31",
    "date-time": "2025-01-31T09:30:00Z",
    "time": "09:30:00Z",
    "email": "name@example.com",
    "uri": "https://example.com",
}
_STEPS = 50_000  # of a walk; who offers a schema must not be able to keep us busy


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong; `value` is what was sent, `said` the reason where kind is "other"."""

    path: Path
    kind: Literal["missing", "unknown", "type", "enum", "other"]
    value: Any = None
    said: str = ""


class WrongArguments(ToolError):
    """A call's arguments are not what its tool takes. Its text says how to make them right; `plain` only what is wrong."""

    def __init__(self, tool: str, schema: Mapping[str, Any], found: Sequence[Fault]) -> None:
        walk, found = Walk(schema), found[:3]
        # a name that is no argument is often the one that is missing
        hints = [_meant(fault, walk) if fault.kind == "unknown" else "" for fault in found]
        told = [_words(fault, walk) for fault in found]
        shown = [f"{json.dumps(n, ensure_ascii=False)}: {_json(v, 300)}" for n, v in _examples(found, walk)]
        self.plain = f"Wrong arguments for {tool}: {'; '.join(told)}. Call {tool} again."
        said = "; ".join(words + hint for words, hint in zip(told, hints, strict=True))
        likely = f" For example: {', '.join(shown)}." if shown else ""
        super().__init__(
            f"Wrong arguments for {tool}: {said}.{likely} Call {tool} again with that corrected."
        )


def faults(value: Any, schema: Any) -> list[Fault]:
    """What is wrong with *value*. Never anything that the schema allows; of what it forbids, what can be told simply."""
    try:
        return list(Walk(schema).faults(value, schema, ()))
    except RecursionError:  # a schema that means itself
        return []


class Walk:
    """Reads one schema with its references; it is tired after so many steps, and then anything goes."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.left = _STEPS

    def resolve(self, schema: Any, hops: int = 0) -> Mapping[str, Any]:
        """The schema with what it refers to; {} where it allows anything."""
        self.left -= 1
        if not isinstance(schema, Mapping) or self.left < 0 or hops > 20:
            return {}
        reference, parts = schema.get("$ref"), schema.get("allOf")
        named = [self._named(reference)] if isinstance(reference, str) else []
        parts = parts if isinstance(parts, list) else []
        if not named and not parts:
            return schema
        merged: Mapping[str, Any] = {k: v for k, v in schema.items() if k not in ("$ref", "allOf")}
        for part in (*named, *parts):
            merged = _merged(merged, self.resolve(part, hops + 1))
        return merged

    def _named(self, reference: str) -> Any:
        found = self.root
        for part in reference.removeprefix("#").split("/")[1:] if reference.startswith("#") else ["?"]:
            part = part.replace("~1", "/").replace("~0", "~")
            found = found.get(part) if isinstance(found, Mapping) else None
        return found

    def branches(self, schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The schemas of which one is to hold, each with what holds for all; none where there is but the one."""
        for word in ("anyOf", "oneOf"):
            options = schema.get(word)
            if isinstance(options, list) and options:
                rest = {k: v for k, v in schema.items() if k not in (word, "default")}
                return [_merged(rest, self.resolve(option)) for option in options]
        return []

    def valid(self, value: Any, schema: Any) -> bool:
        try:
            return next(self.faults(value, schema, ()), None) is None
        except RecursionError:  # a schema that means itself
            return True

    def faults(self, value: Any, schema: Any, path: Path) -> Iterator[Fault]:
        schema = self.resolve(schema)
        if branches := self.branches(schema):
            found: list[list[Fault]] = []
            for branch in branches:
                found.append(list(self.faults(value, branch, path)))
                if not found[-1]:
                    return
            # the branch that is meant is the one whose type it has
            meant = [f for f in found if (f[0].path, f[0].kind) != (path, "type")]
            yield from meant[0] if len(meant) == 1 else [Fault(path, "type", value)]
            return
        allowed = types(schema, self)
        if allowed and not _accepted(value) & allowed:
            yield Fault(path, "type", value)
            return
        values = choices(schema, allowed)
        if values and not any(same(value, v) for v in values):
            yield Fault(path, "enum", value)
        elif isinstance(value, Mapping):
            yield from self._object(value, schema, path)
        elif isinstance(value, list | tuple):
            for i, item in enumerate(value):
                yield from self.faults(item, item_schema(schema, i), (*path, i))

    def _object(self, value: Mapping[str, Any], schema: Mapping[str, Any], path: Path) -> Iterator[Fault]:
        properties = mapping(schema, "properties")
        for name in listed(schema, "required"):
            if name not in value:
                yield Fault((*path, name), "missing")
        others = None if schema.get("patternProperties") else schema.get("additionalProperties")
        for name, item in value.items():
            if name in properties:
                yield from self.faults(item, properties[name], (*path, name))
            elif others is False:
                yield Fault((*path, name), "unknown", item)
            else:
                yield from self.faults(item, others, (*path, name))


# --- reading schemas


def mapping(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = schema.get(key)
    return found if isinstance(found, Mapping) else {}


def listed(schema: Mapping[str, Any], key: str) -> list[Any]:
    found = schema.get(key)
    return [v for v in found if isinstance(v, str)] if isinstance(found, list | tuple) else []


def item_schema(schema: Mapping[str, Any], at: int) -> Any:
    """The schema of a list's item."""
    items, first = schema.get("items"), schema.get("prefixItems")
    first = first if isinstance(first, list) else items if isinstance(items, list) else []  # the older form
    if at < len(first):
        return first[at]
    return items if isinstance(items, Mapping) else {}


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """What both say; where they cannot be put together, what *other* says."""
    merged = {**one, **other}
    a, b = mapping(one, "properties"), mapping(other, "properties")
    if a and b:
        merged["properties"] = {
            name: {"allOf": [a[name], b[name]]} if name in a and name in b else {**a, **b}[name]
            for name in {**a, **b}
        }
    if a and not b:
        merged["properties"] = a
    if required := [*listed(one, "required"), *listed(other, "required")]:
        merged["required"] = list(dict.fromkeys(required))
    return merged


def kinds(value: Any) -> set[str]:
    """The JSON types that a value has."""
    match value:
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"number"}
        case str():
            return {"string"}
        case None:
            return {"null"}
        case list() | tuple():
            return {"array"}
        case Mapping():
            return {"object"}
    return set()


def _accepted(value: Any) -> set[str]:
    return {"integer", "number"} if isinstance(value, float) and value.is_integer() else kinds(value)


def types(schema: Any, walk: Walk | None = None, depth: int = 0) -> set[str]:
    """The JSON types a schema allows; empty when it allows any or is too clever to tell."""
    walk = walk or Walk(schema)
    schema = walk.resolve(schema)
    kind = schema.get("type")
    found = {kind} if isinstance(kind, str) else set(listed(schema, "type"))
    if not found and depth < 20:
        for branch in walk.branches(schema):
            inner = types(branch, walk, depth + 1)
            if not inner:
                return set()
            found |= inner
    if found and schema.get("nullable") is True:
        found.add("null")
    return found if found <= _TYPES.keys() else set()


def choices(schema: Mapping[str, Any], allowed: set[str]) -> list[Any]:
    """The values that are allowed; empty where there are none to choose from."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    # some schemas list the values of a list's items beside the list: those say nothing about the list
    return [v for v in values if not allowed or kinds(v) & allowed] if isinstance(values, list) else []


def same(a: Any, b: Any) -> bool:
    """Whether they are the same JSON: 1 is 1.0, and not true."""
    return isinstance(a, bool) is isinstance(b, bool) and bool(a == b)


def schema_at(schema: Any, path: Path, walk: Walk | None = None) -> Any:
    """The part of a schema that is about what is at *path*; None where it does not say."""
    walk = walk or Walk(schema)
    if not path:
        return schema
    schema = walk.resolve(schema)
    for branch in walk.branches(schema) or [schema]:
        if isinstance(path[0], int):
            inner = item_schema(branch, path[0]) or None
        else:
            inner = mapping(branch, "properties").get(path[0], branch.get("additionalProperties") or None)
        if inner is not None and (found := schema_at(inner, path[1:], walk)) is not None:
            return found
    return None


def example(schema: Any, name: str = "", walk: Walk | None = None, depth: int = 0) -> Any:
    """A value that the schema allows: one it names itself, or a plain one of its type."""
    walk = walk or Walk(schema)
    schema = walk.resolve(schema)
    if depth > 8:
        return None
    named = choices(schema, types(schema, walk))
    given = [schema.get("default"), *(schema["examples"] if isinstance(schema.get("examples"), list) else ())]
    for value in (*given, *named[:1]):
        if value is not None and walk.valid(value, schema):
            return value
    if branches := walk.branches(schema):
        return next((v for b in branches if (v := example(b, name, walk, depth + 1)) is not None), None)
    allowed = types(schema, walk)
    if "string" in allowed or not allowed:
        return _FORMATS.get(str(schema.get("format")), f"<{name or 'text'}>")
    if allowed & {"integer", "number"}:
        value = 1
        for bound in ("minimum", "maximum"):
            limit = schema.get(bound)
            if (
                isinstance(limit, int | float)
                and abs(limit) < 1e15
                and (value < limit if bound == "minimum" else value > limit)
            ):
                value = limit if "number" in allowed else int(limit)
        return value
    if "boolean" in allowed:
        return True
    if "array" in allowed:
        return [] if depth > 3 else [example(item_schema(schema, 0), name, walk, depth + 1)]
    if "object" in allowed:
        properties = mapping(schema, "properties")
        needed = listed(schema, "required") if depth <= 3 else []
        return {n: example(properties.get(n), n, walk, depth + 1) for n in needed}
    return None


# --- words


def place(path: Path) -> str:
    """Where in the arguments: `to.lines[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "the arguments"


def _words(fault: Fault, walk: Walk) -> str:
    where, got = place(fault.path), _json(fault.value, 80)
    if fault.kind == "unknown":
        return f"it has no argument {where}"
    asked = _asked(schema_at(walk.root, fault.path, walk), walk)
    if fault.kind == "missing":
        return f"{where} is missing" + (f", it must be {asked}" if asked else "")
    if fault.kind == "other" or not asked:
        return f"{where}: {fault.said or 'this is not allowed'}, not {got}"
    return f"{where} must be {asked}, not {got}"


def _asked(schema: Any, walk: Walk) -> str:
    """What is to be there: `an integer`, `one of "a", "b"`, `a list of strings`."""
    schema = walk.resolve(schema)
    asked: list[str] = []
    for branch in walk.branches(schema) or [schema]:
        allowed = types(branch, walk)
        if values := choices(branch, allowed):
            some = ", ".join(_json(v, 60) for v in values[:20])
            asked.append(some if len(values) == 1 else f"one of {some}" + (", …" if len(values) > 20 else ""))
            continue
        if not allowed:
            return ""
        inner = types(item_schema(branch, 0), walk) if "array" in allowed else set()
        for kind in sorted(allowed, key=[*_TYPES].index):
            of = f" of {_TYPES[min(inner)][1]}" if kind == "array" and len(inner) == 1 else ""
            asked.append(_TYPES[kind][0] + of)
    return " or ".join(dict.fromkeys(asked))


def _meant(fault: Fault, walk: Walk) -> str:
    known = [*mapping(walk.resolve(schema_at(walk.root, fault.path[:-1], walk)), "properties")]
    if near := closest(str(fault.path[-1]), known):
        return f" (did you mean {near}?)"
    return f", only {', '.join(known)}" if known else ""


def _examples(found: Sequence[Fault], walk: Walk) -> list[tuple[str, Any]]:
    """For each argument that is wrong its innermost name, and a value for it."""
    shown: dict[str, Any] = {}
    for fault in found:
        path = fault.path
        while path and not isinstance(path[-1], str):
            path = path[:-1]
        schema = schema_at(walk.root, path, walk) if path else None
        if fault.kind != "unknown" and schema is not None:
            name = str(path[-1])
            value = example(schema, name, walk)
            if value is not None and not same(value, fault.value):
                shown[name] = value
    return [*shown.items()]


def _json(value: Any, limit: int) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[:limit] + "…"
