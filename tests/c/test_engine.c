/* test_engine.c - engines that reduce together over the simulated network: every algorithm, loss of streams, freeze and verdicts. */
#include "cluster.h"

static const pccl_algorithm algorithms[] = {PCCL_ALGORITHM_RING, PCCL_ALGORITHM_MESH, PCCL_ALGORITHM_ONE_ROUND};
enum { ALGORITHMS = sizeof algorithms / sizeof algorithms[0] };

static struct cluster c;
static float in[CLUSTER_NODES_MAX][8192], out[CLUSTER_NODES_MAX][8192 * CLUSTER_NODES_MAX];

static void fill(uint64_t count)
{
    for (uint32_t i = 0; i < CLUSTER_NODES_MAX; i++)
        for (uint64_t k = 0; k < count; k++)
            in[i][k] = (float)((i + 1) * 1000 + k % 97);
    memset(out, 0, sizeof out);
}

static float sum_at(uint32_t mask, uint64_t k)
{
    float sum = 0;
    for (uint32_t i = 0; i < CLUSTER_NODES_MAX; i++)
        if (mask & 1u << i)
            sum += (float)((i + 1) * 1000 + k % 97);
    return sum;
}

static pccl_op_request all_reduce(uint32_t node, uint64_t count, uint32_t seq, pccl_algorithm algorithm, int in_place)
{
    return (pccl_op_request){
        .kind = PCCL_ALL_REDUCE, .dtype = PCCL_FLOAT32, .redop = PCCL_SUM, .algorithm = (uint8_t)algorithm,
        .name = {.seq = seq}, .count = count, .in = in_place ? out[node] : in[node], .out = out[node], .token = seq + 1,
    };
}

static void check_sums(uint32_t mask, uint64_t count, uint64_t token)
{
    for (uint32_t i = 0; i < c.n; i++) {
        if (!(mask & 1u << i))
            continue;
        const pccl_event *e = cluster_event(&c, i, PCCL_EVENT_OP, token);
        CHECK(e != NULL);
        if (!e)
            continue;
        CHECK_EQ_INT(e->status, PCCL_OK);
        for (uint64_t k = 0; k < count; k++)
            if (out[i][k] != sum_at(mask, k)) {
                CHECK_EQ_INT((int)out[i][k], (int)sum_at(mask, k));
                break;
            }
    }
}

static void reduce_everywhere(uint32_t n, uint64_t count, pccl_algorithm algorithm, const char *transport)
{
    cluster_open(&c, n, n * 1000 + count, transport, 0);
    fill(count);
    cluster_epoch(&c, 1, 0, 0, (1u << n) - 1, ~0u, NULL, 0);
    for (uint32_t i = 0; i < n; i++) {
        pccl_op_request r = all_reduce(i, count, 0, algorithm, 0);
        cluster_submit(&c, i, &r);
    }
    cluster_run(&c, 10 * SECOND);
    check_sums((1u << n) - 1, count, 1);
    cluster_close(&c);
}

TEST(all_reduce_of_every_shape)
{
    static const uint64_t counts[] = {0, 1, 3, 5, 97, 256, 1000, 4099};
    for (uint32_t n = 1; n <= 5; n++)
        for (size_t k = 0; k < sizeof counts / sizeof counts[0]; k++) {
            reduce_everywhere(n, counts[k], PCCL_ALGORITHM_RING, "sim");
            reduce_everywhere(n, counts[k], PCCL_ALGORITHM_MESH, "sim");
            reduce_everywhere(n, counts[k], PCCL_ALGORITHM_ONE_ROUND, "sim");
            reduce_everywhere(n, counts[k], PCCL_ALGORITHM_ONE_ROUND, "faulty+sim");
            reduce_everywhere(n, counts[k], PCCL_ALGORITHM_AUTO, "faulty+sim");
        }
}

