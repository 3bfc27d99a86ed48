# Sourced by the suites: clients of others, run against our server. A suite is a file of functions
# whose names begin with t_; each runs in a shell of its own that ends at the first failing command.
# A suite of others' tests calls `report` for each of them instead.
#
#   SOCKET     the server's socket
#   PORT       its TCP port on 127.0.0.1, with TLS for those who ask
#   PKI        the authority's, the server's and a client's certificates and keys, as QEMU names them
#   WORK       a directory for files
#   WORK/tue   what export disk@tue holds; WORK/changed: what changed in it since mon, OFFSET LENGTH
#   WORK/small.tue   what export small@tue holds
#
# Exports: disk (64 MiB), disk@tue (its image), scratch (64 MiB, empty, to be written), big and
# big@tue (3 GiB, nearly all of it holes, changed since mon at 0, 1 GiB and 2 GiB), small (4 MiB,
# written while its snapshot is held) and small@tue.
set -u

uri() { echo "nbd+unix:///$1?socket=$SOCKET"; }

# Ends a case that cannot run here.
skip() {
    echo "$*" >"$WORK/reason"
    exit 77
}

# total FILE: the bytes that a map in JSON describes.
total() { python3 -c 'import json,sys; print(sum(e["length"] for e in json.load(sys.stdin)))' <"$1"; }

need() { command -v "$1" >/dev/null || skip "needs $1"; }

# report NAME STATUS: prints the line of a case that ended so and left its output in WORK/log and,
# with status 77, the reason in WORK/reason. A failure that `explain NAME` of the suite knows, by
# printing why, is known.
report() {
    local why=""
    case $2 in
        0) echo "pass $1" ;;
        77) echo "skip $1 $(head -1 "$WORK/reason")" ;;
        *)
            ! declare -F explain >/dev/null || why=$(explain "$1")
            if [[ -n $why ]]; then
                echo "known $1 $why"
            else
                echo "fail $1 status $2: $(tail -c 300 "$WORK/log" | tr '\n' ' ')"
            fi
            ;;
    esac
}

# Runs all cases and prints a line for each: pass, fail, known or skip, its name and the reason.
run_all() {
    local name
    for name in $(compgen -A function t_); do
        (
            set -e -o pipefail
            "$name"
        ) >"$WORK/log" 2>&1 </dev/null
        report "${name#t_}" $?
    done
}

# fetch_source PACKAGE BUILD_PACKAGES...: a source package of this Debian into /src/PACKAGE, once,
# and what it needs to be built. The Debian is one of our own, in a directory.
fetch_source() {
    local package=$1 before
    shift
    export DEBIAN_FRONTEND=noninteractive
    [[ ! -d /src/$package ]] || return 0
    mkdir -p "/src/$package.new" && cd "/src/$package.new" || return 1
    grep -q ^deb-src /etc/apt/sources.list ||
        sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >>/etc/apt/sources.list
    apt-get update && apt-get install -y --no-install-recommends dpkg-dev "$@" &&
        apt-get source "$package" || return 1
    before=$(echo "$package"-*/)
    mv "$before" "/src/$package" && rm -r "/src/$package.new"
}
