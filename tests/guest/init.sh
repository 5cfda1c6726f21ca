#!/bin/busybox sh
# A guest without an image: replaces /init of an initramfs, and plays agentd just well enough to test a host.
# Mounts the disk read-write (to prove that the host keeps it unchanged), the ipc share, and then writes heartbeats and
# answers every request with one line of output and a result. Words on the kernel command line change what it does.
b=/bin/busybox
$b mkdir -p /proc /sys /dev /sysroot
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
exec </dev/null >/dev/console 2>&1  # no terminal to read: a program that would ask a question must not wait for the answer
echo "Alpine Init 0.0 (test guest)"
words=" $($b cat /proc/cmdline) "
case "$words" in *" test=panic "*) exit 1 ;; esac
$b modprobe virtio_blk; $b modprobe ext4
disk=/dev/vda; [ -e $disk ] || disk=/dev/sda
$b mount -t ext4 $disk /sysroot || { echo "Mounting root failed."; echo "initramfs emergency recovery shell"; $b sleep 1000; }
echo written > /sysroot/written-by-the-guest; $b sync
for module in virtio_net 9pnet_virtio 9p; do $b chroot /sysroot /sbin/modprobe $module; done
echo "   OpenRC 0.0 is starting up Linux"
case "$words" in *" test=no-agent "*) echo "localhost login: "; $b sleep 1000 ;; esac
mount_share() { $b mkdir -p "$2"; $b mount -t 9p -o trans=virtio,version=9p2000.L "$1" "$2"; }
ipc=/ipc; mounted=true
mount_share ipc $ipc || mounted=false
for tag in $($b cat /sys/bus/virtio/drivers/9pnet_virtio/virtio*/mount_tag | $b tr '\0' '\n'); do
    [ "$tag" = ipc ] || { mount_share "$tag" "/shares/$tag" && echo "hello" > "/shares/$tag/from-guest"; }
done
attack=/attack.sh
[ ! -e $attack ] || $b sh $attack $ipc /shares/*
(
    beats=0
    while :; do
        case "$words" in
            *" test=late-network "*) [ $beats -ge 3 ] && network=true || network=false ;;
            *" test=no-network "*) network=false ;;
            *) network=null ;;
        esac
        beats=$((beats + 1))
        printf '{"timestamp":%s000,"pid":1,"uptime":1,"ipcMode":"file","ipcMounted":%s,"disk":"%s","shares":%s,"system":%s}' \
            "$($b date +%s)" $mounted $disk "$($b ls /shares 2>/dev/null | $b wc -l)" "{\"network\":$network}" > $ipc/heartbeat.new
        $b mv $ipc/heartbeat.new $ipc/heartbeat
        $b sleep 1
    done
) &
while :; do
    for request in $ipc/requests/*.json; do
        [ -f "$request" ] || continue
        id=$($b basename "$request" .json)
        case "$($b cat "$request")" in *crash-now*) echo c > /proc/sysrq-trigger ;; *power-off*) $b poweroff -f ;;
            *fill-share*) $b dd if=/dev/zero of=/shares/work/fill bs=64k count=1024 2>/dev/null; $b sleep 1000 ;;
            *fill-disk*) $b dd if=/dev/urandom of=/dev/vda bs=64k 2>/dev/null; $b sync; $b sleep 1000 ;;
        esac
        echo '{"type":"sdk_event","event":{"type":"output","stream":"stdout","data":"answer\n"}}' >> "$ipc/streams/$id.log"
        echo '{"type":"sdk_event","event":{"type":"result","subtype":"success","exitCode":7}}' >> "$ipc/streams/$id.log"
        $b rm -f "$request"  # the host takes it back as soon as it has read the result, maybe sooner than this
    done
    $b usleep 100000
done
