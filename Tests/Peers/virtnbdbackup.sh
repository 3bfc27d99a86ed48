# virtnbdbackup's way to find what must be saved: allocation and bitmap are read together, and what
# both lists call data is taken.
source "${0%/*}/lib.sh"

py() {
    python3 -c 'import libvirtnbdbackup.nbdcli' 2>/dev/null || skip "needs virtnbdbackup"
    python3 - "$SOCKET" "$WORK" <<E
import sys, types
from libvirtnbdbackup.nbdcli import client
from libvirtnbdbackup.extenthandler import ExtentHandler
socket, work = sys.argv[1:]
def found(name, context, sparse=True):
    kind = types.SimpleNamespace(
        exportName=name, metaContext=context, uri=f"nbd+unix:///{name}?socket={socket}", tls=False,
        backupSocket=socket)
    connection = client(kind, not sparse).connect()
    extents = ExtentHandler(connection, kind, not sparse).queryBlockStatus()
    connection.disconnect()
    return [(e.offset, e.length) for e in extents if e.data and (sparse or e.context == context)]
$1
E
}
t_full_backup_of_an_image() {
    py '
data = open(work + "/tue", "rb").read(); got = bytearray(len(data))
for offset, length in found("disk@tue", ""):
    got[offset:offset + length] = data[offset:offset + length]
assert bytes(got) == data'
}
t_changed_blocks_of_an_image() {
    py '
want = [tuple(map(int, l.split())) for l in open(work + "/changed")]
assert found("disk@tue", "qemu:dirty-bitmap:mon") == want'
}
t_changed_blocks_without_looking_for_holes() {
    py '
want = [tuple(map(int, l.split())) for l in open(work + "/changed")]
assert found("disk@tue", "qemu:dirty-bitmap:mon", False) == want'
}
t_changed_blocks_of_a_large_image() {
    py '
for sparse in (True, False):
    got = found("big@tue", "qemu:dirty-bitmap:mon", sparse)
    assert got == [(n << 30, 65536) for n in range(3)], got'
}
run_all
