"""The fields of a partition table that follow from the size of the disk, against tables that are packed here."""

from __future__ import annotations

import struct
import zlib

import pytest

from imgkit.disk import gpt
from imgkit.disk.layout import SECTOR
from imgkit.disk.regions import TABLE_END
from tests.tables import ENTRIES, gpt_header, head_of

MIB = 1 << 20
OLD, NEW = 64 * MIB, 96 * MIB


@pytest.mark.parametrize("size", [OLD, NEW, 1 << 40, (1 << 41) - SECTOR, 1 << 41, (1 << 41) + SECTOR, 1 << 45])
@pytest.mark.parametrize("length", [92, 512])
def test_the_head_of_a_disk_of_another_size(size: int, length: int) -> None:
    """From 2 TiB on the protective MBR cannot state the size: the UEFI specification wants FFFFFFFF."""
    assert gpt.head_for(head_of(OLD, length=length), size) == head_of(size, length=length)


def broken(what: str) -> bytes:
    """Return a head whose header is none: a wrong signature, a wrong length, or one that is cut off."""
    head = bytearray(head_of(OLD))
    if what == "signature":
        head[SECTOR] ^= 1
    elif what == "cut":
        return bytes(head[: 2 * SECTOR - 1])
    else:
        struct.pack_into("<I", head, SECTOR + 12, int(what))
    return bytes(head)


@pytest.mark.parametrize("what", ["signature", "cut", "0", "91", "513", str(92 + (1 << 24))])
def test_without_a_header_there_is_nothing_to_compute(what: str) -> None:
    head = broken(what)
    assert gpt.head_for(head, NEW) == head
    assert gpt.before_growth(head, OLD, NEW) is None
    assert gpt.backup_for(head, NEW, gpt_header(NEW, backup=True)) == {}


def test_a_header_with_another_signature_is_none_even_with_its_checksum() -> None:
    head = bytearray(head_of(NEW))
    head[SECTOR : SECTOR + 8] = b"EFI PART"[::-1]
    struct.pack_into("<I", head, SECTOR + 16, 0)
    struct.pack_into("<I", head, SECTOR + 16, zlib.crc32(head[SECTOR : SECTOR + 92]))
    assert gpt.before_growth(bytes(head), OLD, NEW) is None


def test_what_partitioning_programs_do_is_growth() -> None:
    assert gpt.before_growth(head_of(NEW), OLD, NEW) == head_of(OLD)


@pytest.mark.parametrize(
    ("size", "chs"),
    [
        (NEW, "3c300c"),  # sector 196,607: cylinder 12, head 60, sector 48
        (1 << 30, "8a0882"),  # cylinder 130, head 138, sector 8
        (512 * MIB, "450441"),  # cylinder 65, head 69, sector 4
        (6 << 30, "3ff00f"),  # cylinder 783 = 3 * 256 + 15, head 63, sector 48
        (16450560 * SECTOR, "feffff"),  # the last sector that has one: cylinder 1023, head 254, sector 63
        (16450561 * SECTOR, "ffffff"),
    ],
)
def test_programs_state_the_end_as_cylinder_head_and_sector(size: int, chs: str) -> None:
    grown = head_of(size, chs=bytes.fromhex(chs))
    assert gpt.before_growth(grown, OLD, size) == head_of(OLD)
    assert gpt.before_growth(head_of(size, chs=b"\x01\x02\x03"), OLD, size) is None


