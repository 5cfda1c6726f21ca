"""FAT filesystems: compared with those of mkfs.fat, examined by fsck.fat, read back by mtools and by a reader here."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgkit.disk.layout import SECTOR, Partition
from imgkit.engines.native.fat.fatgeometry import FAT32_SIZE, geometry_for
from imgkit.engines.native.fat.fatnames import fault_of, folded, short_names
from imgkit.engines.native.fat.fatrecords import stamp_of
from imgkit.engines.native.fat.fatwriter import fat_pieces
from imgkit.errors import RecipeError
from tests.conftest import need_program

MIB = 1 << 20
EPOCH = 1_700_000_001
START = 4096


def partition(size: int, start: int = START, label: str = "ESP") -> Partition:
    where = {"start_lba": start, "sectors": size // SECTOR}
    return Partition(1, "esp", "esp", "", "", **where, filesystem="vfat", label=label, fs_uuid="1A2B-3C4D")


def written(path: Path, files: dict[str, bytes], size: int, label: str = "ESP") -> Path:
    """Write a filesystem into a sparse file, and check that no byte is written twice and none outside."""
    place = partition(size, label=label)
    end = 0
    with path.open("wb") as disk:
        disk.truncate(size)
        for offset, data in fat_pieces(place, files, EPOCH):
            assert end <= offset - place.start
            assert data
            end = offset - place.start + len(data)
            assert end <= size
            disk.seek(offset - place.start)
            disk.write(data)
    return path


def complaints(path: Path) -> str:
    """Return what fsck.fat says of a filesystem, if it is not content."""
    run = subprocess.run(
        [need_program("fsck.fat"), "-n", path], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C.UTF-8"}
    )
    return "" if run.returncode == 0 and len(run.stdout.splitlines()) == 2 else run.stdout + run.stderr


# ---- a reader of its own ---------------------------------------------------------------------------------------------


@dataclass
class Reader:
    """Reads a filesystem by its boot sector alone, with FAT chains, as fatgen103 describes it."""

    data: bytes

    def __post_init__(self) -> None:
        fields = struct.unpack_from("<HBHBHHBH", self.data, 11)
        _, self.per_cluster, self.reserved, self.fats, self.root_entries, small, _, table = fields
        self.sectors = small or struct.unpack_from("<I", self.data, 32)[0]
        self.bits = 16 if table else 32
        self.table = table or struct.unpack_from("<I", self.data, 36)[0]
        self.root = (self.reserved + self.fats * self.table) * SECTOR
        self.first = self.root + self.root_entries * 32

    def chain(self, cluster: int) -> bytes:
        content = b""
        size = self.per_cluster * SECTOR
        while cluster < (0xFFF8 if self.bits == 16 else 0x0FFFFFF8):
            assert cluster >= 2
            start = self.first + (cluster - 2) * size
            content += self.data[start : start + size]
            entry = "<H" if self.bits == 16 else "<I"
            cluster = struct.unpack_from(entry, self.data, self.reserved * SECTOR + cluster * self.bits // 8)[0]
        return content

    def entries(self, data: bytes) -> Iterator[tuple[str, bytes, bytes]]:
        """Yield the long name (or the short one), the short name and the entry."""
        parts: list[bytes] = []
        for offset in range(0, len(data), 32):
            entry = data[offset : offset + 32]
            if not entry[0]:
                break
            if entry[11] == 0x0F:
                total = 0
                short = data[offset + 32 * (entry[0] & 0x3F) :][:11]
                for byte in short:
                    total = (((total & 1) << 7) + (total >> 1) + byte) & 0xFF
                assert entry[13] == total
                assert bool(entry[0] & 0x40) == (not parts)
                parts.insert(0, entry[1:11] + entry[14:26] + entry[28:32])
                continue
            name = b"".join(parts).decode("utf-16-le").split("\0")[0]
            plain = entry[:8].rstrip().decode() + ("." + entry[8:11].rstrip().decode()).rstrip(".")
            yield name or plain, entry[:11], entry
            parts = []

    def files(self) -> dict[str, bytes]:
        start = self.data[self.root : self.first] if self.bits == 16 else self.chain(2)
        return dict(self.below("", start, 0))

    def below(self, folder: str, data: bytes, own: int) -> Iterator[tuple[str, bytes]]:
        seen: set[bytes] = set()
        for name, short, entry in self.entries(data):
            assert short not in seen
            seen.add(short)
            high, low = struct.unpack_from("<H4xH", entry, 20)
            cluster, (size,) = high << 16 | low, struct.unpack_from("<I", entry, 28)
            if entry[11] == 0x08 or name in (".", ".."):
                assert name != "." or cluster == own
            elif entry[11] == 0x10:
                content = self.chain(cluster)
                assert struct.unpack_from("<H4xH", content, 32 + 20) == (own >> 16, own & 0xFFFF)
                yield from self.below(f"{folder}{name}/", content, cluster)
            else:
                assert bool(cluster) == bool(size)
                yield folder + name, self.chain(cluster)[:size] if size else b""


# ---- against mkfs.fat ------------------------------------------------------------------------------------------------


def masked(data: bytes, bits: int) -> bytes:
    """Return a filesystem without what may differ: code that says that it does not boot, times, hints."""
    image = bytearray(data)
    code = 62 if bits == 16 else 90
    for sector in (0, 6) if bits == 32 else (0,):
        image[sector * SECTOR + code : sector * SECTOR + 510] = bytes(510 - code)
    reader = Reader(data)
    image[reader.root + 12 : reader.root + 26] = bytes(14)  # the times of the label
    return bytes(image)


SIZES = [9 * MIB, 16 * MIB, 33 * MIB, 64 * MIB, 200 * MIB, 511 * MIB, 512 * MIB, 1 << 30]


def against_mkfs(size: int, folder: Path) -> None:
    bits = 16 if size < FAT32_SIZE else 32
    ours, theirs = written(folder / "ours", {}, size), folder / "theirs"
    with theirs.open("wb") as disk:
        disk.truncate(size)
    argv = ["mkfs.fat", "-F", str(bits), "-n", "ESP", "-i", "1A2B3C4D", "-g", "64/32", "-h", str(START)]
    subprocess.run([*argv, theirs], check=True, capture_output=True)
    length = geometry_for(size).data_sector * SECTOR + MIB
    with ours.open("rb") as one, theirs.open("rb") as two:
        first, second = one.read(length), two.read(length)
    if bits == 32:  # the table of mkfs.fat ends the chain of the root directory with another end
        for number in range(2):
            place = (Reader(first).reserved + number * Reader(first).table) * SECTOR + 8
            assert first[place : place + 4] == b"\xff\xff\xff\x0f"
            second = second[:place] + first[place : place + 4] + second[place + 4 :]
    assert masked(first, bits) == masked(second, bits)
    assert complaints(ours) == complaints(theirs) == ""


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_an_empty_filesystem_is_that_of_mkfs(size: int, tmp_path: Path) -> None:
    need_program("mkfs.fat")
    against_mkfs(size, tmp_path)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.one_of(st.integers(9, 511), st.integers(512, 40 << 10)))
def test_any_number_of_mib_is_laid_out_as_by_mkfs(tmp_path_factory: pytest.TempPathFactory, mib: int) -> None:
    need_program("mkfs.fat")
    folder = tmp_path_factory.mktemp("fat")
    against_mkfs(mib * MIB, folder)
    for path in folder.iterdir():
        path.unlink()


# ---- sizes -----------------------------------------------------------------------------------------------------------


def test_the_count_of_clusters_is_legal_for_the_type() -> None:
    for mib in range(3, 512):
        plan = geometry_for(mib * MIB)
        assert plan.bits == 16
        assert 4085 <= plan.clusters < 65525
        assert plan.fat_sectors * SECTOR // 2 >= plan.clusters + 2
    for mib in (*range(512, 3000), 8 << 10, (8 << 10) + 1, 16 << 10, (32 << 10) + 1, (2 << 20) - 1):
        plan = geometry_for(mib * MIB)
        assert plan.bits == 32
        assert 65525 <= plan.clusters < 0x0FFFFFF5
        assert plan.fat_sectors * SECTOR // 4 >= plan.clusters + 2
    assert geometry_for(8 * MIB).cluster_sectors == 2
    assert geometry_for(3 * MIB).cluster_sectors == 1


@pytest.mark.parametrize(("mib", "sectors"), [(16, 32), (300, 160), (511, 256), (513, 1024), (1026, 2048)])
def test_tables_are_as_long_as_those_of_mkfs(mib: int, sectors: int) -> None:
    """The numbers are its own (``-g 64/32``); with the last two sizes a few sectors more would need a longer table."""
    assert geometry_for(mib * MIB).fat_sectors == sectors


@pytest.mark.parametrize("size", [MIB, 2 * MIB])
def test_a_partition_that_is_too_small_for_fat(size: int) -> None:
    with pytest.raises(
        RecipeError, match=f"^EFI system partition of {size >> 10} KiB is too small for FAT$"
    ) as refusal:
        fat_pieces(partition(size), {}, EPOCH)
    assert refusal.value.hint == "at least 3 MiB"


def test_a_partition_that_is_too_large_for_fat() -> None:
    assert geometry_for((1 << 41) - SECTOR).sectors == 0xFFFFFFFF
    with pytest.raises(RecipeError, match=r"^EFI system partition of 2048 GiB is too large for FAT$"):
        fat_pieces(partition(1 << 41), {}, EPOCH)


def test_files_that_do_not_fit_name_what_is_missing(tmp_path: Path) -> None:
    plan = geometry_for(16 * MIB)
    most = (plan.clusters - 2) * plan.cluster_size  # two directories
    full = written(tmp_path / "fat", {"EFI/BOOT/X.EFI": bytes(range(251)) * (most // 251)}, 16 * MIB)
    assert complaints(full) == ""
    with pytest.raises(RecipeError) as refusal:
        fat_pieces(partition(16 * MIB), {"EFI/BOOT/X.EFI": bytes(most + 1)}, EPOCH)
    assert refusal.value.message == "EFI system partition of 16384 KiB is too small: 2 KiB are missing for its files"
    assert refusal.value.hint == "make it at least 17 MiB"
    with pytest.raises(RecipeError) as refusal:
        fat_pieces(partition(16 * MIB), {"x": bytes(100 * MIB)}, EPOCH)
    hint = refusal.value.hint or ""
    assert hint.startswith("make it at least 101 MiB")
    fat_pieces(partition(101 * MIB), {"x": bytes(100 * MIB)}, EPOCH)


def boot_sector(mib: int, label: str = "ESP") -> bytes:
    return next(fat_pieces(partition(mib * MIB, label=label), {}, EPOCH))[1]


@pytest.mark.parametrize(
    ("mib", "start"),
    [
        (
            16,
            "eb3c906d6b66732e66617400020404000200020080f82000200040000010"
            "0000000000008000294d3c2b1a4553502020202020202020464154313620"
            "2020",
        ),
        (
            512,
            "eb58906d6b66732e66617400020820000200000000f80000200040000010"
            "000000001000000400000000000002000000010006000000000000000000"
            "000000008000294d3c2b1a45535020202020202020204641543332202020",
        ),
    ],
)  # fmt: skip
def test_the_records_of_the_boot_sector(mib: int, start: str) -> None:
    """As mkfs.fat wrote them, up to the code."""
    sector = boot_sector(mib)
    assert sector.hex().startswith(start)
    assert len(sector) == SECTOR
    assert (
        sector[len(start) // 2 :].rstrip(b"\0") == b"\xcd\x18\xeb\xfe".ljust(510 - len(start) // 2, b"\0") + b"\x55\xaa"
    )
    assert sector[1] == len(start) // 2 - 2
    assert boot_sector(mib, label="")[len(start) // 2 - 19 :].startswith(b"NO NAME    FAT")


def test_from_65536_sectors_on_their_number_has_a_field_of_32_bits() -> None:
    assert struct.unpack_from("<H11xI", boot_sector(31), 19) == (31 * 2048, 0)
    assert struct.unpack_from("<H11xI", boot_sector(32), 19) == (0, 65536)


@pytest.mark.parametrize(("count", "clusters"), [(14, 1), (15, 2), (30, 2), (31, 3)])
def test_the_clusters_of_a_directory(count: int, clusters: int) -> None:
    """There are 16 entries in a cluster, and two of them are the directory itself and the one above."""
    pieces = list(fat_pieces(partition(3 * MIB), {f"D/F{number}": b"" for number in range(count)}, EPOCH))
    table = struct.unpack(f"<{clusters + 2}H", pieces[1][1])
    assert table == (0xFFF8, 0xFFFF, *range(3, clusters + 2), 0xFFFF)


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("BOOTX64.EFI", "BOOTX64 EFI"),
        ("startup.nsh", "STARTUP NSH"),
        ("Makefile", "MAKEFILE   "),
        ("The quick brown.fox", "THEQUI~1FOX"),
        ("archive.tar.gz", "ARCHIV~1GZ "),
        (".bashrc", "BASHRC~1   "),
        ("grub+x.cfg", "GRUB_X~1CFG"),
        ("größe.txt", "GR__E~1 TXT"),
        ("日本語", "___~1      "),
        ("a.html", "A~1     HTM"),
        ("two words", "TWOWOR~1   "),
    ],
)
def test_short_names(name: str, short: str) -> None:
    assert short_names([name]) == {name: short.encode()}


def test_numbers_of_short_names_avoid_each_other_and_real_names() -> None:
    names = [f"long name {number:04}.txt" for number in range(1200)] + ["LONGNA~2.TXT", "longn~11.txt"]
    shorts = short_names(names)
    assert len(set(shorts.values())) == len(names)
    assert shorts["LONGNA~2.TXT"] == b"LONGNA~2TXT"
    assert shorts["longn~11.txt"] == b"LONGN~11TXT"
    assert shorts["long name 0000.txt"] == b"LONGNA~1TXT"
    assert shorts["long name 0001.txt"] == b"LONGNA~3TXT"
    assert shorts["long name 0009.txt"] == b"LONGN~12TXT"
    assert shorts["long name 1199.txt"].startswith(b"LON~1")
    assert short_names(names[::-1]) == shorts


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("a" * 255, ""),
        ("a" * 256, "is longer than 255 characters"),
        ("\U0001f600" * 128, "is longer than 255 characters"),
        ("a:b", "has a character that FAT does not allow, ':'"),
        ("a\nb", r"has a character that FAT does not allow, '\n'"),
        ("a.", "is empty or ends with a period or a space, which FAT does not allow"),
        ("..", "is empty or ends with a period or a space, which FAT does not allow"),
        ("", "is empty or ends with a period or a space, which FAT does not allow"),
        ("a\udc80", "is not Unicode"),
    ],
)
def test_names_that_are_not_legal(name: str, fault: str) -> None:
    assert fault_of(name) == fault
    if fault and name:
        with pytest.raises(RecipeError) as refusal:
            fat_pieces(partition(16 * MIB), {f"EFI/{name}": b""}, EPOCH)
        assert refusal.value.message == f"EFI/{name} on the EFI system partition: the name {fault}"


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("EFI/a", "EFI/A"), "EFI/a on the EFI system partition differs from EFI/A in case only"),
        (("EFI/x", "efi/y"), "efi on the EFI system partition differs from EFI in case only"),
        (("EFI", "EFI/x"), "EFI on the EFI system partition is both a file and a directory"),
        (("a//b",), "a/ on the EFI system partition: the name is empty or ends with a period"),
    ],
)
def test_paths_that_exclude_each_other(paths: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        fat_pieces(partition(16 * MIB), dict.fromkeys(paths, b"x"), EPOCH)
    assert refusal.value.message.startswith(message)


def test_the_root_directory_of_a_fat16_has_512_entries(tmp_path: Path) -> None:
    """One of them is the label's."""
    files = {f"F{number}": b"" for number in range(511)}
    assert Reader(written(tmp_path / "fat", files, 3 * MIB).read_bytes()).files() == files
    with pytest.raises(RecipeError, match="has no room for 512 names") as refusal:
        fat_pieces(partition(3 * MIB), {**files, "ONE": b""}, EPOCH)
    assert refusal.value.hint == "put them into a directory"
    written(tmp_path / "fat", {**files, "ONE": b""}, 3 * MIB, label="")


