"""Any server that speaks chat completions: our own wire, streaming, with retries before the first token."""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio

from agentkit.errors import ConfigError, ContextOverflow, EngineError
from agentkit.events import CallFragment
from agentkit.messages import Usage, wire
from agentkit.runtime import servers
from agentkit.runtime.engine import Chunk, ModelSettings, Request
from agentkit.runtime.presets import thinks, writes_code
from agentkit.runtime.protocols import (
    Protocol,
    Remade,
    hermes,
    inline_thoughts,
    last_question,
    plain,
    python,
    react,
    soft_switched,
)
from agentkit.runtime.servers import INLINE, KINDS, PLAIN, ServerKind

if TYPE_CHECKING:
    import httpx2

__all__ = ["OpenAICompatible"]

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
BUSY = frozenset({429, 503})
PATIENCE = 300.0  # seconds; a server that says it is busy is asked again for so long
_STREAMED = b'"stream":true,"stream_options":{"include_usage":true}'
_WHOLE = b'"stream":false'
_LINGER = 0.2  # seconds; a server may keep an answer open that is complete
_LONGEST_LINE = 64 * 2**20  # bytes; a stream with no line end for that long is not SSE
_OVERFLOW_WORDS = (
    "context length",
    "context window",
    "maximum context",
    "context size",
    "exceeds the available context",
)
# How servers refuse tools: vLLM without --enable-auto-tool-choice, llama-server without --jinja (500, and older ones
# "Unsupported param: tools"), Ollama, and chat templates that know no role `tool`.
_NO_TOOLS = re.compile(
    r"tool.choice requires|tool.call.parser|does not support (tools|function)|tools? param requires|unsupported param: tools"
    r"|tools? (is|are) not supported|(tool|function).call(ing|s)? (is|are) not supported|support tool use"
    r"|(only|conversation|unknown|unexpected|unsupported|invalid)\b.{0,40}\brole|'tool' is not one of",
    re.IGNORECASE,
)
# … and how such templates refuse a system text, or two messages of one role in a row
_NO_ROLES = re.compile(
    r"system role|only user|roles must alternate|(unknown|unexpected|unsupported|invalid)\b.{0,40}\brole",
    re.IGNORECASE,
)
# … and a schema that their grammars cannot hold
_NO_SCHEMA = re.compile(r"grammar|json.?schema|structured.?output|guided", re.IGNORECASE)
# What a server may refuse without a loss to the conversation, when its refusal names it. What the user put into
# ModelSettings.extra is never left out.
_DISPENSABLE = (
    "chat_template_kwargs", "response_format", "reasoning_effort", "enable_thinking", "top_k", "min_p",
    "presence_penalty", "seed",
)  # fmt: skip
_FEW_TOKENS = 6  # bytes of a request for each token: with fewer tokens, the tools may not be among them
_FEWEST_TOKENS = 16  # bytes of JSON for each token, at most: fewer tokens than that do not hold the tools

_log = logging.getLogger(__name__)


# how tools are written into the prompt
_WRITTEN: Mapping[str, Callable[[Request, Remade], Request]] = {
    "hermes": hermes,
    "react": react,
    "python": python,
}


@dataclass(frozen=True, slots=True)
class _Form:
    """In what form requests are sent: what was learnt from the server's refusals."""

    protocol: Protocol = "native"
    plain: bool = False  # no system role, no two messages of one role in a row
    without: frozenset[str] = frozenset()  # fields that it refused


