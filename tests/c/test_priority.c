/* test_priority.c - priority classes: the order of segments on a link to the last one, and what it does to ops on a slow network. */
#include "cluster.h"
#include "engine.h"

enum { MS = 1000000, FLOWS = 6, SERVED = 6, SEGMENTS = 512, OP_BYTES_MAX = 4 << 20, OPS = 17 };

/* -- one link and its queues ------------------------------------------------------------------------------------------ */

static pccl_engine engine;
static struct link a_link;
static struct sender senders[FLOWS];
static struct flow flows[FLOWS];
static struct segment segments[FLOWS][SEGMENTS];

/* Flow i with so many segments, of an op of this class; the receiver has called it. */
static void want(uint32_t i, pccl_priority priority, uint32_t count)
{
    senders[i] = (struct sender){.priority = (uint8_t)priority, .number = i};
    flows[i] = (struct flow){.sender = &senders[i], .link = &a_link, .segments = segments[i], .cap = SEGMENTS, .called = 1};
    for (uint32_t k = 0; k < count; k++)
        flow_push(&flows[i], &(struct segment){.bytes = 1});
}

static void begin_link(void)
{
    engine = (struct pccl_engine){.config = {.eager_bytes = 1}};
    a_link = (struct link){.engine = &engine};
}

/* Which flow's segment goes next; -1: none. */
static int serve(void)
{
    struct flow *f = queues_next(&a_link);
    if (!f)
        return -1;
    flow_served(f);
    return (int)(f - flows);
}

/* Takes the next segment: its offset. */
static uint64_t take_offset(void)
{
    struct flow *f = queues_next(&a_link);
    uint64_t offset = f->segments[f->head].offset;
    flow_served(f);
    return offset;
}

TEST(higher_classes_go_first_and_ops_of_a_class_take_turns)
{
    static const int order[] = {3, 4, 3, 4, 1, 2, 1, 2, 0, 5, 0, 5, -1};
    begin_link();
    want(0, PCCL_PRIORITY_LOW, 2);
    want(5, PCCL_PRIORITY_LOW, 2);
    want(1, PCCL_PRIORITY_NORMAL, 2);
    want(2, PCCL_PRIORITY_NORMAL, 2);
    want(3, PCCL_PRIORITY_HIGH, 2);
    want(4, PCCL_PRIORITY_HIGH, 2);
    for (size_t i = 0; i < sizeof order / sizeof order[0]; i++)
        CHECK_EQ_INT(serve(), order[i]);
    CHECK(queues_empty(&a_link));
}

/* Pushes 0 to 3, one goes, then what is made of an arrival, 4 and 5: in this order they then leave. */
static void check_fresh(int in_memory, const uint64_t order[SERVED])
{
    begin_link();
    a_link.in_memory = in_memory;
    want(0, PCCL_PRIORITY_NORMAL, 0);
    flows[0].cap = SERVED; /* never more at once: the ring of segments turns, both ways */
    for (uint64_t i = 0; i < SERVED; i++) {
        if (i == 4)
            CHECK_EQ_INT((int)take_offset(), (int)order[0]);
        flow_push(&flows[0], &(struct segment){.bytes = 1, .offset = i, .fresh = i >= 4});
    }
    for (uint32_t i = 1; i < SERVED; i++)
        CHECK_EQ_INT((int)take_offset(), (int)order[i]);
    CHECK(queues_empty(&a_link));
}

TEST(what_is_fresh_goes_first_through_memory)
{
    check_fresh(1, (const uint64_t[SERVED]){0, 5, 4, 1, 2, 3});
    check_fresh(0, (const uint64_t[SERVED]){0, 1, 2, 3, 4, 5});
}

TEST(a_lower_class_gets_one_segment_in_sixteen)
{
    begin_link();
    want(0, PCCL_PRIORITY_HIGH, 320);
    want(1, PCCL_PRIORITY_LOW, 100);
    for (int i = 0; i < 320; i++)
        CHECK_EQ_INT(serve(), i % 16 == 15);
}

