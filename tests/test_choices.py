"""Questions with choices that an agent asks (AskUserQuestion of the Claude agent SDK)."""

from __future__ import annotations

from typing import Any

import pytest

from imgkit.cli.talking.choices import Choice, parse_questions

OPTIONS = [{"label": "A", "description": "the first"}, {"label": "B"}, {"label": "C", "description": ""}]


def test_a_question_as_the_sdk_sends_it() -> None:
    question = {"question": "Which?", "header": "One", "options": OPTIONS, "multiSelect": False}
    other = {"question": "And?", "options": [], "multiSelect": True}
    assert parse_questions({"questions": [question, other]}) == (
        Choice("Which?", ("A", "B", "C"), ("A: the first", "B", "C"), several=False),
        Choice("And?", (), (), several=True),
    )


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"questions": "x"},
        {"questions": ["x"]},
        {"questions": [{"question": 7}]},
        {"questions": [{"question": "Which?", "options": ["A"]}]},
        {"questions": [{"question": "Which?", "options": [{"label": 7}]}]},
        {"questions": [{"question": "Which?", "options": []}, {}]},
    ],
)
def test_anything_else_has_no_questions(value: Any) -> None:
    assert parse_questions(value) == ()


def test_options_of_another_shape_are_none() -> None:
    assert parse_questions({"questions": [{"question": "Which?", "options": "AB"}]})[0].labels == ()


@pytest.mark.parametrize(
    ("text", "several", "answer"),
    [
        ("1", False, "A"),
        (" 3 ", False, "C"),
        ("0", False, "0"),
        ("4", False, "4"),
        ("٣", False, "٣"),
        ("0001", False, "0001"),
        ("neither", False, "neither"),
        ("1, 2", False, "1, 2"),
        ("1, 3", True, "A, C"),
        ("2", True, "B"),
        ("1, x", True, "1, x"),
        ("1, 4", True, "1, 4"),
        ("", True, ""),
    ],
)
def test_what_was_typed(text: str, several: bool, answer: str) -> None:
    assert Choice("Which?", ("A", "B", "C"), (), several).answer(text) == answer
