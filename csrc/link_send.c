/* link_send.c - what a link sends next, and what it keeps until it is acknowledged. */
#include <string.h>

#include "engine.h"
#include "err.h"

static uint32_t window_left(const struct link *l)
{
    return WINDOW_FRAMES - (l->send_next - l->send_acked);
}

void link_notify(struct link *l, const struct frame *frame, uint8_t type, uint64_t offset)
{
    if (l->notice_count == l->notice_cap) {
        uint32_t cap = l->notice_cap ? 2 * l->notice_cap : 64;
        struct frame *bigger = mem_alloc(cap * sizeof *bigger);
        ASSERT(bigger);
        for (uint32_t i = 0; i < l->notice_count; i++)
            bigger[i] = l->notices[(l->notice_head + i) % l->notice_cap];
        mem_free(l->notices);
        l->notices = bigger;
        l->notice_head = 0;
        l->notice_cap = cap;
    }
    struct frame *notice = &l->notices[(l->notice_head + l->notice_count++) % l->notice_cap];
    *notice = *frame;
    notice->type = type;
    notice->offset = offset;
    link_mark_dirty(l);
}

/* -- frames ------------------------------------------------------------------------------------------------ */

static void hand_over(struct link *l, struct conn *c, const struct frame *frame, struct payload payload,
                      const struct sender *owner)
{
    struct outgoing *o = &c->out[(c->out_first + c->out_count++) % SEND_BATCH_FRAMES];
    struct frame stamped = *frame;
    stamped.link_ack = l->recv_next;
    wire_encode(&stamped, o->header);
    o->payload = payload;
    o->payload_bytes = frame->payload_bytes;
    o->owner = owner;
    c->handed_bytes += WIRE_HEADER_BYTES + (uint64_t)frame->payload_bytes;
    l->recv_since_ack = 0;
    l->ack_now = 0;
    l->ack_at_ns = NEVER;
}

static void hand_over_slot(struct link *l, struct conn *c, struct slot *slot)
{
    struct payload payload = slot->payload;
    if (payload.changes) {
        payload = conn_copy_payload(c, payload, slot->frame.payload_bytes);
        slot->frame.summed = 0;
    }
    if (slot->frame.payload_bytes && !slot->frame.summed && wire_sums(&slot->frame) && conn_sums(c)) {
        slot->frame.payload_crc = payload_crc(payload, slot->frame.payload_bytes);
        slot->frame.summed = 1;
    }
    hand_over(l, c, &slot->frame, payload, slot->flow ? slot->flow->sender : NULL);
    slot->conn_serial = c->serial;
    slot->handed_ns = l->engine->now_ns;
    slot->end_bytes = c->handed_bytes;
}

static void send_numbered(struct link *l, struct conn *c, struct frame *frame, struct payload payload, struct flow *flow)
{
    frame->link_seq = l->send_next++;
    struct slot *slot = link_slot(l, frame->link_seq);
    *slot = (struct slot){.frame = *frame, .payload = payload, .flow = flow};
    if (flow)
        flow->unacked++;
    hand_over_slot(l, c, slot);
}

static int send_again(struct link *l, struct conn *c)
{
    if (!l->resend_count)
        return 0;
    for (uint32_t seq = l->resend_from; seq_before(seq, l->send_next); seq++) {
        struct slot *slot = link_slot(l, seq);
        if (slot->conn_serial)
            continue;
        l->resend_from = seq + 1;
        l->resend_count--;
        l->engine->stats.frames_resent++;
        hand_over_slot(l, c, slot);
        return 1;
    }
    ASSERT(!"a frame that waits to be sent again is in its slot");
    return 0;
}

void link_copy(struct link *l, struct conn *c, struct slot *slot)
{
    slot->copied = 1;
    slot->other_serial = slot->conn_serial;
    l->engine->stats.frames_copied++;
    hand_over_slot(l, c, slot);
}

static int send_notice(struct link *l, struct conn *c)
{
    if (!l->notice_count || !window_left(l))
        return 0;
    struct frame frame = l->notices[l->notice_head];
    l->notice_head = (l->notice_head + 1) % l->notice_cap;
    l->notice_count--;
    send_numbered(l, c, &frame, (struct payload){0}, NULL);
    return 1;
}

static int send_segment(struct link *l, struct conn *c)
{
    struct flow *f = window_left(l) > WINDOW_RESERVE && l->meter.room_bytes > 0 ? queues_next(l) : NULL;
    if (!f)
        return 0;
    const struct segment *s = &f->segments[f->head];
    struct frame frame = f->sender->frame;
    frame.step = s->step;
    frame.offset = s->offset;
    frame.payload_bytes = s->bytes;
    frame.payload_crc = s->crc;
    frame.summed = s->crc_known;
    if (!f->called) {
        f->eager_bytes += s->bytes;
        l->eager_outstanding += s->bytes;
    }
    if (s->windowed)
        f->windowed_sent++;
    f->sender->sent_bytes += s->bytes;
    if (f->sender->priority != PCCL_PRIORITY_LOW)
        serve_charge(l->engine, s->bytes);
    l->meter.room_bytes -= s->bytes;
    struct payload payload = s->payload;
    flow_served(f);
    send_numbered(l, c, &frame, payload, f);
    if (f->sender->sent)
        f->sender->sent(f);
    return 1;
}

