/* test_link.c - a link measures what it carries and is held to that, and a plan with fewer streams leaves the others idle, not dead. */
#include "paced.h"

enum { BYTES = 8 << 20, RATE = 20000000, MANY_STREAMS = 16 };

static uint8_t data[2][BYTES], result[2][BYTES];

static void open_pair(struct cluster *c, uint32_t streams)
{
    cluster_open(c, 2, 7, "sim", 0);
    pccl_sim_path path = {.delay_ns = 40000000, .bytes_per_s = RATE};
    CHECK(pccl_sim_set_path(c->sim, 0, 1, &path) == PCCL_OK && pccl_sim_set_path(c->sim, 1, 0, &path) == PCCL_OK);
    c->streams = streams;
    c->segment_bytes = 64 << 10;
    c->mesh_bytes_max = 1ULL << 40;
}

static void reduce_for(struct cluster *c, uint32_t seq, uint64_t duration_ns)
{
    for (uint32_t i = 0; i < 2; i++) {
        pccl_op_request r = {.kind = PCCL_ALL_REDUCE, .dtype = PCCL_UINT8, .name = {.seq = seq}, .count = BYTES, .in = data[i],
                             .out = result[i], .token = seq + 1};
        cluster_submit(c, i, &r);
    }
    cluster_run(c, duration_ns);
}

static void reduce(struct cluster *c, uint32_t seq)
{
    reduce_for(c, seq, 3 * SECOND);
    CHECK(cluster_event(c, 0, PCCL_EVENT_OP, seq + 1) && cluster_event(c, 1, PCCL_EVENT_OP, seq + 1));
}

TEST(bandwidth_is_measured)
{
    struct cluster c;
    pccl_link_stats stats;
    open_pair(&c, 3);
    cluster_epoch(&c, 1, 0, 0, 3, 3, NULL, 0);
    for (uint32_t seq = 0; seq < 3; seq++)
        reduce(&c, seq);
    CHECK_EQ_INT(pccl_engine_links(c.engines[0], &stats, 1), 1);
    /* the sum of both directions' traffic of an op, and pauses between ops, must not be taken for the path's rate */
    CHECK(stats.bytes_per_s > RATE * 0.8 && stats.bytes_per_s < RATE * 1.25);
    CHECK(stats.rtt_us >= 80000 && stats.rtt_us < 90000);
    cluster_close(&c);
}

TEST(a_long_link_is_paced_at_what_it_carries)
{
    struct cluster c;
    open_pair(&c, 3);
    pace(&c);
    cluster_epoch(&c, 1, 0, 0, 3, 3, NULL, 0);
    for (uint32_t seq = 0; seq < 4; seq++)
        reduce(&c, seq);
    CHECK(c.engines[0]->links->meter.known);
    CHECK(last_pace > RATE / 3 && last_pace < RATE / 2);
    cluster_close(&c);
}

/* Acknowledgements that come at once make a reading too high; but pauses make what is usual too low. */
TEST(a_link_is_paced_by_what_is_usual_unless_that_is_far_below_the_best)
{
    struct cluster c;
    open_pair(&c, 2);
    pace(&c);
    cluster_epoch(&c, 1, 0, 0, 3, 3, NULL, 0);
    reduce(&c, 0);
    struct link *l = c.engines[0]->links;
    CHECK(l->meter.known && l->used == 2);
    l->meter.usual_bytes_per_s = RATE;
    l->meter.best_bytes_per_s = RATE / 5 * 7;
    meter_pace(l);
    CHECK(last_pace * 2 >= RATE / 4 * 5 && last_pace * 2 < RATE / 4 * 6);
    l->meter.best_bytes_per_s = RATE * 2;
    meter_pace(l);
    CHECK(last_pace * 2 >= RATE / 4 * 10 && last_pace * 2 < RATE / 4 * 11);
    cluster_close(&c);
}

