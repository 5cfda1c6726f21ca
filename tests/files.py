"""A short question about files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest(path: Path) -> str:
    """SHA-256 of its contents."""
    found = hashlib.sha256()
    with path.open("rb") as source:
        while data := source.read(1 << 20):
            found.update(data)
    return found.hexdigest()
