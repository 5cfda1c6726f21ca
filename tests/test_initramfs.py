"""The initramfs: mkinitfs's configuration, what is collected, what must be an error, and the real one."""

from __future__ import annotations

import gzip
import io
import lzma
import stat
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.mirror import Mirror
from imgkit.errors import InputError, RecipeError
from imgkit.rootfs.binaries.elf import ET_EXEC, ET_REL
from imgkit.rootfs.initramfs.make import install_initramfs, make_initramfs
from imgkit.rootfs.initramfs.mkinitfs import (
    CONFIGURATION,
    FEATURES,
    MkinitfsConfiguration,
    expand_glob,
    parse_assignments,
    read_configuration,
)
from imgkit.rootfs.kernel import kernels
from imgkit.tree import File, HardLink, Symlink, Tree
from imgkit.tree.gzipwriter import GzipSink
from tests.elves import make_elf
from tests.trees import CpioMember, read_newc, tree_from_tar

RELEASE = "6.18.0-0-virt"
MODULES = f"lib/modules/{RELEASE}"
LOADER = "lib/ld-musl-x86_64.so.1"
EPOCH = 1_700_000_000


def program(*needed: str) -> bytes:
    return make_elf(kind=ET_EXEC, interpreter="/" + LOADER, needed=needed)


def module(modinfo: bytes = b"license=GPL\0") -> bytes:
    return gzip.compress(make_elf(kind=ET_REL, sections={".modinfo": modinfo}), mtime=0)


def alpine() -> Tree:
    """Return a root filesystem in which everything that an initramfs needs is small."""
    tree = Tree()
    for path, data in {
        "bin/busybox": program("libc.musl-x86_64.so.1"),
        LOADER: make_elf(),
        "sbin/nlplug-findfs": program("libkmod.so.2"),
        "usr/lib/libkmod.so.2.5": make_elf(),
        "usr/share/mkinitfs/initramfs-init": b"#!/bin/sh\n",
        "lib/mdev/usbdev": b"#!/bin/sh\n",
    }.items():
        tree.write(path, data, mode=0o755)
    tree.symlink("bin/sh", "/bin/busybox")
    tree.symlink("usr/lib/libkmod.so.2", "libkmod.so.2.5")
    tree.symlink("lib/libc.musl-x86_64.so.1", "ld-musl-x86_64.so.1")
    for name in ("fstab", "passwd", "group"):
        tree.write(f"usr/share/mkinitfs/{name}", name)
    tree.write("etc/apk/keys/one.rsa.pub", "key", uid=7)
    tree.write(CONFIGURATION, 'features="base ext4"\n')
    tree.write(f"{FEATURES}/base.files", "# programs\n/bin/busybox\n/bin/sh\n\n/lib/mdev\n/sbin/nl*\n/sbin/none\n")
    tree.write(f"{FEATURES}/base.modules", "kernel/drivers/block/loop.ko*\nkernel/drivers/none\n")
    tree.write(f"{FEATURES}/ext4.modules", "kernel/fs/ext4\n")
    tree.write(f"{FEATURES}/net.modules", "kernel/net/[!a].ko*\n")
    tree.write(f"{MODULES}/kernel-suffix", "-virt\n")
    tree.write("boot/vmlinuz-virt", b"image")
    for path in ("kernel/fs/ext4/ext4", "kernel/lib/crc16", "kernel/drivers/block/loop", "kernel/net/a"):
        tree.write(f"{MODULES}/{path}.ko.gz", module())
    tree.write(
        f"{MODULES}/modules.dep",
        "kernel/net/a.ko.gz:\nkernel/drivers/block/loop.ko.gz:\n"
        "kernel/fs/ext4/ext4.ko.gz: kernel/lib/crc16.ko.gz\nkernel/lib/crc16.ko.gz:\n",
    )
    tree.write(f"{MODULES}/modules.alias", "# Aliases\nalias fs-ext4 ext4\nalias net-a a\n")
    tree.write(f"{MODULES}/modules.builtin", "kernel/fs/exportfs/exportfs.ko\n")
    return tree


