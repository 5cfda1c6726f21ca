"""Downloads over HTTP: capped, hashed and placed in one move, or refused with a sentence of their own.

Whatever comes is streamed into a temporary file beside its target and renamed when it is all there and right, so a
target is complete or missing. Nothing is retried that asking again cannot change. Proxies and certificates are found
as ``requests`` finds them (``HTTPS_PROXY``, ``REQUESTS_CA_BUNDLE`` …).
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from errno import EDQUOT, ENOSPC
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

import requests
import urllib3.exceptions

from imgkit.errors import HostError, InputError
from imgkit.fetch.checks import (
    ELSEWHERE,
    Expected,
    TransientError,
    UnreachableError,
    broken_off,
    check_declared,
    check_length,
    check_start,
    check_status,
    check_whole,
    declared_length,
    shown,
)
from imgkit.fetch.deadline import CancelledError, Deadline, ExpiredError, within
from imgkit.fetch.session import Session, discard
from imgkit.fetch.unreachable import unreachable

log = logging.getLogger("imgkit.fetch")

CONNECT_TIMEOUT = 5.0
STALL_TIMEOUT = 20.0
_CHUNK = 1 << 18
_MAX_REDIRECTS = 10
CONNECTING = 60.0  # seconds for dead addresses, of all attempts together
LEAST_RATE = 1024  # bytes a second: a line of 56 kbit/s has about 1,500 for each of four downloads


@dataclass(frozen=True)
class Validators:
    """What a server said about a version of a file, to ask it later whether that is still the newest."""

    etag: str = ""
    last_modified: str = ""

    @property
    def headers(self) -> Mapping[str, str]:
        found = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in found.items() if value}


@dataclass(frozen=True)
class Download:
    """What came: its length in bytes, its SHA-256 in hex, and the server's validators."""

    size: int
    sha256: str
    validators: Validators


def _ignore(_: int) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True)
class _Request:
    """One download; see :meth:`Http.download`."""

    url: str
    expected: Expected
    validators: Validators = Validators()
    on_bytes: Callable[[int], object] = _ignore
    cancelled: threading.Event = field(default_factory=threading.Event)
    deadline: Deadline = field(kw_only=True)


