#!/bin/sh
# Process 1 of a container image that is run as a machine. It stays in the initramfs, whose programs are Alpine's, so the
# image needs none: it may be Debian's, or hold a single static program. The image's processes are in mount namespaces of
# their own, with the image as their root. The kernel finds modprobe here, too, and its modules in the image's disk.

export PATH=/bin
root=/newroot

say() {
	echo "imgkit: $*" >/dev/console
}

off() {
	sync
	poweroff -f
	sleep 60
}

fail() {
	say "$*"
	off
}

# Mount what is not in an image: FOLDER of the image, TYPE, OPTIONS.
put() {
	mount -t "$2" -o "$3" "$2" "$root/$1" || fail "no $2 at /$1"
}

# The devices' drivers. The kernel finds the others by itself as soon as /lib/modules is there.
load() {
	local file
	while read -r file; do
		insmod "/modules/$file"
	done </modules/order
}

# Wait for the partition of the image, which is found while the driver is loaded, or a moment later.
find_root() {
	local tries=0
	until [ -b /dev/vda2 ]; do
		tries=$((tries + 1))
		[ "$tries" -lt 200 ] || fail "there is no partition /dev/vda2"
		sleep 0.05
	done
	mount -t ext4 /dev/vda2 "$root" || fail "/dev/vda2 cannot be mounted"
	ln -s "$root/${imgkit_modules:-lib/modules}" /lib/modules
}

mount_all() {
	put dev devtmpfs nosuid
	mkdir -p "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue"
	put dev/pts devpts nosuid,noexec,gid=5,mode=620,ptmxmode=666
	put dev/shm tmpfs nosuid,nodev,mode=1777
	put dev/mqueue mqueue nosuid,nodev,noexec
	put proc proc nosuid,nodev,noexec
	put sys sysfs nosuid,nodev,noexec
	put sys/fs/cgroup cgroup2 nosuid,nodev,noexec
	put run tmpfs nosuid,nodev,mode=755
	for name in fd:/proc/self/fd stdin:/proc/self/fd/0 stdout:/proc/self/fd/1 stderr:/proc/self/fd/2; do
		ln -sf "${name#*:}" "$root/dev/${name%%:*}"
	done
	mkdir "$root/run/lock" "$root/run/imgkit.tools"
	chmod 1777 "$root/run/lock"
	mount -o bind /tools "$root/run/imgkit.tools"
	mount -o remount,bind,ro /tools "$root/run/imgkit.tools"
}

# Take the values of this boot over from the config drive (docs/reference/agentd.md), and this run's settings from its folder
# "machine". The drive is released: nothing may read it again.
take_config() {
	local bus
	[ -b /dev/vdb ] || fail "there is no config drive"
	mkdir /drive
	mount -t iso9660 -o ro,nosuid,nodev,noexec /dev/vdb /drive || fail "the config drive cannot be read"
	(
		umask 077
		mkdir "$root/run/imgkit"
		cp -R /drive/. "$root/run/imgkit/" && mv "$root/run/imgkit/machine/run" /io/run && rmdir "$root/run/imgkit/machine"
	) || fail "the config drive is not complete"
	umount /drive
	bus=$(readlink -f /sys/block/vdb/device)
	echo "${bus##*/}" >/sys/bus/virtio/drivers/virtio_blk/unbind
}

