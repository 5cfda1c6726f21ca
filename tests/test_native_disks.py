"""Disks of the native engine, read back by a kernel: recipes as the guestfs engine writes them, and all limits at once.

One appliance of libguestfs reads all of them.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fixtures.ext4 import read_tree
from imgkit.engines.interface import TreeFacts
from imgkit.tree import Device, Directory, File, HardLink, Inline, Node, Slice, Symlink, Tree
from tests import appliances
from tests.appliances import Wanted
from tests.conftest import need_program
from tests.ext4trees import described, pattern
from tests.images import Builder, Image, Images
from tests.nativedisks import BOOT, layout_of, write_disk
from tests.secondopinion import examine, objections, partitions, raw_copy

pytestmark = pytest.mark.vm

ARCHES = ("amd64", "arm64")
MIB, GIB = 1 << 20, 1 << 30
EARLIEST, LATEST = -(1 << 31), (1 << 34) - (1 << 31) - 1
"""The first and the last second that ext4 can note, in 1901 and 2446 (kernel documentation, "Inode Timestamps")."""
LINE_ENDS = {b"first": 0, b"second": 70 * MIB + 3, b"block32768": 32768 * 4096 - 5, b"end": 180 * MIB - 3}
"""What is in a file of 180 MiB besides zeros, and where."""


def access_list() -> bytes:
    """Return an access control list as the kernel hands it over (linux/posix_acl_xattr.h, version 2)."""
    entries = [(1, 6, 0xFFFFFFFF), (2, 4, 1000), (4, 4, 0xFFFFFFFF), (0x10, 6, 0xFFFFFFFF), (0x20, 4, 0xFFFFFFFF)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def limits(folder: Path) -> Tree:
    """Return a Tree with everything at its limit."""
    tree = Tree()
    tree.add("", Directory(mode=0o1751, mtime=1_600_000_000))
    for number, (path, node) in enumerate(_nodes(folder)):
        attributes = {} if isinstance(node, HardLink) or node.mtime else {"mtime": number + 1}
        tree.add(path, replace(node, **attributes))  # type: ignore[arg-type]
    return tree


def _nodes(folder: Path) -> Iterator[tuple[str, Node]]:
    for path in ("names", "sizes", "links", "links/a", "links/b", "symlinks", "xattrs", "modes", "devices", "times"):
        yield path, Directory()
    for name in ("n" * 255, "ü" * 127, "".join(map(chr, range(0x20, 0x2F))), "\udcff\udc80\udcc3("):
        yield f"names/{name}", File(content=Inline(name.encode(errors="surrogateescape")))
    yield from ((f"deep{'/d' * levels}", Directory()) for levels in range(12))
    yield f"deep{'/d' * 11}/file", File(content=Inline(b"deep"))
    for size in (0, 1, 4095, 4096, 4097, 65535, 65536, 65537, MIB - 1, MIB, MIB + 1, 5 * MIB + 1):
        yield f"sizes/{size:08}", File(content=Inline(pattern(size, 1 + size % 5)))
        yield f"sizes/{size:08} of zeros", File(content=Inline(bytes(size)))
    yield "sizes/large", File(content=marked(folder / "large", 180 * MIB, LINE_ENDS))
    yield "links/a/file", File(content=Inline(b"linked"), mode=0o600)
    yield "links/b/link", HardLink(target="links/a/file")
    yield "links/c", HardLink(target="links/a/file")
    for length in (1, 59, 60, 61, 4095):
        yield f"symlinks/{length}", Symlink(target="t" * length)
    yield from _with_attributes()
    for number in range(12):
        yield f"modes/file{number}", File(content=Inline(b"x"), mode=1 << number)
        yield f"modes/folder{number}", Directory(mode=1 << number)
    yield "modes/all", File(content=Inline(b"x"), mode=0o7777, uid=(1 << 32) - 2, gid=65536)
    yield "modes/none", File(content=Inline(b"x"), mode=0, uid=65535, gid=(1 << 32) - 2)
    for kind, major, minor in (("c", 1, 3), ("b", 255, 255), ("c", 256, 256), ("b", 4095, (1 << 20) - 1)):
        yield f"devices/{kind}{major}-{minor}", Device(kind=kind, major=major, minor=minor, mode=0o660)
    yield "devices/pipe", Device(kind="p")
    for time in (EARLIEST, -1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, LATEST):
        yield f"times/{time}", File(content=Inline(b"x"), mtime=time)
    yield "many", Directory()
    for number in range(70_000):
        yield f"many/{number}", File(content=Inline(b""))


def _with_attributes() -> Iterator[tuple[str, Node]]:
    capability = struct.pack("<IIIII", 0x02000000, 1 << 10, 0, 0, 0)  # linux/capability.h, revision 2
    attributes: dict[str, Mapping[str, bytes]] = {
        "fits": {"user.a": b"v" * 68},
        "spills": {"user.a": b"v" * 69},
        "both": {"user.a": b"v" * 10, "user.b": b"v" * 100, "trusted.c": b"\0\xff\n="},
        "full": {"user.a": b"v" * 4040},
        "capable": {"security.capability": capability},
        "listed": {"system.posix_acl_access": access_list()},
    }
    for name, values in attributes.items():
        yield f"xattrs/{name}", File(content=Inline(b"x"), mode=0o664, xattrs=values)
    yield "xattrs/folder", Directory(mode=0o775, xattrs={"system.posix_acl_default": access_list(), "user.x": b"y"})


def marked(path: Path, size: int, marks: Mapping[bytes, int]) -> Slice:
    """Return content of zeros with a few texts in it, for which the host needs hardly any space."""
    with path.open("wb") as file:
        file.truncate(size)
        for text, place in marks.items():
            file.seek(place)
            file.write(text)
    return Slice(path, 0, size)


@dataclass(frozen=True)
class ReadBack:
    """What the kernel of the appliance has read: root filesystems by name, and EFI system partitions."""

    roots: Mapping[str, Tree]
    esps: Mapping[str, Tree]


@pytest.fixture(scope="module")
def wanted_limits(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return limits(tmp_path_factory.mktemp("contents"))


@pytest.fixture(scope="module")
def limits_disk(wanted_limits: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    disk = tmp_path_factory.mktemp("limits") / "limits.qcow2"
    write_disk(wanted_limits, disk, 2 * GIB)
    return disk


@pytest.fixture(scope="module")
def read_back(
    builder: Builder, native_images: Images, limits_disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> ReadBack:
    """Start the appliance. It is of the same version and kernel as that of ``builder``, which says what it lacks."""
    disks = {**{arch: native_images[arch].disk for arch in ARCHES}, "limits": limits_disk}
    wanted = [Wanted(disk, kind) for disk in disks.values() for kind in ("root", "esp")]
    trees = appliances.read_back(wanted, tmp_path_factory.mktemp("readback"))
    return ReadBack(dict(zip(disks, trees[::2], strict=True)), dict(zip(disks, trees[1::2], strict=True)))


def compared(tree: Tree) -> dict[str, object]:
    """Return everything about a Tree that must be equal; the time of lost+found is that of its making."""
    return {path: facts for path, facts in described(tree).items() if path != "lost+found"}


def differing(wanted: Tree, found: Tree) -> list[str]:
    """Return the paths at which two Trees differ."""
    first, second = compared(wanted), compared(found)
    return [path for path in sorted({*first, *second}) if first.get(path) != second.get(path)]


# ---- the recipes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guestfs_trees(images: Images, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tree]:
    """Return the root filesystems that the guestfs engine wrote, read by the fixtures' own reader."""
    return {arch: root_of(images[arch], tmp_path_factory.mktemp("root")) for arch in ARCHES}


