"""Read and write the archive of package scripts beside apk's database: ``lib/apk/db/scripts.tar.gz``.

It is a tar archive of all scripts of all packages, in the order of the database. Members are called
``name-version.X1<hex of the identity>.type`` (apk 3) or ``name-version.Q1<base64>.type`` (apk 2, where the archive is
the uncompressed ``scripts.tar``). Both are read; the first is written, byte for byte as by apk 3.
"""

from __future__ import annotations

import base64
import binascii
import tarfile
import zlib
from collections.abc import Iterable, Mapping

from imgkit.apk.index import Package
from imgkit.apk.package import SCRIPT_TYPES, check_identity
from imgkit.errors import InputError
from imgkit.tree.gzipmembers import GZIP_MAGIC, members_of
from imgkit.tree.tarstream import TarError, TarStream

_LIMIT_SCRIPTS = 64 << 20


def parse_scripts(data: bytes) -> dict[str, dict[str, bytes]]:
    """Read ``scripts.tar`` or ``scripts.tar.gz``. Returns identity of a package → type → contents.

    Raises:
        InputError: the archive is damaged, or a member has another name than a script.
    """
    if data.startswith(GZIP_MAGIC):
        data = members_of(data, "scripts.tar.gz").read_member(_LIMIT_SCRIPTS)
    scripts: dict[str, dict[str, bytes]] = {}
    archive = TarStream(iter((data,)))
    try:
        for header in archive:
            _, identity, kind = ["", "", *header.name.split(".")][-3:]
            scripts.setdefault(_script_identity(identity, header.name), {})[kind] = archive.read(_LIMIT_SCRIPTS)
    except TarError as cause:
        raise InputError(f"scripts of the installed database: the archive {cause}") from cause
    return scripts


def _script_identity(text: str, name: str) -> str:
    if text.startswith("Q"):
        return check_identity(text)
    try:
        raw = binascii.unhexlify(text[2:])
    except (binascii.Error, ValueError):
        raw = b""
    if not text.startswith("X") or not raw:
        raise InputError(f"scripts of the installed database: {name!r} is not the name of a script")
    return check_identity(f"Q{text[1:2]}" + base64.b64encode(raw).decode())


def format_scripts(packages: Iterable[tuple[Package, Mapping[str, bytes]]]) -> bytes:
    """Write ``scripts.tar.gz``: the packages' scripts in the given order, with the build time as mtime."""
    archive = b"".join(
        _script_member(package, kind, scripts[kind])
        for package, scripts in packages
        for kind in SCRIPT_TYPES
        if kind in scripts
    )
    packer = zlib.compressobj(level=9, wbits=16 + zlib.MAX_WBITS)  # writes no time into its header
    return packer.compress(archive + bytes(2 * tarfile.BLOCKSIZE)) + packer.flush()


def _script_member(package: Package, kind: str, data: bytes) -> bytes:
    identity = check_identity(package.identity)
    info = tarfile.TarInfo(f"{package}.X{identity[1]}{base64.b64decode(identity[2:]).hex()}.{kind}")
    info.mode, info.uname, info.gname = 0o755, "root", "root"
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block = memoryview(header)[-tarfile.BLOCKSIZE :]
    block[124:148] = b"%012o%012o" % (len(data), package.build_time)  # apk fills size and time without a final zero
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(header) + data + bytes(-len(data) % tarfile.BLOCKSIZE)
