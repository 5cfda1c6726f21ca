"""Hints for misspelt words."""

from __future__ import annotations

import pytest

from imgkit.host.suggest import close_matches, did_you_mean

NAMES = ("packages", "package", "partitions")


def test_the_most_similar_word_is_offered() -> None:
    assert did_you_mean("pakages", NAMES) == "did you mean packages?"
    assert did_you_mean("partition", iter(NAMES)) == "did you mean partitions?"


def test_several_words_are_offered_the_most_similar_first() -> None:
    assert did_you_mean("packge", NAMES, limit=3) == "did you mean package or packages?"
    assert close_matches("packge", NAMES, limit=1) == ["package"]


def test_nothing_is_offered_for_a_word_that_is_like_none() -> None:
    assert did_you_mean("zsh", NAMES) is None
    assert did_you_mean("", NAMES) is None
    assert did_you_mean("packages", ()) is None


def test_how_alike_words_must_be_can_be_chosen() -> None:
    assert did_you_mean("bsah", ["bash"]) == "did you mean bash?"  # 0.75
    assert did_you_mean("bsah", ["bash"], similarity=0.75) == "did you mean bash?"
    assert did_you_mean("bsah", ["bash"], similarity=0.76) is None


def test_the_default_similarity_is_three_fifths() -> None:
    assert did_you_mean("abcxx", ["abcyy"]) == "did you mean abcyy?"  # 0.6
    assert did_you_mean("abxxx", ["abyyy"]) is None  # 0.4


def test_a_hint_for_one_of_several_words_names_it() -> None:
    assert did_you_mean("bsah", ["bash"], name_word=True) == "did you mean bash instead of bsah?"


def test_three_words_are_returned_unless_another_limit_is_given() -> None:
    known = ["wordb", "worda", "wordd", "wordc"]
    assert close_matches("word", known) == ["wordd", "wordc", "wordb"], "in the same order, however they are listed"
    assert len(close_matches("word", known, limit=4)) == 4
    assert did_you_mean("word", known) == "did you mean wordd?"


@pytest.mark.parametrize(("word", "known"), [("abcdefxxxx", "abcdefyyyy"), ("aaa", "aaabbbb")])
def test_words_just_above_and_below_the_default_similarity(word: str, known: str) -> None:
    """Similarities of 0.6 are enough, 0.588 and less are not."""
    assert close_matches(word, [known]) == [known]
    assert close_matches(word, [f"{known}b"]) == []
    assert did_you_mean(word, [f"{known}b"]) is None
