"""Find the files of a build, and copy them for a publication: hashed, and checked with manifest and boot record."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from imgkit.errors import InputError
from imgkit.host import lookup
from imgkit.host.progress import bar
from imgkit.image import bootrecord
from imgkit.image.bootrecord import BootRecord
from imgkit.image.imagepaths import beside
from imgkit.image.manifest import read_manifest
from imgkit.image.outputfiles import others_of
from imgkit.publish.publication import ALIASES, ARCHES, PublishedArchitecture, PublishedFile, image_name

log = logging.getLogger("imgkit")

_CHUNK = 1 << 20
_ZEROS = bytes(_CHUNK)
_BOOT_FILES = {"kernel": "vmlinuz", "initramfs": "initramfs"}


@dataclass(frozen=True)
class Staged:
    """One architecture whose files lie in the staging folder.

    Attributes:
        published: the files. The boot record is not one of them: it may have to be merged with a published one.
        record: the boot record; None if no boot has proved the image.
    """

    published: PublishedArchitecture
    record: BootRecord | None


def images(folder: Path, name: str, arches: Sequence[str]) -> dict[str, Path]:
    """Find the images of a build: architecture → file.

    Args:
        folder: where the build has put them.
        name: the name of the recipe.
        arches: the required architectures; if it is empty, all that exist are taken.

    Raises:
        InputError: the image of a required architecture is missing, there is no image at all, or the folder cannot be
            looked up.
    """
    paths = {arch: _image_of(folder, f"{name}-{arch}") for arch in arches or ARCHES}
    existing = {arch: path for arch, path in paths.items() if lookup.is_file(path, InputError)}
    missing = [str(path) for arch, path in paths.items() if arch not in existing]
    if missing and (arches or not existing):
        hint = "imgkit build RECIPE makes them"
        if not lookup.is_folder(folder, InputError):
            hint += "; --from or INPUT_DIR says where they are"
        elif others := [other for path in map(Path, missing) for other in others_of(path)]:
            hint = f"{others[0]} is there, but only qcow2 and raw images are published"
        raise InputError(f"no image to publish: {' and '.join(missing)} not there", hint=hint)
    for path in missing:
        log.info("%s: missing, so it is not published", path)
    return existing


def _image_of(folder: Path, stem: str) -> Path:
    """Return the image of an architecture: the qcow2 file, or a raw one if there is no other or the manifest names it.

    Raises:
        InputError: the folder cannot be looked up.
    """
    usual, raw = folder / f"{stem}.qcow2", folder / f"{stem}.raw"
    if not lookup.is_file(raw, InputError):
        return usual
    if not lookup.is_file(usual, InputError):
        return raw
    with suppress(InputError):  # `stage` reports what is wrong with a manifest
        if read_manifest(beside(raw, "manifest.json")).get("image", {}).get("name") == raw.name:
            return raw
    return usual


def stage(arch: str, image: Path, folder: Path, *, unproved: bool) -> Staged:
    """Copy the files of one architecture into ``folder``, and check the copies.

    A published file must not change if the built file is written to later; so it is a copy, not a link.

    Args:
        unproved: whether an image is accepted that no boot has proved.

    Raises:
        InputError: a file is missing or differs from the manifest, or no boot has proved the image.
    """
    path = beside(image, "manifest.json")
    manifest = read_manifest(path)
    if manifest.get("arch") != arch:
        raise InputError(f"{path}: is of {manifest.get('arch')}, not of {arch}")
    published = _copy(image, folder / image_name(arch, image.suffix))
    _check(image, published, manifest.get("image"), path)
    boot_files = {role: _boot_file(role, arch, image.parent, manifest, folder) for role in _BOOT_FILES}
    record = _proof(image, published, boot_files)
    if record is None:
        _without_proof(image, allowed=unproved)
    for alias in ALIASES[arch]:
        _second_name(folder / published.name, folder / image_name(alias, image.suffix))
    architecture = PublishedArchitecture(
        arch,
        str(manifest.get("buildId")),
        image=published,
        manifest=_copy(path, folder / f"{Path(published.name).stem}.manifest.json"),
        kernel=boot_files["kernel"],
        initramfs=boot_files["initramfs"],
    )
    return Staged(architecture, record)


def _check(source: Path, file: PublishedFile, stated: object, manifest: Path) -> None:
    """Compare a copied file with what the manifest says about it.

    Raises:
        InputError: the SHA-256 differs.
    """
    expected = stated.get("sha256") if isinstance(stated, dict) else None
    if expected != file.sha256:
        raise InputError(
            f"{source}: is not the one of {manifest}: SHA-256 {file.sha256} instead of {expected}",
            hint="it was changed after the build, or comes from another one: build it again",
        )


def _boot_file(role: str, arch: str, near: Path, manifest: Mapping[str, Any], folder: Path) -> PublishedFile | None:
    """Copy the kernel or the initramfs; None if there is none.

    Raises:
        InputError: the manifest does not name it, or the file is not the one of the manifest.
    """
    boot = manifest.get("boot")
    stated = boot.get(role) if isinstance(boot, dict) else None
    name = stated.get("name") if isinstance(stated, dict) else None
    if not isinstance(name, str) or not re.fullmatch(rf"{_BOOT_FILES[role]}-[a-z0-9_]+-{arch}", name):
        hint = "it comes from an earlier imgkit: build it again"
        raise InputError(f"{near}: the manifest of the {arch} image names no {role}", hint=hint)
    if not (near / name).is_file():
        log.warning("%s: missing, so the %s image is published without it", near / name, arch)
        return None
    copied = _copy(near / name, folder / name)
    _check(near / name, copied, stated, near)
    return copied


def _proof(image: Path, published: PublishedFile, boot_files: Mapping[str, PublishedFile | None]) -> BootRecord | None:
    """Return the boot record of this image without direct boots of another kernel or initramfs, or None."""
    record = bootrecord.read(bootrecord.path_of(image))
    if record is None or record.sha256 != published.sha256:
        return None
    boots = {
        firmware: facts
        for firmware, facts in record.boots.items()
        if all(_proves(firmware, facts.get(role), file) for role, file in boot_files.items())
    }
    return BootRecord(record.image, record.sha256, record.size, record.arch, boots) if boots else None


def _proves(firmware: str, booted: object, file: PublishedFile | None) -> bool:
    """Return whether a boot has proved this kernel or initramfs. Only a direct boot takes them from beside the image.

    Args:
        booted: what the record says about the file that was booted; None if it says nothing.
        file: the file that is published; None if there is none.
    """
    if booted is None:
        return firmware != "direct"
    return file is None or (isinstance(booted, dict) and booted.get("sha256") == file.sha256)


def _without_proof(image: Path, *, allowed: bool) -> None:
    """Warn of an image that no boot has proved.

    Raises:
        InputError: such an image is not ``allowed``.
    """
    path = bootrecord.path_of(image)
    if not path.exists():
        reason = "no boot has proved it"
    elif bootrecord.read(path) is None:
        reason = f"{path} is not a boot record"
    else:
        reason = f"{path} is about another image, kernel or initramfs: no boot has proved this one"
    if not allowed:
        hint = f"imgkit boot {image}, and publish again; --unproved publishes it as it is"
        raise InputError(f"{image}: {reason}", hint=hint)
    log.warning("%s: %s; published because of --unproved", image, reason)


def _copy(source: Path, target: Path) -> PublishedFile:
    """Copy a file, and hash what is written.

    Raises:
        InputError: ``source`` cannot be read.
        OSError: ``target`` cannot be written.
    """
    try:
        reader = source.open("rb")
    except OSError as cause:
        raise InputError(f"{source}: {cause.strerror}") from cause
    with reader, target.open("xb") as sink:
        return _copy_bytes(reader, sink, target.name)


def _copy_bytes(reader: BinaryIO, sink: BinaryIO, name: str) -> PublishedFile:
    digest, size = hashlib.sha256(), 0
    with bar(os.fstat(reader.fileno()).st_size, f"publish {name}") as progress:
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
            if chunk == _ZEROS[: len(chunk)]:
                sink.seek(len(chunk), os.SEEK_CUR)  # a hole, of which a raw disk has many
            else:
                sink.write(chunk)
            size += len(chunk)
            progress.update(len(chunk))
        sink.truncate(size)
    return PublishedFile(name, digest.hexdigest(), size)


def _second_name(path: Path, name: Path) -> None:
    """Give a file a second name: a hard link, which servers and copying programs treat as a file of its own.

    If the filesystem has no hard links, the file is copied.
    """
    with suppress(OSError):
        name.hardlink_to(path)
        return
    shutil.copyfile(path, name)
