"""JSON-like text -> the calls it asks for, or why it cannot be read. Pure functions; every cost is linear."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = [
    "CUT_OFF",
    "Schemas",
    "Unreadable",
    "Wanted",
    "asked_call",
    "only_text",
    "read_arguments",
    "read_calls",
]

# tool name -> JSON schema of its arguments
Schemas: TypeAlias = Mapping[str, Mapping[str, Any]]

CUT_OFF = "the call was cut off by the token limit before it was complete; send it again, shorter"

_NAME_KEYS = ("name", "function", "tool", "tool_name", "function_name", "action")
_ARGUMENT_KEYS = (
    "arguments", "parameters", "args", "params", "kwargs", "input", "tool_input", "action_input", "tool_args",
)  # fmt: skip
_WRAPPER_KEYS = ("tool_calls", "function_calls", "calls", "tool_call", "function_call")
_LABEL_KEYS = {"id", "type", "call_id", "tool_call_id", "index"}
_REPAIR_LIMIT = 20_000  # characters: json_repair is slow, and not linear on every input


@dataclass(frozen=True, slots=True)
class Wanted:
    """A call as it was read, before it has an id."""

    name: str
    arguments: Mapping[str, Any]
    raw: str = ""  # as in ToolCall.raw
    exact: bool = True  # a name, arguments, and nothing that calls do not have


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Text that was meant as a call; `empty` where it is good JSON that asks for nothing."""

    text: str
    reason: str
    empty: bool = False


class _NotRead(Exception):
    """The text is not JSON, not even loosely; the message says why."""


def read_calls(
    text: str, tools: Schemas, *, repair: bool = False, cut: bool = False
) -> list[Wanted] | Unreadable:
    """The calls that *text*, one JSON-like value, asks for.

    Strict JSON is read first, then what models commonly write instead. `repair` allows guesses as well: it is for
    text whose end is known. `cut` says that the token limit ended the text, so nothing may be added to its arguments.
    """
    if (call := asked_call(text)) is not None:
        return [call]
    strict = True
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        strict = False
        try:
            value = _loose(text, cut=cut)
        except _NotRead as exc:
            if cut:
                return Unreadable(text, CUT_OFF)
            value = _repaired(text) if repair else None
            if value is None:
                return Unreadable(text, str(exc))
    wanted = _wanted(value, tools)
    if isinstance(wanted, str):
        return Unreadable(text, CUT_OFF if cut and not strict else wanted, empty=wanted == _NO_NAME)
    if strict and len(wanted) == 1 and not wanted[0].raw:
        call = wanted[0]
        return [Wanted(call.name, call.arguments, _argument_text(text), call.exact)]
    return wanted


_HEAD = re.compile(
    r'[ \t\r\n]*\{[ \t\r\n]*"name"[ \t\r\n]*:[ \t\r\n]*"([^"\\\x00-\x1f]+)"[ \t\r\n]*,[ \t\r\n]*"arguments"[ \t\r\n]*:[ \t\r\n]*(?=\{)'
)
_TAIL = re.compile(r"[ \t\r\n]*\}[ \t\r\n]*")


def asked_call(text: str) -> Wanted | None:
    """The call in *text* if it is what models are told to write, and nearly always do: then its JSON is read only once."""
    head = _HEAD.match(text)
    if head is None or not head[1].strip():
        return None
    try:
        arguments, end = _DECODER.raw_decode(text, head.end())
    except (ValueError, RecursionError):
        return None
    if "properties" in arguments or not _TAIL.fullmatch(text, end):  # with properties it may describe a tool
        return None
    return Wanted(head[1].strip(), arguments, text[head.end() : end])


def only_text(schema: Mapping[str, Any]) -> str | None:
    """The argument of a tool that takes one text and nothing else, such as code."""
    properties = schema.get("properties") or {}
    if len(properties) != 1:
        return None
    name, described = next(iter(properties.items()))
    return name if isinstance(described, Mapping) and described.get("type") == "string" else None


