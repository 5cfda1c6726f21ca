"""Build images for tests with the command line from the offline mirror. Tests that do not change them share them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from filelock import FileLock

from imgkit.cli.commands.build import VARIABLES
from imgkit.engines.guestfs import bindings
from imgkit.errors import HostError
from imgkit.recipe import load
from tests import guestcoverage
from tests.conftest import need, need_program
from tests.quick import QUICK
from tests.secondopinion import examine

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "core.py"


WITHOUT_NODE = ("--set", "packages=[]")
"""Words for an image that is built in less time, but that nobody boots."""


def quick_kernel() -> tuple[str, str]:
    """Return the words that let an image for tests boot with :data:`QUICK`."""
    return "--set", f"kernel_arguments={json.dumps([*load(RECIPE).kernel_arguments, *QUICK])}"


def rooted(folder: Path, size: str) -> tuple[str, ...]:
    """Return the words for an amd64 image with a disk of ``size``, in which tests can be root (:mod:`tests.rootport`).

    Args:
        folder: an empty folder.
    """
    overlay = overlay_with_root(folder)
    words = ("--arch", "amd64", "--set", f"overlay={overlay}", "--set", "name=test", "--set", f"size={size}")
    return (*words, *quick_kernel())


@dataclass(frozen=True)
class Image:
    """An image that was built, with the files beside it."""

    arch: str
    disk: Path
    kernel: Path
    initramfs: Path
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Images:
    """The images of one build by architecture.

    ``printed`` and ``errors`` are what the build wrote to its standard output and standard error.
    """

    folder: Path
    by_arch: Mapping[str, Image]
    printed: str
    errors: str

    def __getitem__(self, arch: str) -> Image:
        return self.by_arch[arch]


@dataclass(frozen=True)
class Builder:
    """Runs ``imgkit build`` on recipes/core.py; ``words`` name the mirror, ``env`` is the whole environment."""

    words: tuple[str, ...]
    env: Mapping[str, str]

    def run(self, *words: str | Path, timeout: float = 500) -> subprocess.CompletedProcess[str]:
        """Run ``imgkit`` with these arguments."""
        argv = [sys.executable, "-m", "imgkit", *map(str, words)]
        return subprocess.run(argv, env=dict(self.env), capture_output=True, text=True, timeout=timeout, cwd=ROOT)

    def attempt(self, out: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a build that may fail."""
        return self.run("build", RECIPE, "--out", out, "--json", *self.words, *words)

    def build(self, out: Path, *words: str | Path) -> Images:
        """Run a build that must succeed, and return its images. Those of the native engine are examined."""
        done = self.attempt(out, *words)
        assert done.returncode == 0, done.stderr
        images = results(out, done.stdout, done.stderr)
        if "native" in words:
            for image in images.by_arch.values():
                examine(image.disk)
        return images


def results(out: Path, printed: str, errors: str) -> Images:
    """Parse what ``imgkit build --json`` printed."""
    by_arch = {}
    for result in json.loads(printed):
        manifest = json.loads(Path(result["manifest"]).read_bytes())
        arch = manifest["arch"]
        disk, kernel, initramfs = (Path(result[key]) for key in ("image", "kernel", "initramfs"))
        by_arch[arch] = Image(arch, disk, kernel, initramfs, manifest)
    return Images(out, by_arch, printed, errors)


def shared(builder: Builder, factory: pytest.TempPathFactory, name: str, *words: str | Path) -> Images:
    """Run a build that must succeed, once for all workers of a parallel test run (pytest-xdist)."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    printed = folder.with_suffix(".json")
    with FileLock(f"{folder}.lock"):
        if not printed.exists():
            built = builder.build(folder, *words)
            printed.write_text(json.dumps([built.printed, built.errors]))
    return results(folder, *json.loads(printed.read_text()))


def builder(release_key: Path, mirror_url: str, cache: Path) -> Builder:
    """Return a builder with its own cache, except for the appliance, which takes long to make."""
    need_program("qemu-system-x86_64")
    need("libguestfs' Python bindings", has_bindings())
    appliance = Path(platformdirs.user_cache_dir("imgkit")) / "test-appliance"
    appliance.mkdir(parents=True, exist_ok=True)
    (cache / "appliance").symlink_to(appliance)
    return Builder(("--mirror", mirror_url, "--release-key", str(release_key)), environment(cache))


def environment(cache: Path) -> dict[str, str]:
    """Return this process's environment without variables that change a build or a publication."""
    kept = {name: value for name, value in os.environ.items() if name not in _BUILD_VARIABLES}
    return {**kept, "IMGKIT_CACHE": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}


_PUBLISH_VARIABLES = ("INPUT_DIR", "OUTPUT_BASE", "COWORK_SANDBOX_IMAGE_VERSION", "COWORK_SANDBOX_BASE_URL")
_BUILD_VARIABLES = frozenset({*VARIABLES, "ARCHS", "OUT_DIR", "WORK_DIR", "IMGKIT_ENGINE", *_PUBLISH_VARIABLES})


def has_bindings() -> bool:
    """Return whether a Python of this host can import libguestfs' bindings."""
    try:
        bindings.choose(os.environ)
    except HostError:
        return False
    return True


def overlay_with_root(folder: Path) -> Path:
    """Return the repository's overlay with two additional services.

    The one in runlevel default is the helper of :mod:`tests.rootport`. The one in runlevel boot delays the boot if the
    kernel's command line asks for it.
    """
    overlay = folder / "overlay"
    shutil.copytree(ROOT / "overlay", overlay, symlinks=True)
    shutil.copyfile(ROOT / "tests/guest/root-helper.js", overlay / "usr/local/lib/imgkit-root-helper.js")
    for runlevel, name in (("default", "imgkit-root"), ("boot", "imgkit-slow")):
        service = overlay / "etc/init.d" / name
        shutil.copyfile(ROOT / "tests/guest" / name, service)
        service.chmod(0o755)
        level = overlay / "etc/runlevels" / runlevel
        level.mkdir(parents=True, exist_ok=True)
        (level / name).symlink_to(f"/etc/init.d/{name}")
    guestcoverage.record_in(overlay)
    return overlay
