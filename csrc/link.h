/* link.h - everything between two peers: N streams used as one pipe of numbered frames.
 *
 * Sending: FINs and GRANTs first, then segments, by priority class and in turns within one (link_queue.c). Each frame goes to
 * whichever stream can take it now, gets the link's next number and stays in its slot until acknowledged; when its stream
 * dies, or is late at the end (link_tail.c), it is sent again on another. Receiving: a number seen before is dropped before its
 * payload is looked at. Frames of ops that this peer has not called yet are parked, within a budget that the sender keeps (eager
 * bytes).
 *
 * Life: IDLE -> CONNECTING -> UP <-> BROKEN, and CLOSED from anywhere (the table in link.c). Engine thread only. */
#ifndef PCCL_LINK_H
#define PCCL_LINK_H

#include "conn.h"
#include "list.h"
#include "loss_meter.h"

enum link_state { LINK_IDLE, LINK_CONNECTING, LINK_UP, LINK_BROKEN, LINK_CLOSED, LINK_STATE_COUNT };
enum link_input { LINK_WANTED, LINK_STREAM_OPEN, LINK_STREAMS_GONE, LINK_UNWANTED, LINK_INPUT_COUNT };

struct flow;
struct op;

/* A stretch of memory: `bytes` from `at` on. */
struct run {
    uint8_t *at;
    uint64_t bytes;
};

/* Who sends: what all frames of an op, or of a transfer, have in common. Conns know by it whose memory they are at. */
struct sender {
    uint8_t priority;          /* pccl_priority */
    uint32_t retries;          /* how often a change of membership has thrown it back */
    uint64_t number;           /* order of submission */
    uint64_t sent_bytes;
    struct frame frame;        /* of its segments: type, epoch, name, shape, desc */
    /* Of a transfer, else NULL: a segment has been given to a stream; all that was is acknowledged. The latter may free it. */
    void (*sent)(struct flow *f);
    void (*acked)(struct flow *f);
};

/* A segment that is ready for a peer. */
struct segment {
    struct payload payload;
    uint64_t offset;
    uint32_t bytes;
    uint32_t crc;
    uint16_t step;
    uint8_t crc_known;
    uint8_t windowed;          /* counts against the receiver's granted window */
    uint8_t fresh;             /* of bytes that have just arrived or been folded */
};

/* What one sender sends to one peer. */
struct flow {
    struct sender *sender;
    struct link *link;
    struct flow *prev, *next;  /* in a queue of the link, while it has segments */
    struct segment *segments;  /* ring of `cap` */
    uint32_t head, count, cap;
    uint32_t windowed_sent;
    uint32_t granted;          /* windowed segments the receiver has room for */
    int called;                /* the receiver is known to have called the op */
    uint32_t eager_bytes;      /* sent before that was known */
    uint32_t unacked;          /* slots of the link that still name this flow */
};

/* The flows of one priority class that have segments. */
struct flow_queue {
    struct flow *flows;        /* circular; the next one to be served */
    uint32_t passed_over;      /* segments of higher classes that went since this one last had a turn, while it had some */
};

/* A numbered frame in flight. */
struct slot {
    struct frame frame;
    struct payload payload;
    struct flow *flow;         /* NULL: its memory is nobody's */
    uint32_t conn_serial;      /* the conn it was last given to; 0: waits to be sent again */
    uint32_t other_serial;     /* the conn it was given to before, which lives; 0: none */
    int copied;                /* was given to a second conn while the first lived */
    uint64_t handed_ns;        /* when it was last given to a conn, */
    uint64_t end_bytes;        /* and the conn's handed_bytes then */
};

/* A frame of an op that this peer has not called yet, or of an epoch it does not know yet. */
struct parked {
    struct parked *next;
    struct frame frame;
    uint8_t payload[];
};

/* Filler still to be sent to measure the link (link_probe.c). */
struct probe {
    uint64_t bytes;            /* left; 0: no probe */
    uint64_t end_ns;
    uint64_t until_readings;   /* of the meter, by which a link that is known has been read anew */
};

