// Programs that the service starts.
#ifndef STILLPOINT_CLINUX_PROCESSES_H
#define STILLPOINT_CLINUX_PROCESSES_H

#include <stdint.h>

// A pipe that programs do not inherit, whose reading end does not block.
int cl_pipe(int ends[2]);

// A descriptor that can be read when the process has ended.
int cl_pidfd_open(int32_t pid);

// Starts a program as leader of its own process group, in the root directory: standard input is
// empty, standard output and error go to `output`, nothing else is inherited. 0 or an errno value.
int cl_spawn_group(const char *path, char *const *arguments, char *const *environment, int output,
                   int32_t *pid);

#endif
