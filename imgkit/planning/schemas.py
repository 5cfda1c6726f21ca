"""What a lock file and a manifest must look like before anything is done with them.

Keys that are not named here are left alone: later versions may have more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from imgkit.apk.dependency import Dependency
from imgkit.apk.index import Package, parse_record
from imgkit.apk.package import check_identity
from imgkit.errors import InputError

_LATEST = 1 << 33  # seconds since 1970 that a package can have been built at: until the year 2242
_LARGEST = 1 << 40  # bytes of a file or of a package's contents


def _dependency(word: str) -> str:
    Dependency.parse(word)
    return word


Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Word = Annotated[str, StringConstraints(max_length=300), AfterValidator(_dependency)]
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x08\x0a-\x1f\x7f]*$", max_length=1 << 20)]
Short = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=300)]
Size = Annotated[int, Field(ge=0, le=_LARGEST)]
RelativePath = Annotated[
    str,
    StringConstraints(
        pattern=r"^/?[A-Za-z0-9_][A-Za-z0-9_.+~@:-]*(/[A-Za-z0-9_][A-Za-z0-9_.+~@:-]*)*$", max_length=500
    ),
]
"""A file of a mirror. No part of it begins with a dot."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class LockedFile(_Record):
    """A minirootfs or an index."""

    path: RelativePath
    size: Size
    sha256: Sha256
    vouchedBy: Short  # noqa: N815 - as it is in the file


class LockedPackage(_Record):
    """A package. ``sha256`` is empty for one that the minirootfs has: it is not downloaded."""

    path: RelativePath
    sha256: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]
    record: Annotated[list[Line], Field(min_length=1, max_length=100_000)]

    @property
    def package(self) -> Package:
        """What the record says, without the repository that it is from."""
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
        if not (package.build_time < _LATEST and max(package.size, package.installed_size) <= _LARGEST):
            raise ValueError(f"{package}: has a time or a size that no package has")
        return self


class LockedArchitecture(_Record):
    """Everything that a lock says of one architecture."""

    branch: Short
    version: Short
    repositories: list[Short]
    packages: list[Short]
    minirootfs: LockedFile
    indexes: Annotated[list[LockedFile], Field(max_length=100)]
    world: Annotated[list[Word], Field(max_length=100_000)]
    install: Annotated[list[LockedPackage], Field(min_length=1, max_length=100_000)]

    @model_validator(mode="after")
    def _each_once(self) -> LockedArchitecture:
        twice = _first_twice(each.package.name for each in self.install)
        if twice is not None:
            raise ValueError(f"the package {twice} is in it twice")
        return self


class Lock(_Record):
    """A lock file. What it has for an architecture is looked at when that one is built."""

    lock: int
    architectures: dict[Short, dict[str, Any]]


class ManifestFile(_Record):
    """A file beside an image, or the image. Readers say what is wrong where a part is missing."""

    name: Short | None = None
    sha256: Sha256 | None = None
    size: Size | None = None


class Manifest(_Record):
    """The parts of a manifest that are read again."""

    manifest: int | None = None
    arch: Short | None = None
    buildId: Short | None = None  # noqa: N815 - as it is in the file
    image: ManifestFile | None = None
    boot: dict[Short, ManifestFile] | None = None
    files: dict[str, dict[str, Any]]


def _first_twice(names: Iterable[str]) -> str | None:
    known: set[str] = set()
    for name in names:
        if name in known:
            return name
        known.add(name)
    return None
