/* exponents.c - blocks: which width they take, what they say of themselves, and which kernels this machine uses; see exponents.h.
 *
 * Sign and mantissa of a cache's values have no structure that pays, so all that can be saved is in the exponents: about 2.6 to
 * 3 bits of 8 are left of them. zstd on a plane of exponents makes independent values 5 % smaller than codes of fixed width
 * with exceptions do (python -m stress.kv.codecs). These have no table to walk, and take a small part of the time. */
#include <string.h>

#include "err.h"
#include "exponents_isa.h"
#include "reduce.h"

enum {
    CHUNK = EXPONENTS_CHUNK, RANKS = (1 << EXPONENTS_WIDTH_MAX) - 1, VALUE_BYTES = EXPONENTS_VALUE_BYTES,
    HEADER_BYTES = 1 + sizeof(uint32_t)
};

static const struct isa {
    const char *name;
    exponents_kernels *kernels;
} isas[] = {
#if defined(__x86_64__)
    {"avx512", &exponents_kernels_avx512},
    {"avx2", &exponents_kernels_avx2},
#endif
    {"scalar", &exponents_kernels_scalar},
};

enum { ISA_COUNT = sizeof isas / sizeof isas[0] };

/* The vectors that work here reduce.h knows; bits are asked for besides. */
static int works(const char *name)
{
    int has_bits = 1;
#if defined(__x86_64__)
    has_bits = strcmp(name, "scalar") == 0 || (__builtin_cpu_supports("bmi") && __builtin_cpu_supports("popcnt"));
#endif
    return has_bits && reduce_has_isa(name);
}

/* Where the best that works has no kernels of ours, the scalar ones do. */
static exponents_kernels *kernels_of(const char *isa)
{
    const char *name = isa != NULL ? isa : reduce_isa();
    for (size_t i = 0; i < ISA_COUNT; i++)
        if (strcmp(name, isas[i].name) == 0 && works(name))
            return isas[i].kernels;
    if (isa == NULL)
        return &exponents_kernels_scalar;
    err_set("no such kernels here: '%s'", isa);
    return NULL;
}

static uint32_t least(uint64_t a, uint32_t b)
{
    return a < b ? (uint32_t)a : b;
}

/* -- sizes -- */

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
    return count * VALUE_BYTES + count / EXPONENTS_BLOCK + 1;
}

/* -- which width -- */

/* Those that are there, in order: mostly a few dozen of all. */
static uint32_t list_exponents(const uint32_t counts[EXPONENTS_EACH], uint8_t there[EXPONENTS_EACH])
{
    uint32_t listed = 0;
    for (int e = 0; e < EXPONENTS_EACH; e++)
        if (counts[e])
            there[listed++] = (uint8_t)e;
    return listed;
}

void exponents_rank(const uint32_t counts[EXPONENTS_EACH], uint8_t *ranked, uint32_t ranks)
{
    uint8_t there[EXPONENTS_EACH];
    uint32_t listed = list_exponents(counts, there), r = 0;
    for (; r < ranks && r < listed; r++) {
        uint32_t best = r;
        for (uint32_t i = r + 1; i < listed; i++)
            best = counts[there[i]] > counts[there[best]] ? i : best;
        ranked[r] = there[best];
        memmove(there + r + 1, there + r, best - r);
    }
    for (int e = 0; r < ranks; e++)
        if (!counts[e])
            ranked[r++] = (uint8_t)e;
}

static unsigned best_width(const uint32_t counts[EXPONENTS_EACH], const uint8_t ranked[RANKS], uint32_t count, uint32_t *others_p)
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

/* -- blocks -- */

static uint64_t encode_block(exponents_kernels *k, const uint8_t *values, uint32_t count, uint8_t *to)
{
    uint32_t counts[EXPONENTS_EACH] = {0}, others_count;
    uint8_t ranked[RANKS], packed[CHUNK * EXPONENTS_WIDTH_MAX / 8 + EXPONENTS_SLACK], others[CHUNK + EXPONENTS_SLACK];
    k->count(values, count, counts);
    exponents_rank(counts, ranked, RANKS);
    unsigned width = best_width(counts, ranked, count, &others_count);
    *to++ = (uint8_t)width;
    if (width == 0) {
        memcpy(to, values, (size_t)count * VALUE_BYTES);
        return block_bytes(count, width, 0);
    }
    struct exponents_code code = {.width = width, .known = (1u << width) - 1, .table = ranked};
    memcpy(to, ranked, code.known);
    memcpy(to + code.known, &others_count, sizeof others_count);
    uint8_t *rests = to + code.known + sizeof others_count, *codes = rests + count, *to_others = codes + code_bytes(count, width);
    for (uint32_t at = 0; at < count; at += CHUNK) {
        uint32_t n = least(count - at, CHUNK);
        uint32_t found = k->encode(&code, values + (size_t)at * VALUE_BYTES, n, rests + at, packed, others);
        memcpy(codes + code_bytes(at, width), packed, code_bytes(n, width));
        memcpy(to_others, others, found);
        to_others += found;
    }
    return block_bytes(count, width, others_count);
}

