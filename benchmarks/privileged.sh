#!/bin/sh -eu
# The classic way to a disk image, which needs root, loop devices and mounts:
#
#     privileged.sh MINIROOTFS MIRROR SIZE OUTPUT PACKAGE…
#
# MIRROR is a URL with the branch of Alpine. The boot loader is left out, and with it the files of the EFI system
# partition, so this does less than imgkit. The current folder, which is empty, is for scratch files.
minirootfs=$1 mirror=$2 size=$3 output=$4
shift 4

esp= rootfs=
clean() {
    set +e
    mountpoint -q disk && umount disk
    [ -z "$esp" ] || losetup -d "$esp"
    [ -z "$rootfs" ] || losetup -d "$rootfs"
}
trap clean EXIT
trap 'exit 1' HUP INT TERM

mkdir root disk
tar -xzpf "$minirootfs" -C root --numeric-owner
cp -L /etc/resolv.conf root/etc/resolv.conf
printf '%s/main\n%s/community\n' "$mirror" "$mirror" >root/etc/apk/repositories
chroot root /sbin/apk add --quiet --no-cache --no-progress "$@" >/dev/null

truncate -s "$size" disk.raw
sgdisk -n 1:1M:64M -t 1:ef00 -n 2:65M:0 -t 2:8300 disk.raw >/dev/null
# One device for each partition: losetup -P needs somebody who makes the nodes in /dev.
esp=$(losetup -f --show -o 1M --sizelimit 63M disk.raw)
rootfs=$(losetup -f --show -o 65M --sizelimit $((size - (66 << 20))) disk.raw)
mkfs.vfat "$esp" >/dev/null
mkfs.ext4 -q "$rootfs"
mount "$rootfs" disk
cp -a root/. disk/
umount disk
losetup -d "$esp"
esp=
losetup -d "$rootfs"
rootfs=
qemu-img convert -c -m 8 -W -O qcow2 -o compression_type=zstd,cluster_size=65536 disk.raw "$output"
