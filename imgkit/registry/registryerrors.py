"""How registries fail, and what their answers say about it."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from time import time

from imgkit.errors import InputError
from imgkit.fetch.checks import TransientError, looks_like_html
from imgkit.host.jsonfile import parse_json
from imgkit.registry.httpcalls import Answer, place_of

MAX_WAIT = 60.0
"""Seconds that a registry may ask us to wait before the next attempt (``Retry-After``)."""
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_MESSAGE = 200  # characters of a registry's own words
_HINTS = {
    401: "log in first (docker login REGISTRY, podman login REGISTRY), or check the name of the repository",
    403: "the account may not do this: check its rights, and the name of the repository",
    404: "check the name of the registry and of the repository",
    413: "a proxy before the registry limits the size of a request: raise its limit, or try a smaller --chunk-size",
    429: "the registry limits how much an account or an address may ask of it: log in, or wait",
}


class RegistryError(InputError):
    """A registry refuses a request, or its answer is not what the specification says.

    Attributes:
        status: of the answer; zero if it was not the status that is wrong.
    """

    status = 0


class DeniedError(RegistryError):
    """A registry, or its token service, wants other credentials or refuses those that there are."""


class MissingImageError(RegistryError):
    """A registry does not have an image, or a blob of one."""


class BusyError(TransientError):
    """A registry is overloaded. ``retry_after`` is how many seconds it wants us to wait; zero if it does not say."""

    def __init__(self, error: InputError, retry_after: float) -> None:
        super().__init__(error)
        self.retry_after = retry_after


def check_answer(answer: Answer, *good: int, what: str = "") -> None:
    """Check the status of an answer.

    Args:
        good: the statuses that the specification has for the request.
        what: what was asked for, for messages; the URL if empty.

    Raises:
        BusyError: the registry is overloaded.
        DeniedError: it wants other credentials.
        MissingImageError: it does not have what was asked for.
        RegistryError: any other status that is not among ``good``.
    """
    if answer.status in good:
        return
    error = refusal(answer, what)
    if answer.status in _BUSY:
        raise BusyError(error, retry_after(answer.headers.get("Retry-After", "")))
    raise error


def refusal(answer: Answer, what: str = "") -> RegistryError:
    """Return the error for an answer whose status is not a good one."""
    kind = {401: DeniedError, 403: DeniedError, 404: MissingImageError}.get(answer.status, RegistryError)
    said = _message(answer)
    message = f"{what or place_of(answer.url)}: the registry answers {answer.status}" + (f": {said}" if said else "")
    error = kind(message, hint=_HINTS.get(answer.status))
    error.status = answer.status
    return error


def web_page(what: str) -> RegistryError:
    """Return the error for a page of HTML where a document or a blob should be."""
    return RegistryError(
        f"{what}: the server sent a web page instead",
        hint="check the name of the registry, and whether a proxy or a login page of the network answers",
    )


def retry_after(text: str) -> float:
    """Return the seconds of a ``Retry-After`` header, at most :data:`MAX_WAIT`; zero if there is none that is valid.

    Source: RFC 9110, section 10.2.3: seconds, or a date.
    """
    if text.isascii() and text.isdigit():
        return min(float(text[:10]), MAX_WAIT)
    try:
        seconds = parsedate_to_datetime(text).timestamp() - time()
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    return max(0.0, min(seconds, MAX_WAIT))


def _message(answer: Answer) -> str:
    """Return what a registry says about a failure (distribution-spec 1.1, "Error Codes"); empty if it says nothing."""
    if looks_like_html(answer.data):
        return "a web page, not the answer of a registry"
    try:
        document = parse_json(answer.data, "")
        first = document["errors"][0]
        texts = [first.get("code"), first.get("message")]
    except (InputError, LookupError, TypeError, AttributeError):
        return ""
    return ": ".join(text[:_MAX_MESSAGE] for text in texts if isinstance(text, str) and text)
