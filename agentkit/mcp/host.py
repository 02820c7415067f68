"""What servers may ask of us and tell us: the model, the user, folders, progress, logs; and what we answer.

The SDK is imported when a server is first connected.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import anyio

from agentkit.errors import AgentkitError
from agentkit.mcp.prompts import as_text
from agentkit.mcp.translate import clean
from agentkit.messages import BadCall, Message, Part, Text, ToolCall, ToolResult, Usage, system
from agentkit.progress import watcher
from agentkit.runtime.engine import Engine, ModelSettings, Request

if TYPE_CHECKING:
    from mcp import Client, MCPError, types
    from mcp.client.context import ClientRequestContext
    from mcp.shared.dispatcher import ProgressFnT

    from agentkit.mcp.config import ServerSpec
    from agentkit.mcp.pins import ToolChange

__all__ = [
    "Answered",
    "Asked",
    "Host",
    "LogLine",
    "Progress",
    "Question",
    "client_options",
    "connected",
    "model_of",
    "offers",
    "progress_callback",
    "roots_changed",
    "visited",
]

log = logging.getLogger(__name__)

SAMPLE_TOKENS = 2_048  # of one answer of our model to a server
SAMPLE_BUDGET = 100_000  # tokens that a server may use up, prompts and answers together

LEVELS = {  # the protocol's, from syslog
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "notice": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "alert": logging.CRITICAL,
    "emergency": logging.CRITICAL,
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a server wants to ask our model ("sampling").

    `request` is as it will be sent; `models` are those the server would have liked, which is not followed.
    """

    server: str
    request: Request
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answered:
    """What the model answered a server."""

    message: Message
    model: str = ""
    finish_reason: str = "stop"
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Question:
    """What a server asks the user ("elicitation").

    `schema` is that of a flat object to be filled in; where there is a `url` instead, the user is to visit it.
    """

    server: str
    message: str
    schema: Mapping[str, Any] = field(default_factory=dict)
    url: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a server has come with a tool call."""

    server: str
    tool: str
    progress: float
    total: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a server's log; `level` is "debug", "info", "notice", "warning", "error" or worse."""

    server: str
    level: str
    text: str
    logger: str = ""


Sample: TypeAlias = Callable[[Asked], Awaitable[Answered]]
Approve: TypeAlias = Callable[[Asked], Awaitable[bool]]
Elicit: TypeAlias = Callable[[Question], Awaitable[Mapping[str, Any] | Literal["decline", "cancel"]]]
Paths: TypeAlias = str | Path | Sequence[str | Path]
Pause: TypeAlias = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Host:
    """What we offer to MCP servers, beyond calling their tools.

    `sample` answers a server that wants to ask a model; an agent puts its own model here. A server gets to ask
    only if `approve` says yes each time, or if its config has "sampling": true. `max_tokens` is the most that
    one answer has, `token_budget` what one server may use up, prompts included.
    `elicit` puts a server's question to the user: it returns the values, "decline" or "cancel" (for a URL, {} as
    the user agrees to visit it). Without it every question is declined.
    `approve_tools` is asked when a server has changed tools since they were first seen; without it those are not offered.
    `roots` are the folders that servers are told to work in, or a function that returns them.
    `on_progress` and `on_log` are told what servers report; log lines go to the logger
    "agentkit.mcp.server.<name>" as well, from `log_level` on.
    """

    sample: Sample | None = None
    approve: Approve | None = None
    elicit: Elicit | None = None
    approve_tools: Callable[[str, Sequence[ToolChange]], Awaitable[bool]] | None = None
    roots: Paths | Callable[[], Paths] = ()
    on_progress: Callable[[Progress], None] | None = None
    on_log: Callable[[LogLine], None] | None = None
    log_level: Literal["debug", "info", "notice", "warning", "error", "critical"] = "info"
    max_tokens: int = SAMPLE_TOKENS
    token_budget: int = SAMPLE_BUDGET

    def with_model(self, engine: Engine) -> Host:
        """This, with *engine* answering for `sample` where nothing else does."""
        return self if self.sample else replace(self, sample=model_of(engine))


