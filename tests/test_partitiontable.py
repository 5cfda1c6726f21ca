"""The partition table of a new disk, byte for byte that of sfdisk, and accepted by sgdisk."""

from __future__ import annotations

import struct
import subprocess
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgkit.disk.gpt import backup_for, before_growth
from imgkit.disk.layout import SECTOR, Layout, SizedPartition, make_layout
from imgkit.engines.guestfs.scripts import partition_script
from imgkit.engines.native.partitiontable import table_pieces
from tests.conftest import need_program
from tests.layouts import SPECS

MIB = 1 << 20
SEED = uuid.UUID(int=7)


def written(layout: Layout, path: Path, code: bytes = b"") -> Path:
    """Write the table of a layout into a sparse file."""
    with path.open("wb") as disk:
        disk.truncate(layout.size_bytes)
        for offset, data in table_pieces(layout, code).items():
            disk.seek(offset)
            disk.write(data)
    return path


def by_sfdisk(layout: Layout, path: Path) -> Path:
    """Run what the guestfs engine runs in the appliance, on a sparse file."""
    program = need_program("sfdisk")
    script = partition_script(layout)
    with path.open("wb") as disk:
        disk.truncate(layout.size_bytes)
    table = script[script.index("label: gpt") : script.index("\nEND\n")]
    subprocess.run([program, "--quiet", "--wipe", "never", path], input=table.encode(), check=True, capture_output=True)
    return path


def edges(path: Path, size: int) -> tuple[bytes, bytes]:
    """Return the first and the last MiB of a file."""
    with path.open("rb") as disk:
        start = disk.read(MIB)
        disk.seek(size - MIB)
        return start, disk.read(MIB)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["amd64", "arm64"])
@pytest.mark.parametrize("size", [64 * MIB, 4 << 30, (1 << 41) + 5 * SECTOR, 3 << 40])
def test_the_bytes_are_those_of_sfdisk(arch: str, size: int, tmp_path: Path) -> None:
    layout = make_layout(SPECS[arch], size, SEED)
    ours, theirs = written(layout, tmp_path / "ours"), by_sfdisk(layout, tmp_path / "theirs")
    assert edges(ours, size) == edges(theirs, size)
    other = make_layout(SPECS[arch], size, uuid.UUID(int=8))
    assert edges(written(other, tmp_path / "other"), size) != edges(theirs, size)


def problems(path: Path) -> str:
    """Return what sgdisk says of a disk."""
    run = subprocess.run([need_program("sgdisk"), "-v", path], capture_output=True, text=True)
    return run.stdout


def test_sgdisk_finds_no_problem(tmp_path: Path) -> None:
    layout = make_layout(SPECS["amd64"], 4 << 30, SEED)
    path = written(layout, tmp_path / "disk", b"\x90" * 440)
    assert "No problems found" in problems(path)
    with path.open("r+b") as disk:
        disk.seek(2 * SECTOR + 40)
        disk.write(b"\1")
    assert "No problems found" not in problems(path)


def test_boot_code_ends_before_the_disk_signature() -> None:
    layout = make_layout(SPECS["amd64"], 64 * MIB, SEED)
    head, plain = table_pieces(layout, b"x" * 440)[0], table_pieces(layout)[0]
    assert head[:440] == b"x" * 440
    assert head[440:] == plain[440:]
    assert plain[:440] == bytes(440)
    with pytest.raises(ValueError, match="boot code of 441 bytes"):
        table_pieces(layout, b"x" * 441)


@settings(max_examples=25)
@given(st.integers(4 * 2048, 1 << 33).map(lambda sectors: sectors * SECTOR), st.uuids(), st.integers(1, 3))
def test_any_size(size: int, seed: uuid.UUID, mib: int) -> None:
    """The backup is where the header says, in the last 33 sectors; and the disk can grow as any other."""
    layout = make_layout((SizedPartition("bios-boot", mib * MIB), SizedPartition("root")), size + 4 * MIB, seed)
    pieces = table_pieces(layout)
    (head, *_), last = pieces.values(), layout.size_bytes // SECTOR - 1
    assert sorted(pieces) == [0, (last - 32) * SECTOR, last * SECTOR]
    assert pieces == {0: head, **backup_for(head, layout.size_bytes, pieces[last * SECTOR])}
    assert len(head) == 34 * SECTOR
    assert struct.unpack_from("<QQQQ", head, SECTOR + 24) == (1, last, 2048, last - 33)
    assert before_growth(table_pieces(layout)[0], layout.size_bytes, layout.size_bytes) == head
