"""Read the data part of a package, and check every path and every file.

It refuses entries that could write outside the root filesystem, forge a record of the installed database, or escape
verification. apk refuses most of them too (apk-tools 3), and no package of Alpine has any of the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import SEEK_END, FileIO
from pathlib import Path
from typing import TypedDict

from imgkit.errors import InputError
from imgkit.host.room import no_room, no_room_for
from imgkit.tree import (
    MAX_NAME,
    MAX_PATH,
    Directory,
    File,
    HardLink,
    HashedSlice,
    Node,
    Symlink,
    kind,
    leads_out,
    xattrs_of,
)
from imgkit.tree.gzipmembers import GzipMembers
from imgkit.tree.nodes import START
from imgkit.tree.tarstream import DIRECTORY, HARD_LINK, REGULAR, SYMLINK, Header, TarError, TarStream

CHECKSUM = "APK-TOOLS.checksum.SHA1"
_LIMIT_ENTRIES = 500_000  # the largest package of Alpine has about half as many
_HEADERS = 4096  # bytes of headers and padding that one entry may cost on average


@dataclass(frozen=True)
class PackageEntry:
    """One path of a package.

    Attributes:
        path: relative to the root, without a trailing slash.
        node: with the numeric owner of the archive. The installation resolves ``uname`` and ``gname`` first.
        checksum: the SHA-1 of a file's contents or of a symbolic link's target; for a hard link that of its file, for a
            directory None.
        uname: the name of the owner, empty if there is none.
        gname: the name of the group, empty if there is none.
    """

    path: str
    node: Node
    checksum: bytes | None
    uname: str
    gname: str


def unpack(members: GzipMembers, spool: Path, max_installed: int, name: str) -> tuple[PackageEntry, ...]:
    """Read the last member of a package, and append the contents of its files to ``spool``.

    Args:
        members: the reader of the package, which stands at its data member.
        spool: the file on the host that takes the contents. It is cut back to its former size if anything is wrong.
        max_installed: bytes that all files together may have.
        name: what messages call the package.

    Raises:
        InputError: a path, type, size or checksum is not valid, or the member is damaged.
        HostError: the host has no space left for the contents.
    """
    pieces = members.member(max_installed + _LIMIT_ENTRIES * _HEADERS)
    with _appending(spool) as sink:
        reader = _Reader(TarStream(pieces), sink, spool, max_installed, name)
        try:
            entries = reader.entries()
        except TarError as cause:
            raise InputError(f"{name}: its data part {cause}") from cause
        if members.more():
            raise InputError(f"{name}: is not a package: it has more than three gzip members")
    return entries


@contextmanager
def _appending(spool: Path) -> Iterator[FileIO]:
    """Open ``spool`` for appending, and cut it back to its former size if the block raises."""
    try:
        with spool.open("ab", buffering=0) as sink:  # a buffer would try to write again while it is being closed
            start = sink.seek(0, SEEK_END)
            try:
                yield sink
            except BaseException:
                with suppress(OSError):
                    sink.truncate(start)
                raise
    except OSError as cause:
        if no_room(cause):
            raise no_room_for(spool.parent, "the contents of packages") from cause
        raise


def _write(sink: FileIO, data: memoryview) -> None:
    """Write all of ``data``: a file without a buffer may take less at a time."""
    while data:
        data = data[sink.write(data) :]


class _Reader:
    """The state of reading one data part."""

    def __init__(self, archive: TarStream, sink: FileIO, spool: Path, max_installed: int, name: str) -> None:
        self._archive = archive
        self._sink = sink
        self._spool = spool
        self._offset = sink.tell()
        self._budget = max_installed
        self._max_installed = max_installed
        self._name = name
        self._seen: dict[str, PackageEntry] = {}  # the entries so far, by path

    def entries(self) -> tuple[PackageEntry, ...]:
        """Read and check all entries."""
        for header in self._archive:
            path = self._path(header)
            if path.startswith("."):  # apk ignores such names at the top; empty packages hold a .dummy
                continue
            if path in self._seen:
                raise self._refuse(f"holds {path} twice")
            self._check_parent(path)
            self._seen[path] = self._entry(header, path)
            if len(self._seen) > _LIMIT_ENTRIES:
                raise self._refuse(f"holds more than {_LIMIT_ENTRIES} files")
        return tuple(self._seen.values())

    def _refuse(self, reason: str) -> InputError:
        return InputError(f"{self._name}: {reason}")

    def _path(self, header: Header) -> str:
        name = header.name
        if any(character < " " or character == "\x7f" for character in name + header.link):
            raise self._refuse(f"has control characters in the path {name!r}")
        if name.startswith("/"):
            raise self._refuse(f"holds the absolute path {name}")
        path = name[:-1] if header.kind == DIRECTORY and name.endswith("/") else name
        parts = path.split("/")
        if ".." in parts:
            raise self._refuse(f"holds a path with '..': {name}")
        if "" in parts or "." in parts:
            raise self._refuse(f"holds the improper path {name!r}")
        if len(_raw(path)) > MAX_PATH or any(len(_raw(part)) > MAX_NAME for part in parts):
            raise self._refuse(f"holds a path that is too long: {path[:80]}…")
        return path

    def _check_parent(self, path: str) -> None:
        above = self._seen.get(path.rpartition("/")[0])
        if above is not None and not isinstance(above.node, Directory):
            raise self._refuse(f"holds {path} below {above.path}, which is a {kind(above.node)}")

    def _entry(self, header: Header, path: str) -> PackageEntry:
        node: Node
        checksum: bytes | None = None
        if header.kind == DIRECTORY:
            node = Directory(**_attributes(header))
        elif header.kind == REGULAR:
            node, checksum = self._file(header, path)
        elif header.kind == SYMLINK:
            node, checksum = self._symlink(header, path)
        elif header.kind == HARD_LINK:
            node, checksum = self._hard_link(header, path)
        else:
            raise self._refuse(f"holds the device node or FIFO {path}")
        return PackageEntry(path, node, checksum, header.uname, header.gname)

    def _file(self, header: Header, path: str) -> tuple[Node, bytes]:
        expected = self._checksum(header, path)
        if expected is None:
            raise self._refuse(f"has no checksum for {path}")
        if header.size > self._budget:
            raise self._refuse(f"unpacks to more than the {self._max_installed} bytes that it may (at {path})")
        digest = hashlib.sha1()  # noqa: S324 - the format's choice; SHA-256 covers the data as a whole
        known, start = hashlib.sha256(), b""
        for part in self._archive.content():
            digest.update(part)
            known.update(part)
            start = start if len(start) == START else start + bytes(part[: START - len(start)])
            _write(self._sink, part)
        self._compare(digest.digest(), expected, path)
        content = HashedSlice(self._spool, self._offset, header.size, known.digest(), start)
        self._offset += header.size
        self._budget -= header.size
        return File(content=content, **_attributes(header)), expected

    def _symlink(self, header: Header, path: str) -> tuple[Node, bytes]:
        if not header.link:
            raise self._refuse(f"holds the symbolic link {path} without a target")
        if not header.link.startswith("/") and leads_out(header.link, path.count("/")):
            raise self._refuse(f"holds a symbolic link that leads out of the root: {path} → {header.link}")
        checksum = hashlib.sha1(_raw(header.link)).digest()  # noqa: S324
        self._compare(checksum, self._checksum(header, path) or checksum, path)
        return Symlink(target=header.link, **_attributes(header)), checksum

    def _hard_link(self, header: Header, path: str) -> tuple[Node, bytes | None]:
        target = self._seen.get(header.link)
        if target is not None and isinstance(target.node, HardLink):
            target = self._seen[target.node.target]
        if target is None or not isinstance(target.node, File):
            raise self._refuse(f"holds a hard link whose target is not an earlier file of it: {path} → {header.link}")
        return HardLink(target=target.path, **_attributes(header)), target.checksum

    def _checksum(self, header: Header, path: str) -> bytes | None:
        text = header.pax.get(CHECKSUM)
        if text is None:
            return None
        try:
            checksum = bytes.fromhex(text)
        except ValueError:
            checksum = b""
        if len(checksum) != hashlib.sha1().digest_size:  # noqa: S324
            raise self._refuse(f"has an improper checksum for {path}: {text[:80]!r}")
        return checksum

    def _compare(self, actual: bytes, expected: bytes, path: str) -> None:
        if actual != expected:
            detail = f"SHA-1 {actual.hex()} instead of {expected.hex()}"
            raise self._refuse(f"{path} does not match its checksum ({detail})")


class _Shared(TypedDict):
    """The arguments that every kind of node takes."""

    mode: int
    uid: int
    gid: int
    mtime: int
    xattrs: Mapping[str, bytes]


def _attributes(header: Header) -> _Shared:
    return _Shared(
        mode=header.mode,
        uid=header.uid,
        gid=header.gid,
        mtime=header.mtime,
        xattrs=xattrs_of(header.pax),
    )


def _raw(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