def model_of(engine: Engine) -> Sample:
    """A `Host.sample` that asks *engine*."""

    async def sample(asked: Asked) -> Answered:
        from agentkit.parsing import TurnParser
        from agentkit.runtime.presets import recommended

        model = getattr(engine, "model", None) or ""
        request = replace(asked.request, settings=recommended(model, asked.request.settings))
        parser = TurnParser(request.tools)
        finish_reason, usage = "stop", Usage()
        async with aclosing(engine.stream(request)) as chunks:
            async for chunk in chunks:
                parser.feed(chunk.text, chunk.reasoning, chunk.calls)
                finish_reason = chunk.finish_reason or finish_reason
                usage = chunk.usage or usage
        parser.close(finish_reason)
        return Answered(parser.message(), model or "unknown", finish_reason, usage)

    return sample


def client_options(host: Host, spec: ServerSpec, pause: Pause = contextlib.nullcontext) -> dict[str, Any]:
    """Keyword arguments for the SDK's `Client`: the callbacks that answer *spec*'s server from *host*.

    What is not offered is not announced either. `pause` is entered while the model or the user is being asked,
    so that the time they take need not count as the server's.
    """
    from mcp import types

    options: dict[str, Any] = {
        "elicitation_callback": _elicitation(host, spec, pause),
        "logging_callback": _logging(host, spec),
        "log_level": host.log_level,
    }
    if host.sample and _may_sample(host, spec):
        approve = None if spec.sampling else host.approve
        options["sampling_callback"] = _sampling(host, host.sample, approve, spec, pause)
        options["sampling_capabilities"] = types.SamplingCapability(tools=types.SamplingToolsCapability())
    if host.roots:

        async def roots(context: ClientRequestContext) -> types.ListRootsResult:
            paths = host.roots() if callable(host.roots) else host.roots
            paths = [paths] if isinstance(paths, str | Path) else paths
            found = [Path(path).expanduser().absolute() for path in paths]
            return types.ListRootsResult(
                roots=[types.Root.model_validate({"uri": path.as_uri(), "name": path.name}) for path in found]
            )

        options["list_roots_callback"] = roots
    return options


def offers(host: Host, spec: ServerSpec) -> str:
    """What `client_options` announces, in words: a server may list other tools to a client that offers less."""
    sampling = bool(host.sample) and _may_sample(host, spec)
    return " ".join(
        word for word, yes in (("elicitation", True), ("roots", host.roots), ("sampling", sampling)) if yes
    )


def _may_sample(host: Host, spec: ServerSpec) -> bool:
    return spec.sampling is not False and bool(spec.sampling or host.approve)


async def connected(client: Client, host: Host) -> None:
    """What a server of the older protocol has to be told once it is connected: from which level on to log."""
    from mcp import MCPError, types
    from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

    if client.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS and client.server_capabilities.logging:
        params = types.SetLevelRequestParams(level=host.log_level)
        with contextlib.suppress(MCPError):  # it announces logging and cannot set it: not worth an error
            await client.session.send_request(types.SetLevelRequest(params=params), types.EmptyResult)


async def roots_changed(client: Client) -> None:
    """Tell a server that `Host.roots` returns other folders than before."""
    from mcp import types

    # the newer protocol has no such message: there a server asks again with each call
    await client.session.send_notification(types.RootsListChangedNotification())


def progress_callback(host: Host, spec: ServerSpec, tool: str) -> ProgressFnT | None:
    """What to hand to `Client.call_tool` for a call of *tool*, made by the task that is making the call."""
    watch = watcher()
    if watch is None and host.on_progress is None:
        return None  # without a token a server sends nothing

    async def report(progress: float, total: float | None, message: str | None) -> None:
        if host.on_progress is not None:
            host.on_progress(Progress(spec.name, tool, progress, total, message or ""))
        if watch is not None:
            await watch(progress, total, message or "")

    return report


