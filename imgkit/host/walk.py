"""Walk and remove trees of folders that are not trusted, by descriptors and without recursion::

    for entry in Walk(descriptor):
        print(entry.name, entry.status.st_size)

A guest, or another user of the host, may leave a tree that is 100,000 folders deep, that has folders without
permissions or links to files of the host, or that is moved while it is walked. For that reason each step opens a folder
relative to the descriptor of the one above, without following links; no path is put together, since a path has at most
4,096 bytes; the way up is ``..`` of the folder, which is compared with the folder that was left; and at most
:data:`HELD` folders are open at a time.

The module can be run as a program (``python -I walk.py FOLDER``) that removes the folder; it imports nothing of imgkit.
"""

from __future__ import annotations

import os
import stat
import sys
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

HELD = 32
"""How many folders above the current one are kept open. Further up, ``..`` is opened."""
_BATCH = 4096  # names that are read before they are removed
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class MovedError(OSError):
    """A folder was moved while the tree was walked, so that the way up is lost."""


class FolderEntry(NamedTuple):
    """An entry of a folder.

    Attributes:
        folder: a descriptor of the folder, which is valid until the next step.
        name: the name in the folder.
        status: of the entry itself, also if it is a link.
    """

    folder: int
    name: str
    status: os.stat_result


class _Place:
    """A position in a tree of folders, which is moved one step at a time."""

    def __init__(self, top: int) -> None:
        self.descriptor = os.open(".", _FOLDER, dir_fd=top)
        self.names: list[str] = []
        self._identities: list[tuple[int, int]] = []  # of the folders above
        self._held: deque[int] = deque()  # descriptors of the nearest folders above, the nearest last

    def enter(self, descriptor: int, name: str) -> None:
        """Go down to the folder ``name``, which is open as ``descriptor``."""
        self._identities.append(_identity(self.descriptor))
        self._held.append(self.descriptor)
        self.names.append(name)
        self.descriptor = descriptor
        if len(self._held) > HELD:
            os.close(self._held.popleft())

    def leave(self) -> str:
        """Go up, and return the name of the folder that was left.

        Raises:
            MovedError: the folder above is not the one that was entered from.
        """
        expected = self._identities.pop()
        above = self._held.pop() if self._held else os.open("..", _FOLDER, dir_fd=self.descriptor)
        os.close(self.descriptor)
        self.descriptor = above
        if _identity(above) != expected:
            raise MovedError(f"{self.names[-1]!r} was moved while it was read")
        return self.names.pop()

    def close(self) -> None:
        """Close all descriptors."""
        while self._held:
            os.close(self._held.pop())
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Walk:
    """Everything below a folder. It can be iterated once, for one :class:`FolderEntry` each; folders come first.

    Mount points are crossed, and links are not followed.

    Attributes:
        unread: how many folders could not be read.
        newest_unread: when a folder of ``owners`` that could not be read was last changed (Unix time).
    """

    def __init__(self, top: int, owners: Collection[int] | None = None) -> None:
        """Begin a walk.

        Args:
            top: a descriptor of the folder, which is left open.
            owners: uids whose folders count for ``newest_unread``; None for all.
        """
        self.unread = 0
        self._owners = owners
        self.newest_unread = float("-inf")
        self._place = _Place(top)

    def path(self, name: str) -> str:
        """Return the path of ``name`` in the current folder, relative to the top.

        It may be longer than a system call accepts.
        """
        return "/".join((*self._place.names, name))

    def __iter__(self) -> Iterator[FolderEntry]:
        """Yield the entries.

        Raises:
            MovedError: a folder was moved. The entries that were yielded before are valid.
        """
        waiting: list[list[str]] = []  # folders still to be entered, one list for each level
        try:
            while True:
                folders: list[str] = []
                yield from self._entries(folders)
                waiting.append(folders)
                while not self._enter(waiting[-1]):
                    waiting.pop()
                    if not waiting:
                        return
                    self._place.leave()
        finally:
            self._place.close()

    def _entries(self, folders: list[str]) -> Iterator[FolderEntry]:
        """Yield the entries of the current folder. The names of its folders are added to ``folders``."""
        here = self._place.descriptor
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except PermissionError:  # the folder may be listed, but not searched
                        self._note(os.fstat(here))
                        continue
                    except OSError:  # it has been removed
                        continue
                    if stat.S_ISDIR(status.st_mode):
                        folders.append(entry.name)
                    yield FolderEntry(here, entry.name, status)
        except OSError:
            self._note(os.fstat(here))

    def _note(self, status: os.stat_result) -> None:
        """Count a folder that could not be read."""
        self.unread += 1
        if self._owners is None or status.st_uid in self._owners:
            self.newest_unread = max(self.newest_unread, status.st_ctime)

    def _enter(self, folders: list[str]) -> bool:
        """Enter the next of ``folders`` that can be opened, and return False if there is none."""
        while folders:
            name = folders.pop()
            try:
                descriptor = os.open(name, _FOLDER, dir_fd=self._place.descriptor)
            except FileNotFoundError:
                continue
            except OSError:
                with suppress(OSError):
                    self._note(os.stat(name, dir_fd=self._place.descriptor, follow_symlinks=False))
                continue
            self._place.enter(descriptor, name)
            return True
        return False


