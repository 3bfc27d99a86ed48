# QEMU's tests of images, of raw images over NBD, with us in place of qemu-nbd and with the programs
# of Debian's packages.
source "${0%/*}/lib.sh"

tests=/src/qemu/tests/qemu-iotests

# Their clients ask for the default export, which no device of ours can be; the server is given a
# second to start and no time to end, which is too short on a busy machine; and Debian's QEMU has no
# accelerator for tests.
fit() {
    # shellcheck disable=SC2016 # expanded by the tests
    local begun='for _ in {1..600}; do [ -s "$QEMU_TEST_DIR/qemu-nbd.pid" ] \&\& break; sleep 0.1; done'
    # shellcheck disable=SC2016
    local ended='&; for _ in {1..600}; do kill -0 ${QEMU_NBD_PID} 2>/dev/null || break; sleep 0.1; done'
    sed -i -e 's#nbd+unix:///?socket#nbd+unix:///disk?socket#' \
        -e "s%sleep 1 # FIXME: qemu-nbd.*%$begun%" -e "s%kill \${QEMU_NBD_PID}\$%$ended%" \
        common.rc
    sed -i 's#nbd+unix:///\\??socket#nbd+unix:///disk\\??socket#' common.filter
    sed -i 's#nbd+unix:///?socket#nbd+unix:///disk?socket#' 094.out
    sed -i 's/-accel qtest/-accel tcg/' testenv.py
    chmod +x check && touch fitted
}

if [[ ${1:-} == fetch ]]; then
    fetch_source qemu python3 qemu-utils qemu-system-x86 qemu-system-common procps psmisc bc ||
        exit
    cd "$tests" || exit
    [[ -e fitted ]] || fit
    exit
fi

explain() {
    # Nothing else may differ.
    ! grep -E '^[-+]' "$WORK/log" | grep -qvE '^(---|\+\+\+) |"event": "SHUTDOWN"' || return 0
    case $1 in
        094 | 119) echo "QEMU tells of the shutdown before it answers quit, with its own server" \
            "too: Debian's has no accelerator for tests" ;;
    esac
}

export STAND_IN_PROGRAM STAND_IN_REAL=/usr/bin STAND_IN_REASON=$WORK/reason
export QEMU_PROG=/usr/bin/qemu-system-x86_64 QEMU_IMG_PROG=/usr/bin/qemu-img
export QEMU_IO_PROG=/usr/bin/qemu-io QSD_PROG=/usr/bin/qemu-storage-daemon
export QEMU_NBD_PROG=${0%/*}/stand-in/qemu-nbd
# The paths of sockets must be short.
export TEST_DIR=$WORK/iotests SOCK_DIR=/tmp/iotests
cd "$tests" || exit 1
for name in $(grep -lE '^_supported_proto (generic|.*nbd)' [0-9][0-9][0-9]); do
    rm -f "$STAND_IN_REASON"
    timeout 600 ./check -raw -nbd "$name" >"$WORK/log" 2>&1 </dev/null
    status=$?
    if [[ -e $STAND_IN_REASON ]]; then
        status=77
    elif grep -qE "^$name .*not run" "$WORK/log"; then
        sed -n "s/^$name .*not run *\[.*\.\.\. *//p" "$WORK/log" >"$WORK/reason"
        status=77
    fi
    report "$name" "$status"
done
