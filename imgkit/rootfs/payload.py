"""Folders of the host in the Tree: overlays and the agent's payload.

Contents stay where they are (:class:`~imgkit.tree.Slice`), so a folder must not change before the image is
written. Owners, modes and times of the host mean nothing in the image: they are normalised.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from imgkit.errors import InputError
from imgkit.tree import Content, Directory, File, HardLink, Inline, Slice, Symlink, Tree, TreeError, check_path, kind

PAYLOAD = "opt/agent-runner"
MAX_DEPTH = 256
"""Folders in one another. Each is a call in a call, and Python's stack ends."""


@dataclass(frozen=True)
class _Entry:
    """One thing found on the host. ``name`` is relative to the folder; ``target`` is set for links only."""

    name: str
    path: Path
    status: os.stat_result
    target: str | None = None


def add_directory(
    tree: Tree, source: Path, destination: str, *, uid: int = 0, gid: int = 0, epoch: int, follow: bool = False
) -> list[str]:
    """Copy what is in the folder ``source`` into the directory ``destination`` of the Tree (``""`` is its root).

    Directories are merged and keep the attributes that they have in the Tree; new ones get 0755. Files replace what
    was there; they get 0755 if their owner may execute them, else 0644: setuid bits never come from a host. A
    directory where the Tree has a link to a directory goes where that link leads.

    Args:
        epoch: modification time of everything, seconds since 1970.
        follow: a symbolic link that leads out of the folder is replaced by what it leads to.

    Returns:
        The paths in the Tree that were written, directories included.

    Raises:
        InputError: the folder has something that cannot be in an image (a socket, a device, an unreadable file, a
            link that leads out of it, a name with control characters), or a file stands where a directory is wanted
            or the other way round. The message names it. The Tree is changed only after the folder has been checked.
    """
    entries = list(scan(source, absolute=not destination, follow=follow))
    try:
        top = tree.resolve(destination)
        tree.mkdir(top, uid=uid, gid=gid, mtime=epoch)
        return [_put(tree, top, entry, uid, gid, epoch) for entry in entries]
    except TreeError as cause:
        raise InputError(f"{source}: cannot be put into /{destination}: {cause}") from cause


def _put(tree: Tree, top: str, entry: _Entry, uid: int, gid: int, epoch: int) -> str:
    folder, _, name = f"{top}/{entry.name}".lstrip("/").rpartition("/")
    path = f"{tree.resolve(folder)}/{name}".lstrip("/")
    old = tree.get(path)
    if stat.S_ISDIR(entry.status.st_mode):
        return _merge(tree, entry, path, Directory(uid=uid, gid=gid, mtime=epoch))
    if isinstance(old, Directory):
        raise InputError(f"{entry.path}: /{path} is a directory in the image")
    if isinstance(old, File | HardLink):
        tree.remove(path)  # other names of it keep the old contents
    if entry.target is not None:
        tree.add(path, Symlink(target=entry.target, uid=uid, gid=gid, mtime=epoch))
        return path
    size = entry.status.st_size
    content: Content = Slice(entry.path, 0, size) if size else Inline(b"")
    mode = 0o755 if entry.status.st_mode & stat.S_IXUSR else 0o644
    tree.add(path, File(content=content, mode=mode, uid=uid, gid=gid, mtime=epoch))
    return path


def _merge(tree: Tree, entry: _Entry, path: str, new: Directory) -> str:
    """Make the directory at ``path`` unless there is one, or a link to one; return where it is."""
    old = tree.get(path)
    if old is None:
        tree.add(path, new)
        return path
    if not isinstance(tree.stat(path), Directory):
        raise InputError(f"{entry.path}: /{path} is a {kind(old)} in the image, not a directory")
    return tree.resolve(path)


# ---- looking at the host ---------------------------------------------------------------------------------------------


