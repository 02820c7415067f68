"""The Berkeley function calling leaderboard (BFCL v4) as a suite, with the data and checkers of the package `bfcl-eval`."""

from __future__ import annotations

import ast
import copy
import functools
import hashlib
import inspect
import json
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from agentkit.errors import ConfigError
from agentkit.evals.suite import Call, Case, Outcome, Verdict, World
from agentkit.messages import from_chat
from agentkit.tools import Tool, ToolOutput

__all__ = ["Bfcl", "bfcl"]

# how many of the fixed 200 are of each category: those whose ids have the smallest SHA-256, and no other choice
COUNTS = {
    "simple": 24,
    "multiple": 24,
    "parallel": 24,
    "parallel_multiple": 24,
    "irrelevance": 24,
    "live_simple": 20,
    "live_multiple": 20,
    "live_parallel": 8,
    "live_parallel_multiple": 8,
    "live_irrelevance": 12,
    "live_relevance": 4,
    "multi_turn_base": 8,
}
TOTAL = sum(COUNTS.values())

INSTALL = "pip install --no-deps bfcl-eval==2026.3.23 && pip install mpmath"


def bfcl(ids: Iterable[str] | None = None, sample: tuple[int, int] | None = None) -> Bfcl:
    """BFCL: single calls, several at once, calls that should not be made, and conversations with simulated APIs.

    By default 200 fixed cases. `ids` names others; `sample=(n, seed)` is n that are not among the 200, drawn in the same
    proportions, the same for the same seed. `cases()` raises `ConfigError` for what cannot be had.
    """
    if ids is not None and sample is not None:
        raise ConfigError("Cases of BFCL are chosen by ids or by a sample, not by both.")
    return Bfcl(None if ids is None else tuple(ids), sample)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A case, and what BFCL has about it."""

    case: Case
    question: Mapping[str, Any]
    functions: Sequence[Mapping[str, Any]]  # as the leaderboard describes them
    answer: Sequence[Any]  # calls with the values that are right, for each turn if there are several


class Bfcl:
    name = "bfcl"

    def __init__(self, ids: tuple[str, ...] | None = None, sample: tuple[int, int] | None = None) -> None:
        self._ids = ids
        self._sample = sample

    def cases(self) -> Sequence[Case]:
        """Raises `ConfigError` where `bfcl-eval` is not installed, for unknown ids, and for a sample that is too large."""
        return [entry.case for entry in self._entries.values()]

    @asynccontextmanager
    async def open(self, case: Case) -> AsyncIterator[World]:
        entry = self._entries[case.id]
        yield _Conversation(entry) if case.category == "multi_turn_base" else _OneTurn(entry)

    @functools.cached_property
    def _entries(self) -> Mapping[str, _Entry]:
        data = _data()
        questions = {category: _lines(data, category) for category in COUNTS}
        by_category = {category: [q["id"] for q in found] for category, found in questions.items()}
        ids = self._ids if self._ids is not None else _fixed()
        if self._sample is not None:
            ids = _held_out(by_category, *self._sample)
        wanted = dict.fromkeys(ids)
        found = {
            question["id"]: _entry(data, category, question, answer)
            for category in COUNTS
            for question, answer in zip(
                questions[category], _answers(data, category, len(questions[category])), strict=True
            )
            if question["id"] in wanted
        }
        missing = [id for id in wanted if id not in found]
        if missing:
            raise ConfigError(
                f"BFCL has no case {missing[0]!r} in {', '.join(COUNTS)}; install its data with: {INSTALL}"
            )
        return {id: found[id] for id in wanted}


def _fixed() -> list[str]:
    return Path(__file__).with_name("bfcl_200.txt").read_text("utf-8").split()


def _held_out(by_category: Mapping[str, Sequence[str]], n: int, seed: int) -> list[str]:
    if n < 1:
        raise ConfigError(f"A sample has at least one case, not {n}.")
    counts = {category: n * count // TOTAL for category, count in COUNTS.items()}
    most_left_over = sorted(COUNTS, key=lambda category: -(n * COUNTS[category] % TOTAL))
    for category in most_left_over[: n - sum(counts.values())]:
        counts[category] += 1
    fixed = set(_fixed())
    ids: list[str] = []
    for category, count in counts.items():
        others = [id for id in by_category[category] if id not in fixed]
        if count > len(others):
            raise ConfigError(
                f"A sample of {n} has {count} cases of {category}, and BFCL only {len(others)} besides the "
                f"fixed ones; take at most {TOTAL * len(others) // COUNTS[category]}."
            )
        ids += sorted(others, key=lambda id: hashlib.sha256(f"{seed}:{id}".encode()).digest())[:count]
    return ids


# --- what the package has ---


def _data() -> Path:
    missing = [name for name in ("bfcl_eval", "mpmath") if find_spec(name) is None]
    if missing:
        # --no-deps: it requires the SDKs of all models on its leaderboard, and versions that others here cannot use
        raise ConfigError(f"The suite bfcl needs the package {missing[0].replace('_', '-')}; run: {INSTALL}")
    spec = find_spec("bfcl_eval")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "data"


def _lines(folder: Path, category: str) -> list[dict[str, Any]]:
    return _json_lines(folder / f"BFCL_v4_{'simple_python' if category == 'simple' else category}.json")


def _answers(data: Path, category: str, count: int) -> Sequence[Sequence[Any]]:
    """In the order of the questions."""
    if category.endswith("relevance"):  # and irrelevance
        return [()] * count
    return [line["ground_truth"] for line in _lines(data / "possible_answer", category)]


def _json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as exc:
        raise ConfigError(
            f"The installed bfcl-eval has no {path.name}; install the one with v4 of the data: {INSTALL}"
        ) from exc
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _entry(data: Path, category: str, question: Mapping[str, Any], answer: Sequence[Any]) -> _Entry:
    turns = tuple(tuple(from_chat(message) for message in turn) for turn in question["question"])
    if category == "multi_turn_base":
        case = Case(question["id"], category, turns, max_requests=10, max_tokens=512, timeout=1800.0)
        excluded = question.get("excluded_function") or ()
        functions = [
            doc
            for name in question["involved_classes"]
            for doc in _json_lines(
                data / "multi_turn_func_doc" / _backend().MULTI_TURN_FUNC_DOC_FILE_MAPPING[name]
            )
            if doc["name"] not in excluded
        ]
    else:
        case = Case(
            question["id"], category, turns, max_requests=3, max_tokens=512, timeout=600.0, first_round=True
        )
        functions = question["function"]
    return _Entry(case, question, functions, answer)


def _backend() -> Any:
    return import_module("bfcl_eval.constants.executable_backend_config")


# --- tools ---


def _tool(doc: Mapping[str, Any], handler: Any) -> Tool:
    """The function as the leaderboard shows it to models with an OpenAI-compatible API."""
    types = import_module("bfcl_eval.constants.type_mappings").GORILLA_TO_OPENAPI
    parameters = {
        **doc["parameters"],
        "type": "object",
        "properties": _properties(doc["parameters"]["properties"], types),
    }
    description = doc["description"] + " Note that the provided function is in Python 3 syntax."
    return Tool(_plain(doc["name"]), description, parameters, handler)


def _plain(name: str) -> str:
    return name.replace(".", "_")  # such APIs allow no dots; the leaderboard does the same


def _properties(properties: Mapping[str, Any], types: Mapping[str, str]) -> dict[str, Any]:
    made = {}
    for name, schema in properties.items():
        made[name] = _schema(schema, types)
        if schema.get("type") == "float":
            made[name]["format"] = "float"
            made[name]["description"] = schema.get("description", "") + " This is a float type value."
    return made


def _schema(schema: Mapping[str, Any], types: Mapping[str, str]) -> dict[str, Any]:
    """BFCL's words for types as JSON schema has them."""
    made = {**schema, "type": types.get(schema.get("type", "string"), "string")}
    if "properties" in made:
        made["properties"] = _properties(made["properties"], types)
    if "items" in made:
        made["items"] = _schema(made["items"], types)
    return made


