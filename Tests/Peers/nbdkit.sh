# nbdkit as a client: its nbd plugin, with filters on top.
source "${0%/*}/lib.sh"

# shellcheck disable=SC2016 # nbdkit expands $uri
t_hands_an_image_on() {
    need nbdkit
    nbdkit -r nbd "$(uri disk@tue)" --run "nbdcopy \"\$uri\" - | cmp - '$WORK/tue'"
}
t_writes_through() {
    need nbdkit
    nbdkit nbd "$(uri scratch)" \
        --run "nbdcopy '$WORK/tue' \"\$uri\" && nbdcopy \"\$uri\" - | cmp - '$WORK/tue'"
}
t_cow_filter() {
    need nbdkit
    nbdkit --filter=cow nbd "$(uri disk@tue)" --run "nbdcopy '$WORK/tue' \"\$uri\""
}
t_shares_one_connection() {
    need nbdkit
    nbdkit nbd "$(uri disk@tue)" shared=true --run "nbdcopy \"\$uri\" - | cmp - '$WORK/tue'"
}
t_blocksize_filter() {
    need nbdkit
    nbdkit --filter=blocksize nbd "$(uri scratch)" minblock=4096 maxdata=64k \
        --run "nbdcopy '$WORK/tue' \"\$uri\" && nbdcopy \"\$uri\" - | cmp - '$WORK/tue'"
}
run_all
