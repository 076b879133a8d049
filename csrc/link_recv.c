/* link_recv.c - what arrives on a link: numbers, duplicates, parking, and delivery to ops. */
#include <string.h>

#include "engine.h"
#include "err.h"

/* -- numbers ------------------------------------------------------------------------------------------------- */

static int seen(const struct link *l, uint32_t seq)
{
    if (seq_before(seq, l->recv_next))
        return 1;
    uint32_t bit = seq & (WINDOW_FRAMES - 1);
    return (int)(l->recv_seen[bit / 64] >> (bit % 64) & 1);
}

static void mark_seen(struct link *l, uint32_t seq)
{
    if (seen(l, seq))
        return;
    uint32_t bit = seq & (WINDOW_FRAMES - 1);
    l->recv_seen[bit / 64] |= 1ULL << (bit % 64);
    for (bit = l->recv_next & (WINDOW_FRAMES - 1); l->recv_seen[bit / 64] >> (bit % 64) & 1;
         bit = l->recv_next & (WINDOW_FRAMES - 1)) {
        l->recv_seen[bit / 64] &= ~(1ULL << (bit % 64));
        l->recv_next++;
    }
    if (++l->recv_since_ack >= ACK_EVERY_FRAMES) {
        l->ack_now = 1;
        link_mark_dirty(l);
    } else if (l->ack_at_ns == NEVER) {
        l->ack_at_ns = l->engine->now_ns + ACK_DELAY_NS;
        engine_wake_at(l->engine, l->ack_at_ns);
    }
}

/* -- parking --------------------------------------------------------------------------------------------------- */

static uint64_t parked_size(const struct frame *frame)
{
    return sizeof(struct parked) + frame->payload_bytes;
}

/* The sender keeps within its eager budget per attempt; frames of a dead attempt may still lie here beside those of the next. */
static struct parked *park_new(struct link *l, const struct frame *frame)
{
    uint64_t bytes_max = 4ULL * l->engine->config.eager_bytes + LIMIT_SEGMENT_BYTES;
    if (l->parked_count >= LIMIT_PARKED_FRAMES ||
        (frame->payload_bytes && l->parked_bytes + parked_size(frame) > bytes_max + LIMIT_PARKED_FRAMES * sizeof(struct parked)))
        return NULL;
    struct parked *p = mem_alloc(parked_size(frame));
    if (!p)
        return NULL;
    p->frame = *frame;
    l->parked_count++;
    l->parked_bytes += parked_size(frame);
    l->engine->stats.parked_bytes += parked_size(frame);
    return p;
}

static void park_free(struct link *l, struct parked *p)
{
    l->parked_count--;
    l->parked_bytes -= parked_size(&p->frame);
    l->engine->stats.parked_bytes -= parked_size(&p->frame);
    mem_free(p);
}

static void park_append(struct link *l, struct parked *p)
{
    if (l->parked_last)
        l->parked_last->next = p;
    else
        l->parked_first = p;
    l->parked_last = p;
}

void link_park_cancel(struct conn *c)
{
    if (c->parked)
        park_free(c->link, c->parked);
    c->parked = NULL;
}

/* Moves the parked frames that `match` accepts to a list of their own, in order. */
static struct parked *park_extract(struct link *l, int (*match)(const struct frame *, const void *), const void *arg)
{
    struct parked *taken = NULL, **taken_end = &taken, *p = l->parked_first;
    l->parked_first = l->parked_last = NULL;
    while (p) {
        struct parked *next = p->next;
        p->next = NULL;
        if (match(&p->frame, arg)) {
            *taken_end = p;
            taken_end = &p->next;
        } else {
            park_append(l, p);
        }
        p = next;
    }
    return taken;
}

static int below_epoch(const struct frame *frame, const void *arg)
{
    return frame->epoch < *(const uint32_t *)arg;
}

void link_drop_parked(struct link *l, uint32_t epoch)
{
    struct parked *p = park_extract(l, below_epoch, &epoch);
    while (p) {
        struct parked *next = p->next;
        park_free(l, p);
        p = next;
    }
}

/* -- routing --------------------------------------------------------------------------------------------------- */

enum route { ROUTE_OP, ROUTE_PARK, ROUTE_STALE };

