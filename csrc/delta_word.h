/* delta_word.h - one element, its class, and one word of a digest: what all instruction sets say alike. */
#ifndef PCCL_DELTA_WORD_H
#define PCCL_DELTA_WORD_H

#include "delta_isa.h"

#define ISA_INLINE ISA_TARGET static inline __attribute__((always_inline))

/* Bytes: digests come before all else that is done with a tile, and fetch the next one. */
enum { DIGEST_AHEAD = 4096 };

static const uint64_t digest_key = 0x9e3779b97f4a7c15u;

static inline uint64_t digest_word(uint64_t x, uint64_t i)
{
    uint64_t y = x ^ (i + 1) * digest_key;
    return (y & UINT32_MAX) * (y >> 32) + (x << 32 | x >> 32);
}

static inline uint32_t element_of(const uint8_t *at, unsigned shift, uint32_t i)
{
    uint16_t half;
    uint32_t word;
    switch (shift) {
    case 0:
        return at[i];
    case 1:
        memcpy(&half, at + (size_t)2 * i, sizeof half);
        return half;
    default:
        memcpy(&word, at + (size_t)4 * i, sizeof word);
        return word;
    }
}

static inline void element_set(uint8_t *at, unsigned shift, uint32_t i, uint32_t x)
{
    uint16_t half = (uint16_t)x;
    if (shift == 0)
        at[i] = (uint8_t)x;
    else if (shift == 1)
        memcpy(at + (size_t)2 * i, &half, sizeof half);
    else
        memcpy(at + (size_t)4 * i, &x, sizeof x);
}

/* The bits that classes are made of. */
static inline uint32_t field_of(uint32_t x, unsigned shift, unsigned low)
{
    return (x & (uint32_t)bits_mask((8u << shift) - 1)) >> low;
}

static inline uint32_t class_of(uint32_t x, unsigned shift, const struct delta_classes *how)
{
    uint32_t field = field_of(x, shift, how->low), class = field > how->base ? field - how->base : 0;
    return class < how->count ? class : how->count - 1;
}

#endif