TEST(a_link_that_is_not_known_begins_with_little)
{
    struct cluster c;
    open_pair(&c, MANY_STREAMS);
    pace(&c);
    cluster_epoch(&c, 1, 0, 0, 3, 3, NULL, 0);
    cluster_run(&c, 2 * SECOND);    /* the round trip is known by then */
    reduce_for(&c, 0, 60 * SECOND / 1000);
    CHECK(!last_pace && most_held > (1 << 20) && most_held < (3 << 20) + (256 << 10));
    cluster_run(&c, 3 * SECOND);
    CHECK(cluster_event(&c, 0, PCCL_EVENT_OP, 1) && last_pace && most_held > (3 << 20));
    cluster_close(&c);
}

static void set_rate(struct cluster *c, uint64_t bytes_per_s, int cut)
{
    pccl_sim_path path = {.delay_ns = 40000000, .bytes_per_s = bytes_per_s, .cut = (uint8_t)cut};
    CHECK(pccl_sim_set_path(c->sim, 0, 1, &path) == PCCL_OK && pccl_sim_set_path(c->sim, 1, 0, &path) == PCCL_OK);
}

/* A pair whose link is known, amid an op. */
static const struct meter *open_known_pair(struct cluster *c)
{
    open_pair(c, 3);
    pace(c);
    cluster_epoch(c, 1, 0, 0, 3, 3, NULL, 0);
    for (uint32_t seq = 0; seq < 4; seq++)
        reduce(c, seq);
    const struct meter *m = &c->engines[0]->links->meter;
    CHECK(m->known && m->usual_bytes_per_s > RATE * 0.8);
    reduce_for(c, 4, 150 * SECOND / 1000);
    return m;
}

TEST(an_outage_is_not_taken_for_a_slow_link)
{
    struct cluster c;
    const struct meter *m = open_known_pair(&c);
    set_rate(&c, RATE, 1);
    cluster_run(&c, SECOND / 2);
    set_rate(&c, RATE / 20, 0);     /* as streams that get over it */
    cluster_run(&c, SECOND);
    CHECK(m->in_doubt && m->doubted > 2);
    set_rate(&c, RATE, 0);
    cluster_run(&c, 2 * SECOND);
    CHECK(cluster_event(&c, 0, PCCL_EVENT_OP, 5));
    reduce(&c, 5);
    CHECK(!m->in_doubt && m->bytes_per_s > RATE * 0.8);
    for (uint32_t i = 0; i < m->windows && i < METER_SAMPLES; i++)
        CHECK(m->samples[i] > RATE * 0.4);
    cluster_close(&c);
}

static void becomes_slow(int after_outage)
{
    struct cluster c;
    const struct meter *m = open_known_pair(&c);
    if (after_outage) {
        set_rate(&c, RATE, 1);
        cluster_run(&c, SECOND / 2);
    }
    set_rate(&c, RATE / 10, 0);
    for (uint32_t seq = 5; seq < 8; seq++)
        reduce_for(&c, seq, 0);
    cluster_run(&c, 8 * SECOND);
    CHECK(m->bytes_per_s > RATE / 10 * 0.6 && m->bytes_per_s < RATE / 10 * 1.4);
    cluster_close(&c);
}

TEST(a_link_that_becomes_slow_is_known_to_be) { becomes_slow(0); }

TEST(a_link_that_is_slow_after_an_outage_is_known_to_be) { becomes_slow(1); }

TEST(a_plan_with_fewer_streams_uses_fewer)
{
    struct cluster c;
    open_pair(&c, 3);
    cluster_epoch(&c, 1, 0, 0, 3, 3, NULL, 0);
    reduce(&c, 0);
    const struct link *l = c.engines[0]->links;
    CHECK(l->open == 3 && l->used == 3);
    c.streams = 1;
    cluster_epoch(&c, 2, 0, 1, 3, 3, NULL, 0);
    cluster_run(&c, SECOND);
    CHECK(l->open == 3 && l->used == 1);
    uint64_t before = l->conns[1]->sent_bytes + l->conns[2]->sent_bytes;
    reduce(&c, 1);
    CHECK_EQ_INT(l->conns[1]->sent_bytes + l->conns[2]->sent_bytes, before);
    c.streams = 2;
    cluster_epoch(&c, 3, 0, 2, 3, 3, NULL, 0);
    cluster_run(&c, SECOND);
    CHECK(l->open == 3 && l->used == 2);
    cluster_close(&c);
}

