"""A build needs no privilege and runs no program of the target, which is proven by making both impossible."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fixtures import minirootfs
from fixtures.keys import load
from fixtures.mirror import Mirror, cache_folder
from fixtures.server import serve
from imgkit.rootfs.minirootfs import unpack
from imgkit.tree import File, Inline, Tree
from tests.conftest import need, need_program
from tests.images import RECIPE, ROOT, Builder, Image, Images, environment, results

pytestmark = pytest.mark.vm

NOBODY = 65534

# ---- an ordinary user ----------------------------------------------------------------------------------------------

CONFINE = Path(__file__).with_name("confine.py")
CAPABILITIES = "CapInh,CapPrm,CapEff,CapAmb"
DEVICES = "/dev/kvm,/dev/loop-control,/dev/loop0,/dev/nbd0"
# Everybody may open this one, so root takes it away in a mount namespace. An ordinary user cannot; to him it is of no
# use without mount(2), for which the kernel kills him, or fusermount, which is setuid and so has no effect here.
FUSE = "/dev/fuse"
WITHOUT_FUSE = (
    f'[ ! -e {FUSE} ] || {{ mount --bind {FUSE} {FUSE} && mount -o remount,bind,nodev {FUSE}; }} && exec "$@"'
)


@pytest.fixture
def home() -> Iterator[Path]:
    """Yield a folder that the ordinary user owns and reaches, with nothing in it."""
    folder = Path(tempfile.mkdtemp(prefix="imgkit-home-"))
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


def confined(*words: str | Path, devices: str = DEVICES) -> list[str | Path]:
    """``imgkit`` with ``words``, as an ordinary user without any capability; ``devices`` must be out of reach."""
    setpriv: list[str | Path] = [need_program("setpriv"), "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all"]
    capabilities = CAPABILITIES
    if os.geteuid() == 0:
        devices += f",{FUSE}"
        setpriv[:0] = [need_program("unshare"), "--mount", "sh", "-c", WITHOUT_FUSE, "sh"]
        setpriv += [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all"]
        capabilities += ",CapBnd"
    else:
        need("a user who may not use /dev/kvm", not os.access("/dev/kvm", os.W_OK))
    return [*setpriv, "--", sys.executable, CONFINE, capabilities, devices, "--", *words]


def test_an_ordinary_user_builds(mirror: Mirror, mirror_url: str, home: Path, images: Images) -> None:
    """The build has no capability, device, namespace or mount, and its cache is empty. The disk has 64 GiB."""
    key, out = home / "release-key.asc", home / "out"
    shutil.copyfile(mirror.release_key, key)
    words: list[str | Path] = ["build", RECIPE, "--arch", "amd64", "--out", out, "--json", "--set", "size=64G"]
    words += ["--mirror", mirror_url, "--release-key", key]
    env = {**environment(home / "cache"), "HOME": str(home), "TMPDIR": str(home)}
    env.pop("XDG_CACHE_HOME", None)
    env.pop("XDG_RUNTIME_DIR", None)
    before = leftovers()
    done = subprocess.run(confined(*words), env=env, capture_output=True, text=True, timeout=500, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    image = results(out, done.stdout, done.stderr)["amd64"]
    (facts,) = json.loads(done.stdout)
    assert facts["peakMemory"] < 200 << 20
    assert leftovers() <= before, "others may end meanwhile"
    assert sorted(path.name for path in out.iterdir()) == [
        "initramfs-virt-amd64",
        "linux-amd64.manifest.json",
        "linux-amd64.qcow2",
        "vmlinuz-virt-amd64",
    ]
    if os.geteuid() == 0:
        assert image.disk.stat().st_uid == NOBODY
    same = images["amd64"]
    release, files = without_release(image)
    assert release != without_release(same)[0], "a disk of another size has another build id"
    assert files == without_release(same)[1], "who builds, and how large the disk is, changes nothing else"
    assert image.manifest["image"]["virtualSize"] == 64 << 30
    assert image.disk.stat().st_size < same.disk.stat().st_size + (8 << 20), "a larger disk is no larger file"
    assert subprocess.run(["qemu-img", "check", "-q", image.disk]).returncode == 0


def without_release(image: Image) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the manifest says about the file with the build id, and about all other files."""
    files = dict(image.manifest["files"])
    return files.pop("/etc/imgkit-release"), files


def leftovers() -> set[str]:
    """Return folders of libguestfs in /tmp, which is not where it must work, that belong to the user who builds here.

    Other tests of the same user have theirs there, for their sockets, and take them away when they are done.
    """
    user = NOBODY if os.geteuid() == 0 else os.geteuid()
    found = set()
    for path in Path("/tmp").glob("libguestfs*"):
        with suppress(FileNotFoundError):
            if path.stat().st_uid == user:
                found.add(path.name)
    return found


