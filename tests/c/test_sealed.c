/* test_sealed.c - over a transport that verifies what comes, and through memory of one machine, payloads have no checksum; but they
 * have one on detours, and wherever they go on over another kind of stream. */
#include "../../csrc/engine.h"
#include "cluster.h"

enum { COUNT = 4099, SENDER = 0, RELAY = 1, RECEIVER = 2 };

static struct cluster c;
static float in[3][COUNT], out[3][COUNT];
static pccl_peer_id everybody[3];

/* The simulator's transport, as if it verified. */
static struct transport_ops sealing;

static void seal(uint32_t node)
{
    sealing = *transport_find("sim");
    sealing.seals = 1;
    c.engines[node]->ops = &sealing;
}

static void fill(void)
{
    memset(out, 0, sizeof out);
    for (uint32_t i = 0; i < 3; i++)
        for (uint32_t k = 0; k < COUNT; k++)
            in[i][k] = (float)((i + 1) * 1000 + k % 97);
}

static void open_three(uint32_t sealed, int with_detour)
{
    cluster_open(&c, 3, 1, "sim", 0);
    if (with_detour)
        cluster_detour(&c, SENDER, RECEIVER, RELAY, RELAY);
    for (uint32_t i = 0; i < 3; i++) {
        everybody[i] = node_id(i);
        if (sealed & 1u << i)
            seal(i);
    }
    fill();
    cluster_epoch(&c, 1, 0, 0, 7, 7, NULL, 0);
}

static void submit(uint32_t node, pccl_kind kind, pccl_algorithm algorithm)
{
    pccl_op_request r = {
        .kind = (uint8_t)kind, .dtype = PCCL_FLOAT32, .redop = kind == PCCL_ALL_REDUCE ? PCCL_SUM : 0, .algorithm = (uint8_t)algorithm,
        .name = {.lane = kind}, .count = COUNT, .in = in[node], .out = out[node], .root = node_id(SENDER),
        .target = node_id(RECEIVER), .origin = everybody, .token = 1,
    };
    cluster_submit(&c, node, &r);
}

static uint64_t corrupt_at(uint32_t node)
{
    pccl_stats stats;
    pccl_engine_stats(c.engines[node], &stats);
    return stats.frames_corrupt;
}

/* One segment after the other from the one to the other, of which only the receiver looks at checksums. */
static void send_from_sealed(int with_detour)
{
    open_three(1u << SENDER | 1u << RELAY, with_detour);
    submit(SENDER, PCCL_SEND_RECV, 0);
    submit(RECEIVER, PCCL_SEND_RECV, 0);
    cluster_run(&c, SECOND);
}

TEST(a_sealed_link_makes_no_checksums)
{
    send_from_sealed(0);
    CHECK(corrupt_at(RECEIVER) > 0);
    cluster_close(&c);
}

TEST(a_detour_makes_them)
{
    send_from_sealed(1);
    CHECK_EQ_INT(corrupt_at(RECEIVER), 0);
    CHECK(memcmp(out[RECEIVER], in[SENDER], sizeof in[0]) == 0);
    cluster_close(&c);
}

TEST(a_sealed_link_looks_at_none)
{
    pccl_sim_path noisy = {.corrupt_ppm = 300000};
    open_three(7, 0);
    cluster_run(&c, SECOND);
    CHECK(pccl_sim_set_path(c.sim, SENDER, RECEIVER, &noisy) == PCCL_OK);
    submit(SENDER, PCCL_SEND_RECV, 0);
    submit(RECEIVER, PCCL_SEND_RECV, 0);
    cluster_run(&c, 3 * SECOND);
    const pccl_event *e = cluster_event(&c, RECEIVER, PCCL_EVENT_OP, 1);
    CHECK(e && e->status == PCCL_OK);
    CHECK(memcmp(out[RECEIVER], in[SENDER], sizeof in[0]) != 0); /* this transport only says that it verifies */
    cluster_close(&c);
}

