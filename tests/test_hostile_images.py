"""Images that were changed, or made to fill a disk or to hang, as an appliance reads them."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgkit.disk.regions import regions_of
from imgkit.engines.chunks import map_disk
from imgkit.engines.guestfs import guestfsengine as guestfs
from imgkit.engines.guestfs.channel import Options
from imgkit.engines.guestfs.readback import GuestfsReader, open_image
from imgkit.engines.imagefile import image_info
from imgkit.engines.limits import Limits
from imgkit.errors import InputError
from imgkit.host.progress import Steps
from imgkit.rootfs.digest import records
from imgkit.verification.check import Subject, Verification, verify
from imgkit.verification.statement import StatedFile, Statement, parse
from tests.conftest import need, need_program
from tests.images import has_bindings
from tests.test_engine import BOOT, LAYOUT, small_tree
from tests.verifying import flip, stated_file

pytestmark = pytest.mark.vm

MIB = 1 << 20
ESP, ROOT = LAYOUT.partitions[1], LAYOUT.root
PATHS = len(small_tree()) + 1  # and lost+found


@pytest.fixture(scope="module")
def options() -> Options:
    need("libguestfs' Python bindings", has_bindings())
    return Options(cache=Path.home() / ".cache/imgkit/test-appliance")


@pytest.fixture(scope="module")
def built(options: Options, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Statement]:
    """Return a small disk as the engine makes it, and what its manifest states."""
    scratch = tmp_path_factory.mktemp("built")
    with guestfs.launch(scratch, LAYOUT.size_bytes, options) as engine:
        disk = engine.write(small_tree(), LAYOUT, BOOT, Steps()).disk
    efi = scratch / "efi"
    efi.mkdir()
    for name, data in BOOT.esp.items():
        (efi / Path(name).name).write_bytes(data)
    manifest = {
        "arch": "amd64",
        "esp": {name: stated_file(efi / Path(name).name) for name in BOOT.esp},
        "map": map_disk(disk, regions_of(LAYOUT)).to_json(),
        "files": records(small_tree()),
    }
    stated = parse(json.loads(json.dumps(manifest)), scratch)
    assert stated.esp["startup.nsh"] == StatedFile("startup.nsh", stated.esp["startup.nsh"].sha256, 1)
    return disk, stated


@pytest.fixture
def disk(built: tuple[Path, Statement], tmp_path: Path) -> Path:
    """Return a copy that a test may change."""
    target = tmp_path / "disk.raw"
    subprocess.run(["cp", "--sparse=always", built[0], target], check=True)
    return target


def verdict_on(disk: Path, stated: Statement, options: Options, limits: Limits | None = None) -> Verification:
    scratch = disk.with_name("scratch")
    scratch.mkdir()

    @contextmanager
    def opener(raw: Path, within: Limits) -> Iterator[GuestfsReader]:
        with open_image(raw, scratch, options, within, info=image_info(raw)) as reader:
            yield reader

    verdict = verify(Subject(disk, image_info(disk), scratch), stated, limits or Limits(256 * MIB), opener)
    shutil.rmtree(scratch)
    return verdict


def debugfs(disk: Path, *commands: str) -> str:
    """Change the root filesystem of a disk without mounting it; what the program printed."""
    script = disk.with_name("commands")
    script.write_text("".join(f"{command}\n" for command in commands))
    words: list[str | Path] = [need_program("debugfs"), "-w", "-f", script, f"{disk}?offset={ROOT.start}"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


# ---- verify --------------------------------------------------------------------------------------------------------


def test_whatever_the_machine_would_execute_is_compared(
    disk: Path, built: tuple[Path, Statement], options: Options, tmp_path: Path
) -> None:
    """Boot sector, GRUB's core, the EFI system partition, files that were added where only fsck puts some."""
    other = tmp_path / "other"
    other.write_bytes(b"evil")
    flip(disk, 10)
    flip(disk, LAYOUT.partitions[0].start + 600)
    esp = f"{disk}@@{ESP.start}"
    subprocess.run([need_program("mcopy"), "-o", "-i", esp, other, "::/EFI/BOOT/BOOTX64.EFI"], check=True)
    subprocess.run([need_program("mcopy"), "-o", "-i", esp, other, "::/EFI/more.efi"], check=True)
    debugfs(disk, "cd /lost+found", f"write {other} evil", "rm /etc/os-release", "cd /etc", f"write {other} os-release")
    faults = verdict_on(disk, built[1], options).faults
    starts = [
        "boot sector: differs within 512 bytes of the disk, at 0-511",
        "BIOS boot partition: differs within",
        "EFI system partition: differs within",
        "root filesystem: differs within",
        "/etc/os-release: ",
        "/lost+found/evil: not in the manifest",
        "EFI system partition: /EFI/BOOT/BOOTX64.EFI: sha256 is",
        "EFI system partition: /EFI/more.efi: not in the manifest",
    ]
    assert len(faults) == len(starts), faults
    assert all(line.startswith(start) for line, start in zip(faults, starts, strict=True)), faults


