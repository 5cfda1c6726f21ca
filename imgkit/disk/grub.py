"""GRUB: the text of its configuration, its core images, and the bytes of the boot sector.

The core images are made by :mod:`imgkit.disk.grubimage` from the modules that the image itself contains, so no program
of the image runs. Layout of the boot sector and of the core image: GRUB's own sources (boot.S, diskboot.S).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from imgkit.disk.grubimage.efiimage import efi_image
from imgkit.disk.grubimage.grubmodules import GrubImageError, module_area, with_dependencies
from imgkit.disk.grubimage.kernelelf import read_kernel
from imgkit.disk.grubimage.pcimage import pc_image
from imgkit.disk.layout import SECTOR, Layout
from imgkit.errors import RecipeError
from imgkit.tree import File, Tree

EFI_NAMES: Mapping[str, str] = MappingProxyType({"x86_64-efi": "BOOTX64.EFI", "arm64-efi": "BOOTAA64.EFI"})
PACKAGES: Mapping[str, str] = MappingProxyType(
    {"i386-pc": "grub-bios", "x86_64-efi": "grub-efi", "arm64-efi": "grub-efi"}
)
# The order decides the bytes of the image. There are few modules, because firmware reads them slowly; GRUB can load
# others from the root filesystem.
_COMMON = ("part_gpt", "ext2", "search_fs_uuid", "normal", "linux", "test")
MODULES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"i386-pc": ("biosdisk", *_COMMON), "x86_64-efi": _COMMON, "arm64-efi": _COMMON}
)
FOLDER = "usr/lib/grub"
"""Where a Tree has GRUB's modules, in a folder for each platform."""
ImageOf: TypeAlias = Callable[[Tree, str, str], bytes]
"""Makes a core image like :func:`make_image`."""
_PREFIX = "/boot/grub"

BOOT_CODE = 440  # bytes of sector 0 before the disk signature and the partition table
_CORE_LBA = 0x5C  # in boot.img: sector of the core image, 64 bits
_DRIVE_CHECK = 0x66  # in boot.img: a jump over the test for hard disks
_BLOCKLIST = 0x1F4  # in the first sector of core.img: sector (64 bits), count and segment (16 bits each)
_CORE_SEGMENT = 0x0820
_CORE_LIMIT = 888  # sectors that fit from 0x9000 up to 0x78000, below the EBDA of a PC


@dataclass(frozen=True)
class BootFiles:
    """The boot loader as bytes for each place on the disk.

    Attributes:
        boot_code: the first 440 bytes of sector 0; empty if the disk does not boot from BIOS.
        core: the core image for the BIOS boot partition; empty if there is none.
        esp: paths on the EFI system partition → contents.
    """

    boot_code: bytes = b""
    core: bytes = b""
    esp: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))


def kernel_arguments(
    root_uuid: str, consoles: Sequence[str], extra: Sequence[str] = (), *, read_only: bool = False
) -> tuple[str, ...]:
    """Return the kernel command line. ``/dev/console`` writes to the last console.

    Alpine's initramfs mounts the root read-only unless ``rootflags`` has rw, and needs the type of the filesystem. With
    ``overlaytmpfs`` it mounts the root read-only in any case and covers it with a tmpfs.

    Args:
        root_uuid: UUID of the root filesystem.
        consoles: values of ``console=``.
        extra: further arguments, which come last.
        read_only: whether changes of the root are kept in memory only.
    """
    root = (f"root=UUID={root_uuid}", "rootfstype=ext4", "overlaytmpfs" if read_only else "rootflags=rw")
    return (*root, *(f"console={console}" for console in consoles), *extra)


