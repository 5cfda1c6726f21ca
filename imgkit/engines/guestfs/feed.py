"""The feed: a raw drive through which the content of the image reaches the appliance.

libguestfs uploads through a serial line, which is slow under emulation. A second drive is read by DMA, and it can be
filled while the appliance starts: QEMU reads through the host's page cache, and nothing in the appliance reads the
drive beyond its first MiB (where partition tables would be) before it is asked to.

    0       zeros
    1 MiB   core image of GRUB | files of the ESP (tar) | scripts to be run (tar) | large files
            | everything else of the root filesystem (tar)

Each part starts at a multiple of 1 MiB. Large files are empty in the tar and lie beside it, so that the appliance can
move their contents by direct I/O, without a copy by its emulated processor.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from imgkit.disk.grub import BootFiles
from imgkit.engines.interface import Script
from imgkit.tree import File, HardLink, Inline, Tree

ALIGNMENT = 1 << 20
"""Bytes; every part of the feed begins at a multiple."""
LARGE = 4 << 20
"""Bytes from which on a file lies outside the tar."""
_SPECIAL_BITS = 0o7000


@dataclass(frozen=True)
class Part:
    """Bytes on the feed; ``offset`` is a multiple of :data:`ALIGNMENT`."""

    offset: int
    size: int

    @property
    def blocks(self) -> int:
        """Length in units of :data:`ALIGNMENT`, rounded up."""
        return -(-self.size // ALIGNMENT)


@dataclass(frozen=True)
class LargeFile:
    """A file whose content lies outside the tar. Its time, in seconds and nanoseconds, is set again afterwards."""

    path: str
    mtime: int
    part: Part
    nanoseconds: int = 0


@dataclass(frozen=True)
class Feed:
    """Where each part of the feed lies.

    Attributes:
        core: the core image of GRUB.
        esp: a tar with the files of the EFI system partition.
        scripts: a tar with the folders ``0``, ``1`` …, each with the files ``script`` and ``arguments``.
        large: the files of the root filesystem that lie outside its tar.
        root: a tar with the root filesystem.
    """

    core: Part
    esp: Part
    scripts: Part
    large: tuple[LargeFile, ...]
    root: Part


def is_large(path: str, node: File) -> bool:
    """Return whether a file lies outside the tar.

    Files with set-id bits or capabilities do not: the kernel clears those when the content is written later.
    """
    plain = not node.xattrs and not node.mode & _SPECIAL_BITS
    return node.content.size >= LARGE and plain and path.isascii()


def write_feed(sink: BinaryIO, tree: Tree, boot: BootFiles, run_scripts: Sequence[Script] = ()) -> Feed:
    """Write the feed into a file of zeros."""
    core = _write(sink, ALIGNMENT, io.BytesIO(boot.core))
    esp = _write(sink, _after(core), io.BytesIO(_files_tar(boot.esp)))
    scripts = _write(sink, _after(esp), io.BytesIO(_files_tar(_script_files(run_scripts))))
    at = _after(scripts)
    large = []
    for path, node in tree.items():
        if isinstance(node, File) and is_large(path, node):
            with node.content.open() as source:
                part = _write(sink, at, source)
            large.append(LargeFile(path, node.mtime, part, node.nanoseconds))
            at = _after(part)
    sink.seek(at)
    _without(tree, {file.path for file in large}).write_tar(sink)
    return Feed(core, esp, scripts, tuple(large), Part(at, sink.tell() - at))


def feed_bytes(tree: Tree, boot: BootFiles, run_scripts: Sequence[Script] = ()) -> int:
    """Return an upper bound of the bytes that :func:`write_feed` writes."""
    large = sum(1 for path, node in tree.items() if isinstance(node, File) and is_large(path, node))
    headers = len(tree) * 2048 + sum(sum(map(len, node.xattrs.values())) for _, node in tree.items())
    boot_bytes = len(boot.core) + sum(map(len, boot.esp.values()))
    script_bytes = sum(2048 + len(data) for data in _script_files(run_scripts).values())
    return tree.content_size + headers + boot_bytes + script_bytes + (large + 7) * ALIGNMENT


def _after(part: Part) -> int:
    return part.offset + part.blocks * ALIGNMENT


def _write(sink: BinaryIO, offset: int, source: BinaryIO) -> Part:
    sink.seek(offset)
    shutil.copyfileobj(source, sink, ALIGNMENT)
    return Part(offset, sink.tell() - offset)


def _script_files(run_scripts: Sequence[Script]) -> dict[str, bytes]:
    """Return the texts and arguments of scripts. Each argument ends with a NUL, which no argument can contain."""
    files = {}
    for number, script in enumerate(run_scripts):
        files[f"{number}/script"] = script.text.encode(errors="surrogateescape")
        files[f"{number}/arguments"] = b"".join(word.encode(errors="surrogateescape") + b"\0" for word in script.args)
    return files


def _files_tar(files: Mapping[str, bytes]) -> bytes:
    """Return a tar of the files and their folders."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
        for folder in sorted(folders):
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        for name, data in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _without(tree: Tree, paths: set[str]) -> Tree:
    """Return a copy of the Tree in which the files at ``paths`` are empty."""
    copy = Tree()
    links = []
    for path, node in tree.items():
        if isinstance(node, HardLink):
            links.append((path, node))
        else:
            empty = isinstance(node, File) and path in paths
            copy.add(path, replace(node, content=Inline(b"")) if empty and isinstance(node, File) else node)
    for path, node in links:
        copy.add(path, node)
    return copy
