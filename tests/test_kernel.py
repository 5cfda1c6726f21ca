"""Kernels of a Tree, and the image inside an EFI zboot file."""

from __future__ import annotations

import gzip
import lzma
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.mirror import Mirror
from imgkit.errors import InputError
from imgkit.host.kernelrelease import release_key
from imgkit.rootfs.kernel import Kernel, direct_boot_image, find_kernel, is_zboot, kernels, unpack_zboot
from imgkit.tree import Tree
from tests.trees import tree_from_tar

IMAGE = bytes(0x38) + b"ARMd" + bytes(range(256))


def zboot(payload: bytes, method: bytes = b"gzip", *, size: int | None = None, offset: int = 0x200) -> bytes:
    header = struct.pack("<2sxx4sII8x32s", b"MZ", b"zimg", offset, len(payload) if size is None else size, method)
    return header.ljust(offset, b"\0") + payload + b"signature"


def tree_of(*releases: str) -> Tree:
    tree = Tree()
    for release in releases:
        suffix = "-" + release.rpartition("-")[2]
        tree.write(f"lib/modules/{release}/kernel-suffix", suffix + "\n")
        tree.write(f"boot/vmlinuz{suffix}", b"image")
    return tree


def test_a_kernel_and_its_files() -> None:
    (kernel,) = kernels(tree_of("6.18.56-0-virt"))
    assert kernel == Kernel("6.18.56-0-virt", "lib/modules/6.18.56-0-virt", "-virt")
    assert (kernel.flavour, kernel.image, kernel.initramfs) == ("virt", "boot/vmlinuz-virt", "boot/initramfs-virt")


def test_the_newest_comes_last_by_number() -> None:
    releases = ["6.18.2-0-lts", "6.9.10-1-virt", "6.18.10-0-edge"]
    assert [kernel.release for kernel in kernels(tree_of(*releases))] == [
        "6.9.10-1-virt",
        "6.18.2-0-lts",
        "6.18.10-0-edge",
    ]


@given(st.lists(st.integers(0, 99), min_size=3, max_size=4), st.lists(st.integers(0, 99), min_size=3, max_size=4))
def test_keys_order_as_numbers_do(left: list[int], right: list[int]) -> None:
    keys = [release_key(".".join(map(str, numbers)) + "-virt") for numbers in (left, right)]
    if len(left) == len(right):
        assert (keys[0] < keys[1]) == (left < right)


def test_left_over_modules_are_no_kernel() -> None:
    tree = tree_of("6.18.56-0-virt")
    tree.write("lib/modules/6.1.0-0-lts/initramfs-suffix", "-lts\n")
    tree.write("lib/modules/file", "x")
    assert [kernel.release for kernel in kernels(tree)] == ["6.18.56-0-virt"]
    assert kernels(Tree()) == ()


def test_merged_usr() -> None:
    tree = Tree()
    tree.mkdir("usr/lib")
    tree.symlink("lib", "usr/lib")
    tree.write("lib/modules/6.18.0-0-virt/kernel-suffix", "-virt")
    assert find_kernel(tree, "6.18.0-0-virt").directory == "usr/lib/modules/6.18.0-0-virt"


@pytest.mark.parametrize(("release", "suffix"), [("6.1.0-0-lts", "-lts"), ("6.1.0", ""), ("6.1-2-rpi-4", "-rpi-4")])
def test_suffix_without_the_package_saying_so(release: str, suffix: str) -> None:
    tree = Tree()
    tree.mkdir(f"lib/modules/{release}")
    assert find_kernel(tree, release).suffix == suffix


def test_a_suffix_that_leaves_boot_is_refused() -> None:
    tree = Tree()
    tree.write("lib/modules/6/kernel-suffix", "-../../etc/passwd")
    with pytest.raises(InputError, match="/lib/modules/6/kernel-suffix"):
        find_kernel(tree, "6")


def test_a_kernel_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"/lib/modules/6\.1: no modules"):
        find_kernel(Tree(), "6.1")


@pytest.mark.parametrize("trailer", [b"", b"\x00\x01\x00\x00"])
@pytest.mark.parametrize(
    ("method", "payload"),
    [
        (b"gzip", gzip.compress(IMAGE)),
        (b"xzkern", lzma.compress(IMAGE, check=lzma.CHECK_CRC32)),
        (b"lzma", lzma.compress(IMAGE, lzma.FORMAT_ALONE)),
    ],
)
def test_unpack(method: bytes, payload: bytes, trailer: bytes) -> None:
    packed = zboot(payload + trailer, method)
    assert is_zboot(packed)
    assert unpack_zboot(packed, "boot/vmlinuz-virt") == IMAGE


