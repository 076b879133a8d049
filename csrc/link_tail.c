/* link_tail.c - which frames a link sends a second time because their stream is late, and on which stream.
 *
 * A link has nothing new to send, and yet its peer waits: packets of one stream were lost, or its window has collapsed and the frames
 * lie in its socket, while others that were given as much are done. A frame that has been on its way for more than four round trips
 * goes again, with the same number, on the stream that has the least on its way. The other side reads on with the copy that began
 * last, and drops what it has; so a frame is not late while TCP may still repair it, which takes two round trips where queues are
 * full. What arrived in its kernel, by the transport's count, is never copied, unless it lies there behind a gap: nobody can read it
 * before the gap is closed.
 *
 * So that a path that is merely full is not filled further: copies go only to streams that have next to nothing on their way (what
 * was queued before the bottleneck has gone, then), every frame goes twice at most, and of a tail no more than COPY_BYTES_MAX. */
#include "engine.h"

#define TAIL_FROM_RTT_US 5000u
#define COPY_BYTES_MAX (1u << 20)
/* What a stream that may carry copies has on its way, copies included. */
#define FREE_STREAM_BYTES (64u << 10)
/* Before a frame is late: round trips, and what the other side's kernel may wait before it acknowledges. */
#define LATE_RTT_PERCENT 450
#define LATE_SLACK_NS (15 * MILLISECOND)

struct load {
    uint64_t arrived_bytes;    /* in order, of what the conn was ever given */
    uint64_t waiting_bytes;    /* the rest */
    int late;
};

/* By place in the link. */
struct loads {
    struct load of[LIMIT_STREAMS];
    uint64_t late_after_ns, next_late_ns;
};

static int carries(const struct conn *c)
{
    return c && c->state == CONN_OPEN && c->used;
}

static void read_loads(const struct link *l, struct loads *loads)
{
    for (uint32_t i = 0; i < l->streams; i++) {
        const struct conn *c = l->conns[i];
        struct stream_info info;
        loads->of[i] = (struct load){0};
        if (!c || c->state != CONN_OPEN)
            continue;
        l->engine->ops->info(c->stream, &info);
        uint64_t kept = info.held_bytes + info.behind_gap_bytes;
        loads->of[i].arrived_bytes = c->sent_bytes > kept ? c->sent_bytes - kept : 0;
        loads->of[i].waiting_bytes = c->handed_bytes - loads->of[i].arrived_bytes;
    }
    loads->late_after_ns = l->rtt_us * 1000ULL * LATE_RTT_PERCENT / 100 + LATE_SLACK_NS;
    loads->next_late_ns = l->engine->now_ns + loads->late_after_ns;
}

/* The place of the conn that is late with the slot's frame; l->streams: none is, or it has gone twice already. */
static uint32_t late_with(const struct link *l, const struct slot *slot, struct loads *loads)
{
    if (!slot->conn_serial || slot->copied)
        return l->streams;
    for (uint32_t i = 0; i < l->streams; i++) {
        const struct conn *c = l->conns[i];
        if (!c || c->state != CONN_OPEN || c->serial != slot->conn_serial)
            continue;
        uint64_t late_ns = slot->handed_ns + loads->late_after_ns;
        if (slot->end_bytes <= loads->of[i].arrived_bytes)
            return l->streams;
        if (late_ns <= l->engine->now_ns)
            return i;
        loads->next_late_ns = late_ns < loads->next_late_ns ? late_ns : loads->next_late_ns;
        return l->streams;
    }
    return l->streams;
}

/* The place of the stream with the least on its way; l->streams: none is free. */
static uint32_t freest(const struct link *l, const struct loads *loads)
{
    uint32_t best = l->streams;
    for (uint32_t i = 0; i < l->streams; i++) {
        const struct conn *c = l->conns[i];
        if (!carries(c) || c->blocked || c->out_count == SEND_BATCH_FRAMES || loads->of[i].late ||
            loads->of[i].waiting_bytes >= FREE_STREAM_BYTES)
            continue;
        if (best == l->streams || loads->of[i].waiting_bytes < loads->of[best].waiting_bytes)
            best = i;
    }
    return best;
}

/* 1: there are late streams. */
static int find_late(struct link *l, struct loads *loads)
{
    int any = 0;
    for (uint32_t seq = l->send_acked; seq_before(seq, l->send_next); seq++) {
        uint32_t late = late_with(l, link_slot(l, seq), loads);
        if (late == l->streams)
            continue;
        loads->of[late].late = 1;
        any = 1;
    }
    return any;
}

static void copy_late(struct link *l, struct loads *loads)
{
    for (uint32_t seq = l->send_acked; seq_before(seq, l->send_next); seq++) {
        struct slot *slot = link_slot(l, seq);
        if (late_with(l, slot, loads) == l->streams)
            continue;
        uint32_t to = freest(l, loads);
        uint32_t bytes = WIRE_HEADER_BYTES + slot->frame.payload_bytes;
        if (to == l->streams || l->copied_bytes + bytes > COPY_BYTES_MAX)
            return;
        l->copied_bytes += bytes;
        loads->of[to].waiting_bytes += bytes;
        link_copy(l, l->conns[to], slot);
    }
}

void tail_look(struct link *l)
{
    struct loads loads;
    if (!queues_empty(l))
        l->copied_bytes = 0;
    if (l->send_acked == l->send_next || l->used < 2 || l->rtt_us < TAIL_FROM_RTT_US || link_has_frames(l)) {
        l->tail_at_ns = NEVER;
        return;
    }
    if (l->tail_at_ns != NEVER && l->engine->now_ns < l->tail_at_ns)
        return;
    read_loads(l, &loads);
    if (find_late(l, &loads)) {
        copy_late(l, &loads);
        loads.next_late_ns = l->engine->now_ns + l->rtt_us * 1000ULL / 16;
    }
    l->tail_at_ns = loads.next_late_ns;
    engine_wake_at(l->engine, l->tail_at_ns);
}
