"""What the code of imgkit is, for the keys of results that are kept."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

import imgkit


@cache
def program_version() -> str:
    """Return a text that is different for other code: the version, and a hash over names, sizes and times of modules.

    The version alone stays the same while somebody works on the code, who must not get the results of earlier code.
    """
    digest = hashlib.sha256()
    top = Path(imgkit.__file__).parent
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(names):
            path = os.path.join(folder, name)  # noqa: PTH118 - in a loop over hundreds of files
            status = os.stat(path)  # noqa: PTH116
            digest.update(f"{os.path.relpath(path, top)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return f"{imgkit.__version__} {digest.hexdigest()}"
