"""Receive the body of an answer, within limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import requests
import urllib3.exceptions

from imgkit.errors import InputError
from imgkit.fetch.checks import broken_off, declared_length, shown
from imgkit.fetch.deadline import Deadline
from imgkit.registry.httpcalls import MAX_PAGE, HttpCall

HINT = "check the name of the registry, the network and the proxy settings (HTTPS_PROXY, NO_PROXY)"
_READ = 1 << 18


def receive(response: requests.Response, call: HttpCall, deadline: Deadline) -> bytes:
    """Read the body: into the sink if there is one and the answer is a good one, else to be returned."""
    if call.method == "HEAD":
        return b""
    if call.sink is not None and response.status_code in (200, 206):
        _check_encoding(response, call)
        call.sink.begin(response.status_code, response.headers)
        _stream_into(call.sink.write, response, call, deadline)
        return b""
    good = response.status_code < 300
    if good:
        _check_encoding(response, call)
    received = bytearray()
    limit = call.limit if good else MAX_PAGE
    for piece in _pieces(response, call, deadline):
        received += piece
        if len(received) > limit:
            if good:
                raise InputError(f"{call.place}: the answer is longer than the {limit} bytes that are read of it")
            break
    return bytes(received)


def _stream_into(
    write: Callable[[bytes], object], response: requests.Response, call: HttpCall, deadline: Deadline
) -> None:
    declared, size = declared_length(response.headers), 0
    for piece in _pieces(response, call, deadline):
        size += len(piece)
        write(piece)
    if declared is not None and size != declared:
        raise broken_off(call.place, size, declared, hint=HINT)


def _pieces(response: requests.Response, call: HttpCall, deadline: Deadline) -> Iterator[bytes]:
    """Yield the raw body as it arrives."""
    while True:
        try:
            piece = response.raw.read1(_READ)
        except urllib3.exceptions.ReadTimeoutError:
            raise
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as cause:
            raise broken_off(call.place, hint=HINT) from cause
        if deadline.passed:
            raise given_up(call.place)
        if not piece:
            return
        deadline.received(len(piece))
        yield piece


def _check_encoding(response: requests.Response, call: HttpCall) -> None:
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        message = f"{call.place}: the answer is compressed ({encoding[:40]}), which was not asked for"
        raise InputError(message, hint="a proxy may compress what passes through it")


def given_up(url: str) -> InputError:
    """Return the error for a request whose answer is no longer needed."""
    return InputError(f"{shown(url)}: the request was given up")
