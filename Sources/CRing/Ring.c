// Opening of rings whose memory the process brings along: liburing can since 2.5, Debian 12 has
// 2.3.
#include "CRing.h"

// linux/io_uring.h of Linux 6.5; both offsets name the address where older headers have a reserve.
enum { setup_no_mmap = 1u << 14 };

static size_t whole_pages(size_t count) { return (count + 4095) & ~(size_t)4095; }

static void *anonymous(size_t count) {
    void *memory =
        mmap(NULL, count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static unsigned *word(void *memory, unsigned offset) {
    return (unsigned *)((char *)memory + offset);
}

// Points liburing's structure at the rings, as the offsets in `params` say (io_uring_setup(2)).
static void point(struct io_uring *ring, const struct io_uring_params *params, void *rings,
                  size_t rings_size, struct io_uring_sqe *entries) {
    struct io_uring_sq *sq = &ring->sq;
    struct io_uring_cq *cq = &ring->cq;
    sq->khead = word(rings, params->sq_off.head);
    sq->ktail = word(rings, params->sq_off.tail);
    sq->kring_mask = word(rings, params->sq_off.ring_mask);
    sq->kring_entries = word(rings, params->sq_off.ring_entries);
    sq->kflags = word(rings, params->sq_off.flags);
    sq->kdropped = word(rings, params->sq_off.dropped);
    sq->array = word(rings, params->sq_off.array);
    sq->sqes = entries;
    sq->ring_mask = *sq->kring_mask;
    sq->ring_entries = *sq->kring_entries;
    sq->ring_ptr = rings;
    sq->ring_sz = rings_size;
    for (unsigned index = 0; index < sq->ring_entries; index++) sq->array[index] = index;
    cq->khead = word(rings, params->cq_off.head);
    cq->ktail = word(rings, params->cq_off.tail);
    cq->kring_mask = word(rings, params->cq_off.ring_mask);
    cq->kring_entries = word(rings, params->cq_off.ring_entries);
    cq->koverflow = word(rings, params->cq_off.overflow);
    cq->kflags = params->cq_off.flags ? word(rings, params->cq_off.flags) : NULL;
    cq->cqes = (struct io_uring_cqe *)word(rings, params->cq_off.cqes);
    cq->ring_mask = *cq->kring_mask;
    cq->ring_entries = *cq->kring_entries;
    cq->ring_ptr = rings;
    cq->ring_sz = rings_size;
}

static int open_in_own_memory(struct io_uring *ring, unsigned entries, unsigned cq_entries,
                              unsigned flags) {
    struct io_uring_params params;
    memset(&params, 0, sizeof params);
    memset(ring, 0, sizeof *ring);
    params.flags = flags | IORING_SETUP_CQSIZE | setup_no_mmap;
    params.cq_entries = cq_entries;
    // Powers of two, as the kernel rounds them; a page is more than the counters at the start take.
    unsigned sq_count = 1, cq_count = 1;
    while (sq_count < entries) sq_count *= 2;
    while (cq_count < cq_entries) cq_count *= 2;
    size_t rings_size = whole_pages(4096 + cq_count * sizeof(struct io_uring_cqe) +
                                    sq_count * sizeof(unsigned));
    size_t entries_size = whole_pages(sq_count * sizeof(struct io_uring_sqe));
    void *rings = anonymous(rings_size);
    struct io_uring_sqe *list = anonymous(entries_size);
    if (!rings || !list) {
        if (rings) munmap(rings, rings_size);
        if (list) munmap(list, entries_size);
        return -ENOMEM;
    }
    params.cq_off.resv2 = (uintptr_t)rings;
    params.sq_off.resv2 = (uintptr_t)list;
    int fd = (int)syscall(SYS_io_uring_setup, entries, &params);
    if (fd < 0) {
        int failure = errno;
        munmap(rings, rings_size);
        munmap(list, entries_size);
        return -failure;
    }
    point(ring, &params, rings, rings_size, list);
    ring->flags = params.flags;
    ring->features = params.features;
    ring->ring_fd = ring->enter_ring_fd = fd;
    return 0;
}

int cl_ring_open(struct io_uring *ring, unsigned entries, unsigned cq_entries, unsigned flags) {
    if (open_in_own_memory(ring, entries, cq_entries, flags) == 0) return 0;
    struct io_uring_params params;
    memset(&params, 0, sizeof params);
    params.flags = flags | IORING_SETUP_CQSIZE;
    params.cq_entries = cq_entries;
    return io_uring_queue_init_params(entries, ring, &params);
}
