/* fuzz_codec.c - any bytes through every decoder, and as values through every encoder.
 *
 * Input: codec, fixes, count (2 bytes, little-endian), then the encoded bytes; those are cut or filled up with zeros to
 * the right size if a fix says so, and their scales put into the range if another does, so that what lies behind the
 * checks is reached too. All instruction sets must agree on the verdict and on every bit; values that were decoded must
 * encode to bytes that stay the same from then on. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/codec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { FIX_SIZE = 1, FIX_SCALES = 2, COUNT_MAX = 2048, HEAD_BYTES = 4 };

static const char *const isas[] = {"scalar", "avx2", "avx512", "neon"};
enum { ISA_COUNT = sizeof isas / sizeof isas[0] };

static void require(int holds)
{
    if (!holds)
        abort();
}

/* A block of the exact size. */
static uint8_t *room(size_t bytes)
{
    uint8_t *block = calloc(1, bytes ? bytes : 1);
    require(block != NULL);
    return block;
}

/* Puts a scale into every block: the bits that are there, made positive and of a moderate exponent. */
static void fix_scales(pccl_codec codec, uint8_t *encoded, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += codec_bytes(codec, CODEC_BLOCK))
        encoded[at + 3] = 0x20 | (encoded[at + 3] & 0x1f);
}

/* Decodes by every instruction set; 1 if it was accepted. */
static int decode_by_all(pccl_codec codec, const uint8_t *encoded, size_t bytes, uint8_t *values, size_t count)
{
    uint8_t *others = room(4 * count);
    pccl_err verdict = codec_decode(codec, encoded, bytes, values, count);
    require(verdict == PCCL_OK || verdict == PCCL_EPROTO);
    for (size_t i = 0; i < ISA_COUNT; i++) {
        pccl_err err = codec_decode_isa(isas[i], codec, encoded, bytes, others, count);
        require(err == verdict || err == PCCL_EINVAL);
        if (err == PCCL_OK)
            require(memcmp(others, values, 4 * count) == 0);
    }
    free(others);
    return verdict == PCCL_OK;
}

/* Encodes by every instruction set, decodes, and encodes what came out: the same bytes. */
static void encode_by_all(pccl_codec codec, const uint8_t *values, size_t count)
{
    size_t bytes = codec_bytes(codec, count);
    uint8_t *encoded = room(bytes), *others = room(bytes), *decoded = room(4 * count);
    codec_encode(codec, values, count, encoded);
    for (size_t i = 0; i < ISA_COUNT; i++)
        if (codec_encode_isa(isas[i], codec, values, count, others) == PCCL_OK)
            require(memcmp(others, encoded, bytes) == 0);
    require(decode_by_all(codec, encoded, bytes, decoded, count));
    codec_encode(codec, decoded, count, others);
    require(memcmp(others, encoded, bytes) == 0);
    free(encoded), free(others), free(decoded);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes < HEAD_BYTES)
        return 0;
    pccl_codec codec = (pccl_codec)(data[0] % PCCL_CODEC_COUNT);
    int fixes = data[1];
    size_t count = (data[2] | (size_t)data[3] << 8) % (COUNT_MAX + 1), given = bytes - HEAD_BYTES;
    size_t size = fixes & FIX_SIZE ? codec_bytes(codec, count) : given;
    uint8_t *encoded = room(size), *values = room(4 * count);
    if (size)
        memcpy(encoded, data + HEAD_BYTES, given < size ? given : size);
    if (fixes & FIX_SCALES && fixes & FIX_SIZE && codec >= PCCL_CODEC_INT8)
        fix_scales(codec, encoded, size);
    if (decode_by_all(codec, encoded, size, values, count))
        encode_by_all(codec, values, count);
    memset(values, 0, 4 * count);
    memcpy(values, data + HEAD_BYTES, given < 4 * count ? given : 4 * count);
    encode_by_all(codec, values, count);
    free(encoded), free(values);
    return 0;
}
