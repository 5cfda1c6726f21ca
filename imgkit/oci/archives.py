"""Images as one file: an image layout in a tar archive, and the form of it that ``docker load`` reads.

    write_oci_archive(layout, Path("linux.oci.tar"))
    write_docker_archive(layout, manifest, Path("linux-amd64.docker.tar"), name="docker.io/library/linux:latest")

An OCI archive has the files of a layout. One for Docker has an image for one platform, and a file ``manifest.json``
beside the layout, as ``docker save`` writes it since version 25. Earlier versions of Docker, Podman and skopeo read
``manifest.json`` alone. Its members name the configuration and the layers, which all of them read compressed as well
(moby, ``image/tarexport/load.go``; containers/image, ``docker/internal/tarfile/src.go``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imgkit.errors import HostError, InputError
from imgkit.host.room import no_room
from imgkit.oci.descriptors import Descriptor
from imgkit.oci.documents import parse_manifest
from imgkit.oci.ocilayout import MARKER, MARKER_TEXT, OciLayout, index_json, to_json
from imgkit.oci.writing import name_annotations
from imgkit.tree import Content, Directory, File, Inline, Node, Slice
from imgkit.tree.tarwriter import archive

DOCKER_MANIFEST_FILE = "manifest.json"


def write_oci_archive(layout: OciLayout, target: Path) -> None:
    """Write a layout to a new file as a tar archive. Equal layouts make equal bytes.

    Raises:
        HostError: a file cannot be read or written.
        OSError: the disk is full.
    """
    folder = layout.folder
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    _write(target, {path.relative_to(folder).as_posix(): Slice(path, 0, path.stat().st_size) for path in paths})


def write_docker_archive(layout: OciLayout, image: Descriptor, target: Path, *, name: str | None = None) -> None:
    """Write the image of one manifest to a new file as ``docker load`` and ``podman load`` read it.

    Args:
        image: a manifest of the layout, not an index: an archive holds an image for one platform.
        name: the whole name that the image gets, with a tag: ``docker.io/library/linux:latest``; None for none.

    Raises:
        InputError: the layout lacks the manifest, or it is malformed.
        HostError: a file cannot be read or written.
        OSError: the disk is full.
    """
    manifest = parse_manifest(layout.read(image), image.digest)
    config, layers = manifest.config.value, [layer.value for layer in manifest.layers]
    docker: dict[str, Any] = {
        "Config": _blob(config),
        "RepoTags": [] if name is None else [name],
        "Layers": [_blob(layer) for layer in layers],
    }
    files: dict[str, Content] = {
        _blob(blob): Slice(layout.path(blob.digest), 0, blob.size) for blob in (image, config, *layers)
    }
    index = index_json([_named(image, name)], {})
    files["index.json"] = Inline(index)
    files[DOCKER_MANIFEST_FILE] = Inline(b"[" + to_json(docker) + b"]")
    files[MARKER] = Inline(MARKER_TEXT)
    _write(target, files)


def _named(image: Descriptor, name: str | None) -> Descriptor:
    return Descriptor(image.media_type, image.digest, image.size, image.platform, name_annotations(name))


def _blob(descriptor: Descriptor) -> str:
    return f"blobs/{descriptor.digest.replace(':', '/')}"


def _write(target: Path, files: dict[str, Content]) -> None:
    """Write an archive of files. Their owner is root, and their time is 0, so that only their bytes count."""
    try:
        with target.open("xb") as sink, _removed_on_failure(target):
            for piece in archive(_entries(files)):
                sink.write(piece)
    except EOFError as cause:
        raise InputError(f"{cause}") from cause
    except OSError as cause:
        if no_room(cause):
            raise
        raise HostError(f"{cause.filename or target}: {cause.strerror}") from cause


@contextmanager
def _removed_on_failure(target: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _entries(files: dict[str, Content]) -> Iterable[tuple[str, Node]]:
    """Yield the files and the folders that they are in, sorted."""
    folders = {folder.as_posix() for path in files for folder in Path(path).parents} - {"."}
    for path in sorted(folders | set(files)):
        yield path, File(content=files[path]) if path in files else Directory()