static void reduce_by_plan(uint32_t n, uint64_t count, pccl_algorithm large, const uint16_t *regions, const uint32_t *weights,
                           int in_place)
{
    cluster_open(&c, n, n + count, "sim", 0);
    fill(count);
    for (uint32_t i = 0; i < n; i++) {
        c.regions[i] = regions ? regions[i] : 0;
        c.weights[i] = weights ? weights[i] : 0;
        memcpy(out[i], in[i], count * sizeof(float));
    }
    c.large_algorithm = large;
    c.mesh_bytes_max = 64;
    cluster_epoch(&c, 1, 0, 0, (1u << n) - 1, ~0u, NULL, 0);
    for (uint32_t i = 0; i < n; i++) {
        pccl_op_request r = all_reduce(i, count, 0, PCCL_ALGORITHM_AUTO, in_place);
        cluster_submit(&c, i, &r);
    }
    cluster_run(&c, 10 * SECOND);
    check_sums((1u << n) - 1, count, 1);
    pccl_stats stats;
    pccl_engine_stats(c.engines[0], &stats);
    CHECK_EQ_INT(stats.ops_pending, 0);
    cluster_close(&c);
}

TEST(two_levels_of_every_shape)
{
    static const uint16_t regions[][6] = {{0, 0, 0, 1, 1, 1}, {0, 1, 0, 1, 0, 1}, {0, 1, 2, 3, 4, 5}, {7, 7, 7, 7, 7, 1},
                                          {2, 2, 1, 1, 0, 0}, {3, 3, 3, 3, 3, 3}};
    static const uint64_t counts[] = {1, 17, 97, 1000, 4099};
    for (size_t r = 0; r < sizeof regions / sizeof regions[0]; r++)
        for (uint32_t n = 2; n <= 6; n++)
            for (size_t k = 0; k < sizeof counts / sizeof counts[0]; k++)
                reduce_by_plan(n, counts[k], PCCL_ALGORITHM_TWO_LEVEL, regions[r], NULL, (int)k & 1);
}

TEST(unequal_shares_of_a_mesh)
{
    static const uint32_t weights[][5] = {{1, 2, 3, 4, 5}, {0, 1, 0, 1, 1}, {1000000, 1, 1, 1, 1}, {0, 0, 7, 0, 0}};
    for (size_t w = 0; w < sizeof weights / sizeof weights[0]; w++)
        for (uint32_t n = 3; n <= 5; n++) {
            reduce_by_plan(n, 4099, PCCL_ALGORITHM_MESH, NULL, weights[w], 0);
            reduce_by_plan(n, 33, PCCL_ALGORITHM_MESH, NULL, weights[w], 1);
        }
}

/* Encoded once by each peer, once by the owner: all hold the same bytes, near the sum, and fewer bytes have travelled. */
TEST(codecs_give_everybody_the_same_bytes)
{
    static const double most[PCCL_CODEC_COUNT] = {0, 0.01, 0.002, 0.02, 0.4}, bytes[PCCL_CODEC_COUNT] = {1, 0.5, 0.5, 0.27, 0.14};
    for (uint8_t codec = PCCL_CODEC_BF16; codec < PCCL_CODEC_COUNT; codec++)
        for (uint32_t n = 2; n <= 4; n++) {
            cluster_open(&c, n, codec, "sim", 0);
            fill(8192);
            cluster_epoch(&c, 1, 0, 0, (1u << n) - 1, ~0u, NULL, 0);
            for (uint32_t i = 0; i < n; i++) {
                pccl_op_request r = all_reduce(i, 8192, 0, PCCL_ALGORITHM_AUTO, 0);
                r.codec = codec;
                cluster_submit(&c, i, &r);
            }
            cluster_run(&c, 10 * SECOND);
            for (uint32_t i = 0; i < n; i++) {
                const pccl_event *e = cluster_event(&c, i, PCCL_EVENT_OP, 1);
                CHECK(e && e->status == PCCL_OK && memcmp(out[i], out[0], 8192 * sizeof(float)) == 0);
                CHECK(e && (double)e->sent_bytes <= bytes[codec] * 1.03 * 8192 * 4 * 2 * (n - 1) / n);
            }
            for (uint32_t k = 0; k < 8192; k++) {
                double exact = sum_at((1u << n) - 1, k), error = exact - out[0][k];
                if (error > most[codec] * exact || error < -most[codec] * exact) {
                    CHECK_EQ_INT((int)out[0][k], (int)exact);
                    break;
                }
            }
            cluster_close(&c);
        }
}

