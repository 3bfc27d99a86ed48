# ovirt-imageio's client, as backup programs for oVirt use it.
source "${0%/*}/lib.sh"

py() {
    [ -n "${OVIRT_PYTHON:-}" ] || skip "ovirt-imageio could not be installed from PyPI"
    "$OVIRT_PYTHON" - "$SOCKET" "$WORK" <<E
import sys
from ovirt_imageio._internal import nbd
socket, work = sys.argv[1:]
def client(name, dirty=False): return nbd.Client(nbd.UnixAddress(socket), name, dirty=dirty)
expected = open(work + "/tue", "rb").read()
changed = [tuple(map(int, l.split())) for l in open(work + "/changed")]
def told(c):
    found = []; at = 0
    while at < c.export_size:
        extents = c.extents(at, c.export_size - at)
        if not c.dirty_bitmap in extents: raise AssertionError(list(extents))
        for e in extents[c.dirty_bitmap]:
            if e.dirty: found.append((at, e.length))
            at += e.length
    return found
$1
E
}
t_reads_an_image() {
    py '
with client("disk@tue") as c:
    assert c.export_size == len(expected)
    for at in range(0, len(expected), 1 << 20):
        assert c.read(at, 1 << 20) == expected[at:at + (1 << 20)]'
}
t_writes_zeroes_and_flushes() {
    py '
with client("scratch") as c:
    c.write(4096, b"x" * 65536); c.flush(); c.zero(8192, 4096)
    assert c.read(4096, 65536) == b"x" * 4096 + bytes(4096) + b"x" * 57344'
}
t_extents() {
    py '
with client("big@tue") as c:
    e = c.extents(0, 1 << 30)["base:allocation"]; assert sum(x.length for x in e) == 1 << 30, e'
}
t_dirty_extents_of_an_image_with_one_base() {
    py '
with client("disk@tue", dirty=True) as c:
    assert c.dirty_bitmap == "qemu:dirty-bitmap:mon", c.dirty_bitmap
    assert told(c) == changed, told(c)'
}
t_dirty_extents_since_a_named_base() {
    py '
from urllib.parse import urlparse
url = urlparse(f"nbd:unix:{socket}:exportname=disk@tue:since=mon")
for c in (client("disk@tue:since=mon", dirty=True), nbd.open(url, dirty=True)):
    with c:
        assert c.dirty_bitmap == "qemu:dirty-bitmap:mon", c.dirty_bitmap
        assert told(c) == changed, told(c)'
}
run_all
