"""Ports of the host that lead to the guest: how they are named, what is refused, and which port is chosen."""

from __future__ import annotations

import errno
import socket
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.cli.main import main
from imgkit.cli.options import machineoptions
from imgkit.errors import HostError, UsageError
from imgkit.vm.bootspec import BootSpec
from imgkit.vm.qemu import argv, portforward
from imgkit.vm.qemu.argv import Disk, VmSpec
from imgkit.vm.qemu.portforward import LOOPBACK, PortForward, check, parse, usable

ANY = IPv4Address("0.0.0.0")
PORTS = st.integers(1, 65535)


@pytest.mark.parametrize(
    ("word", "forward"),
    [
        ("8080:80", PortForward(8080, 80)),
        ("0:80", PortForward(0, 80)),
        ("8080:80/tcp", PortForward(8080, 80)),
        ("8080:53/udp", PortForward(8080, 53, protocol="udp")),
        ("0.0.0.0:65535:65535", PortForward(65535, 65535, ANY)),
        ("192.0.2.7:1:1/udp", PortForward(1, 1, IPv4Address("192.0.2.7"), "udp")),
    ],
)
def test_forms(word: str, forward: PortForward) -> None:
    assert parse(word) == forward


@given(PORTS, PORTS, st.sampled_from(["tcp", "udp"]), st.ip_addresses(v=4))
def test_what_is_printed_is_read_as_the_same(host: int, guest: int, protocol: str, address: IPv4Address) -> None:
    forward = PortForward(host, guest, address, protocol)
    assert parse(str(forward)) == forward


@pytest.mark.parametrize(
    ("word", "message", "hint"),
    [
        ("8080", "not of the form [ADDRESS:]HOST:GUEST[/udp]", "8080:80, 0.0.0.0:8080:80, or 0:80 for a free port"),
        (":80", "not of the form", ""),
        ("-1:80", "not of the form", ""),
        ("a:b", "not of the form", ""),
        ("80 :80", "not of the form", ""),
        ("8080:80/", "not of the form", ""),
        ("::1:8080:80", "not of the form", ""),
        ("8080:80/sctp", "sctp: unknown protocol", "known are tcp and udp"),
        ("65536:80", "not a port", "ports are 1 to 65535; 0 for HOST is a free one"),
        ("8080:65536", "not a port", ""),
        ("8080:0", "not a port", ""),
        ("localhost:8080:80", "localhost: not an address", "names are not looked up"),
        ("127.1:8080:80", "127.1: not an address", ""),
        ("[::1]:8080:80", "QEMU's user network accepts connections over IPv4 only", "0.0.0.0 for every IPv4 address"),
        ("[127.0.0.1]:8080:80", "QEMU's user network accepts connections over IPv4 only", ""),
        ("[x]:8080:80", "[x]: not an address", ""),
    ],
)
def test_what_is_no_port(word: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(word)
    assert caught.value.message.startswith(f"--publish {word}: {message}")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("words", "network", "message"),
    [
        (["8080:80"], "none", "--publish 8080:80: the machine has no network"),
        (["8080:80"], "restricted", "--publish 8080:80: a restricted network takes no connections"),
        (["8080:80", "8080:81"], "user", "--publish 8080:81: port 8080 of the host is published twice"),
        (["8080:80", "0.0.0.0:8080:81"], "user", "--publish 0.0.0.0:8080:81: port 8080 of the host is published twice"),
    ],
)
def test_what_cannot_be_together(words: list[str], network: Any, message: str) -> None:
    for refuse in (lambda: check(words, network), lambda: BootSpec(None, network=network, publish=words)):
        with pytest.raises(UsageError) as caught:
            refuse()
        assert caught.value.message == message


def test_what_can_be_together() -> None:
    words = ["8080:80", "8080:80/udp", "127.0.0.2:8080:80", "0:1", "0:1"]
    assert [str(forward) for forward in check(words, "user")][:2] == ["127.0.0.1:8080:80", "127.0.0.1:8080:80/udp"]
    assert check([], "none") == ()


