#define _GNU_SOURCE
#include "CLinux.h"

#include <blkid/blkid.h>
#include <linux/sockios.h>
#include <linux/blkpg.h>
#include <grp.h>
#include <linux/stat.h>
#include <sched.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/sysmacros.h>

#ifndef STATX_MNT_ID
#define STATX_MNT_ID 0x00001000U
#endif

#ifndef STATX_DIOALIGN
#define STATX_DIOALIGN 0x00002000U
#endif

// Debian 12's headers know neither STATX_DIOALIGN nor its fields (Linux 6.1); this is the layout
// of the kernel's struct statx from include/uapi/linux/stat.h.
struct cl_statx {
    uint32_t mask, block_size;
    uint64_t attributes;
    uint32_t links, uid, gid;
    uint16_t mode, spare0;
    uint64_t inode, size, blocks, attributes_mask;
    struct { int64_t seconds; uint32_t nanoseconds; int32_t reserved; } access, birth, change, modify;
    uint32_t special_major, special_minor, device_major, device_minor;
    uint64_t mount_id;
    uint32_t direct_memory_alignment, direct_offset_alignment;
    uint64_t spare3[12];
};

_Static_assert(sizeof(struct cl_statx) == 256, "struct statx is 256 bytes");

const int cl_o_direct = O_DIRECT;
const int cl_o_path = O_PATH;
const int cl_rwf_dsync = RWF_DSYNC;
const int cl_seek_data = SEEK_DATA;
const int cl_seek_hole = SEEK_HOLE;

int cl_file_facts(int fd, struct cl_file_facts *facts) {
    struct cl_statx answer;
    memset(&answer, 0, sizeof answer);
    long result = syscall(SYS_statx, fd, "", 0x1000 /* AT_EMPTY_PATH */,
                          0x7ffU | 0x800U | STATX_DIOALIGN, &answer);
    if (result < 0) return -1;
    facts->size = answer.size;
    facts->inode = answer.inode;
    facts->device_major = answer.device_major;
    facts->device_minor = answer.device_minor;
    facts->special_major = answer.special_major;
    facts->special_minor = answer.special_minor;
    facts->mode = answer.mode;
    facts->birth_seconds = answer.birth.seconds;
    facts->birth_nanoseconds = answer.birth.nanoseconds;
    facts->modify_seconds = answer.modify.seconds;
    facts->modify_nanoseconds = answer.modify.nanoseconds;
    facts->change_seconds = answer.change.seconds;
    facts->change_nanoseconds = answer.change.nanoseconds;
    facts->direct_known = (answer.mask & STATX_DIOALIGN) != 0;
    facts->direct_memory_alignment = answer.direct_memory_alignment;
    facts->direct_offset_alignment = answer.direct_offset_alignment;
    return 0;
}

int cl_mount_id(int fd, uint64_t *id) {
    struct cl_statx answer;
    memset(&answer, 0, sizeof answer);
    long result = syscall(SYS_statx, fd, "", 0x1000 /* AT_EMPTY_PATH */, STATX_MNT_ID, &answer);
    if (result < 0) return -1;
    if (!(answer.mask & STATX_MNT_ID)) {
        errno = ENOTSUP;
        return -1;
    }
    *id = answer.mount_id;
    return 0;
}

int cl_filesystem_id(int fd, uint64_t *id) {
    struct statfs answer;
    if (fstatfs(fd, &answer) < 0) return -1;
    *id = (uint64_t)(uint32_t)answer.f_fsid.__val[1] << 32 | (uint32_t)answer.f_fsid.__val[0];
    return 0;
}

int cl_filesystem_type(int fd, long *type) {
    struct statfs answer;
    if (fstatfs(fd, &answer) < 0) return -1;
    *type = (long)answer.f_type;
    return 0;
}

int cl_block_device_size(int fd, uint64_t *size) { return ioctl(fd, BLKGETSIZE64, size); }

int cl_block_device_sector_size(int fd, uint32_t *size) {
    int bytes = 0;
    if (ioctl(fd, BLKSSZGET, &bytes) < 0) return -1;
    *size = (uint32_t)bytes;
    return 0;
}

