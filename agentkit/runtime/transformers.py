"""A model in this very process, run by Hugging Face transformers: slow, but no server and any architecture it knows."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from inspect import signature
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from agentkit.errors import ContextOverflow, EngineError, ModelNotFound
from agentkit.messages import Message, Usage, to_chat
from agentkit.runtime.engine import Chunk, Request

__all__ = ["Transformers"]

_PREFILL = 256  # tokens of a prompt that are read in one go; between them a request can be cancelled
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Loaded:
    torch: Any
    transformers: Any
    tokenizer: Any
    model: Any
    last_only: Mapping[str, int]  # asks for the scores of the last position, of a model that knows the word
    context: int | None
    ends: frozenset[int]  # the tokens that end an answer
    think: tuple[int | None, int | None]  # <think> and </think>, for Qwen3 151667 and 151668

    @cached_property
    def grammars(self) -> Any:
        """What makes grammars of schemas; it reads the whole vocabulary, so it is made once."""
        try:
            xgrammar = import_module("xgrammar")
        except ImportError as exc:
            raise EngineError(
                "Guided decoding in this process needs: pip install 'agentkit[transformers]'; vLLM and llama.cpp "
                "have it built in."
            ) from exc
        size = self.model.config.get_text_config().vocab_size
        return xgrammar.GrammarCompiler(
            xgrammar.TokenizerInfo.from_huggingface(
                self.tokenizer, vocab_size=size, stop_token_ids=[*self.ends]
            )
        )


@dataclass(slots=True)
class _Cache:
    """The keys and values of the tokens that were read last; the next prompt usually begins with them."""

    values: Any
    tokens: list[int]


class Transformers:
    """An engine for any causal language model that transformers can load, one answer at a time.

    `model` is a name on the hub or a directory. `device` is torch's word for where it runs ("cpu", "cuda:1"); None takes
    a GPU if there is one. `dtype` is "bfloat16", "float32" …; None takes that of the weights. `context` is the most
    tokens that a prompt and its answer may have together, by default what the model was made for. In `ModelSettings.extra`,
    `chat_template_kwargs`, `add_generation_prompt`, `continue_final_message` and `repetition_penalty` have a meaning.

    The weights are loaded at the first request and stay in memory for as long as this object does. Calls come as the text
    the model wrote; guided decoding needs `xgrammar`. Raises `ModelNotFound` for a model that cannot be had, and
    `EngineError` where the extra `transformers` is missing or the model cannot be run.
    """

    def __init__(
        self, model: str, *, device: str | None = None, dtype: str | None = None, context: int | None = None
    ) -> None:
        self.model = str(model)
        self._device, self._dtype, self._context = device, dtype, context
        self._loaded: _Loaded | None = None
        self._cache: _Cache | None = None
        self._turn = anyio.Semaphore(1)  # a whole answer
        self._work = anyio.CapacityLimiter(1)  # one step of it: neither model nor tokenizer is thread-safe

    def __repr__(self) -> str:
        return f"Transformers({self.model!r})"

    async def context_length(self) -> int | None:
        return (await self._load()).context

    async def count_tokens(self, request: Request) -> int:
        loaded = await self._load()
        return len((await self._step(_prompt, loaded, request))[0])

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """The answer, token by token; closing the generator stops the model after the token it is at."""
        loaded = await self._load()
        async with self._turn:
            prompt, thinking = await self._step(_prompt, loaded, request)
            room = None if loaded.context is None else loaded.context - len(prompt)
            if room is not None and room <= 0:
                raise ContextOverflow(
                    f"The conversation is {len(prompt)} tokens long, and the context of {self.model} has "
                    f"{loaded.context}."
                )
            asked = request.settings.max_tokens or loaded.model.generation_config.max_new_tokens
            limit = min(n for n in (asked, room, 2**31) if n is not None)
            pick = await self._step(_picker, loaded, request, len(prompt), thinking)
            cached = await self._step(self._reuse, loaded, prompt)
            reader = _Reader(loaded, request.settings.stop, thinking)
            tokens = self._tokens(loaded, prompt, pick)
            count, finish = 0, "length"
            while count < limit:
                token = await self._step(next, tokens, None)
                if token is None:  # some of the prompt was read
                    continue
                count += 1
                if token in loaded.ends:
                    finish = "stop"
                    break
                chunk = reader.feed(token)
                if chunk is not None:
                    yield chunk
                if reader.stopped:
                    finish = "stop"
                    break
            if (rest := reader.close()) is not None:
                yield rest
            yield Chunk(finish_reason=finish, usage=Usage(len(prompt), count, cached))

    async def _step(self, function: Callable[..., _Result], *args: Any) -> _Result:
        return await anyio.to_thread.run_sync(function, *args, limiter=self._work)

    async def _load(self) -> _Loaded:
        if self._loaded is None:
            async with self._turn:
                if self._loaded is None:
                    self._loaded = await self._step(
                        _load, self.model, self._device, self._dtype, self._context
                    )
        return self._loaded

    def _reuse(self, loaded: _Loaded, prompt: Sequence[int]) -> int:
        """Cut the cache back to what *prompt* begins with as well; how many tokens that are."""
        cache = self._cache
        if cache is not None:
            shared = 0
            for old, new in zip(cache.tokens, prompt[:-1], strict=False):  # at least one token must be read
                if old != new:
                    break
                shared += 1
            extra = len(cache.tokens) - shared
            # layers with a sliding window or a state of their own cannot be cut back
            if shared and (not extra or all(type(x).__name__ == "DynamicLayer" for x in cache.values.layers)):
                if extra:
                    cache.values.crop(-extra)
                    del cache.tokens[shared:]
                return shared
        self._cache = _Cache(loaded.transformers.DynamicCache(config=loaded.model.config), [])
        return 0

    def _tokens(
        self, loaded: _Loaded, prompt: Sequence[int], pick: Callable[[list[int], Any], int]
    ) -> Iterator[int | None]:
        """The answer's tokens without end, and a None for each piece of the prompt that was read before."""
        torch, model = loaded.torch, loaded.model
        cache = self._cache
        assert cache is not None
        tokens = list(prompt)
        while True:
            piece = tokens[len(cache.tokens) :][:_PREFILL]
            self._cache = None  # until its layers agree again
            try:
                with torch.inference_mode():
                    out = model(
                        input_ids=torch.tensor([piece], device=model.device),
                        past_key_values=cache.values,
                        use_cache=True,
                        **loaded.last_only,
                    )
            except RuntimeError as exc:  # out of memory is one
                raise EngineError(
                    f"{self.model} failed on {model.device} after {len(cache.tokens)} tokens ({_first_line(exc)}); "
                    "with little memory, take a smaller model or a smaller context."
                ) from exc
            cache.tokens += piece
            self._cache = cache
            if len(cache.tokens) < len(tokens):
                yield None
            else:
                with torch.inference_mode():
                    tokens.append(pick(tokens, out.logits[:, -1].float()))
                yield tokens[-1]


