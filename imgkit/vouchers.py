"""Who vouches for the packages of a lock file, asked again when an image is built from it.

A lock names every file by its SHA-256, and somebody checked the signatures when it was written. Whoever can change the
lock, or wrote another one, could name anything; so what is still there of the chain of trust is followed once more. The
minirootfs is always verified (:func:`imgkit.plan.fetch_base`). The indexes of the lock are, where the cache still has
them: mirrors have only newer ones. A package that is in none of them has to be signed itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from imgkit.apk.index import Repository, parse_index
from imgkit.apk.package import signer_of
from imgkit.apk.signature import verify_index
from imgkit.errors import InputError
from imgkit.fetch.cache import Cache, Wanted
from imgkit.plan import MAX_INDEX, Base, Plan

log = logging.getLogger("imgkit")

_AGAIN = "the lock file is not what imgkit lock wrote: restore it, or write it anew"
_SHOWN = 5  # packages that a message names


def check_locked(plan: Plan, base: Base, cache: Cache, files: Mapping[str, Path]) -> None:
    """Check that somebody whom the minirootfs trusts vouches for each downloaded package of a lock.

    Where that cannot be said any more, because an index is gone and the package is unsigned, there is a warning.

    Args:
        files: the downloaded packages by name.

    Raises:
        InputError: a signature is wrong, or the indexes of the lock are all there and do not have the package.
    """
    known, complete = _identities(plan, base, cache)
    alone = []
    for each in plan.packages:
        path = files.get(each.package.name)
        if path is None or each.package.identity in known:
            continue
        if complete:
            raise InputError(f"{each.file_name}: is in none of the indexes that the lock names", hint=_AGAIN)
        if signer_of(path, base.keyring, each.file_name) is None:
            alone.append(each.package.name)
    if alone:
        names = ", ".join(alone[:_SHOWN]) + (" …" if len(alone) > _SHOWN else "")
        log.warning("vouched for by the lock file alone, as their index is not in the cache: %s", names)


def _identities(plan: Plan, base: Base, cache: Cache) -> tuple[set[str], bool]:
    """The identities of all packages in the plan's indexes that the cache has, and whether it has all of these.

    Raises:
        InputError: an index is there, and is not signed by a trusted key.
    """
    offline = Cache(cache.folder, offline=True)
    known: set[str] = set()
    complete = True
    for index in plan.indexes:
        try:
            path = offline.fetch(Wanted(url=index.url, max_bytes=MAX_INDEX, sha256=index.sha256))
        except InputError:
            complete = False
            continue
        text = verify_index(path.read_bytes(), base.keyring, name=index.url).text
        known.update(package.identity for package in parse_index(text, Repository(url=index.url)))
    return known, complete
