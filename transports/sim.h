/* sim.h - the simulated network's parts as its files see them.
 *
 * Nodes are small integers; a path is one direction between two of them; a connection is two ends and two flows, and
 * flow[side] carries what end[side] sends. sim_clock.c orders the events, sim_flow.c decides when and how what is sent
 * arrives, sim_network.c what an arrival does and what the pccl_sim_* functions do; sim.c is the transport.
 *
 * Events live inside the connections, and the heap has room for all of them before a connection is made; memory can
 * thus run out only in open, dial, writev and pccl_sim_set_path, which say so.
 *
 * One thread, except the transport's wake (any thread). */
#ifndef PCCL_SIM_H
#define PCCL_SIM_H

#include <stdatomic.h>

#include "../csrc/transport.h"

enum {
    SIM_NODES_MAX = 1024,
    SIM_PPM = 1000000,
    SIM_DIALS_LOST = 1,                 /* pccl_sim_path.dials */
    SIM_DIALS_REFUSED = 2
};

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
    int stirred;                        /* something has happened to it since that was asked last */
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

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static inline uint64_t saturating_add(uint64_t a, uint64_t b)
{
    return a + b < a ? UINT64_MAX : a + b;
}

/* The finalizer of splitmix64: a good mixer of 64 bits. */
static inline uint64_t sim_mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* -- sim_clock.c: the events ---------------------------------------------------------------------- */

/* Room for so many events, at least. */
pccl_err sim_heap_reserve(pccl_sim *sim, size_t event_count);
/* Queues the event, or moves it; never earlier than now, and after all that were queued for the same time. */
void sim_event_at(pccl_sim *sim, struct sim_event *event, uint64_t due_ns);
void sim_event_cancel(pccl_sim *sim, struct sim_event *event);

/* -- sim_flow.c: what is under way ----------------------------------------------------------------- */

void sim_queue_append(struct sim_queue *queue, struct sim_segment *segment);
struct sim_segment *sim_queue_take(struct sim_queue *queue);
void sim_queue_clear(struct sim_queue *queue);
void sim_segment_free(struct sim_segment *segment);

/* 1 as often as ppm says. */
int sim_chance(pccl_sim *sim, uint32_t ppm);
/* Puts the event of the flow's first segment where it belongs. */
void sim_flow_schedule(pccl_sim *sim, struct sim_flow *flow);
/* Sends a segment of the flow's own. */
void sim_flow_send(pccl_sim *sim, struct sim_flow *flow, struct sim_segment *segment, enum sim_kind kind);
/* Sends a copy of `bytes` bytes, or nothing: PCCL_ENOMEM. */
pccl_err sim_flow_write(pccl_sim *sim, struct sim_flow *flow, const struct iovec *iov, size_t bytes);
/* Sends the end, once. */
void sim_flow_end(pccl_sim *sim, struct sim_flow *flow);
/* Loses all that is under way. */
void sim_flow_clear(pccl_sim *sim, struct sim_flow *flow);
/* Tells the other side that there is no such stream any more, after what is under way. */
void sim_flow_reset_in_order(pccl_sim *sim, struct sim_flow *flow);
/* The same, overtaking what waits for the path to be free. */
void sim_flow_reset(pccl_sim *sim, struct sim_flow *flow);
/* After a cut: what waited is sent again, in order. */
void sim_flow_heal(pccl_sim *sim, struct sim_flow *flow);

/* -- sim_network.c: nodes and connections ------------------------------------------------------------ */

/* NULL: out of memory. */
struct sim_node *sim_node_get(pccl_sim *sim, uint32_t node);
/* NULL: nobody listens, or it crashed. */
struct sim_transport *sim_node_transport(const pccl_sim *sim, uint32_t node);
/* With both ends absent; NULL: out of memory. */
struct sim_conn *sim_conn_new(pccl_sim *sim, uint32_t from, uint32_t to);
void sim_conn_free(struct sim_conn *conn);
/* Gives one of the ends to a transport. */
struct sim_stream *sim_conn_begin(struct sim_conn *conn, int side, struct sim_transport *t, enum sim_state state);
void sim_conn_reset(struct sim_conn *conn);
/* The dialling side gives up before it knows whether the other one took the dial. */
void sim_conn_abandon(struct sim_conn *conn);
/* The room that a writer sees. */
size_t sim_conn_room(const struct sim_conn *conn, int side);
int sim_is_live(const struct sim_stream *s);

#endif
