/* mem.c - the pool: buffers in power-of-two classes, mapped with huge pages where the system has them. */
#include "mem.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "err.h"

enum { POOL_SMALLEST_SHIFT = 16 };
static const uint64_t pool_kept_bytes_max = 1ULL << 30;
static const uint64_t pool_trim_ns = 30ULL * 1000000000ULL;

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
    if (pool->kept_count[shift]) {
        pool->kept_bytes -= size;
        void *warm = pool->kept[shift][--pool->kept_count[shift]];
        if (pool->spare[shift] > pool->kept_count[shift])
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
    if (pool->kept_count[shift] < POOL_KEPT_PER_CLASS && pool->kept_bytes + size <= pool_kept_bytes_max) {
        pool->kept[shift][pool->kept_count[shift]++] = buffer;
        pool->kept_bytes += size;
        return;
    }
    munmap(buffer, size);
    pool->held_bytes -= size;
}

/* The longest unused of a class: those that lie at the bottom. */
static void release(struct pool *pool, uint32_t shift, uint32_t count)
{
    size_t size = (size_t)1 << shift;
    void **kept = pool->kept[shift];
    for (uint32_t i = 0; i < count; i++)
        munmap(kept[i], size);
    pool->kept_count[shift] -= count;
    memmove(kept, kept + count, pool->kept_count[shift] * sizeof *kept);
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