def initramfs(tree: Tree, release: str = RELEASE, **changes: Any) -> bytes:
    """Return the initramfs by the Tree's configuration with some settings changed."""
    return make_initramfs(tree, release, replace(read_configuration(tree), **changes), epoch=EPOCH)


def members(tree: Tree, *, features: list[str] | None = None) -> dict[str, CpioMember]:
    changes: dict[str, Any] = {} if features is None else {"features": tuple(features)}
    data = initramfs(tree, compression="none", **changes)
    return {member.name: member for member in read_newc(data)}


# ---- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ('features="ata base ext4"\n', ("ata", "base", "ext4")),
        ("# comment\n\nfeatures='base  ext4' # why\n", ("base", "ext4")),
        ("features=base", ("base",)),
        ("features=base;", ("base",)),
        ('features="base \\\n ext4"\n', ("base", "ext4")),
        ('features="base\next4"\n', ("base", "ext4")),
        ('features="old"\nfeatures="base"\n', ("base",)),
        ("", ()),
    ],
)
def test_features(text: str, features: tuple[str, ...]) -> None:
    tree = Tree()
    tree.write(CONFIGURATION, text)
    assert read_configuration(tree).features == features


def test_other_settings() -> None:
    tree = Tree()
    assert read_configuration(tree) == MkinitfsConfiguration((), "gzip", None, (), disabled=False)
    tree.write(
        CONFIGURATION,
        "initfscomp=xz\ncomplevel_xz=-9\ncomplevel_gzip=-1\ncustom_files='/etc/a etc/b'\ndisable_trigger=yes",
    )
    assert read_configuration(tree) == MkinitfsConfiguration((), "xz", 9, ("/etc/a", "etc/b"), disabled=True)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('features="$features x"\n', 1),
        ("a=b\nfeatures=`ls`\n", 2),
        ("\n\nfeatures=$(ls)\n", 3),
        (". /etc/other\n", 1),
        ("touch /tmp/x\n", 1),
        ("a=b touch /tmp/x\n", 1),
        ("a=b & touch x\n", 1),
        ("a=b > x\n", 1),
        ('a="b\n', 1),
        ("a='b\n", 1),
        ('a="b"c\n', 1),
        ("if true; then a=b; fi\n", 1),
        ("a = b\n", 1),
    ],
)
def test_what_a_shell_would_compute_is_refused(text: str, line: int) -> None:
    with pytest.raises(InputError, match=f"^/conf: line {line} is more than") as caught:
        parse_assignments(text, "conf")
    assert "recipe" in str(caught.value.hint)


