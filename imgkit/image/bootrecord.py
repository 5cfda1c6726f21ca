"""Boot records: which boots proved an image, in ``NAME.boot.json`` beside it.

A record is about certain bytes, whose SHA-256 it has. It holds the last successful boot with each firmware; those of
other bytes are forgotten when it is written again::

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

VERSION = 1
PUBLISHED = ("SHA256SUMS", "upload-manifest.json")
"""Files that only the folder of a publication has. What lies there is listed with its hash and stays as it is."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_QCOW2 = b"QFI\xfb"
_CHUNK = 1 << 20
_MOST_BYTES = 1 << 20  # of a record; three boots take 6 KiB
_MAX_TEXT = 200
_MAX_FACTS = 40
_MAX_NUMBER = 1 << 53


@dataclass(frozen=True)
class BootRecord:
    """The boots of one image.

    Attributes:
        image: its file's name when it was booted.
        sha256, size: which bytes were booted.
        boots: firmware → what is known of the last successful boot with it, ready for JSON.
    """

    image: str
    sha256: str
    size: int
    arch: str
    boots: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def text(self) -> str:
        """The record as a JSON file."""
        body = {
            "bootRecord": VERSION,
            "image": {"name": self.image, "sha256": self.sha256, "size": self.size},
            "arch": self.arch,
            "boots": self.boots,
        }
        return json.dumps(body, indent=1, sort_keys=True) + "\n"

    def with_boots(self, other: BootRecord | None) -> BootRecord:
        """This record with the boots of ``other`` that it lacks, if both are about the same bytes."""
        if other is None or other.sha256 != self.sha256:
            return self
        return replace(self, boots={**other.boots, **self.boots})


class ChangedError(Exception):
    """A file was replaced or written to while its machine ran."""


class Evidence:
    """The files of one boot, held open so that their hashes are of the bytes that were booted.

    Programs open the files by name. A name that stands for the same unchanged file afterwards did so all the time.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._files: list[tuple[Path, BinaryIO, tuple[int, ...]]] = []

    def __enter__(self) -> Evidence:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def hold(self, paths: Sequence[Path]) -> None:
        """Open the image and, for a direct boot, the kernel and the initramfs. Call it before they are booted.

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
        """Whether the image is a qcow2 file. Raw images are never published, and may be large and mostly empty."""
        source = self._files[0][1]
        return os.pread(source.fileno(), len(_QCOW2), 0) == _QCOW2

    def record(self, arch: str, firmware: str, facts: Mapping[str, Any]) -> BootRecord:
        """The record of this boot. Reads the files to hash them, so call it when the machine is off.

        Raises:
            ChangedError: a file is no longer the one that was booted.
        """
        files = [self._hashed(*each) for each in self._files]
        boot = {**facts, **dict(zip(("kernel", "initramfs"), files[1:], strict=False))}
        return BootRecord(arch=arch, boots={firmware: boot}, image=files[0]["name"], **_identity(files[0]))

    def _hashed(self, path: Path, source: BinaryIO, before: tuple[int, ...]) -> dict[str, Any]:
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
    """Where the record of ``image`` is kept: beside the name that was given, as its manifest is."""
    return image.with_suffix(".boot.json")


def keep(image: Path, record: BootRecord) -> Path | None:
    """Write ``record`` beside its image, together with what an earlier record of the same bytes says.

    Returns:
        Where it is, or None if the image lies in a publication, which is not touched.

    Raises:
        OSError: it cannot be written.
    """
    folder = image.absolute().parent
    if all((folder / name).is_file() for name in PUBLISHED):
        return None
    path = path_of(image)
    with scratch.folder(folder, ".imgkit-") as near, scratch.alone(folder):
        written = near / "boot.json"
        written.write_text(record.with_boots(read(path)).text())
        with interrupts.held_back():
            wholefile.place({written: path})
    return path


def read(path: Path) -> BootRecord | None:
    """The record in a file; None if there is no file or no usable record in it."""
    try:
        return parse(read_bytes(path, _MOST_BYTES))
    except InputError:
        return None


def parse(data: bytes) -> BootRecord | None:
    """The record in ``data``; None if it is not one of this version, or is about nothing."""
    try:
        body = parse_json(data, "boot record")
        image, boots = body["image"], body["boots"]
        known = body["bootRecord"] == VERSION and _SHA256.fullmatch(image["sha256"]) and boots
        if not known or not all(isinstance(facts, dict) for facts in boots.values()):
            return None
        return BootRecord(str(image["name"]), image["sha256"], int(image["size"]), str(body["arch"]), dict(boots))
    except (InputError, ValueError, LookupError, TypeError, AttributeError):
        return None


def guest_facts(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a guest says of itself, cut down to short texts and plain values: a guest is not trusted."""
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
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
