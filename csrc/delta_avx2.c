/* delta_avx2.c - the loops of delta in AVX2, with BMI2 and POPCNT. */
#include "delta_isa.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define ISA_TARGET __attribute__((target("avx2,bmi,bmi2,popcnt")))
#define ISA_KERNELS delta_kernels_avx2

#include "delta_word.h"

ISA_INLINE __m256i load(const uint8_t *at)
{
    return _mm256_loadu_si256((const __m256i *)at);
}

ISA_INLINE uint64_t bytes_mask(__m256i x)
{
    return (uint32_t)_mm256_movemask_epi8(x);
}

/* Two vectors of 16-bit lanes as one of bytes. */
ISA_INLINE __m256i pack(__m256i a, __m256i b, int is_signed)
{
    return _mm256_permute4x64_epi64(is_signed ? _mm256_packs_epi16(a, b) : _mm256_packus_epi16(a, b), 0xd8);
}

/* Two vectors of 32-bit lanes, not negative as signed 16-bit values or all ones, as one of 16-bit lanes. */
ISA_INLINE __m256i pack_words(__m256i a, __m256i b)
{
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
}

/* A bit for each of 32 elements that is the same. */
ISA_INLINE uint64_t same_32(const uint8_t *a, const uint8_t *b, unsigned shift)
{
    if (shift == 0)
        return bytes_mask(_mm256_cmpeq_epi8(load(a), load(b)));
    __m256i x[4];
    for (unsigned i = 0; i < 1u << shift; i++)
        x[i] = shift == 1 ? _mm256_cmpeq_epi16(load(a + 32 * i), load(b + 32 * i)) : _mm256_cmpeq_epi32(load(a + 32 * i), load(b + 32 * i));
    if (shift == 1)
        return bytes_mask(pack(x[0], x[1], 1));
    return bytes_mask(pack(pack_words(x[0], x[1]), pack_words(x[2], x[3]), 1));
}

ISA_INLINE uint64_t changed_64(const uint8_t *old, const uint8_t *new, unsigned shift)
{
    size_t half = (size_t)32 << shift;
    return ~(same_32(old, new, shift) | same_32(old + half, new + half, shift) << 32);
}

ISA_INLINE __m256i fields_32(const uint8_t *at, unsigned shift, unsigned low)
{
    __m128i by = _mm_cvtsi32_si128((int)low);
    if (shift == 0)
        return _mm256_and_si256(_mm256_srl_epi16(load(at), by), _mm256_set1_epi8((char)bits_mask(7 - low)));
    __m256i x[4], mask = shift == 1 ? _mm256_set1_epi16((short)bits_mask(15 - low)) : _mm256_set1_epi32((int)bits_mask(31 - low));
    for (unsigned i = 0; i < 1u << shift; i++)
        x[i] = _mm256_and_si256(shift == 1 ? _mm256_srl_epi16(load(at + 32 * i), by) : _mm256_srl_epi32(load(at + 32 * i), by), mask);
    return shift == 1 ? pack(x[0], x[1], 0) : pack(pack_words(x[0], x[1]), pack_words(x[2], x[3]), 0);
}

ISA_INLINE void classify_64(const uint8_t *at, unsigned shift, const struct delta_classes *how, uint8_t classes[64],
                            uint64_t planes[CLASS_BITS])
{
    __m256i x[2];
    for (unsigned i = 0; i < 2; i++) {
        x[i] = _mm256_subs_epu8(fields_32(at + (((size_t)32 << shift) * i), shift, how->low), _mm256_set1_epi8((char)how->base));
        x[i] = _mm256_min_epu8(x[i], _mm256_set1_epi8((char)(how->count - 1)));
        _mm256_storeu_si256((__m256i *)classes + i, x[i]);
    }
    for (int j = 0; j < CLASS_BITS; j++)
        planes[j] = bytes_mask(_mm256_slli_epi16(x[0], 7 - j)) | bytes_mask(_mm256_slli_epi16(x[1], 7 - j)) << 32;
}

