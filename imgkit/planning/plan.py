"""Plans: the values that say exactly which files of a mirror an image is made of.

Each file is verified. The recipe, or imgkit itself, brings the OpenPGP certificate that signs the minirootfs; the
minirootfs brings the keys that sign the indexes; an index vouches for its packages::

    base = fetch_base(recipe, "amd64", cache, spool)            # imgkit.planning.base
    plan = make_plan(recipe, "amd64", base, cache)              # imgkit.planning.resolve
    plan, files = fetch_packages(plan, base, cache)             # imgkit.planning.download
    lockfile.write(path, recipe, {"amd64": plan})               # imgkit.planning.lockfile
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from imgkit.apk.index import Package
from imgkit.recipe import Shape


@dataclass(frozen=True)
class Artefact:
    """A file of the mirror.

    Attributes:
        size: in bytes.
        sha256: in hex.
        vouched_by: the name of the key that signed it.
    """

    url: str
    size: int
    sha256: str
    vouched_by: str


@dataclass(frozen=True)
class PlannedPackage:
    """A package to install.

    Attributes:
        package: its record in the index, or in the database of the minirootfs.
        url: where its file is.
        sha256: of the file, in hex; empty until it has been downloaded.
    """

    package: Package
    url: str
    sha256: str = ""

    @property
    def file_name(self) -> str:
        """The name of the package's file, ``busybox-1.37.0-r30.apk``."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Plan:
    """Everything that one image takes from the mirror.

    Attributes:
        arch: imgkit's name of the architecture, ``amd64``.
        branch: the recipe's branch, ``v3.23``.
        version: of the minirootfs, ``3.23.6``.
        world: the dependencies that ``etc/apk/world`` of the image has.
        packages: in the order in which they are installed.
        shape: what the root filesystem is for.
    """

    arch: str
    branch: str
    version: str
    minirootfs: Artefact
    indexes: tuple[Artefact, ...]
    world: tuple[str, ...]
    packages: tuple[PlannedPackage, ...]
    shape: Shape = "disk"

    @property
    def digest(self) -> str:
        """SHA-256 over what is installed, in hex. Equal plans and equal recipes make equal root filesystems."""
        identities = [planned.package.identity for planned in self.packages]
        return hashlib.sha256("\n".join([self.arch, self.minirootfs.sha256, *identities]).encode()).hexdigest()

    @property
    def epoch(self) -> int:
        """The time of all files that a build generates, in seconds since 1970: when the youngest package was built."""
        return latest_build(planned.package for planned in self.packages)


def latest_build(packages: Iterable[Package]) -> int:
    """Return when the youngest of ``packages`` was built, in seconds since 1970; 0 if there are none."""
    return max((package.build_time for package in packages), default=0)
