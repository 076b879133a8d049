/* exponents_scalar.c - the loops of exponents for every machine, and for what is left of a chunk by wider ones.
 *
 * There is no table to walk: values pass through loops that know no branch, which the compiler makes vectors of. */
#include <string.h>

#include "exponents_isa.h"

enum { EIGHT = 8, CHUNK = EXPONENTS_CHUNK, VALUE_BYTES = EXPONENTS_VALUE_BYTES };

static uint32_t least(uint64_t a, uint32_t b)
{
    return a < b ? (uint32_t)a : b;
}

/* -- values and what they are made of -- */

static void take_apart(const uint8_t *restrict values, uint32_t count, uint8_t *restrict exponents, uint8_t *restrict rests)
{
    for (uint32_t i = 0; i < count; i++) {
        uint16_t value;
        memcpy(&value, values + (size_t)i * VALUE_BYTES, sizeof value);
        exponents[i] = (uint8_t)(value >> 7);
        rests[i] = (uint8_t)(value << 1 | value >> 15);
    }
}

static void put_together(const uint8_t *restrict exponents, const uint8_t *restrict rests, uint32_t count, uint8_t *restrict values)
{
    for (uint32_t i = 0; i < count; i++) {
        uint16_t value = (uint16_t)((uint16_t)(rests[i] << 15) | exponents[i] << 7 | rests[i] >> 1);
        memcpy(values + (size_t)i * VALUE_BYTES, &value, sizeof value);
    }
}

/* Four counts beside each other: neighbours of one exponent do not wait for one another. */
static void count_exponents(const uint8_t *values, uint32_t count, uint32_t counts[EXPONENTS_EACH])
{
    uint32_t parts[4][EXPONENTS_EACH];
    uint8_t exponents[CHUNK], rests[CHUNK];
    if (!count)
        return;
    memset(parts, 0, sizeof parts);
    for (uint32_t at = 0; at < count; at += CHUNK) {
        uint32_t n = least(count - at, CHUNK);
        take_apart(values + (size_t)at * VALUE_BYTES, n, exponents, rests);
        for (uint32_t i = 0; i < n; i++)
            parts[i % 4][exponents[i]]++;
    }
    for (int e = 0; e < EXPONENTS_EACH; e++)
        counts[e] += parts[0][e] + parts[1][e] + parts[2][e] + parts[3][e];
}

/* -- codes -- */

/* One byte for another, of a few that are known: without a table, so that many go at once. The others stay as `to` has them. */
static void translate(const uint8_t *restrict from, uint8_t *restrict to, uint32_t count, uint8_t is, uint8_t becomes)
{
    for (uint32_t i = 0; i < count; i++)
        to[i] = from[i] == is ? becomes : to[i];
}

/* Eight codes, one per byte, into the low 8 * width bits; and back. Neighbours, then pairs, then fours are brought together: what
 * moves is taken out first, for it may land on where it was. */
static uint64_t pack_eight(uint64_t codes, unsigned width)
{
    unsigned gap = 8 - width;
    uint64_t low = codes & 0x00ff00ff00ff00ffull;
    codes = low | (codes ^ low) >> gap;
    low = codes & 0x0000ffff0000ffffull;
    codes = low | (codes ^ low) >> 2 * gap;
    return (codes & 0xffffffffull) | codes >> 32 << 4 * width;
}

static uint64_t unpack_eight(uint64_t bits, unsigned width)
{
    unsigned gap = 8 - width;
    uint64_t one = (1ull << width) - 1, pair = (1ull << 2 * width) - 1, four = (1ull << 4 * width) - 1;
    uint64_t codes = (bits & four) | (bits >> 4 * width & four) << 32;
    uint64_t low = codes & pair * 0x0000000100000001ull;
    codes = low | (codes ^ low) << 2 * gap;
    low = codes & one * 0x0001000100010001ull;
    return low | (codes ^ low) << gap;
}

/* A chunk's codes; eight bytes are written at a time, of which the next overwrite what is too much. */
static void pack(const uint8_t codes[CHUNK], uint32_t count, unsigned width, uint8_t *to)
{
    for (uint32_t i = 0; i < count; i += EIGHT, to += width) {
        uint64_t eight;
        memcpy(&eight, codes + i, EIGHT);
        eight = pack_eight(eight, width);
        memcpy(to, &eight, EIGHT);
    }
}

static void unpack(const uint8_t *from, uint64_t bytes, uint32_t count, unsigned width, uint8_t codes[CHUNK])
{
    for (uint32_t i = 0; i < count; i += EIGHT, from += width, bytes -= least(bytes, width)) {
        uint64_t eight = 0;
        memcpy(&eight, from, least(bytes, EIGHT));
        eight = unpack_eight(eight, width);
        memcpy(codes + i, &eight, EIGHT);
    }
}

/* -- others -- */

/* Exponents that have no code, in order, from `to` on; one byte beyond them is written to. No branch: which ones is not to be foreseen. */
static uint32_t put_others(const uint8_t *codes, const uint8_t *exponents, uint32_t count, uint8_t none, uint8_t *to)
{
    uint32_t others = 0;
    for (uint32_t i = 0; i < count; i++) {
        to[others] = exponents[i];
        others += codes[i] == none;
    }
    return others;
}

static uint32_t count_others(const uint8_t *codes, uint32_t count, uint8_t none)
{
    uint32_t others = 0;
    for (uint32_t i = 0; i < count; i++)
        others += codes[i] == none;
    return others;
}

/* `left`: of the others, at least one. */
static void take_others(const uint8_t *codes, uint8_t *exponents, uint32_t count, uint8_t none, const uint8_t *others, uint32_t left)
{
    uint32_t used = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint8_t is = codes[i] == none;
        exponents[i] = is ? others[used] : exponents[i];
        used += is & (used < left - 1);
    }
}

/* -- a chunk -- */

static uint32_t encode(const struct exponents_code *code, const uint8_t *values, uint32_t count, uint8_t *rests, uint8_t *packed,
                       uint8_t *others)
{
    uint8_t exponents[CHUNK], codes[CHUNK], none = (uint8_t)code->known;
    if (!count)
        return 0;
    take_apart(values, count, exponents, rests);
    memset(codes, none, sizeof codes);
    for (uint32_t r = 0; r < code->known; r++)
        translate(exponents, codes, count, code->table[r], (uint8_t)r);
    uint32_t others_count = put_others(codes, exponents, count, none, others);
    memset(codes + count, 0, sizeof codes - count);
    pack(codes, count, code->width, packed);
    return others_count;
}

static uint32_t decode(const struct exponents_code *code, const struct exponents_chunk *chunk, uint8_t *values)
{
    uint8_t exponents[CHUNK], codes[CHUNK], none = (uint8_t)code->known;
    unpack(chunk->codes, chunk->codes_bytes, chunk->count, code->width, codes);
    for (uint32_t r = 0; r < code->known; r++)
        translate(codes, exponents, chunk->count, (uint8_t)r, code->table[r]);
    uint32_t others = count_others(codes, chunk->count, none);
    if (others > chunk->others_left)
        return others;
    if (others)
        take_others(codes, exponents, chunk->count, none, chunk->others, others);
    put_together(exponents, chunk->rests, chunk->count, values);
    return others;
}

exponents_kernels exponents_kernels_scalar = {.count = count_exponents, .encode = encode, .decode = decode};
