"""Requests and answers, as values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from imgkit.fetch.checks import shown

MAX_PAGE = 1 << 16
"""Bytes that are read of an answer that is not expected to be longer, such as an error."""


class BodySink(Protocol):
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
    sink: BodySink | None = None
    patience: float | None = None

    @property
    def place(self) -> str:
        """The URL for messages."""
        return place_of(self.url)


@dataclass(frozen=True)
class Answer:
    """The answer to a request: its status, its headers (in any case), its body, and the URL at the end of redirects."""

    status: int
    headers: Mapping[str, str]
    data: bytes
    url: str


def place_of(url: str) -> str:
    """Return a URL for a message: without user, password and query, which may be for who has the URL only."""
    return shown(url).partition("?")[0][:200]
