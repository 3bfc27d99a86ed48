// The BPF programs that mark what is written to block devices in use, and the bpf() calls around
// them. Functions return what the kernel returned: a descriptor or 0, else a negative errno value.

#ifndef CLIVETRACKING_H
#define CLIVETRACKING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "CLiveTrackingLayout.h"

enum {
    CLT_PROGRAM_REQUEST_ISSUE,
    CLT_PROGRAM_REQUEST_COMPLETE_A,
    CLT_PROGRAM_REQUEST_COMPLETE_B,
    CLT_PROGRAM_REQUEST_COMPLETE_C,
    CLT_PROGRAM_BIO_QUEUE,
    CLT_PROGRAM_BIO_REMAP,
    CLT_PROGRAM_BIO_COMPLETE_A,
    CLT_PROGRAM_BIO_COMPLETE_B,
    CLT_PROGRAM_BIO_COMPLETE_C,
    CLT_PROGRAM_COUNT,
};

/// Descriptors of what was loaded; the caller closes them.
struct clt_loaded {
    int devices;
    int slots;
    int in_flight;
    int variables;
    int programs[CLT_PROGRAM_COUNT];
};

/// Loads maps and programs; nothing is attached yet.
int clt_load(struct clt_loaded *loaded);

/// The name of a program, as it is pinned.
const char *clt_program_name(int program);

/// Attaches a program to its tracepoint: the descriptor of the link.
int clt_attach(int program);

/// Pins a map, program or link in a BPF filesystem.
int clt_pin(int descriptor, const char *path);

/// Opens what is pinned at a path.
int clt_open_pinned(const char *path);

/// Makes a bitmap of so many words, header included.
int clt_bitmap_create(uint32_t word_count);

/// Words of a bitmap.
int clt_bitmap_word_count(int bitmap, uint32_t *word_count);

/// Gives a slot a bitmap. When it returns no program uses a former one.
int clt_slot_put(int devices, uint32_t slot, int bitmap);

/// Takes the bitmap out of a slot. When it returns no program uses it.
int clt_slot_remove(int devices, uint32_t slot);

/// The kernel's id of the bitmap in a slot; 0 when it has none.
int clt_slot_bitmap_id(int devices, uint32_t slot, uint32_t *id);

/// The kernel's id of a map.
int clt_map_id(int map, uint32_t *id);

/// Runs of a program that the kernel skipped, and its id.
int clt_program_misses(int program, uint64_t *misses, uint32_t *id);

/// The id of the program that a link runs.
int clt_link_program(int link, uint32_t *program_id);

/// Measuring of run times of all BPF programs of the machine, as long as the descriptor is open.
int clt_enable_statistics(void);

/// Runs of a program while statistics were enabled, and the nanoseconds they took.
int clt_program_times(int program, uint64_t *nanoseconds, uint64_t *runs);

/// Entries of in-flight bios; for tests and messages.
int clt_fill_in_flight(int in_flight, uint64_t first_key, uint32_t count);
int clt_clear_in_flight(int in_flight, uint64_t first_key, uint32_t count);

/// Mounts a BPF filesystem on a directory.
int clt_mount_bpf_filesystem(const char *directory);

/// Whether a directory is in a BPF filesystem.
bool clt_is_bpf_filesystem(const char *directory);

// -- bitmaps and slots, shared with the kernel

static inline uint64_t clt_load_word(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline void clt_store_word(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_SEQ_CST);
}

static inline void clt_clear_bits(uint64_t *word, uint64_t bits)
{
    __atomic_fetch_and(word, ~bits, __ATOMIC_SEQ_CST);
}

static inline void clt_set_bits(uint64_t *word, uint64_t bits)
{
    __atomic_fetch_or(word, bits, __ATOMIC_SEQ_CST);
}

/// The index of the first word from `first` on that is not zero; `end` when all are.
size_t clt_next_marked(const uint64_t *words, size_t first, size_t end);

#endif
