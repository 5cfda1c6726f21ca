"""imgkit on a host that looks like a Mac; ``test_reproducible.py`` builds there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from imgkit.disk.regions import CHUNK
from tests.mac import Mac, linux_names

pytestmark = pytest.mark.slow

# Prints the chunks that imgkit finds in a raw disk.
_CHUNKS = """
import sys
from pathlib import Path
from imgkit.disk.regions import Region
from imgkit.engines.chunks import map_disk
path = Path(sys.argv[1])
print(sorted(map_disk(path, [Region("disk", 0, path.stat().st_size)]).hashes))
"""


@pytest.fixture(params=["arm64", "x86_64"])
def mac(request: pytest.FixtureRequest, tmp_path: Path) -> Mac:
    return Mac(tmp_path, request.param)


def imgkit(mac: Mac, *words: str, status: int = 0, env: Mapping[str, str] | None = None) -> tuple[str, str]:
    """Run imgkit there; return what it wrote to standard output and standard error."""
    variables = {"IMGKIT_CACHE": str(mac.folder / "cache"), "IMGKIT_ENGINE": "", **(env or {})}
    done = mac.run("-m", "imgkit", *words, env=variables)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def test_the_names_are_found() -> None:
    names = linux_names()
    assert {"O_PATH", "sched_getaffinity", "copy_file_range", "memfd_create", "setxattr", "pipe2"} <= {*names["os"]}
    assert {"O_CLOEXEC", "O_DIRECTORY", "preadv", "statvfs", "SEEK_DATA"} & {*names["os"]} == set()
    assert names["os"] == names["posix"]
    assert "epoll" in names["select"]
    assert "prlimit" in names["resource"]
    assert {"SO_PEERCRED", "AF_VSOCK", "SOCK_CLOEXEC"} <= {*names["socket"]}


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import os; os.open('.', os.O_PATH)", "AttributeError: module 'os' has no attribute 'O_PATH'"),
        ("from posix import sched_getaffinity", "ImportError: cannot import name 'sched_getaffinity' from 'posix'"),
        ("import socket; socket.SO_PEERCRED", "AttributeError: module 'socket' has no attribute 'SO_PEERCRED'"),
        ("import select; select.epoll()", "AttributeError: module 'select' has no attribute 'epoll'"),
        ("import fcntl; fcntl.F_ADD_SEALS", "AttributeError: module 'fcntl' has no attribute 'F_ADD_SEALS'"),
        ("import signal; signal.SIGPWR", "AttributeError: module 'signal' has no attribute 'SIGPWR'"),
        ("import ctypes; ctypes.CDLL(None).prctl", "AttributeError: dlsym(RTLD_DEFAULT, prctl): symbol not found"),
        ("open('/proc/self/status')", "FileNotFoundError: [Errno 2] No such file or directory: '/proc/self/status'"),
        ("import os; os.open('/proc/./stat', 0)", "No such file or directory: '/proc/./stat'"),
        ("import os; os.readlink('/proc/self')", "FileNotFoundError: [Errno 2] No such file or directory"),
        ("from pathlib import Path; Path('/proc').stat()", "No such file or directory: '/proc'"),
        ("from pathlib import Path; list(Path('/sys').iterdir())", "No such file or directory: '/sys'"),
        ("import subprocess; subprocess.run(['qemu-img'])", "No such file or directory: 'qemu-img'"),
    ],
)
def test_the_host_lacks_what_a_mac_lacks(program: str, error: str, tmp_path: Path) -> None:
    done = Mac(tmp_path).run("-c", program)
    assert done.returncode == 1, done.stdout
    assert error in done.stderr.splitlines()[-1]


def test_the_host_says_that_it_is_a_mac(mac: Mac) -> None:
    program = """
