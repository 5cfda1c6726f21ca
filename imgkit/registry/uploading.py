"""Send one blob to a repository: mounted from another repository, at once, or in chunks that are resumed.

Source: distribution-spec 1.1, "Pushing blobs". What registries do differently:

* Several take no chunks (those of GitHub and Google, by reports of other clients), some only at the second one or when
  the upload is completed. The blob is then sent at once.
* After a chunk that broke off, distribution 2.8 (the registry in Debian) has lost the whole upload, which starts anew.
* For an upload without any bytes it says ``Range: 0-0``, as for one byte.
* Amazon's registry answers a chunk with the range of that chunk, not of the upload, and knows no status of uploads.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from imgkit.fetch.checks import TransientError
from imgkit.oci.descriptors import Descriptor
from imgkit.registry.bloblookup import UPLOADS, has_blob, upload_location
from imgkit.registry.httpcalls import Answer
from imgkit.registry.registryerrors import DeniedError, RegistryError
from imgkit.registry.remote import RemoteRepository, check_digest, pause_before
from imgkit.registry.tokens import PUSH
from imgkit.registry.wire import StalledServerError

log = logging.getLogger("imgkit.registry")

_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")
_MAX_CHUNK = 1 << 30
_PROGRESS = 1 << 20  # bytes that a registry must have taken since the last fault for it to be forgotten
_NO_CHUNKS = frozenset({400, 404, 405, 411, 415, 416, 501})
_BINARY = "application/octet-stream"


@dataclass(frozen=True)
class FilePart:
    """A part of a file as the body of a request: ``length`` bytes from ``start``."""

    path: Path
    start: int
    length: int
    on_bytes: Callable[[int], object]

    def __len__(self) -> int:
        return self.length

    def pieces(self, size: int) -> Iterator[bytes]:
        """Yield the part from its beginning.

        Raises:
            OSError: the file has become shorter.
        """
        left = self.length
        with self.path.open("rb", buffering=0) as source:
            source.seek(self.start)
            while left:
                piece = source.read(min(size, left))
                if not piece:
                    raise OSError(f"{self.path}: became shorter while it was sent")
                left -= len(piece)
                yield piece
                self.on_bytes(len(piece))


class BlobUpload:
    """The upload of one blob. It is used once, by :meth:`send`.

    Args:
        path: the file of the blob, whose digest was verified.
        on_bytes: called with the length of each piece that was sent; with a negative number if it must be sent again.
        begun: the place of an upload that the registry has begun already; empty if there is none.
    """

    def __init__(
        self,
        repository: RemoteRepository,
        descriptor: Descriptor,
        path: Path,
        *,
        cancelled: threading.Event,
        on_bytes: Callable[[int], object] = lambda _: None,
        begun: str = "",
    ) -> None:
        self._repository, self._descriptor, self._path = repository, descriptor, path
        self._cancelled, self._report = cancelled, on_bytes
        self._what = f"{repository.name.full_repository}@{descriptor.digest}"
        self._place, self._offset, self._chunk = begun, 0, repository.access.chunk_size
        self._in_chunks = descriptor.size > self._chunk and repository.takes_chunks
        self._shown = 0  # bytes that were reported
        self.bytes_sent = 0

    def send(self) -> None:
        """Send the blob.

        Raises:
            RegistryError: the registry refuses it, or says that it has something else.
            InputError: the registry cannot be reached any more.
        """
        faults, reached = 0, 0
        while True:
            try:
                self._advance()
                return
            except (TransientError, StalledServerError) as fault:
                transient = fault if isinstance(fault, TransientError) else TransientError(fault)
                if self._offset >= reached + _PROGRESS:
                    faults, reached = 0, self._offset
                faults += 2 if isinstance(fault, StalledServerError) else 1
                if faults >= self._repository.access.attempts or self._cancelled.is_set():
                    raise transient.error from fault.__cause__
                pause = pause_before(faults - 1, transient, self._repository.access)
                log.info("the upload goes on in %.1f s: %s", pause, transient.error)
                self._cancelled.wait(pause)
            if self._recovered():
                return

    # ---- steps -------------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Send what the registry does not have yet, and complete the upload."""
        if not self._place:
            self._begin()
        try:
            while self._in_chunks and self._offset < self._descriptor.size:
                self._send_chunk()
            self._complete()
        except RegistryError as refused:
            if not self._in_chunks or refused.status not in _NO_CHUNKS:
                raise
            self._give_up_chunks(refused)
            self._begin()
            self._complete()

    def _give_up_chunks(self, refused: RegistryError) -> None:
        """Send this blob and later ones at once: several registries take no chunks, or the first one only."""
        log.info("%s: takes no chunks, so blobs are sent at once", self._repository.name.registry)
        log.debug("%s", refused)
        self._in_chunks = False
        self._repository.takes_chunks = False

    def _begin(self) -> None:
        answer = self._request("POST", UPLOADS, (202,), body=b"", once=False)
        least = answer.headers.get("OCI-Chunk-Min-Length", "")
        if least.isascii() and least.isdigit():
            self._chunk = max(self._chunk, min(int(least[:12]), _MAX_CHUNK))
        self._place = upload_location(answer)
        self._go_to(0)

    def _send_chunk(self) -> None:
        end = min(self._offset + self._chunk, self._descriptor.size)
        headers = {"Content-Type": _BINARY, "Content-Range": f"{self._offset}-{end - 1}"}
        body = FilePart(self._path, self._offset, end - self._offset, self._count)
        answer = self._request("PATCH", self._place, (202, 204), headers=headers, body=body)
        self._place = upload_location(answer)
        self._check_taken(answer, end)
        self._go_to(end)

    def _complete(self) -> None:
        """Send the rest of the blob, which is all of it if it is not sent in chunks, and its digest."""
        rest = self._descriptor.size - self._offset
        body = FilePart(self._path, self._offset, rest, self._count) if rest else b""
        separator = "&" if "?" in self._place else "?"
        place = f"{self._place}{separator}digest={quote(self._descriptor.digest, safe='')}"
        headers = {"Content-Type": _BINARY}
        answer = self._request(
            "PUT", place, (201, 204), headers=headers, body=body, patience=self._repository.access.commit_timeout
        )
        check_digest(answer, self._descriptor.digest, self._what)
        self._go_to(self._descriptor.size)

    def _recovered(self) -> bool:
        """Find out after a fault how far the upload is. Returns whether the registry has the whole blob."""
        complete = self._offset == self._descriptor.size or not self._in_chunks
        if complete and has_blob(self._repository, self._descriptor, self._cancelled):
            self._go_to(self._descriptor.size)
            return True
        if self._in_chunks and self._place and self._resumed():
            return False
        self._place = ""
        self._go_to(0)
        return False

    def _resumed(self) -> bool:
        """Ask how much of the upload the registry has. Returns False if it no longer knows the upload."""
        try:
            answer = self._request("GET", self._place, (204,), once=False)
        except DeniedError:
            raise
        except RegistryError as error:
            log.debug("%s: the upload is lost: %s", self._what, error)
            return False
        most = min(self._offset + self._chunk, self._descriptor.size)
        self._go_to(self._taken(answer, most))
        if answer.headers.get("Location"):
            self._place = upload_location(answer)
        return True

    def _check_taken(self, answer: Answer, end: int) -> None:
        """Check that the registry does not claim to have more than it can have.

        It has taken the whole chunk, whatever it says: some registries name the range of the last chunk here.
        """
        if answer.headers.get("Range"):
            self._taken(answer, end)

    def _taken(self, answer: Answer, most: int) -> int:
        """Return how many bytes the registry has, as its header ``Range`` says.

        Raises:
            RegistryError: the header is not valid, or names more bytes than were sent.
        """
        text = answer.headers.get("Range", "").strip()
        match = _RANGE.fullmatch(text)
        taken = -1 if match is None else int(match[1]) + 1 if match[1] != "0" else 0
        if not 0 <= taken <= most:
            message = f"{self._what}: the registry says that it has the bytes {text[:40]!r}, where {most} were sent"
            raise RegistryError(message)
        return taken

    def _request(self, method: str, place: str, good: Sequence[int], *, once: bool = True, **options: Any) -> Answer:
        return self._repository.request(
            method, place, good, cancelled=self._cancelled, actions=PUSH, what=self._what, once=once, **options
        )

    # ---- counting ----------------------------------------------------------------------------------------------------

    def _count(self, size: int) -> None:
        self.bytes_sent += size
        self._shown += size
        self._report(size)

    def _go_to(self, offset: int) -> None:
        """Continue at ``offset``; what was reported beyond it will be sent again."""
        self._offset = offset
        self._report(offset - self._shown)
        self._shown = offset
