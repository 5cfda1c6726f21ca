"""The guestfs engine: what it feeds and says to the appliance (fast), and real disks (mark vm)."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import shutil
import struct
import subprocess
import tarfile
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgkit.disk.grub import BootFiles
from imgkit.disk.layout import Layout, make_layout
from imgkit.engines.convert import convert
from imgkit.engines.engineerrors import NoSpaceError
from imgkit.engines.guestfs import feed, quickstart, scripts
from imgkit.engines.guestfs import guestfsengine as guestfs
from imgkit.engines.guestfs.channel import Options
from imgkit.engines.guestfs.readback import open_image, parse_os_release
from imgkit.engines.imagefile import image_info
from imgkit.engines.reading import ImageDescription
from imgkit.errors import HostError, InputError, RecipeError
from imgkit.host.process import MissingProgramError, ProgramError
from imgkit.host.progress import Steps
from imgkit.host.room import MAKE_ROOM
from imgkit.tree import Device, Directory, File, HardLink, Inline, Node, Tree
from imgkit.tree.cpio import Member, newc
from tests.conftest import need, need_program
from tests.files import noise
from tests.images import has_bindings
from tests.layouts import SPECS
from tests.trees import tree_from_tar

MIB = 1 << 20
SEED = uuid.UUID(int=3)
LAYOUT = make_layout(SPECS["amd64"], 256 * MIB, SEED)
LARGE = Inline(noise(1000) * 5000 + b"end")
BOOT = BootFiles(b"\xeb\x63" + b"c" * 438, b"core" * 512, {"EFI/BOOT/BOOTX64.EFI": b"efi", "startup.nsh": b"x"})

CAPABILITY = struct.pack("<IIIII", 0x02000000, 1 << 10, 0, 0, 0)  # linux/capability.h, revision 2: bind to low ports


def small_tree() -> Tree:
    """Everything that a root filesystem can have in it."""
    tree = Tree()
    tree.add("", Directory(mode=0o751, mtime=1_600_000_000))
    tree.mkdir("etc", mtime=5)
    tree.write("etc/os-release", 'NAME="Alpine Linux"\nID=alpine\n', mtime=7)
    tree.write("lib/apk/db/installed", "P:busybox\n")
    tree.mkdir("lib/modules/6.1-virt")
    tree.add("large file", File(content=LARGE, mode=0o640, uid=70, gid=71, mtime=-2, nanoseconds=250_000_001))
    tree.add("suid", File(content=LARGE, mode=0o4755, mtime=9, nanoseconds=999_999_999))
    tree.add("capable", File(content=LARGE, mtime=9, xattrs={"security.capability": CAPABILITY}))
    tree.add("xattr", File(content=Inline(b"x"), xattrs={"user.colour": b"blue"}))
    tree.add("link", HardLink(target="large file"))
    tree.symlink("symlink", "/etc/os-release", mtime=11)
    tree.mkdir("dev", mtime=1)
    tree.add("dev/null", Device(kind="c", major=1, minor=3, mode=0o666, mtime=1))
    tree.add("pipe", Device(kind="p", mode=0o600, uid=3, mtime=1))
    tree.mkdir("sticky", mode=0o1777, gid=5)
    return tree


# ---- the feed ------------------------------------------------------------------------------------------------------


def parts_of(written: feed.Feed) -> list[feed.Part]:
    return [written.core, written.esp, *(file.part for file in written.large), written.root]


def test_the_feed_holds_everything_once_and_apart() -> None:
    tree, sink = small_tree(), io.BytesIO()
    written = feed.write_feed(sink, tree, BOOT)
    data = sink.getvalue()
    end = feed.ALIGNMENT
    for part in parts_of(written):
        assert part.offset >= end
        assert part.offset % feed.ALIGNMENT == 0
        end = part.offset + part.size
    assert not any(data[: feed.ALIGNMENT])
    assert data[written.core.offset :][: written.core.size] == BOOT.core
    (large,) = written.large
    assert large.path == "large file"
    assert data[large.part.offset :][: large.part.size] == LARGE.read()
    with tarfile.open(fileobj=io.BytesIO(data[written.esp.offset :])) as archive:
        assert archive.getnames() == ["EFI", "EFI/BOOT", "EFI/BOOT/BOOTX64.EFI", "startup.nsh"]
    with tarfile.open(fileobj=io.BytesIO(data[written.root.offset :])) as archive:
        sizes = {member.name: member.size for member in archive}
    assert sizes["./large file"] == 0
    assert "./link" in sizes, "a second name of a large file"
    assert sizes["./suid"] == sizes["./capable"] == LARGE.size
    assert tree.read("large file") == LARGE.read(), "the Tree itself is unchanged"


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.integers(0, 3 * feed.LARGE // 2), max_size=4))
def test_the_feed_is_never_larger_than_foretold(sizes: list[int]) -> None:
    tree, sink = Tree(), io.BytesIO()
    for number, size in enumerate(sizes):
        tree.add(f"f{number}", File(content=Inline(bytes(size))))
    feed.write_feed(sink, tree, BOOT)
    written, foretold = len(sink.getvalue()), feed.feed_bytes(tree, BOOT)
    large = sum(1 for size in sizes if size >= feed.LARGE)
    assert written <= foretold <= written + (large + 8) * feed.ALIGNMENT


@pytest.mark.parametrize(
    ("path", "node", "large"),
    [
        ("f", File(content=LARGE), True),
        ("f", File(content=Inline(b"x")), False),
        ("f", File(content=LARGE, mode=0o2755), False),
        ("f", File(content=LARGE, xattrs={"user.x": b""}), False),
        ("\udcff", File(content=LARGE), False),
    ],
)
def test_only_plain_large_files_travel_alone(path: str, node: File, large: bool) -> None:
    assert feed.is_large(path, node) is large


# ---- texts for the appliance ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Script:
    """A script that runs in the image."""

    text: str
    args: tuple[str, ...] = ("1.0",)
    package: str = "demo"
    kind: str = "post-install"


def all_scripts() -> list[str]:
    written = feed.write_feed(io.BytesIO(), small_tree(), BOOT, [Script("#!/bin/sh\necho 'x'", ("a b",))])
    return [
        scripts.partition_script(LAYOUT),
        scripts.format_script(LAYOUT),
        scripts.populate_script(written),
        scripts.boot_script(LAYOUT, written, BOOT.boot_code),
        scripts.FINISH_SCRIPT,
        scripts.chroot_script(written, 0),
    ]


def test_bash_can_read_every_script() -> None:
    for text in all_scripts():
        assert subprocess.run(["bash", "-n"], input=text.encode()).returncode == 0
    assert subprocess.run(["bash", "-n"], input=b"if true", capture_output=True).returncode != 0


def test_nothing_of_a_package_is_read_by_the_shell_of_the_appliance() -> None:
    """Scripts and their arguments are files of the feed; a text within a text can always end it."""
    hostile = Script("#!/bin/sh\nimgkit-end-of-script\nreboot\n\udcff", ("'; reboot; '", "$(reboot)", "\udcff"))
    sink = io.BytesIO()
    written = feed.write_feed(sink, small_tree(), BOOT, [Script(""), hostile])
    assert "reboot" not in scripts.chroot_script(written, 1)
    with tarfile.open(fileobj=io.BytesIO(sink.getvalue()[written.scripts.offset :])) as archive:
        files = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        found = {name: file.read() for name, file in files.items() if file is not None}
    assert found["1/script"] == hostile.text.encode(errors="surrogateescape")
    assert found["1/arguments"] == b"'; reboot; '\0$(reboot)\0\xff\0"
    assert (found["0/script"], found["0/arguments"]) == (b"", b"1.0\0")


def test_the_feed_has_room_for_scripts() -> None:
    sink, large = io.BytesIO(), [Script("x" * 5_000_000, ("y",) * 1000)] * 3
    feed.write_feed(sink, small_tree(), BOOT, large)
    assert len(sink.getvalue()) <= feed.feed_bytes(small_tree(), BOOT, large)


def test_file_names_cannot_break_out_of_the_script() -> None:
    tree = Tree()
    tree.add("a'; reboot; '", File(content=LARGE))
    text = scripts.populate_script(feed.write_feed(io.BytesIO(), tree, BOOT))
    assert "large '/sysroot/a'\"'\"'; reboot; '\"'\"'' " in text


def test_features_that_old_grub_cannot_read_are_never_on() -> None:
    text = scripts.format_script(LAYOUT)
    assert "-O none,has_journal" in text
    for feature in ("metadata_csum_seed", "orphan_file", "inline_data", "casefold"):
        assert feature not in text


# ---- the quick appliance -------------------------------------------------------------------------------------------

ELF = b"\x7fELF" + bytes(60) + struct.pack("<III4s", 4, 8, 18, b"Xen\0") + b"code" * 1000


def bzimage(payload: bytes) -> bytes:
    image = bytearray(0x400)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 16, len(payload))
    return bytes(image) + bytes(16) + payload + b"trailing"


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress])
def test_kernels_are_unpacked(pack: object) -> None:
    assert callable(pack)
    size = struct.pack("<I", len(ELF))
    assert quickstart.unpack_kernel(bzimage(pack(ELF) + size)) == ELF


def test_the_places_in_a_kernel_image() -> None:
    """Setup sectors after the first one (0 stands for 4), then the offset. A shorter note of a PVH entry counts too."""
    longer, shorter = (struct.pack("<III4s", 4, size, 18, b"Xen\0") for size in (8, 4))
    payload = gzip.compress(ELF.replace(longer, shorter))
    for sectors, begin in ((0, 5), (1, 2), (7, 8)):
        image = bytearray(begin * 512)
        image[0x1F1] = sectors
        image[0x202:0x206] = b"HdrS"
        image[0x248:0x250] = struct.pack("<II", 3, len(payload))
        unpacked = quickstart.unpack_kernel(bytes(image) + b"abc" + payload + b"trailing")
        assert unpacked is not None, sectors
        assert unpacked[:4] == b"\x7fELF"


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"MZ" + bytes(2000),
        bzimage(b"\xfd7zXZ broken"),
        bzimage(b"\x1f\x8b broken"),
        bzimage(b"unknown"),
        bzimage(gzip.compress(b"not an ELF")),
        bzimage(gzip.compress(ELF.replace(b"Xen", b"Zen"))),
    ],
)
def test_other_kernels_stay_as_they_are(image: bytes) -> None:
    assert quickstart.unpack_kernel(image) is None


@given(st.binary(max_size=300), st.text("abc/.", min_size=1, max_size=20))
def test_cpio_survives_a_round_trip(content: bytes, name: str) -> None:
    archive = newc(Member(name, File(content=Inline(content))))
    assert len(archive) % 4 == 0
    assert list(quickstart.read_cpio(archive)) == [(name, content)]


def fake_supermin(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a libguestfs installation with a stand-in for supermin, and return its cache folder."""
    source = folder / "lib" / "supermin.d"
    source.mkdir(parents=True)
    (source / "packages").write_text("bash\nmdadm\ntar\n")
    (source / "init.tar.gz").write_bytes(b"")
    (source / "base.tar.gz").write_bytes(b"")
    program = folder / "bin" / "supermin"
    program.parent.mkdir()
    program.write_text("#!/bin/bash\n" + body)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(quickstart, "SUPERMIN_FOLDERS", (str(source),))
    return folder / "cache"


