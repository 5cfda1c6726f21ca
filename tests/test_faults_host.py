"""Hosts that lack something, images that are none, options that cannot be: the message, and nothing left behind."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fixtures import apkbuild
from fixtures.apkbuild import Apk
from fixtures.keys import Keys
from fixtures.server import Fault, Site, serve
from tests.commandline import ROOT, Place, check_failure, path_without, place
from tests.conftest import need, need_program
from tests.files import noise, public
from tests.images import has_bindings
from tests.mirrors import RECIPE, ROOTFS, Small, minimal, package

pytestmark = pytest.mark.vm  # nothing boots here, but QEMU, libguestfs and GRUB must be there to be taken away

GIB = 1 << 30


@pytest.fixture
def here() -> Iterator[Place]:
    for program in ("qemu-img", "qemu-system-x86_64"):
        need_program(program)
    with place() as folders:
        yield folders


@pytest.fixture
def small(here: Place, keys: Keys) -> Small:
    return Small(here.base / "mirror", keys, [package(key=keys.signing)])


@pytest.fixture
def site(small: Small) -> Iterator[Site]:
    small.write()
    with serve(small.root) as server:
        yield server


def build_words(here: Place, small: Small, site: Site) -> list[str | Path]:
    here.recipe.write_text(RECIPE)
    words: list[str | Path] = ["build", here.recipe, "--mirror", site.url, "--release-key", small.release_key]
    return [*words, "--arch", "amd64", "--out", here.out]


@pytest.mark.parametrize(
    ("program", "package_"),
    [("qemu-system-x86_64", "qemu-system-x86"), ("qemu-img", "qemu-utils")],
)
def test_programs_that_are_missing(program: str, package_: str, here: Place, small: Small, site: Site) -> None:
    """A missing program is reported before anything is downloaded."""
    ran = here.run(*build_words(here, small, site), env=path_without(here, program))
    check_failure(ran, here, 5, f"{program}: program not found", f"apt-get install {package_}")
    assert not site.requests


def test_a_payload_that_needs_npm(here: Place, small: Small, site: Site) -> None:
    payload = here.base / "payload"
    payload.mkdir()
    (payload / "package.json").write_text('{"dependencies": {"left-pad": "1"}}')
    words = [*build_words(here, small, site), "--agent-runner", payload]
    check_failure(
        here.run(*words, env=path_without(here, "npm")), here, 5, "npm: program not found", "apt-get install npm"
    )


def test_bindings_that_cannot_be_imported(here: Place, small: Small, site: Site) -> None:
    (here.modules / "guestfs.py").write_text("raise ImportError('made for another Python')")
    site.faults[ROOTFS] = Fault(rate=200)  # planning takes a while, as it does in earnest
    ran = here.run(*build_words(here, small, site), env={"IMGKIT_GUESTFS_PYTHON": sys.executable})
    check_failure(ran, here, 5, "libguestfs' Python bindings cannot be imported", "IMGKIT_GUESTFS_PYTHON")
    assert "made for another Python" in ran.errors[0]
    assert "compose" not in ran.err


def test_a_kernel_that_cannot_be_read(here: Place, small: Small, site: Site) -> None:
    site.faults[ROOTFS] = Fault(rate=200)
    ran = here.run(*build_words(here, small, site), env={"SUPERMIN_KERNEL": str(here.base / "vmlinuz")})
    check_failure(ran, here, 5, "libguestfs needs a kernel", "chmod 0644")


@pytest.fixture
def blank(here: Place) -> Path:
    """Return a raw disk with nothing but what says that it is one."""
    path = here.base / "blank.raw"
    path.write_bytes((bytes(510) + b"\x55\xaa").ljust(4 << 20, b"\0"))
    return path


def fake_qemu(here: Place, text: str) -> dict[str, str]:
    """Variables that make the real libguestfs start a shell script instead of QEMU."""
    need("libguestfs' bindings", has_bindings())
    script = here.base / "qemu"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    return {"LIBGUESTFS_HV": str(script), "PYTHONPATH": str(ROOT), "LIBGUESTFS_CACHEDIR": "/var/tmp"}


def test_an_appliance_that_hangs(here: Place, blank: Path) -> None:
    variables = fake_qemu(here, "sleep 300") | {"IMGKIT_LAUNCH_TIMEOUT": "4"}
    ran = here.run("inspect", blank, env=variables)
    check_failure(ran, here, 5, "the libguestfs appliance did not start within 4 s", "libguestfs-test-tool")


def test_a_qemu_that_the_appliance_cannot_have(here: Place, blank: Path) -> None:
    variables = fake_qemu(here, "") | {"LIBGUESTFS_HV": str(here.base / "nothing")}
    check_failure(here.run("inspect", blank, env=variables), here, 5, "the libguestfs appliance did not start")


def test_a_qemu_that_fails(here: Place, blank: Path) -> None:
    variables = fake_qemu(here, "echo no such machine >&2; exit 1")
    check_failure(here.run("inspect", blank, env=variables), here, 5, "the libguestfs appliance did not start")


# ---- disks that are full --------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(here: Place) -> Iterator[Path]:
    """Yield a filesystem of 4 MiB."""
    folder = here.base / "tiny"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], capture_output=True, check=False)
    need("the right to mount a small filesystem", mount.returncode == 0)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("full", ["out", "cache", "work", "temporary"])
def test_no_space_left(full: str, here: Place, small: Small, tiny: Path) -> None:
    """The minirootfs has 16 MiB, of which 8 MiB do not compress: too much for the cache, and for an image's layer."""
    tree = minimal(small.keys)
    tree.write("noise", noise(8 << 20) + bytes(8 << 20), mtime=0)
    small.write(tree)
    variables = {
        "out": {"OUT_DIR": str(tiny / "out")},
        "work": {"OUT_DIR": str(here.out), "WORK_DIR": str(tiny / "work")},
        "cache": {"OUT_DIR": str(here.out), "IMGKIT_CACHE": str(tiny)},
        "temporary": {"OUT_DIR": str(tiny), "TMPDIR": str(tiny), "IMGKIT_CACHE": str(tiny)},
    }[full]
    with serve(small.root) as site:
        words = build_words(here, small, site)[:-2]
        ran = here.run(*words, "--output", "oci", env=variables)
    check_failure(ran, here, 5, "no space left")
    kept = {"sha256", "keyed", "urls", "locks"}  # what the cache has got is whole, and stays
    assert [path for path in tiny.rglob("*") if path.is_file() and not kept & set(path.parts)] == []


