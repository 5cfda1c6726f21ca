"""The statements of a manifest about an image. They are checked, since the file is not trusted."""

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
    """A file: its name (empty for the image, which may be renamed), its SHA-256 and its size in bytes."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Statement:
    """What a manifest says about an image.

    Attributes:
        arch: the architecture.
        image: the qcow2 file that was built; None if the manifest does not say (as in earlier versions).
        boot: "kernel" and "initramfs" → the file beside the image.
        files: path → record, of the root filesystem.
        disk: the hashes of every part of the disk; None in manifests of earlier versions.
        esp: path → file, of the EFI system partition.
        image_name: what the image file was called when it was built; empty in manifests of earlier versions.
    """

    arch: str
    image: StatedFile | None
    boot: Mapping[str, StatedFile]
    files: Mapping[str, NodeRecord]
    disk: DiskMap | None
    esp: Mapping[str, StatedFile] = field(default_factory=dict)
    image_name: str = ""


def parse(manifest: Mapping[str, Any], path: Path) -> Statement:
    """Check a manifest that was read from ``path``.

    Raises:
        InputError: the manifest is damaged.
    """
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(record, dict) for record in files.values()):
        raise _bad(path, "its list of files is missing or not valid")
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
        esp={name: _file(body, name, path) for name, body in _table(manifest.get("esp", {}), path).items()},
        image_name="" if image is None else _image_name(image.get("name", ""), path),
    )


def _image_name(name: object, path: Path) -> str:
    if name != "" and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise _bad(path, "the image has no valid name")
    return str(name)


def _table(body: object, path: Path) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise _bad(path, "a table in it is not valid")
    return body


def _named(body: object, path: Path) -> StatedFile:
    name = body.get("name") if isinstance(body, dict) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _bad(path, "a file beside the image has no valid name")
    return _file(body, name, path)


def _file(body: object, name: str, path: Path) -> StatedFile:
    if isinstance(body, dict):
        sha256, size = body.get("sha256"), body.get("size")
        if isinstance(sha256, str) and _SHA256.fullmatch(sha256) and type(size) is int:
            return StatedFile(name, sha256, size)
    raise _bad(path, "a file in it has no SHA-256 or no size")


def _bad(path: Path, fault: str) -> InputError:
    return InputError(f"{path}: not a manifest of imgkit: {fault}", hint="a build makes it, beside the image")
