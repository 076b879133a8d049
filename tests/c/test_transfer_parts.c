/* test_transfer_parts.c - fetches that come with digests of their parts, and without checksums: the digests are those of what lies there in the
 * end, whatever came in between, and find what a checksum would have found. */
#include "transfers.h"

enum { SEGMENT = 16 << 10, PART = 40000, PARTS = 12, PARTS_MAX = 512 };

static uint64_t seeds[PARTS_MAX], digests[PARTS_MAX];
static pccl_fetch_run runs[PARTS_MAX];
static uint64_t random_state;

/* So many parts of the source, in any order, as runs of one to three that are neighbours there and here. Gives the number of runs. */
static uint32_t scatter_parts(uint32_t count, uint64_t part_bytes)
{
    uint32_t n = 0;
    for (uint32_t i = 0, joined; i < count; i += joined) {
        joined = 1 + (uint32_t)(test_random(&random_state) % 3);
        joined = joined < count - i ? joined : count - i;
        runs[n++] = (pccl_fetch_run){(count - i - joined) * part_bytes, joined * part_bytes, target + i * part_bytes};
    }
    for (uint32_t i = 0; i < count; i++) {
        seeds[i] = test_random(&random_state);
        digests[i] = 0;
    }
    return n;
}

static void fetch_parts(uint32_t run_count, uint32_t count, uint64_t part_bytes, int bare, uint64_t token)
{
    pccl_fetch_request r = request_of(runs, run_count, token);
    r.part_count = count;
    r.part_bytes = part_bytes;
    r.bare = (uint8_t)bare;
    r.seeds = seeds;
    r.digests = digests;
    send_request(&r);
}

/* The parts lie one behind the other in the target: is this the digest of part i? */
static int is_right(uint32_t i, uint64_t part_bytes)
{
    uint64_t offset = i * part_bytes, found;
    pccl_digest_pieces(target, &offset, part_bytes, &seeds[i], 1, &found);
    return digests[i] == found;
}

static void expect_right(uint32_t count, uint64_t part_bytes)
{
    for (uint32_t i = 0; i < count; i++)
        CHECK(is_right(i, part_bytes));
}

static void expect_parts(uint32_t run_count)
{
    for (uint32_t i = 0; i < run_count; i++)
        CHECK_EQ_BYTES(runs[i].target, source + runs[i].offset, runs[i].bytes);
}

TEST(digests_are_of_what_came)
{
    static const struct { uint64_t part_bytes; uint32_t count; } shapes[] = {
        {8, 100}, {24, 512}, {1000, 100}, {2048, 512}, {4096, 7}, {16384, 33}, {40000, 12}, {BYTES / 2 - 8, 2}, {BYTES, 1},
    };
    static const char *const transports[] = {"sim", "faulty+sim"};
    for (uint32_t k = 0; k < 36; k++) {
        uint64_t part_bytes = shapes[k % 9].part_bytes;
        uint32_t count = shapes[k % 9].count;
        random_state = k;
        begin_with(transports[k / 9 % 2], 1 + k, k < 18 ? 1024 : 256 << 10);
        offer(1);
        uint32_t n = scatter_parts(count, part_bytes);
        fetch_parts(n, count, part_bytes, (int)(k % 2), 1);
        cluster_run(&c, 5 * SECOND);
        CHECK_EQ_INT(status_of(1), PCCL_OK);
        expect_parts(n);
        expect_right(count, part_bytes);
        expect_nothing_left();
        cluster_close(&c);
    }
}

/* Streams that die, and segments that come as often as they like. */
TEST(what_is_sent_again_is_counted_once)
{
    begin();
    set_paths(2 * MS, 20000000);
    offer(1);
    uint32_t n = scatter_parts(PARTS, PART);
    fetch_parts(n, PARTS, PART, 1, 1);
    for (uint32_t i = 0; i < 10; i++) {
        cluster_run(&c, 5 * MS);
        (void)pccl_sim_reset(c.sim, 0, 1, i);
    }
    cluster_run(&c, 3 * SECOND);
    CHECK_EQ_INT(status_of(1), PCCL_OK);
    CHECK(stats_of(0).frames_resent > 0);
    expect_parts(n);
    expect_right(PARTS, PART);
    cluster_close(&c);
}

