/* mem.h - memory of the engine: small objects from malloc, big scratch from a pool.
 *
 * The pool keeps released buffers (scratch of meshes, backups of in-place inputs) warm, because the first touch of
 * fresh pages costs more than the copy that needs them. What was not needed for a while goes back to the system, so
 * that a rare coincidence of large ops is not paid for ever after. Engine thread only. */
#ifndef PCCL_MEM_H
#define PCCL_MEM_H

#include <stddef.h>
#include <stdint.h>

void *mem_alloc(size_t bytes);             /* zeroed; NULL when there is no memory */
void *mem_grow(void *old, size_t bytes);   /* as realloc */
void mem_free(void *p);

enum { POOL_CLASSES = 64 };

struct kept;                               /* lies in the buffer that is kept */

struct pool {
    struct kept *kept[POOL_CLASSES];       /* the one that was given back last */
    uint32_t kept_count[POOL_CLASSES];
    uint32_t spare[POOL_CLASSES];          /* of these, as many as were kept all the time since the last trim */
    uint64_t trim_at_ns;
    uint64_t kept_bytes;
    uint64_t held_bytes;                   /* kept and lent */
};

void *pool_take(struct pool *pool, size_t bytes);            /* not zeroed; NULL when there is no memory */
void pool_give(struct pool *pool, void *buffer, size_t bytes);  /* `bytes` as taken; buffer may be NULL */
void pool_trim(struct pool *pool, uint64_t now_ns);          /* call it often: frees what was idle for half a minute */
void pool_drain(struct pool *pool);

#endif
