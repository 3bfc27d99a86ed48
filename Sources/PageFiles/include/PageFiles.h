// The files of the page, in the program itself: it is one static file, and the page works without
// access to anything else.

#ifndef PAGE_FILES_H
#define PAGE_FILES_H

/// One file of the page.
struct page_file {
    /// Path of its URL.
    const char *path;
    /// Its media type.
    const char *type;
    const unsigned char *bytes;
    unsigned long byte_count;
};

/// The file of that number, from 0 on; NULL behind the last one.
const struct page_file *page_file_at(unsigned long index);

#endif
