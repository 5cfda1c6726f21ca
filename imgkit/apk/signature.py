"""Check Alpine's signatures of package indexes and packages.

A signed file starts with a gzip member that holds tar entries ``.SIGN.<algorithm>.<key file name>``, each the raw
PKCS#1 v1.5 signature over the raw bytes that follow (abuild-sign(1)): one member in a package, the whole rest in an
index. One signature by a trusted key is enough. A signature that claims a trusted key and is wrong means an attack or
damage, and is never ignored::

    keyring = Keyring.from_files({"mirror.rsa.pub": pem})
    index = verify_index(data, keyring, name=url)
    packages = parse_index(index.text, repository)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from imgkit.apk.container import refuse_foreign
from imgkit.errors import InputError
from imgkit.tree.gzipmembers import members_of
from imgkit.tree.tarstream import TarError, TarStream

_PREFIX = ".SIGN."
_LIMIT_SEGMENT = 1 << 20
_LIMIT_SIGNATURE = 1 << 16  # bytes; apk ignores longer ones
_LIMIT_INDEX = 64 << 20  # the text of Alpine 3.17 main has 1.9 MiB

# SHA-1 is what Alpine's own repositories use to this day.
_ALGORITHMS: Mapping[str, hashes.HashAlgorithm] = MappingProxyType(
    {"RSA": hashes.SHA1(), "RSA256": hashes.SHA256(), "RSA512": hashes.SHA512()}  # noqa: S303 - the format's choice
)


class SignatureError(InputError):
    """The signatures of a file do not vouch for it."""


class UnsignedError(SignatureError):
    """A file that must be signed has no signature."""


class UnknownKeyError(SignatureError):
    """None of a file's signatures is by a trusted key."""


class BadSignatureError(SignatureError):
    """A signature claims a trusted key, and is not that key's signature of the file."""


@dataclass(frozen=True)
class Signature:
    """One signature as a file has it: the name of the algorithm, the file name of the key, the raw signature."""

    algorithm: str
    key: str
    value: bytes


@dataclass(frozen=True)
class Keyring:
    """Trusted RSA keys by file name, as in ``etc/apk/keys``."""

    keys: Mapping[str, RSAPublicKey] = field(default_factory=dict)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Keyring:
        """Read PEM public keys.

        Args:
            files: file name (``….rsa.pub``) → contents.

        Raises:
            InputError: one of the files is not an RSA public key.
        """
        return cls(MappingProxyType({name: _load(name, pem) for name, pem in sorted(files.items())}))

    def __str__(self) -> str:
        return ", ".join(self.keys) or "none"

    @property
    def digest(self) -> str:
        """A SHA-256 over the names and the keys, in hex."""
        numbers = [(name, key.public_numbers()) for name, key in sorted(self.keys.items())]
        return hashlib.sha256(repr([(name, key.n, key.e) for name, key in numbers]).encode()).hexdigest()

    def signer(self, signed: bytes, signatures: Iterable[Signature], name: str) -> str | None:
        """Check all signatures that claim a trusted key.

        Args:
            signed: the raw bytes of what is signed.
            signatures: those that came with it.
            name: what messages call the file.

        Returns:
            The name of the first trusted key that signed; None if no signature claims a trusted key.

        Raises:
            BadSignatureError: a signature claims a trusted key and is wrong.
        """
        signers = []
        for signature in signatures:
            algorithm = _ALGORITHMS.get(signature.algorithm)
            key = self.keys.get(signature.key)
            if algorithm is None or key is None:
                continue
            try:
                key.verify(signature.value, signed, padding.PKCS1v15(), algorithm)
            except InvalidSignature as cause:
                raise BadSignatureError(
                    f"{name}: bad signature: it is not what {signature.key} signed",
                    hint="the file was damaged or replaced in transit: try again, or another mirror",
                ) from cause
            signers.append(signature.key)
        return signers[0] if signers else None


@dataclass(frozen=True)
class SignedIndex:
    """A verified package index.

    Attributes:
        text: the contents of its ``APKINDEX``.
        description: one line; in Alpine's repositories the output of git-describe for the package sources.
        key: the name of the key that signed the index.
        date: when the index was made, in seconds since 1970: the newest modification time in the signed archive. 0 if
            the archive has none.
    """

    text: str
    description: str
    key: str
    date: int = 0


def verify_index(data: bytes, keyring: Keyring, *, name: str) -> SignedIndex:
    """Verify and unpack an ``APKINDEX.tar.gz``.

    Args:
        data: the contents of the file.
        keyring: the keys that are trusted to sign it.
        name: what messages call the index (its URL).

    Raises:
        SignatureError: the index is not signed, or not by a trusted key, or a signature is wrong.
        InputError: the index is damaged, truncated, too large, or not a package index.
    """
    refuse_foreign(data[:1024], name)
    members = members_of(data, name)
    signatures = read_signatures(members.read_member(_LIMIT_SEGMENT), name)
    if not signatures:
        raise UnsignedError(f"{name}: is not signed", hint="sign it with abuild-sign, or use a mirror that is signed")
    start = members.offset
    if not members.more():
        raise InputError(f"{name}: is truncated: nothing follows the signature")
    key = _trusted_signer(keyring, data[start:], signatures, name)
    files, date = _index_files(members.read_member(_LIMIT_INDEX), name)
    if members.more():
        raise InputError(f"{name}: is not a package index: it has more than two gzip members")
    if "APKINDEX" not in files:
        raise InputError(f"{name}: is not a package index: there is no APKINDEX in it")
    return SignedIndex(files["APKINDEX"], files.get("DESCRIPTION", "").strip(), key, date)


def _trusted_signer(keyring: Keyring, signed: bytes, signatures: tuple[Signature, ...], name: str) -> str:
    key = keyring.signer(signed, signatures, name)
    if key is None:
        signers = ", ".join(f"{signature.key} ({signature.algorithm})" for signature in signatures)
        raise UnknownKeyError(
            f"{name}: signed by an unknown key: {signers}",
            hint=f"trusted keys: {keyring}; add the mirror's key to the recipe if you trust it",
        )
    return key


def read_signatures(segment: bytes, name: str) -> tuple[Signature, ...]:
    """Read the signatures of an inflated gzip member.

    Returns:
        The signatures, without those that have an invalid key name or an absurd length, as apk does it. Empty if the
        member does not hold signatures: it has another file among them, or no file at all.

    Raises:
        InputError: the member is not a valid tar archive.
    """
    signatures = []
    archive = TarStream(iter((segment,)))
    try:
        for header in archive:
            if not header.name.startswith(_PREFIX):
                return ()
            algorithm, dot, key = header.name[len(_PREFIX) :].partition(".")
            if dot and key and "/" not in key and header.size <= _LIMIT_SIGNATURE:
                signatures.append(Signature(algorithm, key, archive.read(_LIMIT_SIGNATURE)))
    except TarError as cause:
        raise InputError(f"{name}: {cause}") from cause
    return tuple(signatures)


def _index_files(segment: bytes, name: str) -> tuple[dict[str, str], int]:
    """Read the files of an index. Returns their texts by name, and the newest of their modification times."""
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