def read_arguments(
    text: str | None, *, cut: bool = False, only: str | None = None
) -> tuple[Mapping[str, Any], str] | Unreadable:
    """The arguments of a call whose name is known: (arguments, their text if it is good JSON).

    `only` is the argument of a tool that takes one text: what is no JSON object is that text.
    """
    if text is None or not text.strip():
        return {}, ""
    try:
        value: Any = json.loads(text)
        raw = text
    except (ValueError, RecursionError):
        raw = ""
        if only is not None and not cut and not text.lstrip().startswith("{"):
            return {only: text}, ""
        try:
            value = _loose(text, cut=cut, closable=0)
        except _NotRead as exc:
            value = None if cut else _repaired(text)
            if value is None:
                return Unreadable(text, CUT_OFF if cut else str(exc))
    if value is None:
        return {}, ""
    if isinstance(value, str) and value.strip() != text.strip():  # encoded twice
        return read_arguments(value, cut=cut, only=only)
    if not isinstance(value, dict) and only is not None and not cut:
        return {only: value if isinstance(value, list) else text}, ""
    if not isinstance(value, dict):
        return Unreadable(text, "the arguments must be a JSON object")
    return value, raw


# ------------------------------------------------------------------ what a value asks for

_NO_NAME = 'a call is a JSON object {"name": …, "arguments": {…}}; this one has no name'


def _wanted(value: Any, tools: Schemas, depth: int = 0) -> list[Wanted] | str:
    """The calls in *value*, or why there are none."""
    if isinstance(value, list) and value and depth < 4:
        calls: list[Wanted] = []
        for item in value:
            found = _wanted(item, tools, depth + 1)
            if isinstance(found, str):
                return found
            calls += found
        return calls
    if not isinstance(value, dict) or depth >= 4:
        return _NO_NAME
    for key in _WRAPPER_KEYS:
        if isinstance(value.get(key), dict | list):
            return _wanted(value[key], tools, depth + 1)
    if isinstance(value.get("function"), dict):
        inner = dict(value["function"])
        for key in _ARGUMENT_KEYS:
            if key in value:
                inner.setdefault(key, value[key])
        return _wanted(inner, tools, depth + 1)
    named = [key for key in _NAME_KEYS if isinstance(value.get(key), str) and value[key].strip()]
    if not named:
        return _NO_NAME
    # {"type": "function", "function": "f"} and {"name": "f"} alike; a key that names a known tool wins
    name_key = next((key for key in named if value[key].strip() in tools), named[0])
    name = value[name_key].strip()
    argument_key = next((key for key in _ARGUMENT_KEYS if key in value and key != name_key), None)
    rest = {k: v for k, v in value.items() if k not in (name_key, argument_key) and k not in _LABEL_KEYS}
    if argument_key is None:
        # some models write the arguments beside the name
        return [Wanted(name, rest, exact=not rest)]
    given = value[argument_key]
    takes = tools.get(name, {}).get("properties") or {}
    if isinstance(given, dict) and isinstance(given.get("properties"), dict) and "properties" not in takes:
        return _NO_NAME  # the description of a tool, echoed
    raw = ""
    only = only_text(tools.get(name, {}))
    if isinstance(given, str):
        read = read_arguments(given, only=only)
        if not isinstance(read, Unreadable):
            given, raw = read
        elif len(takes) == 1:
            given = {next(iter(takes)): given}
    elif isinstance(given, list) and only is not None:  # its lines
        given = {only: given}
    if given is None:
        given = {}
    if not isinstance(given, dict):
        return f"the arguments of {name!r} must be a JSON object"
    return [Wanted(name, given, raw, exact=not rest)]


_WS = re.compile(r"\s*")
_DECODER = json.JSONDecoder()


