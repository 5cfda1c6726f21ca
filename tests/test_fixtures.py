"""The makers of packages, filesystems' reader, downloads and the web server that tests stand on."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import stat
import struct
import subprocess
import tarfile
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pysequoia
import pytest
import requests
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from hypothesis import given
from hypothesis import strategies as st

from fixtures import __main__, apkbuild, database, debian, download, elf, ext4, keys, mirror, pins, pristine, server
from fixtures.apkbuild import Entry, PkgInfo, SigningKey
from fixtures.server import HTML, NOT_FOUND, Fault, Site
from imgkit.errors import HostError, InputError
from imgkit.tree import Device, Directory, File, HardLink, Inline, Symlink, Tree
from tests.conftest import need_program

INFO: PkgInfo = {
    "pkgname": "hello",
    "pkgver": "1.2-r3",
    "arch": "x86_64",
    "builddate": 1700000000,
    "depend": ["a", "b>=2"],
}


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return keys.new_rsa()


def gzip_members(blob: bytes) -> list[tuple[bytes, bytes]]:
    """(raw, inflated) of each gzip member."""
    found = []
    while blob:
        unpacker = zlib.decompressobj(wbits=31)
        inflated = unpacker.decompress(blob)
        assert unpacker.eof
        raw = blob[: len(blob) - len(unpacker.unused_data)]
        found.append((raw, inflated))
        blob = unpacker.unused_data
    return found


def listing(stream: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(stream), mode="r:") as archive:
        return {member.name: member for member in archive}


# ---- packages ------------------------------------------------------------------------------------------------------


def test_package_is_signature_control_and_data(key: SigningKey) -> None:
    entries = [Entry(name="etc", kind="directory", mode=0o755), Entry(name="etc/hello", data=b"hi\n")]
    made = apkbuild.build(INFO, entries, {"post-install": b"#!/bin/sh\n"}, key=key)
    (signature, signed_by), (control, inflated), (data, files) = gzip_members(made.blob)
    assert list(listing(signed_by)) == [f".SIGN.RSA.{key.name}"]
    assert not inflated.endswith(bytes(1024)), "the control segment must have no end-of-archive"
    assert files.endswith(bytes(1024))
    assert list(listing(inflated)) == [".PKGINFO", ".post-install"]
    assert listing(inflated)[".post-install"].mode == 0o755
    text = inflated.decode(errors="replace")
    assert f"datahash = {hashlib.sha256(data).hexdigest()}\n" in text
    assert "depend = a\ndepend = b>=2\n" in text
    assert "size = 3\n" in text
    assert made.identity == "Q1" + base64.b64encode(hashlib.sha1(control).digest()).decode()
    assert listing(files)["etc/hello"].pax_headers["APK-TOOLS.checksum.SHA1"] == hashlib.sha1(b"hi\n").hexdigest()
    assert len(signature) + len(control) + len(data) == len(made.blob)


@pytest.mark.parametrize(("algorithm", "hashing"), [("RSA", hashes.SHA1()), ("RSA256", hashes.SHA256())])
def test_signature_covers_the_raw_control_member(
    key: SigningKey, algorithm: str, hashing: hashes.HashAlgorithm
) -> None:
    made = apkbuild.build(INFO, key=key, algorithm=algorithm)
    (_, signed_by), (control, _), _ = gzip_members(made.blob)
    with tarfile.open(fileobj=io.BytesIO(signed_by)) as archive:
        source = archive.extractfile(f".SIGN.{algorithm}.{key.name}")
        assert source is not None
        signature = source.read()
    public = key.private.public_key()
    public.verify(signature, control, padding.PKCS1v15(), hashing)
    with pytest.raises(InvalidSignature):
        public.verify(signature, control[:-1] + b"!", padding.PKCS1v15(), hashing)


def test_unsigned_package_has_two_members_and_the_same_identity(key: SigningKey) -> None:
    signed, unsigned = apkbuild.build(INFO, key=key), apkbuild.build(INFO)
    assert len(gzip_members(unsigned.blob)) == 2
    assert unsigned.identity == signed.identity


def test_hostile_pieces_come_out_as_they_were_asked_for() -> None:
    entries = [
        Entry(name="/etc/passwd", data=b"x"),
        Entry(name="../../evil", data=b"y", checksum=""),
        Entry(name="dev/sda", kind="block", device=(8, 0)),
        Entry(name="a", kind="symlink", target="/"),
        Entry(name="b", kind="hardlink", target="a"),
        Entry(name="wrong", data=b"z", checksum="00" * 20, pax={"SCHILY.xattr.user.x": "1"}),
    ]
    (_, control), (_, data) = gzip_members(apkbuild.build(INFO, entries, datahash=False).blob)
    assert b"datahash" not in control
    found = listing(data)
    assert list(found) == ["/etc/passwd", "../../evil", "dev/sda", "a", "b", "wrong"]
    assert "APK-TOOLS.checksum.SHA1" not in found["../../evil"].pax_headers
    assert found["dev/sda"].isblk()
    assert (found["dev/sda"].devmajor, found["dev/sda"].devminor) == (8, 0)
    assert found["b"].islnk()
    assert found["wrong"].pax_headers["APK-TOOLS.checksum.SHA1"] == "00" * 20
    assert found["wrong"].pax_headers["SCHILY.xattr.user.x"] == "1"


@pytest.mark.slow
@given(
    st.dictionaries(
        st.text(st.characters(min_codepoint=33, exclude_categories=["Cs"], exclude_characters="/"), min_size=1),
        st.tuples(st.binary(max_size=2000), st.sampled_from([0o644, 0o755, 0o4755]), st.integers(0, 2**40)),
        max_size=5,
    )
)
def test_entries_survive_the_archive(files: dict[str, tuple[bytes, int, int]]) -> None:
    entries = [Entry(name=f"d/{name}", data=data, mode=mode, uid=uid) for name, (data, mode, uid) in files.items()]
    inflated = zlib.decompress(apkbuild.data_segment(entries), wbits=31)
    with tarfile.open(fileobj=io.BytesIO(inflated)) as archive:
        for member, entry in zip(archive.getmembers(), entries, strict=True):
            source = archive.extractfile(member)
            assert source is not None
            found = (member.name, source.read(), member.mode, member.uid)
            assert found == (entry.name, entry.data, entry.mode, entry.uid)


def test_index_is_signed_and_its_records_are_in_order(key: SigningKey) -> None:
    packages = [apkbuild.build({**INFO, "pkgname": name, "provider_priority": 7}) for name in ("b", "a")]
    index = apkbuild.build_index([package.record for package in packages], key, description="v3")
    (_, signed_by), (member, inflated) = gzip_members(index)
    assert list(listing(inflated)) == ["DESCRIPTION", "APKINDEX"]
    assert member == index[-len(member) :]
    assert list(listing(signed_by)) == [f".SIGN.RSA.{key.name}"]
    record = packages[0].record
    assert [line[0] for line in record.splitlines()] == list("CPVASITULtkD")
    assert f"S:{len(packages[0].blob)}" in record
    assert f"\n\n{packages[1].record}\n\n".encode() in inflated


# ---- keys ----------------------------------------------------------------------------------------------------------


def test_keys_are_made_once_and_kept_secret(tmp_path: Path) -> None:
    first, second = keys.load(tmp_path / "keys", bits=2048), keys.load(tmp_path / "keys")
    assert first.rsa_public == second.rsa_public
    assert first.release_public == second.release_public
    assert first.signing.name.endswith(".rsa.pub")
    assert b"PRIVATE" not in first.release_public + first.rsa_public
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "keys").iterdir()} == {0o600}


def verify(data: bytes, signature: bytes, certificate: bytes) -> None:
    cert = pysequoia.Cert.from_bytes(certificate)
    pysequoia.verify(bytes=data, store=lambda _: [cert], signature=pysequoia.Sig.from_bytes(signature))


def test_release_signature_holds_for_that_data_and_that_key_only(tmp_path: Path) -> None:
    first, other = keys.load(tmp_path / "1", bits=2048), keys.load(tmp_path / "2", bits=2048)
    signature = first.sign_release(b"minirootfs")
    verify(b"minirootfs", signature, first.release_public)
    for data, certificate in ((b"minirootfz", first.release_public), (b"minirootfs", other.release_public)):
        with pytest.raises(Exception, match=r".+"):  # pysequoia raises bare exceptions of its own
            verify(data, signature, certificate)


# ---- ELF -----------------------------------------------------------------------------------------------------------


def tiny_elf(*, debug: bytes = b"D" * 20000) -> bytes:
    """Two loaded segments with debug information between them, aligned to 4 KiB."""
    sections = [("", 0, 0, 0, 0, 0), (".text", 1, 0x2, 4096, 64, 0), (".debug_info", 1, 0, 4160, len(debug), 0)]
    tail = 4096 * (2 + len(debug) // 4096 + 1)
    sections += [(".dynsym", 11, 0x2, tail, 24, 4), (".dynstr", 3, 0x2, tail + 24, 8, 0)]
    names = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in sections[1:]) + b".shstrtab\0"
    names_at = tail + 32
    sections.append((".shstrtab", 3, 0, names_at, len(names), 0))
    table_at = names_at + len(names)
    segments = [(4096, 64), (tail, 32)]
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, table_at, 0, 64, 56, 2, 64, len(sections), len(sections) - 1)
    head += b"".join(struct.pack("<IIQQQQQQ", 1, 5, at, at, at, size, size, 4096) for at, size in segments)
    body = head.ljust(4096, b"\0") + bytes(range(64)) + debug
    body = body.ljust(tail, b"\0") + b"S" * 24 + b"\0strtab\0" + names
    for name, kind, flags, at, size, link in sections:
        index = names.index(b"\0" + name.encode() + b"\0") + 1 if name else 0
        body += struct.pack("<IIQQQQIIQQ", index, kind, flags, at if flags else 0, at, size, link, 0, 1, 0)
    return body


def test_strip_drops_debug_information_and_nothing_that_is_loaded() -> None:
    before = tiny_elf()
    after = elf.strip(before, "tiny")
    assert len(after) < len(before) - 16000
    assert b"D" * 100 not in after
    assert elf.loaded(elf.parse(after, "after")) == elf.loaded(elf.parse(before, "before"))
    sections = elf.parse(after, "after").sections
    assert [section.type for section in sections] == [0, 1, 11, 3, 3]
    assert sections[2].link == 3, "the symbols must still name their strings"


def test_loaded_notices_a_changed_byte() -> None:
    before = bytearray(tiny_elf())
    before[4100] ^= 1
    assert elf.loaded(elf.parse(bytes(before), "changed")) != elf.loaded(elf.parse(tiny_elf(), "before"))


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(64)])
def test_strip_refuses_what_is_no_such_file(data: bytes) -> None:
    with pytest.raises(InputError, match="script: not a little-endian 64-bit ELF file"):
        elf.strip(data, "script")


# ---- ext4 ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return an ext4 image that mke2fs filled from a folder."""
    mke2fs = need_program("mke2fs")
    top = tmp_path / "top"
    (top / "many").mkdir(parents=True)
    (top / "many").chmod(0o1777)
    for number in range(500):
        (top / "many" / f"a rather long name, number {number:04}").write_text(str(number))
    (top / "large").write_bytes(bytes(range(256)) * 20000)
    with (top / "sparse").open("wb") as file:
        file.seek(3 << 20)
        file.write(b"end")
    (top / "large").chmod(0o4755)
    (top / "short").symlink_to("large")
    (top / "long").symlink_to("x" * 200)
    (top / "second").hardlink_to(top / "large")
    (top / "empty").touch()
    made = tmp_path / "image"
    subprocess.run([mke2fs, "-q", "-t", "ext4", "-d", str(top), str(made), "32M"], check=True)
    return made