def test_what_is_left_is_seen() -> None:
    """A folder of the user who builds is found; one of somebody else is not."""
    path = Path(tempfile.mkdtemp(prefix="libguestfs", dir="/tmp"))
    try:
        if os.geteuid() == 0:
            assert path.name not in leftovers()
            os.chown(path, NOBODY, NOBODY)
        assert path.name in leftovers()
    finally:
        path.rmdir()


def test_the_confinement_confines() -> None:
    """The checks fail when they should."""

    def said(words: list[str | Path]) -> str:
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
        return done.stdout + done.stderr

    assert said(confined("--version")).startswith("imgkit ")
    assert said(confined("--version", devices="/dev/null")) == "/dev/null can be opened\n"
    if os.geteuid() == 0 and Path(FUSE).exists():
        seeing = confined("--version")
        assert said(seeing[seeing.index(need_program("setpriv")) :]) == f"{FUSE} can be opened\n"
    alone = confined("--version")
    alone = alone[alone.index("--") + 1 :]
    assert re.match("Cap... is [0-9a-f]+|privileges are there", said(alone))


# ---- nothing of the target runs ------------------------------------------------------------------------------------


def marking_program(mark: str) -> bytes:
    """Return a static x86-64 ELF program that makes a file named ``mark`` and ends with status 0."""
    code = bytearray(
        b"\xb8\x02\x00\x00\x00"  # mov eax, 2 (open)
        b"\x48\x8d\x3d\x00\x00\x00\x00"  # lea rdi, [rip + mark]
        b"\xbe\x41\x00\x00\x00"  # mov esi, O_WRONLY | O_CREAT
        b"\xba\xa4\x01\x00\x00"  # mov edx, 0644
        b"\x0f\x05"  # syscall
        b"\xb8\x3c\x00\x00\x00"  # mov eax, 60 (exit)
        b"\x31\xff\x0f\x05"  # xor edi, edi; syscall
    )
    struct.pack_into("<i", code, 8, len(code) - 12)
    data = bytes(code) + mark.encode() + b"\0"
    base = 0x400000
    size = 64 + 56 + len(data)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + 120, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096) + data


def poisoned(mirror: Mirror, folder: Path, mark: str) -> int:
    """Return a mirror in ``folder`` whose minirootfs has ``marking_program`` for every program; how many that are."""
    shutil.copytree(mirror.root, folder / "alpine", copy_function=os.link, ignore=shutil.ignore_patterns("aarch64"))
    releases = next((folder / "alpine").glob("v*/releases/x86_64"))
    tree = unpack(next(releases.glob("*.tar.gz")), folder / "spool")
    shutil.rmtree(releases)
    program = Inline(marking_program(mark))
    paths = [path for path, node in tree.items() if isinstance(node, File) and is_program(tree, path, node)]
    for path in paths:
        node = tree[path]
        assert isinstance(node, File)
        tree.add(path, replace(node, content=program))
    minirootfs.publish(tree, "x86_64", releases, load(cache_folder() / "keys"))
    return len(paths)


def is_program(tree: Tree, path: str, node: File) -> bool:
    return bool(node.mode & 0o111) and "lib" not in path.split("/")[:2] and tree.read(path)[:2] in (b"\x7fE", b"#!")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the marking program is for x86-64 hosts")
def test_no_program_of_the_target_runs(mirror: Mirror, builder: Builder, tmp_path: Path) -> None:
    """No program runs, neither on the host nor in the appliance. A build for a foreign architecture works as well."""
    mark = Path(tempfile.mkdtemp(prefix="imgkit-mark-")) / "mark"
    try:
        program = tmp_path / "program"
        program.write_bytes(marking_program(str(mark)))
        program.chmod(0o755)
        assert subprocess.run([program]).returncode == 0
        mark.unlink()  # it does leave a mark

        count = poisoned(mirror, tmp_path, str(mark))
        assert count >= 3, "busybox, apk and ldconfig at least"
        with serve(tmp_path / "alpine") as site:
            made = Builder(("--mirror", site.url, *builder.words[2:]), builder.env).build(tmp_path / "out")
        assert not mark.exists()
    finally:
        shutil.rmtree(mark.parent)
    image = made["amd64"]
    busybox = image.manifest["files"]["/bin/busybox"]
    assert busybox["size"] == program.stat().st_size, "the poisoned program is what was built in"
    assert image.manifest["scripts"]["inAppliance"] == []
