"""Values in a call that nobody has said: what a small model makes up rather than ask for it, or answer without the tool."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["made_up"]

_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|\d+")
_ONES = "zero one two three four five six seven eight nine ten eleven twelve".split()
_SCALES = (
    1,
    10,
    100,
    1000,
    60,
)  # per cent, thousands, metric units, minutes: a value may be said in another unit
_GREATEST = 1e15  # beyond that floats do not tell numbers apart
_SOURCE = re.compile(r"[(){}=;<>|*\n]")  # code, queries, patterns are the model's to write
_NAMES = re.compile(
    r"(?=[^\W_]*\d|[A-Z]|.*[_@])(?![A-Z]{1,5}$)"
)  # Oslo, 2024-05-01, your_name; not USD, said as dollars
_NAME = 3  # words: longer texts are written by the model, not taken over
_WORDS = 3  # of a request that has fewer, most is understood
_LATIN = 0x24F  # the last letter of the alphabet in which names are alike
_START = 3  # letters of a word that must be the same: Rome for Rom, Italian for Italy


def made_up(arguments: Mapping[str, Any], schema: Mapping[str, Any], said: str) -> dict[str, Any]:
    """The required arguments with a value that stands nowhere in *said*, all that the model has been told.

    Only what can be told for sure: numbers other than 0 and 1, and names, dates and the like none of whose words begins
    like one in *said*. Not those with a choice of values or a default, nor where *said* is in another alphabet than they.
    """
    if len(said.split()) < _WORDS or any(ch.isalpha() and ord(ch) > _LATIN for ch in said):
        return {}
    said = said.lower()
    numbers = {float(n.replace(",", "")) for text in _NUMBER.findall(said) for n in (text, *text.split(","))}
    numbers |= {float(n) for n, word in enumerate(_ONES) if re.search(rf"\b{word}\b", said)}

    def is_known(value: Any) -> bool | None:
        """None where that cannot be told."""
        if isinstance(value, bool) or value is None or value in (0, 1):
            return None
        if isinstance(value, int | float) and not abs(value) < _GREATEST:
            return None
        if isinstance(value, int | float):
            return any(
                abs(abs(value) * scale - n) < 1e-6 or abs(abs(value) - n * scale) < 1e-6
                for n in numbers
                for scale in _SCALES
            )
        words = re.findall(r"[^\W_]{3,}", value.lower())
        if not words or len(words) > _NAME or not _NAMES.match(value) or _SOURCE.search(value):
            return None
        return any(re.search(rf"(?<![^\W_]){re.escape(w[:_START])}", said) for w in words)

    properties = schema.get("properties")
    found = {}
    for name in schema.get("required") or ():
        about = properties.get(name) if isinstance(properties, Mapping) else None
        if name not in arguments or not isinstance(about, Mapping) or "enum" in about or "default" in about:
            continue
        known = [k for value in _leaves(arguments[name]) if (k := is_known(value)) is not None]
        if known and not any(known):
            found[name] = arguments[name]
    return found


def _leaves(value: Any) -> Iterator[Any]:
    """The numbers, texts and other single values in a JSON value; of a text that is a list or an object, those in it."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif value is None or isinstance(value, str | int | float):
        yield value
