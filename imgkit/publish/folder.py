"""A folder as the target of a publication: nothing shows there before it is complete, and no published file changes.

A new version is made in a scratch folder beside its place and renamed. What is added to a version that exists (another
architecture, a further boot) is renamed into it file by file: the index comes last.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
_MOST_BYTES = 1 << 20  # of an index; two architectures take 3 KiB


@dataclass(frozen=True)
class PublishRequest:
    """What to publish, and where to.

    Attributes:
        images: architecture → image, with the rest of the build beside it.
        base: folder of the versions.
        base_url: its address; None keeps that of an earlier publication of the version.
        generated_at: see :class:`Publication`.
        unproved: publish images that no boot has proved.
    """

    images: Mapping[str, Path]
    base: Path
    version: str
    base_url: str | None
    generated_at: str
    unproved: bool = False


@dataclass(frozen=True)
class PublishResult:
    """What is published now. ``changed`` is False if all of it was there already."""

    folder: Path
    publication: Publication
    changed: bool


def publish(request: PublishRequest) -> PublishResult:
    """Publish images to a folder.

    Raises:
        InputError: an image is not fit to be published; or what lies in the version's folder is not a publication.
        UsageError: the version has another file under one of the names.
        HostError: the folder cannot be written.
    """
    base, target = request.base, request.base / request.version
    try:
        with scratch.parents(base), scratch.folder(base, _SCRATCH) as work:
            staging = work / request.version
            staging.mkdir()
            staged = [
                sources.stage(arch, image, staging, unproved=request.unproved) for arch, image in request.images.items()
            ]
            same = _identical(target, staging, {})
            with scratch.alone(base):
                return _place(request, target, staging, staged, same)
    except OSError as cause:
        hint = "choose another folder with --to"
        raise HostError(f"{cause.filename or base}: {cause.strerror}", hint=hint) from cause


def _place(
    request: PublishRequest, target: Path, staging: Path, staged: Sequence[Staged], same: dict[str, object]
) -> PublishResult:
    """Put the staged files into place. The lock of the folder is held."""
    names = _names(staging)
    old = _published(target, names)
    same = _identical(target, staging, same)
    new = [name for name in names if name not in same]
    publication = _combined(request, old, [_with_record(each, target, staging) for each in staged])
    written = _write_texts(texts(publication), target, staging)
    records = [each.record.name for each in publication.architectures if each.record]
    changed = [*new, *(name for name in records if (staging / name).exists()), *written]
    moves = {staging: target}  # an empty folder may be there
    if old is not None:
        moves = {staging / name: target / name for name in changed}
    wholefile.settle(moves)
    with interrupts.held_back():
        wholefile.rename(moves)
    return PublishResult(target, publication, bool(changed))


def _names(staging: Path) -> list[str]:
    return sorted(path.name for path in staging.iterdir())


def _identical(target: Path, staging: Path, known: Mapping[str, object]) -> dict[str, object]:
    """The staged names that exist in ``target`` with the same bytes, each with the state of the file there.

    Args:
        known: what this function said before; files in that state are not read again.

    Raises:
        UsageError: a name exists there with other bytes.
    """
    found: dict[str, object] = {}
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
        found[name] = state
    return found


def _equal(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and hash_file(one) == hash_file(other)


def _published(target: Path, staged: Sequence[str]) -> Publication | None:
    """What the version consists of so far, None if it does not exist.

    Args:
        staged: names of files that are about to be put there.

    Raises:
        InputError: the folder holds something else, or lacks a file.
    """
    index = target / INDEX
    if index.is_file():
        publication = parse_index(read_bytes(index, _MOST_BYTES), index)
        for file in publication.files():
            if file.name not in staged and not (target / file.name).is_file():
                raise InputError(f"{target / file.name}: {index} lists it, but it is not there")
        return publication
    if target.exists() and any(target.iterdir()):
        raise InputError(
            f"{target}: has files, but not the {INDEX} of a publication",
            hint="choose another version, or remove that folder",
        )
    return None


def _with_record(each: Staged, target: Path, staging: Path) -> PublishedArchitecture:
    """The architecture with its boot record: the published one, and boots with other firmware than those in it.

    A record that has to be written is put into ``staging``.
    """
    name = f"{Path(each.what.image.name).stem}.boot.json"
    published = bootrecord.read(target / name)
    if published is not None and published.sha256 != each.what.image.sha256:
        published = None
    record = _merged(published, each.record)
    if record is None:
        return each.what
    path = target / name
    if record != published:
        path = staging / name
        path.write_text(record.text())
    file = PublishedFile(name, hash_file(path), path.stat().st_size)
    return replace(each.what, record=file, firmwares=tuple(sorted(record.boots)))


def _merged(published: BootRecord | None, fresh: BootRecord | None) -> BootRecord | None:
    if published is None or fresh is None:
        return published or fresh
    return published if set(fresh.boots) <= set(published.boots) else published.with_boots(fresh)


def _combined(request: PublishRequest, old: Publication | None, fresh: Sequence[PublishedArchitecture]) -> Publication:
    """The publication after this run; only a change of something else changes its time."""
    arches = {each.arch: each for each in (old.architectures if old else ())}
    for each in fresh:
        arches[each.arch] = _complete(each, arches.get(each.arch))
    base_url = request.base_url or (old.base_url if old else None)
    made = Publication(request.version, base_url, request.generated_at, tuple(arches[arch] for arch in sorted(arches)))
    return old if old is not None and replace(made, generated_at=old.generated_at) == old else made


def _complete(fresh: PublishedArchitecture, old: PublishedArchitecture | None) -> PublishedArchitecture:
    """With what was published earlier and is missing this time, for the same image."""
    if old is None:
        return fresh
    return replace(fresh, kernel=fresh.kernel or old.kernel, initramfs=fresh.initramfs or old.initramfs)


def _write_texts(wanted: Mapping[str, str], target: Path, staging: Path) -> list[str]:
    """Write those texts into ``staging`` that ``target`` lacks or has otherwise; returns their names."""
    written = []
    for name, text in wanted.items():
        path = target / name
        if not path.is_file() or path.read_text(errors="replace") != text:
            (staging / name).write_text(text)
            written.append(name)
    return written