@pytest.mark.slow
@given(st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*", fullmatch=True), st.text("ab \n#;|&-'", max_size=9)))
def test_quoted_constants_come_back(variables: dict[str, str]) -> None:
    text = "".join(f'{name}="{value}"\n' for name, value in variables.items())
    assert parse_assignments(text, "conf") == variables


@given(st.text("a=\"' \n\\$`#;", max_size=12))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        variables = parse_assignments(text, "conf")
    except InputError:
        return
    assert not any("$" in value or "`" in value for value in variables.values() if "'" not in text)


@pytest.mark.parametrize("level", ["-9 --rsyncable", "9", "-", "-100", "-x", ""])
def test_bad_level(level: str) -> None:
    tree = alpine()
    tree.write(CONFIGURATION, f"complevel_gzip='{level}'\n")
    with pytest.raises(InputError) as caught:
        read_configuration(tree)
    assert caught.value.message == f"/{CONFIGURATION}: complevel_gzip={level} is not a compression level such as -9"


def test_globs() -> None:
    tree = Tree()
    for path in ("a/x.ko", "a/y.ko.gz", "a/.hidden", "b/x.ko", "b/deep/x.ko"):
        tree.write(path, "")
    tree.symlink("c", "b")
    tree.symlink("d", "nowhere")
    assert expand_glob(tree, "", "a/*") == ["a/x.ko", "a/y.ko.gz"]
    assert expand_glob(tree, "", "a/.h*") == ["a/.hidden"]
    assert expand_glob(tree, "", "*/x.ko") == ["a/x.ko", "b/x.ko"]  # the link c leads to b
    assert expand_glob(tree, "", "[!a]/*/x.ko*") == ["b/deep/x.ko"]
    assert expand_glob(tree, "b", "./deep//x.k?") == ["b/deep/x.ko"]
    assert expand_glob(tree, "", "none/*") == expand_glob(tree, "a", "none") == []
    assert expand_glob(tree, "b", "../a/[x]*") == ["a/x.ko"]
    assert expand_glob(tree, "b", "") == ["b"]
    assert expand_glob(tree, "", "d") == ["d"]
    tree.symlink("loop", "loop")
    assert expand_glob(tree, "", "*/x.ko*") == ["a/x.ko", "b/x.ko"]


def test_globs_may_name_devices() -> None:
    tree = Tree()
    tree.write("dev/console", "")
    assert expand_glob(tree, "", "dev/c*") == ["dev/console"]


@pytest.mark.parametrize(
    ("glob", "message"),
    [
        ("a/[z-a]", r"/a/\[z-a\]: the pattern '\[z-a\]': .*bad character range"),
        ("x" * 300, "File name too long"),
    ],
)
def test_globs_that_are_refused(glob: str, message: str) -> None:
    tree = Tree()
    for name in "abcdefgh":
        tree.mkdir(name)
    tree.symlink("loop", "loop")
    with pytest.raises(InputError, match=message):
        expand_glob(tree, "", glob)


# ---- what is in it ---------------------------------------------------------------------------------------------------


def test_names_of_everything() -> None:
    packed = members(alpine())
    directories = {name for name, member in packed.items() if stat.S_ISDIR(member.mode)}
    kernel = f"usr/{MODULES}"
    assert set(packed) - directories == {
        *("bin", "sbin", "lib", "init", "etc/fstab", "etc/group", "etc/passwd", "etc/apk/keys/one.rsa.pub"),
        *("usr/bin/busybox", "usr/bin/sh", "usr/sbin/nlplug-findfs", "usr/lib/mdev/usbdev"),
        *("usr/lib/ld-musl-x86_64.so.1", "usr/lib/libc.musl-x86_64.so.1", "usr/lib/libkmod.so.2"),
        *("usr/lib/libkmod.so.2.5", f"{kernel}/modules.alias", f"{kernel}/modules.alias.bin"),
        *(f"{kernel}/modules.builtin", f"{kernel}/modules.builtin.bin"),
        *(f"{kernel}/modules.dep", f"{kernel}/modules.dep.bin", f"{kernel}/kernel/fs/ext4/ext4.ko.gz"),
        *(f"{kernel}/kernel/lib/crc16.ko.gz", f"{kernel}/kernel/drivers/block/loop.ko.gz"),
    }
    assert {".", "proc", "newroot", "usr/lib/firmware", ".modloop", "media/usb"} <= directories
    assert list(packed) == sorted(packed)


def test_every_file_is_in_a_directory_that_comes_before_it() -> None:
    """The kernel, which unpacks the archive, makes no directories."""
    names = list(members(alpine()))
    for place, name in enumerate(names):
        assert "/" not in name or name.rpartition("/")[0] in names[:place], name


def test_attributes() -> None:
    packed = members(alpine())
    assert {member.numbers[5] for member in packed.values()} == {EPOCH}
    assert {member.numbers[2:4] for member in packed.values()} == {(0, 0)}
    assert oct(packed["init"].mode) == "0o100755"
    assert oct(packed["etc/fstab"].mode) == "0o100644"
    assert packed["usr/bin/sh"].data == b"/bin/busybox"
    assert packed["lib"].data == b"usr/lib"
    assert packed[f"usr/{MODULES}/modules.alias"].data == b"# Aliases\nalias fs-ext4 ext4\n"


def test_everything_belongs_to_root_and_keeps_its_mode() -> None:
    tree = alpine()
    tree.change("bin/busybox", mode=0o4711, uid=5, gid=6)
    tree.change(f"{MODULES}/kernel/lib/crc16.ko.gz", uid=5, gid=6)
    tree.change("etc/apk/keys/one.rsa.pub", mode=0o666, gid=6)
    packed = members(tree)
    assert oct(packed["usr/bin/busybox"].mode) == "0o104711"
    assert oct(packed["etc/apk/keys/one.rsa.pub"].mode) == "0o100644", "only root may change it"
    assert {member.numbers[2:4] for member in packed.values()} == {(0, 0)}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("\tnlplug-findfs $c -p /sbin/mdev ${d:+-d} $r\n", "\tnlplug-findfs $c ${d:+-d} $r\n"),
        ("nlplug-findfs \\\n\t-p /sbin/mdev \\\n\t$r\n", "nlplug-findfs \\\n\t$r\n"),
        ("nlplug-findfs -p /sbin/mdevd $r\n", "nlplug-findfs -p /sbin/mdevd $r\n"),
    ],
)
def test_no_process_for_every_event(text: str, wanted: str) -> None:
    tree = alpine()
    tree.write("usr/share/mkinitfs/initramfs-init", text, mode=0o755)
    assert members(tree)["init"].data.decode() == wanted


