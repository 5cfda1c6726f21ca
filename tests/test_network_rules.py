"""What ``--allow`` means, and to which addresses a name may lead."""

from __future__ import annotations

import socket
import subprocess
import sys
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.errors import UsageError
from imgkit.vm.net.allowlist import GATEWAY, is_public, parse
from imgkit.vm.net.hostaddresses import is_own
from tests.conftest import need, need_program


@pytest.mark.parametrize(
    ("word", "name", "port", "allowed"),
    [
        ("a.example:443", "a.example", 443, True),
        ("a.example", "a.example", 443, True),
        ("A.Example.:80", "a.eXample.", 80, True),
        ("a.example:443", "a.example", 444, False),
        ("a.example:443", "b.a.example", 443, False),
        ("a.example:443", "xa.example", 443, False),
        ("a.example:443", "a.example.evil", 443, False),
        ("*.a.example:443", "b.a.example", 443, True),
        ("*.a.example:443", "c.b.A.example", 443, True),
        ("*.a.example:443", "a.example", 443, False),
        ("*.a.example:443", ".a.example", 443, False),
        ("*.a.example:443", "xa.example", 443, False),
        ("*.a.example:443", "b.a.example", 80, False),
        ("bücher.example:443", "xn--bcher-kva.example", 443, True),
        ("intranet:80", "intranet", 80, True),
    ],
)
def test_names(word: str, name: str, port: int, allowed: bool) -> None:
    rules = parse([word])
    assert rules.allows(name, port) is allowed
    assert rules.contains(name) or not allowed


def test_addresses() -> None:
    rules = parse(["192.0.2.7:8080", "127.0.0.1:9000"])
    assert rules.host_address(IPv4Address("192.0.2.7"), 8080) == IPv4Address("192.0.2.7")
    assert rules.host_address(IPv4Address("192.0.2.7"), 80) is None
    assert rules.host_address(IPv4Address("192.0.2.8"), 8080) is None
    assert rules.host_address(GATEWAY, 9000) == IPv4Address("127.0.0.1"), "as QEMU's user network has it"
    assert rules.host_address(GATEWAY, 8080) is None
    assert rules.host_address(IPv4Address("127.0.0.1"), 9000) is None, "the guest's own"
    assert not rules.contains("192.0.2.7")


@pytest.mark.parametrize(
    "word",
    [
        "",
        ":443",
        "a.example:",
        "a.example:0",
        "a.example:65536",
        "a.example:+80",
        "a.example:8 0",
        "a.example:８０",
        "a.example:80:80",
        "https://a.example",
        "a.example/path",
        "user@a.example",
        "a b.example",
        "a.example\n",
        "a..example",
        "-a.example",
        "a\x1b.example",
        "x" * 64 + ".example",
        "x." * 127 + "example",
        "*",
        "*:443",
        "*.com",
        "a.*.example",
        "*.*.example",
        "*a.example",
        "[::1]:443",
        "::1",
        "localhost:80",
        "LOCALHOST.:80",
        "a.localhost",
        "10.0.2.2:80",
        "10.0.2.15:80",
        "0.0.0.0:80",
        "224.0.0.1:80",
        "240.0.0.0:80",
        "255.255.255.255:80",
        "2130706433:80",
        "0x7f.1:80",
        "0x7f000001:80",
        "127.1:80",
        "0177.0.0.1:80",
        "127.0.0.1.:80",
        "127.0.0.2:80",
        "1.2.3.4.5:80",
        "a.example.1:80",
    ],
)
def test_what_is_no_rule(word: str) -> None:
    with pytest.raises(UsageError, match="--allow"):
        parse([word])