def test_what_the_journal_will_write_is_compared(
    disk: Path, built: tuple[Path, Statement], options: Options, tmp_path: Path
) -> None:
    """The boot replays it, so the files are read as they are then; the boot loader does not, so they are read twice."""
    number = debugfs(disk, "blocks /etc/os-release").split()[-1]
    block = tmp_path / "block"
    block.write_bytes(b'NAME="Evil"'.ljust(4096, b"\n"))
    debugfs(disk, "jo", f"jw -b {number} {block}", "jc")
    faults = verdict_on(disk, built[1], options).faults
    starts = [
        "root filesystem: its journal needs recovery",
        "root filesystem: differs within",
        "/etc/os-release: sha256 is",
        f"root filesystem: all {PATHS} paths are as the manifest says: what differs is outside of files"
        " (before the journal is replayed)",
    ]
    assert len(faults) == len(starts), faults
    assert all(line.startswith(start) for line, start in zip(faults, starts, strict=True)), faults


def test_a_difference_outside_of_files_is_one(disk: Path, built: tuple[Path, Statement], options: Options) -> None:
    """Times are in no manifest; unused blocks are in no file."""
    debugfs(disk, "sif /etc mtime 20200101")
    flip(disk, ROOT.start + ROOT.size - 5000)
    located, files = verdict_on(disk, built[1], options).faults
    assert located.startswith("root filesystem: differs within")
    assert located.endswith(f", {ROOT.start + ROOT.size - MIB}-{ROOT.start + ROOT.size - 1}")
    assert files == f"root filesystem: all {PATHS} paths are as the manifest says: what differs is outside of files"


def test_an_earlier_manifest_says_what_was_not_compared(
    disk: Path, built: tuple[Path, Statement], options: Options
) -> None:
    stated = Statement("amd64", None, {}, built[1].files, None)
    flip(disk, 10)
    first, files = verdict_on(disk, stated, options).faults
    assert "has no map of the disk: boot sector, partition table" in first
    assert files.startswith(f"root filesystem: all {PATHS} paths are as the manifest says")


def filesystem(disk: Path, folder: Path, *commands: str) -> None:
    """Replace the root filesystem of a disk by one with what is in ``folder``, and change that."""
    made = disk.with_name("made.ext4")
    with made.open("wb") as file:
        file.truncate(ROOT.size)
    kind = ["-t", "ext4", "-b", "4096", "-N", "20000"]
    words: list[str | Path] = [need_program("mke2fs"), "-q", "-F", *kind, "-d", folder, made]
    subprocess.run(words, check=True, capture_output=True)
    place = f"seek={ROOT.start // MIB}"
    subprocess.run(["dd", f"if={made}", f"of={disk}", "bs=1M", place, "conv=notrunc", "status=none"], check=True)
    made.unlink()
    debugfs(disk, *commands)


