/* reduce_template.h - every kernel, written once; each reduce_<isa>.c includes it and compiles it its own way.
 *
 * The includer defines:
 *   ISA_TARGET        function attributes that switch the instruction set on
 *   ISA_VECTOR_BYTES  the width of a vector
 *   ISA_TABLE         the name of the table of kernels that this file fills
 *   ISA_WIDEN_F16(p), ISA_NARROW_F16(p, v)   optional: load/store one vector of floats as float16 in hardware
 *
 * A kernel walks its sources in steps of two vectors and carries the two folds in registers, so memory is read once
 * however many sources there are. Arithmetic is written with the compilers' vector types: element-wise, hence the same
 * in every width. No kernel multiplies and adds, so no compiler can contract anything; that, and the canonical NaN,
 * is why all instruction sets give the same bits. */
#include "reduce_isa.h"
#include "vector_template.h"

#include <string.h>

/* Bit patterns of the canonical quiet NaNs and of the signs. */
#define NAN_F64 UINT64_C(0x7ff8000000000000)
#define SIGN_F32 UINT32_C(0x80000000)
#define SIGN_F64 UINT64_C(0x8000000000000000)

VECTOR_TYPE(u8, uint8_t)
VECTOR_TYPE(u16, uint16_t)
VECTOR_TYPE(u64, uint64_t)
VECTOR_TYPE(i8, int8_t)
VECTOR_TYPE(i16, int16_t)
VECTOR_TYPE(i64, int64_t)
VECTOR_TYPE(f64, double)

/* -- memory to registers and back ------------------------------------------------------------------------------ */