# --- one turn: which calls are made is all that counts ---


class _OneTurn:
    def __init__(self, entry: _Entry) -> None:
        self._entry = entry
        self.tools = [_tool(doc, _say_ok) for doc in entry.functions]

    async def check(self, outcome: Outcome) -> Verdict:
        category = self._entry.case.category
        if category.endswith("irrelevance"):
            if outcome.calls:
                return Verdict(False, f"called {outcome.calls[0].name}, where no function fits")
            # whoever fails before it can call anything has not seen that nothing fits
            return Verdict(True) if outcome.ended == "answer" else Verdict(False, f"ended by {outcome.ended}")
        if category == "live_relevance":
            known = {tool.name for tool in self.tools}
            called = any(call.name in known for call in outcome.calls)
            return Verdict(True) if called else Verdict(False, "called none of the functions")
        return self._compare(_first_round(outcome.calls))

    def _compare(self, calls: Sequence[Call]) -> Verdict:
        checker, python = _ast_checker()
        try:
            result = checker(
                [{**doc, "name": _plain(doc["name"])} for doc in self._entry.functions],
                [{call.name: dict(call.arguments)} for call in calls],
                [{_plain(n): args for n, args in right.items()} for right in self._entry.answer],
                python,
                self._entry.case.category,
                "",
            )
        except Exception as exc:  # it was written for arguments of the shapes that are right
            return Verdict(False, f"cannot be compared: {type(exc).__name__}: {exc}")
        if result["valid"]:
            return Verdict(True)
        return Verdict(False, f"{result['error_type']}: {result['error'][0]}"[:300])