@pytest.mark.parametrize(
    ("word", "message", "hint"),
    [
        ("https://a.example", "a host, not a URL", "--allow a.example:443"),
        ("http://a.example/path", "a host, not a URL", "--allow a.example:80"),
        ("https://a.example:8443/", "a host, not a URL", "--allow a.example:8443"),
        ("https://user@a.example", "a host, not a URL", "--allow HOST:PORT"),
        ("a.example:80,b.example", "one host only", "one --allow for each"),
        ("[::1]:443", "the guest's network has IPv4 only", "name the host instead"),
        ("127.0.0.2:80", "only one of the host's loopback addresses can be allowed", "--allow 127.0.0.1:PORT"),
        ("a.example:http", "not of the form HOST:PORT", "a port is a number"),
    ],
)
def test_what_to_write_instead(word: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse([word])
    assert raised.value.message == f"--allow {word}: {message}"
    assert str(raised.value.hint).startswith(hint)


@given(st.text())
def test_parsing_ends_in_rules_or_a_usage_error(word: str) -> None:
    try:
        rules = parse([word])
    except UsageError:
        return
    for address, _ in rules.addresses:
        assert address not in (GATEWAY, IPv4Address(0))


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fec0::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "::7f00:1",
        "64:ff9b:1::a00:1",
        "2001:0:7f00:1::",
        "2002:7f00:1::",
        "2002:a00:1::",
    ],
)
def test_no_name_leads_to(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("text", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_a_name_may_lead_to(text: str) -> None:
    assert is_public(ip_address(text))


def test_the_hosts_own_addresses() -> None:
    for text in ("127.0.0.1", "127.8.8.8", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"):
        assert is_own(ip_address(text)), text
    for text in ("1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1"):
        assert not is_own(ip_address(text)), text


class Host:
    """Stands in for the sockets of a host with two addresses of each version."""

    own = frozenset({"10.9.8.5", "10.9.8.6", "fd77::5", "fd77::6"})

    def __init__(self, nonlocal_bind: bool) -> None:
        self.nonlocal_bind = nonlocal_bind
        self.open = 0

    def socket(self, family: int, kind: int) -> Datagrams:
        assert kind == socket.SOCK_DGRAM
        return Datagrams(self, 4 if family == socket.AF_INET else 6)


class Datagrams:
    """A socket of such a host, whose source is its first address of a version unless it is bound to another."""

    def __init__(self, host: Host, version: int) -> None:
        self.host, self.version = host, version
        self.source: str | None = None

    def __enter__(self) -> Datagrams:
        self.host.open += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.host.open -= 1

    def bind(self, name: tuple[str, int]) -> None:
        address, port = name
        assert (ip_address(address).version, port) == (self.version, 0)
        if address not in self.host.own and not self.host.nonlocal_bind:
            raise OSError("cannot assign requested address")
        self.source = address

    def connect(self, name: tuple[str, int]) -> None:
        address, port = name
        assert ip_address(address).version == self.version
        assert 0 < port < 1 << 16
        if self.source is not None and self.source not in self.host.own:
            raise OSError("network is unreachable")
        if self.source is None:
            self.source = address if address in self.host.own else {4: "10.9.8.5", 6: "fd77::5"}[self.version]

    def getsockname(self) -> tuple[str, int]:
        assert self.source is not None
        return self.source, 4711


@pytest.mark.parametrize("nonlocal_bind", [False, True])
@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("10.9.8.5", True),
        ("10.9.8.6", True),
        ("fd77::5", True),
        ("fd77::6", True),
        ("::ffff:10.9.8.6", True),
        ("10.9.8.7", False),
        ("fd77::7", False),
        ("::ffff:10.9.8.7", False),
    ],
)
def test_an_address_is_the_hosts_if_a_socket_can_have_it(
    text: str, own: bool, nonlocal_bind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(nonlocal_bind)
    monkeypatch.setattr(socket, "socket", host.socket)
    assert is_own(ip_address(text)) is own
    assert host.open == 0


_NETWORK = """
set -e
ip link set lo up
ip link add card type veth peer name other
ip link set other up
ip link set card up
ip addr add 10.9.8.5/24 dev card
ip addr add 10.9.8.6/24 dev card
ip -6 addr add fd77::5/64 dev card nodad
ip -6 addr add fd77::6/64 dev card nodad
ip route add default via 10.9.8.1
ip -6 route add default via fd77::1
for version in 4 6; do echo "$1" > /proc/sys/net/ipv$version/ip_nonlocal_bind; done
shift
exec "$@"
"""


@pytest.mark.slow
@pytest.mark.parametrize("nonlocal_bind", ["0", "1"])
def test_the_hosts_own_addresses_where_sockets_can_be_bound_to_any(nonlocal_bind: str) -> None:
    """Two addresses of one network each: the second of IPv4's is never the source of anything by itself."""
    need_program("unshare")
    need_program("ip")
    script = "import sys; from ipaddress import ip_address; from imgkit.vm.net.hostaddresses import is_own; "
    script += "print(*(is_own(ip_address(text)) for text in sys.argv[1:]))"
    addresses = ["10.9.8.5", "10.9.8.6", "fd77::5", "fd77::6", "::ffff:10.9.8.6", "10.9.8.7", "1.1.1.1", "fd77::7"]
    addresses += ["2606:4700::1111", "::ffff:1.1.1.1"]
    command = ["unshare", "-rn", "sh", "-c", _NETWORK, "sh", nonlocal_bind, sys.executable, "-c", script, *addresses]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    need("a network namespace with a card of its own", ran.returncode == 0 or "Traceback" in ran.stderr)
    assert ran.stdout.split() == ["True"] * 5 + ["False"] * 5, ran.stderr
