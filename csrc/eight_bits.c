/* eight_bits.c - bf16 values in 8 bits and back; see pccl_api.h.
 *
 * A plane is [tokens, heads, channels], or [heads, tokens, channels]. Its scales are a table whose index moves by a step, 0 or more, along
 * each axis: so one pair of loops serves keys (one for each channel of each head) and values (one for each token), in either
 * order of rows. What is greatest is found among the bits, whose order is that of the absolute values, NaN above all; loops over channels
 * know no branch, which the compiler makes vectors of on every machine. */
#include <string.h>

#include "include/pccl.h"

enum { LEVELS = 127, INFINITE = 0x7f80, QUIET_NAN = 0x7fc0 };

/* To the nearest, ties to even: adding it leaves no bits behind the point. */
#define ROUNDER 12582912.0F

/* Steps of the index of scales along the axes; `scales`: how many. */
struct plane {
    uint32_t outer, inner, channels, outer_step, inner_step, channel_step, scales;
};

static struct plane plane_of(const pccl_slab *slab, int is_values)
{
    struct plane p = {slab->tokens, slab->heads, slab->channels, 0, 0, 0, 0};
    if (is_values) {
        p.outer_step = 1;
        p.scales = slab->tokens;
    } else {
        p.inner_step = slab->channels;
        p.channel_step = 1;
        p.scales = slab->heads * slab->channels;
    }
    if (slab->heads_first) {
        uint32_t step = p.outer_step;
        p.outer = slab->heads, p.inner = slab->tokens;
        p.outer_step = p.inner_step, p.inner_step = step;
    }
    return p;
}

static float widen(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

static uint16_t narrow(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t near = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    return (bits & 0x7fffffff) > 0x7f800000 ? QUIET_NAN : near;
}

/* -- one row of channels -- */

static uint16_t greatest(const uint16_t *restrict values, uint32_t count)
{
    uint16_t most = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint16_t size = values[i] & 0x7fff;
        most = size > most ? size : most;
    }
    return most;
}

static void greatest_each(const uint16_t *restrict values, uint32_t count, uint16_t *restrict most)
{
    for (uint32_t i = 0; i < count; i++) {
        uint16_t size = values[i] & 0x7fff;
        most[i] = size > most[i] ? size : most[i];
    }
}

/* A code; 0 where the scale is none: what is not finite, and all beside it, cannot be kept. */
static int8_t code_of(uint16_t value, float scale)
{
    float quotient = (widen(value) / (scale > 0 ? scale : 1) + ROUNDER) - ROUNDER;
    uint32_t bits, keep = scale > 0 ? UINT32_MAX : 0;
    memcpy(&bits, &quotient, sizeof bits);
    bits &= keep;
    memcpy(&quotient, &bits, sizeof bits);
    return (int8_t)(int32_t)quotient;
}

static void codes_one(const uint16_t *restrict values, uint32_t count, float scale, int8_t *restrict codes)
{
    for (uint32_t i = 0; i < count; i++)
        codes[i] = code_of(values[i], scale);
}

static void codes_each(const uint16_t *restrict values, uint32_t count, const float *restrict scales, int8_t *restrict codes)
{
    for (uint32_t i = 0; i < count; i++)
        codes[i] = code_of(values[i], scales[i]);
}

static void values_one(const int8_t *restrict codes, uint32_t count, float scale, uint16_t *restrict values)
{
    for (uint32_t i = 0; i < count; i++)
        values[i] = narrow((float)codes[i] * scale);
}

static void values_each(const int8_t *restrict codes, uint32_t count, const float *restrict scales, uint16_t *restrict values)
{
    for (uint32_t i = 0; i < count; i++)
        values[i] = narrow((float)codes[i] * scales[i]);
}

/* -- planes -- */

