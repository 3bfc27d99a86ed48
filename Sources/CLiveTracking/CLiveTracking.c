#define _GNU_SOURCE
#include "CLiveTracking.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/vfs.h>

#include <bpf/skel_internal.h>

#include "stillpoint.lskel.h"

static int answered(int result)
{
    return result < 0 ? -errno : result;
}

static const char *const names[CLT_PROGRAM_COUNT] = {
    "request_issue", "request_complete_a", "request_complete_b", "request_complete_c", "bio_queue",
    "bio_remap", "bio_complete_a", "bio_complete_b", "bio_complete_c",
};

const char *clt_program_name(int program)
{
    return program >= 0 && program < CLT_PROGRAM_COUNT ? names[program] : "";
}

static int kept(int descriptor)
{
    return fcntl(descriptor, F_DUPFD_CLOEXEC, 3);
}

int clt_load(struct clt_loaded *loaded)
{
    struct stillpoint *skeleton = stillpoint__open();
    if (!skeleton)
        return -ENOMEM;
    int failure = stillpoint__load(skeleton);
    if (failure < 0) {
        stillpoint__destroy(skeleton);
        return failure;
    }
    loaded->devices = kept(skeleton->maps.devices.map_fd);
    loaded->slots = kept(skeleton->maps.slots.map_fd);
    loaded->in_flight = kept(skeleton->maps.in_flight.map_fd);
    loaded->variables = kept(skeleton->maps.bss.map_fd);
    const int programs[CLT_PROGRAM_COUNT] = {
        skeleton->progs.request_issue.prog_fd,      skeleton->progs.request_complete_a.prog_fd,
        skeleton->progs.request_complete_b.prog_fd, skeleton->progs.request_complete_c.prog_fd,
        skeleton->progs.bio_queue.prog_fd,          skeleton->progs.bio_remap.prog_fd,
        skeleton->progs.bio_complete_a.prog_fd,     skeleton->progs.bio_complete_b.prog_fd,
        skeleton->progs.bio_complete_c.prog_fd,
    };
    bool is_whole = loaded->devices >= 0 && loaded->slots >= 0 && loaded->in_flight >= 0 &&
                    loaded->variables >= 0;
    for (int index = 0; index < CLT_PROGRAM_COUNT; index++) {
        loaded->programs[index] = kept(programs[index]);
        is_whole = is_whole && loaded->programs[index] >= 0;
    }
    stillpoint__destroy(skeleton);
    if (is_whole)
        return 0;
    close(loaded->devices);
    close(loaded->slots);
    close(loaded->in_flight);
    close(loaded->variables);
    for (int index = 0; index < CLT_PROGRAM_COUNT; index++)
        close(loaded->programs[index]);
    return -EMFILE;
}

int clt_attach(int program)
{
    return answered(skel_raw_tracepoint_open(NULL, program));
}

int clt_pin(int descriptor, const char *path)
{
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof(attributes));
    attributes.pathname = (__u64)(size_t)path;
    attributes.bpf_fd = (__u32)descriptor;
    return answered(skel_bpf(BPF_OBJ_PIN, &attributes, SKEL_END_OF(union bpf_attr, file_flags)));
}

int clt_open_pinned(const char *path)
{
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof(attributes));
    attributes.pathname = (__u64)(size_t)path;
    return answered(skel_bpf(BPF_OBJ_GET, &attributes, SKEL_END_OF(union bpf_attr, file_flags)));
}

int clt_bitmap_create(uint32_t word_count)
{
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof(attributes));
    attributes.map_type = BPF_MAP_TYPE_ARRAY;
    attributes.key_size = 4;
    attributes.value_size = 8;
    attributes.max_entries = word_count;
    attributes.map_flags = BPF_F_MMAPABLE | BPF_F_INNER_MAP;
    strcpy(attributes.map_name, "stillpoint");
    return answered(skel_bpf(BPF_MAP_CREATE, &attributes, SKEL_END_OF(union bpf_attr, map_extra)));
}

static int information(int descriptor, void *info, uint32_t size)
{
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof(attributes));
    attributes.info.bpf_fd = (__u32)descriptor;
    attributes.info.info_len = size;
    attributes.info.info = (__u64)(size_t)info;
    return answered(skel_bpf(BPF_OBJ_GET_INFO_BY_FD, &attributes, SKEL_END_OF(union bpf_attr, info)));
}