def grub_cfg(root_uuid: str, arguments: Sequence[str], *, kernel: str = "vmlinuz-virt", initrd: str = "") -> str:
    """Return the text of ``boot/grub/grub.cfg``.

    Args:
        root_uuid: UUID of the filesystem that has ``/boot``.
        arguments: the kernel command line, from :func:`kernel_arguments`.
        kernel: name of the kernel in ``/boot``.
        initrd: name of the initramfs in ``/boot``; by default that of ``kernel``.
    """
    initrd = initrd or kernel.replace("vmlinuz", "initramfs", 1)
    words = " ".join(arguments)
    return f"""\
# Boots at once. For a menu of ten seconds, on screen and serial line, run: touch /boot/grub/menu
search.fs_uuid {root_uuid} root
set default=0
set timeout=0
if [ -e /boot/grub/menu ]; then
    set prefix=($root)/usr/lib/grub
    insmod serial
    insmod terminal
    insmod reboot
    insmod halt
    if serial --unit=0 --speed=115200; then
        terminal_input --append serial
        terminal_output --append serial
    fi
    set timeout=10
fi
menuentry "Alpine Linux" {{
    linux /boot/{kernel} {words}
    initrd /boot/{initrd}
}}
menuentry "Alpine Linux (rescue shell)" {{
    linux /boot/{kernel} {words} init=/bin/sh
    initrd /boot/{initrd}
}}
"""


def arguments_in(config: str) -> list[str]:
    """Return the kernel arguments of the first entry in the text of :func:`grub_cfg`; empty if there is none."""
    lines = (line.split() for line in config.splitlines())
    return next((words[2:] for words in lines if words[:1] == ["linux"]), [])


def early_config(root_uuid: str) -> str:
    """Return the configuration inside the core image: find the root filesystem and read the configuration there."""
    return f"search.fs_uuid {root_uuid} root\nset prefix=($root)/boot/grub\nnormal ($root)/boot/grub/grub.cfg\n"


def boot_code(boot_img: bytes, core_lba: int) -> bytes:
    """Return the first 440 bytes of the disk: those of ``boot.img``, patched to load the core image from a hard disk.

    Args:
        boot_img: the file of GRUB.
        core_lba: the sector at which the core image begins.

    Raises:
        ValueError: ``boot_img`` is not GRUB's.
    """
    if len(boot_img) != SECTOR or boot_img[0x1FE:] != b"\x55\xaa" or boot_img[:1] != b"\xeb":
        raise ValueError("not a GRUB boot.img")
    code = bytearray(boot_img[:BOOT_CODE])
    struct.pack_into("<Q", code, _CORE_LBA, core_lba)
    code[_DRIVE_CHECK : _DRIVE_CHECK + 2] = b"\x90\x90"
    return bytes(code)