@pytest.mark.parametrize(
    ("usable", "fits"),
    [(OLD // SECTOR - 35, False), (OLD // SECTOR - 34, True), (NEW // SECTOR - 34, True), (NEW // SECTOR - 33, False)],
)
def test_programs_may_align_the_last_usable_sector(usable: int, fits: bool) -> None:
    assert gpt.before_growth(head_of(NEW, usable=usable), OLD, NEW) == (head_of(OLD) if fits else None)


@pytest.mark.parametrize(
    "place", [0, 445, 446, 450, 454, 458, 510, 512, 528, 536, 544, 552, 568, 584, 600, 1024, 17407]
)
def test_more_than_growth_is_none(place: int) -> None:
    """A byte of the boot code, the record, the header or the entries that growing leaves alone, or a wrong value.

    What the old disk had in a place is not known here: whatever is in the grown one stands for both. So a change in the
    boot code or in the entries gives another head, which the caller compares with the manifest.
    """
    grown = bytearray(head_of(NEW))
    grown[place] ^= 0x10
    before = gpt.before_growth(bytes(grown), OLD, NEW)
    assert before != head_of(OLD)
    assert (before is None) == (450 < place < 1024 and place != 510 and place != 454), before


def test_the_backup_of_a_disk() -> None:
    backup = gpt.backup_for(head_of(NEW), NEW, b"")
    last = NEW // SECTOR - 1
    assert backup == {(last - 32) * SECTOR: ENTRIES, last * SECTOR: gpt_header(NEW, backup=True)}


def test_only_the_head_is_copied_into_the_backup() -> None:
    (entries, _header) = gpt.backup_for(head_of(NEW) + b"behind", NEW, b"").values()
    assert entries == ENTRIES
    assert len(head_of(NEW)) == TABLE_END


USABLE = OLD // SECTOR - 34
"""The last usable sector of a disk whose backup table lies farther behind: entries may begin after it."""


@pytest.mark.parametrize(
    ("stated", "used"),
    [
        (USABLE, None), (USABLE + 1, USABLE + 1), (NEW // SECTOR - 33, NEW // SECTOR - 33), (NEW // SECTOR - 32, None),
        (0, None), (1 << 63, None),
    ],
)  # fmt: skip
def test_the_backup_says_itself_where_its_entries_are(stated: int, used: int | None) -> None:
    """They lie between the last usable sector and the header; what is elsewhere is looked for right before it."""
    head = head_of(NEW, usable=USABLE)
    place = NEW // SECTOR - 33 if used is None else used
    assert gpt.backup_for(head, NEW, gpt_header(NEW, backup=True, entries=stated)) == {
        place * SECTOR: ENTRIES,
        (NEW // SECTOR - 1) * SECTOR: gpt_header(NEW, usable=USABLE, backup=True, entries=place),
    }


@pytest.mark.parametrize(
    "sector", [b"", bytes(SECTOR), b"X" * SECTOR, gpt_header(NEW, backup=True, entries=1, length=91)]
)
def test_a_last_sector_without_a_header_says_nothing(sector: bytes) -> None:
    for usable in (NEW // SECTOR - 34, 0):
        backup = gpt.backup_for(head_of(NEW, usable=usable), NEW, sector)
        assert list(backup) == [NEW - 33 * SECTOR, NEW - SECTOR]


def with_partition(last: int, *, used: bool = True, size: int = 128, checksum: int = 0) -> bytes:
    """Return the head of a disk of 64 MiB with a partition that ends at sector ``last``, the second entry.

    Args:
        checksum: is added to that of the entries.
    """
    entry = (b"t" * 16 if used else bytes(16)) + b"u" * 16 + struct.pack("<QQ", 34, last)
    entries = (bytes(size) + entry).ljust(32 * SECTOR, b"\0")
    head = bytearray(head_of(OLD)[: 2 * SECTOR] + entries)
    count = min(128, len(entries) // size)
    crc = zlib.crc32(entries[: count * size]) ^ checksum
    struct.pack_into("<III", head, SECTOR + 80, count, size, crc)
    struct.pack_into("<I", head, SECTOR + 16, 0)
    struct.pack_into("<I", head, SECTOR + 16, zlib.crc32(head[SECTOR : SECTOR + 92]))
    return bytes(head)


BEYOND = NEW // SECTOR - 1


@pytest.mark.parametrize(
    ("head", "least"),
    [
        (head_of(OLD), OLD),
        (with_partition(2000), OLD),
        (with_partition(BEYOND), NEW),
        (with_partition(BEYOND, size=256), NEW),
        (with_partition(BEYOND, used=False), OLD),
        (with_partition(BEYOND, checksum=1), OLD),
        (bytes(TABLE_END), 0),
        (b"", 0),
        (broken("signature"), 0),
        (head_of(OLD)[:SECTOR + 40] + b"\1" + head_of(OLD)[SECTOR + 41 :], 0),
    ],
)  # fmt: skip
def test_the_size_that_a_table_needs(head: bytes, least: int) -> None:
    assert gpt.least_size(head) == least
