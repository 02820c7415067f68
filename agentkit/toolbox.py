"""Too many tools for the prompt: their schemas shrunk until they fit, and beyond that a search for the rest.

Nothing here does I/O. What is shown of a tool is always a valid tool that allows at least what the whole one
does; calls are checked and carried out with the whole one.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from agentkit.messages import ToolResult
from agentkit.schema import spell
from agentkit.tools import Tool, ToolOutput

__all__ = ["Toolbox", "budget_for", "fenced", "find", "shrink", "tokens"]

SHARE = 0.25  # of the context, for tools
CONTEXT = 16_384  # tokens, where nothing says how many there are
BYTES_PER_TOKEN = 3.5  # of tool schemas as JSON; Qwen's tokenizer makes 3.6 to 4.3
AROUND = 4  # tokens a chat template puts around each tool
LEVELS = 4
SEARCHING = 3  # the level at which tools are shown where not all are
RESERVE = 0.5  # of the budget, for tools that are loaded on the way
FOUND = 5  # tools that a search brings


def budget_for(context: int | None) -> int:
    """Tokens that tools may take of a context of so many; None where its length is not known."""
    return int((context or CONTEXT) * SHARE)


def tokens(tools: Iterable[Tool]) -> int:
    """About how many tokens these tools take in a prompt."""
    return sum(_tokens(json.dumps(t.schema, ensure_ascii=False)) for t in tools)


@lru_cache(maxsize=4096)
def _tokens(schema: str) -> int:
    return math.ceil(len(schema.encode(errors="replace")) / BYTES_PER_TOKEN) + AROUND


# --- shrinking


def shrink(tool: Tool, level: int) -> Tool:
    """*tool* as it is shown at a level from 0 (whole) to 4 (little more than the names of its arguments).

    1: no titles, examples and defaults that say nothing; 2: long descriptions cut; 3: only the first sentence of
    the tool's, short ones of arguments, no bounds; 4: no descriptions of arguments, nothing nested.
    """
    if level <= 0:
        return tool
    words = (10**9, 300, 120, 80)[level - 1]
    parameters = _shrunk(tool.parameters, level, 0)
    description = _sentence(tool.description, words) if level >= 2 else tool.description.strip()
    return replace(tool, description=description, parameters=parameters)


_LOOSE = ("title", "examples", "$schema", "$id", "$comment", "deprecated", "readOnly", "writeOnly")
_NARROWING = (  # oneOf and not as well, as they would allow less once what is in them allows more
    "not if then else oneOf contains minContains maxContains unevaluatedProperties minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength pattern format minItems "
    "maxItems uniqueItems minProperties maxProperties default"
).split()
_BY_NAME = ("properties", "$defs", "definitions", "patternProperties")
_AS_IT_IS = ("enum", "const", "default", "required", "type")


def _shrunk(schema: Any, level: int, depth: int) -> Any:
    """At level 3 and above keywords go that only narrow what is allowed."""
    if not isinstance(schema, Mapping):
        return schema
    if level >= 4 and depth >= 2 and "$ref" not in schema:
        return {k: schema[k] for k in ("type", "enum") if k in schema and (k == "type" or _short(schema[k]))}
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _LOOSE or (key == "default" and value in (None, "", [], {})):
            continue
        if key == "description" and isinstance(value, str):
            limit = (10**9, 120, 60, 0)[level - 1]
            if depth and limit and (text := _sentence(value, limit) if level >= 2 else value.strip()):
                made[key] = text
        elif level >= 3 and (key in _NARROWING or (key == "enum" and not _short(value))):
            continue
        elif key in _BY_NAME and isinstance(value, Mapping):
            made[key] = {n: _shrunk(inner, level, depth + 1) for n, inner in value.items()}
        elif key in _AS_IT_IS:
            made[key] = value
        elif isinstance(value, list):
            made[key] = [_shrunk(inner, level, depth + (key != "anyOf")) for inner in value]
        else:
            made[key] = _shrunk(value, level, depth + 1)
    return made


def _short(values: Any) -> bool:
    return len(json.dumps(values)) <= 400


def _sentence(text: str, limit: int) -> str:
    """The beginning of *text*, up to the end of a sentence if there is one in the last part."""
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    cut = text[:limit]
    ends = [m.end() for m in re.finditer(r"[.!?。](?=\s)", text[: limit + 1])]
    if ends and ends[-1] >= limit // 3:
        return cut[: ends[-1]].rstrip()
    return f"{cut.rpartition(' ')[0] or cut}…"


# --- searching


def find(query: str, tools: Sequence[Tool], limit: int = FOUND) -> list[Tool]:
    """The tools whose names and descriptions match the query best, by BM25; the best first, at most *limit*."""
    documents = [_Document(t) for t in tools]
    if not documents:
        return []
    wanted = set(_words(query))
    mean = sum(d.length for d in documents) / len(documents)
    known = Counter(word for d in documents for word in d.count)
    scored: list[tuple[float, int, Tool]] = []
    for d in documents:
        score = 0.0
        for word in wanted & d.count.keys():
            n = known[word]
            rarity = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
            often = d.count[word]
            score += rarity * often * 2.2 / (often + 1.2 * (0.25 + 0.75 * d.length / (mean or 1)))
        if score > 0:
            scored.append((-score, len(scored), d.tool))
    return [tool for _, _, tool in sorted(scored, key=lambda s: s[:2])[:limit]]


class _Document:
    """A tool's words; those of its name count three times, its arguments' names once."""

    def __init__(self, tool: Tool) -> None:
        properties = tool.parameters.get("properties")
        arguments = " ".join(properties) if isinstance(properties, Mapping) else ""
        text = f"{tool.name} {tool.name} {tool.name} {tool.description[:2_000]} {arguments}"
        self.tool = tool
        self.count = Counter(_words(text))
        self.length = sum(self.count.values())


_STOP = frozenset(
    "a an and any are as at be by can do does for from get given has have how i if in into is it its me my of on or "
    "please that the their them then there this to use used using was what when where which who will with you your".split()
)


def _words(text: str) -> list[str]:
    """Lower-case words, without their commonest endings; of scripts without spaces, pairs of characters."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text).lower()
    words = []
    for word in re.findall(r"[^\W_]+", text):
        if not word.isascii() and re.search(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]", word):
            words += [word[i : i + 2] for i in range(max(1, len(word) - 1))]
        elif word not in _STOP:
            words.append(_stem(word))
    return words


