"""A Python function's signature and docstring as a JSON schema, and a model's arguments as that function's.

Pydantic does the work, and is only imported where there is some: arguments of JSON's own types that are right are the
function's as they are. What is here is the mapping to and fro, and the words a small model is told when it is wrong.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from agentkit.errors import ConfigError
from agentkit.faults import Fault, Walk, WrongArguments, schema_at, types
from agentkit.simple import DIFFERENT, schema_of, simple

__all__ = [
    "Signature",
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
    bind: Callable[[Mapping[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]  # raises WrongArguments


def signature(
    fn: Callable[..., Any], *, names: Mapping[str, Any] | None = None, title: str | None = None
) -> Signature:
    """Read *fn*; `names` are what its annotations may use besides its module's globals, `title` what it is called.

    Descriptions of arguments come from the docstring (Google, NumPy or Sphinx style), from `Annotated[T, "text"]`, or
    from pydantic's `Field(description=…)`. Raises `ConfigError` for an annotation that has no JSON schema.
    """
    from docstring_parser import parse

    title = title or str(getattr(fn, "__name__", "tool"))
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
    for p in parameters:
        if p.name not in described:
            texts = (m for m in getattr(hints.get(p.name), "__metadata__", ()) if isinstance(m, str))
            described[p.name] = next(texts, "")

    @cache
    def model() -> Any:
        return _model(title, parameters, hints, described)

    found = {p.name: simple(hints.get(p.name, Any), p.default) for p in parameters}
    kinds = {name: known for name, known in found.items() if known is not None}
    if len(kinds) == len(parameters):
        parameters_schema = schema_of(parameters, kinds, described)
    else:
        parameters_schema = simplify(_json_schema(title, model()))
        parameters_schema.pop("additionalProperties", None)  # a model gains nothing from reading it

    def values(arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Each argument as the function gets it: what is of its type already as it is, the others as pydantic judges."""
        given = dict(arguments)
        if len(kinds) == len(parameters) and given.keys() <= kinds.keys():
            fitting = {
                p.name: kinds[p.name].fits(given[p.name]) if p.name in given else p.default
                for p in parameters
            }
            if not any(value is DIFFERENT or value is inspect.Parameter.empty for value in fitting.values()):
                return fitting
        from pydantic import ValidationError

        try:
            judged = model().model_validate(given)
        except ValidationError as exc:
            wrong = _faults(parameters_schema, exc.errors(include_url=False))
            raise WrongArguments(title, parameters_schema, wrong) from None
        return {p.name: getattr(judged, f"p{i}") for i, p in enumerate(parameters)}

    def bind(arguments: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        by_name = values(arguments)
        args = tuple(by_name.pop(p.name) for p in parameters if p.kind is p.POSITIONAL_ONLY)
        return args, by_name

    description = "\n\n".join(part for part in (docs.short_description, docs.long_description) if part)
    return Signature(description, parameters_schema, bind)


def _model(
    title: str,
    parameters: Sequence[inspect.Parameter],
    hints: Mapping[str, Any],
    described: Mapping[str, str],
) -> Any:
    from pydantic import ConfigDict, Field, create_model
    from pydantic.errors import PydanticUserError
    from pydantic_core import PydanticUndefined

    # numbered fields under the real names as aliases: an argument may be called `schema`, `model_id` or `_x`
    fields: dict[str, Any] = {}
    for i, p in enumerate(parameters):
        default = PydanticUndefined if p.default is p.empty else p.default
        field = Field(default, alias=p.name, description=described.get(p.name) or None)
        fields[f"p{i}"] = (hints.get(p.name, Any), field)
    try:
        config = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
        return create_model(title, __config__=config, **fields)
    except PydanticUserError as exc:
        raise _without_schema(title, exc) from exc


def _json_schema(title: str, model: Any) -> dict[str, Any]:
    from pydantic.errors import PydanticUserError

    try:
        with warnings.catch_warnings():  # a default that is not JSON is left out of the schema
            warnings.simplefilter("ignore")
            schema: dict[str, Any] = model.model_json_schema(by_alias=True)
    except PydanticUserError as exc:
        raise _without_schema(title, exc) from exc
    return schema


def _without_schema(title: str, exc: Any) -> ConfigError:
    return ConfigError(f"The tool {title!r} has an argument that has no JSON schema: {exc.message}")


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


def spell(schema: Mapping[str, Any]) -> str:
    """The arguments in one line: `city (string, required), days (integer, default 3)`."""
    required = schema.get("required") or ()
    lines = []
    for name, prop in (schema.get("properties") or {}).items():
        kind = " or ".join(sorted(types(prop))) or "any"
        if isinstance(prop, Mapping) and prop.get("enum"):
            kind = "one of " + ", ".join(json.dumps(v, ensure_ascii=False) for v in prop["enum"])
        more = "required" if name in required else "optional"
        if isinstance(prop, Mapping) and prop.get("default") is not None:
            more = f"default {json.dumps(prop['default'], ensure_ascii=False)}"
        lines.append(f"{name} ({kind}, {more})")
    return ", ".join(lines) or "none"


def wrong_arguments(name: str, schema: Mapping[str, Any], problems: Sequence[str]) -> str:
    """What the model is told where others have judged, and only they know which argument they mean."""
    return f"Wrong arguments for {name}: {'; '.join(problems)}. Its arguments are: {spell(schema)}. Call it again."


def _faults(schema: Mapping[str, Any], errors: Sequence[Any]) -> list[Fault]:
    """What pydantic finds wrong, each thing once: it names every type that a value could have had."""
    found: dict[tuple[str | int, ...], Fault] = {}
    for error in errors:
        kind = {"missing": "missing", "extra_forbidden": "unknown"}.get(error["type"])
        *within, last = error["loc"] or ("",)
        path: tuple[str | int, ...] = ()
        for part in within:  # a part that the schema does not know is a branch of a union
            if schema_at(schema, (*path, part)) is not None:
                path = (*path, part)
        if last != "" and (kind or schema_at(schema, (*path, last)) is not None):
            path = (*path, last)
        said = f"{error['msg'][:1].lower()}{error['msg'][1:]}"
        if kind is None:
            # its type is told by the schema; what the schema cannot say, by pydantic
            value, walk = error.get("input"), Walk(schema)
            typed = not path or walk.valid(value, schema_at(schema, path, walk))
            found.setdefault(path, Fault(path, "other" if typed else "type", value, said))
        else:
            found.setdefault(path, Fault(path, "missing" if kind == "missing" else "unknown", said=said))
    return list(found.values())


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
    if type(value) in (int, bool):
        return json.dumps(value)
    if hasattr(value, "model_dump_json"):
        return str(value.model_dump_json())
    if isinstance(value, dict | list | tuple | set | bool | int | float) or is_dataclass(value):
        from pydantic_core import PydanticSerializationError, to_json

        try:
            return to_json(value, fallback=str).decode()
        except (PydanticSerializationError, ValueError):
            pass
    return str(value)
