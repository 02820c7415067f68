"""A Python function's signature and docstring as a JSON schema, and a model's arguments as that function's.

Pydantic does the work; what is here is the mapping to and fro, and the words a small model is told when it is wrong.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, get_type_hints

from agentkit.errors import ConfigError, ToolError

__all__ = [
    "Signature",
    "fit",
    "missing",
    "output_adapter",
    "signature",
    "simplify",
    "spell",
    "to_text",
    "wrong_arguments",
]


@dataclass(frozen=True, slots=True)
class Signature:
    """What a function takes: its docstring's description, a JSON schema, and `bind` from arguments to a call."""

    description: str
    parameters: Mapping[str, Any]
    bind: Callable[[Mapping[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]  # raises ToolError


def signature(fn: Callable[..., Any], *, names: Mapping[str, Any] | None = None) -> Signature:
    """Read *fn*; `names` are what its annotations may use besides its module's globals.

    Descriptions of arguments come from the docstring (Google, NumPy or Sphinx style), from `Annotated[T, "text"]`, or
    from pydantic's `Field(description=…)`. Raises `ConfigError` for an annotation that has no JSON schema.
    """
    from docstring_parser import parse
    from pydantic import ConfigDict, Field, ValidationError, create_model
    from pydantic.errors import PydanticUserError
    from pydantic_core import PydanticUndefined

    title = getattr(fn, "__name__", "tool")
    docs = parse(inspect.getdoc(fn) or "")
    described = {p.arg_name: " ".join((p.description or "").split()) for p in docs.params}
    try:
        hints = get_type_hints(fn, localns=dict(names or {}), include_extras=True)
    except NameError as exc:
        raise ConfigError(f"The tool {title!r} has an annotation that cannot be resolved: {exc}.") from exc
    parameters = [
        p
        for p in inspect.signature(fn).parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    # numbered fields under the real names as aliases: an argument may be called `schema`, `model_id` or `_x`
    fields: dict[str, Any] = {}
    for i, p in enumerate(parameters):
        text = described.get(p.name) or next(
            (m for m in getattr(hints.get(p.name), "__metadata__", ()) if isinstance(m, str)), None
        )
        default = PydanticUndefined if p.default is p.empty else p.default
        fields[f"p{i}"] = (hints.get(p.name, Any), Field(default, alias=p.name, description=text or None))
    try:
        with warnings.catch_warnings():  # a default that is not JSON is left out of the schema
            warnings.simplefilter("ignore")
            config = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
            model = create_model(title, __config__=config, **fields)
            parameters_schema = simplify(model.model_json_schema(by_alias=True))
    except PydanticUserError as exc:
        raise ConfigError(
            f"The tool {title!r} has an argument that has no JSON schema: {exc.message}"
        ) from exc
    parameters_schema.pop("additionalProperties", None)  # a model gains nothing from reading it

    def bind(arguments: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            values = model.model_validate(dict(arguments))
        except ValidationError as exc:
            raise ToolError(_explain(title, parameters_schema, exc.errors(include_url=False))) from None
        args = tuple(
            getattr(values, f"p{i}") for i, p in enumerate(parameters) if p.kind is p.POSITIONAL_ONLY
        )
        kwargs = {
            p.name: getattr(values, f"p{i}")
            for i, p in enumerate(parameters)
            if p.kind is not p.POSITIONAL_ONLY
        }
        return args, kwargs

    description = "\n\n".join(part for part in (docs.short_description, docs.long_description) if part)
    return Signature(description, parameters_schema, bind)


def simplify(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema as a small model reads it best: no titles, references replaced by what they name (unless recursive)."""
    definitions = schema.get("$defs") or {}
    recursive: set[str] = set()

    def walk(node: Any, within: tuple[str, ...], named: bool) -> Any:
        if isinstance(node, list):
            return [walk(n, within, False) for n in node]
        if not isinstance(node, Mapping):
            return node
        reference = None if named else node.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/$defs/"):
            name = reference.removeprefix("#/$defs/")
            if name in within:
                recursive.add(name)
                return dict(node)
            if name in definitions:
                rest = {k: v for k, v in node.items() if k != "$ref"}
                return walk({**definitions[name], **rest}, (*within, name), False)
        return {
            key: walk(value, within, not named and key in ("properties", "patternProperties"))
            for key, value in node.items()
            if named
            or key not in ("title", "$schema", "$defs")  # a property may be called so, a keyword goes
        }

    result: dict[str, Any] = walk(schema, (), False)
    if recursive:
        result["$defs"] = {n: walk(definitions[n], (n,), False) for n in definitions if n in recursive}
    return (
        {"type": "object", "properties": {}, **result} if result.get("type", "object") == "object" else result
    )


def fit(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with values turned into what the schema asks for, where that loses nothing.

    "3" becomes 3, "true" becomes true, "[1]" becomes [1], 5 becomes "5" or [5], as the property's type says. What cannot be
    turned is left as it is: the tool says what is wrong with it.
    """
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return dict(arguments)
    if len(properties) == len(arguments) == 1 and properties.keys() != arguments.keys():
        arguments = dict(zip(properties, arguments.values(), strict=True))  # the one there is, misnamed
    return {
        name: _fit(value, properties[name]) if name in properties else value
        for name, value in arguments.items()
    }


def _types(schema: Any) -> set[str]:
    """The JSON types a schema allows; empty when it allows any or is too clever to tell."""
    if not isinstance(schema, Mapping):
        return set()
    kind = schema.get("type")
    if isinstance(kind, str):
        return {kind}
    if isinstance(kind, list):
        return {k for k in kind if isinstance(k, str)}
    found: set[str] = set()
    for branch in schema.get("anyOf") or schema.get("oneOf") or ():
        inner = _types(branch)
        if not inner:
            return set()
        found |= inner
    return found


def _fit(value: Any, schema: Any) -> Any:
    allowed = _types(schema)
    if not allowed or _kind(value) & allowed:
        if isinstance(value, Mapping) and isinstance(schema, Mapping):
            return fit(value, schema)
        if isinstance(value, list) and isinstance(schema, Mapping) and schema.get("items"):
            return [_fit(v, schema["items"]) for v in value]
        return value
    if isinstance(value, str):
        text = value.strip()
        if allowed == {"boolean"} and text.lower() in ("true", "false"):
            return text.lower() == "true"
        try:
            read = json.loads(text)
        except ValueError:
            read = None
        if read is not None and _kind(read) & allowed:
            return _fit(read, schema)
        if "null" in allowed and text.lower() in ("null", "none", ""):
            return None
    elif "string" in allowed and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and "integer" in allowed and value.is_integer():
        return int(value)
    if "array" in allowed and not isinstance(value, list | Mapping) and value is not None:
        items = schema.get("items") if isinstance(schema, Mapping) else None
        return [_fit(value, items)]
    return value


def _kind(value: Any) -> set[str]:
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


def spell(schema: Mapping[str, Any]) -> str:
    """The arguments in one line: `city (string, required), days (integer, default 3)`."""
    required = schema.get("required") or ()
    lines = []
    for name, prop in (schema.get("properties") or {}).items():
        kind = " or ".join(sorted(_types(prop))) or "any"
        if isinstance(prop, Mapping) and prop.get("enum"):
            kind = "one of " + ", ".join(json.dumps(v, ensure_ascii=False) for v in prop["enum"])
        more = "required" if name in required else "optional"
        if isinstance(prop, Mapping) and prop.get("default") is not None:
            more = f"default {json.dumps(prop['default'], ensure_ascii=False)}"
        lines.append(f"{name} ({kind}, {more})")
    return ", ".join(lines) or "none"


def missing(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """The required arguments that are not there."""
    return [name for name in schema.get("required") or () if name not in arguments]


def wrong_arguments(name: str, schema: Mapping[str, Any], problems: Sequence[str]) -> str:
    """What the model is told: what is wrong, then what is right."""
    return f"Wrong arguments for {name}: {'; '.join(problems)}. Its arguments are: {spell(schema)}. Call it again."


def _explain(name: str, schema: Mapping[str, Any], errors: Sequence[Any]) -> str:
    problems = []
    for error in errors[:5]:
        where = ".".join(str(part) for part in error["loc"]) or "the arguments"
        if error["type"] == "missing":
            problems.append(f"{where} is missing")
        elif error["type"] == "extra_forbidden":
            problems.append(f"it has no argument {where}")
        else:
            got = json.dumps(error.get("input"), ensure_ascii=False, default=str)
            problems.append(f"{where}: {error['msg'][:1].lower()}{error['msg'][1:]}, got {got[:80]}")
    return wrong_arguments(name, schema, problems)


def output_adapter(output_type: Any) -> tuple[Callable[[Any], Any], dict[str, Any]]:
    """A validator for values of *output_type* (raises ValueError with a readable reason), and its JSON schema."""
    from pydantic import TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(output_type)
        schema = adapter.json_schema()
    except PydanticUserError as exc:
        raise ConfigError(f"output_type {output_type!r} has no JSON schema: {exc.message}") from exc

    def validate(value: Any) -> Any:
        try:
            return adapter.validate_python(value)
        except ValidationError as exc:
            lines = [
                f"{'.'.join(map(str, e['loc'])) or 'the value'}: {e['msg']}"
                for e in exc.errors(include_url=False)[:5]
            ]
            raise ValueError("; ".join(lines)) from None

    return validate, simplify(schema)


def to_text(value: Any) -> str:
    """A tool's return value as the model reads it: text as it is, the rest as JSON where it has such a form."""
    if isinstance(value, str):
        return value
    if value is None:
        return "done"
    if hasattr(value, "model_dump_json"):
        return str(value.model_dump_json())
    if isinstance(value, dict | list | tuple | set | bool | int | float) or is_dataclass(value):
        from pydantic_core import PydanticSerializationError, to_json

        try:
            return to_json(value, fallback=str).decode()
        except (PydanticSerializationError, ValueError):
            pass
    return str(value)