/* The greatest of each scale's values become the scales, in the same memory: from the last on, for each takes twice the room. */
static void scales_of(const struct plane *p, const uint16_t *values, float *scales)
{
    uint16_t *most = (uint16_t *)scales;
    memset(most, 0, p->scales * sizeof *most);
    for (uint32_t i = 0; i < p->outer; i++)
        for (uint32_t j = 0; j < p->inner; j++, values += p->channels) {
            uint16_t *here = most + (size_t)i * p->outer_step + (size_t)j * p->inner_step;
            if (p->channel_step)
                greatest_each(values, p->channels, here);
            else {
                uint16_t size = greatest(values, p->channels);
                *here = size > *here ? size : *here;
            }
        }
    for (uint32_t i = p->scales; i-- > 0;) {
        uint16_t size;
        memcpy(&size, (const char *)scales + i * sizeof size, sizeof size);
        float scale = size >= INFINITE ? widen(QUIET_NAN) : widen(size) / LEVELS;
        memcpy((char *)scales + i * sizeof scale, &scale, sizeof scale);
    }
}

static void encode_plane(const struct plane *p, const uint16_t *values, float *scales, int8_t *codes)
{
    scales_of(p, values, scales);
    for (uint32_t i = 0; i < p->outer; i++)
        for (uint32_t j = 0; j < p->inner; j++, values += p->channels, codes += p->channels) {
            const float *here = scales + (size_t)i * p->outer_step + (size_t)j * p->inner_step;
            if (p->channel_step)
                codes_each(values, p->channels, here, codes);
            else
                codes_one(values, p->channels, *here, codes);
        }
}

static void decode_plane(const struct plane *p, const float *scales, const int8_t *codes, uint16_t *values)
{
    for (uint32_t i = 0; i < p->outer; i++)
        for (uint32_t j = 0; j < p->inner; j++, values += p->channels, codes += p->channels) {
            const float *here = scales + (size_t)i * p->outer_step + (size_t)j * p->inner_step;
            if (p->channel_step)
                values_each(codes, p->channels, here, values);
            else
                values_one(codes, p->channels, *here, values);
        }
}

static uint64_t cells_of(const pccl_slab *slab)
{
    return (uint64_t)slab->tokens * slab->heads * slab->channels;
}

uint64_t pccl_eight_bytes(const pccl_slab *slab, uint64_t slabs)
{
    uint64_t scales = slab->tokens + (uint64_t)slab->heads * slab->channels;
    return slabs * (scales * sizeof(float) + 2 * cells_of(slab));
}

pccl_err pccl_eight_encode(const void *values, const pccl_slab *slab, uint64_t slabs, void *encoded)
{
    uint64_t cells = cells_of(slab);
    if (cells % sizeof(float))
        return PCCL_EINVAL;
    char *to = encoded;
    for (int is_values = 0; is_values < 2; is_values++) {
        struct plane p = plane_of(slab, is_values);
        char *codes = to + slabs * p.scales * sizeof(float);
        for (uint64_t s = 0; s < slabs; s++)
            encode_plane(&p, (const uint16_t *)values + (2 * s + (unsigned)is_values) * cells, (float *)(void *)to + s * p.scales,
                         (int8_t *)codes + s * cells);
        to = codes + slabs * cells;
    }
    return PCCL_OK;
}

pccl_err pccl_eight_decode(const void *encoded, uint64_t bytes, const pccl_slab *slab, uint64_t slabs, void *values)
{
    uint64_t cells = cells_of(slab);
    if (cells % sizeof(float))
        return PCCL_EINVAL;
    if (bytes != pccl_eight_bytes(slab, slabs))
        return PCCL_EPROTO;
    const char *from = encoded;
    for (int is_values = 0; is_values < 2; is_values++) {
        struct plane p = plane_of(slab, is_values);
        const char *codes = from + slabs * p.scales * sizeof(float);
        for (uint64_t s = 0; s < slabs; s++)
            decode_plane(&p, (const float *)(const void *)from + s * p.scales, (const int8_t *)codes + s * cells,
                         (uint16_t *)values + (2 * s + (unsigned)is_values) * cells);
        from = codes + slabs * cells;
    }
    return PCCL_OK;
}