def remove(path: Path) -> bool:
    """Remove a folder of this user with everything in it.

    Folders without permissions are given them; links are removed, and not followed. What is mounted in the tree, and
    what cannot be removed, stays.

    Returns:
        Whether the folder is gone. No exception is raised.
    """
    try:
        above = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        descriptor = _open_up(path.name, above)
        try:
            empty(descriptor)
        finally:
            os.close(descriptor)
        os.rmdir(path.name, dir_fd=above)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    finally:
        os.close(above)
    return True


def empty(top: int) -> bool:
    """Remove everything in the folder that is open as ``top``, as :func:`remove` does.

    Returns:
        Whether nothing is left in it.
    """
    try:
        _make_usable(top)
        return _Emptying(top).run()
    except OSError:
        return False


class _Level:
    """A folder that is being emptied, on the way to the current one."""

    def __init__(self) -> None:
        self.folders: list[str] = []  # still to be entered
        self.more = True  # whether there may be names that have not been read
        self.stuck: set[str] = set()  # names that cannot be removed


class _Emptying:
    """The removal of everything in one folder."""

    def __init__(self, top: int) -> None:
        self._place = _Place(top)
        self._mount = _mount(top)
        self._levels = [_Level()]

    def run(self) -> bool:
        """Remove everything, and return whether nothing is left.

        Raises:
            MovedError: a folder was moved.
            OSError: no more descriptors can be opened.
        """
        try:
            while True:
                level = self._levels[-1]
                if level.folders:
                    self._enter(level.folders.pop(), level)
                elif level.more:
                    self._clear(level)
                elif len(self._levels) > 1:
                    self._leave()
                else:
                    return not level.stuck
        finally:
            self._place.close()

    def _clear(self, level: _Level) -> None:
        """Remove the files among the next names, and note the folders. Names are read first, and removed afterwards."""
        names: list[tuple[str, bool]] = []
        level.more = False
        with suppress(OSError), os.scandir(self._place.descriptor) as entries:
            for entry in entries:
                if entry.name not in level.stuck:
                    names.append((entry.name, _is_folder(entry)))
                if len(names) == _BATCH:
                    level.more = True
                    break
        for name, is_folder in names:
            if is_folder:
                level.folders.append(name)
                continue
            try:
                os.unlink(name, dir_fd=self._place.descriptor)
            except OSError:
                level.stuck.add(name)

    def _enter(self, name: str, level: _Level) -> None:
        """Enter a folder, unless something is mounted there."""
        descriptor = -1
        try:
            descriptor = _open_up(name, self._place.descriptor)
            if _mount(descriptor) != self._mount:
                raise OSError("something is mounted there")
        except OSError:
            level.stuck.add(name)
            if descriptor >= 0:
                os.close(descriptor)
            return
        self._place.enter(descriptor, name)
        self._levels.append(_Level())

    def _leave(self) -> None:
        """Go up, and remove the folder that was left."""
        self._levels.pop()
        name = self._place.leave()
        try:
            os.rmdir(name, dir_fd=self._place.descriptor)
        except OSError:
            self._levels[-1].stuck.add(name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _identity(descriptor: int) -> tuple[int, int]:
    """Return the device and inode of an open folder, which identify it on this host."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _mount(descriptor: int) -> tuple[int, bytes]:
    """Return the identity of a mount: the device and, on Linux, the number of the mount (proc(5)).

    The same device can be mounted twice.
    """
    fdinfo = b""
    with suppress(OSError):
        source = os.open(f"/proc/self/fdinfo/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fdinfo = os.read(source, 512)
        finally:
            os.close(source)
    return os.fstat(descriptor).st_dev, fdinfo.partition(b"mnt_id:")[2].partition(b"\n")[0].strip()


def _open_up(name: str, above: int) -> int:
    """Open the folder ``name``, and give its owner all permissions.

    Raises:
        OSError: there is no such folder, it is no folder, or it belongs to another user.
    """
    try:
        descriptor = os.open(name, _FOLDER, dir_fd=above)
    except PermissionError:
        change_mode(name, 0o700, above)
        descriptor = os.open(name, _FOLDER, dir_fd=above)
    _make_usable(descriptor)
    return descriptor


def change_mode(name: str, mode: int, above: int) -> None:
    """Set the mode of a file or folder, which need not be readable. Links are not followed.

    Raises:
        OSError: the name is that of a link, does not exist, or belongs to another user.
    """
    if not hasattr(os, "O_PATH"):
        os.chmod(name, mode, dir_fd=above, follow_symlinks=False)
        return
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        Path(f"/proc/self/fd/{descriptor}").chmod(mode)  # fchmod(2) does not accept such a descriptor
    finally:
        os.close(descriptor)


def _make_usable(descriptor: int) -> None:
    """Give the owner of an open folder all permissions. Folders of other users stay as they are."""
    if os.fstat(descriptor).st_mode & stat.S_IRWXU != stat.S_IRWXU:
        with suppress(OSError):
            os.fchmod(descriptor, 0o700)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        remove(Path(argument))
