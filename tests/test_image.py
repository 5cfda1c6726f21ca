"""The image of recipes/core.py from inside: one machine is booted for all tests of this module."""

from __future__ import annotations

import hashlib
import random
import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgkit.recipe import load
from imgkit.vm.agent.protocol import Output
from tests import rootport
from tests.files import digest
from tests.images import RECIPE, ROOT, Image
from tests.rootport import RootedVM
from tests.test_network_guest import reached, two_services

pytestmark = pytest.mark.vm

PACKAGE = "curl"  # of the offline mirror, not in the image, with dependencies that are not there either
HELPER = {  # what the test image has beyond the recipe's own overlay
    "etc/init.d/imgkit-root",
    "etc/runlevels/default/imgkit-root",
    "usr/local/lib/imgkit-root-helper.js",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    folder.chmod(0o777)  # the guest's agent has a uid of its own
    return folder


@pytest.fixture(scope="module")
def guest(image: Image, work: Path) -> Iterator[RootedVM]:
    before = digest(image.disk)
    with rootport.booted(
        str(image.disk),
        arch="amd64",
        accelerator="tcg",
        cpus=1,
        shares={"work": work},
        publish=["0:8080", "0:8081/udp"],
    ) as vm:
        yield vm
    assert digest(image.disk) == before, "the image under test is never changed"


def lines(vm: RootedVM, command: str, status: int | None = 0, timeout: float = 90) -> list[str]:
    """Run ``command`` as root, and return the lines that it prints."""
    done = vm.root(command, timeout=timeout)
    assert status is None or done.status == status, (command, done)
    return done.text.splitlines()


# ---- how it came up ------------------------------------------------------------------------------------------------


def test_root_is_mounted_writable_by_uuid(guest: RootedVM, image: Image) -> None:
    root = next(part for part in image.manifest["disk"]["partitions"] if part["kind"] == "root")
    name = f"UUID={root['fsUuid']}"
    (mount,) = [line.split() for line in lines(guest, "cat /proc/mounts") if line.split()[1] == "/"]
    assert mount[2] == "ext4"
    assert "rw" in mount[3].split(",")
    (words,) = lines(guest, "cat /proc/cmdline")
    assert {f"root={name}", "no_timer_check", "tsc=unstable", "quiet"} <= set(words.split())
    assert [line.split()[:3] for line in lines(guest, "grep ext4 /etc/fstab")] == [[name, "/", "ext4"]]
    (found,) = lines(guest, f"blkid {mount[0]}") if mount[0].startswith("/dev/vd") else [""]
    assert root["fsUuid"] in found
    guest.root("touch /root/writable && sync")


def test_the_dependency_cache_is_what_openrc_itself_computes(guest: RootedVM) -> None:
    wait_for_services(guest)  # each reads the file that is made anew here
    cached = lines(guest, "cat /var/cache/rc/deptree /var/cache/rc/depconfig")
    assert len(cached) > 300
    assert lines(guest, "stat -c %Y /var/cache/rc/deptree") == lines(guest, "stat -c %Y /run/openrc/deptree"), "used"
    lines(guest, "rm /run/openrc/deptree /run/openrc/depconfig && rc-update -u")
    assert lines(guest, "cat /run/openrc/deptree /run/openrc/depconfig") == cached


def test_no_service_crashed_and_all_are_up(guest: RootedVM) -> None:
    wait_for_services(guest)
    assert lines(guest, "rc-status --crashed", status=None) == []
    assert lines(guest, "rc-status --servicelist", status=None), "rc-status does list things"


def wait_for_services(guest: RootedVM) -> None:
    """The agent answers before the last service is up."""
    deadline = time.monotonic() + 120
    while waiting := not_started(guest):
        assert time.monotonic() < deadline, waiting
        time.sleep(1)


def not_started(guest: RootedVM) -> list[str]:
    """Services of the recipe's runlevels, but the last, that OpenRC does not call started."""
    listed = "\n".join(lines(guest, "rc-status --all --nocolor", status=None))
    wanted = [
        name
        for level, names in load(RECIPE).services.items()
        if level in ("sysinit", "boot", "default")
        for name in names
    ]
    return [name for name in wanted if not re.search(rf"^ *{re.escape(name)} .*\[ *started\b", listed, re.MULTILINE)]


def test_the_heartbeat_says_what_it_must(guest: RootedVM, image: Image) -> None:
    beat = guest.wait_ready(60)
    assert beat.extra["image"] == "test"
    assert beat.extra["buildId"] == image.manifest["buildId"]
    assert beat.extra["protocolVersion"] == 3


def test_the_console_tells_of_the_boot(guest: RootedVM) -> None:
    assert {"firmware", "boot_loader", "init", "agent"} <= set(guest.stages())
    assert "OpenRC" in guest.console()
    assert "panic" not in guest.console()


# ---- apk -----------------------------------------------------------------------------------------------------------


def test_apk_lists_what_the_manifest_lists(guest: RootedVM, image: Image) -> None:
    stated = sorted(f"{one['name']}-{one['version']}" for one in image.manifest["packages"])
    assert sorted(lines(guest, "apk info -v 2>/dev/null")) == stated
    names = [one["name"] for one in image.manifest["packages"]]
    assert lines(guest, f"apk info -e {' '.join(names)}") == names
    assert lines(guest, "apk info -e no-such-package", status=1) == []
    assert sorted(lines(guest, "cat /etc/apk/world")) == sorted(image.manifest["world"])


def audit(vm: RootedVM) -> set[str]:
    return set(lines(vm, "apk audit --system"))


def test_apk_audit_finds_what_the_recipe_put_there_and_nothing_else(guest: RootedVM) -> None:
    """Letters as in apk-audit(8): A added, U changed, X deleted, m/M attributes, D/d directories that nobody owns."""
    own = {str(path.relative_to(ROOT / "overlay")) for path in (ROOT / "overlay").rglob("*") if not path.is_dir()}
    for line in audit(guest):
        letter, path = line.split(" ", 1)
        assert letter in "Ad+D" or path in own, line
        assert path in own | HELPER or made_by_imgkit(path) or made_while_running(path), line


def made_by_imgkit(path: str) -> bool:
    return bool(re.match(r"(boot|etc/(runlevels|imgkit-release|init\.d)|lib/modules|usr/local|opt/agent-runner)", path))


def made_while_running(path: str) -> bool:
    return path.startswith(("root/", "var/", "workspace"))


def test_the_database_is_consistent(guest: RootedVM) -> None:
    """Nothing is missing, nothing would be changed by making the installation what the world asks for."""
    said = lines(guest, "apk fix --simulate --no-network --repositories-file /dev/null 2>&1")
    assert said[-1].startswith("OK:"), said
    assert len(said) == 1, said


def wait_for_network(vm: RootedVM) -> None:
    deadline = time.monotonic() + 60
    while not any(line.startswith("default") for line in lines(vm, "ip route", status=None)):
        assert time.monotonic() < deadline, "no default route"
        time.sleep(1)


def test_packages_are_added_and_deleted(guest: RootedVM, mirror_url: str) -> None:
    """By the image's own apk, from the mirror on the host, with the keys that the image has."""
    wait_for_network(guest)
    before = audit(guest)
    port = mirror_url.rstrip("/").rpartition(":")[2]
    main = f"http://10.0.2.2:{port}/v3.23/main"
    apk = f"apk --repositories-file /dev/null --repository {main}"
    said = lines(guest, f"{apk} add {PACKAGE} 2>&1", timeout=180)
    assert any(f"Installing {PACKAGE} " in line for line in said), said
    assert said[-1].startswith("OK:"), said
    assert lines(guest, f"apk info -e {PACKAGE}") == [PACKAGE]
    assert PACKAGE in lines(guest, "cat /etc/apk/world")
    assert lines(guest, f"{PACKAGE} --version")[0].startswith(PACKAGE)
    fetched = f"cd /tmp && {apk} fetch --quiet {PACKAGE} && apk verify {PACKAGE}-*.apk"
    assert all("OK" in line for line in lines(guest, fetched, timeout=120))
    said = lines(guest, f"{apk} del {PACKAGE} 2>&1", timeout=120)
    assert any(f"Purging {PACKAGE} " in line for line in said), said
    assert lines(guest, f"apk info -e {PACKAGE}", status=1) == []
    assert PACKAGE not in lines(guest, "cat /etc/apk/world")
    assert audit(guest) == before


def test_apk_refuses_what_its_keys_do_not_vouch_for(guest: RootedVM, mirror_url: str) -> None:
    wait_for_network(guest)
    port = mirror_url.rstrip("/").rpartition(":")[2]
    main = f"http://10.0.2.2:{port}/v3.23/main"
    words = f"mkdir -p /tmp/nokeys && apk --keys-dir /tmp/nokeys --repositories-file /dev/null --repository {main}"
    said = lines(guest, f"{words} add {PACKAGE} 2>&1", status=None, timeout=120)
    assert any("UNTRUSTED" in line or "untrusted" in line for line in said), said
    assert lines(guest, f"apk info -e {PACKAGE}", status=1) == []


def test_the_user_network_opens_all_services_of_the_host(guest: RootedVM) -> None:
    """A restricted network does not: tests/test_network_guest.py."""
    with two_services() as (allowed, other):
        assert reached(guest, allowed, other)[:2] == [f"hello from {allowed}", f"hello from {other}"]


# ---- what the agent gets -------------------------------------------------------------------------------------------


def test_commands_run_as_the_agent(guest: RootedVM) -> None:
    done = guest.run("id -un; node --version; bash -c 'echo $BASH_VERSION'; echo to-stderr >&2; exit 3")
    user, node, bash = done.text.splitlines()
    assert user == "agent"
    assert node.startswith("v")
    assert bash.startswith("5.")
    assert done.stderr == b"to-stderr\n"
    assert done.status == 3


def test_standard_input_reaches_the_command(guest: RootedVM) -> None:
    data = random.Random(1).randbytes(5_000_000)
    done = guest.run("sha256sum; wc -c", input=data)
    assert done.text.split() == [hashlib.sha256(data).hexdigest(), "-", "0"]
    assert guest.run("head -c 3; exit 7", input=data).stdout == data[:3]
    assert guest.run("cat").stdout == b"", "without any it is empty"


def test_published_ports_lead_to_servers_of_the_guest(guest: RootedVM) -> None:
    web, echo = guest.published
    udp = "const u = dgram.createSocket('udp4'); u.on('message', (m, r) => u.send(m, r.port, r.address)); u.bind(8081)"
    tcp = "http.createServer((q, a) => a.end(`${q.url} ${q.socket.remoteAddress}`))"
    script = f"{udp}; {tcp}.listen(8080, '0.0.0.0', () => console.log(1))"
    with guest.request(command=["node", "-e", script]) as request:
        assert any(isinstance(event, Output) for event in request)
        with urllib.request.urlopen(f"http://127.0.0.1:{web.host}/path", timeout=60) as answer:
            assert answer.read() == b"/path 10.0.2.2"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(60)
            client.sendto(b"datagram", ("127.0.0.1", echo.host))
            assert client.recv(100) == b"datagram"


def test_the_work_share_is_read_and_written(guest: RootedVM, work: Path) -> None:
    (work / "from-host").write_text("hello\n")
    done = guest.run("cat from-host; echo answer >from-guest; mkdir -p deep/er && echo x >deep/er/file; pwd")
    assert done.text.splitlines() == ["hello", "/workspace/project"]
    assert guest.share("work").read("from-guest", limit=100) == b"answer\n"
    assert (work / "deep/er/file").read_text() == "x\n"


def test_the_agent_has_its_own_workspace_and_no_way_to_root(guest: RootedVM) -> None:
    done = guest.run("touch /workspace/mine && ls -ld /workspace; touch /etc/not-mine; cat /etc/shadow; id -G")
    assert done.stderr.count(b"ermission denied") == 2
    assert "agent" in done.text.splitlines()[0]
    assert done.text.splitlines()[-1].split() == ["1000"]
