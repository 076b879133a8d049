/* test_mem.c - the pool keeps what is needed again, and gives back what is not. */
#include "mem.h"

#include <stdint.h>
#include <string.h>

#include "test.h"

static const uint64_t second_ns = 1000000000ULL;
enum { LENT_MAX = 256 };
static struct pool pool;

/* So many of a size are lent at once, written to, and given back. */
static void use(uint32_t count, size_t bytes)
{
    void *lent[LENT_MAX];
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
    void *warm = pool.kept[20], *lent[3];
    seconds(0, 200, 3, 1 << 20);
    CHECK_EQ_INT(pool.held_bytes, 3 << 20);
    for (uint32_t i = 0; i < 3; i++)
        lent[i] = pool_take(&pool, 1 << 20);
    CHECK(lent[0] == warm || lent[1] == warm || lent[2] == warm);
    for (uint32_t i = 0; i < 3; i++)
        pool_give(&pool, lent[i], 1 << 20);
    end();
}

/* Many small ops at once, again and again: nothing is mapped anew. */
TEST(however_many_are_needed_at_once_are_kept)
{
    use(LENT_MAX, 1024);
    CHECK_EQ_INT(pool.kept_bytes, (uint64_t)LENT_MAX << 16);
    use(LENT_MAX, 1024);
    CHECK_EQ_INT(pool.held_bytes, (uint64_t)LENT_MAX << 16);
    end();
}

/* Of many the oldest go, and those that are used stay in their order. */
TEST(what_is_not_needed_goes_from_the_end)
{
    pool_trim(&pool, 0);
    use(LENT_MAX, 1024);
    pool_trim(&pool, 100 * second_ns);
    use(10, 1024);
    void *last = pool.kept[16];
    pool_trim(&pool, 200 * second_ns);
    CHECK_EQ_INT(pool.held_bytes, 10 << 16);
    CHECK(pool.kept[16] == last);
    use(10, 1024);
    CHECK_EQ_INT(pool.held_bytes, 10 << 16);
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
