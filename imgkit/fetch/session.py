"""A session of ``requests`` whose connections another thread can cut, and that leaves redirects to its caller.

``requests`` reads the page that comes with a redirect to its end, and into memory, before it follows the redirect. A
page without end would take all the time and memory there is.
"""

from __future__ import annotations

import socket
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from urllib.parse import urljoin

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import requote_uri
from urllib3.connection import HTTPConnection, HTTPSConnection

from imgkit.fetch.checks import declared_length

_SHORT_PAGE = 1 << 16  # bytes of a redirect's page that are read, so that the connection can be used again


class Session(requests.Session):
    """One download at a time. After :meth:`cut`, every connection that it has or makes is closed at once."""

    def __init__(self) -> None:
        super().__init__()
        self.is_cut = False
        self._lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.connecting: Callable[[], AbstractContextManager[None]] = nullcontext  # entered around each connection
        adapter = _Adapter(self._note, self._connecting)
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002 - its name is part of the interface
        """Tell ``requests`` that there is nowhere to go, whatever came; see :meth:`location`."""
        return None

    def location(self, response: requests.Response) -> str | None:
        """Where a redirect leads to, as an absolute URL; None for any other answer.

        Raises:
            ValueError: to nothing that is a URL.
        """
        target = super().get_redirect_target(response)
        return None if target is None else urljoin(response.url, requote_uri(target))

    def cut(self) -> None:
        """End whatever another thread is sending or receiving here: it sees the end of the stream, or an error."""
        with self._lock:
            self.is_cut = True
            for each in list(self._sockets):
                _shut(each)

    def _connecting(self) -> AbstractContextManager[None]:
        return self.connecting()

    def _note(self, opened: socket.socket) -> None:
        with self._lock:
            self._sockets.add(opened)
            if self.is_cut:
                _shut(opened)


def discard(response: requests.Response) -> None:
    """Close a response without its body. A short page is read first, which leaves the connection usable."""
    with response:
        length = declared_length(response.headers)
        if length is not None and length <= _SHORT_PAGE:
            response.raw.read(length)


def _shut(opened: socket.socket) -> None:
    try:
        socket.socket.shutdown(opened, socket.SHUT_RDWR)  # not that of TLS, which would change what the reader uses
    except OSError:
        return  # it was closed meanwhile


class _Adapter(HTTPAdapter):
    """Connections, to servers and to proxies, that report their sockets to ``note``."""

    def __init__(
        self, note: Callable[[socket.socket], None], connecting: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._pools = _pools(note, connecting)
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **options: Any) -> urllib3.ProxyManager:
        manager: urllib3.ProxyManager = super().proxy_manager_for(proxy, **options)
        if type(manager) is urllib3.ProxyManager:  # one for SOCKS has connections of its own
            manager.pool_classes_by_scheme = self._pools
        return manager


def _pools(
    note: Callable[[socket.socket], None], connecting: Callable[[], AbstractContextManager[None]]
) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            with connecting():
                return super()._new_conn()

        def connect(self) -> None:
            super().connect()
            note(self.sock)

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            with connecting():
                return super()._new_conn()

        def connect(self) -> None:
            super().connect()
            note(self.sock)

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}
