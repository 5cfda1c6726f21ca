"""How a client proves to one registry who it is: basic authentication, or bearer tokens of a token service.

A token is asked for the scopes of one request (``repository:team/app:pull,push``) and kept for requests of the same
scopes until it expires. Source: distribution, "Token Authentication Specification" and "OAuth2 Token Authentication".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from imgkit.errors import InputError
from imgkit.fetch.checks import looks_like_html
from imgkit.host.jsonfile import parse_json
from imgkit.registry.challenges import Challenge, parse_challenges
from imgkit.registry.httpcalls import Answer, HttpCall, place_of
from imgkit.registry.logins import Login
from imgkit.registry.registryerrors import DeniedError, RegistryError, check_answer, refusal, web_page

PULL = "pull"
PUSH = "pull,push"
_CLIENT = "imgkit"
_MAX_TOKEN = 1 << 16
_LIFETIME = 60.0  # seconds of a token whose service does not say
_MARGIN = 10.0  # seconds before its end at which a token is no longer used
_LOGIN_HINT = "log in first: docker login {0}, or podman login {0}"
Send = Callable[[HttpCall], Answer]


def scope(repository: str, actions: str) -> str:
    """Return the scope of a repository: ``repository:team/app:pull``."""
    return f"repository:{repository}:{actions}"


def _covered(wanted: str, scopes: Collection[str]) -> bool:
    """Return whether a scope is part of one among ``scopes``: of the same repository, with no further action."""
    name, _, actions = wanted.rpartition(":")
    for one in scopes:
        own, _, given = one.rpartition(":")
        if own == name and set(actions.split(",")) <= set(given.split(",")):
            return True
    return False


@dataclass(frozen=True)
class _Token:
    value: str
    end: float


class Authorizer:
    """Knows the value of ``Authorization`` for the requests to one registry; several threads may use it.

    Args:
        registry: its name, for messages.
        login: finds the credentials; called once, when the registry asks for them.
        send: makes a request to a token service, and repeats it if that is overloaded.
        insecure: whether a token service may be talked to over plain http.
    """

    def __init__(self, registry: str, login: Callable[[], Login | None], send: Send, *, insecure: bool) -> None:
        self._registry, self._find, self._send, self._insecure = registry, login, send, insecure
        self._lock = threading.Lock()
        self._login: tuple[Login | None] | None = None
        self._basic = ""
        self._service: tuple[str, str] | None = None
        self._further: dict[frozenset[str], frozenset[str]] = {}
        self._tokens: dict[frozenset[str], _Token] = {}

    def header(self, scopes: Collection[str]) -> str:
        """Return the value of the header for a request of these scopes; empty if nothing has been asked for yet.

        Raises:
            DeniedError: the token service refuses the credentials.
            InputError: the token service's answer is not valid.
        """
        with self._lock:
            if self._service is None:
                return self._basic
            return f"Bearer {self._token(frozenset(scopes)).value}"

    def challenged(self, header: str, scopes: Collection[str], used: str) -> None:
        """Take note of a registry's answer 401.

        Args:
            header: its ``WWW-Authenticate``.
            scopes: those of the request.
            used: the value of ``Authorization`` that was not enough; empty if there was none.

        Raises:
            DeniedError: the registry refuses the credentials, or there are none.
            InputError: the registry wants something that imgkit does not know.
        """
        challenges = {challenge.scheme: challenge for challenge in reversed(parse_challenges(header))}
        with self._lock:
            if "bearer" in challenges:
                self._note_service(challenges["bearer"], frozenset(scopes), used)
            elif "basic" in challenges:
                self._note_basic(used)
            else:
                known = ", ".join(sorted(challenges))[:100] or "nothing that imgkit knows"
                raise RegistryError(f"{self._registry}: asks for authentication by {known}, not Bearer or Basic")

    def _note_basic(self, used: str) -> None:
        login = self._credentials()
        if login is None or not login.basic:
            raise DeniedError(f"{self._registry}: asks for a password, and there is none", hint=self._hint)
        if used == login.basic:
            raise DeniedError(f"{self._registry}: refuses the credentials of {login.source}", hint=self._hint)
        self._basic, self._service = login.basic, None

    def _note_service(self, challenge: Challenge, scopes: frozenset[str], used: str) -> None:
        realm = challenge.parameters.get("realm", "")
        self._check_realm(realm)
        self._service = (realm, challenge.parameters.get("service", ""))
        asked = {one for one in challenge.parameters.get("scope", "").split() if not _covered(one, scopes)}
        self._further[scopes] = self._further.get(scopes, frozenset()) | asked
        token = self._tokens.get(scopes)
        if token is not None and used == f"Bearer {token.value}":  # or another thread has a new one already
            del self._tokens[scopes]

    def _check_realm(self, realm: str) -> None:
        """Check the URL of the token service, which is sent the credentials for this registry.

        Raises:
            RegistryError: it is not a URL, or of plain http, which was not allowed.
        """
        try:
            parts = urlsplit(realm)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RegistryError(f"{self._registry}: names no token service: {realm[:100]!r} is not a URL")
        if parts.scheme == "http" and not self._insecure:
            message = f"{self._registry}: its token service {place_of(realm)} is on plain http"
            raise RegistryError(message, hint="--insecure allows that")

    def _token(self, scopes: frozenset[str]) -> _Token:
        token = self._tokens.get(scopes)
        if token is None or token.end <= time.monotonic():
            login = self._credentials()
            if login is not None and login.bearer_token:
                token = _Token(login.bearer_token, float("inf"))
            else:
                token = self._fetch(sorted(scopes | self._further.get(scopes, frozenset())), login)
            self._tokens[scopes] = token
        return token

    def _fetch(self, scopes: list[str], login: Login | None) -> _Token:
        assert self._service is not None
        realm, service = self._service
        call = _exchange_call if login is not None and login.identity_token else _get_call
        answer = self._send(call(realm, service, scopes, login))
        if answer.status in (400, 401, 403) and login is not None:
            message = f"{place_of(realm)}: the token service refuses the credentials of {login.source}"
            raise DeniedError(message, hint=self._hint)
        if answer.status in (401, 403):
            raise DeniedError(refusal(answer).message, hint=self._hint)
        check_answer(answer, 200)
        return _token_in(answer)

    def _credentials(self) -> Login | None:
        if self._login is None:
            self._login = (self._find(),)
        return self._login[0]

    @property
    def _hint(self) -> str:
        return _LOGIN_HINT.format(self._registry)


def _get_call(realm: str, service: str, scopes: list[str], login: Login | None) -> HttpCall:
    """The request for a token with a user name and a password, or without any."""
    parameters = [("service", service)] if service else []
    query = urlencode([*parameters, *(("scope", one) for one in scopes)])
    url = realm + ("&" if urlsplit(realm).query else "?") + query if query else realm
    return HttpCall(method="GET", url=url, authorization=login.basic if login else "", limit=_MAX_TOKEN)


def _exchange_call(realm: str, service: str, scopes: list[str], login: Login | None) -> HttpCall:
    """The request for a token with an identity token."""
    assert login is not None
    form = {
        "grant_type": "refresh_token",
        "service": service,
        "client_id": _CLIENT,
        "scope": " ".join(scopes),
        "refresh_token": login.identity_token,
    }
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    return HttpCall(method="POST", url=realm, headers=headers, body=urlencode(form).encode(), limit=_MAX_TOKEN)


def _token_in(answer: Answer) -> _Token:
    place = place_of(answer.url)
    if looks_like_html(answer.data):
        raise web_page(place)
    try:
        document = parse_json(answer.data, place)
        value = document.get("token") or document.get("access_token")
        lifetime = document.get("expires_in", _LIFETIME)
    except (AttributeError, InputError) as cause:
        raise RegistryError(f"{place}: the token service's answer is not valid") from cause
    if not (isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value):
        raise RegistryError(f"{place}: the token service's answer has no token")
    seconds = lifetime if isinstance(lifetime, (int, float)) and lifetime > 0 else _LIFETIME
    return _Token(value, time.monotonic() + max(seconds - _MARGIN, seconds / 2))
