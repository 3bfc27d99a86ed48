// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Marks what is written to block devices in use: programs on tracepoints of the kernel's block layer
// set bits in memory that the service has mapped. Nothing is queued, so nothing can be dropped.
//
//   slots:    disk sequence number and shape of a bitmap, found by a few probes from the number on
//   devices:  slot -> bitmap of its disk, an array of 64-bit words
//   bitmap:   | 512 words of header | one bit for each 2^shift sectors ... |
//   in_flight: bio of a mapped device -> what it writes, since it is moved on and trimmed under way
//
// Invariants
// - A request marks when it is issued and when it completes, before its submitter is told: whoever
//   reads a block after taking its mark reads what was written.
// - Of a completion there are three instances: task, softirq and hardirq nest three deep, and the
//   kernel skips an instance that is entered again on the same processor.
// - What cannot be marked is counted in the header; user space begins a new generation then.
// - A slot does not change as long as it names a disk: a bitmap of another shape gets another slot.
//   So what is read of one slot, by whatever instructions, belongs together.
//
// The structures name only the fields that are used; the kernel's own layout is put in at load.

#include <linux/types.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include <linux/bpf.h>

#include "../include/CLiveTrackingLayout.h"

char program_license[] SEC("license") = "Dual BSD/GPL";

#define KERNEL __attribute__((preserve_access_index))

struct gendisk { __u64 diskseq; } KERNEL;
struct block_device { struct gendisk *bd_disk; } KERNEL;
struct request_queue { struct gendisk *disk; } KERNEL;
struct bvec_iter { __u64 bi_sector; __u32 bi_size; } KERNEL;
struct bio {
    struct bio *bi_next;
    struct block_device *bi_bdev;
    __u32 bi_opf;
    struct bvec_iter bi_iter;
} KERNEL;
struct request {
    struct request_queue *q;
    __u32 cmd_flags;
    __u32 __data_len;
    __u64 __sector;
    struct bio *bio;
} KERNEL;

enum {
    OPERATION_MASK = 0xff,
    OPERATION_DISCARD = 3,
    OPERATION_DRIVER_OUT = 35,
    CHAIN_MAX = 4096,
};

struct bitmap {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u64);
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
    __uint(max_entries, CLT_SLOT_COUNT);
    __type(key, __u32);
    __array(values, struct bitmap);
} devices SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, CLT_SLOT_COUNT);
    __type(key, __u32);
    __type(value, struct clt_slot);
} slots SEC(".maps");

struct flight {
    __u64 sector;
    __u64 byte_count;
    __u64 disk;
};

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, CLT_FLIGHT_COUNT_MAX);
    __type(key, __u64);
    __type(value, struct flight);
} in_flight SEC(".maps");

struct clt_variables variables;

struct tracked {
    void *map;
    __u64 shape;
};

// The bitmap of a disk, if it is tracked. Lookups in arrays become plain loads; a hash of maps would
// be a call, for each of the four runs that see a write.
static __always_inline bool find(__u64 disk, struct tracked *tracked)
{
    // Spares other disks the probes.
    if (disk == 0 || (variables.wanted >> (disk & 63) & 1) == 0)
        return false;
    for (__u32 probe = 0; probe < CLT_PROBE_COUNT; probe++) {
        __u32 index = (disk + probe) & (CLT_SLOT_COUNT - 1);
        struct clt_slot *slot = bpf_map_lookup_elem(&slots, &index);
        if (!slot || *(volatile __u64 *)&slot->disk != disk)
            continue;
        tracked->shape = slot->shape;
        tracked->map = bpf_map_lookup_elem(&devices, &index);
        return tracked->map != 0;
    }
    return false;
}

static __always_inline void count(void *map, __u32 counter)
{
    __u64 *value = bpf_map_lookup_elem(map, &counter);
    if (value)
        __sync_fetch_and_add(value, 1);
}

static __always_inline void set(void *map, __u64 word, __u64 bits, bool always)
{
    __u32 index = CLT_HEADER_WORDS + word;
    __u64 *value = bpf_map_lookup_elem(map, &index);
    if (!value)
        return;
    // Sparing the locked instruction is right where loads are not reordered.
    if (always || (*(volatile __u64 *)value & bits) != bits)
        __sync_fetch_and_or(value, bits);
}

struct span {
    void *map;
    __u64 first;
};

static long fill(__u32 step, struct span *span)
{
    __u32 index = CLT_HEADER_WORDS + span->first + step;
    __u64 *value = bpf_map_lookup_elem(span->map, &index);
    if (!value)
        return 1;
    *(volatile __u64 *)value = ~0ULL;
    return 0;
}

static __always_inline void mark(struct tracked *tracked, __u64 sector, __u64 byte_count)
{
    if (byte_count == 0)
        return;
    void *map = tracked->map;
    __u64 sector_count = tracked->shape >> CLT_SHAPE_SECTORS_SHIFT;
    bool always = (tracked->shape & CLT_SHAPE_ALWAYS) != 0;
    __u32 shift = tracked->shape & CLT_SHAPE_SHIFT_MASK;
    __u64 end = sector + ((byte_count + 511) >> 9);
    if (end > sector_count) {
        count(map, CLT_WORD_BEYOND);
        end = sector_count;
    }
    if (sector >= end)
        return;
    __u64 first = sector >> shift, last = (end - 1) >> shift;
    __u64 first_word = first >> 6, last_word = last >> 6;
    __u64 head = ~0ULL << (first & 63), tail = ~0ULL >> (63 - (last & 63));
    if (first_word == last_word) {
        set(map, first_word, head & tail, always);
        return;
    }
    set(map, first_word, head, always);
    if (last_word - first_word > 1) {
        struct span span = {.map = map, .first = first_word + 1};
        bpf_loop(last_word - first_word - 1, fill, &span, 0);
    }
    set(map, last_word, tail, always);
}