def test_ext4_reader_sees_what_mke2fs_wrote(image: Path, tmp_path: Path) -> None:
    tree = ext4.read_tree(image)
    top = tmp_path / "top"
    assert {path for path, _ in tree.items() if path} == {str(path.relative_to(top)) for path in top.rglob("*")}
    large = tree.stat("large")
    assert isinstance(large, File)
    assert large.mode == 0o4755
    assert large.mtime == int((top / "large").stat().st_mtime)
    assert isinstance(tree["second"], HardLink) is not isinstance(tree["large"], HardLink)
    assert tree["short"] == Symlink(
        target="large", uid=large.uid, gid=large.gid, mtime=int((top / "short").lstat().st_mtime), xattrs={}
    )
    assert isinstance(tree["long"], Symlink)
    assert tree["long"].target == "x" * 200
    assert tree["many"].mode == 0o1777
    for path in ("large", "second", "sparse", "empty", "many/a rather long name, number 0499"):
        assert tree.read(path) == (top / path).read_bytes()


@pytest.mark.slow
def test_ext4_reader_refuses_an_unclean_filesystem(image: Path) -> None:
    data = bytearray(image.read_bytes())
    data[1024 + 0x60] |= 0x4  # needs recovery
    image.write_bytes(data)
    with pytest.raises(InputError, match="unclean filesystem features 0x4"):
        ext4.read_tree(image)


