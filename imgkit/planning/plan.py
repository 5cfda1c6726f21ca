"""Plans: what exactly an image is made of. Names become artefacts, and every one has somebody who vouches for it.

The minirootfs is vouched for by the OpenPGP certificate that the recipe (or imgkit itself) brings; the keys in it vouch
for the indexes; an index vouches for its packages. A plan says all of this in values that can be written down: that is
the lock file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from imgkit.apk.index import Package, Repository, parse_index
from imgkit.apk.package import PackageFile, check_package, open_package
from imgkit.apk.signature import Keyring, verify_index
from imgkit.apk.solver import solve
from imgkit.errors import InputError
from imgkit.fetch.cache import Cache, Wanted, hash_file
from imgkit.fetch.checks import MissingFileError, Version3Error
from imgkit.fetch.openpgp import Certificate, alpine_certificate, read_certificate, verify_detached
from imgkit.fetch.releases import MINIROOTFS, Release, newest_minirootfs
from imgkit.host.jsonfile import read_bytes
from imgkit.planning.freshness import Freshness, release_of
from imgkit.recipe import Recipe
from imgkit.rootfs.install import installed_in, world_in
from imgkit.rootfs.minirootfs import unpack
from imgkit.tree import File, Tree

_KEYS = "etc/apk/keys"
_INDEX = "APKINDEX.tar.gz"
_INDEX_3 = "Packages.adb"  # the index of a repository of format version 3 (apk-repositories(5))
_MAX_LISTING = 1 << 18
_MAX_SIGNATURE = 1 << 16
_MAX_CERTIFICATE = 1 << 20
_MAX_MINIROOTFS = 64 << 20
MAX_INDEX = 32 << 20
_MAX_PACKAGE = 2 << 30
_CONTENT_SLACK = 16 << 20  # by which the contents of a package may exceed what its index states


@dataclass(frozen=True)
class Artefact:
    """A file of the mirror. ``vouched_by`` names the key or index that says that it is the right one."""

    url: str
    size: int
    sha256: str
    vouched_by: str


@dataclass(frozen=True)
class PlannedPackage:
    """A package to install: the record of the index (or of the package itself) and where its file is.

    ``sha256`` of the file is known once it was downloaded: empty in a plan that nobody fetched yet.
    """

    package: Package
    url: str
    sha256: str = ""

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Plan:
    """Everything that goes into one image from the mirror, in install order."""

    arch: str
    branch: str
    version: str
    minirootfs: Artefact
    indexes: tuple[Artefact, ...]
    world: tuple[str, ...]
    packages: tuple[PlannedPackage, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over what is installed: equal plans make equal root filesystems from equal recipes."""
        text = "\n".join([self.arch, self.minirootfs.sha256, *(each.package.identity for each in self.packages)])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def epoch(self) -> int:
        """The time of what a build generates, seconds since 1970: when the youngest package was built."""
        return _youngest([each.package for each in self.packages])


@dataclass(frozen=True)
class Base:
    """A verified minirootfs: the artefact, its Tree, and the keys that it trusts."""

    release: Release
    artefact: Artefact
    tree: Tree
    keyring: Keyring


def certificate_of(recipe: Recipe) -> Certificate:
    """The certificate that has to have signed the minirootfs.

    Raises:
        InputError: the recipe's file is no OpenPGP certificate.
    """
    path = recipe.release_key
    if path is None:
        return alpine_certificate()
    return read_certificate(read_bytes(path, _MAX_CERTIFICATE), name=str(path))


def fetch_base(
    recipe: Recipe,
    arch: str,
    cache: Cache,
    spool: Path,
    *,
    locked: Plan | None = None,
    allow_stale: bool = False,
) -> Base:
    """Find, download, verify and unpack the minirootfs. ``spool`` is a new file that takes its contents.

    Args:
        locked: take the very minirootfs of this plan; its signature is verified all the same.
        allow_stale: warn of what :mod:`imgkit.planning.freshness` would refuse.

    Raises:
        InputError: the mirror does not have it, or it cannot be trusted.
    """
    if locked is None:
        release, url = _newest(recipe, recipe.architecture(arch).alpine, cache)
    else:
        one = locked.minirootfs
        url, file = one.url, one.url.rpartition("/")[2]
        release = Release(MINIROOTFS, locked.version, file, sha256=one.sha256, size=one.size)
    archive, signature = cache.fetch_all(
        [
            Wanted(
                url=url,
                max_bytes=_MAX_MINIROOTFS,
                size=release.size or None,
                sha256=release.sha256 or None,
                gzip=True,
            ),
            Wanted(url=f"{url}.asc", max_bytes=_MAX_SIGNATURE),
        ],
        description="minirootfs",
    )
    certificate = certificate_of(recipe)
    signer = verify_detached(archive, signature.read_bytes(), certificate, name=release.file)
    artefact = Artefact(url, archive.stat().st_size, hash_file(archive), f"OpenPGP {signer}")
    base = _base(release, artefact, archive, spool)
    chosen = locked is not None or recipe.version is not None
    _freshness(recipe, arch, base, cache, allow_stale=allow_stale).check_minirootfs(url, release.version, chosen=chosen)
    return base


