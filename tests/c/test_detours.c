/* test_detours.c - peers without a link between them: every op over relays, one relay or several, and what ends a detour. */
#include "cluster.h"

enum { COUNT = 4099, LONG_COUNT = 1 << 20 };

static struct cluster c;
static float in[CLUSTER_NODES_MAX][COUNT], out[CLUSTER_NODES_MAX][COUNT * CLUSTER_NODES_MAX];
static pccl_peer_id everybody[CLUSTER_NODES_MAX];

struct detour { uint8_t a, b, a_via, b_via; };

static const struct shape {
    const char *name;
    uint32_t n, detour_count;
    struct detour detours[6];
} shapes[] = {
    {"a side of a triangle", 3, 1, {{0, 2, 1, 1}}},
    {"a diagonal of a square", 4, 1, {{0, 2, 3, 3}}},
    {"a chain", 4, 3, {{0, 2, 1, 1}, {1, 3, 2, 2}, {0, 3, 1, 2}}},
    {"a star", 4, 3, {{0, 1, 2, 2}, {0, 3, 2, 2}, {1, 3, 2, 2}}},
    {"a longer chain", 5, 6, {{0, 2, 1, 1}, {1, 3, 2, 2}, {2, 4, 3, 3}, {0, 3, 1, 2}, {1, 4, 2, 3}, {0, 4, 1, 3}}},
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static void open_shape(const struct shape *s, uint64_t seed, const char *transport)
{
    cluster_open(&c, s->n, seed, transport, 0);
    for (uint32_t i = 0; i < s->detour_count; i++) {
        const struct detour *d = &s->detours[i];
        cluster_detour(&c, d->a, d->b, d->a_via, d->b_via);
    }
    for (uint32_t i = 0; i < CLUSTER_NODES_MAX; i++) {
        everybody[i] = node_id(i);
        for (uint32_t k = 0; k < COUNT; k++)
            in[i][k] = (float)((i + 1) * 1000 + k % 97);
    }
    memset(out, 0, sizeof out);
}

static pccl_op_request request_of(uint32_t node, pccl_kind kind, pccl_algorithm algorithm, uint32_t boundary)
{
    int reduces = kind == PCCL_ALL_REDUCE || kind == PCCL_REDUCE_SCATTER;
    return (pccl_op_request){
        .kind = (uint8_t)kind, .dtype = PCCL_FLOAT32, .redop = reduces ? PCCL_SUM : 0, .algorithm = (uint8_t)algorithm,
        .name = {.lane = kind, .boundary = boundary, .seq = 0},
        .count = kind == PCCL_BARRIER ? 0 : kind == PCCL_ALL_TO_ALL ? COUNT / 5 : COUNT,
        .in = in[node], .out = out[node], .root = node_id(c.n - 1), .target = node_id(0), .origin = everybody,
        .origin_count = kind == PCCL_ALL_TO_ALL ? c.n : 0, .token = 1,
    };
}

static float sum_at(uint32_t k)
{
    float sum = 0;
    for (uint32_t i = 0; i < c.n; i++)
        sum += in[i][k];
    return sum;
}

static int is_sum(const float *at, uint32_t begin, uint32_t end)
{
    for (uint32_t k = begin; k < end; k++)
        if (at[k] != sum_at(k))
            return 0;
    return 1;
}

static void check_result(uint32_t node, pccl_kind kind)
{
    const pccl_event *e = cluster_event(&c, node, PCCL_EVENT_OP, 1);
    uint32_t row = kind == PCCL_ALL_TO_ALL ? COUNT / 5 : COUNT;
    CHECK(e && e->status == PCCL_OK);
    if (kind == PCCL_ALL_REDUCE)
        CHECK(is_sum(out[node], 0, COUNT));
    if (kind == PCCL_REDUCE_SCATTER && e)
        CHECK(e->span_count > 0 && is_sum(out[node], (uint32_t)e->span_offset, (uint32_t)(e->span_offset + e->span_count)));
    if ((kind == PCCL_BROADCAST && node != c.n - 1) || (kind == PCCL_SEND_RECV && node == 0))
        CHECK(memcmp(out[node], in[c.n - 1], sizeof in[0]) == 0);
    for (uint32_t j = 0; j < c.n; j++) {
        if (kind == PCCL_ALL_GATHER)
            CHECK(memcmp(out[node] + j * row, in[j], row * sizeof(float)) == 0);
        if (kind == PCCL_ALL_TO_ALL)
            CHECK(memcmp(out[node] + j * row, in[j] + node * row, row * sizeof(float)) == 0);
    }
}

static void submit(pccl_kind kind, pccl_algorithm algorithm, uint32_t boundary)
{
    for (uint32_t i = 0; i < c.n; i++) {
        pccl_op_request r = request_of(i, kind, algorithm, boundary);
        if (kind != PCCL_SEND_RECV || i == 0 || i == c.n - 1)
            cluster_submit(&c, i, &r);
    }
}

static void check_results(pccl_kind kind)
{
    for (uint32_t i = 0; i < c.n; i++)
        if (kind != PCCL_SEND_RECV || i == 0 || i == c.n - 1)
            check_result(i, kind);
}

static pccl_stats stats_of(uint32_t node)
{
    pccl_stats stats;
    pccl_engine_stats(c.engines[node], &stats);
    return stats;
}

static uint64_t relayed(void)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < c.n; i++)
        bytes += stats_of(i).relayed_bytes;
    return bytes;
}

