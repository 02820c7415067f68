"""What the docs say was measured is what benchmarks/results holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentkit.cli.eval import evals
from agentkit.evals.ledger import Ledger

ROOT = Path(__file__).parents[2]
RESULTS = sorted(folder for folder in (ROOT / "benchmarks" / "results").iterdir() if folder.is_dir())
BFCL = ROOT / "benchmarks" / "results" / "bfcl-demo"
IDS = (ROOT / "agentkit" / "evals" / "bfcl_200.txt").read_text(encoding="utf-8").split()
DOCS = (ROOT / "docs" / "evals.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"<!-- results: (\S+) -->\n(.*?)\n<!-- end of results -->", re.DOTALL)


def test_the_docs_show_all_results_and_no_others() -> None:
    assert sorted(name for name, _ in BLOCK.findall(DOCS)) == [folder.name for folder in RESULTS]


@pytest.mark.parametrize(("name", "shown"), BLOCK.findall(DOCS))
def test_a_table_of_the_docs_is_what_the_rows_give(name: str, shown: str) -> None:
    made = CliRunner().invoke(evals, ["table", "--markdown", str(ROOT / "benchmarks" / "results" / name)])
    assert made.exit_code == 0, made.output
    assert shown.strip() == made.output.strip()


def test_the_readme_says_nothing_else() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    figures = re.findall(r"\d+/\d+ [\d.]+ \[[\d.]+–[\d.]+\]", readme)
    assert figures and all(figure in DOCS for figure in figures)
    for system, beside in (
        ("agentkit", "agentkit"),
        ("openai", "the bare `openai` loop, openai-agents, langgraph, strands"),
    ):
        rows = [row for row in Ledger(BFCL / "rows.jsonl").rows if row["system"] == system]
        none = [row["passed"] for row in rows if "irrelevance" in row["category"]]
        due = [row["passed"] for row in rows if "irrelevance" not in row["category"]]
        (line,) = (line for line in readme.splitlines() if line.startswith(f"| {beside} |"))
        assert line.endswith(f"| {sum(due)} of {len(due)} | {sum(none)} of {len(none)} |")


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_systems_are_compared_on_the_same_cases(folder: Path) -> None:
    done: dict[str, set[str]] = {}
    for row in Ledger(folder / "rows.jsonl").rows:
        done.setdefault(row["system"], set()).add(row["id"])
    assert len({frozenset(ids) for ids in done.values()}) == 1
    if folder == BFCL:
        assert next(iter(done.values())) <= set(IDS)
