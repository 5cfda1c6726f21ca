"""One exchange with a server: a request, the redirects that it leads to, and an answer within limits.

What is sent with a request stays with the server that it is meant for: ``Authorization`` follows no redirect to another
origin (scheme, host and port), credentials of ``~/.netrc`` are not used, and https is never left for http unless the
user allows that.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests
import urllib3.exceptions

from imgkit.errors import InputError
from imgkit.fetch.checks import TransientError, UnreachableError, broken_off, declared_length, shown
from imgkit.fetch.deadline import CancelledError, Deadline, ExpiredError, within
from imgkit.fetch.http import CONNECT_ALLOWANCE, LEAST_RATE
from imgkit.fetch.session import Session, discard
from imgkit.fetch.unreachable import causes, unreachable
from imgkit.registry.access import RegistryAccess
from imgkit.registry.roots import TrustedRoots

log = logging.getLogger("imgkit.registry")

MAX_PAGE = 1 << 16
"""Bytes that are read of an answer that is not expected to be longer, such as an error."""
HINT = "check the name of the registry, the network and the proxy settings (HTTPS_PROXY, NO_PROXY)"
CONNECT_TIMEOUT = 10.0  # seconds; also the longest pause while a piece of a body is sent
_PIECE = 1 << 14  # bytes that are handed to the network at a time
_READ = 1 << 18
_MAX_REDIRECTS = 5
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class NoTlsError(UnreachableError):
    """The server at an https URL refuses connections or does not speak TLS."""


class StalledServerError(UnreachableError):
    """The server did not answer in time, or too slowly."""


class Sink(Protocol):
    """Takes the body of an answer whose status is 200 or 206."""

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Prepare for the body."""

    def write(self, piece: bytes) -> None:
        """Take a piece of the body."""


class Body(Protocol):
    """The body of a request, which can be sent several times."""

    def __len__(self) -> int:
        """Return its length in bytes."""

    def pieces(self, size: int) -> Iterator[bytes]:
        """Yield it from its beginning, ``size`` bytes at a time."""


@dataclass(frozen=True, kw_only=True)
class HttpCall:
    """A request.

    Attributes:
        authorization: the value of the header ``Authorization``; empty if there is none.
        body: bytes, or a body that is streamed; None for requests without one.
        limit: bytes of an answer that are read; more is an error.
        sink: takes the body of a successful answer; without one, the body is in the answer.
        patience: seconds until the answer must have begun when the body was sent; None takes the usual time.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    authorization: str = ""
    body: bytes | Body | None = None
    limit: int = MAX_PAGE
    sink: Sink | None = None
    patience: float | None = None


@dataclass(frozen=True)
class Answer:
    """The answer to a request: its status, its headers (in any case), its body, and the URL at the end of redirects."""

    status: int
    headers: Mapping[str, str]
    data: bytes
    url: str


class Wire:
    """Makes requests; several threads may use it."""

    def __init__(self, access: RegistryAccess) -> None:
        self._access = access
        self._roots = TrustedRoots(access)
        self._idle: list[Session] = []  # a list's append and pop are atomic
        self._bases: dict[str, str] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections that are kept open."""
        while self._idle:
            self._idle.pop().close()
        self._roots.close()

    def base(self, host: str, cancelled: threading.Event) -> str:
        """Return the scheme and the host of a registry's URLs: ``https://registry.example:5000``.

        A host without TLS is talked to over plain http, if the user allows that. A wrong certificate is not the same.

        Raises:
            InputError: the host cannot be reached.
        """
        if not self._access.insecure:
            return f"https://{host}"
        with self._lock:
            if host not in self._bases:
                self._bases[host] = f"https://{host}"
                try:
                    self.exchange(HttpCall(method="GET", url=f"https://{host}/v2/"), cancelled)
                except NoTlsError:
                    log.warning("%s: is talked to over plain http: nothing is encrypted", host)
                    self._bases[host] = f"http://{host}"
                except TransientError:
                    log.debug("%s: the connection broke off, but there is TLS", host)
            return self._bases[host]

    def exchange(self, call: HttpCall, cancelled: threading.Event) -> Answer:
        """Make a request and return the answer, whatever its status is.

        Raises:
            StalledServerError: the answer did not come in time.
            NoTlsError: there is no TLS at an https URL.
            UnreachableError: there is no such server, or no secure connection to it.
            TransientError: the connection broke off.
            InputError: the answer is too long or compressed, a redirect leads where none may, or ``cancelled`` was set.
        """
        session = self._borrow()
        deadline = Deadline(self._access.stall_timeout, LEAST_RATE, CONNECT_ALLOWANCE)
        session.connecting = deadline.connecting
        try:
            return within(
                deadline, lambda: self._guarded(session, call, deadline), cancelled=cancelled, cut=session.cut
            )
        except ExpiredError as cause:
            raise _stalled(call.url) from cause
        except CancelledError:
            raise given_up(call.url) from None
        finally:
            if session.is_cut:
                session.close()
            else:
                self._idle.append(session)

    def _borrow(self) -> Session:
        try:
            return self._idle.pop()
        except IndexError:
            return Session()

    def _guarded(self, session: Session, call: HttpCall, deadline: Deadline) -> Answer:
        """Make the exchange, and turn the exceptions of the libraries into those of imgkit."""
        try:
            return self._follow(session, call, deadline)
        except (requests.exceptions.ReadTimeout, urllib3.exceptions.ReadTimeoutError) as cause:
            raise _stalled(call.url) from cause
        except (requests.RequestException, ValueError, urllib3.exceptions.HTTPError) as cause:
            if _lacks_tls(call.url, cause):
                hint = "if the registry speaks plain http, --insecure allows that"
                raise NoTlsError(f"{shown(call.url)}: no TLS there", hint=hint) from cause
            raise unreachable(call.url, cause, CONNECT_TIMEOUT, HINT) from cause

    def _follow(self, session: Session, call: HttpCall, deadline: Deadline) -> Answer:
        """Follow the redirects of a request that only reads, and return the answer at their end."""
        url, authorization = call.url, call.authorization
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._send(session, call, url, authorization, deadline)
            target = session.location(response) if call.method in ("GET", "HEAD") else None
            if target is None:
                with response:
                    return Answer(
                        response.status_code, response.headers, _receive(response, call, deadline), response.url
                    )
            discard(response)
            self._check_target(url, target)
            if origin(target) != origin(call.url):
                authorization = ""
            url = target
        raise InputError(f"{shown(call.url)}: is redirected in circles", hint=HINT)

    def _check_target(self, url: str, target: str) -> None:
        """Check where a redirect leads to.

        Raises:
            InputError: it is neither http nor https, or leaves https for http.
        """
        scheme = urlsplit(target).scheme
        if scheme not in ("http", "https") or not urlsplit(target).hostname:
            raise InputError(f"{shown(url)}: is redirected to {shown(target)[:200]}, which is not on the web")
        if scheme == "http" and url.startswith("https:") and not self._access.insecure:
            raise InputError(f"{shown(url)}: is redirected to plain http ({shown(target)[:200]})")

    def _send(
        self, session: Session, call: HttpCall, url: str, authorization: str, deadline: Deadline
    ) -> requests.Response:
        """Send one request, and return the response as soon as its headers are there."""
        patience = call.patience or self._access.stall_timeout
        body = (
            call.body if call.body is None or isinstance(call.body, bytes) else _Stream(call.body, deadline, patience)
        )
        if call.patience and isinstance(body, bytes):
            deadline.extend(patience)
        return session.request(
            call.method,
            url,
            data=body,
            headers={"Accept-Encoding": "identity", "User-Agent": "imgkit", **call.headers},
            auth=_authorize(authorization),
            stream=True,
            timeout=(CONNECT_TIMEOUT, patience),
            verify=self._roots.verify(urlsplit(url).netloc.rpartition("@")[2]),
            proxies=_no_proxy() if (urlsplit(url).hostname or "") in _LOOPBACK else None,
        )


