#!/bin/sh
# Runs in a mount namespace of its own, and makes the image the root of it. The programs of the initramfs are then only where
# they are bound, and they are started through their own loader: the image may have none for them.

cd /newroot || exit 125
if [ "$1" != agentd ]; then # it has a namespace of processes as well
	mount -t proc -o nosuid,nodev,noexec proc proc || exit 125
fi
mount -o move /newroot / || exit 125
exec chroot . /run/imgkit.tools/ld /run/imgkit.tools/busybox sh /run/imgkit.tools/start.sh "$1"