def _argument_text(text: str) -> str:
    """The text of the arguments in a strict JSON call, when they are an object at its top level."""
    at = _WS.match(text).end()  # type: ignore[union-attr]
    if not text.startswith("{", at):
        return ""
    try:
        while True:
            at = _WS.match(text, at + 1).end()  # type: ignore[union-attr]
            key, at = _DECODER.raw_decode(text, at)
            at = text.index(":", at) + 1
            at = _WS.match(text, at).end()  # type: ignore[union-attr]
            value, end = _DECODER.raw_decode(text, at)
            if key in _ARGUMENT_KEYS:
                return text[at:end] if isinstance(value, dict) else ""
            at = _WS.match(text, end).end()  # type: ignore[union-attr]
            if not text.startswith(",", at):
                return ""
    except (ValueError, RecursionError):
        return ""


# ------------------------------------------------------------------ nearly JSON

_TOKEN = re.compile(
    r'''
      (?P<triple>"""(?P<t1>.*?)(?P<t1end>"""|\Z) | \'\'\'(?P<t2>.*?)(?P<t2end>\'\'\'|\Z))
    | "(?P<d>(?:[^"\\]|\\.|\\\Z)*+)(?P<dend>"|\Z)
    | '(?P<s>(?:[^'\\]|\\.|\\\Z)*+)(?P<send>'|\Z)
    | (?P<skip>\s+ | //[^\n]* | \#[^\n]* | /\*.*?(?:\*/|\Z))
    | (?P<open>[{\[]) | (?P<close>[}\]]) | (?P<mark>[,:])
    | (?P<number>[-+.\d][-+.\w]*)
    | (?P<word>[A-Za-z_$][\w$-]*)
    | (?P<other>.)
    ''',
    re.VERBOSE | re.DOTALL,
)
_WORDS = {
    "true": "true", "false": "false", "null": "null", "none": "null", "undefined": "null", "nan": "NaN",
}  # fmt: skip
_CLOSER = {"{": "}", "[": "]"}


def _loose(text: str, *, cut: bool, closable: int = 1) -> Any:
    """Read what is JSON but for its spelling: Python's quotes and words, raw newlines, bad escapes, comments,
    trailing commas, `{{…}}`, triple quotes, missing closers at the end. Nothing is guessed, lost or made up.

    When *cut*, at most *closable* closers may be missing. Raises `_NotRead`.
    """
    doubled = re.match(r"\s*\[?\s*\{\s*\{", text) is not None
    out: list[str] = []
    stack: list[str] = []
    done = False
    last = ""  # the kind of the last thing written: "", value, open, comma, colon
    tokens = _TOKEN.finditer(text)
    skip_at = -1
    for token in tokens:
        kind = token.lastgroup
        if kind == "skip" or token.start() == skip_at:
            continue
        if done:
            if kind == "close":
                continue  # one brace too many
            raise _NotRead("there is more text after the JSON of the call")
        if kind == "open":
            if last == "value":
                raise _NotRead("a comma or a brace is missing in the JSON")
            opener = token["open"]
            if doubled and opener == "{" and text.startswith("{", token.end()):
                skip_at = token.end()
            out.append(opener)
            stack.append(_CLOSER[opener])
            last = "open"
        elif kind == "close":
            if not stack or stack[-1] != token["close"] or last == "colon":
                raise _NotRead("the brackets of the JSON do not match")
            if doubled and token["close"] == "}" and text.startswith("}", token.end()):
                skip_at = token.end()
            if last == "comma":
                out.pop()
            out.append(stack.pop())
            last = "value"
            done = not stack
        elif kind == "mark":
            mark = token["mark"]
            if last != "value":
                raise _NotRead(f"unexpected {mark!r} in the JSON")
            out.append(mark)
            last = "comma" if mark == "," else "colon"
        elif kind == "other" or last == "value":
            raise _NotRead(f"unexpected {token[0][:20]!r} in the JSON")
        else:
            out.append(_scalar(token, text))
            last = "value"
            done = not stack
    if stack and (last in ("colon", "comma") or (cut and (len(stack) > closable or last != "value"))):
        raise _NotRead("the JSON is not complete")
    if last == "comma":
        out.pop()
    out += reversed(stack)
    try:
        return json.loads("".join(out), strict=False)
    except RecursionError as exc:
        raise _NotRead("the JSON is nested too deeply") from exc
    except ValueError as exc:
        raise _NotRead(f"not valid JSON: {exc}") from exc