/* -- through memory --------------------------------------------------------------------------------------------------- */

/* The simulator's streams, as if those between nodes 0 and 1 went through memory; of each node its own view. */
static struct transport_ops shared[2];
static int in_memory;

static void info_of(const struct stream *s, struct stream_info *info_p, const char *other)
{
    transport_find("sim")->info(s, info_p);
    info_p->in_memory = in_memory && strcmp(info_p->remote, other) == 0;
}

static void info_at_0(const struct stream *s, struct stream_info *info_p)
{
    info_of(s, info_p, "sim:1");
}

static void info_at_1(const struct stream *s, struct stream_info *info_p)
{
    info_of(s, info_p, "sim:0");
}

static void share_memory(uint32_t nodes)
{
    shared[0] = shared[1] = *transport_find("sim");
    shared[0].info = info_at_0;
    shared[1].info = info_at_1;
    in_memory = 1;
    for (uint32_t i = 0; i < 2; i++)
        if (nodes & 1u << i)
            c.engines[i]->ops = &shared[i];
}

static void send_from_0_to_1(void)
{
    pccl_op_request r = {
        .kind = PCCL_BROADCAST, .dtype = PCCL_FLOAT32, .name = {.lane = 1}, .count = COUNT, .root = node_id(0), .token = 1,
    };
    for (uint32_t i = 0; i < 2; i++) {
        r.in = in[i];
        r.out = out[i];
        cluster_submit(&c, i, &r);
    }
}

static void open_two(uint32_t nodes)
{
    cluster_open(&c, 2, 1, "sim", 0);
    fill();
    share_memory(nodes);
    cluster_epoch(&c, 1, 0, 0, 3, 3, NULL, 0);
    cluster_run(&c, SECOND);
}

TEST(a_stream_in_memory_makes_no_checksums)
{
    open_two(1);
    send_from_0_to_1();
    cluster_run(&c, SECOND);
    CHECK(corrupt_at(1) > 0);
    cluster_close(&c);
}

TEST(a_stream_in_memory_looks_at_none)
{
    pccl_sim_path noisy = {.corrupt_ppm = 700000};
    open_two(3);
    CHECK(pccl_sim_set_path(c.sim, 0, 1, &noisy) == PCCL_OK);
    send_from_0_to_1();
    cluster_run(&c, 3 * SECOND);
    CHECK(cluster_event(&c, 1, PCCL_EVENT_OP, 1) != NULL);
    CHECK(memcmp(out[1], in[0], sizeof in[0]) != 0); /* this memory is none */
    cluster_close(&c);
}

/* What was given to such a stream goes again over others, which look. */
TEST(frames_that_are_sent_again_get_a_checksum)
{
    pccl_sim_path slow = {.delay_ns = 1000000, .bytes_per_s = 1 << 20};
    open_two(3);
    CHECK(pccl_sim_set_path(c.sim, 0, 1, &slow) == PCCL_OK);
    send_from_0_to_1();
    cluster_run(&c, SECOND / 500);
    in_memory = 0;
    while (pccl_sim_reset(c.sim, 0, 1, 0) == PCCL_OK)
        ;
    cluster_run(&c, 3 * SECOND);
    pccl_stats stats;
    pccl_engine_stats(c.engines[0], &stats);
    CHECK(stats.frames_resent > 0);
    CHECK_EQ_INT(corrupt_at(1), 0);
    const pccl_event *e = cluster_event(&c, 1, PCCL_EVENT_OP, 1);
    CHECK(e && e->status == PCCL_OK);
    CHECK(memcmp(out[1], in[0], sizeof in[0]) == 0);
    cluster_close(&c);
}

static void info_everywhere(const struct stream *s, struct stream_info *info_p)
{
    transport_find("sim")->info(s, info_p);
    info_p->in_memory = 1;
}

