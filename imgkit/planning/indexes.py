"""Package indexes: the newest ones of a recipe's repositories, and those that a plan was made from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imgkit.apk.index import Package, Repository, parse_index
from imgkit.apk.signature import Keyring, verify_index
from imgkit.errors import InputError
from imgkit.fetch.cache import Cache, Wanted, hash_file
from imgkit.fetch.checks import MissingFileError, Version3Error
from imgkit.planning.base import Base
from imgkit.planning.plan import Artefact, Plan, latest_build
from imgkit.recipe import Recipe

_INDEX = "APKINDEX.tar.gz"
_INDEX_3 = "Packages.adb"  # the index of a repository of format version 3 (apk-repositories(5))
_MAX_INDEX = 32 << 20


@dataclass(frozen=True)
class Index:
    """A verified index of a repository.

    Attributes:
        name: the repository's in the recipe, ``main``.
        description: what the index says about the sources that it was made from.
        date: when it was made, in seconds since 1970; if it does not say, when its youngest package was built.
    """

    name: str
    repository: Repository
    artefact: Artefact
    description: str
    date: int
    packages: tuple[Package, ...]


def fetch_indexes(recipe: Recipe, alpine: str, keyring: Keyring, cache: Cache) -> tuple[Index, ...]:
    """Fetch and verify the newest indexes of the recipe's repositories.

    Args:
        alpine: Alpine's name of the architecture, ``x86_64``.
        keyring: the keys that are trusted to sign them.

    Returns:
        One index for each of the recipe's repositories, in their order.

    Raises:
        Version3Error: a repository has packages of format version 3 only.
        InputError: an index cannot be downloaded or trusted.
    """
    branch = f"{recipe.mirror.rstrip('/')}/{recipe.branch}"
    repositories = [
        Repository(position, f"{branch}/{name}/{alpine}") for position, name in enumerate(recipe.repositories)
    ]
    paths = _fetch(repositories, cache)
    return tuple(
        _read(name, repository, path, keyring)
        for name, repository, path in zip(recipe.repositories, repositories, paths, strict=True)
    )


def packages_of(index: Artefact, keyring: Keyring, cache: Cache) -> tuple[Package, ...] | None:
    """Read an index of a plan again, from the cache or from the mirror.

    Returns:
        Its packages; None if neither has this index any more.

    Raises:
        InputError: the index exists, but no trusted key signed it.
    """
    try:
        path = cache.fetch(Wanted(url=index.url, max_bytes=_MAX_INDEX, sha256=index.sha256))
    except InputError:
        return None
    return parse_index(verify_index(path.read_bytes(), keyring, name=index.url).text, Repository(url=index.url))


def providers(plan: Plan, base: Base, cache: Cache, names: Collection[str]) -> Mapping[str, tuple[str, ...]] | None:
    """Find the packages in the plan's own indexes that provide each of ``names``. Nothing is downloaded.

    Args:
        names: as in ``provides``, without a version: ``so:libz.so.1``.

    Returns:
        For each name the sorted names of the packages that provide it; None if the cache lacks an index of the plan,
        as may happen with a lock file from another day or host.
    """
    offline = Cache(cache.folder, offline=True)
    providing: dict[str, set[str]] = {name: set() for name in names}
    for index in plan.indexes:
        try:
            packages = packages_of(index, base.keyring, offline)
        except InputError:
            return None
        if packages is None:
            return None
        for package in packages:
            for word in package.provides:
                providing.get(word.partition("=")[0], set()).add(package.name)
    return {name: tuple(sorted(packages)) for name, packages in providing.items()}


def _fetch(repositories: Sequence[Repository], cache: Cache) -> list[Path]:
    wanted = [Wanted(url=f"{repository.url}/{_INDEX}", max_bytes=_MAX_INDEX, gzip=True) for repository in repositories]
    try:
        return cache.fetch_all(wanted, description="package indexes")
    except MissingFileError as missing:
        _refuse_version_3_repository(missing.url.rpartition("/")[0], cache)
        raise


def _refuse_version_3_repository(url: str, cache: Cache) -> None:
    """Refuse the repository at ``url``, which has no index of format version 2, if it has one of version 3.

    Raises:
        Version3Error: the repository has an index of format version 3.
    """
    try:
        cache.fetch(Wanted(url=f"{url}/{_INDEX_3}", max_bytes=_MAX_INDEX, gzip=True))  # given up at its first bytes
    except Version3Error:
        raise
    except InputError:
        return  # then the error for the missing index says more


def _read(name: str, repository: Repository, path: Path, keyring: Keyring) -> Index:
    url = f"{repository.url}/{_INDEX}"
    signed = verify_index(path.read_bytes(), keyring, name=url)
    packages = parse_index(signed.text, repository)
    artefact = Artefact(url, path.stat().st_size, hash_file(path), signed.key)
    return Index(name, repository, artefact, signed.description, signed.date or latest_build(packages), packages)
