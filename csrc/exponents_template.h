/* exponents_template.h - the loops of exponents over 64 values at a time, compiled once per instruction set; what is left of a chunk the
 * scalar ones do.
 *
 * The includer defines ISA_TARGET (function attributes that switch the instruction set on), ISA_KERNELS (the name of the table), and
 * before that ISA_INLINE and these for vec, 64 bytes:
 *   vec_get, vec_put, vec_splat
 *   vec_pick     where `x` is `is`, `becomes`; elsewhere `all`
 *   vec_xor
 *   vec_equal    a bit for each byte that is the same
 *   vec_tally    adds 1 to the bytes of `sums` where `x` is `is`, and sets those of `seen` to something other than 0
 *   vec_total    of all bytes
 *   vec_split    64 values into exponents and rests; vec_join the way back
 *   vec_pack     64 codes into 8 * width bytes; what is written ends EXPONENTS_SLACK bytes behind them at most
 *   vec_unpack   the way back; UNPACK_READS bytes are read */
#include <string.h>

enum {
    GROUP = 64,
    GROUPS = 4,                /* go through a table together */
    FAVOURITES = 12,           /* exponents that are counted by vectors */
    FAVOURITES_FROM = 4 * EXPONENTS_CHUNK,
    TALLY_GROUPS = 255         /* before a byte of a sum overflows */
};

/* -- how often each exponent is there ------------------------------------------------------------------------------ */

/* TALLY_GROUPS at most. */
ISA_TARGET static void tally(const uint8_t *values, uint32_t groups, const vec favourites[FAVOURITES], vec sums[FAVOURITES],
                             uint32_t counts[EXPONENTS_EACH])
{
    uint8_t exponents[GROUP];
    vec exponent, rest, zero = vec_splat(0);
    for (uint32_t g = 0; g < groups; g++, values += (size_t)GROUP * EXPONENTS_VALUE_BYTES) {
        vec seen = zero;
        vec_split(values, &exponent, &rest);
        for (int i = 0; i < FAVOURITES; i++)
            vec_tally(&sums[i], &seen, exponent, favourites[i]);
        uint64_t missed = vec_equal(seen, zero);
        if (missed)
            vec_put(exponents, exponent);
        for (; missed; missed &= missed - 1)
            counts[exponents[__builtin_ctzll(missed)]]++;
    }
}

/* What the first chunk has most of is mostly what all have most of: that is counted without looking at each value. */
ISA_TARGET static void count_exponents(const uint8_t *values, uint32_t count, uint32_t counts[EXPONENTS_EACH])
{
    uint32_t done = count < FAVOURITES_FROM ? count : EXPONENTS_CHUNK;
    exponents_kernels_scalar.count(values, done, counts);
    uint8_t favourites[FAVOURITES];
    vec which[FAVOURITES], sums[FAVOURITES];
    exponents_rank(counts, favourites, FAVOURITES);
    for (int i = 0; i < FAVOURITES; i++)
        which[i] = vec_splat(favourites[i]);
    for (uint32_t groups; (groups = (count - done) / GROUP) != 0; done += groups * GROUP) {
        groups = groups < TALLY_GROUPS ? groups : TALLY_GROUPS;
        for (int i = 0; i < FAVOURITES; i++)
            sums[i] = vec_splat(0);
        tally(values + (size_t)done * EXPONENTS_VALUE_BYTES, groups, which, sums, counts);
        for (int i = 0; i < FAVOURITES; i++)
            counts[favourites[i]] += vec_total(sums[i]);
    }
    exponents_kernels_scalar.count(values + (size_t)done * EXPONENTS_VALUE_BYTES, count - done, counts);
}

/* -- encode -------------------------------------------------------------------------------------------------------- */

/* Mostly one or two of a group: these are put down without asking whether they are there. */
ISA_INLINE uint8_t *put_others(vec exponent, uint64_t mask, uint8_t *others)
{
    uint8_t exponents[GROUP];
    const uint64_t last = (uint64_t)1 << (GROUP - 1);
    vec_put(exponents, exponent);
    for (int i = 0; i < 2; i++, mask &= mask - 1) {
        *others = exponents[__builtin_ctzll(mask | last)];
        others += mask != 0;
    }
    for (; mask; mask &= mask - 1)
        *others++ = exponents[__builtin_ctzll(mask)];
    return others;
}