class _Reader:
    """Tokens of an answer in, text and reasoning out, as soon as whole characters stand."""

    def __init__(self, loaded: _Loaded, stops: tuple[str, ...], thinking: bool) -> None:
        self._decode = loaded.tokenizer.decode
        self._opens, self._closes = loaded.think
        self._stops, self._thinking = stops, thinking
        self._tokens: list[int] = []  # of what is not yet told, and a few before it
        self._told = 0  # how many of them are
        self._held = ""  # may be the beginning of a stop string
        self._begun = False  # whether anything but white space was said
        self._strip = thinking  # the newlines behind a think tag belong to the tag
        self.stopped = False  # by a stop string

    def feed(self, token: int) -> Chunk | None:
        opens = token == self._opens and not self._begun and not self._thinking
        if opens or (token == self._closes and self._thinking):
            chunk = self.close()
            self._thinking, self._begun, self._strip = opens, True, True
            return chunk
        self._tokens.append(token)
        text = self._decode(self._tokens, skip_special_tokens=False)
        if text.endswith("\ufffd"):  # half a character, so far
            return None
        # decoded with what stands before it: some tokenizers write a word differently at the beginning
        new = text[len(self._decode(self._tokens[: self._told], skip_special_tokens=False)) :]
        del self._tokens[: self._told]
        self._told = len(self._tokens)
        return self._chunk(new, last=False)

    def close(self) -> Chunk | None:
        """The rest of the text, or of the thoughts; what stays half a character is shown as one."""
        text = self._decode(self._tokens, skip_special_tokens=False)
        new = text[len(self._decode(self._tokens[: self._told], skip_special_tokens=False)) :]
        self._tokens, self._told = [], 0
        return self._chunk(new, last=True)

    def _chunk(self, new: str, last: bool) -> Chunk | None:
        if self.stopped:
            return None
        text = self._held + new
        at = min((i for stop in self._stops if (i := text.find(stop)) >= 0), default=None)
        if at is not None:
            self.stopped, text, self._held = True, text[:at], ""
        else:
            keep = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
            text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        if self._strip:
            text = text.lstrip("\n")
        if not text:
            return None
        self._strip = False
        self._begun = self._begun or not text.isspace()
        return Chunk(reasoning=text) if self._thinking else Chunk(text=text)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of *text* may be the beginning of *stop*."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-n:])), 0)