# ------------------------------------------------------------------ logging


def _logging(host: Host, spec: ServerSpec) -> Any:
    logger = logging.getLogger(f"agentkit.mcp.server.{spec.name}")
    if not logger.handlers:  # a program that did not set up logging must not get it on its terminal
        logger.addHandler(logging.NullHandler())

    async def log(params: types.LoggingMessageNotificationParams) -> None:
        import json

        data = params.data
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, default=str)
        logger.log(LEVELS[params.level], "%s", text)
        if host.on_log is not None:
            host.on_log(LogLine(spec.name, params.level, text, params.logger or ""))

    return log


# ------------------------------------------------------------------ sampling


def _sampling(host: Host, sample: Sample, approve: Approve | None, spec: ServerSpec, pause: Pause) -> Any:
    from mcp import types

    used = 0
    one = anyio.Lock()  # at a time: else they could pass the budget together

    def refuse(why: str, code: int = types.INVALID_REQUEST) -> types.ErrorData:
        return types.ErrorData(code=code, message=why)

    async def answer(
        context: ClientRequestContext, params: types.CreateMessageRequestParams
    ) -> types.CreateMessageResult | types.CreateMessageResultWithTools | types.ErrorData:
        nonlocal used
        asked = _asked(spec.name, params, host.max_tokens)
        try:
            with pause():
                async with one:
                    if used >= host.token_budget:
                        return refuse(
                            f"The budget of {host.token_budget:,} tokens for this server is used up"
                        )
                    if approve is not None and not await approve(asked):
                        return refuse("User rejected sampling request", -1)  # the specification's own example
                    used += _about(asked.request.messages)  # also if it fails: failing must not be free
                    answered = await sample(asked)
                    counted = answered.usage.total_tokens - _about(asked.request.messages)
                    used += max(counted, _about([answered.message]))
        except AgentkitError as exc:
            return refuse(f"The model cannot answer: {exc}", types.INTERNAL_ERROR)
        except Exception:
            log.exception("answering the MCP server %r failed", spec.name)
            return refuse("The client failed to answer", types.INTERNAL_ERROR)
        return _answer(answered, bool(asked.request.tools))

    return answer


def _asked(server: str, params: types.CreateMessageRequestParams, max_tokens: int) -> Asked:
    messages = [system(clean(params.system_prompt))] if params.system_prompt else []
    for message in params.messages:
        messages += _messages(message)
    mode = params.tool_choice.mode if params.tool_choice else None
    tools = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description or "",
                "parameters": tool.input_schema,
            },
        }
        for tool in (params.tools or [] if mode != "none" else [])
    ]
    settings = ModelSettings(
        temperature=params.temperature,
        max_tokens=max(1, min(params.max_tokens, max_tokens)),
        stop=tuple(params.stop_sequences or ()),
        thinking=False,  # it would take up the few tokens that servers ask for
        extra={"tool_choice": "required"} if tools and mode == "required" else {},
    )
    hints = (params.model_preferences.hints or []) if params.model_preferences else []
    return Asked(server, Request(messages, tools, settings), tuple(hint.name for hint in hints if hint.name))


def _messages(message: types.SamplingMessage) -> list[Message]:
    """A server's message as ours; results of tools come in the user's name there."""
    parts: list[Part] = []
    results: list[Part] = []
    for block in message.content_as_list:
        match block.type:
            case "text":
                parts.append(Text(clean(block.text)))
            case "tool_use":
                parts.append(ToolCall(block.id, block.name, block.input))
            case "tool_result":
                text = "\n".join(as_text(inner) for inner in block.content)
                results.append(ToolResult(block.tool_use_id, text, bool(block.is_error)))
            case "image" | "audio":
                parts.append(Text(as_text(block)))
    made = [Message("tool", tuple(results))] if results else []
    return [*made, Message(message.role, tuple(parts))] if parts else made


