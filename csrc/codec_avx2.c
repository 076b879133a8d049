/* codec_avx2.c - the codecs in AVX2, with F16C for float16. */
#include "codec_isa.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define ISA_TARGET __attribute__((target("avx2,f16c")))
#define ISA_VECTOR_BYTES 32
#define ISA_TABLE codec_table_avx2
#define ISA_WIDEN_F16(p) ((f32)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p))))
#define ISA_NARROW_F16(p, v) \
    _mm_storeu_si128((__m128i *)(p), _mm256_cvtps_ph((__m256)(v), _MM_FROUND_TO_NEAREST_INT))

#include "codec_template.h"

#endif