def _prompt(loaded: _Loaded, request: Request) -> tuple[list[int], bool]:
    """The tokens of the prompt as the model's chat template writes it, and whether it ends inside a think block."""
    extra = request.settings.extra
    options: dict[str, Any] = {"add_generation_prompt": True}
    options |= {k: extra[k] for k in ("add_generation_prompt", "continue_final_message") if k in extra}
    if request.settings.thinking is not None:
        options["enable_thinking"] = request.settings.thinking
    options |= extra.get("chat_template_kwargs", {})
    try:
        text: str = loaded.tokenizer.apply_chat_template(
            _chats(request.messages), tools=list(request.tools) or None, tokenize=False, **options
        )
    except Exception as exc:  # a template can raise whatever it likes
        raise EngineError(
            f"The model's chat template cannot write this conversation: {_first_line(exc)}"
        ) from exc
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate is no text to a tokenizer
    tokens: list[int] = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokens, text.rstrip().endswith("<think>")


def _chats(messages: Sequence[Message]) -> list[dict[str, Any]]:
    last_user = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    chats = [
        chat
        for i, message in enumerate(messages)
        for chat in to_chat(message, "reasoning_content" if i > last_user else None)
    ]
    for chat in chats:
        for call in chat.get("tool_calls", ()):  # most templates write the arguments as JSON themselves
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return chats


def _picker(loaded: _Loaded, request: Request, start: int, thinking: bool) -> Callable[[list[int], Any], int]:
    """What chooses the next token: from all tokens so far, the prompt's *start* included, and the scores of the next."""
    torch, hf, s = loaded.torch, loaded.transformers, request.settings
    own = loaded.model.generation_config

    def setting(name: str) -> Any:
        return getattr(own, name, None) if getattr(s, name) is None else getattr(s, name)

    sampled = bool(own.do_sample) if s.temperature is None else s.temperature > 0
    shaped = hf.LogitsProcessorList()
    if sampled:
        if (temperature := setting("temperature")) is not None:
            shaped.append(hf.TemperatureLogitsWarper(float(temperature)))
        if (top_k := setting("top_k") or 0) > 0:
            shaped.append(hf.TopKLogitsWarper(top_k))
        if (top_p := setting("top_p")) is not None and top_p < 1:
            shaped.append(hf.TopPLogitsWarper(top_p))
        if min_p := setting("min_p"):
            shaped.append(hf.MinPLogitsWarper(min_p))
    repetition = s.extra.get("repetition_penalty", own.repetition_penalty)
    again = hf.RepetitionPenaltyLogitsProcessor(float(repetition)) if repetition else None
    grammar = None if request.schema is None else _grammar(loaded, request.schema)
    after = loaded.think[1] if thinking or s.thinking else None  # thoughts are free
    dice = torch.Generator(loaded.model.device)
    if s.seed is None:
        dice.seed()
    else:
        dice.manual_seed(s.seed)

    def pick(tokens: list[int], scores: Any) -> int:
        if again is not None:
            scores = again(torch.tensor([tokens], device=scores.device), scores)
        answer = tokens[start:]
        if s.presence_penalty and answer:
            scores[:, list(set(answer))] -= s.presence_penalty
        if grammar is not None and (after is None or after in answer):
            scores = grammar(torch.tensor([tokens]), scores)
        if not sampled:
            return int(scores.argmax())
        return int(torch.multinomial(shaped(None, scores).softmax(-1), 1, generator=dice))

    return pick


def _grammar(loaded: _Loaded, schema: Mapping[str, Any]) -> Any:
    compiler = loaded.grammars
    try:
        # a small model that may write white space anywhere may write nothing else
        grammar = compiler.compile_json_schema(json.dumps(schema), any_whitespace=False)
    except (RuntimeError, ValueError) as exc:
        raise EngineError(f"This JSON schema cannot guide the decoding: {_first_line(exc)}") from exc
    return import_module("xgrammar.contrib.hf").LogitsProcessor(grammar)


def _load(name: str, device: str | None, dtype: str | None, context: int | None) -> _Loaded:
    try:
        torch, hf = import_module("torch"), import_module("transformers")
    except ImportError as exc:
        raise EngineError(
            f"Running a model in this process needs: pip install 'agentkit[transformers]' ({exc})"
        ) from exc
    if device is None:
        device = (
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        hf.AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as exc:
        raise ModelNotFound(
            f"{name!r} is no model that transformers can load ({_first_line(exc)}); it takes a directory with "
            "config.json, safetensors and a tokenizer, or a name on the hub."
        ) from exc
    try:
        tokenizer = hf.AutoTokenizer.from_pretrained(name)
        model = hf.AutoModelForCausalLM.from_pretrained(name, dtype=dtype or "auto").to(device).eval()
    except (OSError, RuntimeError, ValueError, KeyError, ImportError) as exc:
        raise EngineError(f"transformers cannot run {name!r} on {device}: {_first_line(exc)}") from exc
    ends = model.generation_config.eos_token_id
    vocabulary = tokenizer.get_vocab()
    return _Loaded(
        torch,
        hf,
        tokenizer,
        model,
        {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {},
        context or getattr(model.config.get_text_config(), "max_position_embeddings", None),
        frozenset(
            token
            for token in (*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id)
            if token is not None
        ),
        (vocabulary.get("<think>"), vocabulary.get("</think>")),
    )


def _first_line(exc: Exception) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[0]
