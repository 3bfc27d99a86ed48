# libnbd from Python: what its programs do not call.
source "${0%/*}/lib.sh"

py() {
    /usr/bin/python3 -c 'import nbd' 2>/dev/null || skip "needs python3-libnbd"
    /usr/bin/python3 - "$SOCKET" "$WORK" <<E
import nbd, sys
socket, work = sys.argv[1:]
def connect(name, contexts=(), **settings):
    h = nbd.NBD()
    h.set_export_name(name)
    for c in contexts: h.add_meta_context(c)
    for key, value in settings.items(): getattr(h, "set_" + key)(value)
    h.connect_unix(socket)
    return h
def fails(call, *arguments):
    try: call(*arguments)
    except nbd.Error as error: return error.errno
    raise AssertionError("it does not fail")
$1
E
}
t_all_commands() {
    py '
h = connect("scratch")
h.pwrite(b"a" * 100000, 12345, nbd.CMD_FLAG_FUA)
assert h.pread(100000, 12345) == b"a" * 100000
h.cache(65536, 0); h.flush()
h.zero(50000, 12345); h.trim(4096, 65536); h.zero(4096, 131072, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(50000, 12345) == bytes(50000)
h.shutdown()'
}
t_simple_and_structured_replies() {
    py '
for structured in (False, True):
    h = connect("scratch", request_structured_replies=structured)
    assert h.get_structured_replies_negotiated() == structured
    h.pwrite(b"b" * 70000, 1); assert h.pread(70000, 1) == b"b" * 70000
    h.shutdown()'
}
t_extended_headers() {
    py '
h = nbd.NBD()
if not hasattr(h, "get_extended_headers_negotiated"): sys.exit(77)
h = connect("big", ["base:allocation"])
assert h.get_extended_headers_negotiated()
h.zero(3 << 30, 0); seen = []
h.block_status_64(3 << 30, 0, lambda c, o, e, x: seen.extend(e))
assert sum(length for length, _ in seen) == 3 << 30, seen
h.shutdown()' || { [ $? = 77 ] && skip "this libnbd has no extended headers"; false; }
}
t_contexts_cover_the_same_bytes() {
    py '
for name in ("big", "big@tue", "disk", "disk@tue"):
    h = connect(name, ["base:allocation", "qemu:dirty-bitmap:mon"]); at = 0; changed = 0
    while at < h.get_size():
        told = {}
        def tell(context, offset, entries, error): told[context] = entries
        h.block_status(min(h.get_size() - at, (1 << 32) - 65536), at, tell)
        totals = {c: sum(e[0::2]) for c, e in told.items()}
        assert len(told) == 2 and len(set(totals.values())) == 1, (name, totals)
        changed += sum(l for l, f in zip(*[iter(told["qemu:dirty-bitmap:mon"])] * 2) if f & 1)
        at += next(iter(totals.values()))
    if name == "big@tue": assert changed == 3 * 65536, changed
    h.shutdown()'
}
t_two_writers() {
    py '
a, b = connect("scratch"), connect("scratch")
assert a.can_multi_conn()
a.pwrite(b"c" * 4096, 0); a.flush(); assert b.pread(4096, 0) == b"c" * 4096'
}
t_many_requests_in_flight() {
    py '
h = connect("scratch"); buffers = []
for n in range(500):
    buffer = nbd.Buffer.from_bytearray(bytearray([n % 251]) * 4096); buffers.append(buffer)
    h.aio_pwrite(buffer, n * 8192)
while h.aio_in_flight(): h.poll(-1)
for n in range(500): assert h.aio_command_completed(h.aio_peek_command_completed())
for n in range(500): assert h.pread(4096, n * 8192) == bytes([n % 251]) * 4096'
}
t_errors() {
    py '
h = connect("disk@tue"); h.set_strict_mode(0)
assert fails(h.pwrite, b"x" * 512, 0) == "EPERM"
assert fails(h.zero, 512, 0) == "EPERM"
assert fails(h.pread, 512, 64 << 20) == "EINVAL"
assert len(h.pread(512, 0)) == 512
h = connect("scratch"); h.set_strict_mode(0)
assert fails(h.pwrite, b"x" * 512, (64 << 20) - 511) == "ENOSPC"
assert fails(connect, "none") is not None'
}
run_all
