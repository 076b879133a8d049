/* fuzz_pipes.h - the transport of fuzz_mux.c: streams that are memory, without a network, time or a system call.
 *
 * What the input wants to arrive is put into a pipe, which gives it to the engine in gulps; what the engine says is looked
 * through as it leaves: whole frames of ours, and no acknowledgement of what was never sent. */
#ifndef PCCL_FUZZ_PIPES_H
#define PCCL_FUZZ_PIPES_H

#include "fuzz_user.h"

enum { PIPES = 4, PIPE_BYTES = 64 << 10 };

struct pipe {
    struct stream base;
    int is_open;
    uint32_t node;
    unsigned interest;
    uint8_t in[PIPE_BYTES];            /* [in_begin, in_end) has not been read yet */
    uint32_t in_begin, in_end;
    uint32_t gulp;                     /* most bytes of one read; 0: no limit */
    int end;                           /* behind these bytes: 0 nothing, -1 the end, else an errno */
    uint32_t room;                     /* so many bytes more it takes */
    struct frame out;                  /* on its way out: its header, and so much of its payload */
    uint8_t header[WIRE_HEADER_BYTES];
    uint32_t header_bytes, payload_bytes, payload_crc;
};

static struct pipes {
    struct transport base;
    struct pipe all[PIPES];
    uint32_t next_seq[PEERS], ack[PEERS];  /* by node: honest ones */
    uint32_t sent_end[PEERS];          /* no number from here on was ever sent */
    int has_link[PEERS];
} pipes;

/* -- what the engine says ------------------------------------------------------------------------------------------- */

/* The memory of an op may change under a segment that a peer has answered before it got it: honest ones do not. Bare payloads have no checksum. */
static void end_of_frame(struct pipe *p)
{
    REQUIRE(p->payload_crc == p->out.payload_crc || p->out.type == FRAME_DATA || !wire_sums(&p->out) || !p->out.payload_bytes);
    REQUIRE((int32_t)(p->out.link_ack - pipes.sent_end[p->node]) <= 0);
    if (wire_numbered(p->out.type) && (int32_t)(p->out.link_seq + 1 - pipes.ack[p->node]) > 0)
        pipes.ack[p->node] = p->out.link_seq + 1;
    p->header_bytes = p->payload_bytes = p->payload_crc = 0;
}

static void hear(struct pipe *p, const uint8_t *bytes, size_t count)
{
    while (count) {
        size_t taken = WIRE_HEADER_BYTES - p->header_bytes;
        if (taken) {
            taken = taken < count ? taken : count;
            memcpy(p->header + p->header_bytes, bytes, taken);
            p->header_bytes += (uint32_t)taken;
            if (p->header_bytes == WIRE_HEADER_BYTES)
                REQUIRE(wire_decode(p->header, &p->out) == PCCL_OK);
        } else {
            taken = p->out.payload_bytes - p->payload_bytes;
            taken = taken < count ? taken : count;
            p->payload_crc = crc32c(p->payload_crc, bytes, taken);
            p->payload_bytes += (uint32_t)taken;
        }
        if (p->header_bytes == WIRE_HEADER_BYTES && p->payload_bytes == p->out.payload_bytes)
            end_of_frame(p);
        bytes += taken;
        count -= taken;
    }
}

/* -- the transport ------------------------------------------------------------------------------------------------------ */

static pccl_err pipes_open(const pccl_config *config, struct transport **transport_p, int *sys_errno_p)
{
    (void)config, (void)sys_errno_p;
    *transport_p = &pipes.base;
    return PCCL_OK;
}

static void pipes_close(struct transport *t)
{
    (void)t;
    for (uint32_t i = 0; i < PIPES; i++)
        REQUIRE(!pipes.all[i].is_open);
}

static pccl_err pipes_dial(struct transport *t, const char *address, struct stream **stream_p, int *sys_errno_p)
{
    (void)t, (void)address, (void)stream_p;
    *sys_errno_p = ECONNREFUSED;
    return PCCL_EIO;
}

static ssize_t pipe_readv(struct stream *stream, const struct iovec *iov, int iov_count)
{
    struct pipe *p = (struct pipe *)stream;
    size_t left = p->in_end - p->in_begin, done = 0;
    REQUIRE(p->is_open);
    if (!left && p->end)
        return p->end < 0 ? 0 : -p->end;
    if (p->gulp && left > p->gulp)
        left = p->gulp;
    for (int i = 0; i < iov_count && left; i++) {
        size_t bytes = iov[i].iov_len < left ? iov[i].iov_len : left;
        memcpy(iov[i].iov_base, p->in + p->in_begin, bytes);
        p->in_begin += (uint32_t)bytes;
        left -= bytes;
        done += bytes;
    }
    return done ? (ssize_t)done : -EAGAIN;
}

