"""One exchange with a server: a request, the redirects that it leads to, and an answer within limits.

What is sent with a request stays with the server that it is meant for: ``Authorization`` follows no redirect to another
origin (scheme, host and port), credentials of ``~/.netrc`` are not used, and https is never left for http unless the
user allows that.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable, Iterator
from http.cookiejar import DefaultCookiePolicy
from urllib.parse import urlsplit

import requests
import urllib3.exceptions

from imgkit.errors import InputError
from imgkit.fetch.checks import TransientError, UnreachableError, shown
from imgkit.fetch.deadline import CancelledError, Deadline, ExpiredError
from imgkit.fetch.http import CONNECT_ALLOWANCE, LEAST_RATE
from imgkit.fetch.session import Session, discard
from imgkit.fetch.sessionpool import SessionPool
from imgkit.fetch.unreachable import causes, unreachable
from imgkit.registry.access import RegistryAccess
from imgkit.registry.httpcalls import Answer, Body, HttpCall, place_of
from imgkit.registry.receiving import HINT, given_up, receive
from imgkit.registry.roots import TrustedRoots

log = logging.getLogger("imgkit.registry")

CONNECT_TIMEOUT = 10.0  # seconds; also the longest pause while a piece of a body is sent
_PIECE = 1 << 14  # bytes that are handed to the network at a time
_MAX_REDIRECTS = 5
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class NoTlsError(UnreachableError):
    """The server at an https URL refuses connections or does not speak TLS."""


class StalledServerError(UnreachableError):
    """The server did not answer in time, or too slowly."""


class Wire:
    """Makes requests; several threads may use it."""

    def __init__(self, access: RegistryAccess) -> None:
        self._access = access
        self._roots = TrustedRoots(access)
        self._sessions = SessionPool(_without_cookies)
        self._bases: dict[str, str] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._sessions.close()
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
        deadline = Deadline(self._access.stall_timeout, LEAST_RATE, CONNECT_ALLOWANCE)
        try:
            return self._sessions.within(
                deadline, lambda session: self._guarded(session, call, deadline), cancelled=cancelled
            )
        except ExpiredError as cause:
            raise _stalled(call.place) from cause
        except CancelledError:
            raise given_up(call.place) from None

    def _guarded(self, session: Session, call: HttpCall, deadline: Deadline) -> Answer:
        """Make the exchange, and turn the exceptions of the libraries into those of imgkit."""
        try:
            return self._follow(session, call, deadline)
        except (requests.exceptions.ReadTimeout, urllib3.exceptions.ReadTimeoutError) as cause:
            raise _stalled(call.place) from cause
        except (requests.RequestException, ValueError, urllib3.exceptions.HTTPError) as cause:
            if (reason := _lacks_tls(call.url, cause)) is not None:
                hint = "if the registry speaks plain http, --insecure allows that"
                raise NoTlsError(f"{call.place}: {reason}", hint=hint) from cause
            raise unreachable(call.place, cause, CONNECT_TIMEOUT, HINT) from cause

    def _follow(self, session: Session, call: HttpCall, deadline: Deadline) -> Answer:
        """Follow the redirects of a request that only reads, and return the answer at their end."""
        url, authorization = call.url, call.authorization
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._send(session, call, url, authorization, deadline)
            target = session.location(response) if call.method in ("GET", "HEAD") else None
            if target is None:
                with response:
                    return Answer(
                        response.status_code, response.headers, receive(response, call, deadline), response.url
                    )
            discard(response)
            self._check_target(url, target)
            if origin(target) != origin(call.url):
                authorization = ""
            url = target
        raise InputError(f"{call.place}: is redirected in circles", hint=HINT)

    def _check_target(self, url: str, target: str) -> None:
        """Check where a redirect leads to.

        Raises:
            InputError: it is neither http nor https, or leaves https for http.
        """
        scheme = urlsplit(target).scheme
        if scheme not in ("http", "https") or not urlsplit(target).hostname:
            raise InputError(f"{place_of(url)}: is redirected to {place_of(target)}, which is not on the web")
        if scheme == "http" and url.startswith("https:") and not self._access.insecure:
            raise InputError(f"{place_of(url)}: is redirected to plain http ({place_of(target)})")

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


def _without_cookies() -> Session:
    """Return a session that keeps no cookies.

    Registries with a web page give cookies to everybody, and take a client that returns one for a browser.
    """
    session = Session()
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
    return session


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL.

    Raises:
        ValueError: the port is not a number.
    """
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)


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


def _stalled(url: str) -> StalledServerError:
    return StalledServerError(f"{shown(url)}: stalled: the server does not answer, or too slowly", hint=HINT)


def _lacks_tls(url: str, cause: Exception) -> str | None:
    """Return the reason if a failure may mean that the server speaks plain http. A wrong certificate does not."""
    chain = tuple(causes(cause))
    if not url.startswith("https:") or isinstance(cause, requests.exceptions.ProxyError):
        return None
    if any(isinstance(link, ssl.SSLCertVerificationError) for link in chain):
        return None
    if any(isinstance(link, ConnectionRefusedError) for link in chain):
        return f"{urlsplit(url).hostname} refuses the connection"
    return "no TLS there" if any(isinstance(link, ssl.SSLError) for link in chain) else None
