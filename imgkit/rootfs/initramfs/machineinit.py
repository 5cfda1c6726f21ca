"""Make the initramfs of a container image that is run as a machine: Alpine's busybox, drivers, and an init of our own.

    data = machine_initramfs(alpine, kernel_tree, kernel, epoch=epoch)

The scripts are in ``guest/``. The init stays in the initramfs and starts the image's program in namespaces of its own,
so an image needs no program but that one. The archive is not compressed: the kernel unpacks it in a moment, and under
emulation decompression would take longer than reading it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources

from imgkit.errors import InputError
from imgkit.rootfs.initramfs import kmod
from imgkit.rootfs.kernel import Kernel
from imgkit.tree import Directory, Tree, TreeError
from imgkit.tree.cpio import Member, write_newc

_SCRIPTS = {"init.sh": "init", "enter.sh": "enter.sh", "dhcp.sh": "dhcp.sh", "start.sh": "tools/start.sh"}
"""Script of ``guest/`` → its path in the initramfs."""
_SETTINGS = "settings.conf"
_FOLDERS = ("dev", "proc", "sys", "newroot", "io", "bin", "sbin", "lib", "tools", "modules")
_APPLETS = (
    *("cat", "chmod", "chown", "chroot", "cp", "hostname", "insmod", "ip", "kill", "ln", "mkdir", "mkfifo", "modprobe"),
    *("mount", "mv", "pgrep", "poweroff", "readlink", "rm", "rmdir", "sh", "sleep", "sync", "sysctl", "tail", "udhcpc"),
    *("umount", "unshare"),
)
_DRIVERS = ("virtio_blk", "ext4", "isofs", "virtio_net", "af_packet", "9pnet_virtio", "9p", "virtio_rng")
"""Modules that every such machine needs, in the order in which they are loaded."""
_LOADERS = {"x86_64": "ld-musl-x86_64.so.1", "aarch64": "ld-musl-aarch64.so.1"}


def init_version() -> str:
    """Return a digest of the scripts: machines that were made with other ones are made again."""
    hashed = hashlib.sha256()
    for name in (*_SCRIPTS, _SETTINGS):
        hashed.update(_guest(name))
    return hashed.hexdigest()[:16]


def machine_initramfs(alpine: Tree, modules: Tree, kernel: Kernel, *, arch: str, epoch: int) -> bytes:
    """Return the initramfs.

    Args:
        alpine: the minirootfs, of which busybox and musl are taken.
        modules: the Tree that has the modules of ``kernel``.
        arch: Alpine's name of the architecture.
        epoch: modification time of everything in it, seconds since 1970.

    Raises:
        InputError: a program or a module is missing or damaged.
    """
    tree = Tree()
    for folder in ("", *_FOLDERS):
        tree.add(folder, Directory(mtime=epoch))
    _add_programs(tree, alpine, _LOADERS[arch], epoch)
    for name, path in _SCRIPTS.items():
        tree.write(path, _guest(name), mode=0o755, mtime=epoch)
    tree.write(_SETTINGS, _guest(_SETTINGS), mtime=epoch)
    drivers = dict(_drivers(modules, kernel))
    for name, data in drivers.items():
        tree.write(f"modules/{name}", data, mtime=epoch)
    tree.write("modules/order", "".join(f"{name}\n" for name in drivers), mtime=epoch)
    sink = io.BytesIO()
    write_newc(sink, (Member(path or ".", node) for path, node in tree.items()))
    return sink.getvalue()


def _guest(name: str) -> bytes:
    return resources.files("imgkit.rootfs.initramfs").joinpath("guest").joinpath(name).read_bytes()


def _add_programs(tree: Tree, alpine: Tree, loader: str, epoch: int) -> None:
    """Add busybox and musl's loader, for the initramfs itself and as the tools that the image's root gets."""
    try:
        busybox, musl = alpine.read("bin/busybox"), alpine.read(f"lib/{loader}")
    except TreeError as cause:
        raise InputError(f"the minirootfs lacks a program of the initramfs: {cause}") from cause
    for folder in ("bin", "tools"):
        tree.write(f"{folder}/busybox", busybox, mode=0o755, mtime=epoch)
    for path in (f"lib/{loader}", "tools/ld"):
        tree.write(path, musl, mode=0o755, mtime=epoch)
    for applet in _APPLETS:
        tree.symlink(f"bin/{applet}", "busybox", mtime=epoch)
    tree.symlink("sbin/modprobe", "../bin/busybox", mtime=epoch)  # where the kernel looks for it


def _drivers(tree: Tree, kernel: Kernel) -> Iterator[tuple[str, bytes]]:
    """Yield the files of the drivers, decompressed, each after those that it needs."""
    directory = kernel.directory
    dependencies = kmod.parse_dependencies(tree.text(f"{directory}/modules.dep"), directory)
    by_name = {kmod.module_name(path): path for path in dependencies}
    done: set[str] = set()
    builtin = {kmod.module_name(line) for line in tree.text(f"{directory}/modules.builtin").splitlines()}
    for name in _DRIVERS:
        if name in builtin:
            continue
        if name not in by_name:
            raise InputError(f"/{directory}: kernel {kernel.release} has no module {name}")
        for path in _in_order(dependencies, by_name[name], done):
            yield f"{kmod.module_name(path)}.ko", _decompressed(tree.read(f"{directory}/{path}"), path)


def _in_order(dependencies: Mapping[str, Sequence[str]], path: str, done: set[str]) -> Iterator[str]:
    """Yield what ``path`` needs and is not in ``done``, then ``path``; all of it is in ``done`` afterwards."""
    if path in done:
        return
    done.add(path)
    for other in dependencies[path]:
        yield from _in_order(dependencies, other, done)
    yield path


def _decompressed(data: bytes, path: str) -> bytes:
    try:
        if path.endswith(".gz"):
            return gzip.decompress(data)
        return lzma.decompress(data) if path.endswith(".xz") else data
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as cause:
        raise InputError(f"{path}: damaged kernel module: {cause}") from cause
