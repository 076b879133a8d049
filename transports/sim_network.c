/* sim_network.c - the simulated network itself: its nodes, paths and connections, what an arrival does, and the
 * pccl_sim_* functions.
 *
 * Equal seeds and equal calls give equal runs: events are ordered by (time, sequence), everything else by the order of
 * creation, and chance comes from one generator. Nothing happens but in calls; pccl_sim_advance moves the clock. */
#include "sim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../csrc/err.h"

enum {
    SIM_WINDOW_BYTES = 256 << 10,       /* most bytes of a flow under way */
    SIM_UNREAD_BYTES = 1 << 20,         /* most bytes of a flow under way or delivered and not read */
    SIM_ROOM_MIN_BYTES = 16 << 10,      /* less room than this is none, lest segments become tiny */
    SIM_EVENTS_PER_CONN = 5             /* per flow: its first segment, its room; and the time-out of the dial */
};

/* -- nodes and paths --------------------------------------------------------------------------- */

struct sim_node *sim_node_get(pccl_sim *sim, uint32_t node)
{
    if (!sim->nodes[node])
        sim->nodes[node] = calloc(1, sizeof *sim->nodes[node]);
    return sim->nodes[node];
}

struct sim_transport *sim_node_transport(const pccl_sim *sim, uint32_t node)
{
    return sim->nodes[node] ? sim->nodes[node]->transport : NULL;
}

static struct sim_path *path_get(pccl_sim *sim, uint32_t from, uint32_t to)
{
    struct sim_node *node = sim_node_get(sim, from);
    if (!node || node->to[to])
        return node ? node->to[to] : NULL;
    struct sim_path *path = calloc(1, sizeof *path);
    if (path) {
        path->from = from;
        path->to = to;
    }
    node->to[to] = path;
    return path;
}

/* -- connections ------------------------------------------------------------------------------- */

static void event_init(struct sim_event *event, enum sim_kind kind, struct sim_conn *conn, int side)
{
    event->kind = kind;
    event->conn = conn;
    event->side = side;
}

struct sim_conn *sim_conn_new(pccl_sim *sim, uint32_t from, uint32_t to)
{
    struct sim_path *there = path_get(sim, from, to), *back = path_get(sim, to, from);
    if (!there || !back || sim_heap_reserve(sim, (sim->conn_count + 1) * SIM_EVENTS_PER_CONN) != PCCL_OK)
        return NULL;
    struct sim_conn *conn = calloc(1, sizeof *conn);
    if (!conn)
        return NULL;
    conn->sim = sim;
    conn->flow[0].path = there;
    conn->flow[1].path = back;
    event_init(&conn->timeout, SIM_TIMEOUT, conn, 0);
    for (int side = 0; side < 2; side++) {
        event_init(&conn->flow[side].first, SIM_FIRST, conn, side);
        event_init(&conn->flow[side].room, SIM_ROOM, conn, side);
    }
    conn->previous = sim->last_conn;
    if (sim->last_conn)
        sim->last_conn->next = conn;
    else
        sim->first_conn = conn;
    sim->last_conn = conn;
    sim->conn_count++;
    return conn;
}

void sim_conn_free(struct sim_conn *conn)
{
    pccl_sim *sim = conn->sim;
    sim_event_cancel(sim, &conn->timeout);
    for (int side = 0; side < 2; side++) {
        sim_flow_clear(sim, &conn->flow[side]);
        sim_event_cancel(sim, &conn->flow[side].room);
        sim_queue_clear(&conn->end[side].inbox);
    }
    *(conn->previous ? &conn->previous->next : &sim->first_conn) = conn->next;
    *(conn->next ? &conn->next->previous : &sim->last_conn) = conn->previous;
    sim->conn_count--;
    free(conn);
}

int sim_is_live(const struct sim_stream *s)
{
    return s->state == SIM_DIALING || s->state == SIM_WAITING || s->state == SIM_OPEN;
}

struct sim_stream *sim_conn_begin(struct sim_conn *conn, int side, struct sim_transport *t, enum sim_state state)
{
    struct sim_stream *s = &conn->end[side];
    s->base.ops = &sim_ops;
    s->transport = t;
    s->conn = conn;
    s->side = side;
    s->state = state;
    s->interest = TRANSPORT_READ;
    return s;
}

