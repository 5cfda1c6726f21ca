"""Package indexes: the newest ones of a recipe's repositories, and those that a plan was made from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imgkit.apk.index import Package, Repository, parse_index
from imgkit.apk.signature import verify_index
from imgkit.errors import InputError
from imgkit.fetch.cache import Cache, Wanted, hash_file
from imgkit.fetch.checks import MissingFileError, Version3Error
from imgkit.planning.base import Base
from imgkit.planning.localfolders import check_local, file_of, packages_in, url_of
from imgkit.planning.plan import Artefact, Plan, latest_build
from imgkit.recipe import Recipe

INDEX = "APKINDEX.tar.gz"
"""The file name of an index."""
_INDEX_3 = "Packages.adb"  # the index of a repository of format version 3 (apk-repositories(5))
_MAX_INDEX = 32 << 20


@dataclass(frozen=True)
class Index:
    """A verified index of a repository.

    Attributes:
        name: the repository's in the recipe, ``main``, or the URL or folder of a further one.
        artefact: its file; None for a folder of packages without an index.
        description: what the index says about Alpine's sources that it was made from; empty for a further repository.
        date: when it was made, in seconds since 1970; if it does not say, when its youngest package was built.
        is_dated: whether an older one than one seen before is refused. The owner of a folder may go back.
    """

    name: str
    repository: Repository
    artefact: Artefact | None
    description: str
    date: int
    packages: tuple[Package, ...]
    is_dated: bool = True


def fetch_indexes(recipe: Recipe, alpine: str, base: Base, cache: Cache) -> tuple[Index, ...]:
    """Fetch and verify the newest indexes of the recipe's repositories.

    Args:
        alpine: Alpine's name of the architecture, ``x86_64``.
        base: has the keys that are trusted to sign them.

    Returns:
        One index for each of the recipe's repositories, in their order.

    Raises:
        Version3Error: a repository has packages of format version 3 only.
        InputError: an index cannot be downloaded or trusted.
        RecipeError: a folder has no packages for the architecture.
    """
    places = [_place(recipe, position, alpine) for position in range(len(recipe.repositories))]
    remote = [place for place in places if not place.is_folder]
    paths = dict(zip(remote, _fetch([place.repository for place in remote], cache), strict=True))
    return tuple(_read_folder(place, base) if place.is_folder else _read(place, paths[place], base) for place in places)


@dataclass(frozen=True)
class _Place:
    """A repository of the recipe.

    Attributes:
        name: in the recipe.
        repository: its position, URL and tag.
        is_further: whether it is none of the branch's.
        is_folder: whether it is on this computer.
    """

    name: str
    repository: Repository
    is_further: bool = False
    is_folder: bool = False


def _place(recipe: Recipe, position: int, alpine: str) -> _Place:
    entry = recipe.repositories[position]
    if isinstance(entry, str):
        return _Place(entry, Repository(position, f"{recipe.mirror.rstrip('/')}/{recipe.branch}/{entry}/{alpine}"))
    url = f"{entry.url}/{alpine}" if entry.folder is None else url_of(entry.folder, alpine, INDEX)
    repository = Repository(position, url, entry.tag)
    return _Place(entry.url, repository, is_further=True, is_folder=entry.folder is not None)


def packages_of(index: Artefact, base: Base, cache: Cache) -> tuple[Package, ...] | None:
    """Read an index of a plan again, from the cache or from the mirror.

    Args:
        base: has the keys that are trusted to sign it.

    Returns:
        Its packages; None if neither has this index any more.

    Raises:
        InputError: the index exists, but no trusted key signed it.
    """
    wanted = Wanted(url=index.url, max_bytes=_MAX_INDEX, sha256=index.sha256)
    local = base.further.file_at(index.url)
    try:
        path = cache.fetch(wanted) if local is None else check_local(local, wanted)
    except InputError:
        return None
    signed = verify_index(path.read_bytes(), base.keyring_of(index.url), name=index.url)
    return parse_index(signed.text, Repository(url=index.url))


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
            packages = packages_of(index, base, offline)
        except InputError:
            return None
        if packages is None:
            return None
        for package in packages:
            for word in package.provides:
                providing.get(word.partition("=")[0], set()).add(package.name)
    return {name: tuple(sorted(packages)) for name, packages in providing.items()}


def _fetch(repositories: Sequence[Repository], cache: Cache) -> list[Path]:
    wanted = [Wanted(url=f"{repository.url}/{INDEX}", max_bytes=_MAX_INDEX, gzip=True) for repository in repositories]
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


def _read(place: _Place, path: Path, base: Base) -> Index:
    """Verify and parse an index. ``path`` is its file."""
    repository = place.repository
    url = f"{repository.url}/{INDEX}"
    signed = verify_index(path.read_bytes(), base.keyring_of(url), name=url)
    packages = parse_index(signed.text, repository)
    artefact = Artefact(url, path.stat().st_size, hash_file(path), signed.key)
    description = "" if place.is_further else signed.description
    return Index(place.name, repository, artefact, description, signed.date or latest_build(packages), packages)


def _read_folder(place: _Place, base: Base) -> Index:
    """Read the index of a folder on this computer, or its packages if it has none."""
    repository = place.repository
    url = f"{repository.url}/{INDEX}"
    path = file_of(repository.url) / INDEX
    if path.is_file():
        return replace(_read(place, path, base), is_dated=False)
    packages = packages_in(path.parent, base.keyring_of(url), repository)
    return Index(place.name, repository, None, "", latest_build(packages), packages, is_dated=False)
