"""Read from a package file what an index would say of it, as ``apk index`` does for the packages of a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from imgkit.apk.index import NOWHERE, Package, Repository, parse_record
from imgkit.apk.package import PackageHead, read_head
from imgkit.apk.signature import Keyring, UnknownKeyError
from imgkit.errors import InputError

# The key of .PKGINFO for each letter of an index (apk-package(5)); keys of lists are repeated.
_KEYS = {
    "P": "pkgname",
    "V": "pkgver",
    "A": "arch",
    "I": "size",
    "T": "pkgdesc",
    "U": "url",
    "L": "license",
    "o": "origin",
    "m": "maintainer",
    "t": "builddate",
    "c": "commit",
    "k": "provider_priority",
    "D": "depend",
    "p": "provides",
    "i": "install_if",
}


def read_package(path: Path, keyring: Keyring, repository: Repository = NOWHERE) -> Package:
    """Return the record of a package file that a trusted key signed. Its data are not read.

    Args:
        keyring: the keys that are trusted to sign it.
        repository: where the package comes from.

    Raises:
        SignatureError: no trusted key signed the package, or a signature is wrong.
        InputError: the file is not a package, or has another name than packages of repositories have.
    """
    head = read_head(path, str(path))
    if keyring.signer(head.control, head.signatures, str(path)) is None:
        signers = ", ".join(f"{signature.key} ({signature.algorithm})" for signature in head.signatures)
        raise UnknownKeyError(
            f"{path}: signed by an unknown key: {signers}" if signers else f"{path}: is not signed",
            hint=f"trusted keys: {keyring}; sign it with abuild-sign, or give the key of the repository",
        )
    package = replace(parse_record(_record(head), repository), size=path.stat().st_size)
    if path.name != f"{package}.apk":
        raise InputError(f"{path}: is the package {package}", hint=f"rename it to {package}.apk")
    return package


def _record(head: PackageHead) -> list[str]:
    lines = [f"C:{head.identity}"]
    for letter, key in _KEYS.items():
        values = head.info.get(key, ())
        lines += [f"{letter}:{' '.join(values)}"] if values else []
    return lines
