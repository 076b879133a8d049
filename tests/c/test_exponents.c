/* test_exponents.c - every bf16 value survives, a block takes the least bytes of its widths, all instruction sets give the same bytes,
 * and no bytes from outside do harm. */
#include <stdlib.h>

#include "exponents_isa.h"

#include "test.h"

enum { MOST = 3 * EXPONENTS_BLOCK + 5, VALUE_BYTES = 2 };

static const char *const isas[] = {"scalar", "avx2", "avx512"};
enum { ISA_COUNT = sizeof isas / sizeof isas[0] };

static uint16_t values[MOST], decoded[MOST];
static uint8_t encoded[2 * MOST + 64], other[2 * MOST + 64];

static int exists(const char *isa)
{
    return exponents_decode_isa(isa, NULL, 0, NULL, 0) == PCCL_OK;
}

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

/* By every instruction set, to the same bytes; what is written ends with them, and with the values. */
static uint64_t round_trip(uint32_t count)
{
    uint64_t bytes = 0, bytes_too;
    CHECK_EQ_INT(pccl_exponents_encode(values, count, encoded, &bytes), PCCL_OK);
    CHECK(bytes <= pccl_exponents_bound(count));
    for (size_t i = 0; i < ISA_COUNT; i++) {
        if (!exists(isas[i]))
            continue;
        memset(other, 0x5a, bytes + 32);
        CHECK_EQ_INT(exponents_encode_isa(isas[i], values, count, other, &bytes_too), PCCL_OK);
        CHECK_EQ_INT(bytes_too, bytes);
        CHECK(memcmp(other, encoded, bytes) == 0);
        CHECK(other[bytes] == 0x5a && memcmp(other + bytes, other + bytes + 1, 31) == 0);
        memset(decoded, 0xa5, sizeof decoded);
        CHECK_EQ_INT(exponents_decode_isa(isas[i], encoded, bytes, decoded, count), PCCL_OK);
        CHECK(memcmp(values, decoded, (size_t)count * VALUE_BYTES) == 0);
        CHECK(count == MOST || decoded[count] == 0xa5a5);
    }
    return bytes;
}

/* All refuse it, or all find the same values. */
static pccl_err decode_hostile(const uint8_t *from, uint64_t bytes, uint32_t count)
{
    static uint16_t by_scalar[MOST];
    pccl_err err = exponents_decode_isa("scalar", from, bytes, by_scalar, count);
    for (size_t i = 1; i < ISA_COUNT; i++) {
        if (!exists(isas[i]))
            continue;
        decoded[count] = 0xa5a5;
        CHECK_EQ_INT(exponents_decode_isa(isas[i], from, bytes, decoded, count), err);
        CHECK(err != PCCL_OK || memcmp(by_scalar, decoded, (size_t)count * VALUE_BYTES) == 0);
        CHECK_EQ_INT(decoded[count], 0xa5a5);
    }
    return err;
}

TEST(values_of_any_number_and_spread_survive)
{
    static const uint32_t counts[] = {0, 1, 7, 8, 9, 63, 64, 255, 256, 257, 2047, 2048, 2049, EXPONENTS_BLOCK - 1, EXPONENTS_BLOCK, EXPONENTS_BLOCK + 1, MOST};
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

/* Exponents of the first chunk say nothing of those that come then, and there are more than vectors count at once. */
TEST(values_that_change_amid_a_block_are_counted_all)
{
    uint64_t seed = 9;
    for (uint32_t i = 0; i < EXPONENTS_BLOCK; i++) {
        uint64_t chance = test_random(&seed);
        uint32_t exponent = i < 3000 ? 3 : i < 40000 ? 100 + (uint32_t)(chance >> 8) % 24 : (uint32_t)(chance >> 8) % 3;
        values[i] = (uint16_t)((chance >> 48 & 0x807f) | exponent << 7);
    }
    round_trip(EXPONENTS_BLOCK);
    for (uint32_t i = 0; i < EXPONENTS_BLOCK; i++)
        values[i] = (uint16_t)(i == 20000 ? 0x8001 : 0x3f80);
    CHECK_EQ_INT(round_trip(EXPONENTS_BLOCK), 1 + 4 + 1 + EXPONENTS_BLOCK + EXPONENTS_BLOCK / 8 + 1);
}

TEST(an_unknown_instruction_set_is_refused)
{
    uint64_t bytes;
    CHECK_EQ_INT(exponents_encode_isa("mmx", values, 1, encoded, &bytes), PCCL_EINVAL);
    CHECK_EQ_INT(exponents_decode_isa("mmx", encoded, 3, values, 1), PCCL_EINVAL);
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
            CHECK_EQ_INT(decode_hostile(shorter, cut, count), PCCL_EPROTO);
            free(shorter);
        }
        memcpy(copy, encoded, bytes);
        copy[bytes] = 0;
        CHECK_EQ_INT(decode_hostile(copy, bytes + 1, count), PCCL_EPROTO);
        for (int i = 0; i < 2000; i++) {
            uint64_t at = i < 64 && (uint64_t)i < bytes ? (uint64_t)i : test_random(&seed) % bytes;
            memcpy(copy, encoded, bytes);
            copy[at] ^= (uint8_t)(1 + test_random(&seed) % 255);
            pccl_err err = decode_hostile(copy, bytes, count);
            CHECK(err == PCCL_OK || err == PCCL_EPROTO);
        }
        free(copy);
    }
}

TEST_MAIN("exponents")