MAKE_BASE = """
out="${@: -1}"; recipe="${@: -3:1}"
if [ ! -e "$out/root" ]; then
    mkdir -p "$out"; cp "$recipe/packages" "$out/root"; echo kernel >"$out/kernel"; cp "$0.initrd" "$out/initrd"
fi
"""


def test_the_quick_appliance_is_made_once_and_remade_when_supermin_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = fake_supermin(tmp_path, MAKE_BASE, monkeypatch) / "made/with its parents"
    initrd = newc(Member("modules", File(content=Inline(b"virtio_scsi.ko\nlibata.ko.xz\nnfit.ko\next4.ko\n"))))
    (tmp_path / "bin/supermin.initrd").write_bytes(initrd)
    source = tmp_path / "lib/supermin.d"
    (source / "daemon.tar.gz").write_bytes(b"libguestfs' own")
    with quickstart.appliance(cache) as first, quickstart.appliance(cache) as second:
        assert first == second
        assert (first / "README.fixed").exists()
        recipe = cache / f"supermin.d-{quickstart.VERSION}"
        assert (recipe / "daemon.tar.gz").readlink() == source / "daemon.tar.gz", "the rest is libguestfs' own"
        assert not (recipe / "init.tar.gz").is_symlink()
        assert (first / "kernel").read_bytes() == b"kernel\n", "of an unknown kind, so it stays as it is"
        assert (first / "root").read_text() == "bash\ntar\n"
        made = (first / "initrd").read_bytes()
        assert made.startswith(initrd)
        assert dict(quickstart.read_cpio(made[len(initrd) :]))["modules"] == b"virtio_scsi.ko\next4.ko\n"
        shutil.rmtree(cache / "base")
        with quickstart.appliance(cache) as third:
            assert third != first
            assert first.exists(), "in use"
    shutil.rmtree(cache / "base")
    with quickstart.appliance(cache) as fourth:
        assert [path.name for path in cache.glob("ready-*")] == [fourth.name], "the others are cleaned away"


