# To be sourced. Puts the kernel's settings into force before OpenRC's service "sysctl" does, which comes in runlevel boot
# only: agentd takes requests in sysinit, and until then links to files of root's could be made in folders of the agent's.
# The functions take the root of the system as their argument, which is empty but in tests.

# Write what the files say that the service reads, in its order (OpenRC's /etc/init.d/sysctl). That service still comes:
# for /run/sysctl.d, and for what only exists once its module is loaded, which is why unknown names are no fault here.
apply_settings() {
	local root="$1" file
	[ -d "$root/proc/sys/fs" ] || mount -n -t proc -o nosuid,nodev,noexec proc "$root/proc"
	for file in "$root"/lib/sysctl.d/*.conf "$root"/usr/lib/sysctl.d/*.conf \
		"$root"/etc/sysctl.d/*.conf "$root"/etc/sysctl.conf; do
		[ -f "$file" ] || continue
		case "$file" in
			"$root"/etc/*) ;;
			*) [ ! -f "$root/etc/sysctl.d/${file##*/}" ] || continue ;;
		esac
		sysctl -e -q -p "$file"
	done
	return 0
}

# Whether the two settings are in force without which root is not safe in folders of the agent's. The kernel itself is
# asked; a file that says so proves nothing. With the shell's own means: a process costs more than all of it.
links_are_protected() {
	local name value
	for name in hardlinks symlinks; do
		value=
		read -r value <"$1/proc/sys/fs/protected_$name" # fails: all that the kernel gives is one byte, no end of line
		[ "$value" -ge 1 ] || return 1
	done 2>/dev/null
}
