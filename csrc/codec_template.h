/* codec_template.h - every codec, written once; each codec_<isa>.c includes it and compiles it its own way.
 *
 * The includer defines, besides what vector_template.h asks for:
 *   ISA_TABLE         the name of the table of kernels that this file fills
 *   ISA_WIDEN_F16(p), ISA_NARROW_F16(p, v)   optional: load/store one vector of floats as float16 in hardware
 *
 * The planes of a block (codec.h) are as far apart as its words are many, so a vector of words is made of vectors of
 * neighbouring values, lane by lane: no shuffle, and the same layout in every width. Arithmetic is element-wise and
 * correctly rounded, true division included; no product is ever added to anything that could make it a contraction.
 * That, and the canonical NaN, is why all instruction sets give the same bits. */
#include "codec_isa.h"
#include "vector_template.h"

#include <string.h>

enum { LANE_BYTES = 4, LANES = ISA_VECTOR_BYTES / LANE_BYTES, VALUES_BYTES = CODEC_BLOCK * CODEC_VALUE_BYTES };

/* -- none ------------------------------------------------------------------------------------------------------ */

static void none_copy(const uint8_t *src, size_t count, uint8_t *dst)
{
    if (count > 0)
        memcpy(dst, src, count * CODEC_VALUE_BYTES);
}

/* -- bf16 and fp16: a vector of values at a time --------------------------------------------------------------- */

typedef uint16_t u16 __attribute__((vector_size(ISA_VECTOR_BYTES / 2)));
typedef uint16_t u16_memory __attribute__((vector_size(ISA_VECTOR_BYTES / 2), aligned(1), may_alias));

ISA_INLINE u32 halves_get(const uint8_t *p)
{
    return __builtin_convertvector(*(const u16_memory *)p, u32);
}

ISA_INLINE void halves_put(uint8_t *p, u32 x)
{
    *(u16_memory *)p = __builtin_convertvector(x, u16);
}

ISA_INLINE void bf16_encode_step(const uint8_t *src, uint8_t *dst)
{
    halves_put(dst, bf16_round(f32_canonical(f32_get(src))) >> 16);
}

ISA_INLINE void bf16_decode_step(const uint8_t *src, uint8_t *dst)
{
    f32_put(dst, f32_canonical((f32)(halves_get(src) << 16)));
}

#ifndef ISA_WIDEN_F16
#define ISA_WIDEN_F16(p) f16_widen(halves_get(p))
#define ISA_NARROW_F16(p, v) halves_put(p, f16_narrow(v))
#endif

ISA_INLINE void fp16_encode_step(const uint8_t *src, uint8_t *dst)
{
    ISA_NARROW_F16(dst, f32_canonical(f32_get(src)));
}

ISA_INLINE void fp16_decode_step(const uint8_t *src, uint8_t *dst)
{
    f32_put(dst, f32_canonical(ISA_WIDEN_F16(src)));
}

/* Walks count values in whole vectors; what is left goes through pads. */
#define STEPS(name, step, from_bytes, to_bytes)                                       \
    ISA_TARGET static void name(const uint8_t *src, size_t count, uint8_t *dst)       \
    {                                                                                 \
        size_t at = 0;                                                                \
        for (; count - at >= LANES; at += LANES)                                      \
            step(src + at * (from_bytes), dst + at * (to_bytes));                     \
        if (at == count)                                                              \
            return;                                                                   \
        uint8_t from[LANES * (from_bytes)] = {0}, to[LANES * (to_bytes)];             \
        memcpy(from, src + at * (from_bytes), (count - at) * (from_bytes));           \
        step(from, to);                                                               \
        memcpy(dst + at * (to_bytes), to, (count - at) * (to_bytes));                 \
    }

STEPS(bf16_encode, bf16_encode_step, CODEC_VALUE_BYTES, 2)
STEPS(bf16_decode, bf16_decode_step, 2, CODEC_VALUE_BYTES)
STEPS(fp16_encode, fp16_encode_step, CODEC_VALUE_BYTES, 2)
STEPS(fp16_decode, fp16_decode_step, 2, CODEC_VALUE_BYTES)

/* -- the scale of a block -------------------------------------------------------------------------------------- */

ISA_INLINE i32 i32_max(i32 a, i32 b)
{
    i32 above = a > b;
    return (a & above) | (b & ~above);
}