static int send_call(struct link *l, struct conn *c)
{
    struct conn *waiting = l->call_now ? call_next(l->engine, &l->id) : NULL;
    l->call_now = waiting != NULL;
    if (!waiting)
        return 0;
    struct frame frame = {.type = FRAME_CALL, .offset = waiting->serial};
    waiting->asked = 1;
    hand_over(l, c, &frame, (struct payload){0}, NULL);
    return 1;
}

/* Unnumbered: what is lost of it nobody wants again. */
static int send_probe(struct link *l, struct conn *c)
{
    if (!l->probe.bytes || l->meter.room_bytes <= 0)
        return 0;
    struct frame frame;
    const uint8_t *payload;
    probe_next(l, &frame, &payload);
    l->meter.room_bytes -= frame.payload_bytes;
    hand_over(l, c, &frame, (struct payload){.data = payload}, NULL);
    return 1;
}

static int send_sign_of_life(struct link *l, struct conn *c)
{
    struct frame frame = {0};
    if (l->pong_now) {
        frame.type = FRAME_PONG;
        frame.offset = l->pong_stamp;
        l->pong_now = 0;
    } else if (l->ping_now) {
        frame.type = FRAME_PING;
        frame.offset = l->engine->now_ns;
        l->ping_now = 0;
    } else if (l->ack_now) {
        frame.type = FRAME_ACK;
    } else {
        return 0;
    }
    hand_over(l, c, &frame, (struct payload){0}, NULL);
    return 1;
}

int link_next_frame(struct link *l, struct conn *c)
{
    if (!c->used)
        return 0;
    return send_again(l, c) || send_call(l, c) || send_notice(l, c) || send_segment(l, c) ||
           send_sign_of_life(l, c) || send_probe(l, c);
}

int link_has_frames(const struct link *l)
{
    return l->resend_count || l->notice_count || !queues_empty(l);
}

int link_wants_to_send(const struct link *l)
{
    return link_has_frames(l) || l->pong_now || l->ping_now || l->call_now || l->ack_now || l->probe.bytes;
}

/* -- acknowledgement ------------------------------------------------------------------------------------------ */

void link_on_ack(struct link *l, uint32_t link_ack)
{
    if (seq_before(l->send_next, link_ack))
        return;
    while (seq_before(l->send_acked, link_ack)) {
        struct slot *slot = link_slot(l, l->send_acked++);
        if (!slot->conn_serial)
            l->resend_count--;
        struct flow *f = slot->flow;
        slot->flow = NULL;
        slot->payload = (struct payload){0};
        if (f && --f->unacked == 0 && f->sender->acked)
            f->sender->acked(f);
    }
    if (seq_before(l->resend_from, l->send_acked))
        l->resend_from = l->send_acked;
    if (link_wants_to_send(l))
        link_mark_dirty(l);
}

/* Of two copies the other side reads on with the one that began last, which may be either: if one's conn is lost, so may be both. */
static int is_lost(struct slot *slot, uint32_t serial)
{
    if (slot->conn_serial == serial) {
        slot->conn_serial = 0;
        return 1;
    }
    if (slot->other_serial != serial)
        return 0;
    slot->other_serial = slot->conn_serial;
    slot->conn_serial = 0;
    return slot->other_serial != 0;
}

void link_resend_lost(struct link *l, const struct conn *c)
{
    if (engine_defect(l->engine, PCCL_DEFECT_LOSE_RESEND))
        return;
    for (uint32_t seq = l->send_acked; seq_before(seq, l->send_next); seq++) {
        struct slot *slot = link_slot(l, seq);
        if (!is_lost(slot, c->serial))
            continue;
        l->resend_count++;
        if (seq_before(seq, l->resend_from))
            l->resend_from = seq;
    }
    link_mark_dirty(l);
}

/* The other side has these frames, or will never want them: what is left of them is their number. */
static void void_slots(struct link *l, struct flow *f)
{
    for (uint32_t seq = l->send_acked; f->unacked && seq_before(seq, l->send_next); seq++) {
        struct slot *slot = link_slot(l, seq);
        if (slot->flow != f)
            continue;
        slot->frame = (struct frame){.type = FRAME_VOID, .link_seq = seq};
        slot->payload = (struct payload){0};
        slot->flow = NULL;
        f->unacked--;
    }
    ASSERT(f->unacked == 0);
}

void link_detach(struct link *l, struct flow *f)
{
    flow_drop(f);
    if (!f->called)
        l->eager_outstanding -= f->eager_bytes;
    f->eager_bytes = 0;
    if (f->unacked)
        void_slots(l, f);
    for (uint32_t i = 0; i < l->streams; i++)
        if (l->conns[i] && l->conns[i]->state == CONN_OPEN)
            conn_detach(l->conns[i], f->sender);
}
