"""Paths of a Tree, and the check that they are valid."""

from __future__ import annotations

import re

MAX_PATH = 4095
"""Bytes of a path, and of a link's target, as in Linux (PATH_MAX without its final zero)."""
MAX_NAME = 255
"""Bytes of a name in a directory, as in Linux (NAME_MAX)."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class TreeError(Exception):
    """A path or an operation is not possible in this Tree. Callers turn it into an error of :mod:`imgkit.errors`."""


def check_path(path: str) -> str:
    """Return ``path`` if it is a valid path of a Tree.

    Raises:
        TreeError: the path is absolute, has empty, ``.`` or ``..`` parts or control characters (apk refuses these,
            too), or is longer than filesystems allow.
    """
    if len(path) > MAX_NAME // 4 and _is_too_long(path):  # a character has at most four bytes
        raise TreeError(f"{path[:80]!r}… is longer than a path may be")
    if path and any(part in ("", ".", "..") for part in path.split("/")):
        raise TreeError(f"{path!r} is not a path inside the root filesystem")
    if _CONTROL.search(path):
        raise TreeError(f"{path!r} has control characters in it")
    return path


def _is_too_long(path: str) -> bool:
    return len(encoded(path)) > MAX_PATH or any(len(encoded(part)) > MAX_NAME for part in path.split("/"))


def encoded(text: str) -> bytes:
    """Return the bytes of a path or a link's target; surrogates stand for bytes that are not UTF-8."""
    return text.encode(errors="surrogateescape")


def leads_out(path: str, depth: int = 0) -> bool:
    """Return whether the text of a relative path leads out of a folder. Links on its way are not followed.

    Args:
        path: with ``/`` between its parts.
        depth: number of folders that the path's start is below the folder; 0 for the folder itself.
    """
    for part in path.split("/"):
        depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
        if depth < 0:
            return True
    return False


def by_parts(path: str) -> str:
    """Return a key that sorts paths by their parts, so that what is in a directory follows it: ``a/b`` before ``a-b``.

    A NUL comes before every character that a path can have. Lists of the parts take seven times as long.
    """
    return path.replace("/", "\0")


def parent(path: str) -> str:
    """Return the directory that ``path`` is in."""
    return path.rpartition("/")[0]
