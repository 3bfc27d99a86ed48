// Words of the kernel that Swift cannot say: system calls without a wrapper in the C library, and
// constants made by macros. A wrapper returns what the kernel returned.
#ifndef STILLPOINT_CLINUX_H
#define STILLPOINT_CLINUX_H

// What needs _GNU_SOURCE is in CLinux.c: with other feature macros than Swift's Glibc module has,
// the two would disagree about the types they share.
#include <features.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/fuse.h>
#include <linux/loop.h>
#include <linux/magic.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

// -- files and devices ---------------------------------------------------------------------------

enum {
    cl_falloc_punch_hole = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
    cl_falloc_zero_range = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,};

extern const int cl_o_direct, cl_o_path, cl_rwf_dsync, cl_seek_data, cl_seek_hole;

static const long cl_tmpfs_magic = TMPFS_MAGIC;
static const long cl_ext_magic = EXT4_SUPER_MAGIC;
static const long cl_xfs_magic = XFS_SUPER_MAGIC;
static const long cl_btrfs_magic = BTRFS_SUPER_MAGIC;
static const long cl_f2fs_magic = F2FS_SUPER_MAGIC;

// Statistics of a file that Swift cannot read from `struct statx` by itself.
struct cl_file_facts {
    uint64_t size;
    uint64_t inode;
    uint32_t device_major, device_minor;
    uint32_t special_major, special_minor;  // of a device node
    uint32_t mode;
    int64_t birth_seconds;
    uint32_t birth_nanoseconds;
    int64_t modify_seconds, change_seconds;
    uint32_t modify_nanoseconds, change_nanoseconds;
    bool direct_known;
    uint32_t direct_memory_alignment, direct_offset_alignment;  // 0: O_DIRECT does not work
};

int cl_file_facts(int fd, struct cl_file_facts *facts);

// The filesystem's own id (f_fsid of statfs), the same after it is mounted again wherever the
// filesystem keeps one; 0 when it has none.
int cl_filesystem_id(int fd, uint64_t *id);
int cl_filesystem_type(int fd, long *type);
int cl_block_device_size(int fd, uint64_t *size);
int cl_block_device_sector_size(int fd, uint32_t *size);
bool cl_block_device_is_read_only(int fd);
// The kernel's number of the disk, unique until the machine restarts (Linux 5.15).
int cl_disk_sequence(int fd, uint64_t *sequence);

// Open-file-description locks, which live until the last reference of the kernel is gone.
int cl_lock_byte_shared(int fd, int64_t offset);
// 1 when another open file description holds a lock on the byte, 0 when none does, -1 on error.
int cl_byte_is_locked(int fd, int64_t offset);

// An unnamed file in a directory, mode 0600, that cannot be linked.
int cl_open_unnamed(const char *directory);

// Keeps pages in memory from their first touch on (mlock2 with MLOCK_ONFAULT).
int cl_lock_on_fault(const void *address, size_t length);

// Reserves room in a file without changing its contents; grows the file where it is shorter.
int cl_allocate(int fd, uint64_t offset, uint64_t length);

// A file in memory without a name.
int cl_memory_file(const char *name);

// Makes writable pages resident now (MADV_POPULATE_WRITE, Linux 5.14).
int cl_populate(void *address, size_t length);

// Drops what a file or block device holds in a range; reads return zeroes afterwards.
int cl_punch_hole(int fd, uint64_t offset, uint64_t length);

// Makes a file share all blocks of another one (FICLONE), where the filesystem can.
int cl_clone_file(int fd, int source);

// What libblkid recognises on a block device: 1 and its name, 0 for nothing, -1 on error.
int cl_recognise_content(int fd, char *name, size_t capacity);

// Device and inode of the file behind an open loop device; -1 when it has none.
int cl_loop_backing(int fd, uint64_t *device, uint64_t *inode);

// -- FUSE and loop devices -----------------------------------------------------------------------

// Mounts a FUSE filesystem answered through `fd` (an open /dev/fuse), for this user alone.
int cl_fuse_mount(int fd, const char *directory, uint32_t max_read);

// A descriptor that can be read when `fd` can, without keeping the file of `fd` open (epoll).
int cl_watch(int fd);

// What FUSE_STATX (Linux 6.6, unknown to Debian 12's headers) is answered with.
struct cl_fuse_statx_out {
    uint64_t valid_seconds;
    uint32_t valid_nanoseconds, flags;
    uint64_t spare[2];
    uint32_t mask, block_size;
    uint64_t attributes;
    uint32_t links, uid, gid;
    uint16_t mode, spare0;
    uint64_t inode, size, blocks, attributes_mask;
    struct { int64_t seconds; uint32_t nanoseconds; int32_t reserved; } access, birth, change, modify;
    uint32_t special_major, special_minor, device_major, device_minor;
    uint64_t spare2[14];
};

enum { cl_statx_basic = 0x7ff };

enum {
    cl_loop_read_only = LO_FLAGS_READ_ONLY,
    cl_loop_autoclear = LO_FLAGS_AUTOCLEAR,
    cl_loop_partitions = LO_FLAGS_PARTSCAN,
    cl_loop_direct = LO_FLAGS_DIRECT_IO,
};

