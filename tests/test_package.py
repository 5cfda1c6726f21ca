"""Package files: the contents of a good one, and every fault for which a bad one must be refused."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import io
import random
import re
import resource
import tarfile
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures import apkbuild
from fixtures.apkbuild import Entry
from imgkit.apk.package import IdentityError, PackageFile, check_identity, check_package, open_package, signer_of
from imgkit.apk.signature import BadSignatureError, Keyring
from imgkit.apk.unpack import unpack
from imgkit.errors import HostError, InputError
from imgkit.tree import Directory, File, HardLink, Symlink
from imgkit.tree.gzipmembers import members_of
from imgkit.tree.tarstream import LIMIT_MEMBER, TarError, TarStream
from tests.files import REAL_INDEX, REAL_PACKAGE, needs_alpine
from tests.test_signature import keyring, real_keyring, signing_key

NAME = "demo-1.2-r3.apk"
INFO: apkbuild.PkgInfo = {
    "pkgname": "demo",
    "pkgver": "1.2-r3",
    "pkgdesc": "A demo",
    "arch": "x86_64",
    "builddate": 1700000000,
    "depend": ("so:libc.musl-x86_64.so.1", "/bin/sh"),
    "provides": "cmd:demo=1.2-r3",
    "replaces": ("old", "older<2"),
    "replaces_priority": 5,
    "triggers": "/usr/lib/* /etc",
}
HELLO = b"hello world\n"
GOOD = (
    Entry(name="usr/", kind="directory", mode=0o755, mtime=11),
    Entry(name="usr/bin/", kind="directory", mode=0o1777, uid=7, gid=8, uname="nobody", gname="shadow"),
    Entry(name="usr/bin/demo", data=HELLO, mode=0o4755, mtime=12, pax={"SCHILY.xattr.user.a": "b c"}),
    Entry(name="usr/bin/empty"),
    Entry(name="usr/bin/hard", kind="hardlink", target="usr/bin/demo", mode=0o4755),
    Entry(name="usr/bin/soft", kind="symlink", target="../bin/demo", mode=0o777),
    Entry(name="usr/bin/abs", kind="symlink", target="/etc/../../outside", mode=0o777),
    Entry(name="usr/" + "long/" * 60, kind="directory", mode=0o700),
    Entry(name="usr/" + "long/" * 60 + "ünïcode", data=b"x"),
    Entry(name=".dummy", data=b""),
)
SCRIPTS = {"post-install": b"#!/bin/sh\nexit 0\n", "trigger": b"#!/bin/sh\n"}


@functools.cache
def good_apk() -> apkbuild.Apk:
    return apkbuild.build(INFO, GOOD, SCRIPTS, key=signing_key())


def opened(
    blob: bytes,
    folder: Path,
    *,
    expected: str,
    keys: Keyring | None = None,
    max_installed: int = 1 << 20,
) -> PackageFile:
    path = folder / NAME
    path.write_bytes(blob)
    return open_package(
        path,
        expected=expected,
        keyring=keys or Keyring(),
        spool=folder / "spool",
        max_installed=max_installed,
        name=NAME,
    )


def made(entries: Sequence[Entry], folder: Path, **options: int) -> PackageFile:
    """Return the package of ``entries``, opened as one that an index vouches for."""
    apk = apkbuild.build(INFO, entries)
    return opened(apk.blob, folder, expected=apk.identity, **options)  # type: ignore[arg-type]


# ---- good packages --------------------------------------------------------------------------------------------------


def test_everything_in_a_package_comes_out(tmp_path: Path) -> None:
    apk = good_apk()
    found = opened(apk.blob, tmp_path, expected=apk.identity, keys=keyring())
    assert dict(found.scripts) == SCRIPTS
    assert found.triggers == ("/usr/lib/*", "/etc")
    assert (found.replaces, found.replaces_priority) == (("old", "older<2"), 5)
    assert [entry.path for entry in found.entries] == [entry.name.rstrip("/") for entry in GOOD[:-1]]
    by_path = {entry.path: entry for entry in found.entries}
    demo = by_path["usr/bin/demo"]
    assert isinstance(demo.node, File)
    assert (demo.node.mode, demo.node.mtime, demo.node.xattrs) == (0o4755, 12, {"user.a": b"b c"})
    assert demo.node.content.read() == HELLO
    assert demo.checksum == hashlib.sha1(HELLO).digest()
    assert by_path["usr"].node == Directory(mode=0o755, mtime=11)
    folder = by_path["usr/bin"]
    assert (folder.node.mode, folder.node.uid, folder.node.gid) == (0o1777, 7, 8)
    assert (folder.uname, folder.gname, folder.checksum) == ("nobody", "shadow", None)
    hard, soft = by_path["usr/bin/hard"], by_path["usr/bin/soft"]
    assert hard.node == HardLink(target="usr/bin/demo", mode=0o4755)
    assert hard.checksum == demo.checksum
    assert soft.node == Symlink(target="../bin/demo")
    assert soft.checksum == hashlib.sha1(b"../bin/demo").digest()
    assert by_path["usr/" + "long/" * 60 + "ünïcode"].node.content.read() == b"x"  # type: ignore[union-attr]


def test_packages_share_a_spool(tmp_path: Path) -> None:
    first = made([Entry(name="a", data=b"first")], tmp_path)
    second = made([Entry(name="b", data=b"second")], tmp_path)
    assert [package.entries[0].node.content.read() for package in (first, second)] == [b"first", b"second"]  # type: ignore[union-attr]
    assert (tmp_path / "spool").read_bytes() == b"firstsecond"


def test_a_package_without_a_known_signature_is_fine_because_the_index_vouches(tmp_path: Path) -> None:
    apk = apkbuild.build(INFO, GOOD)
    assert opened(apk.blob, tmp_path, expected=apk.identity, keys=keyring()).entries
    assert signer_of(tmp_path / NAME, keyring(), NAME) is None
    apk = good_apk()
    others = keyring(signing_key("other.rsa.pub"))
    assert opened(apk.blob, tmp_path, expected=apk.identity, keys=others).entries
    assert signer_of(tmp_path / NAME, others, NAME) is None
    assert signer_of(tmp_path / NAME, keyring(), NAME) == "test-1.rsa.pub"


def test_the_identity_may_be_a_sha256(tmp_path: Path) -> None:
    apk = good_apk()
    expected = "Q2" + base64.b64encode(hashlib.sha256(_control_member()).digest()).decode()
    assert opened(apk.blob, tmp_path, expected=expected).entries
    with pytest.raises(IdentityError, match=re.escape(f"the index names ({expected} instead of Q2{'A' * 43}=)")):
        opened(apk.blob, tmp_path, expected=f"Q2{'A' * 43}=")


def _control_member() -> bytes:
    data = apkbuild.data_segment(GOOD)
    info = {**INFO, "size": sum(len(e.data) for e in GOOD), "datahash": hashlib.sha256(data).hexdigest()}
    return apkbuild.control_segment(apkbuild.pkginfo_text(info), SCRIPTS, mtime=1700000000)


@pytest.mark.slow
@needs_alpine
def test_a_real_package(tmp_path: Path) -> None:
    """The file is really version 3.2.0-r23 under a newer name: the index of 3.17 must refuse it."""

    def real(expected: str) -> PackageFile:
        return open_package(
            REAL_PACKAGE,
            expected=expected,
            keyring=real_keyring(),
            spool=tmp_path / "spool",
            max_installed=1 << 20,
            name=NAME,
        )

    assert signer_of(REAL_PACKAGE, real_keyring(), NAME) == "alpine-devel@lists.alpinelinux.org-616ae350.rsa.pub"
    with pytest.raises(IdentityError, match="is not the package that the index names") as caught:
        real(_identity_in_index())
    package = real(caught.value.message.partition("(")[2].partition(" ")[0])
    with tarfile.open(REAL_PACKAGE) as archive:  # sees all three members as one archive
        names = [member.name for member in archive if not member.name.startswith(".")]
    assert [entry.path for entry in package.entries] == names
    assert set(package.scripts) == {"pre-install", "pre-upgrade", "post-upgrade", "post-install"}


def _identity_in_index() -> str:
    index = gzip.decompress(REAL_INDEX.read_bytes()).decode(errors="replace")
    record = next(block for block in index.split("\n\n") if "\nP:alpine-baselayout\nV:3.4.0-r0\n" in block)
    return next(line[2:] for line in record.split("\n") if line.startswith("C:"))


# ---- what is not the package that was asked for ---------------------------------------------------------------------


def test_another_package_is_refused(tmp_path: Path) -> None:
    other = apkbuild.build({**INFO, "pkgver": "9"}, GOOD)
    with pytest.raises(IdentityError, match=r"demo-1.2-r3.apk: is not the package that the index names \(Q1"):
        opened(good_apk().blob, tmp_path, expected=other.identity)


def test_other_data_is_refused_by_both_checks(tmp_path: Path) -> None:
    apk = good_apk()
    blob = apk.blob[: -len(apkbuild.data_segment(GOOD))] + apkbuild.data_segment(GOOD[:2])
    with pytest.raises(IdentityError, match="its files are not what it was signed with"):
        opened(blob, tmp_path, expected=apk.identity)
    with pytest.raises(IdentityError, match="its files are not what it was signed with"):
        check_package(tmp_path / NAME, apk.identity, name=NAME)
    assert not (tmp_path / "spool").exists()


def test_a_bad_signature_by_a_trusted_key_is_refused_even_when_the_index_vouches(tmp_path: Path) -> None:
    apk = apkbuild.build(INFO, GOOD)
    blob = apkbuild.signature_segment(b"something else", signing_key()) + apk.blob
    with pytest.raises(BadSignatureError, match=f"^{NAME}: bad signature: it is not what test-1.rsa.pub signed$"):
        opened(blob, tmp_path, expected=apk.identity, keys=keyring())
    with pytest.raises(BadSignatureError, match="bad signature"):
        signer_of(tmp_path / NAME, keyring(), NAME)


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"", "is empty"),
        (b"ADBd....", "format version 3"),
        (b"<html><body>404</body></html>", "is a web page"),
        (b"\x1f\x8b", "is truncated"),
        (apkbuild.gzip_member(b""), "is not a package: there is no data after its control part"),
        (apkbuild.gzip_member(b"") + b"x", "its .PKGINFO has no pkgname"),
        (apkbuild.gzip_member(b"x" * 512) + b"x", "is not a tar archive"),
        (apkbuild.control_segment("pkgname = a\n") + b"x", "its .PKGINFO has no pkgver"),
        (apkbuild.control_segment("pkgname = a\npkgver = 1\n") + b"x", "has no datahash"),
    ],
)
def test_what_is_no_package_is_refused(blob: bytes, message: str, tmp_path: Path) -> None:
    control = blob[:-1] if blob.endswith(b"x") else blob
    with pytest.raises(InputError, match=message):
        opened(blob, tmp_path, expected=apkbuild.identity(control))


def test_a_control_part_inflates_to_16_mib_at_most(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{NAME}: inflates to more than {16 << 20} bytes$"):
        opened(apkbuild.gzip_member(bytes((16 << 20) + 1), 1) + b"x", tmp_path, expected="")


@pytest.mark.parametrize(("count", "fine"), [(15, True), (16, False)])
def test_a_package_may_have_many_signatures_but_not_any_number(count: int, fine: bool, tmp_path: Path) -> None:
    """What has more than 1 MiB is taken for the control part."""
    apk = apkbuild.build(INFO, GOOD)
    entries = [Entry(name=f".SIGN.RSA.{n}.pub", data=bytes(1 << 16), checksum="") for n in range(count)]
    blob = apkbuild.gzip_member(apkbuild.tar_stream(entries, end=False), 1) + apk.blob
    if fine:
        assert opened(blob, tmp_path, expected=apk.identity).entries
    else:
        with pytest.raises(IdentityError, match="is not the package that the index names"):
            opened(blob, tmp_path, expected=apk.identity)


def test_a_fourth_member_is_refused(tmp_path: Path) -> None:
    data = apkbuild.data_segment(GOOD) + apkbuild.data_segment(GOOD)
    text = f"pkgname = a\npkgver = 1\ndatahash = {hashlib.sha256(data).hexdigest()}\n"
    control = apkbuild.control_segment(text)
    with pytest.raises(InputError, match="more than three gzip members"):
        opened(control + data, tmp_path, expected=apkbuild.identity(control))
    assert (tmp_path / "spool").read_bytes() == b""


# ---- what no package may hold ---------------------------------------------------------------------------------------

DIR = Entry(name="d/", kind="directory", mode=0o755)
FILE = Entry(name="d/f", data=b"data")
HOSTILE: dict[str, tuple[Sequence[Entry], str]] = {
    "absolute path": ([Entry(name="/etc/passwd", data=b"x")], "holds the absolute path /etc/passwd"),
    "dot-dot": ([Entry(name="d/../../x", data=b"x")], r"holds a path with '\.\.': d/\.\./\.\./x"),
    "leading dot-dot": ([Entry(name="../x", data=b"x")], r"holds a path with '\.\.': \.\./x"),
    "dot": ([Entry(name="./x", data=b"x")], r"holds the improper path '\./x'"),
    "inner dot": ([Entry(name="d/./x", data=b"x")], "holds the improper path"),
    "double slash": ([Entry(name="d//x", data=b"x")], "holds the improper path"),
    "empty name": ([Entry(name="", data=b"x")], "holds the improper path ''"),
    "the root": ([Entry(name="./", kind="directory")], "holds the improper path"),
    "newline": ([Entry(name="a\nF:etc", data=b"x")], r"control characters in the path 'a\\nF:etc'"),
    "escape": ([Entry(name="a\x1b[2J", data=b"x")], "control characters"),
    "delete": ([Entry(name="a\x7f", data=b"x")], "control characters"),
    "control in link": ([Entry(name="a", kind="symlink", target="b\nZ:Q1")], "control characters"),
    "long name": ([Entry(name="n" * 256, data=b"x")], "a path that is too long"),
    "long path": ([Entry(name="n/" * 2049, kind="directory")], "a path that is too long"),
    "link out": ([DIR, Entry(name="d/l", kind="symlink", target="../../x")], "leads out of the root: d/l → ../../x"),
    "link out by detour": ([Entry(name="l", kind="symlink", target="a/../../b/..")], "leads out of the root"),
    "link to nothing": ([Entry(name="l", kind="symlink", target="")], "symbolic link l without a target"),
    "hard link to later": (
        [DIR, Entry(name="d/h", kind="hardlink", target="d/f"), FILE],
        "hard link whose target is not an earlier file of it: d/h → d/f",
    ),
    "hard link outside": ([Entry(name="h", kind="hardlink", target="/etc/passwd")], "whose target is not an earlier"),
    "hard link to directory": ([DIR, Entry(name="h", kind="hardlink", target="d")], "whose target is not an earlier"),
    "character device": ([Entry(name="null", kind="char", device=(1, 3))], "holds the device node or FIFO null"),
    "block device": ([Entry(name="sda", kind="block", device=(8, 0))], "holds the device node or FIFO sda"),
    "fifo": ([Entry(name="pipe", kind="fifo")], "holds the device node or FIFO pipe"),
    "twice": ([DIR, FILE, FILE], "holds d/f twice"),
    "twice as directory": ([DIR, DIR], "holds d twice"),
    "file as directory": (
        [Entry(name="x", data=b"x"), Entry(name="x/y", data=b"y")],
        "holds x/y below x, which is a file",
    ),
    "link as directory": (
        [Entry(name="x", kind="symlink", target="/etc"), Entry(name="x/passwd", data=b"y")],
        "holds x/passwd below x, which is a symbolic link",
    ),
    "no checksum": ([DIR, replace(FILE, checksum="")], "has no checksum for d/f"),
    "wrong checksum": ([DIR, replace(FILE, checksum="00" * 20)], "d/f does not match its checksum"),
    "odd checksum": ([DIR, replace(FILE, checksum="zz")], "improper checksum for d/f"),
    "short checksum": ([DIR, replace(FILE, checksum="00")], "improper checksum for d/f"),
    "wrong link checksum": (
        [Entry(name="l", kind="symlink", target="a", checksum="00" * 20)],
        "l does not match its checksum",
    ),
    "too large": ([DIR, replace(FILE, data=b"x" * ((1 << 20) + 1))], "unpacks to more than the 1048576 bytes"),
    "too large together": (
        [Entry(name=f"f{n}", data=b"x" * 600_000) for n in range(2)],
        r"unpacks to more than the 1048576 bytes that it may \(at f1\)",
    ),
    "sparse": ([replace(FILE, name="s", pax={"GNU.sparse.major": "1"})], "a sparse file: 's'"),
    "odd size": ([replace(FILE, name="s", pax={"size": "1_0"})], "has '1_0' as size"),
    "odd owner": ([replace(FILE, name="s", pax={"uid": "99999999999"})], "uid 99999999999"),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_contents_are_refused_and_leave_nothing(fault: str, tmp_path: Path) -> None:
    entries, message = HOSTILE[fault]
    spool = tmp_path / "spool"
    spool.write_bytes(b"kept")
    with pytest.raises(InputError, match=message) as caught:
        made(entries, tmp_path)
    assert caught.value.message.startswith("demo-1.2-r3.apk: ")
    assert spool.read_bytes() == b"kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo-1.2-r3.apk", "spool"]


@pytest.mark.parametrize(
    ("path", "target", "out"),
    [
        ("a/b/l", "../../x", False),
        ("a/b/l", "../../..", True),
        ("a/b/l", "../../../a/b", True),
        ("a/l", "..", False),
        ("a/l", "./../x", False),
        ("a/l", "x//../../y", False),
        ("a/l", ".//../..", True),
        ("a/l", "x/../../..", True),
        ("l", ".", False),
        ("l", "x/..", False),
        ("l", "..", True),
        ("l", "...", False),
        ("l", "/../../x", False),
    ],
)
def test_where_symbolic_links_may_lead(path: str, target: str, out: bool, tmp_path: Path) -> None:
    entry = Entry(name=path, kind="symlink", target=target, mode=0o777)
    if out:
        with pytest.raises(InputError) as caught:
            made([entry], tmp_path)
        assert caught.value.message == f"{NAME}: holds a symbolic link that leads out of the root: {path} → {target}"
    else:
        assert made([entry], tmp_path).entries[0].node == Symlink(target=target)


LONGEST = "/".join(["n" * 255] * 16)[:4095]


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, LONGEST, "a b", " ", "~", "...", "a..b", "\udcff"])
def test_unusual_names_are_fine(name: str, tmp_path: Path) -> None:
    (entry,) = made([Entry(name=f"d/{name}"[: 4095 if name is LONGEST else None], data=b"x")], tmp_path).entries
    assert len(entry.path.encode(errors="surrogateescape")) <= 4095
    assert entry.path.startswith(f"d/{name[:200]}")


@pytest.mark.parametrize("name", ["n" * 256, "ü" * 128, "n/" + "ü" * 128 + "/n", LONGEST + "n"])
def test_names_that_are_too_long(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        made([Entry(name=name, data=b"x")], tmp_path)
    assert caught.value.message == f"{NAME}: holds a path that is too long: {name[:80]}…"


def test_only_a_directory_may_end_with_a_slash(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds the improper path 'f/'$"):
        made([Entry(name="f/", data=b"x")], tmp_path)
    raw = patched(Entry(name="d/", kind="directory", mode=0o700), 0, b"d\0")
    assert [entry.path for entry in raw_package(raw, tmp_path).entries] == ["d"]


def test_a_package_may_be_as_large_as_it_may(tmp_path: Path) -> None:
    files = [Entry(name="a", data=b"x" * 600), Entry(name="b", data=b"y" * 400)]
    assert len(made(files, tmp_path, max_installed=1000).entries) == 2
    with pytest.raises(InputError, match=r"unpacks to more than the 999 bytes that it may \(at b\)$"):
        made(files, tmp_path, max_installed=999)


def raw_package(stream: bytes, folder: Path, **options: int) -> PackageFile:
    """Return a package whose data part inflates to ``stream``, vouched for by an index."""
    data = apkbuild.gzip_member(stream, 1)
    control = apkbuild.control_segment(f"pkgname = a\npkgver = 1\ndatahash = {hashlib.sha256(data).hexdigest()}\n")
    return opened(control + data, folder, expected=apkbuild.identity(control), **options)  # type: ignore[arg-type]


def patched(entry: Entry, start: int, value: bytes) -> bytes:
    """Return the archive of ``entry`` with some bytes of its last header replaced and the checksum put right."""
    header = bytearray(apkbuild.tar_header(entry))
    block = header[-512:]
    block[start : start + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(header[:-512] + block) + entry.data + bytes(-len(entry.data) % 512)


RAW = {
    "wrong magic": (patched(FILE, 257, b"xstar"), "lacks the ustar magic"),
    "unknown type": (patched(FILE, 156, b"V"), "is of type 'V': 'd/f'"),
    "sparse type": (patched(FILE, 156, b"S"), "is a sparse file: 'd/f'"),
    "not octal": (patched(FILE, 100, b"rwxrwxr\0"), "as its mode"),
    "negative size": (patched(FILE, 124, b"\xff" * 12), "as its size"),
    "directory with contents": (patched(FILE, 156, b"5"), "contents for something that is not a file"),
    "checksum of the header": (apkbuild.tar_header(FILE)[:-1] + b"x" + bytes(512), "does not match its checksum"),
    "cut in a header": (apkbuild.tar_header(FILE)[:-100], "its data part is truncated"),
    "cut in contents": (apkbuild.tar_header(FILE) + b"da", "its data part is truncated"),
    "cut after an extended header": (apkbuild.tar_header(FILE)[:-512], "ends after an extended header"),
    "data after the end": (bytes(1024) + b"x", "has data after its end marker"),
    "giant extended header": (
        patched(replace(FILE, pax={}, checksum=""), 124, b"%011o\0" % (1 << 30)).replace(b"\x000ustar", b"\x00xustar"),
        "checksum|extended header of",
    ),
}


@pytest.mark.parametrize("fault", RAW)
def test_broken_archives_are_refused(fault: str, tmp_path: Path) -> None:
    stream, message = RAW[fault]
    with pytest.raises(InputError, match=message):
        raw_package(stream, tmp_path)
    assert (tmp_path / "spool").read_bytes() == b""


def test_an_extended_header_takes_no_more_memory_than_it_may(tmp_path: Path) -> None:
    entry = Entry(name="x", data=b"", checksum="")
    header = patched(entry, 124, b"%011o\0" % (1 << 33))
    block = bytearray(header)
    block[156:157] = b"x"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with pytest.raises(InputError, match="an extended header of 8589934592 bytes"):
        raw_package(bytes(block), tmp_path)


def extended(body: bytes, kind: bytes = b"x") -> bytes:
    """Return an extended header of its own."""
    block = bytearray(apkbuild.tar_header(Entry(name="x", data=body, checksum="")))
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + body + bytes(-len(body) % 512)


def record(key: str, size: int) -> bytes:
    """Return a record of exactly ``size`` bytes."""
    head = f"{size} {key}=".encode()
    return head + b"v" * (size - len(head) - 1) + b"\n"


def archive_of(count: int, kind: bytes = b"x") -> Iterator[bytes]:
    """``count`` extended headers of 100 KiB, each about something else, and then their member."""
    for number in range(count):
        yield extended(record(f"SCHILY.xattr.user.{number}", 100 << 10), kind)
    yield apkbuild.tar_header(FILE) + FILE.data + bytes(-len(FILE.data) % 512)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_extended_headers_in_a_row_take_little_memory(kind: bytes, tmp_path: Path) -> None:
    """A package whose hashes are right, 150 MB that compress to nothing: its name is in the refusal."""
    data = apkbuild.gzip_member(archive_of(1500, kind), 1)
    control = apkbuild.control_segment(f"pkgname = a\npkgver = 1\ndatahash = {hashlib.sha256(data).hexdigest()}\n")
    message = r"demo-1\.2-r3\.apk: its data part has extended headers of 307200 bytes for one member"
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message):
            opened(control + data, tmp_path, expected=apkbuild.identity(control), max_installed=1 << 31)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_extended_headers_of_one_member_are_counted_together(tmp_path: Path) -> None:
    member = apkbuild.tar_header(FILE) + FILE.data + bytes(-len(FILE.data) % 512)
    folder = apkbuild.tar_header(Entry(name="d/", kind="directory"))
    half = LIMIT_MEMBER // 2
    rest = LIMIT_MEMBER - half - int(apkbuild.tar_header(FILE)[124:135], 8)  # the checksum's own
    full = [extended(record(f"SCHILY.xattr.user.{n}", size)) for n, size in enumerate((half, rest))]
    (entry, _) = raw_package(folder + b"".join(full) + member, tmp_path).entries[::-1]
    assert len(entry.node.xattrs) == 2, "just within the limit"
    over = full[0] + extended(record("SCHILY.xattr.user.1", rest + 1))
    with pytest.raises(InputError, match=f"extended headers of {LIMIT_MEMBER + 1} bytes for one member"):
        raw_package(folder + over + member, tmp_path)
    small = extended(record("comment", 20))
    assert len(raw_package(folder + small * 15 + member, tmp_path).entries) == 2
    with pytest.raises(InputError, match="more than 16 extended headers"):
        raw_package(folder + small * 16 + member, tmp_path)


def test_what_is_kept_of_extended_headers_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each member is within its limit; all together are not. 20 bytes cost 300 in memory."""
    monkeypatch.setattr("imgkit.tree.tarstream.LIMIT_KEPT", 100_000)
    attributes = {f"SCHILY.xattr.user.{n}": "v" for n in range(30)}
    files = [replace(FILE, name=f"f{n}", pax=attributes) for n in range(20)]
    assert len(made(files[:10], tmp_path).entries) == 10
    with pytest.raises(InputError, match="more than 100000 bytes of long names and attributes"):
        made(files, tmp_path)


