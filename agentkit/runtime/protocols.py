"""Requests with tools -> requests without, for servers that know no tools: everything becomes text. Nothing here does I/O."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from agentkit.messages import BadCall, Message, Text, Thinking, ToolCall, system, user
from agentkit.runtime.engine import Request
from agentkit.runtime.stubs import python_stub

__all__ = [
    "JSON_FORM",
    "Protocol",
    "Remade",
    "hermes",
    "inline_thoughts",
    "last_question",
    "plain",
    "python",
    "react",
    "soft_switched",
]

Protocol: TypeAlias = Literal["native", "hermes", "react", "python"]

# How several calls are written, as a planner's guidance says it; `python` has them written otherwise.
JSON_FORM = (
    ': each in its own <tool_call>, or all in a JSON list [{"name": ..., "arguments": {...}}, '
    '{"name": ..., "arguments": {...}}]'
)
# Word for word as in Qwen3's chat template, so that the prompt is the one that the model was trained on.
_HERMES = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n%s\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n"
    '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
_REACT = (
    "You can use these tools:\n\n%s\n\n"
    "Use the following format:\n\n"
    "Thought: think about what to do next\n"
    "Action: the tool to use, one of [%s]\n"
    "Action Input: its arguments, as one JSON object\n"
    "Observation: the result of the tool (it is given to you; never write it yourself)\n"
    "... (Thought/Action/Action Input/Observation can be repeated)\n"
    "Thought: I now know the final answer\n"
    "Final Answer: the answer to the user"
)
_PYTHON = (
    "You can call these Python functions:\n\n```python\n%s\n```\n\n"
    "To call functions, reply with one Python code block that holds only the calls, one on each line, with their arguments "
    "written out. The functions are run and you are told their results. If none of the functions can do what is asked, answer "
    "in plain text, without code."
)
_RESPONSE, _OBSERVATION = "<tool_response>", "Observation:"
_KEPT = 2_000  # messages


class Remade:
    """Messages in another form, each made once however often it is sent: the made one keeps its JSON, as every message does."""

    def __init__(self) -> None:
        # by the identity of the message, which is kept alive so that no other one can come to have it
        self._made: dict[tuple[int, Callable[[Message], Message]], tuple[Message, Message]] = {}

    def __call__(self, message: Message, make: Callable[[Message], Message]) -> Message:
        key = (id(message), make)
        if key not in self._made:
            if len(self._made) >= _KEPT:
                del self._made[next(iter(self._made))]
            self._made[key] = (message, make(message))
        return self._made[key][1]


def hermes(request: Request, remade: Remade | None = None) -> Request:
    """*request* as Qwen3's chat template would write it: tools in the system text, calls in `<tool_call>` tags, results as
    what the user says in `<tool_response>` tags."""
    tools = "\n".join(map(_tool_json, request.tools))
    messages = _written(request, remade, _hermes_call, _hermes_results)
    return replace(request, messages=_with_system(messages, _HERMES % tools if tools else ""), tools=())


def react(request: Request, remade: Remade | None = None) -> Request:
    """*request* in ReAct's form: Thought, Action, Action Input and Observation, one under the other."""
    messages = _written(request, remade, _react_call, _react_results)
    functions = [t.get("function", t) for t in request.tools]
    described = "\n".join(_tool_json(f) for f in functions)
    names = ", ".join(str(f.get("name")) for f in functions)
    settings = request.settings
    if _OBSERVATION not in settings.stop:
        settings = replace(settings, stop=(*settings.stop, _OBSERVATION))
    text = _REACT % (described, names) if functions else ""
    return replace(request, messages=_with_system(messages, text), tools=(), settings=settings)


def python(request: Request, remade: Remade | None = None) -> Request:
    """*request* with its tools as Python functions, to be called in a block of code: for models that write code better than
    JSON, and in about half as many tokens. Results are as in `hermes`."""
    messages = _written(request, remade, _python_call, _hermes_results)
    text = _PYTHON % "\n\n".join(map(python_stub, request.tools)) if request.tools else ""
    messages = _with_system(messages, text)
    if messages and JSON_FORM in messages[0].text:
        messages[0] = system(messages[0].text.replace(JSON_FORM, ""))
    return replace(request, messages=messages, tools=())


def plain(request: Request) -> Request:
    """*request* for a chat template that knows users and assistants only, in turns: the system text opens the first user
    message, and what the user says in several messages becomes one."""
    texts = [m.text for m in request.messages if m.role == "system"]
    rest = [m for m in request.messages if m.role != "system"]
    if texts:
        first = next((i for i, m in enumerate(rest) if m.role == "user"), None)
        if first is None:
            rest.insert(0, user("\n\n".join(texts)))
        else:
            rest[first] = user("\n\n".join([*texts, rest[first].text]))
    return replace(request, messages=_joined(rest, "user"))


def soft_switched(request: Request, thinking: bool, remade: Remade | None = None) -> Request:
    """*request* with Qwen3's soft switch, `/think` or `/no_think`, behind what the user said last: the latest one counts."""
    last = last_question(request.messages)
    if last < 0:
        return request
    messages = list(request.messages)
    messages[last] = (remade or Remade())(messages[last], _think if thinking else _do_not_think)
    return replace(request, messages=messages)


