"""Boot records: the boots that proved an image, in ``NAME.boot.json`` beside it.

A record applies to certain bytes, whose SHA-256 it has. It holds the last successful boot with each firmware. When it
is written again for other bytes, the old boots are dropped::

    with Evidence() as evidence:
        with boot(…, before=evidence.hold) as vm:
            …
        keep(image, evidence.record(arch, firmware, facts))
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from imgkit.errors import InputError
from imgkit.host import interrupts, scratch, wholefile
from imgkit.host.jsonfile import parse_json, read_bytes
from imgkit.host.progress import bar
from imgkit.image.imagepaths import beside
from imgkit.image.manifest import read_manifest

VERSION = 1
PUBLISHED = ("SHA256SUMS", "upload-manifest.json")
"""Files by which the folder of a publication is recognised. It lists the hashes of its files, so none may be added."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_QCOW2 = b"QFI\xfb"
_CHUNK = 1 << 20
_MAX_BYTES = 1 << 20  # of a record; three boots take 6 KiB
_MAX_TEXT = 200  # characters of a text that a guest reports, and of its name
_MAX_FACTS = 40  # values that a guest reports
_MAX_NUMBER = 1 << 53  # integers that every JSON reader keeps (RFC 8259, section 6)


@dataclass(frozen=True)
class BootRecord:
    """The boots of one image.

    Attributes:
        image: the file's name when it was booted.
        sha256, size: of the bytes that were booted; the hash in hex.
        boots: firmware → facts about the last successful boot with it, ready for JSON.
    """

    image: str
    sha256: str
    size: int
    arch: str
    boots: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def text(self) -> str:
        """Return the text of the JSON file."""
        body = {
            "bootRecord": VERSION,
            "image": {"name": self.image, "sha256": self.sha256, "size": self.size},
            "arch": self.arch,
            "boots": self.boots,
        }
        return json.dumps(body, indent=1, sort_keys=True) + "\n"

    def with_boots(self, other: BootRecord | None) -> BootRecord:
        """Return this record with the boots of ``other`` that it lacks, if both are about the same bytes."""
        if other is None or other.sha256 != self.sha256:
            return self
        return replace(self, boots={**other.boots, **self.boots})


class ChangedError(Exception):
    """A file was replaced or written to while its machine ran."""


class Evidence:
    """The files of one boot, held open so that their hashes are of the bytes that were booted.

    QEMU opens the files by name. If a name refers to the same unchanged file before and after the boot, QEMU has
    opened that file.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._files: list[tuple[Path, BinaryIO, tuple[int, ...]]] = []

    def __enter__(self) -> Evidence:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def hold(self, paths: Sequence[Path]) -> None:
        """Open the files. Call it before they are booted.

        Args:
            paths: the image and, for a direct boot, the kernel and the initramfs.

        Raises:
            InputError: one of them cannot be opened.
        """
        for path in paths:
            try:
                source = self._stack.enter_context(path.open("rb"))
            except OSError as cause:
                raise InputError(f"{path}: {cause.strerror}") from cause
            self._files.append((path, source, _state(os.fstat(source.fileno()))))

    @property
    def publishable(self) -> bool:
        """Whether the image can be published: it is a qcow2 file, or a raw one that the manifest beside it names.

        Hashing a raw disk that no build has made would be a waste: it may be large and mostly empty.
        """
        path, source, _ = self._files[0]
        if os.pread(source.fileno(), len(_QCOW2), 0) == _QCOW2:
            return True
        if path.suffix != ".raw":
            return False
        with suppress(InputError):
            image = read_manifest(beside(path, "manifest.json")).get("image", {})
            return bool(image.get("name") == path.name)
        return False

    def record(self, arch: str, firmware: str, facts: Mapping[str, Any]) -> BootRecord:
        """Return the record of this boot. It reads the files to hash them, so call it when the machine is off.

        Args:
            firmware: ``bios``, ``uefi`` or ``direct``.
            facts: about the boot, ready for JSON.

        Raises:
            ChangedError: a file is no longer the one that was booted.
        """
        files = [self._hashed(*held) for held in self._files]
        boot = {**facts, **dict(zip(("kernel", "initramfs"), files[1:], strict=False))}
        return BootRecord(arch=arch, boots={firmware: boot}, image=files[0]["name"], **_identity(files[0]))

    def _hashed(self, path: Path, source: BinaryIO, before: tuple[int, ...]) -> dict[str, Any]:
        """Return the name, hash and size of a file, as the record has them."""
        size = before[-1]
        digest = hashlib.sha256()
        with bar(size, f"hash {path.name}") as progress:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                progress.update(len(chunk))
        now: tuple[int, ...] = ()
        with suppress(OSError):
            now = _state(path.stat())
        if before != now:
            raise ChangedError(f"{path}: was replaced or changed while it was booted")
        return {"name": path.name, "sha256": digest.hexdigest(), "size": size}


def path_of(image: Path) -> Path:
    """Return the path of an image's record: beside the name that was given, as its manifest is."""
    return beside(image, "boot.json")


def keep(image: Path, record: BootRecord) -> Path | None:
    """Write ``record`` beside its image, with the boots of an earlier record of the same bytes.

    Returns:
        The path of the record, or None if the image is in the folder of a publication, which is not touched.

    Raises:
        OSError: the record cannot be written.
    """
    folder = image.absolute().parent
    if all((folder / name).is_file() for name in PUBLISHED):
        return None
    path = path_of(image)
    with scratch.folder(folder, ".imgkit-") as near, scratch.alone(folder):
        temporary = near / "boot.json"
        temporary.write_text(record.with_boots(read(path)).text())
        with interrupts.held_back():
            wholefile.place({temporary: path})
    return path


def read(path: Path) -> BootRecord | None:
    """Read a record; None if there is no file, or no valid record in it."""
    try:
        return parse(read_bytes(path, _MAX_BYTES))
    except InputError:
        return None


def parse(data: bytes) -> BootRecord | None:
    """Parse a record; None if ``data`` is not a record of this version, or has no boots."""
    try:
        body = parse_json(data, "boot record")
        image, boots = body["image"], body["boots"]
        valid = body["bootRecord"] == VERSION and _SHA256.fullmatch(image["sha256"]) and boots
        if not valid or not all(isinstance(facts, dict) for facts in boots.values()):
            return None
        return BootRecord(str(image["name"]), image["sha256"], int(image["size"]), str(body["arch"]), dict(boots))
    except (InputError, ValueError, LookupError, TypeError, AttributeError):
        return None


def guest_facts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the short texts and the numbers of what a guest reports. A guest is not trusted."""
    texts = {name: value[:_MAX_TEXT] for name, value in values.items() if isinstance(value, str)}
    numbers = {
        name: value
        for name, value in values.items()
        if isinstance(value, (int, float)) and -_MAX_NUMBER < value < _MAX_NUMBER  # False for NaN
    }
    plain = {name: value for name, value in {**texts, **numbers}.items() if len(name) <= _MAX_TEXT}
    return dict(sorted(plain.items())[:_MAX_FACTS])


def _identity(file: Mapping[str, Any]) -> dict[str, Any]:
    return {"sha256": file["sha256"], "size": file["size"]}


def _state(status: os.stat_result) -> tuple[int, ...]:
    """Return numbers that differ between files, and change when a file is written to. The last one is its size."""
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