def root_of(image: Image, folder: Path) -> Tree:
    """Return the root filesystem of an image. Its journal is empty, and nothing has booted it."""
    with raw_copy(image.disk) as raw:
        [(start, size)] = [(start, size) for kind, start, size in partitions(raw) if kind == "root"]
        root = folder / "root"
        words = [f"if={raw}", f"of={root}", "bs=1M", "conv=sparse", "status=none", f"skip={start // MIB}"]
        subprocess.run(["dd", *words, f"count={size // MIB}"], check=True)
    try:
        with root.open("r+b") as file:
            file.truncate(size)
        return read_tree(root)
    finally:
        root.unlink()


@pytest.mark.parametrize("arch", ARCHES)
def test_both_engines_write_the_same_files(arch: str, guestfs_trees: dict[str, Tree], read_back: ReadBack) -> None:
    """Path, kind, mode, owner, time, extended attributes, content, target, device, and which names are one file."""
    wanted, found = guestfs_trees[arch], read_back.roots[arch]
    assert differing(wanted, found) == []
    assert len(found) > 4000
    assert "lost+found" in found


def test_every_difference_is_noticed(guestfs_trees: dict[str, Tree]) -> None:
    wanted = guestfs_trees["amd64"]
    apk = wanted["sbin/apk"]
    assert isinstance(apk, File)
    changes: list[tuple[str, Node]] = [
        ("sbin/apk", replace(apk, mtime=apk.mtime + 1)),
        ("sbin/apk", replace(apk, mode=apk.mode ^ 1)),
        ("sbin/apk", replace(apk, gid=7)),
        ("sbin/apk", replace(apk, xattrs={"user.a": b""})),
        ("sbin/apk", replace(apk, content=Inline(apk.content.read()[:-1] + b"x"))),
        ("sbin/init", Symlink(target="/bin/busybo")),
        ("another", Directory()),
    ]
    for path, node in changes:
        other = wanted.copy()
        if path in other:
            other.remove(path)
        other.add(path, node)
        assert path in differing(wanted, other)


@pytest.mark.parametrize("arch", ARCHES)
def test_both_engines_write_the_same_boot_loader(arch: str, images: Images, read_back: ReadBack) -> None:
    found = appliances.esp_facts(read_back.esps[arch])
    with raw_copy(images[arch].disk) as raw:
        [start] = [start for kind, start, _ in partitions(raw) if kind == "esp"]
        need_program("mtype")
        for path, content in found.items():
            read = subprocess.run(["mtype", "-i", f"{raw}@@{start}", f"::/{path}"], capture_output=True, check=True)
            assert read.stdout == content
    assert len(found) == 2


