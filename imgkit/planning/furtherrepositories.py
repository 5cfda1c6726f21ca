"""The further repositories of a recipe: the keys that vouch for them, and which of them are on this computer.

A key vouches for its own repository, and for nothing else. apk knows one set of keys, any of which may sign anything;
in the image it is so for its own apk. Whoever has the key of a company's repository could then replace any package of
Alpine; in a build they cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from imgkit.apk.signature import Keyring
from imgkit.host.jsonfile import read_bytes
from imgkit.planning.localfolders import file_of, folder_urls
from imgkit.recipe import Recipe

_MAX_KEY = 1 << 16


@dataclass(frozen=True)
class FurtherRepositories:
    """What is special about the files of further repositories.

    Attributes:
        keyrings: by URL of a folder, the keys that are trusted for the files in it instead of Alpine's.
        folders: the URLs of folders on this computer.
    """

    keyrings: Mapping[str, Keyring] = field(default_factory=lambda: MappingProxyType({}))
    folders: frozenset[str] = frozenset()

    def keyring_of(self, url: str, usual: Keyring) -> Keyring:
        """Return the keys that are trusted to sign the file at a URL, which are the ``usual`` ones for other files."""
        return self.keyrings.get(url.rpartition("/")[0], usual)

    def file_at(self, url: str) -> Path | None:
        """Return the file at a URL if it is in one of the folders on this computer, None for other files."""
        return file_of(url) if url.rpartition("/")[0] in self.folders else None


def further_repositories(recipe: Recipe, alpine: str) -> FurtherRepositories:
    """Read the keys of the further repositories of a recipe.

    Args:
        alpine: Alpine's name of the architecture, ``x86_64``.

    Raises:
        InputError: a file is not a public key.
    """
    keyrings: dict[str, Keyring] = {}
    folders: set[str] = set()
    for repository in recipe.further_repositories:
        urls = folder_urls(repository.folder, alpine) if repository.folder else (f"{repository.url}/{alpine}",)
        folders.update(urls if repository.folder else ())
        if repository.key is not None:
            keyring = Keyring.from_files({repository.key.name: read_bytes(repository.key, _MAX_KEY)})
            keyrings.update(dict.fromkeys(urls, keyring))
    return FurtherRepositories(MappingProxyType(keyrings), frozenset(folders))