TEST(each_of_two_lower_classes_gets_its_share)
{
    int last[3] = {0}, count[3] = {0};
    begin_link();
    want(0, PCCL_PRIORITY_HIGH, 512);
    want(1, PCCL_PRIORITY_NORMAL, 512);
    want(2, PCCL_PRIORITY_LOW, 512);
    for (int i = 1; i <= 480; i++) {
        int f = serve();
        CHECK(i - last[f] <= 17);
        last[f] = i;
        count[f]++;
    }
    CHECK(count[1] >= 28 && count[2] >= 28);
    CHECK(count[0] >= 418);
}

TEST(waiting_counts_from_the_first_segment_that_waits)
{
    begin_link();
    want(0, PCCL_PRIORITY_HIGH, 200);
    for (int i = 0; i < 100; i++)
        CHECK_EQ_INT(serve(), 0);
    want(1, PCCL_PRIORITY_LOW, 1);
    for (int i = 0; i < 15; i++)
        CHECK_EQ_INT(serve(), 0);
    CHECK_EQ_INT(serve(), 1);
    want(1, PCCL_PRIORITY_LOW, 1);
    for (int i = 0; i < 15; i++)
        CHECK_EQ_INT(serve(), 0);
    CHECK_EQ_INT(serve(), 1);
}

/* A window that is closed, or an eager budget that is used up, holds up nobody else, and what was due is made up for. */
TEST(who_may_not_send_is_passed_over)
{
    begin_link();
    want(0, PCCL_PRIORITY_HIGH, 1);
    flows[0].segments[0].windowed = 1;
    want(1, PCCL_PRIORITY_NORMAL, 40);
    want(2, PCCL_PRIORITY_LOW, 2);
    flows[2].called = 0;
    a_link.eager_outstanding = 1;
    for (int i = 0; i < 30; i++)
        CHECK_EQ_INT(serve(), 1);
    a_link.eager_outstanding = 0;
    CHECK_EQ_INT(serve(), 2);
    CHECK_EQ_INT(serve(), 1);
    flows[0].granted = 1;
    CHECK_EQ_INT(serve(), 0);
}

TEST(what_was_thrown_back_goes_first_in_its_class)
{
    begin_link();
    want(0, PCCL_PRIORITY_NORMAL, 3);
    want(1, PCCL_PRIORITY_NORMAL, 2);
    want(2, PCCL_PRIORITY_HIGH, 1);
    want(3, PCCL_PRIORITY_LOW, 1);
    senders[1].retries = senders[3].retries = 1;
    engine.ops_thrown_back = 2;
    static const int order[] = {2, 1, 1, 0, 0, 0, 3, -1};
    for (size_t i = 0; i < sizeof order / sizeof order[0]; i++)
        CHECK_EQ_INT(serve(), order[i]);
}

TEST(a_dropped_flow_leaves_its_queue)
{
    begin_link();
    want(0, PCCL_PRIORITY_HIGH, 2);
    want(1, PCCL_PRIORITY_HIGH, 2);
    CHECK_EQ_INT(serve(), 0);
    flow_drop(&flows[1]);
    flow_drop(&flows[1]);
    CHECK_EQ_INT(serve(), 0);
    CHECK_EQ_INT(serve(), -1);
}

/* -- ops on a slow network ---------------------------------------------------------------------------------------------- */

static struct cluster c;
static uint8_t memory[2][OPS][OP_BYTES_MAX];

/* Two nodes, 10 MB/s and 5 ms each way. */
static void begin_cluster(void)
{
    pccl_sim_path path = {.delay_ns = 5 * MS, .bytes_per_s = 10000000};
    cluster_open(&c, 2, 3, "sim", 0);
    CHECK(pccl_sim_set_path(c.sim, 0, 1, &path) == PCCL_OK && pccl_sim_set_path(c.sim, 1, 0, &path) == PCCL_OK);
    c.segment_bytes = 16 << 10;
    c.mesh_bytes_max = 1 << 30;
    cluster_epoch(&c, 1, 0, 0, 3, ~0u, NULL, 0);
    cluster_run(&c, SECOND);
}

