"""The lock file of a recipe: its plans written down, so that a build can be repeated byte by byte.

It lies beside the recipe (``recipes/alpine.lock``), is JSON, and names everything relative to the mirror, so that any
mirror with the same files can be used. It also holds what the recipe asked for, so that a changed recipe is noticed.
:mod:`imgkit.planning.schemas` says what a lock file must look like::

    lockfile.write(lockfile.path_of(recipe_path), recipe, [plan])
    plan = lockfile.read(lockfile.path_of(recipe_path), recipe, "amd64")

The entry of a container image has ``/container`` after the name of its architecture.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from imgkit.apk.index import Repository, format_record
from imgkit.errors import HostError, InputError, RecipeError
from imgkit.host import lookup, wholefile
from imgkit.host.jsonfile import checked, read_json
from imgkit.planning.plan import Artefact, ImageSource, Plan, PlannedPackage
from imgkit.planning.schemas import Lock, LockedArchitecture, LockedFile, LockedImage, LockedPackage
from imgkit.recipe import SHAPES, Recipe, RepositorySpec, Shape
from imgkit.recipe.basereference import relative

VERSION = 1
_MAX_BYTES = 16 << 20  # two architectures of 400 packages take 1 MiB
_DESCRIPTION = "a lock file of imgkit"


def path_of(recipe: Path) -> Path:
    """Return where the lock file of a recipe is."""
    return recipe.with_suffix(".lock")


def write(path: Path, recipe: Recipe, plans: Iterable[Plan], kept: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Write the lock file of ``recipe``, in one move.

    Args:
        kept: entries for which there is no new plan, as :func:`others` returns them.

    Raises:
        InputError: the record of a package has text that is not UTF-8, which JSON cannot hold.
        HostError: the file cannot be written.
    """
    entries = {**kept, **{entry_name(plan.arch, plan.shape): _to_json(recipe, plan, path) for plan in plans}}
    lock = {"lock": VERSION, "architectures": dict(sorted(entries.items()))}
    try:
        data = (json.dumps(lock, indent=1, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError as cause:
        raise InputError(f"{path}: the record of a package has text that is not UTF-8") from cause
    try:
        wholefile.write(path, data)
    except OSError as cause:
        raise HostError(f"{path}: {cause.strerror}") from cause


def read(path: Path, recipe: Recipe, arch: str, shape: Shape = "disk") -> Plan:
    """Return the plan that a lock file has for a root filesystem.

    Raises:
        InputError: the lock file is missing or not valid.
        RecipeError: the recipe was changed since it was written, or it lacks the architecture.
    """
    hint = _lock_command(path)
    name = entry_name(arch, shape)
    entry = entries(path).get(name)
    if entry is None:
        raise RecipeError(f"{path}: has nothing for {name}", hint=hint)
    changed = [field for field, value in _wants(recipe, arch, shape, path).items() if entry.get(field, value) != value]
    if entry.get("base") != _base(recipe, path):
        changed.append("base")
    if changed:
        raise RecipeError(f"{path}: the recipe has changed since ({', '.join(changed)})", hint=hint)
    locked = checked(LockedArchitecture, entry, f"{path}: {name}", description=_DESCRIPTION, hint=hint)
    return replace(_from_json(recipe, arch, locked), shape=shape)


def others(path: Path, recipe: Recipe, names: Collection[str]) -> dict[str, Any]:
    """Return the entries of the recipe's root filesystems other than ``names``, as they are in the lock file.

    A missing lock file has none. Entries of architectures and outputs that the recipe no longer has are left out.

    Raises:
        InputError: the lock file is not valid, although not all of its entries are to be replaced.
    """
    shapes = {SHAPES[output] for output in recipe.outputs}
    rest = {entry_name(arch, shape) for arch in recipe.architectures for shape in shapes} - set(names)
    if not rest or not lookup.exists(path, InputError):
        return {}
    return {name: entry for name, entry in entries(path).items() if name in rest}


def entry_name(arch: str, shape: Shape) -> str:
    """Return the name of the entry of one root filesystem: ``amd64``, or ``amd64/container``."""
    return arch if shape == "disk" else f"{arch}/{shape}"


def entries(path: Path) -> dict[str, Any]:
    """Return the entries of a lock file by name (:func:`entry_name`), unchecked.

    Raises:
        InputError: the lock file is missing or not valid.
    """
    hint = _lock_command(path)
    lock = read_json(path, _MAX_BYTES, hint=hint)
    version = lock.get("lock") if isinstance(lock, dict) else None
    if isinstance(version, int) and version != VERSION:
        raise InputError(f"{path}: is of version {version}, not {VERSION}", hint=hint)
    return checked(Lock, lock, path, description=_DESCRIPTION, hint=hint).architectures


def _lock_command(path: Path) -> str:
    return f"imgkit lock {path.with_suffix('.py')}"


def _wants(recipe: Recipe, arch: str, shape: Shape, path: Path) -> dict[str, Any]:
    """Return the fields of the recipe that a plan depends on; the version only if the recipe pins one."""
    wants = {
        "branch": recipe.branch,
        "repositories": [_repository(entry, path) for entry in recipe.repositories],
        "packages": list(recipe.wanted(arch, shape)),
    }
    return wants | ({"version": recipe.version} if recipe.version else {})


def _repository(entry: str | RepositorySpec, path: Path) -> str | dict[str, str]:
    """Return a repository as the lock file has it: the path of a folder is relative to the file."""
    if isinstance(entry, str):
        return entry
    url = entry.url if entry.folder is None else os.path.relpath(entry.folder, path.parent.absolute())
    return {"url": url} | ({"tag": entry.tag} if entry.tag else {})


def _base(recipe: Recipe, path: Path) -> str | None:
    """Return the recipe's image, with the path of a layout relative to the lock file; None if it has none."""
    return None if recipe.base is None else relative(recipe.base, path.parent.absolute())


class _Places:
    """Where files are: below the mirror, or below one of the recipe's further repositories."""

    def __init__(self, recipe: Recipe) -> None:
        self._mirror = recipe.mirror.rstrip("/")
        self._further = {
            number: entry.url if entry.folder is None else entry.folder.as_uri()
            for number, entry in enumerate(recipe.repositories)
            if isinstance(entry, RepositorySpec)
        }

    def place(self, url: str) -> dict[str, Any]:
        """Return the place of a URL for the lock file."""
        number = max(
            (number for number, base in self._further.items() if url.startswith(f"{base}/")),
            key=lambda number: len(self._further[number]),
            default=None,
        )
        if number is None:
            return {"path": url.removeprefix(f"{self._mirror}/")}
        return {"path": url.removeprefix(f"{self._further[number]}/"), "repository": number}

    def url(self, file: LockedFile | LockedPackage) -> str:
        """Return the URL of a place in the lock file.

        Raises:
            InputError: the recipe has no further repository of its number.
        """
        if file.repository is None:
            # A package that only the minirootfs has is in no repository: its path has nothing before the slash.
            return file.path if file.path.startswith("/") else f"{self._mirror}/{file.path}"
        if file.repository not in self._further:
            raise InputError(f"{file.path}: the lock has it from repository {file.repository}, which the recipe lacks")
        return f"{self._further[file.repository]}/{file.path}"


def _to_json(recipe: Recipe, plan: Plan, path: Path) -> dict[str, Any]:
    """Return the entry of one architecture."""
    places = _Places(recipe)

    def artefact(file: Artefact) -> dict[str, Any]:
        return {**places.place(file.url), "size": file.size, "sha256": file.sha256, "vouchedBy": file.vouched_by}

    def origin(file: Artefact | ImageSource) -> dict[str, Any]:
        if isinstance(file, Artefact):
            return {"minirootfs": artefact(file)}
        facts = {"name": file.name, "digest": file.digest, "manifest": file.manifest, "size": file.size}
        image = {**facts, "created": file.created, "vouchedBy": file.vouched_by}
        return {"base": _base(recipe, path), "image": image}

    return {
        **_wants(recipe, plan.arch, plan.shape, path),
        "version": plan.version,
        **origin(plan.base),
        "indexes": [artefact(index) for index in plan.indexes],
        "world": list(plan.world),
        "install": [
            {
                **places.place(planned.url),
                "sha256": planned.sha256,
                "record": format_record(planned.package).splitlines(),
            }
            for planned in plan.packages
        ],
    }


def _from_json(recipe: Recipe, arch: str, entry: LockedArchitecture) -> Plan:
    """Return the plan in an entry."""
    places = _Places(recipe)

    def artefact(file: LockedFile) -> Artefact:
        return Artefact(places.url(file), file.size, file.sha256, file.vouchedBy)

    def origin() -> Artefact | ImageSource:
        if entry.minirootfs is not None:
            return artefact(entry.minirootfs)
        image = cast("LockedImage", entry.image)  # the schema asks for one of them
        return ImageSource(image.name, image.digest, image.manifest, image.size, image.created, image.vouchedBy)

    def planned(locked: LockedPackage) -> PlannedPackage:
        location = places.url(locked)
        repository = Repository(url=location.rpartition("/")[0])
        return PlannedPackage(replace(locked.package, repository=repository), location, locked.sha256)

    return Plan(
        arch=arch,
        branch=entry.branch,
        version=entry.version,
        base=origin(),
        indexes=tuple(artefact(index) for index in entry.indexes),
        world=tuple(entry.world),
        packages=tuple(planned(locked) for locked in entry.install),
    )