def test_features_of_the_caller_win() -> None:
    packed = members(alpine(), features=["base"])
    assert not [name for name in packed if "ext4" in name]


def test_hard_linked_programs() -> None:
    tree = alpine()
    tree.write("bin/busybox.real", program(), mode=0o755)
    tree.remove("bin/busybox")
    tree.add("bin/busybox", HardLink(target="bin/busybox.real"))
    assert members(tree)["usr/bin/busybox"].data == program()


def test_merged_usr_gives_the_same() -> None:
    tree = alpine()
    merged = Tree()
    for top in ("bin", "sbin", "lib"):
        merged.mkdir(f"usr/{top}")
        merged.symlink(top, f"usr/{top}")
    for path, node in tree.items():
        if path.partition("/")[0] in ("bin", "sbin", "lib"):
            if "/" in path:
                merged.add(f"usr/{path}", node)
        elif path not in merged:
            merged.add(path, node)
    assert members(merged) == members(tree)


def test_custom_files() -> None:
    tree = alpine()
    tree.write(CONFIGURATION, "features=base\ncustom_files='/etc/extra /etc/none'")
    tree.write("etc/extra", "extra")
    assert members(tree)["etc/extra"].data == b"extra"


def test_custom_files_replace_others_and_keep_who_may_run_them() -> None:
    tree = alpine()
    tree.write(CONFIGURATION, "features='base ext4'\ncustom_files='sbin/tool etc'")
    tree.write("sbin/tool", "tool", mode=0o4775, uid=5)
    packed = members(tree)
    assert (packed["usr/sbin/tool"].data, oct(packed["usr/sbin/tool"].mode)) == (b"tool", "0o100755")
    assert set(packed) - set(members(alpine())) == {"usr/sbin/tool"}, "a directory is no custom file"


def test_firmware_that_modules_name() -> None:
    tree = alpine()
    tree.write(f"{MODULES}/kernel/fs/ext4/ext4.ko.gz", module(b"firmware=a/b.bin\0firmware=none.bin\0"))
    assert not [name for name in members(tree) if name.startswith("usr/lib/firmware/")]
    tree.write("lib/firmware/real/b.bin.zst", "blob")
    tree.write("lib/firmware/unused", "blob")
    tree.symlink("lib/firmware/a", "real")
    firmware = {name: member.data for name, member in members(tree).items() if name.startswith("usr/lib/firmware/")}
    assert firmware == {
        "usr/lib/firmware/a": b"real",
        "usr/lib/firmware/real": b"",
        "usr/lib/firmware/real/b.bin.zst": b"blob",
    }


