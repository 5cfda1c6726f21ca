"""Write the bundle and the links of etc/ssl/certs, as ``update-ca-certificates`` and ``c_rehash`` do, in Python.

For every certificate that etc/ca-certificates.conf names (``!`` and ``#`` at the start of a line disable it) and every
``*.crt`` of usr/local/share/ca-certificates, update-ca-certificates makes a link ``ca-cert-<name>.pem`` and adds the
file to the bundle ca-certificates.crt. Its hook ``certhash`` then runs c_rehash, which makes a link ``<hash>.<n>`` to
each certificate. The hash is OpenSSL's hash of the subject, by which OpenSSL finds a certificate in a directory
(X509_LOOKUP_hash_dir(3)).
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from imgkit.errors import InputError
from imgkit.tree import File, Symlink, Tree

CERTS = "etc/ssl/certs"
BUNDLE = f"{CERTS}/ca-certificates.crt"
_CONF = "etc/ca-certificates.conf"
_SHARE = "usr/share/ca-certificates"
_LOCAL = "usr/local/share/ca-certificates"
_BEGIN = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----")
_END = re.compile(rb"-----END (?:X509 |TRUSTED )?CERTIFICATE-----")
_MAX_FILE = 4 << 20  # bytes of a file of certificates; Alpine's whole bundle has a quarter of a megabyte
_HASH_LINK = re.compile(r"/[0-9a-f]{8}\.[0-9]+$")

# ASN.1 (X.690) tags; the string types below are those that OpenSSL converts to UTF8String.
_UTF8, _SEQUENCE, _SET, _VERSION = 0x0C, 0x30, 0x31, 0xA0
_ENCODINGS = {
    0x0C: "utf-8",
    0x13: "latin-1",  # PrintableString
    0x14: "latin-1",  # T61String
    0x16: "latin-1",  # IA5String
    0x1A: "latin-1",  # VisibleString
    0x1C: "utf-32-be",  # UniversalString
    0x1E: "utf-16-be",  # BMPString
}
_LINK_NAME = str.maketrans(" (),", "_==_")
_BLANKS = " \t\n\v\f\r"


@dataclass(frozen=True)
class _Certificate:
    """The ``path`` of a file with a certificate, the ``link`` to it, and its bytes."""

    path: str
    link: str
    data: bytes


def update(tree: Tree, *, epoch: int = 0) -> int:
    """Write the bundle and the links ``ca-cert-*.pem``; remove such links that lead nowhere any more.

    Returns:
        The number of certificates.

    Raises:
        InputError: a file of certificates is too large.
    """
    certificates = list(_enabled(tree))
    wanted = {certificate.link: f"/{certificate.path}" for certificate in certificates}
    for path in tree.children(CERTS):
        dangling = isinstance(tree[path], Symlink) and tree.stat(path) is None
        if dangling and path not in wanted and path.startswith(f"{CERTS}/ca-cert-"):
            tree.remove(path)
    _link_all(tree, wanted, epoch)
    bundle = b"".join(certificate.data + b"\n" for certificate in certificates)
    if not isinstance(tree.stat(BUNDLE), File) or tree.read(BUNDLE) != bundle:
        tree.write(BUNDLE, bundle, mtime=epoch)
    return len(certificates)


def rehash(tree: Tree, directory: str = CERTS, *, epoch: int = 0) -> list[str]:
    """Make the hash links of a directory anew.

    Returns:
        A warning for each file that gets no link.

    Raises:
        InputError: a file is too large, or contains a certificate that cannot be read.
    """
    wanted: dict[str, str] = {}
    warnings: list[str] = []
    seen: set[bytes] = set()
    same: Counter[int] = Counter()  # certificates of each hash so far
    for path in tree.children(directory):
        node = tree.stat(path)
        if path.rpartition(".")[2] not in ("pem", "crt", "cer") or path == BUNDLE or not isinstance(node, File):
            continue
        if node.content.size > _MAX_FILE:
            raise InputError(f"/{path}: more than {_MAX_FILE >> 20} MiB of certificates")
        blocks = _blocks(node.content.read())
        if len(blocks) != 1 or blocks[0] in seen:
            reason = "duplicate certificate" if len(blocks) == 1 else "does not contain exactly one certificate"
            warnings.append(f"{path}: {reason}: skipped")
            continue
        seen.add(blocks[0])
        value = subject_hash(blocks[0], path)
        wanted[f"{directory}/{value:08x}.{same[value]}"] = path.rpartition("/")[2]
        same[value] += 1
    for path in tree.children(directory):
        if _HASH_LINK.search(path) and isinstance(tree[path], Symlink) and path not in wanted:
            tree.remove(path)
    _link_all(tree, wanted, epoch)
    return warnings


def _blocks(data: bytes) -> list[bytes]:
    """Return the PEM certificates in ``data``. It is scanned once: after a block without an end the search stops."""
    blocks = []
    at = 0
    while (begin := _BEGIN.search(data, at)) and (end := _END.search(data, begin.end() + 1)):
        blocks.append(data[begin.start() : end.end()])
        at = end.end()
    return blocks


def _link_all(tree: Tree, wanted: Mapping[str, str], epoch: int) -> None:
    for path, target in sorted(wanted.items()):
        old = tree.get(path)
        if not isinstance(old, Symlink) or old.target != target:
            tree.symlink(path, target, mtime=epoch)


def _enabled(tree: Tree) -> Iterator[_Certificate]:
    """Yield the certificates that the configuration enables, and those of usr/local."""
    lines = tree.text(_CONF).splitlines() if isinstance(tree.stat(_CONF), File) else []
    for line in lines:
        if line and line[0] not in "#!":
            yield from _certificate(tree, f"{_SHARE}/{line}")
    for path in tree.children(_LOCAL):
        if path.endswith(".crt"):
            yield from _certificate(tree, path)


def _certificate(tree: Tree, path: str) -> Iterator[_Certificate]:
    """Yield the certificate at ``path`` if the file exists: the real program warns about a missing one and goes on."""
    if not isinstance(tree.stat(path), File):
        return
    name = path.rpartition("/")[2].removesuffix(".crt").translate(_LINK_NAME)
    yield _Certificate(path, f"{CERTS}/ca-cert-{name}.pem", tree.read(path, _MAX_FILE))


def subject_hash(pem: bytes, name: str = "certificate") -> int:
    """Return the number that ``openssl x509 -subject_hash`` prints.

    It is the first four bytes, little-endian, of the SHA-1 over the subject in canonical form: text values as UTF-8
    in lower case, with blanks trimmed and folded, each relative name a SET, without the SEQUENCE around all of them.

    Args:
        pem: the certificate; its first PEM block counts.
        name: the name of the file in an error.

    Raises:
        InputError: ``pem`` has no certificate that can be read.
    """
    blocks = _blocks(pem)
    try:
        if not blocks:
            raise ValueError("no PEM block")
        der = base64.b64decode(b"".join(blocks[0].split(b"-----")[2].split()), validate=True)
        digest = hashlib.sha1(_canonical(_subject(der)), usedforsecurity=False).digest()
    except (ValueError, IndexError) as cause:  # binascii.Error and UnicodeDecodeError are ValueErrors
        raise InputError(f"{name}: not a certificate: {cause}") from cause
    value: int = struct.unpack("<I", digest[:4])[0]
    return value


def _subject(certificate: bytes) -> bytes:
    """Return the subject's relative names in a DER Certificate (RFC 5280, 4.1).

    This is not left to a library, because libraries refuse some root certificates of the real bundle for their serial
    number 0.
    """
    ((_, fields_and_signature),) = _elements(certificate, _SEQUENCE)
    signed = next((contents for _, contents in _elements(fields_and_signature, _SEQUENCE)), b"")
    fields = [contents for tag, contents in _elements(signed) if tag != _VERSION]
    return fields[4]  # after serial number, signature algorithm, issuer, validity


def _canonical(relative_names: bytes) -> bytes:
    """Return the canonical form of the contents of a DER Name (X.501): SET OF SEQUENCE {OID, value}."""
    canonical = b""
    for _, relative_name in _elements(relative_names, _SET):
        pairs = sorted(_canonical_pair(pair) for _, pair in _elements(relative_name, _SEQUENCE))
        canonical += _element(_SET, b"".join(pairs))
    return canonical


def _canonical_pair(pair: bytes) -> bytes:
    (oid_tag, oid), (tag, value) = _elements(pair)
    if tag in _ENCODINGS:
        text = re.sub(rf"[{_BLANKS}]+", " ", value.decode(_ENCODINGS[tag]).strip(_BLANKS))
        lower = "".join(chr(ord(letter) + 32) if "A" <= letter <= "Z" else letter for letter in text)
        tag, value = _UTF8, lower.encode()
    return _element(_SEQUENCE, _element(oid_tag, oid) + _element(tag, value))


def _elements(data: bytes, expected: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield tag and contents of the DER elements that follow one another in ``data``.

    Raises:
        ValueError: an element is longer than ``data``, or has another tag than the ``expected`` one.
        IndexError: ``data`` ends within a header.
    """
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(data[at : at + size], "big")
            at += size
        if at + length > len(data) or expected not in (None, tag):
            raise ValueError("damaged DER")
        yield tag, data[at : at + length]
        at += length


def _element(tag: int, contents: bytes) -> bytes:
    """Encode one DER element."""
    size = len(contents)
    if size < 0x80:
        return bytes([tag, size]) + contents
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + contents
