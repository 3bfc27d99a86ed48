# The kernel's client.
source "${0%/*}/lib.sh"

t_lists() {
    need nbd-client
    nbd-client -l -unix "$SOCKET" >"$WORK/list"
    grep -q '^disk@tue' "$WORK/list"
}
t_attaches() {
    need nbd-client
    [ -b /dev/nbd0 ] || skip "the kernel has no nbd devices"
    nbd-client -unix "$SOCKET" -N disk@tue /dev/nbd0
    cmp "$WORK/tue" /dev/nbd0
    nbd-client -d /dev/nbd0
}
run_all
