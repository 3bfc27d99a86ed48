#define _GNU_SOURCE
#include "CLinux.h"

#include <linux/stat.h>
#include <sys/sysmacros.h>

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
    facts->direct_known = (answer.mask & STATX_DIOALIGN) != 0;
    facts->direct_memory_alignment = answer.direct_memory_alignment;
    facts->direct_offset_alignment = answer.direct_offset_alignment;
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
