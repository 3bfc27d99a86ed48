// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// What the BPF programs and user space agree on: the header of a bitmap, in 64-bit words, and the
// programs' variables.

#ifndef CLIVETRACKING_LAYOUT_H
#define CLIVETRACKING_LAYOUT_H

enum {
    // Of programs and maps: a service takes over pins of its own version only.
    CLT_VERSION = 1,
    CLT_HEADER_WORDS = 512,
    // Of this many slots a disk has one of the PROBE_COUNT that begin at its sequence number.
    CLT_SLOT_COUNT = 1024,
    CLT_PROBE_COUNT = 8,
    CLT_FLIGHT_COUNT_MAX = 65536,
};

enum {
    // As in the slot.
    CLT_WORD_SHAPE = 0,
    // Counters of doubt.
    CLT_WORD_BEYOND = 2,
    CLT_WORD_PASSTHROUGH = 3,
    CLT_WORD_CHAIN = 4,
    CLT_WORD_FULL = 5,
    CLT_WORD_TWICE = 6,
    // Written by user space alone.
    CLT_WORD_MAGIC = 8,
    CLT_WORD_TOKEN_HIGH = 9,
    CLT_WORD_TOKEN_LOW = 10,
    CLT_WORD_DISK = 11,
};

// Sectors of the disk << 8 | flags | log2 of sectors for each bit.
enum {
    CLT_SHAPE_SHIFT_MASK = 0x3f,
    // Set bits whether or not they are set already: processors that reorder loads.
    CLT_SHAPE_ALWAYS = 0x40,
    // A mapped device: it has bios and no requests.
    CLT_SHAPE_MAPPED = 0x80,
    CLT_SHAPE_SECTORS_SHIFT = 8,
};

struct clt_slot {
    // Its sequence number; 0: the slot is free. Written last and cleared first.
    unsigned long long disk;
    unsigned long long shape;
};

struct clt_variables {
    // Used by user space alone: CLT_VERSION.
    unsigned long long version;
    // Bit n: a disk whose sequence number is n modulo 64 is tracked.
    unsigned long long wanted;
    // Used by user space alone: skipped runs, of requests and of bios, that histories were told of.
    unsigned long long known_request_misses;
    unsigned long long known_bio_misses;
};

#endif
