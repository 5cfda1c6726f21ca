"""Check again, when building from a lock file, that a trusted key vouches for its packages.

A lock names every file by its SHA-256, and the signatures were checked when it was written. Whoever can change the
lock, or write another one, could name anything; so the chain of trust is followed again as far as it still exists. The
minirootfs is always verified (:func:`imgkit.planning.base.fetch_base`). The indexes of the lock are verified as far as
the cache still has them, since mirrors have only newer ones. A package that is in none of them must be signed itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from imgkit.apk.package import signer_of
from imgkit.errors import InputError
from imgkit.fetch.cache import Cache
from imgkit.planning.base import Base
from imgkit.planning.indexes import packages_of
from imgkit.planning.plan import Plan

_RESTORE_HINT = "the lock file is not what imgkit lock wrote: restore it, or write it anew"
_GONE_HINT = (
    "imgkit lock writes a lock of what the mirror has now; or have the packages signed by a key that the image trusts"
)
_MAX_SHOWN = 5  # packages that a message names


def check_locked(plan: Plan, base: Base, cache: Cache, files: Mapping[str, Path]) -> None:
    """Check that a key which the minirootfs trusts vouches for each downloaded package of a lock.

    Args:
        files: package name → downloaded file.

    Raises:
        InputError: a signature is wrong, or nothing vouches for a package: no index that the lock names has it, and if
            one of these indexes is neither in the cache nor on the mirror any more, no trusted key signed the package
            itself.
    """
    downloaded = [planned for planned in plan.packages if planned.package.name in files]
    identities, complete = _identities(plan, base, Cache(cache.folder, offline=True))
    unvouched = [planned for planned in downloaded if planned.package.identity not in identities]
    if not complete:
        unvouched = [
            planned
            for planned in unvouched
            if signer_of(files[planned.package.name], base.keyring, planned.file_name) is None
        ]
        if unvouched:
            identities, complete = _identities(plan, base, cache)
            unvouched = [planned for planned in unvouched if planned.package.identity not in identities]
    if unvouched:
        names = ", ".join(planned.file_name for planned in unvouched[:_MAX_SHOWN])
        names += " …" if len(unvouched) > _MAX_SHOWN else ""
        if complete:
            raise InputError(f"{names}: is in none of the indexes that the lock names", hint=_RESTORE_HINT)
        message = f"{names}: no trusted key signed it, and the index that the lock names is gone"
        raise InputError(message, hint=_GONE_HINT)


def _identities(plan: Plan, base: Base, cache: Cache) -> tuple[set[str], bool]:
    """Return the identities of all packages in the plan's indexes, and whether every index was available.

    Raises:
        InputError: an index exists, but no trusted key signed it.
    """
    indexes = [packages_of(index, base.keyring, cache) for index in plan.indexes]
    identities = {package.identity for packages in indexes if packages is not None for package in packages}
    return identities, None not in indexes
