"""One package file (format version 2): verified from the first byte to the last, then unpacked into values.

A package is two or three gzip members: signature (may be missing), control (``.PKGINFO`` and scripts), data. What
vouches for what (apk-package(5)): the index names the hash of the raw control member (the *identity*), ``.PKGINFO``
names the hash of the raw data member (``datahash``), and the data names the hash of each file in it. The package's own
signature covers the control member too; it decides only where no index vouches.

Data is inflated and parsed only after its hash was found right, so hostile bytes reach zlib and the tar reader only
when somebody trusted signed them. Even then nothing is believed: see :mod:`imgkit.apk.unpack`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from imgkit.apk.container import GzipMembers, refuse_foreign
from imgkit.apk.index import Package
from imgkit.apk.signature import Keyring, Signature, read_signatures, trusted_signer
from imgkit.apk.tarstream import TarError, TarStream
from imgkit.apk.unpack import PackageEntry, unpack
from imgkit.errors import InputError

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
_DAMAGED = "it was damaged or replaced on its way: try again, or another mirror"
_HASHES = {"Q1": hashlib.sha1, "Q2": hashlib.sha256}


@dataclass(frozen=True)
class PackageFile:
    """A package of which every byte was verified.

    Attributes:
        identity: ``Q1`` + base64 of the SHA-1 of the raw control member.
        info: the keys of ``.PKGINFO``; each has all its values, in order.
        scripts: type (``post-install``) → contents, in the order of the file.
        entries: what it installs, in its order. File contents are slices of the spool file.
        signed_by: the trusted key whose signature of this package was verified, None if there is no such signature.
        signers: the keys that the package says it is signed by, trusted or not.
    """

    identity: str
    info: Mapping[str, tuple[str, ...]]
    scripts: Mapping[str, bytes]
    entries: tuple[PackageEntry, ...]
    signed_by: str | None
    signers: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.info["pkgname"][0]

    @property
    def version(self) -> str:
        return self.info["pkgver"][0]

    def __str__(self) -> str:
        return f"{self.name}-{self.version}"

    @property
    def triggers(self) -> tuple[str, ...]:
        """The globs of directories whose change runs the trigger script."""
        return words(self.info, "triggers")

    @property
    def replaces(self) -> tuple[str, ...]:
        """Packages whose files this one may overwrite, as dependency words."""
        return words(self.info, "replaces")

    @property
    def replaces_priority(self) -> int:
        return number(self.info, "replaces_priority")


def open_package(
    path: Path,
    *,
    spool: Path,
    max_installed: int,
    expected: str | None = None,
    keyring: Keyring | None = None,
    name: str | None = None,
) -> PackageFile:
    """Verify a package file and append the contents of its files to ``spool``.

    Nothing is returned and nothing stays in ``spool`` unless all of it is right. One spool file may take many
    packages, one at a time.

    Args:
        path: the ``.apk`` file.
        spool: the file on the host that takes the contents; made when it is missing.
        max_installed: bytes that all files of the package together may have.
        expected: the identity that a trusted index gives; None for a stand-alone package, which must be signed.
        keyring: the keys that may sign it. A signature by one of them must be right. One by another key is noted
            where the index vouches (``signed_by`` stays None) and refused for a stand-alone package.
        name: what messages call it, the file's name where None.

    Raises:
        InputError: it cannot be trusted, is damaged, or holds something that no package may hold.
        HostError: the host has no room for its contents.
    """
    name = name or path.name
    with path.open("rb") as source:
        control = _read_control(source, name)
        _check_identity(control, expected, name)
        signed_by = _check_signatures(control, keyring or Keyring(), name, vouched=expected is not None)
        info, scripts = _parse_control(control.segment, name)
        _check_data(source, info, name)
        entries = unpack(GzipMembers(source, name), spool, max_installed, name)
    return PackageFile(
        identity=_identity("Q1", control.raw),
        info=info,
        scripts=scripts,
        entries=entries,
        signed_by=signed_by,
        signers=tuple(signature.key for signature in control.signatures),
    )


def check_package(path: Path, expected: str, *, name: str | None = None) -> None:
    """Check that a package file is, byte for byte, the one that an index names; unpacks nothing.

    Raises:
        InputError: it is not.
    """
    name = name or path.name
    with path.open("rb") as source:
        control = _read_control(source, name)
        _check_identity(control, expected, name)
        _check_data(source, _parse_control(control.segment, name)[0], name)


def signer_of(path: Path, keyring: Keyring, name: str) -> str | None:
    """The trusted key that signed a package file; None if nobody did, or somebody else.

    Raises:
        InputError: it is no package, or a signature that claims to be by a trusted key is wrong.
    """
    with path.open("rb") as source:
        return _check_signatures(_read_control(source, name), keyring, name, vouched=True)


def check_identity(identity: str) -> str:
    """Return ``identity`` if it is one (``Q1`` + base64 of 20 bytes, ``Q2`` + base64 of 32).

    Raises:
        InputError: it is not.
    """
    new = _HASHES.get(identity[:2])
    try:
        raw = base64.b64decode(identity[2:], validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if new is None or len(raw) != new().digest_size:
        raise InputError(f"{identity!r} is not the identity of a package")
    return identity


def metadata(package: PackageFile, *, size: int = 0) -> Package:
    """The record of a package that comes from no index.

    Args:
        size: of the ``.apk`` file in bytes.
    """
    info = package.info

    def text(key: str) -> str:
        return " ".join(info.get(key, ()))

    return Package(
        name=package.name,
        version=package.version,
        arch=text("arch"),
        identity=package.identity,
        size=size,
        installed_size=number(info, "size"),
        description=text("pkgdesc"),
        url=text("url"),
        license=text("license"),
        origin=text("origin"),
        maintainer=text("maintainer"),
        commit=text("commit"),
        build_time=number(info, "builddate"),
        provider_priority=number(info, "provider_priority"),
        depends=words(info, "depend"),
        provides=words(info, "provides"),
        install_if=words(info, "install_if"),
        replaces=package.replaces,
        replaces_priority=package.replaces_priority,
    )


def words(info: Mapping[str, tuple[str, ...]], key: str) -> tuple[str, ...]:
    """The words of all values of ``key``: lists are one word a line or all on one, both occur."""
    return tuple(word for value in info.get(key, ()) for word in value.split())


def number(info: Mapping[str, tuple[str, ...]], key: str) -> int:
    """The number that ``key`` has, 0 if it has none."""
    text = info.get(key, ("",))[0]
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def parse_pkginfo(text: str) -> Mapping[str, tuple[str, ...]]:
    """The keys of a ``.PKGINFO``: lines ``key = value``, ``#`` starts a comment line; keys may be repeated."""
    values: dict[str, list[str]] = {}
    for line in text.split("\n"):
        key, equals, value = line.partition(" = ")
        if equals and not line.startswith("#"):
            values.setdefault(key.strip(), []).append(value.strip())
    return MappingProxyType({key: tuple(found) for key, found in values.items()})


