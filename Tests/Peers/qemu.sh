# qemu-img and qemu-io.
source "${0%/*}/lib.sh"

io() {
    local out
    out=$(qemu-io -f raw "$@" 2>&1) || { echo "$out"; return 1; }
    echo "$out"
    # qemu-io ends with 0 whatever its commands say.
    ! grep -qiE 'failed|error|mismatch|verification' <<<"$out"
}
image() { echo "driver=nbd,server.type=unix,server.path=$SOCKET,export=$1"; }

t_writes_and_reads() {
    io "$(uri scratch)" -c 'write -P 0xab 8192 4096' -c 'read -P 0xab 8192 4096' -c flush
}
t_writes_with_forced_unit_access() {
    io "$(uri scratch)" -c 'write -f -P 1 0 64k' -c 'read -P 1 0 64k'
}
t_writes_that_are_not_aligned() {
    io "$(uri scratch)" -c 'write -P 7 4097 511' -c 'read -P 7 4097 511'
}
t_writes_of_2_MiB() { io "$(uri scratch)" -c 'write -P 9 1M 2M' -c 'read -P 9 1M 2M'; }
t_writes_zeroes() {
    io "$(uri scratch)" -c 'write -P 3 8M 1M' -c 'write -z 8M 1M' -c 'read -P 0 8M 1M'
}
t_writes_zeroes_and_unmaps() {
    io "$(uri scratch)" -c 'write -P 3 8M 1M' -c 'write -z -u 8M 1M' -c 'read -P 0 8M 1M'
}
t_discards() { io "$(uri scratch)" -c 'write -P 3 8M 1M' -c 'discard 8M 1M' -c 'read -P 0 8M 1M'; }
t_writes_beside_each_other() {
    local commands=() n
    for n in $(seq 32); do commands+=(-c "aio_write -P $n ${n}M 64k"); done
    commands+=(-c aio_flush)
    for n in $(seq 32); do commands+=(-c "read -P $n ${n}M 64k"); done
    io "$(uri scratch)" "${commands[@]}"
}
t_data_are_not_obeyed_as_requests() {
    # 4 KiB of WRITE_ZEROES requests for the first MiB, as the data of a write.
    for _ in $(seq 128); do
        printf '\x21\xe4\x1c\x71\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00\x4d'
        printf '\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00'
    done >"$WORK/requests"
    io "$(uri scratch)" -c 'write -P 0x41 0 4096' -c "write -s $WORK/requests 1M 4096"
    io "$(uri scratch)" -c 'read -P 0x41 0 4096'
    nbdcopy "$(uri scratch)" "$WORK/back"
    cmp -n 4096 -i 1048576:0 "$WORK/back" "$WORK/requests"
}
t_refuses_to_write_an_image() { ! io "$(uri disk@tue)" -c 'write 0 4096'; }
t_info() { [[ $(qemu-img info "$(uri disk)") == *'virtual size: 64 MiB'* ]]; }
t_map_of_a_device() { qemu-img map --output=json "$(uri disk)" >"$WORK/map"; }
t_map_of_an_image_covers_it() {
    qemu-img map --output=json "$(uri big@tue)" >"$WORK/map"
    [ "$(total "$WORK/map")" = $((3 << 30)) ]
}
bitmap() {
    qemu-img map --output=json --image-opts \
        "$(image "$1"),x-dirty-bitmap=qemu:dirty-bitmap:mon" >"$WORK/map"
    python3 - "$WORK/map" "$WORK/changed" <<'E'
import json, sys
told = [(e["start"], e["length"]) for e in json.load(open(sys.argv[1])) if not e["data"]]
assert told == [tuple(map(int, l.split())) for l in open(sys.argv[2])], told
E
}
t_dirty_bitmap_of_an_image() { bitmap disk@tue; }
t_dirty_bitmap_of_an_export_with_one_only() { bitmap disk@tue:since=mon; }
t_convert_from_an_image() {
    qemu-img convert -f raw -O qcow2 "$(uri disk@tue)" "$WORK/c.qcow2"
    qemu-img compare -f qcow2 -F raw "$WORK/c.qcow2" "$WORK/tue"
}
t_convert_into_a_device() {
    qemu-img convert -n -f raw -O raw "$WORK/tue" "$(uri scratch)"
    qemu-img compare -f raw -F raw "$(uri scratch)" "$WORK/tue"
}
t_convert_with_many_coroutines() {
    qemu-img convert -n -m 16 -W -f raw -O raw "$(uri disk@tue)" "$(uri scratch)"
    qemu-img compare -f raw -F raw "$(uri scratch)" "$WORK/tue"
}
t_compare() { qemu-img compare -f raw -F raw "$(uri disk@tue)" "$WORK/tue"; }
t_bench_reads() { qemu-img bench -f raw -c 5000 -d 32 -s 4k "$(uri disk)"; }
t_bench_writes() { qemu-img bench -w -f raw -c 5000 -d 32 -s 4k "$(uri scratch)"; }
t_bench_writes_with_flushes() {
    qemu-img bench -w -f raw -c 500 -d 8 -s 64k --flush-interval=10 "$(uri scratch)"
}
t_qcow2_within_a_device() {
    qemu-img create -q -f qcow2 "$(uri scratch)" 32M
    out=$(qemu-io -f qcow2 "$(uri scratch)" -c 'write -P 5 1M 1M' -c 'read -P 5 1M 1M' 2>&1)
    ! grep -qiE 'failed|error|verification' <<<"$out"
    qemu-img check -f qcow2 "$(uri scratch)"
    qemu-img snapshot -c one "$(uri scratch)"
}
run_all
