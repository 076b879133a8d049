/* vector_template.h - vectors of 32-bit lanes and the 16-bit floats in them, for kernels that are compiled once per
 * instruction set.
 *
 * The includer defines:
 *   ISA_TARGET        function attributes that switch the instruction set on
 *   ISA_VECTOR_BYTES  the width of a vector */
#include <stdint.h>

#define ISA_INLINE ISA_TARGET static inline __attribute__((always_inline))

/* Bits of the canonical quiet NaN. */
#define NAN_F32 UINT32_C(0x7fc00000)

/* T: a vector of lanes. T_memory: the same anywhere in memory. */
#define VECTOR_TYPE(T, lane)                                                                       \
    typedef lane T __attribute__((vector_size(ISA_VECTOR_BYTES)));                                 \
    typedef lane T##_memory __attribute__((vector_size(ISA_VECTOR_BYTES), aligned(1), may_alias)); \
    ISA_INLINE T T##_get(const uint8_t *p) { return *(const T##_memory *)p; }                      \
    ISA_INLINE void T##_put(uint8_t *p, T x) { *(T##_memory *)p = x; }                             \
    ISA_INLINE T T##_splat(lane x) { return (T){0} + x; }

VECTOR_TYPE(u32, uint32_t)
VECTOR_TYPE(i32, int32_t)
VECTOR_TYPE(f32, float)

ISA_INLINE u32 u32_select(u32 mask, u32 yes, u32 no)
{
    return (mask & yes) | (~mask & no);
}

/* Every NaN becomes the canonical one. */
ISA_INLINE f32 f32_canonical(f32 x)
{
    return (f32)u32_select((u32)(x != x), u32_splat(NAN_F32), (u32)x);
}

/* Rounds to nearest even, in the upper half of the word. A NaN must be canonical already. */
ISA_INLINE u32 bf16_round(f32 x)
{
    u32 bits = (u32)x;
    return bits + 0x7fffu + ((bits >> 16) & 1u);
}

/* Exponents are moved by the difference of the biases, 127 - 15 = 112. Subnormals are put below a 1 that a float
 * subtraction takes away again, which normalizes them exactly. */
ISA_INLINE f32 f16_widen(u32 half)
{
    u32 magnitude = (half & 0x7fffu) << 13;
    u32 normal = magnitude + (112u << 23);
    u32 special = magnitude + (224u << 23);
    u32 tiny = (u32)((f32)(magnitude + (113u << 23)) - (f32)u32_splat(113u << 23));
    u32 bits = u32_select((u32)((i32)magnitude < 1 << 23), tiny, normal);
    bits = u32_select((u32)((i32)magnitude >= 31 << 23), special, bits);
    return (f32)(bits | (half & 0x8000u) << 16);
}

/* Rounds to nearest even: normal results by adding just under half a unit before the cut, subnormal ones by a float
 * addition whose unit in the last place is theirs. A NaN must be canonical already. */
ISA_INLINE u32 f16_narrow(f32 x)
{
    u32 bits = (u32)x;
    u32 magnitude = bits & 0x7fffffffu;
    u32 normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    u32 tiny = (u32)((f32)magnitude + 0.5f) - (126u << 23);
    u32 half = u32_select((u32)((i32)magnitude < 113 << 23), tiny, normal);
    half = u32_select((u32)((i32)magnitude >= 143 << 23), u32_splat(0x7c00u), half);
    half = u32_select((u32)((i32)magnitude > 255 << 23), u32_splat(0x7e00u), half);
    return half | ((bits >> 16) & 0x8000u);
}
