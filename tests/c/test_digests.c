/* test_digests.c - digests of pieces: of their bytes and their seeds, wherever they lie; every bit counts. */
#include "include/pccl.h"

#include "test.h"

enum { BYTES = 5000, COUNT = 7, LARGE = (1 << 24) + 12345 };

static uint8_t data[COUNT * BYTES + 64];

static void fill(void)
{
    uint64_t seed = 3;
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)test_random(&seed);
}

static uint64_t one(const void *at, uint64_t offset, uint64_t bytes, uint64_t seed)
{
    uint64_t digest;
    pccl_digest_pieces(at, &offset, bytes, &seed, 1, &digest);
    return digest;
}

TEST(many_are_each_as_alone)
{
    uint64_t offsets[COUNT], seeds[COUNT], found[COUNT];
    fill();
    for (uint64_t bytes = 1; bytes < BYTES; bytes = bytes * 3 + 1) {
        for (uint64_t i = 0; i < COUNT; i++)
            offsets[i] = (COUNT - 1 - i) * BYTES + i, seeds[i] = i * i;
        pccl_digest_pieces(data, offsets, bytes, seeds, COUNT, found);
        for (uint64_t i = 0; i < COUNT; i++)
            CHECK(found[i] == one(data, offsets[i], bytes, seeds[i]));
    }
}

TEST(they_are_of_bytes_and_seeds_not_of_places)
{
    static uint8_t copy[BYTES + 8];
    fill();
    memcpy(copy + 3, data + 1000, BYTES);
    CHECK(one(copy, 3, BYTES, 9) == one(data, 1000, BYTES, 9));
    CHECK(one(copy, 3, BYTES, 9) != one(copy, 3, BYTES, 10));
    CHECK(one(copy, 3, BYTES, 9) != one(copy, 3, BYTES - 1, 9));
    memset(copy, 0, sizeof copy);
    CHECK(one(copy, 0, 64, 9) != one(copy, 0, 128, 9));
}

TEST(every_bit_and_every_order_counts)
{
    fill();
    uint64_t before = one(data, 0, BYTES, 1);
    for (size_t at = 0; at < BYTES; at += 7)
        for (int bit = 0; bit < 8; bit++) {
            data[at] ^= (uint8_t)(1 << bit);
            CHECK(one(data, 0, BYTES, 1) != before);
            data[at] ^= (uint8_t)(1 << bit);
        }
    uint8_t word[8];
    memcpy(word, data, 8);
    memcpy(data, data + 8, 8);
    memcpy(data + 8, word, 8);
    CHECK(one(data, 0, BYTES, 1) != before);
}

TEST(more_than_a_stretch)
{
    uint8_t *large = calloc(1, LARGE);
    CHECK(large != NULL);
    uint64_t before = one(large, 0, LARGE, 1);
    large[LARGE - 1] = 1;
    uint64_t last = one(large, 0, LARGE, 1);
    large[LARGE - 1] = 0;
    large[0] = 1;
    uint64_t first = one(large, 0, LARGE, 1);
    CHECK(before != last && before != first && first != last);
    free(large);
}

TEST_MAIN("digests")
