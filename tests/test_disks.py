"""Finished disks, looked at by programs that know nothing of imgkit; and by ``inspect`` and ``verify``."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fixtures.ext4 import read_tree
from imgkit.disk.regions import chunk_at, parse_map
from imgkit.engines.guestfs import bindings
from imgkit.engines.limits import Limits
from imgkit.rootfs.digest import differences, records
from imgkit.verification.disk import compare_disk
from tests.conftest import need_program
from tests.images import ROOT, Builder, Image, Images, results
from tests.verifying import flip, seeded

pytestmark = pytest.mark.vm

MIB = 1 << 20
SECTOR = 512


@dataclass(frozen=True)
class Disk:
    """A disk as a sparse raw file, its partitions as files of their own. All of it is private to this module."""

    image: Image
    raw: Path
    parts: Mapping[str, Path]

    def partition(self, kind: str) -> Mapping[str, int]:
        return next(part for part in self.image.manifest["disk"]["partitions"] if part["kind"] == kind)


@pytest.fixture(scope="module")
def disks(images: Images, native_images: Images, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Disk]:
    """Return the disks of both engines; the names of the native engine's begin with "native-"."""
    return {
        prefix + arch: unpacked(image, tmp_path_factory.mktemp(f"disks{prefix}"))
        for prefix, made in (("", images), ("native-", native_images))
        for arch, image in made.by_arch.items()
    }


@pytest.fixture(params=["amd64", "arm64", "native-amd64", "native-arm64"])
def disk(disks: dict[str, Disk], request: pytest.FixtureRequest) -> Disk:
    return disks[request.param]


def unpacked(image: Image, folder: Path) -> Disk:
    raw = folder / f"{image.arch}.raw"
    subprocess.run([need_program("qemu-img"), "convert", "-O", "raw", image.disk, raw], check=True)
    parts = {}
    for part in image.manifest["disk"]["partitions"]:
        parts[part["kind"]] = target = folder / f"{image.arch}-{part['kind']}"
        words = [f"skip={part['start'] // MIB}", f"count={part['size'] // MIB}"]
        subprocess.run(["dd", f"if={raw}", f"of={target}", "bs=1M", "conv=sparse", "status=none", *words], check=True)
        assert target.stat().st_size <= part["size"]
        with target.open("r+b") as file:
            file.truncate(part["size"])
    return Disk(image, raw, parts)


def status(*argv: str | Path) -> int:
    need_program(str(argv[0]))
    return subprocess.run(argv, capture_output=True).returncode


def damaged(path: Path, folder: Path, *places: int) -> Path:
    """Return a sparse copy with 64 bytes inverted at each of ``places``."""
    copy = folder / f"damaged-{path.name}"
    subprocess.run(["cp", "--sparse=always", path, copy], check=True)
    with copy.open("r+b") as file:
        for place in places:
            file.seek(place)
            old = file.read(64)
            file.seek(place)
            file.write(bytes(byte ^ 0xFF for byte in old))
    return copy


def sgdisk_verdict(raw: Path) -> str:
    need_program("sgdisk")
    done = subprocess.run(["sgdisk", "-v", raw], capture_output=True, text=True)
    return done.stdout + done.stderr


def test_the_partition_table_is_sound(disk: Disk, tmp_path: Path) -> None:
    sound = sgdisk_verdict(disk.raw)
    assert "No problems found" in sound
    assert "Caution" not in sound
    assert "No problems found" not in sgdisk_verdict(damaged(disk.raw, tmp_path, 2 * SECTOR))
    backup = disk.raw.stat().st_size - SECTOR
    assert "Caution" in sgdisk_verdict(damaged(disk.raw, tmp_path, backup)), "all that it says of a damaged copy"


def test_both_tables_say_what_the_manifest_says(disk: Disk) -> None:
    """The tables are parsed here, according to section 5.3 of the UEFI specification."""
    size = disk.raw.stat().st_size
    with disk.raw.open("rb") as file:
        mbr = file.read(SECTOR)
        primary = file.read(33 * SECTOR)
        file.seek(size - 33 * SECTOR)
        backup = file.read()
    assert primary[SECTOR:] == backup[: 32 * SECTOR], "entries"
    assert primary[:8] == backup[32 * SECTOR :][:8] == b"EFI PART"
    found = {}
    for index in range(128):
        entry = primary[SECTOR + index * 128 :][:128]
        if any(entry[:16]):
            first, last = struct.unpack_from("<QQ", entry, 32)
            found[index + 1] = (first * SECTOR, (last - first + 1) * SECTOR)
    stated = {part["number"]: (part["start"], part["size"]) for part in disk.image.manifest["disk"]["partitions"]}
    assert found == stated
    assert set(found) == ({14, 1, 2} if disk.image.arch == "amd64" else {1, 2})
    assert max(found, key=lambda number: found[number][0]) == 2, "root is last, so that it can grow"
    assert all(start % MIB == 0 and length % MIB == 0 for start, length in found.values())
    check_protective_mbr(mbr, size)


