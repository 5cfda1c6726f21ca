"""Check again, when building from a lock file, that a trusted key vouches for its packages.

A lock names every file by its SHA-256, and the signatures were checked when it was written. Whoever can change the
lock, or write another one, could name anything; so the chain of trust is followed again as far as it still exists. The
minirootfs is always verified (:func:`imgkit.planning.base.fetch_base`). The indexes of the lock are verified as far as
the cache still has them, since mirrors have only newer ones. A package that is in none of them must be signed itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from imgkit.apk.package import signer_of
from imgkit.errors import InputError
from imgkit.fetch.cache import Cache
from imgkit.planning.base import Base
from imgkit.planning.indexes import packages_of
from imgkit.planning.plan import Plan, PlannedPackage

_RESTORE_HINT = "the lock file is not what imgkit lock wrote: restore it, or write it anew"
_GONE_HINT = (
    "imgkit lock writes a lock of what the mirror has now; or have the packages signed by a key that the image trusts"
)
_MAX_SHOWN = 5  # packages that a message names


def check_locked(plan: Plan, base: Base, cache: Cache, files: Mapping[str, Path]) -> None:
    """Check that a key which is trusted for its repository vouches for each downloaded package of a lock.

    Args:
        files: package name → downloaded file.

    Raises:
        InputError: a signature is wrong, or nothing vouches for a package: the index of its repository does not have
            it; or this index is neither in the cache nor on the mirror any more, or the repository is a folder without
            one, and no trusted key signed the package itself.
    """
    downloaded = [planned for planned in plan.packages if planned.package.name in files]
    unnamed, unsigned = _unvouched(downloaded, _identities(plan, base, Cache(cache.folder, offline=True)), base, files)
    if unsigned:
        unnamed, unsigned = _unvouched(downloaded, _identities(plan, base, cache), base, files)
    if unnamed:
        raise InputError(f"{_names(unnamed)}: is in none of the indexes that the lock names", hint=_RESTORE_HINT)
    if unsigned:
        is_gone = all(base.further.file_at(planned.url) is None for planned in unsigned)
        gone = ", and the index that the lock names is gone" if is_gone else ""
        raise InputError(f"{_names(unsigned)}: no trusted key signed it{gone}", hint=_GONE_HINT)


def _unvouched(
    packages: Sequence[PlannedPackage],
    identities: Mapping[str, frozenset[str] | None],
    base: Base,
    files: Mapping[str, Path],
) -> tuple[list[PlannedPackage], list[PlannedPackage]]:
    """Return the packages that the index of their repository lacks, and those without an index that nobody signed.

    Raises:
        SignatureError: a signature is wrong.
    """
    unnamed, unsigned = [], []
    for planned in packages:
        without_index = frozenset[str]() if base.further.file_at(planned.url) is None else None
        named = identities.get(_folder(planned.url), without_index)
        if named is not None:
            unnamed += [planned] if planned.package.identity not in named else []
        elif signer_of(files[planned.package.name], base.keyring_of(planned.url), planned.file_name) is None:
            unsigned.append(planned)
    return unnamed, unsigned


def _identities(plan: Plan, base: Base, cache: Cache) -> dict[str, frozenset[str] | None]:
    """Return the identities of all packages by the folder of their index; None where the index is not available.

    Raises:
        InputError: an index exists, but no trusted key signed it.
    """
    indexes = [(_folder(index.url), packages_of(index, base, cache)) for index in plan.indexes]
    return {
        folder: None if packages is None else frozenset(package.identity for package in packages)
        for folder, packages in indexes
    }


def _folder(url: str) -> str:
    return url.rpartition("/")[0]


def _names(packages: Sequence[PlannedPackage]) -> str:
    names = ", ".join(planned.file_name for planned in packages[:_MAX_SHOWN])
    return names + (" …" if len(packages) > _MAX_SHOWN else "")