import os, platform, resource, shutil, sys, tempfile
print(sys.platform, platform.system(), platform.machine(), os.uname().sysname)
print(shutil.which("qemu-img"), os.path.exists("/proc"), os.access("/proc", os.R_OK))
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], os.path.realpath(tempfile.gettempdir()))
"""
    done = mac.run("-c", program)
    temporary = (mac.folder / "private/tmp").resolve()
    assert done.stdout == f"darwin Darwin {mac.machine} Darwin\nNone False False\n256 {temporary}\n", done.stderr


@pytest.mark.parametrize("command", [(), ("build",), ("cache",), ("doctor",), ("inspect",), ("verify",)])
def test_help(command: tuple[str, ...], mac: Mac) -> None:
    assert imgkit(mac, *command, "--help")[0].startswith(" ".join(["usage: imgkit", *command, "["]))


def test_the_cache_of_a_user(tmp_path: Path) -> None:
    program = "from imgkit.fetch.cache import default_folder; print(default_folder())"
    done = Mac(tmp_path).run("-c", program, env={"HOME": "/Users/ada", "IMGKIT_CACHE": ""})
    assert done.stdout == "/Users/ada/Library/Caches/imgkit\n", done.stderr


@pytest.mark.parametrize(("engine", "is_required"), [("", True), ("auto", False), ("native", False)])
def test_the_doctor_names_the_engine_that_there_is(engine: str, is_required: bool, tmp_path: Path) -> None:
    """QEMU is missing as well, so the status is that of a host which lacks something."""
    out, _ = imgkit(Mac(tmp_path), "doctor", "--json", status=5, env={"IMGKIT_ENGINE": engine})
    checks = {check["name"]: check for check in json.loads(out)}
    guestfs = checks["engine guestfs"]
    assert (guestfs["ok"], guestfs["required"]) == (False, is_required)
    assert guestfs["detail"] == "lacks: Linux, as libguestfs exists there only"
    assert guestfs["fix"] == "build without: --engine native, or IMGKIT_ENGINE=native"
    assert checks["engine native"]["ok"]
    assert checks["qemu-img"]["purpose"] == "boot and verify"
    assert {"libguestfs bindings", "supermin", "kernel"} & checks.keys() == set()
    assert checks["qemu-system-x86_64"]["fix"] == "brew install qemu"


def test_the_doctor_advises_nothing_that_a_mac_lacks(mac: Mac) -> None:
    out, _ = imgkit(mac, "doctor", status=5)
    assert "ok       engine native        can be used\n" in out
    assert "apt-get" not in re.sub(
        r".*UEFI.*\n.*(fix.*\n)?", "", out
    )  # that line names the packages of several systems


def test_an_engine_is_chosen(tmp_path: Path) -> None:
    program = """
import logging
from imgkit.api.enginechoice import engine_name
logging.basicConfig(level=logging.INFO, format="%(message)s")
print(engine_name("auto"))
"""
    done = Mac(tmp_path).run("-c", program)
    reason = "engine auto: native, as this host lacks for guestfs: Linux, as libguestfs exists there only\n"
    assert (done.stdout, done.stderr) == ("native\n", reason)


def test_what_needs_libguestfs_says_so(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(CHUNK))
    program = """
import os
from imgkit.engines.guestfs import bindings
from imgkit.errors import HostError
try:
    bindings.choose(os.environ)
except HostError as error:
    print(error.hint)
"""
    done = Mac(tmp_path).run("-c", program)
    assert done.stdout == "libguestfs exists on Linux only; disks can be built without: --engine native\n", done.stderr


def test_chunks_beside_each_other_are_found(tmp_path: Path) -> None:
    """On APFS, ``SEEK_DATA`` goes beyond the data in which the offset is."""
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as sink:
        sink.truncate(8 * CHUNK)
        for number in (1, 2, 3, 6):
            os.pwrite(sink.fileno(), b"data", number * CHUNK)
    mac = Mac(tmp_path)
    seek = "import os, sys; print(os.lseek(os.open(sys.argv[1], 0), int(sys.argv[2]), os.SEEK_DATA))"
    assert mac.run("-c", seek, str(disk), str(3 * CHUNK)).stdout == f"{6 * CHUNK}\n"
    done = mac.run("-c", _CHUNKS, str(disk))
    assert done.stdout == f"{[number * CHUNK for number in (1, 2, 3, 6)]}\n", done.stderr
