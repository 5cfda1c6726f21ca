"""Download the packages of a plan, and open them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from imgkit.apk.index import Package
from imgkit.apk.package import PackageFile, check_package, open_package
from imgkit.errors import InputError
from imgkit.fetch.cache import Cache, Wanted, hash_file
from imgkit.fetch.pool import in_parallel
from imgkit.host.processors import usable_processors
from imgkit.planning.base import Base
from imgkit.planning.localfolders import check_local
from imgkit.planning.plan import Plan, PlannedPackage
from imgkit.rootfs.install import installed_in

NONE_KNOWN: Mapping[str, str] = MappingProxyType({})
_MAX_PACKAGE = 2 << 30
_MOST_THREADS = 8
_CONTENT_SLACK = 16 << 20  # bytes by which the contents of a package may exceed what its index states


def missing_packages(plan: Plan, base: Base) -> list[PlannedPackage]:
    """Return the packages that the base does not have in the same build."""
    present = {record.package.name: record.package.identity for record in installed_in(base.tree)}
    return [planned for planned in plan.packages if present.get(planned.package.name) != planned.package.identity]


def fetch_packages(
    plan: Plan, base: Base, cache: Cache, *, locked: bool = False, known: Mapping[str, str] = NONE_KNOWN
) -> tuple[Plan, Mapping[str, Path]]:
    """Download the packages of a plan. Packages that the minirootfs has in the same build are left out.

    Args:
        locked: the plan is that of a lock file, which must have the SHA-256 of each file.
        known: package name → SHA-256 in hex, of packages whose files are not needed.

    Returns:
        The plan with the SHA-256 of each file, and package name → file.

    Raises:
        InputError: a file cannot be downloaded, is not the one in the index or the lock, or has no SHA-256 in the lock.
    """
    missing = missing_packages(plan, base)
    for planned in missing:
        if locked and not planned.sha256:
            message = f"{planned.file_name}: has to be downloaded, and the lock has no SHA-256 of it"
            raise InputError(message, hint="refresh the lock (imgkit lock RECIPE)")
    files = _fetch([planned for planned in missing if planned.package.name not in known], base, cache)
    hashes = {**known, **_hashes(plan.packages, files)}
    packages = tuple(
        replace(planned, sha256=planned.sha256 or hashes.get(planned.package.name, "")) for planned in plan.packages
    )
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
        max_installed=limit_of(package),
        expected=package.identity,
        keyring=base.keyring_of(f"{package.repository.url}/{package}.apk"),
        name=f"{package}.apk",
    )


def limit_of(package: Package) -> int:
    """Return the bytes that the files of a package may have together."""
    return package.installed_size + _CONTENT_SLACK


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


def _hashes(packages: Sequence[PlannedPackage], files: Mapping[str, Path]) -> dict[str, str]:
    """Return package name → SHA-256 in hex, of the files of packages that have none yet."""
    names = [planned.package.name for planned in packages if planned.package.name in files and not planned.sha256]
    jobs = [lambda _, path=files[name]: hash_file(path) for name in names]
    return dict(zip(names, in_parallel(jobs, workers=usable_processors(_MOST_THREADS)), strict=True))