bool cl_block_device_is_read_only(int fd) {
    int read_only = 0;
    return ioctl(fd, BLKROGET, &read_only) == 0 && read_only != 0;
}

#ifndef BLKGETDISKSEQ
#define BLKGETDISKSEQ _IOR(0x12, 128, uint64_t)
#endif

int cl_disk_sequence(int fd, uint64_t *sequence) { return ioctl(fd, BLKGETDISKSEQ, sequence); }

int cl_allocate(int fd, uint64_t offset, uint64_t length) {
    return fallocate(fd, 0, (off_t)offset, (off_t)length);
}

int cl_memory_file(const char *name) { return memfd_create(name, MFD_CLOEXEC); }

int cl_close_from(int first) { return close_range((unsigned)first, ~0u, 0); }

int cl_lock_byte_shared(int fd, int64_t offset) {
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = offset, .l_len = 1};
    return fcntl(fd, F_OFD_SETLK, &lock);
}

int cl_byte_is_locked(int fd, int64_t offset) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = offset, .l_len = 1};
    if (fcntl(fd, F_OFD_GETLK, &lock) < 0) return -1;
    return lock.l_type != F_UNLCK;
}

int cl_loop_backing(int fd, uint64_t *device, uint64_t *inode) {
    struct loop_info64 info;
    if (ioctl(fd, LOOP_GET_STATUS64, &info) < 0) return -1;
    *device = info.lo_device;
    *inode = info.lo_inode;
    return 0;
}

_Static_assert(sizeof(struct cl_fuse_statx_out) == 288, "struct fuse_statx_out is 288 bytes");

int cl_fuse_mount(int fd, const char *directory, uint32_t max_read) {
    char options[128];
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=%u,group_id=%u,max_read=%u", fd,
             geteuid(), getegid(), max_read);
    return mount("stillpoint", directory, "fuse.stillpoint",
                 MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME, options);
}

int cl_watch(int fd) {
    int watch = epoll_create1(EPOLL_CLOEXEC);
    if (watch < 0) return -1;
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll_ctl(watch, EPOLL_CTL_ADD, fd, &event) == 0) return watch;
    int failure = errno;
    close(watch);
    errno = failure;
    return -1;
}

int cl_loop_get_free(int control) { return ioctl(control, LOOP_CTL_GET_FREE); }

int cl_loop_add(int control, int number) {
    int result = ioctl(control, LOOP_CTL_ADD, number);
    return result < 0 && errno == EEXIST ? number : result;
}

int cl_loop_configure(int loop, int backing, uint32_t block_size, uint32_t flags, const char *name) {
    struct loop_config config;
    memset(&config, 0, sizeof config);
    config.fd = (uint32_t)backing;
    config.block_size = block_size;
    config.info.lo_flags = flags;
    snprintf((char *)config.info.lo_file_name, LO_NAME_SIZE, "%s", name);
    return ioctl(loop, LOOP_CONFIGURE, &config);
}

int cl_loop_clear(int loop) { return ioctl(loop, LOOP_CLR_FD, 0); }

int cl_loop_flags(int loop, uint32_t *flags) {
    struct loop_info64 info;
    if (ioctl(loop, LOOP_GET_STATUS64, &info) < 0) return -1;
    *flags = info.lo_flags;
    return 0;
}

int cl_loop_keep(int loop) {
    struct loop_info64 info;
    if (ioctl(loop, LOOP_GET_STATUS64, &info) < 0) return -1;
    info.lo_flags &= ~(uint32_t)LO_FLAGS_AUTOCLEAR;
    return ioctl(loop, LOOP_SET_STATUS64, &info);
}

int cl_loop_update_size(int loop) { return ioctl(loop, LOOP_SET_CAPACITY, 0); }

