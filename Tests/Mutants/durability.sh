#!/bin/sh
# Shows that the durability tests can fail: builds the service with its synchronisation taken out,
# once for flushes and once for FUA writes, and expects the power cut test to go red each time.
# Part of `make soak`, for it builds the service twice.
#
#   Tests/Mutants/durability.sh [BUILD_DIRECTORY]
#
# BUILD_DIRECTORY keeps what is built between runs. The tests themselves must have been built in the
# tree (`make build-tests`). Ends with a line "N of N mutants found", status 0 if all were.
set -eu

tree=$(cd "$(dirname "$0")/../.." && pwd)
keep=${1:-}
work=$(mktemp -d /var/tmp/stillpoint-mutant-XXXXXX)
trap 'rm -rf "$work"' EXIT
trap 'exit 143' INT TERM
build=${keep:-$work/build}
[ "$(id -u)" = 0 ] || { echo "skipped: the power cut test needs root"; exit 0; }

total=0
found=0

# try NAME SUBSTITUTION: one mutant of Sources/Devices/Origin/Origin.swift.
try() {
    total=$((total + 1))
    rm -rf "$work/tree"
    mkdir "$work/tree"
    (cd "$tree" && tar cf - Package.swift Package.resolved Sources Tests 2>/dev/null || true) |
        tar xf - -C "$work/tree"
    file=$work/tree/Sources/Devices/Origin/Origin.swift
    cp "$file" "$work/before"
    perl -0pi -e "$2" "$file"
    if cmp -s "$file" "$work/before"; then
        echo "mutant $1: the place to change is gone; adapt Tests/Mutants/durability.sh"
        return
    fi
    echo "mutant $1: building"
    if ! swift build --package-path "$work/tree" --scratch-path "$build" -c release \
        --product stillpoint >"$work/log" 2>&1; then
        tail -20 "$work/log"
        echo "mutant $1: does not build"
        return
    fi
    if STILLPOINT_BINARY=$(swift build --package-path "$work/tree" --scratch-path "$build" \
        -c release --show-bin-path)/stillpoint \
        swift test --package-path "$tree" -c release --disable-testable-imports --skip-build --filter 'survives twenty power cuts' \
        >"$work/log" 2>&1; then
        echo "mutant $1: NOT FOUND"
    elif grep -q 'cut [0-9]*: [0-9]* lost' "$work/log"; then
        grep -m 1 'cut [0-9]*: [0-9]* lost' "$work/log" | cut -c1-100
        echo "mutant $1: found"
        found=$((found + 1))
    else
        tail -20 "$work/log"
        echo "mutant $1: failed for another reason"
    fi
}

try skip-sync 's/private func startSynchronizing\(\) \{/$&\n        synchronizeCompleted(0)\n    }\n\n    private func neverCalled() {/'
try skip-sync-of-fua 's/if wantsStable, !isStable \{/if wantsStable, !isStable, index.rawValue == .max {/'

echo "$found of $total mutants found"
[ "$found" = "$total" ]
