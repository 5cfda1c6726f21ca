"""Root filesystems without a disk around them: their layout, kernel and configuration, and how they are booted."""

from __future__ import annotations

import gzip
import json
import lzma
import struct
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from imgkit.disk import bzimage, diskimage
from imgkit.disk.grub import BootFiles
from imgkit.disk.layout import SizedPartition, bare_layout, make_layout
from imgkit.disk.regions import Region, regions_of
from imgkit.engines.guestfs import scripts
from imgkit.engines.guestfs.feed import Feed, Part
from imgkit.engines.guestfs.lookscripts import mount_script
from imgkit.engines.guestfs.readback import find_root, parse_partitions
from imgkit.engines.interface import ImageTarget
from imgkit.engines.native import nativeengine as native
from imgkit.errors import InputError, RecipeError
from imgkit.host.progress import Steps
from imgkit.image.firecracker import firecracker_config
from imgkit.image.outputfiles import OutputFiles, others_of, output_files
from imgkit.recipe import load
from imgkit.rootfs.kernel import kernels, uncompressed_image
from imgkit.tree import File, Inline, Tree
from tests.commandline import ROOT
from tests.conftest import need_program
from tests.secondopinion import examine, objections

MIB = 1 << 20
NOTHING = Part(0, 0)
SEED = uuid.UUID(int=3)
ELF = b"\x7fELF" + bytes(2000)
NAMES = OutputFiles(
    "linux-amd64.ext4",
    "linux-amd64.rootfs.manifest.json",
    "vmlinux-virt-amd64",
    "initramfs-virt-amd64",
    "linux-amd64.firecracker.json",
)


# ---- layout and names ------------------------------------------------------------------------------------------------


def test_the_whole_disk_is_the_filesystem() -> None:
    layout = bare_layout(64 * MIB, SEED)
    assert layout.is_bare
    assert (layout.root.start, layout.root.size, len(layout.partitions)) == (0, 64 * MIB, 1)
    assert regions_of(layout) == (Region("root filesystem", 0, 64 * MIB),)
    usual = make_layout((SizedPartition("root"),), 64 * MIB, SEED)
    assert not usual.is_bare
    assert layout.root.fs_uuid == usual.root.fs_uuid
    with pytest.raises(RecipeError, match="root filesystem of 67109376 bytes: not a multiple of 4096"):
        bare_layout(64 * MIB + 512, SEED)


def test_the_names_of_the_files(tmp_path: Path) -> None:
    """Those of a disk and of a root filesystem may lie in one folder: the initramfs is the same file."""
    recipe = load(ROOT / "recipes/core.py", {"mirror": "http://mirror.test/", "format": "vhd"})
    assert output_files(recipe, "amd64", "rootfs") == NAMES
    disk = output_files(recipe, "amd64")
    assert (disk.image, disk.firecracker) == ("linux-amd64.vhd", None)
    assert {disk.image, disk.manifest, disk.kernel}.isdisjoint({NAMES.image, NAMES.manifest, NAMES.kernel})
    for name in ("linux-amd64.vhd", "linux-amd64.ext4"):
        (tmp_path / name).touch()
    assert others_of(tmp_path / "linux-amd64.ext4") == []
    assert others_of(tmp_path / "linux-amd64.raw") == [tmp_path / "linux-amd64.vhd"]


# ---- the engines -----------------------------------------------------------------------------------------------------


def test_the_native_engine_writes_nothing_but_the_filesystem(tmp_path: Path) -> None:
    tree = Tree()
    tree.mkdir("etc")
    tree.add("etc/motd", File(content=Inline(b"hello"), mtime=5, nanoseconds=123_456_789))
    (tmp_path / "scratch").mkdir()
    target, layout = tmp_path / "root.ext4", bare_layout(16 * MIB, SEED)
    with native.launch(tmp_path / "scratch", layout.size_bytes) as engine:
        disk_map = engine.write(tree, layout, BootFiles(), Steps()).save(ImageTarget(target, "raw"), Steps())
    assert target.stat().st_size == disk_map.size == 16 * MIB
    assert target.read_bytes()[:1024] == bytes(1024), "where a boot sector would be"
    assert diskimage.is_filesystem(target)
    examine(target)
    done = subprocess.run([need_program("debugfs"), "-R", "cat /etc/motd", target], check=True, capture_output=True)
    assert done.stdout == b"hello"
    done = subprocess.run([need_program("debugfs"), "-R", "stat /etc/motd", target], check=True, capture_output=True)
    assert f"mtime: 0x00000005:{123_456_789 << 2:08x}".encode() in done.stdout
    with target.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(64))
    assert [line.partition(":")[0] for line in objections(target)] == ["root"], "the descriptors of groups are damaged"


