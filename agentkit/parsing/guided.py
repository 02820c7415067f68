"""A turn under guided decoding: the schema its text must follow, and how that text is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentkit.events import CallFragment, CallReady, Event, TextDelta, ThinkingDelta, assemble
from agentkit.messages import Message, ToolCall
from agentkit.parsing.turn import AnyTool, TurnParser

__all__ = ["GuidedParser", "guided_schema"]

_MOST_CALLS = 8  # in one turn; a weak model that may write on for ever would
# What grammar compilers (xgrammar, llguidance, llama.cpp's GBNF) reject in part or read differently. The arguments are
# validated against the tool's whole schema before it runs, so leaving these out loses nothing but the constraint.
_UNGUIDED = frozenset(
    "title description default examples pattern format minLength maxLength minItems maxItems uniqueItems contains "
    "multipleOf minimum maximum exclusiveMinimum exclusiveMaximum minProperties maxProperties propertyNames "
    "patternProperties dependentRequired dependentSchemas if then else not $schema $id $comment deprecated".split()
)


def guided_schema(tools: Iterable[AnyTool]) -> dict[str, Any]:
    """The JSON schema of "call one of these tools, or several, or answer".

    {"name": …, "arguments": …}, which is how Qwen's models write a call by themselves, a list of those, or {"answer": …}.
    """
    definitions: dict[str, Any] = {}
    calls = []
    for n, tool in enumerate(tools):
        name, parameters = _named(tool)
        arguments = _guided(parameters, f"t{n}_")
        for key in ("$defs", "definitions"):
            for ref, definition in (arguments.pop(key, None) or {}).items():
                definitions[f"t{n}_{ref}"] = definition
        if arguments.get("type") != "object":
            arguments = {"type": "object", "properties": {}, **arguments}
        calls.append(_object({"name": {"const": name, "type": "string"}, "arguments": arguments}))
    answer = _object({"answer": {"type": "string"}})
    if not calls:
        return answer
    call = calls[0] if len(calls) == 1 else {"anyOf": calls}
    several = {"type": "array", "minItems": 1, "maxItems": _MOST_CALLS, "items": call}
    return {"anyOf": [*calls, several, answer], **({"$defs": definitions} if definitions else {})}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _named(tool: AnyTool) -> tuple[str, Mapping[str, Any]]:
    if isinstance(tool, Mapping):
        function = tool.get("function", tool)
        return function.get("name", ""), function.get("parameters") or {}
    return tool.name, tool.parameters


def _guided(node: Any, prefix: str, named: bool = False) -> Any:
    """*node* without what grammars cannot hold; `named` says that its keys are names of properties, not keywords."""
    if isinstance(node, list):
        return [_guided(item, prefix) for item in node]
    if not isinstance(node, Mapping):
        return node
    kept: dict[str, Any] = {}
    for key, value in node.items():
        if not named and key in _UNGUIDED:
            continue
        if not named and key in ("enum", "const", "required", "type"):
            kept[key] = value
        elif not named and key == "$ref" and isinstance(value, str):
            kept[key] = "#/$defs/" + prefix + value.rpartition("/")[2]
        else:
            inside = not named and key in ("properties", "$defs", "definitions")
            kept[key] = _guided(value, prefix, inside)
    if not named and kept.get("properties"):
        kept.setdefault("additionalProperties", False)
    return kept


class GuidedParser:
    """Reads a turn that was asked for with `guided_schema`, with the same doors as `TurnParser`.

    The text is JSON for a program, so nothing of it is told before it is whole. A server that did not hold the model to the
    schema leaves anything at all: that is read as any other turn is.
    """

    def __init__(self, tools: Iterable[AnyTool] = (), call_prefix: str = "call") -> None:
        self._free = TurnParser(tools, call_prefix)
        self._prefix = call_prefix
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self._fragments: list[CallFragment] = []
        self._message: Message | None = None

    @property
    def settled(self) -> bool:
        return False  # before it is closed

    def feed(self, text: str = "", reasoning: str = "", calls: Sequence[CallFragment] = ()) -> list[Event]:
        self._text.append(text)
        self._fragments += calls
        if not reasoning:
            return []
        self._thoughts.append(reasoning)
        return [ThinkingDelta(reasoning)]

    def close(self, finish_reason: str = "stop") -> list[Event]:
        text, thoughts = "".join(self._text), "".join(self._thoughts)
        events = None if self._fragments else self._read(text)
        if events is None:
            told = self._free.feed(text, thoughts, self._fragments) + self._free.close(finish_reason)
            self._message = self._free.message()
            return [e for e in told if not isinstance(e, ThinkingDelta)]
        self._message = Message(
            "assistant", assemble([*([ThinkingDelta(thoughts)] if thoughts else []), *events])
        )
        return events

    def message(self) -> Message:
        """The turn as a message, after `close`."""
        assert self._message is not None
        return self._message

    def _read(self, text: str) -> list[Event] | None:
        """The events of a text that follows the schema; None for one that does not."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if isinstance(value, dict) and value.keys() == {"answer"} and isinstance(value["answer"], str):
            return [TextDelta(value["answer"])]
        events: list[Event] = []
        for n, call in enumerate(value if isinstance(value, list) else [value], 1):
            match call:
                case {"name": str(name), "arguments": dict(arguments)} if len(call) == 2:
                    events.append(CallReady(ToolCall(f"{self._prefix}_{n}", name, arguments)))
                case _:
                    return None
        return events or None
