"""Publish images to a folder. No file appears there before it is complete, and no published file changes::

    result = publish(PublishRequest(images, base, "v0.1.5", base_url, generated_at))
    print(result.folder)

A new version is made in a scratch folder beside its place, and renamed. What is added to an existing version (another
architecture, another boot) is renamed into it file by file, and the index comes last.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from imgkit.errors import HostError, InputError, UsageError
from imgkit.fetch.cache import hash_file
from imgkit.host import interrupts, scratch, wholefile
from imgkit.host.jsonfile import read_bytes
from imgkit.image import bootrecord
from imgkit.image.bootrecord import BootRecord
from imgkit.publish import sources
from imgkit.publish.publication import INDEX, Publication, PublishedArchitecture, PublishedFile, parse_index, texts
from imgkit.publish.sources import Staged

log = logging.getLogger("imgkit")

_SCRATCH = ".imgkit-"
_MOST_BYTES = 1 << 20  # of an index; with two architectures it has 3 KiB


@dataclass(frozen=True)
class PublishRequest:
    """What to publish, and where.

    Attributes:
        images: architecture → image. The other files of the build lie beside it.
        base: folder of the versions.
        base_url: its address; None keeps the address of an earlier publication of the version.
        generated_at: see :class:`Publication`.
        unproved: whether images are published that no boot has proved.
    """

    images: Mapping[str, Path]
    base: Path
    version: str
    base_url: str | None
    generated_at: str
    unproved: bool = False


@dataclass(frozen=True)
class PublishResult:
    """The state after publishing. ``changed`` is False if everything had been published before."""

    folder: Path
    publication: Publication
    changed: bool


def publish(request: PublishRequest) -> PublishResult:
    """Publish images to a folder.

    Raises:
        InputError: an image cannot be published, or the folder of the version holds something else.
        UsageError: another file is published under one of the names.
        HostError: the folder cannot be written to.
    """
    base, target = request.base, request.base / request.version
    try:
        with scratch.parents(base), scratch.folder(base, _SCRATCH) as work:
            staging = work / request.version
            staging.mkdir()
            staged = [
                sources.stage(arch, image, staging, unproved=request.unproved) for arch, image in request.images.items()
            ]
            states = _identical(target, staging, {})
            with scratch.alone(base):
                return _place(request, target, staging, staged, states)
    except OSError as cause:
        hint = "choose another folder with --to"
        raise HostError(f"{cause.filename or base}: {cause.strerror}", hint=hint) from cause


def _place(
    request: PublishRequest, target: Path, staging: Path, staged: Sequence[Staged], states: Mapping[str, _FileState]
) -> PublishResult:
    """Move the staged files into place. The caller holds the lock of the folder.

    Args:
        states: what :func:`_identical` returned before the lock was taken.
    """
    names = _names(staging)
    old = _published(target, names)
    identical = _identical(target, staging, states)
    new = [name for name in names if name not in identical]
    publication = _combined(request, old, [_with_record(arch, target, staging) for arch in staged])
    written = _write_texts(texts(publication), target, staging)
    records = [arch.record.name for arch in publication.architectures if arch.record]
    changed = [*new, *(name for name in records if (staging / name).exists()), *written]
    moves = {staging: target}  # the target may be an empty folder
    if old is not None:
        moves = {staging / name: target / name for name in changed}
    wholefile.settle(moves)
    with interrupts.held_back():
        wholefile.rename(moves)
    return PublishResult(target, publication, bool(changed))


def _names(staging: Path) -> list[str]:
    return sorted(path.name for path in staging.iterdir())


_FileState: TypeAlias = tuple[int, int, int]
"""Inode, size and time of change (ns) of a file, which say whether it is still the same."""


def _identical(target: Path, staging: Path, known: Mapping[str, _FileState]) -> dict[str, _FileState]:
    """Return the staged files that exist in ``target`` with the same bytes.

    Args:
        known: what this function returned before; files in that state are not read again.

    Returns:
        Name → state of the file in ``target``.

    Raises:
        UsageError: a file in ``target`` has other bytes.
    """
    identical: dict[str, _FileState] = {}
    for name in _names(staging):
        path = target / name
        if not path.exists():
            continue
        status = path.stat()
        state = (status.st_ino, status.st_size, status.st_mtime_ns)
        if known.get(name) != state and not _equal(path, staging / name):
            raise UsageError(
                f"{path}: another file is published under this name",
                hint="programs keep what they downloaded of a version: publish it as a new version",
            )
        identical[name] = state
    return identical


def _equal(first: Path, second: Path) -> bool:
    return first.stat().st_size == second.stat().st_size and hash_file(first) == hash_file(second)


def _published(target: Path, staged: Sequence[str]) -> Publication | None:
    """Return what is published of the version so far; None if it does not exist.

    Args:
        staged: names of files that will be moved there, and may be missing now.

    Raises:
        InputError: the folder holds something else, or lacks a file that its index lists.
    """
    index = target / INDEX
    if index.is_file():
        publication = parse_index(read_bytes(index, _MOST_BYTES), index)
        for file in publication.files():
            if file.name not in staged and not (target / file.name).is_file():
                raise InputError(f"{target / file.name}: {index} lists it, but it does not exist")
        return publication
    if target.exists() and any(target.iterdir()):
        raise InputError(
            f"{target}: has files, but not the {INDEX} of a publication",
            hint="choose another version, or remove that folder",
        )
    return None


def _with_record(staged: Staged, target: Path, staging: Path) -> PublishedArchitecture:
    """Return the architecture with its boot record: the published one, extended by boots with other firmware.

    A record that has to be written is put into ``staging``.
    """
    name = f"{Path(staged.published.image.name).stem}.boot.json"
    published = bootrecord.read(target / name)
    if published is not None and published.sha256 != staged.published.image.sha256:
        published = None
    record = _merged(published, staged.record)
    if record is None:
        return staged.published
    path = target / name
    if record != published:
        path = staging / name
        path.write_text(record.text())
    file = PublishedFile(name, hash_file(path), path.stat().st_size)
    return replace(staged.published, record=file, firmwares=tuple(sorted(record.boots)))


def _merged(published: BootRecord | None, new: BootRecord | None) -> BootRecord | None:
    """Return the published record, with the boots of the new one if that has a further firmware."""
    if published is None or new is None:
        return published or new
    return published if set(new.boots) <= set(published.boots) else published.with_boots(new)


def _combined(request: PublishRequest, old: Publication | None, new: Sequence[PublishedArchitecture]) -> Publication:
    """Return the publication after this run. It keeps its time if nothing else in it has changed."""
    arches = {published.arch: published for published in (old.architectures if old else ())}
    for published in new:
        arches[published.arch] = _complete(published, arches.get(published.arch))
    base_url = request.base_url or (old.base_url if old else None)
    architectures = tuple(arches[arch] for arch in sorted(arches))
    publication = Publication(request.version, base_url, request.generated_at, architectures)
    unchanged = old is not None and replace(publication, generated_at=old.generated_at) == old
    return old if old is not None and unchanged else publication


def _complete(new: PublishedArchitecture, old: PublishedArchitecture | None) -> PublishedArchitecture:
    """Return the architecture, with files of the same image that are missing this time but were published earlier."""
    if old is None:
        return new
    return replace(new, kernel=new.kernel or old.kernel, initramfs=new.initramfs or old.initramfs)


def _write_texts(texts: Mapping[str, str], target: Path, staging: Path) -> list[str]:
    """Write the texts into ``staging`` that ``target`` lacks or has in another form, and return their names."""
    written = []
    for name, text in texts.items():
        path = target / name
        if not path.is_file() or path.read_text(errors="replace") != text:
            (staging / name).write_text(text)
            written.append(name)
    return written
