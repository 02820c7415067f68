"""The model card's answer formats, read from what a model may write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.formats import boxed_answer, choice_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So the answer is \boxed{42}.", "42"),
        (r"First \boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {x}", "x"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{7} and then \boxed{8", "7"),
        ("no box", None),
        (r"\boxed{", None),
    ],
)
def test_the_last_complete_box_is_the_answer(text: str, answer: str | None) -> None:
    assert boxed_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ('{"answer": "C"}', "C"),
        ('"answer": "b"', "B"),
        ('I first thought "answer": "A", but "answer": "D".', "D"),
        ("answer: C", "C"),
        ('{"answer": "C) Paris"}', "C"),
        ('"answer": "Paris"', None),
        ("The answer is obvious", None),
    ],
)
def test_the_last_choice_letter_is_the_answer(text: str, letter: str | None) -> None:
    assert choice_answer(text) == letter


@given(st.text())
def test_no_text_makes_them_raise(text: str) -> None:
    boxed_answer(text), choice_answer(text)
