"""What a chat-completions server really does: a few small requests, read with suspicion, one finding for each check."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import anyio

from agentkit.errors import ConfigError
from agentkit.messages import user
from agentkit.runtime.answers import Answer, Finding, State, as_object, error_text, read_stream, read_whole
from agentkit.runtime.engine import Request
from agentkit.runtime.fixes import CHECKS, FIXES
from agentkit.runtime.presets import writes_code
from agentkit.runtime.protocols import Protocol, hermes

if TYPE_CHECKING:
    import httpx2

__all__ = ["CHECKS", "Finding", "Report", "State", "probe_server", "suggest_protocol"]


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of a server after `probe_server`."""

    url: str  # the base URL that worked
    kind: str | None  # as in OpenAICompatible(kind=…); None is not recognised
    model: str | None
    requests: int  # how many were sent to /chat/completions
    findings: tuple[Finding, ...]

    @property
    def protocol(self) -> Protocol:
        """How agentkit offers its tools to this model at this server."""
        return "python" if writes_code(self.model or "") else suggest_protocol(self.findings)

    def __getitem__(self, check: str) -> Finding:
        return next(f for f in self.findings if f.id == check)


def suggest_protocol(findings: Sequence[Finding]) -> Protocol:
    """How agentkit should offer its tools: `native` (the server's own `tools`), `hermes` or `react` (in the prompt).

    A call that the server leaves in the text, or in the thoughts, is read there, so `tools` still serves the model best.
    """
    state = {f.id: f.state for f in findings}
    calls, text = state.get("tools.streamed", "unknown"), state.get("tools.text")
    if calls == "unknown":
        calls = state.get("tools.whole", "unknown")
    if "missing" in (calls, *(state.get(f"tools.{form}") for form in ("arguments", "ids", "results"))):
        return "react" if text == "warn" else "hermes"
    if calls == "unknown" and text in ("ok", "warn"):
        return "hermes" if text == "ok" else "react"
    return "native"


async def probe_server(
    base_url: str,
    model: str | None = None,
    api_key: str | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    kind: str | None = None,
    timeout: float = 45.0,
    tools_only: bool = False,
) -> Report:
    """Find out what the server at *base_url* can do, with about 15 small requests, one after the other.

    `timeout` is the longest silence in seconds, and more where a first short answer takes long; after two of them, or
    one before the first answer, the rest is not asked. `tools_only` asks what `suggest_protocol` needs and no more,
    some 5 requests. What the server does never raises: the findings say it. Raises `ConfigError` for a URL that is none.
    """
    probe = _Probe(base_url, model, api_key, headers, kind, timeout)
    async with probe.connected():
        try:
            if await probe.reach():
                await probe.identify()
                await probe.answer()
                await probe.tools()
                if not tools_only:
                    await probe.thinking()
                    await probe.more_tools()
                    await probe.schema()
                    await probe.limits()
        except _Enough:
            pass
    return probe.report()


# ------------------------------------------------------------------------------------------------ what is asked

_ECHO = "Zürich 東京 🙂 one two three four five six"
_SAY = f"Say this, and nothing else: {_ECHO}"
_HELPFUL = "You are a helpful assistant."
_CALL = "What is the weather in Zürich? Call the tool get_weather to find out."
_BOTH = "The weather in Paris and the time in Tokyo, please. Call get_weather and get_time, both at once."
_COUNT = "Count from 1 to 20, the numbers separated by spaces."
_LONG = " ".join(f"Note {n}: the shelf numbered {n * 37} holds {n * 11} boxes." for n in range(1, 41))
_THOUGHT = " ".join(f"Step {n}: I weigh the reasons once more before I go on." for n in range(1, 21))
_WORD = "marzipan"
_ODD = ["zq-17-blau", "vk-42-rot"]  # nothing a model would write by itself

_WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city now.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city."}},
            "required": ["city"],
        },
    },
}
_TIME = {
    "type": "function",
    "function": {**_WEATHER["function"], "name": "get_time", "description": "The time in a city now."},
}
_ENUM = {
    "type": "object",
    "properties": {"code": {"type": "string", "enum": _ODD}},
    "required": ["code"],
    "additionalProperties": False,
}
_PAINT = {
    "type": "function",
    "function": {"name": "paint", "description": "Paint the wall.", "strict": True, "parameters": _ENUM},
}


def _in_tool_loop(thought: Mapping[str, str]) -> list[dict[str, Any]]:
    call = {"id": "call_00001", "type": "function", "function": {"name": "get_word", "arguments": "{}"}}
    return [
        {"role": "user", "content": "Call get_word, then tell me the word it returns."},
        {"role": "assistant", "content": "", "tool_calls": [call], **thought},
        {
            "role": "tool",
            "tool_call_id": "call_00001",
            "name": "get_word",
            "content": f"The word is {_WORD}.",
        },
    ]


