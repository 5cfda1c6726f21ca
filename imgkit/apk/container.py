"""Recognize packages and package indexes of format version 2, which consist of gzip members."""

from __future__ import annotations

from imgkit.errors import InputError
from imgkit.fetch.checks import looks_like_html, refuse_version_3
from imgkit.tree.gzipmembers import GZIP_MAGIC


def refuse_foreign(head: bytes, name: str) -> None:
    """Refuse a file whose first bytes are not those of a package or index of format version 2.

    Raises:
        Version3Error: the file is in the format of version 3.
        InputError: the file is a web page, empty, or not gzip data.
    """
    if head.startswith(GZIP_MAGIC):
        return
    refuse_version_3(head, name)
    if looks_like_html(head):
        raise InputError(f"{name}: is a web page", hint="check the mirror's URL, and whether a proxy or portal answers")
    raise InputError(f"{name}: is empty" if not head else f"{name}: is not gzip data")
