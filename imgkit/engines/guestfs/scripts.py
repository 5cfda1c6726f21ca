"""Shell scripts that write a disk in the appliance, made from values.

The programs in the appliance are those of the host's distribution (util-linux, e2fsprogs, dosfstools, GNU tar). No
program of the image runs, except in :func:`chroot_script`.
"""

from __future__ import annotations

import shlex

from imgkit.disk.layout import SECTOR, Layout, Partition
from imgkit.disk.size import BLOCK, BYTES_PER_INODE, INODE_SIZE, journal_mib
from imgkit.engines.guestfs.feed import ALIGNMENT, Feed, Part
from imgkit.tree.tarwriter import time_text

# Features that every GRUB since 2.04 and every Linux since 4.x reads. Left out on purpose: metadata_csum_seed and
# orphan_file, which are on by default in newer e2fsprogs (older versions of GRUB refuse the filesystem), inline_data,
# casefold, encrypt, verity.
EXT4_FEATURES = (
    "has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)
SCRIPT_SECONDS = 600
"""Seconds that a script of a package may take in the appliance, whose processor may be an emulated one."""
ENDLESS = f"no end after {SCRIPT_SECONDS} s"
"""The last line of output if a script took longer."""
_SCRIPTS = "/tmp/scripts"  # noqa: S108 - a folder of the appliance
_MOST_OUTPUT = 4096  # bytes of the output of a script that are kept, the last ones
_GROWTH_BLOCKS = (1 << 40) // BLOCK  # group descriptors are reserved for growth to 1 TiB

# Disks are probed in parallel, so their names are in no order. SCSI targets are: drive N is target N.
PRELUDE = """\
set -eu -o pipefail
exec 2>&1
export LC_ALL=C
drive() {
    local disk
    for disk in /sys/block/sd*; do
        cd -P "$disk/device"
        case $PWD in */*:"$1":0) cd /; echo "/dev/${disk##*/}"; return ;; esac
    done
    echo "drive $1 is not there"; exit 1
}
"""


def partition_script(layout: Layout) -> str:
    """Write the partition table of drive 0, and make the kernel read it."""
    if layout.is_bare:
        return f'{PRELUDE}\n[ "$(blockdev --getsize64 "$(drive 0)")" = {layout.size_bytes} ]\n'
    lines = [f"label: gpt\nlabel-id: {layout.disk_guid}\nunit: sectors\nfirst-lba: 2048"]
    lines += [
        f"{part.number} : start={part.start_lba}, size={part.sectors}, type={part.type_guid}, uuid={part.uuid},"
        f' name="{part.name}"'
        for part in layout.partitions
    ]
    table = "\n".join(lines)
    return f"""{PRELUDE}
disk=$(drive 0)
[ "$(blockdev --getsize64 "$disk")" = {layout.size_bytes} ]
sfdisk --quiet --wipe never "$disk" <<'END'
{table}
END
udevadm settle
for number in {" ".join(str(part.number) for part in layout.partitions)}; do [ -b "$disk$number" ]; done
"""


def format_script(layout: Layout) -> str:
    """Make the filesystems and mount them: root at ``/sysroot``, the ESP at ``/tmp/esp``."""
    text = PRELUDE + "disk=$(drive 0)\n"
    esp = layout.get("esp")
    if esp is not None:
        volume = esp.fs_uuid.replace("-", "")
        bits = 16 if esp.size < 512 << 20 else 32
        text += f'mkfs.vfat -F {bits} -n {esp.label} -i {volume} "${{disk}}{esp.number}" >/dev/null\n'
        text += f'mkdir -p /tmp/esp; mount -t vfat "${{disk}}{esp.number}" /tmp/esp\n'
    return text + _mke2fs(layout.root)


def _mke2fs(root: Partition) -> str:
    growth = f",resize={_GROWTH_BLOCKS}" if root.size // BLOCK < _GROWTH_BLOCKS else ""
    options = f"nodiscard,hash_seed={root.uuid},lazy_journal_init=1{growth}"
    make = (
        f"mke2fs -q -F -t ext4 -b {BLOCK} -I {INODE_SIZE} -i {BYTES_PER_INODE} -m 0 -J size={journal_mib(root.size)}"
        f" -O none,{EXT4_FEATURES} -U {root.fs_uuid} -L {root.label} -E {options}"
    )
    # The disk is new and reads as zeros, so that the inode tables need not be written, neither by mke2fs now nor by the
    # kernel at the first boot. e2fsprogs before 1.47 has no option for that; there mke2fs writes them.
    return f"""
root="${{disk}}{root.number if root.start else ""}"
{make},assume_storage_prezeroed=1 "$root" 2>/dev/null || {make},lazy_itable_init=0 "$root"
mount -t ext4 -o noatime,noload,nobarrier,noauto_da_alloc "$root" /sysroot
"""


# Time stamps may lie in the future of the appliance, whose clock is the host's, or far in the past: no warnings.
_ROOT_OPTIONS = "-p --same-owner --xattrs --xattrs-include='*' --delay-directory-restore --warning=no-timestamp"


def populate_script(feed: Feed) -> str:
    """Unpack the feed (drive 1) into the root filesystem. Everything that the script prints is a failure."""
    text = f"""{PRELUDE}
feed=$(drive 1)
blockdev --flushbufs "$feed"
umask 0
{_untar(feed.root, "/sysroot", _ROOT_OPTIONS)}
large() {{
    dd if="$feed" of="$1" bs=1M skip="$2" count="$3" iflag=direct,fullblock oflag=direct conv=notrunc status=none
    truncate -s "$4" "$1"
    touch -d "@$5" "$1"
}}
"""
    for file in feed.large:
        path = shlex.quote("/sysroot/" + file.path)
        time = time_text(file.mtime, file.nanoseconds)
        text += f"large {path} {file.part.offset // ALIGNMENT} {file.part.blocks} {file.part.size} {time}\n"
    return text


def boot_script(layout: Layout, feed: Feed, code: bytes) -> str:
    """Install GRUB: its boot code, its core image, and the files of the ESP."""
    text = PRELUDE + "disk=$(drive 0)\nfeed=$(drive 1)\n"
    if layout.get("esp") is not None:
        text += _untar(feed.esp, "/tmp/esp", "--no-same-owner") + "\n"  # noqa: S108 - a folder of the appliance
    place = layout.get("bios-boot")
    if place is not None and feed.core.size:
        skip, count = feed.core.offset // SECTOR, feed.core.size // SECTOR
        text += f'dd if="$feed" of="${{disk}}{place.number}" bs={SECTOR} skip={skip} count={count} status=none\n'
        octal = "".join(f"\\x{byte:02x}" for byte in code)
        text += f"printf '{octal}' | dd of=\"$disk\" bs={len(code)} count=1 conv=notrunc iflag=fullblock status=none\n"
    return text


FINISH_SCRIPT = (
    PRELUDE
    + """
set -- $(stat -f -c '%S %b %f' /sysroot)
if mountpoint -q /tmp/esp; then umount /tmp/esp; fi
umount /sysroot
disk=$(drive 0)
blockdev --flushbufs "$disk"
echo "$(($1 * ($2 - $3))) $(($1 * $3))"
"""
)


def chroot_script(feed: Feed, number: int) -> str:
    """Run a script of a package in the root filesystem of the image, as the package manager would.

    The script and its arguments are files of the feed, so that the shell of the appliance interprets nothing in them.
    The script runs in namespaces of its own for processes and mounts, which end when it ends or its time is up
    (:data:`SCRIPT_SECONDS`), with everything that it has started.

    Args:
        number: of the script in the feed.
    """
    folder = f"{_SCRIPTS}/{number}"
    limits = f"timeout --signal=KILL {SCRIPT_SECONDS} unshare --mount --pid --fork --kill-child"
    environment = "/usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin"
    return f"""{PRELUDE}
feed=$(drive 1)
mkdir -p {_SCRIPTS}
{_untar(feed.scripts, _SCRIPTS, "--no-same-owner")}
mapfile -d '' -t arguments <{folder}/arguments
rm -rf /sysroot/.script
install -m 755 {folder}/script /sysroot/.script
inside='
mount -t proc proc /sysroot/proc
mount --bind /dev /sysroot/dev
exec chroot /sysroot {environment} /.script "$@"'
status=0
{limits} bash -eu -c "$inside" bash "${{arguments[@]}}" </dev/null 2>&1 | tail -c {_MOST_OUTPUT} || status=$?
rm -rf /sysroot/.script
if [ $SECONDS -ge {SCRIPT_SECONDS} ]; then echo; echo "{ENDLESS}"; fi
exit $status
"""


def _untar(part: Part, folder: str, options: str) -> str:
    where = part.offset // ALIGNMENT
    seek = f"dd bs={ALIGNMENT} skip={where} count=0 status=none"  # leaves standard input at that position
    return f'{{ {seek}; tar -b 1024 --numeric-owner {options} -xf - -C {folder}; }} <"$feed"'