/* A peer that calls late finds what was sent to it parked, and the window keeps the rest away. */
TEST(late_caller)
{
    for (size_t a = 0; a < ALGORITHMS; a++) {
        cluster_open(&c, 4, 7, "sim", 0);
        fill(8192);
        cluster_epoch(&c, 1, 0, 0, 15, ~0u, NULL, 0);
        for (uint32_t i = 0; i < 4; i++) {
            if (i)
                cluster_run(&c, SECOND);
            for (uint32_t seq = 0; seq < 3; seq++) {
                pccl_op_request r = all_reduce(i, 8192, seq, algorithms[a], 0);
                r.out = (uint8_t *)out[i] + (size_t)seq * 8192 * 4;
                cluster_submit(&c, i, &r);
            }
        }
        cluster_run(&c, 5 * SECOND);
        check_sums(15, 8192, 1);
        check_sums(15, 8192, 3);
        pccl_stats stats;
        pccl_engine_stats(c.engines[1], &stats);
        CHECK_EQ_INT(stats.parked_bytes, 0);
        CHECK_EQ_INT(stats.ops_pending, 0);
        cluster_close(&c);
    }
}

TEST(lost_streams_lose_nothing)
{
    for (size_t a = 0; a < ALGORITHMS; a++)
        for (uint32_t round = 0; round < 20; round++) {
            cluster_open(&c, 3, round, "sim", 0);
            fill(8192);
            for (uint32_t i = 0; i < 3; i++)
                memcpy(out[i], in[i], 8192 * sizeof(float));
            cluster_epoch(&c, 1, 0, 0, 7, ~0u, NULL, 0);
            cluster_run(&c, SECOND);
            for (uint32_t i = 0; i < 3; i++) {
                pccl_op_request r = all_reduce(i, 8192, 0, algorithms[a], 1);
                cluster_submit(&c, i, &r);
            }
            for (uint32_t k = 0; k < 6; k++) {
                cluster_run(&c, SECOND / 1500);
                (void)pccl_sim_reset(c.sim, k % 3, (k + 1) % 3, k + round);
            }
            cluster_run(&c, 10 * SECOND);
            check_sums(7, 8192, 1);
            cluster_close(&c);
        }
}

/* One of four dies in the middle; the others are frozen, told that nothing is committed, and finish among themselves. */
TEST(survivors_retry_from_their_inputs)
{
    for (size_t a = 0; a < ALGORITHMS; a++)
        for (uint32_t round = 0; round < 12; round++) {
            cluster_open(&c, 4, round, "sim", 0);
            fill(8192);
            for (uint32_t i = 0; i < 4; i++)
                memcpy(out[i], in[i], 8192 * sizeof(float));
            cluster_epoch(&c, 1, 0, 0, 15, ~0u, NULL, 0);
            cluster_run(&c, SECOND);
            for (uint32_t i = 0; i < 4; i++) {
                pccl_op_request r = all_reduce(i, 8192, 0, algorithms[a], 1);
                cluster_submit(&c, i, &r);
            }
            cluster_run(&c, round * SECOND / 1000);
            int early = 0;
            for (uint32_t i = 0; i < 4; i++)
                early |= cluster_event(&c, i, PCCL_EVENT_OP, 1) != NULL;
            c.stopped[3] = 1;
            CHECK(pccl_sim_crash(c.sim, 3) == PCCL_OK);
            for (uint32_t i = 0; i < 3; i++)
                CHECK(pccl_engine_freeze(c.engines[i], 1) == PCCL_OK);
            cluster_run(&c, SECOND / 10);
            if (!early) {
                cluster_epoch(&c, 2, 1, 0, 7, ~0u, NULL, 0);
                cluster_run(&c, 10 * SECOND);
                check_sums(7, 8192, 1);
                CHECK_EQ_INT(cluster_event(&c, 0, PCCL_EVENT_OP, 1)->retries, 1);
            }
            cluster_close(&c);
        }
}

