// io_uring for Swift: inline wrappers for liburing's macros and inline functions, and constants made
// by macros. A wrapper returns what the kernel returned.
#ifndef STILLPOINT_CRING_H
#define STILLPOINT_CRING_H

// First, so that liburing.h cannot choose other feature macros than Swift's Glibc module has: the
// two would disagree about the types they share.
#include "CLinux.h"

#include <liburing.h>

enum {
    cl_setup_cqsize = IORING_SETUP_CQSIZE,
    cl_setup_submit_all = IORING_SETUP_SUBMIT_ALL,
    cl_setup_coop_taskrun = IORING_SETUP_COOP_TASKRUN,
    cl_setup_single_issuer = IORING_SETUP_SINGLE_ISSUER,
    cl_setup_defer_taskrun = IORING_SETUP_DEFER_TASKRUN,
    cl_setup_taskrun_flag = IORING_SETUP_TASKRUN_FLAG,
    cl_cqe_f_more = IORING_CQE_F_MORE,
    cl_cqe_f_buffer = IORING_CQE_F_BUFFER,
    cl_cqe_buffer_shift = IORING_CQE_BUFFER_SHIFT,
    cl_feat_ext_arg = IORING_FEAT_EXT_ARG,
    cl_feat_nodrop = IORING_FEAT_NODROP,
};

// Opens a ring, in memory of the process's own where the kernel offers that (Linux 6.5): the
// mapping of a ring's memory holds the ring, and what it polls and reads, for as long as any thread
// of the process lives. A thread that waits for I/O which the ring serves would then outlive a
// kill.
int cl_ring_open(struct io_uring *ring, unsigned entries, unsigned cq_entries, unsigned flags);

static inline unsigned cl_ring_features(const struct io_uring *ring) { return ring->features; }

static inline unsigned cl_ring_unsubmitted(const struct io_uring *ring) {
    return io_uring_sq_ready(ring);
}

// Submits, and waits for at most one completion until `timeout_ns` (negative: forever) when
// `wait` is set; runs deferred task work in either case. One system call.
static inline int cl_ring_turn(struct io_uring *ring, bool wait, int64_t timeout_ns) {
    if (!wait) return io_uring_submit_and_get_events(ring);
    if (timeout_ns < 0) return io_uring_submit_and_wait(ring, 1);
    struct __kernel_timespec limit = {.tv_sec = timeout_ns / 1000000000,
                                      .tv_nsec = timeout_ns % 1000000000};
    struct io_uring_cqe *cqe;
    return io_uring_submit_and_wait_timeout(ring, &cqe, 1, &limit, NULL);
}