@pytest.mark.parametrize("image", [b"", b"MZ", IMAGE, b"MZ\0\0" + bytes(600)])
def test_other_images_stay(image: bytes) -> None:
    assert not is_zboot(image)
    assert unpack_zboot(image, "boot/vmlinuz-virt") == image


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (zboot(gzip.compress(IMAGE))[:40], "cut off"),
        (zboot(gzip.compress(IMAGE), size=1 << 20), "cut off"),
        (zboot(gzip.compress(IMAGE)[:-20]), "cut off"),
        (zboot(b"no gzip at all"), "damaged"),
        (zboot(gzip.compress(IMAGE)[:-5] + b"wrong"), "damaged"),
        (zboot(gzip.compress(bytes(100))), "not an arm64 kernel"),
        (zboot(gzip.compress(IMAGE), b"zstd22"), "compressed with zstd22"),
    ],
)
def test_bad_images(image: bytes, message: str) -> None:
    with pytest.raises(InputError, match=f"^/boot/vmlinuz-virt: .*{message}"):
        unpack_zboot(image, "boot/vmlinuz-virt")


def test_an_image_that_ends_with_its_payload() -> None:
    packed = zboot(gzip.compress(IMAGE)).removesuffix(b"signature")
    assert unpack_zboot(packed, "boot/vmlinuz-virt") == IMAGE
    with pytest.raises(InputError, match=r"^/boot/vmlinuz-virt: kernel image is cut off$"):
        unpack_zboot(packed[:-1], "boot/vmlinuz-virt")


def test_an_image_that_is_its_header() -> None:
    header = zboot(b"", offset=56).removesuffix(b"signature")
    assert len(header) == 56
    with pytest.raises(InputError, match=r"^/boot/vmlinuz-virt: kernel image is cut off, or larger than 256 MiB$"):
        unpack_zboot(header, "boot/vmlinuz-virt")
    with pytest.raises(InputError, match=r"^/boot/vmlinuz-virt: kernel image is cut off$"):
        unpack_zboot(header[:-1], "boot/vmlinuz-virt")


def test_a_stream_of_zlib_is_no_gzip() -> None:
    with pytest.raises(InputError, match=r"kernel image is damaged: .*incorrect header check"):
        unpack_zboot(zboot(zlib.compress(IMAGE)), "boot/vmlinuz-virt")


def test_a_stream_that_wants_much_memory_is_not_unpacked() -> None:
    """The size of the dictionary is at 1 (LZMA file format): here 512 MiB."""
    stream = bytearray(lzma.compress(IMAGE, lzma.FORMAT_ALONE))
    struct.pack_into("<I", stream, 1, 512 << 20)
    with pytest.raises(InputError, match="kernel image is damaged: Memory usage limit exceeded"):
        unpack_zboot(zboot(bytes(stream), b"lzma"), "boot/vmlinuz-virt")


def test_an_image_without_a_method_names_none() -> None:
    with pytest.raises(InputError) as caught:
        unpack_zboot(zboot(gzip.compress(IMAGE), b""), "x")
    assert caught.value.message == "/x: kernel image is compressed with nothing, which cannot be unpacked here"


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgkit.rootfs.kernel.MAX_IMAGE", 1 << 20)
    with pytest.raises(InputError, match="larger than 1 MiB"):
        unpack_zboot(zboot(gzip.compress(IMAGE + bytes(1 << 20))), "boot/vmlinuz-virt")


def test_image_of_a_kernel_in_the_tree() -> None:
    tree = tree_of("6.18.0-0-virt")
    (kernel,) = kernels(tree)
    assert direct_boot_image(tree, kernel) == b"image"
    tree.write(kernel.image, zboot(gzip.compress(IMAGE)))
    assert direct_boot_image(tree, kernel) == IMAGE
    tree.remove(kernel.image)
    with pytest.raises(InputError, match="/boot/vmlinuz-virt: no image"):
        direct_boot_image(tree, kernel)


@pytest.mark.mirror
def test_real_kernels(mirror: Mirror) -> None:
    for architecture, packed in (("x86_64", False), ("aarch64", True)):
        tree = tree_from_tar(mirror.oracle[architecture])
        (kernel,) = kernels(tree)
        image = tree.read(kernel.image)
        assert is_zboot(image) is packed
        assert (direct_boot_image(tree, kernel) == image) is not packed