static ssize_t pipe_writev(struct stream *stream, const struct iovec *iov, int iov_count)
{
    struct pipe *p = (struct pipe *)stream;
    size_t done = 0;
    REQUIRE(p->is_open);
    if (p->end > 0)
        return -p->end;
    for (int i = 0; i < iov_count && p->room; i++) {
        size_t bytes = iov[i].iov_len < p->room ? iov[i].iov_len : p->room;
        hear(p, iov[i].iov_base, bytes);
        p->room -= (uint32_t)bytes;
        done += bytes;
    }
    return done ? (ssize_t)done : -EAGAIN;
}

static void pipe_want(struct stream *stream, unsigned interest)
{
    ((struct pipe *)stream)->interest = interest;
}

static void pipe_close(struct stream *stream, int abort_it)
{
    struct pipe *p = (struct pipe *)stream;
    (void)abort_it;
    REQUIRE(p->is_open);
    p->is_open = 0;
}

static void pipe_info(const struct stream *stream, struct stream_info *info_p)
{
    (void)stream;
    memset(info_p, 0, sizeof *info_p);
}

static unsigned readiness(const struct pipe *p)
{
    unsigned readable = p->in_begin < p->in_end || p->end ? TRANSPORT_READ : 0;
    return (readable | (p->room || p->end > 0 ? TRANSPORT_WRITE : 0u)) & p->interest;
}

static int pipes_poll(struct transport *t, uint64_t timeout_ns, struct transport_ready *ready, int cap)
{
    int count = 0;
    (void)t, (void)timeout_ns;
    for (uint32_t i = 0; i < PIPES && count < cap; i++) {
        struct pipe *p = &pipes.all[i];
        if (p->is_open && readiness(p))
            ready[count++] = (struct transport_ready){.stream = &p->base, .what = readiness(p)};
    }
    return count;
}

static const struct transport_ops pipe_ops = {
    .scheme = "pipes", .open = pipes_open, .close = pipes_close, .dial = pipes_dial, .readv = pipe_readv, .writev = pipe_writev,
    .want = pipe_want, .stream_close = pipe_close, .info = pipe_info, .poll = pipes_poll,
};

/* This program has no other: the library's list of transports is not linked. */
const struct transport_ops *transport_find(const char *scheme)
{
    return strcmp(scheme, pipe_ops.scheme) == 0 ? &pipe_ops : NULL;
}

/* -- streams that stand ------------------------------------------------------------------------------------------------- */

static void pipes_reset(void)
{
    for (uint32_t i = 0; i < PIPES; i++)
        pipes.all[i].is_open = 0;
    memset(pipes.next_seq, 0, sizeof pipes.next_seq);
    memset(pipes.ack, 0, sizeof pipes.ack);
    memset(pipes.sent_end, 0, sizeof pipes.sent_end);
    memset(pipes.has_link, 0, sizeof pipes.has_link);
    pipes.base.ops = &pipe_ops;
}

static struct link *link_to(uint32_t node)
{
    pccl_peer_id id = id_of(node);
    return link_find(w.engine, &id, 0);
}

/* One more stream to the node, which has proved itself: as handshake_turn leaves it. */
static void open_pipe(uint32_t node)
{
    struct pipe *p = pipes.all;
    while (p < pipes.all + PIPES && p->is_open)
        p++;
    if (p == pipes.all + PIPES)
        return;
    memset(p, 0, offsetof(struct pipe, in));
    memset(&p->in_begin, 0, sizeof *p - offsetof(struct pipe, in_begin));
    p->base.ops = &pipe_ops;
    p->is_open = 1;
    p->node = node;
    p->interest = TRANSPORT_READ;
    p->room = UINT32_MAX;
    struct conn *c = conn_accepted(w.engine, &p->base);
    REQUIRE(c != NULL);
    struct link *l = link_to(node);
    c->peer = id_of(node);
    c->state = CONN_STRANGER;
    if (l)
        conn_meet(c, l);
    else
        conn_want(c, 0);
}

/* Bytes that are to arrive; what finds no room is lost, and with it the stream. */
static void put(struct pipe *p, const uint8_t *bytes, size_t count)
{
    if (p->in_begin == p->in_end)
        p->in_begin = p->in_end = 0;
    if (count > PIPE_BYTES - p->in_end) {
        p->end = ECONNRESET;
        return;
    }
    memcpy(p->in + p->in_end, bytes, count);
    p->in_end += (uint32_t)count;
}

#endif
