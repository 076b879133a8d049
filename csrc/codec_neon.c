/* codec_neon.c - the codecs for 64-bit ARM: the vectors every such CPU has, with its float16 conversions. */
#include "codec_isa.h"

#if defined(__aarch64__)

#include <arm_neon.h>

#define ISA_TARGET
#define ISA_VECTOR_BYTES 16
#define ISA_TABLE codec_table_neon
#define ISA_WIDEN_F16(p) ((f32)vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))))
#define ISA_NARROW_F16(p, v) vst1_u8((p), vreinterpret_u8_f16(vcvt_f16_f32((float32x4_t)(v))))

#include "codec_template.h"

#endif
