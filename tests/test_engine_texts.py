"""What the appliance is told, to the letter, and how its answers become a disk: with a stand-in for the appliance."""

from __future__ import annotations

import io
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from imgkit.disk.grub import BootFiles
from imgkit.disk.layout import Layout, SizedPartition, make_layout
from imgkit.engines.engineerrors import EndlessScriptError, NoSpaceError, ScriptError
from imgkit.engines.guestfs import feed, lookscripts, scripts
from imgkit.engines.guestfs import guestfsengine as guestfs
from imgkit.engines.guestfs.channel import ApplianceError, Channel, Options
from imgkit.engines.guestfs.feed import Feed, LargeFile, Part
from imgkit.errors import HostError, ImgkitError, RecipeError
from imgkit.host.progress import Steps
from imgkit.tree import File, Inline, Tree
from tests.layouts import SPECS

MIB, GIB = 1 << 20, 1 << 30
SEED = uuid.UUID(int=3)
LAYOUT = make_layout(SPECS["amd64"], 256 * MIB, SEED)
WITHOUT = make_layout((SizedPartition("root"),), 256 * MIB, SEED)
FEED = Feed(
    core=Part(1 * MIB, 1536),
    esp=Part(2 * MIB, 10240),
    scripts=Part(3 * MIB, 10240),
    large=(LargeFile("a b", 77, Part(4 * MIB, 5 * MIB + 1)), LargeFile("c", 0, Part(10 * MIB, 4 * MIB))),
    root=Part(14 * MIB, 999),
)

# ---- scripts that write ----------------------------------------------------------------------------------------------


def body(text: str) -> list[str]:
    """Return the lines of a script after the prelude."""
    assert text.startswith(scripts.PRELUDE)
    return [line for line in text.removeprefix(scripts.PRELUDE).splitlines() if line]


def test_every_script_ends_at_its_first_failure_and_finds_drives_by_their_number() -> None:
    assert scripts.PRELUDE.splitlines()[:4] == ["set -eu -o pipefail", "exec 2>&1", "export LC_ALL=C", "drive() {"]
    assert '*/*:"$1":0) cd /; echo "/dev/${disk##*/}"; return ;;' in scripts.PRELUDE


def test_the_partition_table() -> None:
    bios, esp, root = LAYOUT.partitions
    assert body(scripts.partition_script(LAYOUT)) == [
        "disk=$(drive 0)",
        f'[ "$(blockdev --getsize64 "$disk")" = {256 * MIB} ]',
        "sfdisk --quiet --wipe never \"$disk\" <<'END'",
        "label: gpt",
        f"label-id: {LAYOUT.disk_guid}",
        "unit: sectors",
        "first-lba: 2048",
        f'14 : start=2048, size=2048, type={bios.type_guid}, uuid={bios.uuid}, name="bios-boot"',
        f'1 : start=4096, size=32768, type={esp.type_guid}, uuid={esp.uuid}, name="esp"',
        f'2 : start=36864, size={root.sectors}, type={root.type_guid}, uuid={root.uuid}, name="root"',
        "END",
        "udevadm settle",
        'for number in 14 1 2; do [ -b "$disk$number" ]; done',
    ]


