/* conn_recv.c - bytes in: cutting the stream into frames and putting payloads where they belong.
 *
 * Small frames are read ahead into the staging buffer, many per system call. A large payload is read straight to its
 * target (user memory, in one run or several, scratch, a parked frame), and only the next header is read ahead with it, so
 * that its bytes are copied once, by the kernel. Checksums are made as bytes come, while the cache has them. */
#include <errno.h>
#include <string.h>

#include "crc32c.h"
#include "engine.h"
#include "err.h"

static struct payload landing(const struct conn *c)
{
    return (struct payload){.data = c->target, .runs = c->targets};
}

/* So many bytes more have come to their place. */
static void take_bytes(struct conn *c, uint32_t bytes)
{
    if (c->target && c->wanted && c->frame.summed)
        c->got_crc = crc32c(c->got_crc, c->target + c->got, bytes);
    c->got += bytes;
}

static int checksum_holds(const struct conn *c)
{
    if (!c->frame.summed || engine_defect(c->engine, PCCL_DEFECT_NO_CRC))
        return 1;
    uint32_t crc = c->target ? c->got_crc : payload_crc(landing(c), c->frame.payload_bytes);
    return crc == c->frame.payload_crc;
}

static void corrupt(struct conn *c)
{
    c->engine->stats.frames_corrupt++;
    conn_fail(c, PCCL_CAUSE_PROTOCOL, 0);
}

/* The frame in hand is complete. */
static void finish_frame(struct conn *c)
{
    c->in_payload = 0;
    if (c->wanted && c->frame.payload_bytes && !checksum_holds(c)) {
        corrupt(c);
        return;
    }
    if (link_on_frame(c->link, c, c->target) != PCCL_OK) {
        corrupt(c);
        return;
    }
    c->owner = NULL;
    c->target = NULL;
    c->targets = NULL;
}

static int begin_frame(struct conn *c)
{
    if (wire_decode(c->staging + c->staging_begin, &c->frame) != PCCL_OK) {
        corrupt(c);
        return 0;
    }
    c->staging_begin += WIRE_HEADER_BYTES;
    c->in_payload = 1;
    c->got = c->got_crc = 0;
    c->target = NULL;
    c->targets = NULL;
    c->owner = NULL;
    c->parked = NULL;
    c->wanted = c->counts = 1;
    c->frame.summed = (uint8_t)(wire_sums(&c->frame) && conn_sums(c));
    if (link_on_header(c->link, c) != PCCL_OK) {
        corrupt(c);
        return 0;
    }
    c->staging_limit = c->frame.payload_bytes >= DIRECT_READ_BYTES ? WIRE_HEADER_BYTES : STAGING_BYTES;
    return 1;
}

static void take_staged_payload(struct conn *c)
{
    uint32_t left = c->frame.payload_bytes - c->got;
    uint32_t staged = c->staging_end - c->staging_begin;
    uint32_t bytes = left < staged ? left : staged;
    if (bytes && (c->target || c->targets))
        payload_fill(landing(c), c->got, c->staging + c->staging_begin, bytes);
    take_bytes(c, bytes);
    c->staging_begin += bytes;
}

/* Consumes the staging buffer; leaves a partial header, if any, at its front. */
static void parse(struct conn *c)
{
    while (c->state == CONN_OPEN) {
        if (!c->in_payload) {
            if (c->staging_end - c->staging_begin < WIRE_HEADER_BYTES)
                break;
            if (!begin_frame(c))
                return;
        }
        take_staged_payload(c);
        if (c->got < c->frame.payload_bytes)
            break;
        finish_frame(c);
    }
    uint32_t rest = c->staging_end - c->staging_begin;
    memmove(c->staging, c->staging + c->staging_begin, rest);
    c->staging_begin = 0;
    c->staging_end = rest;
}

/* One system call: the rest of the payload in hand, and then ahead into staging. */
static ssize_t read_some(struct conn *c)
{
    struct iovec iov[SHARE_RUNS_MAX + 1];
    int count = 0;
    uint32_t direct = c->in_payload ? c->frame.payload_bytes - c->got : 0;
    if (direct && (c->target || c->targets)) {
        count = payload_iov(landing(c), c->frame.payload_bytes, c->got, iov, SHARE_RUNS_MAX);
    } else if (direct) {
        direct = direct < LIMIT_SEGMENT_BYTES ? direct : LIMIT_SEGMENT_BYTES;
        iov[count++] = (struct iovec){c->engine->sink, direct};
    }
    uint32_t room = c->staging_limit - c->staging_end;
    if (room)
        iov[count++] = (struct iovec){c->staging + c->staging_end, room};
    ssize_t n = c->engine->ops->readv(c->stream, iov, count);
    if (n <= 0)
        return n;
    uint32_t to_payload = (size_t)n < direct ? (uint32_t)n : direct;
    take_bytes(c, to_payload);
    c->staging_end += (uint32_t)n - to_payload;
    return n;
}

pccl_err conn_to_scratch(struct conn *c)
{
    if (!c->scratch)
        c->scratch = mem_alloc(LIMIT_SEGMENT_BYTES);
    c->target = c->scratch;
    return c->scratch ? PCCL_OK : PCCL_ENOMEM;
}

void conn_receive(struct conn *c)
{
    size_t budget = c->in_memory ? READ_BUDGET_MEMORY_BYTES : READ_BUDGET_BYTES;
    while (c->state == CONN_OPEN && budget) {
        ssize_t n = read_some(c);
        if (n == -EAGAIN)
            return;
        if (n <= 0) {
            conn_fail(c, n == 0 ? PCCL_CAUSE_EOF : PCCL_CAUSE_RESET, (int)-n);
            return;
        }
        c->received_bytes += (size_t)n;
        c->link->received_bytes += (size_t)n;
        c->engine->stats.received_bytes += (size_t)n;
        c->link->last_received_ns = c->engine->now_ns;
        budget -= (size_t)n < budget ? (size_t)n : budget;
        parse(c);
    }
}