// Number of a loop device that is free now; another process may take it first.
int cl_loop_get_free(int control);
// Sees to it that the loop device of that number exists, used or not. Returns the number.
int cl_loop_add(int control, int number);
// Puts `backing` under a loop device; `name` is what losetup shows. Linux 5.8.
int cl_loop_configure(int loop, int backing, uint32_t block_size, uint32_t flags, const char *name);
// Takes the backing file away, or once the last other user has closed it.
int cl_loop_clear(int loop);
int cl_loop_flags(int loop, uint32_t *flags);
// Keeps a loop device that was to vanish with its last user.
int cl_loop_keep(int loop);
// Takes the size of the backing file over.
int cl_loop_update_size(int loop);

// Adds the partitions that libblkid finds and the kernel has not: not every kernel reads every
// partition table. Their number, or -1.
int cl_add_partitions(int fd);

// Takes away the partitions of a block device, those that a former disk left on a loop device too.
void cl_drop_partitions(int fd);

// Writes back what the filesystem that holds an open file has in memory.
int cl_sync_filesystem(int fd);

// -- processes and threads -----------------------------------------------------------------------

// Continues as another user in all threads, with the groups that user has and no limit on locked
// memory where the system lets root lift it. 0, or -1 and errno.
int cl_become_user(const char *name, uint32_t user, uint32_t group);

// An entry of an open directory, whatever it is, links not followed: only good for fstat and
// cl_give_away. -1 on error.
int cl_open_entry(int directory, const char *name);

// Changes the owner of what cl_open_entry opened. 0, or -1 and errno.
int cl_give_away(int fd, uint32_t user, uint32_t group);

// False for a process that does not exist or has ended and only waits to be reaped.
bool cl_process_lives(int32_t pid);

// The process that listens on the Unix socket this one is connected to; -1 on error.
int32_t cl_peer_process(int fd);

/* Bytes sent over a TCP connection that its peer's kernel has not taken yet; 0 on other sockets, and
   when it cannot be told. */
int cl_undelivered(int fd);
// Gives the calling thread a table of descriptors of its own, with none above 2 open.
int cl_own_descriptors(void);

// Keeps the allocations of the calling thread, and of kernel threads it starts, from waiting for
// I/O that it may itself have to serve (PR_SET_IO_FLUSHER, Linux 5.6).
int cl_become_io_flusher(void);

// Asks the scheduler for short time slices of the calling thread, `nanoseconds` each
// (sched_setattr(2), Linux 6.12; earlier kernels take the call and change nothing). 0, or -1 with
// errno.
int cl_request_short_slices(uint64_t nanoseconds);

// Locks what the process has and will have in memory, page by page as it is touched.
int cl_lock_memory(void);

// Drops pages that may be locked (MADV_DONTNEED_LOCKED, Linux 5.18).
int cl_drop_pages(void *address, size_t length);

// Blocks every signal on the calling thread: signals are the main thread's business.
static inline void cl_block_signals(void) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
}

// Closes every descriptor from `first` on.
int cl_close_from(int first);

// Stores before it are seen before stores after it, by the compiler too.
static inline void cl_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// Length of a tick of the clock that files are stamped with.
static inline uint64_t cl_stamp_nanoseconds(void) {
    struct timespec length;
    if (clock_getres(CLOCK_REALTIME_COARSE, &length) != 0) return 10000000u;
    return (uint64_t)length.tv_sec * 1000000000u + (uint64_t)length.tv_nsec;
}

// At most 15 characters.
static inline void cl_name_thread(const char *name) { prctl(PR_SET_NAME, name, 0, 0, 0); }

// Whether this process may mark its threads as ones that memory reclaim must not wait for
// (PR_SET_IO_FLUSHER, Linux 5.6; needs CAP_SYS_RESOURCE). Leaves the calling thread as it was.
static inline bool cl_may_flush_io(void) {
    int state = prctl(58, 0, 0, 0, 0);
    if (state < 0) return false;
    return prctl(57, state, 0, 0, 0) == 0;
}

// Processor time of the calling thread.
static inline uint64_t cl_thread_nanoseconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static inline uint64_t cl_now_nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

// Waits for a semaphore until a point of monotonic time: 0, or -1 when it passed.
int cl_wait_until(sem_t *semaphore, uint64_t deadline_ns);

static inline uint64_t cl_device_number(uint32_t major, uint32_t minor) {
    return ((uint64_t)(major & 0xfffff000u) << 32) | ((uint64_t)(major & 0xfffu) << 8) |
           ((uint64_t)(minor & 0xffffff00u) << 12) | (uint64_t)(minor & 0xffu);
}

static inline uint32_t cl_major(uint64_t number) {
    return (uint32_t)((number >> 32 & 0xfffff000u) | (number >> 8 & 0xfffu));
}

static inline uint32_t cl_minor(uint64_t number) {
    return (uint32_t)((number >> 12 & 0xffffff00u) | (number & 0xffu));
}

// -- processor -----------------------------------------------------------------------------------

// Begins to load the cache line at the address, to be written soon; any address is allowed.
static inline void cl_prefetch(const void *address) { __builtin_prefetch(address, 1, 3); }

// Tells the processor that it runs in a loop which waits for memory to change.
static inline void cl_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// -- blocks --------------------------------------------------------------------------------------

// CRC32C (Castagnoli) of `length` bytes, a multiple of 8.
uint32_t cl_crc32c(const void *bytes, size_t length);

// True when all `length` bytes, a multiple of 64, are zero.
bool cl_is_zero(const void *bytes, size_t length);

#include "CLinuxFreeze.h"
#include "CLinuxMessages.h"
#include "CLinuxProcesses.h"

#endif
