"""Any server that speaks chat completions: our own wire, streaming, with retries before the first token."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio

from agentkit.errors import ContextOverflow, EngineError
from agentkit.events import CallFragment
from agentkit.messages import Usage, wire
from agentkit.runtime.engine import Chunk, ModelSettings, Request

if TYPE_CHECKING:
    import httpx2

__all__ = ["OpenAICompatible"]

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_STREAMED = b'"stream":true,"stream_options":{"include_usage":true}'
_WHOLE = b'"stream":false'
_LONGEST_LINE = 64 * 2**20  # bytes; a stream with no line end for that long is not SSE
_OVERFLOW_WORDS = (
    "context length",
    "context window",
    "maximum context",
    "context size",
    "exceeds the available context",
)


class OpenAICompatible:
    """An engine for vLLM, SGLang, llama.cpp, Ollama, LM Studio, Model Studio: whatever answers `/chat/completions`.

    `base_url` ends where `/chat/completions` begins, usually in `/v1`. `model` is the name the server serves it under;
    None takes the first that `/models` lists. `timeout` is the longest silence of the server in seconds (a long prompt
    on a slow machine is read silently), `retries` how often a request is sent again after a connection error, 429 or
    5xx; never after the first token. `headers` go with each request.

    One connection pool serves all runs inside `async with`; outside of it each request opens its own.
    Raises `EngineError` when the server cannot be reached or understood, `ContextOverflow` when the prompt is too long.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 600.0,
        retries: int = 4,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/chat/completions")
        self.model = model
        self._timeout, self._retries = timeout, retries
        self._headers = {"Content-Type": "application/json", "Accept": "text/event-stream", **(headers or {})}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._client: httpx2.AsyncClient | None = None
        self._users = 0  # how many `async with` hold the client open
        # what the server calls an assistant's thoughts; learnt from its answers, as it reads what it writes
        self._reasoning_field = "reasoning_content"

    def __repr__(self) -> str:  # never the key
        return f"OpenAICompatible({self.base_url!r}, {self.model!r})"

    async def __aenter__(self) -> OpenAICompatible:
        if self._client is None:
            import httpx2  # slow to import; only a request needs it

            local = urlsplit(self.base_url).hostname in {"127.0.0.1", "localhost", "::1"}
            self._client = httpx2.AsyncClient(
                timeout=httpx2.Timeout(self._timeout, connect=10.0),
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=100),
                trust_env=not local,  # no proxy stands before this machine
            )
        self._users += 1
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
            if self.model is None:
                self.model = (await self.models())[0]
            body = self._body(request)
            headers = {**self._headers, "X-Session-ID": request.session} if request.session else self._headers
            for attempt in range(self._retries + 1):
                begun = False
                try:
                    async with aclosing(self._answer(body, headers)) as chunks:
                        async for chunk in chunks:
                            begun = True
                            yield chunk
                    return
                except _Retry as again:
                    if begun or attempt == self._retries:
                        raise again.error from again.__cause__
                    await anyio.sleep(again.after if again.after is not None else _backoff(attempt))

    async def models(self) -> list[str]:
        """The names the server serves, from GET /models."""
        async with self:
            assert self._client is not None
            import httpx2

            try:
                response = await self._client.get(self.base_url + "/models", headers=self._headers)
                names = [m["id"] for m in response.raise_for_status().json()["data"]]
            except httpx2.HTTPStatusError as exc:
                raise self._refused(exc.response.status_code, exc.response.content) from exc
            except httpx2.HTTPError as exc:
                raise EngineError(self._unreachable(exc)) from exc
            except (ValueError, KeyError, TypeError) as exc:
                raise EngineError(
                    f"{self.base_url}/models did not answer with a list of models; is the URL right? "
                    "It usually ends in /v1."
                ) from exc
        if not names:
            raise EngineError(f"{self.base_url} serves no model; load one there, or name it.")
        return names

    def _body(self, request: Request) -> bytes:
        """The request as JSON: each message is serialised once in its life, and joined here."""
        messages = request.messages
        last_user = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
        parts = [wire(m, self._reasoning_field if i > last_user else None) for i, m in enumerate(messages)]
        rest = {"model": self.model, **_settings(request.settings)}
        if request.tools:
            rest["tools"] = list(request.tools)
        tail = json.dumps(rest, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        return b"{" + _STREAMED + b',"messages":[' + b",".join(parts) + b"]," + tail[1:]

    async def _answer(self, body: bytes, headers: Mapping[str, str]) -> AsyncGenerator[Chunk, None]:
        import httpx2

        assert self._client is not None
        url = self.base_url + "/chat/completions"
        finished = silent = False  # silent: the server said yes, and then nothing
        try:
            async with self._client.stream("POST", url, content=body, headers=dict(headers)) as response:
                if response.status_code != 200:
                    content = await response.aread()
                    error = self._refused(response.status_code, content)
                    if response.status_code in _RETRIED and "validation error" not in str(error):
                        raise _Retry(error, _retry_after(response.headers.get("retry-after")))
                    raise error
                kind = response.headers.get("content-type", "")
                if "html" in kind:
                    raise EngineError(
                        f"{url} answered with a web page, not with a model's answer; is the base URL right? "
                        "It usually ends in /v1."
                    )
                silent = True
                async with aclosing(self._events(response)) as events:
                    async for event in events:
                        silent = False
                        if event is None:
                            finished = True
                            break
                        chunk = self._chunk(event)
                        finished = finished or chunk.finish_reason is not None
                        yield chunk
        except httpx2.TimeoutException as exc:
            raise _Retry(
                EngineError(
                    f"{self.base_url} sent nothing for {self._timeout:g} s; it may be overloaded or stuck."
                )
            ) from exc
        except httpx2.HTTPError as exc:
            if not silent:
                raise _Retry(EngineError(self._unreachable(exc))) from exc
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
                except _Retry:
                    if last:
                        raise
        elif not finished:
            raise _Retry(EngineError(f"{self.base_url} broke off before its answer was complete; try again."))

    async def _events(self, response: httpx2.Response) -> AsyncGenerator[dict[str, Any] | None, None]:
        """The JSON of each `data:` line, then None for `[DONE]`; a server that does not stream sends one object."""
        pending = b""
        plain: bool | None = None  # not known before the first byte
        async for data in response.aiter_bytes():
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
        if event.get("error"):
            raise self._refused(200, json.dumps(event).encode())
        usage = event.get("usage")
        counted = _usage(usage) if usage else None
        choices = event.get("choices")
        if not choices:
            return Chunk(usage=counted)
        choice = choices[0]
        delta = choice.get("delta") or choice.get("message") or {}  # "message": a server that does not stream
        reasoning = delta.get("reasoning_content")
        if reasoning:
            self._reasoning_field = "reasoning_content"
        elif reasoning := delta.get("reasoning"):
            self._reasoning_field = "reasoning"
        calls = delta.get("tool_calls")
        return Chunk(
            text=delta.get("content") or "",
            reasoning=reasoning or "",
            calls=tuple(_fragments(calls)) if calls else (),
            finish_reason=choice.get("finish_reason"),
            usage=counted,
        )

    def _refused(self, status: int, content: bytes) -> EngineError:
        said = _message(content)
        if status in (400, 413, 500) and any(words in said.lower() for words in _OVERFLOW_WORDS):
            return ContextOverflow(f"The conversation is longer than the model's context: {said}")
        if status in (401, 403):
            return EngineError(f"{self.base_url} refused the API key (HTTP {status}): {said}")
        if status == 404:
            return EngineError(
                f"{self.base_url} does not know the model {self.model!r} or the path (HTTP 404): {said} "
                "The base URL usually ends in /v1."
            )
        return EngineError(
            f"{self.base_url} answered HTTP {status}: {said}"
            if status != 200
            else f"{self.base_url} reported an error: {said}"
        )

    def _unreachable(self, exc: Exception) -> str:
        return f"No answer from {self.base_url} ({type(exc).__name__}: {exc}); is the server running there?"


class _Retry(Exception):
    """The request failed in a way that may pass; *error* is what the user sees if it does not."""

    def __init__(self, error: EngineError, after: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.after = error, after


def _settings(s: ModelSettings) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for name in ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "max_tokens", "seed"):
        value = getattr(s, name)
        if value is not None:
            body[name] = value
    if s.stop:
        body["stop"] = list(s.stop)
    if s.thinking is not None:
        body["chat_template_kwargs"] = {"enable_thinking": s.thinking}  # Qwen3 model card, hard switch
    return body | dict(s.extra)


def _fragments(calls: Any) -> Iterator[CallFragment]:
    for position, call in enumerate(calls):
        function = call.get("function") or {}
        arguments = function.get("arguments")
        yield CallFragment(
            index=call.get("index", position),
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
    text = content.decode("utf-8", "replace").strip()
    try:
        value: Any = json.loads(text)
    except ValueError:
        value = text
    for key in ("error", "message", "detail"):
        if isinstance(value, dict) and key in value:
            value = value[key]
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


def _backoff(attempt: int) -> float:
    """Full jitter under 0.5, 1, 2, 4, … seconds, at most 8."""
    return random.uniform(0, min(8.0, 0.5 * 2**attempt))
