"""Make the initramfs as Alpine's mkinitfs does: the same files from the same configuration, without running a program.

    path = install_initramfs(tree, "6.18.56-0-virt", epoch=epoch)

Source of the rules: mkinitfs 3.13 as packaged (``mkinitfs.conf``, ``features.d``, the trigger), and archives that it
made. Deliberate differences: lines of ``modules.dep`` list dependencies in the order of the complete file, all times
are ``epoch``, the init starts no mdev (:func:`_without_mdev`), and faults that would make an initramfs that cannot boot
(an unknown feature, a missing library or init) are errors, where mkinitfs is silent.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from imgkit.errors import InputError, RecipeError
from imgkit.rootfs.binaries.elf import ElfError
from imgkit.rootfs.binaries.libraries import Libraries, with_targets
from imgkit.rootfs.initramfs import kmod
from imgkit.rootfs.initramfs.mkinitfs import (
    MkinitfsConfiguration,
    check_features,
    feature_files,
    read_configuration,
)
from imgkit.rootfs.keptsteps import KeptSteps, described
from imgkit.rootfs.kernel import Kernel, find_kernel
from imgkit.rootfs.scripts.pathnames import WILDCARD
from imgkit.tree import Directory, File, HardLink, Inline, Node, Symlink, Tree, parent
from imgkit.tree.cpio import Member, Sink, write_newc
from imgkit.tree.gzipwriter import VERSION as GZIP_VERSION
from imgkit.tree.gzipwriter import GzipSink

_SHARED = "usr/share/mkinitfs"

_DIRECTORIES = (
    *("dev", "proc", "sys", "usr/sbin", "usr/bin", "run", ".modloop", "usr/lib/modules", "usr/lib/firmware"),
    *("media/cdrom", "media/floppy", "media/usb", "etc/apk/keys", "newroot"),
)
_MERGED = ("bin", "sbin", "lib")  # the initramfs always has these under usr
_NEEDED = ("usr/bin/busybox", "usr/bin/sh", "usr/sbin/nlplug-findfs")  # without these the init does nothing

_MDEV = re.compile(r"[ \t]+-p /sbin/mdev\b(?:[ \t]*\\\n)?")

# Level 9, mkinitfs's own default, saves 3 % and takes 2.6 times as long: the modules in it are compressed already.
_LEVEL = 6
_METHODS = ("gzip", "xz", "none")


def make_initramfs(
    tree: Tree,
    release: str,
    configuration: MkinitfsConfiguration,
    *,
    epoch: int,
    kept: KeptSteps | None = None,
) -> bytes:
    """Return the initramfs of the kernel ``release``, compressed.

    Args:
        epoch: modification time of everything in it, seconds since 1970.
        kept: the results of earlier builds; None computes everything.

    Raises:
        InputError: the Tree lacks a file that the initramfs needs, or has a damaged program or module.
        RecipeError: a feature or the compression is unknown.
    """
    _check_compression(configuration.compression)
    root = _collect(tree, find_kernel(tree, release), configuration)
    return (kept or KeptSteps()).get(
        "initramfs", _inputs(root, configuration, epoch), lambda: _written(root, configuration, epoch)
    )


def _written(root: _Root, configuration: MkinitfsConfiguration, epoch: int) -> bytes:
    """Return the archive of everything that was collected, compressed."""
    for path, data in root.depmod.files().items():
        if path not in root.custom:
            root.put(path, File(content=Inline(data)))
    members = (Member(path or ".", replace(node, mtime=epoch)) for path, node in sorted(root.nodes.items()))
    sink = io.BytesIO()
    with _compressor(sink, configuration.compression, configuration.level) as out:
        write_newc(out, members)
    return sink.getvalue()


def _inputs(root: _Root, configuration: MkinitfsConfiguration, epoch: int) -> Iterator[object]:
    """Yield everything that decides the bytes of an initramfs."""
    yield from (configuration.compression, configuration.level, GZIP_VERSION, epoch)
    depmod = root.depmod
    texts = {name: hashlib.sha256(os.fsencode(text)).hexdigest() for name, text in depmod.texts.items()}
    yield from (depmod.directory, sorted(depmod.kept), texts, sorted(root.custom))
    yield from (described(path, node) for path, node in sorted(root.nodes.items()))


def install_initramfs(tree: Tree, release: str, *, epoch: int, kept: KeptSteps | None = None) -> str | None:
    """Do what the trigger of mkinitfs does for one kernel.

    Write the initramfs, the file ``initramfs-suffix`` among the kernel's modules, and the link ``boot/boot``.

    Args:
        kept: the results of earlier builds; None computes everything.

    Returns:
        The path of the initramfs; None if ``mkinitfs.conf`` has ``disable_trigger`` and nothing was done.

    Raises:
        InputError: see :func:`make_initramfs`; or ``mkinitfs.conf`` cannot be understood.
        RecipeError: see :func:`make_initramfs`.
    """
    configuration = read_configuration(tree)
    if configuration.disabled:
        return None
    kernel = find_kernel(tree, release)
    data = make_initramfs(tree, release, configuration, epoch=epoch, kept=kept)
    tree.write(f"{kernel.directory}/initramfs-suffix", kernel.suffix + "\n", mtime=epoch)
    tree.write(kernel.initramfs, data, mode=0o600, mtime=epoch)
    if tree.stat("boot/boot") is None:  # boot loaders that see a separate /boot partition as their root
        tree.symlink(f"{tree.resolve('boot')}/boot", ".", mtime=epoch)
    return kernel.initramfs


def _check_compression(method: str) -> None:
    """Check that a compression is known.

    Raises:
        RecipeError: it is not.
    """
    if method not in _METHODS:
        raise RecipeError(f"initramfs compression {method} is not known here", hint=f"use one of {', '.join(_METHODS)}")


def _compressor(sink: BinaryIO, method: str, level: int | None) -> AbstractContextManager[Sink]:
    """Open a stream that compresses into ``sink``; equal input gives equal output (with equal zlib-ng or liblzma)."""
    preset = _LEVEL if level is None else min(level, 9)
    if method == "gzip":
        return GzipSink(sink, preset)
    if method == "xz":  # the kernel's decompressor checks CRC32 only
        return lzma.LZMAFile(sink, "wb", check=lzma.CHECK_CRC32, preset=preset)
    return nullcontext(sink)


@dataclass(frozen=True)
class _Depmod:
    """What depmod's files for some of the modules of a kernel are made of; see :func:`kmod.subset`."""

    texts: Mapping[str, str]
    kept: Collection[str]
    directory: str

    def files(self) -> dict[str, bytes]:
        """Return path → contents."""
        made = kmod.subset(self.texts, self.kept, self.directory)
        return {f"{self.directory}/{name}": data for name, data in made.items()}


