"""How QEMU comes by its files: opened by this process, which may have more rights than QEMU, and handed over.

A disk, a variable store and a config drive are what was opened here, whatever has their names by the time that QEMU
looks: the check of a disk (:mod:`imgkit.disk.diskimage`) is about the very file that is booted. Where QEMU runs as
another user (:mod:`imgkit.vm.sandbox.identity`), all else that it needs is given to that user or handed over, too, and
the private folder of the machine stays closed to it.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from imgkit.disk import diskimage
from imgkit.errors import HostError
from imgkit.vm.qemu.argv import Share, VmSpec
from imgkit.vm.qemu.firmware import Firmware
from imgkit.vm.qemu.privatefolder import private_folder
from imgkit.vm.sandbox.identity import Identity

_PLACE = Path("/var/tmp")  # noqa: S108 - QEMU's own choice
_PATH = getattr(os, "O_PATH", 0) | os.O_CLOEXEC


@dataclass
class Handed:
    """A machine's description in which files have the names that QEMU finds them by.

    Attributes:
        spec: the description.
        files: closes this process's descriptors of what was handed over; QEMU's locks of a disk end with the last one.
        descriptors: what QEMU inherits.
        names: what QEMU knows a file by, and what everybody else does.
        temporary: the folder for the changes of a snapshot, as QEMU finds it.
        writable: folders of this process's, besides the shares, that QEMU writes to.
    """

    spec: VmSpec
    temporary: str
    writable: list[Path]
    files: ExitStack
    descriptors: list[int] = field(default_factory=list)
    sets: list[tuple[int, ...]] = field(default_factory=list)
    names: dict[Path, Path] = field(default_factory=dict)

    def open(self, path: Path, flags: int, stack: ExitStack) -> int:
        """A descriptor that QEMU inherits."""
        try:
            descriptor = os.open(path, flags | os.O_CLOEXEC)
        except OSError as cause:
            raise HostError(f"{path}: cannot be opened: {cause.strerror}") from cause
        stack.callback(os.close, descriptor)
        self.descriptors.append(descriptor)
        return descriptor

    def set(self, path: Path, stack: ExitStack, *, writable: bool = False) -> Path:
        """The name of a set of descriptors (``-add-fd``) that has just the file at ``path``.

        QEMU opens a disk that is written to for reading first, and takes from the set what has the access it wants.
        """
        reading = self.open(path, os.O_RDONLY, stack)
        self.sets.append(
            (reading, self.open(Path(f"/proc/self/fd/{reading}"), os.O_RDWR, stack)) if writable else (reading,)
        )
        return self._name(path)

    def _name(self, path: Path) -> Path:
        """The name of the last set, which is about ``path``."""
        name = Path(f"/dev/fdset/{len(self.sets) - 1}")
        self.names[name] = path
        return name

    def explain(self, text: str) -> str:
        """What QEMU says, with the names that everybody knows."""
        for name, path in sorted(self.names.items(), reverse=True):  # 10 before 1
            text = text.replace(str(name), str(path))
        return text

    def lend(self, path: Path, descriptor: int) -> Path:
        """The name of a set with a descriptor of the caller's, of the file at ``path``."""
        self.descriptors.append(descriptor)
        self.sets.append((descriptor,))
        return self._name(path)


@contextmanager
def handed(spec: VmSpec, folder: Path, user: Identity | None) -> Iterator[Handed]:
    """Open what QEMU needs for the length of the block.

    Args:
        spec: the machine.
        folder: its private folder.
        user: whom QEMU runs as; None for this user.

    Raises:
        HostError: a file cannot be opened, or a folder is closed to ``user``.
        InputError: the disk refers to other files, or is none that a machine can have.
    """
    with ExitStack() as folders, ExitStack() as stack:
        temporary = _temporary(folder, folders)
        result = Handed(spec, str(temporary), [temporary], stack)
        if spec.disk is not None:
            diskimage.check(spec.disk.path, spec.disk.format)
        if sys.platform == "linux":
            result.spec = _drives(result, stack)
        if spec.log is not None:
            result.spec = replace(result.spec, console=result.lend(spec.console, spec.log))
        if user is not None:
            result.spec = _given(result, folder, user, stack)
            _give(temporary, user)
            result.temporary = f"/proc/self/fd/{result.open(temporary, _PATH, stack)}"
        result.spec = replace(result.spec, sets=tuple(result.sets))
        yield result