/* dtypes that are folded as they lie in memory */
#define PLAIN_MEMORY(T)                                                                 \
    struct T##_pair {                                                                   \
        T lo, hi;                                                                       \
    };                                                                                  \
    enum { T##_step_bytes = 2 * ISA_VECTOR_BYTES, T##_lane_bytes = sizeof((T){0}[0]) }; \
    ISA_INLINE struct T##_pair T##_load(const uint8_t *p)                               \
    {                                                                                   \
        return (struct T##_pair){T##_get(p), T##_get(p + ISA_VECTOR_BYTES)};            \
    }                                                                                   \
    ISA_INLINE void T##_store(uint8_t *p, struct T##_pair x)                            \
    {                                                                                   \
        T##_put(p, x.lo);                                                               \
        T##_put(p + ISA_VECTOR_BYTES, x.hi);                                            \
    }

PLAIN_MEMORY(u8)
PLAIN_MEMORY(u16)
PLAIN_MEMORY(u32)
PLAIN_MEMORY(u64)
PLAIN_MEMORY(i8)
PLAIN_MEMORY(i16)
PLAIN_MEMORY(i32)
PLAIN_MEMORY(i64)
PLAIN_MEMORY(f32)
PLAIN_MEMORY(f64)

/* The 16-bit floats are folded as float32. A vector of them is seen as 32-bit words: the low halves of all words
 * become one vector of floats, the high halves the other, which needs no shuffles. */
enum { f16_step_bytes = ISA_VECTOR_BYTES, f16_lane_bytes = 2 };
enum { bf16_step_bytes = ISA_VECTOR_BYTES, bf16_lane_bytes = 2 };

ISA_INLINE struct f32_pair bf16_load(const uint8_t *p)
{
    u32 words = u32_get(p);
    return (struct f32_pair){(f32)(words << 16), (f32)(words & 0xffff0000u)};
}

ISA_INLINE void bf16_store(uint8_t *p, struct f32_pair x)
{
    u32_put(p, (bf16_round(x.lo) >> 16) | (bf16_round(x.hi) & 0xffff0000u));
}

#ifdef ISA_WIDEN_F16

ISA_INLINE struct f32_pair f16_load(const uint8_t *p)
{
    return (struct f32_pair){ISA_WIDEN_F16(p), ISA_WIDEN_F16(p + ISA_VECTOR_BYTES / 2)};
}

ISA_INLINE void f16_store(uint8_t *p, struct f32_pair x)
{
    ISA_NARROW_F16(p, x.lo);
    ISA_NARROW_F16(p + ISA_VECTOR_BYTES / 2, x.hi);
}

#else

ISA_INLINE struct f32_pair f16_load(const uint8_t *p)
{
    u32 words = u32_get(p);
    return (struct f32_pair){f16_widen(words & 0xffffu), f16_widen(words >> 16)};
}

ISA_INLINE void f16_store(uint8_t *p, struct f32_pair x)
{
    u32_put(p, f16_narrow(x.lo) | f16_narrow(x.hi) << 16);
}

#endif

/* -- the ops, on vectors --------------------------------------------------------------------------------------- */

/* min: where neither is below the other, the bits of both together are the right answer: equal values stay themselves,
 * -0 wins over +0, and NaN with anything is a NaN. max is min in the mirror. */
#define FLOAT_OPS(T, U, nan, sign)                                                               \
    ISA_INLINE T T##_sum(T a, T b) { return a + b; }                                             \
    ISA_INLINE T T##_prod(T a, T b) { return a * b; }                                            \
    ISA_INLINE T T##_min(T a, T b)                                                               \
    {                                                                                            \
        U x = (U)a, y = (U)b, below = (U)(a < b), above = (U)(b < a);                            \
        return (T)((x & ~above) | (y & ~below));                                                 \
    }                                                                                            \
    ISA_INLINE T T##_mirror(T a) { return (T)((U)a ^ (sign)); }                                  \
    ISA_INLINE T T##_max(T a, T b) { return T##_mirror(T##_min(T##_mirror(a), T##_mirror(b))); } \
    /* what is left to do with a fold before it is stored */                                     \
    ISA_INLINE T T##_finish(T a, uint32_t divisor)                                               \
    {                                                                                            \
        (void)divisor;                                                                           \
        U is_nan = (U)(a != a);                                                                  \
        return (T)(((U)a & ~is_nan) | (is_nan & (nan)));                                         \
    }

FLOAT_OPS(f32, u32, NAN_F32, SIGN_F32)
FLOAT_OPS(f64, u64, NAN_F64, SIGN_F64)

ISA_INLINE f32 f32_finish_avg(f32 a, uint32_t divisor)
{
    return f32_finish(a / f32_splat((float)divisor), 0);
}
ISA_INLINE f64 f64_finish_avg(f64 a, uint32_t divisor)
{
    return f64_finish(a / f64_splat((double)divisor), 0);
}

#define INTEGER_FINISH(T)                          \
    ISA_INLINE T T##_finish(T a, uint32_t divisor) \
    {                                              \
        (void)divisor;                             \
        return a;                                  \
    }

#define INTEGER_ORDER(T)                   \
    INTEGER_FINISH(T)                      \
    ISA_INLINE T T##_min(T a, T b)         \
    {                                      \
        T below = (T)(a < b);              \
        return (a & below) | (b & ~below); \
    }                                      \
    ISA_INLINE T T##_max(T a, T b)         \
    {                                      \
        T above = (T)(a > b);              \
        return (a & above) | (b & ~above); \
    }

/* On unsigned lanes, where wrapping is defined; the bits are those of the signed type too. */
#define INTEGER_ARITHMETIC(T)                        \
    ISA_INLINE T T##_sum(T a, T b) { return a + b; } \
    ISA_INLINE T T##_prod(T a, T b) { return a * b; }

INTEGER_ORDER(u8)
INTEGER_ORDER(u16)
INTEGER_ORDER(u32)
INTEGER_ORDER(u64)
INTEGER_ORDER(i8)
INTEGER_ORDER(i16)
INTEGER_ORDER(i32)
INTEGER_ORDER(i64)
INTEGER_ARITHMETIC(u8)
INTEGER_ARITHMETIC(u16)
INTEGER_ARITHMETIC(u32)
INTEGER_ARITHMETIC(u64)

/* -- the walk -------------------------------------------------------------------------------------------------- */

/* Where a step of `bytes` reads its source: in place if the step is whole, else a copy in the pad, which has room to
 * read on. */
ISA_INLINE const uint8_t *step_source(const void *src, size_t at, size_t bytes, size_t step_bytes, uint8_t *pad)
{
    const uint8_t *p = (const uint8_t *)src + at;
    if (bytes == step_bytes)
        return p;
    memcpy(pad, p, bytes);
    return pad;
}

/* Kernel of one memory format M that folds vectors T. All loads of a step come before its store: dst may be a source.
 * The step is inlined three times: whole steps of two sources, whole steps of any number, the rest. */
#define KERNEL(M, T, op, fold, finish)                                                                 \
    ISA_INLINE void M##_##op##_step(void *dst, const void *const *srcs, uint32_t src_count, size_t at, \
                                    size_t bytes, uint32_t divisor)                                    \
    {                                                                                                  \
        uint8_t pad[M##_step_bytes] = {0};                                                             \
        struct T##_pair acc = M##_load(step_source(srcs[0], at, bytes, M##_step_bytes, pad));          \
        for (uint32_t s = 1; s < src_count; s++) {                                                     \
            struct T##_pair next = M##_load(step_source(srcs[s], at, bytes, M##_step_bytes, pad));     \
            acc.lo = fold(acc.lo, next.lo);                                                            \
            acc.hi = fold(acc.hi, next.hi);                                                            \
        }                                                                                              \
        acc.lo = finish(acc.lo, divisor);                                                              \
        acc.hi = finish(acc.hi, divisor);                                                              \
        if (bytes == M##_step_bytes) {                                                                 \
            M##_store((uint8_t *)dst + at, acc);                                                       \
            return;                                                                                    \
        }                                                                                              \
        M##_store(pad, acc);                                                                           \
        memcpy((uint8_t *)dst + at, pad, bytes);                                                       \
    }                                                                                                  \
    ISA_TARGET static void M##_##op##_kernel(void *dst, const void *const *srcs, uint32_t src_count,   \
                                             size_t count, uint32_t divisor)                           \
    {                                                                                                  \
        const size_t bytes = count * M##_lane_bytes, whole = bytes - bytes % M##_step_bytes;           \
        const void *const two[2] = {srcs[0], src_count == 2 ? srcs[1] : NULL};                         \
        if (src_count == 2)                                                                            \
            for (size_t at = 0; at < whole; at += M##_step_bytes)                                      \
                M##_##op##_step(dst, two, 2, at, M##_step_bytes, divisor);                             \
        else                                                                                           \
            for (size_t at = 0; at < whole; at += M##_step_bytes)                                      \
                M##_##op##_step(dst, srcs, src_count, at, M##_step_bytes, divisor);                    \
        if (whole < bytes)                                                                             \
            M##_##op##_step(dst, srcs, src_count, whole, bytes - whole, divisor);                      \
    }

#define FLOAT_KERNELS(M, T)                    \
    KERNEL(M, T, sum, T##_sum, T##_finish)     \
    KERNEL(M, T, avg, T##_sum, T##_finish_avg) \
    KERNEL(M, T, prod, T##_prod, T##_finish)   \
    KERNEL(M, T, min, T##_min, T##_finish)     \
    KERNEL(M, T, max, T##_max, T##_finish)

#define ARITHMETIC_KERNELS(T)              \
    KERNEL(T, T, sum, T##_sum, T##_finish) \
    KERNEL(T, T, prod, T##_prod, T##_finish)

#define ORDER_KERNELS(T)                   \
    KERNEL(T, T, min, T##_min, T##_finish) \
    KERNEL(T, T, max, T##_max, T##_finish)

FLOAT_KERNELS(f64, f64)
FLOAT_KERNELS(f32, f32)
FLOAT_KERNELS(f16, f32)
FLOAT_KERNELS(bf16, f32)
ARITHMETIC_KERNELS(u8)
ARITHMETIC_KERNELS(u16)
ARITHMETIC_KERNELS(u32)
ARITHMETIC_KERNELS(u64)
ORDER_KERNELS(u8)
ORDER_KERNELS(u16)
ORDER_KERNELS(u32)
ORDER_KERNELS(u64)
ORDER_KERNELS(i8)
ORDER_KERNELS(i16)
ORDER_KERNELS(i32)
ORDER_KERNELS(i64)

/* Row of a dtype: M for arithmetic (for signed integers, the unsigned lanes), O for order. */
#define FLOAT_ROW(M) {M##_sum_kernel, M##_avg_kernel, M##_prod_kernel, M##_min_kernel, M##_max_kernel}
#define INTEGER_ROW(M, O) {M##_sum_kernel, NULL, M##_prod_kernel, O##_min_kernel, O##_max_kernel}

reduce_table ISA_TABLE = {
    [PCCL_FLOAT64] = FLOAT_ROW(f64),       [PCCL_FLOAT32] = FLOAT_ROW(f32),
    [PCCL_FLOAT16] = FLOAT_ROW(f16),       [PCCL_BFLOAT16] = FLOAT_ROW(bf16),
    [PCCL_INT8] = INTEGER_ROW(u8, i8),     [PCCL_INT16] = INTEGER_ROW(u16, i16),
    [PCCL_INT32] = INTEGER_ROW(u32, i32),  [PCCL_INT64] = INTEGER_ROW(u64, i64),
    [PCCL_UINT8] = INTEGER_ROW(u8, u8),    [PCCL_UINT16] = INTEGER_ROW(u16, u16),
    [PCCL_UINT32] = INTEGER_ROW(u32, u32), [PCCL_UINT64] = INTEGER_ROW(u64, u64),
};
