"""The kernels in a Tree, and their images in the form that QEMU boots directly."""

from __future__ import annotations

import lzma
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Protocol

from imgkit.errors import InputError
from imgkit.tree import Directory, File, Tree, TreeError

MODULES = "lib/modules"
MAX_IMAGE = 256 << 20  # bytes of an unpacked kernel; Alpine's has 36 MB

# drivers/firmware/efi/libstub/zboot-header.S: "MZ", then at 4 "zimg", payload offset, payload size, eight bytes
# reserved, and the name of the compression.
_ZBOOT = struct.Struct("<2sxx4sIIxxxxxxxx32s")
_MZ, _ZIMG = b"MZ", b"zimg"
# Documentation/arch/arm64/booting.rst: magic at 56.
_ARM64_MAGIC, _ARM64_AT = b"ARMd", 0x38


@dataclass(frozen=True)
class Kernel:
    """One kernel of a Tree. Paths are those of the Tree."""

    release: str
    """What ``uname -r`` says: ``6.18.56-0-virt``."""
    directory: str
    """Where its modules are: ``lib/modules/6.18.56-0-virt``."""
    suffix: str
    """What its files in ``boot`` end in: ``-virt``."""

    @property
    def flavour(self) -> str:
        """``virt``, ``lts``, …"""
        return self.suffix.removeprefix("-")

    @property
    def image(self) -> str:
        return "boot/vmlinuz" + self.suffix

    @property
    def initramfs(self) -> str:
        return "boot/initramfs" + self.suffix


def kernels(tree: Tree) -> tuple[Kernel, ...]:
    """All kernels of the Tree that have modules and an image, the newest last.

    A folder of modules whose kernel is gone (what a removed package left behind) does not count.
    """
    found = [
        kernel(tree, path.rpartition("/")[2])
        for path in tree.children(_modules(tree))
        if isinstance(tree.get(path), Directory)
    ]
    return tuple(
        sorted(
            (one for one in found if isinstance(tree.stat(one.image), File)), key=lambda one: release_key(one.release)
        )
    )


def kernel(tree: Tree, release: str) -> Kernel:
    """The kernel ``release``, whose modules the Tree has.

    Raises:
        InputError: it has not.
    """
    directory = f"{_modules(tree)}/{release}"
    if not isinstance(tree.get(directory), Directory):
        raise InputError(f"/{directory}: no modules for this kernel", hint="add a kernel package, such as linux-virt")
    return Kernel(release, directory, _suffix(tree, directory, release))


def _modules(tree: Tree) -> str:
    """The folder of modules, usr-merged or not."""
    return tree.resolve(MODULES)


def _suffix(tree: Tree, directory: str, release: str) -> str:
    """What the package says, or else what follows the last number of the release, as Alpine's trigger has it."""
    if tree.stat(f"{directory}/kernel-suffix") is not None:
        suffix = tree.text(f"{directory}/kernel-suffix").strip()
        if not re.fullmatch(r"(-[\w.+-]+)?", suffix):
            raise InputError(f"/{directory}/kernel-suffix: {suffix!r} is no suffix of a kernel")
        return suffix
    last = re.match(r".*\d-(.+)", release)
    return f"-{last[1]}" if last else ""


def release_key(release: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts releases by their numbers: 6.9 comes before 6.18."""
    return tuple((int(word), "") if word.isdigit() else (-1, word) for word in re.findall(r"\d+|[A-Za-z]+", release))


def direct_boot_image(tree: Tree, one: Kernel) -> bytes:
    """The image of a kernel as ``qemu -kernel`` takes it: an EFI zboot image is unpacked, anything else is as it is.

    Raises:
        InputError: the Tree has no image for it, or it cannot be unpacked.
    """
    try:
        return unpack_zboot(tree.read(one.image, MAX_IMAGE), one.image)
    except TreeError as cause:
        raise InputError(f"/{one.image}: no image for kernel {one.release}") from cause


def is_zboot(image: bytes) -> bool:
    """Whether this is a compressed EFI image; versions of QEMU before 8.0 hang silently with ``-kernel`` and one."""
    return image[:2] == _MZ and image[4:8] == _ZIMG


class _Decompressor(Protocol):
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...

    @property
    def eof(self) -> bool: ...


def unpack_zboot(image: bytes, name: str) -> bytes:
    """The kernel inside an EFI zboot image; any other image is returned as it is.

    Args:
        image: the whole file.
        name: what to call it in an error.

    Raises:
        InputError: it is damaged, is compressed in a way that is not known, or has no arm64 Image inside.
    """
    if not is_zboot(image):
        return image
    if len(image) < _ZBOOT.size:
        raise InputError(f"/{name}: kernel image is cut off")
    _, _, offset, size, compression = _ZBOOT.unpack_from(image)
    method = compression.partition(b"\0")[0].decode(errors="replace")
    payload = memoryview(image)[offset : offset + size]
    if len(payload) < size:
        raise InputError(f"/{name}: kernel image is cut off")
    unpacked = _decompress(bytes(payload), method, name)
    if unpacked[_ARM64_AT : _ARM64_AT + 4] != _ARM64_MAGIC:
        raise InputError(f"/{name}: what is compressed in it is no arm64 kernel")
    return unpacked


def _decompress(payload: bytes, method: str, name: str) -> bytes:
    """One compressed stream; bytes behind it (a length, for all methods but gzip) are ignored."""
    try:
        decompressor = _decompressor(method, name)
        unpacked = decompressor.decompress(payload, MAX_IMAGE)
    except (zlib.error, lzma.LZMAError, EOFError) as cause:
        raise InputError(f"/{name}: kernel image is damaged: {cause}") from cause
    if not decompressor.eof:
        raise InputError(f"/{name}: kernel image is cut off, or larger than {MAX_IMAGE >> 20} MiB")
    return unpacked


def _decompressor(method: str, name: str) -> _Decompressor:
    if method == "gzip":
        return zlib.decompressobj(wbits=31)
    if method in ("xzkern", "xz", "lzma"):
        return lzma.LZMADecompressor(memlimit=MAX_IMAGE)
    raise InputError(f"/{name}: kernel image is compressed with {method or 'nothing'}, which cannot be unpacked here")