/* What is made of arrivals overtakes what waits, streams are reset meanwhile, and the result is written over the input. */
static void run_in_place(pccl_algorithm algorithm, uint32_t round)
{
    open_three(0, 0);
    shared[0] = *transport_find("sim");
    shared[0].info = info_everywhere;
    for (uint32_t i = 0; i < 3; i++)
        c.engines[i]->ops = &shared[0];
    memcpy(out, in, sizeof out);
    for (uint32_t i = 0; i < 3; i++) {
        pccl_op_request r = {.kind = PCCL_ALL_REDUCE, .dtype = PCCL_FLOAT32, .redop = PCCL_SUM, .algorithm = (uint8_t)algorithm,
                             .count = COUNT, .in = out[i], .out = out[i], .token = 1};
        cluster_submit(&c, i, &r);
    }
    for (uint32_t k = 0; k < 12; k++) {
        cluster_run(&c, (1 + (k + round) % 4) * SECOND / 1000);
        if (k % 4 == round % 4)
            (void)pccl_sim_reset(c.sim, k % 3, (k + 1) % 3, round);
    }
    cluster_run(&c, 3 * SECOND);
    for (uint32_t i = 0; i < 3; i++) {
        const pccl_event *e = cluster_event(&c, i, PCCL_EVENT_OP, 1);
        CHECK(e && e->status == PCCL_OK);
        for (uint32_t k = 0; k < COUNT; k++)
            CHECK(out[i][k] == in[0][k] + in[1][k] + in[2][k]);
    }
    cluster_close(&c);
}

TEST(in_place_through_memory_with_resets)
{
    for (uint32_t round = 0; round < 12; round++) {
        run_in_place(PCCL_ALGORITHM_RING, round);
        run_in_place(PCCL_ALGORITHM_MESH, round);
        run_in_place(PCCL_ALGORITHM_TWO_LEVEL, round);
    }
}

/* -- both kinds at once ----------------------------------------------------------------------------------------------- */

/* What came without a checksum over a link goes on with one over a detour. */
static void run_over_both(pccl_kind kind, pccl_algorithm algorithm, int memory)
{
    open_three(memory ? 0 : 7, !memory);
    if (memory)
        share_memory(3);
    for (uint32_t i = 0; i < 3; i++)
        submit(i, kind, algorithm);
    cluster_run(&c, 3 * SECOND);
    for (uint32_t i = 0; i < 3; i++) {
        CHECK_EQ_INT(corrupt_at(i), 0);
        for (uint32_t k = 0; k < COUNT && kind == PCCL_ALL_REDUCE; k++)
            CHECK(out[i][k] == in[0][k] + in[1][k] + in[2][k]);
        if (kind == PCCL_BROADCAST && i != SENDER)
            CHECK(memcmp(out[i], in[SENDER], sizeof in[0]) == 0);
    }
    cluster_close(&c);
}

static void run_all_over_both(int memory)
{
    run_over_both(PCCL_ALL_REDUCE, PCCL_ALGORITHM_RING, memory);
    run_over_both(PCCL_ALL_REDUCE, PCCL_ALGORITHM_MESH, memory);
    run_over_both(PCCL_ALL_REDUCE, PCCL_ALGORITHM_TWO_LEVEL, memory);
    run_over_both(PCCL_ALL_REDUCE, PCCL_ALGORITHM_ONE_ROUND, memory);
    run_over_both(PCCL_BROADCAST, PCCL_ALGORITHM_RING, memory);
}

TEST(ops_over_sealed_links_and_a_detour)
{
    run_all_over_both(0);
}

TEST(ops_through_memory_and_over_a_network)
{
    run_all_over_both(1);
}

TEST(which_transports_seal)
{
    CHECK(transport_find("tls")->seals && transport_find("tls+faulty+tcp")->seals);
    CHECK(!transport_find("tcp")->seals && !transport_find("auto")->seals && !transport_find("sim")->seals);
    CHECK(!transport_find("faulty+tls")->seals); /* it changes what TLS has verified */
}

TEST_MAIN("sealed")
