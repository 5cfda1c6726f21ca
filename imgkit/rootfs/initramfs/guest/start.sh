#!/bin/sh
# Runs in the image's root, and becomes the image's program or agentd. There may be no program in the image but that one.

ld=/run/imgkit.tools/ld
busybox=/run/imgkit.tools/busybox

# Become agentd, with its defaults (overlay/etc/init.d/agentd has the same).
become_agentd() {
	AGENTD_WORKDIR=/workspace
	AGENTD_LOG=/var/log/agentd.log
	AGENTD_NODE_OPTS=
	[ ! -f /etc/conf.d/agentd ] || . /etc/conf.d/agentd
	export AGENTD_WORKDIR AGENTD_LOG AGENT_COMMAND AGENT_ARGS AGENT_WORKDIR AGENT_USER
	export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	cd "$AGENTD_WORKDIR" || exit 125
	exec "$node" $AGENTD_NODE_OPTS /opt/agent-runner/index.js
}

if [ "$1" = agentd ]; then
	node=$(for path in /usr/bin/node /usr/local/bin/node; do [ ! -x "$path" ] || echo "$path"; done)
	become_agentd
fi

# This sets cwd, uid, gid, account and login, and makes the words of "env" and of the program the arguments of this script.
. /run/imgkit.run
"$ld" "$busybox" rm -f /run/imgkit.run
"$ld" "$busybox" mkdir -p "$cwd"
cd "$cwd" || exit 126

case "$account" in
	root) exec "$ld" "$busybox" "$@" ;;
	named) # with the groups of its account
		exec "$ld" "$busybox" su -p -s "$ld" -- "$login" "$busybox" "$@" ;;
	*) exec "$ld" "$busybox" nsenter -S "$uid" -G "$gid" "$ld" "$busybox" "$@" ;;
esac
