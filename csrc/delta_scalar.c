/* delta_scalar.c - the loops of delta for every machine: nothing beyond what the compiler assumes of all of them. */
#include "delta_isa.h"

#define ISA_TARGET
#define ISA_KERNELS delta_kernels_scalar

#include "delta_word.h"

ISA_INLINE uint64_t changed_64(const uint8_t *old, const uint8_t *new, unsigned shift)
{
    uint64_t mask = 0;
    for (unsigned i = 0; i < 64; i += 8u >> shift) {
        uint64_t differ = bits_load(old + ((size_t)i << shift)) ^ bits_load(new + ((size_t)i << shift));
        for (unsigned j = 0; differ; j++, differ = shift == 0 ? differ >> 8 : shift == 1 ? differ >> 16 : differ >> 32)
            mask |= (uint64_t)((differ & bits_mask(8u << shift)) != 0) << (i + j);
    }
    return mask;
}

ISA_INLINE void classify_64(const uint8_t *at, unsigned shift, const struct delta_classes *how, uint8_t classes[64],
                            uint64_t planes[CLASS_BITS])
{
    memset(planes, 0, CLASS_BITS * sizeof planes[0]);
    for (uint32_t i = 0; i < 64; i++) {
        uint32_t c = class_of(element_of(at, shift, i), shift, how);
        classes[i] = (uint8_t)c;
        for (unsigned j = 0; j < CLASS_BITS; j++)
            planes[j] |= (uint64_t)(c >> j & 1) << i;
    }
}

ISA_INLINE uint32_t pass(const uint32_t *counts, const uint32_t *next, uint32_t *passed)
{
    uint32_t found = 0;
    for (uint32_t c = 0; c < DELTA_CLASSES_MAX; c++) {
        passed[c] += counts[c];
        found |= (uint32_t)(passed[c] > next[c]) << c;
    }
    return found;
}

ISA_INLINE uint64_t nth_bit(uint64_t mask, uint32_t n)
{
    while (n-- > 0)
        mask &= mask - 1;
    return mask & (0 - mask);
}

ISA_INLINE uint64_t digest_words(const uint8_t *at, size_t words, uint64_t first, const uint8_t *ahead)
{
    (void)ahead;
    uint64_t sum = 0;
    for (size_t i = 0; i < words; i++)
        sum += digest_word(bits_load(at + 8 * i), first + i);
    return sum;
}

ISA_INLINE void hash_stripes(uint64_t sums[8], const uint8_t *at, const uint8_t *secret, size_t stripes)
{
    for (size_t i = 0; i < stripes; i++)
        for (unsigned lane = 0; lane < 8; lane++) {
            uint64_t x = bits_load(at + 64 * i + 8 * lane), y = x ^ bits_load(secret + 8 * i + 8 * lane);
            sums[lane ^ 1] += x;
            sums[lane] += (y & UINT32_MAX) * (y >> 32);
        }
}

ISA_INLINE void hash_scramble(uint64_t sums[8], const uint8_t *secret)
{
    for (unsigned lane = 0; lane < 8; lane++)
        sums[lane] = (sums[lane] ^ sums[lane] >> 47 ^ bits_load(secret + 8 * lane)) * hash_prime;
}

#include "delta_template.h"