pccl_err exponents_encode_isa(const char *isa, const void *values, uint64_t count, void *encoded, uint64_t *bytes_p)
{
    exponents_kernels *k = kernels_of(isa);
    uint8_t *to = encoded;
    if (k == NULL)
        return PCCL_EINVAL;
    for (uint64_t at = 0; at < count; at += EXPONENTS_BLOCK)
        to += encode_block(k, (const uint8_t *)values + at * VALUE_BYTES, least(count - at, EXPONENTS_BLOCK), to);
    *bytes_p = (uint64_t)(to - (uint8_t *)encoded);
    return PCCL_OK;
}

pccl_err pccl_exponents_encode(const void *values, uint64_t count, void *encoded, uint64_t *bytes_p)
{
    return exponents_encode_isa(NULL, values, count, encoded, bytes_p);
}

/* What a block says of itself. */
struct block {
    struct exponents_code code;
    uint32_t others_count;
    const uint8_t *rests, *codes, *others;
};

/* PCCL_EPROTO: there are not as many without a code as were announced. */
static pccl_err decode_values(exponents_kernels *k, const struct block *b, uint32_t count, uint8_t *to)
{
    uint32_t used = 0;
    for (uint32_t at = 0; at < count; at += CHUNK) {
        uint64_t before = code_bytes(at, b->code.width);
        struct exponents_chunk chunk = {
            .count = least(count - at, CHUNK), .rests = b->rests + at, .codes = b->codes + before, .others = b->others + used,
            .codes_bytes = code_bytes(count, b->code.width) - before, .others_left = b->others_count - used,
        };
        uint32_t others = k->decode(&b->code, &chunk, to + (size_t)at * VALUE_BYTES);
        if (others > chunk.others_left)
            return PCCL_EPROTO;
        used += others;
    }
    return used == b->others_count ? PCCL_OK : PCCL_EPROTO;
}

/* Takes one block of *from_p. PCCL_EPROTO: it does not end by `end`, or is malformed. */
static pccl_err decode_block(exponents_kernels *k, const uint8_t **from_p, const uint8_t *end, uint32_t count, uint8_t *to)
{
    const uint8_t *from = *from_p;
    uint64_t left = (uint64_t)(end - from);
    if (left == 0 || from[0] > EXPONENTS_WIDTH_MAX)
        return PCCL_EPROTO;
    struct block b = {.code = {.width = from[0], .known = (1u << from[0]) - 1, .table = from + 1}};
    if (b.code.width && left >= HEADER_BYTES + b.code.known)
        memcpy(&b.others_count, b.code.table + b.code.known, sizeof b.others_count);
    uint64_t bytes = block_bytes(count, b.code.width, b.others_count);
    if (b.others_count > count || bytes > left)
        return PCCL_EPROTO;
    *from_p = from + bytes;
    if (b.code.width == 0) {
        memcpy(to, from + 1, (size_t)count * VALUE_BYTES);
        return PCCL_OK;
    }
    b.rests = b.code.table + b.code.known + sizeof b.others_count;
    b.codes = b.rests + count;
    b.others = b.codes + code_bytes(count, b.code.width);
    return decode_values(k, &b, count, to);
}

pccl_err exponents_decode_isa(const char *isa, const void *encoded, uint64_t bytes, void *values, uint64_t count)
{
    exponents_kernels *k = kernels_of(isa);
    const uint8_t *from = encoded, *end = from + bytes;
    if (k == NULL)
        return PCCL_EINVAL;
    for (uint64_t at = 0; at < count; at += EXPONENTS_BLOCK) {
        pccl_err err = decode_block(k, &from, end, least(count - at, EXPONENTS_BLOCK), (uint8_t *)values + at * VALUE_BYTES);
        if (err)
            return err;
    }
    return from == end ? PCCL_OK : PCCL_EPROTO;
}

pccl_err pccl_exponents_decode(const void *encoded, uint64_t bytes, void *values, uint64_t count)
{
    return exponents_decode_isa(NULL, encoded, bytes, values, count);
}