static int add_partition(int fd, blkid_partition found) {
    struct blkpg_partition partition;
    memset(&partition, 0, sizeof partition);
    partition.start = blkid_partition_get_start(found) * 512;
    partition.length = blkid_partition_get_size(found) * 512;
    partition.pno = blkid_partition_get_partno(found);
    struct blkpg_ioctl_arg argument = {
        .op = BLKPG_ADD_PARTITION, .datalen = sizeof partition, .data = &partition};
    return ioctl(fd, BLKPG, &argument);
}

void cl_drop_partitions(int fd) {
    struct blkpg_partition partition;
    memset(&partition, 0, sizeof partition);
    struct blkpg_ioctl_arg argument = {
        .op = BLKPG_DEL_PARTITION, .datalen = sizeof partition, .data = &partition};
    // Most of them are not there, which is as good.
    for (partition.pno = 1; partition.pno < 256; partition.pno++) (void)ioctl(fd, BLKPG, &argument);
}

int cl_add_partitions(int fd) {
    blkid_probe probe = blkid_new_probe();
    if (!probe) return -1;
    int result = 0;
    if (blkid_probe_set_device(probe, fd, 0, 0) != 0 ||
        blkid_probe_enable_partitions(probe, 1) != 0) {
        result = -1;
    } else {
        blkid_partlist list = blkid_probe_get_partitions(probe);
        int count = list ? blkid_partlist_numof_partitions(list) : 0;
        for (int index = 0; index < count && result >= 0; index++) {
            blkid_partition found = blkid_partlist_get_partition(list, index);
            result = add_partition(fd, found) < 0 ? -1 : result + 1;
        }
    }
    int failure = errno;
    blkid_free_probe(probe);
    errno = failure;
    return result;
}

int cl_sync_filesystem(int fd) { return syncfs(fd); }

int cl_own_descriptors(void) {
    if (unshare(CLONE_FILES) < 0) return -1;
    return (int)syscall(SYS_close_range, 3u, ~0u, 0u);
}

int cl_become_io_flusher(void) { return prctl(57 /* PR_SET_IO_FLUSHER */, 1, 0, 0, 0); }

int cl_lock_memory(void) { return mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT); }

int cl_drop_pages(void *address, size_t length) {
    return madvise(address, length, 24 /* MADV_DONTNEED_LOCKED */);
}

int cl_open_unnamed(const char *directory) {
    return open(directory, O_TMPFILE | O_RDWR | O_EXCL | O_CLOEXEC, 0600);
}

int cl_recognise_content(int fd, char *name, size_t capacity) {
    blkid_probe probe = blkid_new_probe();
    if (!probe) return -1;
    int result = -1;
    if (blkid_probe_set_device(probe, fd, 0, 0) == 0) {
        blkid_probe_enable_superblocks(probe, 1);
        blkid_probe_set_superblocks_flags(probe, BLKID_SUBLKS_TYPE);
        blkid_probe_enable_partitions(probe, 1);
        int found = blkid_do_safeprobe(probe);
        const char *value = NULL;
        if (found == 1) result = 0;
        // -2: several contents that contradict each other.
        if (found == -2) {
            snprintf(name, capacity, "%s", "several filesystems");
            result = 1;
        }
        if (found == 0) {
            if (blkid_probe_lookup_value(probe, "TYPE", &value, NULL) == 0) {
                snprintf(name, capacity, "a %s filesystem or volume", value);
            } else if (blkid_probe_lookup_value(probe, "PTTYPE", &value, NULL) == 0) {
                snprintf(name, capacity, "a %s partition table", value);
            } else {
                snprintf(name, capacity, "%s", "recognisable content");
            }
            result = 1;
        }
    }
    blkid_free_probe(probe);
    return result;
}

int cl_clone_file(int fd, int source) { return ioctl(fd, FICLONE, source); }

int cl_lock_on_fault(const void *address, size_t length) {
    return mlock2(address, length, MLOCK_ONFAULT);
}

int cl_punch_hole(int fd, uint64_t offset, uint64_t length) {
    return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length);
}

// CRC32C by table, eight bytes at a time (slicing-by-8, Kounavis and Berry 2005), and with the
// instruction of SSE 4.2 where the processor has it.
static uint32_t crc32c_tables[8][256];

