/* test_line.c - a line that long links share is told from links that are slow by themselves. */
#include "../../csrc/engine.h"
#include "cluster.h"

#define MBIT 125000ULL
#define WINDOW (SECOND / 4)

enum { LINKS = 3, BYTES = 4 << 20 };

struct view {
    uint64_t mbit[LINKS], best_mbit[LINKS], received_mbit;
    int idle;                  /* a bit each: not saturated */
};

static void take(struct line_meter *m, struct view v, uint32_t times)
{
    struct line_share shares[LINKS];
    for (uint32_t i = 0; i < LINKS; i++)
        shares[i] = (struct line_share){.sent_bytes = v.mbit[i] * MBIT / 4, .received_bytes = i ? 0 : v.received_mbit * MBIT / 4,
                                        .best_bytes_per_s = v.best_mbit[i] * MBIT, .saturated = !(v.idle >> i & 1)};
    for (uint32_t i = 0; i < times; i++)
        line_take(m, shares, LINKS, WINDOW);
}

/* A site of 121 Mbit/s. At the end of an op one link is alone. */
static const struct view thin = {.mbit = {45, 40, 36}, .best_mbit = {121, 80, 50}, .received_mbit = 90};

TEST(links_that_hold_each_other_back_share_a_line)
{
    struct line_meter m = {0};
    take(&m, thin, 3);
    CHECK_EQ_INT(m.up_bytes_per_s, 0);
    take(&m, thin, 1);
    CHECK_EQ_INT(m.up_bytes_per_s, 121 * MBIT);
    CHECK_EQ_INT(m.down_bytes_per_s, 121 * MBIT);
    take(&m, (struct view){.mbit = {121, 0, 0}, .best_mbit = {121, 80, 50}, .received_mbit = 140}, 20);
    take(&m, (struct view){.mbit = {61, 60, 0}, .best_mbit = {65, 65, 65}, .received_mbit = 500}, 6);
    CHECK_EQ_INT(m.up_bytes_per_s, 121 * MBIT);
    CHECK_EQ_INT(m.down_bytes_per_s, 140 * MBIT);    /* and not the few windows with more */
}

TEST(a_single_link_and_little_links_prove_nothing)
{
    struct line_meter m = {0};
    take(&m, (struct view){.mbit = {120, 0, 0}, .best_mbit = {240, 80, 50}}, 9);
    take(&m, (struct view){.mbit = {110, 6, 5}, .best_mbit = {120, 80, 50}}, 9);
    CHECK_EQ_INT(m.up_bytes_per_s, 0);
}

TEST(who_had_nothing_more_to_send_was_not_held_back)
{
    struct line_meter m = {0};
    struct view view = thin;
    view.idle = 2;
    take(&m, view, 9);
    CHECK_EQ_INT(m.up_bytes_per_s, 0);
}

TEST(links_that_carry_what_they_can_share_nothing)
{
    struct line_meter m = {0};
    take(&m, (struct view){.mbit = {450, 440, 460}, .best_mbit = {490, 480, 500}}, 9);
    CHECK_EQ_INT(m.up_bytes_per_s, 0);
}

/* Three links of 100 Mbit/s each. What came late was acknowledged at once; and now and then all stood still for a while. */
TEST(links_that_were_all_held_up_at_once_share_nothing)
{
    struct line_meter m = {0};
    for (uint32_t i = 0; i < 20; i++) {
        take(&m, (struct view){.mbit = {100, 99, 101}, .best_mbit = {140, 145, 135}}, 3);
        take(&m, (struct view){.mbit = {80, 85, 82}, .best_mbit = {140, 145, 135}}, 1);
        CHECK_EQ_INT(m.up_bytes_per_s, 0);
    }
}

/* A site of 500 Mbit/s whose third link is held back at the other end, and best while others have a pause. */
TEST(totals_that_depend_on_who_contends_are_no_line)
{
    struct line_meter m = {0};
    for (uint32_t i = 0; i < 20; i++) {
        take(&m, (struct view){.mbit = {47, 44, 247}, .best_mbit = {50, 121, 340}}, 3);
        CHECK_EQ_INT(m.up_bytes_per_s, 0);
        take(&m, (struct view){.mbit = {47, 44, 0}, .best_mbit = {50, 121, 340}}, 3);
    }
}

