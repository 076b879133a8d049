/* mem.c - the pool: buffers in power-of-two classes, mapped with huge pages where the system has them. */
#include "mem.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "err.h"

enum { POOL_SMALLEST_SHIFT = 16 };
static const uint64_t pool_kept_bytes_max = 1ULL << 30;
static const uint64_t pool_trim_ns = 30ULL * 1000000000ULL;

struct kept {
    struct kept *before;  /* given back before it */
};

void *mem_alloc(size_t bytes)
{
    return calloc(1, bytes ? bytes : 1);
}

void *mem_grow(void *old, size_t bytes)
{
    return realloc(old, bytes);
}

void mem_free(void *p)
{
    free(p);
}

static uint32_t class_of(size_t bytes)
{
    uint32_t shift = POOL_SMALLEST_SHIFT;
    while (shift < POOL_CLASSES - 1 && ((size_t)1 << shift) < bytes)
        shift++;
    return shift;
}

void *pool_take(struct pool *pool, size_t bytes)
{
    uint32_t shift = class_of(bytes);
    size_t size = (size_t)1 << shift;
    struct kept *warm = pool->kept[shift];
    if (warm) {
        pool->kept[shift] = warm->before;
        pool->kept_bytes -= size;
        if (pool->spare[shift] > --pool->kept_count[shift])
            pool->spare[shift] = pool->kept_count[shift];
        return warm;
    }
    void *buffer = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (buffer == MAP_FAILED)
        return NULL;
    if (size >= (size_t)1 << 21)
        (void)madvise(buffer, size, MADV_HUGEPAGE);
    pool->held_bytes += size;
    return buffer;
}

void pool_give(struct pool *pool, void *buffer, size_t bytes)
{
    if (!buffer)
        return;
    uint32_t shift = class_of(bytes);
    size_t size = (size_t)1 << shift;
    if (pool->kept_bytes + size <= pool_kept_bytes_max) {
        struct kept *last = buffer;
        last->before = pool->kept[shift];
        pool->kept[shift] = last;
        pool->kept_count[shift]++;
        pool->kept_bytes += size;
        return;
    }
    munmap(buffer, size);
    pool->held_bytes -= size;
}

/* The longest unused of a class: those that were given back first. */
static void release(struct pool *pool, uint32_t shift, uint32_t count)
{
    size_t size = (size_t)1 << shift;
    struct kept **end = &pool->kept[shift];
    for (uint32_t stay = pool->kept_count[shift] - count; stay; stay--)
        end = &(*end)->before;
    struct kept *old = *end;
    *end = NULL;
    while (old) {
        struct kept *before = old->before;
        munmap(old, size);
        old = before;
    }
    pool->kept_count[shift] -= count;
    pool->kept_bytes -= count * size;
    pool->held_bytes -= count * size;
}

void pool_trim(struct pool *pool, uint64_t now_ns)
{
    if (now_ns < pool->trim_at_ns)
        return;
    pool->trim_at_ns = now_ns + pool_trim_ns;
    for (uint32_t shift = 0; shift < POOL_CLASSES; shift++) {
        release(pool, shift, pool->spare[shift]);
        pool->spare[shift] = pool->kept_count[shift];
    }
}

void pool_drain(struct pool *pool)
{
    for (uint32_t shift = 0; shift < POOL_CLASSES; shift++) {
        release(pool, shift, pool->kept_count[shift]);
        pool->spare[shift] = 0;
    }
    ASSERT(pool->held_bytes == 0);
}
