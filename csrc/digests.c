/* digests.c - digests of many pieces of memory in one call, each bound to a seed: what a receiver of cache blocks verifies.
 *
 * A piece is taken in stretches of DIGEST_BYTES: h begins as the seed, and becomes mix(h xor digest of the stretch) for each of them, where
 * that digest is the one of csrc/delta.h. It finds damage, not forgery. */
#include "delta_block.h"
#include "delta_isa.h"

enum { DIGEST_BYTES = DELTA_ELEMENTS_MAX };

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
    return x ^ x >> 32;
}

static uint64_t digest_of(delta_kernels *k, const uint8_t *at, uint64_t bytes, uint64_t seed)
{
    uint64_t h = mix(seed ^ bytes);
    for (uint64_t done = 0; done < bytes; done += DIGEST_BYTES) {
        uint64_t left = bytes - done;
        struct delta_span span = {at + done, left < DIGEST_BYTES ? (uint32_t)left : DIGEST_BYTES, 0};
        h = mix(h ^ k->digest(&span));
    }
    return h;
}

void pccl_digest_pieces(const void *data, const uint64_t *offsets, uint64_t bytes, const uint64_t *seeds, uint32_t count, uint64_t *digests)
{
    delta_kernels *k = delta_kernels_of(NULL);
    for (uint32_t i = 0; i < count; i++)
        digests[i] = digest_of(k, (const uint8_t *)data + offsets[i], bytes, seeds[i]);
}