class _Stream:
    """A body as ``requests`` takes it: its length makes the header ``Content-Length``."""

    def __init__(self, body: Body, deadline: Deadline, patience: float) -> None:
        self._body, self._deadline, self._patience = body, deadline, patience

    def __len__(self) -> int:
        return len(self._body)

    def __bool__(self) -> bool:
        return True  # requests leaves out data that is false

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._body.pieces(_PIECE):
            if self._deadline.passed:  # the caller no longer waits
                raise OSError("given up")
            yield piece
            self._deadline.received(len(piece))
        self._deadline.extend(self._patience)


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL.

    Raises:
        ValueError: the port is not a number.
    """
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)


def given_up(url: str) -> InputError:
    """Return the error for a request whose answer is no longer needed."""
    return InputError(f"{shown(url)}: the request was given up")


def _authorize(value: str) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    """Return what sets the header; anything that is not None keeps ``requests`` from looking into ``~/.netrc``."""

    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Set the header, or remove one that is left from somewhere."""
        if value:
            request.headers["Authorization"] = value
        else:
            request.headers.pop("Authorization", None)
        return request

    return authorize


def _no_proxy() -> dict[str, str]:
    return {"http": "", "https": ""}


def _receive(response: requests.Response, call: HttpCall, deadline: Deadline) -> bytes:
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
                raise InputError(f"{shown(call.url)}: the answer is longer than the {limit} bytes that are read of it")
            break
    return bytes(received)


def _stream_into(
    write: Callable[[bytes], Any], response: requests.Response, call: HttpCall, deadline: Deadline
) -> None:
    declared, size = declared_length(response.headers), 0
    for piece in _pieces(response, call, deadline):
        size += len(piece)
        write(piece)
    if declared is not None and size != declared:
        raise broken_off(call.url, size, declared, hint=HINT)


def _pieces(response: requests.Response, call: HttpCall, deadline: Deadline) -> Iterator[bytes]:
    """Yield the raw body as it arrives."""
    while True:
        try:
            piece = response.raw.read1(_READ)
        except urllib3.exceptions.ReadTimeoutError:
            raise
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as cause:
            raise broken_off(call.url, hint=HINT) from cause
        if deadline.passed:
            raise given_up(call.url)
        if not piece:
            return
        deadline.received(len(piece))
        yield piece


def _check_encoding(response: requests.Response, call: HttpCall) -> None:
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        message = f"{shown(call.url)}: the answer is compressed ({encoding[:40]}), which was not asked for"
        raise InputError(message, hint="a proxy may compress what passes through it")


def _stalled(url: str) -> StalledServerError:
    return StalledServerError(f"{shown(url)}: stalled: the server does not answer, or too slowly", hint=HINT)


def _lacks_tls(url: str, cause: Exception) -> bool:
    """Return whether a failure may mean that the server speaks plain http. A wrong certificate does not."""
    chain = tuple(causes(cause))
    if not url.startswith("https:") or any(isinstance(link, ssl.SSLCertVerificationError) for link in chain):
        return False
    if isinstance(cause, requests.exceptions.ProxyError):
        return False
    return any(isinstance(link, (ssl.SSLError, ConnectionRefusedError)) for link in chain)
