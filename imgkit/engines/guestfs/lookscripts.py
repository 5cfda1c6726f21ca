"""Shell scripts that read the filesystems of an image in the appliance, made from values."""

from __future__ import annotations

from imgkit.engines.guestfs.scripts import PRELUDE
from imgkit.engines.reading import Filesystem

OFFSET = 1 << 20
"""Where archives and files begin on the scratch drive: beyond the place of a partition table. Bytes."""
DATABASE = "lib/apk/db/installed"
"""Path of the database of installed packages in an image."""
_TEXT = 65536  # bytes of os-release and of the list of kernels that are read
_MOUNT_OPTIONS = "ro,nodev,nosuid,noexec"  # nothing in an image is a device or a program to the appliance

_FILESYSTEM_OPTIONS = {"root": ("ext4", "errors=continue"), "esp": ("vfat", "errors=continue,umask=022")}

PARTITIONS_SCRIPT = (
    PRELUDE
    + """
disk=$(drive 0)
# Of a disk that was enlarged sfdisk says on standard error that the backup table is not at the end.
if ! sfdisk --json "$disk" 2>/dev/null; then
    if [ "$(blkid -p -o value -s TYPE "$disk" || true)" = ext4 ]; then
        printf '{"bare": %s}\n\n0\n' "$(blockdev --getsize64 "$disk")"
        blkid -p -o export -s TYPE -s LABEL -s UUID "$disk"
        exit
    fi
    sfdisk --json "$disk" || true; echo "no partition table"; exit 1
fi
for node in "$disk"[0-9]*; do
    echo
    echo "${node#"$disk"}"
    blkid -p -o export -s TYPE -s LABEL -s UUID "$node" || true
done
"""
)
"""Print the partition table (drive 0) as JSON, and for each partition a paragraph: its number, and what blkid finds.

A disk without a table that is an ext4 filesystem as a whole has its size in the JSON, and is partition 0.
"""

BENEATH = """
beneath() {
    local todo=$1 here=$root part target links=0
    while [ -n "$todo" ]; do
        part=${todo%%/*}
        case $todo in */*) todo=${todo#*/} ;; *) todo= ;; esac
        case $part in
            ''|.) continue ;;
            ..) if [ "$here" != "$root" ]; then here=${here%/*}; fi; continue ;;
        esac
        here=$here/$part
        if [ -L "$here" ]; then
            links=$((links + 1))
            if [ "$links" -gt 40 ]; then return 1; fi
            target=$(readlink -n "$here"; echo .)
            target=${target%.}
            case $target in /*) here=$root ;; *) here=${here%/*} ;; esac
            todo=$target/$todo
        fi
    done
    result=$here
}
"""
"""A function of bash: ``beneath PATH`` resolves ``PATH`` below ``$root`` as in a chroot, and sets ``result`` to it.

The kernel would follow links of the image into the appliance. The status is 1 if there are more than 40 links.
"""


def mount_script(filesystem: Filesystem, number: int, *, replay: bool) -> str:
    """Mount a filesystem of the image (drive 0) at ``/sysroot``.

    Args:
        number: of its partition; 0 if the disk is the filesystem.
        replay: whether the journal of the root filesystem is replayed.
    """
    kind, options = _FILESYSTEM_OPTIONS[filesystem]
    if filesystem == "root" and not replay:
        options += ",noload"
    return (
        f"{PRELUDE}disk=$(drive 0)\nif mountpoint -q /sysroot; then umount /sysroot; fi\n"
        f'mount -t {kind} -o {_MOUNT_OPTIONS},{options} "${{disk}}{number or ""}" /sysroot\n'
    )


def look_script(limit: int) -> str:
    """Print how full the root filesystem is, the size of the package database, the kernels, and os-release in base64.

    The database itself is copied to the scratch drive (drive 1), if it has at most ``limit`` bytes.
    """
    return f"""{PRELUDE}{BENEATH}
root=/sysroot
target=$(drive 1)
stat -f -c '%S %b %f %c %d' "$root"
if ! beneath {DATABASE} || [ ! -e "$result" ]; then echo none
elif [ ! -f "$result" ]; then echo special
else
    size=$(stat -c %s "$result")
    if [ "$size" -le {limit} ]; then
        dd if="$result" of="$target" bs={OFFSET} seek=1 count={-(-limit // OFFSET)} oflag=direct status=none
    fi
    echo "$size"
fi
if beneath lib/modules && [ -d "$result" ]; then {{ ls -b "$result" 2>/dev/null || true; }} | head -c {_TEXT}; fi
echo
for path in etc/os-release usr/lib/os-release; do
    if beneath "$path" && [ -f "$result" ]; then head -c {_TEXT} "$result" | base64; break; fi
done
"""


def tar_script(limit: int) -> str:
    """Write what is mounted at ``/sysroot`` to the scratch drive (drive 1) as a tar archive of at most ``limit`` bytes.

    The first line that the script prints has the size of the archive, and "whole" or "more"; what tar printed follows.
    """
    most = -(-limit // OFFSET) * OFFSET
    return f"""{PRELUDE}
target=$(drive 1)
set +e
tar -C /sysroot --format=pax --pax-option=delete=atime,delete=ctime --numeric-owner --xattrs --xattrs-include='*' \\
    --one-file-system --sort=name -b 2048 -cf - . 2>/tmp/tar.said |
    dd of="$target" bs={OFFSET} seek=1 count={most // OFFSET} iflag=fullblock oflag=direct 2>/tmp/dd.said
ended=("${{PIPESTATUS[@]}}")
set -e
if [ "${{ended[1]}}" != 0 ]; then cat /tmp/dd.said; exit 1; fi
size=$(tail -n 1 /tmp/dd.said)
size=${{size%% *}}
if [ "$size" -lt {most} ] || [ "${{ended[0]}}" = 0 ]; then echo "$size whole"; else echo "$size more"; fi
head -c {_TEXT} /tmp/tar.said
"""