static void call(uint32_t seq, uint64_t bytes, pccl_priority at_0, pccl_priority at_1)
{
    for (uint32_t i = 0; i < 2; i++) {
        pccl_op_request r = {
            .kind = PCCL_ALL_REDUCE, .dtype = PCCL_INT32, .redop = PCCL_SUM, .name = {.seq = seq}, .count = bytes / 4,
            .in = memory[i][seq], .out = memory[i][seq], .priority = (uint8_t)(i ? at_1 : at_0), .token = seq + 1,
        };
        cluster_submit(&c, i, &r);
    }
}

/* Milliseconds that the op took at a node; -1 if it has not ended well. */
static int took_ms(uint32_t node, uint32_t seq)
{
    const pccl_event *e = cluster_event(&c, node, PCCL_EVENT_OP, seq + 1);
    return e && e->status == PCCL_OK ? (int)(e->duration_ns / MS) : -1;
}

/* 16 ops of 1 MiB are under way; how long does one of 512 KiB take that comes later? It needs 63 ms alone. */
static int late_op_ms(pccl_priority others, pccl_priority own_at_0, pccl_priority own_at_1)
{
    begin_cluster();
    for (uint32_t seq = 0; seq < 16; seq++)
        call(seq, 1 << 20, others, others);
    cluster_run(&c, SECOND / 10);
    call(16, 512 << 10, own_at_0, own_at_1);
    cluster_run(&c, 10 * SECOND);
    int ms = took_ms(0, 16);
    for (uint32_t seq = 0; seq < 16; seq++)
        CHECK(took_ms(0, seq) > 1000 && took_ms(1, seq) > 1000);
    cluster_close(&c);
    return ms;
}

/* Each of its three ways (contribution, result, FIN) is behind what the two streams have taken: 256 KiB and one batch each. */
TEST(a_high_op_overtakes_those_under_way)
{
    int among_equals = late_op_ms(PCCL_PRIORITY_NORMAL, PCCL_PRIORITY_NORMAL, PCCL_PRIORITY_NORMAL);
    int high = late_op_ms(PCCL_PRIORITY_NORMAL, PCCL_PRIORITY_HIGH, PCCL_PRIORITY_HIGH);
    int over_low = late_op_ms(PCCL_PRIORITY_LOW, PCCL_PRIORITY_NORMAL, PCCL_PRIORITY_NORMAL);
    CHECK(among_equals > 800);
    CHECK(high > 60 && high < 280);
    CHECK_EQ_INT(over_low, high);
}

/* Priorities are not compared: one side alone may have one. */
TEST(peers_need_not_agree)
{
    int ms = late_op_ms(PCCL_PRIORITY_NORMAL, PCCL_PRIORITY_HIGH, PCCL_PRIORITY_LOW);
    CHECK(ms > 800);
}

TEST(a_low_op_ends_while_higher_ones_are_still_busy)
{
    begin_cluster();
    for (uint32_t seq = 0; seq < 16; seq++)
        call(seq, OP_BYTES_MAX, PCCL_PRIORITY_HIGH, PCCL_PRIORITY_HIGH);
    call(16, 256 << 10, PCCL_PRIORITY_LOW, PCCL_PRIORITY_LOW);
    cluster_run(&c, 20 * SECOND);
    CHECK(took_ms(0, 16) > 350 && took_ms(0, 16) < 1000);
    for (uint32_t seq = 0; seq < 16; seq++)
        CHECK(took_ms(0, seq) > 6000);
    cluster_close(&c);
}

TEST(an_unknown_priority_is_refused)
{
    begin_cluster();
    pccl_op_request r = {.size = sizeof r, .kind = PCCL_BARRIER, .priority = PCCL_PRIORITY_COUNT};
    CHECK_EQ_INT(pccl_engine_submit(c.engines[0], &r), PCCL_EINVAL);
    CHECK(strstr(pccl_last_error(), "priority") != NULL);
    cluster_close(&c);
}

TEST_MAIN("priority")
