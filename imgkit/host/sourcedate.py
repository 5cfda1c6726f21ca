"""The fixed time that a user may set for everything that a build or a publication generates."""

from __future__ import annotations

from collections.abc import Mapping

from imgkit.errors import UsageError


def source_date(environ: Mapping[str, str]) -> int | None:
    """Return the value of ``SOURCE_DATE_EPOCH``, as reproducible-builds.org specifies it.

    Returns:
        Seconds since 1970, or None if the variable is not set or empty.

    Raises:
        UsageError: the variable is not a number of seconds.
    """
    text = environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise UsageError(f"SOURCE_DATE_EPOCH: {text!r} is not a number of seconds since 1970")
    return int(text)
