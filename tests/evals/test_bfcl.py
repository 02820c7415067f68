"""BFCL as a suite: what is asked is what the leaderboard asks, and what is right is judged right."""

from __future__ import annotations

import ast
import copy
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from agentkit.errors import ConfigError
from agentkit.evals.bfcl import COUNTS, Bfcl, bfcl
from agentkit.evals.suite import Call, Case, Ended, Outcome, Suite, Verdict
from agentkit.tools import Tool

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

needs_data = pytest.mark.skipif(
    find_spec("bfcl_eval") is None or find_spec("mpmath") is None,
    reason="needs: pip install --no-deps bfcl-eval && pip install mpmath",
)
FIXED = "eaf9306838aea43f23ecde7848db05dae17ac32e6e52b9ecf4610597a079054f"
CALLED = [c for c in COUNTS if not c.endswith("relevance") and c != "multi_turn_base"]


@pytest.fixture(scope="module")
def suite() -> Bfcl:
    return bfcl()


@pytest.fixture(scope="module")
def question(suite: Bfcl) -> Mapping[str, Any]:
    """What the package has about each case of the 200, by its id."""
    return suite._entries


def outcome(*calls: Call, ended: Ended = "answer") -> Outcome:
    return Outcome(("Done.",), calls, ended)


async def verdict(suite: Suite, case: Case, result: Outcome) -> Verdict:
    async with suite.open(case) as world:
        return await world.check(result)


def right_calls(functions: Sequence[Mapping[str, Any]], answer: Sequence[Any]) -> list[Call]:
    """The first value that is right of each argument; those that need not be there are left out."""
    calls = []
    for (name, options), *more in (list(a.items()) for a in answer):
        assert not more
        required = next(f for f in functions if f["name"] == name)["parameters"].get("required", [])
        arguments = {k: pick(v) for k, v in options.items() if k in required or "" not in v}
        calls.append(Call(name.replace(".", "_"), arguments, 0, 1))
    return calls


def pick(options: list[Any]) -> Any:
    return value(options[0])


def value(option: Any) -> Any:
    if isinstance(option, dict):
        return {k: pick(v) for k, v in option.items() if "" not in v}
    return [value(item) for item in option] if isinstance(option, list) else option


@needs_data
def test_the_fixed_cases_are_200_and_never_others(suite: Bfcl) -> None:
    ids = [case.id for case in suite.cases()]
    assert Counter(case.category for case in suite.cases()) == COUNTS
    assert len(set(ids)) == 200
    assert hashlib.sha256("\n".join(ids).encode()).hexdigest() == FIXED


@needs_data
def test_the_fixed_cases_are_those_with_the_smallest_hashes(suite: Bfcl) -> None:
    everything = import_module("agentkit.evals.bfcl")
    smallest = []
    for category, count in COUNTS.items():
        ids = [line["id"] for line in everything._lines(everything._data(), category)]
        smallest += sorted(ids, key=lambda id: hashlib.sha256(id.encode()).hexdigest())[:count]
    assert smallest == [case.id for case in suite.cases()]


@needs_data
@pytest.mark.parametrize("category", CALLED)
async def test_the_ground_truth_passes_and_what_is_not_quite_it_fails(
    suite: Bfcl, question: Mapping[str, Any], category: str
) -> None:
    for case in suite.cases():
        if case.category != category:
            continue
        calls = right_calls(question[case.id].functions, question[case.id].answer)
        right = await verdict(suite, case, outcome(*calls, ended="first_round"))
        assert right == Verdict(True), f"{case.id}: {right.why}"
        a_retry = Call(calls[0].name, {"no_such": 1}, 0, 2)
        assert (await verdict(suite, case, outcome(*calls, a_retry))).passed, "a later round counts"
        for wrong in (
            [],
            calls[1:],
            [*calls, calls[0]],
            [Call(calls[0].name, {**calls[0].arguments, "no_such": 1}, 0, 1), *calls[1:]],
            [Call("no_such", calls[0].arguments, 0, 1), *calls[1:]],
            [Call(calls[0].name, {key: [{"no": None}] for key in calls[0].arguments}, 0, 1), *calls[1:]],
        ):
            if wrong != calls:  # there is a call without arguments
                judged = await verdict(suite, case, outcome(*wrong))
                assert not judged.passed and judged.why, f"{case.id}: {wrong}"


@needs_data
@pytest.mark.parametrize("category", ["irrelevance", "live_irrelevance"])
async def test_where_nothing_fits_an_answer_passes_and_a_call_or_a_failure_does_not(
    suite: Bfcl, category: str
) -> None:
    case = next(case for case in suite.cases() if case.category == category)
    async with suite.open(case) as world:
        assert (await world.check(outcome())).passed
        assert not (await world.check(outcome(Call(world.tools[0].name, {}, 0, 1)))).passed
        assert not (await world.check(outcome(ended="error"))).passed


@needs_data
async def test_where_something_fits_any_call_of_it_passes(suite: Bfcl) -> None:
    case = next(case for case in suite.cases() if case.category == "live_relevance")
    async with suite.open(case) as world:
        assert (await world.check(outcome(Call(world.tools[-1].name, {}, 0, 1)))).passed
        assert not (await world.check(outcome())).passed
        assert not (await world.check(outcome(Call("no_such", {}, 0, 1)))).passed


