/* exponents_isa.h - what one instruction set hands to exponents.c: the loops over the values of a block. */
#ifndef PCCL_EXPONENTS_ISA_H
#define PCCL_EXPONENTS_ISA_H

#include "exponents.h"

enum {
    EXPONENTS_EACH = 256,      /* that a value may have */
    EXPONENTS_CHUNK = 2048,    /* values that are encoded and decoded in one go */
    EXPONENTS_VALUE_BYTES = 2,
    EXPONENTS_SLACK = 16       /* bytes that may be written behind packed codes and behind others */
};

/* How the values of a block are coded. */
struct exponents_code {
    unsigned width;            /* 1 to EXPONENTS_WIDTH_MAX */
    uint32_t known;            /* exponents that have a code, 2^width - 1: also the code of those that have none, the others, */
    const uint8_t *table;      /* and which these are */
};

/* What a chunk of `count` values is made of. The codes before those of a chunk fill whole bytes. */
struct exponents_chunk {
    uint32_t count;
    const uint8_t *rests, *codes, *others;
    uint64_t codes_bytes;      /* that may be read */
    uint32_t others_left;      /* the same */
};

typedef const struct exponents_kernels {
    /* Adds how often each exponent is there. */
    void (*count)(const uint8_t *values, uint32_t count, uint32_t counts[EXPONENTS_EACH]);
    /* Of a chunk. Returns how many others it has. */
    uint32_t (*encode)(const struct exponents_code *code, const uint8_t *values, uint32_t count, uint8_t *rests, uint8_t *packed,
                       uint8_t *others);
    /* Returns how many others it has; if these are more than are left, what came of the values is undefined. */
    uint32_t (*decode)(const struct exponents_code *code, const struct exponents_chunk *chunk, uint8_t *values);
} exponents_kernels;

extern exponents_kernels exponents_kernels_scalar;
#if defined(__x86_64__)
extern exponents_kernels exponents_kernels_avx2;
extern exponents_kernels exponents_kernels_avx512;
#endif

/* The most frequent exponents, of equal ones the smaller first. */
void exponents_rank(const uint32_t counts[EXPONENTS_EACH], uint8_t *ranked, uint32_t ranks);

/* pccl_exponents_encode and _decode by the kernels of a named instruction set. PCCL_EINVAL: this machine lacks it. */
pccl_err exponents_encode_isa(const char *isa, const void *values, uint64_t count, void *encoded, uint64_t *bytes_p);
pccl_err exponents_decode_isa(const char *isa, const void *encoded, uint64_t bytes, void *values, uint64_t count);

#endif