@pytest.mark.slow
def test_a_directory_has_at_most_65536_entries() -> None:
    files = {f"D/F{number}": b"" for number in range(65534)}
    fat_pieces(partition(64 * MIB), files, EPOCH)
    with pytest.raises(RecipeError, match=r"^/D/ on the EFI system partition has too many files"):
        fat_pieces(partition(64 * MIB), {**files, "D/ONE": b""}, EPOCH)


# ---- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epoch", "stamp"),
    [
        (1_700_000_001, (43 << 9 | 11 << 5 | 14, 22 << 11 | 13 << 5 | 10)),
        (0, (0x21, 0)),
        (315532799, (0x21, 0)),
        (315532802, (0x21, 1)),
        (4354819199, (127 << 9 | 12 << 5 | 31, 23 << 11 | 59 << 5 | 29)),
        (1 << 40, (127 << 9 | 12 << 5 | 31, 23 << 11 | 59 << 5 | 29)),
    ],
)
def test_times_have_steps_of_two_seconds(epoch: int, stamp: tuple[int, int]) -> None:
    assert (stamp_of(epoch).date, stamp_of(epoch).time) == stamp


# ---- whole filesystems -----------------------------------------------------------------------------------------------

FILES = {
    "EFI/BOOT/BOOTX64.EFI": bytes(range(256)) * 2100,
    "EFI/BOOT/grub.cfg": b"search\n",
    "startup.nsh": b"\\EFI\\BOOT\\BOOTX64.EFI\r\n",
    "EFI/empty": b"",
    "a name of many words, größer als 13.txt": b"long",
}


