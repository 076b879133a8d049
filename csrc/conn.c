/* conn.c - a conn's life, and frames on their way out. */
#include "conn.h"

#include <errno.h>
#include <string.h>

#include "crc32c.h"
#include "engine.h"
#include "err.h"

static struct conn *conn_new(pccl_engine *e, struct stream *stream, enum conn_state state)
{
    struct conn *c = mem_alloc(sizeof *c);
    uint8_t *staging = mem_alloc(STAGING_BYTES);
    if (!c || !staging) {
        mem_free(c);
        mem_free(staging);
        return NULL;
    }
    c->engine = e;
    c->stream = stream;
    c->state = state;
    c->staging = staging;
    c->staging_limit = STAGING_BYTES;
    c->serial = ++e->next_serial ? e->next_serial : ++e->next_serial;
    c->deadline_ns = e->now_ns + e->config.handshake_timeout_ns;
    engine_wake_at(e, c->deadline_ns);
    c->next = e->conns;
    if (e->conns)
        e->conns->prev = c;
    e->conns = c;
    if (stream)
        stream->user = c;
    return c;
}

void conn_want(struct conn *c, unsigned interest)
{
    if (c->interest != interest) {
        c->interest = interest;
        c->engine->ops->want(c->stream, interest);
    }
}

struct conn *conn_dial(pccl_engine *e, const char *address, const pccl_peer_id *peer, int *sys_errno_p)
{
    struct stream *stream;
    if (e->ops->dial(e->transport, address, &stream, sys_errno_p) != PCCL_OK)
        return NULL;
    struct conn *c = conn_new(e, stream, CONN_DIALLING);
    if (!c) {
        e->ops->stream_close(stream, 1);
        *sys_errno_p = ENOMEM;
        return NULL;
    }
    c->peer = *peer;
    c->interest = TRANSPORT_READ;
    conn_want(c, TRANSPORT_READ | TRANSPORT_WRITE);
    return c;
}

struct conn *conn_waiting(pccl_engine *e, const pccl_peer_id *peer, enum conn_state state)
{
    struct conn *c = conn_new(e, NULL, CONN_CALLS);
    if (c) {
        c->peer = *peer;
        c->answered = state;
    }
    return c;
}

/* A crowd that says nothing must not keep out those that do: of those with this host, or of all, the one that has been silent
 * longest makes room when there are `limit` of them. */
static void limit_unproven(pccl_engine *e, const char *host, uint32_t limit)
{
    struct conn *oldest = NULL;
    uint32_t count = 0;
    for (struct conn *c = e->conns; c; c = c->next) {
        if ((c->state != CONN_WANT_HELLO && c->state != CONN_WANT_PROOF) || (host && strcmp(c->host, host) != 0))
            continue;
        oldest = c;
        count++;
    }
    if (oldest && count >= limit)
        conn_fail(oldest, PCCL_CAUSE_NONE, 0);
}

struct conn *conn_accepted(pccl_engine *e, struct stream *stream)
{
    struct stream_info info;
    e->ops->info(stream, &info);
    if (info.host[0])
        limit_unproven(e, info.host, LIMIT_STRANGERS_PER_HOST);
    if (e->strangers >= LIMIT_STRANGERS)
        limit_unproven(e, NULL, 0);
    if (e->strangers >= LIMIT_STRANGERS) {
        e->ops->stream_close(stream, 1);
        return NULL;
    }
    struct conn *c = conn_new(e, stream, CONN_WANT_HELLO);
    if (!c) {
        e->ops->stream_close(stream, 1);
        return NULL;
    }
    memcpy(c->host, info.host, sizeof c->host);
    e->strangers++;
    c->interest = TRANSPORT_READ;
    return c;
}

static int is_stranger(const struct conn *c)
{
    return c->state == CONN_WANT_HELLO || c->state == CONN_WANT_PROOF || c->state == CONN_PROVEN ||
           c->state == CONN_STRANGER || c->call;
}

static void give_back(struct conn *c, pccl_cause cause)
{
    struct stream *s = c->stream;
    c->stream = NULL;
    if (!engine_defect(c->engine, PCCL_DEFECT_LEAK_STREAM)) {
        c->engine->ops->stream_close(s, cause != PCCL_CAUSE_NONE);
        return;
    }
    s->user = NULL;
    c->engine->ops->want(s, 0);
}