static void run_shape(const struct shape *s, pccl_kind kind, pccl_algorithm algorithm, const char *transport)
{
    open_shape(s, (uint64_t)kind * 10 + algorithm, transport);
    for (uint32_t i = 0; i < s->n; i++)
        c.regions[i] = (uint16_t)(i & 1);
    cluster_epoch(&c, 1, 0, 0, (1u << s->n) - 1, ~0u, NULL, 0);
    submit(kind, algorithm, 0);
    cluster_run(&c, 3 * SECOND);
    check_results(kind);
    CHECK(relayed() > 0);
    for (uint32_t i = 0; i < s->n; i++)
        CHECK_EQ_INT(stats_of(i).ops_pending, 0);
    cluster_close(&c);
}

TEST(every_op_over_every_shape)
{
    for (size_t s = 0; s < SHAPES; s++)
        for (pccl_kind kind = PCCL_ALL_REDUCE; kind < PCCL_KIND_COUNT; kind++) {
            int last = kind == PCCL_ALL_REDUCE ? PCCL_ALGORITHM_TWO_LEVEL
                       : kind == PCCL_BROADCAST ? PCCL_ALGORITHM_MESH : PCCL_ALGORITHM_AUTO;
            for (int algorithm = PCCL_ALGORITHM_AUTO; algorithm <= last; algorithm++)
                run_shape(&shapes[s], kind, (pccl_algorithm)algorithm, algorithm ? "sim" : "faulty+sim");
        }
}

/* Nobody can dial them: they dial who can be dialled, and of a detour the relay, or it asks them to. Ids say otherwise. */
static const struct { const char *name; struct shape shape; uint32_t closed; } hidden[] = {
    {"one of four", {.n = 4}, 1u << 3},
    {"both ends of a detour", {.n = 3, .detour_count = 1, .detours = {{0, 2, 1, 1}}}, 1u << 0 | 1u << 2},
    {"the relay", {.n = 3, .detour_count = 1, .detours = {{0, 2, 1, 1}}}, 1u << 1},
    {"the relay, and the other end", {.n = 4, .detour_count = 2, .detours = {{0, 2, 3, 3}, {1, 2, 3, 3}}}, 1u << 2},
    {"all but the middle of a star", {.n = 4, .detour_count = 3, .detours = {{0, 1, 2, 2}, {0, 3, 2, 2}, {1, 3, 2, 2}}}, 11},
    {"every second of a chain", {.n = 4, .detour_count = 3, .detours = {{0, 2, 1, 1}, {1, 3, 2, 2}, {0, 3, 1, 2}}}, 1u << 1 | 1u << 3},
    {"the others of a chain", {.n = 4, .detour_count = 3, .detours = {{0, 2, 1, 1}, {1, 3, 2, 2}, {0, 3, 1, 2}}}, 1u << 0 | 1u << 2},
};
enum { HIDDEN = sizeof hidden / sizeof hidden[0] };

static void open_hidden(size_t k, uint64_t seed, const char *transport)
{
    open_shape(&hidden[k].shape, seed, transport);
    for (uint32_t i = 0; i < c.n; i++)
        if (hidden[k].closed & 1u << i)
            cluster_close_node(&c, i);
    for (uint32_t i = 0; i < hidden[k].shape.detour_count; i++)
        cluster_cut(&c, hidden[k].shape.detours[i].a, hidden[k].shape.detours[i].b);
}

TEST(peers_that_nobody_can_dial)
{
    for (size_t k = 0; k < HIDDEN; k++)
        for (pccl_kind kind = PCCL_ALL_REDUCE; kind < PCCL_KIND_COUNT; kind++) {
            open_hidden(k, (uint64_t)kind, k & 1 ? "sim" : "faulty+sim");
            cluster_epoch(&c, 1, 0, 0, (1u << c.n) - 1, ~0u, NULL, 0);
            submit(kind, PCCL_ALGORITHM_AUTO, 0);
            cluster_run(&c, 3 * SECOND);
            check_results(kind);
            CHECK((relayed() > 0) == (hidden[k].shape.detour_count > 0));
            cluster_close(&c);
        }
}

