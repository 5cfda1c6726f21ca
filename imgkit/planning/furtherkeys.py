"""The keys of a recipe's further repositories. Each vouches for its own repository, and for nothing else.

apk knows one set of keys, any of which may sign anything; in the image it is so for its own apk. Whoever has the key of
a company's repository could then replace any package of Alpine; in a build they cannot.
"""

from __future__ import annotations

from collections.abc import Mapping

from imgkit.apk.signature import Keyring
from imgkit.host.jsonfile import read_bytes
from imgkit.planning.localfolders import folder_urls
from imgkit.recipe import Recipe, RepositorySpec

_MAX_KEY = 1 << 16


def keyrings_of(recipe: Recipe, alpine: str) -> Mapping[str, Keyring]:
    """Read the keys of the further repositories.

    Args:
        alpine: Alpine's name of the architecture, ``x86_64``.

    Returns:
        The keys that are trusted for the files below a URL, for the repositories that have keys of their own.

    Raises:
        InputError: a file is not a public key.
    """
    keyrings: dict[str, Keyring] = {}
    for repository in recipe.further_repositories:
        if repository.key is not None:
            keyring = Keyring.from_files({repository.key.name: read_bytes(repository.key, _MAX_KEY)})
            keyrings.update(dict.fromkeys(_urls(repository, alpine), keyring))
    return keyrings


def _urls(repository: RepositorySpec, alpine: str) -> tuple[str, ...]:
    if repository.folder is not None:
        return folder_urls(repository.folder, alpine)
    return (f"{repository.url}/{alpine}",)
