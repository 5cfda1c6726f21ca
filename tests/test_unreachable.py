"""The reason of a failed request, in one sentence, from the chain of causes that requests and urllib3 report."""

from __future__ import annotations

import socket

import pytest
import requests
import urllib3.exceptions as inner

from imgkit.errors import InputError
from imgkit.fetch.checks import TransientError, UnreachableError
from imgkit.fetch.unreachable import unreachable

URL = "http://user:secret@mirror.test:8080/x"
SHOWN = "http://mirror.test:8080/x"
NOBODY = socket.gaierror(-2, "Name or service not known")
WRAPPED = inner.MaxRetryError(None, "/x", inner.NewConnectionError(None, "failed"))  # type: ignore[arg-type]

CAUSES: dict[str, tuple[Exception, str]] = {
    "a proxy": (
        requests.exceptions.ProxyError(OSError("Tunnel connection failed: 403 Forbidden\nmore")),
        "the proxy does not let it through (Tunnel connection failed: 403 Forbidden)",
    ),
    "a certificate": (
        requests.exceptions.SSLError(OSError("certificate verify failed")),
        "no secure connection to mirror.test (certificate verify failed)",
    ),
    "a timeout": (requests.exceptions.ConnectTimeout(OSError("x")), "mirror.test does not answer within 2.5 s"),
    "an unknown name": (requests.exceptions.ConnectionError(NOBODY), "the name mirror.test is unknown"),
    "a refusal": (
        requests.exceptions.ConnectionError(ConnectionRefusedError(111, "Connection refused")),
        "mirror.test refuses the connection",
    ),
    "something else": (
        requests.exceptions.ConnectionError(OSError(101, "Network is unreachable")),
        "mirror.test cannot be reached ([Errno 101] Network is unreachable)",
    ),
    "nothing to say": (requests.exceptions.ConnectionError(OSError()), "mirror.test cannot be reached (OSError)"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_has_its_own_sentence(cause: str) -> None:
    error = unreachable(URL, CAUSES[cause][0], 2.5)
    assert isinstance(error, UnreachableError)
    assert error.message == f"{SHOWN}: {CAUSES[cause][1]}"
    assert "--mirror" in str(error.hint)


@pytest.mark.parametrize("cause", [ConnectionResetError(104, "reset"), inner.ProtocolError("x")])
def test_a_connection_that_broke_off_is_tried_again(cause: Exception) -> None:
    error = unreachable(URL, requests.exceptions.ConnectionError(cause), 1)
    assert isinstance(error, TransientError)
    assert isinstance(error.error, UnreachableError)
    assert error.error.message == f"{SHOWN}: the connection broke off"


@pytest.mark.parametrize("cause", [ValueError("x"), requests.exceptions.InvalidSchema("x"), UnicodeError("x")])
def test_what_is_not_a_url_is_not_unreachable(cause: Exception) -> None:
    error = unreachable("x", cause, 1)
    assert type(error) is InputError
    assert error.message == "x: is not a URL that can be downloaded"


def test_causes_are_found_however_they_are_wrapped() -> None:
    """In arguments, in ``reason``, in ``__cause__`` and in ``__context__``."""
    by_reason = inner.MaxRetryError(None, "/x", NOBODY)  # type: ignore[arg-type]
    by_cause, by_context = OSError("x"), OSError("x")
    by_cause.__cause__ = NOBODY
    by_context.__context__ = NOBODY
    for cause in (by_reason, by_cause, by_context):
        error = unreachable(URL, requests.exceptions.ConnectionError(cause), 1)
        assert str(error) == f"{SHOWN}: the name mirror.test is unknown"


def test_causes_that_go_round_in_circles_end() -> None:
    first, second = OSError("first"), OSError("second")
    first.__cause__, second.__cause__ = second, first
    assert "mirror.test cannot be reached" in str(unreachable(URL, requests.exceptions.ConnectionError(first), 1))