def test_the_appliance_formats_the_whole_drive() -> None:
    layout = bare_layout(64 * MIB, SEED)
    assert "sfdisk" not in scripts.partition_script(layout)
    assert f"= {64 * MIB} ]" in scripts.partition_script(layout)
    assert 'root="${disk}"\n' in scripts.format_script(layout)
    assert "dd if" not in scripts.boot_script(layout, Feed(NOTHING, NOTHING, NOTHING, (), NOTHING), b"")


def test_a_filesystem_is_read_as_partition_0() -> None:
    table = parse_partitions(Path("x"), '{"bare": 8388608}\n\n0\nTYPE=ext4\nLABEL=root\nUUID=1-2\n')
    assert (table.guid, table.size) == ("", 0)
    (root,) = table.partitions
    assert (root.filesystem, root.label, root.fs_uuid, root.size) == ("ext4", "root", "1-2", 8 * MIB)
    assert find_root(Path("x"), table.partitions) == 0
    assert '"${disk}" /sysroot' in mount_script("root", 0, replay=True)
    assert '"${disk}2" /sysroot' in mount_script("root", 2, replay=True)


@pytest.mark.parametrize(("signature", "magic", "bare"), [(b"\0\0", 0xEF53, True), (b"\x55\xaa", 0xEF53, False),
                                                          (b"\0\0", 0xEF52, False)])  # fmt: skip
def test_what_is_a_filesystem_as_a_whole(signature: bytes, magic: int, bare: bool, tmp_path: Path) -> None:
    image = tmp_path / "image"
    superblock = struct.pack("<2I", 16, 16).ljust(0x38, b"\0") + struct.pack("<H", magic)
    image.write_bytes((bytes(510) + signature + bytes(512) + superblock).ljust(16 * 1024, b"\0"))
    assert diskimage.is_filesystem(image) is bare
    image.write_bytes(b"QFI\xfb" + image.read_bytes()[4:])
    assert not diskimage.is_filesystem(image)


# ---- the kernel ------------------------------------------------------------------------------------------------------


def bz(payload: bytes, *, length: int | None = None) -> bytes:
    """Return a bzImage with one setup sector besides the boot sector."""
    image = bytearray(0x400)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 0, len(payload) if length is None else length)
    return bytes(image) + payload


def tree_with(image: bytes) -> Tree:
    tree = Tree()
    tree.write("lib/modules/6.18.1-0-virt/kernel-suffix", "-virt\n")
    tree.write("boot/vmlinuz-virt", image)
    return tree


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstandard.compress])
def test_kernels_are_unpacked(pack: Callable[[bytes], bytes]) -> None:
    """The length of the kernel follows the compressed bytes."""
    tree = tree_with(bz(pack(ELF) + struct.pack("<I", len(ELF))))
    assert uncompressed_image(tree, kernels(tree)[0]) == ELF


def test_other_kernels_are_taken_as_they_are() -> None:
    tree = tree_with(b"an Image of arm64")
    assert uncompressed_image(tree, kernels(tree)[0]) == b"an Image of arm64"


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (bz(b"LZ4!abcd"), "its compression is unknown (4c5a3421)"),
        (bz(gzip.compress(ELF), length=5000), "it is cut off"),
        (bz(gzip.compress(b"text")), "what is compressed in it is no ELF file"),
        (bz(b"\x1f\x8bbroken"), "it is damaged: Error -3 while decompressing data: unknown compression method"),
        (bz(b"\xfd7zXZ\0broken........"), "it is damaged: "),
        (bz(b"\x28\xb5\x2f\xfdbroken...."), ""),
        (b"x" * 0x202 + b"HdrS", "not a bzImage"),
    ],
)
def test_kernels_that_cannot_be_unpacked(image: bytes, reason: str) -> None:
    tree = tree_with(image)
    with pytest.raises(InputError) as caught:
        uncompressed_image(tree, kernels(tree)[0])
    assert caught.value.message.startswith(f"/boot/vmlinuz-virt: the kernel cannot be unpacked: {reason}")
    if image.startswith(b"x"):
        with pytest.raises(bzimage.BzImageError):
            bzimage.unpack(image, bytes)


# ---- Firecracker -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arch", "pci"), [("amd64", True), ("arm64", False)])
def test_the_configuration_of_firecracker(arch: str, pci: bool) -> None:
    arguments = ["root=UUID=1", "rootflags=rw", "console=tty0", "console=ttyS0,115200", "quiet"]
    config = json.loads(firecracker_config(NAMES, arch, arguments))
    source = config.pop("boot-source")
    words = source.pop("boot_args").split(" ")
    assert words[:3] == ["root=UUID=1", "rootflags=rw", "quiet"]
    assert [word for word in words if word.startswith("console=")] == ["console=ttyS0"]
    assert {"reboot=k", "panic=1"} < set(words)
    assert ("pci=off" in words) is pci
    assert source == {"kernel_image_path": NAMES.kernel, "initrd_path": NAMES.initramfs}
    assert config == {
        "drives": [{"drive_id": "rootfs", "path_on_host": NAMES.image, "is_root_device": True, "is_read_only": False}],
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 1024},
    }