/* Calls are lost with the streams that carry them, and made again. */
TEST(peers_that_nobody_can_dial_lose_streams)
{
    for (uint32_t round = 0; round < 40; round++) {
        open_hidden(round % HIDDEN, round, "sim");
        cluster_epoch(&c, 1, 0, 0, (1u << c.n) - 1, ~0u, NULL, 0);
        cluster_run(&c, round % 3 * SECOND / 100);
        submit(PCCL_ALL_REDUCE, round & 1 ? PCCL_ALGORITHM_MESH : PCCL_ALGORITHM_RING, 0);
        for (uint32_t k = 0; k < 12; k++) {
            cluster_run(&c, SECOND / 700);
            (void)pccl_sim_reset(c.sim, k % c.n, (k + 1) % c.n, k * 7 + round);
        }
        cluster_run(&c, 12 * SECOND);
        check_results(PCCL_ALL_REDUCE);
        cluster_close(&c);
    }
}

/* The first epoch has the wrong side dial: the next one turns it round, and nothing of what waits is lost. */
TEST(who_dials_is_turned_round)
{
    for (uint32_t round = 0; round < 12; round++) {
        open_shape(&(struct shape){.n = 3}, round, "sim");
        cluster_close_node(&c, 1 + round % 2);
        memset(c.closed, 0, sizeof c.closed); /* nobody knows yet */
        cluster_epoch(&c, 1, 0, 0, 7, ~0u, NULL, 0);
        submit(PCCL_ALL_REDUCE, PCCL_ALGORITHM_RING, 0);
        cluster_run(&c, (1 + round) * SECOND / 2);
        CHECK(!cluster_event(&c, 0, PCCL_EVENT_OP, 1));
        c.closed[1 + round % 2] = 1;
        for (uint32_t i = 0; i < 3; i++)
            CHECK(pccl_engine_freeze(c.engines[i], 1) == PCCL_OK);
        cluster_run(&c, SECOND / 10);
        for (uint32_t i = 0; i < 3; i++) { /* some hear of it later than others */
            cluster_epoch(&c, 2, 1, 0, 7, 1u << (i + round) % 3, NULL, 0);
            cluster_run(&c, SECOND / 50);
        }
        cluster_run(&c, SECOND / 2);
        check_results(PCCL_ALL_REDUCE);
        cluster_close(&c);
    }
}

/* Streams to and from relays break all the time; each frame still counts once. */
TEST(lost_streams_of_a_detour_lose_nothing)
{
    for (uint32_t round = 0; round < 30; round++) {
        const struct shape *s = &shapes[round % SHAPES];
        open_shape(s, round, "sim");
        cluster_epoch(&c, 1, 0, 0, (1u << s->n) - 1, ~0u, NULL, 0);
        cluster_run(&c, round % 3 * SECOND / 100);
        submit(PCCL_ALL_REDUCE, round & 1 ? PCCL_ALGORITHM_MESH : PCCL_ALGORITHM_RING, 0);
        for (uint32_t k = 0; k < 12; k++) {
            cluster_run(&c, SECOND / 700);
            (void)pccl_sim_reset(c.sim, k % s->n, (k + 1) % s->n, k * 7 + round);
        }
        cluster_run(&c, 5 * SECOND);
        check_results(PCCL_ALL_REDUCE);
        cluster_close(&c);
    }
}

/* A growth brings the link back: ops of the old epoch end over the detour, those of the new one do without it, and it is closed. */
TEST(a_detour_ends_with_its_epoch)
{
    for (uint32_t round = 0; round < 10; round++) {
        open_shape(&shapes[round % 3], round, "sim");
        uint32_t all = (1u << c.n) - 1;
        cluster_epoch(&c, 1, 0, 0, all, ~0u, NULL, 0);
        cluster_run(&c, SECOND);
        submit(PCCL_ALL_REDUCE, PCCL_ALGORITHM_MESH, 0);
        cluster_run(&c, round * SECOND / 2000);
        pccl_sim_path whole = {.delay_ns = 1000000, .jitter_ns = 500000};
        for (uint32_t a = 0; a < c.n; a++)
            for (uint32_t b = 0; b < c.n; b++)
                CHECK(pccl_sim_set_path(c.sim, a, b, &whole) == PCCL_OK);
        memset(c.via, 0, sizeof c.via);
        cluster_epoch(&c, 2, 0, 1, all, ~0u, NULL, 0);
        for (uint32_t i = 0; i < c.n; i++)
            CHECK(pccl_engine_advance(c.engines[i], 1) == PCCL_OK);
        cluster_run(&c, 8 * SECOND);
        check_results(PCCL_ALL_REDUCE);
        uint64_t before = relayed();
        for (uint32_t i = 0; i < c.n; i++)
            c.event_count[i] = 0;
        submit(PCCL_ALL_GATHER, PCCL_ALGORITHM_AUTO, 1);
        cluster_run(&c, 5 * SECOND);
        check_results(PCCL_ALL_GATHER);
        CHECK_EQ_INT(relayed(), before);
        cluster_close(&c);
    }
}

