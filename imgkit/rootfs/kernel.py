"""Find the kernels of a Tree, and get their images in the form that QEMU boots directly.

newest = kernels(tree)[-1]
image = direct_boot_image(tree, newest)
"""

from __future__ import annotations

import lzma
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Protocol

import zstandard

from imgkit.disk import bzimage
from imgkit.errors import InputError
from imgkit.host.kernelrelease import release_key
from imgkit.tree import Directory, File, Tree, TreeError

_MODULES = "lib/modules"
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
    """The release that ``uname -r`` prints: ``6.18.56-0-virt``."""
    directory: str
    """The folder of its modules: ``lib/modules/6.18.56-0-virt``."""
    suffix: str
    """The end of the names of its files in ``boot``: ``-virt``."""

    @property
    def flavour(self) -> str:
        """The kernel's variant in Alpine: ``virt``, ``lts``, …"""
        return self.suffix.removeprefix("-")

    @property
    def image(self) -> str:
        """The path of its image: ``boot/vmlinuz-virt``."""
        return "boot/vmlinuz" + self.suffix

    @property
    def initramfs(self) -> str:
        """The path of its initramfs: ``boot/initramfs-virt``."""
        return "boot/initramfs" + self.suffix


def kernels(tree: Tree) -> tuple[Kernel, ...]:
    """Return all kernels of the Tree that have modules and an image, the newest last.

    A folder of modules without an image is ignored: a removed package left it behind.
    """
    folders = [path for path in tree.children(_modules(tree)) if isinstance(tree.get(path), Directory)]
    with_modules = [find_kernel(tree, path.rpartition("/")[2]) for path in folders]
    bootable = [candidate for candidate in with_modules if isinstance(tree.stat(candidate.image), File)]
    return tuple(sorted(bootable, key=lambda candidate: release_key(candidate.release)))


def find_kernel(tree: Tree, release: str) -> Kernel:
    """Return the kernel ``release``, whose modules the Tree has.

    Raises:
        InputError: the Tree has no modules for this kernel, or the suffix that the kernel's package states is improper.
    """
    directory = f"{_modules(tree)}/{release}"
    if not isinstance(tree.get(directory), Directory):
        raise InputError(f"/{directory}: no modules for this kernel", hint="add a kernel package, such as linux-virt")
    return Kernel(release, directory, _suffix(tree, directory, release))


def _modules(tree: Tree) -> str:
    """Return the folder of modules, which is below ``usr`` in a usr-merged Tree."""
    return tree.resolve(_MODULES)


def _suffix(tree: Tree, directory: str, release: str) -> str:
    """Return the suffix that the package states, or else what follows the last number of the release.

    Alpine's trigger of mkinitfs has the same rule.
    """
    if tree.stat(f"{directory}/kernel-suffix") is not None:
        suffix = tree.text(f"{directory}/kernel-suffix").strip()
        if not re.fullmatch(r"(-[\w.+-]+)?", suffix):
            raise InputError(f"/{directory}/kernel-suffix: {suffix!r} is not a valid suffix of a kernel")
        return suffix
    last = re.match(r".*\d-(.+)", release)
    return f"-{last[1]}" if last else ""


def direct_boot_image(tree: Tree, kernel: Kernel) -> bytes:
    """Return the image of a kernel for ``qemu -kernel``: an EFI zboot image is unpacked, others are returned unchanged.

    Raises:
        InputError: the Tree has no image of this kernel, or the image cannot be unpacked.
    """
    try:
        return unpack_zboot(tree.read(kernel.image, MAX_IMAGE), kernel.image)
    except TreeError as cause:
        raise InputError(f"/{kernel.image}: no image for kernel {kernel.release}") from cause


def uncompressed_image(tree: Tree, kernel: Kernel) -> bytes:
    """Return the image of a kernel for monitors that unpack none: an ELF file for x86, an Image for arm64.

    Raises:
        InputError: the Tree has no image of this kernel, or the image cannot be unpacked.
    """
    image = direct_boot_image(tree, kernel)
    if not bzimage.is_bzimage(image):
        return image
    try:
        return bzimage.unpack(image, _unzstd)
    except (bzimage.BzImageError, zstandard.ZstdError) as cause:
        raise InputError(f"/{kernel.image}: the kernel cannot be unpacked: {cause}") from cause


def _unzstd(payload: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(payload)


def is_zboot(image: bytes) -> bool:
    """Return whether this is a compressed EFI image, with which ``-kernel`` of QEMU before 8.0 hangs silently."""
    return image[:2] == _MZ and image[4:8] == _ZIMG


class _Decompressor(Protocol):
    """The common interface of the decompressors of :mod:`zlib` and :mod:`lzma`."""

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """Return up to ``max_length`` decompressed bytes."""
        ...

    @property
    def eof(self) -> bool:
        """Whether the end of the stream was reached."""
        ...


def unpack_zboot(image: bytes, name: str) -> bytes:
    """Return the kernel inside an EFI zboot image; any other image is returned unchanged.

    Args:
        image: the whole file.
        name: its name in an error.

    Raises:
        InputError: it is damaged, its compression is unknown, or it has no arm64 Image inside.
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
        raise InputError(f"/{name}: the compressed content is not an arm64 kernel")
    return unpacked


def _decompress(payload: bytes, method: str, name: str) -> bytes:
    """Decompress one stream; bytes after it (a length, for all methods but gzip) are ignored."""
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