class OpenAICompatible:
    """An engine for vLLM, SGLang, llama.cpp, Ollama, LM Studio, Model Studio: whatever answers `/chat/completions`.

    `base_url` ends where `/chat/completions` begins, usually in `/v1`. `model` is the name the server serves it under;
    None takes the first that `/models` lists. `timeout` is the longest silence of the server in seconds: a request may wait
    long in its queue, and a long prompt on a slow machine is read silently. `retries` is how often a request is sent again
    after a connection error or 5xx; never after the first token. A server that says it is busy (429, 503) is asked again
    for five minutes. `headers` go with each request.

    `kind` says what server it is ("vllm", "sglang", "llama.cpp", "llama-cpp-python", "ollama", "lmstudio", "mlx-lm",
    "ktransformers", "dashscope"); None finds out, once, when a request depends on it. `protocol` says how tools are
    offered: "native" (the server does it), or written into the prompt, in the form of Qwen3's own template ("hermes"), as
    "react", or as functions to be called in Python ("python"). None takes python for Qwen2.5-Coder, which writes code better than
    JSON; else it begins with native, and goes over to hermes by itself for a server that refuses tools or ignores them.

    `vision` says whether the model can be shown the pictures that tools make (PNG, JPEG, GIF, WebP up to 5 MiB; with tools
    offered natively); None goes by its name. Others read their names.

    One connection pool serves all runs inside `async with`; outside of it each request opens its own.
    Raises `EngineError` when the server cannot be reached or understood, `ContextOverflow` when the prompt is too long.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 1800.0,
        retries: int = 4,
        headers: Mapping[str, str] | None = None,
        kind: str | None = None,
        protocol: Protocol | None = None,
        vision: bool | None = None,
    ) -> None:
        if kind is not None and kind not in KINDS:
            raise ConfigError(f"There is no kind of server {kind!r}; the kinds are {', '.join(KINDS)}.")
        if protocol not in (None, "native", *_WRITTEN):
            raise ConfigError(f"The protocol is native, {', '.join(_WRITTEN)}, not {protocol!r}.")
        self.base_url = base_url.rstrip("/").removesuffix("/chat/completions")
        self.kind = kind
        self.vision = vision
        self._timeout, self._retries = timeout, retries
        self._headers = {"Content-Type": "application/json", "Accept": "text/event-stream", **(headers or {})}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._client: httpx2.AsyncClient | None = None
        self._users = 0  # how many `async with` hold the client open
        self._form, self._forced = _Form(protocol or "native"), protocol is not None
        self.model = model
        self._first = True  # no answer to a request with tools has come yet
        self._remade = Remade()
        self._asking = anyio.Lock()
        self._asked = kind is not None  # what kind of server it is
        self._listing: Any = None  # its answer to GET /models
        self._context: int | None = None
        self._thoughts: str | None = None  # where it reads an assistant's thoughts
        self._answered: str | None = None  # where its own answers have them

    def __repr__(self) -> str:  # never the key
        return f"OpenAICompatible({self.base_url!r}, {self.model!r})"

    @property
    def model(self) -> str | None:
        """The name the server serves the model under; None until it has been asked."""
        return self._model

    @model.setter
    def model(self, name: str | None) -> None:
        self._model = name
        if name and writes_code(name) and not self._forced:
            self._form = replace(self._form, protocol="python")

    @property
    def protocol(self) -> Protocol:
        """How tools are offered to the model by now: "native", "hermes", "react" or "python"."""
        return self._form.protocol

    @property
    def _server(self) -> ServerKind:
        return KINDS.get(self.kind or "", PLAIN)

    async def __aenter__(self) -> OpenAICompatible:
        if self._client is None:
            import httpx2  # slow to import; only a request needs it

            url = urlsplit(self.base_url)
            local = url.hostname in {"127.0.0.1", "localhost", "::1"}
            plain = url.scheme == "http" and local  # no TLS, and no proxy stands before this machine
            if plain:
                from agentkit.runtime.plain_http import PlainHTTP
            self._client = httpx2.AsyncClient(
                timeout=httpx2.Timeout(self._timeout, connect=10.0),
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=100),
                transport=PlainHTTP() if plain else None,
                trust_env=not local,
            )
        self._users += 1
        if (
            self.model is None and self._users == 1
        ):  # how it is sampled depends on it from the first request on
            try:
                with suppress(EngineError):  # which the request will meet again, and say
                    self.model = (await self.models())[0]
            except BaseException:  # cancelled: nobody leaves what was not entered
                await self.__aexit__(None, None, None)
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._users -= 1
        if not self._users and self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """The answer, chunk by chunk as it comes; closing the generator closes the request."""
        async with self:
            await self._know(request)
            headers = {**self._headers, "X-Session-ID": request.session} if request.session else self._headers
            failures, busy, patience = 0, 0, anyio.current_time() + PATIENCE
            while True:
                form, begun, called, tokens = self._form, False, False, 0
                try:
                    async with aclosing(self._answer(self._body(request, form), headers)) as chunks:
                        async for chunk in chunks:
                            begun = True
                            called = called or bool(chunk.calls)
                            tokens = chunk.usage.input_tokens if chunk.usage else tokens
                            yield chunk
                    if request.tools and request.schema is None:
                        await self._were_tools_read(request, form, called, tokens)
                    return
                except _Failed as failed:
                    if not begun and self._form != form:  # another run has just learnt something
                        continue
                    if not begun and (otherwise := self._otherwise(request, form, failed)):
                        request = otherwise
                        continue
                    if begun or not failed.again:
                        raise failed.error from failed.__cause__
                    if failed.error.status in BUSY and self._retries and anyio.current_time() < patience:
                        busy += 1
                    else:
                        failures += 1
                    if failures > self._retries:
                        raise failed.error from failed.__cause__
                    after = failed.error.after
                    await anyio.sleep(after if after is not None else backoff(failures + busy - 1))

    async def models(self) -> list[str]:
        """The names the server serves, from GET /models."""
        async with self:
            assert self._client is not None
            import httpx2

            try:
                response = await self._client.get(self.base_url + "/models", headers=self._headers)
                listing = response.raise_for_status().json()
                names = [m["id"] for m in (listing if isinstance(listing, list) else listing["data"])]
            except httpx2.HTTPStatusError as exc:
                raise self._refused(exc.response.status_code, exc.response.content) from exc
            except httpx2.HTTPError as exc:
                raise self._unreachable(exc) from exc
            except (ValueError, KeyError, TypeError) as exc:
                raise EngineError(
                    f"{self.base_url}/models did not answer with a list of models; is the URL right? "
                    "It usually ends in /v1."
                ) from exc
        if not names:
            raise EngineError(f"{self.base_url} serves no model; load one there, or name it.", elsewhere=True)
        self._listing = listing
        self.kind = self.kind or servers.kind_listed(
            self.base_url, listing, response.headers.get("server", "")
        )
        return names

    async def healthy(self) -> bool:
        """Whether the server says that it can take requests: by GET /health where it has that, else by GET /models."""
        async with self:
            assert self._client is not None
            return await servers.healthy(self._client, self.base_url, self._headers)

    async def context_length(self) -> int | None:
        """How many tokens a prompt and its answer can have together; None where the server does not tell."""
        if self._context is None:
            try:
                async with self:
                    await self._know(kind=True)
                    assert self._client is not None
                    self._context = await servers.context_length(
                        self.kind, self._client, self.base_url, self._headers, self.model or ""
                    )
            except EngineError:  # the request that follows will say so
                return None
        return self._context

    async def count_tokens(self, request: Request) -> int | None:
        """How many tokens the server makes of *request*'s prompt, chat template and tools included; None where it does not
        tell exactly (only vLLM, SGLang and llama-server do)."""
        try:
            async with self:
                await self._know(request, kind=True)
                assert self._client is not None
                body = self._body(request, self._form)
                return await servers.count_tokens(self.kind, self._client, self.base_url, self._headers, body)
        except EngineError:
            return None

    async def _know(self, request: Request = Request(()), *, kind: bool = False) -> None:
        """Find out what *request* depends on, once: the model's name, the kind of server, where that reads thoughts."""
        assert self._client is not None
        thoughts = any(
            m.role == "assistant" and m.thinking
            for m in request.messages[last_question(request.messages) + 1 :]
        )
        kind = kind or thoughts or request.schema is not None or request.settings.thinking is not None
        if self.model is not None and (self._asked or not kind) and (self._thoughts or not thoughts):
            return
        async with self._asking:  # twenty runs that begin together ask once
            if self.model is None:
                self.model = (await self.models())[0]
            if kind and not self._asked:
                self.kind = self.kind or await servers.recognise(
                    self._client, self.base_url, self._headers, self._listing
                )
                self._asked = True
            if thoughts and self._thoughts is None:
                self._thoughts = await servers.thoughts_field(
                    self.kind, self._client, self.base_url, self._headers
                )

    def _body(self, request: Request, form: _Form) -> bytes:
        """The request as JSON: each message is serialised once in its life, and joined here."""
        server, thinking, protocol = self._server, request.settings.thinking, form.protocol
        if thinking is not None and server.thinking == "words" and _switchable(self.model or ""):
            request = soft_switched(request, bool(thinking), self._remade)
        if request.tools and request.schema is not None and not server.schema_beside_tools:
            protocol = "hermes" if protocol == "native" else protocol
        if protocol != "native":
            request = _WRITTEN[protocol](request, self._remade)
        if form.plain:
            request = plain(request)
        rest = {"model": self.model, **_fields(server, request, form)}
        if request.tools:
            rest["tools"] = list(request.tools)
        tail = json.dumps(rest, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        parts = self._messages(request)
        return b"{" + _STREAMED + b',"messages":[' + b",".join(parts) + b"]," + tail[1:]

    def _messages(self, request: Request) -> list[bytes]:
        """Thoughts go back inside the current turn only, as Qwen3's card asks."""
        field = self._thoughts or self._server.thoughts
        if field != INLINE and self._server.as_answered:
            field = self._answered or field
        asked = last_question(request.messages)
        parts = [wire(m) for m in request.messages[: asked + 1]]
        for m in request.messages[asked + 1 :]:
            inline = field == INLINE and m.role == "assistant"
            parts.append(wire(self._remade(m, inline_thoughts) if inline else m, field))
            if m.role == "tool" and any(r.artifacts for r in m.results) and self._sees():
                from agentkit.runtime.images import pictures

                if (shown := pictures(m)) is not None:
                    parts.append(shown)
        return parts

    def _sees(self) -> bool:
        from agentkit.runtime.images import sees

        return sees(self.model or "") if self.vision is None else self.vision

    def _otherwise(self, request: Request, form: _Form, failed: _Failed) -> Request | None:
        """What to send instead, if the server refused something that can be said otherwise or left out."""
        if failed.error.status not in (400, 404, 422, 500, 501) or isinstance(failed.error, ContextOverflow):
            return None
        said = str(failed.error)
        tools = request.tools or any(m.role == "tool" for m in request.messages)
        if tools and not self._forced and form.protocol == "native" and _NO_TOOLS.search(said):
            self._write_tools_into_the_prompt(said)
        elif not form.plain and _NO_ROLES.search(said):
            self._form = replace(form, plain=True)
        elif refused := self._spare(request, form, said):
            self._form = replace(form, without=form.without | refused)
        elif request.schema is not None and _NO_SCHEMA.search(said):
            return replace(request, schema=None)  # the next schema may suit it
        else:
            return None
        return request

    def _spare(self, request: Request, form: _Form, said: str) -> set[str]:
        """The fields that the refusal names and that can be left out."""
        sent = _fields(self._server, request, form).keys() - request.settings.extra.keys()
        return {f for f in _DISPENSABLE if f in sent and re.search(rf"\b{f}\b", said)}

    async def _were_tools_read(self, request: Request, form: _Form, called: bool, tokens: int) -> None:
        """Some servers pass over tools without a word; a prompt that seems too short for them is looked into, once."""
        first, self._first = self._first, False
        if not first or called or not tokens or form.protocol != "native" or self._forced:
            return
        body = len(self._body(request, form))
        if tokens * _FEW_TOKENS > body:
            return
        await self._know(kind=True)
        if not self._server.counts_all:
            return
        if tokens * _FEWEST_TOKENS < len(json.dumps(list(request.tools), ensure_ascii=False).encode()):
            self._write_tools_into_the_prompt(f"the prompt took it {tokens} tokens")
            return
        from agentkit.runtime.probe import probe_server

        report = await probe_server(
            self.base_url, self.model, headers=self._headers, kind=self.kind, tools_only=True
        )
        if report.protocol != "native":
            self._write_tools_into_the_prompt("so the probe found", report.protocol)

    def _write_tools_into_the_prompt(self, why: str, protocol: Protocol = "hermes") -> None:
        _log.info("%s does not take tools (%s); they are written into the prompt", self.base_url, why)
        self._form = replace(self._form, protocol=protocol)

    async def _answer(self, body: bytes, headers: Mapping[str, str]) -> AsyncGenerator[Chunk, None]:
        import httpx2

        assert self._client is not None
        url = self.base_url + "/chat/completions"
        finished = silent = False  # silent: the server said yes, and then nothing
        try:
            async with self._client.stream("POST", url, content=body, headers=dict(headers)) as response:
                status = response.status_code
                if status != 200:
                    after = _retry_after(response.headers.get("retry-after"))
                    raise _Failed(self._refused(status, await response.aread(), after))
                kind = response.headers.get("content-type", "")
                if "html" in kind:
                    raise EngineError(
                        f"{url} answered with a web page, not with a model's answer; is the base URL right? "
                        "It usually ends in /v1."
                    )
                silent = True
                content = response.aiter_bytes()
                async with aclosing(self._events(content)) as events:
                    async for event in events:
                        silent = False
                        if event is None:
                            finished = True
                            break
                        chunk = self._chunk(event)
                        finished = finished or chunk.finish_reason is not None
                        yield chunk
                with anyio.move_on_after(
                    _LINGER
                ):  # a connection whose answer is read to its end is used again
                    async for _ in content:
                        pass
        except httpx2.ReadTimeout as exc:  # it would only lose its place in the queue if it were sent again
            raise _Failed(
                EngineError(
                    f"{self.base_url} sent nothing for {self._timeout:g} s; it may be overloaded or stuck.",
                    elsewhere=True,
                ),
                again=False,
            ) from exc
        except httpx2.HTTPError as exc:
            if not silent:
                raise _Failed(self._unreachable(exc)) from exc
        if silent and _STREAMED in body:
            # llama-cpp-python's server so answers a prompt that is too long; not streaming, and over another
            # connection than the one it broke, it says why
            headers = {**headers, "Connection": "close"}
            for last in (False, True):
                try:
                    async with aclosing(self._answer(body.replace(_STREAMED, _WHOLE, 1), headers)) as whole:
                        async for chunk in whole:
                            yield chunk
                    return
                except _Failed as failed:
                    if last or not failed.again:
                        raise
        elif not finished:
            raise _Failed(
                EngineError(
                    f"{self.base_url} broke off before its answer was complete; try again.", elsewhere=True
                )
            )

    async def _events(self, content: AsyncIterator[bytes]) -> AsyncGenerator[dict[str, Any] | None, None]:
        """The JSON of each `data:` line, then None for `[DONE]`; a server that does not stream sends one object."""
        pending = b""
        plain: bool | None = None  # not known before the first byte
        async for data in content:
            pending += data
            if plain is None and pending.strip():
                plain = pending.lstrip().startswith(b"{")
            if len(pending) > _LONGEST_LINE:
                raise EngineError(
                    f"{self.base_url} sent {len(pending)} bytes without a line end; that is no stream."
                )
            if plain or b"\n" not in data:
                continue
            *lines, pending = pending.split(b"\n")
            for line in lines:
                payload = self._payload(line)
                if payload == b"[DONE]":
                    yield None
                    return
                if payload:
                    yield self._json(payload)
        rest = pending.strip() if plain else self._payload(pending)
        if rest and rest != b"[DONE]":
            yield self._json(rest)
        elif rest:
            yield None

    def _payload(self, line: bytes) -> bytes:
        """What a line of an event stream carries: the rest of a `data:` line, nothing for the other fields."""
        if line.startswith(b"data:"):
            return line[5:].strip()
        if not line.strip() or line.startswith((b":", b"event:", b"id:", b"retry:")):
            return b""
        return line  # not SSE at all: let it be read, and fail, as JSON

    def _json(self, payload: bytes) -> dict[str, Any]:
        try:
            value = json.loads(payload)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise EngineError(
                f"{self.base_url} sent something that is not JSON: {payload[:80].decode('utf-8', 'replace')!r}; "
                "is it a chat-completions server?"
            )
        return value

    def _chunk(self, event: dict[str, Any]) -> Chunk:
        if said := event.get("error"):
            error = self._refused(200, json.dumps(event).encode())
            # vLLM's engine may die after its server has said yes
            error.elsewhere = isinstance(said, dict) and said.get("code") in (500, 502, 503)
            raise error
        usage = event.get("usage")
        counted = _usage(usage) if usage else None
        choices = event.get("choices")
        if not choices:
            return Chunk(usage=counted)
        choice = choices[0]
        delta = choice.get("delta") or choice.get("message") or {}  # "message": a server that does not stream
        reasoning = delta.get("reasoning_content")
        if reasoning:
            self._answered = "reasoning_content"
        elif reasoning := delta.get("reasoning"):
            self._answered = "reasoning"
        calls = delta.get("tool_calls")
        return Chunk(
            text=delta.get("content") or "",
            reasoning=reasoning or "",
            calls=tuple(_fragments(calls)) if calls else (),
            finish_reason=choice.get("finish_reason"),
            usage=counted,
        )

    def _refused(self, status: int, content: bytes, after: float | None = None) -> EngineError:
        said = _message(content)
        if status in (400, 413, 500) and any(words in said.lower() for words in _OVERFLOW_WORDS):
            return ContextOverflow(
                f"The conversation is longer than the model's context: {said}", status=status
            )
        if status in (401, 403):
            return EngineError(f"{self.base_url} refused the API key (HTTP {status}): {said}", status=status)
        if status == 404:
            return EngineError(
                f"{self.base_url} does not know the model {self.model!r} or the path (HTTP 404): {said} "
                "The base URL usually ends in /v1.",
                status=status,
            )
        if status == 200:
            return EngineError(f"{self.base_url} reported an error: {said}", status=status)
        return EngineError(
            f"{self.base_url} answered HTTP {status}: {said}",
            elsewhere=status in _RETRIED and not _FINAL.search(said),
            status=status,
            after=after,
        )

    def _unreachable(self, exc: Exception) -> EngineError:
        return EngineError(
            f"No answer from {self.base_url} ({type(exc).__name__}: {exc}); is the server running there?",
            elsewhere=True,
        )


class _Failed(Exception):
    """The request failed before it was answered; *error* is what the user sees if asking again does not help.

    *again* is whether it may; None: wherever another server may be asked, so may this one.
    """

    def __init__(self, error: EngineError, again: bool | None = None) -> None:
        super().__init__(str(error))
        self.error, self.again = error, error.elsewhere if again is None else again


# A request that is wrong stays wrong (llama-cpp-python says 500), and so does an account that is empty (429).
_FINAL = re.compile(r"validation error|insufficient|billing|current quota", re.IGNORECASE)


def _fields(server: ServerKind, request: Request, form: _Form) -> dict[str, Any]:
    fields = servers.request_fields(server, request)
    return {k: v for k, v in fields.items() if k not in form.without or k in request.settings.extra}


def _switchable(model: str) -> bool:
    """Whether it is a Qwen3 that knows both modes."""
    return thinks(model, ModelSettings()) is True and thinks(model, ModelSettings(thinking=False)) is False


def _fragments(calls: Any) -> Iterator[CallFragment]:
    for position, call in enumerate(calls):
        function = call.get("function") or {}
        arguments = function.get("arguments")
        yield CallFragment(
            index=index if isinstance(index := call.get("index"), int) else position,
            id=call.get("id") or "",
            name=function.get("name") or "",
            arguments=arguments if isinstance(arguments, str) else json.dumps(arguments) if arguments else "",
        )


def _usage(usage: Mapping[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details") or {}
    return Usage(
        usage.get("prompt_tokens") or 0,
        usage.get("completion_tokens") or 0,
        details.get("cached_tokens") or 0,
    )


def _message(content: bytes) -> str:
    """The readable part of an error body: JSON in one of the usual shapes, or the first words of whatever it is."""
    value = servers.error_value(content)
    said = value if isinstance(value, str) else json.dumps(value)
    if said.lstrip().startswith("<"):
        said = "a web page"
    return said[:500] or "no reason given"


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait as the server asks (RFC 9110: a number, or a date, which is not worth a clock here)."""
    try:
        return min(float(value), 60.0) if value else None
    except ValueError:
        return None


def backoff(attempt: int) -> float:
    """Full jitter under 0.5, 1, 2, 4, … seconds, at most 8."""
    return random.uniform(0, min(8.0, 0.5 * 2**attempt))