@needs_data
async def test_functions_are_shown_as_the_leaderboard_shows_them(
    suite: Bfcl, question: Mapping[str, Any]
) -> None:
    valid = pytest.importorskip("jsonschema").Draft202012Validator
    convert, types = converter()
    for case in suite.cases():
        async with suite.open(case) as world:
            for tool, doc in zip(world.tools, question[case.id].functions, strict=True):
                theirs = copy.deepcopy(dict(doc["parameters"]))
                assert tool.parameters == {
                    **theirs,
                    "type": "object",
                    "properties": convert(theirs["properties"], types),
                }, f"{case.id}: {tool.name}"
                valid.check_schema(tool.parameters)
                assert "." not in tool.name


def converter() -> tuple[Any, Any]:
    """The package's own conversion, without importing what stands around it."""
    spec = find_spec("bfcl_eval")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).parent / "model_handler" / "utils.py"
    types = import_module("bfcl_eval.constants.type_mappings").GORILLA_TO_OPENAPI
    function = next(
        node
        for node in ast.parse(source.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == "_cast_to_openai_type"
    )
    names: dict[str, Any] = {"GORILLA_TO_OPENAPI": types}
    exec(compile(ast.Module([function], []), str(source), "exec"), names)
    return names["_cast_to_openai_type"], types


@needs_data
async def test_a_tool_of_one_turn_says_ok_to_anything(suite: Bfcl) -> None:
    async with suite.open(suite.cases()[0]) as world:
        assert (await world.tools[0].handler({"no": ["such"]})).content == "ok"


def true_calls(text: Sequence[Sequence[str]], tools: Sequence[Tool]) -> list[Call]:
    known = {tool.name: tool for tool in tools}
    calls = []
    for turn, lines in enumerate(text):
        for number, line in enumerate(lines, 1):
            call = ast.parse(line, mode="eval").body
            assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
            names = list(known[call.func.id].parameters["properties"])
            arguments = dict(zip(names, map(ast.literal_eval, call.args), strict=False))
            arguments |= {k.arg or "": ast.literal_eval(k.value) for k in call.keywords}
            calls.append(Call(call.func.id, arguments, turn, number))
    return calls


@needs_data
async def test_conversations_that_make_the_true_calls_pass_and_those_that_leave_one_out_fail(
    suite: Bfcl, question: Mapping[str, Any]
) -> None:
    for case in suite.cases():
        if case.category != "multi_turn_base":
            continue
        async with suite.open(case) as world:
            calls = true_calls(question[case.id].answer, world.tools)
            right = await world.check(outcome(*calls))
            assert right == Verdict(True), f"{case.id}: {right.why}"
            assert (await world.check(outcome(*calls))).passed, "a second look differs"
            assert not (await world.check(outcome())).passed
            assert not (await world.check(outcome(*calls[:-1]))).passed
            assert not (await world.check(outcome(*calls, ended="budget"))).passed
            late = [Call(c.name, c.arguments, len(case.turns) - 1, 1) for c in calls]
            assert not (await world.check(outcome(*late))).passed


@needs_data
async def test_the_simulated_apis_answer_a_model_and_each_world_has_its_own(suite: Bfcl) -> None:
    case = next(case for case in suite.cases() if case.id == "multi_turn_base_43")
    async with suite.open(case) as one, suite.open(case) as other:
        tools, others = ({tool.name: tool for tool in world.tools} for world in (one, other))
        before = (await tools["ls"].handler({})).content
        assert (await tools["mkdir"].handler({"dir_name": "made_here"})).content == "None"
        assert "made_here" in (await tools["ls"].handler({})).content
        assert (await others["ls"].handler({})).content == before
        mistaken = await tools["mkdir"].handler({"name": "made_here"})
        assert mistaken.is_error and mistaken.content.startswith("Error during execution: ")


@needs_data
@pytest.mark.parametrize(
    "name, arguments",
    [
        ("power", {"base": 9, "exponent": 10**9}),
        ("logarithm", {"value": 2, "base": 10, "precision": 10**9}),
        ("multiply", {"a": "9", "b": 10**12}),
    ],
)
async def test_a_model_cannot_keep_the_machine_busy(
    suite: Bfcl, name: str, arguments: dict[str, Any]
) -> None:
    case = next(case for case in suite.cases() if case.id == "multi_turn_base_15")
    async with suite.open(case) as world:
        tool = next(tool for tool in world.tools if tool.name == name)
        assert (await tool.handler(arguments)).is_error


@needs_data
def test_a_sample_has_other_cases_in_the_same_proportions_and_is_the_same_for_a_seed(suite: Bfcl) -> None:
    fixed = {case.id for case in suite.cases()}
    held_out = bfcl(sample=(200, 7)).cases()
    assert Counter(case.category for case in held_out) == COUNTS
    assert not fixed & {case.id for case in held_out}
    assert held_out == bfcl(sample=(200, 7)).cases()
    assert held_out != bfcl(sample=(200, 8)).cases()
    assert len(bfcl(sample=(33, 1)).cases()) == 33


@needs_data
def test_cases_are_had_by_id_and_what_cannot_be_had_is_said() -> None:
    assert [case.id for case in bfcl(["parallel_3", "simple_python_0"]).cases()] == [
        "parallel_3",
        "simple_python_0",
    ]
    with pytest.raises(ConfigError, match="no case 'simple_1000'"):
        bfcl(["simple_1000"]).cases()
    with pytest.raises(ConfigError, match="live_parallel, and BFCL only 8"):
        bfcl(sample=(400, 0)).cases()
    with pytest.raises(ConfigError, match="at least one"):
        bfcl(sample=(0, 0)).cases()


def test_cases_are_chosen_in_one_way() -> None:
    with pytest.raises(ConfigError, match="not by both"):
        bfcl(["parallel_3"], sample=(1, 1))
