/* test_near.c - engines know while an op among near peers runs, which keeps their threads awake, and know when none does any more. */
#include "../../csrc/engine.h"
#include "cluster.h"

enum { COUNT = 3000 };

static float in[3][COUNT], out[3][COUNT];

static void begin(struct cluster *c)
{
    cluster_open(c, 3, 1, "sim", 0);
    for (uint32_t a = 0; a < 3; a++)
        for (uint32_t b = 0; b < 3; b++) {
            pccl_sim_path path = {.delay_ns = 20000};
            CHECK(pccl_sim_set_path(c->sim, a, b, &path) == PCCL_OK);
        }
    cluster_epoch(c, 1, 0, 0, 7, ~0u, NULL, 0);
    cluster_run(c, SECOND); /* pings */
}

static void submit(struct cluster *c, uint32_t node, uint64_t token)
{
    pccl_op_request request = {.kind = PCCL_ALL_REDUCE, .dtype = PCCL_FLOAT32, .redop = PCCL_SUM, .token = token, .count = COUNT,
                               .in = in[node], .out = out[node], .name = {.seq = (uint32_t)token - 1}};
    cluster_submit(c, node, &request);
}

TEST(an_op_among_near_peers_counts_until_it_ends)
{
    struct cluster c;
    begin(&c);
    submit(&c, 0, 1);
    submit(&c, 0, 2);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(c.engines[0]->ops_near, 2);
    for (uint32_t node = 1; node < 3; node++)
        submit(&c, node, 1);
    cluster_run(&c, SECOND);
    CHECK(cluster_event(&c, 0, PCCL_EVENT_OP, 1));
    CHECK_EQ_INT(c.engines[0]->ops_near, 1);
    for (uint32_t node = 1; node < 3; node++)
        submit(&c, node, 2);
    cluster_run(&c, SECOND);
    for (uint32_t node = 0; node < 3; node++)
        CHECK_EQ_INT(c.engines[node]->ops_near, 0);
    cluster_close(&c);
}

TEST(one_that_is_thrown_back_counts_once)
{
    struct cluster c;
    begin(&c);
    submit(&c, 0, 1);
    submit(&c, 1, 1);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(c.engines[0]->ops_near, 1);
    c.stopped[2] = 1;
    for (uint32_t node = 0; node < 2; node++)
        CHECK(pccl_engine_freeze(c.engines[node], 2) == PCCL_OK);
    cluster_run(&c, SECOND);
    cluster_epoch(&c, 2, 2, 0, 3, ~0u, NULL, 0);
    cluster_run(&c, SECOND);
    for (uint32_t node = 0; node < 2; node++) {
        CHECK_EQ_INT(cluster_event(&c, node, PCCL_EVENT_OP, 1)->retries, 1);
        CHECK_EQ_INT(c.engines[node]->ops_near, 0);
    }
    cluster_close(&c);
}

/* One that is far is enough. */
TEST(an_op_among_far_peers_does_not_count)
{
    struct cluster c;
    begin(&c);
    pccl_sim_path far = {.delay_ns = 1000000};
    CHECK(pccl_sim_set_path(c.sim, 0, 2, &far) == PCCL_OK && pccl_sim_set_path(c.sim, 2, 0, &far) == PCCL_OK);
    cluster_run(&c, 30 * SECOND); /* pings, of which the link keeps a mean */
    submit(&c, 0, 1);
    submit(&c, 1, 1);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(c.engines[0]->stats.ops_pending, 1);
    CHECK_EQ_INT(c.engines[0]->ops_near, 0);
    CHECK_EQ_INT(c.engines[1]->ops_near, 1);
    cluster_close(&c);
}

TEST(nor_does_one_with_nobody_else)
{
    struct cluster c;
    cluster_open(&c, 1, 1, "sim", 0);
    cluster_epoch(&c, 1, 0, 0, 1, ~0u, NULL, 0);
    submit(&c, 0, 1);
    cluster_run(&c, SECOND);
    CHECK(cluster_event(&c, 0, PCCL_EVENT_OP, 1));
    CHECK_EQ_INT(c.engines[0]->ops_near, 0);
    cluster_close(&c);
}

TEST_MAIN("near")
