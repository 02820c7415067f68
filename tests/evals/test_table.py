"""Figures made of rows, beside those that textbooks have."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.evals.table import compare, mcnemar, report, summary, wilson

COUNTS = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def row(system: str, id: str, passed: bool, category: str = "easy", **rest: Any) -> dict[str, Any]:
    return {
        "suite": "s",
        "system": system,
        "id": id,
        "category": category,
        "passed": passed,
        "ended": "answer",
        "requests": 2,
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "model_seconds": 1.0,
        "overhead_seconds": 0.01,
        **rest,
    }


@pytest.mark.parametrize(
    ("passed", "total", "low", "high"),
    [
        # Newcombe (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_intervals_are_those_of_newcombes_paper(passed: int, total: int, low: float, high: float) -> None:
    assert wilson(passed, total) == pytest.approx((low, high), abs=5e-5)


@given(COUNTS)
def test_an_interval_lies_between_0_and_1_and_holds_the_rate(count: tuple[int, int]) -> None:
    passed, total = count
    low, high = wilson(passed, total)
    assert 0 <= low <= passed / total <= high <= 1 and low < high


@given(COUNTS)
def test_failing_is_as_sure_as_passing(count: tuple[int, int]) -> None:
    passed, total = count
    low, high = wilson(passed, total)
    assert wilson(total - passed, total) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(COUNTS)
def test_ten_times_the_cases_make_a_narrower_interval(count: tuple[int, int]) -> None:
    passed, total = count
    low, high = wilson(passed, total)
    closer_low, closer_high = wilson(10 * passed, 10 * total)
    assert closer_high - closer_low < high - low


def test_nothing_measured_may_be_anything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (1, 0, 1.0), (6, 0, 0.03125), (10, 2, 0.03857421875), (2, 10, 0.03857421875)],
)
def test_mcnemar_is_exact(wins: int, losses: int, p: float) -> None:
    assert mcnemar(wins, losses) == pytest.approx(p)


@given(st.integers(0, 2000), st.integers(0, 2000))
def test_a_p_is_a_probability_whoever_comes_first(wins: int, losses: int) -> None:
    p = mcnemar(wins, losses)
    assert 0 <= p <= 1 and p == mcnemar(losses, wins)


def test_two_systems_are_compared_on_what_both_have_done() -> None:
    rows = [row("a", "1", True), row("a", "2", True), row("a", "3", False), row("a", "4", True)]
    rows += [row("b", "1", False), row("b", "2", True), row("b", "3", True), row("b", "5", False)]
    pair = compare(rows, "a", "b")
    assert (pair.cases, pair.wins, pair.losses, pair.p) == (3, 1, 1, 1.0)


def test_the_mean_of_categories_counts_each_the_same() -> None:
    rows = [row("a", str(n), True) for n in range(9)] + [row("a", "h", False, "hard")]
    (line,) = summary(rows)
    assert (line.overall.rate, line.mean) == (0.9, 0.5)
    assert line.categories["hard"].interval[0] == 0.0


def test_costs_are_per_case_and_one_slow_moment_does_not_count() -> None:
    rows = [row("a", str(n), True, requests=n, overhead_seconds=s) for n, s in ((1, 0.1), (2, 0.2), (6, 90))]
    (line,) = summary(rows)
    assert (line.requests, line.prompt_tokens, line.overhead_seconds) == (3, 100, 0.2)


def test_the_longer_side_of_the_table_goes_down() -> None:
    few = [row(s, str(n), True, f"c{n}") for s in ("a", "b") for n in range(5)]
    assert report(few).splitlines()[0].split() == ["passed", "a", "b"]
    many = [row(f"s{n}", "1", True) for n in range(5)]
    assert report(many).splitlines()[0].split() == ["passed", "easy"]


def test_a_report_has_what_was_passed_what_it_cost_and_who_is_better() -> None:
    rows = [row("agentkit", "1", True), row("agentkit", "2", True, "hard")]
    rows += [row("peer", "1", True), row("peer", "2", False, "hard", ended="error")]
    text = report(rows)
    assert "1/1 100.0 [20.7–100.0]" in text and "mean of categories" in text
    assert "1 error" in text and "only agentkit" in text
    table = report(rows, markdown=True)
    assert "| hard | 1/1 100.0 [20.7–100.0] | 0/1 0.0 [0.0–79.3] |" in table
    assert "| peer | 2 | 1 | 0 | 1 |" in table


def test_nothing_measured_is_said_in_words() -> None:
    assert report([]) == "Nothing has been measured yet."