FEATURES = (
    "has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)


def mke2fs(layout: Layout, journal: int, growth: str) -> list[str]:
    root = layout.root
    make = (
        f"mke2fs -q -F -t ext4 -b 4096 -I 256 -i 16384 -m 0 -J size={journal} -O none,{FEATURES} -U {root.fs_uuid}"
        f" -L root -E nodiscard,hash_seed={root.uuid},lazy_journal_init=1{growth}"
    )
    return [
        'root="${disk}2"',
        f'{make},assume_storage_prezeroed=1 "$root" 2>/dev/null || {make},lazy_itable_init=0 "$root"',
        'mount -t ext4 -o noatime,noload,nobarrier,noauto_da_alloc "$root" /sysroot',
    ]


def test_the_filesystems() -> None:
    esp = LAYOUT.get("esp")
    assert esp is not None
    volume = esp.fs_uuid.replace("-", "")
    assert body(scripts.format_script(LAYOUT)) == [
        "disk=$(drive 0)",
        f'mkfs.vfat -F 16 -n ESP -i {volume} "${{disk}}1" >/dev/null',
        'mkdir -p /tmp/esp; mount -t vfat "${disk}1" /tmp/esp',
        *mke2fs(LAYOUT, 4, f",resize={1 << 28}"),
    ]
    assert body(scripts.format_script(WITHOUT)) == ["disk=$(drive 0)", *mke2fs(WITHOUT, 4, f",resize={1 << 28}")]


@pytest.mark.parametrize(("mib", "bits"), [(511, 16), (512, 32)])
def test_large_esps_are_fat32(mib: int, bits: int) -> None:
    layout = make_layout((SizedPartition("esp", mib * MIB), SizedPartition("root")), 2 * GIB, SEED)
    assert f"mkfs.vfat -F {bits} -n ESP" in scripts.format_script(layout)


@pytest.mark.parametrize(("root", "growth"), [((1 << 40) - MIB, f",resize={1 << 28}"), (1 << 40, "")])
def test_a_root_of_a_tebibyte_needs_no_reserve_for_growing_to_one(root: int, growth: str) -> None:
    layout = make_layout((SizedPartition("root"),), root + 2 * MIB, SEED)
    assert layout.root.size == root
    assert body(scripts.format_script(layout))[1:] == mke2fs(layout, 64, growth)


TAR = "dd bs=1048576 skip={skip} count=0 status=none; tar -b 1024 --numeric-owner {options} -xf - -C {folder};"
ROOT_OPTIONS = "-p --same-owner --xattrs --xattrs-include='*' --delay-directory-restore --warning=no-timestamp"


def untar(skip: int, options: str, folder: str) -> str:
    return "{ " + TAR.format(skip=skip, options=options, folder=folder) + ' } <"$feed"'


def test_how_the_root_filesystem_is_filled() -> None:
    lines = body(scripts.populate_script(FEED))
    assert lines[:4] == [
        "feed=$(drive 1)",
        'blockdev --flushbufs "$feed"',
        "umask 0",
        untar(14, ROOT_OPTIONS, "/sysroot"),
    ]
    assert lines[5] == (
        '    dd if="$feed" of="$1" bs=1M skip="$2" count="$3" iflag=direct,fullblock oflag=direct conv=notrunc'
        " status=none"
    )
    assert lines[-2:] == [f"large '/sysroot/a b' 4 6 {5 * MIB + 1} 77", f"large /sysroot/c 10 4 {4 * MIB} 0"]
    assert len(body(scripts.populate_script(replace(FEED, large=())))) == len(lines) - 2


def test_how_the_boot_loader_is_installed() -> None:
    esp = untar(2, "--no-same-owner", "/tmp/esp")
    core = 'dd if="$feed" of="${disk}14" bs=512 skip=2048 count=3 status=none'
    code = "printf '\\x01\\xff\\x41' | dd of=\"$disk\" bs=3 count=1 conv=notrunc iflag=fullblock status=none"
    drives = ["disk=$(drive 0)", "feed=$(drive 1)"]
    assert body(scripts.boot_script(LAYOUT, FEED, b"\x01\xffA")) == [*drives, esp, core, code]
    assert body(scripts.boot_script(WITHOUT, FEED, b"\x01")) == drives
    assert body(scripts.boot_script(LAYOUT, replace(FEED, core=Part(MIB, 0)), b"")) == [*drives, esp]


def test_how_a_script_of_a_package_runs() -> None:
    assert body(scripts.chroot_script(FEED, 7)) == [
        "feed=$(drive 1)",
        "mkdir -p /tmp/scripts",
        untar(3, "--no-same-owner", "/tmp/scripts"),
        "mapfile -d '' -t arguments </tmp/scripts/7/arguments",
        "rm -rf /sysroot/.script",
        "install -m 755 /tmp/scripts/7/script /sysroot/.script",
        "inside='",
        "mount -t proc proc /sysroot/proc",
        "mount --bind /dev /sysroot/dev",
        'exec chroot /sysroot /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin /.script "$@"\'',
        "status=0",
        'timeout --signal=KILL 600 unshare --mount --pid --fork --kill-child bash -eu -c "$inside" bash'
        ' "${arguments[@]}" </dev/null 2>&1 | tail -c 4096 || status=$?',
        "rm -rf /sysroot/.script",
        'if [ $SECONDS -ge 600 ]; then echo; echo "no end after 600 s"; fi',
        "exit $status",
    ]


# ---- scripts that read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filesystem", "replay", "options"),
    [
        ("root", True, "ext4 -o ro,nodev,nosuid,noexec,errors=continue"),
        ("root", False, "ext4 -o ro,nodev,nosuid,noexec,errors=continue,noload"),
        ("esp", True, "vfat -o ro,nodev,nosuid,noexec,errors=continue,umask=022"),
        ("esp", False, "vfat -o ro,nodev,nosuid,noexec,errors=continue,umask=022"),
    ],
)
def test_how_a_filesystem_of_an_image_is_mounted(filesystem: Any, replay: bool, options: str) -> None:
    assert body(lookscripts.mount_script(filesystem, 5, replay=replay)) == [
        "disk=$(drive 0)",
        "if mountpoint -q /sysroot; then umount /sysroot; fi",
        f'mount -t {options} "${{disk}}5" /sysroot',
    ]


