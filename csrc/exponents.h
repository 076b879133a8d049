/* exponents.h - bf16 values without loss in fewer bits: the few exponents that most of them have, in codes of a fixed width.
 *
 * Values are taken in blocks of EXPONENTS_BLOCK, the last one shorter, each for itself. A block begins with its `width`, 0 to
 * EXPONENTS_WIDTH_MAX:
 *
 *   width 0: the values as they are.
 *   width w: 2^w - 1 exponents, the most frequent first; u32 how many values have none of them; for each value 8 bits, sign and
 *            mantissa: (mantissa << 1 | sign); for each value a code of w bits, from the low bits of the bytes up: the place of
 *            its exponent, or 2^w - 1 for none of them; the exponents of those, in order.
 *
 * All little-endian. The encoder takes the width that needs the fewest bytes, which it knows exactly from a count of the exponents; values
 * with a spread like a normal distribution's take about 11.2 bits. There is one encoding of a block, and every value is kept, NaN payloads
 * included. Why no entropy coder: csrc/exponents.c. */
#ifndef PCCL_EXPONENTS_H
#define PCCL_EXPONENTS_H

#include "include/pccl.h"

enum { EXPONENTS_BLOCK = 1 << 16, EXPONENTS_WIDTH_MAX = 5 };

#endif