/* What a link can carry, learned from what it carries (link_meter.c). */
struct meter {
    uint64_t window_begin_ns;  /* 0: none */
    uint64_t window_end_ns;    /* of the window, or of the wait before the first; 0: nothing is measured now */
    uint64_t window_delivered, window_packets, window_again;  /* until its begin: bytes that arrived at the other side; packets sent */
    uint64_t last_bytes, last_ns;  /* the window just before; 0: none */
    uint32_t window_streams, window_changes;  /* in use at its begin; the link's stream_changes then */
    int window_gap;            /* the link could have taken more since its begin */
    uint64_t samples[METER_SAMPLES];  /* a ring: bytes per second */
    uint64_t readings;         /* ever taken */
    uint32_t windows, flat_windows;  /* read; that were not clearly better, at the end */
    int known;                 /* its streams have stopped growing */
    int in_doubt;              /* since nothing arrived for a window, or a stream came or went, no reading was as usual */
    uint32_t doubted;          /* readings dropped meanwhile */
    uint64_t bytes_per_s, usual_bytes_per_s, best_bytes_per_s;  /* the median, once known; see link_meter.c; the best; 0: none yet */
    uint32_t ping_us;          /* the least round trip of pings lately: never too short, while the kernel's is for paced streams */
    int64_t room_bytes;        /* so much more may be on its way now */
    uint64_t short_since_ns;   /* since when only a short queue is kept; 0: it is not */
    uint64_t crowded_until_ns, crowded_ns;  /* so long none, because others fill the queue; how long that was */
    uint64_t saturated_since_ns;  /* there has been more to send than the link is given; 0: there is not */
    uint64_t line_sent, line_received;  /* until the begin of the line's window (line_meter.c) */
    uint32_t line_streams;     /* in use then; 0: it was not a long link that is open */
    uint64_t pace;             /* of each stream, bytes per second; 0: none set */
    int held_back;             /* paced by its share of the line (line_share.c), which tells nothing of what it carries */
    struct loss_meter loss;
};

/* Transfers over a link. */
struct link_transfers {
    struct list fetches;       /* fetch.c: this peer's that have not ended, or whose FETCH is not acknowledged */
    struct list waiting[PCCL_PRIORITY_COUNT];  /* those that have not been asked for yet */
    uint32_t asked;            /* that the other side has, or is to get */
    struct list servings;      /* serve.c: the other side's */
    uint32_t busy;             /* of these, those that have still something to send */
};

struct link {
    pccl_engine *engine;
    struct link *next;         /* engine->links */
    pccl_peer_id id;
    pccl_peer_id via;          /* of a detour: the relay that is dialled instead */
    int dial_via;              /* of a detour: the relay is dialled, else called */
    uint64_t incarnation;      /* which of the links that the two have had: both ends take streams of this one only */
    uint32_t detour_epoch;     /* 0: the link itself; else a detour, whose streams are relayed: frames of that epoch only */
    uint64_t linger_until_ns;  /* of a detour whose epoch is over; 0: it is not */
    char address[80];          /* what is dialled */
    enum link_state state;
    int dial;
    int in_epoch;              /* some live epoch has this peer */
    int prepared;              /* a Hold named this peer */
    int dirty;                 /* in engine->dirty: has something to send */
    struct link *dirty_next;

    struct conn *conns[LIMIT_STREAMS];
    uint32_t streams;          /* how many are kept */
    uint32_t wanted;           /* how many the newest plan wants to be used */
    uint32_t open;             /* how many are open */
    uint32_t used;             /* how many of these get frames: the first `wanted` */
    int in_memory;             /* all of those go through memory of this machine */
    uint32_t stream_changes;   /* how often a stream has come or gone */
    uint32_t next_conn;
    struct conn *check;        /* dialled by the side that does not dial, to see whether the peer is still there */
    uint64_t redial_at_ns, redial_after_ns;
    uint64_t look_at_ns;       /* when the meter looks again for room; NEVER: as soon as there is something to send */
    uint64_t tail_at_ns;       /* when a frame may be late (link_tail.c) */
    uint32_t copied_bytes;     /* since there was last a segment to send */
    pccl_cause told;           /* the worst cause reported in this outage */

    struct slot *slots;        /* WINDOW_FRAMES, by number */
    uint32_t send_next, send_acked;
    uint32_t resend_count;     /* slots that wait to be sent again */
    uint32_t resend_from;      /* none of a smaller number waits */

    uint32_t recv_next;        /* everything below has arrived */
    uint64_t recv_seen[WINDOW_FRAMES / 64];
    uint32_t recv_since_ack;
    uint64_t ack_at_ns;
    int ack_now;

    struct frame *notices;     /* ring: frames without payload that wait for their turn */
    uint32_t notice_head, notice_count, notice_cap;
    struct flow_queue queues[PCCL_PRIORITY_COUNT];

    struct parked *parked_first, *parked_last;
    uint64_t parked_bytes;
    uint32_t parked_count;
    uint64_t eager_outstanding;

    uint64_t last_received_ns, ping_at_ns;
    uint64_t pong_stamp;
    int ping_now, pong_now, call_now;
    uint32_t rtt_us;
    struct meter meter;
    struct probe probe;
    uint64_t sent_bytes, received_bytes;

