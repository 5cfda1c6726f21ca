"""Restricted networks with connections to services of the host, from a guest that is played here."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address
from typing import Any

import pytest

from imgkit.vm.net import packets, restricted
from imgkit.vm.net.allowlist import GUEST, parse
from imgkit.vm.net.packets import ACK, FIN, RST, SYN, TcpSegment
from tests.guestframes import ask, datagram, syn


class Guest:
    """QEMU's end of the link."""

    def __init__(self, descriptor: int) -> None:
        self.link = socket.socket(fileno=socket.dup(descriptor))
        self.link.settimeout(10)

    def send(self, *frames: bytes) -> None:
        self.link.sendall(b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames))

    def frame(self) -> bytes:
        return self.exactly(int.from_bytes(self.exactly(4), "big"))

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.link.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def segment(self) -> TcpSegment:
        found = packets.datagram(self.frame())
        assert found is not None
        segment = packets.tcp(found.payload)
        assert segment is not None
        return segment

    def say(self, to: TcpSegment, target: str, data: bytes = b"", flags: int = ACK, seq: int = 8) -> None:
        """Answer a segment."""
        own = TcpSegment(to.target, to.source, seq, to.seq + bool(to.flags & SYN) + len(to.data), flags, 60000, data)
        self.send(datagram(packets.tcp_packet(GUEST, IPv4Address(target), own)))


@contextmanager
def networked_guest(*words: str) -> Iterator[Guest]:
    with restricted.network(parse(words)) as descriptor:
        guest = Guest(descriptor)
        try:
            yield guest
        finally:
            guest.link.close()


@pytest.fixture
def service() -> Iterator[socket.socket]:
    """Yield a service on the host's loopback device."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        yield server


def test_a_connection_from_end_to_end(service: socket.socket) -> None:
    port = service.getsockname()[1]
    with networked_guest(f"127.0.0.1:{port}") as guest:
        guest.send(syn("10.0.2.2", port))
        hello = guest.segment()
        assert hello.flags == SYN | ACK
        guest.say(hello, "10.0.2.2", b"ping")
        with service.accept()[0] as peer:
            assert peer.recv(10) == b"ping"
            assert guest.segment().ack == 12
            peer.sendall(b"pong")
            answer = guest.segment()
            assert answer.data == b"pong"
            guest.say(answer, "10.0.2.2", flags=ACK | FIN, seq=12)
            assert peer.recv(10) == b""
        guest.segment()
        assert guest.segment().flags == FIN | ACK


def test_the_hosts_own_refusal_is_passed_on(service: socket.socket) -> None:
    port = service.getsockname()[1]
    service.close()
    with networked_guest(f"127.0.0.1:{port}") as guest:
        guest.send(syn("10.0.2.2", port))
        assert guest.segment().flags == RST | ACK


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["::1"], ["10.9.8.7", "169.254.169.254"], ["::ffff:127.0.0.1"]])
def test_a_name_that_leads_to_the_host(
    addresses: list[str],
    service: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """This is DNS rebinding: the owner of a name lets it resolve to a service of the host."""
    port = service.getsockname()[1]
    resolve(monkeypatch, addresses)
    with networked_guest(f"evil.example:{port}") as guest:
        guest.send(ask("evil.example"))
        guest.frame()
        guest.send(syn("198.18.0.1", port))
        assert guest.segment().flags == RST | ACK
    service.setblocking(False)
    with pytest.raises(BlockingIOError):
        service.accept()
    assert "leads to " + addresses[0][:6] in caplog.text


def resolve(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> list[str]:
    """Let every name have these addresses; the list has each name that was looked up."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def look(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if not str(host).endswith(".example"):
            return real(host, port, *arguments, **options)
        asked.append(str(host))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look)
    return asked


def test_what_was_checked_is_what_is_connected_to(service: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look-up for one connection: a second one could be answered differently."""
    asked = resolve(monkeypatch, ["127.0.0.1"])
    monkeypatch.setattr(restricted, "is_public", lambda _: True)
    monkeypatch.setattr(restricted, "is_own", lambda _: False)
    port = service.getsockname()[1]
    with networked_guest(f"a.example:{port}") as guest:
        guest.send(ask("a.example"))
        guest.frame()
        assert asked == [], "the guest's questions do not leave the host"
        guest.send(syn("198.18.0.1", port))
        assert guest.segment().flags == SYN | ACK
    assert asked == ["a.example"]


def test_an_address_of_the_host_that_looks_like_any_other(
    service: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, ["127.0.0.1"])
    monkeypatch.setattr(restricted, "is_public", lambda _: True)
    port = service.getsockname()[1]
    with networked_guest(f"a.example:{port}") as guest:
        guest.send(ask("a.example"))
        guest.frame()
        guest.send(syn("198.18.0.1", port))
        assert guest.segment().flags == RST | ACK


def test_a_flood_of_connections(service: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restricted, "MAX_CONNECTIONS", 10)
    service.listen(100)
    port = service.getsockname()[1]
    before = threading.active_count()
    with networked_guest(f"127.0.0.1:{port}") as guest:
        guest.send(*(syn("10.0.2.2", port, source) for source in range(1000, 1100)))
        flags = [guest.segment().flags for _ in range(100)]
        assert flags.count(SYN | ACK) == 10
        assert flags.count(RST | ACK) == 90
        assert threading.active_count() < before + 15


def test_the_network_never_keeps_the_program() -> None:
    """A resolver or a host may not answer for a long time. QEMU's end is closed with the block."""
    with restricted.network(parse([])) as descriptor:
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "restricted network")
        assert thread.daemon
        assert stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    assert not thread.is_alive()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_everything_ends_with_the_block(service: socket.socket) -> None:
    port = service.getsockname()[1]
    before = threading.active_count()
    with networked_guest(f"127.0.0.1:{port}") as guest:
        guest.send(syn("10.0.2.2", port))
        guest.segment()
        peer = service.accept()[0]
    with peer, suppress(ConnectionResetError):
        peer.settimeout(5)
        assert peer.recv(1) == b""
    assert threading.active_count() == before


def test_a_name_server_that_does_not_answer_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: done.wait(20) and [])
    began = time.monotonic()
    with networked_guest("a.example:80") as guest:
        guest.send(ask("a.example"))
        guest.frame()
        guest.send(*(syn("198.18.0.1", 80, source) for source in range(1000, 1050)))
        time.sleep(0.2)
        assert sum(thread.name == "look up a name" for thread in threading.enumerate()) <= 8
    assert time.monotonic() - began < 4
    done.set()


def test_a_frame_that_no_qemu_sends_ends_the_link() -> None:
    with networked_guest() as guest:
        guest.link.sendall(b"\xff\xff\xff\xff")
        assert guest.link.recv(1) == b""


def test_big_transfers_both_ways(service: socket.socket) -> None:
    """More than fits into any buffer, to a host and a guest that are both slow to take it."""
    port = service.getsockname()[1]
    text = bytes(range(256)) * 8000
    with networked_guest(f"127.0.0.1:{port}") as guest:
        guest.send(syn("10.0.2.2", port))
        hello = guest.segment()
        guest.say(hello, "10.0.2.2")
        with service.accept()[0] as peer:
            threading.Thread(target=peer.sendall, args=(text,), daemon=True).start()
            got = b""
            while len(got) < len(text):
                segment = guest.segment()
                assert segment.seq == (hello.seq + 1 + len(got)) % (1 << 32)
                got += segment.data
                guest.say(segment, "10.0.2.2")
            assert got == text
