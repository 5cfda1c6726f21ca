"""Read tar streams from untrusted sources: ustar with pax extended headers, and GNU long names.

Formats: POSIX.1-2017, pax, sections "ustar Interchange Format" and "pax Extended Header". Unlike :mod:`tarfile` this
reader never allocates memory because a header asks for it, never guesses, and raises a single exception class. It
refuses members other than files, directories, links, devices and FIFOs (sparse files, multi-volume parts …)::

    archive = TarStream(pieces_of_bytes)
    for header in archive:
        contents = archive.read(limit=1 << 20)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from imgkit.tree.numbers import parse_number

BLOCK = 512
# Extended headers are kept until the member that they describe comes, so they are counted together. A filesystem takes
# 64 KiB of attributes for each file (XATTR_SIZE_MAX, XATTR_LIST_MAX of Linux) and paths of 4 KiB.
LIMIT_MEMBER = 256 << 10  # bytes of all extended headers of one member; real packages have about 200
_LIMIT_HEADERS = 16  # extended headers of one member; pax needs two, GNU's long names two
# Callers keep long names and attributes. 250,000 paths of 150 bytes have 36 MiB.
LIMIT_KEPT = 128 << 20  # bytes of them in one archive
_ATTRIBUTE = "SCHILY.xattr."
_ATTRIBUTE_COST = 256  # bytes of memory that an attribute takes besides its text
_NAMES = ("path", "linkpath", "uname", "gname")
_ZERO = bytes(BLOCK)
_SECOND = 1_000_000_000  # nanoseconds

REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = "0", "1", "2", "3", "4", "5", "6"
_KINDS = frozenset("0123456")
_GNU_SPARSE = "S"
_SAME_AS_REGULAR = {"\0": REGULAR, "7": REGULAR}


class TarError(Exception):
    """The stream is not a valid tar archive. The message says why, without the name of the archive."""


@dataclass(frozen=True)
class Header:
    """One member of an archive. Names are text (surrogateescape).

    Attributes:
        kind: one of the constants of this module (``REGULAR`` …).
        size: bytes of contents.
        mode: permission bits, without the type.
        mtime: whole seconds since 1970, rounded down.
        nanoseconds: what the time has besides.
        link: the target of a symbolic or hard link.
        pax: the records of its extended headers, unchanged.
        major, minor: device numbers; 0 for other kinds.
    """

    name: str
    kind: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime: int
    link: str
    uname: str
    gname: str
    pax: Mapping[str, str]
    major: int
    minor: int
    nanoseconds: int = 0


class TarStream:
    """The members of a tar archive that comes in ``pieces`` of bytes, split anywhere.

    Iterate over the headers. Between one header and the next, :meth:`content` or :meth:`read` returns the bytes of that
    member; bytes that are not read are skipped. The archive ends with two blocks of zeros, or with the end of the
    stream between two members (the first segments of packages have no end marker).
    """

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")
        self._left = 0  # bytes of the current member that were not read yet
        self._padding = 0
        self._kept = 0  # bytes of all extended headers so far that callers may keep

    def __iter__(self) -> Iterator[Header]:
        """Iterate over the headers.

        Raises:
            TarError: the stream is damaged or truncated, has a member of another type, or its extended headers are too
                large.
        """
        pax: dict[str, str] = {}
        sizes: list[int] = []
        while (block := self._next_block()) is not None:
            kind = _kind(block)
            if kind in "xgLK":
                sizes.append(_number(block[124:136], "size"))
                _check_sizes(sizes)
                body = self._extended(sizes[-1])
                if kind != "g":  # apk ignores global headers
                    pax.update(_records(body) if kind == "x" else _long_name(kind, body))
                continue
            header = _header(block, kind, pax)
            self._count(pax)
            pax = {}
            sizes = []
            self._left = header.size
            self._padding = -header.size % BLOCK
            yield header
        if pax:
            raise TarError("ends after an extended header")

    def content(self) -> Iterator[memoryview]:
        """Yield the bytes of the current member in pieces.

        Raises:
            TarError: the stream is truncated.
        """
        while self._left:
            if not self._piece:
                self._advance()
            part = self._piece[: self._left]
            self._piece = self._piece[len(part) :]
            self._left -= len(part)
            yield part

    def read(self, limit: int) -> bytes:
        """Return the contents of the current member.

        Raises:
            TarError: the member has more than ``limit`` bytes, or the stream is truncated.
        """
        if self._left > limit:
            raise TarError(f"has a member of {self._left} bytes where at most {limit} are allowed")
        return b"".join(self.content())

    # ---- the stream -------------------------------------------------------------------------------------------------

    def _next_block(self) -> bytes | None:
        """Skip to the next header block and return it; None at the end of the archive."""
        for _ in self.content():
            pass
        self._take(self._padding)
        self._padding = 0
        if not self._piece and not self._more():
            return None
        block = self._take(BLOCK)
        if block != _ZERO:
            return block
        self._check_rest()
        return None

    def _check_rest(self) -> None:
        while self._piece or self._more():
            if self._piece.tobytes().strip(b"\0"):
                raise TarError("has data after its end marker")
            self._piece = memoryview(b"")

    def _count(self, pax: Mapping[str, str]) -> None:
        """Refuse an archive whose extended headers would fill the memory little by little."""
        self._kept += sum(len(pax[name]) for name in _NAMES if name in pax)
        self._kept += sum(len(name) + len(pax[name]) + _ATTRIBUTE_COST for name in pax if name.startswith(_ATTRIBUTE))
        if self._kept > LIMIT_KEPT:
            raise TarError(f"has more than {LIMIT_KEPT} bytes of long names and attributes in extended headers")

    def _extended(self, size: int) -> bytes:
        body = self._take(size)
        self._take(-size % BLOCK)
        return body

    def _take(self, size: int) -> bytes:
        """Return exactly ``size`` bytes; for small sizes."""
        parts = []
        while size:
            if not self._piece:
                self._advance()
            part, self._piece = self._piece[:size], self._piece[size:]
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _advance(self) -> None:
        if not self._more():
            raise TarError("is truncated")

    def _more(self) -> bool:
        """Get the next piece that is not empty; False at the end of the stream."""
        self._piece = memoryview(next(filter(None, self._pieces), b""))
        return bool(self._piece)


# ---- one header -----------------------------------------------------------------------------------------------------


def _check_sizes(sizes: list[int]) -> None:
    """Refuse too large extended headers before they are read; ``sizes`` are those of one member so far, in bytes."""
    total = sum(sizes)
    if len(sizes) > _LIMIT_HEADERS:
        raise TarError(f"has more than {_LIMIT_HEADERS} extended headers for one member")
    if total > LIMIT_MEMBER:
        headers = "an extended header" if len(sizes) == 1 else "extended headers"
        raise TarError(f"has {headers} of {total} bytes for one member, where at most {LIMIT_MEMBER} are allowed")


def _kind(block: bytes) -> str:
    """Return the type flag of a header block, after checking its magic and checksum."""
    if block[257:262] != b"ustar":
        raise TarError("is not a tar archive (a header lacks the ustar magic)")
    if _number(block[148:156], "checksum") != sum(block) - sum(block[148:156]) + 8 * 0x20:
        raise TarError("is damaged (a header does not match its checksum)")
    flag = chr(block[156])
    return _SAME_AS_REGULAR.get(flag, flag)


def _header(block: bytes, kind: str, pax: dict[str, str]) -> Header:
    sparse = kind == _GNU_SPARSE or any(key.startswith("GNU.sparse.") for key in pax)
    name = pax.get("path") or _path(block)
    if kind not in _KINDS or sparse:
        description = "a sparse file" if sparse else f"of type {kind!r}"
        raise TarError(f"has a member that is {description}: {name!r}")
    mtime, nanoseconds = _time(pax["mtime"]) if "mtime" in pax else (_number(block[136:148], "mtime"), 0)
    size = _decimal(pax["size"], "size") if "size" in pax else _number(block[124:136], "size")
    if size and kind != REGULAR:
        raise TarError(f"has contents for something that is not a file: {name!r}")
    return Header(
        name=name,
        kind=kind,
        size=size,
        mode=_number(block[100:108], "mode") & 0o7777,
        uid=_owner(pax.get("uid"), block[108:116], "uid"),
        gid=_owner(pax.get("gid"), block[116:124], "gid"),
        mtime=mtime,
        link=pax.get("linkpath") or _text(block[157:257]),
        uname=pax["uname"] if "uname" in pax else _text(block[265:297]),
        gname=pax["gname"] if "gname" in pax else _text(block[297:329]),
        pax=pax,
        major=_number(block[329:337], "device number") if kind in (CHARACTER, BLOCK_DEVICE) else 0,
        minor=_number(block[337:345], "device number") if kind in (CHARACTER, BLOCK_DEVICE) else 0,
        nanoseconds=nanoseconds,
    )


def _path(block: bytes) -> str:
    name, prefix = _text(block[:100]), _text(block[345:500])
    posix = block[262:263] == b"\0"  # the old GNU magic has other things where POSIX has the prefix
    return f"{prefix}/{name}" if posix and prefix else name


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode(errors="surrogateescape")


def _number(raw: bytes, field: str) -> int:
    """Parse a numeric field: octal digits between blanks and zeros, or base 256 if the first byte is 0x80 (GNU)."""
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    digits = raw.strip(b" \0")
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise TarError(f"is damaged (a header has {raw!r} as its {field})")
    return int(digits, 8)


def _owner(pax: str | None, raw: bytes, field: str) -> int:
    number = _number(raw, field) if pax is None else _decimal(pax, field)
    if number >= 1 << 32:
        raise TarError(f"has a member with {field} {number}")
    return number


def _decimal(text: str, field: str) -> int:
    number = parse_number(text)
    if number is None:
        raise TarError(f"is damaged (an extended header has {text[:40]!r} as {field})")
    return number


def _time(text: str) -> tuple[int, int]:
    """Return the whole seconds, rounded down, and the nanoseconds of a pax time; what is below a nanosecond is cut off.

    Raises:
        TarError: it is no decimal number.
    """
    whole, _, fraction = text.removeprefix("-").partition(".")
    if fraction and not (fraction.isascii() and fraction.isdigit()):
        raise TarError(f"is damaged (an extended header has {text[:40]!r} as mtime)")
    nanoseconds = int(fraction[:9].ljust(9, "0"))
    seconds = _decimal(whole, "mtime")
    return divmod(-(seconds * _SECOND + nanoseconds), _SECOND) if text.startswith("-") else (seconds, nanoseconds)


def _long_name(kind: str, body: bytes) -> dict[str, str]:
    return {"path" if kind == "L" else "linkpath": _text(body)}


def _records(body: bytes) -> Iterator[tuple[str, str]]:
    """Yield the records of an extended header: ``length key=value`` + newline. ``length`` counts the whole record."""
    start = 0
    while start < len(body):
        digits = body[start : start + 20].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = body[start + len(digits) + 1 : start + length]
        key, equals, value = record.partition(b"=")
        if not (equals and key and record.endswith(b"\n") and start + length <= len(body)):
            raise TarError("is damaged (an extended header has a broken record)")
        yield key.decode(errors="surrogateescape"), value[:-1].decode(errors="surrogateescape")
        start += length
