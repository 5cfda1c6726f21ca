"""Targets: the parsers of packages, indexes and the installed database."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from contextlib import suppress

from fixtures import apkbuild
from fuzz.target import MAX_INSTALLED, Target, scratch, tar
from imgkit.apk.database import read_database, write_database
from imgkit.apk.dependency import Dependency, Provide
from imgkit.apk.index import Repository, parse_index
from imgkit.apk.package import open_package
from imgkit.apk.signature import Keyring, read_signatures
from imgkit.apk.version import Version
from imgkit.errors import InputError
from imgkit.tree.gzipmembers import members_of
from imgkit.tree.tarstream import TarError, TarStream


def _container(data: bytes) -> None:
    members = members_of(data, "input")
    while members.more():
        members.read_member(MAX_INSTALLED)


def _tarstream(data: bytes) -> None:
    for step in (len(data) or 1, 100):
        archive = TarStream(data[at : at + step] for at in range(0, len(data), step))
        for number, _ in enumerate(archive):
            if number % 2:
                archive.read(MAX_INSTALLED)


_EMPTY_DATA = apkbuild.gzip_member(bytes(1024))


def _open(control: bytes, data: bytes) -> None:
    """Open a package that the index vouches for, whatever is in it."""
    raw = apkbuild.gzip_member(control)
    identity = "Q1" + base64.b64encode(hashlib.sha1(raw).digest()).decode()
    with scratch() as folder:
        (folder / "x.apk").write_bytes(raw + data)
        package = open_package(
            folder / "x.apk",
            expected=identity,
            keyring=Keyring(),
            spool=folder / "spool",
            max_installed=MAX_INSTALLED,
            name="x.apk",
        )
        assert package.triggers is not None


def _pkginfo(data: bytes) -> None:
    digest = hashlib.sha256(_EMPTY_DATA).hexdigest()
    info = b"pkgname = x\npkgver = 1\ndatahash = " + digest.encode() + b"\n" + data
    _open(apkbuild.tar_stream([apkbuild.Entry(name=".PKGINFO", data=info)], end=False), _EMPTY_DATA)


def _package_data(data: bytes) -> None:
    packed = apkbuild.gzip_member(data)
    info = f"pkgname = x\npkgver = 1\ndatahash = {hashlib.sha256(packed).hexdigest()}\n".encode()
    _open(apkbuild.tar_stream([apkbuild.Entry(name=".PKGINFO", data=info)], end=False), packed)


RECORD = (
    "C:Q1+e84Qul0Bq5Jw2ChTFWTVgj0EtM=\nP:musl\nV:1.2.5-r0\nA:x86_64\nS:1\nI:2\nT:libc\nU:https://x\nL:MIT\no:musl\n"
    "m:a <b@c>\nt:1700000000\nc:abc\nk:1\nD:so:a>1 b=2 !c\np:so:libc.musl-x86_64.so.1=1\ni:a b\nr:a\nq:1\n"
)


def _relations(data: bytes) -> None:
    """Parse words of dependencies, provides and versions, one on each line."""
    versions = []
    for word in data.decode(errors="surrogateescape").split("\n"):
        with suppress(ValueError):
            Provide.parse(word)
        dependency = Dependency.parse(word)
        if dependency.version:
            versions.append(Version.lenient(dependency.version))
        dependency.matches("1.2.3-r4", "Q1abc")
    sorted(versions[:200])


_INSTALLED = RECORD.encode() + b"F:etc\nM:0:0:1777\nR:motd\na:0:0:600\nZ:Q1+e84Qul0Bq5Jw2ChTFWTVgj0EtM=\n\n"


_IDENTITY = b"Q1+e84Qul0Bq5Jw2ChTFWTVgj0EtM="


def _stored_scripts() -> bytes:
    name = f"musl-1.2.5-r0.{_IDENTITY.decode()}.post-install"
    return apkbuild.tar_stream([apkbuild.Entry(name=name, data=b"#!/bin/sh\n")], end=True)


def _database(data: bytes) -> None:
    """Read and write the three files of the database, which two NULs separate in the input."""
    installed, triggers, scripts = [*data.split(b"\0\0", 2), b"", b""][:3]
    try:
        write_database(read_database(installed, triggers, scripts))
    except ValueError as cause:  # a line break in what other files say: the writer refuses to write it
        if "line break" not in str(cause):
            raise


def _database_seed() -> bytes:
    return _INSTALLED + b"\0\0" + _IDENTITY + b" /a/* +/b\n\0\0" + _stored_scripts()


TARGETS: Mapping[str, Target] = {
    "container": Target(_container, (InputError,), lambda: [apkbuild.gzip_member(tar()) * 2]),
    "tar": Target(_tarstream, (TarError,), lambda: [tar()]),
    "signatures": Target(
        lambda data: read_signatures(data, "x"),
        (InputError,),
        lambda: [apkbuild.tar_stream([apkbuild.Entry(name=".SIGN.RSA.x.rsa.pub", data=b"0" * 256)], end=False)],
    ),
    "package": Target(_package_data, (InputError,), lambda: [tar()]),
    "pkginfo": Target(
        _pkginfo, (InputError,), lambda: [b"# x\npkgdesc = y\nsize = 1\ndepend = a\ntriggers = /a/* /b\n"]
    ),
    "index": Target(
        lambda data: parse_index(data.decode(errors="surrogateescape"), Repository()),
        (InputError,),
        lambda: [(RECORD + "\n" + RECORD).encode()],
        tuple(f"{letter}:".encode() for letter in "CPVASITULomtckDpirqXf"),
    ),
    "relations": Target(_relations, (ValueError,), lambda: [b"a\nso:b=1\n!c~2.3_rc1-r0\nd@edge><Q1abc="]),
    "database": Target(_database, (InputError,), lambda: [_database_seed()]),
}
