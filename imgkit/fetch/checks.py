"""Checks of the response to a download. Each fault has an error message of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from imgkit.errors import InputError

_OFFLINE_MIRROR = Path(__file__).parents[2] / "fixtures" / "__main__.py"  # in a checkout of imgkit
ELSEWHERE_HINT = (
    "check the URL and the network, choose another mirror with --mirror or ALPINE_MIRROR, or use --offline with a warm"
    " cache" + ("; without any mirror: python -m fixtures serve" if _OFFLINE_MIRROR.is_file() else "")
)
"""What to do if a mirror cannot be reached."""
_SUPERSEDED_HINT = (
    "mirrors delete superseded packages: refresh the lock (imgkit lock RECIPE), or check the mirror's URL"
)
_MISSING_HINT = "check the mirror's URL, and whether it has this branch and this architecture"
_BRANCH_HINT = "choose a branch whose repositories have APKINDEX.tar.gz: ALPINE_BRANCH, or branch in the recipe"
_GZIP = b"\x1f\x8b"
_ADB = b"ADB"  # followed by a letter for the compression: ".", "d" or "c" (apk-tools 3, src/adb.h)
_OVERLOADED = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Expected:
    """What a download must be.

    Attributes:
        max_bytes: the most bytes that it may have.
        size: the bytes that it must have; None if that is not known.
        sha256: in hex; None if it is not known.
        gzip: it must start as gzip data does.
    """

    max_bytes: int
    size: int | None = None
    sha256: str | None = None
    gzip: bool = False


class UnreachableError(InputError):
    """No server answers at the URL: no address, no connection or no data in time, or a proxy refuses the request."""


class MissingFileError(InputError):
    """The server says that it does not have the file at ``url``."""

    def __init__(self, message: str, *, url: str, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.url = url


class Version3Error(InputError):
    """A package or an index is in Alpine's format of version 3, which imgkit does not read."""


class TransientError(Exception):
    """A failure that may pass. ``error`` is what to raise if it does not."""

    def __init__(self, error: InputError) -> None:
        super().__init__(str(error))
        self.error = error


def shown(url: str) -> str:
    """Return ``url`` without a user name and a password, for messages."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    if "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def looks_like_html(head: bytes) -> bool:
    """Return whether a file that starts with ``head`` looks like a web page."""
    start = head[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype", b"<html", b"<?xml")) or b"<html" in start


def refuse_version_3(head: bytes, name: str) -> None:
    """Refuse a file that starts with ``head`` if it is in Alpine's package format of version 3 (apk-v3(5)).

    Args:
        name: what the message calls the file.

    Raises:
        Version3Error: the file is in that format.
    """
    if head.startswith(_ADB):
        raise Version3Error(f"{name}: is in format version 3 (ADB), which imgkit does not read", hint=_BRANCH_HINT)


def check_status(url: str, status: int) -> None:
    """Check the status of a response.

    Raises:
        MissingFileError: the server does not have the file.
        TransientError: the server is overloaded.
        InputError: the status is neither 200 nor 304 for another reason.
    """
    if status in (HTTPStatus.OK, HTTPStatus.NOT_MODIFIED):
        return
    error = InputError(f"{shown(url)}: the server answers {status}", hint=ELSEWHERE_HINT)
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        hint = _SUPERSEDED_HINT if urlsplit(url).path.endswith(".apk") else _MISSING_HINT
        raise MissingFileError(f"{shown(url)}: the mirror does not have it ({status})", url=url, hint=hint)
    if status in _OVERLOADED:
        raise TransientError(error)
    raise error


def declared_length(headers: Mapping[str, str]) -> int | None:
    """Return the length that a server announces, of the bytes as they are sent; None if it announces none."""
    text = headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def check_declared(url: str, declared: int | None, expected: Expected) -> None:
    """Check the length that the server announces.

    Raises:
        InputError: the length is larger than allowed, or not the size that the file must have.
    """
    if declared is not None:
        check_length(url, declared, expected)
        if expected.size is not None and declared != expected.size:
            raise _wrong_size(url, declared, expected.size)


def check_length(url: str, length: int, expected: Expected) -> None:
    """Check a length that has been announced, or received so far.

    Raises:
        InputError: the length is larger than allowed, or than the size that the file must have.
    """
    if expected.size is not None and length > expected.size:
        raise InputError(f"{shown(url)}: is longer than the {expected.size} bytes that it must have")
    if length > expected.max_bytes:
        raise InputError(f"{shown(url)}: is larger than the {expected.max_bytes} bytes that are allowed")


def check_start(url: str, piece: bytes, expected: Expected) -> None:
    """Check the first bytes of a file that must be gzip data.

    Raises:
        Version3Error: the file is in Alpine's format of version 3.
        InputError: the file is a web page, or something else that is not gzip data.
    """
    if not expected.gzip or _GZIP.startswith(piece[:2]):
        return
    refuse_version_3(piece, shown(url))
    if looks_like_html(piece):
        raise InputError(
            f"{shown(url)}: the server sent a web page instead of the file",
            hint="check the mirror's URL, and whether a proxy or a login page of the network answers",
        )
    raise InputError(f"{shown(url)}: what the server sent is not gzip data", hint="check the mirror's URL")


def check_complete(url: str, size: int, sha256: str, expected: Expected) -> None:
    """Check a file that has been received.

    Raises:
        InputError: the file has another size or SHA-256 than it must have.
    """
    if expected.size is not None and size != expected.size:
        raise _wrong_size(url, size, expected.size)
    if expected.sha256 is not None and sha256 != expected.sha256.lower():
        raise wrong_hash(url, "SHA-256", sha256, expected.sha256.lower())


def wrong_hash(url: str, algorithm: str, actual: str, expected: str) -> InputError:
    """Return the error for a file that has another hash than it must have."""
    return InputError(
        f"{shown(url)}: wrong {algorithm}: {actual} instead of {expected}",
        hint="the file was damaged or replaced in transit: try again, or another mirror",
    )


def _wrong_size(url: str, size: int, wanted: int) -> InputError:
    hint = "the mirror has another file under this name: refresh the lock (imgkit lock RECIPE)"
    return InputError(f"{shown(url)}: has {size} bytes instead of {wanted}", hint=hint)


def broken_off(
    url: str,
    received: int | None = None,
    declared: int | None = None,
    kind: type[InputError] = InputError,
    hint: str = ELSEWHERE_HINT,
) -> TransientError:
    """Return the error for a connection that broke off after ``received`` of ``declared`` bytes."""
    detail = "" if received is None else f" after {received} of {declared} bytes"
    return TransientError(kind(f"{shown(url)}: the connection broke off{detail}", hint=hint))
