"""What ``imgkit inspect`` says of a container image: its platforms, how it is started, its layers and packages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from imgkit.cli.imagepaths import split_reference
from imgkit.host import scratch
from imgkit.oci.applying import ImageRoot, tree_of
from imgkit.oci.choosing import all_images, layout_entries
from imgkit.oci.descriptors import Descriptor
from imgkit.oci.ocilayout import OciLayout
from imgkit.oci.unpacking import opened_layout
from imgkit.rootfs.install import installed_in


@dataclass(frozen=True)
class ListedLayer:
    """A layer; ``size`` is that of its blob, in bytes. ``reason`` is what the history says of it, perhaps nothing."""

    digest: str
    size: int
    reason: str


@dataclass(frozen=True)
class ListedImage:
    """The image of one platform. The fields are those of the JSON object.

    Attributes:
        digest: of its manifest.
        files: number of files, directories and links.
        privileged: paths of programs that are set-user-id or set-group-id, or have capabilities.
        packages: ``name-version`` of Alpine's packages.
    """

    platform: str
    digest: str
    created: str
    entrypoint: list[str]
    command: list[str]
    env: list[str]
    user: str
    workdir: str
    labels: dict[str, str]
    layers: list[ListedLayer]
    files: int
    privileged: list[str]
    packages: list[str]

    def to_json(self) -> dict[str, object]:
        """Return the image as a value for :func:`json.dumps`."""
        return asdict(self)


def read_images(path: Path) -> list[ListedImage]:
    """Read every image of a layout or of an archive of one, or those of ``LAYOUT:TAG``. All blobs are verified.

    Raises:
        InputError: it is not a layout, or something in it is missing, damaged or more than the limits allow.
    """
    place, tag = split_reference(path)
    with opened_layout(place) as layout:
        return [_read_image(layout, image) for image in all_images(layout, layout_entries(layout, tag))]


def _read_image(layout: OciLayout, image: Descriptor) -> ListedImage:
    with scratch.folder() as folder:
        root = tree_of(layout, image, folder / "contents")
        packages = sorted(str(record.package) for record in installed_in(root.tree))
    runtime = root.config.runtime
    return ListedImage(
        platform=str(image.platform),
        digest=image.digest,
        created=root.config.created or "",
        entrypoint=runtime.Entrypoint or [],
        command=runtime.Cmd or [],
        env=runtime.Env or [],
        user=runtime.User or "",
        workdir=runtime.WorkingDir or "",
        labels=runtime.Labels or {},
        layers=_layers(root),
        files=len(root.tree),
        privileged=[f"/{path}" for path in root.privileged],
        packages=packages,
    )


def _layers(root: ImageRoot) -> list[ListedLayer]:
    reasons = [entry.created_by or "" for entry in root.config.history or () if not entry.empty_layer]
    if len(reasons) != len(root.layers):
        reasons = [""] * len(root.layers)
    return [ListedLayer(layer.digest, layer.size, reason) for layer, reason in zip(root.layers, reasons, strict=True)]


def text(path: Path, images: Sequence[ListedImage]) -> str:
    """Return the images as tables."""
    lines = [f"{path}: {len(images)} {'image' if len(images) == 1 else 'images'}"]
    for image in images:
        lines += ["", *_table(image)]
    return "\n".join(lines)


def _table(image: ListedImage) -> list[str]:
    facts = {
        "digest": image.digest,
        "created": image.created,
        "entrypoint": " ".join(image.entrypoint),
        "command": " ".join(image.command),
        "user": image.user or "root",
        "workdir": image.workdir,
        "set-id": " ".join(image.privileged),
    }
    lines = [image.platform, *(f"{name:<12} {value}" for name, value in facts.items() if value)]
    lines += ["", f"{'size':>12}  layer"]
    lines += [f"{layer.size / 1e6:9.1f} MB  {layer.digest[:19]}  {layer.reason[:60]}" for layer in image.layers]
    return [*lines, "", f"{image.files} files, {len(image.packages)} packages", *_wrapped(image.packages)]


def _wrapped(words: Sequence[str]) -> list[str]:
    """Return words in lines of at most 100 characters, each of which begins with two blanks."""
    lines = [" "]
    for word in words:
        if len(lines[-1]) + len(word) > 98:
            lines.append(" ")
        lines[-1] += f" {word}"
    return lines if words else []