def test_a_filesystem_without_bounds(
    disk: Path, built: tuple[Path, Statement], options: Options, tmp_path: Path
) -> None:
    """Many files, deep folders, odd names, a file of 2 TiB: a bounded part is read, the rest is said to be there."""
    folder = tmp_path / "folder"
    (folder / "aaa").mkdir(parents=True)
    for number in range(12_000):
        (folder / f"aaa/{number}").touch()
    (folder / "a\nb").touch()
    (folder / "\x1b[31m").touch()
    deep = folder
    for _ in range(150):
        deep /= "deep" * 5
        deep.mkdir()
    (folder / "zz-sparse").touch()
    subprocess.run(["truncate", "-s", "2T", folder / "zz-sparse"], check=True)
    filesystem(disk, folder, "mknod a-fifo p", "mknod a-zero c 1 5")
    started = time.monotonic()
    faults = verdict_on(disk, built[1], options, Limits(96 * MIB, 200)).faults
    assert time.monotonic() - started < 200
    assert "root filesystem: more than 96 MiB in files; what is behind that was not compared" in faults
    assert any(
        line.startswith("root filesystem: ") and "further paths are not in the manifest" in line for line in faults
    )
    for name in ("/a\nb", "/\x1b[31m", "/a-fifo", "/a-zero", "/aaa/0"):  # the first 10,000 are named
        assert f"{name}: not in the manifest" in faults, name


def test_reading_has_a_deadline(disk: Path, options: Options, tmp_path: Path) -> None:
    with (
        open_image(disk, tmp_path, options, Limits(MIB, 0)) as reader,
        pytest.raises(InputError, match="could not be read within 0 s") as caught,
    ):
        reader.archive()
    assert "--timeout" in str(caught.value.hint)


# ---- inspect -------------------------------------------------------------------------------------------------------

DATABASE = "/lib/apk/db/installed"
SPECIAL: dict[str, Sequence[str]] = {
    "character device": ("mknod installed c 1 5",),
    "FIFO": ("mknod installed p",),
    "link to a device": ("symlink installed /dev/zero", "cd /dev", "mknod zero c 1 5"),
    "folder": ("mkdir installed",),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_database_that_is_no_file(kind: str, disk: Path, options: Options, tmp_path: Path) -> None:
    debugfs(disk, "cd /lib/apk/db", "rm installed", *SPECIAL[kind])
    check_refused(disk, options, tmp_path, f"{DATABASE} is not a regular file")


def test_a_database_without_end(disk: Path, options: Options, tmp_path: Path) -> None:
    debugfs(disk, f"sif {DATABASE} size 0x20000000000")
    check_refused(disk, options, tmp_path, f"{DATABASE} has 2097152 MiB, more than 4 MiB")


def check_refused(disk: Path, options: Options, scratch: Path, message: str) -> None:
    started = time.monotonic()
    with open_image(disk, scratch, options, Limits(4 * MIB, 100)) as reader:
        with pytest.raises(InputError, match=message):
            reader.describe()
        assert (scratch / "tar.raw").stat().st_blocks * 512 < 8 * MIB
    assert time.monotonic() - started < 150


def test_links_do_not_lead_out_of_the_image(disk: Path, options: Options, tmp_path: Path) -> None:
    """To the appliance /etc, /usr and /proc are its own."""
    commands = ["cd /etc", "rm os-release", "symlink os-release /../../proc/version"]
    commands += ["cd /lib/apk/db", "rm installed", "symlink installed /etc/passwd"]
    commands += ["cd /lib", "rmdir modules/6.1-virt", "rmdir modules", "symlink modules /proc/self/root/lib/modules"]
    debugfs(disk, *commands)
    with open_image(disk, tmp_path, options, Limits(4 * MIB, 100)) as reader:
        image = reader.describe()
    assert (image.os_release, image.kernels, image.apk_installed) == ({}, (), "")
