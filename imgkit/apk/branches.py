"""Branches of Alpine: which branch a release or an index belongs to, and until when it gets security fixes."""

from __future__ import annotations

import re
from datetime import date

EDGE = "edge"
LATEST = "latest-stable"
"""A link on mirrors, which moves to the next branch with each release."""

# "End of support" in https://alpinelinux.org/releases/ (eol_date in its releases.json, which mirrors do not have).
_END = {
    "v3.16": date(2024, 5, 23),
    "v3.17": date(2024, 11, 22),
    "v3.18": date(2025, 5, 9),
    "v3.19": date(2025, 11, 1),
    "v3.20": date(2026, 4, 1),
    "v3.21": date(2026, 11, 1),
    "v3.22": date(2027, 5, 1),
    "v3.23": date(2027, 11, 1),
}
_VERSION = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})(?![0-9])(?:\.[0-9]+)?(_alpha)?")
_SNAPSHOT = re.compile(r"20[0-9]{6}(?![0-9])")


def branch_of(version: str) -> str | None:
    """Find the branch of a release or of an index.

    Args:
        version: the text of ``/etc/alpine-release`` (``3.20.3``, ``3.24.0_alpha20260127``), or the description of an
            index, which is the output of git-describe for Alpine's package sources (``v3.17.3-216-g54a39ace82a``; the
            tags of edge are dates, ``v20260127``).

    Returns:
        ``v3.20`` or ``edge``; None if ``version`` is of another form.
    """
    text = version.removeprefix("v")
    if _SNAPSHOT.match(text):
        return EDGE
    match = _VERSION.match(text)
    if match is None:
        return None
    return EDGE if match[3] else f"v{int(match[1])}.{int(match[2])}"


def end_of(branch: str) -> date | None:
    """Return the last day of a branch's support; None if it is not known.

    For a branch that is older than all known ones, this is the last day of the oldest known one.
    """
    if branch in _END:
        return _END[branch]
    oldest = next(iter(_END))
    return _END[oldest] if re.fullmatch(r"v[0-9]+\.[0-9]+", branch) and order(branch) < order(oldest) else None


def order(branch: str) -> int:
    """Return a number that is larger for later branches (``v3.23``)."""
    major, minor = branch[1:].split(".")
    return int(major) * 10_000 + int(minor)
