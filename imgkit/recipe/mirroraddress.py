"""The address of a mirror: a URL, or a folder that has the layout of one, whose URL is ``file:///srv/alpine``."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from imgkit.host import lookup

_WEB = ("http://", "https://")
_PATHS = ("/", "./", "../")


def absolute_mirror(address: str, folder: Path) -> str:
    """Return the URL of a mirror. A path is relative to ``folder``.

    A path begins with ``/``, ``./`` or ``../``. Of ``file:`` URLs there is one form. All else is returned as it is.
    """
    is_path = address in (".", "..") or address.startswith(_PATHS)
    place = lookup.real(folder / address) if is_path else folder_of(address)
    return address if place is None else place.as_uri()


def folder_of(address: str) -> Path | None:
    """Return the folder that a ``file:`` URL names (RFC 8089); None if it is another URL, or of another computer."""
    try:
        parts = urlsplit(address)
    except ValueError:  # such as http://[
        return None
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        return None
    return Path(unquote(parts.path))


def mirror_fault(address: str) -> str | None:
    """Return what is wrong with the address of a mirror; None if nothing is."""
    if address.startswith(_WEB):
        return None
    folder = folder_of(address)
    if folder is None:
        return f"{address!r} is not an http(s) URL, nor a folder such as /srv/alpine"
    return lookup.folder_fault(folder)
