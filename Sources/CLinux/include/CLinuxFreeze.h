// Freezing of filesystems, and the identity of mounts.
#ifndef STILLPOINT_CLINUX_FREEZE_H
#define STILLPOINT_CLINUX_FREEZE_H

#include <stdint.h>

// Each takes a descriptor of any file of the filesystem; all can block for as long as its disk
// does.
int cl_freeze_filesystem(int fd);
int cl_thaw_filesystem(int fd);

// The number that /proc/self/mountinfo gives to the mount the file was opened through.
int cl_mount_id(int fd, uint64_t *id);

#endif