@pytest.mark.parametrize(("limit", "count"), [(MIB, 1), (MIB + 1, 2), (64 * MIB, 64)])
def test_how_much_of_an_image_is_read(limit: int, count: int) -> None:
    """Whole MiB are written, as direct I/O wants; the texts are bounded, too."""
    look, tar = lookscripts.look_script(limit), lookscripts.tar_script(limit)
    assert f'if [ "$size" -le {limit} ]; then' in look
    assert f'dd if="$result" of="$target" bs=1048576 seek=1 count={count} oflag=direct status=none' in look
    assert f'dd of="$target" bs=1048576 seek=1 count={count} iflag=fullblock oflag=direct 2>/tmp/dd.said' in tar
    assert f'if [ "$size" -lt {count * MIB} ] || [ "${{ended[0]}}" = 0 ]; then' in tar
    assert "if ! beneath lib/apk/db/installed ||" in look
    assert look.count("head -c 65536") == 2
    assert tar.endswith("head -c 65536 /tmp/tar.said\n")


# ---- the feed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "blocks"), [(0, 0), (1, 1), (MIB, 1), (MIB + 1, 2)])
def test_parts_are_counted_in_whole_mib(size: int, blocks: int) -> None:
    assert Part(MIB, size).blocks == blocks


def test_files_of_four_mib_lie_outside_the_tar() -> None:
    file = File(content=Inline(bytes(4 * MIB)))
    assert feed.is_large("f", file)
    assert not feed.is_large("f", File(content=Inline(bytes(4 * MIB - 1))))
    assert [feed.is_large("f", replace(file, mode=mode)) for mode in (0o777, 0o1777, 0o2777, 0o4777)] == [
        True, False, False, False,
    ]  # fmt: skip


def test_parts_lie_one_after_the_other() -> None:
    tree = Tree()
    tree.add("f", File(content=Inline(b"x" * (4 * MIB)), mtime=5))
    sink = io.BytesIO()
    written = feed.write_feed(sink, tree, BootFiles(b"", b"c" * (MIB + 1), {}))
    assert (written.core, written.esp.offset, written.scripts.offset) == (Part(MIB, MIB + 1), 3 * MIB, 4 * MIB)
    assert written.large == (LargeFile("f", 5, Part(5 * MIB, 4 * MIB)),)
    assert written.root.offset == 9 * MIB
    assert written.root.offset + written.root.size == len(sink.getvalue())


def test_an_upper_bound_of_the_feed() -> None:
    tree = Tree()
    tree.add("f", File(content=Inline(b"x" * 4 * MIB)))
    tree.add("g", File(content=Inline(b"x"), xattrs={"user.a": bytes(100), "user.b": bytes(11)}))
    boot = BootFiles(b"", b"c" * 5, {"a": b"12", "b": b"345"})
    run = [Script("text", ("a", "b"))]
    assert feed.feed_bytes(tree, boot, run) == 4 * MIB + 1 + 3 * 2048 + 111 + 5 + 5 + (2048 + 4) + (2048 + 4) + 8 * MIB


# ---- writing a disk --------------------------------------------------------------------------------------------------

BOOT = BootFiles(b"\xeb\x63", b"core" * 256, {"startup.nsh": b"x"})


@dataclass(frozen=True)
class Script:
    """A script that runs in the image."""

    text: str
    args: tuple[str, ...] = ()
    package: str = "demo"
    kind: str = "post-install"


