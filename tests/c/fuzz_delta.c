/* fuzz_delta.c - any bytes as a block of weight deltas, and as two states to be encoded.
 *
 * Input: what to do, width, count (2 bytes, little-endian), changed (2 bytes), then the bytes. As a block they are applied to a made-up state, as
 * they are or behind a header that fits it, so that what lies behind the checks is reached too. All instruction sets must agree on
 * the verdict and on every bit, a refused block must leave the state alone, and what was accepted must come back from its inverse. As states
 * they are encoded in every form by all, decoded and compared. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/delta.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { AS_BLOCK, WITH_HEADER, AS_STATES, WAYS, COUNT_MAX = 2048, HEAD_BYTES = 6, FORMS = PCCL_DELTA_FORM_COUNT };

static const char *const isas[] = {"scalar", "avx2", "avx512"};
enum { ISA_COUNT = sizeof isas / sizeof isas[0] };

static void require(int holds)
{
    if (!holds)
        abort();
}

/* A block of the exact size. */
static uint8_t *room(size_t bytes)
{
    uint8_t *block = malloc(bytes ? bytes : 1);
    require(block != NULL);
    return block;
}

/* Neither all alike nor all different, with exponents of many sizes. */
static void make_state(uint8_t *state, size_t bytes)
{
    uint32_t x = 1;
    for (size_t i = 0; i < bytes; i++) {
        x = x * 1664525 + 1013904223;
        state[i] = (uint8_t)(i % 2 ? 0x30 + (x >> 28) : x >> 24);
    }
}

/* Applies a block by every instruction set; 1 if it was accepted. */
static int decode_by_all(const uint8_t *block, uint64_t bytes, const uint8_t *from, uint8_t *to, uint32_t count, uint32_t width, void *work)
{
    size_t size = (size_t)count * width;
    uint8_t *other = room(size);
    memcpy(to, from, size);
    pccl_err verdict = pccl_delta_decode(NULL, block, bytes, to, count, width, work);
    require(verdict == PCCL_OK || verdict == PCCL_EPROTO || verdict == PCCL_EMISMATCH || verdict == PCCL_EINVAL);
    require(verdict == PCCL_OK || memcmp(to, from, size) == 0);
    for (int i = 0; i < ISA_COUNT; i++) {
        memcpy(other, from, size);
        pccl_err err = pccl_delta_decode(isas[i], block, bytes, other, count, width, work);
        require(err == verdict || err == PCCL_EINVAL);
        require(err == PCCL_EINVAL || memcmp(other, to, size) == 0);
    }
    free(other);
    return verdict == PCCL_OK;
}

/* What a block that was accepted, or one of others elements, must stand. */
static void use_block(const uint8_t *block, uint64_t bytes, const uint8_t *state, uint32_t count, uint32_t width)
{
    pccl_delta_info info = {.size = sizeof info};
    if (pccl_delta_describe(block, bytes, &info) != PCCL_OK || info.elements > COUNT_MAX)
        return;
    uint8_t *work = room(pccl_delta_work(COUNT_MAX, 4)), *to = room((size_t)count * width), *values = room((size_t)COUNT_MAX * 4);
    uint8_t *back = room(pccl_delta_bound(info.elements, info.width)), *folded = room(pccl_delta_bound(info.elements, info.width));
    uint32_t *places = (uint32_t *)room(COUNT_MAX * 4);
    uint64_t back_bytes, folded_bytes;
    int is_accepted = decode_by_all(block, bytes, state, to, count, width, work);
    if (is_accepted) {
        require(pccl_delta_patch(NULL, block, bytes, state, count, width, work, places, values, NULL) == PCCL_OK);
        uint8_t hash[PCCL_DELTA_HASH_BYTES];
        if ((uint64_t)count * width >= PCCL_DELTA_HASH_FROM)
            require(pccl_delta_patch(NULL, block, bytes, state, count, width, work, places, values, hash) == PCCL_OK);
        require(pccl_delta_invert(NULL, block, bytes, state, work, back, &back_bytes) == PCCL_OK);
        require(pccl_delta_as_a(NULL, block, bytes, state, work, folded, &folded_bytes) == PCCL_OK);
    }
    if (pccl_delta_invert(NULL, block, bytes, NULL, work, back, &back_bytes) == PCCL_OK)
        (void)pccl_delta_fold(NULL, block, bytes, back, back_bytes, work, folded, &folded_bytes);
    (void)pccl_delta_fold(NULL, block, bytes, block, bytes, work, folded, &folded_bytes);
    free(work), free(to), free(values), free(back), free(folded), free(places);
}

