"""Which package each file of a root filesystem belongs to, according to the database of installed packages."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from imgkit.apk.database import InstalledPackage


def owners_of(installed: Iterable[InstalledPackage], resolve: Callable[[str], str]) -> dict[str, str]:
    """Return path → name of the package, for every file and link of the packages. Directories may have several owners.

    Args:
        resolve: returns the path of a directory without symbolic links, neither with a slash at the beginning.
    """
    owners: dict[str, str] = {}
    for record in installed:
        for directory in record.directories:
            folder = resolve(directory.path)
            for file in directory.files:
                owners["/" + (f"{folder}/{file.name}" if folder else file.name)] = record.package.name
    return owners