TEST(mismatch_is_reported_on_both_sides)
{
    cluster_open(&c, 2, 3, "sim", 0);
    fill(100);
    cluster_epoch(&c, 1, 0, 0, 3, ~0u, NULL, 0);
    for (uint32_t i = 0; i < 2; i++) {
        pccl_op_request r = all_reduce(i, 100 + i, 0, PCCL_ALGORITHM_AUTO, 0);
        cluster_submit(&c, i, &r);
    }
    cluster_run(&c, SECOND);
    for (uint32_t i = 0; i < 2; i++) {
        const pccl_event *e = cluster_event(&c, i, PCCL_EVENT_MISMATCH, 1);
        CHECK(e != NULL);
        char text[96];
        if (e) {
            pccl_desc_text(e->desc, text, sizeof text);
            CHECK_EQ_STR(text, i ? "all_reduce sum float32 x 100" : "all_reduce sum float32 x 101");
        }
        CHECK(pccl_engine_fail_all(c.engines[i], PCCL_EMISMATCH) == PCCL_OK);
    }
    cluster_run(&c, SECOND);
    cluster_close(&c);
}

/* A verdict on an op that this peer calls only later ends it at once. */
TEST(verdict_before_the_call)
{
    cluster_open(&c, 2, 3, "sim", 0);
    fill(10);
    cluster_epoch(&c, 1, 0, 0, 3, ~0u, NULL, 0);
    cluster_run(&c, SECOND);
    pccl_verdict verdict = {.name = {.seq = 0}, .status = PCCL_ETIMEOUT};
    for (uint32_t i = 0; i < 2; i++)
        CHECK(pccl_engine_freeze(c.engines[i], 1) == PCCL_OK);
    cluster_epoch(&c, 2, 1, 0, 3, ~0u, &verdict, 1);
    pccl_op_request r = all_reduce(0, 10, 0, PCCL_ALGORITHM_AUTO, 0);
    cluster_submit(&c, 0, &r);
    cluster_run(&c, SECOND);
    CHECK(cluster_event(&c, 0, PCCL_EVENT_OP, 1) != NULL);
    CHECK_EQ_INT(cluster_event(&c, 0, PCCL_EVENT_OP, 1)->status, PCCL_ETIMEOUT);
    cluster_close(&c);
}

TEST(exchanges)
{
    for (uint32_t n = 1; n <= 4; n++)
        for (int kind = PCCL_ALL_GATHER; kind <= PCCL_BARRIER; kind++) {
            if (kind == PCCL_SEND_RECV && n < 2)
                continue;
            cluster_open(&c, n, 11, "sim", 0);
            fill(2000);
            cluster_epoch(&c, 1, 0, 0, (1u << n) - 1, ~0u, NULL, 0);
            pccl_peer_id origin[CLUSTER_NODES_MAX];
            for (uint32_t i = 0; i < n; i++)
                origin[i] = node_id(i);
            uint64_t count = kind == PCCL_BARRIER ? 0 : 2000;
            for (uint32_t i = 0; i < n; i++) {
                pccl_op_request r = {
                    .kind = (uint8_t)kind, .dtype = PCCL_FLOAT32, .count = count, .in = in[i], .out = out[i], .token = 1,
                    .root = node_id(n - 1), .target = node_id(0), .origin = origin, .origin_count = n,
                };
                if (kind == PCCL_ALL_TO_ALL)
                    r.count = count / 4;
                if (kind != PCCL_SEND_RECV || i == 0 || i == n - 1)
                    cluster_submit(&c, i, &r);
            }
            cluster_run(&c, 5 * SECOND);
            for (uint32_t i = 0; i < n; i++) {
                if (kind == PCCL_SEND_RECV && i != 0 && i != n - 1)
                    continue;
                CHECK(cluster_event(&c, i, PCCL_EVENT_OP, 1) && cluster_event(&c, i, PCCL_EVENT_OP, 1)->status == PCCL_OK);
                for (uint32_t j = 0; kind == PCCL_ALL_GATHER && j < n; j++)
                    CHECK(memcmp(out[i] + j * count, in[j], count * 4) == 0);
                for (uint32_t j = 0; kind == PCCL_ALL_TO_ALL && j < n; j++)
                    CHECK(memcmp(out[i] + j * count / 4, in[j] + i * count / 4, count) == 0);
                if ((kind == PCCL_BROADCAST && i != n - 1) || (kind == PCCL_SEND_RECV && i == 0))
                    CHECK(memcmp(out[i], in[n - 1], count * 4) == 0);
            }
            cluster_close(&c);
        }
}