__attribute__((constructor)) static void crc32c_fill(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
        crc32c_tables[0][byte] = crc;
    }
    for (uint32_t byte = 0; byte < 256; byte++)
        for (int slice = 1; slice < 8; slice++) {
            uint32_t previous = crc32c_tables[slice - 1][byte];
            crc32c_tables[slice][byte] = previous >> 8 ^ crc32c_tables[0][previous & 0xff];
        }
}

static uint32_t crc32c_by_table(const unsigned char *bytes, size_t length) {
    uint32_t crc = ~0u;
    for (; length >= 8; bytes += 8, length -= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        word ^= crc;
        crc = 0;
        for (int slice = 0; slice < 8; slice++)
            crc ^= crc32c_tables[7 - slice][(word >> 8 * slice) & 0xff];
    }
    return ~crc;
}

#if defined(__x86_64__)
// The instruction takes three cycles and can start again in each, so three lanes run at once. The
// register of a lane moves behind the bytes of the next one by a table: appending zeroes is linear.
enum { crc32c_lane = 1360 };
static uint32_t crc32c_shift[4][256];

__attribute__((constructor)) static void crc32c_shift_fill(void) {
    uint32_t basis[32];
    for (int bit = 0; bit < 32; bit++) {
        uint32_t crc = 1u << bit;
        for (int zero = 0; zero < crc32c_lane * 8; zero++)
            crc = crc & 1 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
        basis[bit] = crc;
    }
    for (int byte = 0; byte < 4; byte++)
        for (int value = 0; value < 256; value++) {
            uint32_t crc = 0;
            for (int bit = 0; bit < 8; bit++)
                if (value >> bit & 1) crc ^= basis[byte * 8 + bit];
            crc32c_shift[byte][value] = crc;
        }
}

static uint32_t crc32c_shifted(uint64_t crc) {
    return crc32c_shift[0][crc & 0xff] ^ crc32c_shift[1][crc >> 8 & 0xff] ^
           crc32c_shift[2][crc >> 16 & 0xff] ^ crc32c_shift[3][crc >> 24 & 0xff];
}

__attribute__((target("sse4.2"))) static uint32_t crc32c_by_instruction(
    const unsigned char *bytes, size_t length) {
    uint64_t crc = ~0u;
    for (; length >= 3 * crc32c_lane; bytes += 3 * crc32c_lane, length -= 3 * crc32c_lane) {
        uint64_t second = 0, third = 0;
        for (size_t offset = 0; offset < crc32c_lane; offset += 8) {
            uint64_t words[3];
            memcpy(&words[0], bytes + offset, 8);
            memcpy(&words[1], bytes + offset + crc32c_lane, 8);
            memcpy(&words[2], bytes + offset + 2 * crc32c_lane, 8);
            crc = __builtin_ia32_crc32di(crc, words[0]);
            second = __builtin_ia32_crc32di(second, words[1]);
            third = __builtin_ia32_crc32di(third, words[2]);
        }
        crc = crc32c_shifted(crc) ^ second;
        crc = crc32c_shifted(crc) ^ third;
    }
    for (; length >= 8; bytes += 8, length -= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        crc = __builtin_ia32_crc32di(crc, word);
    }
    return ~(uint32_t)crc;
}
#endif

uint32_t cl_crc32c(const void *bytes, size_t length) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) return crc32c_by_instruction(bytes, length);
#endif
    return crc32c_by_table(bytes, length);
}

bool cl_is_zero(const void *bytes, size_t length) {
    const unsigned char *position = bytes, *end = position + length;
    for (; position < end; position += 64) {
        uint64_t words[8];
        memcpy(words, position, 64);
        uint64_t any = 0;
        for (int index = 0; index < 8; index++) any |= words[index];
        if (any) return false;
    }
    return true;
}

int cl_populate(void *address, size_t length) {
    return madvise(address, length, 23 /* MADV_POPULATE_WRITE */);
}

