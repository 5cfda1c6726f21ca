"""A session of ``requests`` whose connections another thread can cut, and that leaves redirects to its caller.

``requests`` follows a redirect only after it has read the page that came with it to its end, into memory. A page
without end would never finish and exhaust the memory.
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
    """A session for one download at a time. After :meth:`cut`, every connection that it has or makes is closed.

    Attributes:
        is_cut: whether :meth:`cut` was called.
        connecting: makes the context manager in which a connection is made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_cut = False
        self.connecting: Callable[[], AbstractContextManager[None]] = nullcontext
        self._lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        adapter = _Adapter(self._register, self._connecting)
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002 - the interface names it
        """Return None, so that ``requests`` follows no redirect; see :meth:`location`."""
        return None

    def location(self, response: requests.Response) -> str | None:
        """Return where a redirect leads to, as an absolute URL; None for any other response.

        Raises:
            ValueError: the ``Location`` header is not a URL.
        """
        target = super().get_redirect_target(response)
        return None if target is None else urljoin(response.url, requote_uri(target))

    def cut(self) -> None:
        """Shut down all connections. A thread that sends or receives sees the end of the stream, or an error."""
        with self._lock:
            self.is_cut = True
            for connection in list(self._sockets):
                _shut_down(connection)

    def _connecting(self) -> AbstractContextManager[None]:
        return self.connecting()

    def _register(self, connection: socket.socket) -> None:
        with self._lock:
            self._sockets.add(connection)
            if self.is_cut:
                _shut_down(connection)


def discard(response: requests.Response) -> None:
    """Close a response without its body. A short body is read first, which leaves the connection usable."""
    with response:
        length = declared_length(response.headers)
        if length is not None and length <= _SHORT_PAGE:
            response.raw.read(length)


def _shut_down(connection: socket.socket) -> None:
    try:
        # Not the method of a TLS socket, which would change what the reading thread uses.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
    except OSError:
        return  # it was closed meanwhile


class _Adapter(HTTPAdapter):
    """An adapter whose connections, to servers and to proxies, report their sockets.

    Args:
        register: called with the socket of each new connection.
        connecting: makes the context manager in which a connection is made.
    """

    def __init__(
        self, register: Callable[[socket.socket], None], connecting: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._pools = _pool_classes(register, connecting)
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Give the manager of connections to servers the pools that report; called by ``requests``."""
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **options: Any) -> urllib3.ProxyManager:
        """Return a manager of connections to a proxy whose pools report; called by ``requests``."""
        manager: urllib3.ProxyManager = super().proxy_manager_for(proxy, **options)
        if type(manager) is urllib3.ProxyManager:  # a manager for SOCKS has connections of its own
            manager.pool_classes_by_scheme = self._pools
        return manager


def _pool_classes(
    register: Callable[[socket.socket], None], connecting: Callable[[], AbstractContextManager[None]]
) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    """URL scheme → class of connection pools."""

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            with connecting():
                return super()._new_conn()

        def connect(self) -> None:
            super().connect()
            register(self.sock)

    class Secure(Plain, HTTPSConnection):
        pass

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}