/* Every digest is that of what lies there; so those of damaged parts are not those of the source. A fetch with checksums brings the rest. */
TEST(damage_of_bare_payloads_is_in_the_digests)
{
    uint32_t damaged = 0;
    for (uint64_t seed = 1; seed <= 8; seed++) {
        begin_with("sim", seed, SEGMENT);
        offer(1);
        pccl_sim_path noisy = {.delay_ns = 2 * MS, .corrupt_ppm = 500000};
        CHECK(pccl_sim_set_path(c.sim, 0, 1, &noisy) == PCCL_OK);
        uint32_t n = scatter_parts(PARTS, PART);
        fetch_parts(n, PARTS, PART, 1, 1);
        cluster_run(&c, 20 * SECOND);
        CHECK_EQ_INT(status_of(1), PCCL_OK);
        expect_right(PARTS, PART);
        for (uint32_t i = 0; i < n; i++)
            damaged += memcmp(runs[i].target, source + runs[i].offset, runs[i].bytes) != 0;
        noisy.corrupt_ppm = 20000;
        CHECK(pccl_sim_set_path(c.sim, 0, 1, &noisy) == PCCL_OK);
        fetch_parts(n, PARTS, PART, 0, 2);
        cluster_run(&c, 60 * SECOND);
        CHECK_EQ_INT(status_of(2), PCCL_OK);
        expect_parts(n);
        expect_right(PARTS, PART);
        cluster_close(&c);
    }
    CHECK(damaged > 0);
}

TEST(without_success_no_digest_is_written)
{
    begin();
    offer(0);
    extend(0, BYTES / 4);
    uint32_t n = scatter_parts(PARTS, PART);
    fetch_parts(n, PARTS, PART, 1, 1);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(pccl_engine_cancel_fetch(c.engines[1], 1), PCCL_OK);
    c.wake_ns[1] = 0;
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(1), PCCL_ECANCELLED);
    for (uint32_t i = 0; i < PARTS; i++)
        CHECK_EQ_INT(digests[i], 0);
    expect_nothing_left();
    cluster_close(&c);
}

TEST(parts_that_are_none_are_refused_at_once)
{
    enum { WRONG = 10 };
    begin();
    pccl_fetch_run two[] = {{0, 96, target}, {200, 48, target + 96}};
    pccl_fetch_request good = request_of(two, 2, 1), bad[WRONG];
    good.part_count = 3;
    good.part_bytes = 48;
    good.seeds = seeds;
    good.digests = digests;
    for (int i = 0; i < WRONG; i++)
        bad[i] = good;
    bad[0].part_bytes = 0;
    bad[1].part_bytes = 12;
    bad[2].part_bytes = 32;      /* the second run is one and a half */
    bad[3].part_count = 2;
    bad[4].part_count = 4;
    bad[5].seeds = NULL;
    bad[6].digests = NULL;
    bad[7].part_count = 0;
    bad[7].bare = 1;             /* nobody would find what is wrong */
    bad[8].part_bytes = (16 << 20) + 8;
    pccl_fetch_run many = {0, 4097 * 8, target};
    bad[9].runs = &many;
    bad[9].run_count = 1;
    bad[9].part_bytes = 8;
    bad[9].part_count = 4097;
    for (int i = 0; i < WRONG; i++)
        CHECK_EQ_INT(pccl_engine_fetch(c.engines[1], &bad[i]), PCCL_EINVAL);
    send_request(&good);
    cluster_close(&c);
}

TEST_MAIN("transfer_parts")
