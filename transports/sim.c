/* sim.c - a network in memory with a virtual clock: the transport "sim" and the pccl_sim_* functions.
 *
 * Nodes are small integers; a path is one direction between two of them; a connection is two ends and two flows, and
 * flow[side] carries what end[side] sends. What travels is a queue of segments per flow, each with its due time; only
 * the first of a queue stands in the heap of events, so a flow is in order whatever jitter says. When its path is cut
 * the flow stays out of the heap until the path is healed.
 *
 * Equal seeds and equal calls give equal runs: events are ordered by (time, sequence), everything else by the order of
 * creation, and chance comes from one generator. Nothing happens but in calls; pccl_sim_advance moves the clock.
 *
 * Events live inside the connections, and the heap has room for all of them before a connection is made; memory can
 * thus run out only in open, dial, writev and pccl_sim_set_path, which say so.
 *
 * One thread, except sim_wake (any thread). */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../csrc/err.h"
#include "../csrc/transport.h"

enum {
    SIM_NODES_MAX = 1024,
    SIM_PPM = 1000000,
    SIM_SEGMENT_BYTES = 64 << 10,       /* largest single delivery */
    SIM_WINDOW_BYTES = 256 << 10,       /* most bytes of a flow under way */
    SIM_UNREAD_BYTES = 1 << 20,         /* most bytes of a flow under way or delivered and not read */
    SIM_ROOM_MIN_BYTES = 16 << 10,      /* less room than this is none, lest segments become tiny */
    SIM_EVENTS_PER_CONN = 5             /* per flow: its first segment, its room; and the time-out of the dial */
};

#define SIM_DIAL_TIMEOUT_NS 3000000000ull
#define NS_PER_S 1000000000ull

enum sim_kind {
    SIM_DIAL = 1, SIM_ACCEPTED, SIM_REFUSED, SIM_BYTES, SIM_END, SIM_RESET,     /* segments */
    SIM_FIRST, SIM_TIMEOUT, SIM_ROOM                                            /* events */
};

struct sim_event {
    uint64_t due_ns;
    uint64_t sequence;
    size_t heap_index;
    int queued;
    enum sim_kind kind;
    struct sim_conn *conn;
    int side;
};

struct sim_segment {
    struct sim_segment *next;
    enum sim_kind kind;
    uint64_t due_ns;
    size_t bytes;
    size_t read_bytes;                  /* taken by the reader already */
    uint8_t *data;                      /* behind the segment, in the same block */
};

struct sim_queue {
    struct sim_segment *first;
    struct sim_segment *last;
};

struct sim_path {
    uint32_t from;
    uint32_t to;
    pccl_sim_path now;                  /* its present state */
    uint64_t free_ns;                   /* when all that was sent has left, at bytes_per_s */
};

struct sim_flow {
    struct sim_path *path;
    struct sim_queue queue;
    struct sim_event first;
    struct sim_event room;
    struct sim_segment opening;         /* the segments that must not fail for want of memory */
    struct sim_segment end;
    struct sim_segment reset;
    uint64_t last_due_ns;
    size_t flight_bytes;
    int ended;                          /* takes no more bytes: its end or its reset is under way */
    int was_reset;
};

enum sim_state { SIM_ABSENT, SIM_DIALING, SIM_WAITING, SIM_OPEN, SIM_CLOSED, SIM_GONE };

struct sim_stream {
    struct stream base;
    struct sim_transport *transport;
    struct sim_conn *conn;
    int side;
    enum sim_state state;
    int error;
    int news;                           /* the outcome of the dial has yet to be reported */
    int got_end;
    unsigned interest;
    struct sim_queue inbox;
    size_t unread_bytes;
    struct sim_stream *previous;        /* ring of the transport's open streams */
    struct sim_stream *next;            /* the same; or the queue of accept; or the list of the dead */
};

struct sim_conn {
    pccl_sim *sim;
    struct sim_stream end[2];           /* 0 dialled */
    struct sim_flow flow[2];
    struct sim_event timeout;
    struct sim_conn *previous;
    struct sim_conn *next;
};

struct sim_transport {
    struct transport base;
    pccl_sim *sim;
    uint32_t node;
    atomic_int woken;
    struct sim_stream *first_open;      /* where the next poll begins */
    struct sim_stream *first_waiting;
    struct sim_stream *last_waiting;
    struct sim_stream *dead;
};

