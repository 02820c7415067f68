"""A server's answer, whole or streamed, as its bytes came: what is in it, and what is wrong with its form. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from agentkit.runtime.servers import error_value

__all__ = ["Answer", "Call", "Finding", "State", "as_object", "error_text", "read_stream", "read_whole"]

State: TypeAlias = Literal["ok", "warn", "missing", "unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: `missing` is broken, `warn` is something agentkit works around or does without."""

    id: str  # a key of CHECKS
    state: State
    detail: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Answer:
    error: str = ""  # why there is no answer
    refused: int = 0  # the HTTP status, where it is not 200
    silent: bool = False  # nothing came any more, or nothing at all
    broke: str = ""  # how it ended too early
    stream: bool = False
    text: str = ""
    thoughts: str = ""
    fields: tuple[str, ...] = ()  # the names that thoughts came under
    calls: tuple[Call, ...] = ()
    finish: str | None = None
    usage: Mapping[str, Any] | None = None
    faults: tuple[Finding, ...] = ()
    old_form: bool = False  # a call came as `function_call`
    lump: bool | None = None  # a stream came all at once; None: too few pieces to say
    seen: frozenset[str] = frozenset()  # the checks of form that it was looked at for

    @property
    def inline(self) -> bool:
        """Thoughts in the text; an empty block, which a model that is switched off may write, is none."""
        return "</think>" in re.sub(r"^\s*<think>\s*</think>", "", self.text) or bool(
            re.match(r"\s*<think>\s*(?!</think>)\S", self.text)
        )

    @property
    def thought(self) -> bool:
        return bool(self.thoughts) or self.inline

    @property
    def vanished(self) -> bool:
        """It ended by itself, and all of it came as thoughts."""
        return bool(self.thoughts) and not self.text.strip() and not self.calls and self.finish == "stop"

    @property
    def prompt_tokens(self) -> int | None:
        return _number(self.usage, "prompt_tokens")

    @property
    def completion_tokens(self) -> int | None:
        return _number(self.usage, "completion_tokens")


def _number(usage: Mapping[str, Any] | None, name: str) -> int | None:
    value = (usage or {}).get(name)
    return value if isinstance(value, int) else None


def read_whole(content: bytes, broke: str, forced: bool) -> Answer:
    faults: list[Finding] = []
    value = as_object(content)
    if value is None:
        return Answer(
            error=broke or f"what it sends is not JSON: {content[:60].decode('utf-8', 'replace')!r}"
        )
    if value.get("error"):
        return Answer(error=f"HTTP 200, but an error inside: {error_text(content)}")
    choices = value.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return Answer(error="the answer has no choices")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        return Answer(error="the answer's choice has no message")
    turn = _Turn()
    turn.take(message)
    finish = _word(choices[0].get("finish_reason")) or None
    usage = value.get("usage")
    _check_bytes(content, faults)
    return turn.answer(faults, finish, usage if isinstance(usage, dict) else None, forced)


def read_stream(
    headers: Mapping[str, str], pieces: Sequence[tuple[float, bytes]], broke: str, forced: bool
) -> Answer:
    faults: list[Finding] = []
    turn = _Turn()
    finish: str | None = None
    usage: Mapping[str, Any] | None = None
    done = False
    content = b"".join(data for _, data in pieces)

    def fault(state: State, detail: str) -> None:
        faults.append(Finding("stream.events", state, detail))

    kind = headers.get("content-type", "not given")
    if "text/event-stream" not in kind:
        fault("warn", f"its content type is {kind!r}, not text/event-stream")
    for payload in _payloads(content):
        if payload == b"[DONE]":
            done = True
            continue
        if done:
            fault("warn", "events come after [DONE]")
        event = as_object(payload)
        if event is None:
            fault("missing", f"an event is not JSON: {payload[:60].decode('utf-8', 'replace')!r}")
            continue
        if event.get("error"):
            return Answer(error=f"an error in the middle of the stream: {error_text(payload)}", stream=True)
        if isinstance(event.get("usage"), dict):
            usage = event["usage"]
        choices = event.get("choices")
        if choices is None:
            fault("warn", "choices is null in an event" if "choices" in event else "an event has no choices")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                fault("warn", "a choice is null")
                continue
            delta = choice.get("delta")
            if not isinstance(delta, dict):
                fault("warn", "a choice has no delta")
                delta = choice["message"] if isinstance(choice.get("message"), dict) else {}
            if finish and (delta.get("content") or delta.get("tool_calls")):
                fault("warn", "text or calls come after the finish reason")
            turn.take(delta)
            finish = _word(choice.get("finish_reason")) or finish
    if broke or (not done and finish is None):
        fault("missing", broke or "it breaks off: no finish reason, no [DONE]")
        broke = broke or "broke off"
    elif not done:
        fault("warn", "[DONE] is missing at the end")
    _check_bytes(content, faults)
    _check_flow(turn.texts, headers, pieces, faults)
    answer = turn.answer(faults, finish, usage, forced, stream=True, broke=broke)
    # without chunks, what a fast server sends piece by piece may be read at once
    telling = "chunked" in headers.get("transfer-encoding", "") or (pieces and pieces[0][0] > 1.0)
    many = content.count(b"data:") > 6 and not broke
    return replace(answer, lump=len(pieces) == 1 if many and telling else None)