def _answer(
    answered: Answered, with_tools: bool
) -> types.CreateMessageResult | types.CreateMessageResultWithTools:
    from mcp import types

    message, model = answered.message, answered.model or "unknown"
    text = message.text.strip()
    stop = "maxTokens" if answered.finish_reason == "length" else "endTurn"
    if not with_tools:
        content = types.TextContent(type="text", text=text)
        return types.CreateMessageResult(role="assistant", content=content, model=model, stop_reason=stop)
    blocks: list[types.SamplingMessageContentBlock] = []
    if text:
        blocks.append(types.TextContent(type="text", text=text))
    for call in message.calls:
        if isinstance(call, BadCall):
            blocks.append(types.TextContent(type="text", text=call.raw))
        else:
            stop = "toolUse"
            blocks.append(types.ToolUseContent(id=call.id, name=call.name, input=dict(call.arguments)))
    return types.CreateMessageResultWithTools(role="assistant", content=blocks, model=model, stop_reason=stop)


def _about(messages: Sequence[Message]) -> int:
    """How many tokens they are, at a guess."""
    return 1 + sum(len(m.text) + sum(len(r.content) for r in m.results) for m in messages) // 4


# ------------------------------------------------------------------ elicitation


def _elicitation(host: Host, spec: ServerSpec, pause: Pause) -> Any:
    from mcp import types

    async def answer(
        context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult | types.ErrorData:
        if host.elicit is None:
            return types.ElicitResult(action="decline")
        if params.mode == "url":
            question = Question(spec.name, params.message, url=params.url)
        else:
            question = Question(spec.name, params.message, params.requested_schema)
        try:
            with pause():
                reply = await host.elicit(question)
        except Exception:
            log.exception("asking the user for the MCP server %r failed", spec.name)
            return types.ElicitResult(action="cancel")
        if isinstance(reply, str):
            return types.ElicitResult(action=reply)
        if question.url:
            return types.ElicitResult(action="accept")
        content = defaults(question.schema) | dict(reply)
        if problem := wrong(content, question.schema):
            log.error("the answer to a question of the MCP server %r is not valid: %s", spec.name, problem)
            return types.ElicitResult(action="cancel")
        return types.ElicitResult(action="accept", content=content)

    return answer


async def visited(host: Host, spec: ServerSpec, exc: MCPError, pause: Pause = contextlib.nullcontext) -> bool:
    """Whether an error only says that the user has to visit pages first, and the user now has: then call again."""
    from mcp.shared.exceptions import UrlElicitationRequiredError
    from mcp.types import URL_ELICITATION_REQUIRED

    if exc.code != URL_ELICITATION_REQUIRED:
        return False
    try:
        pages = UrlElicitationRequiredError.from_error(exc.error).elicitations
    except (ValueError, AttributeError):  # without the pages
        return False
    answer = _elicitation(host, spec, pause)
    for page in pages:
        if (await answer(None, page)).action != "accept":
            return False
    return bool(pages)


def defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a question's schema has for what is not answered."""
    properties = schema.get("properties")
    fields = properties.items() if isinstance(properties, Mapping) else ()
    return {name: p["default"] for name, p in fields if isinstance(p, Mapping) and "default" in p}


def wrong(value: Any, schema: Mapping[str, Any]) -> str:
    """Why *value* is not valid against *schema*, "" where it is; a schema that is none itself allows all."""
    from jsonschema import Draft202012Validator, FormatChecker  # type: ignore[import-untyped]
    from jsonschema.exceptions import SchemaError, best_match  # type: ignore[import-untyped]
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    registry: Registry[Any] = Registry()  # an empty one: nothing is fetched
    validator = Draft202012Validator(schema, registry=registry, format_checker=FormatChecker())
    try:
        Draft202012Validator.check_schema(schema)
        found = best_match(validator.iter_errors(value))
    except (SchemaError, Unresolvable):
        return ""
    if found is None:
        return ""
    where = ".".join(str(part) for part in found.absolute_path)
    return f"{where}: {found.message}" if where else str(found.message)
