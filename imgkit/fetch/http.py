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
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from errno import EDQUOT, ENOSPC
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

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

log = logging.getLogger("imgkit.fetch")

CONNECT_TIMEOUT = 5.0
STALL_TIMEOUT = 20.0
_CHUNK = 1 << 18
_SLOWEST = 256  # bytes a second over a whole stall timeout; less counts as stalled


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


class Http:
    """A client with timeouts and retries; safe to use from several threads.

    Args:
        connect_timeout: seconds until a connection must stand.
        stall_timeout: seconds without data (or with next to none) after which a download is given up.
        attempts: how often a download is tried that broke off, or that an overloaded server refused.
        pause: seconds before the second attempt; doubled for each further one.
    """

    def __init__(
        self,
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        stall_timeout: float = STALL_TIMEOUT,
        attempts: int = 3,
        pause: float = 0.5,
    ) -> None:
        self._timeouts = (connect_timeout, stall_timeout)
        self._attempts = attempts
        self._pause = pause
        self._sessions = threading.local()

    def get(self, url: str, expected: Expected) -> bytes:
        """A small file, in memory. Raises what :meth:`download` raises."""
        sink = io.BytesIO()
        whole = _Request(url, expected)
        self._persist(lambda: self._into(whole, sink), whole)
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
            url, expected, validators or Validators(), on_bytes or _ignore, cancelled or threading.Event()
        )

        def attempt() -> Download | None:
            _refuse_cancelled(request)
            with _placing(target) as (sink, temporary):
                found = self._into(request, sink)
                sink.flush()
                if found is not None:
                    temporary.replace(target)
            return found

        return self._persist(attempt, request)

    # ---- steps ------------------------------------------------------------------------------------------------------

    def _persist(self, attempt: Callable[[], Download | None], request: _Request) -> Download | None:
        for number in range(self._attempts):
            try:
                return attempt()
            except TransientError as fault:
                if number == self._attempts - 1 or request.cancelled.is_set():
                    raise fault.error from fault.__cause__
                log.info("trying again: %s", fault.error)
                request.cancelled.wait(self._pause * 2**number)
        raise AssertionError("at least one attempt is made")

    def _into(self, request: _Request, sink: BinaryIO) -> Download | None:
        with self._response(request.url, request.validators) as response:
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
    def _response(self, url: str, validators: Validators) -> Iterator[requests.Response]:
        """The answer to a GET, when its status is 200 or 304."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "imgkit", **validators.headers}
        try:
            response = self._session().get(url, headers=headers, stream=True, timeout=self._timeouts)
        except (requests.RequestException, UnicodeError, urllib3.exceptions.HTTPError) as cause:
            raise self._unreachable(url, cause) from cause
        with response:
            check_status(url, response.status_code)
            yield response

    def _session(self) -> requests.Session:
        if not hasattr(self._sessions, "session"):
            self._sessions.session = requests.Session()
        session: requests.Session = self._sessions.session
        return session

    def _pieces(self, response: requests.Response, request: _Request) -> Iterator[bytes]:
        """The raw body as it arrives. The socket's timeout sees silence, the clock here sees a trickle."""
        read = getattr(response.raw, "read1", response.raw.read)  # urllib3 has read1 since 2.1
        start, in_window = time.monotonic(), 0
        while piece := self._read(read, request):
            yield piece
            in_window += len(piece)
            if (now := time.monotonic()) - start > self._timeouts[1]:
                if in_window < _SLOWEST * self._timeouts[1]:
                    raise self._stalled(request.url)
                start, in_window = now, 0

    def _read(self, read: Callable[[int], bytes], request: _Request) -> bytes:
        _refuse_cancelled(request)
        try:
            return read(_CHUNK)
        except urllib3.exceptions.ReadTimeoutError as cause:
            raise self._stalled(request.url) from cause
        except (urllib3.exceptions.HTTPError, OSError) as cause:
            raise broken_off(request.url) from cause

    def _stalled(self, url: str) -> InputError:
        return UnreachableError(f"{shown(url)}: stalled: no data for {self._timeouts[1]:g} s", hint=ELSEWHERE)

    def _unreachable(self, url: str, cause: Exception) -> Exception:
        """The error for a request that got no answer. What kind of failure it was is deep in its chain of causes."""
        chain = tuple(_chain(cause))
        if isinstance(cause, requests.exceptions.ReadTimeout):
            return self._stalled(url)
        if isinstance(cause, (ValueError, requests.exceptions.InvalidSchema, UnicodeError)):
            return InputError(f"{shown(url)}: is not a URL that can be downloaded")
        if isinstance(cause, requests.exceptions.TooManyRedirects):
            return InputError(f"{shown(url)}: is redirected in circles", hint=ELSEWHERE)
        if any(isinstance(link, (ConnectionResetError, urllib3.exceptions.ProtocolError)) for link in chain):
            return broken_off(url, kind=UnreachableError)
        host = urlsplit(url).hostname or url
        return UnreachableError(f"{shown(url)}: {self._why(host, cause, chain)}", hint=ELSEWHERE)

    def _why(self, host: str, cause: Exception, chain: tuple[BaseException, ...]) -> str:
        if isinstance(cause, requests.exceptions.ProxyError):
            return f"the proxy does not let it through ({_first_line(chain[-1])})"
        if isinstance(cause, requests.exceptions.SSLError):
            return f"no secure connection to {host} ({_first_line(chain[-1])})"
        if isinstance(cause, requests.exceptions.ConnectTimeout):
            return f"{host} does not answer within {self._timeouts[0]:g} s"
        if any(isinstance(link, socket.gaierror) for link in chain):
            return f"the name {host} is unknown"
        if any(isinstance(link, ConnectionRefusedError) for link in chain):
            return f"{host} refuses the connection"
        return f"{host} cannot be reached ({_first_line(chain[-1])})"


def _refuse_cancelled(request: _Request) -> None:
    if request.cancelled.is_set():
        raise InputError(f"{shown(request.url)}: the download was given up")


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


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and what caused it, outermost first, through the wrappings of requests and urllib3."""
    link: BaseException | None = error
    for _ in range(20):  # causes can be circular
        if link is None:
            return
        yield link
        inner = [value for value in (*link.args, getattr(link, "reason", None)) if isinstance(value, BaseException)]
        link = inner[0] if inner else link.__cause__ or link.__context__


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
