"""Contents of files in a blob of :mod:`imgkit.fetch.kept`, as values for JSON::

record = store_node(node, store_content)
node = load_node(record, partial(load_content, kept.blob(key)))
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from imgkit.tree import Content, File, HashedSlice, Inline, Node


def store_content(content: Content) -> list[Any]:
    """Return the place of a content in its blob, its SHA-256 and its first bytes.

    Raises:
        TypeError: it is neither in a blob nor empty.
    """
    if isinstance(content, HashedSlice):
        return [content.offset, content.size, content.sha256.hex(), content.start.hex()]
    if content.size:
        raise TypeError("the content is not in a spool")
    return []


def load_content(blob: Path, stored: list[Any]) -> Content:
    """Return a content of a blob.

    Raises:
        ValueError, TypeError: it is not what :func:`store_content` returned.
    """
    if not stored:
        return Inline(b"")
    offset, size, sha256, start = stored
    return HashedSlice(blob, offset, size, bytes.fromhex(sha256), bytes.fromhex(start))


def moved(node: Node, blob: Path) -> Node:
    """Return a node whose content is in another file, at the same place."""
    if not isinstance(node, File) or not isinstance(node.content, HashedSlice):
        return node
    return replace(node, content=replace(node.content, path=blob))
