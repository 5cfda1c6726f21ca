"""Open QEMU's files in this process, which may have more rights than QEMU, and hand them over.

    with handed(spec, folder, user) as files:
        start QEMU for files.spec, with files.descriptors

QEMU uses the disk, the variable store and the config drive through descriptors that were opened here. The file that was
checked (:mod:`imgkit.disk.diskimage`) is therefore the file that is booted, even if its name refers to another file
later. If QEMU runs as another user (:mod:`imgkit.vm.sandbox.identity`), everything else that it needs is given to that
user or handed over as well, and the private folder of the machine stays closed to that user.
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

_TEMPORARY = Path("/var/tmp")  # noqa: S108 - QEMU's own choice
_PATH = getattr(os, "O_PATH", 0) | os.O_CLOEXEC


@dataclass
class Handed:
    """A machine whose files are open and have the names by which QEMU finds them.

    Attributes:
        spec: the machine.
        temporary: the folder for the changes of a snapshot, as QEMU finds it.
        writable: folders of this process, besides the shares, that QEMU writes to.
        files: closes this process's descriptors of what was handed over. QEMU's locks of a disk end with the last
            descriptor.
        descriptors: what QEMU inherits.
        sets: file descriptors by the number of their set (:attr:`imgkit.vm.qemu.argv.VmSpec.sets`).
        names: the name of a file for QEMU → its name on the host.
    """

    spec: VmSpec
    temporary: str
    writable: list[Path]
    files: ExitStack
    descriptors: list[int] = field(default_factory=list)
    sets: list[tuple[int, ...]] = field(default_factory=list)
    names: dict[Path, Path] = field(default_factory=dict)

    def open(self, path: Path, flags: int, stack: ExitStack) -> int:
        """Open a file, and return the descriptor, which QEMU inherits and ``stack`` closes.

        Raises:
            HostError: the file cannot be opened.
        """
        try:
            descriptor = os.open(path, flags | os.O_CLOEXEC)
        except OSError as cause:
            raise HostError(f"{path}: cannot be opened: {cause.strerror}") from cause
        stack.callback(os.close, descriptor)
        self.descriptors.append(descriptor)
        return descriptor

    def set(self, path: Path, stack: ExitStack, *, writable: bool = False) -> Path:
        """Open the file at ``path`` as a set of descriptors (``-add-fd``), and return the name of the set.

        QEMU opens a writable disk for reading first. From the set it takes the descriptor that has the access it needs.
        """
        reading = self.open(path, os.O_RDONLY, stack)
        self.sets.append(
            (reading, self.open(Path(f"/proc/self/fd/{reading}"), os.O_RDWR, stack)) if writable else (reading,)
        )
        return self._name(path)

    def _name(self, path: Path) -> Path:
        """Return the name of the last set, which has the file at ``path``."""
        name = Path(f"/dev/fdset/{len(self.sets) - 1}")
        self.names[name] = path
        return name

    def explain(self, text: str) -> str:
        """Return a message of QEMU with the names that the files have on the host."""
        for name, path in sorted(self.names.items(), reverse=True):  # 10 before 1
            text = text.replace(str(name), str(path))
        return text

    def lend(self, path: Path, descriptor: int) -> Path:
        """Make a set of ``descriptor``, the caller's descriptor of the file at ``path``, and return the set's name."""
        self.descriptors.append(descriptor)
        self.sets.append((descriptor,))
        return self._name(path)


@contextmanager
def handed(spec: VmSpec, folder: Path, user: Identity | None) -> Iterator[Handed]:
    """Open the files that QEMU needs for the length of the block.

    Args:
        spec: the machine.
        folder: its private folder.
        user: the user that QEMU runs as; None for the user of this process.

    Raises:
        HostError: a file cannot be opened, or a folder is closed to ``user``.
        InputError: the disk refers to other files, or is not a disk image that can be booted.
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
    """Make a folder for what a guest writes to a disk that is not changed. QEMU unlinks its files there at once.

    It is where QEMU itself would make the files: in ``TMPDIR``, or else below ``/var/tmp``, which is seldom in memory.
    Only this folder is given to QEMU's user. The private folder around it, by which it can be removed if this process
    is killed, keeps its owner.
    """
    if not os.environ.get("TMPDIR") and os.access(_TEMPORARY, os.W_OK | os.X_OK):
        folder = stack.enter_context(private_folder(_TEMPORARY))
    snapshot = folder / "snapshot"
    snapshot.mkdir(mode=0o700, exist_ok=True)
    return snapshot


def _drives(result: Handed, stack: ExitStack) -> VmSpec:
    """Hand over disks as descriptors, so that the file that is checked is the file that is booted."""
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
    """Hand over all other files to a QEMU that runs as another user."""
    spec = result.spec
    return replace(
        spec,
        kernel=_file(result, spec.kernel, folder / "kernel", user, stack),
        initrd=_file(result, spec.initrd, folder / "initrd", user, stack),
        shares=tuple(_share(result, share, user, stack) for share in spec.shares),
    )


def _file(result: Handed, path: Path | None, copy: Path, user: Identity, stack: ExitStack) -> Path | None:
    """Return a name by which ``user`` can read the file, or else a ``copy`` of it, which is made."""
    if path is None:
        return None
    if not _may(path.stat(), user, os.R_OK):
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
            f"{share.path}: closed to {user}, the user that QEMU runs as",
            hint="give the folder to that user, or let others read it",
        )
    return replace(share, view=result.open(share.path, _PATH, stack))


def _give(path: Path, user: Identity) -> None:
    os.chown(path, user.uid, user.gid)


def _may(status: os.stat_result, user: Identity, rights: int) -> bool:
    """Return whether the mode of a file gives ``user`` these rights (``os.R_OK`` …)."""
    if status.st_uid == user.uid:
        return stat.S_IMODE(status.st_mode) >> 6 & rights == rights
    if status.st_gid in (user.gid, *user.groups):
        return stat.S_IMODE(status.st_mode) >> 3 & rights == rights
    return status.st_mode & rights == rights
