"""Suggestions for misspelt words, the hints of error messages::

did_you_mean("pakages", ["packages", "partitions"])    # → "did you mean packages?"
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SIMILARITY = 0.6
"""How alike two words must be by default, from 0 to 1; the default of :func:`difflib.get_close_matches`."""


def close_matches(word: str, known: Iterable[str], *, limit: int = 3, similarity: float = SIMILARITY) -> list[str]:
    """Return the words of ``known`` that look like ``word``, the most similar first.

    Args:
        word: the word that is not valid.
        known: the words that would have been valid, in any order. Equally similar words are returned in reverse
            alphabetical order.
        limit: how many are returned at most.
        similarity: how alike two words must be, from 0 to 1 (:meth:`difflib.SequenceMatcher.ratio`).
    """
    return difflib.get_close_matches(word, list(known), n=limit, cutoff=similarity)


def did_you_mean(
    word: str,
    known: Iterable[str],
    *,
    limit: int = 1,
    similarity: float = SIMILARITY,
    name_word: bool = False,
) -> str | None:
    """Return the hint for a word that is not valid: ``did you mean packages?``.

    Args:
        word: the word that is not valid.
        known: the words that would have been valid.
        limit: how many words the hint offers at most (``did you mean one or another?``).
        similarity: how alike two words must be, from 0 to 1.
        name_word: whether the hint repeats the word (``did you mean bash instead of bsah?``), for a message with
            several wrong words.

    Returns:
        None if no known word looks like it.
    """
    matches = close_matches(word, known, limit=limit, similarity=similarity)
    if not matches:
        return None
    return f"did you mean {' or '.join(matches)}{f' instead of {word}' if name_word else ''}?"
