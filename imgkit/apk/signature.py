"""Signatures of Alpine: who vouches for a package index or a package.

A signed file starts with a gzip member that holds tar entries ``.SIGN.<algorithm>.<key file name>``, each the raw
PKCS#1 v1.5 signature over the raw bytes of the member that follows (abuild-sign(1)). One signature by a trusted key is
enough; a signature that claims a trusted key and does not fit is an attack or damage, and never passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from imgkit.apk.container import members_of, refuse_foreign
from imgkit.apk.tarstream import TarError, TarStream
from imgkit.errors import InputError

PREFIX = ".SIGN."
_LIMIT_SEGMENT = 1 << 20
_LIMIT_SIGNATURE = 1 << 16  # apk passes over longer ones
_LIMIT_INDEX = 64 << 20  # the text of Alpine 3.17 main has 1.9 MiB

# SHA-1 is what Alpine's own repositories use to this day.
_ALGORITHMS: Mapping[str, hashes.HashAlgorithm] = MappingProxyType(
    {"RSA": hashes.SHA1(), "RSA256": hashes.SHA256(), "RSA512": hashes.SHA512()}  # noqa: S303 - the format's choice
)


@dataclass(frozen=True)
class Signature:
    """One signature as it stands in a file: an algorithm's name, a key's file name, the raw signature."""

    algorithm: str
    key: str
    value: bytes


@dataclass(frozen=True)
class Keyring:
    """Trusted RSA keys by file name, as they are in ``etc/apk/keys``."""

    keys: Mapping[str, RSAPublicKey] = field(default_factory=dict)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Keyring:
        """Read PEM public keys.

        Args:
            files: file name (``….rsa.pub``) → contents.

        Raises:
            InputError: one of them is no RSA public key.
        """
        return cls(MappingProxyType({name: _load(name, pem) for name, pem in sorted(files.items())}))

    def __str__(self) -> str:
        return ", ".join(self.keys) or "none"

    def vouching(self, signed: bytes, signatures: Iterable[Signature], name: str) -> str | None:
        """The trusted key that signed ``signed``, None if no signature claims a trusted key.

        Args:
            signed: the raw bytes of a gzip member.
            signatures: those that came with it.
            name: what messages call the file.

        Raises:
            InputError: a signature claims a trusted key and is wrong.
        """
        found = None
        for signature in signatures:
            algorithm = _ALGORITHMS.get(signature.algorithm)
            key = self.keys.get(signature.key)
            if algorithm is None or key is None:
                continue
            try:
                key.verify(signature.value, signed, padding.PKCS1v15(), algorithm)
            except InvalidSignature as cause:
                raise InputError(
                    f"{name}: bad signature: it is not what {signature.key} signed",
                    hint="the file was damaged or replaced on its way: try again, or another mirror",
                ) from cause
            found = found or signature.key
        return found


@dataclass(frozen=True)
class SignedIndex:
    """A verified package index.

    Attributes:
        text: that of its ``APKINDEX``.
        description: one line; for Alpine's repositories, what git-describe says of the sources.
        key: the key that vouched for all of it.
        date: when it was made, in seconds since 1970: the time of its ``DESCRIPTION`` and ``APKINDEX`` in the signed
            archive. 0 if it does not say.
    """

    text: str
    description: str
    key: str
    date: int = 0


def verify_index(data: bytes, keyring: Keyring, *, name: str = "APKINDEX.tar.gz") -> SignedIndex:
    """Verify and unpack an ``APKINDEX.tar.gz``.

    Args:
        data: the file.
        keyring: the keys that are trusted to sign it.
        name: what messages call it (its URL).

    Raises:
        InputError: it is unsigned, signed by unknown keys, badly signed, damaged, truncated, too large, or no index.
    """
    refuse_foreign(data[:1024], name)
    members = members_of(data, name)
    signatures = read_signatures(members.read_member(_LIMIT_SEGMENT), name)
    if not signatures:
        raise InputError(f"{name}: is not signed", hint="sign it with abuild-sign, or use a mirror that is signed")
    start = members.offset
    if not members.more():
        raise InputError(f"{name}: is truncated: nothing follows the signature")
    key = trusted_signer(keyring, data[start:], signatures, name)
    files, date = _index_files(members.read_member(_LIMIT_INDEX), name)
    if members.more():
        raise InputError(f"{name}: is not a package index: it has more than two gzip members")
    if "APKINDEX" not in files:
        raise InputError(f"{name}: is not a package index: there is no APKINDEX in it")
    return SignedIndex(files["APKINDEX"], files.get("DESCRIPTION", "").strip(), key, date)


def trusted_signer(keyring: Keyring, signed: bytes, signatures: tuple[Signature, ...], name: str) -> str:
    """The trusted key that signed ``signed``.

    Raises:
        InputError: no signature is by a trusted key, or one that claims to be is wrong.
    """
    key = keyring.vouching(signed, signatures, name)
    if key is None:
        signers = ", ".join(f"{signature.key} ({signature.algorithm})" for signature in signatures)
        raise InputError(
            f"{name}: signed by an unknown key: {signers}",
            hint=f"trusted keys: {keyring}; add the mirror's key to the recipe if you trust it",
        )
    return key


def read_signatures(segment: bytes, name: str) -> tuple[Signature, ...]:
    """The signatures in an inflated first member; empty if that is something else.

    Raises:
        InputError: it starts like a signature segment and is broken.
    """
    signatures = []
    archive = TarStream(iter((segment,)))
    try:
        for header in archive:
            if not header.name.startswith(PREFIX):
                return ()
            algorithm, dot, key = header.name[len(PREFIX) :].partition(".")
            if dot and key and "/" not in key and header.size <= _LIMIT_SIGNATURE:
                signatures.append(Signature(algorithm, key, archive.read(_LIMIT_SIGNATURE)))
    except TarError as cause:
        raise InputError(f"{name}: {cause}") from cause
    return tuple(signatures)


def _index_files(segment: bytes, name: str) -> tuple[dict[str, str], int]:
    """The files of an index, and the newest of their times."""
    archive = TarStream(iter((segment,)))
    files: dict[str, str] = {}
    date = 0
    try:
        for header in archive:
            files[header.name] = archive.read(_LIMIT_INDEX).decode(errors="surrogateescape")
            date = max(date, header.mtime)
    except TarError as cause:
        raise InputError(f"{name}: is not a package index: it {cause}") from cause
    return files, date


def _load(name: str, pem: bytes) -> RSAPublicKey:
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as cause:
        raise InputError(f"{name}: is not a public key in PEM format") from cause
    if not isinstance(key, RSAPublicKey):
        raise InputError(f"{name}: is not an RSA key")
    return key
