"""The order of kernel releases, as ``uname -r`` prints them."""

from __future__ import annotations

import re


def release_key(release: str) -> tuple[tuple[int, str], ...]:
    """Return a key that sorts kernel releases by their numbers: 6.9 comes before 6.18."""
    return tuple((int(word), "") if word.isdigit() else (-1, word) for word in re.findall(r"\d+|[A-Za-z]+", release))
