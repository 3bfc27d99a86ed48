#define _GNU_SOURCE
#include "CLinux.h"

int cl_freeze_filesystem(int fd) { return ioctl(fd, FIFREEZE, 0); }

int cl_thaw_filesystem(int fd) { return ioctl(fd, FITHAW, 0); }
