/* test_lanes.c - what a frozen engine says it has called, now and at earlier boundaries, against a plain table of it. */
#include <stdlib.h>
#include <string.h>

#include "include/pccl.h"
#include "limits.h"
#include "test.h"

enum { BOUNDARIES = 64, LANES = 6 };

static pccl_sim *sim;
static pccl_engine *engine;
static uint64_t now_ns;
static pccl_lane_state *report;
static uint32_t entries;

static void begin(void)
{
    pccl_config config = {.size = sizeof config, .transport = "sim", .listen = "sim:0"};
    config.self.bytes[0] = 1;
    CHECK(pccl_sim_new(1, &sim) == PCCL_OK);
    config.sim = sim;
    CHECK(pccl_engine_new(&config, &engine) == PCCL_OK);
}

static void turn(void)
{
    pccl_engine_step(engine, ++now_ns);
}

static void end(void)
{
    pccl_engine_close(engine);
    pccl_engine_free(engine);
    pccl_sim_free(sim);
    free(report);
    report = NULL;
}

static void call(uint32_t boundary, uint64_t lane, uint32_t seq, uint64_t token)
{
    pccl_op_request r = {.size = sizeof r, .kind = PCCL_BARRIER, .name = {.boundary = boundary, .lane = lane, .seq = seq},
                         .token = token};
    CHECK(pccl_engine_submit(engine, &r) == PCCL_OK);
}

static void freeze(uint32_t change)
{
    uint32_t ops = 0, lanes = 0;
    CHECK(pccl_engine_freeze(engine, change) == PCCL_OK);
    turn();
    (void)pccl_engine_frozen(engine, NULL, &ops, NULL, &lanes);
    pccl_op_state *states = calloc(ops + 1, sizeof *states);
    free(report);
    report = calloc(lanes + 1, sizeof *report);
    entries = lanes;
    CHECK(pccl_engine_frozen(engine, states, &ops, report, &entries) == PCCL_OK);
    CHECK_EQ_INT(entries, lanes);
    free(states);
}

/* -1: forgotten. */
static int64_t reported(uint32_t boundary, uint64_t lane)
{
    int64_t posted = -1;
    uint32_t at = UINT32_MAX;
    for (uint32_t i = 0; i < entries && report[i].boundary <= boundary; i++) {
        CHECK(at == UINT32_MAX || report[i].boundary >= at);
        if (report[i].boundary != at)
            posted = 0;
        at = report[i].boundary;
        if (report[i].posted && report[i].lane == lane)
            posted = report[i].posted;
    }
    return posted;
}

/* Boundaries with the same few patterns of calls, now and then some of them skipped, now and then all before one forgotten. */
static void walk(unsigned seed)
{
    uint32_t truth[BOUNDARIES][LANES] = {0}, forgotten = 0, boundary = 0;
    srandom(seed);
    begin();
    while (boundary < BOUNDARIES - 3) {
        uint32_t pattern = (uint32_t)random() % 4;
        for (uint64_t lane = 0; lane < LANES; lane++)
            for (uint32_t k = 0; pattern && k < (lane * pattern) % 4; k++)
                call(boundary, lane, truth[boundary][lane]++, 1);
        freeze(boundary + 1);
        for (uint32_t b = 0; b <= boundary; b++)
            for (uint64_t lane = 0; lane < LANES; lane++) {
                int64_t posted = reported(b, lane);
                if (b >= forgotten || posted >= 0)
                    CHECK_EQ_INT(posted, truth[b][lane]);
            }
        if (random() % 5 == 0) {
            uint32_t settled = (uint32_t)random() % (boundary + 1);
            forgotten = settled > forgotten ? settled : forgotten;
            CHECK(pccl_engine_forget(engine, settled) == PCCL_OK);
        }
        boundary += random() % 6 ? 1 : 3;
        CHECK(pccl_engine_advance(engine, boundary) == PCCL_OK);
    }
    end();
}

TEST(a_report_says_what_was_called)
{
    for (unsigned seed = 0; seed < 200; seed++)
        walk(seed);
}

TEST(what_is_the_same_at_every_boundary_is_kept_once)
{
    begin();
    for (uint32_t b = 0; b < 1000; b++) {
        CHECK(pccl_engine_advance(engine, b) == PCCL_OK);
        call(b, 0, 0, b);
        call(b, 9, 0, b);
    }
    CHECK(pccl_engine_advance(engine, 1000) == PCCL_OK);
    freeze(1);
    CHECK_EQ_INT(entries, 3);
    CHECK_EQ_INT(reported(999, 9), 1);
    CHECK_EQ_INT(reported(1000, 9), 0);
    CHECK(pccl_engine_forget(engine, 1000) == PCCL_OK);
    freeze(2);
    CHECK_EQ_INT(entries, 1);
    CHECK_EQ_INT(reported(999, 9), -1);
    end();
}

TEST(records_are_bounded_and_the_oldest_go_first)
{
    begin();
    for (uint32_t b = 0; b < 2 * LIMIT_RECORD_LANES; b++) {
        CHECK(pccl_engine_advance(engine, b) == PCCL_OK);
        call(b, 1 + b, 0, b);
    }
    freeze(1);
    CHECK_EQ_INT(entries, LIMIT_RECORD_LANES + 1);
    CHECK_EQ_INT(reported(LIMIT_RECORD_LANES - 2, LIMIT_RECORD_LANES - 1), -1);
    CHECK_EQ_INT(reported(LIMIT_RECORD_LANES - 1, LIMIT_RECORD_LANES), 1);
    CHECK_EQ_INT(reported(LIMIT_RECORD_LANES, LIMIT_RECORD_LANES), 0);
    end();
}

TEST(the_oldest_boundary_is_that_of_the_oldest_op)
{
    pccl_stats stats;
    begin();
    for (uint32_t b = 0; b < 5; b++) {
        CHECK(pccl_engine_advance(engine, b) == PCCL_OK);
        if (b == 1 || b == 3)
            call(b, 0, 0, b);
    }
    for (uint32_t oldest = 1; oldest <= 5; oldest += 2) {
        turn();
        pccl_engine_stats(engine, &stats);
        CHECK_EQ_INT(stats.oldest_boundary, oldest < 4 ? oldest : 4);
        CHECK(pccl_engine_abandon(engine, oldest, PCCL_ELOST) == PCCL_OK);
    }
    end();
}

TEST_MAIN("lanes")