def _stem(word: str) -> str:
    for ending in (
        "ations",
        "ation",
        "ings",
        "ing",
        "ies",
        "ions",
        "ion",
        "ers",
        "er",
        "ed",
        "es",
        "s",
        "e",
        "y",
    ):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


# --- what a run shows


class Toolbox:
    """The tools of one run: `tools` can be called, `shown` is what the prompt holds of them.

    All are shown if they fit into *budget* tokens, whole or shrunk. Else those are shown that fit, first of all
    those that match *task*, and `find_tools`, which loads others: they are added at the end, so that the prompt's
    beginning stays. A call of a tool that is not shown is carried out too, and loads it.
    """

    def __init__(self, tools: Sequence[Tool], budget: int, task: str = "") -> None:
        self._budget, self._task = budget, task
        self._loaded: list[str] = []  # in the order they came
        self._all: tuple[Tool, ...] = ()
        self._base: tuple[Tool, ...] = ()
        self._finder: Tool | None = None
        self._level = 0
        self.tools: Mapping[str, Tool] = {}
        self.update(tools)

    @property
    def searching(self) -> bool:
        """Whether some of the tools must be searched for."""
        return self._finder is not None

    def update(self, tools: Sequence[Tool]) -> None:
        """Take the tools as they are now; nothing moves if they are the same."""
        tools = tuple(tools)
        if tools == self._all and self.tools:
            return
        self._all = tools
        named = {t.name: t for t in tools}
        self._loaded = [name for name in self._loaded if name in named]
        for self._level in range(LEVELS + 1):
            if tokens(shrink(t, self._level) for t in tools) <= self._budget:
                self.tools, self._base, self._loaded, self._finder = named, tools, [], None
                return
        self._level, self._finder = SEARCHING, self._search(named, len(named))
        was = [t.name for t in self._base if t.name in named]  # stay, should the list have changed
        matching = [t.name for t in find(self._task, tools)]
        own = [t.name for t in tools if t.fn is not None]  # the user's own functions rather than a server's
        room = int(self._budget * (1 - RESERVE)) - tokens([self._finder])
        chosen: set[str] = set()
        for name in dict.fromkeys([*was, *matching, *own]):
            cost = tokens([self._as_shown(named[name])])
            if cost <= room:
                chosen.add(name)
                room -= cost
        finder = self._finder = self._search(named, len(named) - len(chosen))
        self.tools = named | {finder.name: finder}
        self._base = (*(t for t in tools if t.name in chosen), finder)

    def shown(self) -> tuple[Tool, ...]:
        """What the next request names, in an order that only ever grows at its end."""
        loaded = [self.tools[name] for name in self._loaded]
        return tuple(self._as_shown(t) for t in (*self._base, *loaded))

    def _as_shown(self, tool: Tool) -> Tool:
        if self._finder is None:
            return shrink(tool, self._level)
        if tool is self._finder:
            return tool
        for level in range(self._level, LEVELS + 1):
            if tokens([shown := shrink(tool, level)]) <= self._budget * RESERVE:
                return shown
        return replace(shown, description=_sentence(tool.description, 80), parameters={"type": "object"})

    def load(self, names: Iterable[str]) -> None:
        """Show these from the next request on; what was loaded longest ago makes room for them."""
        base = {t.name for t in self._base}
        new = [n for n in dict.fromkeys(names) if n in self.tools and n not in base and n not in self._loaded]
        if not new:
            return
        room = self._budget - tokens(map(self._as_shown, self._base))
        self._loaded += new
        while len(self._loaded) > 1 and (tokens(self._as_shown(self.tools[n]) for n in self._loaded) > room):
            self._loaded.pop(0)

    def _search(self, named: Mapping[str, Tool], others: int) -> Tool:
        name = "find_tools"
        while name in named:
            name += "_"

        async def handler(arguments: Mapping[str, Any]) -> ToolOutput:
            found = find(str(arguments.get("query", "")), self._all)
            self.load(reversed([t.name for t in found]))
            if not found:
                return ToolOutput("No tool matches. Search again, with other words for what it should do.")
            lines = [
                f"{t.name}: {_sentence(t.description, 160)} Arguments: {_sentence(spell(t.parameters), 600)}"
                for t in found
            ]
            return ToolOutput("These tools can be called now:\n" + "\n".join(lines))

        query = {"type": "string", "description": "What the tool should do, in a few words."}
        parameters = {"type": "object", "properties": {"query": query}, "required": ["query"]}
        # without their names: small models then call one of those, with this tool's argument
        text = (
            f"Call this first if no other tool listed here fits: it finds the right one among {others} more."
        )
        return Tool(name, text, parameters, handler, effects=frozenset())


# --- results


def fenced(result: ToolResult, source: str) -> ToolResult:
    """A result that others wrote, marked as data: what it says is nothing that the model was told to do.

    What the planner adds stands outside of the fence, and nothing within can end it.
    """
    inside = re.sub(r"(?i)<(?=/?data[\s>])", "‹", result.content)
    return replace(
        result, content=f'<data from="{re.sub("[^A-Za-z0-9_.-]+", "_", source)}">\n{inside}\n</data>'
    )
