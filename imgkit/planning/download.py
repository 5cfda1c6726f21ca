"""Download the packages of a plan, and open them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from imgkit.apk.index import Package
from imgkit.apk.package import PackageFile, check_package, open_package
from imgkit.errors import InputError
from imgkit.fetch.cache import Cache, Wanted, hash_file
from imgkit.planning.base import Base
from imgkit.planning.localfolders import check_local
from imgkit.planning.plan import Plan, PlannedPackage
from imgkit.rootfs.install import installed_in

_MAX_PACKAGE = 2 << 30
_CONTENT_SLACK = 16 << 20  # bytes by which the contents of a package may exceed what its index states


def fetch_packages(plan: Plan, base: Base, cache: Cache, *, locked: bool = False) -> tuple[Plan, Mapping[str, Path]]:
    """Download the packages of a plan. Packages that the minirootfs has in the same build are left out.

    Args:
        locked: the plan is that of a lock file, which must have the SHA-256 of each file.

    Returns:
        The plan with the SHA-256 of each file, and package name → file.

    Raises:
        InputError: a file cannot be downloaded, is not the one in the index or the lock, or has no SHA-256 in the lock.
    """
    present = {record.package.name: record.package.identity for record in installed_in(base.tree)}
    missing = [planned for planned in plan.packages if present.get(planned.package.name) != planned.package.identity]
    for planned in missing:
        if locked and not planned.sha256:
            message = f"{planned.file_name}: has to be downloaded, and the lock has no SHA-256 of it"
            raise InputError(message, hint="refresh the lock (imgkit lock RECIPE)")
    files = _fetch(missing, base, cache)
    packages = tuple(_with_hash(planned, files.get(planned.package.name)) for planned in plan.packages)
    return replace(plan, packages=packages), files


def _fetch(missing: Sequence[PlannedPackage], base: Base, cache: Cache) -> dict[str, Path]:
    """Return package name → file. Files of further repositories on this computer are used where they are."""
    local = {planned.package.name: base.further.file_at(planned.url) for planned in missing}
    remote = [planned for planned in missing if local[planned.package.name] is None]
    paths = cache.fetch_all([_wanted(planned) for planned in remote], description="packages")
    fetched = dict(zip([planned.package.name for planned in remote], paths, strict=True))
    for planned in missing:
        path = local[planned.package.name]
        if path is not None:
            fetched[planned.package.name] = check_local(path, _wanted(planned))
    return fetched


def open_planned(files: Mapping[str, Path], base: Base, spool: Path, package: Package) -> PackageFile:
    """Verify and open one package of a plan.

    Args:
        files: package name → file.
        spool: the file that the package's contents are appended to.

    Raises:
        InputError: the file is not the package that the plan names, or holds what no package may hold.
    """
    return open_package(
        files[package.name],
        spool=spool,
        max_installed=package.installed_size + _CONTENT_SLACK,
        expected=package.identity,
        keyring=base.keyring_of(f"{package.repository.url}/{package}.apk"),
        name=f"{package}.apk",
    )


def _wanted(planned: PlannedPackage) -> Wanted:
    size = planned.package.size
    return Wanted(
        url=planned.url,
        max_bytes=size or _MAX_PACKAGE,
        size=size or None,
        sha256=planned.sha256 or None,
        key=planned.package.identity,  # also for what a lock names: a build without one has put it there by that name
        check=partial(check_package, expected=planned.package.identity, name=planned.file_name),
        gzip=True,
    )


def _with_hash(planned: PlannedPackage, path: Path | None) -> PlannedPackage:
    if path is None or planned.sha256:
        return planned
    return replace(planned, sha256=hash_file(path))
