"""A cache of compressed layers: a layer with the same entries is not compressed again.

Layout below the cache folder, as in :mod:`imgkit.fetch.cache`::

    layers/ab/abcd….json    a layer that was made: digests and size; named by its key
    layers/ab/abcd….blob    its compressed archive
    tmp/                    layers that are being copied

The key of a layer is a hash over all that its bytes depend on: the headers of its archive, as they are written, the
SHA-256 of every content, and the compression with its level and library. Equal keys mean equal bytes, so several builds
may write an entry at the same time; entries appear by rename only, the ``.json`` last. A blob is verified by its digest
whenever it is taken, and a damaged one is deleted. When an entry is added, those that were not used for the longest
time are removed until the others have at most :data:`MOST_BYTES`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import Field

from imgkit.errors import InputError
from imgkit.host import scratch
from imgkit.host.jsonfile import StrictModel, checked, read_json
from imgkit.oci.compression import Compression, LayerBlob
from imgkit.oci.descriptors import Descriptor
from imgkit.oci.documents import Digest
from imgkit.oci.layerchanges import LayerChanges
from imgkit.tree import File, sha256_of
from imgkit.tree.tarwriter import PIECE, header

log = logging.getLogger("imgkit.oci")

MOST_BYTES = 10 << 30
"""Bytes of all blobs that are kept."""
_FORMAT = f"imgkit layer 1, pieces of {PIECE}"  # changes with what the bytes depend on and the headers do not have
_MAX_RECORD = 1 << 12
_CHUNK = 1 << 20


class CachedLayer(StrictModel):
    """The record of a layer. The diff id cannot be verified quickly, so there is a checksum over all of it."""

    diff_id: Digest
    digest: Digest
    size: Annotated[int, Field(ge=0)]
    checksum: str

    @classmethod
    def of(cls, blob: LayerBlob, key: str) -> CachedLayer:
        """Return the record of a layer."""
        descriptor, diff_id = blob.descriptor, blob.diff_id
        checksum = _checksum(key, diff_id, descriptor.digest, descriptor.size)
        return cls(diff_id=diff_id, digest=descriptor.digest, size=descriptor.size, checksum=checksum)

    def check(self, key: str) -> None:
        """Raise InputError if the record is not what was written for ``key``."""
        if self.checksum != _checksum(key, self.diff_id, self.digest, self.size):
            raise InputError("its record has another checksum")


def _checksum(*facts: str | int) -> str:
    return hashlib.sha256(" ".join(map(str, facts)).encode()).hexdigest()


def layer_key(layer: LayerChanges, compression: Compression, hashes: Mapping[str, str]) -> str:
    """Return the key of a layer, in hex.

    Args:
        hashes: the SHA-256 of contents, in hex, by path; files that are not in it are read.

    Raises:
        OSError, EOFError: a file on the host cannot be read, or is shorter than it was.
    """
    key = hashlib.sha256(f"{_FORMAT}\n{compression.identity}\n".encode())
    for path, node in layer.entries:
        key.update(header(path, node))
        if isinstance(node, File):
            known = hashes.get(path)
            key.update(bytes.fromhex(known) if known else sha256_of(node.content))
    return key.hexdigest()


class LayerCache:
    """The layers below a cache folder, which is made when something is stored."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most_bytes = most_bytes

    def take(self, key: str, compression: Compression, target: Path) -> LayerBlob | None:
        """Copy a layer to the new file ``target``.

        Returns:
            None if the cache does not have the layer, or has it no longer because it was damaged.

        Raises:
            OSError: the target cannot be written.
        """
        record, blob = self._places(key)
        if not record.is_file():
            return None
        try:
            known = checked(CachedLayer, read_json(record, _MAX_RECORD), record, description="a cached layer")
            known.check(key)
            _copy_verified(blob, target, known)
        except InputError as fault:
            log.warning("%s: damaged in the cache, and deleted: %s", blob, fault)
            for path in (target, record, blob):
                path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # another build has removed it, or it belongs to another user
            os.utime(record)
        return LayerBlob(Descriptor(compression.media_type, known.digest, known.size), known.diff_id)

    def store(self, key: str, made: LayerBlob, source: Path) -> None:
        """Copy a layer from the file ``source`` into the cache. A cache that cannot be written is logged, no more."""
        record, blob = self._places(key)
        try:
            (self._folder / "tmp").mkdir(parents=True, exist_ok=True)
            record.parent.mkdir(parents=True, exist_ok=True)
            with scratch.folder(self._folder / "tmp", "") as work:
                shutil.copyfile(source, work / "blob")
                (work / "record").write_text(json.dumps(CachedLayer.of(made, key).model_dump()), "utf-8")
                (work / "blob").replace(blob)  # not settled on the disk: what a power failure damages is made anew
                (work / "record").replace(record)
            self._shrink(record)
        except OSError as fault:
            log.warning("%s: the layer is not kept for the next build: %s", self._folder, fault.strerror)

    def _places(self, key: str) -> tuple[Path, Path]:
        """Return where the record and the blob of a layer are, or would be."""
        folder = self._folder / "layers" / key[:2]
        return folder / f"{key}.json", folder / f"{key}.blob"

    def _shrink(self, newest: Path) -> None:
        """Remove the entries that were not used for the longest time, but never the newest one."""
        used: list[tuple[float, int, Path]] = []
        for record in (self._folder / "layers").glob("*/*.json"):
            with suppress(FileNotFoundError):  # another build removes entries as well
                used.append((record.stat().st_mtime, record.with_suffix(".blob").stat().st_size, record))
        total = sum(size for _, size, _ in used)
        for _, size, record in sorted(used):
            if total <= self._most_bytes:
                return
            if record != newest:
                record.unlink(missing_ok=True)
                record.with_suffix(".blob").unlink(missing_ok=True)
                total -= size


def _copy_verified(blob: Path, target: Path, known: CachedLayer) -> None:
    """Copy a blob, and check its size and digest on the way.

    Raises:
        InputError: the blob is missing, or is not what its record says.
    """
    digest, left = hashlib.sha256(), known.size
    try:
        source = blob.open("rb")
    except OSError as cause:
        raise InputError(f"{cause.strerror}") from cause
    with source, target.open("xb") as sink:
        while piece := source.read(_CHUNK):
            digest.update(piece)
            sink.write(piece)
            left -= len(piece)
    if left or f"sha256:{digest.hexdigest()}" != known.digest:
        raise InputError(f"its digest is sha256:{digest.hexdigest()}")
