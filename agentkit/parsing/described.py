"""Calls that a model describes instead of making them: "I will use the `add` function with these arguments:" and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from agentkit.parsing.calls import Schemas, Wanted

__all__ = ["described_calls"]

_MENTION = re.compile(
    r"`([\w.-]{1,100})`([^`{}]{0,200})```(?:json)?[ \t]*\n(\{[^`]{0,10000}\})\s*```"
)  # the tool, what is said of it, its arguments
_BEFORE = 200  # characters
_SENTENCE = re.compile(r"[.!?:]\s|\n")
_INTENDS = re.compile(r"\b(?:call|use|using|invoke|run)\b", re.IGNORECASE)
_ARGUMENTS = re.compile(r"\b(?:arguments?|parameters?|inputs?)\b", re.IGNORECASE)


def described_calls(text: str, tools: Schemas) -> list[Wanted]:
    """The calls of *tools* that *text* says are to be made, with arguments that have all that the tool requires.

    What was done ("I called …") and what came of it is no such call, nor is JSON with keys that are none of the tool's.
    """
    found = []
    for match in _MENTION.finditer(text) if "```" in text else ():
        name, said, written = match.groups()
        begun = _SENTENCE.split(text[max(0, match.start() - _BEFORE) : match.start()])[-1]
        if name not in tools or not _INTENDS.search(begun) or not _ARGUMENTS.search(said):
            continue
        try:
            arguments = json.loads(written)
        except (ValueError, RecursionError):
            continue
        properties, required = tools[name].get("properties"), tools[name].get("required") or ()
        if isinstance(properties, Mapping) and set(required) <= arguments.keys() <= properties.keys():
            found.append(Wanted(name, arguments))
    return found
