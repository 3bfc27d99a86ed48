// Programs that the service starts.
#ifndef STILLPOINT_CLINUX_PROCESSES_H
#define STILLPOINT_CLINUX_PROCESSES_H

#include <stdint.h>

// A pipe that programs do not inherit, whose reading end does not block.
int cl_pipe(int ends[2]);

// A descriptor that can be read when the process has ended.
int cl_pidfd_open(int32_t pid);

// Where a standard stream of a new process leads, unless it is a descriptor.
extern const int32_t cl_stream_inherited, cl_stream_null;

// How a process is started. `passed` becomes descriptor 3, unless it is `cl_stream_inherited`.
struct cl_spawn_options {
    int32_t input, output, diagnostics, passed;
    // A process group, or a session, of its own.
    bool own_group, own_session;
    // Signals that are ignored here are not ignored there.
    bool default_signals;
    // Descriptors above those named are closed.
    bool close_others;
    // The working directory is /.
    bool in_root;
};

// Starts a program, searched for in PATH when its name has no slash, with no signal blocked: 0 and
// its id, or an errno value. `environment` NULL: that of this process.
int cl_spawn(const char *program, char *const *arguments, char *const *environment,
             const struct cl_spawn_options *options, int32_t *pid);

#endif
