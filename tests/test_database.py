"""The installed database: real ones come back byte for byte, made ones come back, broken ones are refused."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import string
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures import apkbuild
from fixtures.apkbuild import Entry
from imgkit.apk.database import (
    Attributes,
    InstalledDirectory,
    InstalledFile,
    InstalledPackage,
    directories_of,
    format_installed,
    format_triggers,
    parse_installed,
    parse_triggers,
    read_database,
    write_database,
)
from imgkit.apk.index import Package, parse_index
from imgkit.apk.package import SCRIPT_TYPES, open_package, signer_of
from imgkit.apk.signature import Keyring, verify_index
from imgkit.apk.stored_scripts import format_scripts, parse_scripts
from imgkit.errors import InputError
from tests.files import REAL_MINIROOTFS, needs_alpine
from tests.realdata import check_database, check_scripts

if TYPE_CHECKING:
    from fixtures.mirror import Mirror

IDENTITY = "Q1" + base64.b64encode(bytes(range(20))).decode()
OTHER = "Q1" + base64.b64encode(bytes(20)).decode()
PACKAGE = Package(
    name="demo",
    version="1-r0",
    arch="x86_64",
    identity=IDENTITY,
    size=10,
    build_time=1700000000,
    depends=("so:a",),
    replaces=("b",),
    replaces_priority=3,
)
DEMO = InstalledPackage(
    package=PACKAGE,
    directories=(
        InstalledDirectory("", files=(InstalledFile("top", IDENTITY),)),
        InstalledDirectory("root", Attributes(0, 0, 0o700)),
        InstalledDirectory(
            "usr/bin",
            files=(
                InstalledFile("a", IDENTITY, Attributes(0, 0, 0o755)),
                InstalledFile("l", IDENTITY, Attributes(0, 0, 0o777)),
                InstalledFile("s", IDENTITY, Attributes(1, 42, 0o4711, IDENTITY)),
            ),
        ),
    ),
    triggers=("/usr/lib/*", "/etc"),
    scripts={"trigger": b"#!/bin/sh\n", "pre-install": b""},
    tags="t1",
    repository_tag="edge",
    flags="fs",
)
TEXT = f"""\
C:{IDENTITY}
P:demo
V:1-r0
A:x86_64
S:10
I:0
T:
U:
L:
t:1700000000
D:so:a
g:t1
r:b
q:3
s:edge
f:fs
F:
R:top
Z:{IDENTITY}
F:root
M:0:0:700
F:usr/bin
R:a
a:0:0:755
Z:{IDENTITY}
R:l
a:0:0:777
Z:{IDENTITY}
R:s
a:1:42:4711:{IDENTITY}
Z:{IDENTITY}

"""


def from_tar(path: Path) -> dict[str, bytes]:
    """Return the files of ``lib/apk/db`` in a root filesystem's archive."""
    with tarfile.open(path) as archive:
        members = [member for member in archive if "lib/apk/db/" in member.name and member.isfile()]
        return {Path(member.name).name: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]


# ---- real databases -------------------------------------------------------------------------------------------------


@needs_alpine
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_the_database_of_a_real_minirootfs_comes_back(arch: str) -> None:
    database = from_tar(REAL_MINIROOTFS[arch])
    check_database(database, 14)
    scripts = check_scripts(database)
    assert {name.partition(".")[0] for name in scripts} == {"alpine-baselayout", "busybox"}


@pytest.mark.mirror
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_the_database_of_a_real_system_comes_back_byte_for_byte(arch: str, mirror: Mirror) -> None:
    """The archive of scripts as well: it was written by an apk of the same kind."""
    files = from_tar(mirror.oracle[arch])
    packages = read_database(files["installed"], files["triggers"], files["scripts.tar.gz"])
    assert len(packages) == 59
    assert write_database(reversed(packages)).files == {name: files[name] for name in files if name != "lock"}