# ---- bombs ----------------------------------------------------------------------------------------------------------


def zeros(size: int) -> Iterator[bytes]:
    """Raw deflate data of ``size`` zeros in blocks that stand alone, so that one block serves again and again."""
    step = 16 << 20
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(bytes(step)) + packer.flush(zlib.Z_FULL_FLUSH)
    for _ in range(size // step):
        yield block


def package_with_bomb(keys: Keys, *, claims: int) -> Apk:
    """Return a signed package with one file of 10 GiB; ``claims`` is the size that its index record admits."""
    header = tarfile.TarInfo("zeros")
    header.size, header.pax_headers = 10 * GIB, {"APK-TOOLS.checksum.SHA1": "00" * 20}
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    start = packer.compress(header.tobuf(tarfile.PAX_FORMAT)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS).flush()
    data = b"".join([bytes.fromhex("1f8b0800000000000203"), start, *zeros(10 * GIB), end, bytes(8)])
    info: dict[str, str | int | Sequence[str]] = {
        "pkgname": "hello",
        "pkgver": "1.0-r0",
        "arch": "x86_64",
        "size": claims,
    }
    info["datahash"] = hashlib.sha256(data).hexdigest()
    control = apkbuild.control_segment(apkbuild.pkginfo_text(info))
    blob = apkbuild.signature_segment(control, keys.signing) + control + data
    identity = apkbuild.identity(control)
    return Apk("hello", "1.0-r0", "x86_64", blob, identity, apkbuild.index_record(info, identity, len(blob)))


def test_ten_gibibytes_in_a_small_package(here: Place, small: Small) -> None:
    """The build stops early, after little memory, disk and time were used."""
    bomb = package_with_bomb(small.keys, claims=100)
    assert len(bomb.blob) < 32 << 20
    small.packages = [bomb]
    small.write()
    with serve(small.root) as site:
        words = build_words(here, small, site)
        before = os.times().children_user
        ran = here.run(*words, measured=True)
        assert os.times().children_user - before < 10
    check_failure(ran, here, 4, "hello-1.0-r0.apk: unpacks to more than the")
    (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", ran.err, re.MULTILINE)
    assert int(peak) < 200 << 10


def test_ten_gibibytes_that_the_index_admits(here: Place, small: Small) -> None:
    small.packages = [package_with_bomb(small.keys, claims=10 * GIB)]
    small.write()
    with serve(small.root) as site:
        ran = here.run(*build_words(here, small, site))
        assert not [path for path in site.requests if path.endswith(".apk")]
    check_failure(ran, here, 3, "image of 256 MiB is too small for its content, which needs 10240 MiB", "set size to")


# ---- images and options ---------------------------------------------------------------------------------------------


@pytest.fixture
def image(here: Place) -> Path:
    """Return an empty qcow2 with the name of an image."""
    path = here.base / "linux-amd64.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "64M"], check=True)
    return path


RAW = {
    "text": b"# A text of some length\n" * 100,
    "zeros": bytes(1 << 20),
    "empty": b"",
    "odd size": (bytes(510) + b"\x55\xaa").ljust(1000, b"\0"),
}
"""What qemu-img takes for raw disks, as it does everything."""


def make_bad(kind: str, image: Path) -> str:
    """Replace ``image`` by something bad, and return the message that is expected."""
    good = image.read_bytes()
    if kind == "missing":
        image.unlink()
        return "no such image"
    if kind in RAW:
        image.write_bytes(RAW[kind])
        return "not a disk image: it has no boot sector, no partition table, and is no ext4 filesystem"
    if kind == "short":
        image.write_bytes(good[:100])
        return "damaged or truncated: it refers to data beyond its end"
    if kind == "damaged":
        image.write_bytes(good[:24] + b"\xff" * 8 + good[32:])
        return "File too large"
    if kind == "backed":
        other = image.with_name("secret")
        other.write_bytes(bytes(1 << 20))
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", other, image], check=True)
        return "refers to another file of this host"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", image, "8M"], check=True)
    return "format vmdk is not supported"


@pytest.mark.parametrize("kind", ["missing", "short", "damaged", "backed", "vmdk", *RAW])
@pytest.mark.parametrize("command", ["inspect", "verify", "boot"])
def test_files_that_are_no_image(command: str, kind: str, here: Place, image: Path) -> None:
    error = make_bad(kind, image)
    ran = here.run(command, image)
    check_failure(ran, here, 4, error)
    assert str(image) in ran.errors[0]


@pytest.mark.parametrize(
    ("manifest", "error"),
    [
        (None, "linux-amd64.manifest.json: No such file or directory"),
        ("{", "linux-amd64.manifest.json: not JSON"),
        ("[]", "linux-amd64.manifest.json: is not a manifest of imgkit"),
    ],
)
def test_manifests_that_are_none(manifest: str | None, error: str, here: Place, image: Path) -> None:
    if manifest is not None:
        image.with_suffix(".manifest.json").write_text(manifest)
    check_failure(here.run("verify", image), here, 4, error)


@pytest.mark.parametrize(
    ("words", "status", "error"),
    [
        (["--share", "docs=/nowhere"], 2, "/nowhere: no such folder"),
        (["--share", "docs"], 2, "--share docs: not of the form TAG=DIR"),
        (["--share", "a=/tmp", "--share", "a=/var"], 2, "--share a=/var: there is a share a already"),
        (["--share", "a="], 2, "--share a=: no folder given"),
        (["--env", "A=\udcff"], 2, "A: its value is not UTF-8"),
        (["--secret", "A=/dev/zero"], 2, "A: its value has a zero byte or"),
        (["--share", "my docs=/tmp"], 2, "'my docs': not a name for a share"),
        (["--share", "t" * 32 + "=/tmp"], 2, "not a name for a share"),
        (["--secret", "TOKEN=/nowhere"], 2, "--secret TOKEN: /nowhere: No such file or directory"),
        (["--env", "TOKEN"], 2, "--env TOKEN: not of the form K=V"),
        (["--timeout", "nan"], 2, "--timeout nan: not a number of seconds to wait"),
        (["--timeout", "-1"], 2, "--timeout -1: not a number of seconds to wait"),
        (["--cpus", "0"], 2, "a machine needs at least one CPU"),
        (["--console", "/nowhere/log"], 2, "--console /nowhere/log: /nowhere is not a folder"),
        (["--arch", "arm64"], 2, "linux-amd64.qcow2 is for amd64, its name says"),
        (["--firmware", "direct"], 4, "vmlinuz-*-amd64: not there"),
        (["--cpu", "nonesuch"], 5, "QEMU does not start: qemu-system-x86_64: unable to find CPU model 'nonesuch'"),
    ],
)
def test_machines_that_cannot_be(words: list[str], status: int, error: str, here: Place, image: Path) -> None:
    check_failure(here.run("boot", image, *words), here, status, error)


def test_options_before_the_command_of_the_guest(here: Place, image: Path) -> None:
    ran = here.run("run", image, "--work", "/nowhere", "--", "ls", "--json")
    check_failure(ran, here, 2, "/nowhere: no such folder")


def test_an_empty_disk_says_what_the_console_said(here: Place, image: Path) -> None:
    ran = here.run("boot", image, "--json")
    assert ran.status == 6
    assert ran.errors == ["error: the firmware found nothing to boot on the disk"]
    assert "    No bootable device." in ran.err.splitlines()
    assert "No bootable device." in ran.json()["error"]["console"]
    assert here.left_over() == []


KVM_IS_THERE = """
import os
access = os.access
os.access = lambda path, mode: path == "/dev/kvm" or access(path, mode)
"""


@pytest.mark.parametrize("kind", [5, 9])
def test_a_kvm_that_lies(kind: int, here: Place, image: Path) -> None:
    """A fake QEMU that aborts, or crawls, whenever it is to use KVM: asked for it is an error, else TCG is taken.

    Whether this host really lets us use /dev/kvm makes no difference: imgkit is made to believe it.
    """
    (here.modules / "sitecustomize.py").write_text(KVM_IS_THERE)
    real = need_program("qemu-system-x86_64")
    folder = here.base / "fake"
    folder.mkdir()
    public(folder)  # root's QEMU is nobody, who must get to it
    lie = "kill -ABRT $$" if kind == 5 else "sleep 9"
    script = folder / "qemu-system-x86_64"
    script.write_text(f'#!/bin/sh\ncase "$*" in *"-accel kvm"*) {lie} ;; esac\nexec {real} "$@"\n')
    script.chmod(0o755)
    variables = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "XDG_CACHE_HOME": str(here.base)}
    error = "was killed by SIGABRT" if kind == 5 else "was not done in 1 s"
    asked = here.run("boot", image, "--accel", "kvm", env=variables)
    check_failure(asked, here, 5, f"accelerator kvm does not work here: .*{error}".partition(".*")[0], "--accel tcg")
    assert error in asked.errors[0]
    assert here.run("boot", image, env=variables).status == 6  # under TCG: the disk is empty
