/* sim.c - the transport "sim": streams over the simulated network, and which of them are ready.
 *
 * poll never waits: nothing becomes ready but in pccl_sim_advance. */
#include "sim.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SIM_DIAL_TIMEOUT_NS 3000000000ull

/* -- opening and dialling ---------------------------------------------------------------------- */

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
        sim_conn_free(s->conn);
}

static void bury_dead(struct sim_transport *t)
{
    while (t->dead) {
        struct sim_stream *s = t->dead;
        t->dead = s->next;
        stream_gone(s);
    }
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

static pccl_err sim_open(const pccl_config *config, struct transport **transport_p, int *sys_errno_p)
{
    uint32_t number;
    char listen[sizeof config->listen + 1] = "";
    memcpy(listen, config->listen, sizeof config->listen);
    *sys_errno_p = EINVAL;
    if (!config->sim || node_parse(listen, &number) != PCCL_OK)
        return PCCL_EINVAL;
    struct sim_node *node = sim_node_get(config->sim, number);
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
    return sim_node_transport(t->sim, t->node) != t;
}

static void sim_close(struct transport *transport)
{
    struct sim_transport *t = (struct sim_transport *)transport;
    bury_dead(t);
    while (t->first_waiting) {
        struct sim_stream *s = t->first_waiting;
        t->first_waiting = s->next;
        sim_flow_reset(t->sim, &s->conn->flow[s->side]);
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
    struct sim_conn *conn = sim_conn_new(t->sim, t->node, node);
    *sys_errno_p = ENOMEM;
    if (!conn)
        return PCCL_ENOMEM;
    *sys_errno_p = 0;
    struct sim_stream *s = sim_conn_begin(conn, 0, t, SIM_DIALING);
    ring_add(t, s);
    sim_flow_send(t->sim, &conn->flow[0], &conn->flow[0].opening, SIM_DIAL);
    sim_event_at(t->sim, &conn->timeout, saturating_add(t->sim->now_ns, SIM_DIAL_TIMEOUT_NS));
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
            sim_segment_free(sim_queue_take(&s->inbox));
    }
    s->unread_bytes -= done;
    return done;
}

/* The writer hears of room that a read made only after the way back. */
static void tell_room(struct sim_conn *conn, int writer)
{
    if (!sim_is_live(&conn->end[writer]) || conn->flow[writer].room.queued)
        return;
    sim_event_at(conn->sim, &conn->flow[writer].room,
                 saturating_add(conn->sim->now_ns, conn->flow[1 - writer].path->now.delay_ns));
}

static ssize_t sim_readv(struct stream *stream, const struct iovec *iov, int iov_count)
{
    struct sim_stream *s = (struct sim_stream *)stream;
    if (!sim_is_live(s))
        return -EBADF;
    if (!s->inbox.first && s->got_end)
        return 0;
    if (!s->inbox.first)
        return s->error ? -s->error : -EAGAIN;
    int writer = 1 - s->side;
    int was_full = sim_conn_room(s->conn, writer) == 0;
    size_t done = 0;
    for (int i = 0; i < iov_count; i++)
        done += inbox_read(s, iov[i].iov_base, iov[i].iov_len);
    if (was_full && sim_conn_room(s->conn, writer) > 0)
        tell_room(s->conn, writer);
    return (ssize_t)done;
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
    if (!sim_is_live(s))
        return -EBADF;
    if (s->error)
        return -s->error;
    struct sim_flow *flow = &s->conn->flow[s->side];
    size_t room_bytes = sim_conn_room(s->conn, s->side);
    if (s->state == SIM_DIALING || flow->ended || room_bytes == 0)
        return -EAGAIN;
    size_t bytes = iov_bytes(iov, iov_count, room_bytes);
    if (bytes == 0)
        return 0;
    if (sim_chance(s->conn->sim, flow->path->now.reset_ppm))
        sim_conn_reset(s->conn);
    else if (sim_flow_write(s->conn->sim, flow, iov, bytes) != PCCL_OK)
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
    if (!sim_is_live(s))
        return;
    struct sim_flow *flow = &s->conn->flow[s->side];
    if (s->state == SIM_DIALING)
        sim_conn_abandon(s->conn);
    else if (abort)
        sim_flow_reset(s->conn->sim, flow);
    else
        sim_flow_end(s->conn->sim, flow);
    sim_queue_clear(&s->inbox);
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
    info_p->held_bytes = flow->flight_bytes;
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
    if (s->error || (!s->conn->flow[s->side].ended && sim_conn_room(s->conn, s->side) > 0))
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
