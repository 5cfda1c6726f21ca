"""The manifest: what an image is and what it is made of, written beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgkit import __version__
from imgkit.disk.layout import Layout
from imgkit.disk.regions import DiskMap
from imgkit.fetch.cache import hash_file
from imgkit.host.jsonfile import checked, read_json
from imgkit.planning.plan import Plan
from imgkit.planning.schemas import Manifest
from imgkit.recipe import Recipe
from imgkit.rootfs.binaries.examine import BinaryFindings
from imgkit.rootfs.compose import Composition

VERSION = 1
MAX_SIZE = 32 << 20
"""Bytes of a manifest that are read at most. A path takes about 250, so there is room for 130,000 paths; the images of
today have up to 5,000. A million would need 250 MB, and reading what somebody made of that size takes gigabytes of
memory, since a value takes up to twelve times its bytes."""


def boot_names(recipe: Recipe, arch: str) -> tuple[str, str]:
    """The file names of the kernel and the initramfs that lie beside an image, for booting without firmware."""
    return f"vmlinuz-{recipe.kernel}-{arch}", f"initramfs-{recipe.kernel}-{arch}"


@dataclass(frozen=True)
class Made:
    """What a build made: the disk as it was mapped, the files of its EFI system partition, and the files in ``out``.

    Attributes:
        image: the compressed image, to be hashed; likewise ``kernel`` and ``initramfs``, which lie beside it.
    """

    disk: DiskMap
    esp: Mapping[str, bytes]
    image: Path
    kernel: Path
    initramfs: Path


def describe(recipe: Recipe, plan: Plan, made: Composition, layout: Layout, results: Made) -> dict[str, Any]:
    """The manifest of a finished image, ready for JSON."""
    names = boot_names(recipe, plan.arch)
    scripts = made.scripts
    return {
        "manifest": VERSION,
        "imgkit": __version__,
        "name": recipe.name,
        "arch": plan.arch,
        "buildId": made.build_id,
        "image": {
            "sha256": hash_file(results.image),
            "size": results.image.stat().st_size,
            "virtualSize": layout.size_bytes,
        },
        "boot": {"kernel": _file(names[0], results.kernel), "initramfs": _file(names[1], results.initramfs)},
        "alpine": {"branch": plan.branch, "version": plan.version},
        "minirootfs": _artefact(plan.minirootfs),
        "indexes": [_artefact(index) for index in plan.indexes],
        "world": sorted(plan.world),
        "packages": [
            {
                "name": each.package.name,
                "version": each.package.version,
                "identity": each.package.identity,
                "license": each.package.license,
                "origin": each.package.origin,
                "url": each.url,
                **({"sha256": each.sha256} if each.sha256 else {"from": "minirootfs"}),
            }
            for each in plan.packages
        ],
        "scripts": {
            "computed": [{"script": f"{ran.package}.{ran.kind}", "status": ran.outcome.status} for ran in scripts.ran],
            "inAppliance": [f"{each.package}.{each.kind}" for each in scripts.pending],
            "skipped": list(scripts.skipped),
        },
        "payload": {"policy": recipe.payload_binaries, **_binaries(made.binaries)},
        "kernel": made.kernel.release,
        "disk": {
            "guid": layout.disk_guid,
            "partitions": [
                {"number": part.number, "kind": part.kind, "uuid": part.uuid, "start": part.start, "size": part.size,
                 "filesystem": part.filesystem, "fsUuid": part.fs_uuid}
                for part in layout.partitions
            ],
        },
        "esp": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            for name, data in results.esp.items()
        },
        "map": results.disk.to_json(),
        "files": made.records,
    }  # fmt: skip


def _binaries(found: BinaryFindings) -> dict[str, Any]:
    """The payload's programs and modules that cannot run in the image. With ``prune`` the first are not in it."""
    return {
        "otherPlatforms": [
            {"path": f"/{each.path}", "size": each.size, "platform": each.platform} for each in found.foreign
        ],
        "missingLibraries": [{"path": f"/{each.path}", "library": each.library} for each in found.missing_libraries],
        "doubtful": [{"path": f"/{each.path}", "problem": each.problem} for each in found.doubtful],
    }


def _artefact(artefact: Any) -> dict[str, Any]:
    return {
        "url": artefact.url,
        "size": artefact.size,
        "sha256": artefact.sha256,
        "vouchedBy": artefact.vouched_by,
    }


def _file(name: str, path: Path) -> dict[str, Any]:
    return {"name": name, "sha256": hash_file(path), "size": path.stat().st_size}


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        InputError: the file is missing, or it is not a manifest.
    """
    manifest: dict[str, Any] = read_json(
        path, MAX_SIZE, hint="a build puts the manifest beside the image", raw_names=True
    )
    checked(Manifest, manifest, path, what="a manifest of imgkit")
    return manifest