@dataclass
class FakeChannel:
    """Answers each script with the next of ``answers``; an exception is raised."""

    answers: list[str | Exception]
    quick: bool = False
    asked: list[str] = field(default_factory=list)
    deadlines: list[float | None] = field(default_factory=list)
    closed: bool = False
    start: Any = field(default_factory=lambda: {"seconds": 2.5})

    def post(self, request: Mapping[str, Any]) -> None:
        assert request["op"] == "sh"
        self.asked.append(request["script"])

    def take(self, deadline: float | None = None, watch: Callable[[], None] | None = None) -> Any:
        if deadline is not None:
            if isinstance(self.start, Exception):
                raise self.start
            return self.start
        assert watch is not None
        watch()
        return self._next()

    def _next(self) -> str:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def shell(self, script: str, watch: Callable[[], None] | None = None, deadline: float | None = None) -> str:
        assert watch is not None
        watch()
        self.asked.append(script)
        self.deadlines.append(deadline)
        return self._next()

    def restart_stock(self) -> None:
        self.quick = False
        self.start = {"seconds": 4.5}

    def close(self) -> None:
        self.closed = True


def tree_of(size: int = 10) -> Tree:
    tree = Tree()
    tree.write("f", b"x" * size)
    return tree


def write(
    folder: Path, channel: FakeChannel, run_scripts: Sequence[Script] = (), *, steps: Steps | None = None
) -> guestfs.GuestfsDisk:
    (folder / "feed.raw").touch()
    engine = guestfs.GuestfsEngine(cast(Channel, channel), folder, LAYOUT.size_bytes, Options())
    return engine.write(tree_of(), LAYOUT, BOOT, steps or Steps(), run_scripts)


GOOD = ["", "", "", "", "some\noutput\n700 300"]


def test_a_disk_is_written_step_by_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "imgkit.engines")
    channel, steps = FakeChannel(list(GOOD)), Steps()
    disk = write(tmp_path, channel, steps=steps)
    assert disk == guestfs.GuestfsDisk(tmp_path / "disk.raw", LAYOUT, 700, 300, "stock", 2.5)
    assert channel.asked[:2] == [scripts.partition_script(LAYOUT), scripts.format_script(LAYOUT)]
    assert len(channel.asked) == 5
    assert "tar -b 1024" in channel.asked[2]
    assert channel.asked[3].startswith(scripts.PRELUDE + "disk=$(drive 0)\nfeed=$(drive 1)\n")
    assert channel.asked[4] == scripts.FINISH_SCRIPT
    assert channel.closed
    assert not (tmp_path / "feed.raw").exists()
    assert [step.name for step in steps.finished] == [
        "feed the appliance", "wait for the appliance", "partition and format", "populate", "install GRUB",
        "shut the appliance down",
    ]  # fmt: skip
    assert "stock appliance after 2.5 s" in caplog.messages
    assert not any("no quick appliance" in message for message in caplog.messages)


def test_a_prepared_disk_is_asked_for_once(tmp_path: Path) -> None:
    channel = FakeChannel(list(GOOD))
    (tmp_path / "feed.raw").touch()
    engine = guestfs.GuestfsEngine(cast(Channel, channel), tmp_path, LAYOUT.size_bytes, Options())
    engine.prepare(LAYOUT)
    engine.write(tree_of(), LAYOUT, BOOT, Steps())
    assert channel.asked.count(scripts.partition_script(LAYOUT)) == 1


def test_the_stock_appliance_is_asked_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    channel = FakeChannel(list(GOOD), quick=True, start=ApplianceError("launch", "no quick one", ""))
    assert write(tmp_path, channel).appliance == "stock"
    assert channel.asked.count(scripts.partition_script(LAYOUT)) == 2
    assert "no quick appliance: no quick one" in caplog.messages


def test_scripts_run_after_the_content_and_before_the_boot_loader(tmp_path: Path) -> None:
    channel, steps = FakeChannel([*GOOD[:3], "", "", *GOOD[3:]]), Steps()
    before = time.monotonic()
    write(tmp_path, channel, [Script("a"), Script("b", package="other", kind="trigger")], steps=steps)
    assert ["/tmp/scripts/0/script" in channel.asked[3], "/tmp/scripts/1/script" in channel.asked[4]] == [True, True]
    names = [step.name for step in steps.finished]
    assert names[3:6] == ["populate", "run demo.post-install", "run other.trigger"]
    assert names[6] == "install GRUB"
    assert channel.deadlines[0] is None
    assert channel.deadlines[1] is not None
    assert 659 < channel.deadlines[1] - before < 690


