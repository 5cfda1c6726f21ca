"""Read and write the installed database of apk: ``lib/apk/db/{installed,triggers,scripts.tar.gz}``.

``installed`` has a record for each package, sorted by name without regard to case: its fields as in an index (with r
and q), then for each directory ``F:`` with ``M:uid:gid:mode`` unless that is 0:0:755, and for each file in it ``R:``
with ``a:uid:gid:mode`` unless that is 0:0:644 and ``Z:`` with its checksum. All of it describes what the package ships,
not what scripts have changed later. Layout and order are those of apk-tools 3 (apk(8), the writer of the database),
compared byte for byte with databases that it wrote::

    packages = read_database(installed, triggers, scripts)
    for name, contents in write_database([*packages, another]).files.items():
        ...
"""

from __future__ import annotations

import base64
import hashlib
import string
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from imgkit.apk.index import Package, format_record, parse_record
from imgkit.apk.package import check_identity
from imgkit.apk.stored_scripts import format_scripts, parse_scripts
from imgkit.apk.unpack import PackageEntry
from imgkit.errors import InputError
from imgkit.tree import Directory, Symlink

FOLDER = "lib/apk/db"


@dataclass(frozen=True)
class Attributes:
    """Owner and mode; ``xattrs`` is the checksum (``Q1…``) over the extended attributes, empty if there are none."""

    uid: int
    gid: int
    mode: int
    xattrs: str = ""


DIRECTORY_DEFAULT = Attributes(0, 0, 0o755)
FILE_DEFAULT = Attributes(0, 0, 0o644)


@dataclass(frozen=True)
class InstalledFile:
    """A file, symbolic link or hard link in a directory. ``checksum`` is ``Q1…``, empty if none is recorded."""

    name: str
    checksum: str = ""
    attributes: Attributes = FILE_DEFAULT


@dataclass(frozen=True)
class InstalledDirectory:
    """A directory of a package (the empty path is the root) with the package's files in it."""

    path: str
    attributes: Attributes = DIRECTORY_DEFAULT
    files: tuple[InstalledFile, ...] = ()


@dataclass(frozen=True)
class InstalledPackage:
    """One record of the database, with the package's triggers and scripts from their own files.

    Attributes:
        package: the metadata. Its ``repository.tag`` is not written; ``repository_tag`` is.
        directories: in the order of the package.
        triggers: globs of directories; empty if there is no trigger.
        scripts: type (``post-install``) → contents.
        tags: the value of the ``g:`` line (apk 3).
        repository_tag: the tag of the repository that the package came from, without ``@``.
        flags: the value of the ``f:`` line: f broken files, s broken script, x broken attributes, S checksums are
            truncated SHA-256.
    """

    package: Package
    directories: tuple[InstalledDirectory, ...] = ()
    triggers: tuple[str, ...] = ()
    scripts: Mapping[str, bytes] = field(default_factory=dict)
    tags: str = ""
    repository_tag: str = ""
    flags: str = ""


@dataclass(frozen=True)
class Database:
    """The contents of the three files."""

    installed: bytes
    triggers: bytes
    scripts: bytes

    @property
    def files(self) -> Mapping[str, bytes]:
        """File name → contents, as apk 3 names them in a new database."""
        return {"installed": self.installed, "triggers": self.triggers, "scripts.tar.gz": self.scripts}


def read_database(installed: bytes, triggers: bytes = b"", scripts: bytes = b"") -> tuple[InstalledPackage, ...]:
    """Read all packages with their triggers and scripts.

    Args:
        installed: the contents of ``installed``.
        triggers: the contents of ``triggers``.
        scripts: the contents of ``scripts.tar`` or ``scripts.tar.gz``.

    Raises:
        InputError: one of the files is malformed.
    """
    globs = parse_triggers(triggers.decode(errors="surrogateescape"))
    texts = parse_scripts(scripts) if scripts else {}
    return tuple(
        replace(
            package,
            triggers=globs.get(package.package.identity, ()),
            scripts=texts.get(package.package.identity, {}),
        )
        for package in parse_installed(installed.decode(errors="surrogateescape"))
    )