# ---- ports of this host ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("protocol", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)])
def test_a_port_that_is_used(protocol: str, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            other.listen()
        port = other.getsockname()[1]
        forward = PortForward(port, 80, protocol=protocol)
        with pytest.raises(HostError) as caught:
            usable([forward])
        assert caught.value.message == f"--publish {forward}: the port is in use by another program of this host"
        assert caught.value.hint == "another port, or 0 for a free one"
    assert usable([forward]) == (forward,), "the check gives the port back"


def test_free_ports_keep_their_order_and_differ() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    chosen = usable(
        [PortForward(0, 1), PortForward(port, 2), PortForward(0, 3, protocol="udp"), PortForward(0, 4, ANY)]
    )
    assert [forward.guest for forward in chosen] == [1, 2, 3, 4]
    assert chosen[1].host == port
    assert all(forward.host > 0 for forward in chosen)
    assert len({forward.host for forward in chosen if forward.protocol == "tcp"}) == 3


def test_a_free_port_is_none_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = iter([5000, 5000, 5001])
    monkeypatch.setattr(portforward, "_bind", lambda forward: forward.host or next(ports))
    chosen = usable([PortForward(0, 1), PortForward(0, 2)])
    assert [forward.host for forward in chosen] == [5000, 5001]
    monkeypatch.setattr(portforward, "_bind", lambda forward: forward.host or 5000)
    with pytest.raises(HostError, match=r"--publish 127\.0\.0\.1:0:2: no free port was found on this host"):
        usable([PortForward(0, 1), PortForward(0, 2)])


@pytest.mark.parametrize(
    ("first", "host", "hint"),
    [("1024", 80, "a port from 1024 on, such as 8080"), ("2000", 1999, "a port from 2000 on, such as 2000")],
)
def test_ports_for_root_only(first: str, host: int, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = tmp_path / "start"
    setting.write_text(f"{first}\n")
    monkeypatch.setattr(portforward, "_FIRST_FREE", setting)
    with pytest.raises(HostError) as caught:
        usable([PortForward(host, 80)])
    reason = f"ports below {first} are only for root, and QEMU is not root"
    assert (caught.value.message, caught.value.hint) == (f"--publish 127.0.0.1:{host}:80: {reason}", hint)
    monkeypatch.setattr(portforward, "_bind", lambda forward: forward.host)
    assert usable([PortForward(int(first), 80)])[0].host == int(first)
    setting.unlink()  # a system without the setting
    assert usable([PortForward(host, 80)])[0].host == host


def test_an_address_of_another_host() -> None:
    with pytest.raises(HostError, match=r"--publish 192\.0\.2\.7:0:80: this host does not have that address") as caught:
        usable([PortForward(0, 80, IPv4Address("192.0.2.7"))])
    assert caught.value.hint is None


def test_other_reasons_are_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(_socket: object, _address: object) -> None:
        raise OSError(errno.ENOBUFS, "No buffer space available")

    monkeypatch.setattr(socket.socket, "bind", bind)
    with pytest.raises(HostError, match="No buffer space available"):
        usable([PortForward(0, 80)])


# ---- QEMU and the command line -----------------------------------------------------------------------------------


def test_what_qemu_is_told() -> None:
    forwards = (PortForward(8080, 80), PortForward(5353, 53, ANY, "udp"))
    words = argv.arguments(VmSpec("amd64", Disk(Path("/x")), Path("/c"), forwards=forwards))
    expected = "user,id=net0,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=udp:0.0.0.0:5353-:53"
    assert words[words.index("-netdev") + 1] == expected
    plain = argv.arguments(VmSpec("amd64", Disk(Path("/x")), Path("/c")))
    assert plain[plain.index("-netdev") + 1] == "user,id=net0"


@pytest.mark.parametrize("network", ["none", "restricted"])
@pytest.mark.parametrize("command", ["boot", "run"])
def test_the_command_line_refuses_before_the_boot(
    command: str, network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machineoptions, "VM", None)
    (tmp_path / "x.raw").touch()
    tail = ["--", "true"] if command == "run" else []
    words = [command, str(tmp_path / "x.raw"), "--publish", "8080:80", "--network", network, *tail]
    assert main(words) == 2
    assert capsys.readouterr().err.splitlines()[1] == "hint: --network user"
    assert IPv4Address("127.0.0.1") == LOOPBACK
