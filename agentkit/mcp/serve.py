"""agentkit as an MCP server: an agent as one tool, or tools themselves, over stdio or streamable HTTP."""

from __future__ import annotations

import base64
import contextlib
import hmac
import mimetypes
import secrets
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import anyio

from agentkit.agent import Agent, AnyTool, _ByName, resolve_tools
from agentkit.calling import call_tool
from agentkit.errors import AgentkitError, ConfigError, one_error
from agentkit.events import Notice, ToolStarted, TurnStarted
from agentkit.messages import Artifact, ToolCall, ToolResult
from agentkit.progress import report_progress, watched
from agentkit.tools import Effect, Notify, Tool, ToolOutput

if TYPE_CHECKING:
    from mcp import types
    from mcp.server import Server
    from starlette.types import ASGIApp, Receive, Scope, Send

    from agentkit.mcp.caller import Caller

__all__ = ["Address", "Offer", "Prompt", "Resource", "caller", "serve_http", "serve_stdio"]

PATH = "/mcp"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
EMBED_BYTES = 8 * 2**20  # of an artifact that goes along in the result; of a larger one its address
REQUEST_BYTES = 16 * 2**20  # of a client's message
GRACE = 3  # seconds that open HTTP answers get when the server is stopped

_caller: ContextVar[Caller | None] = ContextVar("agentkit_mcp_caller", default=None)


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that clients may read. `read` is called with the variables of a `uri` that is a template, such as
    "notes://{day}", and returns text or bytes."""

    uri: str
    read: Callable[..., Awaitable[str | bytes]]
    name: str = ""
    description: str = ""
    mime: str = "text/plain"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that a client's user picks. `arguments` are names and their descriptions, all of them required; `render`
    gets their values and returns the text of a user's message, or `mcp.types.PromptMessage`s."""

    name: str
    render: Callable[[Mapping[str, str]], Awaitable[str | Sequence[types.PromptMessage]]]
    description: str = ""
    arguments: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """What a server of ours offers.

        await serve_stdio(Offer(tools=["code_interpreter"]))
        await serve_http(Offer(agent=Agent("qwen3-4b", tools=["calculator"])), port=8765)

    An `agent` is one tool, `ask`: a task in, the answer out. `tools` are what an `Agent` takes as tools, and `mcp` what
    it takes as MCP configurations; they are opened once and shared by all clients, an interpreter's variables too.
    `complete` suggests values for an argument of a prompt or a resource: it gets that one's name or URI, the argument's
    name and what was typed so far.
    """

    tools: Sequence[AnyTool] = ()
    mcp: Any = ()
    agent: Agent[Any] | None = None
    agent_description: str = ""
    resources: Sequence[Resource] = ()
    prompts: Sequence[Prompt] = ()
    complete: Callable[[str, str, str], Awaitable[Sequence[str]]] | None = None
    name: str = "agentkit"
    instructions: str | None = None


@dataclass(frozen=True, slots=True)
class Address:
    """Where an HTTP server of ours is, and what it lets in: `Authorization: Bearer <token>`, if there is a token."""

    url: str
    token: str | None


def caller() -> Caller | None:
    """The client that called the tool that is running now: to log to it, or to ask its user. None elsewhere."""
    return _caller.get()


async def serve_stdio(offer: Offer, notify: Notify | None = None) -> None:
    """Serve one client on stdin and stdout until it closes them, or SIGINT or SIGTERM comes.

    While it serves, whatever else writes to stdout goes to stderr. `notify` gets what went wrong without being fatal;
    without it that is written to stderr.
    """
    from mcp.server.stdio import stdio_server

    stopped: list[signal.Signals] = []

    async def watch(scope: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                stopped.append(number)
                scope.cancel()
                return

    with one_error():
        async with stdio_server() as (incoming, outgoing):
            sys.stdout.flush()  # file descriptor 1 leads to stderr now; what stdout holds back must not come later
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch, tasks.cancel_scope)
                with contextlib.redirect_stdout(sys.stderr):
                    async with _opened(offer, notify or _to_stderr) as server:
                        await server.run(incoming, outgoing, server.create_initialization_options())
                tasks.cancel_scope.cancel()
            if stopped:
                # all is put away but the thread that waits for stdin, which only ends with the process
                signal.signal(stopped[0], signal.SIG_DFL)
                signal.raise_signal(stopped[0])