def _freshness(recipe: Recipe, arch: str, base: Base, cache: Cache, *, allow_stale: bool) -> Freshness:
    """What is asked of the files of the recipe's branch."""
    return Freshness(
        cache.folder,
        base.artefact.vouched_by,
        recipe.branch,
        recipe.architecture(arch).alpine,
        release_of(base.tree),
        allow=allow_stale,
    )


def _newest(recipe: Recipe, alpine: str, cache: Cache) -> tuple[Release, str]:
    """The release that the mirror's listing says is to be taken, and its URL."""
    folder = f"{recipe.mirror.rstrip('/')}/{recipe.branch}/releases/{alpine}"
    listing = f"{folder}/latest-releases.yaml"
    text = cache.fetch(Wanted(url=listing, max_bytes=_MAX_LISTING), description="releases").read_bytes()
    release = _release(recipe, text, alpine, listing)
    return release, f"{folder}/{release.file}"


def _release(recipe: Recipe, listing: bytes, alpine: str, name: str) -> Release:
    """The release to take. A pinned version that the listing has forgotten is asked for by the name it must have."""
    try:
        return newest_minirootfs(listing, arch=alpine, version=recipe.version, name=name)
    except InputError:
        if recipe.version is None:
            raise
        newest_minirootfs(listing, arch=alpine, name=name)  # a listing that is none is still an error
        file = f"{MINIROOTFS}-{recipe.version}-{alpine}.tar.gz"
        return Release(flavor=MINIROOTFS, version=recipe.version, file=file)


def _base(release: Release, artefact: Artefact, archive: Path, spool: Path) -> Base:
    tree = unpack(archive, spool)
    keys = {
        path.rpartition("/")[2]: tree.read(path)
        for path in (tree.children(tree.resolve(_KEYS)))
        if path.endswith(".pub") and isinstance(tree.stat(path), File)
    }
    if not keys:
        raise InputError(f"{release.file}: has no keys in /{_KEYS}, so nothing can vouch for packages")
    return Base(release, artefact, tree, Keyring.from_files(keys))


def make_plan(recipe: Recipe, arch: str, base: Base, cache: Cache, *, allow_stale: bool = False) -> Plan:
    """Fetch and verify the indexes, and solve for the recipe's packages.

    Args:
        allow_stale: warn of what :mod:`imgkit.planning.freshness` would refuse.

    Raises:
        InputError: an index cannot be had or trusted, is older than one that was seen before, or of another branch.
        RecipeError: packages are unknown, or cannot be installed together.
    """
    facts = recipe.architecture(arch)
    sources = [f"{recipe.mirror.rstrip('/')}/{recipe.branch}/{name}/{facts.alpine}" for name in recipe.repositories]
    wanted = [Wanted(url=f"{source}/{_INDEX}", max_bytes=MAX_INDEX, gzip=True) for source in sources]
    files = _fetch_indexes(wanted, cache)
    fresh = _freshness(recipe, arch, base, cache, allow_stale=allow_stale)
    packages: list[Package] = []
    indexes, dates = [], []
    for position, (source, one, path) in enumerate(zip(sources, wanted, files, strict=True)):
        index = verify_index(path.read_bytes(), base.keyring, name=one.url)
        here = parse_index(index.text, Repository(position=position, url=source))
        dates.append(index.date or _youngest(here))
        fresh.check_index(one.url, recipe.repositories[position], index.description, dates[-1])
        packages += here
        indexes.append(Artefact(one.url, path.stat().st_size, hash_file(path), index.key))
    standing, added = world_in(base.tree), (*recipe.packages, *facts.packages)
    installed = {record.package.name: record.package for record in installed_in(base.tree)}
    solution = solve(added, packages, arch=facts.alpine, installed=installed, standing=standing)
    taken = {package.repository.position for package in solution}
    for position in taken & set(range(len(dates))):
        fresh.remember_index(recipe.repositories[position], dates[position])
    planned = tuple(
        PlannedPackage(package, f"{package.repository.url}/{package.name}-{package.version}.apk")
        for package in solution
    )
    return Plan(arch, recipe.branch, base.release.version, base.artefact, tuple(indexes), (*standing, *added), planned)


