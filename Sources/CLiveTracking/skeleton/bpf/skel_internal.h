// What a light skeleton of bpftool calls, in plain bpf() calls: so a build needs no libbpf. The
// structures are those that `bpftool gen skeleton -L` writes and its loader program reads.

#ifndef CLIVETRACKING_SKEL_INTERNAL_H
#define CLIVETRACKING_SKEL_INTERNAL_H

#include <errno.h>
#include <linux/bpf.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct bpf_map_desc {
    int map_fd;
    __u32 max_entries;
    __aligned_u64 initial_value;
};

struct bpf_prog_desc {
    int prog_fd;
};

struct bpf_loader_ctx {
    __u32 sz;
    __u32 flags;
    __u32 log_level;
    __u32 log_size;
    __u64 log_buf;
};

struct bpf_load_and_run_opts {
    struct bpf_loader_ctx *ctx;
    const void *data;
    const void *insns;
    __u32 data_sz;
    __u32 insns_sz;
    const char *errstr;
};

static inline int skel_bpf(int command, union bpf_attr *attributes, unsigned int size)
{
    return (int)syscall(__NR_bpf, command, attributes, size);
}

#define SKEL_END_OF(type, member) (offsetof(type, member) + sizeof(((type *)0)->member))

static inline void *skel_alloc(size_t size)
{
    return calloc(1, size);
}

static inline void skel_free(const void *skeleton)
{
    free((void *)skeleton);
}

static inline int skel_closenz(int descriptor)
{
    return descriptor > 0 ? close(descriptor) : -EINVAL;
}

// Variables of the programs: first in plain memory, which the loader program copies, then the
// kernel's own pages at the same address.

static inline void *skel_prep_map_data(const void *value, size_t mapped_size, size_t value_size)
{
    void *memory = mmap(NULL, mapped_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    memcpy(memory, value, value_size);
    return memory;
}

static inline void *skel_finalize_map_data(
    __aligned_u64 *initial_value, size_t mapped_size, int protection, int descriptor)
{
    void *memory = mmap(
        (void *)(size_t)*initial_value, mapped_size, protection, MAP_SHARED | MAP_FIXED, descriptor, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static inline void skel_free_map_data(void *memory, __u64 address, size_t mapped_size)
{
    (void)address;
    if (memory)
        munmap(memory, mapped_size);
}

static inline int skel_raw_tracepoint_open(const char *name, int program)
{
    const unsigned int size = SKEL_END_OF(union bpf_attr, raw_tracepoint.prog_fd);
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof(attributes));
    attributes.raw_tracepoint.name = (__u64)(size_t)name;
    attributes.raw_tracepoint.prog_fd = (__u32)program;
    return skel_bpf(BPF_RAW_TRACEPOINT_OPEN, &attributes, size);
}

// Runs the loader program, which makes maps and programs and leaves their descriptors in the context.
// Returns 0 or a negative errno value.
static inline int bpf_load_and_run(struct bpf_load_and_run_opts *options)
{
    union bpf_attr attributes;
    int program = -1, failure = 0, key = 0;

    memset(&attributes, 0, sizeof(attributes));
    attributes.map_type = BPF_MAP_TYPE_ARRAY;
    attributes.key_size = 4;
    attributes.value_size = options->data_sz;
    attributes.max_entries = 1;
    strcpy(attributes.map_name, "__loader.map");
    int data = skel_bpf(BPF_MAP_CREATE, &attributes, SKEL_END_OF(union bpf_attr, map_extra));
    if (data < 0)
        return -errno;

    memset(&attributes, 0, sizeof(attributes));
    attributes.map_fd = (__u32)data;
    attributes.key = (__u64)(size_t)&key;
    attributes.value = (__u64)(size_t)options->data;
    if (skel_bpf(BPF_MAP_UPDATE_ELEM, &attributes, SKEL_END_OF(union bpf_attr, flags)) < 0) {
        failure = -errno;
        goto end;
    }

    memset(&attributes, 0, sizeof(attributes));
    attributes.prog_type = BPF_PROG_TYPE_SYSCALL;
    attributes.insns = (__u64)(size_t)options->insns;
    attributes.insn_cnt = options->insns_sz / (unsigned int)sizeof(struct bpf_insn);
    attributes.license = (__u64)(size_t)"Dual BSD/GPL";
    strcpy(attributes.prog_name, "__loader.prog");
    attributes.fd_array = (__u64)(size_t)&data;
    attributes.prog_flags = BPF_F_SLEEPABLE;
    program = skel_bpf(BPF_PROG_LOAD, &attributes, SKEL_END_OF(union bpf_attr, fd_array));
    if (program < 0) {
        failure = -errno;
        goto end;
    }

    memset(&attributes, 0, sizeof(attributes));
    attributes.test.prog_fd = (__u32)program;
    attributes.test.ctx_in = (__u64)(size_t)options->ctx;
    attributes.test.ctx_size_in = options->ctx->sz;
    if (skel_bpf(BPF_PROG_RUN, &attributes, SKEL_END_OF(union bpf_attr, test)) < 0)
        failure = -errno;
    else if ((int)attributes.test.retval < 0)
        failure = (int)attributes.test.retval;

end:
    close(data);
    if (program >= 0)
        close(program);
    return failure;
}

#endif