def test_a_supermin_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = fake_supermin(tmp_path, "echo 'supermin: error: no kernel' >&2; exit 1", monkeypatch)
    with pytest.raises(quickstart.UnavailableError, match="supermin failed: supermin: error: no kernel"):
        quickstart.appliance(cache).__enter__()
    monkeypatch.setattr(quickstart, "SUPERMIN_FOLDERS", ("/nonexistent",))
    with pytest.raises(quickstart.UnavailableError, match=r"supermin\.d folder was not found"):
        quickstart.appliance(cache).__enter__()


# ---- refusals before anything is written ---------------------------------------------------------------------------


class _NoChannel:
    """Any use of it is a failure."""


def engine_at(scratch: Path, layout: Layout) -> guestfs.GuestfsEngine:
    return guestfs.GuestfsEngine(_NoChannel(), scratch, layout.size_bytes, Options())  # type: ignore[arg-type]


def test_an_image_that_is_too_small_is_refused_first(tmp_path: Path) -> None:
    layout = make_layout(SPECS["amd64"], 24 * MIB, SEED)
    tree = Tree()
    tree.add("f", File(content=Inline(bytes(6 * MIB))))
    with pytest.raises(RecipeError, match=r"image of 24 MiB is too small .* needs \d+ MiB"):
        engine_at(tmp_path, layout).write(tree, layout, BOOT, Steps())
    assert not list(tmp_path.iterdir())