/* Greater, unsigned, is not "least of both and equal". */
ISA_INLINE uint32_t pass(const uint32_t *counts, const uint32_t *next, uint32_t *passed)
{
    uint32_t found = 0;
    for (unsigned i = 0; i < 2; i++) {
        __m256i x = _mm256_add_epi32(load((const uint8_t *)(passed + 8 * i)), load((const uint8_t *)(counts + 8 * i)));
        _mm256_storeu_si256((__m256i *)(passed + 8 * i), x);
        __m256i not = _mm256_cmpeq_epi32(_mm256_min_epu32(x, load((const uint8_t *)(next + 8 * i))), x);
        found |= (~(uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(not)) & 255u) << 8 * i;
    }
    return found;
}

ISA_INLINE uint64_t nth_bit(uint64_t mask, uint32_t n)
{
    return _pdep_u64((uint64_t)1 << n, mask);
}

ISA_INLINE uint64_t digest_words(const uint8_t *at, size_t words, uint64_t first, const uint8_t *ahead)
{
    uint64_t keys[4], sums[4];
    for (unsigned i = 0; i < 4; i++)
        keys[i] = (first + 1 + i) * digest_key;
    __m256i key = load((const uint8_t *)keys), sum = _mm256_setzero_si256(), swapped = sum;
    const __m256i step = _mm256_set1_epi64x((long long)(4 * digest_key));
    size_t i = 0;
    for (; i + 4 <= words; i += 4) {
        DIGEST_PREFETCH(ahead + 8 * i);
        __m256i x = load(at + 8 * i), y = _mm256_xor_si256(x, key);
        sum = _mm256_add_epi64(sum, _mm256_mul_epu32(y, _mm256_srli_epi64(y, 32)));
        swapped = _mm256_add_epi64(swapped, _mm256_shuffle_epi32(x, 0xb1));
        key = _mm256_add_epi64(key, step);
    }
    _mm256_storeu_si256((__m256i *)sums, _mm256_add_epi64(sum, swapped));
    uint64_t total = sums[0] + sums[1] + sums[2] + sums[3];
    for (; i < words; i++)
        total += digest_word(bits_load(at + 8 * i), first + i);
    return total;
}

ISA_INLINE void hash_stripes(uint64_t sums[8], const uint8_t *at, const uint8_t *secret, size_t stripes)
{
    __m256i sum[2] = {load((const uint8_t *)sums), load((const uint8_t *)(sums + 4))};
    for (size_t i = 0; i < stripes; i++)
        for (unsigned half = 0; half < 2; half++) {
            __m256i x = load(at + 64 * i + 32 * half), y = _mm256_xor_si256(x, load(secret + 8 * i + 32 * half));
            __m256i product = _mm256_mul_epu32(y, _mm256_srli_epi64(y, 32));
            sum[half] = _mm256_add_epi64(sum[half], _mm256_add_epi64(product, _mm256_shuffle_epi32(x, 0x4e)));
        }
    _mm256_storeu_si256((__m256i *)sums, sum[0]);
    _mm256_storeu_si256((__m256i *)(sums + 4), sum[1]);
}

ISA_INLINE void hash_scramble(uint64_t sums[8], const uint8_t *secret)
{
    const __m256i prime = _mm256_set1_epi64x((long long)hash_prime);
    for (unsigned half = 0; half < 2; half++) {
        __m256i sum = load((const uint8_t *)(sums + 4 * half));
        sum = _mm256_xor_si256(_mm256_xor_si256(sum, _mm256_srli_epi64(sum, 47)), load(secret + 32 * half));
        __m256i high = _mm256_slli_epi64(_mm256_mul_epu32(_mm256_srli_epi64(sum, 32), prime), 32);
        _mm256_storeu_si256((__m256i *)(sums + 4 * half), _mm256_add_epi64(_mm256_mul_epu32(sum, prime), high));
    }
}

#include "delta_template.h"

#endif
