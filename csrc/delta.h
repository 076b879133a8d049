/* delta.h - what changed between two states of a block of weights, without loss, in as few bytes as can be had quickly.
 *
 * Elements are unsigned integers of 1, 2 or 4 bytes, whatever they stand for: a step is (new - old) mod 2^w, which is exact for every bit
 * pattern (NaN payloads, both zeros, infinities, subnormals), and of neighbouring floats it is 1. The bytes are a function of the two states and of
 * the forms that were allowed: every instruction set writes the same. docs/delta.md has the format, byte by byte. The forms:
 *
 *   zero       nothing changed
 *   raw        all new values                            needs no old state
 *   abs        places and new values of what changed     needs no old state
 *   diff_a     places and steps of what changed
 *   diff_b     the same by class of the old values' exponents, which say how likely a change is; places are ranks within a class
 *   dense_ulp  the steps of all elements
 *
 * Of the forms that are allowed the smallest is written: they are tried, not guessed at.
 *
 * The three that build on old values carry two 64-bit digests, of the whole block before and after. A wrong or damaged base is found
 * before anything is written; a fold takes the first one's `before` and the second one's `after`, and an inverse swaps them, so that neither
 * needs the values. A digest is the sum over the block's 64-bit little-endian words x (the last one filled up with zeros), i = 0, 1, ..., of
 *
 *   low(y) high(y) + swap(x)  mod 2^64   with y = x xor (i + 1) 0x9e3779b97f4a7c15, halves of 32 bits, swap exchanging them
 *
 * that is, what xxh3 adds up, with a key for every place instead of its rounds, so that the order of summing is free. It is a guard against
 * mistakes and decay, not against forgers: those are kept off by the signatures around blocks.
 *
 * All functions are pure, and may run in any number of threads. Blocks that are read may hold any bytes. */
#ifndef PCCL_DELTA_H
#define PCCL_DELTA_H

#include "include/pccl.h"

enum {
    DELTA_ELEMENTS_MAX = 1 << 24, /* of one block */
    DELTA_CLASSES_MAX = 16,
    DELTA_HEADER_MAX = 1 + 4 + 4 + 16,
};

#endif
