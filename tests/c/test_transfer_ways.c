/* test_transfer_ways.c - fetches whose way changes under them: a link that dies, relays that come and go, a link that is mended. */
#include "transfers.h"

enum { NODES = 4 };

static void open_nodes(uint32_t defects)
{
    fill();
    cluster_open(&c, NODES, 3, "sim", defects);
    c.segment_bytes = 16 << 10;
    for (uint32_t a = 0; a < NODES; a++)
        for (uint32_t b = 0; b < NODES; b++) {
            pccl_sim_path path = {.delay_ns = 2 * MS, .bytes_per_s = 4000000};
            CHECK(pccl_sim_set_path(c.sim, a, b, &path) == PCCL_OK);
        }
    cluster_epoch(&c, 1, 0, 0, 15, ~0u, NULL, 0);
    cluster_run(&c, SECOND / 10);
}

/* Epoch `number`, as a change or as a growth, in which 0 and 1 reach each other through `via`; NODES: directly. */
static void epoch_via(uint32_t number, int change, uint32_t via, uint32_t mask)
{
    c.via[0][1] = c.via[1][0] = (uint8_t)(via == NODES ? 0 : via + 1);
    for (uint32_t i = 0; change && i < NODES; i++)
        if (mask & 1u << i)
            CHECK_EQ_INT(pccl_engine_freeze(c.engines[i], number), PCCL_OK);
    cluster_epoch(&c, number, change ? number : 0, 0, mask, ~0u, NULL, 0);
}

/* What has come by then is too little to be all; asked for all again on each way. */
static void expect_all_comes(uint64_t token)
{
    CHECK_EQ_INT(status_of(token), -1);
    cluster_run(&c, 3 * SECOND);
    CHECK_EQ_INT(status_of(token), PCCL_OK);
    CHECK_EQ_BYTES(target, source, BYTES);
    CHECK_EQ_INT(stats_of(1).transfers_pending, 0);
    cluster_close(&c);
}

/* The first relay is taken away, by a change or because the next epoch has another one: the fetch is asked for again on that. */
static void relay_goes(int change)
{
    open_nodes(0);
    offer(1);
    fetch_all(1);
    cluster_run(&c, SECOND / 20);
    cluster_cut(&c, 0, 1);
    cluster_run(&c, SECOND / 20);
    epoch_via(2, 1, 2, 15);
    cluster_run(&c, SECOND / 10);
    CHECK(stats_of(2).relayed_bytes > 0);
    epoch_via(3, change, 3, 15);
    cluster_run(&c, SECOND / 10);
    CHECK(stats_of(3).relayed_bytes > 0);
    expect_all_comes(1);
}

TEST(a_fetch_takes_the_relay_that_there_is)
{
    relay_goes(0);
    relay_goes(1);
}

TEST(a_fetch_survives_the_loss_of_its_relay)
{
    open_nodes(0);
    offer(1);
    epoch_via(2, 1, 2, 15);
    cluster_cut(&c, 0, 1);
    cluster_run(&c, 3 * SECOND);
    fetch_all(1);
    cluster_run(&c, SECOND / 10);
    CHECK(pccl_sim_crash(c.sim, 2) == PCCL_OK);
    c.stopped[2] = 1;
    cluster_run(&c, SECOND / 10);
    epoch_via(3, 1, 3, 11);
    expect_all_comes(1);
}

/* Digests of parts begin again with the bytes. */
TEST(digests_are_those_of_what_came_last)
{
    uint64_t seeds[2] = {1, 2}, digests[2] = {0, 0}, wanted[2];
    pccl_fetch_run run = {0, BYTES, target};
    open_nodes(0);
    offer(1);
    pccl_fetch_request r = request_of(&run, 1, 1);
    r.part_count = 2;
    r.part_bytes = BYTES / 2;
    r.seeds = seeds;
    r.digests = digests;
    r.bare = 1;
    send_request(&r);
    cluster_run(&c, SECOND / 20);
    cluster_cut(&c, 0, 1);
    epoch_via(2, 1, 2, 15);
    cluster_run(&c, 3 * SECOND);
    CHECK_EQ_INT(status_of(1), PCCL_OK);
    for (uint32_t i = 0; i < 2; i++)
        wanted[i] = digest_end(digest_add(source + i * BYTES / 2, BYTES / 2, 0), BYTES / 2, seeds[i]);
    CHECK_EQ_BYTES(digests, wanted, sizeof wanted);
    CHECK_EQ_BYTES(target, source, BYTES);
    cluster_close(&c);
}

/* The server hears that the fetch has gone from its link once that is there again, and keeps nothing for it. */
TEST(a_way_that_was_left_forgets_the_fetch)
{
    pccl_sim_path path = {.delay_ns = 2 * MS};
    open_nodes(0);
    offer(0);
    fetch_all(1);
    cluster_run(&c, SECOND / 20);
    CHECK_EQ_INT(stats_of(0).transfers_served, 1);
    cluster_cut(&c, 0, 1);
    cluster_run(&c, 3 * SECOND);
    epoch_via(2, 1, 2, 15);
    cluster_run(&c, SECOND / 10);
    CHECK_EQ_INT(stats_of(0).transfers_served, 2);
    CHECK(pccl_sim_set_path(c.sim, 0, 1, &path) == PCCL_OK && pccl_sim_set_path(c.sim, 1, 0, &path) == PCCL_OK);
    cluster_run(&c, 10 * SECOND);
    CHECK_EQ_INT(stats_of(0).transfers_served, 1);
    epoch_via(3, 1, NODES, 15);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(stats_of(0).transfers_served, 1);
    extend(0, BYTES);
    expect_all_comes(1);
}

TEST_MAIN("ways of transfers")
