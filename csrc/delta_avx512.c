/* delta_avx512.c - the loops of delta in AVX-512 (F, BW, DQ, VL), with BMI2 and POPCNT. */
#include "delta_isa.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define ISA_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,bmi,bmi2,popcnt")))
#define ISA_KERNELS delta_kernels_avx512

#include "delta_word.h"

ISA_INLINE uint64_t changed_64(const uint8_t *old, const uint8_t *new, unsigned shift)
{
    __m512i a[4], b[4];
    for (unsigned i = 0; i < 1u << shift; i++) {
        a[i] = _mm512_loadu_si512(old + 64 * i);
        b[i] = _mm512_loadu_si512(new + 64 * i);
    }
    if (shift == 0)
        return _mm512_cmpneq_epi8_mask(a[0], b[0]);
    if (shift == 1)
        return _mm512_cmpneq_epi16_mask(a[0], b[0]) | (uint64_t)_mm512_cmpneq_epi16_mask(a[1], b[1]) << 32;
    return _mm512_cmpneq_epi32_mask(a[0], b[0]) | (uint64_t)_mm512_cmpneq_epi32_mask(a[1], b[1]) << 16 |
           (uint64_t)_mm512_cmpneq_epi32_mask(a[2], b[2]) << 32 | (uint64_t)_mm512_cmpneq_epi32_mask(a[3], b[3]) << 48;
}

/* The classes' bits of 64 elements, as bytes. */
ISA_INLINE __m512i fields_64(const uint8_t *at, unsigned shift, unsigned low)
{
    __m128i by = _mm_cvtsi32_si128((int)low);
    if (shift == 0)
        return _mm512_and_si512(_mm512_srl_epi16(_mm512_loadu_si512(at), by), _mm512_set1_epi8((char)bits_mask(7 - low)));
    if (shift == 1) {
        __m512i mask = _mm512_set1_epi16((short)bits_mask(15 - low));
        __m512i a = _mm512_and_si512(_mm512_srl_epi16(_mm512_loadu_si512(at), by), mask);
        __m512i b = _mm512_and_si512(_mm512_srl_epi16(_mm512_loadu_si512(at + 64), by), mask);
        return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(a)), _mm512_cvtepi16_epi8(b), 1);
    }
    __m512i x = _mm512_setzero_si512(), mask = _mm512_set1_epi32((int)bits_mask(31 - low));
    x = _mm512_inserti32x4(x, _mm512_cvtepi32_epi8(_mm512_and_si512(_mm512_srl_epi32(_mm512_loadu_si512(at), by), mask)), 0);
    x = _mm512_inserti32x4(x, _mm512_cvtepi32_epi8(_mm512_and_si512(_mm512_srl_epi32(_mm512_loadu_si512(at + 64), by), mask)), 1);
    x = _mm512_inserti32x4(x, _mm512_cvtepi32_epi8(_mm512_and_si512(_mm512_srl_epi32(_mm512_loadu_si512(at + 128), by), mask)), 2);
    return _mm512_inserti32x4(x, _mm512_cvtepi32_epi8(_mm512_and_si512(_mm512_srl_epi32(_mm512_loadu_si512(at + 192), by), mask)), 3);
}

ISA_INLINE void classify_64(const uint8_t *at, unsigned shift, const struct delta_classes *how, uint8_t classes[64],
                            uint64_t planes[CLASS_BITS])
{
    __m512i x = _mm512_subs_epu8(fields_64(at, shift, how->low), _mm512_set1_epi8((char)how->base));
    x = _mm512_min_epu8(x, _mm512_set1_epi8((char)(how->count - 1)));
    _mm512_storeu_si512(classes, x);
    for (int j = 0; j < CLASS_BITS; j++)
        planes[j] = _mm512_test_epi8_mask(x, _mm512_set1_epi8((char)(1 << j)));
}

ISA_INLINE uint32_t pass(const uint32_t *counts, const uint32_t *next, uint32_t *passed)
{
    __m512i x = _mm512_add_epi32(_mm512_loadu_si512(passed), _mm512_loadu_si512(counts));
    _mm512_storeu_si512(passed, x);
    return _mm512_cmpgt_epu32_mask(x, _mm512_loadu_si512(next));
}

ISA_INLINE uint64_t nth_bit(uint64_t mask, uint32_t n)
{
    return _pdep_u64((uint64_t)1 << n, mask);
}

ISA_INLINE uint64_t digest_words(const uint8_t *at, size_t words, uint64_t first, const uint8_t *ahead)
{
    __m512i lane = _mm512_setr_epi64(1, 2, 3, 4, 5, 6, 7, 8), sum = _mm512_setzero_si512(), swapped = sum;
    __m512i key = _mm512_mullo_epi64(_mm512_add_epi64(_mm512_set1_epi64((long long)first), lane), _mm512_set1_epi64((long long)digest_key));
    const __m512i step = _mm512_set1_epi64((long long)(8 * digest_key));
    size_t i = 0;
    for (; i + 8 <= words; i += 8) {
        DIGEST_PREFETCH(ahead + 8 * i);
        __m512i x = _mm512_loadu_si512(at + 8 * i), y = _mm512_xor_si512(x, key);
        sum = _mm512_add_epi64(sum, _mm512_mul_epu32(y, _mm512_srli_epi64(y, 32)));
        swapped = _mm512_add_epi64(swapped, _mm512_shuffle_epi32(x, _MM_PERM_CDAB));
        key = _mm512_add_epi64(key, step);
    }
    uint64_t sums[8], total = 0;
    _mm512_storeu_si512(sums, _mm512_add_epi64(sum, swapped));
    for (unsigned j = 0; j < 8; j++)
        total += sums[j];
    for (; i < words; i++)
        total += digest_word(bits_load(at + 8 * i), first + i);
    return total;
}

ISA_INLINE void hash_stripes(uint64_t sums[8], const uint8_t *at, const uint8_t *secret, size_t stripes)
{
    __m512i sum = _mm512_loadu_si512(sums);
    for (size_t i = 0; i < stripes; i++) {
        __m512i x = _mm512_loadu_si512(at + 64 * i), y = _mm512_xor_si512(x, _mm512_loadu_si512(secret + 8 * i));
        __m512i product = _mm512_mul_epu32(y, _mm512_srli_epi64(y, 32));
        sum = _mm512_add_epi64(sum, _mm512_add_epi64(product, _mm512_shuffle_epi32(x, _MM_PERM_BADC)));
    }
    _mm512_storeu_si512(sums, sum);
}

ISA_INLINE void hash_scramble(uint64_t sums[8], const uint8_t *secret)
{
    __m512i sum = _mm512_loadu_si512(sums);
    sum = _mm512_xor_si512(_mm512_xor_si512(sum, _mm512_srli_epi64(sum, 47)), _mm512_loadu_si512(secret));
    _mm512_storeu_si512(sums, _mm512_mullo_epi64(sum, _mm512_set1_epi64((long long)hash_prime)));
}

#include "delta_template.h"

#endif