static uint8_t *put_varint(uint8_t *at, uint32_t x)
{
    for (; x >= 128; x >>= 7)
        *at++ = (uint8_t)(x | 128);
    *at++ = (uint8_t)x;
    return at;
}

/* The bytes, the first of which says the form, as the body of a block of the state. */
static void use_body(const uint8_t *body, size_t bytes, uint32_t changed, const uint8_t *state, uint32_t count, uint32_t width)
{
    uint64_t digest;
    uint32_t form = bytes > 0 ? body[0] % FORMS : PCCL_DELTA_ZERO;
    uint8_t *block = room(bytes + DELTA_HEADER_MAX), *at = block;
    *at++ = (uint8_t)(form | (width == 4 ? 2 : width - 1) << 4);
    at = put_varint(at, count);
    if (form != PCCL_DELTA_ZERO)
        at = put_varint(at, changed % (count + 1));
    require(pccl_delta_digest(NULL, state, count, width, &digest) == PCCL_OK);
    if (form >= PCCL_DELTA_DIFF_A) {
        memcpy(at, &digest, sizeof digest);
        memcpy(at + 8, &digest, sizeof digest);
        at += 16;
    }
    if (bytes > 1)
        memcpy(at, body + 1, bytes - 1), at += bytes - 1;
    uint8_t *exact = room((size_t)(at - block));
    memcpy(exact, block, (size_t)(at - block));
    use_block(exact, (uint64_t)(at - block), state, count, width);
    free(block), free(exact);
}

static void use_states(const uint8_t *old, const uint8_t *new, uint32_t count, uint32_t width)
{
    uint64_t room_bytes = pccl_delta_bound(count, width), bytes, others;
    uint8_t *work = room(pccl_delta_work(count, width)), *block = room(room_bytes), *other = room(room_bytes);
    uint8_t *to = room((size_t)count * width);
    for (uint32_t form = PCCL_DELTA_RAW; form <= FORMS; form++) {
        uint32_t forms = form < FORMS ? 1u << form : (1u << FORMS) - 1;
        require(pccl_delta_encode(NULL, old, new, count, width, forms, work, block, &bytes, NULL) == PCCL_OK && bytes <= room_bytes);
        for (int i = 0; i < ISA_COUNT; i++)
            if (pccl_delta_encode(isas[i], old, new, count, width, forms, work, other, &others, NULL) == PCCL_OK)
                require(others == bytes && memcmp(other, block, bytes) == 0);
        require(decode_by_all(block, bytes, old, to, count, width, work) && memcmp(to, new, (size_t)count * width) == 0);
    }
    free(work), free(block), free(other), free(to);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes < HEAD_BYTES)
        return 0;
    uint32_t width = 1u << data[1] % 3, count = (data[2] | (uint32_t)data[3] << 8) % (COUNT_MAX + 1);
    uint32_t changed = data[4] | (uint32_t)data[5] << 8;
    size_t given = bytes - HEAD_BYTES, size = (size_t)count * width;
    uint8_t *state = room(size), *new = room(size);
    make_state(state, size);
    if (data[0] % WAYS == AS_BLOCK) {
        use_block(data + HEAD_BYTES, given, state, count, width);
    } else if (data[0] % WAYS == WITH_HEADER) {
        use_body(data + HEAD_BYTES, given, changed, state, count, width);
    } else {
        memcpy(new, state, size);
        for (size_t i = 0; i < given && size > 0; i++)
            new[i * (changed + 1) % size] ^= data[HEAD_BYTES + i];
        use_states(state, new, count, width);
    }
    free(state), free(new);
    return 0;
}
