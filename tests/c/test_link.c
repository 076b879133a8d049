/* test_link.c - a link measures what it carries, and a plan with fewer streams leaves the others idle, not dead. */
#include "../../csrc/engine.h"
#include "cluster.h"

enum { BYTES = 8 << 20, RATE = 20000000 };

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

static void reduce(struct cluster *c, uint32_t seq)
{
    for (uint32_t i = 0; i < 2; i++) {
        pccl_op_request r = {.kind = PCCL_ALL_REDUCE, .dtype = PCCL_UINT8, .name = {.seq = seq}, .count = BYTES, .in = data[i],
                             .out = result[i], .token = seq + 1};
        cluster_submit(c, i, &r);
    }
    cluster_run(c, 3 * SECOND);
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

TEST_MAIN("link")