// True when completions wait, or task work that will make some. Both are seen in the ring's memory:
// no system call.
static inline bool cl_ring_has_news(const struct io_uring *ring) {
    if (io_uring_cq_ready(ring) > 0) return true;
    return __atomic_load_n(ring->sq.kflags, __ATOMIC_RELAXED) &
           (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

static inline unsigned cl_ring_peek(struct io_uring *ring, struct io_uring_cqe **cqes,
                                    unsigned count) {
    return io_uring_peek_batch_cqe(ring, cqes, count);
}

static inline void cl_ring_advance(struct io_uring *ring, unsigned count) {
    io_uring_cq_advance(ring, count);
}

static inline void cl_prep_read(struct io_uring_sqe *sqe, int fd, void *buffer, unsigned count,
                                uint64_t offset, uint64_t user_data) {
    io_uring_prep_read(sqe, fd, buffer, count, offset);
    sqe->user_data = user_data;
}

static inline void cl_prep_write(struct io_uring_sqe *sqe, int fd, const void *buffer,
                                 unsigned count, uint64_t offset, int rw_flags,
                                 uint64_t user_data) {
    io_uring_prep_write(sqe, fd, buffer, count, offset);
    sqe->rw_flags = rw_flags;
    sqe->user_data = user_data;
}

static inline void cl_prep_writev(struct io_uring_sqe *sqe, int fd, const struct iovec *vectors,
                                  unsigned count, uint64_t offset, int rw_flags,
                                  uint64_t user_data) {
    io_uring_prep_writev(sqe, fd, vectors, count, offset);
    sqe->rw_flags = rw_flags;
    sqe->user_data = user_data;
}

static inline void cl_prep_readv(struct io_uring_sqe *sqe, int fd, const struct iovec *vectors,
                                 unsigned count, uint64_t offset, uint64_t user_data) {
    io_uring_prep_readv(sqe, fd, vectors, count, offset);
    sqe->user_data = user_data;
}

static inline void cl_prep_fdatasync(struct io_uring_sqe *sqe, int fd, uint64_t user_data) {
    io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
    sqe->user_data = user_data;
}

static inline void cl_prep_fallocate(struct io_uring_sqe *sqe, int fd, int mode, uint64_t offset,
                                     uint64_t length, uint64_t user_data) {
    io_uring_prep_fallocate(sqe, fd, mode, (off_t)offset, (off_t)length);
    sqe->user_data = user_data;
}

static inline void cl_prep_recvmsg(struct io_uring_sqe *sqe, int fd, struct msghdr *message,
                                   uint64_t user_data) {
    io_uring_prep_recvmsg(sqe, fd, message, 0);
    sqe->user_data = user_data;
}

// The kernel takes a buffer of `group` when data is there; `count` 0: as much as it holds.
static inline void cl_prep_recv_selecting(struct io_uring_sqe *sqe, int fd, uint16_t group,
                                          size_t count, uint64_t user_data) {
    io_uring_prep_recv(sqe, fd, NULL, count, 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = group;
    sqe->user_data = user_data;
}

static inline void cl_prep_sendmsg(struct io_uring_sqe *sqe, int fd, const struct msghdr *message,
                                   unsigned flags, uint64_t user_data) {
    io_uring_prep_sendmsg(sqe, fd, message, flags);
    sqe->user_data = user_data;
}

static inline void cl_prep_accept(struct io_uring_sqe *sqe, int fd, uint64_t user_data) {
    io_uring_prep_accept(sqe, fd, NULL, NULL, SOCK_CLOEXEC);
    sqe->user_data = user_data;
}

static inline void cl_prep_poll_in(struct io_uring_sqe *sqe, int fd, unsigned events,
                                   uint64_t user_data) {
    io_uring_prep_poll_add(sqe, fd, events);
    sqe->user_data = user_data;
}

static inline void cl_prep_cancel(struct io_uring_sqe *sqe, uint64_t target, uint64_t user_data) {
    io_uring_prep_cancel64(sqe, target, 0);
    sqe->user_data = user_data;
}

// Does nothing, on one of the kernel's workers.
static inline void cl_prep_worker_nop(struct io_uring_sqe *sqe, uint64_t user_data) {
    io_uring_prep_nop(sqe);
    io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
    sqe->user_data = user_data;
}

// Sets how many threads may work at a time on this thread's operations of files that would block;
// 0 leaves it as it is. Returns the limit of before, or a negative errno value.
static inline int cl_ring_worker_limit(struct io_uring *ring, unsigned limit) {
    // Those of files and disks, and others.
    unsigned limits[2] = {limit, 0};
    int result = io_uring_register_iowq_max_workers(ring, limits);
    return result < 0 ? result : (int)limits[0];
}

static inline int cl_register_buffer_ring(struct io_uring *ring, struct io_uring_buf_ring *buffers,
                                          unsigned entries, uint16_t group) {
    struct io_uring_buf_reg registration;
    memset(&registration, 0, sizeof registration);
    registration.ring_addr = (uint64_t)(uintptr_t)buffers;
    registration.ring_entries = entries;
    registration.bgid = group;
    return io_uring_register_buf_ring(ring, &registration, 0);
}

static inline void cl_buffer_ring_init(struct io_uring_buf_ring *buffers) {
    io_uring_buf_ring_init(buffers);
}

static inline void cl_buffer_ring_add(struct io_uring_buf_ring *buffers, void *address,
                                      unsigned length, uint16_t id, unsigned entries) {
    io_uring_buf_ring_add(buffers, address, length, id, io_uring_buf_ring_mask(entries), 0);
    io_uring_buf_ring_advance(buffers, 1);
}

#endif
