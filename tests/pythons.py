"""Virtual environments of other Pythons with the packages that imgkit needs, made once and kept in the user's cache.

The libraries that compress are of the same versions as here, as the bytes of an image depend on them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import platformdirs
from filelock import FileLock

from tests import wheels
from tests.commandline import ROOT

VERSIONS = (10, 11, 12, 13, 14)
"""The minor versions of Python 3 that imgkit runs on."""
_COMPRESSING = ("zlib-ng", "zstandard")


def find(minor: int) -> Path | None:
    """Return a Python of version 3.``minor``, if the host has one that can make virtual environments."""
    if sys.version_info[1] == minor:
        return Path(sys.executable)
    folders = [*map(Path, os.environ["PATH"].split(os.pathsep)), *Path.home().glob(f".pyenv/versions/3.{minor}*/bin")]
    for folder in folders:
        path = folder / f"python3.{minor}"
        if path.exists() and wheels.works(path):
            return path
    return None


def environment(python: Path) -> Path | None:
    """Return the Python of an environment with what imgkit needs; None if it cannot be installed here."""
    if str(python) == sys.executable:
        return python
    requirements, constraints = _requirements(), _constraints()
    digest = hashlib.sha256("\n".join([str(python), *requirements, *constraints]).encode()).hexdigest()[:16]
    base = Path(platformdirs.user_cache_dir("imgkit")) / "test-pythons"
    base.mkdir(parents=True, exist_ok=True)
    folder = base / digest
    with FileLock(base / f"{digest}.lock"):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            wheels.environment(folder, str(python))
            (folder / "constraints").write_text("\n".join(constraints))
            done = wheels.install(folder, "--only-binary", ":all:", "-c", folder / "constraints", *requirements)
            if done.returncode:
                return None
            (folder / "complete").touch()
    return folder / "bin/python"


def _requirements() -> list[str]:
    """Return what pyproject.toml lists as dependencies."""
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert listed is not None
    return re.findall(r'"([^"]+)"', listed[1])


def _constraints() -> list[str]:
    """Return the versions of the libraries that compress, as they are installed here."""
    return [f"{name}=={importlib.metadata.version(name)}" for name in _COMPRESSING]


def version_of(python: Path) -> tuple[int, int]:
    """Return the version of a Python."""
    words = [str(python), "-c", "import sys; print(*sys.version_info[:2])"]
    major, minor = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    return int(major), int(minor)
