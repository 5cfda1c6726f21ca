"""Unpacking a minirootfs: what it holds comes out, what is hostile or damaged is named."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgkit.errors import InputError
from imgkit.rootfs import minirootfs
from imgkit.rootfs.digest import differences, records
from imgkit.tree import Directory, File, HardLink, Inline, Tree
from tests.files import REAL_MINIROOTFS, needs_alpine
from tests.test_package import extended, record


def sample() -> Tree:
    tree = Tree()
    tree.add("", Directory(mode=0o755))
    tree.write("bin/busybox", b"\x7fELF" * 1000, mode=0o4755)
    tree.add("bin/hard", HardLink(target="bin/busybox", mode=0o4755))
    tree.symlink("bin/sh", "/bin/busybox")
    tree.mkdir("tmp", mode=0o1777)
    tree.add("etc", Directory())
    tree.add("etc/shadow", File(content=Inline(b"root:*::0:::::\n"), mode=0o640, gid=42, xattrs={"user.x": b"\xff"}))
    return tree


def archived(tree: Tree) -> bytes:
    sink = io.BytesIO()
    tree.write_tar(sink)
    return gzip.compress(sink.getvalue(), mtime=0)


def unpack(folder: Path, data: bytes) -> Tree:
    archive = folder / "alpine-minirootfs.tar.gz"
    archive.write_bytes(data)
    spool = folder / "spool"
    spool.unlink(missing_ok=True)
    return minirootfs.unpack(archive, spool)


def test_what_was_packed_comes_out(tmp_path: Path) -> None:
    assert differences(records(sample()), records(unpack(tmp_path, archived(sample())))) == []


def test_several_gzip_members_are_one_archive(tmp_path: Path) -> None:
    raw = gzip.decompress(archived(sample()))
    data = gzip.compress(raw[:1000]) + gzip.compress(raw[1000:])
    assert differences(records(sample()), records(unpack(tmp_path, data))) == []


def member(name: str, **attributes: object) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        info = tarfile.TarInfo(name)
        for key, value in attributes.items():
            setattr(info, key, value)
        archive.addfile(info)
    return gzip.compress(sink.getvalue(), mtime=0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"PK\x03\x04", "is not gzip data"),
        (archived(Tree())[:-20], "truncated"),
        (gzip.compress(b"no tar archive" * 100, mtime=0), "not a tar archive"),
        (member("/etc/passwd"), "not a path inside"),
        (member("./../../etc/passwd"), "not a path inside"),
        (member("./a\nb"), "control characters"),
        (member("./x", type=tarfile.LNKTYPE, linkname="/etc/shadow"), "hard link"),
        (member("./no/parent"), "parent is missing"),
        (member("./null", type=tarfile.CHRTYPE, devmajor=1, devminor=3), "device nodes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_used_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        unpack(tmp_path, data)
    assert {path.name for path in tmp_path.iterdir()} <= {"alpine-minirootfs.tar.gz", "spool"}


@pytest.mark.slow
def test_a_bomb_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minirootfs, "MAX_INFLATED", 1 << 20)
    bomb = io.BytesIO()
    with gzip.open(bomb, "wb") as sink:
        info = tarfile.TarInfo("./zero")
        info.size = 64 << 20
        sink.write(info.tobuf())
        for _ in range(64):
            sink.write(bytes(1 << 20))
    with pytest.raises(InputError, match="inflates to more than"):
        unpack(tmp_path, bomb.getvalue())
    assert (tmp_path / "spool").stat().st_size <= 2 << 20


def test_members_that_are_too_much_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = gzip.decompress(archived(sample()))
    half = len(raw) // 2
    data = gzip.compress(raw[:half]) + gzip.compress(raw[half:])
    monkeypatch.setattr(minirootfs, "MAX_INFLATED", len(raw))
    assert "bin/busybox" in unpack(tmp_path, data)
    monkeypatch.setattr(minirootfs, "MAX_INFLATED", len(raw) - 1)
    with pytest.raises(InputError, match="inflates to more than"):
        unpack(tmp_path, data)


def test_times_are_those_of_the_archive(tmp_path: Path) -> None:
    tree = sample()
    tree.write("etc/motd", "hello", mtime=1_700_000_000)
    tree.symlink("etc/link", "motd", mtime=1_600_000_000)
    made = unpack(tmp_path, archived(tree))
    assert (made["etc/motd"].mtime, made["etc/link"].mtime) == (1_700_000_000, 1_600_000_000)


@pytest.mark.parametrize("name", [".", "./"])
def test_the_root_has_what_the_archive_says(tmp_path: Path, name: str) -> None:
    made = unpack(tmp_path, member(name, type=tarfile.DIRTYPE, mode=0o711, uid=5, gid=6))
    assert (made[""].mode, made[""].uid, made[""].gid) == (0o711, 5, 6)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.integers(0, 2000), st.integers(0, 255))
def test_damage_is_an_error_or_changes_nothing(tmp_path: Path, place: int, value: int) -> None:
    data = bytearray(archived(sample()))
    place %= len(data)
    data[place] = value
    try:
        tree = unpack(tmp_path, bytes(data))
    except InputError:
        return
    assert differences(records(sample()), records(tree)) == []


@needs_alpine
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_real_ones(tmp_path: Path, arch: str) -> None:
    tree = minirootfs.unpack(REAL_MINIROOTFS[arch], tmp_path / "spool")
    assert tree.text("etc/alpine-release") == "3.20.3\n"
    assert tree["bin/busybox"].mode == 0o755
    assert len(tree) > 500


def test_extended_headers_in_a_row_are_refused_by_the_archive_s_name(tmp_path: Path) -> None:
    """The reader is that of packages (tests/test_package.py): what it refuses is refused here."""
    many = b"".join(extended(record(f"SCHILY.xattr.user.{number}", 100 << 10)) for number in range(3))
    with pytest.raises(InputError, match=r"alpine-minirootfs\.tar\.gz: has extended headers of 307200 bytes"):
        unpack(tmp_path, gzip.compress(many + member("etc/x")))
