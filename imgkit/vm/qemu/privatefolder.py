"""Make a private folder for a machine. It is removed with the machine, even if this process is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from imgkit.host import process, scratch, walk

PREFIX = "imgkit-vm-"
"""Prefix of the names of these folders."""
# The outer shell dies with this process (the inner one does not inherit PR_SET_PDEATHSIG), and the inner shell then
# sees the end of the pipe. The second removal is for what a dying QEMU still wrote. A Python program does the removal,
# because the tools of the shell fail on some of the trees that a guest can leave.
_REAPER = '{ read -r _; for _ in 1 2; do "$2" -I -S -B "$3" "$1"; sleep 0.5; done; } <&3 & exec 3<&-; wait'


@contextmanager
def private_folder(place: Path | None = None) -> Iterator[Path]:
    """Make a folder that only this user may enter, and remove it at the end of the block with everything in it.

    Folders that dead processes of this user left in ``place`` are removed first.

    Args:
        place: existing folder in which the new one is made; None is the folder for temporary files.
    """
    with ExitStack() as stack, scratch.folder(place, PREFIX) as folder:
        stack.enter_context(_reaper(folder))  # which lives until the folder has been removed
        yield folder


@contextmanager
def _reaper(folder: Path) -> Iterator[None]:
    """Run a process during the block that removes ``folder`` if this process is killed."""
    script = f"exec 3<&0 </dev/null; {_REAPER}"
    command: list[str | Path] = ["/bin/sh", "-c", script, "imgkit-reaper", folder, sys.executable, walk.__file__]
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    with process.start(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ):
        yield
