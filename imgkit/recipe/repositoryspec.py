"""The field ``repositories`` of a recipe: the branch's own ones by name, and further ones with a key of their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, TypeAlias
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Discriminator, Field, Tag

from imgkit.recipe.record import RecipeRecord, matching

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
NAME_FORM, RECORD_FORM = "<name>", "<record>"
"""Marks in the places of pydantic's errors that say which form an entry of the list has."""


def _location(text: str) -> str:
    """Return an http(s) URL without a slash at its end, or the path of a folder as it is."""
    if not text or _CONTROL.search(text):
        raise ValueError("is neither an http(s) URL nor the path of a folder")
    parts = urlsplit(text)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return unquote(parts.path)
    if not _SCHEME.match(text):
        return text
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or " " in text:
        raise ValueError("is not an http(s) URL; a folder is given by its path")
    if "@" in parts.netloc:
        raise ValueError("has a user name in it, which would be in the lock and in the image: put it into ~/.netrc")
    return text.rstrip("/")


class RepositorySpec(RecipeRecord):
    """A repository of packages besides those of the branch: a URL, or a folder on this computer."""

    url: Annotated[str, AfterValidator(_location)] = Field(examples=["https://apk.example.com/stable", "packages"])
    """What apk has in ``/etc/apk/repositories``: the address below which ``x86_64/APKINDEX.tar.gz`` is; or a folder,
    relative to the recipe, with that layout or simply with signed ``.apk`` files."""
    key: Path | None = Field(default=None, examples=["keys/packages@example.com-5f3c1a2b.rsa.pub"])
    """The public key that signs its index (its packages, in a folder without an index), relative to the recipe. The
    file's name is what signatures call the key. It vouches for this repository alone. Without it, one of the keys that
    Alpine has in the image must have signed."""
    tag: Annotated[str, matching(r"[A-Za-z0-9_.-]+", "is not a tag: letters, digits and . _ -")] | None = Field(
        default=None, examples=["example"]
    )
    """Only packages that are written ``name@tag``, and what these need, may come from a repository with a tag."""

    @property
    def folder(self) -> Path | None:
        """The folder on this computer; None for a URL."""
        return None if _SCHEME.match(self.url) else Path(self.url)


def _form(value: object) -> str:
    return NAME_FORM if isinstance(value, str) else RECORD_FORM


BranchRepository = Annotated[
    str, matching(r"[a-z0-9/_-]+", 'is not the name of a repository of the branch; a further one is {"url": "…"}')
]
RepositoryEntry: TypeAlias = Annotated[
    Annotated[BranchRepository, Tag(NAME_FORM)] | Annotated[RepositorySpec, Tag(RECORD_FORM)], Discriminator(_form)
]