/* GROUPS groups. */
ISA_TARGET static uint8_t *encode_groups(const struct exponents_code *code, const uint8_t *values, uint8_t *rests, uint8_t *packed,
                                         uint8_t *others)
{
    vec exponents[GROUPS], flipped[GROUPS], rest, zero = vec_splat(0), none = vec_splat((uint8_t)code->known);
    for (int g = 0; g < GROUPS; g++) {
        vec_split(values + g * GROUP * EXPONENTS_VALUE_BYTES, &exponents[g], &rest);
        vec_put(rests + g * GROUP, rest);
        flipped[g] = zero;
    }
    for (uint32_t r = 0; r < code->known; r++) {
        vec is = vec_splat(code->table[r]), becomes = vec_splat((uint8_t)(r ^ code->known));
        for (int g = 0; g < GROUPS; g++)
            flipped[g] = vec_pick(flipped[g], exponents[g], is, becomes);
    }
    for (int g = 0; g < GROUPS; g++) {
        others = put_others(exponents[g], vec_equal(flipped[g], zero), others);
        vec_pack(vec_xor(flipped[g], none), code->width, packed + (unsigned)g * 8 * code->width);
    }
    return others;
}

static uint32_t encode(const struct exponents_code *code, const uint8_t *values, uint32_t count, uint8_t *rests, uint8_t *packed,
                       uint8_t *others)
{
    uint8_t *to = others;
    uint32_t done = 0;
    for (; done + GROUPS * GROUP <= count; done += GROUPS * GROUP)
        to = encode_groups(code, values + (size_t)done * EXPONENTS_VALUE_BYTES, rests + done, packed + (size_t)done / 8 * code->width, to);
    return (uint32_t)(to - others) + exponents_kernels_scalar.encode(code, values + (size_t)done * EXPONENTS_VALUE_BYTES, count - done,
                                                                     rests + done, packed + (size_t)done / 8 * code->width, to);
}

/* -- decode -------------------------------------------------------------------------------------------------------- */

ISA_INLINE vec take_others(vec exponent, uint64_t mask, const uint8_t *others)
{
    uint8_t exponents[GROUP];
    vec_put(exponents, exponent);
    for (; mask; mask &= mask - 1)
        exponents[__builtin_ctzll(mask)] = *others++;
    return vec_get(exponents);
}

/* GROUPS groups. */
ISA_TARGET static uint32_t decode_groups(const struct exponents_code *code, const struct exponents_chunk *from, uint8_t *values)
{
    vec codes[GROUPS], exponents[GROUPS], none = vec_splat((uint8_t)code->known);
    uint32_t used = 0;
    for (unsigned g = 0; g < GROUPS; g++) {
        codes[g] = vec_unpack(from->codes + g * 8 * code->width, code->width);
        exponents[g] = none;
    }
    for (uint32_t r = 0; r < code->known; r++) {
        vec is = vec_splat((uint8_t)r), becomes = vec_splat(code->table[r]);
        for (int g = 0; g < GROUPS; g++)
            exponents[g] = vec_pick(exponents[g], codes[g], is, becomes);
    }
    for (int g = 0; g < GROUPS; g++) {
        uint64_t mask = vec_equal(codes[g], none);
        uint32_t others = (uint32_t)__builtin_popcountll(mask);
        if (others > from->others_left - used)
            return from->others_left + 1;
        if (others)
            exponents[g] = take_others(exponents[g], mask, from->others + used);
        used += others;
        vec_join(exponents[g], vec_get(from->rests + g * GROUP), values + g * GROUP * EXPONENTS_VALUE_BYTES);
    }
    return used;
}

/* As far as vectors may be read. */
static uint32_t decode(const struct exponents_code *code, const struct exponents_chunk *chunk, uint8_t *values)
{
    struct exponents_chunk left = *chunk;
    const uint32_t step = GROUPS * GROUP, step_bytes = step / 8 * code->width;
    while (left.count >= step && left.codes_bytes >= (GROUPS - 1) * 8 * code->width + UNPACK_READS) {
        uint32_t used = decode_groups(code, &left, values);
        if (used > left.others_left)
            return chunk->others_left + 1;
        left.count -= step;
        left.rests += step;
        left.codes += step_bytes;
        left.codes_bytes -= step_bytes;
        left.others += used;
        left.others_left -= used;
        values += (size_t)step * EXPONENTS_VALUE_BYTES;
    }
    return chunk->others_left - left.others_left + exponents_kernels_scalar.decode(code, &left, values);
}

exponents_kernels ISA_KERNELS = {.count = count_exponents, .encode = encode, .decode = decode};
