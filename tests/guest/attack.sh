#!/bin/busybox sh
# What the root of a guest tries in every share: to leave something on the host that gives rights there.
# Called with folders; writes a line "attack WHAT FOLDER STATUS" to the console for each attempt.
b=/bin/busybox
try() {
    what=$1 folder=$2
    shift 2
    "$@" 2>/dev/null
    echo "attack $what ${folder##*/} $?"
}
for top in "$@"; do
    try copy "$top" $b cp $b "$top/program"
    try chown "$top" $b chown 0:0 "$top/program"
    try setuid "$top" $b chmod 4755 "$top/program"
    try setgid "$top" $b chmod 2755 "$top/program"
    try given "$top" $b chmod 4755 "$top/given"
    try block "$top" $b mknod "$top/disk" b 254 0
    try character "$top" $b mknod "$top/memory" c 1 1
    $b cp $b "$top/plain" && $b ln "$top/plain" "$top/linked"
    try linked "$top" $b chmod 4755 "$top/linked"
    $b mkdir -p "$top/deep" && $b mv "$top/plain" "$top/deep/renamed"
    try renamed "$top" $b chmod 6711 "$top/deep/renamed"
    try folder "$top" $b mkdir "$top/below"
    try still-works "$top" $b chmod 1777 "$top/below"
done
echo "attack over"
