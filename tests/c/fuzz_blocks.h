/* fuzz_blocks.h - big blocks of the engine's memory, used again by the next input: to map, poison and unmap them under the address
 * sanitizer costs more than everything else that an input does.
 *
 * A program that is linked with --wrap=mem_alloc --wrap=mem_free gets its blocks here from BLOCK_BYTES_MIN on: zeroed, of the exact
 * size, poisoned behind their end, and, while they are free, as far as BLOCK_POISON_BYTES. */
#ifndef PCCL_FUZZ_BLOCKS_H
#define PCCL_FUZZ_BLOCKS_H

#include <stdlib.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(from, bytes) ((void)(from), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(from, bytes) ((void)(from), (void)(bytes))
#endif

enum { BLOCK_BYTES_MIN = 64 << 10, BLOCK_GUARD_BYTES = 4096, BLOCK_POISON_BYTES = 64 << 10, BLOCKS = 32 };

static struct block {
    uint8_t *at;
    size_t bytes;
    int is_taken;
} blocks[BLOCKS];

void *__real_mem_alloc(size_t bytes);
void __real_mem_free(void *p);
void *__wrap_mem_alloc(size_t bytes);
void __wrap_mem_free(void *p);

static struct block *block_new(struct block *b, size_t bytes)
{
    void *at = mmap(NULL, bytes + BLOCK_GUARD_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return NULL;
    *b = (struct block){.at = at, .bytes = bytes};
    ASAN_POISON_MEMORY_REGION(b->at + bytes, BLOCK_GUARD_BYTES);
    return b;
}

void *__wrap_mem_alloc(size_t bytes)
{
    struct block *b = blocks;
    if (bytes < BLOCK_BYTES_MIN)
        return __real_mem_alloc(bytes);
    while (b < blocks + BLOCKS && b->at && (b->is_taken || b->bytes != bytes))
        b++;
    if (b == blocks + BLOCKS || (!b->at && !block_new(b, bytes)))
        return __real_mem_alloc(bytes);
    b->is_taken = 1;
    ASAN_UNPOISON_MEMORY_REGION(b->at, BLOCK_POISON_BYTES);
    return b->at;
}

void __wrap_mem_free(void *p)
{
    for (struct block *b = blocks; p && b < blocks + BLOCKS; b++) {
        if (b->at != p)
            continue;
        b->is_taken = 0;
        (void)madvise(b->at, b->bytes, MADV_DONTNEED);
        ASAN_POISON_MEMORY_REGION(b->at, BLOCK_POISON_BYTES);
        return;
    }
    __real_mem_free(p);
}

#endif
