"""Arguments as a small model writes them → as the tool's schema asks. Pure functions.

What is valid stays as it is. The rest is changed only where one reading is left, and nothing of it is lost or made up:
"5 km" stays text, a value between two of the allowed ones stays wrong, and the tool fills in its own defaults.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from agentkit.faults import Walk, choices, item_schema, kinds, listed, mapping, same, types
from agentkit.spelling import (
    contrary,
    folded,
    folds_alike,
    meant,
    misspelt,
    only_empty_words,
    same_but_for_number,
    same_words,
    says_more,
)

__all__ = ["fit"]

_WRAPPERS = frozenset(
    ("arguments", "parameters", "params", "args", "kwargs", "input", "tool_input", "action_input", "properties")
)  # fmt: skip
_LABELS = frozenset(("name", "tool", "tool_name", "function"))  # may stand beside those, with the tool's name
_YES, _NO = frozenset(("true", "yes", "on", "y")), frozenset(("false", "no", "off", "n"))
_NOTHING = frozenset(("", "null", "none", "undefined"))
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?|[+-]?\d{1,3}(?:_\d{3})+")
_UNREAD = object()


def fit(
    arguments: Mapping[str, Any], schema: Mapping[str, Any], *, tool: str = "", drop: bool = False
) -> dict[str, Any]:
    """The arguments as *schema* asks for them, where that loses nothing; what cannot be helped is left as it is.

    "3" becomes 3, "[1]" becomes [1], 5 becomes "5" or [5], {"arguments": {…}} what is in it, "Celsius" the allowed
    "celsius", and `userId` the argument `user_id`. `tool` is the tool's name, which models wrap arguments in, too.
    `drop`: leave out what is no argument of the tool. Does not raise.
    """
    walk = Walk(schema)
    now = dict(arguments)
    try:
        for _ in range(5):  # a name that became right can make room for another one
            before, now = now, _object(_unwrapped(now, walk, tool), walk.resolve(schema), walk, drop)
            if now == before:
                break
    except RecursionError:  # a schema that means itself
        return dict(arguments)
    return now


# --- objects


def _unwrapped(arguments: dict[str, Any], walk: Walk, tool: str) -> dict[str, Any]:
    """What is in {"arguments": {…}}, when the tool has no argument of that name."""
    schema = walk.resolve(walk.root)
    known = mapping(schema, "properties")
    for _ in range(3):
        keys = [k for k in arguments if k in known or not (k in _LABELS and _names_it(arguments[k], tool))]
        if len(keys) != 1 or keys[0] in known or (_open(schema) and walk.valid(arguments, schema)):
            break
        key = keys[0]
        if key.lower() not in _WRAPPERS and not _names_it(key, tool):
            break
        inner = _read(arguments[key]) if isinstance(arguments[key], str) else arguments[key]
        if not isinstance(inner, Mapping):
            break
        if inner and not any(n in known or n in _WRAPPERS or meant(n, known) for n in inner):
            break
        arguments = dict(inner)
    return arguments


def _names_it(value: Any, tool: str) -> bool:
    return bool(tool) and isinstance(value, str) and folded(value) == folded(tool)


def _open(schema: Mapping[str, Any]) -> bool:
    """Whether there may be more than the properties it names: it says so, or names none."""
    more = schema.get("additionalProperties") or schema.get("patternProperties")
    return bool(more) or "properties" not in schema


def _object(value: Mapping[str, Any], schema: Mapping[str, Any], walk: Walk, drop: bool) -> dict[str, Any]:
    known, required = mapping(schema, "properties"), listed(schema, "required")
    others = schema.get("additionalProperties") if not schema.get("patternProperties") else None
    is_open = _open(schema)

    def says_nothing(name: str, item: Any) -> bool:
        if name not in known:
            return not is_open and (item is None or item == "" or item == [] or item == {})
        empty = item is None or (isinstance(item, str) and item.strip().lower() in _NOTHING)
        return empty and name not in required and not walk.valid(_fit(item, known[name], walk), known[name])

    value = _put_together(value, known, required, walk)
    names = _names(value, known, required, is_open, walk)
    value = {names.get(name, name): item for name, item in value.items()}
    made: dict[str, Any] = {}
    for name, item in value.items():
        if says_nothing(name, item) or (drop and name not in known and not is_open):
            continue
        made[name] = _fit(item, known.get(name, others), walk, name)
    return made


def _put_together(
    value: Mapping[str, Any], known: Mapping[str, Any], required: Collection[str], walk: Walk
) -> Mapping[str, Any]:
    """{"city": …} as {"request": {"city": …}}, where that is the one thing missing and it takes just these."""
    absent = [name for name in required if name not in value and name in known]
    loose = {name: item for name, item in value.items() if name not in known}
    if len(absent) != 1 or not loose:
        return value
    inner = walk.resolve(known[absent[0]])
    if "object" not in types(inner, walk) or not loose.keys() <= mapping(inner, "properties").keys():
        return value
    made = _fit(loose, inner, walk)
    if not walk.valid(made, inner):
        return value
    return {**{k: v for k, v in value.items() if k in known}, absent[0]: made}


def _names(
    value: Mapping[str, Any], known: Mapping[str, Any], required: Collection[str], is_open: bool, walk: Walk
) -> dict[str, str]:
    """Names that are no argument -> the arguments they can only mean."""
    left = [name for name in value if name not in known]
    free = [name for name in known if name not in value and (name in required or not is_open)]
    found: dict[str, str] = {}

    def suits(name: str, argument: str) -> bool:
        fitted = _fit(value[name], known[argument], walk, argument)
        return not contrary(name, argument) and walk.valid(fitted, known[argument])

    def pair(alike: Callable[[str, str], bool], only: Callable[[str, str], bool] | None = None) -> None:
        pairs = [(n, a) for n in left for a in free if alike(n, a)]
        for name, argument in pairs:
            alone = sum(n == name for n, _ in pairs) == 1 == sum(a == argument for _, a in pairs)
            if alone and (only is None or (only(name, argument) and suits(name, argument))):
                found[name] = argument
                left.remove(name)
                free.remove(argument)

    if not left or not free:
        return found
    for alike in (folds_alike, same_but_for_number, same_words):
        pair(alike)
    # the rest is guessed only for what is missing: an optional argument can as well be left out
    pair(misspelt, lambda _, a: a in required)
    pair(says_more, lambda n, a: a in required or only_empty_words(n, a))
    absent = [name for name in free if name in required]
    if len(known) == 1 and len(value) == 1:
        absent = free
    said = [n for n in left if value[n] not in (None, "", [], {})]
    if len(absent) == 1 and len(said) == 1 and suits(said[0], absent[0]):
        found[said[0]] = absent[0]
    return found


# --- values


def _fit(value: Any, schema: Any, walk: Walk, name: str = "") -> Any:
    schema = walk.resolve(schema)
    if not schema:
        return value
    if branches := walk.branches(schema):
        return _fit_one(value, branches, walk, name)
    allowed = types(schema, walk)
    if values := choices(schema, allowed):
        return value if any(same(value, v) for v in values) else _nearest(value, values)
    if not allowed or kinds(value) & allowed:
        if isinstance(value, Mapping):
            return _object(value, schema, walk, False)
        if isinstance(value, list):
            return [_fit(v, item_schema(schema, i), walk) for i, v in enumerate(value)]
        return value
    turned = _turned(value, schema, allowed, walk, name)
    return _fit(turned, schema, walk, name) if kinds(turned) & allowed else value


def _fit_one(value: Any, branches: list[Mapping[str, Any]], walk: Walk, name: str) -> Any:
    """The value for one of several schemas: the one it is valid by, or can be made so."""
    read = _read(value) if isinstance(value, str) else _UNREAD
    for candidate in (value, *(() if read is _UNREAD else (read,))):
        valid = [branch for branch in branches if walk.valid(candidate, branch)]
        if valid:  # 3.0 stays if it may be a number, and is 3 if only an integer
            exact = [branch for branch in valid if kinds(candidate) & types(branch, walk)]
            made = [_fit(candidate, branch, walk, name) for branch in exact or valid]
            return next((one for one in made if one == candidate), made[0])
    fitted = [(_fit(value, branch, walk, name), branch) for branch in branches]
    good = [made for made, branch in fitted if walk.valid(made, branch)]
    if good:  # rather 5 than [5]
        return next((made for made in good if not isinstance(made, list)), good[0])
    rest = [made for made, branch in fitted if types(branch, walk) != {"null"}]
    return rest[0] if len(rest) == 1 else value


def _turned(value: Any, schema: Mapping[str, Any], allowed: set[str], walk: Walk, name: str) -> Any:
    """The value as one of the types that are allowed, or as it is."""
    numbers = allowed & {"integer", "number"}
    match value:
        case str():
            text = value.strip()
            read = _read(text)
            if read is not _UNREAD and not isinstance(read, str):
                if kinds(read) & allowed:
                    return read
                made = _turned(read, schema, allowed, walk, name)
                if kinds(made) & allowed and "array" not in allowed:
                    return made
            if "boolean" in allowed and not numbers and text.lower() in _YES | _NO:
                return text.lower() in _YES
            if numbers and "array" not in allowed and len(text) < 40 and _THOUSANDS.fullmatch(text):
                return _turned(text.replace(",", "").replace("_", ""), schema, allowed, walk, name)
            if "null" in allowed and text.lower() in _NOTHING:
                return None
        case bool():
            if "string" in allowed:
                return json.dumps(value)
        case int() | float():
            if isinstance(value, float) and value.is_integer() and "integer" in allowed:
                return int(value)
            if "string" in allowed and _is_finite(value):
                return str(value)
            if "boolean" in allowed and value in (0, 1):
                return bool(value)
        case [only] if "array" not in allowed:
            return only if kinds(only) & allowed else _turned(only, schema, allowed, walk, name)
        case Mapping() if "object" not in allowed and "array" not in allowed and len(value) == 1:
            ((key, only),) = value.items()
            if key in ("value", name):
                return only if kinds(only) & allowed else _turned(only, schema, allowed, walk, name)
    if "array" in allowed and value is not None and not isinstance(value, list):
        return next((made for made in _lists(value, schema, walk) if walk.valid(made, schema)), value)
    return value


def _lists(value: Any, schema: Mapping[str, Any], walk: Walk) -> Iterable[list[Any]]:
    """The lists that a value which is none can mean."""
    items = walk.resolve(item_schema(schema, 0))
    allowed = types(items, walk)
    # "red, blue" where red and blue are allowed, "1, 2" where numbers are; of other texts a comma may be part
    several = bool(choices(items, allowed) or allowed & {"integer", "number"})
    if several and isinstance(value, str) and "," in value:
        if _THOUSANDS.fullmatch(value.strip()):  # one number, or two
            return
        yield [_fit(part.strip(), items, walk) for part in value.split(",")]
    yield [_fit(value, items, walk)]


def _nearest(value: Any, values: list[Any]) -> Any:
    """The allowed value that is meant, if only one can be."""
    match value:
        case str():
            read = _read(value)
            for candidate in values:
                if read is not _UNREAD and same(read, candidate):
                    return candidate
            found = meant(value, [v for v in values if isinstance(v, str)], beginning=True)
            return value if found is None else found
        case [only] if not isinstance(only, list):
            return only if any(same(only, v) for v in values) else _nearest(only, values)
        case bool():
            return json.dumps(value) if json.dumps(value) in values else value
        case int() | float() if _is_finite(value) and str(value) in values:
            return str(value)
    return value


def _read(text: str) -> Any:
    """The value that a text spells as JSON or as Python does."""
    text = text.strip()
    if not text or len(text) > 100_000:
        return _UNREAD
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        pass
    if text[0] not in "[{('" and text not in ("None", "True", "False"):
        return _UNREAD
    try:
        with warnings.catch_warnings():  # about escapes that Python does not have
            warnings.simplefilter("ignore")
            return json.loads(json.dumps(ast.literal_eval(text), allow_nan=False))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return _UNREAD


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else float(_refuse(text))


def _is_finite(value: float) -> bool:
    return isinstance(value, int) or math.isfinite(value)
