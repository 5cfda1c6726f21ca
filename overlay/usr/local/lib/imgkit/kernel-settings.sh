# To be sourced. Applies the kernel's settings earlier than OpenRC's service "sysctl", which runs in the runlevel boot:
# agentd takes requests in sysinit, and without the settings an agent could make links to root's files in its folders.
# The functions take the root of the system as their argument, which is empty except in tests.

# Apply the files that the service reads, in its order (OpenRC's /etc/init.d/sysctl). The service still runs later, for
# /run/sysctl.d and for settings of modules that are not loaded yet. Unknown names are therefore no error here.
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

# Succeed if the two settings are in force without which root is not safe in folders of the agent's. This reads the kernel's
# own values, because a file in /etc proves nothing. It starts no process, which would cost more than all of it.
links_are_protected() {
	local name value
	for name in hardlinks symlinks; do
		value=
		read -r value <"$1/proc/sys/fs/protected_$name" # fails, because the kernel gives one byte without an end of line, but sets the value
		[ "$value" -ge 1 ] || return 1
	done 2>/dev/null
}
