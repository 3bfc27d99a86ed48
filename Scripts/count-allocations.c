/* Counts what a process allocates, into a file that Scripts/count-allocations reads. Preloaded. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <execinfo.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

#define SLOT_COUNT 255

struct slot {
    _Atomic long thread;
    _Atomic long allocations;
};

/* Word 0: how many allocations from now on leave a backtrace on standard error (set by the script).
   Word 1: all allocations. Then one slot per thread that has allocated. */
struct page {
    _Atomic long backtraces;
    _Atomic long allocations;
    struct slot slots[SLOT_COUNT];
};

static struct page *page;
static __thread struct slot *own __attribute__((tls_model("initial-exec")));
static __thread int is_tracing __attribute__((tls_model("initial-exec")));

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("COUNT_ALLOCATIONS_FILE");
    if (!path) return;
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return;
    void *memory = mmap(NULL, sizeof(struct page), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory != MAP_FAILED) page = memory;
}

static void count(void) {
    if (!page) return;
    atomic_fetch_add_explicit(&page->allocations, 1, memory_order_relaxed);
    if (!own) {
        long thread = syscall(SYS_gettid);
        for (int index = 0; index < SLOT_COUNT && !own; index++) {
            long nobody = 0;
            if (atomic_compare_exchange_strong(&page->slots[index].thread, &nobody, thread)) {
                own = &page->slots[index];
            }
        }
    }
    if (own) atomic_fetch_add_explicit(&own->allocations, 1, memory_order_relaxed);
    if (!is_tracing && atomic_load_explicit(&page->backtraces, memory_order_relaxed) > 0) {
        is_tracing = 1;
        if (atomic_fetch_sub(&page->backtraces, 1) > 0) {
            void *frames[24];
            int depth = backtrace(frames, 24);
            backtrace_symbols_fd(frames, depth, 2);
            (void)!write(2, "--\n", 3);
        }
        is_tracing = 0;
    }
}

void *malloc(size_t size) {
    count();
    return __libc_malloc(size);
}

void *calloc(size_t number, size_t size) {
    count();
    return __libc_calloc(number, size);
}

void *realloc(void *old, size_t size) {
    count();
    return __libc_realloc(old, size);
}

void *memalign(size_t alignment, size_t size) {
    count();
    return __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
    count();
    return __libc_memalign(alignment, size);
}

int posix_memalign(void **result, size_t alignment, size_t size) {
    count();
    void *memory = __libc_memalign(alignment, size);
    if (!memory) return ENOMEM;
    *result = memory;
    return 0;
}
