# To be sourced. Makes the root writable for services that start before the service "root". The journal has been replayed,
# and fstab asks for no check that would have to come first. Reading the mounts starts no process, which would cost more than
# all of it.
writable_root() {
	local where options rest
	while read -r rest where options; do
		[ "$where" != / ] || case " ${options#* }" in
			" ro,"* | " ro "*) mount -n -o remount,rw / ;;
		esac
	done </proc/mounts
}
