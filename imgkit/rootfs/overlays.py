"""Copy the folders of a recipe's ``overlay`` or ``overlays`` into the Tree, and say what does not come with them.

Permission bits are those of the host, unless the recipe asks for what git keeps (docs/decisions/0014). Set-user-id,
set-group-id and sticky bits are never taken: a program with the rights of root must come from a package.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Sequence

from imgkit.host.gitfacts import tracked_files
from imgkit.recipe import OverlaySpec
from imgkit.rootfs.payload import HostEntry, add_directory, normal_mode, scan
from imgkit.tree import Tree

log = logging.getLogger("imgkit")

_SPECIAL = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
_PERMISSIONS = 0o777
_MOST_NAMED = 3  # files that a message names


def add_overlay_folder(tree: Tree, overlay: OverlaySpec, *, epoch: int) -> list[str]:
    """Copy a folder over the root filesystem, with warnings about permission bits that are lost or will be.

    Args:
        epoch: modification time of everything that is written, seconds since 1970.

    Returns:
        The paths in the Tree that were written, directories included.

    Raises:
        InputError: see :func:`imgkit.rootfs.payload.add_directory`.
    """
    entries = [entry for entry in scan(overlay.path, absolute=True) if entry.target is None]
    _warn_of_special_bits(overlay, entries)
    if overlay.modes == "git":
        return add_directory(tree, overlay.path, "", epoch=epoch)
    _warn_of_umask(overlay, entries)
    return add_directory(tree, overlay.path, "", epoch=epoch, mode_of=lambda mode: mode & _PERMISSIONS)


def _warn_of_special_bits(overlay: OverlaySpec, entries: Sequence[HostEntry]) -> None:
    """Name files and folders that have bits which are never taken.

    A set-group-id bit of a folder is how hosts share folders among a group, and new folders inherit it; it is named as
    well, since somebody may have meant it for the image.
    """
    special = [entry for entry in entries if entry.status.st_mode & _SPECIAL]
    if special:
        bits = "set-user-id, set-group-id and sticky bits are not taken from overlays"
        log.warning("%s: %s: %s", overlay.path, bits, _listed(special))


def _warn_of_umask(overlay: OverlaySpec, entries: Sequence[HostEntry]) -> None:
    """Name files that git tracks and whose permission bits it does not keep: another clone makes another image."""
    finer = [entry for entry in entries if entry.status.st_mode & _PERMISSIONS != normal_mode(entry.status.st_mode)]
    if not finer:
        return
    files = tracked_files(overlay.path)
    folders = {name[:end] for name in files for end, sign in enumerate(name) if sign == "/"}
    finer = [entry for entry in finer if entry.name in files or entry.name in folders]
    if finer:
        log.warning(
            "%s: git does not keep these permission bits, so another clone may make another image: %s "
            '(write modes = "git" for this overlay, or state the modes in files)',
            overlay.path,
            _listed(finer),
        )


def _listed(entries: Sequence[HostEntry]) -> str:
    """Return the names of some entries with their modes: ``etc/token (0600), etc/x (0640) and 3 more``."""
    named = ", ".join(f"{entry.name} ({stat.S_IMODE(entry.status.st_mode):04o})" for entry in entries[:_MOST_NAMED])
    return named + (f" and {len(entries) - _MOST_NAMED} more" if len(entries) > _MOST_NAMED else "")
