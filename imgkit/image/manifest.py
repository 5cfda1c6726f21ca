"""The manifest of an image: a description of the image and its sources, in ``NAME.manifest.json`` beside it."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from imgkit import __version__
from imgkit.disk.grub import arguments_in
from imgkit.disk.layout import Layout
from imgkit.disk.regions import DiskMap
from imgkit.fetch.cache import hash_file
from imgkit.host.jsonfile import StrictModel, checked, read_json
from imgkit.image.buildid import ImageIdentity
from imgkit.image.outputfiles import OutputFiles
from imgkit.planning.localfolders import published_url
from imgkit.planning.plan import Artefact, ImageSource, Plan, PlannedPackage
from imgkit.planning.schemas import Sha256, Short, Size
from imgkit.recipe import ImageFormat, Recipe
from imgkit.rootfs.agentsettings import agent_settings
from imgkit.rootfs.binaries.examine import BinaryFindings
from imgkit.rootfs.compose import Composition
from imgkit.rootfs.install import ScriptReport
from imgkit.tree import Tree

if TYPE_CHECKING:
    from imgkit.planning.baseimage import BaseImage

VERSION = 1
MAX_SIZE = 32 << 20
"""The most bytes of a manifest that are read. A path takes about 250 bytes, so there is room for 130,000 paths; images
of today have up to 5,000. A limit of a million paths would be 250 MB, and reading a hostile file of that size takes
gigabytes of memory, since a value takes up to twelve times its bytes."""

_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode


class ComposedRoot(Protocol):
    """The part of a composition that every root filesystem has; see :class:`imgkit.rootfs.compose.Composition`."""

    @property
    def tree(self) -> Tree:
        """The whole root filesystem."""
        ...

    @property
    def scripts(self) -> ScriptReport:
        """The results of the packages' scripts."""
        ...

    @property
    def binaries(self) -> BinaryFindings:
        """Binaries of the payload that cannot run in the image."""
        ...


@dataclass(frozen=True)
class Outputs:
    """What a build made, before it is put into place.

    Attributes:
        names: what the files will be called.
        format: of the image file.
        engine: what wrote the disk, such as ``native``.
        disk: what every byte of the disk is.
        esp: path → contents of the files of the EFI system partition.
        image: the image file.
        kernel, initramfs: the files that will lie beside it, for booting without firmware.
    """

    names: OutputFiles
    format: ImageFormat
    engine: str
    disk: DiskMap
    esp: Mapping[str, bytes]
    image: Path
    kernel: Path
    initramfs: Path


class ManifestFile(StrictModel):
    """The image, or a file beside it. Keys may be missing here; readers refuse a file that lacks what they need."""

    name: Short | None = None
    sha256: Sha256 | None = None
    size: Size | None = None


class ManifestAgent(StrictModel):
    """The agent that answers prompts. Manifests of earlier versions do not state it."""

    payload: bool
    command: str | None


class Manifest(StrictModel):
    """The keys that ``publish`` reads.

    ``verify`` compares an image with everything in it, which :mod:`imgkit.verification.statement` checks.
    """

    manifest: int | None = None
    arch: Short | None = None
    buildId: Short | None = None  # noqa: N815 - as it is in the file
    image: ManifestFile | None = None
    boot: dict[Short, ManifestFile] | None = None
    agent: ManifestAgent | None = None
    files: dict[str, dict[str, Any]]


def describe(
    recipe: Recipe,
    plan: Plan,
    composition: Composition,
    identity: ImageIdentity,
    layout: Layout,
    outputs: Outputs,
    image: BaseImage | None = None,
) -> dict[str, Any]:
    """Return the manifest of an image, ready for JSON, except for the file of the image (:func:`describe_file`).

    Args:
        image: the container image that it starts from; None for the minirootfs.
    """
    names = outputs.names
    return {
        **describe_root(recipe, plan, composition, identity, image),
        "engine": outputs.engine,
        "boot": {
            "kernel": _file(names.kernel, outputs.kernel),
            "initramfs": _file(names.initramfs, outputs.initramfs),
        },
        "kernel": composition.kernel.release,
        "kernelArguments": arguments_in(composition.tree.text("boot/grub/grub.cfg")),
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
            for name, data in outputs.esp.items()
        },
        "map": outputs.disk.to_json(),
    }  # fmt: skip


def describe_file(outputs: Outputs, layout: Layout) -> dict[str, Any]:
    """Return what the manifest says of the file of the image, which takes longest: all of it is hashed."""
    facts = _file(outputs.names.image, outputs.image)
    return {"image": {**facts, "format": outputs.format, "virtualSize": layout.size_bytes}}


