/* test_short_queue.c - a link on which only transfers are under way keeps a short queue on a long way, unless others fill it. */
#include "paced.h"
#include "transfers.h"

enum { RATE = 20000000, RTT_US = 80000, TOKENS = 100, SPANS = 30 };
/* What fills the way; the most that is on it with a short queue; the least that shows a long one. */
enum { FILLED = RATE / 1000 * (RTT_US / 1000), SHORT_MOST = FILLED + FILLED * 3 / 8, LONG_LEAST = FILLED + FILLED / 2 };

static uint64_t next_token, greatest;

/* Node 0 has always more to send: what was on the way at most, in the one of SPANS of 50 ms in which that was least; and in that in which
 * it was `greatest`. */
static uint64_t held_while_served(void)
{
    uint64_t least = UINT64_MAX;
    greatest = 0;
    for (int i = 0; i < TOKENS; i++)
        fetch_all(next_token++);
    cluster_run(&c, SECOND / 2);
    for (int i = 0; i < SPANS; i++) {
        most_held = 0;
        cluster_run(&c, SECOND / 20);
        least = most_held < least ? most_held : least;
        greatest = most_held > greatest ? most_held : greatest;
    }
    CHECK(c.engines[0]->links->transfers.busy > 0);
    cluster_run(&c, 4 * SECOND);
    CHECK_EQ_INT(c.engines[0]->links->transfers.busy, 0);
    return least;
}

/* A link that is known well, over which a region can be fetched. */
static void begin_known(void)
{
    fill();
    cluster_open(&c, 2, 1, "sim", 0);
    set_paths(RTT_US * 500, RATE);
    c.segment_bytes = 16 << 10;
    c.streams = 24;                 /* as much as a long queue needs: each takes 256 KiB */
    pace(&c);
    rtt_now_us = RTT_US;
    next_token = 1;
    cluster_epoch(&c, 1, 0, 0, 3, ~0u, NULL, 0);
    cluster_run(&c, 2 * SECOND);
    offer(1);
    for (int i = 0; i < 2; i++)
        held_while_served();
    CHECK(c.engines[0]->links->meter.known && c.engines[0]->links->meter.windows > METER_SAMPLES);
}

TEST(transfers_keep_a_short_queue)
{
    begin_known();
    uint64_t held = held_while_served();
    CHECK(held > FILLED * 3 / 4 && held < SHORT_MOST);
    CHECK(greatest > held + FILLED / 8 && greatest < held + FILLED / 2);    /* now and then more, to see whether the link carries it */
    const struct meter *m = &c.engines[0]->links->meter;
    CHECK(m->usual_bytes_per_s > RATE * 0.9);
    cluster_close(&c);
}

/* Each time is a system call for each stream. */
TEST(streams_are_asked_now_and_then_however_often_there_is_something_to_send)
{
    begin_known();
    for (int i = 0; i < TOKENS; i++)
        fetch_all(next_token++);
    cluster_run(&c, SECOND / 2);
    asked = 0;
    cluster_run(&c, 10 * RTT_US * 1000ULL);
    CHECK(c.engines[0]->links->transfers.busy > 0);
    CHECK(asked > 10 * c.streams && asked < 10 * 40 * c.streams);
    cluster_close(&c);
}

/* Also where round trips are mostly longer than the short queue allows for. */
TEST(a_link_that_carries_more_than_before_is_filled)
{
    begin_known();
    const struct meter *m = &c.engines[0]->links->meter;
    pccl_sim_path path = {.delay_ns = RTT_US * 500, .bytes_per_s = 2 * RATE, .jitter_ns = 60 * MS};
    CHECK(pccl_sim_set_path(c.sim, 0, 1, &path) == PCCL_OK && pccl_sim_set_path(c.sim, 1, 0, &path) == PCCL_OK);
    for (int i = 0; i < 4; i++)
        held_while_served();
    CHECK(m->usual_bytes_per_s > 2 * RATE * 0.85);
    cluster_close(&c);
}

TEST(an_op_makes_it_long)
{
    begin_known();
    pccl_op_request barrier = {.kind = PCCL_BARRIER, .token = 1};
    cluster_submit(&c, 0, &barrier);
    CHECK(held_while_served() > LONG_LEAST);
    cluster_submit(&c, 1, &barrier);
    cluster_run(&c, SECOND);
    CHECK(held_while_served() < SHORT_MOST);
    cluster_close(&c);
}

TEST(so_do_others_who_fill_the_queue)
{
    begin_known();
    const struct meter *m = &c.engines[0]->links->meter;
    rtt_now_us = 2 * RTT_US;
    CHECK(held_while_served() > LONG_LEAST);
    CHECK(m->crowded_until_ns > c.now_ns);
    uint64_t first = m->crowded_ns;
    cluster_run(&c, m->crowded_until_ns - c.now_ns + 1);
    CHECK(held_while_served() > LONG_LEAST);              /* tried again, and given up for longer */
    CHECK_EQ_INT(m->crowded_ns, 2 * first);
    rtt_now_us = RTT_US;
    cluster_run(&c, m->crowded_until_ns - c.now_ns + 1);
    CHECK(held_while_served() < SHORT_MOST);
    CHECK_EQ_INT(m->crowded_ns, 0);
    cluster_close(&c);
}

TEST_MAIN("short queue")