@pytest.mark.mirror
def test_packages_of_the_mirror_give_the_records_of_the_real_system(mirror: Mirror, tmp_path: Path) -> None:
    """From a signed index and package files to what real apk recorded, but for the owners that it looked up."""
    files = from_tar(mirror.oracle["x86_64"])
    real = {package.package.name: package for package in read_database(files["installed"])}
    folder = mirror.root / "v3.23" / "main" / "x86_64"
    keys = Keyring.from_files({mirror.rsa_key_name: mirror.rsa_public.read_bytes()})
    index = verify_index((folder / "APKINDEX.tar.gz").read_bytes(), keys, name="index")
    assert index.key == mirror.rsa_key_name
    seen = 0
    for record in parse_index(index.text, PACKAGE.repository):
        if record.name not in real:
            continue
        found = open_package(
            folder / f"{record}.apk",
            expected=record.identity,
            keyring=keys,
            spool=tmp_path / "spool",
            max_installed=1 << 30,
            name=str(record),
        )
        assert signer_of(folder / f"{record}.apk", keys, str(record)) == mirror.rsa_key_name
        made = directories_of(found.entries, lambda entry: (entry.node.uid, entry.node.gid))
        assert _without_owners(made) == _without_owners(real[record.name].directories)
        seen += 1
    assert seen == len(real) == 59


def _without_owners(directories: tuple[InstalledDirectory, ...]) -> list[object]:
    return [
        (
            folder.path,
            folder.attributes.mode,
            [(file.name, file.checksum, file.attributes.mode) for file in folder.files],
        )
        for folder in directories
    ]


# ---- made ones ------------------------------------------------------------------------------------------------------


def test_a_record_has_its_lines_in_the_order_of_apk() -> None:
    assert format_installed([DEMO]) == TEXT
    assert parse_installed(TEXT) == (replace(DEMO, triggers=(), scripts={}),)


def test_what_is_usual_has_no_line_of_its_own() -> None:
    modes = (0o755, 0o644, 0o600)
    files = tuple(InstalledFile(f"f{mode:o}", attributes=Attributes(0, 0, mode)) for mode in modes)
    folders = tuple(InstalledDirectory(f"d{mode:o}", Attributes(0, 0, mode)) for mode in modes)
    text = format_installed([replace(DEMO, directories=(InstalledDirectory("", files=files), *folders))])
    assert text[text.index("F:") :] == (
        "F:\nR:f755\na:0:0:755\nR:f644\nR:f600\na:0:0:600\nF:d755\nF:d644\nM:0:0:644\nF:d600\nM:0:0:600\n\n"
    )
    (package,) = parse_installed("P:a\nV:1\nF:d\nR:f\n\n")
    assert package.directories == (InstalledDirectory("d", Attributes(0, 0, 0o755), package.directories[0].files),)
    assert package.directories[0].files == (InstalledFile("f", "", Attributes(0, 0, 0o644)),)


def test_the_files_of_a_database_have_the_names_of_apk_3() -> None:
    found = write_database([DEMO])
    assert found.files == {
        "installed": found.installed, "triggers": found.triggers, "scripts.tar.gz": found.scripts,
    }  # fmt: skip


def test_what_follows_the_mode_is_kept_as_it_is() -> None:
    text = "P:a\nV:1\nF:x\nM:1:2:700:Q1x:y:z\n\n"
    (package,) = parse_installed(text)
    assert package.directories[0].attributes == Attributes(1, 2, 0o700, "Q1x:y:z")


def test_a_database_comes_back_with_triggers_and_scripts() -> None:
    found = write_database([DEMO])
    assert found.triggers == f"{IDENTITY} /usr/lib/* /etc\n".encode()
    assert read_database(found.installed, found.triggers, found.scripts) == (DEMO,)


def test_packages_are_sorted_without_regard_to_case() -> None:
    names = ["b", "B", "a", "_", "C"]
    packages = [InstalledPackage(replace(PACKAGE, name=name)) for name in names]
    assert [package.package.name for package in parse_installed(format_installed(packages))] == [
        "_",
        "a",
        "B",
        "b",
        "C",
    ]


def test_the_scripts_archive_is_the_same_every_time_and_a_proper_tar() -> None:
    data = format_scripts([(PACKAGE, DEMO.scripts)])
    assert data == format_scripts([(PACKAGE, dict(reversed(list(DEMO.scripts.items()))))])
    assert data[:10] == b"\x1f\x8b\x08\0\0\0\0\0\x02\x03"
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
        name = f"demo-1-r0.X1{bytes(range(20)).hex()}"
        assert [member.name for member in members] == [f"{name}.pre-install", f"{name}.trigger"]
        assert {(member.mode, member.uname, member.mtime) for member in members} == {(0o755, "root", 1700000000)}


