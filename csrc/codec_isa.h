/* codec_isa.h - what one instruction set hands to the dispatcher: its encoders and decoders, by codec.
 *
 * Kernels check nothing: codec.c has validated what is decoded. */
#ifndef PCCL_CODEC_ISA_H
#define PCCL_CODEC_ISA_H

#include "codec.h"

/* count values from src, encoded or to be encoded, to dst. */
typedef void codec_fn(const uint8_t *src, size_t count, uint8_t *dst);

typedef struct {
    codec_fn *encode, *decode;
} const codec_table[PCCL_CODEC_COUNT];

extern codec_table codec_table_scalar;
#if defined(__x86_64__)
extern codec_table codec_table_avx2;
extern codec_table codec_table_avx512;
#elif defined(__aarch64__)
extern codec_table codec_table_neon;
#endif

/* A block: its scale, then words of as many codes as there are planes. */
enum { CODEC_VALUE_BYTES = 4, CODEC_SCALE_BYTES = 4, CODEC_WORD_BYTES = 4 };
enum { CODEC_INT8_PLANES = 4, CODEC_E3M0_PLANES = 8 };

/* The ranges of scales, as floats and as bits, and the scale of a block that has a NaN or an infinity. */
#define CODEC_INT8_SCALE_MIN 0x1p-126f
#define CODEC_INT8_SCALE_MAX 0x1.020406p121f /* the greatest whose 127-fold is finite */
#define CODEC_E3M0_SCALE_MIN 0x1p-120f       /* its 2^-6-fold is the least normal */
#define CODEC_E3M0_SCALE_MAX 0x1.fffffep127f
#define CODEC_POISON UINT32_C(0x7fc00000)

/* Words of codes in a block of so many values. */
static inline size_t codec_block_words(size_t count, size_t planes)
{
    return (count + planes - 1) / planes;
}

#endif
