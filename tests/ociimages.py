"""Container images for tests: layers from a few lines, and layouts that hold them."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import zstandard

from imgkit.oci import mediatypes
from imgkit.oci.descriptors import Descriptor, Platform, digest_of
from imgkit.oci.ocilayout import OciLayout, to_json

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64", "v8")
WINDOWS_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


@dataclass(frozen=True)
class Entry:
    """An entry of a layer: a regular file unless ``kind`` says otherwise."""

    name: str
    data: bytes = b""
    kind: bytes = tarfile.REGTYPE
    mode: int = 0o644
    link: str = ""
    uid: int = 0
    mtime: int = 0
    xattrs: Mapping[str, str] | None = None
    device: tuple[int, int] = (0, 0)

    @property
    def info(self) -> tarfile.TarInfo:
        """The header of the entry."""
        info = tarfile.TarInfo(self.name)
        info.type, info.mode, info.uid, info.mtime, info.linkname = (
            self.kind,
            self.mode,
            self.uid,
            self.mtime,
            self.link,
        )
        info.size = len(self.data)
        info.devmajor, info.devminor = self.device
        info.pax_headers = {f"SCHILY.xattr.{name}": value for name, value in (self.xattrs or {}).items()}
        return info


def folder(name: str, mode: int = 0o755, uid: int = 0) -> Entry:
    """Return a directory."""
    return Entry(name, kind=tarfile.DIRTYPE, mode=mode, uid=uid)


def symlink(name: str, target: str) -> Entry:
    """Return a symbolic link."""
    return Entry(name, kind=tarfile.SYMTYPE, link=target, mode=0o777)


def hard(name: str, target: str, mode: int = 0o644, uid: int = 0) -> Entry:
    """Return a hard link."""
    return Entry(name, kind=tarfile.LNKTYPE, link=target, mode=mode, uid=uid)


def tar(*entries: Entry | str) -> bytes:
    """Return a layer that is not compressed; a text stands for an empty file of that name."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            entry = Entry(entry) if isinstance(entry, str) else entry
            archive.addfile(entry.info, io.BytesIO(entry.data))
    return sink.getvalue()


def gzipped(data: bytes) -> bytes:
    """Return ``data`` in two gzip members, as parallel compressors write them."""
    half = len(data) // 2
    return gzip.compress(data[:half], mtime=0) + gzip.compress(data[half:], mtime=0)


def zstandardized(data: bytes) -> bytes:
    """Return ``data`` in two zstd frames with a frame to be skipped between and behind them, as zstd:chunked has."""
    half, squeeze = len(data) // 2, zstandard.ZstdCompressor().compress
    skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    return squeeze(data[:half]) + skipped + squeeze(data[half:]) + skipped


COMPRESSIONS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "tar": (mediatypes.LAYER, lambda data: data),
    "gzip": (mediatypes.LAYER_GZIP, gzipped),
    "zstd": (mediatypes.LAYER_ZSTD, zstandardized),
}


@dataclass(frozen=True)
class ImageMaker:
    """Puts images into a layout.

    Attributes:
        compression: of layers, a key of :data:`COMPRESSIONS`.
        config: members of the image configuration that replace the usual ones.
        manifest: members of the manifest that replace the usual ones.
    """

    layout: OciLayout
    compression: str = "gzip"
    platform: Platform = AMD64
    config: Mapping[str, Any] | None = None
    manifest: Mapping[str, Any] | None = None

    def layer(self, data: bytes) -> Descriptor:
        """Add a layer, which is given as it is when it is not compressed."""
        media_type, compress = COMPRESSIONS[self.compression]
        return self.layout.add(media_type, compress(data))

    def image(self, *layers: bytes) -> Descriptor:
        """Add an image of these layers, which are not compressed; return the descriptor of its manifest."""
        return self.manifest_of([self.layer(layer) for layer in layers], [digest_of(layer) for layer in layers])

    def manifest_of(self, layers: Sequence[Descriptor], diff_ids: Sequence[str]) -> Descriptor:
        """Add the configuration and the manifest of an image whose layers are there."""
        config = {
            **self.platform.to_json(),
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
            "history": [{"created_by": f"layer {number}"} for number in range(len(layers))],
            **(self.config or {}),
        }
        described = self.layout.add(mediatypes.CONFIG, to_json(config))
        manifest = {
            "schemaVersion": 2,
            "mediaType": mediatypes.MANIFEST,
            "config": described.to_json(),
            "layers": [layer.to_json() for layer in layers],
            **(self.manifest or {}),
        }
        return replace(self.layout.add(mediatypes.MANIFEST, to_json(manifest)), platform=self.platform)


def maker(place: Path, **options: Any) -> ImageMaker:
    """Return a maker of images in a new layout at ``place``."""
    return ImageMaker(OciLayout.create(place), **options)


def sha512(data: bytes) -> str:
    """Return the other registered digest."""
    return f"sha512:{hashlib.sha512(data).hexdigest()}"