int cl_wait_until(sem_t *semaphore, uint64_t deadline_ns) {
    struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / 1000000000u),
                                .tv_nsec = (long)(deadline_ns % 1000000000u)};
    int result;
    do {
        result = sem_clockwait(semaphore, CLOCK_MONOTONIC, &deadline);
    } while (result != 0 && errno == EINTR);
    return result;
}

bool cl_process_lives(int32_t pid) {
    if (pid <= 0 || (kill(pid, 0) != 0 && errno == ESRCH)) return false;
    char path[32], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    // Without /proc only kill can be asked.
    if (fd < 0) return errno != ENOENT;
    ssize_t count = read(fd, text, sizeof text - 1);
    close(fd);
    if (count <= 0) return false;
    text[count] = 0;
    const char *name_end = strrchr(text, ')');
    return !name_end || (name_end[2] != 'Z' && name_end[2] != 'X');
}

int32_t cl_peer_process(int fd) {
    struct ucred credentials;
    socklen_t size = sizeof credentials;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) return -1;
    return credentials.pid;
}

int cl_undelivered(int fd) {
    int domain = 0, count = 0;
    socklen_t size = sizeof domain;
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0 || domain == AF_UNIX) return 0;
    return ioctl(fd, SIOCOUTQ, &count) == 0 ? count : 0;
}

// What the main thread is asked to become, and its answer.
static struct {
    uint32_t user, group;
    gid_t groups[256];
    int group_count;
    sem_t done;
} cl_straggler;

// Runs in the main thread. System calls change the calling thread alone, and are safe in a handler.
static void cl_become_here(int signal)
{
    (void)signal;
    int saved = errno;
    if (syscall(SYS_geteuid) != (long)cl_straggler.user) {
        (void)syscall(SYS_setgroups, cl_straggler.group_count, cl_straggler.groups);
        uint32_t group = cl_straggler.group, user = cl_straggler.user;
        (void)syscall(SYS_setresgid, group, group, group);
        (void)syscall(SYS_setresuid, user, user, user);
    }
    sem_post(&cl_straggler.done);
    errno = saved;
}

// libdispatch parks the main thread of an asynchronous program by pthread_exit. glibc takes a
// thread that exits for gone and does not change its user, yet it lives on, and stays root.
static int cl_become_in_main_thread(uint32_t user, uint32_t group)
{
    if (syscall(SYS_gettid) == getpid())
        return 0;
    cl_straggler.user = user;
    cl_straggler.group = group;
    cl_straggler.group_count = getgroups(256, cl_straggler.groups);
    if (cl_straggler.group_count < 0 || sem_init(&cl_straggler.done, 0, 0) != 0)
        return -1;
    struct sigaction action = {.sa_handler = cl_become_here}, before;
    int signal = SIGRTMAX - 3;
    if (sigaction(signal, &action, &before) != 0)
        return -1;
    int result = (int)syscall(SYS_tgkill, getpid(), getpid(), signal);
    if (result == 0) {
        struct timespec end;
        clock_gettime(CLOCK_REALTIME, &end);
        end.tv_sec += 5;
        while ((result = sem_timedwait(&cl_straggler.done, &end)) != 0 && errno == EINTR) {}
    }
    // Late is never: the handler stays where the main thread may still run it.
    if (result == 0)
        sigaction(signal, &before, NULL);
    return result;
}

int cl_become_user(const char *name, uint32_t user, uint32_t group)
{
    struct rlimit unlimited = {RLIM_INFINITY, RLIM_INFINITY};
    // Refused in some containers: memory storage then says so when it is asked for.
    (void)setrlimit(RLIMIT_MEMLOCK, &unlimited);
    if (initgroups(name, group) != 0 || setresgid(group, group, group) != 0)
        return -1;
    if (setresuid(user, user, user) != 0)
        return -1;
    return cl_become_in_main_thread(user, group);
}

int cl_open_entry(int directory, const char *name)
{
    return openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
}

int cl_give_away(int fd, uint32_t user, uint32_t group)
{
    return fchownat(fd, "", user, group, AT_EMPTY_PATH);
}
