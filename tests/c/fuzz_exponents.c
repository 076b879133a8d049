/* fuzz_exponents.c - any bytes through the decoder of exponents, and as values through the encoder.
 *
 * Input: what to do (1 byte: bit 0 to encode; from LARGE on, with counts of more than a block, which take their time), count of
 * values (3 bytes, little-endian), then bytes. Blocks are of their exact size, so that a sanitizer sees a byte too many on either
 * side. What is decoded must encode to no more than the bound, and to what decodes to the same values; values must come back bit by
 * bit. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/exponents.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { ENCODE = 1, LARGE = 0xf8, COUNT_MAX = 2300, LARGE_MAX = EXPONENTS_BLOCK + 4096, HEAD_BYTES = 4, VALUE_BYTES = 2 };

static void require(int holds)
{
    if (!holds)
        abort();
}

static uint8_t *room(size_t bytes)
{
    uint8_t *block = calloc(1, bytes ? bytes : 1);
    require(block != NULL);
    return block;
}

/* Values to their encoding, and back. */
static void round_trip(const uint8_t *values, size_t count)
{
    uint64_t bytes = 0, bound = pccl_exponents_bound(count);
    uint8_t *encoded = room(bound), *decoded = room(count * VALUE_BYTES);
    require(pccl_exponents_encode(values, count, encoded, &bytes) == PCCL_OK && bytes <= bound);
    uint8_t *exact = room(bytes);
    memcpy(exact, encoded, bytes);
    require(pccl_exponents_decode(exact, bytes, decoded, count) == PCCL_OK);
    require(memcmp(decoded, values, count * VALUE_BYTES) == 0);
    free(encoded), free(decoded), free(exact);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes < HEAD_BYTES)
        return 0;
    size_t most = data[0] >= LARGE ? LARGE_MAX : COUNT_MAX, given = bytes - HEAD_BYTES;
    size_t count = (data[1] | (size_t)data[2] << 8 | (size_t)data[3] << 16) % (most + 1);
    uint8_t *values = room(count * VALUE_BYTES), *encoded = room(given);
    memcpy(encoded, data + HEAD_BYTES, given);
    if (data[0] & ENCODE) {
        for (size_t i = 0; given && i < count * VALUE_BYTES; i++)
            values[i] = encoded[i % given];
        round_trip(values, count);
    } else {
        pccl_err err = pccl_exponents_decode(encoded, given, values, count);
        require(err == PCCL_OK || err == PCCL_EPROTO);
        if (err == PCCL_OK)
            round_trip(values, count);
    }
    free(values), free(encoded);
    return 0;
}