void sim_conn_reset(struct sim_conn *conn)
{
    sim_flow_reset(conn->sim, &conn->flow[0]);
    sim_flow_reset(conn->sim, &conn->flow[1]);
}

void sim_conn_abandon(struct sim_conn *conn)
{
    sim_event_cancel(conn->sim, &conn->timeout);
    if (conn->end[1].state == SIM_ABSENT)
        sim_flow_clear(conn->sim, &conn->flow[0]);
    else
        sim_flow_reset(conn->sim, &conn->flow[0]);
}

static void conn_dialled(struct sim_conn *conn, int error)
{
    struct sim_stream *s = &conn->end[0];
    sim_event_cancel(conn->sim, &conn->timeout);
    s->error = error;
    s->state = SIM_OPEN;
    s->news = 1;
}

size_t sim_conn_room(const struct sim_conn *conn, int side)
{
    size_t flight_bytes = conn->flow[side].flight_bytes;
    size_t held_bytes = flight_bytes + conn->end[1 - side].unread_bytes;
    if (flight_bytes + SIM_ROOM_MIN_BYTES > SIM_WINDOW_BYTES || held_bytes + SIM_ROOM_MIN_BYTES > SIM_UNREAD_BYTES)
        return 0;
    size_t window_bytes = SIM_WINDOW_BYTES - flight_bytes, unread_bytes = SIM_UNREAD_BYTES - held_bytes;
    return window_bytes < unread_bytes ? window_bytes : unread_bytes;
}

/* -- the digest -------------------------------------------------------------------------------- */

static uint64_t checksum(const uint8_t *data, size_t bytes)
{
    uint64_t sum = bytes;
    while (bytes > 0) {
        uint64_t word = 0;
        size_t taken = bytes < sizeof word ? bytes : sizeof word;
        memcpy(&word, data, taken);
        sum = (sum ^ word) * 0x100000001b3u;
        sum ^= sum >> 32;
        data += taken;
        bytes -= taken;
    }
    return sum;
}

static void digest_add(pccl_sim *sim, const struct sim_path *path, enum sim_kind kind,
                       const struct sim_segment *segment)
{
    const uint64_t words[] = {
        sim->now_ns, (uint64_t)path->from << 32 | path->to, (uint64_t)kind,
        segment ? segment->bytes : 0, segment ? checksum(segment->data, segment->bytes) : 0,
    };
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        sim->digest = sim_mix(sim->digest + 0x9e3779b97f4a7c15u) ^ sim_mix(words[i]);
}

/* -- arrivals ---------------------------------------------------------------------------------- */

static void arrive_dial(struct sim_conn *conn)
{
    pccl_sim *sim = conn->sim;
    struct sim_flow *back = &conn->flow[1];
    struct sim_transport *t = sim_node_transport(sim, conn->flow[0].path->to);
    uint8_t dials = conn->flow[0].path->now.dials;
    if (dials == SIM_DIALS_LOST)
        return;
    if (!t || dials == SIM_DIALS_REFUSED) {
        sim_flow_send(sim, back, &back->opening, SIM_REFUSED);
        return;
    }
    struct sim_stream *s = sim_conn_begin(conn, 1, t, SIM_WAITING);
    if (t->last_waiting)
        t->last_waiting->next = s;
    else
        t->first_waiting = s;
    t->last_waiting = s;
    sim_flow_send(sim, back, &back->opening, SIM_ACCEPTED);
}

/* Bytes for an end that is gone are answered with a reset. */
static void arrive_bytes(struct sim_stream *to, struct sim_segment *segment)
{
    if (sim_is_live(to) && !to->error) {
        to->unread_bytes += segment->bytes;
        sim_queue_append(&to->inbox, segment);
        return;
    }
    sim_flow_reset_in_order(to->conn->sim, &to->conn->flow[to->side]);
    sim_segment_free(segment);
}

static void arrive_reset(struct sim_stream *to)
{
    to->conn->flow[to->side].ended = 1;
    if (to->state == SIM_DIALING)
        conn_dialled(to->conn, ECONNRESET);
    else if (!to->error)
        to->error = ECONNRESET;
}

