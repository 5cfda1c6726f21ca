"""Tar archives of nodes: the bytes of headers, what other readers make of them, and contents of all sizes."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.tree import Device, Directory, File, HardLink, Inline, Node, Slice, Symlink, Tree, TreeError
from imgkit.tree.tarstream import TarStream
from imgkit.tree.tarwriter import BLOCK, PIECE, archive, header, padding
from tests.conftest import need_program
from tests.ocitrees import STEPS, lower_tree, play, read_archive

FILE = File(content=Inline(b"abc"), mode=0o644, uid=1, gid=2, mtime=3)


def written(entries: Sequence[tuple[str, Node]], prefix: str = "") -> bytes:
    return b"".join(bytes(piece) for piece in archive(entries, prefix))


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as found:
        return {member.name: member for member in found}


def entries(tree: Tree) -> list[tuple[str, Node]]:
    """Return what a tar of a Tree has: hard links last, with the attributes of their files."""
    links = [(path, node) for path, node in tree.items() if isinstance(node, HardLink)]
    return [entry for entry in tree.items() if entry not in links] + links


def test_a_plain_header_has_one_block_of_known_bytes() -> None:
    block = header("etc/motd", FILE)
    info = tarfile.TarInfo("etc/motd")
    info.size, info.mode, info.uid, info.gid, info.mtime = 3, 0o644, 1, 2, 3
    assert block == info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("path", "uid"), [("n" * 101, 1), ("n", 0o7777777 + 1)])
def test_an_extended_header_has_known_bytes(path: str, uid: int) -> None:
    info = tarfile.TarInfo(path)
    info.size, info.mode, info.uid, info.gid, info.mtime = 3, 0o644, uid, 2, 3
    assert header(path, replace(FILE, uid=uid)) == info.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize(
    ("path", "node", "kind", "link"),
    [
        ("d", Directory(mode=0o1777), tarfile.DIRTYPE, ""),
        ("l", Symlink(target="../x"), tarfile.SYMTYPE, "../x"),
        ("h", HardLink(target="a/b"), tarfile.LNKTYPE, "a/b"),
        ("c", Device(kind="c", major=1, minor=3), tarfile.CHRTYPE, ""),
        ("b", Device(kind="b", major=8, minor=17), tarfile.BLKTYPE, ""),
        ("p", Device(kind="p"), tarfile.FIFOTYPE, ""),
    ],
)
def test_kinds(path: str, node: Node, kind: bytes, link: str) -> None:
    assert len(header(path, node)) == BLOCK
    member = members(written([(path, node)]))[path]
    assert (member.type, member.linkname, member.mode) == (kind, link, node.mode)
    assert member.uname == member.gname == ""
    if isinstance(node, Device):
        assert (member.devmajor, member.devminor) == (node.major, node.minor)


def test_directories_end_with_a_slash_and_a_prefix_comes_first() -> None:
    assert header("etc", Directory())[:6] == b"etc/\0\0"
    assert header("etc", Directory(), "./")[:8] == b"./etc/\0\0"
    assert header("", Directory())[:4] == header("", Directory(), "./")[:4] == b"./\0\0"
    assert header("h", HardLink(target="f"), "./")[157:162] == b"./f\0\0"


@pytest.mark.parametrize(
    ("path", "prefix", "name"),
    [
        ("n" * 100, "", "n" * 100),
        ("d" * 155 + "/" + "n" * 100, "d" * 155, "n" * 100),
        ("a/" + "d" * 60 + "/" + "n" * 60, "a/" + "d" * 60, "n" * 60),
    ],
)
def test_long_names_that_fit_into_two_fields(path: str, prefix: str, name: str) -> None:
    block = header(path, FILE)
    assert len(block) == BLOCK
    assert block[345:500].rstrip(b"\0").decode() == prefix
    assert block[:100].rstrip(b"\0").decode() == name
    assert list(members(written([(path, FILE)]))) == [path]


@pytest.mark.parametrize(
    "path",
    [
        "n" * 101,
        "d" * 156 + "/n",
        "d/" + "n" * 101,
        "/".join(["d" * 50] * 6),
        "ä",
        "\udcff\udcfe",
        "d" * 98 + "/ü",
    ],
)
def test_names_that_need_a_record(path: str) -> None:
    assert len(header(path, FILE)) == 3 * BLOCK
    assert list(members(written([(path, FILE)]))) == [path]
    assert read_archive(written([(path, FILE)])) == [(path, FILE)]


def test_a_directory_of_one_hundred_bytes_needs_a_record_for_its_slash() -> None:
    assert len(header("n" * 99, Directory())) == BLOCK
    assert len(header("n" * 100, Directory())) == 3 * BLOCK
    assert list(members(written([("n" * 100, Directory())]))) == ["n" * 100]
    assert len(header("p/" + "n" * 99, Directory())) == BLOCK
    assert list(members(written([("p/" + "n" * 99, Directory())]))) == ["p/" + "n" * 99]


@pytest.mark.parametrize(("target", "blocks"), [("t" * 100, 1), ("t" * 101, 3), ("ü", 3), ("\udcff", 3)])
def test_targets_of_links(target: str, blocks: int) -> None:
    assert len(header("l", Symlink(target=target))) == blocks * BLOCK
    assert members(written([("l", Symlink(target=target))]))["l"].linkname == target


@pytest.mark.parametrize(("field", "largest"), [("uid", 0o7777777), ("gid", 0o7777777), ("mtime", 0o77777777777)])
def test_numbers_that_do_not_fit_become_records(field: str, largest: int) -> None:
    assert len(header("f", replace(FILE, **{field: largest}))) == BLOCK  # type: ignore[arg-type]
    for number in (largest, largest + 1):
        member = members(written([("f", replace(FILE, **{field: number}))]))["f"]  # type: ignore[arg-type]
        assert getattr(member, field) == number
        assert (field in member.pax_headers) == (number > largest)


@pytest.mark.parametrize(
    ("seconds", "nanoseconds", "record"),
    [(5, 1, "5.000000001"), (5, 250_000_000, "5.25"), (-1, 750_000_000, "-0.25"), (-3, 999_999_999, "-2.000000001")],
)
def test_nanoseconds_are_a_record(seconds: int, nanoseconds: int, record: str) -> None:
    member = members(written([("f", replace(FILE, mtime=seconds, nanoseconds=nanoseconds))]))["f"]
    assert member.pax_headers == {"mtime": record}


@given(st.integers(-(1 << 40), 1 << 40), st.integers(0, 999_999_999))
def test_times_survive_an_archive(seconds: int, nanoseconds: int) -> None:
    data = written([("f", replace(FILE, mtime=seconds, nanoseconds=nanoseconds))])
    (found,) = TarStream(iter([data]))
    assert (found.mtime, found.nanoseconds) == (seconds, nanoseconds)


def test_a_time_before_1970_is_a_record() -> None:
    assert members(written([("f", replace(FILE, mtime=-5))]))["f"].mtime == -5


@dataclass(frozen=True)
class Huge:
    """A content that is never read."""

    size: int = 0o77777777777 + 1

    def open(self) -> BinaryIO:
        raise AssertionError

    def read(self) -> bytes:
        raise AssertionError


def test_a_file_of_eight_gigabytes_has_its_size_in_a_record() -> None:
    data = header("f", File(content=Huge()))
    assert b"19 size=8589934592\n" in data
    assert data[-BLOCK:][124:136] == b"00000000000\0"
    assert len(header("f", File(content=Huge(0o77777777777)))) == BLOCK


@pytest.mark.parametrize("length", [*range(1, 12), *range(80, 100), *range(980, 1000)])
def test_the_length_of_a_record_counts_itself(length: int) -> None:
    node = replace(FILE, xattrs={"user.a": b"v" * length})
    assert read_archive(written([("f", node)])) == [("f", node)]
    record = header("f", node)[BLOCK:].partition(b"\n")[0] + b"\n"
    assert int(record.partition(b" ")[0]) == len(record)


def test_records_are_sorted() -> None:
    one = replace(FILE, xattrs={"user.b": b"1", "user.a": b"2"})
    other = replace(FILE, xattrs={"user.a": b"2", "user.b": b"1"})
    assert header("f", one) == header("f", other)
    assert header("f", one).index(b"user.a") < header("f", one).index(b"user.b")


@pytest.mark.parametrize("name", ["user.a=b", "user.\0"])
def test_attributes_that_no_archive_can_hold(name: str) -> None:
    with pytest.raises(TreeError, match=r"^f: the extended attribute .* cannot be in a tar archive$"):
        header("f", replace(FILE, xattrs={name: b""}))


@pytest.mark.parametrize("number", [-1, 0o7777777 + 1])
def test_device_numbers_that_no_archive_can_hold(number: int) -> None:
    with pytest.raises(TreeError, match=rf"^x: device number {number} cannot be in a tar archive$"):
        header("x", Device(kind="c", major=number))
    assert header("x", Device(kind="c", minor=0o7777777))


def test_the_set_id_bits_are_kept_and_nothing_above_them() -> None:
    assert header("f", replace(FILE, mode=0o107755))[100:108] == b"0007755\0"


# ---- contents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "zeros"), [(0, 0), (1, 511), (511, 1), (512, 0), (513, 511)])
def test_padding(size: int, zeros: int) -> None:
    assert padding(size) == zeros
    assert len(written([("f", File(content=Inline(b"x" * size)))])) == BLOCK + size + zeros + 1024


@pytest.mark.parametrize("offset", range(-3, 4))
@pytest.mark.parametrize("times", [1, 2])
def test_pieces_have_one_size_wherever_a_file_ends(tmp_path: Path, offset: int, times: int) -> None:
    size = times * PIECE + offset * 512 - (7 if offset % 2 else 0)
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "spool").write_bytes(b"--" + content)
    sliced = [("a", File(content=Slice(tmp_path / "spool", 2, size))), ("b", FILE)]
    pieces = [bytes(piece) for piece in archive(sliced)]
    assert {len(piece) for piece in pieces[:-1]} <= {PIECE}
    assert 0 < len(pieces[-1]) <= PIECE
    assert b"".join(pieces) == written([("a", File(content=Inline(content[:size]))), ("b", FILE)])
    assert [(path, node.content.read()) for path, node in read_archive(b"".join(pieces)) if isinstance(node, File)] == [
        ("a", content[:size]),
        ("b", b"abc"),
    ]


def test_an_empty_archive_is_its_end_marker() -> None:
    assert written([]) == bytes(1024)


def test_slices_of_several_files(tmp_path: Path) -> None:
    for name in "xy":
        (tmp_path / name).write_bytes(name.encode() * 10)
    slices = [("a", "x", 3), ("b", "y", 4), ("c", "x", 5), ("d", "x", 2)]
    data = written([(path, File(content=Slice(tmp_path / name, 1, size))) for path, name, size in slices])
    contents = [node.content.read() for _, node in read_archive(data) if isinstance(node, File)]
    assert contents == [b"xxx", b"yyyy", b"xxxxx", b"xx"]


@dataclass(frozen=True)
class Other:
    """A content of another kind, whose stream returns a few bytes at a time."""

    data: bytes
    size: int

    def open(self) -> BinaryIO:
        class Slow(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                return super().read(min(5, size or 0))

        return Slow(self.data)

    def read(self) -> bytes:
        return self.data


def test_contents_of_other_kinds() -> None:
    given = [("a", File(content=Other(b"hello world", 11))), ("b", File(content=Other(b"again", 5)))]
    contents = [node.content.read() for _, node in read_archive(written(given)) if isinstance(node, File)]
    assert contents == [b"hello world", b"again"]
    with pytest.raises(EOFError, match=r"^a file is shorter than it was$"):
        written([("a", File(content=Other(b"hello", 6)))])


def test_a_file_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "spool").write_bytes(b"12345")
    with pytest.raises(EOFError, match=r"spool: file is shorter than it was$"):
        written([("f", File(content=Slice(tmp_path / "spool", 1, 5)))])
    with pytest.raises(FileNotFoundError):
        written([("f", File(content=Slice(tmp_path / "gone", 1, 5)))])


# ---- other readers ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(STEPS)
def test_what_is_written_is_read_again(steps: list[tuple[str, str, Node]]) -> None:
    given = entries(play(Tree(), steps))
    data = written(given)
    assert read_archive(data) == given
    assert len(data) % BLOCK == 0
    assert list(members(data)) == [path or "." for path, _ in given]


@pytest.mark.parametrize("program", ["tar", "bsdtar"])
def test_other_programs_unpack_the_same(program: str, tmp_path: Path) -> None:
    path = need_program(program)
    tree = lower_tree()
    for name in ("dev/fifo", "dev"):
        tree.remove(name)
    (tmp_path / "a.tar").write_bytes(written(entries(tree)))
    (tmp_path / "root").mkdir()
    extract = [path, "-xpf", str(tmp_path / "a.tar"), "-C", str(tmp_path / "root"), "--no-same-owner"]
    done = subprocess.run(extract, capture_output=True, check=True)
    assert done.stderr == b""
    found = {str(entry.relative_to(tmp_path / "root")): entry for entry in (tmp_path / "root").rglob("*")}
    assert set(found) == set(tree) - {""}
    for name, entry in found.items():
        node = tree.stat(name) if isinstance(tree[name], HardLink) else tree[name]
        assert node is not None
        assert entry.is_symlink() or entry.lstat().st_mode & 0o1777 == node.mode & 0o1777, name
        if isinstance(node, File):
            assert entry.read_bytes() == node.content.read()
            assert entry.stat().st_nlink == (3 if "ping" in name else 1)
            assert entry.stat().st_mtime == node.mtime
        if isinstance(node, Symlink):
            assert str(entry.readlink()) == node.target