# ---- steps ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Control:
    """The control member, raw and inflated, and the signatures before it."""

    raw: bytes
    segment: bytes
    signatures: tuple[Signature, ...]


def _read_control(source: BinaryIO, name: str) -> _Control:
    """Read up to the start of the data member and leave ``source`` there."""
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


def _identity(kind: str, raw: bytes) -> str:
    return kind + base64.b64encode(_HASHES[kind](raw).digest()).decode()


def _check_identity(control: _Control, expected: str | None, name: str) -> None:
    if expected is None:
        return
    found = _identity(check_identity(expected)[:2], control.raw)
    if found != expected:
        raise InputError(
            f"{name}: is not the package that the index names ({found} instead of {expected})", hint=_DAMAGED
        )


def _check_signatures(control: _Control, keyring: Keyring, name: str, *, vouched: bool) -> str | None:
    if vouched:
        return keyring.vouching(control.raw, control.signatures, name)
    if not control.signatures:
        raise InputError(f"{name}: is not signed", hint="sign it with abuild-sign, or take it from a signed repository")
    return trusted_signer(keyring, control.raw, control.signatures, name)


def _parse_control(segment: bytes, name: str) -> tuple[Mapping[str, tuple[str, ...]], Mapping[str, bytes]]:
    """``.PKGINFO`` and the scripts. Other files whose names start with a dot are allowed and ignored."""
    files: dict[str, bytes] = {}
    archive = TarStream(iter((segment,)))
    try:
        for header in archive:
            if header.name in files:
                raise InputError(f"{name}: its control part has {header.name} twice")
            files[header.name] = archive.read(_LIMIT_CONTROL)
    except TarError as cause:
        raise InputError(f"{name}: its control part {cause}") from cause
    info = parse_pkginfo(files.get(".PKGINFO", b"").decode(errors="surrogateescape"))
    for key in ("pkgname", "pkgver"):
        if not info.get(key, ("",))[0]:
            raise InputError(f"{name}: is not a package: its .PKGINFO has no {key}")
    scripts = {path[1:]: data for path, data in files.items() if path[:1] == "." and path[1:] in SCRIPT_TYPES}
    return info, MappingProxyType(scripts)


def _check_data(source: BinaryIO, info: Mapping[str, tuple[str, ...]], name: str) -> None:
    """Hash the rest of ``source`` against ``datahash``, and leave it where it stood."""
    wanted = info.get("datahash", ("",))[0]
    if not wanted:
        raise InputError(f"{name}: its .PKGINFO has no datahash, so nothing vouches for its files")
    start = source.tell()
    found = hashlib.sha256()
    while chunk := source.read(_CHUNK):
        found.update(chunk)
    source.seek(start)
    if found.hexdigest() != wanted:
        raise InputError(
            f"{name}: its files are not what it was signed with (SHA-256 {found.hexdigest()} instead of {wanted})",
            hint=_DAMAGED,
        )