def test_an_archive_of_scripts_ends_with_two_blocks_of_zeros() -> None:
    raw = gzip.decompress(format_scripts([(PACKAGE, {"trigger": b"x" * 513})]))
    assert len(raw) == 512 + 1024 + 1024
    assert raw[512:] == (b"x" * 513).ljust(2048, b"\0")
    assert gzip.decompress(format_scripts([])) == bytes(1024)


def test_an_archive_of_scripts_inflates_to_64_mib_at_most() -> None:
    with pytest.raises(InputError, match=rf"^scripts\.tar\.gz: inflates to more than {64 << 20} bytes$"):
        parse_scripts(gzip.compress(bytes((64 << 20) + 1), 1))


def test_scripts_under_their_old_names_are_read() -> None:
    entry = Entry(name=f"demo-1-r0.{OTHER}.trigger", data=b"x", checksum="")
    data = apkbuild.tar_stream([entry], end=True)
    assert parse_scripts(data) == {OTHER: {"trigger": b"x"}}


def test_long_names_of_packages_do_not_cut_the_names_of_scripts() -> None:
    package = replace(PACKAGE, name="n" * 90)
    assert parse_scripts(format_scripts([(package, DEMO.scripts)])) == {IDENTITY: DEMO.scripts}


def test_directories_of_a_package(tmp_path: Path) -> None:
    entries = [
        Entry(name="etc/", kind="directory", mode=0o755),
        Entry(name="etc/shadow", data=b"x", mode=0o640, uname="root", gname="shadow"),
        Entry(name="etc/sub/", kind="directory", mode=0o1777),
        Entry(name="etc/zlink", kind="symlink", target="shadow", mode=0o755),
        Entry(name="etc/hard", kind="hardlink", target="etc/shadow", mode=0o640),
        Entry(name="top", data=b"", pax={"SCHILY.xattr.user.b": "2", "SCHILY.xattr.user.a": "11"}),
    ]
    apk = apkbuild.build({"pkgname": "a", "pkgver": "1", "arch": "noarch"}, entries)
    path = tmp_path / "a.apk"
    path.write_bytes(apk.blob)
    package = open_package(
        path, expected=apk.identity, keyring=Keyring(), spool=tmp_path / "s", max_installed=100, name="a"
    )
    found = directories_of(package.entries, lambda entry: (0, 42 if entry.gname == "shadow" else 0))
    shadow, empty = (_q1(data) for data in (b"x", b""))
    xattrs = b"\0\0\0\x06user.a\0\0\0\x0211\0\0\0\x06user.b\0\0\0\x012"
    assert found == (
        InstalledDirectory(
            "etc",
            files=(
                InstalledFile("shadow", shadow, Attributes(0, 42, 0o640)),
                InstalledFile("zlink", _q1(b"shadow"), Attributes(0, 0, 0o777)),
                InstalledFile("hard", shadow, Attributes(0, 0, 0o640)),
            ),
        ),
        InstalledDirectory("etc/sub", Attributes(0, 0, 0o1777)),
        InstalledDirectory("", files=(InstalledFile("top", empty, Attributes(0, 0, 0o644, _q1(xattrs))),)),
    )


def _q1(data: bytes) -> str:
    return "Q1" + base64.b64encode(hashlib.sha1(data).digest()).decode()


# ---- properties -----------------------------------------------------------------------------------------------------