@pytest.mark.parametrize(
    ("at", "answer", "kind", "message", "hint"),
    [
        (2, "tar: a: cannot\n  set", HostError, "unpacking into the image: tar: a: cannot set", None),
        (2, "x" * 501, HostError, "unpacking into the image: " + "x" * 500, None),
        (1, ApplianceError("call", "sfdisk:\n no", ""), HostError,
         "writing the disk in the libguestfs appliance failed: sfdisk: no", None),
        (3, ApplianceError("call", "first\nlast line\n", ""), ScriptError,
         "demo: its post-install script failed: last line", None),
        (3, ApplianceError("call", "x\nno end after 600 s\n", ""), EndlessScriptError,
         "demo.post-install: the script has no end after 600 s", "if it need not run: skip_scripts = ['demo']"),
        (3, TimeoutError(), EndlessScriptError, "demo.post-install: the script has stopped the appliance",
         "if it need not run: skip_scripts = ['demo']"),
    ],
)  # fmt: skip
def test_how_writing_fails(
    at: int, answer: str | Exception, kind: type[ImgkitError], message: str, hint: str | None, tmp_path: Path
) -> None:
    answers: list[str | Exception] = [*GOOD[:3], "", *GOOD[3:]]
    answers[at] = answer
    with pytest.raises(kind) as caught:
        write(tmp_path, FakeChannel(answers), [Script("a")])
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_a_root_that_is_full_says_how_large_the_image_must_be(tmp_path: Path) -> None:
    answers: list[str | Exception] = ["", "", ApplianceError("call", "tar: f: No space left on device", "")]
    with pytest.raises(RecipeError) as caught:
        write(tmp_path, FakeChannel(answers))
    others = LAYOUT.size_bytes - LAYOUT.root.size
    needed = -(-(others + 11 * MIB * 11 // 10) // MIB)
    assert caught.value.message == f"image of 256 MiB is too small for its content, which needs {needed} MiB"


def test_a_feed_that_cannot_be_written(tmp_path: Path) -> None:
    engine = guestfs.GuestfsEngine(cast(Channel, FakeChannel([])), tmp_path, LAYOUT.size_bytes, Options())
    with pytest.raises(HostError) as caught:
        engine.write(tree_of(), LAYOUT, BOOT, Steps())
    assert caught.value.message == f"{tmp_path / 'feed.raw'}: No such file or directory"


def test_the_space_for_the_feed_and_the_content_is_needed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once on the feed, once on the disk, and 64 MiB besides."""
    size = feed.feed_bytes(tree_of(), BOOT) + 10 + 64 * MIB
    monkeypatch.setattr(guestfs, "_free", lambda folder: size)
    write(tmp_path, FakeChannel(list(GOOD)))
    monkeypatch.setattr(guestfs, "_free", lambda folder: size - 1)
    with pytest.raises(NoSpaceError) as caught:
        write(tmp_path, FakeChannel(list(GOOD)))
    assert caught.value.message.endswith("MiB free, and writing the disk needs 72 MiB")


def test_the_free_space_of_a_folder(tmp_path: Path) -> None:
    assert abs(guestfs._free(tmp_path) - shutil.disk_usage(tmp_path).free) < GIB


def test_the_scratch_disks_of_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are sparse; the feed is larger by 256 MiB, and gone when the block ends."""
    opened: list[Any] = []

    @contextmanager
    def fake(*arguments: Any) -> Any:
        opened.append(arguments)
        yield FakeChannel([])

    monkeypatch.setattr(guestfs, "opened", fake)
    options = Options(launch_timeout=7.0)
    before = time.monotonic()
    with guestfs.launch(tmp_path, 64 * MIB, options) as engine:
        sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
        assert sizes == {"disk.raw": 64 * MIB, "feed.raw": 320 * MIB}
        assert all(path.stat().st_blocks == 0 for path in tmp_path.iterdir())
        assert engine.disk == tmp_path / "disk.raw"
        assert 7 <= engine._deadline - before < 60
    assert [path.name for path in tmp_path.iterdir()] == ["disk.raw"]
    ((scratch, drives, given),) = opened
    assert (scratch, [drive.path.name for drive in drives], given) == (tmp_path, ["disk.raw", "feed.raw"], options)


def test_scratch_disks_that_cannot_be_made(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(HostError) as caught, guestfs.launch(missing, MIB, Options()):
        pass
    assert caught.value.message == f"{missing / 'disk.raw'}: No such file or directory"