async def serve_http(
    offer: Offer,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    auth: bool = True,
    allow_hosts: Sequence[str] = (),
    started: Callable[[Address], None] | None = None,
    notify: Notify | None = None,
) -> None:
    """Serve clients over streamable HTTP until SIGINT or SIGTERM; `started` is told the address (port 0: a free one).

    Requests need the bearer `token`, a random one unless it is given; `auth=False` lets everybody in. Those whose Host
    or Origin is neither this machine nor in `allow_hosts` are refused, so that web pages cannot reach the server.
    Raises `ConfigError` when the port is taken.
    """
    import uvicorn
    from mcp.server.transport_security import TransportSecuritySettings

    wildcard = host in ("0.0.0.0", "::")
    if wildcard and not allow_hosts:
        raise ConfigError(
            f"A server on {host} must know the names that clients reach it by; say so with --allow-host NAME."
        )
    token = (token or secrets.token_urlsafe(32)) if auth else None
    names = [*LOOPBACK, *allow_hosts, *(() if wildcard else (f"[{host}]" if ":" in host else host,))]
    security = TransportSecuritySettings(
        allowed_hosts=[h for name in names for h in (name, f"{name}:*")],
        allowed_origins=[
            f"{scheme}://{h}" for name in names for h in (name, f"{name}:*") for scheme in ("http", "https")
        ],
    )

    class Uvicorn(uvicorn.Server):
        """Leaves the signals to us: it would raise them again before our tools are put away."""

        @contextlib.contextmanager
        def capture_signals(self) -> Any:
            yield

    with _listening(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{'127.0.0.1' if wildcard else shown}:{listener.getsockname()[1]}{PATH}"
        with one_error():
            async with _opened(offer, notify or _to_stderr) as server:
                app: ASGIApp = server.streamable_http_app(
                    streamable_http_path=PATH,
                    transport_security=security,
                    max_request_body_size=REQUEST_BYTES,
                )
                if token is not None:
                    app = _bearer_only(app, token)
                config = uvicorn.Config(
                    app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE, lifespan="on"
                )
                web = Uvicorn(config)

                async def watch() -> None:
                    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                        async for _ in signals:
                            web.should_exit = True
                            return

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(watch)
                    if started is not None:
                        started(Address(url, token))
                    await web.serve(sockets=[listener])
                    tasks.cancel_scope.cancel()


@contextlib.contextmanager
def _listening(host: str, port: int) -> Any:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as exc:
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {exc.strerror}; choose another with --port."
        ) from exc
    with listener:
        # asyncio sets it on sockets of its own making only; without it each answer waits some 40 ms for an acknowledgement
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield listener


def _bearer_only(app: ASGIApp, token: str) -> ASGIApp:
    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), token.encode()):
                headers = [(b"content-type", b"text/plain"), (b"www-authenticate", b"Bearer")]
                await send({"type": "http.response.start", "status": 401, "headers": headers})
                said = b"This MCP server wants the header Authorization: Bearer TOKEN, with the token that it printed.\n"
                await send({"type": "http.response.body", "body": said})
                return
        await app(scope, receive, send)

    return guarded


def _to_stderr(text: str) -> None:
    print(f"agentkit: {text}", file=sys.stderr, flush=True)


