"""Every check of the response to a download: where its limit is, which class of error it raises, and in which words."""

from __future__ import annotations

import pytest

from imgkit.errors import InputError
from imgkit.fetch.checks import (
    ELSEWHERE_HINT,
    Expected,
    MissingFileError,
    TransientError,
    UnreachableError,
    Version3Error,
    broken_off,
    check_complete,
    check_declared,
    check_length,
    check_start,
    check_status,
    wrong_hash,
)

URL = "http://user:secret@mirror/x"
SHOWN = "http://mirror/x"


def refused(error: pytest.ExceptionInfo[InputError]) -> tuple[type[InputError], str, str | None]:
    return type(error.value), error.value.message, error.value.hint


@pytest.mark.parametrize("status", [200, 304])
def test_statuses_of_a_file(status: int) -> None:
    check_status(URL, status)


@pytest.mark.parametrize("status", [404, 410])
@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("a-1-r0.apk", "mirrors delete superseded packages: refresh the lock (imgkit lock RECIPE), or check the "
                       "mirror's URL"),
        ("a-1-r0.apk?x=1", "mirrors delete superseded packages: refresh the lock (imgkit lock RECIPE), or check the "
                           "mirror's URL"),
        ("x?a.apk", "check the mirror's URL, and whether it has this branch and this architecture"),
        ("APKINDEX.tar.gz", "check the mirror's URL, and whether it has this branch and this architecture"),
    ],
)  # fmt: skip
def test_statuses_of_a_missing_file(status: int, path: str, hint: str) -> None:
    url = f"http://user:secret@mirror/{path}"
    with pytest.raises(MissingFileError) as caught:
        check_status(url, status)
    message = f"http://mirror/{path}: the mirror does not have it ({status})"
    assert refused(caught) == (MissingFileError, message, hint)
    assert caught.value.url == url, "the caller compares it with the URL that it asked for"


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_statuses_that_may_pass(status: int) -> None:
    with pytest.raises(TransientError) as caught:
        check_status(URL, status)
    assert caught.value.error.message == f"{SHOWN}: the server answers {status}"
    assert caught.value.error.hint == ELSEWHERE_HINT
    assert str(caught.value) == str(caught.value.error)


@pytest.mark.parametrize("status", [201, 204, 206, 302, 400, 401, 403, 405, 408, 416, 428, 430, 501, 505])
def test_statuses_that_do_not_pass(status: int) -> None:
    with pytest.raises(InputError) as caught:
        check_status(URL, status)
    assert refused(caught) == (InputError, f"{SHOWN}: the server answers {status}", ELSEWHERE_HINT)


LARGER = f"{SHOWN}: is larger than the 9 bytes that are allowed"
LONGER = f"{SHOWN}: is longer than the 5 bytes that it must have"
OTHER = f"{SHOWN}: has 4 bytes instead of 5"


@pytest.mark.parametrize(
    ("length", "size", "message"),
    [(0, None, None), (9, None, None), (10, None, LARGER), (4, 5, None), (5, 5, None), (6, 5, LONGER)],
)
def test_what_came_so_far_has_a_limit(length: int, size: int | None, message: str | None) -> None:
    expected = Expected(max_bytes=9, size=size)
    if message is None:
        check_length(URL, length, expected)
        return
    with pytest.raises(InputError) as caught:
        check_length(URL, length, expected)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("declared", "size", "message"),
    [
        (None, None, None),
        (None, 5, None),
        (9, None, None),
        (10, None, LARGER),
        (5, 5, None),
        (4, 5, OTHER),
        (6, 5, LONGER),
    ],
)
def test_the_announced_length_must_fit(declared: int | None, size: int | None, message: str | None) -> None:
    expected = Expected(max_bytes=9, size=size)
    if message is None:
        check_declared(URL, declared, expected)
        return
    with pytest.raises(InputError) as caught:
        check_declared(URL, declared, expected)
    assert caught.value.message == message


def test_another_size_says_what_to_do() -> None:
    with pytest.raises(InputError) as caught:
        check_complete(URL, 4, "", Expected(max_bytes=9, size=5))
    hint = "the mirror has another file under this name: refresh the lock (imgkit lock RECIPE)"
    assert refused(caught) == (InputError, OTHER, hint)


def test_a_complete_file_has_its_size_and_its_hash() -> None:
    check_complete(URL, 5, "ab", Expected(max_bytes=9))
    check_complete(URL, 5, "ab", Expected(max_bytes=9, size=5, sha256="AB"))
    with pytest.raises(InputError) as caught:
        check_complete(URL, 5, "ab", Expected(max_bytes=9, size=5, sha256="AC"))
    hint = "the file was damaged or replaced in transit: try again, or another mirror"
    assert refused(caught) == (InputError, f"{SHOWN}: wrong SHA-256: ab instead of ac", hint)
    assert wrong_hash(URL, "SHA-512", "1", "2").message == f"{SHOWN}: wrong SHA-512: 1 instead of 2"


@pytest.mark.parametrize("piece", [b"\x1f", b"\x1f\x8b", b"\x1f\x8b\x08"])
def test_gzip_data_is_known_by_its_first_bytes_even_if_one_comes_alone(piece: bytes) -> None:
    check_start(URL, piece, Expected(max_bytes=9, gzip=True))


def test_other_data_may_start_with_anything() -> None:
    for piece in (b"<html>", b"ADBd", b"x"):
        check_start(URL, piece, Expected(max_bytes=9))


@pytest.mark.parametrize(
    ("piece", "kind", "message", "hint"),
    [
        (b"\x8b\x1f", InputError, "what the server sent is not gzip data", "check the mirror's URL"),
        (b"\x1f\x8c", InputError, "what the server sent is not gzip data", "check the mirror's URL"),
        (
            b"<!DOCTYPE html>",
            InputError,
            "the server sent a web page instead of the file",
            "check the mirror's URL, and whether a proxy or a login page of the network answers",
        ),
        (
            b"ADBc",
            Version3Error,
            "is in format version 3 (ADB), which imgkit does not read",
            "choose a branch whose repositories have APKINDEX.tar.gz: ALPINE_BRANCH, or branch in the recipe",
        ),
    ],
)
def test_what_is_no_gzip_data(piece: bytes, kind: type[InputError], message: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        check_start(URL, piece, Expected(max_bytes=9, gzip=True))
    assert refused(caught) == (kind, f"{SHOWN}: {message}", hint)


def test_a_connection_that_broke_off_says_how_much_had_come() -> None:
    unknown, known = broken_off(URL).error, broken_off(URL, 0, 7, UnreachableError).error
    assert (type(unknown), unknown.message) == (InputError, f"{SHOWN}: the connection broke off")
    assert (type(known), known.message) == (UnreachableError, f"{SHOWN}: the connection broke off after 0 of 7 bytes")
    assert unknown.hint == known.hint == ELSEWHERE_HINT
