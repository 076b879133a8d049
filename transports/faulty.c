/* faulty.c - wraps any other transport and makes its streams as awkward as the contract allows: "faulty+tcp".
 *
 * Always: reads and writes move a few bytes only, and now and then a stream that is ready says EAGAIN (never twice in
 * a row for one direction, and never before it has moved its first bytes, so that the outcome of a dial is not hidden).
 * The wrapped transport is level-triggered and thus reports the stream again. Only if the seed has its top bit set,
 * and rarely: a byte is changed on its way in, or a stream is reset.
 *
 * All decisions come from one generator per transport, seeded by config->fault_seed; over "sim" a seed replays.
 *
 * Engine thread only, except faulty_wake (any thread). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../csrc/transport.h"

enum {
    FAULTY_BATCH = 128,
    FAULTY_PREFIX_BYTES = 7,            /* of "faulty+" */
    FAULTY_PIECE_BYTES_MAX = 4096,
    FAULTY_IOV_MAX = 64,
    FAULTY_AGAIN_ONE_IN = 8,
    FAULTY_CORRUPT_ONE_IN = 4096,
    FAULTY_RESET_ONE_IN = 16384
};

#define FAULTY_HARMFUL_BIT (1ull << 63)

enum faulty_direction { FAULTY_READ, FAULTY_WRITE };

struct faulty_stream {
    struct stream base;
    struct faulty *faulty;
    struct stream *inner;               /* NULL: closed, or reset by us */
    unsigned interest;
    int was_reset;
    int moved[2];                       /* per direction: has moved bytes */
    int said_again[2];                  /* per direction: the last answer was a made-up EAGAIN */
    struct faulty_stream *next;         /* in faulty->broken or faulty->dead */
    char remote[80];
};

struct faulty {
    struct transport base;
    struct transport *inner;
    uint64_t random;
    int is_harmful;
    struct faulty_stream *broken;       /* reset by us, not yet closed by the engine */
    struct faulty_stream *dead;         /* closed; named by the engine's batch until the next poll */
};

extern const struct transport_ops faulty_ops;

