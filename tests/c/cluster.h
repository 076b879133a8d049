/* cluster.h - several engines over the simulated network in one thread, for C tests of the engine.
 *
 *     struct cluster c; cluster_open(&c, 4, 1, "sim", defects); cluster_epoch(&c, 1, 0, 0, all(4), NULL, 0);
 *     cluster_submit(&c, rank, &request); cluster_run(&c, 5 seconds); cluster_close(&c);
 * Time is virtual; events of each engine are kept in order. */
#ifndef PCCL_CLUSTER_H
#define PCCL_CLUSTER_H

#include <string.h>

#include "include/pccl.h"
#include "test.h"

enum { CLUSTER_NODES_MAX = 8, CLUSTER_EVENTS_MAX = 4096 };
#define SECOND 1000000000ULL

struct cluster {
    uint32_t n;
    pccl_sim *sim;
    pccl_engine *engines[CLUSTER_NODES_MAX];
    uint64_t wake_ns[CLUSTER_NODES_MAX];
    int stopped[CLUSTER_NODES_MAX];
    pccl_event events[CLUSTER_NODES_MAX][CLUSTER_EVENTS_MAX];
    uint32_t event_count[CLUSTER_NODES_MAX];
    uint64_t now_ns;
    uint32_t streams, segment_bytes;
    uint64_t one_round_bytes_max, mesh_bytes_max;
    uint32_t weights[CLUSTER_NODES_MAX];
    uint16_t regions[CLUSTER_NODES_MAX];
    pccl_algorithm large_algorithm;
    uint8_t closed[CLUSTER_NODES_MAX];                   /* nobody can dial it */
    uint8_t via[CLUSTER_NODES_MAX][CLUSTER_NODES_MAX];   /* [a][b]: 1 + the node through which a reaches b; 0: directly */
};

static inline pccl_peer_id node_id(uint32_t node)
{
    pccl_peer_id id;
    memset(id.bytes, (int)node + 1, sizeof id.bytes);
    return id;
}

static inline void cluster_open(struct cluster *c, uint32_t n, uint64_t seed, const char *transport, uint32_t defects)
{
    memset(c, 0, sizeof *c);
    c->n = n;
    c->streams = 2;
    c->segment_bytes = 1024;
    c->mesh_bytes_max = 4096;
    CHECK(pccl_sim_new(seed, &c->sim) == PCCL_OK);
    pccl_sim_path path = {.delay_ns = 1000000, .jitter_ns = 500000};
    for (uint32_t a = 0; a < n; a++)
        for (uint32_t b = 0; b < n; b++)
            CHECK(pccl_sim_set_path(c->sim, a, b, &path) == PCCL_OK);
    for (uint32_t i = 0; i < n; i++) {
        pccl_config config = {.size = sizeof config, .self = node_id(i), .sim = c->sim, .defects = defects,
                              .fault_seed = seed + i, .eager_bytes = 16 << 10};
        snprintf(config.transport, sizeof config.transport, "%s", transport);
        snprintf(config.listen, sizeof config.listen, "sim:%u", i);
        CHECK(pccl_engine_new(&config, &c->engines[i]) == PCCL_OK);
    }
}

static inline void cluster_cut(struct cluster *c, uint32_t a, uint32_t b)
{
    pccl_sim_path cut = {.cut = 1};
    CHECK(pccl_sim_set_path(c->sim, a, b, &cut) == PCCL_OK && pccl_sim_set_path(c->sim, b, a, &cut) == PCCL_OK);
}

/* Nothing passes between a and b; they reach each other through `a_via` and `b_via`. */
static inline void cluster_detour(struct cluster *c, uint32_t a, uint32_t b, uint32_t a_via, uint32_t b_via)
{
    cluster_cut(c, a, b);
    c->via[a][b] = (uint8_t)(a_via + 1);
    c->via[b][a] = (uint8_t)(b_via + 1);
}

/* Behind NAT or a firewall: it dials, and is never dialled. */
static inline void cluster_close_node(struct cluster *c, uint32_t node)
{
    pccl_sim_path path = {.delay_ns = 1000000, .jitter_ns = 500000, .dials = (uint8_t)(1 + node % 2)};
    c->closed[node] = 1;
    for (uint32_t i = 0; i < c->n; i++)
        if (i != node)
            CHECK(pccl_sim_set_path(c->sim, i, node, &path) == PCCL_OK);
}