class Http:
    """A client with timeouts and retries; safe to use from several threads.

    Args:
        connect_timeout: seconds until a connection must stand.
        stall_timeout: seconds until an answer must have come; later, the longest pause between two pieces of it.
        least_rate: bytes a second that must come on average. A download of ``n`` bytes, with its redirects and all its
            attempts, takes at most ``stall_timeout + n / least_rate`` seconds, where ``n`` counts what all attempts
            received (:mod:`imgkit.fetch.deadline`), and 60 s more where addresses do not answer.
        attempts: how often a download is tried that broke off, or that an overloaded server refused.
        pause: seconds before the second attempt; doubled for each further one.
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
        self._idle: list[Session] = []  # a list's append and pop are atomic

    def get(self, url: str, expected: Expected) -> bytes:
        """A small file, in memory. Raises what :meth:`download` raises."""
        sink = io.BytesIO()
        self._persist(lambda request: self._into(request, sink), _Request(url, expected, deadline=self._deadline()))
        return sink.getvalue()

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
        """Download ``url`` to ``target``, replacing it at once when everything has come and is right.

        Args:
            validators: of the version at hand; None is returned, and nothing placed, when that is still the newest.
            on_bytes: told the length of each piece; negative when an attempt is started over.
            cancelled: gives the download up once it is set.

        Raises:
            UnreachableError: nothing at the URL answers.
            InputError: the mirror refuses, breaks off, or sends something else.
            HostError: the host has no room for it, or ``target`` cannot be written.
        """
        request = _Request(
            url,
            expected,
            validators or Validators(),
            on_bytes or _ignore,
            cancelled or threading.Event(),
            deadline=self._deadline(),
        )

        def attempt(request: _Request) -> Download | None:
            with _placing(target) as (sink, temporary):
                found = self._into(request, sink)
                sink.flush()
                if found is not None:
                    temporary.replace(target)
            return found

        return self._persist(attempt, request)

    def _deadline(self) -> Deadline:
        return Deadline(self._timeouts[1], self._least_rate, CONNECTING)

    # ---- steps ------------------------------------------------------------------------------------------------------

    def _persist(self, attempt: Callable[[_Request], Download | None], request: _Request) -> Download | None:
        last: InputError | None = None
        for number in range(self._attempts):
            try:
                return attempt(request)
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
                request.cancelled.wait(min(self._pause * 2**number, max(request.deadline.left(), 0)))
        raise AssertionError("at least one attempt is made")

    def _into(self, request: _Request, sink: BinaryIO) -> Download | None:
        """One attempt, in a thread of its own that ends when the deadline passes."""
        session = self._borrow()
        session.connecting = request.deadline.connecting
        try:
            return within(
                request.deadline,
                lambda: self._exchange(session, request, sink),
                cancelled=request.cancelled,
                cut=session.cut,
            )
        except ExpiredError as cause:
            raise _stalled(request) from cause
        except CancelledError:
            raise _given_up(request) from None
        finally:
            if session.is_cut:
                session.close()
            else:
                self._idle.append(session)

    def _borrow(self) -> Session:
        """A session that nobody else uses."""
        try:
            return self._idle.pop()
        except IndexError:
            return Session()

    def _exchange(self, session: Session, request: _Request, sink: BinaryIO) -> Download | None:
        with self._response(session, request) as response:
            if response.status_code == HTTPStatus.NOT_MODIFIED:
                return None
            declared = declared_length(response.headers)
            size, sha256 = self._receive(response, request, sink, declared)
            headers = response.headers
        check_whole(request.url, size, sha256, request.expected)
        return Download(size, sha256, Validators(headers.get("ETag", ""), headers.get("Last-Modified", "")))

    def _receive(
        self, response: requests.Response, request: _Request, sink: BinaryIO, declared: int | None
    ) -> tuple[int, str]:
        """Stream the body into ``sink``: its length and SHA-256. What a broken attempt left there is taken back."""
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
            sink.seek(0)
            sink.truncate()
            request.on_bytes(-size)
            raise
        return size, digest.hexdigest()

    @contextmanager
    def _response(self, session: Session, request: _Request) -> Iterator[requests.Response]:
        """The answer to a GET, when its status is 200 or 304."""
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
        """The answer where redirects end."""
        url = request.url
        headers = {"Accept-Encoding": "identity", "User-Agent": "imgkit", **request.validators.headers}
        for _ in range(_MAX_REDIRECTS + 1):
            response = session.get(url, headers=headers, stream=True, timeout=self._timeouts, allow_redirects=False)
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
        raise InputError(f"{shown(request.url)}: is redirected in circles", hint=ELSEWHERE)

    def _pieces(self, response: requests.Response, request: _Request) -> Iterator[bytes]:
        """The raw body as it arrives."""
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
        if request.deadline.passed:  # nobody waits any more, and the sink may be closed
            raise _given_up(request)
        return piece


class _StalledError(UnreachableError):
    """The deadline passed."""


def _stalled(request: _Request) -> InputError:
    deadline = request.deadline
    slow = f"fewer than {deadline.rate:g} bytes a second"
    what = slow if deadline.began else f"no answer within {deadline.patience:g} s"
    return _StalledError(f"{shown(request.url)}: stalled: {what}", hint=ELSEWHERE)


def _given_up(request: _Request) -> InputError:
    return InputError(f"{shown(request.url)}: the download was given up")


def no_room(error: OSError) -> bool:
    """Whether an error says that a disk (or a quota) is full."""
    return error.errno in (ENOSPC, EDQUOT)


@contextmanager
def _placing(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A temporary file in the folder of ``target``; whatever is left of it after the block is removed."""
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
        what = "no space left" if no_room(cause) else f"cannot be written ({cause.strerror})"
        raise HostError(f"{target.parent}: {what}") from cause
