"""Write the layers of a container image into a layout, compressed, or taken from the cache of layers::

writer = LayerWriter(layout, cache=LayerCache(folder))
layer = writer.write(changes(before, after), reason="payload", created=epoch)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType

from imgkit.errors import HostError, InputError
from imgkit.host import progress, scratch
from imgkit.host.room import no_room
from imgkit.oci.compression import Compression, LayerBlob, compress
from imgkit.oci.documents import HistoryEntry, ImageConfig, ImageManifest
from imgkit.oci.layercache import LayerCache, layer_key
from imgkit.oci.layerchanges import LayerChanges
from imgkit.oci.ocilayout import OciLayout
from imgkit.tree import TreeError
from imgkit.tree.tarwriter import archive

_NO_HASHES: Mapping[str, str] = MappingProxyType({})
_TOOL = "imgkit"


@dataclass(frozen=True)
class ImageLayer:
    """A layer of an image and its entry in the history. ``blob`` is None for an entry that changed no files."""

    blob: LayerBlob | None
    history: HistoryEntry


class LayerWriter:
    """Writes layers into a layout.

    Args:
        cache: where compressed layers are kept for the next build; None keeps none.
        threads: that compress; by default one for each processor. The bytes do not depend on it.
    """

    def __init__(
        self,
        layout: OciLayout,
        compression: Compression | None = None,
        *,
        cache: LayerCache | None = None,
        threads: int | None = None,
    ) -> None:
        self._layout = layout
        self._compression = compression or Compression()
        self._cache = cache
        self._threads = threads

    def write(
        self, layer: LayerChanges, *, reason: str, created: int, hashes: Mapping[str, str] = _NO_HASHES
    ) -> ImageLayer:
        """Write a layer. A layer without entries becomes an entry of the history without a blob.

        Args:
            reason: what the layer is, in a few words; ``docker history`` shows it.
            created: seconds since 1970 for the history.
            hashes: the SHA-256 of contents that are known, in hex, by path. Others are read twice if there is a cache.

        Raises:
            InputError: an entry cannot be in a tar archive, or a file on the host has become shorter.
            HostError: a file on the host cannot be read, or the layout cannot be written.
            OSError: the disk is full.
        """
        history = HistoryEntry(
            created=rfc3339(created), created_by=reason, comment=_TOOL, empty_layer=not layer.entries
        )
        if not layer.entries:
            return ImageLayer(None, history)
        with self._errors(), scratch.folder(self._layout.folder, ".imgkit-") as work:
            blob = self._blob(layer, reason, hashes, work / "layer")
            self._layout.adopt(work / "layer", blob.descriptor)
        return ImageLayer(blob, history)

    def _blob(self, layer: LayerChanges, reason: str, hashes: Mapping[str, str], target: Path) -> LayerBlob:
        if self._cache is None:
            return self._compressed(layer, reason, target)
        key = layer_key(layer, self._compression, hashes)
        if (cached := self._cache.take(key, self._compression, target)) is not None:
            return cached
        blob = self._compressed(layer, reason, target)
        self._cache.store(key, blob, target)
        return blob

    def _compressed(self, layer: LayerChanges, reason: str, target: Path) -> LayerBlob:
        with progress.bar(layer.content_size, f"compressing: {reason}") as bar:

            def pieces() -> Iterator[memoryview]:
                for piece in archive(layer.entries):
                    yield piece
                    bar.update(len(piece))

            return compress(pieces(), target, self._compression, threads=self._threads)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (TreeError, EOFError) as cause:
            raise InputError(str(cause)) from cause
        except OSError as cause:
            if no_room(cause):
                raise
            raise HostError(f"{cause.filename or self._layout.folder}: {cause.strerror}") from cause


def layers_of(manifest: ImageManifest, config: ImageConfig) -> list[ImageLayer]:
    """Return the layers of an image, to be used as they are below those of another image.

    A history that does not fit the layers is left out, since engines refuse images where it does not.

    Raises:
        InputError: the image has more layers than diff ids, or fewer.
    """
    diff_ids = config.rootfs.diff_ids
    if len(diff_ids) != len(manifest.layers):
        raise InputError(f"the image has {len(manifest.layers)} layers and {len(diff_ids)} diff ids")
    blobs = [LayerBlob(layer.value, diff_id) for layer, diff_id in zip(manifest.layers, diff_ids, strict=True)]
    history = list(config.history or ())
    if sum(not entry.empty_layer for entry in history) != len(blobs):
        history = [HistoryEntry(comment="layer of the base image")] * len(blobs)
    rest = iter(blobs)
    return [ImageLayer(None if entry.empty_layer else next(rest), entry) for entry in history]


def rfc3339(time: int) -> str:
    """Return a time as documents of images have it: ``2026-01-31T12:00:00Z``."""
    return datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