static inline int cluster_dials(const struct cluster *c, uint32_t i, uint32_t j)
{
    return c->closed[i] != c->closed[j] ? c->closed[i] : i < j;
}

/* The member's `via` as node i sees it: nodes to ranks among the nodes in `mask`. */
static inline uint16_t cluster_via(const struct cluster *c, uint32_t i, uint32_t j, uint32_t mask)
{
    uint32_t node = c->via[i][j];
    return node ? (uint16_t)(1 + __builtin_popcount(mask & ((1u << (node - 1)) - 1))) : 0;
}

/* Installs an epoch of the nodes in `mask` at those of them that are in `at`. */
static inline void cluster_epoch(struct cluster *c, uint32_t epoch, uint32_t change, uint32_t from, uint32_t mask,
                                 uint32_t at, const pccl_verdict *verdicts, uint32_t verdict_count)
{
    for (uint32_t i = 0; i < c->n; i++) {
        pccl_member members[CLUSTER_NODES_MAX];
        uint32_t count = 0;
        if (!(mask & at & 1u << i))
            continue;
        for (uint32_t j = 0; j < c->n; j++) {
            if (!(mask & 1u << j))
                continue;
            members[count] = (pccl_member){.id = node_id(j), .dial = (uint8_t)cluster_dials(c, i, j), .weight = c->weights[j],
                                           .region = c->regions[j], .via = cluster_via(c, i, j, mask)};
            snprintf(members[count++].address, sizeof members[0].address, "sim:%u", j);
        }
        pccl_epoch config = {
            .size = sizeof config, .epoch = epoch, .from_boundary = from, .change = change, .member_count = count,
            .members = members, .verdict_count = verdict_count, .verdicts = verdicts, .streams = c->streams,
            .segment_bytes = c->segment_bytes, .one_round_bytes_max = c->one_round_bytes_max,
            .mesh_bytes_max = c->mesh_bytes_max,
            .large_algorithm = (uint8_t)c->large_algorithm,
        };
        CHECK(pccl_engine_configure(c->engines[i], &config) == PCCL_OK);
        c->wake_ns[i] = 0;
    }
}

static inline void cluster_submit(struct cluster *c, uint32_t node, pccl_op_request *request)
{
    request->size = sizeof *request;
    CHECK(pccl_engine_submit(c->engines[node], request) == PCCL_OK);
    c->wake_ns[node] = 0;
}

static inline void cluster_step_all(struct cluster *c)
{
    for (uint32_t i = 0; i < c->n; i++) {
        if (c->stopped[i])
            continue;
        c->wake_ns[i] = pccl_engine_step(c->engines[i], c->now_ns);
        c->event_count[i] += (uint32_t)pccl_engine_events(
            c->engines[i], c->events[i] + c->event_count[i], (int)(CLUSTER_EVENTS_MAX - c->event_count[i]));
    }
}

/* Runs for so much virtual time. */
static inline void cluster_run(struct cluster *c, uint64_t duration_ns)
{
    uint64_t end_ns = c->now_ns + duration_ns;
    for (;;) {
        cluster_step_all(c);
        uint64_t next = pccl_sim_next(c->sim);
        for (uint32_t i = 0; i < c->n; i++)
            if (!c->stopped[i] && c->wake_ns[i] < next)
                next = c->wake_ns[i];
        if (next > end_ns)
            break;
        c->now_ns = next > c->now_ns ? next : c->now_ns + 1;
        pccl_sim_advance(c->sim, c->now_ns);
    }
    c->now_ns = end_ns;
    pccl_sim_advance(c->sim, end_ns);
}

/* The event of a kind at a node with this token (token 0: the first of the kind); NULL if none. */
static inline const pccl_event *cluster_event(const struct cluster *c, uint32_t node, uint32_t kind, uint64_t token)
{
    for (uint32_t i = 0; i < c->event_count[node]; i++)
        if (c->events[node][i].kind == kind && (!token || c->events[node][i].token == token))
            return &c->events[node][i];
    return NULL;
}

static inline void cluster_close(struct cluster *c)
{
    for (uint32_t i = 0; i < c->n; i++)
        pccl_engine_free(c->engines[i]);
    pccl_sim_free(c->sim);
}

#endif
