"""Snapshots of images: of disks that an engine reads, and of container images.

Images are not trusted. The manifest beside a disk is used if the disk is the very file that was built, since reading
the manifest takes no appliance; otherwise the disk is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, TypeAlias

from imgkit.apk.database import parse_installed
from imgkit.comparison.snapshot import Snapshot
from imgkit.comparison.stated import of_manifest, renamed, states, without_root
from imgkit.disk.grub import arguments_in
from imgkit.engines.imagefile import ImageInfo
from imgkit.engines.limits import Limits
from imgkit.engines.reading import ImageReader
from imgkit.errors import InputError
from imgkit.host import scratch
from imgkit.image.imagepaths import split_reference
from imgkit.image.manifest import read_manifest
from imgkit.oci.applying import tree_of
from imgkit.oci.choosing import all_images, layout_entries
from imgkit.oci.descriptors import Descriptor
from imgkit.oci.documents import RuntimeConfig
from imgkit.oci.ocilayout import OciLayout
from imgkit.oci.unpacking import opened_layout
from imgkit.rootfs.digest import records
from imgkit.rootfs.install import installed_in, world_in
from imgkit.rootfs.owners import owners_of
from imgkit.tree import File, Tree
from imgkit.verification import statement
from imgkit.verification.beside import is_as_built, manifest_of
from imgkit.verification.contents import LOST_AND_FOUND, ArchivedFiles, read_archive, with_one_leader

OpenImage: TypeAlias = Callable[[Path, Limits], AbstractContextManager[ImageReader]]
"""Opens a disk image for reading: image, limits → reader."""

_DATABASES = ("/lib/apk/db/installed", "/usr/lib/apk/db/installed")
_GRUB = "/boot/grub/grub.cfg"
_RELEASE = "/etc/imgkit-release"
_ALPINE = "/etc/alpine-release"
_WORLD = "/etc/apk/world"
_MODULES = "/lib/modules/"


def of_disk(image: Path, info: ImageInfo, limits: Limits, open_image: OpenImage) -> Snapshot:
    """Return the snapshot of a disk image.

    Args:
        open_image: called if the image is not the very file that the manifest beside it describes.

    Raises:
        InputError: the image cannot be read (UnreadableImageError), or reading it exceeds the limits (LimitError).
        HostError: the host lacks a program, a kernel or space.
    """
    with suppress(InputError):  # without a manifest that can be used, the image is read
        beside = manifest_of(image)
        built = statement.parse(read_manifest(beside), beside).image
        if built is not None and is_as_built(image, built):
            return renamed(of_manifest(beside), image)
    with open_image(image, limits) as reader:
        pieces = reader.archive("root").pieces()
        found = read_archive(pieces, limits.deadline, (*_DATABASES, _GRUB, _RELEASE, _ALPINE, _WORLD))
    return _of_files(image, info, found)


def _of_files(image: Path, info: ImageInfo, found: ArchivedFiles) -> Snapshot:
    files = {path: record for path, record in found.records.items() if path not in LOST_AND_FOUND}
    database = next((found.kept[path] for path in _DATABASES if path in found.kept), b"")
    installed = parse_installed(database.decode(errors="surrogateescape"))
    release = _assignments(_text(found, _RELEASE))
    kernels = sorted({path[len(_MODULES) :].partition("/")[0] for path in files if path.startswith(_MODULES)})
    facts = {
        "name": release.get("IMGKIT_IMAGE"),
        "buildId": release.get("IMGKIT_BUILD_ID"),
        "version": _text(found, _ALPINE).strip(),
        "kernel": ", ".join(kernels) or None,
        "kernelArguments": without_root(arguments_in(_text(found, _GRUB))) if _GRUB in found.kept else None,
        "virtualSize": info.virtual_size,
        "world": sorted(_text(found, _WORLD).split()),
    }
    return Snapshot(
        source=image,
        kind="disk image",
        arch=release.get("IMGKIT_ARCH", ""),
        shape="disk",
        facts=_known(facts),
        image_size=image.stat().st_size,
        packages=states(record.package for record in installed),
        files=files,
        owners=owners_of(installed, lambda folder: _resolved(files, folder)),
    )


def _resolved(files: Mapping[str, Any], folder: str) -> str:
    """Return a folder with its first component resolved, as ``bin`` may be a link to ``usr/bin``."""
    first, slash, rest = folder.partition("/")
    target = files.get(f"/{first}", {}).get("target")
    return f"{target.strip('/')}{slash}{rest}" if isinstance(target, str) else folder


def _text(found: ArchivedFiles, path: str) -> str:
    return found.kept.get(path, b"").decode(errors="replace")


def _assignments(text: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition("=") for line in text.splitlines())}


def _known(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value not in (None, "")}


def of_container(image: Path) -> list[Snapshot]:
    """Return a snapshot for each image of a layout or an archive, or of ``LAYOUT:TAG``. All blobs are verified.

    Raises:
        InputError: it is not a layout, or something in it is missing, damaged or more than the limits allow.
    """
    place, tag = split_reference(image)
    with opened_layout(place) as layout:
        return [_of_image(image, layout, entry) for entry in all_images(layout, layout_entries(layout, tag))]


def _of_image(source: Path, layout: OciLayout, image: Descriptor) -> Snapshot:
    with scratch.folder() as folder:
        root = tree_of(layout, image, folder / "contents")
        tree, installed = root.tree, installed_in(root.tree)
        release = _assignments(_file(tree, _RELEASE))
        return Snapshot(
            source=source,
            kind="container image",
            arch="" if image.platform is None else image.platform.architecture,
            shape="container",
            facts={
                **_known({"name": release.get("IMGKIT_IMAGE"), "buildId": release.get("IMGKIT_BUILD_ID")}),
                **_known({"version": _file(tree, _ALPINE).strip()}),
                "world": sorted(world_in(tree)),
                **_settings(root.config.runtime),
            },
            image_size=sum(layer.size for layer in root.layers),
            packages=states(record.package for record in installed),
            files=with_one_leader(records(tree)),
            owners=owners_of(installed, tree.resolve),
        )


def _settings(runtime: RuntimeConfig) -> dict[str, Any]:
    """Return how the image's program is run, with the defaults of engines."""
    return {
        "entrypoint": list(runtime.Entrypoint or ()),
        "command": list(runtime.Cmd or ()),
        "env": sorted(runtime.Env or ()),
        "user": runtime.User or "root",
        "workdir": runtime.WorkingDir or "/",
        "labels": dict(sorted((runtime.Labels or {}).items())),
    }


def _file(tree: Tree, path: str) -> str:
    node = tree.stat(path[1:])
    return tree.read(path[1:], 1 << 20).decode(errors="replace") if isinstance(node, File) else ""
