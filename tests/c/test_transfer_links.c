/* test_transfer_links.c - transfers beside ops and each other on one link, and links to peers of other groups. */
#include "transfers.h"

/* -- classes and caps --------------------------------------------------------------------------------------------------- */

/* Milliseconds that an all-reduce of 256 KiB takes while 8 MiB of as many regions are fetched at 10 MB/s; alone it needs 40. */
static int op_beside_fetch_ms(pccl_priority of_fetch, pccl_priority of_op)
{
    static uint8_t data[2][256 << 10];
    begin();
    c.mesh_bytes_max = 1 << 30;
    set_paths(5 * MS, 10000000);
    for (uint64_t token = 1; token <= 8; token++) {
        pccl_fetch_run run = {0, BYTES, target};
        pccl_fetch_request r = request_of(&run, 1, token);
        r.generation = token;
        r.priority = (uint8_t)of_fetch;
        offer_of(0, key, token, source, BYTES, 1, 100 + token);
        send_request(&r);
    }
    cluster_run(&c, 20 * MS);
    for (uint32_t i = 0; i < 2; i++) {
        pccl_op_request r = {.kind = PCCL_ALL_REDUCE, .dtype = PCCL_INT32, .count = sizeof data[0] / 4, .in = data[i], .out = data[i],
                             .priority = (uint8_t)of_op, .token = 5};
        cluster_submit(&c, i, &r);
    }
    cluster_run(&c, 2 * SECOND);
    const pccl_event *e = cluster_event(&c, 0, PCCL_EVENT_OP, 5);
    CHECK(e && e->status == PCCL_OK);
    for (uint64_t token = 1; token <= 8; token++)
        CHECK_EQ_INT(status_of(token), PCCL_OK);
    cluster_close(&c);
    return e ? (int)(e->duration_ns / MS) : -1;
}

TEST(ops_go_before_transfers_of_a_lower_class)
{
    int before = op_beside_fetch_ms(LOW, NORMAL), beside = op_beside_fetch_ms(NORMAL, NORMAL), behind = op_beside_fetch_ms(HIGH, LOW);
    CHECK(before < beside);
    CHECK(beside < behind);
}

TEST(a_class_can_be_limited)
{
    begin();
    offer(1);
    CHECK_EQ_INT(pccl_engine_limit(c.engines[0], LOW, 1000000), PCCL_OK);
    fetch_part(0, BYTES / 2, LOW, 0, 1);
    fetch_part(BYTES / 2, BYTES / 2, LOW, 0, 2);
    cluster_run(&c, SECOND / 2);
    CHECK(stats_of(0).transfer_sent_bytes > 450000 && stats_of(0).transfer_sent_bytes < 600000);
    CHECK_EQ_INT(status_of(1), -1);
    CHECK_EQ_INT(status_of(2), -1);
    fetch_part(0, BYTES, HIGH, 0, 3);
    cluster_run(&c, SECOND / 10);
    CHECK_EQ_INT(status_of(3), PCCL_OK);
    CHECK_EQ_INT(pccl_engine_limit(c.engines[0], LOW, 0), PCCL_OK);
    c.wake_ns[0] = 0;
    cluster_run(&c, SECOND / 10);
    CHECK_EQ_INT(status_of(1), PCCL_OK);
    CHECK_EQ_INT(status_of(2), PCCL_OK);
    CHECK_EQ_BYTES(target, source, BYTES);
    expect_nothing_left();
    cluster_close(&c);
}

/* What is asked for first is there first: it takes no turns with what is asked for after it. */
TEST(fetches_of_a_region_are_served_in_order)
{
    begin();
    set_paths(5 * MS, 10000000);
    offer(1);
    for (uint64_t token = 1; token <= 8; token++)
        fetch_part((token - 1) * BYTES / 8, BYTES / 8, NORMAL, 0, token);
    cluster_run(&c, SECOND / 2);
    for (uint64_t token = 1; token <= 8; token++) {
        CHECK_EQ_INT(status_of(token), PCCL_OK);
        CHECK(fetched(token)->duration_ns < (token + 4) * 13 * MS);   /* two streams, and what fits into them */
    }
    CHECK_EQ_BYTES(target, source, BYTES);
    expect_nothing_left();
    cluster_close(&c);
}

/* The first two wait for what is not there, the third does not; a dropped one that had the turn gives it on. */
TEST(a_fetch_that_waits_for_the_region_lets_others_pass)
{
    begin();
    set_paths(5 * MS, 10000000);
    offer(0);
    extend(BYTES / 2, BYTES / 2);
    fetch_part(0, BYTES / 4, NORMAL, 0, 1);
    fetch_part(BYTES / 4, BYTES / 4, NORMAL, 0, 2);
    fetch_part(BYTES / 2, BYTES / 4, NORMAL, 0, 3);
    fetch_part(3 * BYTES / 4, BYTES / 4, NORMAL, 0, 4);
    cluster_run(&c, 20 * MS);
    CHECK_EQ_INT(pccl_engine_cancel_fetch(c.engines[1], 3), PCCL_OK);
    cluster_run(&c, SECOND / 10);
    CHECK_EQ_INT(status_of(3), PCCL_ECANCELLED);
    CHECK_EQ_INT(status_of(4), PCCL_OK);
    CHECK_EQ_INT(status_of(1), -1);
    extend(BYTES / 4, BYTES / 4);
    cluster_run(&c, SECOND / 10);
    CHECK_EQ_INT(status_of(2), PCCL_OK);
    extend(0, BYTES / 4);
    cluster_run(&c, SECOND / 10);
    CHECK_EQ_INT(status_of(1), PCCL_OK);
    CHECK_EQ_BYTES(target, source, BYTES / 2);
    expect_nothing_left();
    cluster_close(&c);
}

