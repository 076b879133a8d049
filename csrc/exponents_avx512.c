/* exponents_avx512.c - the loops of exponents in AVX-512 (F, BW, DQ, VL). */
#include "exponents_isa.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define ISA_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,bmi,popcnt")))
#define ISA_INLINE ISA_TARGET static inline __attribute__((always_inline))
#define ISA_KERNELS exponents_kernels_avx512

#include "exponents_lanes.h"

typedef __m512i vec;

ISA_INLINE vec vec_get(const uint8_t *at)
{
    return _mm512_loadu_si512(at);
}

ISA_INLINE void vec_put(uint8_t *at, vec x)
{
    _mm512_storeu_si512(at, x);
}

ISA_INLINE vec vec_splat(uint8_t byte)
{
    return _mm512_set1_epi8((char)byte);
}

ISA_INLINE vec vec_pick(vec all, vec x, vec is, vec becomes)
{
    return _mm512_mask_mov_epi8(all, _mm512_cmpeq_epi8_mask(x, is), becomes);
}

ISA_INLINE vec vec_xor(vec a, vec b)
{
    return _mm512_xor_si512(a, b);
}

ISA_INLINE uint64_t vec_equal(vec a, vec b)
{
    return _mm512_cmpeq_epi8_mask(a, b);
}

ISA_INLINE void vec_tally(vec *sums, vec *seen, vec x, vec is)
{
    __mmask64 mask = _mm512_cmpeq_epi8_mask(x, is);
    vec ones = _mm512_set1_epi8(-1);
    *sums = _mm512_mask_sub_epi8(*sums, mask, *sums, ones);
    *seen = _mm512_mask_mov_epi8(*seen, mask, ones);
}

ISA_INLINE uint32_t vec_total(vec sums)
{
    return (uint32_t)_mm512_reduce_add_epi64(_mm512_sad_epu8(sums, _mm512_setzero_si512()));
}

/* The low bytes of two vectors of 16-bit lanes. */
ISA_INLINE vec low_bytes(vec a, vec b)
{
    const vec byte = _mm512_set1_epi16(0xff), order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    return _mm512_permutexvar_epi64(order, _mm512_packus_epi16(_mm512_and_si512(a, byte), _mm512_and_si512(b, byte)));
}

ISA_INLINE vec rest_of(vec values)
{
    return _mm512_or_si512(_mm512_slli_epi16(values, 1), _mm512_srli_epi16(values, 15));
}

ISA_INLINE void vec_split(const uint8_t *values, vec *exponents, vec *rests)
{
    vec a = vec_get(values), b = vec_get(values + 64);
    *exponents = low_bytes(_mm512_srli_epi16(a, 7), _mm512_srli_epi16(b, 7));
    *rests = low_bytes(rest_of(a), rest_of(b));
}

ISA_INLINE vec join(__m256i exponents, __m256i rests)
{
    vec exponent = _mm512_cvtepu8_epi16(exponents), rest = _mm512_cvtepu8_epi16(rests);
    return _mm512_or_si512(_mm512_or_si512(_mm512_slli_epi16(rest, 15), _mm512_slli_epi16(exponent, 7)), _mm512_srli_epi16(rest, 1));
}

ISA_INLINE void vec_join(vec exponents, vec rests, uint8_t *values)
{
    vec_put(values, join(_mm512_castsi512_si256(exponents), _mm512_castsi512_si256(rests)));
    vec_put(values + 64, join(_mm512_extracti64x4_epi64(exponents, 1), _mm512_extracti64x4_epi64(rests, 1)));
}

/* What is not below the mask moves down by so many bits. */
ISA_INLINE vec closer(vec x, uint64_t below, unsigned bits)
{
    const vec mask = _mm512_set1_epi64((long long)below);
    return _mm512_or_si512(_mm512_and_si512(x, mask), _mm512_srl_epi64(_mm512_andnot_si512(mask, x), _mm_cvtsi32_si128((int)bits)));
}

ISA_INLINE vec apart(vec x, uint64_t below, unsigned bits)
{
    const vec mask = _mm512_set1_epi64((long long)below);
    return _mm512_or_si512(_mm512_and_si512(x, mask), _mm512_sll_epi64(_mm512_andnot_si512(mask, x), _mm_cvtsi32_si128((int)bits)));
}

ISA_INLINE vec in_lanes(const uint8_t order[16])
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)order));
}

ISA_INLINE void vec_pack(vec codes, unsigned width, uint8_t *to)
{
    unsigned gap = 8 - width;
    codes = closer(codes, CODES_1, gap);
    codes = closer(codes, CODES_2, 2 * gap);
    codes = closer(codes, CODES_4, 4 * gap);
    codes = _mm512_shuffle_epi8(codes, in_lanes(lanes_packed[width]));
    _mm_storeu_si128((__m128i *)(void *)to, _mm512_castsi512_si128(codes));
    _mm_storeu_si128((__m128i *)(void *)(to + (size_t)2 * width), _mm512_extracti32x4_epi32(codes, 1));
    _mm_storeu_si128((__m128i *)(void *)(to + (size_t)4 * width), _mm512_extracti32x4_epi32(codes, 2));
    _mm_storeu_si128((__m128i *)(void *)(to + (size_t)6 * width), _mm512_extracti32x4_epi32(codes, 3));
}

ISA_INLINE __m128i lane(const uint8_t *from)
{
    return _mm_loadu_si128((const __m128i *)(const void *)from);
}

ISA_INLINE vec vec_unpack(const uint8_t *from, unsigned width)
{
    unsigned gap = 8 - width;
    vec codes = _mm512_castsi128_si512(lane(from));
    codes = _mm512_inserti32x4(codes, lane(from + (size_t)2 * width), 1);
    codes = _mm512_inserti32x4(codes, lane(from + (size_t)4 * width), 2);
    codes = _mm512_inserti32x4(codes, lane(from + (size_t)6 * width), 3);
    codes = _mm512_shuffle_epi8(codes, in_lanes(lanes_unpacked[width]));
    codes = apart(codes, codes_below(4, width), 4 * gap);
    codes = apart(codes, codes_below(2, width), 2 * gap);
    return apart(codes, codes_below(1, width), gap);
}

#include "exponents_template.h"

#endif
