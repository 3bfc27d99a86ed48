#define _GNU_SOURCE
#include "CLinux.h"

#include <sched.h>
#include <spawn.h>

int cl_pipe(int ends[2]) {
    if (pipe2(ends, O_CLOEXEC) < 0) return -1;
    // The program that writes to the other end must not see it, so only this end.
    return fcntl(ends[0], F_SETFL, O_NONBLOCK);
}

int cl_pidfd_open(int32_t pid) { return (int)syscall(SYS_pidfd_open, pid, 0); }

const int32_t cl_stream_inherited = -1;
const int32_t cl_stream_null = -2;

static int set_stream(posix_spawn_file_actions_t *actions, int stream, int32_t to, int flags) {
    if (to == cl_stream_inherited) return 0;
    if (to == cl_stream_null)
        return posix_spawn_file_actions_addopen(actions, stream, "/dev/null", flags, 0);
    return posix_spawn_file_actions_adddup2(actions, to, stream);
}

static int set_files(posix_spawn_file_actions_t *actions, const struct cl_spawn_options *options) {
    int failure = set_stream(actions, 0, options->input, O_RDONLY);
    if (!failure) failure = set_stream(actions, 1, options->output, O_WRONLY);
    if (!failure) failure = set_stream(actions, 2, options->diagnostics, O_WRONLY);
    if (!failure) failure = set_stream(actions, 3, options->passed, 0);
    if (!failure && options->close_others)
        failure = posix_spawn_file_actions_addclosefrom_np(
            actions, options->passed == cl_stream_inherited ? 3 : 4);
    if (!failure && options->in_root) failure = posix_spawn_file_actions_addchdir_np(actions, "/");
    return failure;
}

static int set_attributes(posix_spawnattr_t *attributes, const struct cl_spawn_options *options) {
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    short flags = POSIX_SPAWN_SETSIGMASK;
    if (options->default_signals) flags |= POSIX_SPAWN_SETSIGDEF;
    if (options->own_group) flags |= POSIX_SPAWN_SETPGROUP;
    if (options->own_session) flags |= POSIX_SPAWN_SETSID;
    int failure = posix_spawnattr_setsigmask(attributes, &none);
    if (!failure) failure = posix_spawnattr_setsigdefault(attributes, &all);
    if (!failure) failure = posix_spawnattr_setpgroup(attributes, 0);
    if (!failure) failure = posix_spawnattr_setflags(attributes, flags);
    return failure;
}

int cl_spawn(const char *program, char *const *arguments, char *const *environment,
             const struct cl_spawn_options *options, int32_t *pid) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    int failure = posix_spawn_file_actions_init(&actions);
    if (failure) return failure;
    failure = posix_spawnattr_init(&attributes);
    if (failure) {
        posix_spawn_file_actions_destroy(&actions);
        return failure;
    }
    failure = set_files(&actions, options);
    if (!failure) failure = set_attributes(&attributes, options);
    pid_t started = 0;
    if (!failure)
        failure = posix_spawnp(
            &started, program, &actions, &attributes, arguments, environment ? environment : environ);
    *pid = started;
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return failure;
}

// struct sched_attr of linux/sched/types.h as of its first version; glibc 2.36 has no wrapper.
struct attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

int cl_request_short_slices(uint64_t nanoseconds) {
    struct attributes attributes = {0};
    if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) < 0) return -1;
    // A real-time policy was set on purpose: it is kept.
    if (attributes.policy != SCHED_OTHER) return 0;
    attributes.size = sizeof attributes;
    attributes.runtime = nanoseconds;
    return (int)syscall(SYS_sched_setattr, 0, &attributes, 0);
}
