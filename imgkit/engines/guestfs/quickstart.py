"""A libguestfs appliance that starts in a third of the time.

Under emulation the stock appliance spends its start on unpacking the kernel, on modules and device managers that imgkit
does not need, and on scans for LVM, MD and Windows disks. This module lets supermin (libguestfs' own builder) make the
same appliance from the same packages of this host with three changes:

* the kernel is stored unpacked (an ELF with a PVH entry, which QEMU starts directly),
* ``/init`` mounts what is needed and starts the libguestfs daemon,
* the list of modules to load is cut; a later cpio in the same initrd replaces the file.

libguestfs supports such ready-made appliances (``guestfs-building(1)``, "fixed appliance"). The result is kept in a
cache folder and made again when supermin says that the host's packages or kernel changed. This module is imported in
the process that holds libguestfs, so it imports little.
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imgkit.disk import bzimage
from imgkit.host import locks, wholefile
from imgkit.tree import File, Inline
from imgkit.tree.cpio import Member, newc

VERSION = "1"  # part of the cache key: raise it when this module makes another appliance
SUPERMIN_FOLDERS = ("/usr/lib/*/guestfs/supermin.d", "/usr/lib64/guestfs/supermin.d", "/usr/lib/guestfs/supermin.d")

# Packages of libguestfs' list that imgkit's calls do not need; without them the first build is quicker.
_UNNEEDED_PACKAGES = """\
    binutils bsdextrautils btrfs-progs clevis-luks cryptsetup cryptsetup-bin curl debootstrap exfatprogs extlinux
    f2fs-tools gawk grub grub2 grub2-common hfsplus iproute2 iputils isc-dhcp-client jfsutils kpartx ldmtool less
    lsscsi lzop mdadm mtools nilfs-tools ntfs-3g openssh-client openssh-clients pciutils procps psmisc qemu-utils
    reiserfsprogs scrub sleuthkit squashfs-tools syslinux systemd-sysv uuid-runtime vim-minimal vim-tiny xfsprogs
    zerofree zfs-fuse
"""
# Drivers that supermin's generic list loads and these drives (virtio-scsi, virtio-serial) do not need.
_UNNEEDED_MODULES = """\
    libnvdimm nfit libata ata_piix crypto_engine virtio_crypto failover net_failover virtio_net nd_btt nd_pmem
    nd_virtio virtio_pmem virtio_balloon virtio_dma_buf virtio_input virtio_mem fuse virtiofs crc7 crc8
    crc-itu-t
"""

# Disks are probed in parallel, so their names are in no order; the daemon sorts the links of by-path.
# memcpy through "rep movsb" is emulated byte by byte, hence the tunables (see also ARGUMENTS).
_INIT = """\
#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LVM_SYSTEM_DIR=/tmp/lvm GLIBC_TUNABLES=glibc.cpu.hwcaps=-ERMS,-FSRM
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
read -r cmdline </proc/cmdline
mkdir -p /sysroot /tmp/lvm /run/udev /dev/mapper /dev/virtio-ports /dev/disk/by-path
: >/tmp/lvm/lvm.conf
ln -s /proc/self/fd /dev/fd
for port in /sys/class/virtio-ports/*; do
    read -r name <"$port/name" && ln -s "../${port##*/}" "/dev/virtio-ports/$name"
done
for disk in /sys/block/sd*; do
    cd -P "$disk/device" && ln -s "../../${disk##*/}" "/dev/disk/by-path/scsi-${PWD##*/}"
done
cd /
set -- guestfsd
for word in $cmdline; do
    case $word in
        guestfs_channel=*) set -- "$@" --channel "${word#*=}" ;;
        guestfs_verbose=1) set -- "$@" --verbose ;;
    esac
done
"$@"
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


NO_SUPERMIN = "supermin: program not found"
"""What UnavailableError says if supermin is not on PATH."""


class UnavailableError(Exception):
    """This host cannot make a quick appliance; the message says why. The stock appliance may still work."""


@contextmanager
def appliance(cache: Path) -> Iterator[Path]:
    """Yield the folder of an appliance that is ready to start. It is made if necessary, and kept during the block.

    Args:
        cache: a folder of this user, which may be deleted at any time between builds.

    Raises:
        UnavailableError: supermin is missing or failed, or libguestfs' files are not in one of the known places.
    """
    source = _supermin_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locks.locked(cache / "lock"):
            _run_supermin(source, cache)
            ready = _finish(cache)
            # Taken before the other lock is released, so that no process can remove the appliance in between.
            held = locks.lock_file(ready / "in-use", shared=True)
    except OSError as cause:
        raise UnavailableError(f"{cache}: {cause.strerror or cause}") from cause
    try:
        yield ready
    finally:
        os.close(held)


def _supermin_folder() -> Path:
    for pattern in SUPERMIN_FOLDERS:
        for folder in sorted(Path("/").glob(pattern[1:])):
            if (folder / "init.tar.gz").exists() and (folder / "packages").exists():
                return folder
    raise UnavailableError("libguestfs' supermin.d folder was not found")


