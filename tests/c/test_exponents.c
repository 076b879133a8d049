/* test_exponents.c - every bf16 value survives, a block takes the least bytes of its widths, and no bytes from outside do harm. */
#include <stdlib.h>

#include "exponents.h"

#include "test.h"

enum { MOST = 3 * EXPONENTS_BLOCK + 5, VALUE_BYTES = 2 };

static uint16_t values[MOST], decoded[MOST];
static uint8_t encoded[2 * MOST + 64];

/* Exponents that fall off by half from 120 on, `spread` steps for each; every seventh value is anything at all. */
static void fill(uint32_t count, uint32_t spread, int wild, uint64_t seed)
{
    for (uint32_t i = 0; i < count; i++) {
        uint64_t chance = test_random(&seed);
        uint32_t below = (uint32_t)__builtin_ctzll(chance | 1ull << 40) * spread;
        values[i] = (uint16_t)((chance >> 48 & 0x807f) | (120 - (below < 119 ? below : 119)) << 7);
        if (wild && i % 7 == 0)
            values[i] = (uint16_t)(chance >> 44);
    }
}

static uint64_t round_trip(uint32_t count)
{
    uint64_t bytes = 0;
    CHECK_EQ_INT(pccl_exponents_encode(values, count, encoded, &bytes), PCCL_OK);
    CHECK(bytes <= pccl_exponents_bound(count));
    memset(decoded, 0xa5, sizeof decoded);
    CHECK_EQ_INT(pccl_exponents_decode(encoded, bytes, decoded, count), PCCL_OK);
    CHECK(memcmp(values, decoded, (size_t)count * VALUE_BYTES) == 0);
    CHECK(count == MOST || decoded[count] == 0xa5a5);
    return bytes;
}

TEST(values_of_any_number_and_spread_survive)
{
    static const uint32_t counts[] = {0, 1, 7, 8, 9, 2047, 2048, 2049, EXPONENTS_BLOCK - 1, EXPONENTS_BLOCK, EXPONENTS_BLOCK + 1, MOST};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
        for (uint32_t spread = 0; spread < 12; spread++) {
            fill(counts[c], spread, spread % 3 == 2, c * 100 + spread);
            round_trip(counts[c]);
        }
}

TEST(every_value_there_is_survives)
{
    for (uint32_t i = 0; i < EXPONENTS_BLOCK; i++)
        values[i] = (uint16_t)i;
    CHECK_EQ_INT(round_trip(EXPONENTS_BLOCK), 1 + EXPONENTS_BLOCK * VALUE_BYTES);
    CHECK_EQ_INT(encoded[0], 0);
}

TEST(the_width_is_the_one_that_needs_the_least)
{
    fill(EXPONENTS_BLOCK, 0, 0, 1);
    CHECK_EQ_INT(round_trip(EXPONENTS_BLOCK), 1 + 4 + 1 + EXPONENTS_BLOCK + EXPONENTS_BLOCK / 8);
    CHECK_EQ_INT(encoded[0], 1);
    fill(EXPONENTS_BLOCK, 1, 0, 2);
    uint64_t bytes = round_trip(EXPONENTS_BLOCK);
    CHECK_EQ_INT(encoded[0], 2); /* an eighth of the values have no code; of 3 bits 1/128 would have none */
    CHECK(bytes > EXPONENTS_BLOCK * 1.36 && bytes < EXPONENTS_BLOCK * 1.39);
}

TEST(every_width_keeps_every_value)
{
    for (uint32_t width = 1; width <= EXPONENTS_WIDTH_MAX; width++) { /* as many exponents as have a code, equally frequent, and two more */
        uint64_t seed = width;
        uint32_t known = (1u << width) - 1;
        for (uint32_t i = 0; i < EXPONENTS_BLOCK; i++) {
            uint64_t chance = test_random(&seed);
            uint32_t exponent = chance % 64 ? (uint32_t)(chance >> 8) % known : known + (uint32_t)(chance >> 8) % 2;
            values[i] = (uint16_t)((chance >> 48 & 0x807f) | (100 + exponent) << 7);
        }
        for (uint32_t count = EXPONENTS_BLOCK; count > EXPONENTS_BLOCK - 9; count--) {
            round_trip(count);
            CHECK_EQ_INT(encoded[0], width);
        }
    }
}

TEST(bytes_that_are_cut_or_changed_are_refused_or_harmless)
{
    uint64_t seed = 3, bytes = 0;
    for (uint32_t spread = 0; spread < 6; spread++) {
        uint32_t count = 3001;
        fill(count, spread, spread % 2 == 1, spread);
        CHECK_EQ_INT(pccl_exponents_encode(values, count, encoded, &bytes), PCCL_OK);
        uint8_t *copy = malloc(bytes + 1); /* of its very size: a sanitizer sees a byte too many */
        for (uint64_t cut = 0; cut < bytes; cut += cut < 64 ? 1 : 97) {
            uint8_t *shorter = malloc(cut ? cut : 1);
            memcpy(shorter, encoded, cut);
            CHECK(pccl_exponents_decode(shorter, cut, decoded, count) == PCCL_EPROTO);
            free(shorter);
        }
        memcpy(copy, encoded, bytes);
        copy[bytes] = 0;
        CHECK_EQ_INT(pccl_exponents_decode(copy, bytes + 1, decoded, count), PCCL_EPROTO);
        for (int i = 0; i < 2000; i++) {
            uint64_t at = i < 64 && (uint64_t)i < bytes ? (uint64_t)i : test_random(&seed) % bytes;
            memcpy(copy, encoded, bytes);
            copy[at] ^= (uint8_t)(1 + test_random(&seed) % 255);
            decoded[count] = 0xa5a5;
            pccl_err err = pccl_exponents_decode(copy, bytes, decoded, count);
            CHECK(err == PCCL_OK || err == PCCL_EPROTO);
            CHECK_EQ_INT(decoded[count], 0xa5a5);
        }
        free(copy);
    }
}

TEST_MAIN("exponents")