def _youngest(packages: Sequence[Package]) -> int:
    """When the youngest package was built: the date of an index that does not say its own."""
    return max((package.build_time for package in packages), default=0)


def _fetch_indexes(wanted: Sequence[Wanted], cache: Cache) -> list[Path]:
    """Fetch the indexes.

    Raises:
        Version3Error: a repository has packages of format version 3 only.
        InputError: an index cannot be had for another reason.
    """
    try:
        return cache.fetch_all(wanted, description="package indexes")
    except MissingFileError as missing:
        _refuse_version_3_repository(missing.url.rpartition("/")[0], cache)
        raise


def _refuse_version_3_repository(url: str, cache: Cache) -> None:
    """Refuse the repository at ``url``, which has no index of format version 2, if it has one of version 3.

    Raises:
        Version3Error: it has.
    """
    try:
        cache.fetch(Wanted(url=f"{url}/{_INDEX_3}", max_bytes=MAX_INDEX, gzip=True))  # given up at its first bytes
    except Version3Error:
        raise
    except InputError:
        return  # then the error for the missing index says more


def providers(plan: Plan, base: Base, cache: Cache, names: Collection[str]) -> Mapping[str, tuple[str, ...]] | None:
    """Which packages of the plan's own indexes provide each of ``names`` (``so:libz.so.1``), without downloading.

    Returns:
        The names of packages, sorted, none for a name that nobody provides; None where an index of the plan is not in
        the cache (any more), as may be with a lock file of another day or host.
    """
    wanted = [Wanted(url=one.url, max_bytes=MAX_INDEX, sha256=one.sha256) for one in plan.indexes]
    try:
        files = Cache(cache.folder, offline=True).fetch_all(wanted)
        texts = [
            verify_index(path.read_bytes(), base.keyring, name=one.url).text
            for one, path in zip(plan.indexes, files, strict=True)
        ]
    except InputError:
        return None
    found: dict[str, set[str]] = {name: set() for name in names}
    for text in texts:
        for package in parse_index(text, Repository()):
            for word in package.provides:
                name = word.partition("=")[0]
                if name in found:
                    found[name].add(package.name)
    return {name: tuple(sorted(packages)) for name, packages in found.items()}


def fetch_packages(plan: Plan, base: Base, cache: Cache, *, locked: bool = False) -> tuple[Plan, Mapping[str, Path]]:
    """Have the files of all packages that the minirootfs does not have in this very build.

    Args:
        locked: the plan is that of a lock file, which has to have the SHA-256 of each.

    Returns:
        The plan with the SHA-256 of each file, and the files by the name of their package.

    Raises:
        InputError: one cannot be had, or is not what the index (or the lock) names.
    """
    there = {record.package.name: record.package.identity for record in installed_in(base.tree)}
    missing = [each for each in plan.packages if there.get(each.package.name) != each.package.identity]
    bare = [each.file_name for each in missing if locked and not each.sha256]
    if bare:
        hint = "refresh the lock (imgkit lock RECIPE)"
        raise InputError(f"{bare[0]}: has to be downloaded, and the lock has no SHA-256 of it", hint=hint)
    files = cache.fetch_all([_wanted(each) for each in missing], description="packages")
    found = {each.package.name: path for each, path in zip(missing, files, strict=True)}
    packages = tuple(
        replace(each, sha256=each.sha256 or hash_file(found[each.package.name])) if each.package.name in found else each
        for each in plan.packages
    )
    return replace(plan, packages=packages), found


def open_planned(files: Mapping[str, Path], base: Base, spool: Path, package: Package) -> PackageFile:
    """The verified contents of one package of a plan, appended to ``spool``.

    Raises:
        InputError: it is not what the plan names, or holds what no package may hold.
    """
    return open_package(
        files[package.name],
        spool=spool,
        max_installed=package.installed_size + _CONTENT_SLACK,
        expected=package.identity,
        keyring=base.keyring,
        name=f"{package.name}-{package.version}.apk",
    )


def _wanted(each: PlannedPackage) -> Wanted:
    check = partial(check_package, expected=each.package.identity, name=each.file_name)
    size = each.package.size
    return Wanted(
        url=each.url,
        max_bytes=size or _MAX_PACKAGE,
        size=size or None,
        sha256=each.sha256 or None,
        key=each.package.identity,  # also for what a lock names: a build without one has put it there by that name
        check=check,
        gzip=True,
    )
