"""The schema of a lock file: pydantic models that are applied before a plan is made of it.

Unknown keys are ignored: later versions may have more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from imgkit.apk.dependency import Dependency
from imgkit.apk.index import Package, parse_record
from imgkit.apk.package import check_identity
from imgkit.errors import InputError
from imgkit.host.jsonfile import StrictModel
from imgkit.oci.documents import Digest

_MAX_TIME = 1 << 33  # seconds since 1970 at which a package can have been built: until the year 2242
_MAX_SIZE = 1 << 40  # bytes of a file or of a package's contents


def _dependency(word: str) -> str:
    """Return ``word`` if it is a dependency; raise ValueError if it is not."""
    Dependency.parse(word)
    return word


Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Word = Annotated[str, StringConstraints(max_length=300), AfterValidator(_dependency)]
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x08\x0a-\x1f\x7f]*$", max_length=1 << 20)]
Short = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=300)]
Size = Annotated[int, Field(ge=0, le=_MAX_SIZE)]
RelativePath = Annotated[
    str,
    StringConstraints(
        pattern=r"^/?[A-Za-z0-9_][A-Za-z0-9_.+~@:-]*(/[A-Za-z0-9_][A-Za-z0-9_.+~@:-]*)*$", max_length=500
    ),
]
"""A file of a mirror. No part of it begins with a dot."""


class LockedRepository(StrictModel):
    """A further repository of the recipe, as the recipe has it; the path of a folder is relative to the lock file."""

    url: Short
    tag: Short | None = None


class LockedFile(StrictModel):
    """The minirootfs or an index. ``path`` is relative to the mirror, or to the further repository of this number."""

    path: RelativePath
    repository: Annotated[int, Field(ge=0)] | None = None
    size: Size
    sha256: Sha256
    vouchedBy: Short  # noqa: N815 - as it is in the file


class LockedImage(StrictModel):
    """The container image that replaces the minirootfs."""

    name: Short
    digest: Digest
    manifest: Digest
    size: Size
    created: Annotated[int, Field(ge=0, le=_MAX_TIME)]
    vouchedBy: Short  # noqa: N815 - as it is in the file


class LockedPackage(StrictModel):
    """A package. ``sha256`` is empty for a package that the minirootfs has, which is not downloaded.

    ``path`` is relative to the mirror, or to the further repository of this number.
    """

    path: RelativePath
    repository: Annotated[int, Field(ge=0)] | None = None
    sha256: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]
    record: Annotated[list[Line], Field(min_length=1, max_length=100_000)]

    @property
    def package(self) -> Package:
        """The package that the record describes, without its repository."""
        return parse_record(self.record)

    @model_validator(mode="after")
    def _consistent(self) -> LockedPackage:
        try:
            package = self.package
            if self.sha256:
                check_identity(package.identity)
        except InputError as cause:
            raise ValueError(cause.message) from cause
        if package.fault:
            raise ValueError(f"{package.name[:80]}: {package.fault[:80]}")
        if self.path.rpartition("/")[2] != f"{package}.apk":
            raise ValueError(f"the path is not that of {package}")
        if not (package.build_time < _MAX_TIME and max(package.size, package.installed_size) <= _MAX_SIZE):
            raise ValueError(f"{package}: has a time or a size that no package has")
        return self


class LockedArchitecture(StrictModel):
    """The entry of one architecture."""

    branch: Short
    version: Short
    repositories: list[Short | LockedRepository]
    packages: list[Short]
    minirootfs: LockedFile | None = None
    image: LockedImage | None = None
    indexes: Annotated[list[LockedFile], Field(max_length=100)]
    world: Annotated[list[Word], Field(max_length=100_000)]
    install: Annotated[list[LockedPackage], Field(max_length=100_000)]

    @model_validator(mode="after")
    def _complete(self) -> LockedArchitecture:
        if (self.minirootfs is None) == (self.image is None):
            raise ValueError("it must have either minirootfs or image")
        if self.minirootfs is not None and not self.install:
            raise ValueError("it has no packages")
        return self

    @model_validator(mode="after")
    def _unique(self) -> LockedArchitecture:
        repeated = _first_repeated(locked.package.name for locked in self.install)
        if repeated is not None:
            raise ValueError(f"the package {repeated} is in it twice")
        return self


class Lock(StrictModel):
    """A lock file. The entry of an architecture is checked when that architecture is built."""

    lock: int
    architectures: dict[Short, dict[str, Any]]


def _first_repeated(names: Iterable[str]) -> str | None:
    names_so_far: set[str] = set()
    for name in names:
        if name in names_so_far:
            return name
        names_so_far.add(name)
    return None