def test_a_full_host_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guestfs, "_free", lambda folder: 70 * MIB)
    with pytest.raises(HostError, match=f"{tmp_path}: only 70 MiB free, and writing the disk needs 1?[0-9]{{2}} MiB"):
        engine_at(tmp_path, LAYOUT).write(small_tree(), LAYOUT, BOOT, Steps())


def test_another_layout_than_the_prepared_one_is_a_bug(tmp_path: Path) -> None:
    engine = engine_at(tmp_path, LAYOUT)
    with pytest.raises(ValueError, match="layout of"):
        engine.prepare(replace(LAYOUT, size_bytes=LAYOUT.size_bytes + 512))
    engine._prepared = (replace(LAYOUT, disk_guid="another"), True)
    with pytest.raises(ValueError, match="not the layout that was prepared"):
        engine.write(small_tree(), LAYOUT, BOOT, Steps())


def test_a_host_that_fills_up_meanwhile_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_at(tmp_path, LAYOUT)
    monkeypatch.setattr(guestfs, "_free", lambda folder: 8 * MIB)
    engine._watch_space()
    monkeypatch.setattr(guestfs, "_free", lambda folder: 8 * MIB - 1)
    with pytest.raises(NoSpaceError) as caught:
        engine._watch_space()
    assert caught.value.message == f"{tmp_path}: only 8 MiB free, and writing the disk needs 64 MiB"
    assert caught.value.hint == "make room, or point WORK_DIR at a larger disk"


