/* mem.c - the pool: buffers in power-of-two classes, mapped with huge pages where the system has them. */
#include "mem.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "err.h"

enum { POOL_SMALLEST_SHIFT = 16 };
static const uint64_t pool_kept_bytes_max = 1ULL << 30;

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
        return pool->kept[shift][--pool->kept_count[shift]];
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

void pool_drain(struct pool *pool)
{
    for (uint32_t shift = 0; shift < POOL_CLASSES; shift++) {
        size_t size = (size_t)1 << shift;
        while (pool->kept_count[shift]) {
            munmap(pool->kept[shift][--pool->kept_count[shift]], size);
            pool->held_bytes -= size;
        }
    }
    pool->kept_bytes = 0;
    ASSERT(pool->held_bytes == 0);
}