_ESCAPE = re.compile(r'\\(u[0-9a-fA-F]{4}|.|\Z)|"', re.DOTALL)


def _scalar(token: re.Match[str], text: str) -> str:
    """A string, number or word as JSON text."""
    if token["triple"] is not None:
        if not (token["t1end"] or token["t2end"]):
            raise _NotRead("a string is never closed")
        body: str = token["t1"] if token["t1"] is not None else token["t2"]
        # over several lines it is code as it stands; on one line its newlines can only be escapes
        return json.dumps(body) if "\n" in body else _quoted(body)
    if token["d"] is not None or token["s"] is not None:
        if not (token["dend"] or token["send"]):
            raise _NotRead("a string is never closed")
        return _quoted(token["d"] if token["d"] is not None else token["s"])
    if token["word"] is not None:
        word: str = token["word"]
        if re.compile(r"\s*:").match(text, token.end()):
            return json.dumps(word)  # a key without quotes
        if word.lower() in _WORDS:
            return _WORDS[word.lower()]
        raise _NotRead(f"unexpected {word[:20]!r} in the JSON")
    return token[0].lstrip("+")


def _quoted(body: str) -> str:
    """The text between a model's quotes -> a JSON string; escapes that JSON does not have stand for themselves."""

    def mend(match: re.Match[str]) -> str:
        escape = match[1]
        if escape is None:
            return '\\"'
        if (escape[:1] in '"\\/bfnrt' and escape) or len(escape) == 5:
            return match[0]
        if escape == "'":
            return "'"
        return "\\" + match[0]

    return '"' + _ESCAPE.sub(mend, body) + '"'


# ------------------------------------------------------------------ guesses, checked


def _repaired(text: str) -> Any:
    """What *text* most likely means, when nothing of it is lost and nothing added; else None."""
    if len(text) > _REPAIR_LIMIT or text.rstrip().endswith(
        (":", ",")
    ):  # there is no value yet, and none is made up
        return None
    return _close_last_string(text) or _json_repair(text)


def _close_last_string(text: str) -> Any:
    """`{"a": {"b": "c}}`: a last string that runs into exactly the closers the object still needs."""
    stack: list[str] = []
    for token in _TOKEN.finditer(text):
        if token["open"]:
            stack.append(_CLOSER[token["open"]])
        elif token["close"] and stack:
            stack.pop()
        elif token["d"] is not None and not token["dend"]:
            closers = "".join(reversed(stack))
            body = re.compile(r"[\s}\]]*\Z").search(token["d"])
            assert body is not None
            if closers and re.sub(r"\s", "", body[0]) == closers:
                try:
                    return _loose(text[: token.start("d") + body.start()] + '"' + closers, cut=False)
                except _NotRead:
                    return None
    return None


def _json_repair(text: str) -> Any:
    if any(m["d"] is not None and not m["dend"] for m in _TOKEN.finditer(text)):
        return None  # a string is still open: half a program, however well it could be closed
    import json_repair  # slow to import; only broken calls need it

    try:
        value = json_repair.loads(text, skip_json_loads=True)
        if (
            isinstance(value, dict | list)
            and value
            and _words(json.dumps(value, ensure_ascii=False)) == _words(text)
        ):
            return value
    except Exception:  # it is no part of ours, and a parser of model text never raises
        return None
    return None


def _words(text: str) -> str:
    """The letters and digits of *text*, without those of escapes and with JSON's spelling of words."""
    text = re.sub(r"\\u[0-9a-fA-F]{4}|\\[bfnrt]", "", text)
    return re.sub(r"\W+", "", text).replace("None", "null").lower()
