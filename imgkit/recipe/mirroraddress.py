"""The address of a mirror: a URL, or a folder that has the layout of one."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

_WEB = ("http://", "https://")
_FILE = "file:"
_PATHS = ("/", "./", "../")


def absolute_mirror(address: str, folder: Path) -> str:
    """Return the URL of a mirror. A path is relative to ``folder``, and becomes ``file:///srv/alpine``.

    A path begins with ``/``, ``./`` or ``../``. Everything else is returned as it is.
    """
    if address in (".", "..") or address.startswith(_PATHS):
        return (folder / address).resolve().as_uri()
    return address


def folder_of(address: str) -> Path | None:
    """Return the folder that a ``file:`` URL names (RFC 8089); None if it is another URL, or of another computer."""
    parts = urlsplit(address)
    if parts.scheme != _FILE[:-1] or parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        return None
    return Path(unquote(parts.path))


def mirror_fault(address: str) -> str | None:
    """Return what is wrong with the address of a mirror; None if nothing is."""
    if address.startswith(_WEB):
        return None
    folder = folder_of(address)
    if folder is None:
        return f"{address!r} is not an http(s) URL, nor a folder such as /srv/alpine"
    return None if folder.is_dir() else f"{folder} does not exist"
