"""Read an image layout that may be in a tar archive, which is not trusted::

    with opened_layout(Path("linux.oci.tar")) as layout:
        layout.index()

Archives of ``docker save`` since version 25, and those that imgkit writes for Docker, have a layout in them, so they
are read as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from imgkit.errors import HostError, InputError
from imgkit.host import lookup, scratch
from imgkit.oci.descriptors import is_digest
from imgkit.oci.documents import MAX_DOCUMENT
from imgkit.oci.ocilayout import MARKER, OciLayout
from imgkit.tree import tarstream
from imgkit.tree.tarstream import TarError, TarStream

_MOST_FILES = 10_000  # an index of 1,000 manifests with 8 layers each
_CHUNK = 1 << 20
_DOCUMENTS = (MARKER, "index.json")
_IGNORED = ("manifest.json", "repositories")  # for docker load
_DOCKER_HINT = "skopeo copy docker-archive:FILE oci:FOLDER makes a layout of an archive of Docker"


@contextmanager
def opened_layout(path: Path) -> Iterator[OciLayout]:
    """Open a layout: a folder, or an archive that is unpacked for the block.

    Raises:
        InputError: there is no such file, it cannot be looked up, or it is neither a layout nor an archive of one.
        HostError: there is no space for unpacking.
    """
    if not lookup.is_file(path, InputError):
        yield OciLayout.open(path)
        return
    with scratch.folder() as folder:
        yield unpack_archive(path, folder / "layout")


def unpack_archive(path: Path, folder: Path) -> OciLayout:
    """Unpack an archive of a layout into a new folder. Every blob has the digest that is its name.

    Raises:
        InputError: the archive is damaged, has no layout in it, or files that no layout has.
        HostError: the folder cannot be written.
    """
    try:
        layout = OciLayout.create(folder)
        (folder / MARKER).unlink()
        with path.open("rb") as source:
            _unpack(TarStream(iter(lambda: source.read(_CHUNK), b"")), layout)
    except (TarError, InputError) as cause:
        raise InputError(f"{path}: {cause}", hint=getattr(cause, "hint", None)) from cause
    except OSError as cause:
        raise HostError(f"{cause.filename or folder}: {cause.strerror}") from cause
    return OciLayout.open(folder)


def _unpack(stream: TarStream, layout: OciLayout) -> None:
    for number, header in enumerate(stream):
        if number == _MOST_FILES:
            raise InputError(f"has more than {_MOST_FILES} files")
        if header.kind == tarstream.DIRECTORY:
            continue
        name = header.name.removeprefix("./")
        if header.kind != tarstream.REGULAR:
            raise InputError(f"{name!r} is not a file", hint=_DOCKER_HINT)
        _unpack_file(name, stream, layout)
    for document in _DOCUMENTS:
        if not (layout.folder / document).is_file():
            raise InputError(f"is not an OCI image layout (it has no file {document})", hint=_DOCKER_HINT)


def _unpack_file(name: str, stream: TarStream, layout: OciLayout) -> None:
    if name in _DOCUMENTS:
        (layout.folder / name).write_bytes(stream.read(MAX_DOCUMENT))
        return
    if name in _IGNORED:
        return
    folder, _, rest = name.partition("/")
    digest = rest.replace("/", ":", 1)
    if folder != "blobs" or not is_digest(digest):
        raise InputError(f"{name[:120]!r} is not a file of an OCI image layout", hint=_DOCKER_HINT)
    place = layout.path(digest)
    if place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("xb") as sink:
        actual = _copy(stream, sink, digest.partition(":")[0])
    if actual != digest:
        raise InputError(f"{name}: has the digest {actual}: the blob is damaged")


def _copy(stream: TarStream, sink: BinaryIO, algorithm: str) -> str:
    """Write the contents of a member to a file; return their digest."""
    digest = hashlib.new(algorithm)
    for piece in stream.content():
        digest.update(piece)
        sink.write(piece)
    return f"{algorithm}:{digest.hexdigest()}"
