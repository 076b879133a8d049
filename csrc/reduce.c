/* reduce.c - which kernels this machine uses, and the names and sizes of dtypes and ops.
 *
 * The CPU is asked for its features once for each set of kernels: in a virtual machine every question (cpuid) ends up at the hypervisor,
 * which takes longer than the digest of a block. */
#include "reduce_isa.h"

#include <stdatomic.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

struct isa {
    const char *name;
    reduce_table *table;
    int (*works)(void);
};

static int always_works(void)
{
    return 1;
}

#if defined(__x86_64__)

/* Not every compiler knows "f16c" in __builtin_cpu_supports; that the system saves the registers, avx2 has answered. */
static int avx2_works(void)
{
    unsigned eax, ebx, ecx, edx;
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

static int avx512_works(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

#endif

/* Best first. */
static const struct isa isas[] = {
#if defined(__x86_64__)
    {"avx512", &reduce_table_avx512, avx512_works},
    {"avx2", &reduce_table_avx2, avx2_works},
#elif defined(__aarch64__)
    {"neon", &reduce_table_neon, always_works},
#endif
    {"scalar", &reduce_table_scalar, always_works},
};

enum { ISA_COUNT = sizeof isas / sizeof isas[0] };

/* Threads that race here find the same. */
static int works(size_t isa)
{
    static _Atomic signed char known[ISA_COUNT];
    signed char found = atomic_load_explicit(&known[isa], memory_order_relaxed);
    if (found == 0) {
        found = isas[isa].works() ? 1 : -1;
        atomic_store_explicit(&known[isa], found, memory_order_relaxed);
    }
    return found > 0;
}

static const struct isa *find_isa(const char *name)
{
    for (size_t i = 0; i < ISA_COUNT; i++)
        if (strcmp(name, isas[i].name) == 0 && works(i))
            return &isas[i];
    return NULL;
}

static const struct isa *best_isa(void)
{
    size_t i = 0;
    while (!works(i))
        i++;
    return &isas[i];
}

static reduce_fn *look_up(const struct isa *isa, pccl_dtype dtype, pccl_redop op)
{
    if (isa == NULL || (unsigned)dtype >= PCCL_DTYPE_COUNT || (unsigned)op >= PCCL_REDOP_COUNT)
        return NULL;
    return (*isa->table)[dtype][op];
}

reduce_fn *reduce_kernel(pccl_dtype dtype, pccl_redop op)
{
    return look_up(best_isa(), dtype, op);
}

int reduce_has_isa(const char *isa)
{
    return find_isa(isa) != NULL;
}

reduce_fn *reduce_kernel_isa(const char *isa, pccl_dtype dtype, pccl_redop op)
{
    return look_up(find_isa(isa), dtype, op);
}

const char *reduce_isa(void)
{
    return best_isa()->name;
}

static const struct {
    const char *name;
    size_t bytes;
} dtypes[PCCL_DTYPE_COUNT] = {
    [PCCL_FLOAT64] = {"float64", 8},   [PCCL_FLOAT32] = {"float32", 4}, [PCCL_FLOAT16] = {"float16", 2},
    [PCCL_BFLOAT16] = {"bfloat16", 2}, [PCCL_INT8] = {"int8", 1},       [PCCL_INT16] = {"int16", 2},
    [PCCL_INT32] = {"int32", 4},       [PCCL_INT64] = {"int64", 8},     [PCCL_UINT8] = {"uint8", 1},
    [PCCL_UINT16] = {"uint16", 2},     [PCCL_UINT32] = {"uint32", 4},   [PCCL_UINT64] = {"uint64", 8},
};

size_t dtype_bytes(pccl_dtype dtype)
{
    return (unsigned)dtype < PCCL_DTYPE_COUNT ? dtypes[dtype].bytes : 0;
}

const char *dtype_name(pccl_dtype dtype)
{
    return (unsigned)dtype < PCCL_DTYPE_COUNT ? dtypes[dtype].name : "?";
}

const char *redop_name(pccl_redop op)
{
    static const char *const names[PCCL_REDOP_COUNT] = {"sum", "avg", "prod", "min", "max"};
    return (unsigned)op < PCCL_REDOP_COUNT ? names[op] : "?";
}
