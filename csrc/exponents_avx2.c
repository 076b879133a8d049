/* exponents_avx2.c - the loops of exponents in AVX2. */
#include "exponents_isa.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define ISA_TARGET __attribute__((target("avx2,bmi,popcnt")))
#define ISA_INLINE ISA_TARGET static inline __attribute__((always_inline))
#define ISA_KERNELS exponents_kernels_avx2

#include "exponents_lanes.h"

typedef struct {
    __m256i low, high;
} vec;

ISA_INLINE __m256i half_get(const uint8_t *at)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)at);
}

ISA_INLINE void half_put(uint8_t *at, __m256i x)
{
    _mm256_storeu_si256((__m256i *)(void *)at, x);
}

ISA_INLINE vec vec_get(const uint8_t *at)
{
    return (vec){half_get(at), half_get(at + 32)};
}

ISA_INLINE void vec_put(uint8_t *at, vec x)
{
    half_put(at, x.low);
    half_put(at + 32, x.high);
}

ISA_INLINE vec vec_splat(uint8_t byte)
{
    return (vec){_mm256_set1_epi8((char)byte), _mm256_set1_epi8((char)byte)};
}

ISA_INLINE vec vec_pick(vec all, vec x, vec is, vec becomes)
{
    return (vec){_mm256_blendv_epi8(all.low, becomes.low, _mm256_cmpeq_epi8(x.low, is.low)),
                 _mm256_blendv_epi8(all.high, becomes.high, _mm256_cmpeq_epi8(x.high, is.high))};
}

ISA_INLINE vec vec_xor(vec a, vec b)
{
    return (vec){_mm256_xor_si256(a.low, b.low), _mm256_xor_si256(a.high, b.high)};
}

ISA_INLINE uint64_t vec_equal(vec a, vec b)
{
    return (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(a.low, b.low)) |
           (uint64_t)(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(a.high, b.high)) << 32;
}

ISA_INLINE void vec_tally(vec *sums, vec *seen, vec x, vec is)
{
    __m256i low = _mm256_cmpeq_epi8(x.low, is.low), high = _mm256_cmpeq_epi8(x.high, is.high);
    *sums = (vec){_mm256_sub_epi8(sums->low, low), _mm256_sub_epi8(sums->high, high)};
    *seen = (vec){_mm256_or_si256(seen->low, low), _mm256_or_si256(seen->high, high)};
}

ISA_INLINE uint32_t vec_total(vec sums)
{
    const __m256i zero = _mm256_setzero_si256();
    __m256i each = _mm256_add_epi64(_mm256_sad_epu8(sums.low, zero), _mm256_sad_epu8(sums.high, zero));
    return (uint32_t)(_mm256_extract_epi64(each, 0) + _mm256_extract_epi64(each, 1) + _mm256_extract_epi64(each, 2) +
                      _mm256_extract_epi64(each, 3));
}

/* The low bytes of two vectors of 16-bit lanes. */
ISA_INLINE __m256i low_bytes(__m256i a, __m256i b)
{
    const __m256i byte = _mm256_set1_epi16(0xff);
    return _mm256_permute4x64_epi64(_mm256_packus_epi16(_mm256_and_si256(a, byte), _mm256_and_si256(b, byte)), 0xd8);
}

ISA_INLINE __m256i rest_of(__m256i values)
{
    return _mm256_or_si256(_mm256_slli_epi16(values, 1), _mm256_srli_epi16(values, 15));
}

ISA_INLINE void vec_split(const uint8_t *values, vec *exponents, vec *rests)
{
    __m256i a = half_get(values), b = half_get(values + 32), c = half_get(values + 64), d = half_get(values + 96);
    exponents->low = low_bytes(_mm256_srli_epi16(a, 7), _mm256_srli_epi16(b, 7));
    exponents->high = low_bytes(_mm256_srli_epi16(c, 7), _mm256_srli_epi16(d, 7));
    *rests = (vec){low_bytes(rest_of(a), rest_of(b)), low_bytes(rest_of(c), rest_of(d))};
}

ISA_INLINE __m256i join(__m128i exponents, __m128i rests)
{
    __m256i exponent = _mm256_cvtepu8_epi16(exponents), rest = _mm256_cvtepu8_epi16(rests);
    return _mm256_or_si256(_mm256_or_si256(_mm256_slli_epi16(rest, 15), _mm256_slli_epi16(exponent, 7)), _mm256_srli_epi16(rest, 1));
}

ISA_INLINE void join_half(__m256i exponents, __m256i rests, uint8_t *values)
{
    half_put(values, join(_mm256_castsi256_si128(exponents), _mm256_castsi256_si128(rests)));
    half_put(values + 32, join(_mm256_extracti128_si256(exponents, 1), _mm256_extracti128_si256(rests, 1)));
}

ISA_INLINE void vec_join(vec exponents, vec rests, uint8_t *values)
{
    join_half(exponents.low, rests.low, values);
    join_half(exponents.high, rests.high, values + 64);
}

/* What is not below the mask moves down by so many bits. */
ISA_INLINE __m256i closer(__m256i x, uint64_t below, unsigned bits)
{
    const __m256i mask = _mm256_set1_epi64x((long long)below);
    return _mm256_or_si256(_mm256_and_si256(x, mask), _mm256_srl_epi64(_mm256_andnot_si256(mask, x), _mm_cvtsi32_si128((int)bits)));
}

ISA_INLINE __m256i apart(__m256i x, uint64_t below, unsigned bits)
{
    const __m256i mask = _mm256_set1_epi64x((long long)below);
    return _mm256_or_si256(_mm256_and_si256(x, mask), _mm256_sll_epi64(_mm256_andnot_si256(mask, x), _mm_cvtsi32_si128((int)bits)));
}

ISA_INLINE __m128i lane(const uint8_t *from)
{
    return _mm_loadu_si128((const __m128i *)(const void *)from);
}

ISA_INLINE __m256i in_lanes(const uint8_t order[16])
{
    return _mm256_broadcastsi128_si256(lane(order));
}

ISA_INLINE void pack_half(__m256i codes, unsigned width, uint8_t *to)
{
    unsigned gap = 8 - width;
    codes = closer(codes, CODES_1, gap);
    codes = closer(codes, CODES_2, 2 * gap);
    codes = closer(codes, CODES_4, 4 * gap);
    codes = _mm256_shuffle_epi8(codes, in_lanes(lanes_packed[width]));
    _mm_storeu_si128((__m128i *)(void *)to, _mm256_castsi256_si128(codes));
    _mm_storeu_si128((__m128i *)(void *)(to + (size_t)2 * width), _mm256_extracti128_si256(codes, 1));
}

ISA_INLINE void vec_pack(vec codes, unsigned width, uint8_t *to)
{
    pack_half(codes.low, width, to);
    pack_half(codes.high, width, to + (size_t)4 * width);
}

ISA_INLINE __m256i unpack_half(const uint8_t *from, unsigned width)
{
    unsigned gap = 8 - width;
    __m256i codes = _mm256_inserti128_si256(_mm256_castsi128_si256(lane(from)), lane(from + (size_t)2 * width), 1);
    codes = _mm256_shuffle_epi8(codes, in_lanes(lanes_unpacked[width]));
    codes = apart(codes, codes_below(4, width), 4 * gap);
    codes = apart(codes, codes_below(2, width), 2 * gap);
    return apart(codes, codes_below(1, width), gap);
}

ISA_INLINE vec vec_unpack(const uint8_t *from, unsigned width)
{
    return (vec){unpack_half(from, width), unpack_half(from + (size_t)4 * width, width)};
}

#include "exponents_template.h"

#endif
