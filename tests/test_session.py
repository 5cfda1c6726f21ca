"""The session of a download: it can be cut by another thread, follows no redirect, and reads short pages only."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import urllib3

from fixtures.server import Fault, serve
from imgkit.fetch.session import Session, discard


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(2)
        theirs.settimeout(2)
        yield ours, theirs


def test_a_cut_ends_the_connections_that_there_are(pair: tuple[socket.socket, socket.socket]) -> None:
    session = Session()
    session._register(pair[0])
    before = session.is_cut
    pair[0].sendall(b"x")
    session.cut()
    assert (before, session.is_cut) == (False, True)
    assert (pair[1].recv(9), pair[1].recv(9), pair[0].recv(9)) == (b"x", b"", b"")


def test_a_cut_ends_connections_that_are_made_later(pair: tuple[socket.socket, socket.socket]) -> None:
    session = Session()
    session.cut()
    session._register(pair[0])
    assert pair[1].recv(9) == b""


def test_a_connection_that_was_closed_meanwhile_is_no_fault(pair: tuple[socket.socket, socket.socket]) -> None:
    session = Session()
    session._register(pair[0])
    pair[0].close()
    session.cut()
    assert session.is_cut


@pytest.mark.parametrize(
    ("status", "location", "expected"),
    [
        (302, "/b?c#d", "http://mirror/b?c#d"),
        (301, "http://other/x y", "http://other/x%20y"),
        (307, "b", "http://mirror/folder/b"),
        (200, "/b", None),
        (302, None, None),
    ],
)
def test_where_a_redirect_leads(status: int, location: str | None, expected: str | None) -> None:
    response = requests.Response()
    response.status_code, response.url = status, "http://mirror/folder/a"
    if location is not None:
        response.headers["Location"] = location
    session = Session()
    assert session.location(response) == expected
    assert session.get_redirect_target(response) is None, "requests itself follows none"


class Page:
    """A response with a page of some length, which remembers what was done with it."""

    def __init__(self, headers: dict[str, str]) -> None:
        self.headers = headers
        self.read: list[int] = []
        self.closed = False
        self.raw = SimpleNamespace(read=self.read.append)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("headers", "read"),
    [
        ({"Content-Length": "0"}, [0]),
        ({"Content-Length": "5"}, [5]),
        ({"Content-Length": "65536"}, [65536]),
        ({"Content-Length": "65537"}, []),
        ({"Content-Length": "x"}, []),
        ({}, []),
    ],
)
def test_a_page_that_nobody_wants_is_read_if_it_is_short(headers: dict[str, str], read: list[int]) -> None:
    page: Any = Page(headers)
    discard(page)
    assert page.read == read
    assert page.closed


@pytest.mark.parametrize("proxied", [False, True])
def test_connections_are_made_within_their_own_time_and_can_be_cut(
    proxied: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    times: list[str] = []

    @contextmanager
    def connecting() -> Iterator[None]:
        times.append("begins")
        yield
        times.append("ends")

    (tmp_path / "file").write_bytes(b"content")
    with serve(tmp_path) as site, Session() as session:
        url = "http://mirror.invalid/file" if proxied else site.url + "file"
        if proxied:
            monkeypatch.setenv("http_proxy", site.url)
        session.connecting = connecting
        assert [session.get(url, timeout=5).content for _ in range(2)] == [b"content"] * 2
        assert times == ["begins", "ends"], "the second request uses the connection again"
        site.faults["/file"] = Fault(stall=0)
        (connection,) = session._sockets
        session.cut()
        assert connection.recv(1) == b""


def test_both_schemes_and_proxies_report_their_connections() -> None:
    with Session() as session:
        plain: Any = session.get_adapter("http://a/")
        secure: Any = session.get_adapter("https://a/")
        proxy = secure.proxy_manager_for("http://proxy:1")
        assert isinstance(proxy, urllib3.ProxyManager)
        for manager in (plain.poolmanager, secure.poolmanager, proxy):
            for scheme in ("http", "https"):
                assert manager.connection_from_host("a", 80, scheme).ConnectionCls.__module__ == "imgkit.fetch.session"
