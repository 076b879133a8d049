/* exponents.c - encodes and decodes; see exponents.h.
 *
 * Sign and mantissa of a cache's values have no structure that pays, so all that can be saved is in the exponents: about 2.6 to
 * 3 bits of 8 are left of them. zstd on a plane of exponents makes independent values 5 % smaller than codes of fixed width
 * with exceptions do (python -m stress.kv.codecs). These have no table to walk, and take half the time or less: values pass in
 * chunks through loops that know no branch, which the compiler makes vectors of on every machine. */
#include <string.h>

#include "exponents.h"

enum {
    EXPONENTS = 256, EIGHT = 8, CHUNK = 2048, RANKS = (1 << EXPONENTS_WIDTH_MAX) - 1,
    HEADER_BYTES = 1 + sizeof(uint32_t), VALUE_BYTES = sizeof(uint16_t)
};

static uint32_t least(uint64_t a, uint32_t b)
{
    return a < b ? (uint32_t)a : b;
}

static uint64_t code_bytes(uint32_t count, unsigned width)
{
    return ((uint64_t)count * width + 7) / 8;
}

static uint64_t block_bytes(uint32_t count, unsigned width, uint32_t others)
{
    if (width == 0)
        return 1 + (uint64_t)count * VALUE_BYTES;
    return HEADER_BYTES + ((1u << width) - 1) + count + code_bytes(count, width) + others;
}

