"""Signatures of minirootfs that were verified before, so that a build from a lock file needs nothing of the mirror.

A lock file names the minirootfs by its hash, and the cache has the file by its hash. The signature beside the file on
the mirror, and the certificate of a mirror's own, are kept here under the same hash when they have been verified with a
certificate that the user named. They are verified again whenever they are used, and for these bytes only. Below the
cache's folder::

    vouched/ab/abcd….json
"""

from __future__ import annotations

import base64
import binascii
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from imgkit.errors import InputError
from imgkit.fetch.openpgp import Certificate, read_certificate
from imgkit.host import wholefile
from imgkit.host.jsonfile import StrictModel, checked, read_json

FOLDER = "vouched"
_MAX_RECORD = 4 << 20


class _Record(StrictModel):
    """A record; both texts are base64."""

    signature: str
    certificate: str


@dataclass(frozen=True)
class Vouched:
    """A detached signature, and the certificate that made it."""

    signature: bytes
    certificate: Certificate


def remember(cache: Path, sha256: str, vouched: Vouched) -> None:
    """Keep what was verified for the file of this hash. A cache that cannot be written keeps nothing.

    Args:
        cache: the cache's folder.
        sha256: in hex.
    """
    path = _path(cache, sha256)
    parts = {"signature": vouched.signature, "certificate": vouched.certificate.data}
    body = {name: base64.b64encode(data).decode() for name, data in parts.items()}
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        wholefile.write(path, json.dumps(body).encode())


def recall(cache: Path, sha256: str) -> Vouched | None:
    """Return what was verified for the file of this hash; None if there is nothing that can be used."""
    path = _path(cache, sha256)
    try:
        record = checked(_Record, read_json(path, _MAX_RECORD), path, description="a record of imgkit")
        signature, certificate = (
            base64.b64decode(text, validate=True) for text in (record.signature, record.certificate)
        )
        return Vouched(signature, read_certificate(certificate, name=str(path)))
    except (InputError, binascii.Error):
        return None


def _path(cache: Path, sha256: str) -> Path:
    return cache / FOLDER / sha256[:2] / f"{sha256}.json"