def inline_thoughts(message: Message) -> Message:
    """An assistant's message with its thoughts in the text, as the model wrote them."""
    if not message.thinking or "</think>" in (message.raw or ""):
        return message
    block = f"<think>\n{message.thinking}\n</think>\n\n"
    if message.raw is not None:
        return replace(message, raw=block + message.raw)
    rest = [p for p in message.parts if not isinstance(p, Thinking)]
    return replace(message, parts=(Text(block), *rest))


def last_question(messages: Sequence[Message]) -> int:
    """Where the user last said something that is no result of a tool; -1 if nowhere."""
    for i in range(len(messages) - 1, -1, -1):
        if messages[i].role == "user" and not messages[i].text.startswith((_RESPONSE, _OBSERVATION)):
            return i
    return -1


# ------------------------------------------------------------------ parts of it


def _tool_json(tool: Mapping[str, Any]) -> str:
    return json.dumps(tool, ensure_ascii=False)  # spaces and all, as the template's `tojson` has it


def _written(
    request: Request,
    remade: Remade | None,
    call: Callable[[Message], Message],
    results: Callable[[Message], Message],
) -> list[Message]:
    """The messages, with calls and results as text."""
    once, forms = remade or Remade(), {"assistant": call, "tool": results}
    return [once(m, forms[m.role]) if m.role in forms else m for m in _joined(request.messages, "tool")]


def _with_system(messages: list[Message], text: str) -> list[Message]:
    if not text:
        return messages
    if messages and messages[0].role == "system":
        return [system(f"{messages[0].text}\n\n{text}"), *messages[1:]]
    return [system(text), *messages]


def _joined(messages: Sequence[Message], role: str) -> list[Message]:
    """Neighbours of that role as one message, texts with a blank line between them."""
    if not any(a.role == b.role == role for a, b in pairwise(messages)):
        return list(messages)
    joined: list[Message] = []
    for m in messages:
        if m.role != role or not joined or joined[-1].role != role:
            joined.append(m)
            continue
        between = () if role == "tool" else (Text("\n\n"),)
        joined[-1] = Message(m.role, (*joined[-1].parts, *between, *m.parts))
    return joined


def _think(message: Message) -> Message:
    return user(f"{message.text} /think")


def _do_not_think(message: Message) -> Message:
    return user(f"{message.text} /no_think")


def _arguments(call: ToolCall) -> str:
    return call.raw or json.dumps(call.arguments, ensure_ascii=False)


def _said(message: Message) -> list[str]:
    """The text, and the calls that could not be read, which go back as they were written."""
    bad = [p.raw for p in message.parts if isinstance(p, BadCall)]
    return [message.text, *bad] if message.text else bad


def _results(message: Message) -> list[str]:
    """What the tools said, with what the planner says about it behind the last."""
    texts = [r.content for r in message.results]
    if message.text and texts:
        texts[-1] += f"\n\n{message.text}"
    return texts or [message.text]


def _hermes_call(message: Message) -> Message:
    if message.raw is not None or not any(isinstance(p, ToolCall) for p in message.parts):
        return message
    calls = [
        f'<tool_call>\n{{"name": "{c.name}", "arguments": {_arguments(c)}}}\n</tool_call>'
        for c in message.calls
        if isinstance(c, ToolCall)
    ]
    thoughts = [p for p in message.parts if isinstance(p, Thinking)]
    return Message("assistant", (*thoughts, Text("\n".join([*_said(message), *calls]))))


def _python_call(message: Message) -> Message:
    calls = [c for c in message.calls if isinstance(c, ToolCall)]
    if message.raw is not None or not calls:
        return message
    lines = [f"{c.name}({', '.join(f'{k}={v!r}' for k, v in c.arguments.items())})" for c in calls]
    thoughts = [p for p in message.parts if isinstance(p, Thinking)]
    block = "```python\n" + "\n".join(lines) + "\n```"
    return Message("assistant", (*thoughts, Text("\n".join([*_said(message), block]))))


def _hermes_results(message: Message) -> Message:
    return user("\n".join(f"{_RESPONSE}\n{text}\n</tool_response>" for text in _results(message)))


def _react_call(message: Message) -> Message:
    if message.raw is not None and "Action:" in message.raw:
        # its Thought was read as thinking: not to be sent twice
        return Message("assistant", (Text(message.raw),), raw=message.raw)
    calls = [c for c in message.calls if isinstance(c, ToolCall)]
    if not calls:
        return message
    thought = "\n".join(_said(message))
    lines = [f"Thought: {thought}"] if thought else []
    lines += [f"Action: {c.name}\nAction Input: {_arguments(c)}" for c in calls]
    thoughts = [p for p in message.parts if isinstance(p, Thinking)]
    return Message("assistant", (*thoughts, Text("\n".join(lines))))


def _react_results(message: Message) -> Message:
    return user("\n".join(f"{_OBSERVATION} {text}" for text in _results(message)))