@dataclass
class _Root:
    """The root filesystem of an initramfs while its files are collected.

    Attributes:
        depmod: the files that are made when the initramfs is written.
        nodes: path → node, of all others.
        custom: paths in the Tree of files that take precedence over depmod's.
    """

    depmod: _Depmod
    nodes: dict[str, Node] = field(default_factory=lambda: {"": Directory()})
    custom: set[str] = field(default_factory=set)

    def mkdir(self, path: str) -> None:
        """Make a directory and its missing parents."""
        if path not in self.nodes:
            self.mkdir(parent(path))
            self.nodes[path] = Directory()

    def put(self, path: str, node: Node) -> None:
        """Put ``node`` at ``path``, which is moved below ``usr`` as in every initramfs."""
        path = f"usr/{path}" if path.partition("/")[0] in _MERGED else path
        self.mkdir(parent(path))
        self.nodes[path] = node


def _collect(tree: Tree, kernel: Kernel, configuration: MkinitfsConfiguration) -> _Root:
    """Return everything that belongs in the initramfs."""
    features = configuration.features
    check_features(tree, features)
    root = _Root(_depmod(tree, kernel, features))
    for path in _DIRECTORIES:
        root.mkdir(path)
    for name in _MERGED:
        root.nodes[name] = Symlink(target=f"usr/{name}")
    _add_programs(tree, root, features)
    modules = _add_modules(tree, root)
    _add_firmware(tree, root, modules)
    _add_fixed_files(tree, root, configuration.custom_files)
    for path in _NEEDED:
        if path not in root.nodes:
            raise InputError(
                f"the initramfs would lack /{path}, without which it finds no root filesystem",
                hint="the features must have base, and the image the packages that base names files of",
            )
    return root


def _add_programs(tree: Tree, root: _Root, features: Sequence[str]) -> None:
    """Add the files that the features name, and the libraries that they need."""
    matches = [path for _, path in feature_files(tree, features, "files", "")]
    for path in sorted(Libraries(tree).closure(matches)):
        root.put(path, _copy(tree, path))


def _depmod(tree: Tree, kernel: Kernel, features: Sequence[str]) -> _Depmod:
    """Return the modules that the features name and those that they need, with depmod's files of the kernel."""
    texts = _depmod_texts(tree, kernel)
    wanted: list[str] = []
    builtin = {kmod.module_name(line) for line in texts.get("builtin", "").splitlines()}
    for glob, path in feature_files(tree, features, "modules", kernel.directory):
        if path:
            wanted.append(path.removeprefix(kernel.directory + "/"))
        elif ".ko" in glob and not WILDCARD.search(glob) and kmod.module_name(glob) not in builtin:
            raise InputError(f"/{kernel.directory}/{glob}: kernel module is missing, an initramfs feature names it")
    kept = kmod.closure(kmod.parse_dependencies(texts["dep"], kernel.directory), wanted)
    return _Depmod(texts, kept, kernel.directory)


