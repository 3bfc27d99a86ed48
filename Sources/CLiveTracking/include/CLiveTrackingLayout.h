// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// What the BPF programs and user space agree on: the header of a bitmap, in 64-bit words.

#ifndef CLIVETRACKING_LAYOUT_H
#define CLIVETRACKING_LAYOUT_H

enum {
    CLT_HEADER_WORDS = 512,
    CLT_DISK_COUNT_MAX = 1024,
    CLT_FLIGHT_COUNT_MAX = 65536,
};

enum {
    // Sectors of the disk << 8 | CLT_SHAPE_ALWAYS | log2 of sectors for each bit.
    CLT_WORD_SHAPE = 0,
    CLT_WORD_KIND = 1,
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

enum {
    CLT_SHAPE_SHIFT_MASK = 0x3f,
    // Set bits whether or not they are set already: processors that reorder loads.
    CLT_SHAPE_ALWAYS = 0x40,
    CLT_SHAPE_SECTORS_SHIFT = 8,
};

enum {
    CLT_KIND_REQUESTS = 0,
    CLT_KIND_MAPPED = 1,
};

#endif