def embed_core(core: bytes, core_lba: int, room: int) -> bytes:
    """Return a core image for BIOS, padded to sectors, with the position of its other sectors written into the first.

    Args:
        core: an image that :func:`make_image` made.
        core_lba: the sector of the disk at which it will begin.
        room: the bytes that are available for it.

    Raises:
        ValueError: the image is too large, or too small to be a core image.
    """
    sectors = -(-len(core) // SECTOR)
    if sectors < 2 or sectors > _CORE_LIMIT or sectors * SECTOR > room:
        raise ValueError(f"core image of {len(core)} bytes does not fit (at most {min(room, _CORE_LIMIT * SECTOR)})")
    image = bytearray(core.ljust(sectors * SECTOR, b"\0"))
    struct.pack_into("<QHH", image, _BLOCKLIST, core_lba + 1, sectors - 1, _CORE_SEGMENT)
    return bytes(image)


def make_boot_files(tree: Tree, platforms: Iterable[str], layout: Layout, image_of: ImageOf | None = None) -> BootFiles:
    """Make the boot loader from the GRUB modules in the Tree.

    Args:
        tree: the root filesystem.
        platforms: GRUB's names of the firmware that the disk boots from, such as "i386-pc" (keys of :data:`MODULES`).
        layout: the partitions, which must have room for it.
        image_of: does what :func:`make_image` does, or knows its result; None is that function.

    Raises:
        RecipeError: the Tree lacks GRUB's modules for one of them, they are damaged, or a partition is missing or too
            small.
    """
    code = core = b""
    esp: dict[str, bytes] = {}
    for platform in platforms:
        image = (image_of or make_image)(tree, platform, layout.root.fs_uuid)
        if platform in EFI_NAMES:
            esp[f"EFI/BOOT/{EFI_NAMES[platform]}"] = image
            esp["startup.nsh"] = f"\\EFI\\BOOT\\{EFI_NAMES[platform]}\r\n".encode()
            continue
        place = layout.get("bios-boot")
        if place is None:
            raise RecipeError(f"GRUB for {platform} needs a BIOS boot partition")
        try:
            code = boot_code(tree.read(f"{FOLDER}/{platform}/boot.img"), place.start_lba)
            core = embed_core(image, place.start_lba, place.size)
        except ValueError as cause:
            raise RecipeError(f"GRUB for {platform}: {cause}") from cause
    _check_esp(layout, esp)
    return BootFiles(code, core, MappingProxyType(esp))


def _check_esp(layout: Layout, files: Mapping[str, bytes]) -> None:
    """Refuse an ESP that is missing or too small for the boot loader (with a tenth and 256 KiB for FAT itself)."""
    if not files:
        return
    place = layout.get("esp")
    if place is None:
        raise RecipeError("UEFI needs an EFI system partition")
    needed = sum(map(len, files.values())) * 11 // 10 + (256 << 10)
    if place.size < needed:
        raise RecipeError(
            f"EFI system partition of {place.size >> 10} KiB is too small for GRUB, which needs {needed >> 10} KiB",
            hint=f"make it {max(16, -(-needed // (1 << 20)))} MiB",
        )


def make_image(tree: Tree, platform: str, root_uuid: str) -> bytes:
    """Make a core image (BIOS) or an EFI application from the modules in the Tree.

    Equal inputs make equal bytes.

    Raises:
        RecipeError: the Tree lacks GRUB's modules for this platform, or no image can be made of them.
    """
    files = _GrubFiles(tree, platform)
    names = [f"{module}.mod" for module in MODULES[platform]]
    files.require((*names, "kernel.img", "moddep.lst"))
    order = with_dependencies(MODULES[platform], files.read("moddep.lst").decode(errors="replace"))
    files.require([f"{module}.mod" for module in order])
    modules = {module: files.read(f"{module}.mod") for module in order}
    bits = 64 if platform in EFI_NAMES else 32
    try:
        kernel = read_kernel(files.read("kernel.img"), bits)
        area = module_area(modules, early_config(root_uuid), _PREFIX, bits)
        if platform in EFI_NAMES:
            return efi_image(kernel, area)
        files.require(("lzma_decompress.img", "diskboot.img"))
        return pc_image(kernel, area, files.read("lzma_decompress.img"), files.read("diskboot.img"))
    except GrubImageError as cause:
        raise RecipeError(f"GRUB for {platform}: {cause}", hint=f"check the package {PACKAGES[platform]}") from cause


class _GrubFiles:
    """The files of GRUB for a platform, in the Tree."""

    def __init__(self, tree: Tree, platform: str) -> None:
        self._where, self._package, self._platform = f"{FOLDER}/{platform}", PACKAGES[platform], platform
        nodes = ((path.rpartition("/")[2], tree.stat(path)) for path in tree.children(tree.resolve(self._where)))
        self._contents = {name: node.content for name, node in nodes if isinstance(node, File)}

    def require(self, names: Iterable[str]) -> None:
        """Check that the files are there.

        Raises:
            RecipeError: one of them is not.
        """
        for name in names:
            if name not in self._contents:
                raise RecipeError(
                    f"GRUB's modules for {self._platform} are not in the image ({self._where}/{name})",
                    hint=f"add {self._package} to the packages",
                )

    def read(self, name: str) -> bytes:
        """Return the content of a file that is there."""
        return self._contents[name].read()
