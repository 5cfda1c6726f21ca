"""Push an image of a layout to repositories of registries.

    parts = read_parts(OciLayout.open(folder))
    result = push(layout, parts, [PushTarget(ImageName.parse("registry.example/team/app"), ("1.0", "latest"))])

In this order: for every repository the blobs that it lacks, several at a time; the manifests and the index by their
digests; and when all repositories have everything, the tags. So a tag never names something that is incomplete.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from imgkit.errors import UsageError
from imgkit.fetch.pool import Meter, in_parallel
from imgkit.oci.descriptors import Descriptor
from imgkit.oci.imagename import DEFAULT_TAG, ImageName, ImageNameError
from imgkit.oci.ocilayout import OciLayout
from imgkit.registry.access import RegistryAccess
from imgkit.registry.bloblookup import has_blob, mount
from imgkit.registry.imageparts import ImageDocument, ImageParts
from imgkit.registry.referrers import note_referrer
from imgkit.registry.registryerrors import RegistryError
from imgkit.registry.remote import RemoteRepository
from imgkit.registry.tokens import PULL
from imgkit.registry.uploading import BlobUpload
from imgkit.registry.wire import Wire

log = logging.getLogger("imgkit.registry")

SENT, MOUNTED, SKIPPED = "sent", "mounted", "skipped"


@dataclass(frozen=True)
class PushTarget:
    """A repository, by a name without tag and digest, and the tags that the image is to have there; maybe none."""

    name: ImageName
    tags: tuple[str, ...]


@dataclass(frozen=True)
class PartResult:
    """What happened to a blob or a document, or would happen in a dry run.

    Attributes:
        result: ``sent``, ``mounted`` (from the repository ``source``) or ``skipped``, because it was there.
        bytes_sent: bytes that went over the line for it, those that had to be sent twice included.
    """

    descriptor: Descriptor
    result: str
    bytes_sent: int = 0
    source: str = ""


@dataclass(frozen=True)
class TargetResult:
    """What happened in one repository."""

    target: PushTarget
    blobs: tuple[PartResult, ...]
    documents: tuple[PartResult, ...]

    def bytes_of(self, result: str) -> int:
        """Return the bytes of all blobs and documents that were sent, mounted or skipped."""
        return sum(part.descriptor.size for part in (*self.blobs, *self.documents) if part.result == result)


@dataclass(frozen=True)
class PushResult:
    """What a push did. ``root`` is what the tags name."""

    root: Descriptor
    dry_run: bool
    targets: tuple[TargetResult, ...]


@dataclass
class _Work:
    """One repository during a push."""

    target: PushTarget
    repository: RemoteRepository
    sources: tuple[str, ...]
    blobs: list[PartResult] = field(default_factory=list)
    documents: list[PartResult] = field(default_factory=list)


def push_targets(names: Sequence[ImageName], root: Descriptor, tags: Sequence[str] = ()) -> list[PushTarget]:
    """Return what to push where: each repository once, with all its tags.

    Args:
        root: what is pushed; a name with a digest must have its digest.
        tags: for all names, which have no tags of their own then.

    Raises:
        UsageError: a name has a tag although there are ``tags``, or another digest.
    """
    found: dict[str, tuple[ImageName, list[str]]] = {}
    for name in names:
        if name.digest and name.digest != root.digest:
            raise UsageError(f"{name}: what is pushed has the digest {root.digest}", hint="leave out the digest")
        if name.tag and tags:
            raise UsageError(f"{name}: has a tag, but --tags names the tags", hint=f"write {name.full_repository}")
        plain = ImageName(name.registry, name.repository)
        own = tags or ([name.tag] if name.tag else [] if name.digest else [DEFAULT_TAG])
        found.setdefault(name.full_repository, (plain, []))[1].extend(own)
    return [PushTarget(name, tuple(dict.fromkeys(own))) for name, own in found.values()]


def push(
    layout: OciLayout,
    parts: ImageParts,
    targets: Sequence[PushTarget],
    *,
    access: RegistryAccess | None = None,
    mount_from: Sequence[str] = (),
    dry_run: bool = False,
) -> PushResult:
    """Push an image.

    Args:
        mount_from: further repositories of the registries from which blobs may be mounted.
        dry_run: ask only what the repositories have; nothing is written.

    Raises:
        InputError: a blob of the layout is damaged; or a registry refuses, cannot be reached, or answers something
            else. No tag was written then, unless it was the writing of a tag that failed.
    """
    access = access or RegistryAccess()
    wire = Wire(access)
    try:
        work = [
            _Work(target, RemoteRepository(target.name, access, wire), _sources(target, targets, parts, mount_from))
            for target in targets
        ]
        return _Push(layout, parts, access, dry_run=dry_run).run(work)
    finally:
        wire.close()


class _Push:
    """One push."""

    def __init__(self, layout: OciLayout, parts: ImageParts, access: RegistryAccess, *, dry_run: bool) -> None:
        self._layout, self._parts, self._access, self._dry_run = layout, parts, access, dry_run
        self._never = threading.Event()
        self._certain = ""  # a repository of the same registry that has every blob by now

    def run(self, work: Sequence[_Work]) -> PushResult:
        """Push to all repositories, and then write the tags."""
        with Meter("push") as meter:
            for number, one in enumerate(work):
                self._push_blobs(one, work[:number], meter)
        for one in work:
            self._push_documents(one)
        if not self._dry_run:
            for one in work:
                self._write_tags(one)
        results = [TargetResult(one.target, tuple(one.blobs), tuple(one.documents)) for one in work]
        return PushResult(self._parts.root, self._dry_run, tuple(results))

    def _push_blobs(self, work: _Work, before: Sequence[_Work], meter: Meter) -> None:
        done = [
            one.repository.name.repository for one in before if one.target.name.registry == work.target.name.registry
        ]
        sources = tuple(dict.fromkeys((*done, *work.sources)))
        self._certain = done[0] if done else ""
        if self._parts.blobs:  # the first request of a repository asks for authentication, once for all
            has_blob(work.repository, self._parts.blobs[-1], self._never)
        jobs = [self._job(work, blob, sources, meter) for blob in self._parts.blobs]
        work.blobs += in_parallel(jobs, workers=self._access.workers)

    def _job(
        self, work: _Work, blob: Descriptor, sources: Sequence[str], meter: Meter
    ) -> Callable[[threading.Event], PartResult]:
        return lambda cancelled: self._push_blob(work, blob, sources, meter, cancelled)

    def _push_blob(
        self, work: _Work, blob: Descriptor, sources: Sequence[str], meter: Meter, cancelled: threading.Event
    ) -> PartResult:
        """Bring one blob into a repository, in the cheapest way that works."""
        if has_blob(work.repository, blob, cancelled):
            return PartResult(blob, SKIPPED)
        if self._dry_run:
            return self._foreseen(work, blob, sources, cancelled)
        source, begun = mount(work.repository, blob, sources, cancelled)
        if source:
            return PartResult(blob, MOUNTED, source=source)
        meter.expect(blob.size)
        with self._layout.verified(blob):
            upload = BlobUpload(
                work.repository,
                blob,
                self._layout.path(blob.digest),
                cancelled=cancelled,
                on_bytes=meter.advance,
                begun=begun,
            )
            upload.send()
        return PartResult(blob, SENT, upload.bytes_sent)

    def _foreseen(
        self, work: _Work, blob: Descriptor, sources: Sequence[str], cancelled: threading.Event
    ) -> PartResult:
        """Return what would happen to a blob that a repository lacks."""
        with self._layout.verified(blob):
            pass
        if self._certain:
            return PartResult(blob, MOUNTED, source=self._certain)
        for source in sources:
            name = ImageName(work.target.name.registry, source)
            with suppress(RegistryError):
                if has_blob(work.repository.beside(name), blob, cancelled, actions=PULL):
                    return PartResult(blob, MOUNTED, source=source)
        return PartResult(blob, SENT)

    def _push_documents(self, work: _Work) -> None:
        for document in self._parts.documents:
            work.documents.append(self._push_document(work, document))
        for subject, document in self._parts.referrers:
            work.documents.append(self._push_referrer(work, subject, document))

    def _push_document(self, work: _Work, document: ImageDocument) -> PartResult:
        digest, repository = document.descriptor.digest, work.repository
        if repository.has_document(digest, self._never):
            return PartResult(document.descriptor, SKIPPED)
        if not self._dry_run:
            repository.put_document(digest, document.descriptor, document.data, self._never)
        return PartResult(document.descriptor, SENT, 0 if self._dry_run else len(document.data))

    def _push_referrer(self, work: _Work, subject: str, document: ImageDocument) -> PartResult:
        """Push a manifest that refers to another, even if it is there: only the answer says whether it is listed."""
        digest, repository = document.descriptor.digest, work.repository
        result = SKIPPED if repository.has_document(digest, self._never) else SENT
        if self._dry_run:
            return PartResult(document.descriptor, result)
        if not repository.put_document(digest, document.descriptor, document.data, self._never):
            note_referrer(repository, subject, document, self._never)
        return PartResult(document.descriptor, result, len(document.data))

    def _write_tags(self, work: _Work) -> None:
        root = self._parts.documents[-1]
        for tag in work.target.tags:
            work.repository.put_document(tag, root.descriptor, root.data, self._never)
            log.info("%s:%s: %s", work.target.name.full_repository, tag, root.descriptor.digest)


def _sources(
    target: PushTarget, targets: Sequence[PushTarget], parts: ImageParts, further: Sequence[str]
) -> tuple[str, ...]:
    """Return the other repositories of a target's registry that may have blobs of the image."""
    names = [*further]
    for base in parts.bases:
        with suppress(ImageNameError):
            name = ImageName.parse(base)
            if name.registry == target.name.registry:
                names.append(name.repository)
    names += [other.name.repository for other in targets if other.name.registry == target.name.registry]
    return tuple(name for name in dict.fromkeys(names) if name != target.name.repository)
