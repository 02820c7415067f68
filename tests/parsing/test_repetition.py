"""Endless repetition: what counts as such, and what only looks like it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentkit.parsing import Repetition


def seen(text: str, step: int = 7) -> bool:
    watch = Repetition()
    found = False
    for i in range(0, len(text), step):
        watch.feed(text[i : i + step])
        found = found or watch.seen
    return found


@given(st.text(min_size=1, max_size=300), st.text(max_size=2000), st.integers(1, 400))
def test_a_piece_that_repeats_without_end_is_seen(piece: str, before: str, step: int) -> None:
    assert seen(before + piece * (10_000 // len(piece)), step)


def test_a_long_paragraph_that_repeats_is_seen() -> None:
    paragraph = "".join(f"Wait, perhaps the answer is {n}; let me check that again. " for n in range(25))
    assert 1_200 < len(paragraph) < 1_600
    assert seen(paragraph * 8)


def test_a_long_table_is_not_repetition() -> None:
    assert not seen("".join(f"| {n} | row {n} | {n * n} |\n" for n in range(2_000)))


def test_a_rule_of_dashes_or_a_row_of_zeros_is_not_repetition() -> None:
    assert not seen("Title\n" + "-" * 400 + "\n" + "0, " * 300 + "\nend. " + "words that differ " * 20)


def test_code_with_like_lines_is_not_repetition() -> None:
    assert not seen("".join(f"    assert f({n}) == {n + 1}\n" for n in range(1_000)))
