"""Machines with a restricted network: how it is chosen, their card, and what a real guest reaches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from imgkit.errors import UsageError
from imgkit.vm import VM, BootSpec
from imgkit.vm.qemu.argv import VmSpec, arguments
from tests.images import Image
from tests.vmspecs import host_app

# ---- choosing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "allow", "message"),
    [
        ("wifi", (), "wifi: unknown network"),
        ("", (), ": unknown network"),
        ("user", ("a.example",), "--allow is for a restricted network"),
        ("none", ("a.example",), "--allow is for a restricted network"),
    ],
)
def test_choices_that_make_no_sense(network: Any, allow: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        BootSpec(None, network=network, allow=allow)
    assert caught.value.message == message
    assert "restricted" in str(caught.value.hint)


def test_the_card_has_the_link_and_nothing_else(tmp_path: Any) -> None:
    words = " ".join(arguments(VmSpec("amd64", None, tmp_path / "c", link=7)))
    assert "-netdev socket,id=net0,fd=7 -device virtio-net-pci,netdev=net0" in words
    assert "user" not in words.replace("no-user-config", "")
    for options in ({"network": False}, {"link": 7}):
        with pytest.raises(UsageError, match="always has the user network"):
            arguments(host_app(VmSpec("amd64", None, tmp_path / "c", **options)))


# ---- in a real guest -------------------------------------------------------------------------------------------------

LOOK = """
get() { wget -T 10 -q -O - "http://$1/" 2>/dev/null || echo "no $1"; }
get 10.0.2.2:ALLOWED; get 10.0.2.2:OTHER; get 127.0.0.1:ALLOWED; get 10.0.2.3:53; get 169.254.169.254:80
nslookup a.example | grep -c 198.18.0.1; nslookup b.example >/dev/null || echo "no b.example"
"""


@contextmanager
def two_services() -> Iterator[tuple[int, int]]:
    """Yield the ports of two web servers on the host's loopback device, which say where they are."""

    class Hello(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"hello from {self.connection.getsockname()[1]}\n".encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hello) as allowed, ThreadingHTTPServer(("127.0.0.1", 0), Hello) as other:
        for server in (allowed, other):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        yield allowed.server_address[1], other.server_address[1]
        for server in (allowed, other):
            server.shutdown()


def reached(vm: VM, allowed: int, other: int) -> list[str]:
    """Return what a guest says of both services, and of what else it tries."""
    script = LOOK.replace("ALLOWED", str(allowed)).replace("OTHER", str(other))
    return vm.run(script, timeout=200).text.splitlines()


@pytest.mark.vm
def test_a_guest_reaches_what_was_named(image: Image) -> None:
    """That the attack works in the user network is in tests/test_image.py."""
    with two_services() as (allowed, other):
        options: dict[str, Any] = {"arch": "amd64", "accelerator": "tcg", "cpus": 1, "timeout": 400}
        allow = [f"127.0.0.1:{allowed}", "a.example:443"]
        with VM.boot(image.disk, network="restricted", allow=allow, **options) as vm:
            lines = reached(vm, allowed, other)
    assert lines[0] == f"hello from {allowed}"
    refused = [f"10.0.2.2:{other}", f"127.0.0.1:{allowed}", "10.0.2.3:53", "169.254.169.254:80"]
    assert lines[1:] == [*(f"no {each}" for each in refused), "1", "no b.example"]