@contextlib.asynccontextmanager
async def _opened(offer: Offer, notify: Notify) -> AsyncGenerator[Server[Any]]:
    """The SDK's server for *offer*, with its tools opened."""
    toolsets = resolve_tools(offer.tools, offer.mcp)
    async with contextlib.AsyncExitStack() as stack:
        groups: list[Sequence[Tool]] = []  # those of a toolset may change while it is open
        for found in toolsets:
            groups.append(
                [found] if isinstance(found, Tool) else await stack.enter_async_context(found.open(notify))
            )
        if offer.agent is not None:
            groups.append([await stack.enter_async_context(_ask_tool(offer, offer.agent, notify))])
        yield _server(offer, groups)


def _server(offer: Offer, groups: Sequence[Sequence[Tool]]) -> Server[Any]:
    """The SDK's server, with a handler for each thing that *offer* has."""
    from mcp import MCPError, types
    from mcp.server import Server
    from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
    from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
    from mcp.shared.uri_template import UriTemplate

    from agentkit import __version__
    from agentkit.mcp.caller import Caller, Clients, session_of

    bus = InMemorySubscriptionBus()
    clients = Clients(bus)

    def unknown(what: str, name: str, **data: str) -> MCPError:
        return MCPError(types.INVALID_PARAMS, f"{what} {name!r} is not offered here.", data or None)

    async def for_caller(context: Any, params: Any, work: Callable[[], Awaitable[Any]]) -> Any:
        """What *work* comes to, or what its questions to the client make of it."""
        asking = Caller(context, params, clients)
        reset = _caller.set(asking)
        try:
            with watched(context.session.report_progress):
                result = await work()
        except Exception as exc:
            if asking.instead is None:
                if isinstance(exc, MCPError):
                    raise
                raise MCPError(types.INTERNAL_ERROR, f"{type(exc).__name__}: {exc}") from exc
            result = None
        finally:
            _caller.reset(reset)
        if isinstance(asking.instead, MCPError):
            raise asking.instead
        return asking.instead or result

    tools = _ByName(groups)

    async def list_tools(context: Any, params: Any) -> types.ListToolsResult:
        listed = [
            types.Tool(
                name=name,
                description=t.description,
                input_schema=dict(t.parameters),
                annotations=_annotations(t.effects),
            )
            for name, t in tools().items()
        ]
        return types.ListToolsResult(tools=listed)

    async def call(context: Any, params: types.CallToolRequestParams) -> Any:
        named = tools()
        if params.name not in named:
            raise unknown("The tool", params.name)
        wanted = ToolCall(str(context.request_id), params.name, params.arguments or {})

        async def work() -> types.CallToolResult:
            try:
                return _result(await call_tool(wanted, named))
            except AgentkitError as exc:
                return _result(ToolResult(wanted.id, str(exc), is_error=True))

        result = await for_caller(context, params, work)
        if tools() is not named:  # a server whose tools these are has others now
            await clients.changed("tools")
        return result

    plain = {r.uri: r for r in offer.resources if not UriTemplate.is_template(r.uri)}
    templates = [(UriTemplate.parse(r.uri), r) for r in offer.resources if r.uri not in plain]

    async def list_resources(context: Any, params: Any) -> types.ListResourcesResult:
        listed = [
            types.Resource(uri=r.uri, name=r.name or r.uri, description=r.description, mime_type=r.mime)
            for r in plain.values()
        ]
        return types.ListResourcesResult(resources=listed)

    async def list_templates(context: Any, params: Any) -> types.ListResourceTemplatesResult:
        listed = [
            types.ResourceTemplate(
                uri_template=r.uri, name=r.name or r.uri, description=r.description, mime_type=r.mime
            )
            for _, r in templates
        ]
        return types.ListResourceTemplatesResult(resource_templates=listed)

    async def read(context: Any, params: types.ReadResourceRequestParams) -> Any:
        uri = params.uri
        found, variables = plain.get(uri), {}
        for template, resource in templates:
            if found is None and (matched := template.match(uri)) is not None:
                found, variables = resource, matched
        if found is None:
            raise unknown("The resource", uri, uri=uri)
        resource = found

        async def work() -> types.ReadResourceResult:
            content = await resource.read(**variables)
            return types.ReadResourceResult(contents=[_contents(uri, resource.mime, content)])

        return await for_caller(context, params, work)

    prompts = {p.name: p for p in offer.prompts}

    async def list_prompts(context: Any, params: Any) -> types.ListPromptsResult:
        listed = [
            types.Prompt(
                name=p.name,
                description=p.description,
                arguments=[
                    types.PromptArgument(name=name, description=text, required=True)
                    for name, text in (p.arguments or {}).items()
                ],
            )
            for p in prompts.values()
        ]
        return types.ListPromptsResult(prompts=listed)

    async def get_prompt(context: Any, params: types.GetPromptRequestParams) -> Any:
        prompt, values = prompts.get(params.name), params.arguments or {}
        if prompt is None:
            raise unknown("The prompt", params.name)
        if absent := sorted((prompt.arguments or {}).keys() - values.keys()):
            raise MCPError(
                types.INVALID_PARAMS, f"The prompt {prompt.name!r} also needs {', '.join(absent)}."
            )
        found = prompt

        async def work() -> types.GetPromptResult:
            said = await found.render(values)
            if isinstance(said, str):
                said = [types.PromptMessage(role="user", content=types.TextContent(text=said))]
            return types.GetPromptResult(description=found.description, messages=list(said))

        return await for_caller(context, params, work)

    async def complete(context: Any, params: types.CompleteRequestParams) -> types.CompleteResult:
        assert offer.complete is not None
        about = params.ref.name if isinstance(params.ref, types.PromptReference) else params.ref.uri
        values = list(await offer.complete(about, params.argument.name, params.argument.value))
        return types.CompleteResult(
            completion=types.Completion(values=values[:100], total=len(values), has_more=len(values) > 100)
        )

    async def set_level(context: Any, params: types.SetLevelRequestParams) -> types.EmptyResult:
        clients.levels[session_of(context)] = params.level
        return types.EmptyResult()

    async def subscribe(context: Any, params: types.SubscribeRequestParams) -> types.EmptyResult:
        clients.subscribed[session_of(context), params.uri] = context
        return types.EmptyResult()

    async def unsubscribe(context: Any, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
        clients.subscribed.pop((session_of(context), params.uri), None)
        return types.EmptyResult()

    server: Server[Any] = Server(
        offer.name,
        version=__version__,
        instructions=offer.instructions,
        on_list_tools=list_tools,
        on_call_tool=call,
        on_list_resources=list_resources if offer.resources else None,
        on_list_resource_templates=list_templates if offer.resources else None,
        on_read_resource=read if offer.resources else None,
        on_subscribe_resource=subscribe if offer.resources else None,
        on_unsubscribe_resource=unsubscribe if offer.resources else None,
        on_subscriptions_listen=ListenHandler(bus),
        on_list_prompts=list_prompts if offer.prompts else None,
        on_get_prompt=get_prompt if offer.prompts else None,
        on_completion=complete if offer.complete else None,
    )
    # not in the constructor, which warns that newer clients have no use for it
    server.add_request_handler("logging/setLevel", types.SetLevelRequestParams, set_level)
    # questions to the client make it carry our state, which it must not be able to change
    server.middleware.append(
        RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience=offer.name)
    )
    return server