@pytest.mark.parametrize("size", [3 * MIB, 5 * MIB, 16 * MIB])
def test_what_is_written_is_read_back(size: int, tmp_path: Path) -> None:
    path = written(tmp_path / "fat", FILES, size)
    assert Reader(path.read_bytes()).files() == FILES


@pytest.mark.slow
@pytest.mark.parametrize("size", [3 * MIB, 16 * MIB, 300 * MIB, 512 * MIB, 4 << 30, 9 << 30])
def test_fsck_and_mtools_agree(size: int, tmp_path: Path) -> None:
    path = written(tmp_path / "fat", FILES, size)
    assert complaints(path) == ""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC", "MTOOLSRC": "/dev/null"}

    def mtools(*argv: str) -> bytes:
        program = need_program(argv[0])
        return subprocess.run(
            [program, "-i", str(path), *argv[1:]], check=True, capture_output=True, env=environment
        ).stdout

    listing = mtools("mdir", "-/", "::").decode()
    assert " Volume in drive : is ESP " in listing
    assert "Volume Serial Number is 1A2B-3C4D" in listing
    assert "BOOTX64  EFI    537600 2023-11-14  22:13" in listing
    for name, content in FILES.items():
        assert mtools("mtype", f"::{name}") == content
    with path.open("r+b") as disk:
        disk.seek(geometry_for(size).reserved_sectors * SECTOR + 6 + (4 if size >= FAT32_SIZE else 0))
        disk.write(b"\x55\x55")
    assert complaints(path) != ""