def test_the_space_that_writing_needs_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_at(tmp_path, LAYOUT)
    monkeypatch.setattr(guestfs, "_free", lambda folder: 100 * MIB)
    engine._check_space(36 * MIB)
    with pytest.raises(NoSpaceError, match=r"only 100 MiB free, and writing the disk needs 101 MiB"):
        engine._check_space(36 * MIB + 1)


# ---- converting and reading ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["zstd", "zlib"])
def test_conversion_keeps_the_content_and_drops_the_zeros(tmp_path: Path, compression: str) -> None:
    need_program("qemu-img")
    raw, target = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    with raw.open("wb") as file:
        file.write(b"text" * 50000)
        file.truncate(64 * MIB)
    size = convert(raw, target, "zstd" if compression == "zstd" else "zlib")
    assert size == target.stat().st_size < MIB
    assert subprocess.run(["qemu-img", "compare", "-q", raw, target]).returncode == 0
    info = image_info(target)
    assert (info.format, info.virtual_size) == ("qcow2", 64 * MIB)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "qemu-img"
    program.write_text('#!/bin/bash\necho part >"${@: -1}"; echo "write: No space left on device" >&2; exit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    raw, target = tmp_path / "disk.raw", tmp_path / "out.qcow2"
    with raw.open("wb") as file:  # 3 MiB and a hole
        file.write(noise(3 * MIB))
        os.fsync(file.fileno())
        file.truncate(64 * MIB)
    message = rf"^{target}: no space left on device \(\d+ MiB free; the image needs up to 3 MiB\)$"
    with pytest.raises(NoSpaceError, match=message) as caught:
        convert(raw, target)
    assert caught.value.hint == MAKE_ROOM
    assert not target.exists()


def test_a_conversion_without_qemu_img(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingProgramError, match=r"^qemu-img: program not found$"):
        convert(tmp_path / "disk.raw", tmp_path / "out.qcow2")


def test_another_failure_of_a_conversion_keeps_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "qemu-img"
    program.write_text('#!/bin/bash\necho part >"${@: -1}"; echo "bad sector" >&2; exit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "disk.raw").write_bytes(b"x")
    with pytest.raises(ProgramError, match=r"^qemu-img failed with status 1: bad sector$"):
        convert(tmp_path / "disk.raw", tmp_path / "out.qcow2")
    assert not (tmp_path / "out.qcow2").exists()


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    need_program("qemu-img")
    with pytest.raises(InputError, match="no such image"):
        image_info(tmp_path / "none")
    broken = tmp_path / "broken.qcow2"
    broken.write_bytes(b"QFI\xfb\0\0\0\3" + bytes(100))
    with pytest.raises(InputError, match=r"broken\.qcow2: qemu-img failed"):
        image_info(broken)


def test_raw_disks_are_known_by_their_first_sector(tmp_path: Path) -> None:
    need_program("qemu-img")
    image = tmp_path / "README.md"
    sector = bytes(510) + b"\x55\xaa"
    image.write_bytes(sector + bytes(1024))
    info = image_info(image)
    assert (info.format, info.virtual_size) == ("raw", 1536)
    for other in (b"", b"text\n" * 1000, bytes(1536), sector + bytes(1000)):
        image.write_bytes(other)
        with pytest.raises(InputError, match=r"README\.md: not a disk image") as caught:
            image_info(image)
        assert caught.value.hint


def test_an_image_that_points_at_host_files_is_refused(tmp_path: Path) -> None:
    need_program("qemu-img")
    image = tmp_path / "evil.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", image, "1M"])
    with pytest.raises(InputError, match="refers to another file"):
        image_info(image)


def test_os_release_is_read_without_its_quotes() -> None:
    assert parse_os_release("A=b\nC_D=\"e f\"\n#X=y\nG='h'\n") == {"A": "b", "C_D": "e f", "G": "h"}


