/* reduce.h - the arithmetic: n-ary element-wise reductions, chosen once for this machine.
 *
 * One call folds n sources, in the order given, into dst: dst[i] = ((src0[i] op src1[i]) op src2[i]) ... .
 * The order is part of the contract: the planner fixes it, so equal inputs give equal bytes on every peer and on
 * every instruction set. float16 and bfloat16 are widened to float32, folded there and rounded once (to nearest,
 * ties to even); float32 and float64 fold in their own type. Integers wrap. AVG divides the fold by `divisor`
 * (a true division, rounded once), for floating types only; other ops ignore `divisor`.
 * NaN: a result that is NaN is always the canonical quiet NaN of its type (positive sign, only the top mantissa
 * bit set), so that operand order and instruction set cannot show. MIN and MAX give NaN if any source is NaN, and
 * order -0 below +0. */
#ifndef PCCL_REDUCE_H
#define PCCL_REDUCE_H

#include "include/pccl.h"

/* dst may be equal to any of the sources (not otherwise overlap). Pointers need no alignment. src_count >= 1. */
typedef void reduce_fn(void *dst, const void *const *srcs, uint32_t src_count, size_t count, uint32_t divisor);

/* The best kernel this machine has. NULL for a pair that does not exist (AVG of integers). */
reduce_fn *reduce_kernel(pccl_dtype dtype, pccl_redop op);
/* Whether this machine has a named instruction set: "scalar", "avx2", "avx512" or "neon". */
int reduce_has_isa(const char *isa);
/* The kernel of one of these; NULL if unknown here. */
reduce_fn *reduce_kernel_isa(const char *isa, pccl_dtype dtype, pccl_redop op);
/* Name of the instruction set that reduce_kernel uses. */
const char *reduce_isa(void);
/* Bytes of one element; 0 for an unknown dtype. */
size_t dtype_bytes(pccl_dtype dtype);
const char *dtype_name(pccl_dtype dtype);
const char *redop_name(pccl_redop op);

#endif
