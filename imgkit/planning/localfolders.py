"""Repositories that are folders on this computer: with apk's layout and an index, or simply with signed packages.

Their files are read where they are. They are checked exactly like files of a mirror.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from imgkit.apk.index import Package, Repository
from imgkit.apk.packagerecord import read_package
from imgkit.apk.signature import Keyring
from imgkit.errors import InputError, RecipeError
from imgkit.fetch.cache import Wanted, hash_file
from imgkit.host import lookup

_SCHEME = "file"


def file_of(url: str) -> Path:
    """Return the file or folder that a ``file:`` URL names."""
    return Path(unquote(urlsplit(url).path))


def published_url(url: str) -> str:
    """Return the URL as manifests have it, without the folders of this computer: ``file:hello-1.0-r0.apk``."""
    return f"{_SCHEME}:{file_of(url).name}" if urlsplit(url).scheme == _SCHEME else url


def folder_urls(folder: Path, alpine: str) -> tuple[str, str]:
    """Return the URLs below which packages of a folder may be: that of the architecture, and its own.

    Args:
        alpine: Alpine's name of the architecture, ``x86_64``.
    """
    return (folder / alpine).as_uri(), folder.as_uri()


def packages_in(folder: Path, keyring: Keyring, repository: Repository) -> tuple[Package, ...]:
    """Return the records of the packages in a folder that has no index, in the order of their file names.

    Raises:
        SignatureError: no trusted key signed a package.
        InputError: a file is not a package, or has another name than its package.
    """
    return tuple(read_package(path, keyring, repository) for path in sorted(folder.glob("*.apk")))


def url_of(folder: Path, alpine: str, index: str) -> str:
    """Return the URL below which a folder has packages for an architecture.

    Args:
        alpine: Alpine's name of the architecture, ``x86_64``.
        index: the file name of an index.

    Raises:
        RecipeError: there is neither an index nor a package.
    """
    with_architecture, own = folder_urls(folder, alpine)
    if lookup.is_file(folder / alpine / index, RecipeError) or any((folder / alpine).glob("*.apk")):
        return with_architecture
    if any(folder.glob("*.apk")):
        return own
    raise RecipeError(
        f"repositories: {folder}: has no packages for {alpine}",
        hint=f"it needs {alpine}/{index}, or .apk files in it or in {alpine}/",
    )


def check_local(path: Path, wanted: Wanted) -> Path:
    """Return ``path`` if it is the file that is wanted.

    Raises:
        InputError: it is missing, cannot be read, or is something else.
    """
    try:
        size = path.stat().st_size
        if wanted.size is not None and size != wanted.size:
            raise InputError(f"{path}: has {size} bytes instead of {wanted.size}: it is not what its index names")
        if wanted.sha256 is not None and (actual := hash_file(path)) != wanted.sha256:
            raise InputError(f"{path}: has the SHA-256 {actual} instead of {wanted.sha256}")
        if wanted.check is not None:
            wanted.check(path)
    except OSError as cause:
        raise InputError(f"{path}: cannot be read: {cause.strerror}") from cause
    return path