def _add_modules(tree: Tree, root: _Root) -> list[str]:
    """Add modules; return their paths in the Tree."""
    paths = [f"{root.depmod.directory}/{path}" for path in sorted(root.depmod.kept)]
    for path in paths:
        root.put(path, _copy(tree, path))
    return paths


def _depmod_texts(tree: Tree, kernel: Kernel) -> dict[str, str]:
    """Return the text files that depmod made for a kernel: name (:data:`kmod.TEXTS`) → text."""
    paths = {name: f"{kernel.directory}/modules.{name}" for name in kmod.TEXTS}
    if tree.stat(paths["dep"]) is None:
        raise InputError(f"/{paths['dep']}: missing", hint="the kernel's package has it; depmod is not run here")
    return {name: tree.text(path) for name, path in paths.items() if tree.stat(path) is not None}


def _add_firmware(tree: Tree, root: _Root, modules: Sequence[str]) -> None:
    """Add the firmware files that the modules name and the Tree has. In an image without firmware nothing is read."""
    top = tree.resolve("lib/firmware")
    if not tree.children(top):
        return
    for name in sorted({name for path in modules for name in _firmware_of(tree, path)}):
        for candidate in (name, f"{name}.zst", f"{name}.xz"):
            if isinstance(tree.stat(f"{top}/{candidate}"), File):
                for path in _links_on_the_way(tree, f"{top}/{candidate}"):
                    root.put(path, _copy(tree, path))
                break


def _firmware_of(tree: Tree, path: str) -> list[str]:
    """Return the names of the firmware files that a kernel module may ask for."""
    data = tree.read(path)
    try:
        if path.endswith(".gz"):
            data = gzip.decompress(data)
        elif path.endswith(".xz"):
            data = lzma.decompress(data)
        return kmod.modinfo(data, "firmware")
    except (OSError, EOFError, lzma.LZMAError, ElfError) as cause:
        raise InputError(f"/{path}: damaged kernel module: {cause}") from cause


def _links_on_the_way(tree: Tree, path: str) -> list[str]:
    """Return the path of the file and of every symbolic link on the way to it, links to directories included."""
    paths: list[str] = []
    parts = path.split("/")
    for depth in range(1, len(parts) + 1):
        here = "/".join(parts[:depth])
        if depth == len(parts) or isinstance(tree.get(tree.resolve(here, follow=False)), Symlink):
            paths.extend(step for step in with_targets(tree, here) if not isinstance(tree.get(step), Directory))
    return paths


def _add_fixed_files(tree: Tree, root: _Root, custom_files: Sequence[str]) -> None:
    """Add the files of every initramfs: the init, three files of etc, apk's keys, and the configured custom files."""
    root.nodes["init"] = _without_mdev(tree, _as_root(tree, f"{_SHARED}/initramfs-init", 0o755))
    for name in ("fstab", "passwd", "group"):
        root.nodes[f"etc/{name}"] = _as_root(tree, f"{_SHARED}/{name}", 0o644)
    for path in tree.children(tree.resolve("etc/apk/keys")):
        root.put(f"etc/apk/keys/{path.rpartition('/')[2]}", _as_root(tree, path))
    for name in custom_files:
        if isinstance(tree.stat(name), File):
            root.put(name.strip("/"), _as_root(tree, name))
            root.custom.add(name.strip("/"))


def _without_mdev(tree: Tree, init: File) -> File:
    """Return a version of the init in which nlplug-findfs handles events itself instead of starting mdev for each.

    There are well over a hundred events (64 terminals alone), and under emulation their processes take longer than the
    rest of the initramfs together. mdev is not needed: devtmpfs has made the nodes, with the kernel's own modes, and
    nlplug-findfs finds a root by UUID, label or name without help.
    """
    text = tree.text(f"{_SHARED}/initramfs-init")
    return replace(init, content=Inline(_MDEV.sub("", text).encode()))


def _as_root(tree: Tree, path: str, mode: int | None = None) -> File:
    """Return the file that ``path`` leads to, as a copy that belongs to root and that only root may change."""
    node = tree.stat(path)
    if not isinstance(node, File):
        raise InputError(f"/{path}: missing", hint="the package mkinitfs has it")
    return File(content=node.content, mode=stat.S_IMODE(node.mode) & 0o755 if mode is None else mode)


def _copy(tree: Tree, path: str) -> Node:
    """Return the node at exactly ``path`` as a copy that belongs to root; a hard link becomes the file that it names.

    Raises:
        InputError: there is nothing at ``path``.
    """
    node = tree.get(path)
    if isinstance(node, HardLink):
        node = tree[node.target]
    if node is None:
        raise InputError(f"/{path}: missing in the root filesystem, the initramfs needs it")
    return replace(node, uid=0, gid=0)