def _temporary(folder: Path, stack: ExitStack) -> Path:
    """A folder for what a guest writes to a disk that is kept as it is. QEMU takes the names in it away at once.

    It is where QEMU would put it by itself: as ``TMPDIR`` says, else below ``/var/tmp``, which is seldom in memory.
    Given to QEMU's user is this folder only; the private one around it, by which it is found again if this process is
    killed, stays this user's.
    """
    if not os.environ.get("TMPDIR") and os.access(_PLACE, os.W_OK | os.X_OK):
        folder = stack.enter_context(private_folder(_PLACE))
    place = folder / "snapshot"
    place.mkdir(mode=0o700, exist_ok=True)
    return place


def _drives(result: Handed, stack: ExitStack) -> VmSpec:
    """Disks by descriptors. What is checked is what is booted."""
    spec = result.spec
    disk, flash, config = spec.disk, spec.flash, spec.config
    if disk is not None:
        name = result.set(disk.path, stack, writable=disk.writable)
        diskimage.check(Path(f"/proc/self/fd/{result.sets[-1][0]}"), disk.format, name=disk.path)
        disk = replace(disk, path=name)
    if flash is not None:
        code = result.set(flash.code, stack)
        variables = None if flash.variables is None else result.set(flash.variables, stack, writable=True)
        flash = Firmware(code, variables, flash.size)
    if config is not None:
        config = result.set(config, stack)
    return replace(spec, disk=disk, flash=flash, config=config)


def _given(result: Handed, folder: Path, user: Identity, stack: ExitStack) -> VmSpec:
    """The rest, for a QEMU that is another user."""
    spec = result.spec
    return replace(
        spec,
        kernel=_file(result, spec.kernel, folder, user, stack),
        initrd=_file(result, spec.initrd, folder, user, stack),
        shares=tuple(_share(result, share, user, stack) for share in spec.shares),
    )


def _file(result: Handed, path: Path | None, folder: Path, user: Identity, stack: ExitStack) -> Path | None:
    """A name by which ``user`` can read the file, which may be a copy."""
    if path is None:
        return None
    if not _may(path.stat(), user, os.R_OK):
        copy = folder / path.name
        if not copy.exists():
            shutil.copyfile(path, copy)
            _give(copy, user)
        path = copy
    return Path(f"/proc/self/fd/{result.open(path, _PATH, stack)}")


def _share(result: Handed, share: Share, user: Identity, stack: ExitStack) -> Share:
    if share.view is not None:
        result.descriptors.append(share.view)
        return share
    if not _may(share.path.stat(), user, os.R_OK | os.X_OK):
        raise HostError(
            f"{share.path}: closed to {user}, as whom QEMU runs",
            hint="give the folder to that user, or let others read it",
        )
    return replace(share, view=result.open(share.path, _PATH, stack))


def _give(path: Path, user: Identity) -> None:
    os.chown(path, user.uid, user.gid)


def _may(status: os.stat_result, user: Identity, wanted: int) -> bool:
    """Whether the mode of a file gives ``user`` these rights (``os.R_OK`` …)."""
    if status.st_uid == user.uid:
        return stat.S_IMODE(status.st_mode) >> 6 & wanted == wanted
    if status.st_gid in (user.gid, *user.groups):
        return stat.S_IMODE(status.st_mode) >> 3 & wanted == wanted
    return status.st_mode & wanted == wanted
