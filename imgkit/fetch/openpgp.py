"""Verify the detached OpenPGP signature of a release file.

Sequoia does the cryptography and has the policy (which hash algorithms are still accepted, what a revocation does);
this module turns its failures into error messages. A signature is judged as of the time it was made, so a key that
expired later still vouches for what it signed before::

    signer = verify_detached(Path("minirootfs.tar.gz"), signature, alpine_certificate())
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path

import pysequoia
from pysequoia.packet import PacketPile, Tag

from imgkit.errors import HostError, ImgkitError, InputError

ALPINE_FINGERPRINT = "0482D84022F52DF1C4E7CD43293ACD0907D9495A"
_KEYS = (Tag.PublicKey, Tag.PublicSubkey)
_SECRETS = (Tag.SecretKey, Tag.SecretSubkey)


@dataclass(frozen=True)
class Certificate:
    """A public key with its subkeys.

    Attributes:
        fingerprint: of the primary key, upper-case hex.
        data: the certificate as it was read (armoured or binary).
        keys: fingerprints of the primary key and all subkeys, upper-case hex.
    """

    fingerprint: str
    data: bytes
    keys: tuple[str, ...]


def alpine_certificate() -> Certificate:
    """Return the certificate that signs Alpine's releases, which comes with imgkit."""
    data = resources.files("imgkit.fetch").joinpath("alpine-release-key.asc").read_bytes()
    return read_certificate(data, name="alpine-release-key.asc", fingerprint=ALPINE_FINGERPRINT)


def read_certificate(data: bytes, *, name: str, fingerprint: str | None = None) -> Certificate:
    """Read a certificate.

    Args:
        data: armoured or binary.
        name: what messages call it.
        fingerprint: what the primary key's must be, in hex; blanks and case do not matter.

    Raises:
        InputError: the data is not a certificate, has a secret key in it, was revoked, or has another fingerprint.
    """
    try:
        certificate = pysequoia.Cert.from_bytes(data)
        packets = list(PacketPile.from_bytes(data))
    except RuntimeError as cause:
        raise InputError(
            f"{name}: is not an OpenPGP certificate ({_reason(cause)})", hint="export it with gpg --export --armor"
        ) from cause
    primary = certificate.fingerprint.upper()
    if fingerprint is not None and primary != (wanted := "".join(fingerprint.split()).upper()):
        raise InputError(f"{name}: is the certificate {primary}, not {wanted}")
    if any(packet.tag in _SECRETS for packet in packets):
        raise InputError(f"{name}: holds a secret key", hint="use the public one: gpg --export --armor")
    if certificate.is_revoked:
        raise InputError(f"{name}: the certificate {primary} was revoked")
    keys = tuple(packet.fingerprint.upper() for packet in packets if packet.tag in _KEYS and packet.fingerprint)
    return Certificate(primary, data, keys)


def verify_detached(data: Path, signature: bytes, certificate: Certificate, *, name: str | None = None) -> str:
    """Check that ``certificate`` signed the file ``data``.

    Args:
        signature: detached, armoured or binary.
        name: what messages call the file; None takes its file name.

    Returns:
        The fingerprint of the certificate, upper-case hex.

    Raises:
        InputError: the signature is not an OpenPGP signature, is by another key, or does not fit the file.
    """
    name = name or data.name
    try:
        parsed = pysequoia.Sig.from_bytes(signature)
    except RuntimeError as cause:
        raise InputError(f"{name}: what should be its signature is not an OpenPGP signature") from cause
    _check_signer(parsed, certificate, name)
    try:
        verified = pysequoia.verify(file=str(data), store=lambda _: [_sequoia(certificate)], signature=parsed)
    except RuntimeError as cause:
        raise _refusal(certificate, name) from cause
    if certificate.fingerprint.lower() not in [valid.certificate for valid in verified.valid_sigs]:
        raise InputError(f"{name}: bad signature: {certificate.fingerprint} did not make it")
    return certificate.fingerprint


def _refusal(certificate: Certificate, name: str) -> ImgkitError:
    """Return the error for a signature that Sequoia refuses."""
    try:
        expiration = _sequoia(certificate).expiration
    except RuntimeError:  # nothing that the key says of itself is valid today
        return HostError(
            f"{name}: its signature cannot be verified: by this host's clock, the key {certificate.fingerprint} is not"
            f" valid yet",
            hint=f"set the clock, which says that it is {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        )
    return InputError(
        f"{name}: bad signature: it is not what {certificate.fingerprint} signed"
        + (f" (the key expired on {expiration:%Y-%m-%d})" if expiration else ""),
        hint="the file was damaged or replaced in transit: try again, or another mirror",
    )


def _check_signer(signature: pysequoia.Sig, certificate: Certificate, name: str) -> None:
    """Tell a signature by another key from a bad one. The issuer that a signature names proves nothing by itself."""
    signer = (signature.issuer_fingerprint or signature.issuer_key_id or "").upper()
    if signer and not any(key.endswith(signer) for key in certificate.keys):
        raise InputError(
            f"{name}: signed by an unknown key: {signer}",
            hint=f"trusted is {certificate.fingerprint}; your own mirror needs its own release key (--release-key)",
        )


def _sequoia(certificate: Certificate) -> pysequoia.Cert:
    return pysequoia.Cert.from_bytes(certificate.data)


def _reason(cause: RuntimeError) -> str:
    """Return the first line of Sequoia's message; a stack trace follows it."""
    return str(cause).partition("\n")[0]