# The kernel's settings, before anything of the image runs. Unknown names are no error: a module may be missing.
apply_settings() {
	local file
	sysctl -e -q -p /settings.conf
	[ "$mode" = agentd ] || return 0
	for file in "$root"/lib/sysctl.d/*.conf "$root"/usr/lib/sysctl.d/*.conf "$root"/etc/sysctl.d/*.conf; do
		[ ! -f "$file" ] || sysctl -e -q -p "$file"
	done
}

# The files that a container runtime provides. What is there may be a link to a service's file that nobody writes here.
name_machine() {
	local name=$hostname
	[ ! -s "$root/run/imgkit/hostname" ] || read -r name <"$root/run/imgkit/hostname"
	hostname "$name"
	rm -f "$root/etc/hostname" "$root/etc/hosts"
	echo "$name" >"$root/etc/hostname"
	printf '127.0.0.1\tlocalhost %s\n::1\tlocalhost %s\n' "$name" "$name" >"$root/etc/hosts"
}

# Set the network card up. It takes a moment, which the drivers and programs use that need none.
connect() {
	ip link set lo up
	[ -e /sys/class/net/eth0 ] || return 0
	ip link set eth0 up
	udhcpc -i eth0 -s /dhcp.sh -n -q -t 5 -T 2 -A 1 >/dev/null 2>&1 || say "no address for eth0"
}

# Mount the share TAG at FOLDER of the image, with these OPTIONS besides. Fails if there is none.
share() {
	mkdir -p "$root/$2"
	mount -t 9p -o "trans=virtio,version=9p2000.L,msize=262144,nosuid,nodev$3" "$1" "$root/$2" 2>/dev/null
}

# Run agentd again and again, as a service of OpenRC does. Its first crash is followed by a pause of 3 s, then of 5, 7 … 30.
serve() {
	local delay=3
	connect &
	mkdir -p "$root/var/log"
	share ipc workspace/ipc ,access=0,noexec || say "no request share; agentd will look for the serial port"
	modprobe -q tiny-power-button power_signal=12
	trap 'stop_agentd' USR2
	while :; do
		unshare -m /enter.sh "$mode" </dev/null >>"$root/var/log/agentd.log" 2>&1 &
		child=$!
		wait "$child"
		say "agentd: ended with status $?; it will be started again"
		tail -n 8 "$root/var/log/agentd.log" >/dev/console
		sleep "$delay"
		[ "$delay" -ge 30 ] || delay=$((delay + 2))
	done
}

# The power button was pressed.
stop_agentd() {
	kill -TERM "$child" 2>/dev/null
	sleep 1
	off
}

# Print the device of the virtio port NAME.
port() {
	local folder name
	for folder in /sys/class/virtio-ports/*; do
		read -r name <"$folder/name"
		[ "$name" != "$1" ] || echo "/dev/${folder##*/}"
	done
}

# Pass signals on that the host sends: lines "signal NAME". The image's first process is the only child of unshare.
obey() {
	local word value
	while read -r word value; do
		[ "$word" != signal ] || kill -s "$value" $(pgrep -P "$child") 2>/dev/null
	done <&3
}

# Standard input comes through a port, if there is any.
take_input() {
	local input
	input=$(port run.input)
	[ -z "$input" ] || exec cat "$input"
}

# Start the image's program, which may open /dev/stdin anew: the pipe is given to its user. It is no FIFO, because opening one
# waits for ever once the input has ended.
start_program() {
	chown "$uid:$gid" /proc/self/fd/0
	exec unshare -m -p -f /enter.sh "$mode"
}

# Run the image's program once. Its output goes to the host through two ports, its status through the third. The pipes are
# files that belong to the program's user, because programs open /dev/stdout anew.
run_once() {
	local tag pumps status
	for tag in $shares; do
		share "$tag" "mnt/$tag" || say "the share $tag cannot be mounted"
	done
	[ -z "$work" ] || share work "$work" || fail "the folder to work in cannot be mounted"
	connect
	rm -rf "$root/run/imgkit"
	mkfifo -m 600 /io/out /io/err
	chown "$uid:$gid" /io/out /io/err
	exec 3<>"$(port run.control)" || fail "there is no port for the result"
	cat /io/out >"$(port run.output)" &
	pumps=$!
	cat /io/err >"$(port run.errors)" &
	pumps="$pumps $!"
	mv /io/run "$root/run/imgkit.run"
	take_input | start_program >/io/out 2>/io/err 3>&- &
	child=$!
	echo started >&3
	obey &
	wait "$child"
	status=$?
	wait $pumps
	echo "exit $status" >&3
	off
}

mount -t devtmpfs -o nosuid dev /dev
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sys /sys
load
find_root
mount_all
take_config
. /io/run
apply_settings
name_machine
case "$mode" in
	agentd) serve ;;
	*) run_once ;;
esac