void conn_fail(struct conn *c, pccl_cause cause, int sys_errno)
{
    if (c->state == CONN_DEAD)
        return;
    int was_open = c->state == CONN_OPEN;
    struct conn *twin = c->twin;
    relay_part(c);
    link_park_cancel(c);
    if (is_stranger(c))
        c->engine->strangers--;
    c->state = CONN_DEAD;
    c->engine->dead_conns++;
    if (c->stream)
        give_back(c, cause);
    if (c->link && was_open)
        link_resend_lost(c->link, c);
    if (c->link)
        link_stream_lost(c->link, c, cause, sys_errno);
    c->link = NULL;
    if (twin)
        conn_fail(twin, cause, 0);
}

void conn_free(struct conn *c)
{
    ASSERT(c->state == CONN_DEAD);
    if (c->prev)
        c->prev->next = c->next;
    else
        c->engine->conns = c->next;
    if (c->next)
        c->next->prev = c->prev;
    mem_free(c->staging);
    mem_free(c->scratch);
    mem_free(c->spill);
    mem_free(c);
}

/* A place for one more stream; link->streams if there is none. Of a link that has been still for a while the streams may have
 * died without our knowing: the dialler knows which of its own it has replaced. */
static uint32_t place_for(const struct conn *c, const struct link *link)
{
    for (uint32_t i = 0; i < link->streams; i++)
        if (!link->conns[i])
            return i;
    for (uint32_t i = 0; i < link->streams; i++)
        if (link->conns[i]->state == CONN_DIALLING)
            return i; /* a dial of our own that may never be answered: who dials whom has just been turned round */
    int still = c->engine->now_ns - link->last_received_ns >= 2 * PING_EVERY_NS;
    return still && c->index < link->streams ? c->index : link->streams;
}

int conn_sums(const struct conn *c)
{
    return c->link->detour_epoch || !(c->engine->ops->seals || c->in_memory);
}

void conn_stands(struct conn *c)
{
    c->state = CONN_OPEN;
    conn_want(c, TRANSPORT_READ); /* not what the dial or the handshake waited for */
    link_stream_open(c->link, c);
}

static void adopt(struct conn *c, struct link *link)
{
    uint32_t place = place_for(c, link);
    if (place == link->streams) {
        conn_fail(c, PCCL_CAUSE_NONE, 0);
        return;
    }
    if (link->conns[place])
        conn_fail(link->conns[place], PCCL_CAUSE_NONE, 0);
    if (is_stranger(c))
        c->engine->strangers--;
    c->link = link;
    c->index = place;
    link->conns[place] = c;
    conn_stands(c);
}

void conn_meet(struct conn *c, struct link *link)
{
    if (c->incarnation == link->incarnation) {
        adopt(c, link);
    } else if (c->incarnation < link->incarnation) {
        conn_fail(c, PCCL_CAUSE_NONE, 0);
    } else {
        c->state = CONN_STRANGER;
        conn_want(c, 0);
    }
}

void conn_on_ready(struct conn *c, unsigned what)
{
    switch (c->state) {
    case CONN_DEAD: case CONN_STRANGER: case CONN_CALLS: return;
    case CONN_RELAY_WAITS: case CONN_RELAY_DIALS: case CONN_RELAYS: relay_turn(c, what); return;
    case CONN_OPEN: break;
    default: handshake_turn(c, what); return;
    }
    if (what & TRANSPORT_WRITE) {
        c->blocked = 0;
        link_mark_dirty(c->link);
    }
    if (what & TRANSPORT_READ)
        conn_receive(c);
}

/* -- out --------------------------------------------------------------------------------------------------- */

/* Takes frames only when all before have been written: what waits in the link can still be overtaken by a higher class. */
static void fill_batch(struct conn *c)
{
    uint64_t bytes = 0;
    if (c->out_count)
        return;
    while (c->out_count < SEND_BATCH_FRAMES && bytes < SEND_BATCH_BYTES) {
        if (!link_next_frame(c->link, c))
            return;
        bytes += c->out[(c->out_first + c->out_count - 1) % SEND_BATCH_FRAMES].payload_bytes;
    }
}

static int batch_iov(const struct conn *c, struct iovec *iov)
{
    int count = 0;
    uint32_t skip = c->out_sent;
    for (uint32_t i = 0; i < c->out_count && count + 2 <= SEND_IOV_MAX; i++) {
        const struct outgoing *o = &c->out[(c->out_first + i) % SEND_BATCH_FRAMES];
        if (skip < WIRE_HEADER_BYTES) {
            iov[count++] = (struct iovec){(void *)(uintptr_t)(o->header + skip), WIRE_HEADER_BYTES - skip};
            skip = 0;
        } else {
            skip -= WIRE_HEADER_BYTES;
        }
        if (o->payload_bytes > skip)
            count += payload_iov(o->payload, o->payload_bytes, skip, iov + count, SEND_IOV_MAX - count);
        skip = 0;
    }
    return count;
}