struct sim_node {
    struct sim_transport *transport;    /* NULL: nobody listens, or it crashed */
    struct sim_path *to[SIM_NODES_MAX];
};

struct pccl_sim {
    uint64_t now_ns;
    uint64_t random;
    uint64_t sequence;
    uint64_t digest;
    struct sim_event **heap;
    size_t heap_count;
    size_t heap_room;
    struct sim_conn *first_conn;
    struct sim_conn *last_conn;
    size_t conn_count;
    struct sim_node *nodes[SIM_NODES_MAX];
};

extern const struct transport_ops sim_ops;

static uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t saturating_add(uint64_t a, uint64_t b)
{
    return a + b < a ? UINT64_MAX : a + b;
}

/* -- chance and digest -------------------------------------------------------------------------- */

/* The finalizer of splitmix64: a good mixer of 64 bits. */
static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t draw(pccl_sim *sim)
{
    sim->random += 0x9e3779b97f4a7c15u;
    return mix(sim->random);
}

static int chance(pccl_sim *sim, uint32_t ppm)
{
    return ppm != 0 && draw(sim) % SIM_PPM < ppm;
}

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
        sim->digest = mix(sim->digest + 0x9e3779b97f4a7c15u) ^ mix(words[i]);
}

/* -- the heap of events ------------------------------------------------------------------------- */

static int event_before(const struct sim_event *a, const struct sim_event *b)
{
    return a->due_ns != b->due_ns ? a->due_ns < b->due_ns : a->sequence < b->sequence;
}

static void heap_put(pccl_sim *sim, size_t index, struct sim_event *event)
{
    sim->heap[index] = event;
    event->heap_index = index;
}

/* Puts the event where it belongs, starting from a free place. */
static void heap_sift(pccl_sim *sim, size_t index, struct sim_event *event)
{
    while (index > 0 && event_before(event, sim->heap[(index - 1) / 2])) {
        heap_put(sim, index, sim->heap[(index - 1) / 2]);
        index = (index - 1) / 2;
    }
    for (;;) {
        size_t child = 2 * index + 1;
        if (child + 1 < sim->heap_count && event_before(sim->heap[child + 1], sim->heap[child]))
            child++;
        if (child >= sim->heap_count || !event_before(sim->heap[child], event))
            break;
        heap_put(sim, index, sim->heap[child]);
        index = child;
    }
    heap_put(sim, index, event);
}

static void event_cancel(pccl_sim *sim, struct sim_event *event)
{
    if (!event->queued)
        return;
    event->queued = 0;
    struct sim_event *last = sim->heap[--sim->heap_count];
    if (last != event)
        heap_sift(sim, event->heap_index, last);
}

static void event_at(pccl_sim *sim, struct sim_event *event, uint64_t due_ns)
{
    event_cancel(sim, event);
    event->due_ns = max_u64(due_ns, sim->now_ns);
    event->sequence = sim->sequence++;
    event->queued = 1;
    sim->heap_count++;
    heap_sift(sim, sim->heap_count - 1, event);
}

static pccl_err heap_reserve(pccl_sim *sim, size_t event_count)
{
    if (event_count <= sim->heap_room)
        return PCCL_OK;
    struct sim_event **heap = realloc(sim->heap, 2 * event_count * sizeof *heap);
    if (!heap)
        return PCCL_ENOMEM;
    sim->heap = heap;
    sim->heap_room = 2 * event_count;
    return PCCL_OK;
}

/* -- queues ------------------------------------------------------------------------------------- */

static void queue_append(struct sim_queue *queue, struct sim_segment *segment)
{
    segment->next = NULL;
    if (queue->last)
        queue->last->next = segment;
    else
        queue->first = segment;
    queue->last = segment;
}

static struct sim_segment *queue_take(struct sim_queue *queue)
{
    struct sim_segment *segment = queue->first;
    queue->first = segment->next;
    if (!queue->first)
        queue->last = NULL;
    return segment;
}

static void segment_free(struct sim_segment *segment)
{
    if (segment->kind == SIM_BYTES)
        free(segment);
}

static void queue_clear(struct sim_queue *queue)
{
    while (queue->first)
        segment_free(queue_take(queue));
}

static void queue_move(struct sim_queue *from, struct sim_queue *to)
{
    while (from->first)
        queue_append(to, queue_take(from));
}

