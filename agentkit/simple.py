"""Parameters of JSON's own types: their schema, and which values are of it already, without the weight of pydantic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

__all__ = ["DIFFERENT", "Simple", "schema_of", "simple"]

DIFFERENT: Any = object()  # a value that is of another type, or none
_NAMES: Mapping[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
_EXACT = 2**53  # whole numbers below it are floats without loss


@dataclass(frozen=True, slots=True)
class Simple:
    """A parameter's type: `schema` as pydantic writes it, and `fits`, from a value to what pydantic would make of it.

    What is of another type is `DIFFERENT`: pydantic may have a use for it, and says what is wrong with it.
    """

    schema: Mapping[str, Any]
    fits: Callable[[Any], Any]


def simple(hint: Any, default: Any = Parameter.empty) -> Simple | None:
    """The type of a parameter, if it is str, int, float, bool, a list of those, a choice of strings, or one of them or None."""
    found = _simple(hint)
    if found is None or default is Parameter.empty:
        return found
    itself = default is None or (type(default) in _NAMES and found.fits(default) is default)
    if not itself or (isinstance(default, float) and not math.isfinite(default)):
        return None
    return Simple({**found.schema, "default": default}, found.fits)


def schema_of(
    parameters: Sequence[Parameter], types: Mapping[str, Simple], described: Mapping[str, str]
) -> dict[str, Any]:
    """The schema of an object of those parameters, its keys in pydantic's order: a prompt depends on it."""
    properties = {}
    for p in parameters:
        text = described.get(p.name)
        known = {**types[p.name].schema, **({"description": text} if text else {})}
        properties[p.name] = dict(sorted(known.items()))
    required = [p.name for p in parameters if p.default is p.empty]
    return {
        "type": "object",
        "properties": properties,
        **({"required": required} if required else {}),
    }


def _simple(hint: Any) -> Simple | None:
    if hint in (str, int, float, bool):
        return Simple({"type": _NAMES[hint]}, _FITS[hint])
    origin, args = get_origin(hint), get_args(hint)
    if origin is list and len(args) == 1 and args[0] in (str, int, float, bool):
        inner = _FITS[args[0]]
        return Simple({"items": {"type": _NAMES[args[0]]}, "type": "array"}, lambda v: _each(v, inner))
    if origin is Literal and len(set(args)) == len(args) > 1 and all(type(a) is str for a in args):
        return Simple(
            {"enum": list(args), "type": "string"}, lambda v: v if type(v) is str and v in args else DIFFERENT
        )
    if origin in (Union, UnionType) and len(args) == 2 and args[1] is NoneType:
        found = _simple(args[0])
        if found is not None:
            fits = found.fits
            return Simple(
                {"anyOf": [dict(found.schema), {"type": "null"}]}, lambda v: None if v is None else fits(v)
            )
    return None


def _text(value: Any) -> Any:
    if type(value) is not str:
        return DIFFERENT
    try:
        value.encode()  # half a surrogate pair is no text
    except UnicodeEncodeError:
        return DIFFERENT
    return value


def _number(value: Any) -> Any:
    if type(value) is float:
        return value
    return float(value) if type(value) is int and -_EXACT < value < _EXACT else DIFFERENT


def _each(values: Any, fits: Callable[[Any], Any]) -> Any:
    if type(values) is not list:
        return DIFFERENT
    fitting = [fits(value) for value in values]
    return DIFFERENT if any(value is DIFFERENT for value in fitting) else fitting


_FITS: Mapping[Any, Callable[[Any], Any]] = {
    str: _text,
    int: lambda v: v if type(v) is int else DIFFERENT,
    float: _number,
    bool: lambda v: v if type(v) is bool else DIFFERENT,
}