_GET_WORD = {
    "type": "function",
    "function": {
        "name": "get_word",
        "description": "A word.",
        "parameters": {"type": "object", "properties": {}},
    },
}


# ------------------------------------------------------------------------------------------------ how it is asked


class _Enough(Exception):
    """The server does not answer any more; what was not asked stays unknown."""


class _Probe:
    def __init__(
        self,
        base_url: str,
        model: str | None,
        api_key: str | None,
        headers: Mapping[str, str] | None,
        kind: str | None,
        timeout: float,
    ) -> None:
        base = base_url if "://" in base_url else "http://" + base_url
        self.base = base.rstrip("/").removesuffix("/chat/completions")
        try:
            parts = urlsplit(self.base)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            known = known and base.count("://") == 1  # one of several is looked at
        except ValueError:
            known = False
        if not known:
            raise ConfigError(f"{base_url!r} is no URL of a server; it is written http://HOST:PORT/v1.")
        self.model, self.kind, self.timeout = model, kind, timeout
        self.headers = {**({"Authorization": f"Bearer {api_key}"} if api_key else {}), **(headers or {})}
        self.key = api_key or ""
        self.found: dict[str, Finding] = {}
        self.seen: set[str] = set()  # form checks that had something to look at
        self.counts: set[int] = set()  # prompt tokens of all answers
        self.sent = self.silent = 0
        self.heard = False  # whether it ever answered a chat request
        # what the server puts up with: chat_template_kwargs, a system message, stream_options, not streaming
        self.switchable = self.system = self.counted = self.whole = True
        self.room = 80  # tokens for a short answer; more where thoughts cannot be switched off
        self.lumps: list[bool] = []  # of each stream with many pieces: did all of it come at once?
        self.switch = "template"  # as in ServerKind.thinking
        self.listed: dict[str, int] = {}  # model -> context length, as far as GET /models tells
        self.in_loop: Answer | None = None  # what followed a tool's result
        self.client: httpx2.AsyncClient

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[None, None]:
        import httpx2

        local = urlsplit(self.base).hostname in {"127.0.0.1", "localhost", "::1"}
        async with httpx2.AsyncClient(
            trust_env=not local,  # no proxy stands before this machine
            verify=self.base.startswith("https"),  # the certificates take 35 ms to load
        ) as self.client:
            yield

    def note(self, check: str, state: State, detail: str, fix: str | None = None, variant: str = "") -> None:
        """Keep the worst that was found for *check*; the fix is that of the server's kind unless given."""
        worse = ("unknown", "ok", "warn", "missing")
        before = self.found.get(check)
        if before and worse.index(before.state) >= worse.index(state):
            return
        if fix is None and state in ("warn", "missing"):
            table = FIXES.get(f"{check.partition('.')[0]}:{variant}") or FIXES.get(check, {})
            fix = table.get(self.kind or "", table.get("", ""))
        if self.key:
            detail = detail.replace(self.key, "…")  # a server may repeat it
        self.found[check] = Finding(check, state, detail, fix or "")

    def ok(self, check: str, detail: str) -> None:
        self.note(check, "ok", detail)

    def warn(self, check: str, detail: str, fix: str | None = None, variant: str = "") -> None:
        self.note(check, "warn", detail, fix, variant)

    def missing(self, check: str, detail: str, fix: str | None = None, variant: str = "") -> None:
        self.note(check, "missing", detail, fix, variant)

    def unknown(self, check: str, detail: str) -> None:
        self.note(check, "unknown", detail)

    def report(self) -> Report:
        if len(self.lumps) > 1 and all(self.lumps):
            self.warn("stream.incremental", "all of a stream comes at once")
        for check in CHECKS:
            if check in self.seen:
                self.ok(check, _FINE[check])
            if check not in ("tools.text", "server.key"):  # said only where there is something to say
                self.unknown(check, "not asked")
        findings = tuple(self.found[check] for check in CHECKS if check in self.found)
        return Report(self.base, self.kind, self.model, self.sent, findings)

    # ------------------------------------------------------------ requests

    async def get(self, url: str) -> httpx2.Response | str:
        """The response, or why there is none."""
        import httpx2

        try:
            with anyio.fail_after(min(15.0, self.timeout)):
                return await self.client.get(url, headers=self.headers)
        except (httpx2.TimeoutException, TimeoutError):
            return "it accepts the connection and then says nothing"
        except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
            return f"{type(exc).__name__}: {exc}"

    async def ask(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        system: str = _HELPFUL,
        stream: bool = False,
        thinking: bool = False,
        max_tokens: int | None = None,
        **extra: Any,
    ) -> Answer:
        """One request; its answer's faults are noted. Raises `_Enough` when it is of no use to go on."""
        if isinstance(messages, str):
            if self.switch == "words":
                messages += " /think" if thinking else " /no_think"
            messages = [{"role": "user", "content": messages}]
        if system and self.system:
            messages = [{"role": "system", "content": system}, *messages]
        elif system:
            first, *others = messages
            messages = [{**first, "content": f"{system}\n\n{first['content']}"}, *others]
        stream = stream or not self.whole
        body: dict[str, Any] = {"messages": messages, "temperature": 0, "max_tokens": max_tokens or self.room}
        if self.model is not None:
            body["model"] = self.model
        if self.switchable:
            body |= self._switch(thinking)
        if stream:
            body["stream"] = True
            if self.counted:
                body["stream_options"] = {"include_usage": True}
        answer = await self._post({**body, **extra}, stream)
        for fault in answer.faults:
            self.note(fault.id, fault.state, fault.detail)
        self.seen |= answer.seen
        if answer.prompt_tokens is not None:
            self.counts.add(answer.prompt_tokens)
        if answer.lump is not None:
            self.lumps.append(answer.lump)
        if answer.silent:
            self.silent += 1
        if answer.refused in (401, 403):
            self._wrong_key(answer.error)
            raise _Enough
        if answer.silent and answer.error and not self.heard:
            self.missing(
                "chat.streamed", answer.error, "if it is still loading or very slow, raise --timeout"
            )
            raise _Enough
        if self.silent > 1:
            raise _Enough
        self.heard = True
        return answer

    def _switch(self, thinking: bool) -> dict[str, Any]:
        """Thinking on or off, in the words of the server's kind."""
        match self.switch:
            case "template":
                return {"chat_template_kwargs": {"enable_thinking": thinking}}
            case "request":
                return {"enable_thinking": thinking}
            case "effort":
                return {} if thinking else {"reasoning_effort": "none"}
            case _:
                return {}

    def _switch_name(self) -> str:
        return next(iter(self._switch(False)), "/no_think" if self.switch == "words" else "")

    async def _post(self, body: Mapping[str, Any], stream: bool) -> Answer:
        import httpx2

        self.sent += 1
        url = self.base + "/chat/completions"
        pieces: list[tuple[float, bytes]] = []
        headers: Mapping[str, str] = {}
        begun, status, broke, stalled = time.monotonic(), 0, "", False
        try:
            with anyio.fail_after(5 * self.timeout):
                async with self.client.stream(
                    "POST", url, json=body, headers=self.headers, timeout=self.timeout
                ) as response:
                    status, headers = response.status_code, response.headers
                    async for piece in response.aiter_bytes():
                        pieces.append((time.monotonic() - begun, piece))
        except (httpx2.TimeoutException, TimeoutError):
            if not pieces:
                return Answer(error=f"no answer within {self.timeout:g} s", silent=True)
            stalled, broke = True, f"it stops in the middle and says nothing more for {self.timeout:g} s"
        except httpx2.HTTPError as exc:
            if status == 0:
                return Answer(error=f"the connection broke ({type(exc).__name__}: {exc})", silent=True)
            broke = "the connection closes in the middle"
        content = b"".join(data for _, data in pieces)
        if status != 200:
            return Answer(error=f"HTTP {status}: {error_text(content)}", refused=status)
        if "html" in headers.get("content-type", ""):
            return Answer(error="it answers with a web page", refused=404)
        if stream and not content.lstrip().startswith(b"{"):
            answer = read_stream(headers, pieces, broke, forced="tool_choice" in body)
            return replace(answer, silent=stalled)
        answer = read_whole(content, broke, forced="tool_choice" in body)
        if stream and answer.error and b"\n{" in content:
            return Answer(error="it streams lines of JSON, not server-sent events", stream=True)
        if stream and not answer.error:
            fault = Finding("stream.events", "warn", "asked to stream, it sends one whole JSON answer")
            answer = replace(answer, faults=(*answer.faults, fault), stream=True)
        return answer

    def _wrong_key(self, said: str) -> None:
        what = "refuses the key" if self.key else "wants an API key"
        self.missing("server.key", f"the server {what}: {said}")

    # ------------------------------------------------------------ the checks, in the order they are made

    async def reach(self) -> bool:
        """Is there such a server, and which models does it serve?"""
        response = await self.get(self.base + "/models")
        if isinstance(response, str):
            self.missing(
                "server.reachable", f"no answer from {self.base} ({response})", _unreached(self.base)
            )
            return False
        names = self._names(response)
        if names is None and response.status_code not in (401, 403):
            better = await self._better_url()
            if better:
                self.missing(
                    "server.reachable",
                    f"{self.base} is not the base URL ({_what_came(response)}); {better} is",
                    f"--url {better}",
                )
                self.base = better
                names = self._names(await self.get(better + "/models"))
        if names is None and response.status_code in (401, 403):
            self.ok("server.reachable", self.base)
            self._wrong_key(f"HTTP {response.status_code}: {error_text(response.content)}")
            return False
        if names is None:  # a server may have no list, and answer all the same
            answer = await self.ask("Hi", max_tokens=1)
            if answer.error and not self._can_be_had(answer):
                self.missing(
                    "server.reachable",
                    f"{self.base} is no chat-completions server: /models gives {_what_came(response)}, "
                    f"/chat/completions {answer.error}",
                    "give the URL up to and with /v1",
                )
                return False
            self.ok("server.reachable", self.base)
            listed = f"it does not list its models (/models: {_what_came(response)})"
            self.warn("server.models", listed, "" if self.model else "name the model with -m")
            return True
        self.ok("server.reachable", self.base)
        self._choose(names)
        return bool(names) or self.model is not None

    def _can_be_had(self, answer: Answer) -> bool:
        """An error that a chat-completions server gives, rather than whatever else may listen there."""
        return answer.refused in (400, 422, 500) or (answer.refused == 404 and "model" in answer.error)

    async def _better_url(self) -> str | None:
        parts = urlsplit(self.base)
        root = f"{parts.scheme}://{parts.netloc}"
        for candidate in dict.fromkeys((self.base + "/v1", root + "/v1", root + "/api/v1", root)):
            if candidate != self.base:
                response = await self.get(candidate + "/models")
                if not isinstance(response, str) and (self._names(response) or response.status_code == 401):
                    return candidate
        return None

    def _names(self, response: httpx2.Response | str) -> list[str] | None:
        """The models that a response to GET /models lists, or None if it is not such a response."""
        if isinstance(response, str) or response.status_code != 200:
            return None
        data = (as_object(response.content) or {}).get("data")
        if not isinstance(data, list):
            return None
        models = [m for m in data if isinstance(m, dict) and isinstance(m.get("id"), str)]
        for model in models:
            for key in ("max_model_len", "context_length", "context_window"):
                if isinstance(model.get(key), int):
                    self.listed[model["id"]] = model[key]
        return [m["id"] for m in models]

    def _choose(self, names: list[str]) -> None:
        if not names:
            self.missing("server.models", "it serves no model", "load one there")
        elif self.model is None:
            self.model = names[0]
            self.ok("server.models", ", ".join(names[:8]) + (" …" if len(names) > 8 else ""))
        elif self.model in names or f"{self.model}:latest" in names:
            self.ok("server.models", self.model)
        else:
            self.missing(
                "server.models",
                f"{self.model!r} is not served; it serves {', '.join(names[:8])}",
                f"-m {names[0]}",
            )
            self.model = names[0]  # the server can be looked at all the same

    async def identify(self) -> None:
        from agentkit.runtime.servers import KINDS, PLAIN, context_length, recognise

        self.kind = self.kind or await recognise(self.client, self.base, self.headers)
        self.switch = KINDS.get(self.kind or "", PLAIN).thinking
        if self.kind:
            self.ok("server.kind", f"{self.kind} {await self._version() or ''}".rstrip())
        else:
            self.unknown("server.kind", "not recognised: plain chat completions are assumed")
        length = await context_length(self.kind, self.client, self.base, self.headers, self.model or "")
        length = length or self.listed.get(self.model or "")
        if length is None:
            self.unknown("server.context", "the server does not tell")
        else:
            short = length < 4096 or (self.kind == "ollama" and length <= 4096)
            said = f"{length:,} tokens" + (", short for work with tools" if short else "")
            self.note("server.context", "warn" if short else "ok", said)

    async def _version(self) -> str | None:
        places = {
            "vllm": ("/version", "version"),
            "sglang": ("/get_server_info", "version"),
            "llama.cpp": ("/props", "build_info"),
            "ollama": ("/api/version", "version"),
            "llama-cpp-python": ("/openapi.json", "info"),
        }
        path, key = places.get(self.kind or "", ("", ""))
        response = await self.get(self.base.removesuffix("/v1") + path) if path else ""
        value = None if isinstance(response, str) else (as_object(response.content) or {}).get(key)
        value = value.get("version") if isinstance(value, dict) else value
        return value if isinstance(value, str) else None

    async def answer(self) -> None:
        """A short answer without thinking, streamed and whole."""
        begun = time.monotonic()
        streamed = await self._first_answer()
        self.timeout = max(self.timeout, 4 * (time.monotonic() - begun))  # a whole answer is written silently
        self._judge(streamed, "chat.streamed")
        whole = await self.ask(_SAY)
        self._judge(whole, "chat.whole")
        if all(self.found.get(c, _UNKNOWN).state == "missing" for c in ("chat.whole", "chat.streamed")):
            raise _Enough
        if whole.text and not (streamed.text or streamed.thoughts or streamed.error or streamed.broke):
            self.missing("chat.streamed", "the streamed answer is empty; asked whole, there is text")
        self.whole = not whole.error  # if it only streams, then that is what is looked at
        self._usage(whole, "usage.whole")
        if self.counted:
            self._usage(streamed, "usage.streamed")

    async def _first_answer(self) -> Answer:
        """Asked with all that agentkit sends; where that is refused, with less, to see what the matter is."""
        first = await self.ask(_SAY, stream=True)
        if first.refused not in (400, 422, 500):
            return first
        without = [(False, True, True), (True, False, True), (True, True, False), (False, False, False)]
        if first.refused == 500:  # it may have been a hiccup
            without.insert(0, (True, True, True))
        for self.switchable, self.system, self.counted in without:
            answer = await self.ask(_SAY, stream=True)
            if not answer.error:
                if not self.switchable:
                    self.warn("thinking.switch", f"{self._switch_name()} is refused: {first.error}")
                if not self.system:
                    self.missing("chat.system", f"a system message is refused: {first.error}")
                if not self.counted:
                    self.warn("usage.streamed", f"stream_options is refused: {first.error}")
                return answer
        self.switchable = self.system = self.counted = True
        return first

    def _judge(self, answer: Answer, check: str) -> None:
        """A short answer that was asked for without thinking."""
        streamed = "streamed, " if answer.stream else ""
        if answer.error:
            self.missing(check, answer.error, "")
        elif answer.vanished:
            self.ok(check, "answers")
            self.missing(
                "reasoning.answer",
                f"{streamed}the answer comes as {answer.fields[0]} and content is empty, with thinking off",
            )
        elif answer.thought:
            self.ok(check, "answers")
            self.room = 640
            self.warn("thinking.switch", f"{streamed}it thinks although {self._switch_name()} says not to")
        elif answer.text:
            self.ok(check, "answers")
            if self.system:
                self.ok("chat.system", "taken")
        elif answer.finish == "length" and answer.completion_tokens:
            self.ok(check, "answers")
            self.room = 640
            what = f"it wrote {answer.completion_tokens} tokens and shows none: thoughts are on, and hidden"
            self.warn("thinking.switch", what)
        elif not answer.broke:
            self.missing(check, "the answer is empty: no text, no thoughts, no call", "")

    def _usage(self, answer: Answer, check: str) -> None:
        if answer.error or answer.broke:
            return
        if not answer.prompt_tokens:
            self.warn(
                check, "no token counts with the answer" if not answer.usage else "counts no prompt tokens"
            )
        elif answer.completion_tokens is None:
            self.warn(check, "does not count the answer's tokens")
        elif (answer.usage or {}).get(
            "total_tokens", total := answer.prompt_tokens + answer.completion_tokens
        ) != total:
            self.warn(check, f"total_tokens is not {answer.prompt_tokens} + {answer.completion_tokens}")
        else:
            self.ok(check, f"{answer.prompt_tokens} + {answer.completion_tokens} tokens")

    async def tools(self) -> None:
        """A call, whole and streamed; tool results; and where the server is of no help, calls as text."""
        forced: dict[str, Any] = {}
        if self.whole:
            forced = await self._whole_call()
        else:
            self.unknown("tools.whole", "not asked: whole answers do not come")
        if "tools.streamed" not in self.found:
            streamed = await self.ask(_CALL, tools=[_WEATHER], stream=True, **forced)
            outcome = _outcome(streamed)
            if outcome == "none" and self.found["tools.whole"].state == "ok":
                self.missing("tools.streamed", "asked whole, the call comes; streamed, it is lost")
            elif outcome == "none" and await self._reaches_prompt(streamed) is False:
                self.missing("tools.streamed", _IGNORED, variant="ignored")
            else:
                self._judge_call("tools.streamed", outcome, streamed)
        if self.found["tools.streamed"].state != "missing":
            await self._results()
        if (
            suggest_protocol(tuple(self.found.values())) != "native"
            or self.found["tools.streamed"].state == "unknown"
        ):
            await self._text()

    async def _whole_call(self) -> dict[str, Any]:
        """What else to send for the model to call."""
        whole = await self.ask(_CALL, tools=[_WEATHER])
        outcome = _outcome(whole)
        if outcome != "none":
            self._judge_call("tools.whole", outcome, whole)
            return {}
        forced: dict[str, Any] = {"tool_choice": "required"}
        second = await self.ask(_CALL, tools=[_WEATHER], **forced)
        if await self._reaches_prompt(whole) is False:
            self.missing("tools.whole", _IGNORED, variant="ignored")
            self.missing("tools.streamed", _IGNORED, variant="ignored")
        elif _outcome(second) == "parsed":
            self.ok("tools.whole", "parsed with tool_choice=required; left to itself, the model did not call")
            return forced
        else:
            self._judge_call("tools.whole", "none", whole)
        return {}

    def _judge_call(self, check: str, outcome: str, answer: Answer) -> None:
        name = answer.calls[0].name if answer.calls else ""
        if outcome == "parsed" and name == "get_weather" and _holds_call(answer.text):
            self.warn(check, "parsed as tool_calls, and left in content as text as well")
        elif outcome == "parsed" and name == "get_weather":
            self.ok(check, "parsed as tool_calls")
        elif outcome == "parsed" and name:
            self.unknown(check, f"parsed, but the call is one of {name!r}: get_weather was offered")
        elif outcome == "parsed":
            self.missing(check, "the call has no name")
        elif answer.old_form:
            self.missing(check, "the call comes as function_call, the form before tool_calls")
        elif outcome == "text":
            self.warn(check, "the call is left in content as text; agentkit reads it there")
        elif outcome == "swallowed":
            where = answer.fields[0] if answer.fields else "the thoughts"
            self.warn(
                check, f"the call is swallowed into {where}; agentkit reads it there", variant="swallowed"
            )
        elif outcome == "refused":
            what = "is refused" if answer.refused else "fails"
            self.missing(check, f"a request with tools {what}: {answer.error}")
        elif outcome == "cut":
            self.unknown(check, "the answer was cut before a call was complete")
        else:
            self.unknown(check, "the model did not call the tool, so this cannot be told")

    async def _reaches_prompt(self, asked: Answer) -> bool | None:
        """Whether the tools are in the prompt: it is longer with them. None: the server's counts do not say."""
        bare = await self.ask(_CALL, max_tokens=1)
        if not asked.prompt_tokens or not bare.prompt_tokens:
            return None
        return asked.prompt_tokens > bare.prompt_tokens

    async def _results(self) -> None:
        """A tool's result, given back: is it taken, and does the model see it?"""
        answer = self.in_loop = await self.ask(_in_tool_loop({}), tools=[_GET_WORD])
        if answer.error:
            self.missing("tools.results", f"a tool's result is refused: {answer.error}")
        elif _WORD in (answer.text + answer.thoughts).lower():
            self.ok("tools.results", "read by the model")
        else:
            self.unknown("tools.results", "taken; the model's answer does not show whether it was read")

    async def _text(self) -> None:
        prompt = hermes(Request([user(_CALL)], [_WEATHER]))
        answer = await self.ask(_CALL, system=prompt.messages[0].text)
        if _outcome(answer) in ("text", "swallowed", "parsed"):
            self.ok("tools.text", "the model writes calls when the prompt tells it how")
        elif not answer.error:
            self.warn("tools.text", "the model does not write Hermes calls when the prompt tells it how", "")

    async def thinking(self) -> None:
        """Thinking on: do thoughts come, where, and can they be given back?"""
        answer = await self.ask(
            "What is 17 + 26? Answer with the number only.",
            stream=True,
            thinking=True,
            max_tokens=max(256, self.room),
        )
        if answer.error:
            self.unknown("reasoning.out", answer.error)
            return
        if answer.vanished and answer.finish == "stop":
            self.missing(
                "reasoning.answer",
                f"with thinking on, all of the answer comes as {answer.fields[0]} and content is empty",
            )
        off = self.found.get("thinking.switch", _UNKNOWN).state
        if answer.thought:
            if off == "unknown" and "reasoning.answer" not in self.found:
                self.ok("thinking.switch", "honoured: thoughts with it on, none with it off")
            if answer.text.rpartition("</think>")[2].strip():
                self.ok("reasoning.answer", "it follows the thoughts")
            self._thoughts_out(answer)
            await self._thoughts_in(answer)
            await self._call_after_thoughts()
        elif (answer.completion_tokens or 0) > 64 + len(answer.text):
            self.warn(
                "reasoning.out",
                f"{answer.completion_tokens} tokens were written for {len(answer.text)} characters: thoughts are hidden",
            )
        else:
            should = "qwen3" in (self.model or "").lower() and not re.search(
                "instruct|coder", (self.model or "").lower()
            )
            self.unknown("reasoning.out", "no thoughts come")
            if should and self.switchable and not answer.broke:
                self.warn("thinking.switch", f"no thoughts come although {self._switch_name()} says to think")
            else:
                self.unknown("thinking.switch", "no thoughts come either way: the model does not think")
            for check in ("reasoning.in", "reasoning.answer", "tools.thinking"):
                self.unknown(check, "no thoughts come")

    def _thoughts_out(self, answer: Answer) -> None:
        odd = [name for name in answer.fields if name not in _KNOWN_THOUGHTS]
        if answer.fields and "</think>" in answer.text:
            what = f"{answer.fields[0]}, but a part leaks into content with </think>"
            self.warn("reasoning.out", what)
        elif odd and len(odd) == len(answer.fields):
            self.warn("reasoning.out", f"under {odd[0]!r}, a name that clients do not read")
        elif answer.fields:
            self.ok("reasoning.out", " and ".join(answer.fields))
        else:
            self.warn("reasoning.out", "inline in content, as <think>…</think>; agentkit reads them there")

    async def _thoughts_in(self, answer: Answer) -> None:
        """Under which name an assistant's thoughts reach the prompt: it is longer by them."""
        base = self.in_loop
        if base is None or base.error:
            self.unknown("reasoning.in", "not asked: it takes no tool results")
            return
        if not base.prompt_tokens or len(self.counts) < 2:
            self.unknown("reasoning.in", "the server does not count prompt tokens, so this cannot be told")
            return
        read = []
        for name in ("reasoning", "reasoning_content"):
            asked = await self.ask(_in_tool_loop({name: _THOUGHT}), tools=[_GET_WORD], max_tokens=1)
            if (asked.prompt_tokens or 0) > base.prompt_tokens + 100:
                read.append(name)
        comes = [name for name in answer.fields if name in _KNOWN_THOUGHTS]
        if not read:
            self.warn("reasoning.in", "thoughts that are sent back in a tool loop do not reach the prompt")
        elif comes and not set(comes) & set(read):
            self.warn("reasoning.in", f"read as {read[0]}, though they come out as {comes[0]}")
        else:
            self.ok("reasoning.in", " and ".join(read))

    async def _call_after_thoughts(self) -> None:
        if self.found["tools.streamed"].state != "ok":
            self.unknown("tools.thinking", "not asked: calls are not parsed")
            return
        room = max(256, self.room)
        answer = await self.ask(_CALL, tools=[_WEATHER], stream=True, thinking=True, max_tokens=room)
        self._judge_call("tools.thinking", _outcome(answer), answer)

    async def more_tools(self) -> None:
        """Two calls in a turn, and a strict tool."""
        if self.found["tools.streamed"].state != "ok":
            for check in ("tools.arguments", "tools.ids", "tools.parallel", "tools.strict"):
                self.unknown(check, "not asked: calls are not parsed")
            return
        streamed = await self.ask(_BOTH, tools=[_WEATHER, _TIME], stream=True, max_tokens=2 * self.room)
        count = len(streamed.calls)
        if streamed.error:
            self.unknown("tools.parallel", streamed.error)
        elif count > 1:
            self.ok("tools.parallel", f"{count} calls in one answer")
        elif not streamed.broke and "tools.parallel" not in self.found:
            whole = await self.ask(_BOTH, tools=[_WEATHER, _TIME], max_tokens=2 * self.room)
            if len(whole.calls) > count:
                self.missing(
                    "tools.parallel", f"{len(whole.calls)} calls when asked whole, {count} when streamed"
                )
            elif count:
                what = (
                    "one call came where two were asked for: the model made only one, or the server keeps one"
                )
                self.warn("tools.parallel", what, "")
            else:
                self.unknown("tools.parallel", "the model did not call, so this cannot be told")
        strict = await self.ask("Paint the wall. Call paint with the code 'red'.", tools=[_PAINT])
        if strict.refused:
            self.warn("tools.strict", f"a strict tool is refused: {strict.error}", "")
        elif not strict.calls:
            self.unknown("tools.strict", "the model did not call, so this cannot be told")
        elif any(as_object(call.arguments.encode()) is None for call in strict.calls):
            self.unknown("tools.strict", "the arguments cannot be read")
        elif all(_fits(call.arguments) for call in strict.calls):
            self.ok("tools.strict", "arguments keep to the schema")
        else:
            what = f"arguments break the schema: {strict.calls[0].arguments[:60]}"
            self.warn("tools.strict", what, "agentkit checks arguments itself")

    async def schema(self) -> None:
        from agentkit.runtime.servers import KINDS, PLAIN

        prompt = "Say hello and wish me a good morning."
        form = {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": _ENUM}}
        answer = await self.ask(prompt, response_format=form)
        if not answer.error and _fits(answer.text or answer.thoughts):
            self.ok("schema.enforced", "response_format json_schema holds")
            return
        what = f"refused ({answer.error})" if answer.error else "ignored"
        others: dict[str, dict[str, Any]] = {
            "response_format json_object with a schema": {
                "response_format": {"type": "json_object", "schema": _ENUM}
            },
            "guided_json": {"guided_json": _ENUM, "structured_outputs": {"json": _ENUM}},
        }
        for name, extra in others.items():
            other = await self.ask(prompt, **extra)
            if not other.error and _fits(other.text or other.thoughts):
                known = KINDS.get(self.kind or "", PLAIN).schema == "json_object" and "json_object" in name
                detail = f"as {name}; response_format json_schema is {what}"
                self.note("schema.enforced", "ok" if known else "warn", detail, "")
                return
        self.warn("schema.enforced", f"response_format json_schema is {what}")

    async def limits(self) -> None:
        """The same long prompt twice, once stopped by max_tokens and once by a stop string."""
        short = await self.ask(_COUNT, system=f"{_HELPFUL}\n{_LONG}", max_tokens=6)
        said = short.text + short.thoughts
        if not short.error and (said or short.completion_tokens):
            written = short.completion_tokens or 0
            words = len(said.split())  # a word is one token at least, and a count may be wrong
            if words > 12 or len(said) > 80:
                self.missing("limits.max_tokens", f"6 tokens were asked for, {words} words came")
            else:
                self.ok("limits.max_tokens", "honoured")
                if written == 6 and short.finish == "stop" and re.fullmatch(r"[\d\s,.]+", said):
                    self.warn("finish.reason", "says 'stop' where max_tokens cut the answer")
        second = await self.ask(_COUNT, system=f"{_HELPFUL}\n{_LONG}", max_tokens=60, stop=["7"])
        if not second.error:
            self._cached(second)
            if "7" in second.text:
                kept = second.text.rstrip().endswith("7") and "8" not in second.text
                what = (
                    "the stop string is left in the text" if kept else "the answer runs on past a stop string"
                )
                self.warn("limits.stop", what, "")
            elif re.search(r"[56]\D*$", second.text):
                self.ok("limits.stop", "honoured")
            else:
                self.unknown("limits.stop", "the model did not get to the stop string")

    def _cached(self, second: Answer) -> None:
        if not second.usage:
            self.unknown("usage.cached", "the server counts no tokens")
            return
        usage = second.usage
        details = usage.get("prompt_tokens_details")
        counts = [details.get("cached_tokens") if isinstance(details, dict) else None]
        counts += [usage.get("prompt_cache_hit_tokens"), usage.get("cached_tokens")]
        cached = next((c for c in counts if isinstance(c, int)), None)
        if cached:
            self.ok("usage.cached", f"{cached} of {second.prompt_tokens} prompt tokens the second time")
        elif cached == 0:
            self.warn("usage.cached", "the same prompt twice, and none of it came from the cache")
        else:
            self.warn("usage.cached", "cached prompt tokens are not reported")


_UNKNOWN = Finding("", "unknown", "")
_IGNORED = "tools never reach the prompt: it is as long without them"
_KNOWN_THOUGHTS = ("reasoning", "reasoning_content")
# checks of form: every answer is looked at, and this is said when none had a fault
_FINE = {
    "stream.events": "well-formed, up to [DONE]",
    "stream.incremental": "piece by piece",
    "text.unicode": "intact",
    "finish.reason": "right",
    "tools.arguments": "JSON in a string; streamed, they add up",
    "tools.ids": "present, distinct, in order",
}


def _outcome(answer: Answer) -> Literal["parsed", "text", "swallowed", "refused", "cut", "none"]:
    """What became of the call of get_weather that was asked for."""
    if answer.error:
        return "refused"
    if answer.calls:
        return "parsed"
    if _holds_call(answer.text):
        return "text"
    if _holds_call(answer.thoughts) and not answer.text.strip():
        return "swallowed"
    return "cut" if answer.finish == "length" or answer.broke else "none"


def _holds_call(text: str) -> bool:
    from agentkit.parsing import parse_turn

    return "get_weather" in text and bool(parse_turn(text, tools=[_WEATHER]).calls)


def _fits(text: str) -> bool:
    """Whether *text* is JSON that the odd schema allows."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and set(value) == {"code"} and value["code"] in _ODD


def _what_came(response: httpx2.Response) -> str:
    if response.status_code != 200:
        return f"HTTP {response.status_code}"
    return "a web page" if "html" in response.headers.get("content-type", "") else "no list of models"


def _unreached(base: str) -> str:
    host = urlsplit(base).hostname
    return f"start the server, or check the address and port of --url ({host})"
