#include "CTestSupport.h"

#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

// One single step is one instruction in user space; a system call is one, whatever the kernel does.

int stillpoint_test_count_instructions(struct stillpoint_test_trace *trace, pid_t thread)
{
    int status;
    long signal = 0;
    int error = 0;
    if (ptrace(PTRACE_SEIZE, thread, 0, 0) != 0 || ptrace(PTRACE_INTERRUPT, thread, 0, 0) != 0
        || waitpid(thread, &status, __WALL) != thread)
        error = errno;
    __atomic_store_n(&trace->has_begun, 1, __ATOMIC_RELEASE);
    if (error != 0) return error;
    while (!__atomic_load_n(&trace->is_over, __ATOMIC_ACQUIRE)) {
        if (ptrace(PTRACE_SINGLESTEP, thread, 0, signal) != 0
            || waitpid(thread, &status, __WALL) != thread)
            return errno;
        if (!WIFSTOPPED(status)) return ESRCH;
        // Any other stop is a signal, which is passed on to the thread.
        signal = WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status);
        if (signal == 0) trace->count += 1;
    }
    return ptrace(PTRACE_DETACH, thread, 0, 0) == 0 ? 0 : errno;
}

int stillpoint_test_trace_has_begun(const struct stillpoint_test_trace *trace)
{
    return __atomic_load_n(&trace->has_begun, __ATOMIC_ACQUIRE);
}

void stillpoint_test_trace_end(struct stillpoint_test_trace *trace)
{
    __atomic_store_n(&trace->is_over, 1, __ATOMIC_RELEASE);
}
