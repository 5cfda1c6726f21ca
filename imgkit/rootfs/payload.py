"""Copy folders of the host into the Tree: overlays and the agent's payload.

    add_directory(tree, Path("overlay"), "", epoch=epoch)
    replace_payload(tree, Path("agent"), epoch=epoch)

File contents stay on the host (:class:`~imgkit.tree.Slice`), so a folder must not change before the image is written.
Owners and times of the host have no meaning in the image, so they are normalised; modes are, unless the caller chooses.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from imgkit.errors import InputError
from imgkit.host import lookup
from imgkit.tree import (
    Content,
    Directory,
    File,
    Inline,
    Slice,
    Symlink,
    Tree,
    TreeError,
    check_path,
    kind,
    leads_out,
)

PAYLOAD = "opt/agent-runner"
MAX_DEPTH = 256
"""Maximum depth of nested folders. Each level is a nested call, and Python limits the depth of calls."""


@dataclass(frozen=True)
class HostEntry:
    """A file, directory or link of the host. ``name`` is relative to the folder; only links have a ``target``."""

    name: str
    path: Path
    status: os.stat_result
    target: str | None = None


def normal_mode(status_mode: int) -> int:
    """Return the mode that a file or directory of the host has in the image: what git keeps of it.

    That is 0755 for directories and for files that their owner may execute, and 0644 for others, so that it does not
    depend on a umask, and set-user-id bits never come from a host.
    """
    return 0o755 if stat.S_ISDIR(status_mode) or status_mode & stat.S_IXUSR else 0o644


def add_directory(
    tree: Tree, source: Path, destination: str, *, epoch: int, mode_of: Callable[[int], int] = normal_mode
) -> list[str]:
    """Copy what is in the folder ``source`` into the directory ``destination`` of the Tree (``""`` is its root).

    All new entries belong to root. Directories are merged and keep the attributes that they have in the Tree. Files
    replace existing ones. Where the Tree has a link to a directory, a directory is merged into its target.

    Args:
        epoch: modification time of everything that is written, seconds since 1970.
        mode_of: returns the mode of a file or directory in the image for its mode on the host (``st_mode``).

    Returns:
        The paths in the Tree that were written, directories included.

    Raises:
        InputError: the folder contains something that cannot be in an image (a socket, a device, an unreadable file, a
            link that leads out of it, a name with control characters), or a file is in the place of a directory of the
            Tree, or the other way round. The message names it. The Tree is changed only after the folder was checked.
    """
    entries = list(scan(source, absolute=not destination))
    try:
        top = tree.resolve(destination)
        tree.mkdir(top, mtime=epoch)
        return [_put(tree, top, entry, epoch, mode_of) for entry in entries]
    except TreeError as cause:
        raise InputError(f"{source}: cannot be put into /{destination}: {cause}") from cause


def _put(tree: Tree, top: str, entry: HostEntry, epoch: int, mode_of: Callable[[int], int]) -> str:
    """Put one entry into the directory ``top`` of the Tree; return its path there."""
    folder, _, name = f"{top}/{entry.name}".lstrip("/").rpartition("/")
    path = f"{tree.resolve(folder)}/{name}".lstrip("/")
    mode = mode_of(entry.status.st_mode)
    if stat.S_ISDIR(entry.status.st_mode):
        return _merge(tree, entry, path, Directory(mode=mode, mtime=epoch))
    if isinstance(tree.get(path), Directory):
        raise InputError(f"{entry.path}: /{path} is a directory in the image")
    if entry.target is not None:
        tree.add(path, Symlink(target=entry.target, mtime=epoch))
        return path
    size = entry.status.st_size
    content: Content = Slice(entry.path, 0, size) if size else Inline(b"")
    tree.add(path, File(content=content, mode=mode, mtime=epoch))  # other names of an old file keep its contents
    return path


def _merge(tree: Tree, entry: HostEntry, path: str, new: Directory) -> str:
    """Make the directory at ``path`` unless there is one, or a link to one; return where it is."""
    old = tree.get(path)
    if old is None:
        tree.add(path, new)
        return path
    if not isinstance(tree.stat(path), Directory):
        raise InputError(f"{entry.path}: /{path} is a {kind(old)} in the image, not a directory")
    return tree.resolve(path)


# ---- reading the host's folder ---------------------------------------------------------------------------------------


def scan(source: Path, *, absolute: bool) -> Iterator[HostEntry]:
    """Yield everything in ``source`` in a fixed order, directories before what is in them.

    Args:
        absolute: whether links with an absolute target are accepted, because the folder becomes the image's root.

    Raises:
        InputError: see :func:`add_directory`.
    """
    if not lookup.is_folder(source, InputError):
        raise InputError(f"{source}: no such folder")
    yield from _scan(source, "", source.resolve(), absolute=absolute)


def _scan(folder: Path, prefix: str, top: Path, *, absolute: bool) -> Iterator[HostEntry]:
    if prefix.count("/") > MAX_DEPTH:
        raise InputError(f"{top}: more than {MAX_DEPTH} folders deep")
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names as they are, surrogates included
    except OSError as cause:
        raise InputError(f"{folder}: cannot be read: {cause.strerror}") from cause
    for name in names:
        entry = _entry(prefix + name, folder / name, top, absolute=absolute)
        yield entry
        if stat.S_ISDIR(entry.status.st_mode):
            yield from _scan(entry.path, f"{entry.name}/", top, absolute=absolute)


def _entry(name: str, path: Path, top: Path, *, absolute: bool) -> HostEntry:
    try:
        check_path(name)
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            return _checked_link(name, path, status, top, absolute=absolute)
        if stat.S_ISREG(status.st_mode):
            path.open("rb").close()  # raises OSError if this user cannot read it
        elif not stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path}: neither a file nor a directory nor a link")
        return HostEntry(name, path, status)
    except TreeError as cause:
        raise InputError(f"{path.parent}: {cause}") from cause
    except OSError as cause:
        raise InputError(f"{path}: cannot be read: {cause.strerror}") from cause


def _checked_link(name: str, path: Path, status: os.stat_result, top: Path, *, absolute: bool) -> HostEntry:
    target = os.readlink(path)  # noqa: PTH115 - as it is written, not as pathlib normalises it
    if not _stays(name, target, top, absolute=absolute) or not (absolute or _resolves_inside(path, top)):
        raise InputError(
            f"{path}: the link to {target} leads out of the folder",
            hint="copy what it leads to, or link to something in the folder with a relative target",
        )
    return HostEntry(name, path, status, target)


def _stays(name: str, target: str, top: Path, *, absolute: bool) -> bool:
    """Return whether the link ``name`` to ``target`` leads to a place in the folder ``top``, judged by its text alone.

    In a folder that becomes the image's root an absolute target is a path of the image, unless it is in this very
    folder on the host.
    """
    if target.startswith("/"):
        return absolute and not PurePosixPath(target).is_relative_to(top)
    return not leads_out(target, name.count("/"))


def _resolves_inside(path: Path, top: Path) -> bool:
    """Return whether a link leads into the folder ``top`` once the links on its way are followed."""
    return Path(os.path.realpath(path)).is_relative_to(top)


# ---- the agent's payload ---------------------------------------------------------------------------------------------


def replace_payload(tree: Tree, folder: Path, *, epoch: int) -> list[str]:
    """Put ``folder`` (see :func:`imgkit.rootfs.npm.prepare.prepare`) in place of the payload that the Tree has.

    Returns:
        The paths in the Tree that were written.

    Raises:
        InputError: see :func:`add_directory`.
    """
    return replace_folder(tree, folder, PAYLOAD, epoch=epoch)


def replace_folder(tree: Tree, folder: Path, destination: str, *, epoch: int) -> list[str]:
    """Put ``folder`` in place of the directory ``destination``, if the Tree has that.

    Returns:
        The paths in the Tree that were written.

    Raises:
        InputError: see :func:`add_directory`.
    """
    top = tree.resolve(destination)
    if top in tree:
        for path in reversed([path for path, _ in tree.walk(top)]):
            tree.remove(path)
    return add_directory(tree, folder, destination, epoch=epoch)