def test_ext4_reader_refuses_something_else(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(4096))
    with pytest.raises(InputError, match="zeros: not an ext4 filesystem"):
        ext4.read_tree(tmp_path / "zeros")


# ---- installed database --------------------------------------------------------------------------------------------

RECORD = """\
C:Q1AAAAAAAAAAAAAAAAAAAAAAAAAAA=
P:hello
V:1-r0
A:x86_64
S:10
I:20
T:a greeting
U:
L:MIT
t:1700000000
D:so:libc.musl-x86_64.so.1 /bin/sh
r:goodbye
F:etc
M:0:0:750
R:hello
a:0:42:640
Z:Q1BBBBBBBBBBBBBBBBBBBBBBBBBBA=
F:usr
F:usr/bin
R:hello
a:0:0:755
Z:Q1CCCCCCCCCCCCCCCCCCCCCCCCCCA=
R:plain
Z:Q1CCCCCCCCCCCCCCCCCCCCCCCCCCA=
"""


def sample_database() -> Tree:
    tree = Tree()
    made = database.write([])
    tree.write("lib/apk/db/installed", RECORD + "\n")
    tree.write("lib/apk/db/triggers", "Q1AAAAAAAAAAAAAAAAAAAAAAAAAAA= /bin /usr/*\n")
    tree.write("lib/apk/db/scripts.tar.gz", made["scripts.tar.gz"])
    return tree