LETTERS = st.one_of(
    st.characters(min_codepoint=32, max_codepoint=126), st.characters(min_codepoint=128, exclude_categories=["Cs"])
)
NAMES = st.one_of(
    st.text(LETTERS, min_size=1, max_size=30),
    st.text(st.sampled_from("aAbB.~1_ "), min_size=1, max_size=12),
    st.integers(1, 255).map(lambda length: "n" * length),
).filter(lambda name: not fault_of(name))


@st.composite
def trees(draw: st.DrawFn) -> dict[str, bytes]:
    """Return paths and contents that are legal together."""
    files: dict[str, bytes] = {}
    known: dict[str, tuple[str, bool]] = {}  # folded path → path, and whether it is a directory
    for names in draw(st.lists(st.lists(NAMES, min_size=1, max_size=4), max_size=25)):
        path = "/".join(names)
        folders = {
            folded(folder): (folder, True) for folder in ("/".join(names[:depth]) for depth in range(1, len(names)))
        }
        if folded(path) not in known and all(known.get(key, folder) == folder for key, folder in folders.items()):
            known |= {**folders, folded(path): (path, False)}
            files[path] = draw(st.binary(max_size=40)) * draw(st.sampled_from([0, 1, 13, 200]))
    return files


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=200, deadline=None)
@given(trees())
def test_any_tree_is_read_back(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    path = written(tmp_path_factory.getbasetemp() / "any.fat", files, 3 * MIB)
    assert Reader(path.read_bytes()).files() == files


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=300, deadline=None)
@given(trees(), st.sampled_from([3 * MIB, 12 * MIB, 512 * MIB]))
def test_fsck_accepts_any_tree(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], size: int) -> None:
    path = written(tmp_path_factory.getbasetemp() / "checked.fat", files, size)
    assert complaints(path) == ""


def test_equal_input_makes_equal_bytes_in_any_order() -> None:
    backwards = dict(reversed(FILES.items()))
    first = list(fat_pieces(partition(16 * MIB), FILES, EPOCH))
    assert first == list(fat_pieces(partition(16 * MIB), backwards, EPOCH))
    assert first != list(fat_pieces(partition(16 * MIB), FILES, EPOCH + 2))


@pytest.mark.slow
def test_mcopy_reads_a_large_directory(tmp_path: Path) -> None:
    many = {f"EFI/many/A long name that many files share {number}.txt": str(number).encode() for number in range(2000)}
    path = written(tmp_path / "fat", {**FILES, **many}, 40 * MIB)
    assert complaints(path) == ""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "MTOOLSRC": "/dev/null"}
    target = tmp_path / "out"
    target.mkdir()
    argv = [need_program("mcopy"), "-s", "-i", str(path), "::EFI", str(target)]
    subprocess.run(argv, check=True, capture_output=True, env=environment)
    found = {str(file.relative_to(target)): file.read_bytes() for file in target.rglob("*") if file.is_file()}
    assert found == {name: data for name, data in {**FILES, **many}.items() if name.startswith("EFI")}
