/* test_eight_bits.c - every value is within half a step of its scale, whichever way the rows lie; what is not finite; wrong lengths. */
#include <math.h>
#include <stdlib.h>

#include "include/pccl.h"

#include "test.h"

enum { SLABS = 3, CELLS_MOST = 8 * 4 * 48 };

static uint16_t values[SLABS * 2 * CELLS_MOST], decoded[SLABS * 2 * CELLS_MOST + 1];
static _Alignas(16) uint8_t encoded[SLABS * 2 * CELLS_MOST * 5];

static float wide(uint16_t bits)
{
    union { uint32_t bits; float value; } u = {.bits = (uint32_t)bits << 16};
    return u.value;
}

static void fill(uint64_t count, uint64_t seed)
{
    for (uint64_t i = 0; i < count; i++) {
        uint64_t chance = test_random(&seed);
        values[i] = (uint16_t)((chance & 0x807f) | (100 + (chance >> 16) % 30) << 7);
    }
}

/* Of a plane, the place of a cell's neighbours: all those that share its scale. */
static float scale_of(const pccl_slab *s, const uint16_t *plane, uint32_t token, uint32_t head, uint32_t channel, int is_values)
{
    float most = 0;
    for (uint32_t t = 0; t < s->tokens; t++)
        for (uint32_t h = 0; h < s->heads; h++)
            for (uint32_t c = 0; c < s->channels; c++) {
                if (is_values ? t != token : h != head || c != channel)
                    continue;
                uint32_t row = s->heads_first ? h * s->tokens + t : t * s->heads + h;
                most = fmaxf(most, fabsf(wide(plane[row * s->channels + c])));
            }
    return most / 127;
}

static void round_trip(const pccl_slab *s)
{
    uint64_t cells = (uint64_t)s->tokens * s->heads * s->channels, bytes = pccl_eight_bytes(s, SLABS);
    fill(SLABS * 2 * cells, cells + s->heads_first);
    CHECK_EQ_INT(bytes, SLABS * (2 * cells + 4 * (s->tokens + s->heads * s->channels)));
    CHECK_EQ_INT(pccl_eight_encode(values, s, SLABS, encoded), PCCL_OK);
    decoded[SLABS * 2 * cells] = 0xa5a5;
    CHECK_EQ_INT(pccl_eight_decode(encoded, bytes, s, SLABS, decoded), PCCL_OK);
    CHECK_EQ_INT(decoded[SLABS * 2 * cells], 0xa5a5);
    for (uint64_t plane = 0; plane < 2 * SLABS; plane++)
        for (uint64_t i = 0; i < cells; i++) {
            uint32_t channel = (uint32_t)(i % s->channels), row = (uint32_t)(i / s->channels);
            uint32_t token = s->heads_first ? row % s->tokens : row / s->heads, head = s->heads_first ? row / s->tokens : row % s->heads;
            float scale = scale_of(s, values + plane * cells, token, head, channel, (int)(plane % 2));
            float had = wide(values[plane * cells + i]), has = wide(decoded[plane * cells + i]);
            CHECK(fabsf(has - had) <= scale * 0.5001F + fabsf(had) / 256);
        }
    CHECK_EQ_INT(pccl_eight_decode(encoded, bytes - 1, s, SLABS, decoded), PCCL_EPROTO);
    CHECK_EQ_INT(pccl_eight_decode(encoded, bytes + 1, s, SLABS, decoded), PCCL_EPROTO);
}

TEST(every_value_is_within_half_a_step_of_its_scale)
{
    static const pccl_slab slabs[] = {{8, 4, 48, 0}, {8, 4, 48, 1}, {1, 4, 5, 0}, {4, 1, 7, 1}, {3, 4, 33, 1}, {5, 2, 2, 0}};
    for (size_t i = 0; i < sizeof slabs / sizeof *slabs; i++)
        round_trip(&slabs[i]);
    CHECK_EQ_INT(pccl_eight_encode(values, &(pccl_slab){3, 1, 5, 0}, 1, encoded), PCCL_EINVAL);
}

TEST(what_is_not_finite_is_nan_and_takes_its_neighbours_along)
{
    pccl_slab slab = {4, 1, 4, 0};
    static const uint16_t wrong[] = {0x7f80, 0xff80, 0x7fc0, 0xffff, 0x7f81};
    for (size_t w = 0; w < sizeof wrong / sizeof *wrong; w++) {
        fill(32, w);
        values[5] = values[16 + 5] = wrong[w]; /* token 1, channel 1 */
        CHECK_EQ_INT(pccl_eight_encode(values, &slab, 1, encoded), PCCL_OK);
        CHECK_EQ_INT(pccl_eight_decode(encoded, pccl_eight_bytes(&slab, 1), &slab, 1, decoded), PCCL_OK);
        for (int i = 0; i < 16; i++) {
            CHECK_EQ_INT(decoded[i] == 0x7fc0, i % 4 == 1);
            CHECK_EQ_INT(decoded[16 + i] == 0x7fc0, i / 4 == 1);
        }
    }
}

TEST(small_values_zeros_and_any_bytes_do_no_harm)
{
    pccl_slab slab = {4, 1, 4, 0};
    for (int i = 0; i < 32; i++)
        values[i] = (uint16_t)(i % 3 ? i % 5 : 0x8000); /* zeros and subnormals */
    CHECK_EQ_INT(pccl_eight_encode(values, &slab, 1, encoded), PCCL_OK);
    CHECK_EQ_INT(pccl_eight_decode(encoded, pccl_eight_bytes(&slab, 1), &slab, 1, decoded), PCCL_OK);
    for (int i = 0; i < 32; i++)
        CHECK(fabsf(wide(decoded[i]) - wide(values[i])) <= 4e-40F);
    uint64_t seed = 9;
    for (int round = 0; round < 2000; round++) {
        for (uint64_t i = 0; i < pccl_eight_bytes(&slab, 1); i++)
            encoded[i] = (uint8_t)test_random(&seed);
        CHECK_EQ_INT(pccl_eight_decode(encoded, pccl_eight_bytes(&slab, 1), &slab, 1, decoded), PCCL_OK);
    }
}

TEST_MAIN("eight_bits")
