/* reduce_isa.h - what one instruction set hands to the dispatcher: its kernels, by dtype and op. */
#ifndef PCCL_REDUCE_ISA_H
#define PCCL_REDUCE_ISA_H

#include "reduce.h"

typedef reduce_fn *const reduce_table[PCCL_DTYPE_COUNT][PCCL_REDOP_COUNT];

extern reduce_table reduce_table_scalar;
#if defined(__x86_64__)
extern reduce_table reduce_table_avx2;
extern reduce_table reduce_table_avx512;
#elif defined(__aarch64__)
extern reduce_table reduce_table_neon;
#endif

#endif