def write_database(packages: Iterable[InstalledPackage]) -> Database:
    """Return the files that apk would write. The order of the packages makes no difference."""
    ordered = sorted(packages, key=_order)
    return Database(
        installed=format_installed(ordered).encode(errors="surrogateescape"),
        triggers=format_triggers(ordered).encode(errors="surrogateescape"),
        scripts=format_scripts((package.package, package.scripts) for package in ordered),
    )


def directories_of(
    entries: Iterable[PackageEntry], owner: Callable[[PackageEntry], tuple[int, int]]
) -> tuple[InstalledDirectory, ...]:
    """Return what the database records about the contents of a package, in the order of the package.

    Args:
        entries: those of the package.
        owner: returns the uid and gid that an entry gets in this root filesystem.
    """
    folders: dict[str, Attributes] = {}
    files: dict[str, list[InstalledFile]] = {}
    for entry in entries:
        uid, gid = owner(entry)
        mode = 0o777 if isinstance(entry.node, Symlink) else entry.node.mode
        attributes = Attributes(uid, gid, mode, _xattr_checksum(entry.node.xattrs))
        folder, _, name = entry.path.rpartition("/")
        if isinstance(entry.node, Directory):
            folders[entry.path] = attributes
            continue
        folders.setdefault(folder, DIRECTORY_DEFAULT)
        files.setdefault(folder, []).append(InstalledFile(name, _checksum(entry.checksum), attributes))
    return tuple(
        InstalledDirectory(path, attributes, tuple(files.get(path, ()))) for path, attributes in folders.items()
    )


# ---- installed ------------------------------------------------------------------------------------------------------


def parse_installed(text: str) -> tuple[InstalledPackage, ...]:
    """Parse the records of ``installed``, without triggers and scripts.

    Raises:
        InputError: a line does not belong to a record.
    """
    return tuple(_parse_package(block.split("\n")) for part in text.split("\n\n") if (block := part.strip("\n")))


def format_installed(packages: Iterable[InstalledPackage]) -> str:
    """Return the text of ``installed``, sorted.

    Raises:
        ValueError: a path has a line break in it, which would forge a line.
    """
    return "".join(_format_package(package) for package in sorted(packages, key=_order))


def _order(package: InstalledPackage) -> tuple[str, str]:
    return package.package.name.lower(), package.package.name


def _parse_package(lines: list[str]) -> InstalledPackage:
    start = next((number for number, line in enumerate(lines) if line.startswith("F:")), len(lines))
    package = parse_record(lines[:start])
    extra = {line[0]: line[2:] for line in lines[:start] if line[:2] in ("g:", "s:", "f:")}
    return InstalledPackage(
        package=package,
        directories=tuple(_parse_directories(lines[start:], f"installed database: {package.name}")),
        tags=extra.get("g", ""),
        repository_tag=extra.get("s", ""),
        flags=extra.get("f", ""),
    )


def _parse_directories(lines: list[str], where: str) -> Iterator[InstalledDirectory]:
    directory: tuple[str, Attributes] | None = None
    files: list[InstalledFile] = []
    file: tuple[str, str, Attributes] | None = None
    for line in lines:
        letter, colon, value = line.partition(":")
        if letter == "R" and colon:
            if file is not None:
                files.append(InstalledFile(*file))
            file = value, "", FILE_DEFAULT
        elif letter == "Z" and colon and file is not None:
            file = file[0], value, file[2]
        elif letter == "a" and colon and file is not None:
            file = file[0], file[1], _parse_attributes(value, where)
        elif letter == "F" and colon:
            if directory is not None:
                yield _directory(directory, files, file)
            directory, files, file = (value, DIRECTORY_DEFAULT), [], None
        elif letter == "M" and colon and directory is not None and file is None:
            directory = directory[0], _parse_attributes(value, where)
        else:
            raise InputError(f"{where}: {line[:80]!r} is out of place")
    if directory is not None:
        yield _directory(directory, files, file)