/* splitmix64 */
static uint64_t draw(struct faulty *f)
{
    uint64_t z = f->random += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static int one_in(struct faulty *f, uint64_t count)
{
    return draw(f) % count == 0;
}

/* -- the transport --------------------------------------------------------------------------- */

static pccl_err faulty_open(const pccl_config *config, struct transport **transport_p, int *sys_errno_p)
{
    pccl_config inner_config = *config;
    memset(inner_config.transport, 0, sizeof inner_config.transport);
    memcpy(inner_config.transport, config->transport + FAULTY_PREFIX_BYTES,
           sizeof config->transport - FAULTY_PREFIX_BYTES - 1);
    const struct transport_ops *inner_ops = transport_find(inner_config.transport);
    *sys_errno_p = EINVAL;
    if (!inner_ops)
        return PCCL_EINVAL;
    struct faulty *f = calloc(1, sizeof *f);
    *sys_errno_p = ENOMEM;
    if (!f)
        return PCCL_ENOMEM;
    pccl_err err = inner_ops->open(&inner_config, &f->inner, sys_errno_p);
    if (err != PCCL_OK) {
        free(f);
        return err;
    }
    f->base.ops = &faulty_ops;
    f->random = config->fault_seed;
    f->is_harmful = (config->fault_seed & FAULTY_HARMFUL_BIT) != 0;
    *transport_p = &f->base;
    return PCCL_OK;
}

static void bury_dead(struct faulty *f)
{
    while (f->dead) {
        struct faulty_stream *s = f->dead;
        f->dead = s->next;
        free(s);
    }
}

static void faulty_close(struct transport *transport)
{
    struct faulty *f = (struct faulty *)transport;
    bury_dead(f);
    f->inner->ops->close(f->inner);
    free(f);
}

static int faulty_port(const struct transport *transport)
{
    const struct faulty *f = (const struct faulty *)transport;
    return f->inner->ops->port(f->inner);
}

static void faulty_wake(struct transport *transport)
{
    struct faulty *f = (struct faulty *)transport;
    f->inner->ops->wake(f->inner);
}

/* -- streams --------------------------------------------------------------------------------- */

/* Takes the inner stream, also on failure, when it resets it. */
static pccl_err wrap(struct faulty *f, struct stream *inner, struct stream **stream_p)
{
    struct faulty_stream *s = calloc(1, sizeof *s);
    if (!s) {
        inner->ops->stream_close(inner, 1);
        return PCCL_ENOMEM;
    }
    s->base.ops = &faulty_ops;
    s->faulty = f;
    s->inner = inner;
    s->interest = TRANSPORT_READ;
    inner->user = s;
    *stream_p = &s->base;
    return PCCL_OK;
}

static pccl_err faulty_dial(struct transport *transport, const char *address, struct stream **stream_p,
                            int *sys_errno_p)
{
    struct faulty *f = (struct faulty *)transport;
    struct stream *inner;
    pccl_err err = f->inner->ops->dial(f->inner, address, &inner, sys_errno_p);
    if (err != PCCL_OK)
        return err;
    err = wrap(f, inner, stream_p);
    if (err != PCCL_OK)
        *sys_errno_p = ENOMEM;
    return err;
}

static pccl_err faulty_accept(struct transport *transport, struct stream **stream_p)
{
    struct faulty *f = (struct faulty *)transport;
    struct stream *inner;
    while (f->inner->ops->accept(f->inner, &inner) == PCCL_OK)
        if (wrap(f, inner, stream_p) == PCCL_OK)
            return PCCL_OK;
    return PCCL_EAGAIN;
}

static void faulty_want(struct stream *stream, unsigned interest)
{
    struct faulty_stream *s = (struct faulty_stream *)stream;
    s->interest = interest;
    if (s->inner)
        s->inner->ops->want(s->inner, interest);
}

static void faulty_pace(struct stream *stream, uint64_t bytes_per_s)
{
    const struct faulty_stream *s = (const struct faulty_stream *)stream;
    if (s->inner && s->inner->ops->pace)
        s->inner->ops->pace(s->inner, bytes_per_s);
}

static int faulty_rest(struct stream *stream)
{
    const struct faulty_stream *s = (const struct faulty_stream *)stream;
    return !s->inner || !s->inner->ops->rest || s->inner->ops->rest(s->inner);
}

static void faulty_info(const struct stream *stream, struct stream_info *info_p)
{
    const struct faulty_stream *s = (const struct faulty_stream *)stream;
    memset(info_p, 0, sizeof *info_p);
    if (s->inner)
        s->inner->ops->info(s->inner, info_p);
    else
        memcpy(info_p->remote, s->remote, sizeof info_p->remote);
    info_p->in_memory = 0; /* bytes may change on their way after all */
}

static void close_inner(struct faulty_stream *s, int abort)
{
    struct stream_info info;
    s->inner->ops->info(s->inner, &info);
    memcpy(s->remote, info.remote, sizeof s->remote);
    s->inner->ops->stream_close(s->inner, abort);
    s->inner = NULL;
}

static void broken_remove(struct faulty *f, struct faulty_stream *s)
{
    struct faulty_stream **link = &f->broken;
    while (*link != s)
        link = &(*link)->next;
    *link = s->next;
}

static int is_closed(const struct faulty_stream *s)
{
    return !s->inner && !s->was_reset;
}

static void faulty_stream_close(struct stream *stream, int abort)
{
    struct faulty_stream *s = (struct faulty_stream *)stream;
    if (is_closed(s))
        return;
    if (s->was_reset)
        broken_remove(s->faulty, s);
    else
        close_inner(s, abort);
    s->was_reset = 0;
    s->base.user = NULL;
    s->next = s->faulty->dead;
    s->faulty->dead = s;
}

/* -- faults ---------------------------------------------------------------------------------- */

static void break_stream(struct faulty_stream *s)
{
    close_inner(s, 1);
    s->was_reset = 1;
    s->next = s->faulty->broken;
    s->faulty->broken = s;
}

/* The fault that a call meets instead of moving bytes: 0 none, else what it returns. */
static ssize_t fault_instead(struct faulty_stream *s, enum faulty_direction direction)
{
    struct faulty *f = s->faulty;
    if (is_closed(s))
        return -EBADF;
    if (!s->was_reset && s->moved[direction] && f->is_harmful && one_in(f, FAULTY_RESET_ONE_IN))
        break_stream(s);
    if (s->was_reset)
        return -ECONNRESET;
    int again = s->moved[direction] && !s->said_again[direction] && one_in(f, FAULTY_AGAIN_ONE_IN);
    s->said_again[direction] = again;
    return again ? -EAGAIN : 0;
}

/* How many bytes a call may move: half the time no limit, else one, a few or a few thousand. */
static size_t draw_piece(struct faulty *f)
{
    uint64_t dice = draw(f);
    switch (dice >> 61) {
    case 0:
        return 1;
    case 1:
        return 1 + dice % 64;
    case 2:
    case 3:
        return 1 + dice % FAULTY_PIECE_BYTES_MAX;
    default:
        return SIZE_MAX;
    }
}

/* Copies so much of the list as covers at most `bytes` bytes; returns the number of entries. */
static int clip(const struct iovec *iov, int iov_count, size_t bytes, struct iovec clipped[FAULTY_IOV_MAX])
{
    int count = 0;
    while (count < iov_count && count < FAULTY_IOV_MAX && bytes > 0) {
        clipped[count] = iov[count];
        if (clipped[count].iov_len > bytes)
            clipped[count].iov_len = bytes;
        bytes -= clipped[count].iov_len;
        count++;
    }
    return count;
}

static void corrupt_byte(struct faulty *f, const struct iovec *iov, size_t bytes)
{
    uint64_t dice = draw(f);
    size_t at = (size_t)(dice % bytes);
    for (; at >= iov->iov_len; iov++)
        at -= iov->iov_len;
    ((uint8_t *)iov->iov_base)[at] ^= (uint8_t)(1u << (dice >> 61));
}

static ssize_t faulty_readv(struct stream *stream, const struct iovec *iov, int iov_count)
{
    struct faulty_stream *s = (struct faulty_stream *)stream;
    struct faulty *f = s->faulty;
    struct iovec clipped[FAULTY_IOV_MAX];
    ssize_t fault = fault_instead(s, FAULTY_READ);
    if (fault != 0)
        return fault;
    int clipped_count = clip(iov, iov_count, draw_piece(f), clipped);
    ssize_t bytes = s->inner->ops->readv(s->inner, clipped, clipped_count);
    if (bytes > 0) {
        s->moved[FAULTY_READ] = 1;
        if (f->is_harmful && one_in(f, FAULTY_CORRUPT_ONE_IN))
            corrupt_byte(f, clipped, (size_t)bytes);
    }
    return bytes;
}

static ssize_t faulty_writev(struct stream *stream, const struct iovec *iov, int iov_count)
{
    struct faulty_stream *s = (struct faulty_stream *)stream;
    struct iovec clipped[FAULTY_IOV_MAX];
    ssize_t fault = fault_instead(s, FAULTY_WRITE);
    if (fault != 0)
        return fault;
    int clipped_count = clip(iov, iov_count, draw_piece(s->faulty), clipped);
    ssize_t bytes = s->inner->ops->writev(s->inner, clipped, clipped_count);
    if (bytes > 0)
        s->moved[FAULTY_WRITE] = 1;
    return bytes;
}

/* -- readiness ------------------------------------------------------------------------------- */

/* The inner transport knows nothing more of streams that we reset: reports their error. */
static int poll_broken(struct faulty *f, struct transport_ready *ready, int cap)
{
    int count = 0;
    for (struct faulty_stream *s = f->broken; s && count < cap; s = s->next)
        if (s->interest)
            ready[count++] = (struct transport_ready){.stream = &s->base, .what = s->interest};
    return count;
}

static int faulty_poll(struct transport *transport, uint64_t timeout_ns, struct transport_ready *ready, int cap)
{
    struct faulty *f = (struct faulty *)transport;
    struct transport_ready inner[FAULTY_BATCH];
    bury_dead(f);
    int count = poll_broken(f, ready, cap / 2);
    int inner_cap = cap - count < FAULTY_BATCH ? cap - count : FAULTY_BATCH;
    int inner_count = f->inner->ops->poll(f->inner, count ? 0 : timeout_ns, inner, inner_cap);
    for (int i = 0; i < inner_count; i++) {
        struct faulty_stream *s = inner[i].stream ? inner[i].stream->user : NULL;
        ready[count++] = (struct transport_ready){.stream = s ? &s->base : NULL, .what = inner[i].what};
    }
    return count;
}

const struct transport_ops faulty_ops = {
    .scheme = "faulty", .open = faulty_open, .close = faulty_close, .port = faulty_port, .dial = faulty_dial,
    .accept = faulty_accept, .readv = faulty_readv, .writev = faulty_writev, .want = faulty_want,
    .stream_close = faulty_stream_close, .info = faulty_info, .pace = faulty_pace, .rest = faulty_rest,
    .poll = faulty_poll, .wake = faulty_wake,
};
