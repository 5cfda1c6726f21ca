"""Explain in one sentence why a request failed. The kind of failure is deep in a chain of exceptions."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import requests
import urllib3.exceptions

from imgkit.errors import InputError
from imgkit.fetch.checks import ELSEWHERE_HINT, UnreachableError, broken_off, shown


def unreachable(url: str, cause: Exception, connect_timeout: float, hint: str = ELSEWHERE_HINT) -> Exception:
    """Return the error for a request to ``url`` that failed with ``cause``.

    Returns:
        InputError if it is not a URL, TransientError if the connection broke off, otherwise UnreachableError.
    """
    chain = tuple(causes(cause))
    if isinstance(cause, (ValueError, requests.exceptions.InvalidSchema, UnicodeError)):
        return InputError(f"{shown(url)}: is not a URL that can be downloaded")
    if any(isinstance(link, (ConnectionResetError, urllib3.exceptions.ProtocolError)) for link in chain):
        return broken_off(url, kind=UnreachableError, hint=hint)
    host = urlsplit(url).hostname or url
    return UnreachableError(f"{shown(url)}: {_reason(host, cause, chain, connect_timeout)}", hint=hint)


def _reason(host: str, cause: Exception, chain: tuple[BaseException, ...], connect_timeout: float) -> str:
    if isinstance(cause, requests.exceptions.ProxyError):
        return f"the proxy does not let it through ({_first_line(chain[-1])})"
    if isinstance(cause, requests.exceptions.SSLError):
        return f"no secure connection to {host} ({_first_line(chain[-1])})"
    if isinstance(cause, requests.exceptions.ConnectTimeout):
        return f"{host} does not answer within {connect_timeout:g} s"
    if any(isinstance(link, socket.gaierror) for link in chain):
        return f"the name {host} is unknown"
    if any(isinstance(link, ConnectionRefusedError) for link in chain):
        return f"{host} refuses the connection"
    return f"{host} cannot be reached ({_first_line(chain[-1])})"


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what caused it, outermost first, through the wrappings of requests and urllib3."""
    link: BaseException | None = error
    for _ in range(20):  # causes can be circular
        if link is None:
            return
        yield link
        inner = [value for value in (*link.args, getattr(link, "reason", None)) if isinstance(value, BaseException)]
        link = inner[0] if inner else link.__cause__ or link.__context__


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
