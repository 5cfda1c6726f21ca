"""The client of QEMU's control protocol, against a peer on a socket pair."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from imgkit.vm.qemu import qmp
from imgkit.vm.qemu.qmp import Qmp, QmpError

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\n'
DONE = b'{"return": {}}\n'


@pytest.fixture
def pair() -> Iterator[tuple[Qmp, socket.socket]]:
    """Yield a client, and the other end of its connection."""
    near, far = socket.socketpair()
    client = Qmp(near)
    yield client, far
    client.close()
    far.close()


def commands(peer: socket.socket) -> list[Any]:
    """Return what the client has sent since the last look."""
    peer.setblocking(False)
    lines = peer.recv(1 << 16).splitlines()
    peer.setblocking(True)
    return [json.loads(line) for line in lines]


def test_a_command_after_the_greeting_and_its_answer(pair: tuple[Qmp, socket.socket]) -> None:
    client, peer = pair
    peer.sendall(GREETING + DONE + b'{"event": "RESUME"}\n{"return": {"status": "running"}}\n')
    assert client.execute("query-status") == {"status": "running"}
    assert commands(peer) == [{"execute": "qmp_capabilities"}, {"execute": "query-status"}]
    peer.sendall(b'{"return": 7}\n')
    assert client.execute("frob", size=3) == 7
    assert commands(peer) == [{"execute": "frob", "arguments": {"size": 3}}], "it is greeted once only"


def test_a_refusal_names_the_command(pair: tuple[Qmp, socket.socket]) -> None:
    client, peer = pair
    peer.sendall(GREETING + DONE + b'{"error": {"desc": "not now"}}\n')
    with pytest.raises(QmpError, match=r"^frob: \{'desc': 'not now'\}$"):
        client.execute("frob")


@pytest.mark.parametrize(
    ("answer", "message"),
    [(b"nonsense\n", "answer is not JSON"), (b"[1]\n", "answer is no object"), (b"\xff\n", "answer is not JSON")],
)
def test_what_is_not_qmp(pair: tuple[Qmp, socket.socket], answer: bytes, message: str) -> None:
    client, peer = pair
    peer.sendall(answer)
    with pytest.raises(QmpError, match=f"^{message}$"):
        client.execute("query-status")


def test_silence_ends_after_the_timeout(pair: tuple[Qmp, socket.socket]) -> None:
    client, peer = pair
    peer.sendall(GREETING[:-1])
    begun = time.monotonic()
    with pytest.raises(QmpError, match=r"^timed out$"):
        client.execute("query-status", timeout=0.2)
    assert 0.15 < time.monotonic() - begun < 4


def test_a_timeout_that_is_over_takes_no_time(pair: tuple[Qmp, socket.socket]) -> None:
    begun = time.monotonic()
    with pytest.raises(QmpError, match=r"^timed out$"):
        pair[0].execute("query-status", timeout=-1)
    assert time.monotonic() - begun < 4


def test_the_greeting_may_come_in_pieces(pair: tuple[Qmp, socket.socket]) -> None:
    client, peer = pair
    peer.sendall(GREETING[:10])
    rest = threading.Timer(0.1, peer.sendall, [GREETING[10:] + DONE + DONE])
    rest.start()
    assert client.execute("stop") == {}
    rest.join()


def test_a_connection_that_is_closed(pair: tuple[Qmp, socket.socket]) -> None:
    client, peer = pair
    peer.sendall(GREETING + DONE)
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(QmpError, match=r"^connection closed$"):
        client.execute("query-status")
    peer.close()
    with pytest.raises(QmpError, match=r"^system_powerdown: .*Broken pipe"):
        client.execute("system_powerdown")


def test_an_answer_has_a_limit(pair: tuple[Qmp, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "_LIMIT", 100)
    client, peer = pair
    peer.sendall(b"x" * 100)
    with pytest.raises(QmpError, match=r"^timed out$"):
        client.execute("query-status", timeout=0.2)
    peer.sendall(b"x")
    with pytest.raises(QmpError, match=r"^timed out$"):
        client.execute("query-status", timeout=0.2)
    peer.sendall(b"x")
    with pytest.raises(QmpError, match=r"^answer too long$"):
        client.execute("query-status", timeout=5)


def test_a_peer_that_does_not_read_is_given_up(pair: tuple[Qmp, socket.socket]) -> None:
    client, peer = pair
    peer.sendall(GREETING + DONE + DONE)
    client.execute("query-status")
    client._socket.setblocking(False)
    with suppress(BlockingIOError):
        while client._socket.send(b" " * (1 << 16)):
            pass  # until nothing more fits
    with pytest.raises(QmpError, match=r"^frob: timed out$"):
        client.execute("frob", timeout=0.2)
