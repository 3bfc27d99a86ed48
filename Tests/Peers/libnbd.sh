# libnbd's programs: nbdinfo, nbdcopy, nbdfuse, nbdsh.
source "${0%/*}/lib.sh"

t_info_lists_the_exports() {
    nbdinfo --list --json "$(uri '')" >"$WORK/list"
    python3 - "$WORK/list" <<'E'
import json, sys
names = {e["export-name"] for e in json.load(open(sys.argv[1]))["exports"]}
want = {"scratch"} | {n + s for n in ("disk", "big", "small") for s in ("", "@tue", "@tue:rw")}
assert names == want, names
E
}
t_info_size() { [ "$(nbdinfo --size "$(uri disk)")" = 67108864 ]; }
t_info_of_an_image() { nbdinfo --is readonly "$(uri disk@tue)"; }
t_info_of_a_device() { ! nbdinfo --is readonly "$(uri disk)"; }
t_info_abilities() {
    for ability in cache df fast-zero flush fua multi-conn trim zero; do
        nbdinfo --can "$ability" "$(uri disk)" || { echo "cannot $ability"; false; }
    done
}
t_info_map_of_an_image_covers_it() {
    nbdinfo --json --map "$(uri big@tue)" >"$WORK/map"
    [ "$(total "$WORK/map")" = $((3 << 30)) ]
}
bitmap() {
    nbdinfo --json --map=qemu:dirty-bitmap:mon "$(uri "$1")" >"$WORK/map"
    python3 - "$WORK/map" "$WORK/changed" <<'E'
import json, sys
told = [(e["offset"], e["length"]) for e in json.load(open(sys.argv[1])) if e["type"] & 1]
assert told == [tuple(map(int, l.split())) for l in open(sys.argv[2])], told
E
}
t_info_dirty_bitmap() { bitmap disk@tue; }
t_info_dirty_bitmap_of_an_export_with_one_only() { bitmap disk@tue:since=mon; }
t_info_totals() { [ -n "$(nbdinfo --map --totals "$(uri disk@tue)")" ]; }
t_copy_from_an_image() {
    nbdcopy "$(uri disk@tue)" "$WORK/copy"
    cmp "$WORK/copy" "$WORK/tue"
}
t_copy_over_one_connection_without_extents() {
    rm -f "$WORK/copy"
    nbdcopy --no-extents --connections=1 --requests=4 "$(uri disk@tue)" "$WORK/copy"
    cmp "$WORK/copy" "$WORK/tue"
}
t_copy_synchronously() {
    rm -f "$WORK/copy"
    nbdcopy --synchronous "$(uri disk@tue)" "$WORK/copy"
    cmp "$WORK/copy" "$WORK/tue"
}
t_copy_into_a_device() {
    nbdcopy --flush "$WORK/tue" "$(uri scratch)"
    nbdcopy "$(uri scratch)" "$WORK/back"
    cmp "$WORK/back" "$WORK/tue"
}
t_copy_between_exports_in_large_requests() {
    nbdcopy --request-size=1048576 "$(uri disk@tue)" "$(uri scratch)"
    nbdcopy "$(uri scratch)" - | cmp - "$WORK/tue"
}
t_copy_allocated() {
    nbdcopy --allocated "$(uri disk@tue)" "$(uri scratch)"
    nbdcopy "$(uri scratch)" - | cmp - "$WORK/tue"
}
t_fuse() {
    need nbdfuse
    need fusermount3
    [ -c /dev/fuse ] || skip "needs /dev/fuse"
    mkdir -p "$WORK/mnt"
    nbdfuse "$WORK/mnt" "$(uri scratch)" &
    for _ in $(seq 100); do [ -e "$WORK/mnt/nbd" ] && break; sleep 0.1; done
    [ -e "$WORK/mnt/nbd" ] || skip "cannot mount here"
    dd if="$WORK/tue" of="$WORK/mnt/nbd" bs=1M conv=notrunc,fsync
    cmp "$WORK/tue" "$WORK/mnt/nbd"
    fusermount3 -u "$WORK/mnt"
    wait
    nbdcopy "$(uri scratch)" - | cmp - "$WORK/tue"
}
run_all
