# To be sourced. Makes the root writable for what starts before the service "root": the journal has been replayed, and
# there is no check to wait for (fstab). Looks with the shell's own means, a process costs more than all of it.
writable_root() {
	local where options rest
	while read -r rest where options; do
		[ "$where" != / ] || case " ${options#* }" in
			" ro,"* | " ro "*) mount -n -o remount,rw / ;;
		esac
	done </proc/mounts
}
