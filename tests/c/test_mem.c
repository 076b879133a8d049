/* test_mem.c - the pool keeps what is needed again, and gives back what is not. */
#include "mem.h"

#include <stdint.h>
#include <string.h>

#include "test.h"

static const uint64_t second_ns = 1000000000ULL;
static struct pool pool;

/* So many of a size are lent at once, written to, and given back. */
static void use(uint32_t count, size_t bytes)
{
    void *lent[POOL_KEPT_PER_CLASS];
    for (uint32_t i = 0; i < count; i++) {
        lent[i] = pool_take(&pool, bytes);
        CHECK(lent[i] != NULL);
        memset(lent[i], 1, bytes);
    }
    for (uint32_t i = 0; i < count; i++)
        pool_give(&pool, lent[i], bytes);
}

static void end(void)
{
    pool_drain(&pool);
    memset(&pool, 0, sizeof pool);
}

static void seconds(uint64_t from, uint64_t to, uint32_t count, size_t bytes)
{
    for (uint64_t second = from; second < to; second++) {
        use(count, bytes);
        pool_trim(&pool, second * second_ns);
    }
}

TEST(what_is_used_again_and_again_stays)
{
    use(3, 1 << 20);
    void *warm = pool.kept[20][0];
    seconds(0, 200, 3, 1 << 20);
    CHECK_EQ_INT(pool.held_bytes, 3 << 20);
    CHECK(pool.kept[20][0] == warm || pool.kept[20][1] == warm || pool.kept[20][2] == warm);
    end();
}

TEST(what_was_needed_once_goes_back)
{
    pool_trim(&pool, 0);
    use(8, 1 << 20);
    use(2, 1 << 16);
    seconds(1, 61, 2, 1 << 20);
    CHECK_EQ_INT(pool.held_bytes, 2 << 20);
    CHECK_EQ_INT(pool.kept_bytes, 2 << 20);
    pool_trim(&pool, 200 * second_ns);
    pool_trim(&pool, 240 * second_ns);
    CHECK_EQ_INT(pool.held_bytes, 0);
    end();
}

TEST(what_is_lent_is_not_given_back)
{
    pool_trim(&pool, 0);
    unsigned char *lent = pool_take(&pool, 1 << 20);
    lent[0] = 7;
    for (uint64_t second = 1; second < 100; second++)
        pool_trim(&pool, second * second_ns);
    CHECK_EQ_INT(pool.held_bytes, 1 << 20);
    CHECK_EQ_INT(lent[0], 7);
    pool_give(&pool, lent, 1 << 20);
    end();
}

TEST_MAIN("mem")
