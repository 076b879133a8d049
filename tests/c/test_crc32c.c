/* test_crc32c.c - every way of this machine against the CRC's definition, bit by bit, and the vectors of RFC 3720. */
#include "crc32c.h"

#include "test.h"

static const char *const ways[] = {"table", "sse42", "vpclmul", "arm"};
enum { WAY_COUNT = sizeof ways / sizeof ways[0], DATA_BYTES = 20000 };

static uint8_t data[DATA_BYTES + 64];

static uint32_t reference(uint32_t crc, const uint8_t *p, size_t bytes)
{
    crc = ~crc;
    for (size_t i = 0; i < bytes; i++)
        for (unsigned bit = 0; bit < 8; bit++) {
            uint32_t out = (crc ^ (uint32_t)(p[i] >> bit)) & 1;
            crc = (crc >> 1) ^ (out ? 0x82f63b78u : 0);
        }
    return ~crc;
}

static void fill_data(void)
{
    uint64_t state = 1;
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)test_random(&state);
}

static int works(const char *way)
{
    int ok;
    crc32c_by(way, 0, "", 0, &ok);
    return ok;
}

static uint32_t by(const char *way, uint32_t crc, const void *p, size_t bytes)
{
    int ok;
    return crc32c_by(way, crc, p, bytes, &ok);
}

static void check_all(const void *p, size_t bytes, uint32_t expected)
{
    CHECK_EQ_INT(reference(0, p, bytes), expected);
    CHECK_EQ_INT(crc32c(0, p, bytes), expected);
    for (size_t i = 0; i < WAY_COUNT; i++)
        if (works(ways[i]))
            CHECK_EQ_INT(by(ways[i], 0, p, bytes), expected);
}

TEST(known_vectors)
{
    uint8_t block[32];
    check_all("123456789", 9, 0xe3069283);
    check_all("", 0, 0);
    memset(block, 0, 32);
    check_all(block, 32, 0x8a9136aa);
    memset(block, 0xff, 32);
    check_all(block, 32, 0x62a8ab43);
    for (uint8_t i = 0; i < 32; i++)
        block[i] = i;
    check_all(block, 32, 0x46dd794e);
    for (uint8_t i = 0; i < 32; i++)
        block[i] = (uint8_t)(31 - i);
    check_all(block, 32, 0x113fdb5c);
}

TEST(every_length_at_every_alignment)
{
    fill_data();
    for (size_t offset = 0; offset < 17; offset++) {
        uint32_t expected = 0;
        for (size_t bytes = 0; bytes <= 1200; bytes++) {
            for (size_t i = 0; i < WAY_COUNT; i++)
                if (works(ways[i]))
                    CHECK_EQ_INT(by(ways[i], 0, data + offset, bytes), expected);
            expected = reference(expected, data + offset + bytes, 1);
        }
    }
}

TEST(lengths_around_the_big_steps)
{
    fill_data();
    uint32_t expected = 0;
    for (size_t bytes = 0; bytes < DATA_BYTES; bytes++) {
        size_t off_step = (bytes + 20) % 1024;
        if (off_step <= 40)
            for (size_t i = 0; i < WAY_COUNT; i++)
                if (works(ways[i]))
                    CHECK_EQ_INT(by(ways[i], 0, data, bytes), expected);
        expected = reference(expected, data + bytes, 1);
    }
}

TEST(any_split_continues)
{
    enum { BYTES = 4000 };
    fill_data();
    uint32_t whole = reference(0, data, BYTES);
    uint64_t state = 3;
    for (int trial = 0; trial < 300; trial++) {
        size_t first = test_random(&state) % BYTES, second = first + test_random(&state) % (BYTES - first);
        for (size_t i = 0; i < WAY_COUNT; i++) {
            if (!works(ways[i]))
                continue;
            uint32_t crc = by(ways[i], 0, data, first);
            crc = by(ways[i], crc, data + first, second - first);
            CHECK_EQ_INT(by(ways[i], crc, data + second, BYTES - second), whole);
        }
        CHECK_EQ_INT(crc32c(crc32c(0, data, first), data + first, BYTES - first), whole);
    }
}

/* Blocks of the exact size, for the address sanitizer. */
TEST(exact_blocks)
{
    for (size_t bytes = 1; bytes <= 1000; bytes++) {
        uint8_t *block = malloc(bytes);
        memset(block, 0x5a, bytes);
        uint32_t expected = reference(0, block, bytes);
        for (size_t i = 0; i < WAY_COUNT; i++)
            if (works(ways[i]))
                CHECK_EQ_INT(by(ways[i], 0, block, bytes), expected);
        free(block);
    }
}

TEST(unknown_ways_say_so)
{
    CHECK(works("table"));
    CHECK(!works("adler"));
}

TEST_MAIN("crc32c")