# ---- for real ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    need("libguestfs' Python bindings", has_bindings())
    # Kept between runs: making it takes some seconds. The engine itself notices when it is out of date.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgkit" / "test-appliance"
    return Options(cache=cache)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, options: Options) -> tuple[guestfs.GuestfsDisk, Path]:
    """Return the small Tree on a disk, and the same disk as a qcow2."""
    scratch = tmp_path_factory.mktemp("scratch")
    with guestfs.launch(scratch, LAYOUT.size_bytes, options) as engine:
        engine.prepare(LAYOUT)
        result = engine.write(small_tree(), LAYOUT, BOOT, Steps())
    target = scratch / "disk.qcow2"
    convert(result.disk, target)
    return result, target


@pytest.mark.vm
def test_partitions_and_filesystems_satisfy_their_own_checkers(
    written: tuple[guestfs.GuestfsDisk, Path], tmp_path: Path
) -> None:
    disk = written[0].disk
    need_program("sgdisk")
    said = subprocess.run(["sgdisk", "-v", disk], capture_output=True, text=True).stdout
    assert "No problems found" in said
    assert "Caution" not in said
    pieces = {}
    for part in LAYOUT.partitions:
        piece = tmp_path / part.kind
        with disk.open("rb") as source, piece.open("wb") as sink:
            source.seek(part.start)
            sink.write(source.read(part.size))
        pieces[part.kind] = piece
    assert subprocess.run(["e2fsck", "-fn", pieces["root"]], capture_output=True).returncode == 0
    assert subprocess.run(["fsck.fat", "-n", pieces["esp"]], capture_output=True).returncode == 0
    assert pieces["bios-boot"].read_bytes().startswith(BOOT.core)
    head = disk.read_bytes()[:512] if disk.stat().st_size < 1 << 30 else b""
    assert head[:440] == BOOT.boot_code
    assert head[510:] == b"\x55\xaa"
    assert head[450] == 0xEE, "protective partition"
    with pieces["root"].open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 64)  # the first group's descriptor
    assert subprocess.run(["e2fsck", "-fn", pieces["root"]], capture_output=True).returncode != 0