def test_database_reads_and_writes_back_the_same_lines() -> None:
    tree = sample_database()
    (record,) = database.read(tree)
    assert record.info["depend"] == ("so:libc.musl-x86_64.so.1", "/bin/sh")
    assert record.info["triggers"] == "/bin /usr/*"
    assert [(owned.path, owned.uid, owned.gid, oct(owned.mode)) for owned in record.paths] == [
        ("etc", 0, 0, "0o750"),
        ("etc/hello", 0, 42, "0o640"),
        ("usr", 0, 0, "0o755"),
        ("usr/bin", 0, 0, "0o755"),
        ("usr/bin/hello", 0, 0, "0o755"),
        ("usr/bin/plain", 0, 0, "0o644"),
    ]
    written = database.write([record])
    assert written["installed"] == tree.read("lib/apk/db/installed")
    assert written["triggers"] == tree.read("lib/apk/db/triggers")


def test_database_keeps_scripts_under_the_new_identity() -> None:
    (record,) = database.read(sample_database())
    new = database.Installed(record.header, record.paths, {"post-install": b"#!/bin/sh\n"})
    new = database.with_identity(new, "Q1" + base64.b64encode(bytes(range(20))).decode(), 99)
    assert new.value("S") == "99"
    packed = zlib.decompress(database.write([new])["scripts.tar.gz"], wbits=31)
    assert list(listing(packed)) == [f"hello-1-r0.X1{bytes(range(20)).hex()}.post-install"]