/* One lost packet then holds up every fourth of them, not all or every second. */
TEST(frames_that_come_one_by_one_take_streams_in_turn)
{
    enum { OPS = 16, COUNT = 20000 };
    struct cluster c;
    open_pair(&c, 4);
    cluster_epoch(&c, 1, 0, 0, 3, 3, NULL, 0);
    cluster_run(&c, SECOND);
    const struct link *l = c.engines[0]->links;
    uint64_t before[4], least = UINT64_MAX, most = 0;
    for (uint32_t i = 0; i < 4; i++)
        before[i] = l->conns[i]->sent_bytes;
    for (uint32_t seq = 0; seq < OPS; seq++) {
        for (uint32_t i = 0; i < 2; i++) {
            pccl_op_request r = {.kind = PCCL_ALL_REDUCE, .dtype = PCCL_UINT8, .name = {.seq = seq}, .count = COUNT, .in = data[i],
                                 .out = result[i], .token = seq + 1};
            cluster_submit(&c, i, &r);
        }
        cluster_run(&c, SECOND);
        CHECK(cluster_event(&c, 0, PCCL_EVENT_OP, seq + 1) && cluster_event(&c, 1, PCCL_EVENT_OP, seq + 1));
    }
    for (uint32_t i = 0; i < 4; i++) {
        uint64_t sent = l->conns[i]->sent_bytes - before[i];
        least = sent < least ? sent : least;
        most = sent > most ? sent : most;
    }
    CHECK(least > OPS / 4 * COUNT / 2 && most < least + COUNT);
    cluster_close(&c);
}

static void measure(struct cluster *c, uint64_t bytes)
{
    pccl_peer_id peer = node_id(1);
    CHECK_EQ_INT(pccl_engine_measure(c->engines[0], &peer, bytes, 4 * SECOND), PCCL_OK);
    c->wake_ns[0] = 0;
}

TEST(a_probe_makes_a_link_known_without_an_op)
{
    struct cluster c;
    pccl_link_stats stats;
    open_pair(&c, 3);
    cluster_epoch(&c, 1, 0, 0, 3, 3, NULL, 0);
    cluster_run(&c, SECOND);
    measure(&c, 48 << 20);
    cluster_run(&c, 5 * SECOND);
    const struct link *l = c.engines[0]->links;
    CHECK(l->meter.known && !l->probe.bytes);
    CHECK_EQ_INT(pccl_engine_links(c.engines[0], &stats, 1), 1);
    CHECK(stats.bytes_per_s > RATE * 0.8 && stats.bytes_per_s < RATE * 1.25);
    CHECK(l->sent_bytes > BYTES && l->sent_bytes < (48 << 20));    /* it ends when it has what it wants */
    CHECK_EQ_INT(l->send_next, 0);
    uint64_t before = l->sent_bytes;
    measure(&c, 48 << 20);                                         /* read anew, also when it was known */
    cluster_run(&c, 5 * SECOND);
    CHECK(l->sent_bytes > before + BYTES / 2 && l->sent_bytes < before + (48 << 20));
    reduce(&c, 0);
    cluster_close(&c);
}

/* It begins with less than an op would, and holds a queue back as soon as it seems to fill the link. */
TEST(an_op_would_not_wait_long_behind_a_probe)
{
    struct cluster c;
    open_pair(&c, MANY_STREAMS);
    pace(&c);
    cluster_epoch(&c, 1, 0, 0, 3, 3, NULL, 0);
    cluster_run(&c, 2 * SECOND);
    measure(&c, 48 << 20);
    cluster_run(&c, SECOND * 60 / 1000);
    CHECK(most_held > (64 << 10) && most_held < (256 << 10));
    const struct link *l = c.engines[0]->links;
    for (int i = 0; i < 1000 && !l->meter.flat_windows; i++)
        cluster_run(&c, SECOND / 200);
    CHECK(l->meter.flat_windows && !l->meter.known && l->probe.bytes);
    cluster_run(&c, SECOND / 10);   /* what was too much has gone by then */
    CHECK(!l->meter.known);
    most_held = 0;
    cluster_run(&c, SECOND);
    CHECK(l->meter.known && !l->probe.bytes);
    CHECK(most_held > RATE / 12 / 2 && most_held < RATE / 12 * 5 / 4 + (256 << 10));
    cluster_close(&c);
}