def _run_supermin(source: Path, cache: Path) -> None:
    """Let supermin build ``cache/base``, unless that is newer than the host's packages and kernel.

    Raises:
        UnavailableError: supermin is missing, or failed.
    """
    recipe = cache / f"supermin.d-{VERSION}"
    if not recipe.exists():
        _write_recipe(source, recipe)
    for left_over in cache.glob("base.*"):  # of a supermin that was killed; none runs now, since the lock is held
        shutil.rmtree(left_over, ignore_errors=True)
    argv = ["supermin", "--build", "--if-newer", "--copy-kernel", "-f", "ext2"]
    argv += ["--host-cpu", platform.machine(), str(recipe), "-o", str(cache / "base")]
    try:
        finished = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except FileNotFoundError as cause:
        raise UnavailableError(NO_SUPERMIN) from cause
    if finished.returncode:
        last = finished.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise UnavailableError(f"supermin failed: {last}")
    # The copied kernel keeps its old date; supermin would conclude that the appliance is out of date.
    os.utime(cache / "base" / "kernel")


def _write_recipe(source: Path, recipe: Path) -> None:
    """Make a supermin.d folder like libguestfs' own, with another ``/init`` and without the unneeded packages."""
    temporary = recipe.with_suffix(".new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for path in source.iterdir():
        if path.name not in ("init.tar.gz", "packages"):
            (temporary / path.name).symlink_to(path)
    needed = [name for name in (source / "packages").read_text().split() if name not in _UNNEEDED_PACKAGES.split()]
    (temporary / "packages").write_text("\n".join(needed) + "\n")
    with tarfile.open(temporary / "init.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("init")
        member.mode, member.size = 0o755, len(_INIT)
        archive.addfile(member, io.BytesIO(_INIT.encode()))
    wholefile.place({temporary: recipe})


def _finish(cache: Path) -> Path:
    """Turn what supermin built into a fixed appliance beside it, and return its folder.

    The name of the folder identifies the build of supermin that it was made from.
    """
    base = cache / "base"
    root = (base / "root").stat()
    ready = cache / f"ready-{VERSION}-{root.st_mtime_ns:x}-{root.st_ino:x}"
    if ready.exists():
        return ready
    _remove_old(cache)
    temporary = cache / "new"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    (temporary / "README.fixed").write_text("Made by imgkit from this host's packages; remade when they change.\n")
    (temporary / "root").hardlink_to(base / "root")
    kernel = (base / "kernel").read_bytes()
    (temporary / "kernel").write_bytes(unpack_kernel(kernel) or kernel)
    initrd = (base / "initrd").read_bytes()
    (temporary / "initrd").write_bytes(initrd + _shorter_list(initrd))
    wholefile.place({temporary: ready})
    return ready


def _remove_old(cache: Path) -> None:
    """Remove finished appliances that no running build uses."""
    for old in cache.glob("ready-*"):
        try:
            descriptor = locks.lock_file(old / "in-use", timeout=0)
        except OSError:  # a build uses it right now
            continue
        shutil.rmtree(old, ignore_errors=True)
        os.close(descriptor)


def unpack_kernel(image: bytes) -> bytes | None:
    """Return the ELF inside an x86 bzImage; None if it cannot be unpacked, or the ELF has no PVH entry."""
    try:
        kernel = bzimage.unpack(image, _unzstd)
    except (bzimage.BzImageError, OSError, subprocess.SubprocessError):
        return None
    return kernel if _has_pvh(kernel) else None


def _unzstd(payload: bytes) -> bytes:
    """Unpack with the program zstd: the standard library reads zstd from Python 3.14 on only."""
    argv = ["zstd", "-dcq"]
    return subprocess.run(argv, input=payload, capture_output=True, check=True).stdout


def _has_pvh(kernel: bytes) -> bool:
    """Return whether the ELF has the note with its PVH entry (owner "Xen", type 18), which QEMU needs."""
    return any(struct.pack("<III4s", 4, size, 18, b"Xen\0") in kernel for size in (4, 8))


def _shorter_list(initrd: bytes) -> bytes:
    """Return a cpio archive with a ``modules`` file without the unneeded modules; empty if the initrd has no list."""
    listed = next((data for name, data in read_cpio(initrd) if name == "modules"), None)
    if listed is None:
        return b""
    names = [name for name in listed.decode().split() if name.partition(".ko")[0] not in _UNNEEDED_MODULES.split()]
    content = Inline("".join(f"{name}\n" for name in names).encode())
    return newc(Member("modules", File(content=content)))


def read_cpio(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of a "newc" cpio archive.

    Format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
    """
    at = 0
    while data[at : at + 6] == b"070701":
        fields = [int(data[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        size, length = fields[6], fields[11]
        name = data[at + 110 : at + 110 + length - 1].decode(errors="surrogateescape")
        begin = at + (110 + length + 3) // 4 * 4
        if name == "TRAILER!!!":
            return
        yield name, data[begin : begin + size]
        at = begin + (size + 3) // 4 * 4
