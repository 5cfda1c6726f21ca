"""How another process of the same user finds a machine that ``imgkit boot --wait`` runs.

Each machine has a folder that only its user may enter, with a description and a socket on which its process answers::

    with announced(image) as listener: ...                        # in imgkit boot --wait
    machines = find(image)                                        # in imgkit shell

The folder is in ``XDG_RUNTIME_DIR`` (or ``/run/user/UID``), or else in the user's cache. All of these are looked at, as
the variable may be set in one shell only. A folder that others may enter or exchange is not used. The folder of a dead
process is removed.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from imgkit.errors import HostError
from imgkit.host import lookup, scratch

PREFIX = "machine-"
"""How the names of the folders begin."""
_SOCKET, _DESCRIPTION = "socket", "machine.json"
_MAX_DESCRIPTION = 1 << 16  # bytes
_TIMEOUT = 5.0  # seconds for a process to accept a connection


@dataclass(frozen=True)
class RunningMachine:
    """A machine that another process of this user runs.

    Attributes:
        pid: that process.
        image: the absolute path of the image that it has booted.
        folder: its folder.
    """

    pid: int
    image: Path
    folder: Path

    def connect(self) -> socket.socket:
        """Connect to the process.

        Raises:
            HostError: it has ended, or does not answer.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_TIMEOUT)
            with _address(self.folder) as address:
                connection.connect(address)
        except OSError as cause:
            connection.close()
            raise HostError(f"the machine of process {self.pid} does not answer: {cause.strerror}") from cause
        connection.settimeout(None)
        return connection


def places() -> list[Path]:
    """Return the folders in which machines are announced, the preferred one first. They need not exist."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}")
    preferred = [runtime / "imgkit"] if runtime.is_absolute() and lookup.sees_folder(runtime) else []
    return [*preferred, platformdirs.user_cache_path("imgkit") / "running"]


def is_private(folder: Path) -> bool:
    """Return whether ``folder`` belongs to this user alone, and nobody else can exchange it or a folder around it."""
    try:
        own = folder.lstat()
        if not stat.S_ISDIR(own.st_mode) or own.st_uid != os.geteuid() or own.st_mode & 0o077:
            return False
        return all(_is_safe(parent.stat()) for parent in folder.resolve().parents)
    except OSError:
        return False


def _is_safe(status: os.stat_result) -> bool:
    """Return whether nobody but root and this user can exchange what is in a folder, but for what is their own."""
    if status.st_uid not in (0, os.geteuid()):
        return False
    return not status.st_mode & 0o022 or bool(status.st_mode & stat.S_ISVTX)


@contextmanager
def announced(image: Path) -> Iterator[socket.socket]:
    """Announce a machine of ``image`` for the length of the block, and yield the socket on which it is asked for.

    Raises:
        HostError: there is no folder that belongs to this user alone.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(scratch.folder(_own_place(), PREFIX))
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        with _address(folder) as address:
            listener.bind(address)
        listener.listen()
        draft = folder / f"{_DESCRIPTION}.new"
        draft.write_text(json.dumps({"pid": os.getpid(), "image": str(image.resolve())}), encoding="utf-8")
        draft.rename(folder / _DESCRIPTION)
        yield listener


def _own_place() -> Path:
    """Return the first place that belongs to this user alone. It is made if it is not there."""
    for place in places():
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.mkdir(mode=0o700, exist_ok=True)
        if is_private(place):
            return place
    hint = "chmod 700, or set XDG_RUNTIME_DIR to a folder of your own"
    raise HostError(f"{', '.join(map(str, places()))}: no folder that belongs to you alone", hint=hint)


def find(image: Path) -> list[RunningMachine]:
    """Return the machines that processes of this user run of ``image``, by their process ids."""
    wanted, found = lookup.real(image), []
    for place in filter(is_private, places()):
        scratch.remove_dead(place, PREFIX)
        for folder in place.glob(f"{PREFIX}*"):
            machine = _read(folder)
            if machine is not None and machine.image == wanted:
                found.append(machine)
    return sorted(found, key=lambda machine: machine.pid)


def _read(folder: Path) -> RunningMachine | None:
    """Return the machine that a folder describes; None if it is just being made or removed."""
    try:
        with (folder / _DESCRIPTION).open("rb") as source:
            value = json.loads(source.read(_MAX_DESCRIPTION))
        return RunningMachine(int(value["pid"]), Path(value["image"]), folder)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


@contextmanager
def _address(folder: Path) -> Iterator[str]:
    """Yield a name of the socket in ``folder`` that fits into a socket's address, which has 108 bytes on Linux."""
    if sys.platform == "linux":
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{descriptor}/{_SOCKET}"
        finally:
            os.close(descriptor)
    else:
        yield str(folder / _SOCKET)