/* Takes the segment. */
static void arrive(struct sim_conn *conn, int side, struct sim_segment *segment)
{
    struct sim_stream *to = &conn->end[1 - side];
    switch (segment->kind) {
    case SIM_DIAL:
        arrive_dial(conn);
        break;
    case SIM_ACCEPTED:
    case SIM_REFUSED:
        if (to->state == SIM_DIALING)
            conn_dialled(conn, segment->kind == SIM_REFUSED ? ECONNREFUSED : 0);
        break;
    case SIM_BYTES:
        arrive_bytes(to, segment);
        break;
    case SIM_END:
        to->got_end = 1;
        break;
    default:
        if (to->state != SIM_ABSENT)
            arrive_reset(to);
    }
}

static void stir(const struct sim_conn *conn, uint32_t node)
{
    conn->sim->nodes[node]->stirred = 1;
}

/* 1 if something arrived, 0 if the path is cut. */
static uint32_t deliver_first(struct sim_conn *conn, int side)
{
    struct sim_flow *flow = &conn->flow[side];
    if (flow->path->now.cut)
        return 0;
    struct sim_segment *segment = sim_queue_take(&flow->queue);
    flow->flight_bytes -= segment->bytes;
    sim_flow_schedule(conn->sim, flow);
    digest_add(conn->sim, flow->path, segment->kind, segment);
    stir(conn, flow->path->to);
    arrive(conn, side, segment);
    return 1;
}

static uint32_t happen(struct sim_event *event)
{
    struct sim_conn *conn = event->conn;
    if (event->kind == SIM_FIRST)
        return deliver_first(conn, event->side);
    digest_add(conn->sim, conn->flow[event->side].path, event->kind, NULL);
    stir(conn, conn->flow[event->side].path->from);
    if (event->kind == SIM_TIMEOUT) {
        sim_conn_abandon(conn);
        conn_dialled(conn, ETIMEDOUT);
    }
    return 1;
}

/* -- the public functions ---------------------------------------------------------------------- */

pccl_err pccl_sim_new(uint64_t seed, pccl_sim **sim_p)
{
    if (!sim_p) {
        err_set("pccl_sim_new: no place for the result");
        return PCCL_EINVAL;
    }
    pccl_sim *sim = calloc(1, sizeof *sim);
    if (!sim) {
        err_set("pccl_sim_new: out of memory");
        return PCCL_ENOMEM;
    }
    sim->random = sim_mix(seed + 1);
    sim->digest = seed;
    *sim_p = sim;
    return PCCL_OK;
}

void pccl_sim_free(pccl_sim *sim)
{
    if (!sim)
        return;
    while (sim->first_conn)
        sim_conn_free(sim->first_conn);
    for (uint32_t from = 0; from < SIM_NODES_MAX; from++) {
        for (uint32_t to = 0; sim->nodes[from] && to < SIM_NODES_MAX; to++)
            free(sim->nodes[from]->to[to]);
        free(sim->nodes[from]);
    }
    free(sim->heap);
    free(sim);
}

static pccl_err check_nodes(const char *function, const pccl_sim *sim, uint32_t a, uint32_t b)
{
    if (sim && a < SIM_NODES_MAX && b < SIM_NODES_MAX)
        return PCCL_OK;
    err_set("%s: no simulator, or a node above %d", function, SIM_NODES_MAX - 1);
    return PCCL_EINVAL;
}

pccl_err pccl_sim_set_path(pccl_sim *sim, uint32_t from, uint32_t to, const pccl_sim_path *path)
{
    pccl_err err = check_nodes("pccl_sim_set_path", sim, from, to);
    if (err != PCCL_OK)
        return err;
    if (!path || path->reset_ppm > SIM_PPM || path->corrupt_ppm > SIM_PPM || path->duplicate_ppm > SIM_PPM) {
        err_set("pccl_sim_set_path: no path, or a chance above one million ppm");
        return PCCL_EINVAL;
    }
    struct sim_path *direction = path_get(sim, from, to);
    if (!direction) {
        err_set("pccl_sim_set_path: out of memory");
        return PCCL_ENOMEM;
    }
    int healed = direction->now.cut && !path->cut;
    direction->now = *path;
    if (!healed)
        return PCCL_OK;
    direction->free_ns = sim->now_ns;
    for (struct sim_conn *conn = sim->first_conn; conn; conn = conn->next)
        for (int side = 0; side < 2; side++)
            if (conn->flow[side].path == direction)
                sim_flow_heal(sim, &conn->flow[side]);
    return PCCL_OK;
}

