"""GRUB: configuration text, boot sector, core image."""

from __future__ import annotations

import re
import struct
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgkit.disk import grub
from imgkit.disk.layout import SizedPartition, make_layout
from imgkit.errors import RecipeError
from imgkit.tree import Tree
from tests.conftest import need_program
from tests.grubfiles import fake_boot_img, grub_tree, unpacked
from tests.layouts import PLATFORMS, SPECS

if TYPE_CHECKING:
    pass

UUID = "e9233e7e-5284-59e5-a669-ca097b623c70"
LAYOUT = make_layout(SPECS["amd64"], 1 << 30, uuid.UUID(int=1))


def sized(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every image have ``size`` bytes."""
    monkeypatch.setattr(grub, "make_image", lambda *_: bytes(size))


def test_the_command_line_mounts_root_by_uuid_and_writable() -> None:
    words = grub.kernel_arguments(UUID, ("tty0", "ttyS0,115200"), ("quiet",))
    assert words == (
        f"root=UUID={UUID}",
        "rootfstype=ext4",
        "rootflags=rw",
        "console=tty0",
        "console=ttyS0,115200",
        "quiet",
    )


def test_the_configuration_names_kernel_and_its_initramfs() -> None:
    text = grub.grub_cfg(UUID, ("a", "b"), kernel="vmlinuz-lts")
    assert "linux /boot/vmlinuz-lts a b\n" in text
    assert "initrd /boot/initramfs-lts\n" in text
    assert "set timeout=0" in text
    assert text.index("search.fs_uuid") < text.index("[ -e /boot/grub/menu ]")


def test_grubs_own_checker_accepts_the_configuration(tmp_path: Path) -> None:
    checker = need_program("grub-script-check")
    good = tmp_path / "grub.cfg"
    good.write_text(grub.grub_cfg(UUID, ("root=x",)))
    assert subprocess.run([checker, good]).returncode == 0
    bad = tmp_path / "bad.cfg"
    bad.write_text(good.read_text().replace("\n}", "\n"))
    assert subprocess.run([checker, bad], capture_output=True).returncode != 0


def test_boot_code_is_patched_and_stops_before_the_partition_table() -> None:
    code = grub.boot_code(fake_boot_img(), 2048)
    assert len(code) == 440
    assert struct.unpack_from("<Q", code, 0x5C) == (2048,)
    assert code[0x66:0x68] == b"\x90\x90"


@pytest.mark.parametrize("image", [b"", b"\0" * 512, fake_boot_img()[:-1], fake_boot_img()[:510] + b"\0\0"])
def test_what_is_no_boot_img_is_refused(image: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a GRUB boot\.img"):
        grub.boot_code(image, 2048)


def test_the_core_image_knows_where_its_other_sectors_are() -> None:
    image = grub.embed_core(b"\1" * 1300, 2048, 1 << 20)
    assert len(image) == 3 * 512
    assert struct.unpack_from("<QHH", image, 0x1F4) == (2049, 2, 0x0820)
    assert image[1300:] == b"\0" * 236


@pytest.mark.parametrize(("size", "room"), [(100, 1 << 20), (2000, 1024), (889 * 512, 1 << 20)])
def test_a_core_image_that_does_not_fit_is_refused(size: int, room: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        grub.embed_core(b"x" * size, 2048, room)


def test_boot_files_for_both_firmwares() -> None:
    tree = grub_tree("i386-pc", "x86_64-efi")
    files = grub.make_boot_files(tree, PLATFORMS["amd64"], LAYOUT)
    assert set(files.esp) == {"EFI/BOOT/BOOTX64.EFI", "startup.nsh"}
    assert files.esp["EFI/BOOT/BOOTX64.EFI"] == grub.make_image(tree, "x86_64-efi", LAYOUT.root.fs_uuid)
    assert files.esp["startup.nsh"] == b"\\EFI\\BOOT\\BOOTX64.EFI\r\n"
    image = grub.make_image(tree, "i386-pc", LAYOUT.root.fs_uuid)
    assert files.core == grub.embed_core(image, 2048, 1 << 20)
    assert len(files.boot_code) == 440


def test_missing_modules_name_the_package() -> None:
    with pytest.raises(RecipeError, match=r"i386-pc are not in the image \(usr/lib/grub/i386-pc/biosdisk\.mod\)") as e:
        grub.make_boot_files(Tree(), PLATFORMS["amd64"], LAYOUT)
    assert e.value.hint == "add grub-bios to the packages"


def test_an_esp_that_is_too_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sized(2000000, monkeypatch)
    small = make_layout((SizedPartition("esp", 1 << 20), SizedPartition("root")), 1 << 30, uuid.UUID(int=1))
    with pytest.raises(RecipeError, match="EFI system partition of 1024 KiB is too small") as e:
        grub.make_boot_files(grub_tree("arm64-efi"), PLATFORMS["arm64"], small)
    assert e.value.hint == "make it 16 MiB"
    none = make_layout((SizedPartition("root"),), 1 << 30, uuid.UUID(int=1))
    with pytest.raises(RecipeError, match="needs an EFI system partition"):
        grub.make_boot_files(grub_tree("arm64-efi"), PLATFORMS["arm64"], none)


# ---- boundaries ------------------------------------------------------------------------------------------------------


def test_a_read_only_root_is_covered_by_a_tmpfs() -> None:
    words = grub.kernel_arguments(UUID, ("ttyS0",), read_only=True)
    assert words == (f"root=UUID={UUID}", "rootfstype=ext4", "overlaytmpfs", "console=ttyS0")


def test_the_whole_configuration() -> None:
    text = grub.grub_cfg(UUID, ("a", "b"))
    assert text.splitlines()[1:4] == [f"search.fs_uuid {UUID} root", "set default=0", "set timeout=0"]
    assert "    linux /boot/vmlinuz-virt a b\n    initrd /boot/initramfs-virt\n" in text
    assert "    linux /boot/vmlinuz-virt a b init=/bin/sh\n    initrd /boot/initramfs-virt\n" in text
    assert "initrd /boot/other\n" in grub.grub_cfg(UUID, (), kernel="vmlinuz-x", initrd="other")
    assert grub.early_config(UUID) == (
        f"search.fs_uuid {UUID} root\nset prefix=($root)/boot/grub\nnormal ($root)/boot/grub/grub.cfg\n"
    )


def test_boot_code_keeps_the_rest_of_boot_img() -> None:
    image = bytes(number % 251 for number in range(512))
    image = b"\xeb" + image[1:0x1FE] + b"\x55\xaa"
    code = grub.boot_code(image, 0x1122334455667788)
    assert code[:0x5C] == image[:0x5C]
    assert code[0x5C:0x64] == bytes.fromhex("8877665544332211")
    assert code[0x64:0x66] == image[0x64:0x66]
    assert code[0x68:] == image[0x68:440]


@pytest.mark.parametrize(
    ("size", "room", "fits"),
    [
        (512, 1 << 20, False), (513, 1 << 20, True), (1024, 1024, True), (1025, 1024, False), (1024, 1023, False),
        (888 * 512, 1 << 20, True), (888 * 512 + 1, 1 << 20, False),
    ],
)  # fmt: skip
def test_sizes_of_core_images(size: int, room: int, fits: bool) -> None:
    if fits:
        assert len(grub.embed_core(b"x" * size, 2048, room)) == -(-size // 512) * 512
    else:
        with pytest.raises(ValueError, match="does not fit") as refusal:
            grub.embed_core(b"x" * size, 2048, room)
        assert str(refusal.value) == f"core image of {size} bytes does not fit (at most {min(room, 888 * 512)})"


def test_bios_needs_a_partition_and_a_boot_img() -> None:
    tree = grub_tree("i386-pc")
    with pytest.raises(RecipeError, match=r"^GRUB for i386-pc needs a BIOS boot partition$"):
        grub.make_boot_files(tree, ("i386-pc",), make_layout((SizedPartition("root"),), 1 << 30, uuid.UUID(int=1)))
    tree.write("usr/lib/grub/i386-pc/boot.img", b"")
    with pytest.raises(RecipeError, match=r"^GRUB for i386-pc: not a GRUB boot\.img$"):
        grub.make_boot_files(tree, ("i386-pc",), LAYOUT)


def test_a_disk_for_bios_alone_has_nothing_for_efi() -> None:
    files = grub.make_boot_files(grub_tree("i386-pc"), ("i386-pc",), LAYOUT)
    assert files.esp == {}
    assert struct.unpack_from("<Q", files.boot_code, 0x5C) == (2048,)
    assert struct.unpack_from("<QH", files.core, 0x1F4) == (2049, len(files.core) // 512 - 1)
    assert grub.BootFiles() == grub.BootFiles(b"", b"", {})


def test_the_room_that_an_esp_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth and 256 KiB more than the files: an image of 714,914 bytes and startup.nsh fit 1 MiB exactly."""
    startup = len(b"\\EFI\\BOOT\\BOOTAA64.EFI\r\n")
    largest = 714_939 - startup
    assert (largest + startup) * 11 // 10 == (1 << 20) - (256 << 10)
    small = make_layout((SizedPartition("esp", 1 << 20), SizedPartition("root")), 1 << 30, uuid.UUID(int=1))
    sized(largest, monkeypatch)
    grub.make_boot_files(grub_tree("arm64-efi"), ("arm64-efi",), small)
    sized(largest + 1, monkeypatch)
    with pytest.raises(RecipeError, match=r"partition of 1024 KiB is too small for GRUB, which needs 1024 KiB$"):
        grub.make_boot_files(grub_tree("arm64-efi"), ("arm64-efi",), small)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_order_of_the_platforms_does_not_matter(reverse: bool) -> None:
    tree = grub_tree("i386-pc", "x86_64-efi")
    files = grub.make_boot_files(tree, sorted(PLATFORMS["amd64"], reverse=reverse), LAYOUT)
    assert (len(files.boot_code), len(files.core) % 512, len(files.esp)) == (440, 0, 2)
    assert files == grub.make_boot_files(tree, sorted(PLATFORMS["amd64"]), LAYOUT)


def test_a_disk_for_bios_alone_needs_no_esp() -> None:
    layout = make_layout((SizedPartition("bios-boot", 1 << 20), SizedPartition("root")), 1 << 30, uuid.UUID(int=1))
    assert grub.make_boot_files(grub_tree("i386-pc"), ("i386-pc",), layout).esp == {}


def test_the_esp_that_is_proposed_holds_a_large_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    sized(20 << 20, monkeypatch)
    with pytest.raises(RecipeError) as refusal:
        grub.make_boot_files(grub_tree("arm64-efi"), ("arm64-efi",), LAYOUT)
    assert refusal.value.hint == "make it 23 MiB"


LATER = ["boot.mod", "lzma_decompress.img", "diskboot.img"]


@pytest.mark.parametrize("lacking", ["kernel.img", "moddep.lst", "ext2.mod", *LATER])
def test_every_file_that_is_needed_is_missed(lacking: str) -> None:
    tree = grub_tree("i386-pc")
    tree.remove(f"usr/lib/grub/i386-pc/{lacking}")
    with pytest.raises(RecipeError, match=rf"not in the image \(usr/lib/grub/i386-pc/{lacking}\)"):
        grub.make_image(tree, "i386-pc", UUID)


def test_the_configuration_to_the_letter() -> None:
    assert (
        grub.grub_cfg(UUID, ("a", "b"), kernel="vmlinuz-lts")
        == f"""\
# Boots at once. For a menu of ten seconds, on screen and serial line, run: touch /boot/grub/menu
search.fs_uuid {UUID} root
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
    linux /boot/vmlinuz-lts a b
    initrd /boot/initramfs-lts
}}
menuentry "Alpine Linux (rescue shell)" {{
    linux /boot/vmlinuz-lts a b init=/bin/sh
    initrd /boot/initramfs-lts
}}
"""
    )
    assert "initrd /boot/initramfs-vmlinuz\n" in grub.grub_cfg(UUID, (), kernel="vmlinuz-vmlinuz")


@pytest.mark.parametrize(
    ("platform", "modules", "name"),
    [
        ("i386-pc", "biosdisk part_gpt ext2 search_fs_uuid boot normal linux test", None),
        ("x86_64-efi", "part_gpt ext2 search_fs_uuid boot normal linux test", "BOOTX64.EFI"),
        ("arm64-efi", "part_gpt ext2 search_fs_uuid boot normal linux test", "BOOTAA64.EFI"),
    ],
)
def test_the_modules_of_a_core_image(platform: str, modules: str, name: str | None) -> None:
    """Their order decides the bytes of the image."""
    files = grub.make_boot_files(grub_tree(platform), (platform,), LAYOUT)
    if name is None:
        assert files.esp == {}
        image = unpacked(files.core)
    else:
        assert (files.core, files.boot_code) == (b"", b"")
        image = files.esp[f"EFI/BOOT/{name}"]
        assert set(files.esp) == {f"EFI/BOOT/{name}", "startup.nsh"}
        assert files.esp["startup.nsh"] == f"\\EFI\\BOOT\\{name}\r\n".encode()
    assert b" ".join(re.findall(rb"module (\w+)", image)).decode() == modules
    assert grub.early_config(LAYOUT.root.fs_uuid).encode() + b"\0" in image
    assert b"/boot/grub\0" in image[image.index(b"module test") :]


@pytest.mark.parametrize(
    ("platform", "package"), [("i386-pc", "grub-bios"), ("x86_64-efi", "grub-efi"), ("arm64-efi", "grub-efi")]
)
def test_the_first_file_that_lacks_is_named_with_its_package(platform: str, package: str) -> None:
    tree = grub_tree(platform)
    where = f"usr/lib/grub/{platform}"
    for name in ("linux.mod", "test.mod", "kernel.img"):
        tree.remove(f"{where}/{name}")
    with pytest.raises(RecipeError) as refusal:
        grub.make_image(tree, platform, UUID)
    assert refusal.value.message == f"GRUB's modules for {platform} are not in the image ({where}/linux.mod)"
    assert refusal.value.hint == f"add {package} to the packages"


def test_only_files_are_modules() -> None:
    tree = grub_tree("arm64-efi")
    tree.remove("usr/lib/grub/arm64-efi/linux.mod")
    tree.mkdir("usr/lib/grub/arm64-efi/linux.mod")
    with pytest.raises(RecipeError, match=r"not in the image \(usr/lib/grub/arm64-efi/linux\.mod\)"):
        grub.make_image(tree, "arm64-efi", UUID)


def test_modules_may_lie_behind_a_link() -> None:
    """As with a merged /usr: the folder is looked up as the image's own programs see it."""
    tree, modules = Tree(), grub_tree("arm64-efi")
    for path in modules.children("usr/lib/grub/arm64-efi"):
        tree.write(path.replace("usr/lib/", "opt/"), modules.read(path))
    tree.symlink("usr/lib", "/opt")
    assert grub.make_image(tree, "arm64-efi", UUID) == grub.make_image(modules, "arm64-efi", UUID)


def test_a_loader_that_needs_the_whole_esp_fits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sized(16 << 20, monkeypatch)
    with pytest.raises(RecipeError) as refusal:
        grub.make_boot_files(grub_tree("arm64-efi"), ("arm64-efi",), LAYOUT)
    needed = ((16 << 20) + len("\\EFI\\BOOT\\BOOTAA64.EFI\r\n")) * 11 // 10 + (256 << 10)
    assert refusal.value.message == (
        f"EFI system partition of 16384 KiB is too small for GRUB, which needs {needed >> 10} KiB"
    )
    assert refusal.value.hint == "make it 18 MiB"