def test_a_changed_file_is_restored_only_when_its_checksum_says_so() -> None:
    tree = Tree()
    tree.write("etc/modules", "af_packet\nipv6\n9p\n9pnet\n")
    wanted = database.checksum(File(content=Inline(b"af_packet\nipv6\n")))
    restored = pristine.original(tree, "etc/modules", wanted)
    assert isinstance(restored, File)
    assert restored.content.read() == b"af_packet\nipv6\n"
    assert pristine.original(tree, "etc/modules", database.checksum(File(content=Inline(b"ipv6\n")))) is None
    assert pristine.original(tree, "etc/missing", wanted) is None
    assert isinstance(pristine.original(tree, "etc", ""), Directory)


# ---- downloads -----------------------------------------------------------------------------------------------------


def test_wheel_with_a_wrong_hash_is_refused(tmp_path: Path) -> None:
    pin = pins.Wheel("thing", "1", "any", hashlib.sha256(b"good").hexdigest())
    kept = tmp_path / "thing-1-any.whl"
    kept.write_bytes(b"good")
    assert download.wheel(pin, tmp_path) == kept
    kept.write_bytes(b"evil")
    with pytest.raises(InputError, match=r"thing-1-any.whl: SHA-256 is .*, not "):
        download.wheel(pin, tmp_path)


def fake_program(folder: Path, name: str, script: str) -> Path:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def test_failing_pip_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = fake_program(tmp_path, "python", "echo 'ERROR: No matching distribution' >&2; exit 1")
    monkeypatch.setattr("sys.executable", str(program))
    folder = tmp_path / "downloads"
    with pytest.raises(HostError, match=r"thing 1: pip cannot fetch it .*No matching distribution"):
        download.wheel(pins.Wheel("thing", "1", "any", "00"), folder)
    assert list(folder.iterdir()) == []


def test_failing_apt_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_program(tmp_path, "apt-get", "echo 'E: Unable to locate package' >&2; exit 100")
    fake_program(tmp_path, "dpkg", "echo amd64")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(HostError, match=r"thing for arm64: apt cannot fetch them .*Unable to locate package"):
        debian.download("arm64", ["thing"], tmp_path / "debs")
    assert list((tmp_path / "debs").iterdir()) == []


def test_apt_gets_a_state_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f'cat "$2" > {tmp_path}/seen; [ "$4" = download ] && echo deb > thing_1_arm64.deb; exit 0'
    fake_program(tmp_path, "apt-get", script)
    fake_program(tmp_path, "dpkg", "echo amd64")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(debian, "release", lambda: {"ID": "debian", "VERSION_ID": "12"})
    assert debian.download("arm64", ["thing"], tmp_path / "debs") == [tmp_path / "debs" / "thing_1_arm64.deb"]
    config = (tmp_path / "seen").read_text()
    assert f'Dir::State "{tmp_path}/debs/' in config
    assert 'APT::Architectures { "arm64"; };' in config
    assert 'AllowUnauthenticated "false"' in config
    (tmp_path / "apt-get").unlink()
    assert debian.download("arm64", ["thing"], tmp_path / "debs"), "the second time needs no apt"


def test_known_package_with_a_wrong_hash_is_refused(tmp_path: Path) -> None:
    known = next(iter(pins.DEB_SHA256))
    (tmp_path / known).write_bytes(b"evil")
    with pytest.raises(InputError, match=r"SHA-256 is .*, not "):
        debian.check(tmp_path / known)
    (tmp_path / "grub-pc-bin_9.99-1_amd64.deb").write_bytes(b"newer than the table")
    assert debian.check(tmp_path / "grub-pc-bin_9.99-1_amd64.deb")


