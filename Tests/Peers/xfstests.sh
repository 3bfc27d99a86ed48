#!/usr/bin/env bash
# xfstests on two block devices of ours, or on two plain loop devices for comparison.
#
#   xfstests.sh FILESYSTEM loop|served|snapshots
#
#   ROOT      a Debian with what xfstests needs, and xfstests itself in /src/xfstests
#   PROGRAM   our program
#   PLACE     a directory for two sparse files of 8 GiB and the results
#   XFSTESTS_MINUTES  when to stop (default: 25); what was not reached is not run
#   XFSTESTS_EVERY    run each Nth of the tests that are quick, discard, shut a filesystem down or are
#                     about its log (default: 1, all of them)
#
# "snapshots" makes a snapshot of both devices every 2 s, reads the beginning of both images at its
# cut and again before it is destroyed, and compares. Failures of "loop" are remembered in PLACE and
# explain those of the others: run it first.
#
# The tests see a root and a /dev of their own, in which these two disks are the only ones, in a
# mount and a process namespace of their own. The service runs in these namespaces too.
set -u

filesystem=$1 mode=$2
label=$filesystem-$mode
disk_size=$((8 << 30))

if [[ ${APART:-} != yes ]]; then
    APART=yes exec unshare --mount --pid --fork --kill-child=TERM --mount-proc \
        --propagation private "$0" "$@"
fi

run=$PLACE/$label
rm -rf --one-file-system "$run"
mkdir -p "$run/results" "$PLACE"
control=$run/control.sock
nodes=()