/* Else the next ops, if they are over before anything is read, would go as slowly as filler does at first. */
TEST(a_probe_that_an_op_cuts_short_leaves_no_slow_pace)
{
    struct cluster c;
    open_pair(&c, 3);
    pace(&c);
    cluster_epoch(&c, 1, 0, 0, 3, 3, NULL, 0);
    cluster_run(&c, 2 * SECOND);
    measure(&c, 48 << 20);
    const struct link *l = c.engines[0]->links;
    for (int i = 0; i < 1000 && !last_pace; i++)
        cluster_run(&c, SECOND / 200);
    CHECK(l->probe.bytes && !l->meter.known && last_pace && last_pace < (4 << 20));
    reduce_for(&c, 0, SECOND / 1000);
    CHECK(!l->probe.bytes && !l->meter.known && last_pace > (8 << 20));
    cluster_close(&c);
}

TEST(a_probe_takes_no_more_than_it_was_given)
{
    struct cluster c;
    open_pair(&c, 3);
    cluster_epoch(&c, 1, 0, 0, 3, 3, NULL, 0);
    cluster_run(&c, SECOND);
    const struct link *l = c.engines[0]->links;
    uint64_t before = l->sent_bytes;
    measure(&c, 100001);
    cluster_run(&c, SECOND);
    CHECK(l->sent_bytes >= before + 100001 && l->sent_bytes < before + 102000 && !l->meter.known);
    pccl_peer_id peer = node_id(1), nobody = node_id(5);
    CHECK_EQ_INT(pccl_engine_measure(c.engines[0], &peer, 0, SECOND), PCCL_EINVAL);
    CHECK_EQ_INT(pccl_engine_measure(c.engines[0], &peer, (64 << 20) + 1, SECOND), PCCL_EINVAL);
    CHECK_EQ_INT(pccl_engine_measure(c.engines[0], &peer, 1, 11 * SECOND), PCCL_EINVAL);
    CHECK_EQ_INT(pccl_engine_measure(c.engines[0], &nobody, 1, SECOND), PCCL_OK);
    cluster_run(&c, SECOND);
    cluster_close(&c);
}

/* What is left of it is dropped when an op is called here, and when the other side sends something of one. */
TEST(a_probe_makes_way_for_ops)
{
    for (uint32_t caller = 0; caller < 2; caller++) {
        struct cluster c;
        open_pair(&c, 3);
        cluster_epoch(&c, 1, 0, 0, 3, 3, NULL, 0);
        cluster_run(&c, SECOND);
        const struct link *l = c.engines[0]->links;
        measure(&c, 48 << 20);
        cluster_run(&c, SECOND / 10);
        CHECK(l->probe.bytes > 0);
        pccl_op_request r = {.kind = PCCL_BARRIER, .token = 1};
        cluster_submit(&c, caller, &r);
        cluster_run(&c, SECOND / 2);
        CHECK_EQ_INT(l->probe.bytes, 0);
        cluster_submit(&c, !caller, &r);
        cluster_run(&c, SECOND);
        CHECK(cluster_event(&c, 0, PCCL_EVENT_OP, 1) && cluster_event(&c, 1, PCCL_EVENT_OP, 1));
        measure(&c, 48 << 20);
        cluster_submit(&c, 0, &(pccl_op_request){.kind = PCCL_BARRIER, .name = {.seq = 1}, .token = 2});
        measure(&c, 48 << 20);                                     /* not while one is pending */
        cluster_run(&c, SECOND / 10);
        CHECK_EQ_INT(l->probe.bytes, 0);
        cluster_close(&c);
    }
}

TEST_MAIN("link")
