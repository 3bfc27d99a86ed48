# The tests of nbd-server, by its client. A snapshot of the device is held while they write.
source "${0%/*}/lib.sh"

tests=/src/nbd/tests/run

if [[ ${1:-} == fetch ]]; then
    fetch_source nbd build-essential pkgconf libglib2.0-dev libgnutls28-dev libnl-genl-3-dev \
        bison flex autoconf-archive || exit
    [[ ! -x $tests/nbd-tester-client ]] || exit 0
    # Debian's patches make its build files older than what they are made from; they are not
    # made again.
    cd /src/nbd && ./configure --disable-manpages &&
        make -C tests/run AUTOMAKE=: ACLOCAL=: AUTOCONF=: AUTOHEADER=: nbd-tester-client
    exit
fi

explain() {
    case $1 in
        huge_requests_*) echo "requests of up to 49.8 MB: without a size that the server names, a" \
            "client may assume no more than 32 MiB (protocol, block size constraints)" ;;
    esac
}

tester() { (cd "$tests" && timeout 300 ./nbd-tester-client "$@"); }

# The ways to reach the server.
over_unix() { tester "$@" -u "$SOCKET"; }
over_tcp() { tester "$@" 127.0.0.1 "$PORT"; }
over_tls() {
    tester "$@" -C "$PKI/client-cert.pem" -K "$PKI/client-key.pem" -A "$PKI/ca-cert.pem" \
        -H localhost 127.0.0.1 "$PORT"
}

# What is read back must not have been there before.
integrity() {
    qemu-io -f raw "$(uri disk)" -c 'write -z 0 64M' >/dev/null
    "$1" -N disk -i -t "$2-test.tr"
}

for way in unix tcp tls; do
    eval "t_reads_over_$way() { over_$way -N small; }
        t_writes_over_$way() { over_$way -N small -w; }
        t_writes_and_flushes_over_$way() { over_$way -N small -w -f; }
        t_may_not_write_an_image_over_$way() { over_$way -N small@tue -w -F; }
        t_large_requests_over_$way() { over_$way -N small -o; }
        t_handshake_over_$way() { over_$way -N small -h; }
        t_unknown_export_over_$way() { over_$way -N none -F; }
        t_integrity_over_$way() { integrity over_$way integrity; }
        t_huge_requests_over_$way() { integrity over_$way integrityhuge; }"
done
t_wrong_certificate_over_tls() {
    # TLS 1.3 tells a client that it was refused at the first thing it wants to read.
    tester -N small -F -C "$tests/certs/selfsigned-cert.pem" -K "$tests/certs/selfsigned-key.pem" \
        -A "$PKI/ca-cert.pem" -H localhost 127.0.0.1 "$PORT"
}
# The last ones, by their name: what was written is in neither image.
t_x_image_is_as_at_its_cut() { nbdcopy "$(uri small@tue)" - | cmp - "$WORK/small.tue"; }
t_x_image_of_integrity_is_as_at_its_cut() { nbdcopy "$(uri disk@tue)" - | cmp - "$WORK/tue"; }
run_all
