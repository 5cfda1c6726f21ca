"""What is in an image: partitions, filesystems and packages of a disk; platforms, layers and packages of a container.

Nothing of the image is booted or run, and the image is not changed. Images are not trusted: what is read of them has
limits, and texts may hold anything::

    disk = imgkit.inspect("out/linux-amd64.qcow2")
    print([package.name for package in disk.packages], disk.root.used)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from imgkit.api.applianceoptions import appliance_options
from imgkit.apk.database import parse_installed
from imgkit.engines.engineerrors import LimitError
from imgkit.engines.guestfs.readback import open_image
from imgkit.engines.limits import DEFAULT_SECONDS, DEFAULT_SIZE, Limits
from imgkit.engines.reading import DiskDescription, ImageDescription
from imgkit.host import scratch
from imgkit.image.imagepaths import split_reference
from imgkit.oci.applying import ImageRoot, tree_of
from imgkit.oci.choosing import all_images, layout_entries
from imgkit.oci.descriptors import Descriptor
from imgkit.oci.ocilayout import OciLayout
from imgkit.oci.unpacking import opened_layout
from imgkit.rootfs.install import installed_in
from imgkit.vm.bootspec import StrPath

_FILE_LINES = re.compile(r"^(?:[FMRaZ]:.*\n)+", re.MULTILINE)
_MOST_LINES = 1 << 20  # all packages of a branch of Alpine together have about half as many


@dataclass(frozen=True)
class ListedPackage:
    """A package of the image; ``size`` is that of its files, in bytes."""

    name: str
    version: str
    size: int


@dataclass(frozen=True)
class DiskContents(DiskDescription):
    """What is in a disk image.

    Attributes:
        packages: in the order of their installation.
    """

    packages: tuple[ListedPackage, ...]


@dataclass(frozen=True)
class ListedLayer:
    """A layer; ``size`` is that of its blob, in bytes. ``reason`` is what the history says of it, perhaps nothing."""

    digest: str
    size: int
    reason: str


@dataclass(frozen=True)
class ContainerContents:
    """The container image of one platform.

    Attributes:
        digest: of its manifest.
        files: number of files, directories and links.
        privileged: paths of programs that are set-user-id or set-group-id, or have capabilities.
        packages: ``name-version`` of Alpine's packages.
    """

    platform: str
    digest: str
    created: str
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    env: tuple[str, ...]
    user: str
    workdir: str
    labels: Mapping[str, str]
    layers: tuple[ListedLayer, ...]
    files: int
    privileged: tuple[str, ...]
    packages: tuple[str, ...]


def inspect(image: StrPath, *, limit: int = DEFAULT_SIZE, timeout: float = DEFAULT_SECONDS) -> DiskContents:
    """Describe a disk image, which libguestfs' appliance reads.

    Args:
        image: a qcow2 or raw file.
        limit: bytes of a single file of the image that are read at most.
        timeout: seconds within which it must be read.

    Raises:
        InputError: the file is missing or is not an image that can be read (UnreadableImageError), or reading it
            exceeds the limits (LimitError).
        HostError: the appliance cannot be started on this host, or there is no space.
    """
    image = Path(image)
    with (
        scratch.folder() as folder,
        open_image(image, folder, appliance_options(), Limits(limit, timeout)) as reader,
    ):
        return _contents(image, reader.describe())


def _contents(image: Path, found: ImageDescription) -> DiskContents:
    records = parse_installed(_without_files(image, found.apk_installed))
    packages = (record.package for record in records)
    return DiskContents(
        **{field.name: getattr(found, field.name) for field in fields(DiskDescription)},
        packages=tuple(ListedPackage(package.name, package.version, package.installed_size) for package in packages),
    )


def _without_files(image: Path, database: str) -> str:
    """Return a package database without its lists of files, which are most of it.

    Raises:
        LimitError: the rest has more lines than the packages of any image.
    """
    records = _FILE_LINES.sub("", database)
    if records.count("\n") > _MOST_LINES:
        raise LimitError(f"{image}: its package database has more than {_MOST_LINES} lines besides lists of files")
    return records


def inspect_container(image: StrPath) -> tuple[ContainerContents, ...]:
    """Describe every image of a container image: one for each platform. All blobs are verified.

    Args:
        image: an OCI image layout, or an archive of one or of ``docker save``; ``LAYOUT:TAG`` for one tag of a layout.

    Raises:
        InputError: it is not a layout, or something in it is missing, damaged or more than the limits allow.
    """
    place, tag = split_reference(Path(image))
    with opened_layout(place) as layout:
        return tuple(_read_image(layout, entry) for entry in all_images(layout, layout_entries(layout, tag)))


def _read_image(layout: OciLayout, image: Descriptor) -> ContainerContents:
    with scratch.folder() as folder:
        root = tree_of(layout, image, folder / "contents")
        packages = tuple(sorted(str(record.package) for record in installed_in(root.tree)))
    runtime = root.config.runtime
    return ContainerContents(
        platform=str(image.platform),
        digest=image.digest,
        created=root.config.created or "",
        entrypoint=tuple(runtime.Entrypoint or ()),
        command=tuple(runtime.Cmd or ()),
        env=tuple(runtime.Env or ()),
        user=runtime.User or "",
        workdir=runtime.WorkingDir or "",
        labels=runtime.Labels or {},
        layers=_layers(root),
        files=len(root.tree),
        privileged=tuple(f"/{path}" for path in root.privileged),
        packages=packages,
    )


def _layers(root: ImageRoot) -> tuple[ListedLayer, ...]:
    reasons = [entry.created_by or "" for entry in root.config.history or () if not entry.empty_layer]
    if len(reasons) != len(root.layers):
        reasons = [""] * len(root.layers)
    pairs = zip(root.layers, reasons, strict=True)
    return tuple(ListedLayer(layer.digest, layer.size, reason) for layer, reason in pairs)
