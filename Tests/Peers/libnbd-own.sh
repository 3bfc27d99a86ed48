# libnbd's own tests and its tests of servers, with us in place of nbdkit and qemu-nbd. Tests that
# start no server are left out.
source "${0%/*}/lib.sh"

source=/src/libnbd

# Their clients ask for the default export, which no device of ours can be: the library and the
# tests are made to ask for `disk` instead.
name_the_export() {
    sed -i 's/export_name = strdup ("")/export_name = strdup ("disk")/' lib/handle.c
    sed -i -E 's#(nbds?[+a-z]*://[^"/]*/)(["?])#\1disk\2#' tests/*.c tests/Makefile.in
    sed -i -e "s#='\"/\"'#='\"disk\"'#" -e 's#"-x", "/"#"-x", "disk"#' interop/Makefile.in
}

if [[ ${1:-} == fetch ]]; then
    fetch_source libnbd build-essential pkgconf libgnutls28-dev libxml2-dev libfuse3-dev \
        python3-dev gnutls-bin nbdkit qemu-utils qemu-system-common iproute2 jq || exit
    [[ ! -e $source/built ]] || exit 0
    cd "$source" && name_the_export &&
        ./configure --disable-ocaml --disable-golang --disable-rust --disable-static \
            --without-bash-completions &&
        make -C common/utils && make -C lib && make -C python && make -C sh && make -C info &&
        make -C tests check TESTS= && make -C interop check TESTS= && touch built
    exit
fi

explain() {
    case $1 in
        errors-server-zerosize) echo "expects a request of no bytes to fail: the protocol leaves" \
            "open what a server does" ;;
        interop-qemu-block-size.sh) echo "expects blocks of 512 bytes where QEMU guards an image" \
            "whose format it guessed; we guess none" ;;
    esac
}

# What DIRECTORY/Makefile lists.
tests_of() {
    (cd "$1" && printf 'include Makefile\nlist: ; @echo $(TESTS)\n' | make -s -f - list)
}

export STAND_IN_PROGRAM STAND_IN_REAL=/usr/bin STAND_IN_REASON=$WORK/reason
export STAND_IN_LOG=$WORK/server.log LIBNBD_DEBUG=1 srcdir=.
export PATH=${0%/*}/stand-in:$PATH
for directory in tests interop; do
    cd "$source/$directory" || exit 1
    for name in $(tests_of .); do
        rm -f "$STAND_IN_REASON" "$STAND_IN_LOG"
        timeout 300 ../run "./$name" >"$WORK/log" 2>&1 </dev/null
        status=$?
        if [[ -e $STAND_IN_REASON ]]; then
            status=77
        elif [[ ! -e $STAND_IN_LOG ]] && ! grep -q stand-in.py "$WORK/log"; then
            # It starts no server, or another one.
            continue
        elif ((status == 77)); then
            grep -iE 'skip|requires' "$WORK/log" | tail -1 >"$WORK/reason"
        fi
        report "$name" "$status"
    done
done
