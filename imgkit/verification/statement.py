"""What a manifest states of an image, checked: it comes from a file that may hold anything."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imgkit.disk.regions import DiskMap, MapError, parse_map
from imgkit.errors import InputError
from imgkit.rootfs.digest import NodeRecord

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,250}")
_ROLES = ("kernel", "initramfs")


@dataclass(frozen=True)
class StatedFile:
    """A file and what is in it. ``name`` is empty for the image, which may have any."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Statement:
    """What a manifest says.

    Attributes:
        image: the qcow2 file that was built; None in manifests that do not say.
        boot: "kernel" and "initramfs" → what lies beside the image.
        files: path → record, of the root filesystem.
        disk: what every byte of the disk is; None in manifests of earlier versions.
        esp: path → file, of the EFI system partition.
    """

    arch: str
    image: StatedFile | None
    boot: Mapping[str, StatedFile]
    files: Mapping[str, NodeRecord]
    disk: DiskMap | None
    esp: Mapping[str, StatedFile] = field(default_factory=dict)


def parse(manifest: Mapping[str, Any], path: Path) -> Statement:
    """What the manifest that was read from ``path`` states.

    Raises:
        InputError: it is damaged.
    """
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(each, dict) for each in files.values()):
        raise _bad(path, "its list of files is none")
    try:
        disk = parse_map(manifest["map"]) if "map" in manifest else None
    except MapError as cause:
        raise _bad(path, f"its map of the disk {cause}") from cause
    boot = _table(manifest.get("boot", {}), path)
    image = manifest.get("image")
    return Statement(
        arch=str(manifest.get("arch")),
        image=None if image is None else _file(image, "", path),
        boot={role: _named(boot[role], path) for role in _ROLES if role in boot},
        files=files,
        disk=disk,
        esp={name: _file(each, name, path) for name, each in _table(manifest.get("esp", {}), path).items()},
    )


def _table(body: object, path: Path) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise _bad(path, "a table in it is none")
    return body


def _named(body: object, path: Path) -> StatedFile:
    name = body.get("name") if isinstance(body, dict) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _bad(path, "a file beside the image has no proper name")
    return _file(body, name, path)


def _file(body: object, name: str, path: Path) -> StatedFile:
    if isinstance(body, dict):
        sha256, size = body.get("sha256"), body.get("size")
        if isinstance(sha256, str) and _SHA256.fullmatch(sha256) and type(size) is int:
            return StatedFile(name, sha256, size)
    raise _bad(path, "a file in it has no SHA-256 or no size")


def _bad(path: Path, what: str) -> InputError:
    return InputError(f"{path}: not a manifest of imgkit: {what}", hint="a build makes it, beside the image")