static void batch_advance(struct conn *c, size_t written)
{
    c->sent_bytes += written;
    c->engine->stats.sent_bytes += written;
    c->link->sent_bytes += written;
    written += c->out_sent;
    while (c->out_count) {
        const struct outgoing *o = &c->out[c->out_first];
        size_t whole = WIRE_HEADER_BYTES + (size_t)o->payload_bytes;
        if (written < whole)
            break;
        written -= whole;
        c->out_first = (c->out_first + 1) % SEND_BATCH_FRAMES;
        c->out_count--;
    }
    c->out_sent = (uint32_t)written;
}

static pccl_cause cause_of(int sys_errno)
{
    return sys_errno == ECONNREFUSED ? PCCL_CAUSE_REFUSED : PCCL_CAUSE_RESET;
}

void conn_pump(struct conn *c)
{
    struct iovec iov[SEND_IOV_MAX];
    while (c->state == CONN_OPEN && !c->blocked) {
        fill_batch(c);
        if (!c->out_count)
            break;
        ssize_t n = c->engine->ops->writev(c->stream, iov, batch_iov(c, iov));
        if (n > 0) {
            batch_advance(c, (size_t)n);
        } else if (n == -EAGAIN || n == 0) {
            c->blocked = 1;
        } else {
            conn_fail(c, cause_of((int)-n), (int)-n);
            return;
        }
    }
    if (c->state == CONN_OPEN)
        conn_want(c, TRANSPORT_READ | (c->blocked ? TRANSPORT_WRITE : 0u));
}

/* The spill's part for a frame on its way out; NULL: no memory. */
static uint8_t *spill_of(struct conn *c, const struct outgoing *o)
{
    if (!c->spill)
        c->spill = mem_alloc((size_t)SEND_BATCH_FRAMES * LIMIT_SEGMENT_BYTES);
    return c->spill ? c->spill + (size_t)(o - c->out) * LIMIT_SEGMENT_BYTES : NULL;
}

struct payload conn_copy_payload(struct conn *c, struct payload payload, uint32_t bytes)
{
    uint8_t *copy = spill_of(c, &c->out[(c->out_first + c->out_count) % SEND_BATCH_FRAMES]);
    if (!copy)
        return payload;
    payload_copy(payload, bytes, 0, copy);
    return (struct payload){.data = copy};
}

/* Copies what is still to be written of a frame, so that its memory can be given back. */
static int spill_frame(struct conn *c, struct outgoing *o, uint32_t already)
{
    uint8_t *copy = spill_of(c, o);
    if (!copy)
        return 0;
    if (o->payload.data != copy)
        payload_copy(o->payload, o->payload_bytes, already, copy);
    o->payload = (struct payload){.data = copy};
    o->owner = NULL;
    return 1;
}

static int writes_on(const struct conn *c, const struct sender *owner)
{
    return owner->frame.type == FRAME_FETCH && engine_defect(c->engine, PCCL_DEFECT_LATE_WRITE);
}

/* What is still to come of the payload in hand. */
static void throw_away(struct conn *c)
{
    c->owner = NULL;
    c->target = NULL;
    c->targets = NULL;
    c->wanted = 0;
}

void conn_detach(struct conn *c, const struct sender *owner)
{
    if (c->owner == owner && (c->targets || !writes_on(c, owner)))
        throw_away(c);
    for (uint32_t i = 0; i < c->out_count; i++) {
        struct outgoing *o = &c->out[(c->out_first + i) % SEND_BATCH_FRAMES];
        if (o->owner != owner)
            continue;
        uint32_t already = i == 0 && c->out_sent > WIRE_HEADER_BYTES ? c->out_sent - WIRE_HEADER_BYTES : 0;
        if (!spill_frame(c, o, already)) {
            conn_fail(c, PCCL_CAUSE_NONE, ENOMEM);
            return;
        }
    }
}

void conn_discard_seq(struct conn *c, uint32_t link_seq)
{
    if (c->in_payload && c->wanted && c->frame.link_seq == link_seq) {
        throw_away(c);
        c->counts = 0;
        link_park_cancel(c);
    }
}