int clt_bitmap_word_count(int bitmap, uint32_t *word_count)
{
    struct bpf_map_info info;
    memset(&info, 0, sizeof(info));
    int failure = information(bitmap, &info, sizeof(info));
    if (failure < 0)
        return failure;
    if (info.type != BPF_MAP_TYPE_ARRAY || info.value_size != 8)
        return -EINVAL;
    *word_count = info.max_entries;
    return 0;
}

static int on_element(
    int command, int map, const void *key, const void *value, uint64_t flags)
{
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof(attributes));
    attributes.map_fd = (__u32)map;
    attributes.key = (__u64)(size_t)key;
    attributes.value = (__u64)(size_t)value;
    attributes.flags = flags;
    return answered(skel_bpf(command, &attributes, SKEL_END_OF(union bpf_attr, flags)));
}

int clt_slot_put(int devices, uint32_t slot, int bitmap)
{
    return on_element(BPF_MAP_UPDATE_ELEM, devices, &slot, &bitmap, BPF_ANY);
}

int clt_slot_remove(int devices, uint32_t slot)
{
    return on_element(BPF_MAP_DELETE_ELEM, devices, &slot, NULL, 0);
}

int clt_slot_bitmap_id(int devices, uint32_t slot, uint32_t *id)
{
    *id = 0;
    return on_element(BPF_MAP_LOOKUP_ELEM, devices, &slot, id, 0);
}

int clt_map_id(int map, uint32_t *id)
{
    struct bpf_map_info info;
    memset(&info, 0, sizeof(info));
    int failure = information(map, &info, sizeof(info));
    *id = info.id;
    return failure;
}

int clt_program_misses(int program, uint64_t *misses, uint32_t *id)
{
    struct bpf_prog_info info;
    memset(&info, 0, sizeof(info));
    int failure = information(program, &info, sizeof(info));
    *misses = info.recursion_misses;
    *id = info.id;
    return failure;
}

int clt_link_program(int link, uint32_t *program_id)
{
    struct bpf_link_info info;
    memset(&info, 0, sizeof(info));
    int failure = information(link, &info, sizeof(info));
    *program_id = info.prog_id;
    return failure;
}

int clt_enable_statistics(void)
{
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof(attributes));
    attributes.enable_stats.type = BPF_STATS_RUN_TIME;
    return answered(
        skel_bpf(BPF_ENABLE_STATS, &attributes, SKEL_END_OF(union bpf_attr, enable_stats)));
}

int clt_program_times(int program, uint64_t *nanoseconds, uint64_t *runs)
{
    struct bpf_prog_info info;
    memset(&info, 0, sizeof(info));
    int failure = information(program, &info, sizeof(info));
    *nanoseconds = info.run_time_ns;
    *runs = info.run_cnt;
    return failure;
}

int clt_fill_in_flight(int in_flight, uint64_t first_key, uint32_t count)
{
    const uint64_t flight[3] = {0, 0, 0};
    for (uint32_t index = 0; index < count; index++) {
        uint64_t key = first_key + index;
        int failure = on_element(BPF_MAP_UPDATE_ELEM, in_flight, &key, flight, BPF_NOEXIST);
        if (failure < 0)
            return failure;
    }
    return 0;
}

int clt_clear_in_flight(int in_flight, uint64_t first_key, uint32_t count)
{
    for (uint32_t index = 0; index < count; index++) {
        uint64_t key = first_key + index;
        int failure = on_element(BPF_MAP_DELETE_ELEM, in_flight, &key, NULL, 0);
        if (failure < 0 && failure != -ENOENT)
            return failure;
    }
    return 0;
}

int clt_mount_bpf_filesystem(const char *directory)
{
    return answered(mount("bpf", directory, "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700"));
}

bool clt_is_bpf_filesystem(const char *directory)
{
    struct statfs facts;
    return statfs(directory, &facts) == 0 && (uint32_t)facts.f_type == 0xCAFE4A11U;
}

size_t clt_next_marked(const uint64_t *words, size_t first, size_t end)
{
    while (first < end && (first & 7) != 0) {
        if (clt_load_word(words + first) != 0)
            return first;
        first++;
    }
    while (first + 8 <= end) {
        uint64_t any = 0;
        for (int index = 0; index < 8; index++)
            any |= __atomic_load_n(words + first + index, __ATOMIC_RELAXED);
        if (any != 0)
            break;
        first += 8;
    }
    while (first < end && clt_load_word(words + first) == 0)
        first++;
    return first;
}