/* A site of 500 Mbit/s, whose second link ends at a site that others send to as well, and is sometimes alone there. */
TEST(a_total_that_falls_behind_what_went_out_lately_is_no_line)
{
    struct line_meter m = {0};
    take(&m, (struct view){.mbit = {48, 41, 350}, .best_mbit = {50, 50, 450}}, 3);
    take(&m, (struct view){.mbit = {48, 41, 0}, .best_mbit = {50, 121, 450}}, 9);
    CHECK_EQ_INT(m.up_bytes_per_s, 0);
    struct line_meter other = {0};
    take(&other, (struct view){.mbit = {48, 41, 0}, .best_mbit = {50, 121, 0}}, 9);
    CHECK_EQ_INT(other.up_bytes_per_s, 0);
}

TEST(a_line_that_has_become_faster_is_forgotten)
{
    struct line_meter m = {0};
    take(&m, thin, 30);
    CHECK_EQ_INT(m.up_bytes_per_s, 121 * MBIT);
    take(&m, (struct view){.mbit = {160, 160, 160}, .best_mbit = {170, 170, 170}}, 2);
    CHECK_EQ_INT(m.up_bytes_per_s, 0);
    CHECK_EQ_INT(m.down_bytes_per_s, 0);
}

TEST(a_known_line_outlives_some_pauses_and_bursts)
{
    struct line_meter m = {0};
    take(&m, thin, 30);
    take(&m, (struct view){.mbit = {40, 40, 0}, .best_mbit = {121, 80, 50}}, 8);
    take(&m, (struct view){.mbit = {170, 0, 0}, .best_mbit = {121, 80, 50}}, 3);
    CHECK_EQ_INT(m.up_bytes_per_s, 121 * MBIT);
    take(&m, (struct view){.mbit = {40, 40, 0}, .best_mbit = {121, 80, 50}}, 8);
    CHECK_EQ_INT(m.up_bytes_per_s, 0);
    struct line_meter other = {0};
    take(&other, (struct view){.mbit = {40, 40, 0}, .best_mbit = {121, 80, 50}}, 8);
    take(&other, thin, 12);
    CHECK_EQ_INT(other.up_bytes_per_s, 0);
}

TEST(a_line_that_has_become_slower_is_learned)
{
    struct line_meter m = {0};
    take(&m, thin, 30);
    take(&m, (struct view){.mbit = {20, 20, 20}, .best_mbit = {60, 40, 25}}, LINE_TOTALS + LINE_SAMPLES);
    CHECK_EQ_INT(m.up_bytes_per_s, 60 * MBIT);
}

TEST(what_went_over_a_line_is_known_without_the_line)
{
    struct line_meter m = {0};
    take(&m, (struct view){.mbit = {120, 0, 0}, .best_mbit = {120, 120, 120}, .received_mbit = 30}, 8);
    CHECK_EQ_INT(m.went_up_bytes_per_s, 120 * MBIT);
    take(&m, (struct view){.mbit = {120, 110, 130}, .best_mbit = {120, 120, 120}, .received_mbit = 350}, 16);
    take(&m, (struct view){.mbit = {900, 0, 0}, .best_mbit = {120, 120, 120}, .received_mbit = 900}, 2);
    CHECK_EQ_INT(m.up_bytes_per_s, 0);
    CHECK_EQ_INT(m.went_up_bytes_per_s, 360 * MBIT);    /* and not a burst */
    CHECK_EQ_INT(m.went_down_bytes_per_s, 350 * MBIT);
}

/* The real thing, where every path has a rate of its own. */
static uint8_t data[4][BYTES], result[4][BYTES];

static void reduce(struct cluster *c, uint32_t seq)
{
    for (uint32_t i = 0; i < c->n; i++) {
        pccl_op_request r = {.kind = PCCL_ALL_REDUCE, .dtype = PCCL_UINT8, .name = {.seq = seq}, .count = BYTES, .in = data[i],
                             .out = result[i], .token = seq + 1};
        cluster_submit(c, i, &r);
    }
    cluster_run(c, 5 * SECOND);
    CHECK(cluster_event(c, 0, PCCL_EVENT_OP, seq + 1) != NULL);
}

