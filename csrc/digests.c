/* digests.c - digests of many pieces of memory in one call, each bound to a seed: what a receiver of cache blocks verifies.
 *
 * A piece is taken in stretches of 16 MiB: h begins as the seed, and becomes mix(h xor digest of the stretch) for each of them, where
 * that digest is the one of csrc/delta.h, a sum over words: of a piece of one stretch it can be taken while the bytes come, while the cache
 * has them. It finds damage, not forgery. */
#include "digests.h"

#include "delta_block.h"
#include "delta_isa.h"

_Static_assert((int)DIGEST_STRETCH_BYTES <= (int)DELTA_ELEMENTS_MAX, "a stretch is a block");

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
    return x ^ x >> 32;
}

/* `next`: the piece that comes then; NULL: none. */
static uint64_t digest_of(delta_kernels *k, const uint8_t *at, uint64_t bytes, uint64_t seed, const uint8_t *next)
{
    uint64_t h = mix(seed ^ bytes);
    for (uint64_t done = 0; done < bytes; done += DIGEST_STRETCH_BYTES) {
        uint64_t left = bytes - done;
        const uint8_t *then = left > DIGEST_STRETCH_BYTES ? at + done + DIGEST_STRETCH_BYTES : next;
        h = mix(h ^ k->digest_from(at + done, left < DIGEST_STRETCH_BYTES ? (size_t)left : DIGEST_STRETCH_BYTES, 0, then));
    }
    return h;
}

uint64_t digest_add(const uint8_t *at, size_t bytes, uint64_t from)
{
    return delta_kernels_of(NULL)->digest_from(at, bytes, from / 8, NULL);
}

uint64_t digest_end(uint64_t sum, uint64_t bytes, uint64_t seed)
{
    return mix(mix(seed ^ bytes) ^ sum);
}

void pccl_digest_pieces(const void *data, const uint64_t *offsets, uint64_t bytes, const uint64_t *seeds, uint32_t count, uint64_t *digests)
{
    delta_kernels *k = delta_kernels_of(NULL);
    const uint8_t *first = data;
    for (uint32_t i = 0; i < count; i++)
        digests[i] = digest_of(k, first + offsets[i], bytes, seeds[i], i + 1 < count ? first + offsets[i + 1] : NULL);
}
