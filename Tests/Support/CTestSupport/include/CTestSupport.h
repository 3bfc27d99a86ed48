// C functions that the tests need and Swift cannot call: system calls without a wrapper in the C
// library, variadic functions, and the kernel's structures of the FUSE protocol.
#ifndef STILLPOINT_TEST_SUPPORT_H
#define STILLPOINT_TEST_SUPPORT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <malloc.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/// Memory that is freed is filled with `byte` from now on, 0: left alone.
static inline void stillpoint_test_perturb_freed_memory(int byte) { mallopt(M_PERTURB, byte); }

static inline int stillpoint_test_pidfd_open(pid_t process) {
    return (int)syscall(SYS_pidfd_open, process, 0);
}

static inline int stillpoint_test_pipe(int ends[2]) {
    return (int)syscall(SYS_pipe2, ends, O_CLOEXEC);
}

static inline int stillpoint_test_memory_file(const char *name) {
    return (int)syscall(SYS_memfd_create, name, 1 /* MFD_CLOEXEC */);
}

static inline int stillpoint_test_punch(int descriptor, off_t offset, off_t length) {
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    return (int)syscall(SYS_fallocate, descriptor, mode, offset, length);
}

static inline int stillpoint_test_allocate(int descriptor, off_t offset, off_t length) {
    return (int)syscall(SYS_fallocate, descriptor, FALLOC_FL_KEEP_SIZE, offset, length);
}

static inline off_t stillpoint_test_seek_data(int descriptor, off_t offset) {
    return lseek(descriptor, offset, 3 /* SEEK_DATA */);
}

static inline off_t stillpoint_test_seek_hole(int descriptor, off_t offset) {
    return lseek(descriptor, offset, 4 /* SEEK_HOLE */);
}

/// Counts the instructions of a thread of another process; one thread traces, another one ends it.
struct stillpoint_test_trace {
    int has_begun;
    int is_over;
    long count;
};

/// Counts until the trace is ended and the thread makes one step more; 0, or an error number.
int stillpoint_test_count_instructions(struct stillpoint_test_trace *trace, pid_t thread);

/// Whether instructions are counted now, or counting failed.
int stillpoint_test_trace_has_begun(const struct stillpoint_test_trace *trace);

/// Ends a trace.
void stillpoint_test_trace_end(struct stillpoint_test_trace *trace);

#endif
