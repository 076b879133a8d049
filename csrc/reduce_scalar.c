/* reduce_scalar.c - the kernels for every machine: nothing beyond what the compiler assumes of all of them. */
#define ISA_TARGET
#define ISA_VECTOR_BYTES 16
#define ISA_TABLE reduce_table_scalar

#include "reduce_template.h"
