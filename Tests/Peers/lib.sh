# Sourced by the suites: clients of others, run against our server. A suite is a file of functions
# whose names begin with t_; each runs in a shell of its own that ends at the first failing command.
#
#   SOCKET     the server's socket
#   WORK       a directory for files
#   WORK/tue   what export disk@tue holds; WORK/changed: what changed in it since mon, OFFSET LENGTH
#
# Exports: disk (64 MiB), disk@tue (its image), scratch (64 MiB, empty, to be written), big and
# big@tue (3 GiB, nearly all of it holes, changed since mon at 0, 1 GiB and 2 GiB).
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

# Runs all cases and prints a line for each: its name and pass, fail or skip, with the reason.
run_all() {
    local name status
    for name in $(compgen -A function t_); do
        (
            set -e -o pipefail
            "$name"
        ) >"$WORK/log" 2>&1 </dev/null
        status=$?
        case $status in
            0) echo "pass ${name#t_}" ;;
            77) echo "skip ${name#t_} $(cat "$WORK/reason")" ;;
            *) echo "fail ${name#t_} status $status: $(tail -c 300 "$WORK/log" | tr '\n' ' ')" ;;
        esac
    done
}