/* Is this frame for an op that runs, for one still to be called, or for nobody any more? */
static enum route route_of(const pccl_engine *e, const struct frame *frame, struct op **op_p)
{
    if (frame->epoch > epoch_newest(e))
        return ROUTE_PARK;
    int fenced = e->frozen && !engine_defect(e, PCCL_DEFECT_NO_FENCE);
    if (fenced || !epoch_live(e, frame->epoch))
        return ROUTE_STALE;
    struct op *op = op_table_find(&e->table, &frame->name);
    if (!op)
        return op_is_over(e, &frame->name) ? ROUTE_STALE : ROUTE_PARK;
    if (!op->epoch || op->epoch->number != frame->epoch)
        return ROUTE_STALE;
    *op_p = op;
    return ROUTE_OP;
}

/* The peer has called the op: what it was sent unasked is no longer parked there. */
static void note_called(struct link *l, struct op *op, uint32_t from)
{
    struct flow *f = &op->flows[from];
    if (f->called)
        return;
    f->called = 1;
    l->eager_outstanding -= f->eager_bytes;
    f->eager_bytes = 0;
    link_mark_dirty(l);
}

/* 1 if the frame belongs to the op as this peer called it. */
static int admit(struct link *l, struct op *op, const struct frame *frame, uint32_t *from_p)
{
    uint32_t from = op_rank_of(op, l);
    if (from == op->n)
        return 0;
    note_called(l, op, from);
    if (frame->desc != op->sender.frame.desc || frame->shape != op->request.shape) {
        op_on_mismatch(op, l, frame);
        return 0;
    }
    *from_p = from;
    return 1;
}

static void stale(pccl_engine *e, struct conn *c)
{
    e->stats.frames_stale++;
    c->wanted = 0;
}

static pccl_err place_data(struct link *l, struct conn *c, struct op *op)
{
    uint32_t from;
    if (!admit(l, op, &c->frame, &from)) {
        c->wanted = 0;
        return PCCL_OK;
    }
    pccl_err err = op->algorithm->place(op, from, &c->frame, &c->target);
    if (err != PCCL_OK)
        return err;
    if (c->target) {
        c->owner = &op->sender;
        return PCCL_OK;
    }
    return conn_to_scratch(c);
}

static void discard_other_copies(struct link *l, const struct conn *c)
{
    for (uint32_t i = 0; l->open > 1 && i < l->streams; i++)
        if (l->conns[i] && l->conns[i] != c)
            conn_discard_seq(l->conns[i], c->frame.link_seq);
}

pccl_err link_on_header(struct link *l, struct conn *c)
{
    const struct frame *frame = &c->frame;
    pccl_engine *e = l->engine;
    struct op *op = NULL;
    link_on_ack(l, frame->link_ack);
    if (!wire_numbered(frame->type))
        return frame->type == FRAME_PROBE ? conn_to_scratch(c) : PCCL_OK;
    probe_end(l); /* the other side has an op, or a transfer */
    if (!seq_before(frame->link_seq, l->recv_next + WINDOW_FRAMES))
        return PCCL_EPROTO;
    if (seen(l, frame->link_seq) && !engine_defect(e, PCCL_DEFECT_NO_DEDUPE)) {
        e->stats.frames_duplicate++;
        c->wanted = 0;
        return PCCL_OK;
    }
    discard_other_copies(l, c);
    switch (frame->type) {
    case FRAME_DATA: break;
    case FRAME_FETCH: return conn_to_scratch(c);
    case FRAME_PIECE: return fetch_place(l, c);
    default: return PCCL_OK;
    }
    switch (route_of(e, frame, &op)) {
    case ROUTE_STALE: stale(e, c); return PCCL_OK;
    case ROUTE_OP: return place_data(l, c, op);
    case ROUTE_PARK: break;
    }
    c->parked = park_new(l, frame);
    if (!c->parked)
        return PCCL_EPROTO;
    c->target = c->parked->payload;
    return PCCL_OK;
}

/* -- delivery --------------------------------------------------------------------------------------------------- */

static void on_ping(struct link *l, const struct frame *frame)
{
    l->pong_now = 1;
    l->pong_stamp = frame->offset;
    link_mark_dirty(l);
}

/* A link's round trip only where the transport does not measure: a ping waits behind data here and there, and for a busy engine. */
static void on_pong(struct link *l, const struct conn *c, const struct frame *frame)
{
    if (frame->offset > l->engine->now_ns)
        return;
    uint64_t rtt = (l->engine->now_ns - frame->offset) / 1000;
    uint32_t rtt_us = rtt > UINT32_MAX ? UINT32_MAX : (uint32_t)rtt;
    meter_pong(l, rtt_us);
    struct stream_info info;
    l->engine->ops->info(c->stream, &info);
    if (info.rtt_us)
        return;
    l->rtt_us = l->rtt_us ? l->rtt_us - l->rtt_us / 8 + rtt_us / 8 : rtt_us ? rtt_us : 1;
}