WORD_CHARACTERS = string.ascii_letters + string.digits + "+-._"
WORDS = st.text(WORD_CHARACTERS, min_size=1, max_size=8).filter(lambda word: word[0] != ".")
LINES = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=12)
NUMBERS = st.integers(0, 2**31)
IDENTITIES = st.binary(min_size=20, max_size=20).map(lambda raw: "Q1" + base64.b64encode(raw).decode())
ATTRIBUTES = st.builds(
    Attributes, uid=NUMBERS, gid=NUMBERS, mode=st.integers(0, 0o7777), xattrs=st.just("") | IDENTITIES
)
FILES = st.builds(InstalledFile, name=WORDS, checksum=st.just("") | IDENTITIES, attributes=ATTRIBUTES)
DIRECTORIES = st.builds(
    InstalledDirectory,
    path=st.lists(WORDS, max_size=3).map("/".join),
    attributes=ATTRIBUTES,
    files=st.lists(FILES, max_size=4).map(tuple),
)
PACKAGES = st.builds(
    InstalledPackage,
    package=st.builds(
        Package,
        name=WORDS.map(lambda word: "p" + word),
        version=NUMBERS.map(lambda number: f"{number}-r0"),
        arch=st.sampled_from(["x86_64", "noarch"]),
        identity=IDENTITIES,
        size=NUMBERS,
        description=LINES,
        maintainer=LINES,
        build_time=NUMBERS,
        depends=st.lists(WORDS.map(lambda word: "d" + word), max_size=3).map(tuple),
        replaces=st.lists(WORDS, max_size=2).map(tuple),
    ),
    directories=st.lists(DIRECTORIES, max_size=4).map(tuple),
    triggers=st.lists(WORDS.map(lambda word: "/" + word), max_size=2).map(tuple),
    scripts=st.dictionaries(st.sampled_from(SCRIPT_TYPES), st.binary(max_size=600), max_size=3),
    tags=WORDS | st.just(""),
    repository_tag=WORDS | st.just(""),
    flags=st.sampled_from(["", "f", "fsx", "S"]),
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(PACKAGES, max_size=3, unique_by=(lambda one: one.package.name, lambda one: one.package.identity)))
def test_whatever_is_written_is_read_back(packages: list[InstalledPackage]) -> None:
    found = write_database(packages)
    again = read_database(found.installed, found.triggers, found.scripts)
    ordered = sorted(packages, key=lambda one: (one.package.name.lower(), one.package.name))
    assert [replace(one, package=replace(one.package, fault="")) for one in again] == ordered
    assert write_database(again) == found


@given(st.text(alphabet=st.sampled_from("CPVFMRaZgsf:\n0/17x"), max_size=60))
def test_any_text_is_a_database_or_refused(text: str) -> None:
    try:
        packages = parse_installed(text)
    except InputError:
        return
    assert parse_installed(format_installed(packages)) == tuple(
        sorted(packages, key=lambda one: (one.package.name.lower(), one.package.name))
    )


@given(st.binary(max_size=1600))
def test_any_bytes_are_an_archive_of_scripts_or_refused(data: bytes) -> None:
    try:
        found = parse_scripts(data)
    except InputError:
        return
    assert found == {}


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", ["Z:x", "a:0:0:644", "R:b\nM:0:0:755", "X:b", "nonsense", "P:b", ":", "R"])
def test_a_line_out_of_place_is_refused(lines: str) -> None:
    with pytest.raises(InputError, match=r"installed database: demo: .* is out of place"):
        parse_installed(f"P:demo\nV:1\nF:a\n{lines}\n\n")


@pytest.mark.parametrize(
    "text", ["0:0", "0:0:9", "0:0:8", "a:0:7", "-1:0:7", "0:0:", "", "0:0:1_0", "0:000000000001:7"]
)
def test_odd_attributes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"^installed database: a: '{text}' is not uid:gid:mode$"):
        parse_installed(f"P:a\nV:1\nF:x\nM:{text}\n\n")


def test_attributes_of_eleven_digits_are_read() -> None:
    (package,) = parse_installed("P:a\nV:1\nF:x\nM:00000000017:4294967295:00000000755:Q1x\n\n")
    assert package.directories[0].attributes == Attributes(17, 4294967295, 0o755, "Q1x")


def test_a_path_cannot_forge_a_line() -> None:
    forged = replace(DEMO, directories=(InstalledDirectory("a\nF:etc"),))
    with pytest.raises(ValueError, match="line break in a path"):
        format_installed([forged])


def test_an_odd_triggers_file_is_refused() -> None:
    assert parse_triggers(f"{IDENTITY} /a /b\n\n") == {IDENTITY: ("/a", "/b")}
    assert format_triggers([replace(DEMO, triggers=())]) == ""
    with pytest.raises(InputError, match="is not the identity of a package"):
        parse_triggers("/a /b\n")


@pytest.mark.parametrize(
    "name", ["x", "a-1.trigger", "a-1.X1zz.trigger", "a-1.X1.trigger", "a-1.Y1" + "00" * 20 + ".t"]
)
def test_odd_names_of_scripts_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"is not the name of a script|is not the identity"):
        parse_scripts(apkbuild.tar_stream([Entry(name=name, data=b"", checksum="")], end=True))


def test_a_broken_archive_of_scripts_is_refused() -> None:
    data = format_scripts([(PACKAGE, DEMO.scripts)])
    with pytest.raises(InputError, match=r"scripts\.tar\.gz: is truncated"):
        parse_scripts(data[:-9])
    with pytest.raises(InputError, match="scripts of the installed database: the archive is not a tar archive"):
        parse_scripts(b"x" * 512)
