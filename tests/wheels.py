"""Make the wheel as a user's pip does, and virtual environments that it is installed into."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from tests.commandline import ROOT

PARTS = ("imgkit", "recipes", "overlay", "agents", "docs", "changes")
"""The folders of the repository that a source distribution has."""

_MAKE = "import sys, setuptools.build_meta as build; getattr(build, 'build_' + sys.argv[1])(sys.argv[2])"


def make(kind: str, tree: Path, out: Path) -> Path:
    """Make the "sdist" or the "wheel" of a tree, and return the file."""
    out.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-c", _MAKE, kind, out], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = out.iterdir()
    return file


def copy_tree(folder: Path) -> Path:
    """Copy what the distribution is made of; making it writes into its tree."""
    unneeded = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=unneeded, symlinks=True)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder / path.name)
    return folder


def make_wheel(folder: Path) -> Path:
    """Make the wheel of the source distribution, so that the latter must be complete."""
    for name in ("tree", "unpacked"):
        (folder / name).mkdir()
    sdist = make("sdist", copy_tree(folder / "tree"), folder / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked")
    (tree,) = (folder / "unpacked").iterdir()
    return make("wheel", tree, folder / "wheel")


def other_python() -> str:
    """Return a Python of another version than this one, if the host has one; else this one."""
    folders = [*map(Path, os.environ["PATH"].split(os.pathsep)), *Path.home().glob(".pyenv/versions/*/bin")]
    for path in sorted({path for folder in folders for path in folder.glob("python3.*")}, reverse=True):
        match = re.fullmatch(r"python3\.(\d+)", path.name)
        if match and int(match[1]) >= 10 and int(match[1]) != sys.version_info[1] and works(path):
            return str(path)
    return sys.executable


def works(python: Path) -> bool:
    """Return whether a Python can make virtual environments: shims of version managers may stand for nothing."""
    done = subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True, check=False)
    return done.returncode == 0


def environment(folder: Path, python: str = sys.executable) -> Path:
    """Make a virtual environment that sees no other packages, and return its folder."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    return folder


def install(environment: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the pip of a virtual environment, with a umask that would close its files to others."""
    argv = [environment / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(argv, env=kept, capture_output=True, text=True, timeout=400, umask=0o077, check=False)