static void gather(uint32_t node, const void *row, const pccl_peer_id *origin, uint32_t origin_count)
{
    pccl_op_request r = {.kind = PCCL_ALL_GATHER, .dtype = PCCL_FLOAT32, .count = 2000, .in = row, .out = out[node],
                         .token = 1, .origin = origin, .origin_count = origin_count};
    cluster_submit(&c, node, &r);
}

/* Each peer names its rows as it likes; an input may be its own row of the result. */
TEST(rows_of_an_all_gather_are_where_the_caller_wants_them)
{
    cluster_open(&c, 3, 11, "sim", 0);
    fill(2000);
    cluster_epoch(&c, 1, 0, 0, 7, ~0u, NULL, 0);
    for (uint32_t i = 0; i < 3; i++) {
        pccl_peer_id origin[3];
        for (uint32_t row = 0; row < 3; row++)
            origin[row] = node_id((row + i) % 3);
        memcpy(out[i], in[i], sizeof *in);
        gather(i, out[i], origin, 3);
    }
    cluster_run(&c, 5 * SECOND);
    for (uint32_t i = 0; i < 3; i++) {
        CHECK(cluster_event(&c, i, PCCL_EVENT_OP, 1) && cluster_event(&c, i, PCCL_EVENT_OP, 1)->status == PCCL_OK);
        for (uint32_t row = 0; row < 3; row++)
            CHECK(memcmp(out[i] + row * 2000, in[(row + i) % 3], 8000) == 0);
    }
    cluster_close(&c);
}

TEST(an_all_gather_that_names_no_row_for_a_participant_writes_nothing)
{
    cluster_open(&c, 3, 11, "sim", 0);
    fill(2000);
    cluster_epoch(&c, 1, 0, 0, 7, ~0u, NULL, 0);
    const pccl_peer_id origin[] = {node_id(0), node_id(1)};
    for (uint32_t i = 0; i < 3; i++)
        gather(i, in[i], origin, 2);
    cluster_run(&c, 5 * SECOND);
    for (uint32_t k = 4000; k < 6000; k++)
        CHECK(out[0][k] == 0 && out[1][k] == 0);
    for (uint32_t i = 0; i < 3; i++)
        CHECK(!cluster_event(&c, i, PCCL_EVENT_OP, 1) || cluster_event(&c, i, PCCL_EVENT_OP, 1)->status != PCCL_OK);
    cluster_close(&c);
}

TEST(round_trips_are_those_of_the_network_however_busy_it_is)
{
    enum { COUNT = 200000 };
    static float much[2][COUNT], result[2][COUNT];
    cluster_open(&c, 2, 5, "sim", 0);
    pccl_sim_path path = {.delay_ns = SECOND / 25, .bytes_per_s = 200000};
    CHECK(pccl_sim_set_path(c.sim, 0, 1, &path) == PCCL_OK && pccl_sim_set_path(c.sim, 1, 0, &path) == PCCL_OK);
    cluster_epoch(&c, 1, 0, 0, 3, 3, NULL, 0);
    for (uint32_t i = 0; i < 2; i++) {
        pccl_op_request r = {.kind = PCCL_ALL_REDUCE, .dtype = PCCL_FLOAT32, .count = COUNT, .in = much[i],
                             .out = result[i], .token = 1};
        cluster_submit(&c, i, &r);
    }
    uint32_t known = 0;
    for (uint32_t turn = 0; turn < 100; turn++) {
        pccl_link_stats link;
        cluster_run(&c, SECOND / 20);
        if (pccl_engine_links(c.engines[0], &link, 1) == 1 && link.rtt_us) {
            CHECK_EQ_INT(link.rtt_us, 80000);
            known++;
        }
    }
    CHECK(known > 50 && cluster_event(&c, 0, PCCL_EVENT_OP, 1) && cluster_event(&c, 1, PCCL_EVENT_OP, 1));
    cluster_close(&c);
}