@pytest.mark.parametrize("name", ["ext4.ko", "ext4.ko.gz", "ext4.ko.xz"])
def test_firmware_of_modules_however_they_are_compressed(name: str) -> None:
    tree = alpine()
    plain = make_elf(kind=ET_REL, sections={".modinfo": b"firmware=blob\0"})
    packed = {"ko": plain, "gz": gzip.compress(plain), "xz": lzma.compress(plain)}[name.rpartition(".")[2]]
    tree.remove(f"{MODULES}/kernel/fs/ext4/ext4.ko.gz")
    tree.write(f"{MODULES}/kernel/fs/ext4/{name}", packed)
    tree.write(f"{MODULES}/modules.dep", tree.text(f"{MODULES}/modules.dep").replace("ext4.ko.gz", name))
    tree.write("lib/firmware/blob", "blob")
    assert members(tree)["usr/lib/firmware/blob"].data == b"blob"
    tree.write(f"{MODULES}/kernel/fs/ext4/{name}", packed[:-4] if name != "ext4.ko" else b"damaged")
    with pytest.raises(InputError, match=rf"^/{MODULES}/kernel/fs/ext4/{name}: damaged kernel module: "):
        initramfs(tree)


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["blob", "blob.zst", "blob.xz"], ["blob"]),
        (["blob.zst", "blob.xz"], ["blob.zst"]),
        (["blob.xz"], ["blob.xz"]),
        (["blob.gz"], []),
    ],
)
def test_which_of_several_firmware_files_is_taken(there: list[str], taken: list[str]) -> None:
    """As the kernel looks for them."""
    tree = alpine()
    tree.write(f"{MODULES}/kernel/fs/ext4/ext4.ko.gz", module(b"firmware=blob\0"))
    for name in there:
        tree.write(f"lib/firmware/{name}", name)
    folder = "usr/lib/firmware/"
    assert [name.removeprefix(folder) for name in members(tree) if name.startswith(folder)] == taken


@pytest.mark.parametrize(("method", "unpack"), [("gzip", gzip.decompress), ("xz", lzma.decompress)])
def test_compression(method: str, unpack: object) -> None:
    tree = alpine()
    plain = initramfs(tree, compression="none")
    packed = initramfs(tree, compression=method)
    assert unpack(packed) == plain  # type: ignore[operator]
    assert packed == initramfs(tree, compression=method)
    tree.write(CONFIGURATION, f"features='base ext4'\ninitfscomp={method}\n")
    assert initramfs(tree) == packed


def gzipped(data: bytes, level: int) -> bytes:
    sink = io.BytesIO()
    with GzipSink(sink, level) as compressor:
        compressor.write(data)
    return sink.getvalue()


def test_gzip_has_no_time_of_its_own_and_a_level() -> None:
    """At level 6, or what ``mkinitfs.conf`` states; RFC 1952 has the time at 4."""
    tree = alpine()
    packed = initramfs(tree)
    assert packed[4:8] == bytes(4)
    plain = initramfs(tree, compression="none")
    assert packed == gzipped(plain, 6) != gzipped(plain, 1)
    assert initramfs(tree, level=1) == gzipped(plain, 1)


def test_xz_is_what_the_kernel_can_check() -> None:
    data = initramfs(alpine(), compression="xz")
    assert lzma.decompress(data).startswith(b"070701")
    assert data[7] == lzma.CHECK_CRC32


@pytest.mark.parametrize(("stated", "level"), [(None, 6), (1, 1)])
def test_levels_of_xz(stated: int | None, level: int) -> None:
    tree = alpine()
    packed = lzma.compress(initramfs(tree, compression="none"), check=lzma.CHECK_CRC32, preset=level)
    assert initramfs(tree, compression="xz", level=stated) == packed


@pytest.mark.parametrize(("stated", "level"), [(8, 8), (9, 9), (10, 9), (99, 9)])
def test_a_level_above_the_highest_is_the_highest(stated: int, level: int) -> None:
    tree = alpine()
    assert initramfs(tree, level=stated) == gzipped(initramfs(tree, compression="none"), level)


# ---- what must be an error -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("usr/lib/libkmod.so.2.5", "/sbin/nlplug-findfs needs the library libkmod.so.2"),
        (LOADER, f"interpreter /{LOADER}"),
        ("bin/busybox", "would lack /usr/bin/busybox"),
        ("sbin/nlplug-findfs", "would lack /usr/sbin/nlplug-findfs"),
        ("usr/share/mkinitfs/initramfs-init", "/usr/share/mkinitfs/initramfs-init: missing"),
        ("usr/share/mkinitfs/passwd", "/usr/share/mkinitfs/passwd: missing"),
        (f"{MODULES}/modules.dep", f"/{MODULES}/modules.dep: missing"),
        (f"{MODULES}/kernel/lib/crc16.ko.gz", f"/{MODULES}/kernel/lib/crc16.ko.gz: missing"),
    ],
)
def test_missing_files_are_named(path: str, message: str) -> None:
    tree = alpine()
    tree.remove(path)
    with pytest.raises(InputError) as caught:
        initramfs(tree)
    assert message in str(caught.value)