stop() {
    local node
    [[ ! -e $run/results/pid ]] || kill "$(<"$run/results/pid")"
    [[ -z ${tests:-} ]] || wait "$tests"
    [[ -z ${taker:-} ]] || { touch "$run/enough"; wait "$taker"; }
    umount "$ROOT/mnt/test" "$ROOT/mnt/scratch" 2>/dev/null
    for node in "${nodes[@]}"; do
        if [[ $mode == loop ]]; then losetup -d "$node"; else sp block detach "$node"; fi
    done
    [[ -z ${service:-} ]] || { kill "$service" && wait "$service"; }
    rm -f "$run"/*.img
} >>"$run/stop.log" 2>&1
trap stop EXIT
trap 'exit 1' INT TERM

sp() { "$PROGRAM" "$@" --control "$control"; }

# The disks

attach() {
    local name=$1 node
    if [[ $mode == loop ]]; then
        node=$(losetup --find --show --direct-io=on "$run/$name.img") || return 1
    else
        node=$(sp block attach "$name" --temporary --json |
            sed -n 's/.*"node" *: *"\([^"]*\)".*/\1/p' | tr -d '\\') || return 1
    fi
    nodes+=("$node")
    # A plain loop device says that it rotates, and ours what their origin says. ext4 places files by it
    # (generic/223).
    echo 0 >"/sys/block/${node##*/}/queue/rotational"
    # Twice, because the tests erase what they are given.
    local backed size
    backed=$(losetup --noheadings --output BACK-FILE "$node")
    size=$(blockdev --getsize64 "$node")
    [[ $backed == "$run"/* && $size == "$disk_size" ]] ||
        { echo "fail $name: $node is backed by $backed and has $size bytes"; return 1; }
    ! grep -q "^$node " /proc/self/mounts || { echo "fail $name: $node is mounted"; return 1; }
    cp -a "$node" "$ROOT/dev/"
}

start() {
    local name
    for name in test scratch; do truncate -s "$disk_size" "$run/$name.img"; done
    if [[ $mode != loop ]]; then
        STILLPOINT_BLOCK_LINKS=$run/links "$PROGRAM" serve --control "$control" \
            --state-dir "$run/state" --runtime-dir "$run" --attach "test=$run/test.img" \
            --attach "scratch=$run/scratch.img" >"$run/out" 2>"$PLACE/service-$label.log" &
        service=$!
        for _ in $(seq 300); do
            grep -q ready "$run/out" && break
            kill -0 "$service" || return 1
            sleep 0.1
        done
    fi
    for name in test scratch; do attach "$name" || return 1; done
}

# The snapshots

# beginning DEVICE@SNAPSHOT: a sum of its first bytes; no two are equal when it cannot be read.
beginning() {
    local head=$run/beginning
    nbdcopy "nbd+unix:///$1?socket=$run/nbd.sock" - 2>/dev/null | head -c 32M >"$head"
    if [[ $(stat -c %s "$head") == $((32 << 20)) ]]; then
        sha256sum <"$head"
    else
        echo "unreadable $SRANDOM"
    fi
}

take_snapshots() {
    local number=0 taken=0 status former="" device
    declare -A before
    while true; do
        if [[ -n $former ]]; then
            for device in test scratch; do
                [[ $(beginning "$device@$former") == "${before[$device]}" ]] ||
                    echo "fail snapshot $former: its image of $device changed or fails"
            done
            sp snapshot destroy "$former" >/dev/null || echo "fail snapshot $former: destroy"
        fi
        [[ ! -e $run/enough ]] || break
        former=s$((++number))
        # Without freezing: the tests freeze, shut down and unmount at their own times.
        status=0
        sp snapshot create --device test --device scratch --name "$former" --freeze none \
            --limit 4G >/dev/null || status=$?
        if ((status == 0)); then
            taken=$((taken + 1))
            for device in test scratch; do before[$device]=$(beginning "$device@$former"); done
        else
            # 4: writers would have waited too long for a busy disk; nothing was changed.
            ((status == 4)) || echo "fail snapshot $former: create"
            former=""
        fi
        sleep 2
    done
    ((taken > 0)) || echo "fail snapshots: not one could be taken"
    echo "pass all $taken of $number snapshots were taken and destroyed, and their images compared"
} >"$run/snapshots" 2>"$run/snapshots.log"

# The tests

prepare_root() {
    mount -t proc proc "$ROOT/proc" && mount -t sysfs sys "$ROOT/sys" &&
        mount -o remount,bind,ro "$ROOT/sys" && mount --bind /sys/fs "$ROOT/sys/fs" &&
        mkdir -p "$ROOT/mnt/test" "$ROOT/mnt/scratch" "$ROOT/results" &&
        mount --bind "$run/results" "$ROOT/results" && mount -t tmpfs tmp "$ROOT/tmp" &&
        mount -t tmpfs dev "$ROOT/dev" && mkdir "$ROOT/dev/shm" &&
        cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty "$ROOT/dev/" &&
        ln -s /proc/self/fd "$ROOT/dev/fd" && ln -s fd/0 "$ROOT/dev/stdin" &&
        ln -s fd/1 "$ROOT/dev/stdout" && ln -s fd/2 "$ROOT/dev/stderr"
}

# in_root COMMAND
in_root() {
    chroot "$ROOT" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C TERM=dumb \
        FSTYP="$filesystem" TEST_DEV="${nodes[0]}" SCRATCH_DEV="${nodes[1]}" TEST_DIR=/mnt/test \
        SCRATCH_MNT=/mnt/scratch RESULT_BASE=/results bash -c "cd /src/xfstests && $1"
}

# Tests which want loop devices or the device mapper are left out: there are none in their /dev.
selection() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    in_root './check -n -g quick,trim,shutdown,log 2>/dev/null |
        grep -oE "^(generic|ext4|xfs|shared)/[0-9]+" | sort -u | while read -r test; do
            grep -qE "_require_loop|_create_loop_device|_require_dm_|_require_log_writes" \
                "tests/$test" || echo "$test"
        done' | awk "NR % ${XFSTESTS_EVERY:-1} == 0" >"$run/results/list"
}

report() {
    local log=$run/results/check.log known=$PLACE/$filesystem-loop.failed test last reason
    [[ -e $log ]] || { echo "fail all the tests did not run"; tail -3 "$run/output" >&2; return; }
    words() { sed -n "s/^$1: //p" "$log" | tr ' ' '\n' | grep / | sort -u; }
    words Failures >"$run/failed"
    words 'Not run' >"$run/unsuitable"
    words Ran | sort -u - "$run/unsuitable" "$run/failed" >"$run/reached"
    # The one that was interrupted has no result.
    if grep -q '^Interrupted' "$log"; then
        last=$(sed -n 's/^Ran: .* //p' "$log" | tail -1)
        sed -i "\\#^$last\$#d" "$run/reached" "$run/failed"
    fi
    comm -13 "$run/reached" "$run/results/list" | while read -r test; do
        echo "skip $test not reached in ${XFSTESTS_MINUTES:-25} minutes"
    done
    while read -r test; do
        reason=$(head -c 200 "$run/results/$test.notrun" 2>/dev/null | head -1)
        echo "skip $test ${reason:-not suitable}"
    done <"$run/unsuitable"
    comm -23 "$run/reached" <(sort -u "$run/failed" "$run/unsuitable") | sed 's/^/pass /'
    [[ $mode != loop ]] || cp "$run/failed" "$known"
    while read -r test; do
        if [[ $mode == loop ]]; then
            echo "known $test fails without us"
        elif grep -qx "$test" "$known" 2>/dev/null; then
            echo "known $test fails on a plain loop device too"
        else
            echo "fail $test see $run/results/$test.out.bad"
        fi
    done <"$run/failed"
    [[ $mode != snapshots ]] || grep '^fail' "$run/snapshots" || cat "$run/snapshots"
}

prepare_root || { echo "fail all the root could not be prepared"; exit 1; }
start || exit 1
in_root "mkfs.$filesystem -q \"\$TEST_DEV\"" >"$run/output" 2>&1
selection
if [[ $mode == snapshots ]]; then
    take_snapshots &
    taker=$!
fi
in_root "echo \$\$ >/results/pid
    exec timeout --kill-after=60 ${XFSTESTS_MINUTES:-25}m ./check \$(cat /results/list)" \
    >>"$run/output" 2>&1 </dev/null &
tests=$!
# In the background, so that the end is clean when it is asked for earlier.
wait "$tests"
rm "$run/results/pid"
tests=""
if [[ $mode == snapshots ]]; then
    touch "$run/enough"
    wait "$taker"
    taker=""
fi
report