/* Bits of the greatest magnitude; magnitudes are in the order of their bits, infinity and NaNs on top. */
ISA_INLINE uint32_t block_peak(const uint8_t *values)
{
    i32 even = {0}, odd = {0};
    for (size_t at = 0; at < VALUES_BYTES; at += 2 * ISA_VECTOR_BYTES) {
        even = i32_max(even, i32_get(values + at) & 0x7fffffff);
        odd = i32_max(odd, i32_get(values + at + ISA_VECTOR_BYTES) & 0x7fffffff);
    }
    even = i32_max(even, odd);
    int32_t peak = 0;
    for (size_t lane = 0; lane < LANES; lane++)
        peak = even[lane] > peak ? even[lane] : peak;
    return (uint32_t)peak;
}

ISA_INLINE float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

ISA_INLINE float clamp(float x, float least, float greatest)
{
    x = x < least ? least : x;
    return x > greatest ? greatest : x;
}

ISA_INLINE float int8_scale(float peak)
{
    return clamp(peak / 127.0f, CODEC_INT8_SCALE_MIN, CODEC_INT8_SCALE_MAX);
}

ISA_INLINE float e3m0_scale(float peak)
{
    return clamp(peak, CODEC_E3M0_SCALE_MIN, CODEC_E3M0_SCALE_MAX);
}

/* -- codes ----------------------------------------------------------------------------------------------------- */

/* The sum's unit in the last place is 1, so it is rounded to an integer, whose two's complement its low bits are. */
ISA_INLINE u32 int8_code(f32 x, f32 scale)
{
    return (u32)(x / scale + f32_splat(0x1.8p23f)) & 0xffu;
}

ISA_INLINE f32 int8_value(u32 word, unsigned plane, f32 scale)
{
    return __builtin_convertvector((i32)(word << (24 - 8 * plane)) >> 24, f32) * scale;
}

/* Rounds to a power of two in the bits: the mantissa is cut after adding just under half of its range, or half of it
 * where that makes the exponent even. Between 2^-7 and 2^-6 there is but one code; 2^-7 itself goes to 0. */
ISA_INLINE u32 e3m0_code(f32 x, f32 scale)
{
    u32 sign = (u32)x >> 28 & 8u;
    u32 ratio = (u32)((f32)((u32)x & 0x7fffffffu) / scale);
    u32 code = ((ratio + 0x3fffffu + (ratio >> 23 & 1u)) >> 23) - 120u;
    code = (u32)i32_max((i32)code, i32_splat(1)) & (u32)((i32)ratio > 120 << 23);
    return code | sign;
}

ISA_INLINE f32 e3m0_value(u32 word, unsigned plane, f32 scale)
{
    u32 code = word >> (4 * plane);
    u32 magnitude = code & 7u;
    u32 power = (magnitude + 120u) << 23 & (u32)(magnitude != 0);
    return (f32)(power | (code & 8u) << 28) * scale;
}

/* -- blocks ---------------------------------------------------------------------------------------------------- */

/* Values of a short block, where a whole block has them: each plane at its place, zeros behind it. */
ISA_INLINE void spread(const uint8_t *src, size_t count, size_t planes, uint8_t *values)
{
    size_t words = codec_block_words(count, planes);
    for (size_t plane = 0, first = 0; first < count; plane++, first += words) {
        size_t n = count - first < words ? count - first : words;
        memcpy(values + plane * (VALUES_BYTES / planes), src + first * CODEC_VALUE_BYTES, n * CODEC_VALUE_BYTES);
    }
}

/* The way back. */
ISA_INLINE void gather(const uint8_t *values, size_t count, size_t planes, uint8_t *dst)
{
    size_t words = codec_block_words(count, planes);
    for (size_t plane = 0, first = 0; first < count; plane++, first += words) {
        size_t n = count - first < words ? count - first : words;
        memcpy(dst + first * CODEC_VALUE_BYTES, values + plane * (VALUES_BYTES / planes), n * CODEC_VALUE_BYTES);
    }
}