def _directory(
    directory: tuple[str, Attributes], files: list[InstalledFile], last: tuple[str, str, Attributes] | None
) -> InstalledDirectory:
    return InstalledDirectory(*directory, (*files, *(() if last is None else (InstalledFile(*last),))))


def _parse_attributes(text: str, where: str) -> Attributes:
    attributes = _attributes(text)
    if attributes is None:
        raise InputError(f"{where}: {text[:80]!r} is not uid:gid:mode")
    return attributes


@lru_cache(maxsize=1000)  # a database of thousands of files has a dozen of them
def _attributes(text: str) -> Attributes | None:
    uid, gid, mode, xattrs = [*text.split(":", 3), "", "", ""][:4]
    if not (_digits(uid) and _digits(gid) and _digits(mode, string.octdigits)):
        return None
    return Attributes(int(uid), int(gid), int(mode, 8), xattrs)


def _digits(text: str, digits: str = string.digits) -> bool:
    return 0 < len(text) <= 11 and not text.strip(digits)


def _format_package(package: InstalledPackage) -> str:
    head = format_record(package.package).split("\n")[:-1]
    before = next((number for number, line in enumerate(head) if line[:2] in ("r:", "q:")), len(head))
    if package.tags:
        head.insert(before, f"g:{package.tags}")
    for letter, value in (("s", package.repository_tag), ("f", package.flags)):
        if value:
            head.append(f"{letter}:{value}")
    lines = [*head, *_directory_lines(package.directories)]
    text = "".join(f"{line}\n" for line in lines)
    if text.count("\n") != len(lines):
        raise ValueError(f"{package.package}: line break in a path")
    return text + "\n"


def _directory_lines(directories: Iterable[InstalledDirectory]) -> Iterator[str]:
    for directory in directories:
        yield f"F:{directory.path}"
        if directory.attributes != DIRECTORY_DEFAULT:
            yield f"M:{_format_attributes(directory.attributes)}"
        for file in directory.files:
            yield f"R:{file.name}"
            if file.attributes != FILE_DEFAULT:
                yield f"a:{_format_attributes(file.attributes)}"
            if file.checksum:
                yield f"Z:{file.checksum}"


def _format_attributes(attributes: Attributes) -> str:
    text = f"{attributes.uid}:{attributes.gid}:{attributes.mode:o}"
    return f"{text}:{attributes.xattrs}" if attributes.xattrs else text


def _checksum(raw: bytes | None) -> str:
    return "Q1" + base64.b64encode(raw).decode() if raw else ""


def _xattr_checksum(xattrs: Mapping[str, bytes]) -> str:
    """Return the SHA-1 of the attributes sorted by name: each name and value after its length, 32 bits big-endian."""
    if not xattrs:
        return ""
    digest = hashlib.sha1()  # noqa: S324 - the format's choice
    for name, value in sorted(xattrs.items()):
        for part in (name.encode(errors="surrogateescape"), value):
            digest.update(struct.pack(">I", len(part)) + part)
    return _checksum(digest.digest())


# ---- triggers -------------------------------------------------------------------------------------------------------


def parse_triggers(text: str) -> dict[str, tuple[str, ...]]:
    """Parse the ``triggers`` file: identity of a package → the globs of its trigger.

    Raises:
        InputError: a line does not start with an identity.
    """
    lines = [line.split() for line in text.split("\n") if line.strip()]
    return {check_identity(identity): tuple(globs) for identity, *globs in lines}


def format_triggers(packages: Iterable[InstalledPackage]) -> str:
    """Return the text of ``triggers``: one line for each package that has globs, in the order of the database."""
    return "".join(
        " ".join([package.package.identity, *package.triggers]) + "\n"
        for package in sorted(packages, key=_order)
        if package.triggers
    )