def test_features_without_base() -> None:
    with pytest.raises(InputError, match="would lack /usr/bin/busybox") as caught:
        initramfs(alpine(), features=("ext4",))
    assert "base" in str(caught.value.hint)


def test_unknown_features_are_all_named() -> None:
    with pytest.raises(RecipeError, match="feature ext5") as caught:
        initramfs(
            alpine(),
            features=(
                "base",
                "ext5",
                "zzz",
            ),
        )
    assert caught.value.message == f"initramfs feature ext5: neither /{FEATURES}/ext5.files nor .modules is there"
    assert caught.value.problems == ("unknown initramfs feature ext5", "unknown initramfs feature zzz")
    assert caught.value.hint == "known are base ext4 net"


def test_no_mkinitfs_and_no_kernel() -> None:
    with pytest.raises(InputError, match=f"/{MODULES}: no modules"):
        initramfs(Tree())
    tree = Tree()
    tree.mkdir(MODULES)
    with pytest.raises(InputError, match=f"/{FEATURES}: missing"):
        initramfs(tree)


def test_a_module_named_without_wildcards_must_be_there() -> None:
    tree = alpine()
    tree.write(f"{FEATURES}/ext4.modules", "kernel/fs/exportfs/exportfs.ko\nkernel/fs/gone.ko.gz\n")
    with pytest.raises(InputError, match=rf"^/{MODULES}/kernel/fs/gone\.ko\.gz"):
        initramfs(tree)


@pytest.mark.parametrize(
    "line", ["kernel/fs/gone*.ko.gz", "kernel/fs/gone?.ko", "kernel/fs/gone", "kernel/x/exportfs.ko.xz"]
)
def test_modules_that_need_not_be_there(line: str) -> None:
    """Those that a pattern would match, folders, and what is built into the kernel."""
    tree = alpine()
    tree.write(f"{FEATURES}/ext4.modules", f"kernel/fs/ext4\n{line}\n")
    assert members(tree) == members(alpine())


def test_lists_of_files_may_name_what_is_not_there_and_links_that_lead_nowhere() -> None:
    tree = alpine()
    tree.symlink("etc/dangling", "nowhere")
    tree.write(f"{FEATURES}/ext4.files", "/etc/dangling /etc/none.ko\n#/etc/fstab\n/etc/mdev*\n")
    assert members(tree) == members(alpine())


def test_a_directory_in_a_list_stands_for_the_files_in_it() -> None:
    tree = alpine()
    tree.write("etc/tools/deep/one", "1")
    tree.add("etc/tools/two", HardLink(target="etc/tools/deep/one"))
    tree.symlink("etc/tools/three", "two")
    tree.write(f"{FEATURES}/ext4.files", "etc/tools\n")
    packed = members(tree)
    assert {name: packed[name].data for name in set(packed) - set(members(alpine())) if "." not in name} == {
        "etc/tools": b"",
        "etc/tools/deep": b"",
        "etc/tools/deep/one": b"1",
        "etc/tools/two": b"1",
    }


def test_a_module_that_depmod_has_not_seen() -> None:
    tree = alpine()
    tree.write(f"{MODULES}/kernel/fs/ext4/new.ko.gz", module())
    with pytest.raises(InputError, match=r"kernel/fs/ext4/new\.ko\.gz.*modules\.dep"):
        initramfs(tree)


def test_a_damaged_module_among_firmware() -> None:
    tree = alpine()
    tree.write("lib/firmware/a", "blob")
    tree.write(f"{MODULES}/kernel/fs/ext4/ext4.ko.gz", b"damaged")
    with pytest.raises(InputError, match=r"ext4\.ko\.gz: damaged kernel module"):
        initramfs(tree)


def test_unknown_compression() -> None:
    with pytest.raises(RecipeError) as caught:
        initramfs(alpine(), compression="lz4")
    assert caught.value.message == "initramfs compression lz4 is not known here"
    assert caught.value.hint == "use one of gzip, xz, none"


# ---- the trigger -----------------------------------------------------------------------------------------------------