@pytest.mark.vm
def test_every_file_comes_back_as_it_was(
    written: tuple[guestfs.GuestfsDisk, Path], options: Options, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    archive = tmp_path / "back.tar"
    with open_image(written[1], scratch, options) as reader:
        with archive.open("wb") as sink:
            tar = reader.archive()
            assert (sum(map(sink.write, tar.pieces())), tar.complete, tar.complaints) == (tar.size, True, "")
        description = reader.describe()
    assert not list(scratch.glob("*.raw"))
    back, wanted = tree_from_tar(archive), small_tree()
    assert list(back) == sorted([*wanted, "lost+found"], key=lambda path: path.split("/"))
    assert {path for path in back if isinstance(back[path], HardLink)} <= {"link", "large file"}
    for path in wanted:
        assert as_found(back, path) == as_found(wanted, path), path
    check_description(description)


def as_found(tree: Tree, path: str) -> Node | None:
    """Return the node with hard links followed (either name may be the first in an archive) and content in memory."""
    node = tree.stat(path) if isinstance(tree[path], HardLink) else tree[path]
    return replace(node, content=Inline(node.content.read())) if isinstance(node, File) else node


def check_description(image: ImageDescription) -> None:
    partitions = image.partitions
    assert [(part.number, part.start, part.size) for part in partitions] == [
        (part.number, part.start, part.size) for part in LAYOUT.partitions
    ]
    assert partitions[2].fs_uuid == LAYOUT.root.fs_uuid
    assert partitions[1].fs_uuid == LAYOUT.partitions[1].fs_uuid
    assert image.os_release == {"NAME": "Alpine Linux", "ID": "alpine"}
    assert image.kernels == ("6.1-virt",)
    assert image.apk_installed == "P:busybox\n"
    assert image.disk_guid == LAYOUT.disk_guid


@pytest.mark.vm
def test_an_image_without_partitions_is_an_error(options: Options, tmp_path: Path) -> None:
    image, scratch = tmp_path / "empty.raw", tmp_path / "scratch"
    scratch.mkdir()
    image.write_bytes((bytes(510) + b"\x55\xaa").ljust(8 * MIB, b"\0"))
    with open_image(image, scratch, options) as reader, pytest.raises(InputError, match=r"empty\.raw: .*partition"):
        reader.describe()


@pytest.mark.vm
def test_what_the_filesystem_refuses_is_not_dropped_silently(options: Options, tmp_path: Path) -> None:
    tree = small_tree()
    tree.add("wrong", File(content=Inline(b""), xattrs={"security.capability": b"nonsense"}))
    with (
        guestfs.launch(tmp_path, LAYOUT.size_bytes, options) as engine,
        pytest.raises(HostError, match=r"unpacking into the image: .*security\.capability.*wrong"),
    ):
        engine.write(tree, LAYOUT, BOOT, Steps())


def libraries_of(program: str) -> list[str]:
    """Return the shared libraries of one of this host's programs, its loader included."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return [word for word in listed.split() if word.startswith("/")]


def runnable_tree() -> Tree:
    """Return a root filesystem with the shell of this host."""
    tree = small_tree()
    for program in ("/bin/sh", "/usr/bin/env"):
        for path in (program, *libraries_of(program)):
            tree.write(path.lstrip("/"), Path(path).read_bytes(), mode=0o755)
    tree.mkdir("proc")
    return tree


@pytest.mark.vm
def test_hostile_scripts_stay_where_they_are_and_end(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that would end the text that it came in, one that floods, one that leaves something behind, and one
    that never ends."""
    monkeypatch.setattr(scripts, "SCRIPT_SECONDS", 20)
    end = "imgkit-end-of-script"
    texts = [
        f"#!/bin/sh\n: <<'{end}'\n{end}\necho x 2>/dev/null >/sysroot/escaped || :\n",
        '#!/bin/sh\n[ ! -e /escaped ] && [ $# = 4 ] && [ "$2" = "it\'s; \\$(x)" ] && [ "$3" = \'a b\' ]\n',
        "#!/bin/sh\nx=0123456789abcdef; for i in 1 2 3 4 5 6 7 8 9 a b c; do x=$x$x; done\n"
        "i=0; while [ $i -lt 200 ]; do echo $x; i=$((i + 1)); done\n",
        "#!/bin/sh\n( while :; do :; done ) &\nexit 0\n",
        "#!/bin/sh\n( while :; do :; done ) &\nwhile :; do :; done\n",
    ]
    names = ["ending", "looking", "flooding", "leaving", "endless"]
    arguments = ("1.0", "it's; $(x)", "a b", "\udcff")
    hostile = [Script(text, arguments, package=name) for name, text in zip(names, texts, strict=True)]
    with (
        guestfs.launch(tmp_path, LAYOUT.size_bytes, options) as engine,
        pytest.raises(InputError, match=r"^endless\.post-install: the script has no end after") as refusal,
    ):
        engine.write(runnable_tree(), LAYOUT, BOOT, Steps(), hostile)
    assert refusal.value.hint == "if it need not run: skip_scripts = ['endless']"


@pytest.mark.vm
def test_scripts_run_in_the_image_and_a_failing_one_is_named(options: Options, tmp_path: Path) -> None:
    tree = runnable_tree()
    good = Script('#!/bin/sh\necho "$1" >/marker; test -r /proc/self/stat')
    bad = Script("#!/bin/sh\necho went wrong; exit 3")
    with (
        guestfs.launch(tmp_path, LAYOUT.size_bytes, options) as engine,
        pytest.raises(RecipeError, match=r"demo: its post-install script failed: .*went wrong"),
    ):
        engine.write(tree, LAYOUT, BOOT, Steps(), [good, bad])


@pytest.mark.vm
def test_a_quick_appliance_that_does_not_start_is_replaced_by_the_stock_one(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "fake"
    folder.mkdir()
    fake_supermin(folder, MAKE_BASE, monkeypatch)
    (folder / "bin/supermin.initrd").write_bytes(b"broken")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    broken = replace(options, cache=folder / "cache")
    with guestfs.launch(scratch, LAYOUT.size_bytes, broken) as engine:
        engine.prepare(LAYOUT)
        written = engine.write(small_tree(), LAYOUT, BOOT, Steps())
    assert written.appliance == "stock"
    assert sorted(path.name for path in scratch.iterdir()) == ["appliance.log", "disk.raw"]