/* The end's process is gone: what is under way to it is lost, the other end will be told. */
static void end_crash(struct sim_stream *s)
{
    s->error = ECONNRESET;
    sim_flow_clear(s->conn->sim, &s->conn->flow[1 - s->side]);
    if (s->state == SIM_DIALING)
        sim_conn_abandon(s->conn);
    else
        sim_flow_reset(s->conn->sim, &s->conn->flow[s->side]);
}

pccl_err pccl_sim_crash(pccl_sim *sim, uint32_t node)
{
    pccl_err err = check_nodes("pccl_sim_crash", sim, node, node);
    if (err != PCCL_OK)
        return err;
    struct sim_transport *t = sim_node_transport(sim, node);
    if (!t)
        return PCCL_OK;
    sim->nodes[node]->transport = NULL;
    for (struct sim_conn *conn = sim->first_conn; conn; conn = conn->next)
        for (int side = 0; side < 2; side++)
            if (conn->end[side].transport == t && sim_is_live(&conn->end[side]))
                end_crash(&conn->end[side]);
    return PCCL_OK;
}

static int is_between(const struct sim_conn *conn, uint32_t a, uint32_t b)
{
    const struct sim_path *path = conn->flow[0].path;
    return (path->from == a && path->to == b) || (path->from == b && path->to == a);
}

static int can_be_reset(const struct sim_conn *conn)
{
    return conn->end[0].state == SIM_OPEN && sim_is_live(&conn->end[1]) && !conn->end[0].error && !conn->end[1].error
        && !conn->flow[0].was_reset && !conn->flow[1].was_reset;
}

pccl_err pccl_sim_reset(pccl_sim *sim, uint32_t a, uint32_t b, uint32_t index)
{
    pccl_err err = check_nodes("pccl_sim_reset", sim, a, b);
    if (err != PCCL_OK)
        return err;
    uint32_t count = 0;
    for (struct sim_conn *conn = sim->first_conn; conn; conn = conn->next)
        count += is_between(conn, a, b) && can_be_reset(conn);
    if (count == 0) {
        err_set("pccl_sim_reset: no live stream between nodes %u and %u", (unsigned)a, (unsigned)b);
        return PCCL_EAGAIN;
    }
    index %= count;
    for (struct sim_conn *conn = sim->first_conn; conn; conn = conn->next)
        if (is_between(conn, a, b) && can_be_reset(conn) && index-- == 0) {
            sim_conn_reset(conn);
            break;
        }
    return PCCL_OK;
}

int pccl_sim_stirred(pccl_sim *sim, uint32_t node)
{
    struct sim_node *of = node < SIM_NODES_MAX ? sim->nodes[node] : NULL;
    int stirred = of && of->stirred;
    if (of)
        of->stirred = 0;
    return stirred;
}

uint32_t pccl_sim_streams(pccl_sim *sim, uint32_t node)
{
    uint32_t count = 0;
    for (const struct sim_conn *conn = sim->first_conn; conn; conn = conn->next)
        for (int side = 0; side < 2; side++) {
            const struct sim_stream *s = &conn->end[side];
            count += (s->state == SIM_DIALING || s->state == SIM_OPEN) && s->transport->node == node;
        }
    return count;
}

uint64_t pccl_sim_next(pccl_sim *sim)
{
    return sim->heap_count ? sim->heap[0]->due_ns : UINT64_MAX;
}

uint32_t pccl_sim_advance(pccl_sim *sim, uint64_t now_ns)
{
    uint32_t count = 0;
    while (sim->heap_count && sim->heap[0]->due_ns <= now_ns) {
        struct sim_event *event = sim->heap[0];
        sim_event_cancel(sim, event);
        sim->now_ns = max_u64(sim->now_ns, event->due_ns);
        count += happen(event);
    }
    sim->now_ns = max_u64(sim->now_ns, now_ns);
    return count;
}

uint64_t pccl_sim_digest(pccl_sim *sim)
{
    return sim->digest;
}
