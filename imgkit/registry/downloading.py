"""Fetch one blob into a file: capped, hashed, and continued where a connection broke off."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from imgkit.errors import HostError
from imgkit.fetch.checks import looks_like_html
from imgkit.host.room import no_room
from imgkit.oci.descriptors import Descriptor
from imgkit.registry.registryerrors import RegistryError, web_page
from imgkit.registry.remote import RemoteRepository, patiently

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/(?:[0-9]{1,18}|\*)")
_HEAD = 1024  # bytes that are looked at to tell a web page


class BlobDownload:
    """The download of one blob. It is used once, by :meth:`fetch`; it is the sink of its own requests.

    Args:
        path: the file, which does not exist yet.
        on_bytes: called with the length of each piece; with a negative number if it must come again.
    """

    def __init__(
        self,
        repository: RemoteRepository,
        blob: Descriptor,
        path: Path,
        *,
        cancelled: threading.Event,
        on_bytes: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._repository, self._blob, self._path = repository, blob, path
        self._cancelled, self._report = cancelled, on_bytes
        self._what = f"{repository.name.full_repository}@{blob.digest}"
        self._hash = hashlib.new(blob.digest.partition(":")[0])
        self._size = 0
        self._head = b""

    def fetch(self) -> None:
        """Fetch the blob.

        Raises:
            RegistryError: the registry sends something else.
            InputError: the registry cannot be reached.
            HostError: the disk is full.
        """
        try:
            self._path.write_bytes(b"")
            patiently(self._attempt, self._repository.access, self._cancelled)
        except OSError as cause:
            reason = "no space left" if no_room(cause) else f"cannot be written ({cause.strerror})"
            raise HostError(f"{self._path.parent}: {reason}") from cause
        self._check()

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Start over, unless the answer is the rest of the blob.

        Raises:
            RegistryError: the answer is another part of the blob.
        """
        if status == 200:
            self._start_over()
            return
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
        if match is None or int(match[1]) != self._size:
            said = headers.get("Content-Range", "")[:60]
            raise RegistryError(f"{self._what}: asked for the bytes from {self._size}, the registry sends {said!r}")

    def write(self, piece: bytes) -> None:
        """Take a piece.

        Raises:
            RegistryError: the blob is longer than announced.
        """
        self._head = (self._head + piece[:_HEAD])[:_HEAD]
        if self._size + len(piece) > self._blob.size:
            raise self._wrong(f"sends more than the {self._blob.size} bytes that the image announces")
        with self._path.open("ab") as sink:
            sink.write(piece)
        self._hash.update(piece)
        self._size += len(piece)
        self._report(len(piece))

    def _attempt(self) -> None:
        headers = {"Range": f"bytes={self._size}-"} if self._size else {}
        self._repository.request(
            "GET",
            f"blobs/{self._blob.digest}",
            (200, 206),
            cancelled=self._cancelled,
            headers=headers,
            sink=self,
            what=self._what,
            once=True,
        )

    def _start_over(self) -> None:
        self._report(-self._size)
        self._path.write_bytes(b"")
        self._hash = hashlib.new(self._blob.digest.partition(":")[0])
        self._size, self._head = 0, b""

    def _check(self) -> None:
        digest = f"{self._hash.name}:{self._hash.hexdigest()}"
        if self._size != self._blob.size:
            raise self._wrong(f"sends {self._size} bytes instead of {self._blob.size}")
        if digest != self._blob.digest:
            raise self._wrong(f"sends a blob with the digest {digest}")

    def _wrong(self, sentence: str) -> RegistryError:
        if looks_like_html(self._head):
            return web_page(self._what)
        return RegistryError(f"{self._what}: the registry {sentence}")
