/* codec.c - the codecs' sizes and names, the validation of what is decoded, and which kernels this machine uses.
 *
 * Instruction sets go by the names that reduce.h has for them: which of them work here is known there. */
#include "codec.h"

#include <string.h>

#include "codec_isa.h"
#include "err.h"
#include "reduce.h"

/* A codec of elements has element_bytes; a codec of blocks has planes and a range of scales. */
static const struct format {
    const char *name;
    size_t element_bytes;
    size_t planes;
    float scale_min, scale_max;
} formats[PCCL_CODEC_COUNT] = {
    [PCCL_CODEC_NONE] = {.name = "none", .element_bytes = 4},
    [PCCL_CODEC_BF16] = {.name = "bf16", .element_bytes = 2},
    [PCCL_CODEC_FP16] = {.name = "fp16", .element_bytes = 2},
    [PCCL_CODEC_INT8] = {"int8", 0, CODEC_INT8_PLANES, CODEC_INT8_SCALE_MIN, CODEC_INT8_SCALE_MAX},
    [PCCL_CODEC_E3M0] = {"e3m0", 0, CODEC_E3M0_PLANES, CODEC_E3M0_SCALE_MIN, CODEC_E3M0_SCALE_MAX},
};

static const struct isa {
    const char *name;
    codec_table *table;
} isas[] = {
#if defined(__x86_64__)
    {"avx512", &codec_table_avx512},
    {"avx2", &codec_table_avx2},
#elif defined(__aarch64__)
    {"neon", &codec_table_neon},
#endif
    {"scalar", &codec_table_scalar},
};

enum { ISA_COUNT = sizeof isas / sizeof isas[0] };

/* The kernels of a named instruction set, NULL if this machine lacks it; no name: the best. */
static codec_table *table_of(const char *isa)
{
    const char *name = isa != NULL ? isa : reduce_isa();
    for (size_t i = 0; i < ISA_COUNT; i++)
        if (strcmp(name, isas[i].name) == 0)
            return reduce_has_isa(name) ? isas[i].table : NULL;
    return NULL;
}

/* -- sizes and names ------------------------------------------------------------------------------------------- */

static int is_codec(int codec)
{
    return codec >= 0 && codec < PCCL_CODEC_COUNT;
}

static size_t block_bytes(const struct format *f, size_t count)
{
    return CODEC_SCALE_BYTES + codec_block_words(count, f->planes) * CODEC_WORD_BYTES;
}

size_t codec_bytes(pccl_codec codec, size_t count)
{
    if (!is_codec((int)codec))
        return 0;
    const struct format *f = &formats[codec];
    if (f->planes == 0)
        return count * f->element_bytes;
    size_t rest = count % CODEC_BLOCK;
    return count / CODEC_BLOCK * block_bytes(f, CODEC_BLOCK) + (rest > 0 ? block_bytes(f, rest) : 0);
}

const char *codec_name(pccl_codec codec)
{
    return is_codec((int)codec) ? formats[codec].name : "?";
}

pccl_err codec_from_name(const char *name, pccl_codec *codec_p)
{
    for (int codec = 0; codec < PCCL_CODEC_COUNT; codec++)
        if (strcmp(name, formats[codec].name) == 0) {
            *codec_p = (pccl_codec)codec;
            return PCCL_OK;
        }
    err_set("unknown codec '%s'", name);
    return PCCL_EINVAL;
}

/* -- both ways ------------------------------------------------------------------------------------------------- */

static int block_is_valid(const struct format *f, const uint8_t *block, size_t bytes)
{
    uint32_t bits;
    float scale;
    memcpy(&bits, block, sizeof bits);
    memcpy(&scale, block, sizeof scale);
    if (bits != CODEC_POISON && !(scale >= f->scale_min && scale <= f->scale_max))
        return 0;
    return f->planes != CODEC_INT8_PLANES || memchr(block + CODEC_SCALE_BYTES, 0x80, bytes - CODEC_SCALE_BYTES) == NULL;
}

static pccl_err validate(pccl_codec codec, const uint8_t *src, size_t bytes, size_t count)
{
    const struct format *f = &formats[codec];
    /* a count whose size might wrap around is refused first */
    if (count > SIZE_MAX / 8 || bytes != codec_bytes(codec, count)) {
        err_set("%zu bytes are not %zu values in %s", bytes, count, f->name);
        return PCCL_EPROTO;
    }
    if (f->planes == 0)
        return PCCL_OK;
    for (size_t whole = block_bytes(f, CODEC_BLOCK); bytes > 0;) {
        size_t n = bytes < whole ? bytes : whole;
        if (!block_is_valid(f, src, n)) {
            err_set("malformed block of %s", f->name);
            return PCCL_EPROTO;
        }
        src += n, bytes -= n;
    }
    return PCCL_OK;
}

void codec_encode(pccl_codec codec, const void *src, size_t count, uint8_t *dst)
{
    ASSERT(is_codec((int)codec));
    (*table_of(NULL))[codec].encode(src, count, dst);
}

pccl_err codec_decode(pccl_codec codec, const uint8_t *src, size_t bytes, void *dst, size_t count)
{
    return codec_decode_isa(NULL, codec, src, bytes, dst, count);
}

/* The kernels asked for; NULL, and said why, if there are none. */
static codec_table *look_up(const char *isa, int codec)
{
    codec_table *table = table_of(isa);
    if (table == NULL)
        err_set("no such kernels here: '%s'", isa);
    else if (!is_codec(codec))
        err_set("unknown codec %d", codec);
    return table != NULL && is_codec(codec) ? table : NULL;
}

pccl_err codec_encode_isa(const char *isa, pccl_codec codec, const void *src, size_t count, uint8_t *dst)
{
    codec_table *table = look_up(isa, (int)codec);
    if (table == NULL)
        return PCCL_EINVAL;
    (*table)[codec].encode(src, count, dst);
    return PCCL_OK;
}

pccl_err codec_decode_isa(const char *isa, pccl_codec codec, const uint8_t *src, size_t bytes, void *dst, size_t count)
{
    codec_table *table = look_up(isa, (int)codec);
    if (table == NULL)
        return PCCL_EINVAL;
    pccl_err err = validate(codec, src, bytes, count);
    if (err == PCCL_OK)
        (*table)[codec].decode(src, count, dst);
    return err;
}

/* -- the border ------------------------------------------------------------------------------------------------ */

uint64_t pccl_codec_bytes(int codec, uint64_t count)
{
    return is_codec(codec) ? codec_bytes((pccl_codec)codec, count) : 0;
}

pccl_err pccl_codec_encode(const char *isa, int codec, const void *src, uint64_t count, void *dst)
{
    return codec_encode_isa(isa, (pccl_codec)codec, src, count, dst);
}

pccl_err pccl_codec_decode(const char *isa, int codec, const void *src, uint64_t bytes, void *dst, uint64_t count)
{
    return codec_decode_isa(isa, (pccl_codec)codec, src, bytes, dst, count);
}