/* Encoder and decoder of codec M with P planes. */
#define BLOCK_KERNELS(M, P)                                                                                     \
    enum { M##_words = CODEC_BLOCK / (P), M##_bytes = CODEC_SCALE_BYTES + M##_words * CODEC_WORD_BYTES };       \
    ISA_INLINE void M##_encode_block(const uint8_t *values, uint8_t *block)                                     \
    {                                                                                                           \
        uint32_t peak = block_peak(values), poison = CODEC_POISON;                                              \
        if (peak >= 0x7f800000u) {                                                                              \
            memset(block, 0, M##_bytes);                                                                        \
            memcpy(block, &poison, sizeof poison);                                                              \
            return;                                                                                             \
        }                                                                                                       \
        float scale = M##_scale(float_of(peak));                                                                \
        memcpy(block, &scale, sizeof scale);                                                                    \
        for (size_t at = 0; at < M##_words * LANE_BYTES; at += ISA_VECTOR_BYTES) {                              \
            u32 word = {0};                                                                                     \
            _Pragma("GCC unroll 8") for (unsigned plane = 0; plane < (P); plane++)                              \
            {                                                                                                   \
                f32 x = f32_get(values + plane * (VALUES_BYTES / (P)) + at);                                    \
                word |= M##_code(x, f32_splat(scale)) << (32 / (P)*plane);                                      \
            }                                                                                                   \
            u32_put(block + CODEC_SCALE_BYTES + at, word);                                                      \
        }                                                                                                       \
    }                                                                                                           \
    ISA_INLINE void M##_decode_block(const uint8_t *block, uint8_t *values)                                     \
    {                                                                                                           \
        uint32_t bits;                                                                                          \
        memcpy(&bits, block, sizeof bits);                                                                      \
        if (bits == CODEC_POISON) {                                                                             \
            for (size_t at = 0; at < VALUES_BYTES; at += ISA_VECTOR_BYTES)                                      \
                u32_put(values + at, u32_splat(NAN_F32));                                                       \
            return;                                                                                             \
        }                                                                                                       \
        f32 scale = f32_splat(float_of(bits));                                                                  \
        for (size_t at = 0; at < M##_words * LANE_BYTES; at += ISA_VECTOR_BYTES) {                              \
            u32 word = u32_get(block + CODEC_SCALE_BYTES + at);                                                 \
            _Pragma("GCC unroll 8") for (unsigned plane = 0; plane < (P); plane++)                              \
                f32_put(values + plane * (VALUES_BYTES / (P)) + at, M##_value(word, plane, scale));             \
        }                                                                                                       \
    }                                                                                                           \
    ISA_TARGET static void M##_encode(const uint8_t *src, size_t count, uint8_t *dst)                           \
    {                                                                                                           \
        for (; count >= CODEC_BLOCK; count -= CODEC_BLOCK, src += VALUES_BYTES, dst += M##_bytes)               \
            M##_encode_block(src, dst);                                                                         \
        if (count == 0)                                                                                         \
            return;                                                                                             \
        uint8_t values[VALUES_BYTES] = {0}, block[M##_bytes];                                                   \
        spread(src, count, (P), values);                                                                        \
        M##_encode_block(values, block);                                                                        \
        memcpy(dst, block, CODEC_SCALE_BYTES + codec_block_words(count, (P)) * CODEC_WORD_BYTES);               \
    }                                                                                                           \
    ISA_TARGET static void M##_decode(const uint8_t *src, size_t count, uint8_t *dst)                           \
    {                                                                                                           \
        for (; count >= CODEC_BLOCK; count -= CODEC_BLOCK, src += M##_bytes, dst += VALUES_BYTES)               \
            M##_decode_block(src, dst);                                                                         \
        if (count == 0)                                                                                         \
            return;                                                                                             \
        uint8_t values[VALUES_BYTES], block[M##_bytes] = {0};                                                   \
        memcpy(block, src, CODEC_SCALE_BYTES + codec_block_words(count, (P)) * CODEC_WORD_BYTES);               \
        M##_decode_block(block, values);                                                                        \
        gather(values, count, (P), dst);                                                                        \
    }

BLOCK_KERNELS(int8, CODEC_INT8_PLANES)
BLOCK_KERNELS(e3m0, CODEC_E3M0_PLANES)

codec_table ISA_TABLE = {
    [PCCL_CODEC_NONE] = {none_copy, none_copy},     [PCCL_CODEC_BF16] = {bf16_encode, bf16_decode},
    [PCCL_CODEC_FP16] = {fp16_encode, fp16_decode}, [PCCL_CODEC_INT8] = {int8_encode, int8_decode},
    [PCCL_CODEC_E3M0] = {e3m0_encode, e3m0_decode},
};
