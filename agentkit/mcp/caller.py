"""The client behind a request to a server of ours: what a tool may tell it and ask it. Imports the SDK."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, get_args

from mcp import MCPError, types
from mcp.server import ServerRequestContext
from mcp.server.connection import allowed_log_levels
from mcp.server.subscriptions import SubscriptionBus
from mcp.shared.message import ServerMessageMetadata
from mcp.shared.subscriptions import (
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)
from mcp.types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import TypeAdapter, ValidationError

from agentkit.errors import ToolError

__all__ = ["Caller", "Clients", "session_of"]

LEVELS: tuple[types.LoggingLevel, ...] = get_args(types.LoggingLevel)  # from debug to emergency
CHANGES: dict[str, ServerEvent] = {
    "tools": ToolsListChanged(),
    "prompts": PromptsListChanged(),
    "resources": ResourcesListChanged(),
}
ANSWERS: dict[str, TypeAdapter[types.InputResponse]] = {
    "elicitation/create": TypeAdapter(types.ElicitResult),
    "sampling/createMessage": TypeAdapter(types.CreateMessageResult | types.CreateMessageResultWithTools),
    "roots/list": TypeAdapter(types.ListRootsResult),
}


class Clients:
    """What a server remembers of its clients. Those of 2026-07-28 have no sessions and are not in here."""

    def __init__(self, bus: SubscriptionBus) -> None:
        self.bus = bus  # of 2026-07-28's subscriptions
        self.levels: dict[str, types.LoggingLevel] = {}  # by session: the lowest that it wants to hear of
        self.subscribed: dict[tuple[str, str], ServerRequestContext[Any, Any]] = {}  # by session and URI

    async def changed(self, what: str) -> None:
        await self.bus.publish(CHANGES.get(what) or ResourceUpdated(uri=what))
        for (_, uri), context in list(self.subscribed.items()):
            if uri == what:
                await context.session.send_resource_updated(uri)


class Caller:
    """One request of a client.

    Answers to questions come within the same call where the protocol allows it. From 2026-07-28 on it does not: then
    the call ends with the questions as its result, and the client calls again with the answers. So whatever runs before
    `ask` runs once more after it, and a tool should ask before it acts.
    """

    def __init__(
        self,
        context: ServerRequestContext[Any, Any],
        params: types.InputResponseRequestParams,
        clients: Clients,
    ) -> None:
        self.instead: types.InputRequiredResult | MCPError | None = None  # of what the tool comes to
        self._context = context
        self._clients = clients
        self._modern = context.protocol_version in MODERN_PROTOCOL_VERSIONS
        self._answers: dict[str, dict[str, Any]] = dict(json.loads(params.request_state or "{}"))
        self._new = params.input_responses or {}

    async def log(self, text: str, level: types.LoggingLevel = "info") -> None:
        """Send a log message, to a client that wants those of that level."""
        wanted = self._clients.levels.get(session_of(self._context), "debug")
        if level not in allowed_log_levels(self._context.protocol_version, self._context.meta):
            return
        if LEVELS.index(level) < LEVELS.index(wanted):
            return
        params = types.LoggingMessageNotificationParams(level=level, data=text)
        await self._context.session.send_notification(
            types.LoggingMessageNotification(params=params), related_request_id=self._context.request_id
        )

    async def changed(self, what: str) -> None:
        """Tell every client that listens that the list of "tools", "prompts" or "resources" is another one now, or what
        the resource with the URI *what* holds."""
        await self._clients.changed(what)

    def can(self, method: str) -> bool:
        """Whether the client takes such questions: "elicitation/create", "sampling/createMessage", "roots/list"."""
        declared = self._context.session.client_capabilities or types.ClientCapabilities()
        if method == "elicitation/create":
            form = declared.elicitation
            return form is not None and (form.form is not None or form.url is None)
        return (declared.sampling if method == "sampling/createMessage" else declared.roots) is not None

    async def elicit(
        self, message: str, schema: Mapping[str, Any], key: str = "elicit"
    ) -> types.ElicitResult:
        """Ask the client's user to fill in a form. Questions of one call need different keys."""
        params = types.ElicitRequestFormParams(message=message, requested_schema=dict(schema))
        answer = await self.ask({key: types.ElicitRequest(params=params)})
        found = answer[key]
        assert isinstance(found, types.ElicitResult)
        return found

    async def ask(self, questions: Mapping[str, types.InputRequest]) -> dict[str, types.InputResponse]:
        """Put questions to the client, all at once: an elicitation, a sampling or a roots request under each key.

        Raises `ToolError` when the call has to end for now, or when the client cannot be asked that.
        """
        answers: dict[str, types.InputResponse] = {}
        open_questions: dict[str, types.InputRequest] = {}
        for key, question in questions.items():
            if (answer := self._answer(key, question)) is not None:
                answers[key] = answer
                continue
            if not self.can(question.method):
                self._cannot(question.method)
            if self._modern:
                open_questions[key] = question
            else:
                adapter = ANSWERS[question.method]
                result = await self._context.session.send_request(
                    question,
                    _result_type(question),
                    metadata=ServerMessageMetadata(related_request_id=self._context.request_id),
                )
                answers[key] = adapter.validate_python(result)
        if open_questions:
            state = json.dumps(self._answers)
            self.instead = types.InputRequiredResult(input_requests=open_questions, request_state=state)
            raise ToolError("the client has to answer a question first")
        return answers

    def _answer(self, key: str, question: types.InputRequest) -> types.InputResponse | None:
        """The answer that this call brought along, or an earlier one did; None if it is no answer to that."""
        asked = hashlib.sha256(question.model_dump_json(by_alias=True).encode()).hexdigest()[:16]
        wire = None
        if key in self._new:
            wire = self._new[key].model_dump(mode="json", by_alias=True, exclude_none=True)
        elif (earlier := self._answers.get(key)) is not None and earlier["asked"] == asked:
            wire = earlier["answer"]
        if wire is None:
            return None
        try:
            answer = ANSWERS[question.method].validate_python(wire, by_name=False)
        except ValidationError:
            return None
        self._answers[key] = {"asked": asked, "answer": wire}
        return answer

    def _cannot(self, method: str) -> None:
        needed = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling"}.get(
            method, "roots"
        )
        text = f"The client cannot be asked for that; it would have to declare {needed!r}."
        if self._modern:
            required: dict[str, Any] = {"requiredCapabilities": {needed: {}}}
            self.instead = MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, text, required)
        raise ToolError(text)


def _result_type(question: types.InputRequest) -> type[Any]:
    if isinstance(question, types.ElicitRequest):
        return types.ElicitResult
    if isinstance(question, types.ListRootsRequest):
        return types.ListRootsResult
    with_tools = question.params.tools is not None
    return types.CreateMessageResultWithTools if with_tools else types.CreateMessageResult


def session_of(context: ServerRequestContext[Any, Any]) -> str:
    """What tells the client's session from others; one process on stdio serves just one."""
    headers = getattr(context.request, "headers", {})
    return str(headers.get("mcp-session-id", ""))