TEST(an_engine_looks_at_its_links_together)
{
    struct cluster c;
    cluster_open(&c, 4, 7, "sim", 0);
    for (uint32_t a = 0; a < 4; a++)
        for (uint32_t b = 0; b < 4; b++) {
            pccl_sim_path path = {.delay_ns = 20000000, .bytes_per_s = a == 0 && b == 1 ? 500000 : 1000000};
            CHECK(pccl_sim_set_path(c.sim, a, b, &path) == PCCL_OK);
        }
    c.segment_bytes = 16 << 10;
    c.mesh_bytes_max = 1ULL << 40;
    cluster_epoch(&c, 1, 0, 0, 15, 15, NULL, 0);
    for (uint32_t seq = 0; seq < 3; seq++)
        reduce(&c, seq);
    const struct line_meter *line = &c.engines[0]->line;
    CHECK(line->sent.count > 10 && line->received.count == line->sent.count);
    uint64_t most = 0;
    for (uint32_t i = 0; i < line->sent.count && i < LINE_TOTALS; i++)
        most = line->sent.totals[i] > most ? line->sent.totals[i] : most;
    CHECK(most > 2000000 && most < 3125000);    /* the sum of three paths, and a burst at most */
    pccl_stats stats = {.size = sizeof stats};
    pccl_engine_stats(c.engines[0], &stats);
    CHECK(stats.up_bytes_per_s == 0 && stats.down_bytes_per_s == 0);
    uint32_t windows = line->sent.count;
    cluster_run(&c, 5 * SECOND);
    CHECK(line->sent.count <= windows + 1);     /* pauses tell nothing */
    /* what was learned is told */
    take(&c.engines[0]->line, (struct view){.mbit = {45, 40, 36}, .best_mbit = {121, 80, 50}}, 30);
    cluster_run(&c, SECOND);
    pccl_engine_stats(c.engines[0], &stats);
    CHECK_EQ_INT(stats.up_bytes_per_s, 121 * MBIT);
    CHECK_EQ_INT(stats.down_bytes_per_s, 121 * MBIT);
    cluster_close(&c);
}

/* -- shares of a line ------------------------------------------------------------------------------------------------ */

/* Links of an engine on which segments of 1,000 bytes wait. */
struct waiting {
    pccl_engine engine;
    struct link links[LINKS];
    struct flow flows[LINKS];
    struct segment segment;
    struct sender senders[2];
};

static void wait_on(struct waiting *w, const uint32_t *counts)
{
    *w = (struct waiting){.segment.bytes = 1000, .engine.line.up_bytes_per_s = 100 * MBIT};
    for (uint32_t i = 0; i < LINKS; i++) {
        struct link *l = &w->links[i];
        struct flow *f = &w->flows[i];
        *l = (struct link){.engine = &w->engine, .open = 1, .rtt_us = 80000, .next = w->engine.links};
        w->engine.links = l;
        *f = (struct flow){.sender = &w->senders[0], .link = l, .segments = &w->segment, .count = counts[i], .cap = 1, .next = f, .prev = f};
        l->queues[0].flows = counts[i] ? f : NULL;
    }
}

TEST(who_has_less_to_send_leaves_the_line_to_the_others)
{
    static struct waiting w;
    wait_on(&w, (const uint32_t[]){100, 300, 600});
    CHECK_EQ_INT(line_share(&w.links[0]), 125 * MBIT / 10);
    CHECK(line_share(&w.links[1]) == UINT64_MAX);        /* nine tenths of an equal part */
    CHECK(line_share(&w.links[2]) == UINT64_MAX);
    wait_on(&w, (const uint32_t[]){0, 100, 300});
    CHECK(line_share(&w.links[0]) == UINT64_MAX);        /* has nothing that could wait */
    CHECK_EQ_INT(line_share(&w.links[1]), 125 * MBIT / 4);
}

TEST(only_links_of_one_line_and_segments_of_one_op_are_shared_out)
{
    static struct waiting w;
    const uint32_t counts[] = {100, 300, 600};
    wait_on(&w, counts);
    w.engine.line.up_bytes_per_s = 0;
    CHECK(line_share(&w.links[0]) == UINT64_MAX);        /* nobody knows of a line */
    wait_on(&w, counts);
    w.flows[2].sender = &w.senders[1];
    CHECK(line_share(&w.links[0]) == UINT64_MAX);        /* another op need not wait */
    wait_on(&w, counts);
    w.links[2].rtt_us = 100;                             /* is near, and not on the line */
    CHECK_EQ_INT(line_share(&w.links[0]), 125 * MBIT / 4);
    CHECK(line_share(&w.links[2]) == UINT64_MAX);
    wait_on(&w, counts);
    w.links[0].detour_epoch = 1;                         /* goes over others' links */
    CHECK(line_share(&w.links[0]) == UINT64_MAX);
}

TEST_MAIN("line")
