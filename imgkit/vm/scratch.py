"""A private folder per machine that goes away with it, also when this process is killed outright."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imgkit import process
from imgkit.scratch import remove_tree

# The outer shell dies with this process (PR_SET_PDEATHSIG is not inherited by the inner one), the inner one then sees
# the end of the pipe. The second removal is for what a dying QEMU still wrote.
_REAPER = '{ read -r _; for _ in 1 2; do chmod -R u+rwx "$1"; rm -rf -- "$1"; sleep 0.5; done; } <&3 & exec 3<&-; wait'


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder that only this user may enter, removed at the end of the block whatever a guest put into it."""
    folder = Path(tempfile.mkdtemp(prefix="imgkit-vm-"))
    command: list[str | Path] = ["/bin/sh", "-c", f"exec 3<&0 </dev/null; {_REAPER}", "imgkit-reaper", folder]
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    try:
        with process.start(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ):
            try:
                yield folder
            finally:
                remove_tree(folder)
    finally:
        remove_tree(folder)
