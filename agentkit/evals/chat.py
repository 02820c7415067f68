"""Chat completions as JSON: when two requests ask the same, and an answer as a stream's events. Nothing here does I/O."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["canonical", "events", "summary", "took"]

# The client's bookkeeping, which reaches neither the prompt nor the sampling
_NOT_ASKED = frozenset(
    "user metadata store service_tier safety_identifier prompt_cache_key session_id".split()
)
_THOUGHTS = ("reasoning_content", "reasoning")
_PIECE = 48  # characters in an event of a stream


def canonical(body: Mapping[str, Any]) -> dict[str, Any]:
    """What of a request the model can make a difference of. Not sorted: the order of keys in a tool reaches its prompt."""
    asked = {k: v for k, v in sorted(body.items()) if k not in _NOT_ASKED and v is not None}
    if asked.get("tool_choice") == "auto":  # as it is without
        del asked["tool_choice"]
    asked["messages"] = [_message(_without_none(m)) for m in asked["messages"]]
    if isinstance(asked.get("tools"), list):
        asked["tools"] = [_loose(tool) for tool in asked["tools"]]
    return asked


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value


def _message(message: Any) -> Any:
    """With its content as text, if it is a list of one text, and its fields in one order: templates ask for them by name."""
    match message:
        case {"content": [{"type": "text", "text": str(text), **rest}]} if not rest:
            message = {**message, "content": text}
    return dict(sorted(message.items())) if isinstance(message, dict) else message


def _loose(tool: Any) -> Any:
    """Without "strict": false, which is what it is without."""
    if not isinstance(tool, dict):
        return tool
    made = {k: v for k, v in tool.items() if v is not None and (k, v) != ("strict", False)}
    return {k: _loose(v) if k == "function" else v for k, v in made.items()}


# ------------------------------------------------------------------ answers


def summary(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What turns.jsonl says of an answer."""
    choice = answer["choices"][0]
    message = choice["message"]
    return {
        "usage": answer.get("usage"),
        "finish_reason": choice.get("finish_reason"),
        "thinking": next((message[field] for field in _THOUGHTS if message.get(field)), ""),
        "text": message.get("content") or "",
        "tool_calls": [call.get("function") for call in message.get("tool_calls") or ()],
    }


def took(answer: Mapping[str, Any]) -> float | None:
    """The seconds of work in an answer, without what it waited for others, where the server tells (llama-server does)."""
    match answer.get("timings"):
        case {"prompt_ms": int() | float() as prompt, "predicted_ms": int() | float() as predicted}:
            return (prompt + predicted) / 1000
    return None


def events(answer: Mapping[str, Any], with_usage: bool) -> Iterator[str]:
    """The answer as the events of a stream, as vLLM and llama-server send them."""
    about = {k: answer.get(k) for k in ("id", "created", "model")}
    about["object"] = "chat.completion.chunk"

    def event(*choices: Mapping[str, Any], **more: Any) -> str:
        return json.dumps({**about, "choices": choices, **more})

    for choice in answer["choices"]:
        at = {"index": choice.get("index", 0)}
        for delta in _deltas(choice["message"]):
            yield event({**at, "delta": delta, "finish_reason": None})
        logprobs = {k: choice[k] for k in ("logprobs",) if choice.get(k)}
        yield event({**at, "delta": {}, "finish_reason": choice.get("finish_reason") or "stop", **logprobs})
    if with_usage:
        yield event(usage=answer.get("usage"))
    yield "[DONE]"


def _deltas(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    texts = [field for field in (*_THOUGHTS, "content") if isinstance(message.get(field), str)]
    whole = {k: v for k, v in message.items() if v and k not in (*texts, "tool_calls")}
    yield {"role": "assistant", "content": "" if message.get("content") else None, **whole}
    for field in texts:
        for piece in _pieces(message[field]):
            yield {field: piece}
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = call.get("function") or {}
        begun = {"name": function.get("name"), "arguments": ""}
        yield {"tool_calls": [{"index": index, **_without_none(call), "function": begun}]}
        arguments = function.get("arguments") or ""  # an object, where a server does not keep to the API
        for piece in _pieces(arguments if isinstance(arguments, str) else json.dumps(arguments)):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _pieces(text: str) -> Iterator[str]:
    return (text[at : at + _PIECE] for at in range(0, len(text), _PIECE))