@pytest.mark.parametrize(
    ("arch", "uri", "other"),
    [
        ("arm64", "http://archive.example.com/ubuntu/", "http://ports.example.com/ubuntu-ports"),
        ("arm64", "http://de.archive.example.com/ubuntu/", "http://ports.example.com/ubuntu-ports"),
        ("arm64", "https://security.example.com/ubuntu", "https://ports.example.com/ubuntu-ports"),
        ("arm64", "http://mirror.test/ubuntu/", "http://mirror.test/ubuntu-ports"),
        ("amd64", "http://ports.example.com/ubuntu-ports/", "http://archive.example.com/ubuntu"),
        ("arm64", "https://packages.vendor.test/apt", None),
    ],
)
def test_ubuntu_keeps_other_architectures_elsewhere(arch: str, uri: str, other: str | None) -> None:
    lines = debian.ubuntu_sources([f"{uri} noble main", f"{uri} noble main"], arch)
    keyring = "/usr/share/keyrings/ubuntu-archive-keyring.gpg"
    assert lines == ([f"deb [arch={arch} signed-by={keyring}] {other} noble main"] if other else [])


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("2.06-13+deb12u2", "2.06-r13"),
        ("2.12-9", "2.12-r9"),
        ("1:5.2.15-2+b13", "5.2.15-r2"),
        ("2.06-2ubuntu14.8", "2.06-r2"),
        ("5.2~rc1", "5.2-r0"),
    ],
)
def test_distribution_versions_as_alpine_writes_them(version: str, expected: str) -> None:
    assert debian.alpine_version(version) == expected


# ---- the cache -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mirror_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, *_: object) -> None:
        (folder / "half").touch()
        raise HostError("no network")

    monkeypatch.setattr(mirror, "_make", fail)
    with pytest.raises(HostError):
        mirror.make(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"keys", "lock"}


@pytest.mark.slow
def test_mirror_is_made_once_whoever_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    started = threading.Barrier(4)

    def record(folder: Path, *_: object) -> None:
        made.append(folder)

    def ask(_: int) -> mirror.Mirror:
        started.wait()
        return mirror.make(tmp_path)

    monkeypatch.setattr(mirror, "_make", record)
    (tmp_path / "making-killed").mkdir()
    with ThreadPoolExecutor(4) as pool:
        assert len({found.root for found in pool.map(ask, range(4))}) == 1
    assert len(made) == 1
    assert not list(tmp_path.glob("making-*"))


@pytest.mark.parametrize(("distribution", "arch"), [("ubuntu", "amd64"), ("debian", "arm64"), ("debian", "amd64")])
def test_packages_of_the_distribution_are_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: str, arch: str
) -> None:
    monkeypatch.setattr(debian, "release", lambda: {"ID": distribution})
    monkeypatch.setattr(debian, "_host", lambda: "amd64")
    monkeypatch.setattr(debian, "_fetch", _unreachable)
    with pytest.raises(HostError, match="unreachable"):
        mirror._debs(arch, ["thing"], tmp_path)


def test_ubuntus_other_archive_may_be_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(debian, "release", lambda: {"ID": "ubuntu"})
    monkeypatch.setattr(debian, "_host", lambda: "amd64")
    monkeypatch.setattr(debian, "_fetch", _unreachable)
    assert mirror._debs("arm64", ["thing"], tmp_path) == []
    assert "goes without thing for arm64: unreachable" in caplog.text


def _unreachable(*_: object) -> None:
    raise HostError("unreachable")


def test_mirror_that_lacks_something_is_tried_again_the_next_day(tmp_path: Path) -> None:
    marker = tmp_path / "mirror-x" / "partial"
    marker.parent.mkdir()
    marker.touch()
    mirror._retry_partial(marker.parent)
    assert marker.exists()
    os.utime(marker, (0, 0))
    mirror._retry_partial(marker.parent)
    assert not marker.parent.exists()


def test_key_depends_on_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    before = mirror.key()
    assert mirror.key() == before
    monkeypatch.setattr(debian, "codename", lambda: "plan9-4")
    assert mirror.key() != before