def test_install() -> None:
    tree = alpine()
    assert install_initramfs(tree, RELEASE, epoch=EPOCH) == "boot/initramfs-virt"
    node = tree["boot/initramfs-virt"]
    assert isinstance(node, File)
    assert (node.mode, node.mtime, node.uid) == (0o600, EPOCH, 0)
    assert node.content.read() == initramfs(tree)
    assert tree.read(f"{MODULES}/initramfs-suffix") == b"-virt\n"
    assert tree[f"{MODULES}/initramfs-suffix"].mtime == EPOCH
    assert tree["boot/boot"] == Symlink(target=".", mtime=EPOCH)


def test_a_boot_that_is_there_stays() -> None:
    tree = alpine()
    tree.symlink("boot/boot", "elsewhere")
    tree.mkdir("boot/elsewhere")
    install_initramfs(tree, RELEASE, epoch=EPOCH)
    assert tree["boot/boot"] == Symlink(target="elsewhere")


def test_install_again_changes_nothing() -> None:
    tree = alpine()
    install_initramfs(tree, RELEASE, epoch=EPOCH)
    before = dict(tree.items())
    install_initramfs(tree, RELEASE, epoch=EPOCH)
    assert dict(tree.items()) == before


def test_a_failure_leaves_the_tree_alone() -> None:
    tree = alpine()
    tree.remove(LOADER)
    before = dict(tree.items())
    with pytest.raises(InputError):
        install_initramfs(tree, RELEASE, epoch=EPOCH)
    assert dict(tree.items()) == before


@pytest.mark.parametrize(
    ("value", "disabled"),
    [
        ("yes", True),
        ("YES", True),
        ("true", True),
        ("TRUE", True),
        ("1", True),
        ("no", False),
        ("0", False),
        ("", False),
    ],
)
def test_disabled_trigger(value: str, disabled: bool) -> None:
    tree = alpine()
    tree.write(CONFIGURATION, f"features=base\ndisable_trigger={value}\n")
    assert install_initramfs(tree, RELEASE, epoch=EPOCH) == (None if disabled else "boot/initramfs-virt")
    assert ("boot/initramfs-virt" in tree) is not disabled


# ---- the real one ----------------------------------------------------------------------------------------------------


def dependencies(data: bytes) -> list[tuple[str, list[str]]]:
    lines = [line.partition(":") for line in data.decode().splitlines()]
    return [(path, sorted(needed.split())) for path, _, needed in lines]


@pytest.mark.mirror
@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_equals_what_mkinitfs_made(mirror: Mirror, architecture: str) -> None:
    tree = tree_from_tar(mirror.oracle[architecture])
    (kernel,) = kernels(tree)
    real = {member.name: member for member in read_newc(gzip.decompress(tree.read(kernel.initramfs)))}
    ours = {member.name: member for member in read_newc(initramfs(tree, kernel.release, compression="none"))}
    assert list(ours) == list(real)
    # mkinitfs packs a folder of mktemp, and re-sorts dependencies; its init starts mdev: differences on purpose.
    dep = f"usr/{kernel.directory}/modules.dep"
    assert dependencies(ours[dep].data) == dependencies(real[dep].data)
    different = [
        name
        for name, member in ours.items()
        if (member.mode, member.numbers[2:4], member.data)
        != (real[name].mode, real[name].numbers[2:4], real[name].data)
    ]
    assert different == [".", "init", dep, f"{dep}.bin"]
    assert real["init"].data.count(b"-p /sbin/mdev") == 3
    assert ours["init"].data.count(b"nlplug-findfs") == real["init"].data.count(b"nlplug-findfs")
    assert b"-p /sbin/mdev" not in ours["init"].data


@pytest.mark.mirror
@pytest.mark.parametrize(("architecture", "modules"), [("x86_64", 34), ("aarch64", 35)])
def test_minimal_features(mirror: Mirror, architecture: str, modules: int) -> None:
    tree = tree_from_tar(mirror.oracle[architecture])
    (kernel,) = kernels(tree)
    data = initramfs(tree, kernel.release, features=("base", "virtio", "ext4"))
    names = [member.name for member in read_newc(gzip.decompress(data))]
    assert len([name for name in names if ".ko" in name]) == modules
    assert len(data) < 7_000_000