def describe_root(
    recipe: Recipe, plan: Plan, composition: ComposedRoot, identity: ImageIdentity, image: BaseImage | None = None
) -> dict[str, Any]:
    """Return the part of a manifest that describes a root filesystem, for disks and container images."""
    scripts = composition.scripts
    paths: defaultdict[str, list[str]] = defaultdict(list)
    for path, package in identity.owners.items():
        paths[package].append(path)
    return {
        "manifest": VERSION,
        "imgkit": __version__,
        "name": recipe.name,
        "arch": plan.arch,
        "buildId": identity.build_id,
        "alpine": {"branch": plan.branch, "version": plan.version},
        "recipe": identity.facts["recipe"],
        "epoch": identity.facts["epoch"],
        **_base(plan.base, recipe, image),
        "indexes": [_artefact(index) for index in plan.indexes],
        "world": sorted(plan.world),
        "packages": [
            {**_package(planned, is_image=isinstance(plan.base, ImageSource)), "paths": paths[planned.package.name]}
            for planned in plan.packages
        ],
        "scripts": {
            "computed": [{"script": f"{ran.package}.{ran.kind}", "status": ran.outcome.status} for ran in scripts.ran],
            "inAppliance": [f"{pending.package}.{pending.kind}" for pending in scripts.pending],
            "skipped": list(scripts.skipped),
        },
        "agent": _agent(recipe, composition.tree),
        "payload": {"policy": recipe.payload_binaries, **_binaries(composition.binaries)},
        "files": identity.records,
    }


def _agent(recipe: Recipe, tree: Tree) -> dict[str, Any]:
    """Return the entry about what answers prompts: a payload, the command that agentd starts, or neither."""
    command = agent_settings(tree).get("AGENT_COMMAND")
    return {"payload": recipe.agent_runner is not None, "command": command or None}


def write_manifest(manifest: Mapping[str, Any], path: Path) -> None:
    """Write a manifest, with a line for each file and each package, so that two can be compared line by line.

    Bytes of file names that are not UTF-8 become escapes, which JSON has for everything.
    """
    write_encoded(encoded(manifest), path)


def encoded(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the JSON text of each value of a manifest."""
    return {key: _indented(value) for key, value in manifest.items()}


def write_encoded(texts: Mapping[str, str], path: Path) -> None:
    """Write a manifest whose values have been encoded (:func:`encoded`); see :func:`write_manifest`."""
    lines = (f" {_encode(key)}: {text}" for key, text in sorted(texts.items()))
    path.write_bytes(("{\n" + ",\n".join(lines) + "\n}\n").encode(errors="backslashreplace"))


def _indented(value: object) -> str:
    """Return a value as JSON, with each of its parts on a line of its own."""
    if isinstance(value, Mapping) and value:
        parts = [f"{_encode(key)}: {_encode(part)}" for key, part in sorted(value.items())]
        return "{\n  " + ",\n  ".join(parts) + "\n }"
    if isinstance(value, list) and value:
        return "[\n  " + ",\n  ".join(map(_encode, value)) + "\n ]"
    return _encode(value)


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        InputError: the file is missing, or is not a manifest.
    """
    manifest: dict[str, Any] = read_json(
        path, MAX_SIZE, hint="a build puts the manifest beside the image", raw_names=True
    )
    checked(Manifest, manifest, path, description="a manifest of imgkit")
    return manifest


def _package(planned: PlannedPackage, *, is_image: bool) -> dict[str, Any]:
    package = planned.package
    return {
        "name": package.name,
        "version": package.version,
        "identity": package.identity,
        "license": package.license,
        "origin": package.origin,
        "url": published_url(planned.url),
        **({"sha256": planned.sha256} if planned.sha256 else {"from": "base" if is_image else "minirootfs"}),
    }


def _binaries(findings: BinaryFindings) -> dict[str, Any]:
    """Return the entry about programs and modules of the payload that cannot run in the image.

    With the policy ``prune``, those for other platforms were removed from it.
    """
    return {
        "otherPlatforms": [
            {"path": f"/{binary.path}", "size": binary.size, "platform": binary.platform} for binary in findings.foreign
        ],
        "missingLibraries": [
            {"path": f"/{binary.path}", "library": binary.library} for binary in findings.missing_libraries
        ],
        "doubtful": [{"path": f"/{binary.path}", "problem": binary.problem} for binary in findings.doubtful],
    }


def _base(base: Artefact | ImageSource, recipe: Recipe, image: BaseImage | None) -> dict[str, Any]:
    """Return the entry about the minirootfs, or about the image that replaces it."""
    if isinstance(base, Artefact):
        return {"minirootfs": _artefact(base)}
    facts: dict[str, Any] = {
        "image": base.name,
        "digest": base.digest,
        "manifest": base.manifest,
        "vouchedBy": base.vouched_by,
    }
    if image is not None:
        facts["privileged"] = {"kept": recipe.base_setuid == "keep", "paths": [f"/{path}" for path in image.privileged]}
        facts["leftOut"] = [f"/{path}" for path in image.left_out]
    return {"base": facts}


def _artefact(artefact: Artefact) -> dict[str, Any]:
    return {
        "url": published_url(artefact.url),
        "size": artefact.size,
        "sha256": artefact.sha256,
        "vouchedBy": artefact.vouched_by,
    }


def _file(name: str, path: Path) -> dict[str, Any]:
    return {"name": name, "sha256": hash_file(path), "size": path.stat().st_size}