def _annotations(effects: frozenset[Effect] | None) -> types.ToolAnnotations | None:
    from mcp import types

    if effects is None:
        return None
    changes = effects & {"writes", "destroys", "executes"}
    return types.ToolAnnotations(
        read_only_hint=not changes,
        destructive_hint="destroys" in effects if changes else None,
        open_world_hint="network" in effects,
    )


def _result(result: ToolResult) -> types.CallToolResult:
    """A tool's result in the protocol's form: its text, and each artifact as an image, a sound or a resource."""
    from mcp import types

    blocks: list[types.ContentBlock] = []
    if result.content or not result.artifacts:
        blocks.append(types.TextContent(text=result.content))
    blocks += [_block(artifact) for artifact in result.artifacts]
    return types.CallToolResult(content=blocks, is_error=result.is_error)


def _block(artifact: Artifact) -> types.ContentBlock:
    from mcp import types

    mime = artifact.mime or mimetypes.guess_type(artifact.name)[0] or "application/octet-stream"
    data = artifact.data
    path = Path(artifact.path).absolute() if artifact.path else None
    if data is None and path is not None:
        try:
            data = path.read_bytes() if path.stat().st_size <= EMBED_BYTES else None
        except OSError as exc:
            return types.TextContent(text=f"[{artifact.name}: cannot be read: {exc.strerror}]")
    if data is None or len(data) > EMBED_BYTES:
        if path is None:
            return types.TextContent(text=f"[{artifact.name}: {artifact.size} bytes, too large to send]")
        return types.ResourceLink(
            name=artifact.name, uri=path.as_uri(), mime_type=mime, size=artifact.size or None
        )
    if mime.startswith("image/") and mime != "image/svg+xml":
        return types.ImageContent(data=base64.b64encode(data).decode(), mime_type=mime)
    if mime.startswith("audio/"):
        return types.AudioContent(data=base64.b64encode(data).decode(), mime_type=mime)
    if path is not None:
        uri = path.as_uri()
    else:
        uri = artifact.name if "://" in artifact.name else f"artifact:///{quote(artifact.name)}"
    content: str | bytes = data
    with contextlib.suppress(UnicodeDecodeError):
        content = data.decode()
    return types.EmbeddedResource(resource=_contents(uri, mime, content))


