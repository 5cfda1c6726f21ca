"""Downloads over HTTP: capped, hashed and put into place in one move.

A download is streamed into a temporary file beside its target and renamed when it is complete and correct, so a target
is complete or missing. Only failures that may pass are tried again. Proxies and certificates are found as ``requests``
finds them (``HTTPS_PROXY``, ``REQUESTS_CA_BUNDLE`` …)::

    client = Http()
    download = client.download(url, Path("APKINDEX.tar.gz"), Expected(max_bytes=1 << 20, gzip=True))
    print(download.size, download.sha256)
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

import requests
import urllib3.exceptions

from imgkit.errors import HostError, InputError
from imgkit.fetch.checks import (
    ELSEWHERE_HINT,
    Expected,
    TransientError,
    UnreachableError,
    broken_off,
    check_complete,
    check_declared,
    check_length,
    check_start,
    check_status,
    declared_length,
    shown,
)
from imgkit.fetch.deadline import CancelledError, Deadline, ExpiredError
from imgkit.fetch.session import Session, discard
from imgkit.fetch.sessionpool import SessionPool
from imgkit.fetch.unreachable import unreachable
from imgkit.host.room import no_room

log = logging.getLogger("imgkit.fetch")

CONNECT_TIMEOUT = 5.0
STALL_TIMEOUT = 20.0
CONNECT_ALLOWANCE = 60.0  # seconds for addresses that do not answer, of all attempts together
LEAST_RATE = 1024  # bytes a second: a line of 56 kbit/s has about 1,500 for each of four downloads
_CHUNK = 1 << 18
_MAX_REDIRECTS = 10


@dataclass(frozen=True)
class Validators:
    """What a server said about a version of a file, by which it can be asked later whether that is still the newest."""

    etag: str = ""
    last_modified: str = ""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of a conditional request (RFC 9110, section 13.1)."""
        headers = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in headers.items() if value}


@dataclass(frozen=True)
class Download:
    """What was downloaded: its length in bytes, its SHA-256 in hex, and the server's validators."""

    size: int
    sha256: str
    validators: Validators


def _ignore(_: int) -> None:
    """Do nothing with the length of a piece."""


@dataclass(frozen=True, kw_only=True)
class _Request:
    """One download; see :meth:`Http.download`."""

    url: str
    target: Path
    expected: Expected
    validators: Validators
    on_bytes: Callable[[int], object]
    cancelled: threading.Event
    deadline: Deadline