uint64_t pccl_exponents_bound(uint64_t count)
{
    return count * VALUE_BYTES + count / EXPONENTS_BLOCK + 1 + EIGHT; /* packing writes eight bytes at a time */
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

/* -- which width -- */

/* Four counts beside each other: neighbours of one exponent do not wait for one another. */
static void count_exponents(const uint8_t *values, uint32_t count, uint32_t counts[EXPONENTS])
{
    uint32_t parts[4][EXPONENTS];
    uint8_t exponents[CHUNK], rests[CHUNK];
    memset(parts, 0, sizeof parts);
    for (uint32_t at = 0; at < count; at += CHUNK) {
        uint32_t n = least(count - at, CHUNK);
        take_apart(values + (size_t)at * VALUE_BYTES, n, exponents, rests);
        for (uint32_t i = 0; i < n; i++)
            parts[i % 4][exponents[i]]++;
    }
    for (int e = 0; e < EXPONENTS; e++)
        counts[e] = parts[0][e] + parts[1][e] + parts[2][e] + parts[3][e];
}

/* The most frequent ones, of equal ones the smaller first. */
static void rank_exponents(const uint32_t counts[EXPONENTS], uint8_t ranked[RANKS])
{
    uint8_t taken[EXPONENTS] = {0};
    for (int r = 0; r < RANKS; r++) {
        int best = -1;
        for (int e = 0; e < EXPONENTS; e++)
            if (!taken[e] && (best < 0 || counts[e] > counts[best]))
                best = e;
        taken[best] = 1;
        ranked[r] = (uint8_t)best;
    }
}

static unsigned best_width(const uint32_t counts[EXPONENTS], const uint8_t ranked[RANKS], uint32_t count, uint32_t *others_p)
{
    unsigned best = 0;
    uint32_t covered = 0, ranks = 0;
    *others_p = 0;
    for (unsigned width = 1; width <= EXPONENTS_WIDTH_MAX; width++) {
        for (; ranks < (1u << width) - 1; ranks++)
            covered += counts[ranked[ranks]];
        if (block_bytes(count, width, count - covered) < block_bytes(count, best, *others_p)) {
            best = width;
            *others_p = count - covered;
        }
    }
    return best;
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

/* -- blocks -- */

/* Exponents that have no code, in order, from `to` on; one byte beyond them is written to. No branch: which ones is not to be foreseen. */
static uint8_t *put_others(const uint8_t *codes, const uint8_t *exponents, uint32_t count, uint8_t none, uint8_t *to)
{
    for (uint32_t i = 0; i < count; i++) {
        *to = exponents[i];
        to += codes[i] == none;
    }
    return to;
}

static uint32_t count_others(const uint8_t *codes, uint32_t count, uint8_t none)
{
    uint32_t others = 0;
    for (uint32_t i = 0; i < count; i++)
        others += codes[i] == none;
    return others;
}

/* `others`: at least one. */
static void take_others(const uint8_t *codes, uint8_t *exponents, uint32_t count, uint8_t none, const uint8_t *others)
{
    uint32_t used = 0;
    for (uint32_t i = 0, last = count_others(codes, count, none) - 1; i < count; i++) {
        uint8_t is = codes[i] == none;
        exponents[i] = is ? others[used] : exponents[i];
        used += is & (used < last);
    }
}

static uint64_t encode_block(const uint8_t *values, uint32_t count, uint8_t *to)
{
    uint32_t counts[EXPONENTS], others_count;
    uint8_t ranked[RANKS], exponents[CHUNK], codes[CHUNK];
    count_exponents(values, count, counts);
    rank_exponents(counts, ranked);
    unsigned width = best_width(counts, ranked, count, &others_count);
    *to++ = (uint8_t)width;
    if (width == 0) {
        memcpy(to, values, (size_t)count * VALUE_BYTES);
        return block_bytes(count, width, 0);
    }
    uint8_t known = (uint8_t)((1u << width) - 1);
    memcpy(to, ranked, known);
    memcpy(to + known, &others_count, sizeof others_count);
    uint8_t *rests = to + known + sizeof others_count, *packed = rests + count, *others = packed + code_bytes(count, width);
    uint8_t *first_others = others, saved[EIGHT]; /* packing the last codes writes over these */
    for (uint32_t at = 0; at < count; at += CHUNK) {
        uint32_t n = least(count - at, CHUNK);
        take_apart(values + (size_t)at * VALUE_BYTES, n, exponents, rests + at);
        memset(codes, known, sizeof codes);
        for (uint8_t r = 0; r < known; r++)
            translate(exponents, codes, n, ranked[r], r);
        others = put_others(codes, exponents, n, known, others);
        memset(codes + n, 0, sizeof codes - n);
        memcpy(saved, first_others, EIGHT);
        pack(codes, n, width, packed + code_bytes(at, width));
        memcpy(first_others, saved, EIGHT);
    }
    return block_bytes(count, width, others_count);
}

pccl_err pccl_exponents_encode(const void *values, uint64_t count, void *encoded, uint64_t *bytes_p)
{
    uint8_t *to = encoded;
    for (uint64_t at = 0; at < count; at += EXPONENTS_BLOCK)
        to += encode_block((const uint8_t *)values + at * VALUE_BYTES, least(count - at, EXPONENTS_BLOCK), to);
    *bytes_p = (uint64_t)(to - (uint8_t *)encoded);
    return PCCL_OK;
}

/* What a block says of itself. */
struct block {
    unsigned width;
    uint32_t known, others_count;
    const uint8_t *table, *rests, *codes, *others;
};

/* PCCL_EPROTO: there are not as many without a code as were announced. */
static pccl_err decode_values(const struct block *b, uint32_t count, uint8_t *to)
{
    uint8_t exponents[CHUNK], codes[CHUNK];
    uint32_t used = 0;
    for (uint32_t at = 0; at < count; at += CHUNK) {
        uint32_t n = least(count - at, CHUNK);
        uint64_t before = code_bytes(at, b->width);
        unpack(b->codes + before, code_bytes(count, b->width) - before, n, b->width, codes);
        for (uint32_t r = 0; r < b->known; r++)
            translate(codes, exponents, n, (uint8_t)r, b->table[r]);
        uint32_t others = count_others(codes, n, (uint8_t)b->known);
        if (others > b->others_count - used)
            return PCCL_EPROTO;
        if (others)
            take_others(codes, exponents, n, (uint8_t)b->known, b->others + used);
        used += others;
        put_together(exponents, b->rests + at, n, to + (size_t)at * VALUE_BYTES);
    }
    return used == b->others_count ? PCCL_OK : PCCL_EPROTO;
}

/* Takes one block of *from_p. PCCL_EPROTO: it does not end by `end`, or is malformed. */
static pccl_err decode_block(const uint8_t **from_p, const uint8_t *end, uint32_t count, uint8_t *to)
{
    const uint8_t *from = *from_p;
    uint64_t left = (uint64_t)(end - from);
    if (left == 0 || from[0] > EXPONENTS_WIDTH_MAX)
        return PCCL_EPROTO;
    struct block b = {.width = from[0], .known = (1u << from[0]) - 1, .table = from + 1};
    if (b.width && left >= HEADER_BYTES + b.known)
        memcpy(&b.others_count, b.table + b.known, sizeof b.others_count);
    uint64_t bytes = block_bytes(count, b.width, b.others_count);
    if (b.others_count > count || bytes > left)
        return PCCL_EPROTO;
    *from_p = from + bytes;
    if (b.width == 0) {
        memcpy(to, from + 1, (size_t)count * VALUE_BYTES);
        return PCCL_OK;
    }
    b.rests = b.table + b.known + sizeof b.others_count;
    b.codes = b.rests + count;
    b.others = b.codes + code_bytes(count, b.width);
    return decode_values(&b, count, to);
}

pccl_err pccl_exponents_decode(const void *encoded, uint64_t bytes, void *values, uint64_t count)
{
    const uint8_t *from = encoded, *end = from + bytes;
    for (uint64_t at = 0; at < count; at += EXPONENTS_BLOCK) {
        pccl_err err = decode_block(&from, end, least(count - at, EXPONENTS_BLOCK), (uint8_t *)values + at * VALUE_BYTES);
        if (err)
            return err;
    }
    return from == end ? PCCL_OK : PCCL_EPROTO;
}