async def _say_ok(arguments: Mapping[str, Any]) -> ToolOutput:
    return ToolOutput("ok")


def _first_round(calls: Sequence[Call]) -> list[Call]:
    first = min(((call.turn, call.round) for call in calls), default=None)
    return [call for call in calls if (call.turn, call.round) == first]


@functools.cache
def _ast_checker() -> tuple[Any, Any]:
    # The checker's module imports the table of the leaderboard's models, and with it the SDK of each of them, to learn
    # whether a model's names have dots. Ours never have any, so it gets an empty table to import.
    table = "bfcl_eval.constants.model_config"
    absent = table not in sys.modules
    if absent:
        sys.modules[table] = ModuleType(table)
        sys.modules[table].__dict__["MODEL_CONFIG_MAPPING"] = {}
    try:
        checker = import_module("bfcl_eval.eval_checker.ast_eval.ast_checker").ast_checker
    finally:
        if absent:
            del sys.modules[table]
    return checker, import_module("bfcl_eval.constants.enums").Language.PYTHON


# --- several turns: the calls change simulated APIs, and those are compared ---


class _Conversation:
    def __init__(self, entry: _Entry) -> None:
        self._entry = entry
        apis = _Apis(entry.question)

        def handler(name: str) -> Any:
            async def call(arguments: Mapping[str, Any]) -> ToolOutput:
                return apis.call(name, (), arguments)

            return call

        self.tools = [_tool(doc, handler(doc["name"])) for doc in entry.functions]

    async def check(self, outcome: Outcome) -> Verdict:
        """As `multi_turn_checker` does it, only that calls are made and not evaluated as text that a model wrote."""
        if outcome.ended != "answer":  # the leaderboard fails these too
            return Verdict(False, f"ended by {outcome.ended}")
        judge = import_module("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker")
        made, right = _Apis(self._entry.question), _Apis(self._entry.question)
        known = {tool.name for tool in self.tools}
        said: list[str] = []  # by all calls so far: what an earlier turn has looked up counts
        for turn, truth in enumerate(self._entry.answer):
            calls = [call for call in outcome.calls if call.turn == turn and call.name in known]
            said += [made.call(call.name, (), call.arguments).content for call in calls]
            expected = [right.call(*_read_call(text)).content for text in truth]
            if not truth:
                continue
            if not calls:
                return Verdict(False, f"no calls in turn {turn}")
            for result in (
                judge.state_checker(made.instances, right.instances),
                judge.response_checker(said, expected, turn),
            ):
                if not result["valid"]:
                    why = f"turn {turn}: {result['error_type']}: {result['error_message']}"
                    return Verdict(False, why[:300])
        return Verdict(True)


def _read_call(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """`f(1, a=2)` as the name and the arguments."""
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
    return call.func.id, [ast.literal_eval(arg) for arg in call.args], named


class _Apis:
    """Simulated APIs in the state in which a case begins."""

    def __init__(self, question: Mapping[str, Any]) -> None:
        backend = _backend()
        self.instances: dict[str, Any] = {}
        self._methods: dict[str, Any] = {}
        for name in question["involved_classes"]:
            api = getattr(import_module(backend.CLASS_FILE_PATH_MAPPING[name]), name)()
            if name not in backend.STATELESS_CLASSES:
                api._load_scenario(
                    copy.deepcopy(question["initial_config"].get(name, {})), long_context=False
                )
            self.instances[name] = api
            self._methods |= inspect.getmembers(api, inspect.ismethod)

    def call(self, name: str, args: Sequence[Any], arguments: Mapping[str, Any]) -> ToolOutput:
        """What the leaderboard's executor would give the model to read."""
        try:
            _bound(name, arguments)
            # what has been passed may become part of an API's state, and must not change in the record
            value = self._methods[name](*args, **copy.deepcopy(dict(arguments)))
            if isinstance(value, dict):
                try:
                    return ToolOutput(json.dumps(value))
                except (TypeError, ValueError):  # numbers of mpmath
                    pass
            return ToolOutput(str(value))
        except Exception as exc:  # arguments that a model made up, in functions that do not check them
            return ToolOutput(f"Error during execution: {exc}", is_error=True)


def _bound(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse what would keep this process busy for hours: nothing can interrupt a power of two integers."""
    sizes = [arguments.get(key) for key in ("exponent", "precision", "decimal_places")]
    if any(isinstance(size, int | float) and abs(size) > 10_000 for size in sizes):
        raise ValueError("number too large")
    if name == "multiply" and any(isinstance(value, str | list) for value in arguments.values()):
        raise ValueError("Both inputs must be numbers")
