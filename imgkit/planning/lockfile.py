"""The lock file of a recipe: its plans written down, so that a build can be had again byte by byte.

It lies beside the recipe (``recipes/alpine.lock``), is JSON, and names everything relative to the mirror: another one
with the same files will do. What the recipe wants is in it too, so a lock that the recipe has outgrown is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from imgkit.apk.index import Repository, format_record
from imgkit.errors import HostError, InputError, RecipeError
from imgkit.host import wholefile
from imgkit.host.jsonfile import checked, read_json
from imgkit.planning.plan import Artefact, Plan, PlannedPackage
from imgkit.planning.schemas import Lock, LockedArchitecture, LockedFile
from imgkit.recipe import Recipe

VERSION = 1
_MOST_BYTES = 16 << 20  # two architectures of 400 packages take 1 MiB
_WHAT = "a lock file of imgkit"


def path_of(recipe: Path) -> Path:
    """Where the lock of a recipe is."""
    return recipe.with_suffix(".lock")


def write(
    path: Path, recipe: Recipe, plans: Mapping[str, Plan], kept: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Write ``plans`` (by architecture) as the lock of ``recipe``, in one move, with what :func:`others` kept.

    Raises:
        InputError: the record of a package has text that is not UTF-8, which JSON cannot hold.
        HostError: the file cannot be written.
    """
    entries = {**kept, **{arch: _to_json(recipe, plan) for arch, plan in plans.items()}}
    found = {"lock": VERSION, "architectures": dict(sorted(entries.items()))}
    try:
        data = (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError as cause:
        raise InputError(f"{path}: the record of a package has text that is not UTF-8") from cause
    try:
        wholefile.write(path, data)
    except OSError as cause:
        raise HostError(f"{path}: {cause.strerror}") from cause


def read(path: Path, recipe: Recipe, arch: str) -> Plan:
    """The plan that the lock has for ``arch``.

    Raises:
        InputError: there is no lock, or it is none.
        RecipeError: it was made for another state of the recipe, or lacks the architecture.
    """
    again = _again(path)
    entry = _entries(path).get(arch)
    if entry is None:
        raise RecipeError(f"{path}: has nothing for {arch}", hint=again)
    outgrown = [name for name, value in _wants(recipe, arch).items() if entry.get(name, value) != value]
    if outgrown:
        raise RecipeError(f"{path}: the recipe has changed since ({', '.join(outgrown)})", hint=again)
    return _from_json(recipe, arch, checked(LockedArchitecture, entry, f"{path}: {arch}", what=_WHAT, hint=again))


def others(path: Path, recipe: Recipe, arches: Collection[str]) -> dict[str, Any]:
    """What the lock (if there is one) has for the architectures of ``recipe`` that are not among ``arches``.

    Raises:
        InputError: there might be something, but the file is no lock.
    """
    rest = set(recipe.architectures) - set(arches)
    if not rest or not path.exists():
        return {}
    return {arch: entry for arch, entry in _entries(path).items() if arch in rest}


def _entries(path: Path) -> dict[str, Any]:
    """The entries of a lock by architecture, as they are.

    Raises:
        InputError: there is no lock, or it is none.
    """
    again = _again(path)
    value = read_json(path, _MOST_BYTES, hint=again)
    version = value.get("lock") if isinstance(value, dict) else None
    if isinstance(version, int) and version != VERSION:
        raise InputError(f"{path}: is of version {version}, not {VERSION}", hint=again)
    return checked(Lock, value, path, what=_WHAT, hint=again).architectures


def _again(path: Path) -> str:
    return f"imgkit lock {path.with_suffix('.py')}"


def _wants(recipe: Recipe, arch: str) -> dict[str, Any]:
    """What a plan depends on in the recipe; a pinned version only if there is one."""
    wants = {
        "branch": recipe.branch,
        "repositories": list(recipe.repositories),
        "packages": [*recipe.packages, *recipe.architecture(arch).packages],
    }
    return wants | ({"version": recipe.version} if recipe.version else {})


def _to_json(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    def artefact(one: Artefact) -> dict[str, Any]:
        return {
            "path": _relative(recipe, one.url),
            "size": one.size,
            "sha256": one.sha256,
            "vouchedBy": one.vouched_by,
        }

    return {
        **_wants(recipe, plan.arch),
        "version": plan.version,
        "minirootfs": artefact(plan.minirootfs),
        "indexes": [artefact(index) for index in plan.indexes],
        "world": list(plan.world),
        "install": [
            {
                "path": _relative(recipe, each.url),
                "sha256": each.sha256,
                "record": format_record(each.package).splitlines(),
            }
            for each in plan.packages
        ],
    }


def _from_json(recipe: Recipe, arch: str, entry: LockedArchitecture) -> Plan:
    base = recipe.mirror.rstrip("/")

    def url(path: str) -> str:
        """A package that only the minirootfs has is in no repository: its path has nothing before the slash."""
        return path if path.startswith("/") else f"{base}/{path}"

    def artefact(file: LockedFile) -> Artefact:
        return Artefact(url(file.path), file.size, file.sha256, file.vouchedBy)

    return Plan(
        arch=arch,
        branch=entry.branch,
        version=entry.version,
        minirootfs=artefact(entry.minirootfs),
        indexes=tuple(artefact(file) for file in entry.indexes),
        world=tuple(entry.world),
        packages=tuple(
            PlannedPackage(
                replace(each.package, repository=Repository(url=url(each.path).rpartition("/")[0])),
                url(each.path),
                each.sha256,
            )
            for each in entry.install
        ),
    )


def _relative(recipe: Recipe, url: str) -> str:
    return url.removeprefix(recipe.mirror.rstrip("/") + "/")
