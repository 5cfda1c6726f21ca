"""Plans: the values that say exactly which files of a mirror an image is made of.

Each file is verified. The recipe, or imgkit itself, brings the OpenPGP certificate that signs the minirootfs; the
minirootfs brings the keys that sign the indexes; an index vouches for its packages. An image that replaces the
minirootfs is known by its digest, which the recipe has, or which its tag had when it was first asked for::

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
class ImageSource:
    """A container image that a root filesystem starts from.

    Attributes:
        name: what the recipe calls it, without a digest: ``docker.io/library/alpine:3.22``, or the name of a layout's
            folder.
        digest: what the name stands for, of an index or of a manifest. A tag is asked for once.
        manifest: the digest of the manifest for the architecture. It is ``digest`` if that is no index.
        size: bytes of the manifest.
        created: when the image was made, in seconds since 1970, as it says itself; 0 if it does not.
        vouched_by: why this digest is trusted.
    """

    name: str
    digest: str
    manifest: str
    size: int
    created: int
    vouched_by: str

    @property
    def url(self) -> str:
        """The place of the manifest, for people and records: ``oci:NAME@DIGEST``."""
        return f"oci:{self.name}@{self.manifest}"

    @property
    def sha256(self) -> str:
        """The digest of the manifest without its algorithm."""
        return self.manifest.partition(":")[2]


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
    """Everything that one image is made of, besides the payload and the recipe's own files.

    Attributes:
        arch: imgkit's name of the architecture, ``amd64``.
        branch: the recipe's branch, ``v3.23``.
        version: of Alpine in the base, ``3.23.6``; empty if the base is an image of something else.
        base: the minirootfs, or the image that replaces it.
        world: the dependencies that ``etc/apk/world`` of the image has.
        packages: in the order in which they are installed.
        shape: what the root filesystem is for.
    """

    arch: str
    branch: str
    version: str
    base: Artefact | ImageSource
    indexes: tuple[Artefact, ...]
    world: tuple[str, ...]
    packages: tuple[PlannedPackage, ...]
    shape: Shape = "disk"

    @property
    def digest(self) -> str:
        """SHA-256 over what is installed, in hex. Equal plans and equal recipes make equal root filesystems."""
        identities = [planned.package.identity for planned in self.packages]
        return hashlib.sha256("\n".join([self.arch, self.base.sha256, *identities]).encode()).hexdigest()

    @property
    def epoch(self) -> int:
        """The time of all files that a build generates, in seconds since 1970.

        It is when the youngest package was built, or the base image was made if that was later.
        """
        created = self.base.created if isinstance(self.base, ImageSource) else 0
        return max(created, latest_build(planned.package for planned in self.packages))


def latest_build(packages: Iterable[Package]) -> int:
    """Return when the youngest of ``packages`` was built, in seconds since 1970; 0 if there are none."""
    return max((package.build_time for package in packages), default=0)