def _payloads(content: bytes) -> Iterator[bytes]:
    for line in content.splitlines():
        if line.startswith(b"data:"):
            yield line[5:].strip()


class _Turn:
    """A message, taken as it comes: whole, or delta by delta."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.fields: dict[str, list[str]] = {}
        self.slots: list[_Slot] = []
        self.faults: list[Finding] = []
        self.old_form = False

    def take(self, delta: Mapping[str, Any]) -> None:
        content = delta.get("content")
        if isinstance(content, list):
            self.faults.append(Finding("chat.whole", "warn", "content is a list of parts, not a string"))
            content = "".join(str(p.get("text", "")) for p in content if isinstance(p, dict))
        if content and isinstance(content, str):
            self.texts.append(content)
        for name, value in delta.items():
            if isinstance(value, str) and value and name not in _PLAIN_FIELDS:
                self.fields.setdefault(name, []).append(value)
        self.old_form = self.old_form or isinstance(delta.get("function_call"), dict)
        calls = delta.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, dict):
                self._call(call, call["function"] if isinstance(call.get("function"), dict) else {})

    def _call(self, call: Mapping[str, Any], function: Mapping[str, Any]) -> None:
        index, id, name = call.get("index"), _word(call.get("id")), _word(function.get("name"))
        if index is None:  # whole calls have none; in a stream, what has no name goes on with the last call
            slot = self.slots[-1] if self.slots and not name else None
        else:
            slot = next((s for s in reversed(self.slots) if s.index == index), None)
        if slot is None:
            pass
        elif id and slot.id and id != slot.id:
            if name:
                self._ids(
                    "warn",
                    f"two calls share the index {index}; agentkit tells them apart, other clients may not",
                )
                slot = None
            else:
                self._ids("warn", "a call's id changes from piece to piece")
        elif id and slot.id:
            self._ids("warn", "a call's id is repeated with its later pieces")
        if slot is None:
            slot = _Slot(index, id, name)
            self.slots.append(slot)
        elif name:
            slot.name += name if name != slot.name else ""
        slot.id = slot.id or id
        arguments = function.get("arguments")
        if isinstance(arguments, (dict, list)):
            self.faults.append(
                Finding("tools.arguments", "warn", "arguments is an object, not a string; agentkit takes it")
            )
            arguments = json.dumps(arguments, ensure_ascii=False)
        if isinstance(arguments, str) and arguments:
            slot.pieces.append(arguments)

    def _ids(self, state: State, detail: str) -> None:
        self.faults.append(Finding("tools.ids", state, detail))

    def answer(
        self,
        faults: list[Finding],
        finish: str | None,
        usage: Mapping[str, Any] | None,
        forced: bool,
        *,
        stream: bool = False,
        broke: str = "",
    ) -> Answer:
        cut = finish == "length" or bool(broke)
        calls = tuple(slot.call(self.faults, cut) for slot in self.slots)
        ids = [slot.id for slot in self.slots]
        if stream and any(slot.index is None for slot in self.slots):
            self._ids("warn", "a streamed call has no index")
        if any(not id for id in ids):
            self._ids("warn", "a call has no id; agentkit gives it one")
        elif len(set(ids)) < len(ids):
            self._ids("warn", f"two calls have the same id {ids[0]!r}; agentkit gives one another")
        if finish is None:
            if not broke:
                self.faults.append(Finding("finish.reason", "warn", "no finish_reason"))
        elif finish not in _FINISHES:
            self.faults.append(
                Finding("finish.reason", "warn", f"says {finish!r}, which clients do not know")
            )
        elif calls and finish not in ("tool_calls", "function_call", "length") and not forced:
            self.faults.append(Finding("finish.reason", "warn", f"says {finish!r} where it made tool calls"))
        text, thoughts = "".join(self.texts), "".join("".join(v) for v in list(self.fields.values())[:1])
        _check_text([*self.texts, *(p for v in self.fields.values() for p in v)], self.faults)
        _check_text([p for slot in self.slots for p in slot.pieces], self.faults)
        seen = {"finish.reason"} if finish else set()
        seen |= {"stream.events"} if stream else set()
        seen |= {"stream.incremental"} if stream and text else set()
        seen |= {"tools.arguments", "tools.ids"} if calls else set()
        seen |= {"text.unicode"} if not (text + thoughts).isascii() else set()
        return Answer(
            broke=broke,
            stream=stream,
            text=text,
            thoughts=thoughts,
            fields=tuple(self.fields),
            calls=calls,
            finish=finish,
            usage=usage,
            faults=(*faults, *self.faults),
            old_form=self.old_form,
            seen=frozenset(seen),
        )


class _Slot:
    """A tool call as its pieces come."""

    def __init__(self, index: int | None, id: str, name: str) -> None:
        self.index, self.id, self.name = index, id, name
        self.pieces: list[str] = []

    def call(self, faults: list[Finding], cut: bool) -> Call:
        joined = "".join(self.pieces)
        text, wrong = joined, ""
        try:
            if not isinstance(json.loads(joined), dict):
                wrong = "arguments are not a JSON object"
        except ValueError:
            several = _several(joined)
            grows = len(self.pieces) > 1 and all(b.startswith(a) for a, b in pairwise(self.pieces))
            if grows:
                wrong, text = "each streamed piece repeats the arguments so far", self.pieces[-1]
            elif len(several) > 1 and all(v == several[0] for v in several):
                wrong, text = "the arguments are sent twice", json.dumps(several[0], ensure_ascii=False)
            elif len(several) > 1:
                faults.append(Finding("tools.parallel", "missing", "two calls are run together into one"))
            elif not cut:
                wrong = f"arguments are not JSON: {joined[:40]!r}" if joined else "arguments are empty"
        if wrong:
            faults.append(Finding("tools.arguments", "missing", wrong))
        return Call(self.id, self.name, text)


def _several(text: str) -> list[Any]:
    """The JSON objects that follow one another in *text*; none if anything else is in it."""
    values, at = [], 0
    decoder = json.JSONDecoder()
    try:
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            values.append(value)
    except ValueError:
        return []
    return values


_FINISHES = {"stop", "length", "tool_calls", "function_call", "content_filter"}
# what a message may carry as text beside thoughts
_PLAIN_FIELDS = set("role content refusal name id object type stop_reason audio function_call".split())


def _check_bytes(content: bytes, faults: list[Finding]) -> None:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        faults.append(Finding("text.unicode", "missing", "what it sends is not UTF-8"))


def _check_text(pieces: Sequence[str], faults: list[Finding]) -> None:
    text = "".join(pieces)
    broken = ""
    if "\ufffd" in text or any("\ud800" <= c <= "\udfff" for piece in pieces for c in piece):
        broken = "characters are broken between pieces (U+FFFD or half of a pair)"
    elif re.search(r"Z\?+rich", text):
        broken = "characters beyond ASCII come as '?'"
    elif not text.isascii():
        try:
            text.encode("latin-1").decode("utf-8")
            broken = "UTF-8 is read as Latin-1 somewhere ('Ã¼' for 'ü')"
        except UnicodeError:
            pass
    if broken:
        faults.append(Finding("text.unicode", "missing", broken))


def _check_flow(
    texts: Sequence[str],
    headers: Mapping[str, str],
    pieces: Sequence[tuple[float, bytes]],
    faults: list[Finding],
) -> None:
    """Whether the text came while it was written, and each piece once."""
    text = "".join(texts)
    if len(texts) > 2 and all(b.startswith(a) and b != a for a, b in pairwise(texts)):
        faults.append(Finding("stream.events", "missing", "each piece repeats the text so far"))
    lump = ""
    if len(texts) == 1 and len(text) >= 20:
        lump = "the whole text comes in one piece"
    elif "content-length" in headers:
        lump = "the whole stream is sent at once, with its length known"
    elif len(texts) > 4 and pieces[0][0] > 1.0 and pieces[-1][0] - pieces[0][0] < 0.02:
        # the times of a fast server say nothing, nor does it matter there
        lump = f"nothing comes for {pieces[0][0]:.1f} s, then all at once"
    if lump:
        faults.append(Finding("stream.incremental", "warn", lump))


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


def as_object(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content.decode("utf-8", "replace"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def error_text(content: bytes) -> str:
    """The readable part of an error."""
    value = error_value(content)
    said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return (
        "a web page" if said.lstrip().startswith("<") else " ".join(said.split())[:200] or "no reason given"
    )