@pytest.mark.parametrize(
    ("pax", "cost"),
    [
        ({"SCHILY.xattr.user.a": "vv"}, len("SCHILY.xattr.user.a") + len("vv") + 256),
        ({"path": "p" * 150, "linkpath": "l" * 20, "uname": "u" * 3, "gname": "g" * 4}, 177),
        ({"comment": "c" * 100, "mtime": "5"}, 0),
    ],
)
def test_what_an_extended_header_costs(pax: dict[str, str], cost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = apkbuild.tar_stream([Entry(name=f"f{n}", checksum="", pax=pax) for n in range(3)], end=True)
    monkeypatch.setattr("imgkit.tree.tarstream.LIMIT_KEPT", 3 * cost)
    assert len(list(TarStream(iter([raw])))) == 3
    monkeypatch.setattr("imgkit.tree.tarstream.LIMIT_KEPT", 3 * cost - 1)
    with pytest.raises(TarError, match=r"of long names and attributes in extended headers$"):
        list(TarStream(iter([raw])))


@pytest.mark.slow
@given(
    several=st.lists(
        st.dictionaries(
            st.from_regex(r"SCHILY\.xattr\.user\.[a-z]{1,8}", fullmatch=True),
            st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=300),
            max_size=12,
        ),
        max_size=8,
    )
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ordinary_extended_headers_pass(several: list[dict[str, str]], tmp_path: Path) -> None:
    """Long names and attributes, and what abuild writes for each entry, come out as they went in."""
    files = [
        replace(FILE, name=f"{'long/' * 40}{number}", pax={**pax, "atime": "1.5", "ctime": "2"})
        for number, pax in enumerate(several)
    ]
    (tmp_path / "spool").unlink(missing_ok=True)
    entries = made(files, tmp_path).entries
    found = [{f"SCHILY.xattr.{key}": value.decode() for key, value in entry.node.xattrs.items()} for entry in entries]
    assert found == several


def test_broken_records_of_an_extended_header_are_refused() -> None:
    for body in (b"5 a=b", b"99 a=b\n", b"a=b\n", b"0 a=b\n", b"6 =b\n\n", b"4 a\n", b"\0\0\0"):
        header = bytearray(apkbuild.tar_header(Entry(name="x", data=body, checksum="")))
        header[156:157] = b"x"
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        with pytest.raises(TarError, match="broken record"):
            list(TarStream(iter([bytes(header) + body + bytes(-len(body) % 512)])))


def test_a_bomb_stops_early(tmp_path: Path) -> None:
    """One file that claims 10 GiB, and one whose archive is 10 GiB of nothing, cost neither memory nor disk."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    header = patched(replace(FILE, data=b""), 124, b"%011o\0" % (8 << 30))
    with pytest.raises(InputError, match="unpacks to more than"):
        raw_package(header + bytes(1 << 24), tmp_path)
    assert (tmp_path / "spool").stat().st_size == 0
    many = b"".join(patched(Entry(name=f"f{n}", data=bytes(1 << 18)), 0, b"f") for n in range(40))
    with pytest.raises(InputError, match="unpacks to more than"):
        raw_package(many, tmp_path)
    assert (tmp_path / "spool").stat().st_size == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_an_endless_tail_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgkit.apk.unpack._LIMIT_ENTRIES", 10)
    with pytest.raises(InputError, match="inflates to more than"):
        raw_package(bytes(4 << 20), tmp_path)


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgkit.apk.unpack._LIMIT_ENTRIES", 10)
    assert len(made([Entry(name=f"f{n}") for n in range(10)], tmp_path).entries) == 10
    with pytest.raises(InputError, match="more than 10 files"):
        made([Entry(name=f"f{n}") for n in range(11)], tmp_path)


def test_a_full_disk_is_the_host_s_fault() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    data = apkbuild.data_segment([Entry(name="a", data=b"x" * 100_000)])
    with pytest.raises(HostError, match="no space left"):
        unpack(members_of(data, "a.apk"), full, 1 << 20, "a.apk")


def test_a_spool_that_cannot_be_opened_for_another_reason(tmp_path: Path) -> None:
    data = apkbuild.data_segment([Entry(name="a", data=b"x")])
    with pytest.raises(IsADirectoryError):
        unpack(members_of(data, "a.apk"), tmp_path, 1 << 20, "a.apk")


# ---- damage ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    package: PackageFile
    contents: bytes


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_refused_or_changes_nothing(data: st.DataObject, tmp_path: Path) -> None:
    apk = good_apk()
    blob = bytearray(apk.blob)
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.sampled_from([len(blob), len(blob), data.draw(st.integers(0, len(blob)))]))
    _same_or_refused(bytes(blob[:cut]), apk, tmp_path)


def _same_or_refused(blob: bytes, apk: apkbuild.Apk, folder: Path) -> None:
    spool = folder / "spool"
    spool.unlink(missing_ok=True)
    whole = opened(apk.blob, folder, expected=apk.identity, keys=keyring())
    contents = spool.read_bytes()
    spool.unlink()
    try:
        found = opened(blob, folder, expected=apk.identity, keys=keyring())
    except InputError:
        assert not spool.exists() or spool.read_bytes() == b""
        return
    assert found == whole
    assert spool.read_bytes() == contents


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_signed_but_damaged_archive_never_gets_past_the_reader(data: st.DataObject, tmp_path: Path) -> None:
    """In the worst case every hash is right, because the author of the damaged archive has also signed it."""
    stream = bytearray(apkbuild.tar_stream(GOOD, end=True))
    generator = random.Random(data.draw(st.integers(0, 1 << 32)))
    for _ in range(generator.randint(1, 4)):
        stream[generator.randrange(len(stream))] = generator.choice([0, 0x20, 0x30, 0x39, 0x80, 0xFF, 0x2F, 0x2E])
    (tmp_path / "spool").unlink(missing_ok=True)
    try:
        found = raw_package(bytes(stream), tmp_path)
    except InputError:
        return
    paths = [entry.path for entry in found.entries]
    assert len(set(paths)) == len(paths)
    assert not [path for path in paths if path.startswith(("/", ".")) or ".." in path.split("/")]


# ---- the tar reader against the standard library's ------------------------------------------------------------------

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=120)


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1200), st.integers(0, 2**31), st.integers(0, 2**31)), max_size=6),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(1, 700),
)
def test_archives_of_the_standard_library_are_read_alike(
    files: list[tuple[str, bytes, int, int]], form: int, cut: int
) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
        for name, data, uid, mtime in files:
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.mtime, info.uname = len(data), uid, mtime, "üser"
            archive.addfile(info, io.BytesIO(data))
    raw = sink.getvalue()
    stream = TarStream(iter([raw[start : start + cut] for start in range(0, len(raw), cut)]))
    found = [(header.name, stream.read(1 << 20), header.uid, header.mtime) for header in stream]
    assert found == files


def test_contents_that_are_not_read_are_skipped() -> None:
    raw = apkbuild.tar_stream([Entry(name="a", data=b"x" * 1000), Entry(name="b", data=b"y")], end=True)
    assert [header.name for header in TarStream(iter([raw]))] == ["a", "b"]


# ---- small parts ----------------------------------------------------------------------------------------------------


def described(text: str, folder: Path) -> PackageFile:
    """Return a package without files whose ``.PKGINFO`` has ``text`` too."""
    data = apkbuild.data_segment([])
    head = f"pkgname = a\npkgver = 1\ndatahash = {hashlib.sha256(data).hexdigest()}\n"
    control = apkbuild.control_segment(head + text)
    return opened(control + data, folder, expected=apkbuild.identity(control))


@pytest.mark.parametrize(
    ("text", "triggers", "replaces", "priority"),
    [
        ("", (), (), 0),
        ("triggers = /a /b\ntriggers = /c\n", ("/a", "/b", "/c"), (), 0),
        ("# replaces = comment\nreplaces=no\nodd\nreplaces =  x=1 \nreplaces = \n", (), ("x=1",), 0),
        ("replaces = x = y\n", (), ("x", "=", "y"), 0),
        ("replaces_priority = 7\nreplaces_priority = 8\n", (), (), 7),
        ("replaces_priority = many\n", (), (), 0),
        (f"replaces_priority = {'9' * 19}\n", (), (), int("9" * 19)),
        (f"replaces_priority = {'9' * 20}\n", (), (), 0),
    ],
)
def test_pkginfo(
    text: str, triggers: tuple[str, ...], replaces: tuple[str, ...], priority: int, tmp_path: Path
) -> None:
    package = described(text, tmp_path)
    assert (package.triggers, package.replaces, package.replaces_priority) == (triggers, replaces, priority)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec="utf-8")))
def test_any_text_is_read_as_pkginfo_without_a_crash(tmp_path: Path, text: str) -> None:
    assert described(text, tmp_path).entries == ()


@pytest.mark.parametrize(
    "identity", ["", "Q1", "Q1AAAA", "Q3" + "A" * 27 + "=", "Q1" + "A" * 28, "Q2" + "A" * 27 + "="]
)
def test_what_is_no_identity_is_refused(identity: str) -> None:
    with pytest.raises(InputError, match="is not the identity of a package"):
        check_identity(identity)


def test_identities() -> None:
    assert check_identity("Q1" + "A" * 27 + "=")
    assert check_identity("Q2" + "A" * 43 + "=")