def from_one_mirror(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest without the port of the mirror: each worker of a test run serves its own."""
    text = re.sub(r"http://127\.0\.0\.1:\d+/", "http://mirror.test/", json.dumps(manifest))
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.mark.parametrize("arch", ARCHES)
def test_manifests_differ_in_the_bytes_of_the_disk_only(arch: str, images: Images, native_images: Images) -> None:
    first, second = from_one_mirror(images[arch].manifest), from_one_mirror(native_images[arch].manifest)
    assert first["buildId"] == second["buildId"]
    assert first["files"] == second["files"]
    assert {key for key in {*first, *second} if first.get(key) != second.get(key)} == {"engine", "image", "map"}
    assert first["image"]["virtualSize"] == second["image"]["virtualSize"]


@pytest.mark.parametrize("arch", ARCHES)
def test_kernels_and_initramfs_beside_the_image_are_the_same(arch: str, images: Images, native_images: Images) -> None:
    first, second = images[arch], native_images[arch]
    assert first.kernel.read_bytes() == second.kernel.read_bytes()
    assert first.initramfs.read_bytes() == second.initramfs.read_bytes()


# ---- limits --------------------------------------------------------------------------------------------------------


def test_a_kernel_reads_everything_at_its_limits(wanted_limits: Tree, read_back: ReadBack) -> None:
    found = read_back.roots["limits"]
    assert differing(wanted_limits, found) == []
    assert len(found) == len(wanted_limits) + 1  # lost+found
    esp = appliances.esp_facts(read_back.esps["limits"])
    assert {path.upper(): content for path, content in esp.items()} == {
        path.upper(): content for path, content in BOOT.esp.items()
    }


def test_others_have_nothing_to_say_against_limits(limits_disk: Path) -> None:
    """The large file is in pieces: copies of the superblock lie in its way, and no extent has more than 32,768 blocks
    (kernel documentation, "Extent Tree")."""
    examine(limits_disk)
    with raw_copy(limits_disk) as raw:
        [start] = [start for kind, start, _ in partitions(raw) if kind == "root"]
        said = debugfs(raw, start, "ex /sizes/large")
        lengths = [int(line.split()[-1]) for line in said.splitlines() if re.match(r" 0/ 0", line)]
    assert sum(lengths) == 180 * MIB // 4096
    assert len(lengths) > 2
    assert max(lengths) <= 32768


def test_the_second_opinion_sees_faults(limits_disk: Path) -> None:
    """Eight bytes are changed in the backup of the partition table, in the FAT, and in a group descriptor of ext4."""
    with raw_copy(limits_disk) as raw:
        starts = {kind: start for kind, start, _ in partitions(raw)}
        with raw.open("rb") as file:
            file.seek(starts["esp"])
            [reserved] = struct.unpack_from("<H", file.read(512), 14)  # sectors before the first FAT
        for complainer, place in (
            ("sgdisk", raw.stat().st_size - 512 + 56),
            ("esp", starts["esp"] + reserved * 512),
            ("root", starts["root"] + 4096),
        ):
            invert(raw, place)
            assert [line.partition(":")[0] for line in objections(raw)] == [complainer], complainer
            invert(raw, place)
        assert objections(raw) == []


def invert(raw: Path, place: int) -> None:
    """Invert the bits of eight bytes."""
    with raw.open("r+b") as file:
        file.seek(place)
        old = file.read(8)
        file.seek(place)
        file.write(bytes(byte ^ 0xFF for byte in old))


def debugfs(raw: Path, start: int, request: str) -> str:
    """Return what debugfs answers about the filesystem at byte ``start`` of a disk."""
    words = [need_program("debugfs"), "-R", request, f"{raw}?offset={start}"]
    return subprocess.run(words, capture_output=True, text=True, errors="replace", check=True).stdout


def test_a_file_of_more_than_4_gib(tmp_path: Path) -> None:
    size = 4 * GIB + 4097
    marks = {b"begin": 0, b"before": 4 * GIB - 10, b"after": 4 * GIB + 1, b"the end": size - 7}
    content = marked(tmp_path / "large", size, marks)
    digest = hashlib.sha256()
    with content.open() as source:
        while piece := source.read(4 * MIB):
            digest.update(piece)
    tree = Tree()
    tree.add("large", File(content=content))
    disk = tmp_path / "disk.qcow2"
    write_disk(tree, disk, 6 * GIB, TreeFacts(hashes={"large": digest.digest()}, epoch=5))
    assert disk.stat().st_size < 4 * MIB
    examine(disk)
    with raw_copy(disk) as raw:
        start = layout_of(6 * GIB).root.start
        assert f"Size: {size}\n" in debugfs(raw, start, "stat large")
        for text, place in marks.items():
            block = int(debugfs(raw, start, f"bmap large {place // 4096}"))
            with raw.open("rb") as file:
                file.seek(start + block * 4096 + place % 4096)
                assert file.read(len(text)) == text
