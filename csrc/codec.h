/* codec.h - how float32 values travel: as they are, or in 16, 8 or 4 bits.
 *
 * The encoded bytes are a function of the values alone: every instruction set writes the same ones, and reads the same
 * values from them. All rounding is to nearest; ties go to the even code. Whoever keeps values that others get encoded
 * must keep what they decode to. Multi-byte items are little-endian.
 *
 *   codec  bits      |decoded - x| at most                                       encodes again to the same bytes
 *   none   32        0, every bit kept                                           always
 *   bf16   16        2^-8 |x|, or 2^-134 if more; beyond 0x1.ffp127 infinity      always
 *   fp16   16        2^-11 |x|, or 2^-25 if more; from 65520 on infinity          always
 *   int8   8.125     (1/2 + 2^-16) s with s = max(peak / 127, 2^-126)             always
 *   e3m0   4.125     max(|x| / 3, s / 128) (1 + 2^-22) with s = max(peak, 2^-120)  always
 *
 * (The last column: of decoded values. A block that an encoder wrote keeps its scale, since its greatest code is full.)
 *
 * bf16 and fp16 are the values in their order. int8 and e3m0 are blocks of CODEC_BLOCK values, the last one shorter:
 * a float32 scale s, then whole 32-bit words of codes. `peak` is the greatest magnitude of the block. A block's codes
 * lie in planes: with W words, word w has the codes of elements w, w + W, w + 2W, ... from the low bits up, 4 of 8 bits
 * or 8 of 4 bits; W is CODEC_BLOCK / 4 (or / 8), in the last block no more than its values need. Codes of values that
 * are not there are 0, and are ignored. So n blocks encoded together are the n blocks encoded alone, one after another:
 * data may be cut at multiples of CODEC_BLOCK.
 *
 * int8: a code c in -127..127 stands for c s. e3m0: the top bit is the sign, the others c in 0..7 stand for 0 (c = 0)
 * or 2^(c - 7) s. s has a floor so that no quotient or product is ever subnormal, and a ceiling, where 127 s would
 * overflow. A block of zeros is not special: its scale is the floor, its codes are 0. Subnormal values of bf16 and fp16
 * are kept; in int8 and e3m0 values far below the peak, or below the floor, become 0 (int8: +0; e3m0: of their sign).
 *
 * Not a number, and infinity: never hidden. bf16 and fp16 keep infinities, and every NaN becomes the canonical quiet
 * one (0x7fc00000 decoded). A block of int8 or e3m0 with a NaN or an infinity has no scale that would say anything of
 * its other values; it gets the canonical NaN for its scale, and decodes to canonical NaNs only. (A saturated infinity
 * would look like a number, and set the rest of its block to 0 in silence.) */
#ifndef PCCL_CODEC_H
#define PCCL_CODEC_H

#include "include/pccl.h"

enum { CODEC_BLOCK = 256 };

/* Encoded size of count values; 0 for an unknown codec. */
size_t codec_bytes(pccl_codec codec, size_t count);
/* Encodes count float32 values into codec_bytes(codec, count) bytes. No alignment is needed; no overlap allowed. */
void codec_encode(pccl_codec codec, const void *src, size_t count, uint8_t *dst);
/* Decodes into count float32 values. PCCL_EPROTO, and dst untouched: `bytes` is not codec_bytes(codec, count), a scale
 * is neither in its range nor the canonical NaN, or an int8 code is -128. */
__attribute__((warn_unused_result)) pccl_err codec_decode(pccl_codec codec, const uint8_t *src, size_t bytes, void *dst,
                                                          size_t count);
/* The same by a named instruction set ("scalar", "avx2", "avx512", "neon"); PCCL_EINVAL if it is unknown here. */
__attribute__((warn_unused_result)) pccl_err codec_encode_isa(const char *isa, pccl_codec codec, const void *src,
                                                              size_t count, uint8_t *dst);
__attribute__((warn_unused_result)) pccl_err codec_decode_isa(const char *isa, pccl_codec codec, const uint8_t *src,
                                                              size_t bytes, void *dst, size_t count);
/* "none", "bf16", "fp16", "int8", "e3m0"; "?" for an unknown codec. */
const char *codec_name(pccl_codec codec);
/* PCCL_EINVAL, and *codec_p untouched, for an unknown name. */
__attribute__((warn_unused_result)) pccl_err codec_from_name(const char *name, pccl_codec *codec_p);

#endif