def scan(source: Path, *, absolute: bool, follow: bool = False) -> Iterator[_Entry]:
    """Everything in ``source`` in a fixed order, directories before what is in them.

    Args:
        absolute: whether links with an absolute target may stay, because the folder is the image's root.
        follow: see :func:`add_directory`.

    Raises:
        InputError: see :func:`add_directory`.
    """
    if not source.is_dir():
        raise InputError(f"{source}: no such folder")
    yield from _scan(source, "", absolute=absolute, follow=follow, above=(source.resolve(),))


def _scan(folder: Path, prefix: str, *, absolute: bool, follow: bool, above: tuple[Path, ...]) -> Iterator[_Entry]:
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names as they are, surrogates included
    except OSError as cause:
        raise InputError(f"{folder}: cannot be read: {cause.strerror}") from cause
    for each in names:
        name, path = prefix + each, folder / each
        entry = _entry(name, path, above[0], absolute=absolute, follow=follow)
        yield entry
        if stat.S_ISDIR(entry.status.st_mode):
            real = path.resolve()
            if real in above:
                raise InputError(f"{path}: the link leads round in a circle")
            if len(above) > MAX_DEPTH:
                raise InputError(f"{above[0]}: more than {MAX_DEPTH} folders deep")
            yield from _scan(path, name + "/", absolute=absolute, follow=follow, above=(*above, real))


def _entry(name: str, path: Path, top: Path, *, absolute: bool, follow: bool) -> _Entry:
    try:
        check_path(name)
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(path)  # noqa: PTH115 - as it is written, not as pathlib normalises it
            if _stays(name, target, top, absolute=absolute) and (absolute or _really_stays(path, top)):
                return _Entry(name, path, status, target)
            if not follow:
                raise InputError(
                    f"{path}: the link to {target} leads out of the folder",
                    hint="copy what it leads to, or link to something in the folder with a relative target",
                )
            status = path.stat()
        return _checked(_Entry(name, path, status))
    except TreeError as cause:
        raise InputError(f"{path.parent}: {cause}") from cause
    except OSError as cause:
        raise InputError(f"{path}: cannot be read: {cause.strerror}") from cause


def _checked(entry: _Entry) -> _Entry:
    """``entry``, if it is a directory or a file that can be opened. Raises InputError or OSError."""
    if stat.S_ISREG(entry.status.st_mode):
        entry.path.open("rb").close()
    elif not stat.S_ISDIR(entry.status.st_mode):
        raise InputError(f"{entry.path}: neither a file nor a directory nor a link")
    return entry


def _stays(name: str, target: str, top: Path, *, absolute: bool) -> bool:
    """Whether the link ``name`` to ``target`` leads to a place in the folder, judged by its text alone.

    In a folder that becomes the image's root an absolute target is a path of the image, unless it is this very folder
    on the host.
    """
    if target.startswith("/"):
        return absolute and not PurePosixPath(target).is_relative_to(top)
    depth = name.count("/")
    for part in target.split("/"):
        depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
        if depth < 0:
            return False
    return True


def _really_stays(path: Path, top: Path) -> bool:
    """Whether a link leads into the folder ``top`` once the links on its way are followed, which its text hides."""
    return Path(os.path.realpath(path)).is_relative_to(top)


# ---- the agent's payload ---------------------------------------------------------------------------------------------


def replace_payload(
    tree: Tree, folder: Path, *, epoch: int, destination: str = PAYLOAD, uid: int = 0, gid: int = 0
) -> list[str]:
    """Put ``folder`` (see :func:`imgkit.rootfs.npm.prepare.prepare`) in place of the payload that the Tree has.

    Returns:
        The paths in the Tree that were written.

    Raises:
        InputError: see :func:`add_directory`.
    """
    top = tree.resolve(destination)
    if top in tree:
        for path in reversed([path for path, _ in tree.walk(top)]):
            tree.remove(path)
    return add_directory(tree, folder, destination, uid=uid, gid=gid, epoch=epoch)
