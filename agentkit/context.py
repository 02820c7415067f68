"""The conversation as it grows, and what of it the model is shown once it no longer fits into the context."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from agentkit.errors import ContextOverflow
from agentkit.messages import Message, Text, Thinking, ToolResult, Usage, wire
from agentkit.runtime.engine import Counting, Engine, Request

__all__ = ["ContextUse", "Conversation", "measure"]

Ask = Callable[[Sequence[Message]], Request]

_ALWAYS_FITS = (
    8_000  # bytes: not even asked how long the context is; should it be shorter still, the server says so
)
_ROOM = 4_096  # tokens kept free for the answer where nothing says how long it may be, at most a quarter of the context
_CUT_TO = 0.75  # of what there is, so that not every turn has to cut again, which would cost the prefix cache
_SHORT = 400  # characters left of an old tool result
_TRIES = 6
_BYTES_PER_TOKEN = 3.0  # of English, JSON and code about 3.5; only a guess to start from
_MESSAGE_TOKENS = 8  # what a chat template puts around a message, at most


@dataclass(frozen=True, slots=True)
class ContextUse:
    """Tokens, as the server counts them."""

    prompt: int  # chat template and tools included
    tools: int  # the tools' share of that
    limit: int | None  # of prompt and answer together; None where the server does not tell


async def measure(engine: Engine, request: Request) -> ContextUse | None:
    """How much of the context *request* takes; None where the server cannot count."""
    if not isinstance(engine, Counting):
        return None
    prompt = await engine.count_tokens(request)
    if prompt is None:
        return None
    bare = await engine.count_tokens(replace(request, tools=())) if request.tools else prompt
    return ContextUse(prompt, max(0, prompt - (bare or prompt)), await engine.context_length())


class Conversation:
    """`messages` is all that was said, `shown` what the model is shown of it, `cuts` says what was left out.

    Cut is the oldest first: tool results are shortened, then turns before the current one dropped, then the current turn's own
    results shortened. The system prompt, the tools and the current request stay.
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = list(messages)
        self.shown = list(messages)
        self.cuts: list[str] = []
        self.limit: int | None = None  # tokens, prompt and answer together
        self._asked = False
        self._known = 0  # tokens that the server counted …
        self._known_until = 0  # … of so many of the messages shown
        self._bytes_per_token = _BYTES_PER_TOKEN
        self._tools: dict[int, int] = {}  # how many tools -> bytes of their schemas

    def append(self, message: Message, shown: Message | None = None) -> None:
        """*shown* is what the model is shown instead of it."""
        self.messages.append(message)
        self.shown.append(shown or message)

    def counted(self, usage: Usage) -> None:
        """The server has counted all that is shown and its answer, which is about to be appended."""
        if usage.input_tokens:
            self._known, self._known_until = usage.total_tokens, len(self.shown) + 1

    async def fit(self, engine: Engine, request: Request, ask: Ask) -> list[str]:
        """Make *request* fit, if the engine can tell how long it is and may be.

        Says what had to be cut; `ask` then makes the request anew of what is shown now.
        """
        at_most = self._at_most(request)
        if at_most < _ALWAYS_FITS or not isinstance(engine, Counting) or not await self.learn_limit(engine):
            return []
        assert self.limit is not None
        room = self.limit - min(request.settings.max_tokens or _ROOM, self.limit // 4)
        if at_most <= room:
            return []
        tokens = await self._count(engine, request)
        if tokens <= room:
            return []
        said: list[str] = []
        for _ in range(_TRIES):
            done = self._cut(tokens - int(room * _CUT_TO))
            said += done
            if not done:
                break
            tokens = await self._count(engine, ask(self.shown))
            if tokens <= room:
                break
        return said if tokens <= room else [*said, *self._too_long(tokens, request)]

    async def learn_limit(self, engine: Engine) -> bool:
        """Ask, once, how long the context is; whether it is known."""
        if not self._asked and self.limit is None and isinstance(engine, Counting):
            self.limit, self._asked = await engine.context_length(), True
        return self.limit is not None

    def overflowed(self, error: ContextOverflow) -> list[str]:
        """The server found the request too long: cut it, or raise *error* if nothing is left to cut."""
        told = re.search(
            r"(?:maximum )?context (?:length|window|size) (?:is|of|\()\D{0,3}(\d{3,})", str(error)
        )
        if told:
            self.limit = int(told[1])
        size = sum(self._guess(m) for m in self.shown)
        said = self._cut(max(size // 3, size - int((self.limit or size) * _CUT_TO)))
        if not said:
            raise error
        return said

    def room_for(self, request: Request, tokens: int) -> bool:
        """Whether an answer of so many tokens is sure to fit behind the prompt."""
        return self.limit is not None and self._at_most(request) + tokens <= self.limit

    # ------------------------------------------------------------ how long it is

    def _at_most(self, request: Request) -> int:
        """Tokens of the prompt: counted as far as the server has counted, from there on one for each byte."""
        new = request.messages[self._known_until :]
        tokens = self._known + sum(_bytes(m) + _MESSAGE_TOKENS for m in new)
        return tokens if self._known_until else tokens + self._tools_bytes(request)

    async def _count(self, engine: Counting, request: Request) -> int:
        tokens = await engine.count_tokens(request)
        size = sum(map(_bytes, request.messages)) + self._tools_bytes(request)
        if tokens is None:
            return int(size / self._bytes_per_token)
        self._bytes_per_token = max(1.0, size / max(tokens, 1))
        self._known, self._known_until = tokens, len(request.messages)
        return tokens

    def _tools_bytes(self, request: Request) -> int:
        """Of the schemas as JSON; written once, as the tools hardly change in a run."""
        many = len(request.tools)
        if many not in self._tools:
            self._tools[many] = len(json.dumps(list(request.tools), ensure_ascii=False).encode())
        return self._tools[many]

    def _guess(self, message: Message) -> int:
        return int(_bytes(message) / self._bytes_per_token) + _MESSAGE_TOKENS

    def _too_long(self, tokens: int, request: Request) -> list[str]:
        tools = int(self._tools_bytes(request) / self._bytes_per_token)
        return [
            f"the request may not fit: about {tokens} tokens, {tools} of them for the tools, into a context of {self.limit}"
        ]

    # ------------------------------------------------------------ cutting

    def _cut(self, tokens: int) -> list[str]:
        """Free so many tokens, or as many as can be; says what was cut, nothing if there was nothing."""
        self._known = self._known_until = 0
        current = max((i for i, m in enumerate(self.shown) if m.role == "user"), default=0)
        results = [i for i, m in enumerate(self.shown) if m.role == "tool"]
        freed = shortened = 0
        for i in (i for i in results if i != results[-1]):
            if freed >= tokens:
                break
            freed, shortened = self._shorten(i, _SHORT, freed, shortened)
        dropped = 0
        first = next((i for i, m in enumerate(self.shown) if m.role != "system"), 0)
        while freed < tokens and current > first:  # the oldest turn, up to the next thing the user said
            after = next(i for i in range(first + 1, len(self.shown)) if self.shown[i].role == "user")
            freed += sum(map(self._guess, self.shown[first:after]))
            dropped += after - first
            del self.shown[first:after]
            current -= after - first
        if dropped:
            note = f"({dropped} earlier messages were left out to save space.)\n\n"
            kept = self.shown[first]
            self.shown[first] = replace(kept, parts=(Text(note), *kept.parts))
        if freed < tokens and results:  # the newest result, as much of it as there is room for
            last = max(i for i, m in enumerate(self.shown) if m.role == "tool")
            longest = max((len(r.content) for r in self.shown[last].results), default=0)
            keep = longest - int((tokens - freed) * self._bytes_per_token)
            freed, shortened = self._shorten(last, max(_SHORT, min(keep, longest // 2)), freed, shortened)
        thoughts = 0
        if freed < tokens:
            for i, m in enumerate(self.shown):
                if m.role == "assistant" and m.thinking and m.raw is None:
                    parts = tuple(p for p in m.parts if not isinstance(p, Thinking))
                    self.shown[i] = replace(m, parts=parts)
                    freed += int(len(m.thinking) / self._bytes_per_token)
                    thoughts += 1
        said = [
            f"{n} {what if n == 1 else plural} to fit the context"
            for n, what, plural in (
                (shortened, "tool result was shortened", "tool results were shortened"),
                (dropped, "earlier message was left out", "earlier messages were left out"),
                (thoughts, "thought was left out", "thoughts were left out"),
            )
            if n
        ]
        self.cuts += said
        return said

    def _shorten(self, index: int, keep: int, freed: int, count: int) -> tuple[int, int]:
        """Cut the results of one message down to *keep* characters each."""
        message = self.shown[index]
        parts = list(message.parts)
        for n, part in enumerate(parts):
            if isinstance(part, ToolResult) and len(part.content) > keep + 100:
                parts[n] = replace(part, content=shortened(part.content, keep))
                count += 1
        made = replace(message, parts=tuple(parts))
        if made.parts != message.parts:
            freed += self._guess(message) - self._guess(made)
            self.shown[index] = made
        return freed, count


def shortened(text: str, limit: int) -> str:
    """The beginning and the end of *text*, with what was left out said in the middle."""
    if len(text) <= limit:
        return text
    tail = limit // 4
    return f"{text[: limit - tail]}\n[… {len(text) - limit} characters left out …]\n{text[-tail:]}"


def _bytes(message: Message) -> int:
    """Of what the model reads of it, JSON's escapes and names included."""
    return len(wire(message)) + (len(message.thinking.encode()) if message.role == "assistant" else 0)