def _contents(
    uri: str, mime: str, content: str | bytes
) -> types.TextResourceContents | types.BlobResourceContents:
    from mcp import types

    if isinstance(content, str):
        return types.TextResourceContents(uri=uri, mime_type=mime, text=content)
    return types.BlobResourceContents(uri=uri, mime_type=mime, blob=base64.b64encode(content).decode())


@contextlib.asynccontextmanager
async def _ask_tool(offer: Offer, agent: Agent[Any], notify: Notify) -> AsyncGenerator[Tool]:
    """The agent as a tool. It is opened while the server already answers: clients do not wait long for a start."""
    ready, over = anyio.Event(), anyio.Event()

    async def keep_open() -> None:
        try:
            async with agent:
                ready.set()
                await over.wait()
        except AgentkitError as exc:  # each run then opens what it needs, and says the same to the client
            notify(str(exc))
        ready.set()

    schema = {
        "type": "object",
        "properties": {"task": {"type": "string", "description": "What to do, with all it takes to do it"}},
        "required": ["task"],
    }
    said = offer.agent_description or (
        "Give a task to an agent that works on its own, with tools of its own, and get its answer."
        " It remembers nothing of earlier tasks."
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keep_open)
        yield Tool("ask", said, schema, partial(_ask, agent, ready))
        over.set()
        if not ready.is_set():
            tasks.cancel_scope.cancel()


async def _ask(agent: Agent[Any], ready: anyio.Event, arguments: Mapping[str, Any]) -> ToolOutput:
    from agentkit.schema import to_text

    client, steps = caller(), 0

    async def step(text: str) -> None:
        nonlocal steps
        steps += 1
        await report_progress(steps, message=text)

    if not ready.is_set():
        await step("the agent is starting")
        await ready.wait()
    async with agent.stream(str(arguments["task"])) as run:
        async for event in run:
            match event:
                case TurnStarted(turn):
                    await step(f"turn {turn}")
                case ToolStarted(call):
                    values = ", ".join(f"{name}={str(value)[:60]}" for name, value in call.arguments.items())
                    await step(f"{call.name}({values})")
                case Notice(text) if client is not None:
                    await client.log(text, "warning")
                case _:
                    pass
    result = run.result
    if result.stopped == "answer":
        return ToolOutput(to_text(result.output), artifacts=result.artifacts)
    text = (
        f"The agent stopped without an answer ({result.stopped}). Its last words: {result.output or '(none)'}"
    )
    return ToolOutput(text, is_error=True, artifacts=result.artifacts)