// -- disks with requests

struct chain {
    struct tracked tracked;
    struct bio *bio;
    bool failed;
};

static long mark_link(__u32 step, struct chain *chain)
{
    struct bio *bio = chain->bio;
    __u64 sector = 0;
    __u32 byte_count = 0;
    struct bio *next = 0;
    if (!bio)
        return 1;
    if (bpf_core_read(&sector, sizeof(sector), &bio->bi_iter.bi_sector) != 0 ||
        bpf_core_read(&byte_count, sizeof(byte_count), &bio->bi_iter.bi_size) != 0 ||
        bpf_core_read(&next, sizeof(next), &bio->bi_next) != 0) {
        chain->failed = true;
        return 1;
    }
    mark(&chain->tracked, sector, byte_count);
    chain->bio = next;
    return 0;
}

static __always_inline int request_seen(struct request *request, __u32 byte_count)
{
    __u32 operation = request->cmd_flags & OPERATION_MASK;
    // Odd operations change data, in all kernels.
    if ((operation & 1) == 0)
        return 0;
    struct tracked tracked;
    if (!find(request->q->disk->diskseq, &tracked))
        return 0;
    if (operation == OPERATION_DRIVER_OUT) {
        count(tracked.map, CLT_WORD_PASSTHROUGH);
        return 0;
    }
    if (operation == OPERATION_DISCARD && request->bio) {
        // Discards that were merged need not lie one behind the other.
        struct chain chain = {.tracked = tracked, .bio = request->bio};
        bpf_loop(CHAIN_MAX, mark_link, &chain, 0);
        if (chain.bio || chain.failed)
            count(tracked.map, CLT_WORD_CHAIN);
        return 0;
    }
    mark(&tracked, request->__sector, byte_count);
    return 0;
}

SEC("tp_btf/block_rq_issue")
int BPF_PROG(request_issue, struct request *request)
{
    return request_seen(request, request->__data_len);
}

#define REQUEST_COMPLETE(name)                                                           \
    SEC("tp_btf/block_rq_complete")                                                      \
    int BPF_PROG(name, struct request *request, int error, unsigned int byte_count)      \
    {                                                                                    \
        return request_seen(request, byte_count);                                        \
    }
REQUEST_COMPLETE(request_complete_a)
REQUEST_COMPLETE(request_complete_b)
REQUEST_COMPLETE(request_complete_c)

// -- mapped devices, which pass bios on

static __always_inline int bio_seen(struct bio *bio)
{
    if ((bio->bi_opf & 1) == 0)
        return 0;
    __u64 disk = bio->bi_bdev->bd_disk->diskseq;
    struct tracked tracked;
    if (!find(disk, &tracked) || (tracked.shape & CLT_SHAPE_MAPPED) == 0)
        return 0;
    struct flight flight = {
        .sector = bio->bi_iter.bi_sector, .byte_count = bio->bi_iter.bi_size, .disk = disk};
    if (flight.byte_count == 0)
        return 0;
    mark(&tracked, flight.sector, flight.byte_count);
    __u64 key = (__u64)bio;
    int failure = bpf_map_update_elem(&in_flight, &key, &flight, BPF_NOEXIST);
    if (failure == 0)
        return 0;
    struct flight *known = bpf_map_lookup_elem(&in_flight, &key);
    if (!known) {
        count(tracked.map, CLT_WORD_FULL);
    } else if (known->sector != flight.sector || known->byte_count != flight.byte_count ||
               known->disk != disk) {
        count(tracked.map, CLT_WORD_TWICE);
    }
    return 0;
}

SEC("tp_btf/block_bio_queue")
int BPF_PROG(bio_queue, struct bio *bio)
{
    return bio_seen(bio);
}

SEC("tp_btf/block_bio_remap")
int BPF_PROG(bio_remap, struct bio *bio)
{
    return bio_seen(bio);
}

static __always_inline int bio_completed(struct bio *bio)
{
    if ((bio->bi_opf & 1) == 0)
        return 0;
    __u64 key = (__u64)bio;
    struct flight *flight = bpf_map_lookup_elem(&in_flight, &key);
    if (!flight)
        return 0;
    struct tracked tracked;
    if (find(flight->disk, &tracked))
        mark(&tracked, flight->sector, flight->byte_count);
    bpf_map_delete_elem(&in_flight, &key);
    return 0;
}

#define BIO_COMPLETE(name)                                                  \
    SEC("tp_btf/block_bio_complete")                                        \
    int BPF_PROG(name, struct request_queue *queue, struct bio *bio)        \
    {                                                                       \
        return bio_completed(bio);                                          \
    }
BIO_COMPLETE(bio_complete_a)
BIO_COMPLETE(bio_complete_b)
BIO_COMPLETE(bio_complete_c)
