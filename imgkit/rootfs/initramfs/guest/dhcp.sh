#!/bin/sh
# What udhcpc calls. The addresses are of QEMU's network or of imgkit's, which have one router and one name server.

case "$1" in
	bound | renew)
		ip address flush dev "$interface"
		ip address add "$ip/$mask" dev "$interface"
		for address in $router; do
			ip route add default via "$address" dev "$interface"
		done
		rm -f /newroot/etc/resolv.conf
		for address in $dns; do
			echo "nameserver $address"
		done >/newroot/etc/resolv.conf
		;;
esac