/* The relay's neighbour takes its time: what waits lies at the sender, not in the relay. */
TEST(a_relay_holds_little)
{
    float *data = calloc(2 * LONG_COUNT, sizeof *data);
    open_shape(&shapes[0], 1, "sim");
    pccl_sim_path slow = {.delay_ns = 1000000, .bytes_per_s = 1 << 20};
    CHECK(pccl_sim_set_path(c.sim, 1, 2, &slow) == PCCL_OK);
    c.segment_bytes = 64 << 10;
    c.streams = 1;
    cluster_epoch(&c, 1, 0, 0, 7, ~0u, NULL, 0);
    for (uint32_t i = 0; i < LONG_COUNT; i++)
        data[i] = (float)i;
    for (uint32_t i = 0; i < 3; i += 2) {
        pccl_op_request r = {.kind = PCCL_SEND_RECV, .dtype = PCCL_FLOAT32, .count = LONG_COUNT, .in = data,
                             .out = data + LONG_COUNT, .root = node_id(0), .target = node_id(2), .token = 1};
        cluster_submit(&c, i, &r);
    }
    uint64_t behind_max = 0;
    for (uint32_t k = 0; k < 40; k++) {
        cluster_run(&c, SECOND / 20);
        uint64_t sent = stats_of(0).sent_bytes, passed = stats_of(1).relayed_bytes;
        behind_max = sent > passed && sent - passed > behind_max ? sent - passed : behind_max;
    }
    /* 256 KiB on their way and 1 MiB unread is what a simulated stream takes. */
    CHECK(behind_max > (64 << 10) && behind_max <= (1280 + 64 + 64) << 10);
    cluster_run(&c, 10 * SECOND);
    const pccl_event *e = cluster_event(&c, 2, PCCL_EVENT_OP, 1);
    CHECK(e && e->status == PCCL_OK && memcmp(data, data + LONG_COUNT, LONG_COUNT * sizeof *data) == 0);
    cluster_close(&c);
    free(data);
}

/* Nobody learns from a detour that the link is back, nor that it is gone: LINK_UP and LINK_DOWN speak of the link alone. */
TEST(events_speak_of_the_link)
{
    open_shape(&shapes[0], 3, "sim");
    cluster_epoch(&c, 1, 0, 0, 7, ~0u, NULL, 0);
    submit(PCCL_BARRIER, PCCL_ALGORITHM_AUTO, 0);
    cluster_run(&c, SECOND);
    check_results(PCCL_BARRIER);
    for (uint32_t k = 0; k < c.event_count[0]; k++)
        CHECK(c.events[0][k].kind != PCCL_EVENT_LINK_UP || memcmp(&c.events[0][k].peer, &everybody[2], sizeof everybody[2]) != 0);
    CHECK_EQ_INT(stats_of(0).links, 1);
    pccl_link_stats links[CLUSTER_NODES_MAX];
    CHECK_EQ_INT(pccl_engine_links(c.engines[0], links, CLUSTER_NODES_MAX), 2);
    cluster_close(&c);
}

static int installs(const pccl_member *members, uint32_t count)
{
    pccl_epoch config = {.size = sizeof config, .epoch = 1, .member_count = count, .members = members, .streams = 1,
                         .segment_bytes = 64};
    return pccl_engine_configure(c.engines[0], &config) == PCCL_OK;
}

TEST(detours_that_are_none_are_refused)
{
    open_shape(&shapes[0], 1, "sim");
    pccl_member members[4] = {{.id = node_id(0)}, {.id = node_id(1)}, {.id = node_id(2)}, {.id = node_id(3)}};
    static const struct { uint16_t via[4]; int fine; } cases[] = {
        {{0, 0, 2, 0}, 1}, {{0, 0, 2, 2}, 1}, {{0, 0, 3, 0}, 0}, {{0, 0, 1, 0}, 0}, {{2, 0, 0, 0}, 0},
        {{0, 0, 5, 0}, 0}, {{0, 0, 4, 2}, 0}, {{0, 3, 2, 0}, 0},
    };
    for (size_t k = sizeof cases / sizeof cases[0]; k-- > 0;) {
        for (uint32_t i = 0; i < 4; i++)
            members[i].via = cases[k].via[i];
        if (!cases[k].fine)
            CHECK(!installs(members, 4));
    }
    members[2].via = 2;
    members[3].via = members[1].via = members[0].via = 0;
    CHECK(installs(members, 4));
    cluster_close(&c);
}

TEST_MAIN("detours")