static int said(uint32_t node, pccl_cause cause)
{
    for (uint32_t i = 0; i < c.event_count[node]; i++)
        if (c.events[node][i].kind == PCCL_EVENT_LINK_DOWN && c.events[node][i].cause == (int32_t)cause)
            return 1;
    return 0;
}

/* Node 0 dials node 1. The one that is left, whoever it is, finds out whether the other still lives. */
TEST(a_refused_dial_is_known_to_both_sides)
{
    for (uint32_t victim = 0; victim < 2; victim++) {
        cluster_open(&c, 2, victim, "sim", 0);
        cluster_epoch(&c, 1, 0, 0, 3, ~0u, NULL, 0);
        cluster_run(&c, SECOND / 10);
        CHECK(cluster_event(&c, 1 - victim, PCCL_EVENT_LINK_UP, 0) != NULL);
        CHECK(pccl_sim_crash(c.sim, victim) == PCCL_OK);
        c.stopped[victim] = 1;
        cluster_run(&c, SECOND / 100);
        CHECK(said(1 - victim, PCCL_CAUSE_RESET) && said(1 - victim, PCCL_CAUSE_REFUSED));
        cluster_close(&c);
    }
}

TEST(a_live_peer_refuses_nothing)
{
    cluster_open(&c, 2, 7, "sim", 0);
    cluster_epoch(&c, 1, 0, 0, 3, ~0u, NULL, 0);
    cluster_run(&c, SECOND / 10);
    for (uint32_t k = 0; k < 20; k++) {
        while (pccl_sim_reset(c.sim, 0, 1, 0) == PCCL_OK)
            ;
        cluster_run(&c, SECOND / 20);
    }
    for (uint32_t node = 0; node < 2; node++) {
        CHECK(said(node, PCCL_CAUSE_RESET) && !said(node, PCCL_CAUSE_REFUSED));
        pccl_stats stats;
        pccl_engine_stats(c.engines[node], &stats);
        CHECK_EQ_INT(stats.streams, c.streams);
    }
    cluster_close(&c);
}

/* Who waits to be dialled goes on asking while it is not, and hears of the end when it comes. */
TEST(a_peer_that_dies_after_its_link_is_found_out)
{
    cluster_open(&c, 2, 8, "sim", 0);
    cluster_epoch(&c, 1, 0, 0, 3, ~0u, NULL, 0);
    cluster_run(&c, SECOND / 10);
    c.stopped[0] = 1;
    while (pccl_sim_reset(c.sim, 0, 1, 0) == PCCL_OK)
        ;
    cluster_run(&c, SECOND);
    CHECK(said(1, PCCL_CAUSE_RESET) && !said(1, PCCL_CAUSE_REFUSED));
    CHECK(pccl_sim_crash(c.sim, 0) == PCCL_OK);
    cluster_run(&c, 5 * SECOND);
    CHECK(said(1, PCCL_CAUSE_REFUSED));
    cluster_close(&c);
}

/* An epoch in which the op's own peer does not take part yet, alone or with another, or twice: such an op ends. */
TEST(an_op_in_which_its_caller_has_no_part_ends)
{
    for (uint32_t others = 0; others < 3; others++) {
        cluster_open(&c, 1, 9, "sim", 0);
        pccl_member members[2] = {{.id = node_id(0), .since = others < 2 ? 5 : 0}, {.id = node_id(others < 2)}};
        pccl_epoch config = {.size = sizeof config, .epoch = 1, .member_count = others ? 2 : 1, .members = members,
                             .streams = 1, .segment_bytes = 1024};
        CHECK(pccl_engine_configure(c.engines[0], &config) == PCCL_OK);
        pccl_op_request r = all_reduce(0, 100, 0, PCCL_ALGORITHM_AUTO, 1);
        cluster_submit(&c, 0, &r);
        cluster_run(&c, SECOND);
        const pccl_event *e = cluster_event(&c, 0, PCCL_EVENT_OP, 1);
        CHECK(e && e->status == PCCL_EPROTO);
        cluster_close(&c);
    }
}

TEST_MAIN("engine")
