"""A qcow2 file that has lost its end is refused before it is booted, and one that is whole never is."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgkit.cli.main import main
from imgkit.disk import diskimage
from imgkit.disk.qcow2format import MAGIC
from imgkit.disk.qcow2tables import is_truncated
from imgkit.errors import InputError
from tests.conftest import need_program

MIB = 1 << 20
CLUSTER = 1 << 16
L1, L2, DATA = 3 * CLUSTER, 4 * CLUSTER, 5 * CLUSTER
COPIED, COMPRESSED = 1 << 63, 1 << 62


def qemu_img(*words: str | Path) -> None:
    subprocess.run([need_program("qemu-img"), *words], check=True)


def written(path: Path, *, l1: int = L2, l2: int = DATA, size: int = DATA + CLUSTER, extended: bool = False) -> Path:
    """Write a qcow2 file of ``size`` bytes with one L2 table, in which one entry is not 0."""
    fields = (b"QFI\xfb", 3, 0, 0, 16, MIB, 0, 1, L1, CLUSTER, 1, 0, 0, 16 if extended else 0, 0, 0, 4, 104)
    data = bytearray(max(size, L2 + 8))
    struct.pack_into(">4sIQIIQIIQQIIQQQQII", data, 0, *fields)
    struct.pack_into(">Q", data, L1, l1 | COPIED if l1 else 0)
    struct.pack_into(">Q", data, L2, l2)
    path.write_bytes(data[:size])
    return path


@pytest.mark.parametrize(
    ("entry", "size", "truncated"),
    [
        (DATA | COPIED, DATA + 1, False),
        (DATA | COPIED, DATA, True),
        (DATA, DATA, True),
        (DATA | 1, DATA, False),  # reads as zeros
        (0, DATA, False),
        (COMPRESSED | (DATA + 7), DATA + 8, False),
        (COMPRESSED | (DATA + 7), DATA + 7, True),
        (COMPRESSED | (3 << 54) | (DATA + 7), DATA + 8, False),  # the number of sectors is above bit 53
    ],
)
def test_entries_of_an_l2_table(entry: int, size: int, truncated: bool, tmp_path: Path) -> None:
    assert is_truncated(written(tmp_path / "disk", l2=entry, size=size)) == truncated


def test_entries_of_the_l1_table(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    assert not is_truncated(written(disk, l1=L2, l2=0, size=L2 + 1))
    assert is_truncated(written(disk, l1=L2, size=L2))
    assert not is_truncated(written(disk, l1=0, size=L1 + 8))
    assert is_truncated(written(disk, l1=0, size=L1 + 7))


def test_entries_of_another_size_are_not_looked_at(tmp_path: Path) -> None:
    assert not is_truncated(written(tmp_path / "disk", l2=DATA | COPIED, size=DATA, extended=True))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_header_has_an_answer(tmp_path: Path, data: bytes) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(MAGIC + data)
    assert is_truncated(disk) in (True, False)


OPTIONS = [
    "cluster_size=64k",
    "cluster_size=512",
    "cluster_size=2M",
    "compat=0.10",
    "preallocation=metadata",
    "preallocation=falloc",
    "extended_l2=on,cluster_size=128k",
    "refcount_bits=1",
    "compression_type=zstd",
]


@pytest.mark.parametrize("size", [0, 512, 5 * MIB + 512])
@pytest.mark.parametrize("options", OPTIONS)
def test_what_qemu_writes_is_whole(options: str, size: int, tmp_path: Path) -> None:
    """Empty and full images, compressed and plain, with holes."""
    raw, disk = tmp_path / "raw", tmp_path / "disk"
    bytes_of = random.Random(5)
    with raw.open("wb") as file:
        file.truncate(size)
        for place in range(0, max(0, size - MIB), 2 * MIB):
            file.seek(place)
            file.write(bytes_of.randbytes(100_000))
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, disk, str(size))
    assert not is_truncated(disk)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", options, raw, disk)
    assert not is_truncated(disk)
    if "preallocation" not in options:
        qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, disk)
        assert not is_truncated(disk)
    qemu_img("resize", "-q", "-f", "qcow2", disk, f"{size + 16 * MIB}")
    assert not is_truncated(disk)


@pytest.mark.parametrize("compressed", [(), ("-c",)], ids=["plain", "compressed"])
def test_a_file_that_has_lost_its_end(compressed: tuple[str, ...], tmp_path: Path) -> None:
    """Every cut but one within the last cluster is noticed, wherever it is."""
    raw, disk, cut = tmp_path / "raw", tmp_path / "disk", tmp_path / "cut"
    raw.write_bytes(random.Random(6).randbytes(3 * MIB))
    qemu_img("convert", *compressed, "-f", "raw", "-O", "qcow2", raw, disk)
    data = disk.read_bytes()
    for size in (*range(512, len(data) - CLUSTER, 4 * CLUSTER + 512), len(data) - 2 * CLUSTER):
        cut.write_bytes(data[:size])
        assert is_truncated(cut), size
    assert not is_truncated(disk)


def test_the_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need_program("qemu-img")
    disk = written(tmp_path / "disk-amd64.qcow2", size=DATA)
    with pytest.raises(InputError) as caught:
        diskimage.check(disk, "qcow2", name=Path("x"))
    assert caught.value.message == "x: damaged or truncated: it refers to data beyond its end"
    assert main(["boot", str(disk)]) == 4
    assert capsys.readouterr().err == (
        f"error: {disk}: damaged or truncated: it refers to data beyond its end\nhint: download or build it again\n"
    )