def check_protective_mbr(mbr: bytes, size: int) -> None:
    """UEFI specification 5.2.3: one entry of type EE from sector 1 to the end of the disk, the others empty."""
    kind = mbr[446 + 4]
    first, sectors = struct.unpack_from("<II", mbr, 446 + 8)
    assert (kind, first) == (0xEE, 1)
    assert sectors == min(size // SECTOR - 1, 0xFFFFFFFF)
    assert mbr[462:510] == bytes(48)
    assert mbr[510:] == b"\x55\xaa"


def test_the_boot_sector_is_there_for_bios_only(disks: dict[str, Disk]) -> None:
    for disk in disks.values():
        with disk.raw.open("rb") as file:
            assert any(file.read(440)) == (disk.image.arch == "amd64")


def test_the_root_filesystem_is_clean(disk: Disk, tmp_path: Path) -> None:
    assert status("e2fsck", "-fn", disk.parts["root"]) == 0
    assert status("e2fsck", "-fn", damaged(disk.parts["root"], tmp_path, 4096)) != 0


def test_every_file_is_as_the_manifest_says(disk: Disk) -> None:
    """Read by the fixtures' own ext4 reader, without libguestfs and without a kernel."""
    found = records(read_tree(disk.parts["root"]))
    assert differences(disk.image.manifest["files"], found) == []
    assert len(found) > 4000


def test_the_esp_is_clean(disk: Disk, tmp_path: Path) -> None:
    assert status("fsck.fat", "-n", disk.parts["esp"]) == 0
    reserved = struct.unpack_from("<H", disk.parts["esp"].read_bytes(), 14)[0]  # sectors before the first FAT
    assert status("fsck.fat", "-n", damaged(disk.parts["esp"], tmp_path, reserved * SECTOR)) != 0


def test_the_esp_has_what_firmware_looks_for(disk: Disk) -> None:
    need_program("mdir")
    name = {"amd64": "BOOTX64.EFI", "arm64": "BOOTAA64.EFI"}[disk.image.arch]
    machine = {"amd64": 0x8664, "arm64": 0xAA64}[disk.image.arch]
    listed = subprocess.run(["mdir", "-b", "-/", "-i", disk.parts["esp"], "::"], capture_output=True, text=True)
    assert sorted(line for line in listed.stdout.split() if not line.endswith("/")) == [
        f"::/EFI/BOOT/{name}",
        "::/startup.nsh",
    ]
    loader = subprocess.run(["mtype", "-i", disk.parts["esp"], f"::/EFI/BOOT/{name}"], capture_output=True).stdout
    header = struct.unpack_from("<I", loader, 0x3C)[0]
    assert loader[header : header + 6] == b"PE\0\0" + struct.pack("<H", machine)


def test_the_qcow2_is_sound(disk: Disk, tmp_path: Path) -> None:
    assert status("qemu-img", "check", disk.image.disk) == 0
    table = struct.unpack_from(">Q", disk.image.disk.read_bytes()[:104], 40)[0]  # offset of the first-level table
    copy = tmp_path / "damaged.qcow2"
    data = bytearray(disk.image.disk.read_bytes())
    data[table : table + 8] = bytes(byte ^ 0x0F for byte in data[table : table + 8])
    copy.write_bytes(data)
    assert status("qemu-img", "check", copy) != 0


def test_grub_itself_reads_its_configuration(disk: Disk) -> None:
    """The test runs GRUB's own code for GPT and ext4 as a program of this host."""
    need_program("grub-fstest")
    words: list[str | Path] = ["grub-fstest", disk.raw, "cat", "(loop0,gpt2)/boot/grub/grub.cfg"]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    root = disk.partition("root")["fsUuid"]
    assert f"search.fs_uuid {root} root" in text
    assert f"root=UUID={root} " in text
    for name in ("vmlinuz-virt", "initramfs-virt"):
        words = ["grub-fstest", disk.raw, "crc", f"(loop0,gpt2)/boot/{name}"]
        assert subprocess.run(words, capture_output=True).returncode == 0, name
    assert status("grub-fstest", disk.raw, "crc", "(loop0,gpt2)/boot/none") != 0


MOUNTED = """
import json, sys
import guestfs

handle = guestfs.GuestFS(python_return_dict=True)
handle.set_backend("direct")
handle.set_backend_setting("force_tcg", "1")
for path in sys.argv[1:]:
    handle.add_drive_opts(path, format="qcow2", readonly=True)
handle.launch()
found = []
for device in handle.list_devices():
    handle.mount_ro(device + "2", "/")
    found.append({
        "filesystems": {name: kind for name, kind in handle.list_filesystems().items() if name.startswith(device)},
        "uuid": handle.vfs_uuid(device + "2"),
        "release": handle.cat("/etc/alpine-release").strip(),
        "init": handle.readlink("/sbin/init") if handle.is_symlink("/sbin/init") else "",
        "owner": handle.lstatns("/workspace")["st_uid"],
    })
    handle.umount("/")
handle.shutdown()
print(json.dumps(found))
"""


def test_libguestfs_mounts_them(images: Images) -> None:
    """The library's own stock appliance and detection, none of imgkit's."""
    paths = [image.disk for image in images.by_arch.values()]
    argv = bindings.choose(os.environ).argv(["-c", MOUNTED, *map(str, paths)])
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for image, found in zip(images.by_arch.values(), json.loads(done.stdout), strict=True):
        root = next(part for part in image.manifest["disk"]["partitions"] if part["kind"] == "root")
        assert sorted(found["filesystems"].values()) in (["ext4", "vfat"], ["ext4", "unknown", "vfat"])
        assert found["uuid"] == root["fsUuid"]
        assert found["release"] == image.manifest["alpine"]["version"]
        assert found["init"] == "/bin/busybox"
        assert found["owner"] == 1000


def test_a_locked_build_without_the_mirror_is_the_same_image(builder: Builder, images: Images, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "overlay").symlink_to(ROOT / "overlay")
    recipe = tmp_path / "recipes/core.py"
    done = builder.run("lock", recipe, "--arch", "amd64", *builder.words)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    words = ("--locked", "--offline", "--arch", "amd64", "--json", *builder.words)
    done = builder.run("build", recipe, "--out", out, *words)
    assert done.returncode == 0, done.stderr
    again = results(out, done.stdout, done.stderr)["amd64"]
    assert again.manifest["files"] == images["amd64"].manifest["files"]
    assert without_host(again.manifest["packages"]) == without_host(images["amd64"].manifest["packages"])


def without_host(packages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the packages of a manifest with paths for URLs: another worker serves the mirror on another port."""
    return [{**package, "url": urlsplit(package.get("url", "")).path} for package in packages]


# ---- imgkit's own look ---------------------------------------------------------------------------------------------


def test_inspect_agrees_with_the_manifest(builder: Builder, images: Images) -> None:
    image = images["amd64"]
    done = builder.run("inspect", image.disk, "--json")
    assert done.returncode == 0, done.stderr
    found, stated = json.loads(done.stdout), image.manifest
    assert {one["name"]: one["version"] for one in found["packages"]} == {
        one["name"]: one["version"] for one in stated["packages"]
    }
    assert found["virtualSize"] == stated["image"]["virtualSize"] == 4 << 30
    assert found["kernels"] == [stated["kernel"]]
    assert found["diskGuid"].lower() == stated["disk"]["guid"].lower()
    assert found["osRelease"]["ID"] == "alpine"


def test_inspect_is_for_people_too(builder: Builder, images: Images) -> None:
    image = images["arm64"]
    done = builder.run("inspect", image.disk)
    assert done.returncode == 0, done.stderr
    assert f"kernel     {image.manifest['kernel']}" in done.stdout
    assert f"{len(image.manifest['packages'])} packages, the largest first" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines() if " MiB  " in line][-2:] == ["1", "2"]


def test_verify_knows_the_very_files(builder: Builder, images: Images) -> None:
    for image in images.by_arch.values():
        done = builder.run("verify", image.disk)
        assert done.returncode == 0, done.stdout + done.stderr
        files = (image.disk, image.kernel.name, image.initramfs.name)
        assert done.stdout.splitlines() == [f"{name}: the very file that was built" for name in files]


def test_verify_knows_a_raw_copy(builder: Builder, disk: Disk) -> None:
    done = builder.run("verify", disk.raw, "--manifest", disk.image.disk.with_suffix(".manifest.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same disk in another container: every byte that a guest sees is as it was built" in done.stdout


def test_every_byte_of_the_disk_counts(disk: Disk, tmp_path: Path) -> None:
    """Some hundred places at once: each is in a range that is reported, and no other range is."""
    stated = parse_map(disk.image.manifest["map"])
    rng = seeded()
    starts = sorted(stated.hashes)
    places = [start + rng.randrange(512) for start in rng.sample(starts, min(len(starts), 150))]
    places += [rng.randrange(stated.size) for _ in range(150)]
    copy = tmp_path / "flipped.raw"
    subprocess.run(["cp", "--sparse=always", disk.raw, copy], check=True)
    for place in places:
        flip(copy, place)
    ranges = compare_disk(copy, stated.size, stated, Limits(1 << 40)).differences
    chunks = {(chunk.start, chunk.end) for chunk in (chunk_at(stated.regions, place) for place in places)}
    assert all(any(each.start <= place < each.end for each in ranges) for place in places)
    assert sum(each.end - each.start for each in ranges) == sum(end - start for start, end in chunks)


def test_every_path_is_compared_where_the_disk_differs(builder: Builder, disk: Disk, tmp_path: Path) -> None:
    """Something that no file has anything to do with makes verify read them all."""
    copy = tmp_path / "touched.raw"
    subprocess.run(["cp", "--sparse=always", disk.raw, copy], check=True)
    place = f"{copy}?offset={disk.partition('root')['start']}"
    subprocess.run([need_program("debugfs"), "-w", "-R", "sif /etc mtime 20200101", place], check=True)
    done = builder.run("verify", copy, "--manifest", disk.image.disk.with_suffix(".manifest.json"))
    assert done.returncode == 4, done.stderr
    located, files = done.stdout.splitlines()
    assert located.startswith("root filesystem: differs within 1048576 bytes of the disk, at ")
    count = len(disk.image.manifest["files"]) + 1
    assert files == f"root filesystem: all {count} paths are as the manifest says: what differs is outside of files"


# For e2fsprogs' debugfs, which changes a filesystem without mounting it. Contents keep their length, and a time that
# changed is none of verify's business.
CHANGES = """\
sif /etc/hostname mode 0100600
sif /sbin/apk uid 1000
rm /etc/alpine-release
cd /etc
write {other} alpine-release
cd /usr/bin
write {other} left-behind
rm /etc/issue
sif /etc/hosts mtime 20200101
"""
NOTICED = [
    "root filesystem: differs within ",
    "/etc/alpine-release: sha256 is",
    "/etc/hostname: mode is 0600, should be 0644",
    "/etc/issue: missing",
    "/sbin/apk: uid is 1000, should be 0",
    "/usr/bin/left-behind: not in the manifest",
]


def test_verify_names_every_change(builder: Builder, disks: dict[str, Disk], tmp_path: Path) -> None:
    need_program("debugfs")
    disk = disks["amd64"]
    copy, other, script = (tmp_path / name for name in ("changed.raw", "other", "script"))
    subprocess.run(["cp", "--sparse=always", disk.raw, copy], check=True)
    other.write_text("9.99.9\n")
    script.write_text(CHANGES.format(other=other))
    place = f"{copy}?offset={disk.partition('root')['start']}"
    subprocess.run(["debugfs", "-w", "-f", script, place], check=True, capture_output=True)
    manifest = disk.image.disk.with_suffix(".manifest.json")
    done = builder.run("verify", copy, "--manifest", manifest)
    assert done.returncode == 4, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(NOTICED), lines
    assert all(line.startswith(start) for line, start in zip(lines, NOTICED, strict=True)), lines
    assert done.stderr.count("error: ") == 1


def test_what_cannot_be_verified_is_an_error(builder: Builder, images: Images, tmp_path: Path) -> None:
    done = builder.run("verify", images["amd64"].disk, "--manifest", tmp_path / "none.json")
    assert (done.returncode, done.stdout) == (4, "")
    assert "none.json" in done.stderr
    (tmp_path / "other.json").write_text("[]")
    done = builder.run("verify", images["amd64"].disk, "--manifest", tmp_path / "other.json")
    assert done.returncode == 4
    assert "not a manifest" in done.stderr
