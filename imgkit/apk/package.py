"""Verify and unpack package files (format version 2).

A package is two or three gzip members: signature (may be missing), control (``.PKGINFO`` and scripts), data. The chain
of trust (apk-package(5)): the index names the hash of the raw control member (the *identity*), ``.PKGINFO`` names the
hash of the raw data member (``datahash``), and the data names the hash of each file in it. The package's own signature
covers the control member; where the index vouches it may be missing, but must not be wrong::

    index = verify_index(index_bytes, keyring, name=index_url)
    package = parse_index(index.text, repository)[0]
    file = open_package(
        path, expected=package.identity, keyring=keyring, spool=spool, max_installed=1 << 30, name=str(package)
    )

Data is inflated and parsed only after its hash was verified, so hostile bytes reach zlib and the tar reader only
if a trusted key signed them. Even then their contents are checked: see :mod:`imgkit.apk.unpack`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, TypeAlias

from imgkit.apk.container import refuse_foreign
from imgkit.apk.signature import Keyring, Signature, read_signatures
from imgkit.apk.unpack import PackageEntry, unpack
from imgkit.errors import InputError
from imgkit.tree.gzipmembers import GzipMembers
from imgkit.tree.numbers import parse_number
from imgkit.tree.tarstream import TarError, TarStream

SCRIPT_TYPES = (
    "pre-install",
    "post-install",
    "pre-deinstall",
    "post-deinstall",
    "pre-upgrade",
    "post-upgrade",
    "trigger",
)
_LIMIT_SIGNATURES = 1 << 20
_LIMIT_CONTROL = 16 << 20  # scripts of several hundred KiB exist
_CHUNK = 1 << 20
_DAMAGED = "it was damaged or replaced in transit: try again, or another mirror"
_HASHES = {"Q1": hashlib.sha1, "Q2": hashlib.sha256}

_PackageInfo: TypeAlias = Mapping[str, tuple[str, ...]]  # the keys of .PKGINFO; each has all its values, in order


class IdentityError(InputError):
    """A package file is not the one that the index names, or its data is not what its control member names."""


@dataclass(frozen=True)
class PackageFile:
    """A package of which every byte was verified.

    Attributes:
        entries: what it installs, in the order of the file. File contents are slices of the spool file.
        scripts: type (``post-install``) → contents, in the order of the file.
        triggers: the globs of directories whose change runs the trigger script.
        replaces: packages whose files this one may overwrite, as dependency words.
        replaces_priority: among packages that replace each other's files, those of the highest priority stay.
    """

    entries: tuple[PackageEntry, ...]
    scripts: Mapping[str, bytes]
    triggers: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    replaces_priority: int = 0


def open_package(
    path: Path, *, expected: str, keyring: Keyring, spool: Path, max_installed: int, name: str
) -> PackageFile:
    """Verify a package file and append the contents of its files to ``spool``.

    Nothing is returned and nothing stays in ``spool`` unless all of it is right. One spool file may take many
    packages, one at a time.

    Args:
        path: the ``.apk`` file.
        expected: the identity that a trusted index gives for it.
        keyring: trusted keys. A signature of the package itself that claims one of these must be right; signatures by
            other keys are ignored, since the index vouches for the package.
        spool: the file on the host that takes the contents; it is created when it is missing.
        max_installed: bytes that all files of the package together may have.
        name: what messages call the package.

    Raises:
        IdentityError: the file is not the package that the index names.
        SignatureError: the file has a signature that claims a trusted key and is wrong.
        InputError: the file is damaged, or holds something that no package may hold.
        HostError: the host has no space left for its contents.
    """
    with path.open("rb") as source:
        control = _read_control(source, name)
        _check_identity(control, expected, name)
        keyring.signer(control.raw, control.signatures, name)
        info, scripts = _parse_control(control.segment, name)
        _check_data(source, info, name)
        entries = unpack(GzipMembers(source, name), spool, max_installed, name)
    return PackageFile(
        entries=entries,
        scripts=scripts,
        triggers=_words(info, "triggers"),
        replaces=_words(info, "replaces"),
        replaces_priority=_number(info, "replaces_priority"),
    )


def check_package(path: Path, expected: str, *, name: str) -> None:
    """Check that a package file is, byte for byte, the one that an index names, without unpacking it.

    Args:
        path: the ``.apk`` file.
        expected: the identity that the index gives for it.
        name: what messages call the package.

    Raises:
        IdentityError: the file is not that package.
        InputError: the file is not a package, or is damaged.
    """
    with path.open("rb") as source:
        control = _read_control(source, name)
        _check_identity(control, expected, name)
        _check_data(source, _parse_control(control.segment, name)[0], name)


def signer_of(path: Path, keyring: Keyring, name: str) -> str | None:
    """Find out which trusted key signed a package file.

    Returns:
        The name of the key; None if the package is not signed, or not by a trusted key.

    Raises:
        SignatureError: a signature claims a trusted key and is wrong.
        InputError: the file is not a package.
    """
    with path.open("rb") as source:
        control = _read_control(source, name)
    return keyring.signer(control.raw, control.signatures, name)


@dataclass(frozen=True)
class PackageHead:
    """What a package file says of itself before its data.

    Attributes:
        control: the raw control member, which is what signatures sign.
        signatures: those of the file.
        identity: the hash of the control member, as an index has it.
        info: the keys of ``.PKGINFO``; each has all its values, in order.
    """

    control: bytes
    signatures: tuple[Signature, ...]
    identity: str
    info: Mapping[str, tuple[str, ...]]


def read_head(path: Path, name: str) -> PackageHead:
    """Read a package file up to its data. Nothing is verified.

    Raises:
        InputError: the file is not a package, or cannot be read.
    """
    try:
        with path.open("rb") as source:
            control = _read_control(source, name)
    except OSError as cause:
        raise InputError(f"{name}: cannot be read: {cause.strerror}") from cause
    info, _ = _parse_control(control.segment, name)
    return PackageHead(control.raw, control.signatures, _identity(control, "Q1"), info)


def check_identity(identity: str) -> str:
    """Return ``identity`` if it is one (``Q1`` + base64 of 20 bytes, ``Q2`` + base64 of 32).

    Raises:
        InputError: ``identity`` has another form.
    """
    new_hash = _HASHES.get(identity[:2])
    try:
        digest = base64.b64decode(identity[2:], validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if new_hash is None or len(digest) != new_hash().digest_size:
        raise InputError(f"{identity!r} is not the identity of a package")
    return identity


# ---- the control member ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Control:
    """The control member, raw and inflated, and the signatures before it."""

    raw: bytes
    segment: bytes
    signatures: tuple[Signature, ...]


def _read_control(source: BinaryIO, name: str) -> _Control:
    """Read a package up to the start of its data member, and leave ``source`` there."""
    refuse_foreign(source.read(1024), name)
    source.seek(0)
    members = GzipMembers(source, name)
    raw = bytearray()
    segment = members.read_member(_LIMIT_CONTROL, raw.extend)
    signatures = read_signatures(segment, name) if len(segment) <= _LIMIT_SIGNATURES else ()
    if signatures:
        raw.clear()
        segment = members.read_member(_LIMIT_CONTROL, raw.extend)
    if not members.more():
        raise InputError(f"{name}: is not a package: there is no data after its control part")
    source.seek(members.offset)
    return _Control(bytes(raw), segment, signatures)


def _identity(control: _Control, kind: str) -> str:
    return kind + base64.b64encode(_HASHES[kind](control.raw).digest()).decode()


def _check_identity(control: _Control, expected: str, name: str) -> None:
    actual = _identity(control, check_identity(expected)[:2])
    if actual != expected:
        raise IdentityError(
            f"{name}: is not the package that the index names ({actual} instead of {expected})", hint=_DAMAGED
        )


def _parse_control(segment: bytes, name: str) -> tuple[_PackageInfo, Mapping[str, bytes]]:
    """Parse ``.PKGINFO`` and take the scripts. Other files whose names start with a dot are allowed and ignored."""
    files: dict[str, bytes] = {}
    archive = TarStream(iter((segment,)))
    try:
        for header in archive:
            if header.name in files:
                raise InputError(f"{name}: its control part has {header.name} twice")
            files[header.name] = archive.read(_LIMIT_CONTROL)
    except TarError as cause:
        raise InputError(f"{name}: its control part {cause}") from cause
    info = _parse_info(files.get(".PKGINFO", b"").decode(errors="surrogateescape"))
    for key in ("pkgname", "pkgver"):
        if not info.get(key, ("",))[0]:
            raise InputError(f"{name}: is not a package: its .PKGINFO has no {key}")
    scripts = {path[1:]: data for path, data in files.items() if path[:1] == "." and path[1:] in SCRIPT_TYPES}
    return info, MappingProxyType(scripts)


def _parse_info(text: str) -> _PackageInfo:
    """Parse a ``.PKGINFO``: lines ``key = value``, ``#`` starts a comment line; keys may be repeated."""
    values: dict[str, list[str]] = {}
    for line in text.split("\n"):
        key, equals, value = line.partition(" = ")
        if equals and not line.startswith("#"):
            values.setdefault(key.strip(), []).append(value.strip())
    return {key: tuple(several) for key, several in values.items()}


def _words(info: _PackageInfo, key: str) -> tuple[str, ...]:
    """Return the words of all values of ``key``. Packages write a list on one line, or one word on each line."""
    return tuple(word for value in info.get(key, ()) for word in value.split())


def _number(info: _PackageInfo, key: str) -> int:
    """Return the value of ``key`` as a number, or 0 if it has none."""
    return parse_number(info.get(key, ("",))[0]) or 0


# ---- the data member ------------------------------------------------------------------------------------------------


def _check_data(source: BinaryIO, info: _PackageInfo, name: str) -> None:
    """Hash the rest of ``source`` against ``datahash``, and leave it where it stood."""
    expected = info.get("datahash", ("",))[0]
    if not expected:
        raise InputError(f"{name}: its .PKGINFO has no datahash, so nothing vouches for its files")
    start = source.tell()
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
    source.seek(start)
    if digest.hexdigest() != expected:
        raise IdentityError(
            f"{name}: its files are not what it was signed with (SHA-256 {digest.hexdigest()} instead of {expected})",
            hint=_DAMAGED,
        )