/* FIN, GRANT, and DATA whose payload has been placed at `payload`. The op may be gone afterwards. */
static void deliver(struct link *l, struct op *op, const struct frame *frame, const uint8_t *payload)
{
    uint32_t from;
    if (!admit(l, op, frame, &from))
        return;
    struct flow *f = &op->flows[from];
    switch (frame->type) {
    case FRAME_GRANT:
        if (frame->offset > f->granted)
            f->granted = frame->offset > UINT32_MAX ? UINT32_MAX : (uint32_t)frame->offset;
        link_mark_dirty(l);
        break;
    case FRAME_FIN:
        op_on_fin(op, from);
        break;
    default:
        op->received_bytes += frame->payload_bytes;
        op->algorithm->arrived(op, from, frame, payload);
        break;
    }
}

/* A parked DATA frame: its payload still has to go to its place. */
static void deliver_parked(struct link *l, struct op *op, const struct parked *p)
{
    uint32_t from;
    uint8_t *target = NULL;
    if (p->frame.type == FRAME_DATA) {
        if (!admit(l, op, &p->frame, &from) || op->algorithm->place(op, from, &p->frame, &target) != PCCL_OK)
            return;
        if (target)
            memcpy(target, p->payload, p->frame.payload_bytes);
    }
    deliver(l, op, &p->frame, target ? target : p->payload);
}

static pccl_err on_op_frame(struct link *l, struct conn *c, const uint8_t *payload)
{
    struct op *op = NULL;
    switch (route_of(l->engine, &c->frame, &op)) {
    case ROUTE_STALE:
        l->engine->stats.frames_stale++;
        return PCCL_OK;
    case ROUTE_OP:
        deliver(l, op, &c->frame, payload);
        return PCCL_OK;
    case ROUTE_PARK:
        break;
    }
    struct parked *p = park_new(l, &c->frame);
    if (!p)
        return PCCL_EPROTO;
    if (c->frame.payload_bytes)
        memcpy(p->payload, payload, c->frame.payload_bytes);
    park_append(l, p);
    return PCCL_OK;
}

/* The op may have been called, or its epoch installed, while the payload was on its way. */
static void on_parked_frame(struct link *l, struct parked *p)
{
    struct op *op = NULL;
    enum route route = route_of(l->engine, &p->frame, &op);
    if (route == ROUTE_PARK) {
        park_append(l, p);
        return;
    }
    if (route == ROUTE_OP)
        deliver_parked(l, op, p);
    park_free(l, p);
}

pccl_err link_on_frame(struct link *l, struct conn *c, const uint8_t *payload)
{
    struct parked *parked = c->parked;
    c->parked = NULL;
    if (wire_numbered(c->frame.type) && c->counts)
        mark_seen(l, c->frame.link_seq);
    if (parked) {
        on_parked_frame(l, parked);
        return PCCL_OK;
    }
    if (!c->wanted)
        return PCCL_OK;
    switch (c->frame.type) {
    case FRAME_PING: on_ping(l, &c->frame); return PCCL_OK;
    case FRAME_PONG: on_pong(l, c, &c->frame); return PCCL_OK;
    case FRAME_CALL: call_answer(l, c->frame.offset); return PCCL_OK;
    case FRAME_DATA:
    case FRAME_GRANT:
    case FRAME_FIN: return on_op_frame(l, c, payload);
    case FRAME_FETCH: return serve_on_fetch(l, &c->frame, payload);
    case FRAME_PIECE: return fetch_on_piece(l, &c->frame);
    case FRAME_DENY: fetch_on_deny(l, &c->frame); return PCCL_OK;
    case FRAME_DROP: serve_on_drop(l, &c->frame); return PCCL_OK;
    default: return PCCL_OK;
    }
}

struct op_key {
    pccl_op_name name;
    uint32_t epoch;
};

static int for_op(const struct frame *frame, const void *arg)
{
    const struct op_key *key = arg;
    return frame->epoch == key->epoch && frame->name.lane == key->name.lane &&
           frame->name.boundary == key->name.boundary && frame->name.seq == key->name.seq;
}

void link_unpark(struct link *l, struct op *op)
{
    if (!l->parked_first)
        return;
    pccl_engine *e = l->engine;
    struct op_key key = {op->request.name, op->epoch->number};
    struct parked *p = park_extract(l, for_op, &key);
    while (p) {
        struct parked *next = p->next;
        op = op_table_find(&e->table, &key.name);
        if (op)
            deliver_parked(l, op, p);
        park_free(l, p);
        p = next;
    }
}
