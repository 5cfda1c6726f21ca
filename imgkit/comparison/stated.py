"""Snapshots of files that describe images: manifests and lock files. Neither is trusted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from imgkit.apk.index import Package
from imgkit.comparison.snapshot import PackageState, Snapshot
from imgkit.errors import InputError
from imgkit.host.jsonfile import StrictModel, checked
from imgkit.image.manifest import read_manifest
from imgkit.planning import lockfile
from imgkit.planning.schemas import LockedArchitecture, Short, Size
from imgkit.verification import statement
from imgkit.verification.contents import with_one_leader


class _Release(StrictModel):
    branch: Short = ""
    version: Short = ""


class _Package(StrictModel):
    """A package of a manifest. Manifests of earlier versions have no ``paths``."""

    name: Short
    version: Short
    identity: Short = ""
    origin: Short = ""
    paths: list[str] | None = None


class _Image(StrictModel):
    size: Size | None = None
    virtualSize: Size | None = None  # noqa: N815 - as it is in the file


class _Contents(StrictModel):
    """What a comparison reads of a manifest besides files, map and boot files, which ``statement`` reads."""

    arch: Short = ""
    name: Short = ""
    buildId: Short = ""  # noqa: N815 - as it is in the file
    imgkit: Short = ""
    alpine: _Release = _Release()
    kernel: Short | None = None
    kernelArguments: list[str] | None = None  # noqa: N815 - as it is in the file
    recipe: dict[str, Any] | None = None
    world: list[str] = Field(default_factory=list)
    packages: list[_Package] = Field(default_factory=list)
    image: _Image = _Image()
    container: dict[str, Any] | None = None


def of_manifest(path: Path) -> Snapshot:
    """Return the snapshot of a manifest.

    Raises:
        InputError: the file is missing, or is not a manifest.
    """
    manifest = read_manifest(path)
    files = with_one_leader(statement.parse(manifest, path).files)
    stated = checked(_Contents, manifest, path, description="a manifest of imgkit")
    facts = {
        "name": stated.name,
        "buildId": stated.buildId,
        "imgkit": stated.imgkit,
        "branch": stated.alpine.branch,
        "version": stated.alpine.version,
        "kernel": stated.kernel,
        "kernelArguments": without_root(stated.kernelArguments),
        "virtualSize": stated.image.virtualSize,
        "world": sorted(stated.world),
        **{f"recipe.{name}": value for name, value in (stated.recipe or {}).items()},
    }
    return Snapshot(
        source=path,
        kind="manifest",
        arch=stated.arch,
        shape="disk" if stated.container is None else "container",
        facts={name: value for name, value in facts.items() if value is not None},
        image_size=stated.image.size,
        packages={
            package.name: PackageState(package.version, package.identity, package.origin) for package in stated.packages
        },
        files=files,
        owners=_owners(stated.packages),
    )


def _owners(packages: Sequence[_Package]) -> dict[str, str] | None:
    """Return path → package; None for a manifest of an earlier version, which does not say."""
    if all(package.paths is None for package in packages):
        return None
    return {path: package.name for package in packages for path in package.paths or ()}


def without_root(arguments: Sequence[str] | None) -> list[str] | None:
    """Return the arguments of a kernel without the UUID of its root, which differs between any two builds."""
    return None if arguments is None else [word for word in arguments if not word.startswith("root=")]


def of_lock(path: Path) -> list[Snapshot]:
    """Return a snapshot for each root filesystem that a lock file has.

    Raises:
        InputError: the file is missing or is not a lock file.
    """
    return [_of_entry(path, name, entry) for name, entry in lockfile.entries(path).items()]


def _of_entry(path: Path, name: str, entry: Mapping[str, Any]) -> Snapshot:
    arch, _, shape = name.partition("/")
    if shape not in ("", "container"):
        raise InputError(f"{path}: the entry {name[:40]!r} is for nothing that imgkit makes")
    locked = checked(LockedArchitecture, entry, f"{path}: {name[:40]}", description="a lock file of imgkit")
    return Snapshot(
        source=path,
        kind="lock file",
        arch=arch,
        shape="container" if shape else "disk",
        facts={"branch": locked.branch, "version": locked.version, "world": sorted(locked.world)},
        packages=states(planned.package for planned in locked.install),
    )


def states(packages: Iterable[Package]) -> dict[str, PackageState]:
    """Return what is compared of packages, by name."""
    return {package.name: PackageState(package.version, package.identity, package.origin) for package in packages}


def renamed(snapshot: Snapshot, image: Path) -> Snapshot:
    """Return the snapshot of a manifest as that of the disk image that it describes."""
    return replace(snapshot, source=image, kind="disk image")