class Http:
    """A client with timeouts and retries, which several threads may use.

    Args:
        connect_timeout: seconds until a connection must be made.
        stall_timeout: seconds until a response must have begun; later, the longest pause between two pieces of it.
        least_rate: bytes a second that must come on average. A download of ``n`` bytes, with its redirects and all its
            attempts, takes at most ``stall_timeout + n / least_rate`` seconds, where ``n`` counts what all attempts
            received (:mod:`imgkit.fetch.deadline`), and 60 s more if addresses do not answer.
        attempts: how often a download is tried if it breaks off or an overloaded server refuses it.
        pause: seconds before the second attempt; they double with each further attempt.
    """

    def __init__(
        self,
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        stall_timeout: float = STALL_TIMEOUT,
        least_rate: float = LEAST_RATE,
        attempts: int = 3,
        pause: float = 0.5,
    ) -> None:
        self._timeouts = (connect_timeout, stall_timeout)
        self._attempts = attempts
        self._pause = pause
        self._least_rate = least_rate
        self._sessions = SessionPool(Session)

    def download(
        self,
        url: str,
        target: Path,
        expected: Expected,
        *,
        validators: Validators | None = None,
        on_bytes: Callable[[int], object] | None = None,
        cancelled: threading.Event | None = None,
    ) -> Download | None:
        """Download ``url`` to ``target``, which is replaced when the file is complete and correct.

        Args:
            validators: those of the version that the caller has.
            on_bytes: called with the length of each piece, and with a negative number when an attempt is started over.
            cancelled: makes the download give up once it is set.

        Returns:
            What was downloaded; None, with ``target`` untouched, if the caller's version is still the newest.

        Raises:
            UnreachableError: nothing at the URL answers.
            MissingFileError: the server does not have the file.
            Version3Error: the file is in Alpine's format of version 3.
            InputError: the server refuses, breaks off, or sends something else; or the download was cancelled.
            HostError: the disk is full, or ``target`` cannot be written.
        """
        request = _Request(
            url=url,
            target=target,
            expected=expected,
            validators=validators or Validators(),
            on_bytes=on_bytes or _ignore,
            cancelled=cancelled or threading.Event(),
            deadline=Deadline(self._timeouts[1], self._least_rate, CONNECT_ALLOWANCE),
        )
        return self._try_repeatedly(request)

    # ---- steps ------------------------------------------------------------------------------------------------------

    def _try_repeatedly(self, request: _Request) -> Download | None:
        last: InputError | None = None
        for number in range(self._attempts):
            try:
                return self._try(request)
            except _StalledError as stalled:
                if last is None:
                    raise
                message = f"{stalled.message} for {number + 1} attempts; the one before: {last.message}"
                raise UnreachableError(message, hint=stalled.hint) from stalled
            except TransientError as fault:
                if number == self._attempts - 1 or request.cancelled.is_set():
                    raise fault.error from fault.__cause__
                last = fault.error
                log.info("trying again: %s", fault.error)
                request.cancelled.wait(min(self._pause * 2**number, request.deadline.left()))
        raise AssertionError("at least one attempt is made")

    def _try(self, request: _Request) -> Download | None:
        """Make one attempt."""
        with temporary_beside(request.target) as (sink, temporary):
            download = self._transfer(request, sink)
            sink.flush()
            if download is not None:
                temporary.replace(request.target)
        return download

    def _transfer(self, request: _Request, sink: BinaryIO) -> Download | None:
        """Download into ``sink``, in a thread of its own that ends when the deadline passes."""
        try:
            return self._sessions.within(
                request.deadline,
                lambda session: self._exchange(session, request, sink),
                cancelled=request.cancelled,
            )
        except ExpiredError as cause:
            raise _stalled(request) from cause
        except CancelledError:
            raise _cancelled(request) from None

    def _exchange(self, session: Session, request: _Request, sink: BinaryIO) -> Download | None:
        """Send the request and receive the file; None if the caller's version is still the newest."""
        with self._response(session, request) as response:
            if response.status_code == HTTPStatus.NOT_MODIFIED:
                return None
            declared = declared_length(response.headers)
            size, sha256 = self._receive(response, request, sink, declared)
            headers = response.headers
        check_complete(request.url, size, sha256, request.expected)
        return Download(size, sha256, Validators(headers.get("ETag", ""), headers.get("Last-Modified", "")))

    def _receive(
        self, response: requests.Response, request: _Request, sink: BinaryIO, declared: int | None
    ) -> tuple[int, str]:
        """Stream the body into ``sink``, and return its length and SHA-256."""
        digest = hashlib.sha256()
        size = 0
        try:
            for piece in self._pieces(response, request):
                if not size:
                    check_start(request.url, piece, request.expected)
                    check_declared(request.url, declared, request.expected)  # a web page has another length, too
                size += len(piece)
                check_length(request.url, size, request.expected)
                digest.update(piece)
                sink.write(piece)
                request.on_bytes(len(piece))
            if declared is not None and size != declared:
                raise broken_off(request.url, size, declared)
        except TransientError:
            request.on_bytes(-size)
            raise
        return size, digest.hexdigest()

    @contextmanager
    def _response(self, session: Session, request: _Request) -> Iterator[requests.Response]:
        """The response to the request. Its status is 200 or 304."""
        try:
            response = self._follow(session, request)
        except requests.exceptions.ReadTimeout as cause:
            raise _stalled(request) from cause
        except (requests.RequestException, ValueError, urllib3.exceptions.HTTPError) as cause:
            raise unreachable(request.url, cause, self._timeouts[0]) from cause
        with response:
            check_status(request.url, response.status_code)
            yield response

    def _follow(self, session: Session, request: _Request) -> requests.Response:
        """Follow redirects, and return the response at their end."""
        url = request.url
        headers = {"Accept-Encoding": "identity", "User-Agent": "imgkit", **request.validators.headers}
        for _ in range(_MAX_REDIRECTS + 1):
            response = session.get(url, headers=headers, stream=True, timeout=self._timeouts)
            target = session.location(response)
            if target is None:
                return response
            discard(response)
            password = response.request.headers.get("Authorization")
            if password and not session.should_strip_auth(url, target):  # type: ignore[no-untyped-call]
                headers["Authorization"] = password
            else:
                headers.pop("Authorization", None)
            url = target
        raise InputError(f"{shown(request.url)}: is redirected in circles", hint=ELSEWHERE_HINT)

    def _pieces(self, response: requests.Response, request: _Request) -> Iterator[bytes]:
        """Yield the raw body as it arrives."""
        while piece := self._read(response.raw.read1, _CHUNK, request):
            request.deadline.received(len(piece))
            yield piece

    def _read(self, read: Callable[[int], bytes], size: int, request: _Request) -> bytes:
        try:
            piece = read(size)
        except urllib3.exceptions.ReadTimeoutError as cause:
            raise _stalled(request) from cause
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as cause:
            raise broken_off(request.url) from cause
        if request.deadline.passed:  # the caller no longer waits, and the sink may be closed
            raise _cancelled(request)
        return piece


class _StalledError(UnreachableError):
    """The deadline passed."""


def _stalled(request: _Request) -> InputError:
    deadline = request.deadline
    no_answer = f"no answer within {deadline.timeout:g} s"
    reason = f"fewer than {deadline.rate:g} bytes a second" if deadline.began else no_answer
    return _StalledError(f"{shown(request.url)}: stalled: {reason}", hint=ELSEWHERE_HINT)


def _cancelled(request: _Request) -> InputError:
    return InputError(f"{shown(request.url)}: the download was given up")


@contextmanager
def temporary_beside(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A temporary file in the folder of ``target``. What the block leaves of it is removed.

    Raises:
        HostError: the file cannot be made or written to.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:64]}.")
        try:
            with os.fdopen(descriptor, "wb") as sink:
                yield sink, Path(name)
        finally:
            with suppress(FileNotFoundError):
                Path(name).unlink()
    except OSError as cause:
        reason = "no space left" if no_room(cause) else f"cannot be written ({cause.strerror})"
        raise HostError(f"{target.parent}: {reason}") from cause