    int acquainted;            /* kept for transfers, whatever epochs say */
    struct link_transfers transfers;
};

const char *link_state_name(enum link_state state);
/* detour_epoch 0: the link, else the detour of that epoch. */
struct link *link_find(pccl_engine *e, const pccl_peer_id *id, uint32_t detour_epoch);
/* Finds or makes the link and begins to connect. NULL: no memory. */
struct link *link_want(pccl_engine *e, const pccl_member *member, uint32_t streams);
/* Makes the detour to the member through `via` for an epoch. NULL: no memory. */
struct link *link_want_detour(pccl_engine *e, const pccl_member *member, const pccl_member *via, uint32_t epoch,
                              uint32_t streams);
/* Nothing is left that the other side has not acknowledged. */
int link_is_drained(const struct link *l);
/* Closes its streams and frees it; no op may use it any more. */
void link_close(struct link *l);
void link_stream_open(struct link *l, struct conn *c);
void link_stream_lost(struct link *l, struct conn *c, pccl_cause cause, int sys_errno);
/* Due timers; returns when the next one is due. */
uint64_t link_on_time(struct link *l, uint64_t now_ns);
void link_mark_dirty(struct link *l);
void link_pump(struct link *l);

/* link_meter.c */
/* Sets the pace of the streams, if the link is known. */
void meter_pace(struct link *l);
/* Before each round of sending: how much more may be on its way, looked up now and then. */
void meter_look(struct link *l);
/* A ping came back. */
void meter_pong(struct link *l, uint32_t rtt_us);
/* After each round of sending: `saturated` if there is more to send than the streams take. */
void meter_sent(struct link *l, int saturated);
/* Bytes that have arrived at the other side. */
uint64_t meter_delivered(const struct link *l);
/* Does the other side answer about as soon as a thread wakes? */
int meter_near(const struct link *l);
/* Now and then: asks the transport. */
void meter_ask(struct link *l);

/* link_queue.c */
void flow_push(struct flow *f, const struct segment *segment);
/* What it has not sent yet will not be sent. */
void flow_drop(struct flow *f);
/* Whose first segment may go now; NULL: nobody's. */
struct flow *queues_next(const struct link *l);
/* Its first segment has gone. */
void flow_served(struct flow *f);
int queues_empty(const struct link *l);

/* link_probe.c */
/* Sends filler until the link is known or measured anew, an op comes, or this is used up. */
void probe_begin(struct link *l, uint64_t bytes, uint64_t duration_ns);
/* Before each round of sending: ends a probe that is over. */
void probe_look(struct link *l);
void probe_end(struct link *l);
/* The next filler. The caller has made sure that a probe is under way. */
void probe_next(struct link *l, struct frame *frame, const uint8_t **payload_p);

/* link_send.c */
/* A numbered frame without payload that is like `frame` but for these. */
void link_notify(struct link *l, const struct frame *frame, uint8_t type, uint64_t offset);
/* Gives the conn its next frame; 0 if there is none that may go. */
int link_next_frame(struct link *l, struct conn *c);
void link_on_ack(struct link *l, uint32_t link_ack);
void link_resend_lost(struct link *l, const struct conn *c);
/* The memory of the flow's sender must not be touched any more: its frames in flight become VOIDs. */
void link_detach(struct link *l, struct flow *f);
int link_wants_to_send(const struct link *l);
/* Segments or notices, or frames to be sent again. */
int link_has_frames(const struct link *l);
/* Gives the conn a second copy of a frame that another has; it has room for one. */
void link_copy(struct link *l, struct conn *c, struct slot *slot);

/* link_tail.c */
/* Before each round of sending: copies of late frames for streams that are free. */
void tail_look(struct link *l);

/* link_recv.c */
/* A header came in on c: decides where its payload goes (c->target, c->wanted, ...). PCCL_EPROTO ends the stream. */
pccl_err link_on_header(struct link *l, struct conn *c);
/* The payload is complete and its checksum holds. */
pccl_err link_on_frame(struct link *l, struct conn *c, const uint8_t *payload);
/* Gives up the parked frame that the conn was reading into, if any. */
void link_park_cancel(struct conn *c);
/* Hands the op the frames that were parked for it. */
void link_unpark(struct link *l, struct op *op);
/* Drops parked frames of epochs below `epoch`. */
void link_drop_parked(struct link *l, uint32_t epoch);

/* Segments of ops, or filler. */
static inline int link_has_load(const struct link *l)
{
    return l->probe.bytes || !queues_empty(l);
}

static inline struct slot *link_slot(const struct link *l, uint32_t seq)
{
    return &l->slots[seq & (WINDOW_FRAMES - 1)];
}

static inline int seq_before(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) < 0;
}

#endif