/* -- peers of other groups -------------------------------------------------------------------------------------------------- */

/* The link of the two of this incarnation. */
static void acquaint(uint32_t node, uint32_t with, uint64_t incarnation)
{
    pccl_member m = {.id = node_id(with), .dial = node < with, .incarnation = incarnation};
    snprintf(m.address, sizeof m.address, "sim:%u", with);
    CHECK_EQ_INT(pccl_engine_acquaint(c.engines[node], &m, 2), PCCL_OK);
    c.wake_ns[node] = 0;
}

TEST(peers_of_two_groups_fetch_once_both_are_acquainted)
{
    fill();
    cluster_open(&c, 2, 1, "sim", 0);
    cluster_epoch(&c, 1, 0, 0, 1, 1, NULL, 0);
    cluster_epoch(&c, 1, 0, 0, 2, 2, NULL, 0);
    offer(1);
    acquaint(1, 0, 1);
    fetch_all(1);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(1), -1);
    acquaint(0, 1, 1);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(1), PCCL_OK);
    CHECK_EQ_BYTES(target, source, BYTES);
    cluster_epoch(&c, 2, 0, 1, 2, 2, NULL, 0);   /* another epoch does not touch the link */
    fetch_all(2);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(2), PCCL_OK);
    withdraw();
    offer_of(0, key, 7, source, BYTES, 0, 75);
    fetch_all(3);
    cluster_run(&c, SECOND);
    pccl_peer_id id = node_id(0);
    CHECK_EQ_INT(pccl_engine_unacquaint(c.engines[1], &id), PCCL_OK);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(3), PCCL_EPEER);
    fetch_all(4);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(4), PCCL_EPEER);
    cluster_close(&c);
}

/* -- a link that is closed and opened anew ---------------------------------------------------------------------------------- */

static uint32_t streams_of(uint32_t node)
{
    const struct link *l = c.engines[node]->links;
    return l ? l->open : 0;
}

static void open_strangers(void)
{
    fill();
    cluster_open(&c, 2, 1, "sim", 0);
    offer(1);
    acquaint(0, 1, 1);
    acquaint(1, 0, 1);
    fetch_all(1);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(1), PCCL_OK);
}

/* One end has closed it and opened the next: its streams wait until the other end does. `first`: 0 dials, 1 is dialled. */
static void one_end_is_ahead(uint32_t first)
{
    open_strangers();
    acquaint(first, 1 - first, 2);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(streams_of(1), 0);
    fetch_all(2);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(2), -1);
    acquaint(1 - first, first, 1);   /* told again what is true no more */
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(2), -1);
    acquaint(1 - first, first, 2);
    memset(target, 0, sizeof target);
    fetch_all(3);
    cluster_run(&c, 5 * SECOND);
    CHECK_EQ_INT(status_of(2), first == 1 ? PCCL_OK : PCCL_EPEER);
    CHECK_EQ_INT(status_of(3), PCCL_OK);
    CHECK_EQ_BYTES(target, source, BYTES);
    CHECK_EQ_INT(streams_of(0), 2);
    CHECK_EQ_INT(streams_of(1), 2);
    expect_nothing_left();
    cluster_close(&c);
}

TEST(streams_of_the_next_link_wait_for_it)
{
    one_end_is_ahead(0);
    one_end_is_ahead(1);
}

TEST(what_is_on_its_way_on_an_earlier_link_does_not_reach_the_next)
{
    uint64_t random = 11;
    for (int round = 0; round < 60; round++) {
        uint64_t told[2] = {1, 1}, token = 1;
        open_strangers();
        while (told[0] < 6 || told[1] < 6) {   /* both go from one to the next in their own time, with asks and pieces on their way */
            uint32_t node = test_random(&random) % 2;
            set_paths(1 + test_random(&random) % (40 * MS), 20000000);
            if (told[node] < 6)
                acquaint(node, 1 - node, ++told[node]);
            fetch_part(0, BYTES / 8, NORMAL, 0, ++token);
            cluster_run(&c, test_random(&random) % (60 * MS));
        }
        memset(target, 0, sizeof target);
        fetch_all(++token);
        cluster_run(&c, 10 * SECOND);
        CHECK_EQ_INT(status_of(token), PCCL_OK);
        CHECK_EQ_BYTES(target, source, BYTES);
        for (uint64_t t = 2; t < token; t++)
            CHECK(status_of(t) == PCCL_OK || status_of(t) == PCCL_EPEER);
        CHECK_EQ_INT(stats_of(0).transfers_served, 0);
        expect_nothing_left();
        cluster_close(&c);
    }
}

TEST_MAIN("transfer links")