def test_command_line_prints_errors_in_two_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise HostError("no pip", hint="install it")

    monkeypatch.setattr(__main__, "make", fail)
    assert __main__.main(["make"]) == 5
    assert capsys.readouterr().err == "error: no pip\nhint: install it\n"


# ---- the server ----------------------------------------------------------------------------------------------------

BODY = bytes(range(256)) * 1000


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (root / "d" / "file").write_bytes(BODY)
    (tmp_path / "secret").write_text("outside")
    with server.serve(root) as running:
        yield running


def get(site: Site, path: str = "/d/file", **headers: str) -> requests.Response:
    return requests.get(site.url + path.lstrip("/"), headers=headers, timeout=5)


def test_server_serves_files_and_counts(site: Site) -> None:
    assert get(site).content == BODY
    assert requests.head(site.url + "d/file", timeout=5).headers["Content-Length"] == str(len(BODY))
    assert get(site, "/nothing").status_code == 404
    assert get(site, "/d").status_code == 404
    assert get(site, "/%2e%2e/secret").status_code == 404
    assert site.requests["/d/file"] == 2


def test_server_answers_ranges_and_conditions(site: Site) -> None:
    part = get(site, Range="bytes=10-19")
    assert (part.status_code, part.content) == (206, BODY[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(BODY)}"
    assert get(site, Range="bytes=-5").content == BODY[-5:]
    assert get(site, Range="bytes=255990-").content == BODY[255990:]
    assert get(site, Range=f"bytes={len(BODY)}-").status_code == 416
    first = get(site)
    for name, tag in (("If-None-Match", "ETag"), ("If-Modified-Since", "Last-Modified")):
        assert get(site, **{name: first.headers[tag]}).status_code == 304
        assert get(site, **{name: "something else"}).status_code == 200


def test_faults_of_status_and_content(site: Site) -> None:
    site.faults["/d/file"] = NOT_FOUND
    assert get(site).status_code == 404
    site.faults["/d/file"] = HTML
    assert get(site).status_code == 200
    assert get(site).text.startswith("<!DOCTYPE html>")
    site.faults["/d/file"] = Fault(status=302, location="/d/other")
    assert requests.get(site.url + "d/file", timeout=5, allow_redirects=False).headers["Location"] == "/d/other"


@pytest.mark.parametrize("fault", [Fault(claim=10), Fault(keep=1000), Fault(keep=0), Fault(stall=1000, patience=0.1)])
def test_faults_that_break_the_promised_length(site: Site, fault: Fault) -> None:
    site.faults["/d/file"] = fault
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        get(site)
    site.faults.clear()
    assert get(site).content == BODY


def test_understated_length_cuts_the_file(site: Site) -> None:
    site.faults["/d/file"] = Fault(claim=-100)
    assert get(site).content == BODY[:-100]


def test_stall_lasts_until_the_client_gives_up_and_does_not_hold_the_server(site: Site) -> None:
    site.faults["/d/file"] = Fault(stall=10)
    with pytest.raises(requests.exceptions.RequestException):
        requests.get(site.url + "d/file", timeout=0.2)


def test_slow_and_passing_faults(site: Site) -> None:
    site.faults["/d/file"] = Fault(rate=1_000_000)
    answer = get(site)
    assert answer.content == BODY
    assert answer.elapsed.total_seconds() < 5
    site.requests.clear()
    site.faults["/d/file"] = Fault(status=503, times=2)
    assert [get(site).status_code for _ in range(3)] == [503, 503, 200]


def test_devices_have_their_numbers() -> None:
    inode = ext4._Inode(5, b"\0" * 256, stat.S_IFCHR | 0o600, 0, 0, 0, 0, 0, struct.pack("<II", 0x0501, 0), 0)
    filesystem = ext4.Filesystem.__new__(ext4.Filesystem)
    filesystem._inode_size = 256
    assert filesystem.node(inode) == Device(kind="c", major=5, minor=1, mode=0o600, xattrs={})
