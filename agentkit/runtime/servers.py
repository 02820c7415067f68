"""The kinds of model servers that speak chat completions, and what each of them wants otherwise: one table, and who is who."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from agentkit.runtime.engine import Request

if TYPE_CHECKING:
    import httpx2

__all__ = [
    "INLINE",
    "KINDS",
    "PLAIN",
    "ServerKind",
    "context_length",
    "count_tokens",
    "error_value",
    "healthy",
    "kind_listed",
    "recognise",
    "request_fields",
    "root",
    "thoughts_field",
]

# Thoughts go back as <think>…</think> in the content; Qwen3's template takes that apart itself.
INLINE = "inline"


@dataclass(frozen=True, slots=True)
class ServerKind:
    """What is peculiar to one kind of server.

    `thinking` says how it is told to think or not: "template" (`chat_template_kwargs`), "request" (a field of the request),
    "effort" (`reasoning_effort`), or "words" (only Qwen3's soft switch, in the text). `thoughts` is the field in which it reads
    an assistant's thoughts, or `INLINE`; with `as_answered` it is the field it answers with, once it has answered.
    `schema` is the form of guided decoding that it reads, None if it has none; unless it goes `schema_beside_tools`, the tools
    must be written into the prompt then. `max_tokens` is sent where none is given: the server's own default is too short.
    """

    base_url: str  # where it listens unless told otherwise
    thinking: Literal["template", "request", "effort", "words"]
    thoughts: str = "reasoning_content"
    as_answered: bool = True
    schema: Literal["json_schema", "json_object"] | None = "json_schema"
    schema_beside_tools: bool = True
    max_tokens: int | None = None
    unread: frozenset[str] = frozenset()  # sampling settings that it does not take
    counts_all: bool = True  # usage.prompt_tokens has the part that was cached, too


# Nothing is known of the server, so it gets what most servers read, and what they refuse is left out from then on.
PLAIN = ServerKind("", "template")

KINDS: Mapping[str, ServerKind] = {
    # vLLM's own source. `response_format` is the one form of guided decoding that 0.8.5 and today's both read: the newer ones
    # ignore `guided_json`, the older ones do not know `structured_outputs`. For thoughts see `thoughts_field`.
    "vllm": ServerKind("http://127.0.0.1:8000/v1", "template", thoughts="reasoning"),
    # sglang/srt/entrypoints/openai/protocol.py: messages and answers have `reasoning_content`
    "sglang": ServerKind("http://127.0.0.1:30000/v1", "template"),
    # llama.cpp, tools/server: with tools and a schema it writes a prompt and a grammar of its own, which is another
    # prompt than that of the steps before
    "llama.cpp": ServerKind("http://127.0.0.1:8080/v1", "template", schema_beside_tools=False),
    # llama_cpp/server/types.py: fields that it does not know are dropped, `chat_template_kwargs` and thoughts among them;
    # llama_cpp/llama_chat_format.py: a grammar for "json_object" only
    "llama-cpp-python": ServerKind(
        "http://127.0.0.1:8000/v1", "words", thoughts=INLINE, schema="json_object"
    ),
    # ollama, openai/openai.go: thoughts come and go as `reasoning`; "none" is the effort that switches them off, and leaving
    # it out switches them on. `top_k` and `min_p` are passed over; without a temperature it samples at 1.0.
    # Beware: it reads 4,096 tokens on a GPU of less than 24 GB, and drops the oldest messages of a longer prompt without a word.
    "ollama": ServerKind(
        "http://127.0.0.1:11434/v1", "effort", thoughts="reasoning", counts_all=False
    ),
    # lmstudio-bug-tracker #632, #1559: no switch in its API reaches the template. What it reads of thoughts is not documented.
    "lmstudio": ServerKind("http://127.0.0.1:1234/v1", "words", thoughts=INLINE),
    # mlx_lm/server.py: 512 tokens unless told otherwise; messages reach the template as they are, and Qwen3's reads
    # `reasoning_content`, though answers have `reasoning`; no guided decoding
    "mlx-lm": ServerKind(
        "http://127.0.0.1:8080/v1", "template", as_answered=False, schema=None, max_tokens=32_768
    ),
    # ktransformers/server/api/openai/endpoints/chat.py: takes messages and little else
    "ktransformers": ServerKind("http://127.0.0.1:10002/v1", "words", thoughts=INLINE, schema=None),
    # Alibaba Model Studio, "Deep thinking" and "Structured output" in its documentation: `enable_thinking` is a field of the
    # request and must be false for structured output; `thinking_budget` can be given in ModelSettings.extra; no `min_p`
    "dashscope": ServerKind(
        "https://dashscope-intl.aliyuncs.com/compatible-mode/v1", "request", unread=frozenset({"min_p"})
    ),
}  # fmt: skip

# `owned_by` of the models that GET /models lists
_OWNERS = {
    "vllm": "vllm",
    "sglang": "sglang",
    "llamacpp": "llama.cpp",
    "me": "llama-cpp-python",
    "library": "ollama",
    "organization_owner": "lmstudio",
}
_ASKING = 10.0  # seconds; these requests are answered at once or not at all


def error_value(content: bytes) -> Any:
    """What the body of a refusal says: dug out of JSON in one of the usual shapes, or the text that it is."""
    text = content.decode("utf-8", "replace").strip()
    try:
        value: Any = json.loads(text)
    except ValueError:
        value = text
    for key in ("error", "message", "detail"):
        if isinstance(value, dict) and key in value:
            value = value[key]
    return value


def root(base_url: str) -> str:
    """Where the server's own paths begin, beside the `/v1` of the OpenAI ones."""
    return base_url.rstrip("/").removesuffix("/v1")


def kind_listed(base_url: str, listing: Any, server: str = "") -> str | None:
    """The kind of server, from its answer to GET /models (and its `Server` header); None if that does not tell."""
    if re.search(r"(^|\.)(dashscope|maas)[\w-]*\.aliyuncs\.com$", urlsplit(base_url).hostname or ""):
        return "dashscope"
    if isinstance(listing, list):  # not the object that OpenAI's API has
        return (
            "ktransformers"
            if all(isinstance(m, dict) and set(m) == {"id", "name"} for m in listing)
            else None
        )
    models = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(models, list) or not models or not isinstance(models[0], dict):
        return None
    if server.startswith("BaseHTTP") and set(models[0]) == {"id", "object", "created"}:
        return "mlx-lm"
    return _OWNERS.get(str(models[0].get("owned_by")))


async def recognise(
    client: httpx2.AsyncClient, base_url: str, headers: Mapping[str, str], listing: Any = None
) -> str | None:
    """What kind of server answers at *base_url*: a key of `KINDS`, or None for one that is not known.

    Asks for its models (unless their *listing* is given), and if those do not tell, for its version and for LM Studio's own list.
    Never raises for what a server does.
    """
    if kind := kind_listed(base_url, listing):
        return kind
    if listing is None:
        response = await _get(client, base_url.rstrip("/") + "/models", headers)
        kind = kind_listed(base_url, _json(response), response.headers.get("server", "") if response else "")
        if kind or response is None:  # it cannot be reached: no use in asking it more
            return kind
    above = root(base_url)
    version = _json(await _get(client, above + "/api/version", headers))
    if isinstance(version, dict) and set(version) == {"version"}:
        return "ollama"
    own = _json(await _get(client, above + "/api/v0/models", headers))
    models = own.get("data") if isinstance(own, dict) else None
    if isinstance(models, list) and any("compatibility_type" in m for m in models if isinstance(m, dict)):
        return "lmstudio"
    return None


async def healthy(client: httpx2.AsyncClient, base_url: str, headers: Mapping[str, str]) -> bool:
    """Whether the server can take requests, as it says itself.

    `/health` knows more than that somebody listens: vLLM fails it once its engine has died, llama-server while it loads.
    """
    response = await _get(client, root(base_url) + "/health", headers)
    if response is not None and 400 <= response.status_code < 500:  # it has none
        response = await _get(client, base_url.rstrip("/") + "/models", headers)
    return response is not None and response.status_code < 500


async def thoughts_field(
    kind: str | None, client: httpx2.AsyncClient, base_url: str, headers: Mapping[str, str]
) -> str:
    """The field in which the server reads an assistant's thoughts, or `INLINE`. Asks vLLM for its version."""
    if kind != "vllm":
        return KINDS.get(kind or "", PLAIN).thoughts
    answer = _json(await _get(client, root(base_url) + "/version", headers))
    version = re.match(r"(\d+)\.(\d+)", str(answer.get("version"))) if isinstance(answer, dict) else None
    if version is None:
        return KINDS[kind].thoughts
    numbers = int(version[1]), int(version[2])
    if numbers < (
        0,
        12,
    ):  # vLLM's pull request #28531: before it, fields of thoughts did not reach the template
        return INLINE
    return "reasoning" if numbers >= (0, 20) else "reasoning_content"


async def context_length(
    kind: str | None, client: httpx2.AsyncClient, base_url: str, headers: Mapping[str, str], model: str
) -> int | None:
    """How many tokens *model* reads and writes at most, if the server tells."""
    above = root(base_url)
    match kind:
        case "vllm" | "sglang" | None:  # None: others have taken the field over
            listing = _json(await _get(client, base_url.rstrip("/") + "/models", headers))
            return _number(_entry(listing, "data", "id", model), "max_model_len")
        case "llama.cpp":
            props = _json(await _get(client, above + "/props", headers))
            return (
                _number(props.get("default_generation_settings"), "n_ctx")
                if isinstance(props, dict)
                else None
            )
        case "ollama":
            for loaded in (False, True):
                if loaded:  # without a prompt it only loads the model, as the request to come would
                    await _post(client, above + "/api/generate", headers, {"model": model}, timeout=600.0)
                running = _json(await _get(client, above + "/api/ps", headers))
                name = model if ":" in model else model + ":latest"
                length = _number(_entry(running, "models", "name", name), "context_length")
                if length is not None:
                    return length
            return None
        case "lmstudio":
            own = _json(await _get(client, above + "/api/v0/models", headers))
            return _number(_entry(own, "data", "id", model), "loaded_context_length")
        case _:
            return None


async def count_tokens(
    kind: str | None, client: httpx2.AsyncClient, base_url: str, headers: Mapping[str, str], body: bytes
) -> int | None:
    """How many tokens the server makes of the prompt of a chat-completions request, if it tells exactly."""
    above = root(base_url)
    match kind:
        case "vllm":
            return _number(_json(await _post(client, above + "/tokenize", headers, body)), "count")
        case "sglang":  # of messages only in its newer releases; the older ones refuse
            return _number(
                _json(await _post(client, base_url.rstrip("/") + "/tokenize", headers, body)), "count"
            )
        case "llama.cpp":
            made = _json(await _post(client, above + "/apply-template", headers, body))
            if not isinstance(made, dict) or not isinstance(made.get("prompt"), str):
                return None
            text = {"content": made["prompt"], "add_special": True, "parse_special": True}
            answer = _json(await _post(client, above + "/tokenize", headers, text))
            tokens = answer.get("tokens") if isinstance(answer, dict) else None
            return len(tokens) if isinstance(tokens, list) else None
        case _:
            return None


def request_fields(kind: ServerKind, request: Request) -> dict[str, Any]:
    """The settings and the schema of *request*, in the fields that the server reads them from."""
    settings, fields = request.settings, dict[str, Any]()
    for name in ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "max_tokens", "seed"):
        value = getattr(settings, name)
        if value is not None and name not in kind.unread:
            fields[name] = value
    if kind.max_tokens is not None:
        fields.setdefault("max_tokens", kind.max_tokens)
    if settings.stop:
        fields["stop"] = list(settings.stop)
    thinking = settings.thinking
    if thinking is not None and kind.thinking == "template":
        fields["chat_template_kwargs"] = {"enable_thinking": thinking}  # Qwen3's model card: the hard switch
    elif kind.thinking == "request" and (thinking is not None or request.schema is not None):
        fields["enable_thinking"] = bool(thinking) and request.schema is None
    elif kind.thinking == "effort" and thinking is False:
        fields["reasoning_effort"] = "none"
    if request.schema is not None and kind.schema == "json_schema":
        wanted = {"name": "answer", "schema": request.schema, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": wanted}
    elif request.schema is not None and kind.schema == "json_object":
        fields["response_format"] = {"type": "json_object", "schema": request.schema}
    return fields | dict(settings.extra)


# ------------------------------------------------------------------ asking, without ever failing


async def _get(client: httpx2.AsyncClient, url: str, headers: Mapping[str, str]) -> httpx2.Response | None:
    import httpx2

    try:
        return await client.get(url, headers=dict(headers), timeout=_ASKING)
    except httpx2.HTTPError:
        return None


async def _post(
    client: httpx2.AsyncClient,
    url: str,
    headers: Mapping[str, str],
    body: bytes | Mapping[str, Any],
    timeout: float = 60.0,
) -> httpx2.Response | None:

    import httpx2

    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        return await client.post(url, headers=dict(headers), content=content, timeout=timeout)
    except httpx2.HTTPError:
        return None


def _json(response: httpx2.Response | None) -> Any:
    """What a good answer says; None for any other."""
    if response is None or response.status_code != 200:
        return None
    try:
        return response.json()
    except ValueError:
        return None


def _entry(listing: Any, under: str, key: str, name: str) -> Any:
    entries = listing.get(under) if isinstance(listing, dict) else None
    if not isinstance(entries, list):
        return None
    return next((e for e in entries if isinstance(e, dict) and e.get(key) == name), None)


def _number(entry: Any, key: str) -> int | None:
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
