"""Who vouches for the packages of a lock file, asked again when an image is built from it.

A lock names every file by its SHA-256, and somebody checked the signatures when it was written. Whoever can change the
lock, or wrote another one, could name anything; so what is still there of the chain of trust is followed once more. The
minirootfs is always verified (:func:`imgkit.planning.plan.fetch_base`). The indexes of the lock are, where the cache
still has them: mirrors have only newer ones. A package that is in none of them has to be signed itself.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path

from imgkit.apk.index import Repository, parse_index
from imgkit.apk.package import signer_of
from imgkit.apk.signature import verify_index
from imgkit.errors import InputError
from imgkit.fetch.cache import Cache, Wanted
from imgkit.planning.plan import MAX_INDEX, Base, Plan, PlannedPackage

_AGAIN = "the lock file is not what imgkit lock wrote: restore it, or write it anew"
_GONE = (
    "imgkit lock writes a lock of what the mirror has now; or have the packages signed by a key that the image trusts"
)
_SHOWN = 5  # packages that a message names


def check_locked(plan: Plan, base: Base, cache: Cache, files: Mapping[str, Path]) -> None:
    """Check that somebody whom the minirootfs trusts vouches for each downloaded package of a lock.

    Args:
        files: the downloaded packages by name.

    Raises:
        InputError: a signature is wrong, or nobody vouches for a package: it is in no index that the lock names, and
            where one of these is neither in the cache nor on the mirror any more, no trusted key signed it either.
    """
    known, complete = _identities(plan, base, Cache(cache.folder, offline=True))
    unknown = _unknown(plan, files, known)
    if not complete:
        unknown = [
            each for each in unknown if signer_of(files[each.package.name], base.keyring, each.file_name) is None
        ]
        if unknown:
            known, complete = _identities(plan, base, cache)
            unknown = [each for each in unknown if each.package.identity not in known]
    if unknown:
        names = ", ".join(each.file_name for each in unknown[:_SHOWN]) + (" …" if len(unknown) > _SHOWN else "")
        if complete:
            raise InputError(f"{names}: is in none of the indexes that the lock names", hint=_AGAIN)
        raise InputError(f"{names}: no trusted key signed it, and the index that the lock names is gone", hint=_GONE)


def _unknown(plan: Plan, files: Mapping[str, Path], known: Container[str]) -> list[PlannedPackage]:
    return [each for each in plan.packages if each.package.name in files and each.package.identity not in known]


def _identities(plan: Plan, base: Base, cache: Cache) -> tuple[set[str], bool]:
    """The identities of all packages in the plan's indexes that the cache has or gets, and whether it has all of these.

    Raises:
        InputError: an index is there, and is not signed by a trusted key.
    """
    known: set[str] = set()
    complete = True
    for index in plan.indexes:
        try:
            path = cache.fetch(Wanted(url=index.url, max_bytes=MAX_INDEX, sha256=index.sha256))
        except InputError:
            complete = False
            continue
        text = verify_index(path.read_bytes(), base.keyring, name=index.url).text
        known.update(package.identity for package in parse_index(text, Repository(url=index.url)))
    return known, complete