static struct sim_segment *segment_new(size_t bytes)
{
    struct sim_segment *segment = malloc(sizeof *segment + bytes);
    if (segment)
        *segment = (struct sim_segment){.kind = SIM_BYTES, .bytes = bytes, .data = (uint8_t *)(segment + 1)};
    return segment;
}

/* -- nodes and paths ---------------------------------------------------------------------------- */

static struct sim_node *node_get(pccl_sim *sim, uint32_t node)
{
    if (!sim->nodes[node])
        sim->nodes[node] = calloc(1, sizeof *sim->nodes[node]);
    return sim->nodes[node];
}

static struct sim_transport *node_transport(const pccl_sim *sim, uint32_t node)
{
    return sim->nodes[node] ? sim->nodes[node]->transport : NULL;
}

static struct sim_path *path_get(pccl_sim *sim, uint32_t from, uint32_t to)
{
    struct sim_node *node = node_get(sim, from);
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

/* "sim:3" -> 3 */
static pccl_err node_parse(const char *text, uint32_t *node_p)
{
    if (strncmp(text, "sim:", 4) != 0 || text[4] < '0' || text[4] > '9')
        return PCCL_EINVAL;
    char *end;
    unsigned long node = strtoul(text + 4, &end, 10);
    if (*end || node >= SIM_NODES_MAX)
        return PCCL_EINVAL;
    *node_p = (uint32_t)node;
    return PCCL_OK;
}

/* -- flows -------------------------------------------------------------------------------------- */

static void flow_schedule(pccl_sim *sim, struct sim_flow *flow)
{
    if (flow->queue.first)
        event_at(sim, &flow->first, flow->queue.first->due_ns);
    else
        event_cancel(sim, &flow->first);
}

/* When bytes that are sent now arrive: behind what the path has yet to send, never before the flow's last ones. */
static uint64_t flow_due(pccl_sim *sim, struct sim_flow *flow, size_t bytes, uint64_t jitter_ns)
{
    struct sim_path *path = flow->path;
    uint64_t departure_ns = sim->now_ns;
    if (path->now.bytes_per_s) {
        departure_ns = max_u64(departure_ns, path->free_ns);
        departure_ns = saturating_add(departure_ns, bytes * NS_PER_S / path->now.bytes_per_s);
        path->free_ns = departure_ns;
    }
    uint64_t due_ns = saturating_add(departure_ns, saturating_add(path->now.delay_ns, jitter_ns));
    flow->last_due_ns = max_u64(flow->last_due_ns, due_ns);
    return flow->last_due_ns;
}

static uint64_t draw_jitter(pccl_sim *sim, const struct sim_path *path)
{
    return path->now.jitter_ns ? draw(sim) % saturating_add(path->now.jitter_ns, 1) : 0;
}

static void flow_append(pccl_sim *sim, struct sim_flow *flow, struct sim_segment *segment, uint64_t due_ns)
{
    segment->due_ns = due_ns;
    flow->flight_bytes += segment->bytes;
    queue_append(&flow->queue, segment);
    if (flow->queue.first == segment)
        flow_schedule(sim, flow);
}

static void flow_send(pccl_sim *sim, struct sim_flow *flow, struct sim_segment *segment, enum sim_kind kind)
{
    segment->kind = kind;
    flow_append(sim, flow, segment, flow_due(sim, flow, 0, draw_jitter(sim, flow->path)));
}

static void flow_end(pccl_sim *sim, struct sim_flow *flow)
{
    if (flow->ended)
        return;
    flow->ended = 1;
    flow_send(sim, flow, &flow->end, SIM_END);
}

/* Drops what would arrive after due_ns. */
static void flow_truncate(pccl_sim *sim, struct sim_flow *flow, uint64_t due_ns)
{
    struct sim_queue kept = {NULL, NULL};
    while (flow->queue.first && flow->queue.first->due_ns <= due_ns)
        queue_append(&kept, queue_take(&flow->queue));
    for (struct sim_segment *lost = flow->queue.first; lost; lost = lost->next)
        flow->flight_bytes -= lost->bytes;
    queue_clear(&flow->queue);
    flow->queue = kept;
    flow->last_due_ns = kept.last ? kept.last->due_ns : 0;
    flow_schedule(sim, flow);
}

static void flow_clear(pccl_sim *sim, struct sim_flow *flow)
{
    queue_clear(&flow->queue);
    flow->flight_bytes = 0;
    event_cancel(sim, &flow->first);
}

/* Tells the other side that there is no such stream any more, after what is under way. */
static void flow_reset_in_order(pccl_sim *sim, struct sim_flow *flow)
{
    if (flow->was_reset)
        return;
    flow->was_reset = flow->ended = 1;
    flow->reset.kind = SIM_RESET;
    uint64_t due_ns = saturating_add(sim->now_ns, flow->path->now.delay_ns);
    flow->last_due_ns = max_u64(flow->last_due_ns, due_ns);
    flow_append(sim, flow, &flow->reset, flow->last_due_ns);
}

/* The same, overtaking what waits for the path to be free. */
static void flow_reset(pccl_sim *sim, struct sim_flow *flow)
{
    if (!flow->was_reset)
        flow_truncate(sim, flow, saturating_add(sim->now_ns, flow->path->now.delay_ns));
    flow_reset_in_order(sim, flow);
}

/* After a cut: what waited is sent again, in order. */
static void flow_heal(pccl_sim *sim, struct sim_flow *flow)
{
    if (!flow->queue.first || flow->first.queued)
        return;
    flow->last_due_ns = 0;
    for (struct sim_segment *segment = flow->queue.first; segment; segment = segment->next)
        segment->due_ns = flow_due(sim, flow, segment->bytes, 0);
    flow_schedule(sim, flow);
}

/* -- connections -------------------------------------------------------------------------------- */

static void event_init(struct sim_event *event, enum sim_kind kind, struct sim_conn *conn, int side)
{
    event->kind = kind;
    event->conn = conn;
    event->side = side;
}

static struct sim_conn *conn_new(pccl_sim *sim, uint32_t from, uint32_t to)
{
    struct sim_path *there = path_get(sim, from, to), *back = path_get(sim, to, from);
    if (!there || !back || heap_reserve(sim, (sim->conn_count + 1) * SIM_EVENTS_PER_CONN) != PCCL_OK)
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

static void conn_free(struct sim_conn *conn)
{
    pccl_sim *sim = conn->sim;
    event_cancel(sim, &conn->timeout);
    for (int side = 0; side < 2; side++) {
        flow_clear(sim, &conn->flow[side]);
        event_cancel(sim, &conn->flow[side].room);
        queue_clear(&conn->end[side].inbox);
    }
    *(conn->previous ? &conn->previous->next : &sim->first_conn) = conn->next;
    *(conn->next ? &conn->next->previous : &sim->last_conn) = conn->previous;
    sim->conn_count--;
    free(conn);
}

static int is_live(const struct sim_stream *s)
{
    return s->state == SIM_DIALING || s->state == SIM_WAITING || s->state == SIM_OPEN;
}

static struct sim_stream *conn_begin(struct sim_conn *conn, int side, struct sim_transport *t, enum sim_state state)
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

static void conn_reset(struct sim_conn *conn)
{
    flow_reset(conn->sim, &conn->flow[0]);
    flow_reset(conn->sim, &conn->flow[1]);
}

/* The dialling side gives up before it knows whether the other one took the dial. */
static void conn_abandon(struct sim_conn *conn)
{
    event_cancel(conn->sim, &conn->timeout);
    if (conn->end[1].state == SIM_ABSENT)
        flow_clear(conn->sim, &conn->flow[0]);
    else
        flow_reset(conn->sim, &conn->flow[0]);
}

static void conn_dialled(struct sim_conn *conn, int error)
{
    struct sim_stream *s = &conn->end[0];
    event_cancel(conn->sim, &conn->timeout);
    s->error = error;
    s->state = SIM_OPEN;
    s->news = 1;
}

/* The room that a writer sees. */
static size_t conn_room(const struct sim_conn *conn, int side)
{
    size_t flight_bytes = conn->flow[side].flight_bytes;
    size_t held_bytes = flight_bytes + conn->end[1 - side].unread_bytes;
    if (flight_bytes + SIM_ROOM_MIN_BYTES > SIM_WINDOW_BYTES || held_bytes + SIM_ROOM_MIN_BYTES > SIM_UNREAD_BYTES)
        return 0;
    size_t window_bytes = SIM_WINDOW_BYTES - flight_bytes, unread_bytes = SIM_UNREAD_BYTES - held_bytes;
    return window_bytes < unread_bytes ? window_bytes : unread_bytes;
}

/* -- arrivals ----------------------------------------------------------------------------------- */

static void arrive_dial(struct sim_conn *conn)
{
    pccl_sim *sim = conn->sim;
    struct sim_flow *back = &conn->flow[1];
    struct sim_transport *t = node_transport(sim, conn->flow[0].path->to);
    if (!t) {
        flow_send(sim, back, &back->opening, SIM_REFUSED);
        return;
    }
    struct sim_stream *s = conn_begin(conn, 1, t, SIM_WAITING);
    if (t->last_waiting)
        t->last_waiting->next = s;
    else
        t->first_waiting = s;
    t->last_waiting = s;
    flow_send(sim, back, &back->opening, SIM_ACCEPTED);
}

/* Bytes for an end that is gone are answered with a reset. */
static void arrive_bytes(struct sim_stream *to, struct sim_segment *segment)
{
    if (is_live(to) && !to->error) {
        to->unread_bytes += segment->bytes;
        queue_append(&to->inbox, segment);
        return;
    }
    flow_reset_in_order(to->conn->sim, &to->conn->flow[to->side]);
    segment_free(segment);
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

/* 1 if something arrived, 0 if the path is cut. */
static uint32_t deliver_first(struct sim_conn *conn, int side)
{
    struct sim_flow *flow = &conn->flow[side];
    if (flow->path->now.cut)
        return 0;
    struct sim_segment *segment = queue_take(&flow->queue);
    flow->flight_bytes -= segment->bytes;
    flow_schedule(conn->sim, flow);
    digest_add(conn->sim, flow->path, segment->kind, segment);
    arrive(conn, side, segment);
    return 1;
}

static uint32_t happen(struct sim_event *event)
{
    struct sim_conn *conn = event->conn;
    if (event->kind == SIM_FIRST)
        return deliver_first(conn, event->side);
    digest_add(conn->sim, conn->flow[event->side].path, event->kind, NULL);
    if (event->kind == SIM_TIMEOUT) {
        conn_abandon(conn);
        conn_dialled(conn, ETIMEDOUT);
    }
    return 1;
}

/* -- the transport ------------------------------------------------------------------------------ */

static void ring_add(struct sim_transport *t, struct sim_stream *s)
{
    struct sim_stream *first = t->first_open;
    if (!first) {
        t->first_open = s->previous = s->next = s;
        return;
    }
    s->previous = first->previous;
    s->next = first;
    s->previous->next = s;
    first->previous = s;
}

static void ring_remove(struct sim_transport *t, struct sim_stream *s)
{
    if (t->first_open == s)
        t->first_open = s->next == s ? NULL : s->next;
    s->previous->next = s->next;
    s->next->previous = s->previous;
}

static void stream_gone(struct sim_stream *s)
{
    const struct sim_stream *other = &s->conn->end[1 - s->side];
    s->state = SIM_GONE;
    if (other->state == SIM_GONE || other->state == SIM_ABSENT)
        conn_free(s->conn);
}

static void bury_dead(struct sim_transport *t)
{
    while (t->dead) {
        struct sim_stream *s = t->dead;
        t->dead = s->next;
        stream_gone(s);
    }
}

static pccl_err sim_open(const pccl_config *config, struct transport **transport_p, int *sys_errno_p)
{
    uint32_t number;
    char listen[sizeof config->listen + 1] = "";
    memcpy(listen, config->listen, sizeof config->listen);
    *sys_errno_p = EINVAL;
    if (!config->sim || node_parse(listen, &number) != PCCL_OK)
        return PCCL_EINVAL;
    struct sim_node *node = node_get(config->sim, number);
    *sys_errno_p = EADDRINUSE;
    if (node && node->transport)
        return PCCL_EIO;
    struct sim_transport *t = calloc(1, sizeof *t);
    *sys_errno_p = ENOMEM;
    if (!node || !t) {
        free(t);
        return PCCL_ENOMEM;
    }
    t->base.ops = &sim_ops;
    t->sim = config->sim;
    t->node = number;
    node->transport = t;
    *sys_errno_p = 0;
    *transport_p = &t->base;
    return PCCL_OK;
}

static int has_crashed(const struct sim_transport *t)
{
    return node_transport(t->sim, t->node) != t;
}

static void sim_close(struct transport *transport)
{
    struct sim_transport *t = (struct sim_transport *)transport;
    bury_dead(t);
    while (t->first_waiting) {
        struct sim_stream *s = t->first_waiting;
        t->first_waiting = s->next;
        flow_reset(t->sim, &s->conn->flow[s->side]);
        stream_gone(s);
    }
    if (!has_crashed(t))
        t->sim->nodes[t->node]->transport = NULL;
    free(t);
}

static int sim_port(const struct transport *transport)
{
    return (int)((const struct sim_transport *)transport)->node;
}

static pccl_err sim_dial(struct transport *transport, const char *address, struct stream **stream_p, int *sys_errno_p)
{
    struct sim_transport *t = (struct sim_transport *)transport;
    uint32_t node;
    *sys_errno_p = EINVAL;
    if (node_parse(address, &node) != PCCL_OK)
        return PCCL_EINVAL;
    *sys_errno_p = ENETDOWN;
    if (has_crashed(t))
        return PCCL_EIO;
    struct sim_conn *conn = conn_new(t->sim, t->node, node);
    *sys_errno_p = ENOMEM;
    if (!conn)
        return PCCL_ENOMEM;
    *sys_errno_p = 0;
    struct sim_stream *s = conn_begin(conn, 0, t, SIM_DIALING);
    ring_add(t, s);
    flow_send(t->sim, &conn->flow[0], &conn->flow[0].opening, SIM_DIAL);
    event_at(t->sim, &conn->timeout, saturating_add(t->sim->now_ns, SIM_DIAL_TIMEOUT_NS));
    *stream_p = &s->base;
    return PCCL_OK;
}

static pccl_err sim_accept(struct transport *transport, struct stream **stream_p)
{
    struct sim_transport *t = (struct sim_transport *)transport;
    struct sim_stream *s = t->first_waiting;
    if (!s)
        return PCCL_EAGAIN;
    t->first_waiting = s->next;
    if (!t->first_waiting)
        t->last_waiting = NULL;
    s->state = SIM_OPEN;
    ring_add(t, s);
    *stream_p = &s->base;
    return PCCL_OK;
}

/* -- reading and writing ------------------------------------------------------------------------ */

/* Moves bytes of the inbox; frees the segments it empties. */
static size_t inbox_read(struct sim_stream *s, uint8_t *to, size_t bytes)
{
    size_t done = 0;
    while (done < bytes && s->inbox.first) {
        struct sim_segment *segment = s->inbox.first;
        size_t left = segment->bytes - segment->read_bytes;
        size_t taken = left < bytes - done ? left : bytes - done;
        memcpy(to + done, segment->data + segment->read_bytes, taken);
        segment->read_bytes += taken;
        done += taken;
        if (segment->read_bytes == segment->bytes)
            segment_free(queue_take(&s->inbox));
    }
    s->unread_bytes -= done;
    return done;
}

/* The writer hears of room that a read made only after the way back. */
static void tell_room(struct sim_conn *conn, int writer)
{
    if (!is_live(&conn->end[writer]) || conn->flow[writer].room.queued)
        return;
    event_at(conn->sim, &conn->flow[writer].room,
             saturating_add(conn->sim->now_ns, conn->flow[1 - writer].path->now.delay_ns));
}

static ssize_t sim_readv(struct stream *stream, const struct iovec *iov, int iov_count)
{
    struct sim_stream *s = (struct sim_stream *)stream;
    if (!is_live(s))
        return -EBADF;
    if (!s->inbox.first && s->got_end)
        return 0;
    if (!s->inbox.first)
        return s->error ? -s->error : -EAGAIN;
    int writer = 1 - s->side;
    int was_full = conn_room(s->conn, writer) == 0;
    size_t done = 0;
    for (int i = 0; i < iov_count; i++)
        done += inbox_read(s, iov[i].iov_base, iov[i].iov_len);
    if (was_full && conn_room(s->conn, writer) > 0)
        tell_room(s->conn, writer);
    return (ssize_t)done;
}

/* Copies `bytes` bytes into new segments. */
static pccl_err gather(const struct iovec *iov, size_t bytes, struct sim_queue *queue_p)
{
    struct sim_queue queue = {NULL, NULL};
    size_t offset = 0;
    while (bytes > 0) {
        struct sim_segment *segment = segment_new(bytes < SIM_SEGMENT_BYTES ? bytes : SIM_SEGMENT_BYTES);
        if (!segment) {
            queue_clear(&queue);
            return PCCL_ENOMEM;
        }
        for (size_t done = 0; done < segment->bytes;) {
            size_t left = iov->iov_len - offset;
            size_t taken = left < segment->bytes - done ? left : segment->bytes - done;
            memcpy(segment->data + done, (const uint8_t *)iov->iov_base + offset, taken);
            done += taken;
            offset += taken;
            if (offset == iov->iov_len) {
                iov++;
                offset = 0;
            }
        }
        bytes -= segment->bytes;
        queue_append(&queue, segment);
    }
    *queue_p = queue;
    return PCCL_OK;
}

static void corrupt_byte(pccl_sim *sim, struct sim_queue *queue, size_t bytes)
{
    uint64_t dice = draw(sim);
    size_t at = (size_t)(dice % bytes);
    struct sim_segment *segment = queue->first;
    for (; at >= segment->bytes; segment = segment->next)
        at -= segment->bytes;
    segment->data[at] ^= (uint8_t)(1u << (dice >> 61));
}

/* What one write becomes: its segments, twice if chance says so. */
static pccl_err write_segments(struct sim_stream *s, const struct iovec *iov, size_t bytes)
{
    pccl_sim *sim = s->conn->sim;
    struct sim_flow *flow = &s->conn->flow[s->side];
    struct sim_queue queue = {NULL, NULL}, again = {NULL, NULL};
    int twice = chance(sim, flow->path->now.duplicate_ppm);
    if (gather(iov, bytes, &queue) != PCCL_OK || (twice && gather(iov, bytes, &again) != PCCL_OK)) {
        queue_clear(&queue);
        return PCCL_ENOMEM;
    }
    if (chance(sim, flow->path->now.corrupt_ppm))
        corrupt_byte(sim, &queue, bytes);
    queue_move(&again, &queue);
    uint64_t jitter_ns = draw_jitter(sim, flow->path);
    while (queue.first) {
        struct sim_segment *segment = queue_take(&queue);
        flow_append(sim, flow, segment, flow_due(sim, flow, segment->bytes, jitter_ns));
    }
    return PCCL_OK;
}

static size_t iov_bytes(const struct iovec *iov, int iov_count, size_t most_bytes)
{
    size_t bytes = 0;
    for (int i = 0; i < iov_count && bytes < most_bytes; i++)
        bytes += iov[i].iov_len < most_bytes - bytes ? iov[i].iov_len : most_bytes - bytes;
    return bytes;
}

static ssize_t sim_writev(struct stream *stream, const struct iovec *iov, int iov_count)
{
    struct sim_stream *s = (struct sim_stream *)stream;
    if (!is_live(s))
        return -EBADF;
    if (s->error)
        return -s->error;
    struct sim_flow *flow = &s->conn->flow[s->side];
    size_t room_bytes = conn_room(s->conn, s->side);
    if (s->state == SIM_DIALING || flow->ended || room_bytes == 0)
        return -EAGAIN;
    size_t bytes = iov_bytes(iov, iov_count, room_bytes);
    if (bytes == 0)
        return 0;
    if (chance(s->conn->sim, flow->path->now.reset_ppm))
        conn_reset(s->conn);
    else if (write_segments(s, iov, bytes) != PCCL_OK)
        return -ENOMEM;
    return (ssize_t)bytes;
}

static void sim_want(struct stream *stream, unsigned interest)
{
    ((struct sim_stream *)stream)->interest = interest;
}

static void sim_stream_close(struct stream *stream, int abort)
{
    struct sim_stream *s = (struct sim_stream *)stream;
    if (!is_live(s))
        return;
    struct sim_flow *flow = &s->conn->flow[s->side];
    if (s->state == SIM_DIALING)
        conn_abandon(s->conn);
    else if (abort)
        flow_reset(s->conn->sim, flow);
    else
        flow_end(s->conn->sim, flow);
    queue_clear(&s->inbox);
    s->unread_bytes = 0;
    s->state = SIM_CLOSED;
    s->base.user = NULL;
    ring_remove(s->transport, s);
    s->next = s->transport->dead;
    s->transport->dead = s;
}

static void sim_info(const struct stream *stream, struct stream_info *info_p)
{
    const struct sim_stream *s = (const struct sim_stream *)stream;
    const struct sim_flow *flow = &s->conn->flow[s->side], *back = &s->conn->flow[1 - s->side];
    memset(info_p, 0, sizeof *info_p);
    info_p->rtt_us = (flow->path->now.delay_ns + back->path->now.delay_ns) / 1000;
    info_p->unsent_bytes = flow->flight_bytes;
    snprintf(info_p->remote, sizeof info_p->remote, "sim:%u", (unsigned)flow->path->to);
}

/* -- readiness ---------------------------------------------------------------------------------- */

static unsigned readiness(struct sim_stream *s)
{
    if (s->state == SIM_DIALING)
        return 0;
    if (s->news) {
        s->news = 0;
        return s->error ? TRANSPORT_READ | TRANSPORT_WRITE : TRANSPORT_WRITE;
    }
    unsigned what = 0;
    if (s->inbox.first || s->got_end || s->error)
        what |= TRANSPORT_READ;
    if (s->error || (!s->conn->flow[s->side].ended && conn_room(s->conn, s->side) > 0))
        what |= TRANSPORT_WRITE;
    return what & s->interest;
}

/* Goes once round the ring, from where the poll that filled its array stopped. */
static int poll_streams(struct sim_transport *t, struct transport_ready *ready, int cap)
{
    struct sim_stream *begin = t->first_open, *s = begin;
    int count = 0;
    while (s && count < cap) {
        unsigned what = readiness(s);
        if (what)
            ready[count++] = (struct transport_ready){.stream = &s->base, .what = what};
        s = s->next;
        if (s == begin)
            return count;
    }
    t->first_open = s;
    return count;
}

static int sim_poll(struct transport *transport, uint64_t timeout_ns, struct transport_ready *ready, int cap)
{
    struct sim_transport *t = (struct sim_transport *)transport;
    (void)timeout_ns;
    bury_dead(t);
    int count = 0;
    if (count < cap && atomic_exchange(&t->woken, 0))
        ready[count++] = (struct transport_ready){.what = TRANSPORT_WAKE};
    if (count < cap && t->first_waiting)
        ready[count++] = (struct transport_ready){.what = TRANSPORT_ACCEPT};
    return count + poll_streams(t, ready + count, cap - count);
}

static void sim_wake(struct transport *transport)
{
    atomic_store(&((struct sim_transport *)transport)->woken, 1);
}

const struct transport_ops sim_ops = {
    .scheme = "sim", .open = sim_open, .close = sim_close, .port = sim_port, .dial = sim_dial, .accept = sim_accept,
    .readv = sim_readv, .writev = sim_writev, .want = sim_want, .stream_close = sim_stream_close, .info = sim_info,
    .poll = sim_poll, .wake = sim_wake,
};

/* -- the public functions ----------------------------------------------------------------------- */

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
    sim->random = mix(seed + 1);
    sim->digest = seed;
    *sim_p = sim;
    return PCCL_OK;
}

void pccl_sim_free(pccl_sim *sim)
{
    if (!sim)
        return;
    while (sim->first_conn)
        conn_free(sim->first_conn);
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
                flow_heal(sim, &conn->flow[side]);
    return PCCL_OK;
}

/* The end's process is gone: what is under way to it is lost, the other end will be told. */
static void end_crash(struct sim_stream *s)
{
    s->error = ECONNRESET;
    flow_clear(s->conn->sim, &s->conn->flow[1 - s->side]);
    if (s->state == SIM_DIALING)
        conn_abandon(s->conn);
    else
        flow_reset(s->conn->sim, &s->conn->flow[s->side]);
}

pccl_err pccl_sim_crash(pccl_sim *sim, uint32_t node)
{
    pccl_err err = check_nodes("pccl_sim_crash", sim, node, node);
    if (err != PCCL_OK)
        return err;
    struct sim_transport *t = node_transport(sim, node);
    if (!t)
        return PCCL_OK;
    sim->nodes[node]->transport = NULL;
    for (struct sim_conn *conn = sim->first_conn; conn; conn = conn->next)
        for (int side = 0; side < 2; side++)
            if (conn->end[side].transport == t && is_live(&conn->end[side]))
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
    return conn->end[0].state == SIM_OPEN && is_live(&conn->end[1]) && !conn->end[0].error && !conn->end[1].error
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
            conn_reset(conn);
            break;
        }
    return PCCL_OK;
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
        event_cancel(sim, event);
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
