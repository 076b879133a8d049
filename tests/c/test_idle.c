/* test_idle.c - an engine that has nothing to do sleeps, however its streams came to stand. */
#include "../../csrc/engine.h"
#include "cluster.h"

enum { TURNS_MAX = 100 };

static struct transport_ops prompt;
static const struct transport_ops *usual;
static struct cluster *world;

/* Whoever node 0 reads from has answered by then, as one may on another processor. */
static ssize_t read_an_answer(struct stream *s, const struct iovec *iov, int iov_count)
{
    world->now_ns++;
    pccl_sim_advance(world->sim, world->now_ns);
    pccl_engine_step(world->engines[1], world->now_ns);
    world->now_ns++;
    pccl_sim_advance(world->sim, world->now_ns);
    return usual->readv(s, iov, iov_count);
}

/* Turns that node 0 takes until nothing is ready. */
static int turns(void)
{
    int count = 0;
    world->engines[0]->now_ns = world->now_ns;
    while (count < TURNS_MAX && engine_turn(world->engines[0], 0, NULL) > 0)
        count++;
    return count;
}

TEST(after_a_handshake_of_one_turn)
{
    struct cluster c;
    pccl_sim_path path = {0};
    cluster_open(&c, 2, 1, "sim", 0);
    CHECK(pccl_sim_set_path(c.sim, 0, 1, &path) == PCCL_OK && pccl_sim_set_path(c.sim, 1, 0, &path) == PCCL_OK);
    world = &c;
    usual = c.engines[0]->ops;
    prompt = *usual;
    prompt.readv = read_an_answer;
    c.engines[0]->ops = &prompt;
    cluster_epoch(&c, 1, 0, 0, 3, 3, NULL, 0);
    for (int i = 0; i < 10; i++) {
        CHECK(turns() < TURNS_MAX);
        pccl_sim_advance(c.sim, ++c.now_ns);
    }
    CHECK_EQ_INT(c.engines[0]->links->open, c.streams);
    cluster_close(&c);
}

TEST_MAIN("idle")
