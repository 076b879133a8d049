/* codec_avx512.c - the codecs in AVX-512 (F, BW, DQ, VL: every server since Skylake and Zen 4).
 *
 * AVX512_BF16 is left alone: it flushes subnormals. */
#include "codec_isa.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define ISA_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define ISA_VECTOR_BYTES 64
#define ISA_TABLE codec_table_avx512
#define ISA_WIDEN_F16(p) ((f32)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p))))
#define ISA_NARROW_F16(p, v) \
    _mm256_storeu_si256((__m256i *)(p), _mm512_cvtps_ph((__m512)(v), _MM_FROUND_TO_NEAREST_INT))

#include "codec_template.h"

#endif
