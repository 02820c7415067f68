"""Nothing that a model is told, and no rule that reads what it says, comes from a benchmark."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SPEC = find_spec("bfcl_eval")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(SPEC is None, reason="pip install --no-deps bfcl-eval"),
]
OURS = {"list_files", "web_search", "word_count"}  # tools that are here for what they do
# the time server's tool, and the example of every documentation
EVERYBODYS = {"get_current_time", "get_weather"}
PHRASES = """You are a helpful assistant with. Thought Action Action Input Observation can.
Thought: I now know the final answer. Final Answer: the final answer"""  # a greeting, and ReAct's own words


def questions() -> Iterator[dict[str, Any]]:
    assert SPEC is not None and SPEC.submodule_search_locations
    for path in sorted(Path(SPEC.submodule_search_locations[0], "data").glob("BFCL_v4_*.json")):
        if "format_sensitivity" in path.name:  # ids alone
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def runs(text: str, length: int = 6) -> Iterator[tuple[str, ...]]:
    """Every run of so many words."""
    found = words(text)
    return (tuple(found[i : i + length]) for i in range(len(found) - length + 1))


def texts() -> Iterator[tuple[str, str]]:
    """Every text in the sources that the model may be told or its words are held against."""
    for folder in ("agentkit", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "evals" in path.relative_to(ROOT).parts:  # the measurement itself
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value


def test_no_function_of_the_benchmark_is_named() -> None:
    names = {f["name"] for case in questions() for f in case.get("function", [])}
    told = (
        {name for name in names if re.search(r"[a-z]+[_.][a-z]+", name, re.I) and len(name) > 7}
        - OURS
        - EVERYBODYS
    )
    assert len(told) > 1_500
    spelled = re.compile(r"[A-Za-z][\w.]*")
    found = [(where, word) for where, text in texts() for word in spelled.findall(text) if word in told]
    assert found == []


def test_no_question_of_the_benchmark_is_quoted() -> None:
    asked: set[tuple[str, ...]] = set()
    for case in questions():
        for turn in case["question"]:
            for message in turn:
                if message["role"] == "user":
                    asked.update(runs(message["content"]))
    asked.difference_update(runs(PHRASES))
    assert len(asked) > 50_000
    quoted = [(where, " ".join(run)) for where, text in texts() for run in runs(text) if run in asked]
    assert quoted == []
