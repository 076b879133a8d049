/* transfers.h - two nodes over the simulated network, of which node 0 offers and node 1 fetches, for C tests of transfers. */
#ifndef PCCL_TRANSFERS_H
#define PCCL_TRANSFERS_H

#include "../../csrc/engine.h"
#include "cluster.h"

enum { MS = 1000000, BYTES = 1 << 20 };

#define NORMAL PCCL_PRIORITY_NORMAL
#define HIGH PCCL_PRIORITY_HIGH
#define LOW PCCL_PRIORITY_LOW
static struct cluster c;
static uint8_t source[BYTES], target[2 * BYTES];
static const uint8_t key[16] = "a region";

static inline void fill(void)
{
    uint64_t state = 5;
    for (size_t i = 0; i < sizeof source; i++)
        source[i] = (uint8_t)test_random(&state);
    memset(target, 0xAA, sizeof target);
}

/* Node 0 offers, node 1 fetches. */
static inline void begin_with(const char *transport, uint64_t seed, uint32_t segment_bytes)
{
    fill();
    cluster_open(&c, 2, seed, transport, 0);
    c.segment_bytes = segment_bytes;
    cluster_epoch(&c, 1, 0, 0, 3, ~0u, NULL, 0);
    cluster_run(&c, SECOND / 10);
}

static inline void begin(void)
{
    begin_with("sim", 1, 16 << 10);
}

static inline void set_paths(uint64_t delay_ns, uint64_t bytes_per_s)
{
    pccl_sim_path path = {.delay_ns = delay_ns, .bytes_per_s = bytes_per_s};
    CHECK(pccl_sim_set_path(c.sim, 0, 1, &path) == PCCL_OK && pccl_sim_set_path(c.sim, 1, 0, &path) == PCCL_OK);
}

static inline void offer_of(uint32_t node, const uint8_t *name, uint64_t generation, const void *data, uint64_t bytes, int whole, uint64_t token)
{
    pccl_region region = {.size = sizeof region, .generation = generation, .data = data, .bytes = bytes, .token = token};
    memcpy(region.key, name, sizeof region.key);
    CHECK_EQ_INT(pccl_engine_offer(c.engines[node], &region, whole), PCCL_OK);
    c.wake_ns[node] = 0;
}

static inline void offer(int whole)
{
    offer_of(0, key, 7, source, BYTES, whole, 70);
}

static inline void extend(uint64_t offset, uint64_t bytes)
{
    CHECK_EQ_INT(pccl_engine_extend(c.engines[0], key, 7, offset, bytes), PCCL_OK);
    c.wake_ns[0] = 0;
}

static inline pccl_fetch_request request_of(const pccl_fetch_run *runs, uint32_t count, uint64_t token)
{
    pccl_fetch_request r = {.size = sizeof r, .peer = node_id(0), .generation = 7, .run_count = count, .runs = runs, .token = token};
    memcpy(r.key, key, sizeof r.key);
    return r;
}

static inline void send_request(const pccl_fetch_request *r)
{
    CHECK_EQ_INT(pccl_engine_fetch(c.engines[1], r), PCCL_OK);
    c.wake_ns[1] = 0;
}

static inline void fetch_runs(const pccl_fetch_run *runs, uint32_t count, uint64_t token)
{
    pccl_fetch_request r = request_of(runs, count, token);
    send_request(&r);
}

/* Bytes [offset, offset + bytes) to the same place of target. */
static inline void fetch_part(uint64_t offset, uint64_t bytes, pccl_priority priority, uint64_t deadline_ns, uint64_t token)
{
    pccl_fetch_run run = {offset, bytes, target + offset};
    pccl_fetch_request r = request_of(&run, 1, token);
    r.priority = (uint8_t)priority;
    r.deadline_ns = deadline_ns;
    send_request(&r);
}

static inline void fetch_all(uint64_t token)
{
    fetch_part(0, BYTES, NORMAL, 0, token);
}

static const pccl_event *fetched(uint64_t token)
{
    return cluster_event(&c, 1, PCCL_EVENT_FETCH, token);
}

/* How often a fetch with the token ended. */
static inline uint32_t ends_of(uint64_t token)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < c.event_count[1]; i++)
        count += c.events[1][i].kind == PCCL_EVENT_FETCH && c.events[1][i].token == token;
    return count;
}

static inline int status_of(uint64_t token)
{
    CHECK(ends_of(token) <= 1);
    return fetched(token) ? fetched(token)->status : -1;
}

static inline int withdrawn(uint32_t node, uint64_t token)
{
    const pccl_event *e = cluster_event(&c, node, PCCL_EVENT_WITHDRAWN, token);
    return e ? e->status : -1;
}

static inline void withdraw(void)
{
    CHECK_EQ_INT(pccl_engine_withdraw(c.engines[0], key, 7), PCCL_OK);
    c.wake_ns[0] = 0;
}

static inline pccl_stats stats_of(uint32_t node)
{
    pccl_stats stats;
    pccl_engine_stats(c.engines[node], &stats);
    return stats;
}

static inline void expect_nothing_left(void)
{
    CHECK_EQ_INT(stats_of(1).transfers_pending, 0);
    CHECK_EQ_INT(stats_of(0).transfers_served, 0);
    for (const struct link *l = c.engines[1]->links; l; l = l->next)
        CHECK(!l->transfers.fetches.first && !l->transfers.asked && !l->transfers.waiting[0].first);
    for (const struct link *l = c.engines[0]->links; l; l = l->next)
        CHECK(!l->transfers.servings.first && !l->transfers.busy);
}

#endif
