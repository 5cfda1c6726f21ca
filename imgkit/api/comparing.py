"""Compare two images, manifests or lock files, of the same kind or of different ones::

comparison = imgkit.diff("old/linux-amd64.qcow2", "out/linux-amd64.qcow2")
for pair in comparison.pairs:
    print([package.name for package in pair.packages_changed])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from imgkit.api.applianceoptions import appliance_options
from imgkit.comparison.differences import ImageDifferences, compare
from imgkit.comparison.imagecontents import of_container, of_disk
from imgkit.comparison.snapshot import Snapshot
from imgkit.comparison.stated import of_lock, of_manifest
from imgkit.engines.guestfs.readback import open_image
from imgkit.engines.imagefile import ImageInfo, image_info
from imgkit.engines.limits import DEFAULT_SECONDS, Limits
from imgkit.engines.reading import ImageReader
from imgkit.errors import UsageError
from imgkit.host import scratch
from imgkit.image.imagepaths import is_container_image, split_reference
from imgkit.vm.bootspec import StrPath

LIMIT = 16 << 30
"""Bytes that are read of a disk at most. They are written to a temporary file, which is removed."""


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two files or folders.

    Attributes:
        pairs: one for each image that both have; most have only one.
        only_before, only_after: images without a counterpart, such as "arm64" or "arm64/container", if both sides are
            of the same kind.
    """

    pairs: tuple[ImageDifferences, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether no difference was found in what both sides know."""
        return not (self.only_before or self.only_after) and all(pair.equal for pair in self.pairs)


def diff(
    before: StrPath,
    after: StrPath,
    *,
    arch: str | None = None,
    limit: int = LIMIT,
    timeout: float = DEFAULT_SECONDS,
) -> Comparison:
    """Compare two of: disk images, container images, manifests and lock files.

    A disk image is compared by the manifest beside it if it is the very file that was built; otherwise the appliance
    reads it. Only what both sides know is compared: a lock file has packages, but no files.

    Args:
        before, after: a qcow2 or raw file; an OCI image layout, ``LAYOUT:TAG`` or an archive; a manifest (``.json``);
            a lock file (``.lock``).
        arch: compare this architecture only; None compares all.
        limit: bytes that are read of a disk at most.
        timeout: seconds to read each disk in.

    Raises:
        UsageError: the two sides have no image in common.
        InputError: one of them is missing, damaged or more than the limits allow.
        HostError: a disk cannot be read on this host.
    """
    for side in (before, after):
        split_reference(Path(side))  # raises if it cannot be looked up, before the other side is read
    sides = [_snapshots(Path(side), limit, timeout) for side in (before, after)]
    old, new = ([one for one in side if arch in (None, one.arch)] for side in sides)
    pairs = list(_paired(old, new))
    if not pairs:
        had = [", ".join(_name(one) for one in side) or "nothing" for side in sides]
        of_arch = "" if arch is None else f" for {arch}"
        raise UsageError(f"nothing to compare{of_arch}: {before} has {had[0]}, {after} has {had[1]}")
    same_kind = old[0].kind == new[0].kind
    return Comparison(
        tuple(compare(one, other) for one, other in pairs),
        _names([one for one in old if all(one is not pair[0] for pair in pairs)] if same_kind else []),
        _names([one for one in new if all(one is not pair[1] for pair in pairs)] if same_kind else []),
    )


def _snapshots(side: Path, limit: int, timeout: float) -> list[Snapshot]:
    if is_container_image(side):
        return of_container(side)
    if side.suffix == ".json":
        return [of_manifest(side)]
    if side.suffix == ".lock":
        return of_lock(side)
    info = image_info(side)
    return [of_disk(side, info, Limits(limit, timeout), partial(_opened, info=info))]


@contextmanager
def _opened(image: Path, limits: Limits, *, info: ImageInfo) -> Iterator[ImageReader]:
    with (
        scratch.folder() as folder,
        open_image(image, folder, appliance_options(), limits, info=info) as reader,
    ):
        yield reader


def _paired(before: Sequence[Snapshot], after: Sequence[Snapshot]) -> Iterator[tuple[Snapshot, Snapshot]]:
    """Yield what belongs together: two single images, or images of one architecture, preferably for the same use."""
    if len(before) == len(after) == 1:
        yield before[0], after[0]
        return
    for one in before:
        fitting = [other for other in after if other.arch == one.arch]
        exact = [other for other in fitting if other.shape == one.shape]
        alone = len(fitting) == 1 and sum(other.arch == one.arch for other in before) == 1
        if exact or alone:
            yield one, (exact or fitting)[0]


def _name(snapshot: Snapshot) -> str:
    return snapshot.arch if snapshot.shape == "disk" else f"{snapshot.arch}/{snapshot.shape}"


def _names(snapshots: Sequence[Snapshot]) -> tuple[str, ...]:
    return tuple(_name(snapshot) for snapshot in snapshots)
