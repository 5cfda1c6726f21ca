"""The newc writer, against a reader written for the tests and against cpio itself."""

from __future__ import annotations

import io
import stat
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.tree import Device, Directory, File, HardLink, Inline, Node, Symlink
from imgkit.tree.cpio import Member, write_newc
from tests.conftest import need_program
from tests.trees import read_newc

names = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=40)
numbers = st.integers(0, (1 << 32) - 1)
modes = st.integers(0, 0o7777)
nodes = st.one_of(
    st.builds(Directory, mode=modes, uid=numbers, gid=numbers, mtime=numbers),
    st.builds(File, content=st.builds(Inline, st.binary(max_size=70)), mode=modes, uid=numbers, mtime=numbers),
    st.builds(Symlink, target=names, mtime=numbers),
    st.builds(Device, kind=st.sampled_from("cbp"), major=numbers, minor=numbers, mode=modes),
)
TYPES = {Directory: stat.S_IFDIR, File: stat.S_IFREG, Symlink: stat.S_IFLNK}
DEVICES = {"c": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


def archive(*members: Member) -> bytes:
    sink = io.BytesIO()
    length = write_newc(sink, members)
    assert length == len(sink.getvalue())
    return sink.getvalue()


def expected(node: Node) -> tuple[int, int, int, int, int, int, bytes]:
    """Mode, uid, gid, mtime, device numbers and data of the member for ``node``."""
    kind = DEVICES[node.kind] if isinstance(node, Device) else TYPES[type(node)]
    major, minor = (node.major, node.minor) if isinstance(node, Device) else (0, 0)
    data = node.content.read() if isinstance(node, File) else b""
    data = node.target.encode() if isinstance(node, Symlink) else data
    return kind | node.mode, node.uid, node.gid, node.mtime, major, minor, data


@pytest.mark.slow
@given(st.lists(st.builds(Member, names.filter(lambda name: name != "TRAILER!!!"), nodes), max_size=8))
def test_round_trip(members: list[Member]) -> None:
    data = archive(*members)
    assert len(data) % 512 == 0
    read = read_newc(data)
    assert [member.name for member in read] == [member.name for member in members]
    for copy, member in zip(read, members, strict=True):
        number = copy.numbers
        assert (*number[1:4], number[5], *number[9:11], copy.data) == expected(member.node)
    assert [copy.numbers[0] for copy in read] == list(range(1, len(members) + 1))


def test_cpio_agrees() -> None:
    program = need_program("cpio")
    data = archive(
        Member(".", Directory(mode=0o700)),
        Member("dev", Directory()),
        Member("dev/console", Device(kind="c", major=5, minor=1)),
        Member("init", File(content=Inline(b"#!/bin/sh\n"), mode=0o755)),
        Member("sbin", Symlink(target="usr/sbin")),
    )
    listing = subprocess.run([program, "-itv", "--numeric-uid-gid"], input=data, capture_output=True, check=True)
    lines = [line.split() for line in listing.stdout.decode().splitlines()]
    assert [(line[0], line[2], line[3]) for line in lines] == [
        (mode, "0", "0") for mode in ("drwx------", "drwxr-xr-x", "crw-------", "-rwxr-xr-x", "lrwxrwxrwx")
    ]
    assert [" ".join(line[-3:]) for line in lines][-1] == "sbin -> usr/sbin"
    assert lines[2][4:6] == ["5,", "1"]


def test_known_bytes() -> None:
    data = archive(Member("a", File(content=Inline(b"xyz"), mode=0o600, mtime=16)))
    head = "00000001 00008180 00000000 00000000 00000001 00000010 00000003 00000000 00000000 00000000 00000000 00000002"
    assert data[:116] == b"070701" + head.replace(" ", "").encode() + b"00000000" + b"a\0xyz\0"
    trailer = f"{0:032X}{1:08X}{0:048X}{11:08X}{0:08X}".encode()
    assert data[116:] == (b"070701" + trailer + b"TRAILER!!!\0").ljust(512 - 116, b"\0")


def test_a_directory_has_two_links_and_all_else_one() -> None:
    nodes: tuple[Node, ...] = (Directory(), File(content=Inline(b"")), Symlink(target="x"), Device(kind="c"))
    members = read_newc(archive(*(Member(str(number), node) for number, node in enumerate(nodes))))
    assert [member.numbers[4] for member in members] == [2, 1, 1, 1]


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (Member("link", HardLink(target="file")), "hard links"),
        (Member("", Directory()), "cannot be the name"),
        (Member("a\0b", Directory()), "cannot be the name"),
        (Member("old", Directory(mtime=-1)), "mtime -1"),
        (Member("late", Directory(mtime=1 << 32)), "mtime 4294967296"),
        (Member("owned", Directory(uid=1 << 32)), "uid"),
    ],
)
def test_what_does_not_fit_is_refused(member: Member, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        archive(member)


def test_contents_that_became_shorter() -> None:
    class Short(Inline):
        @property
        def size(self) -> int:
            return len(self.data) + 1

    with pytest.raises(ValueError, match="3 bytes where 4"):
        archive(Member("file", File(content=Short(b"abc"))))


def test_the_reader_notices_damage() -> None:
    data = archive(Member("file", File(content=Inline(b"contents"))))
    for damaged in (b"x" + data[1:], data[:110] + b"file!" + data[115:], data[:-1] + b"x", data[:120]):
        with pytest.raises((AssertionError, ValueError)):
            read_newc(damaged)
