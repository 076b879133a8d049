/* tls.c - "tls": TCP with TLS 1.3 over it. "tls+faulty+tcp" wraps the awkward TCP instead, for tests.
 *
 * How bytes become records is told in tls_session.c, who is let in, in tls_context.c; here is what a stream is ready for.
 *
 * Readiness: the inner stream's, and that of `hot` streams: those that may have bytes in hand, or the end, or an error to
 * tell whatever the inner stream says. The handshake is driven by poll alone. Until its first bytes an accepted stream costs
 * no more than its socket.
 *
 * Ends: close_notify is the end; a connection that stops without it was cut, which is a reset. A gentle close of a stream
 * whose records have not all left lives on inside until they have, at most TLS_LINGER_NS. A handshake that fails ends gently,
 * so that the other side may read why.
 *
 * Engine thread only, except tls_wake (any thread). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../csrc/transport.h"
#include "tls_session.h"

enum { TLS_BATCH = 128 };

#define TLS_LINGER_NS 5000000000u
#define TLS_CLOSE_WAIT_NS 1000000000u      /* how long the transport's close waits for what lingers */

enum tls_state {
    TLS_CONNECTING,                        /* the inner dial has not ended */
    TLS_ACCEPTED,                          /* no byte has come yet */
    TLS_SHAKING,
    TLS_OPEN,
    TLS_FAILED,                            /* session.read_error, before or in the handshake */
    TLS_LINGERING,                         /* closed by the engine, has yet to flush */
    TLS_CLOSED
};

struct tls_stream {
    struct stream base;
    struct tls *tls;
    enum tls_state state;
    int is_dialler;
    unsigned interest;
    unsigned announced;                    /* how the dial ended, to be reported whatever the interest */
    struct tls_session session;
    uint64_t linger_until_ns;
    uint64_t reported;                     /* the poll that reported it last */
    struct tls_stream *prev, *next;        /* in tls->hot, circular */
    struct tls_stream *next_other;         /* in tls->dead or tls->lingering */
    char remote[80];
};

struct tls {
    struct transport base;
    struct transport *inner;
    struct tls_context context;
    struct tls_stream *hot;                /* where the next scan begins */
    struct tls_stream *dead, *lingering;
    uint64_t poll_number;
};

extern const struct transport_ops tls_ops;

static uint64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* -- what is ready whatever the inner stream says --------------------------------------------------- */

static unsigned hot_readiness(const struct tls_stream *s)
{
    unsigned what = 0;
    if (s->session.ended || s->session.read_error || s->session.maybe_more)
        what |= TRANSPORT_READ;
    if (s->session.read_error || s->session.write_error)
        what |= TRANSPORT_WRITE;
    return (what & s->interest) | s->announced;
}

static void hot_remove(struct tls_stream *s)
{
    if (!s->next)
        return;
    if (s->tls->hot == s)
        s->tls->hot = s->next == s ? NULL : s->next;
    s->prev->next = s->next;
    s->next->prev = s->prev;
    s->next = s->prev = NULL;
}

static void hot_add(struct tls_stream *s)
{
    struct tls *t = s->tls;
    if (s->next)
        return;
    if (!t->hot) {
        t->hot = s->next = s->prev = s;
        return;
    }
    s->next = t->hot;
    s->prev = t->hot->prev;
    s->prev->next = s->next->prev = s;
}

/* After every change: the inner interest, and whether the stream is hot. */
static void settle(struct tls_stream *s)
{
    unsigned wanted = tls_session_is_sending(&s->session) ? TRANSPORT_WRITE : 0;
    if (hot_readiness(s))
        hot_add(s);
    else
        hot_remove(s);
    if (!s->session.inner || s->state == TLS_CONNECTING)
        return;
    if (s->state == TLS_ACCEPTED || s->state == TLS_SHAKING)
        wanted |= TRANSPORT_READ;
    if (s->state == TLS_OPEN && !s->session.read_error && !s->session.ended)
        wanted |= s->interest & TRANSPORT_READ;
    if (s->state == TLS_OPEN && !s->session.read_error && !s->session.write_error)
        wanted |= s->interest & TRANSPORT_WRITE;
    s->session.inner->ops->want(s->session.inner, wanted);
}

/* -- the handshake -------------------------------------------------------------------------------------- */

static void fail(struct tls_stream *s, int error)
{
    s->session.read_error = error;
    s->state = TLS_FAILED;
    if (s->is_dialler)
        s->announced = TRANSPORT_READ | TRANSPORT_WRITE;
}

/* Goes on with the handshake as far as it can. */
static void shake(struct tls_stream *s)
{
    int done = tls_session_shake(&s->session);
    if (done < 0)
        fail(s, s->session.read_error);
    if (done <= 0)
        return;
    s->state = TLS_OPEN;
    if (s->is_dialler)
        s->announced = TRANSPORT_WRITE;
}

static void start_and_shake(struct tls_stream *s)
{
    if (!tls_session_begin(&s->session, s->is_dialler)) {
        fail(s, ENOMEM);
        return;
    }
    s->state = TLS_SHAKING;
    shake(s);
}

/* -- the transport -------------------------------------------------------------------------------------- */

static pccl_err open_inner(struct tls *t, const pccl_config *config, int *sys_errno_p)
{
    static const char PREFIX[] = "tls+";
    pccl_config inner_config = *config;
    const char *inner = strncmp(config->transport, PREFIX, sizeof PREFIX - 1) == 0 ? config->transport + sizeof PREFIX - 1 : "tcp";
    const struct transport_ops *ops = transport_find(inner);
    *sys_errno_p = EINVAL;
    if (!ops)
        return PCCL_EINVAL;
    snprintf(inner_config.transport, sizeof inner_config.transport, "%s", inner);
    return ops->open(&inner_config, &t->inner, sys_errno_p);
}

static void tls_free(struct tls *t)
{
    if (t->inner)
        t->inner->ops->close(t->inner);
    tls_context_close(&t->context);
    free(t);
}

static pccl_err tls_open(const pccl_config *config, struct transport **transport_p, int *sys_errno_p)
{
    struct tls *t = calloc(1, sizeof *t);
    *sys_errno_p = ENOMEM;
    if (!t)
        return PCCL_ENOMEM;
    t->base.ops = &tls_ops;
    *sys_errno_p = 0;
    pccl_err err = tls_context_open(&t->context, config);
    if (err == PCCL_OK)
        err = open_inner(t, config, sys_errno_p);
    if (err != PCCL_OK)
        tls_free(t);
    else
        *transport_p = &t->base;
    return err;
}

static void bury_dead(struct tls *t)
{
    while (t->dead) {
        struct tls_stream *s = t->dead;
        t->dead = s->next_other;
        free(s);
    }
}

static int tls_port(const struct transport *transport)
{
    const struct tls *t = (const struct tls *)transport;
    return t->inner->ops->port(t->inner);
}

static void tls_wake(struct transport *transport)
{
    struct tls *t = (struct tls *)transport;
    t->inner->ops->wake(t->inner);
}

/* -- streams: beginnings and ends ------------------------------------------------------------------------ */

/* Takes the inner stream, also on failure, when it resets it. */
static pccl_err wrap(struct tls *t, struct stream *inner, int is_dialler, struct stream **stream_p)
{
    struct tls_stream *s = calloc(1, sizeof *s);
    if (!s) {
        inner->ops->stream_close(inner, 1);
        return PCCL_ENOMEM;
    }
    s->base.ops = &tls_ops;
    s->tls = t;
    s->session.inner = inner;
    s->session.context = &t->context;
    s->is_dialler = is_dialler;
    s->state = is_dialler ? TLS_CONNECTING : TLS_ACCEPTED;
    s->interest = TRANSPORT_READ;
    inner->user = s;
    *stream_p = &s->base;
    return PCCL_OK;
}

static pccl_err tls_dial(struct transport *transport, const char *address, struct stream **stream_p, int *sys_errno_p)
{
    struct tls *t = (struct tls *)transport;
    struct stream *inner;
    pccl_err err = t->inner->ops->dial(t->inner, address, &inner, sys_errno_p);
    if (err != PCCL_OK)
        return err;
    err = wrap(t, inner, 1, stream_p);
    if (err != PCCL_OK)
        *sys_errno_p = ENOMEM;
    return err;
}

static pccl_err tls_accept(struct transport *transport, struct stream **stream_p)
{
    struct tls *t = (struct tls *)transport;
    struct stream *inner;
    while (t->inner->ops->accept(t->inner, &inner) == PCCL_OK)
        if (wrap(t, inner, 0, stream_p) == PCCL_OK)
            return PCCL_OK;
    return PCCL_EAGAIN;
}

static void close_inner(struct tls_stream *s, int abort)
{
    struct stream_info info;
    s->session.inner->ops->info(s->session.inner, &info);
    memcpy(s->remote, info.remote, sizeof s->remote);
    s->session.inner->ops->stream_close(s->session.inner, abort);
    s->session.inner = NULL;
}

/* No more of it: its memory lives until the next poll. */
static void finish(struct tls_stream *s, int abort)
{
    close_inner(s, abort);
    tls_session_free(&s->session);
    s->state = TLS_CLOSED;
    s->next_other = s->tls->dead;
    s->tls->dead = s;
}

static void tls_stream_close(struct stream *stream, int abort)
{
    struct tls_stream *s = (struct tls_stream *)stream;
    if (s->state == TLS_CLOSED || s->state == TLS_LINGERING)
        return;
    hot_remove(s);
    s->base.user = NULL;
    int refused = s->state == TLS_FAILED && s->session.read_error == EACCES;
    if (s->state == TLS_OPEN && !abort)
        tls_session_say_end(&s->session);
    if ((abort && !refused) || !tls_session_is_sending(&s->session)) {
        finish(s, abort && !refused);
        return;
    }
    s->state = TLS_LINGERING;
    s->linger_until_ns = clock_ns() + TLS_LINGER_NS;
    s->session.inner->ops->want(s->session.inner, TRANSPORT_WRITE);
    s->next_other = s->tls->lingering;
    s->tls->lingering = s;
}

/* Ends those that have said all, or had their time. */
static void reap_lingering(struct tls *t)
{
    uint64_t now_ns = t->lingering ? clock_ns() : 0;
    struct tls_stream **link = &t->lingering;
    while (*link) {
        struct tls_stream *s = *link;
        int done = tls_session_flush(&s->session);
        if (!done && !s->session.write_error && now_ns < s->linger_until_ns) {
            link = &s->next_other;
            continue;
        }
        *link = s->next_other;
        finish(s, !done);
    }
}

static void tls_close(struct transport *transport)
{
    struct tls *t = (struct tls *)transport;
    uint64_t until_ns = clock_ns() + TLS_CLOSE_WAIT_NS;
    struct transport_ready ready[TLS_BATCH];
    reap_lingering(t);
    while (t->lingering && clock_ns() < until_ns) {
        (void)t->inner->ops->poll(t->inner, TLS_CLOSE_WAIT_NS / 100, ready, TLS_BATCH);
        reap_lingering(t);
    }
    for (struct tls_stream *s = t->lingering; s; s = s->next_other)
        s->linger_until_ns = 0;
    reap_lingering(t);
    bury_dead(t);
    tls_free(t);
}

/* -- streams: moving bytes ------------------------------------------------------------------------------- */

static ssize_t tls_readv(struct stream *stream, const struct iovec *iov, int iov_count)
{
    struct tls_stream *s = (struct tls_stream *)stream;
    ssize_t moved;
    switch (s->state) {
    case TLS_OPEN:
        moved = tls_session_read(&s->session, iov, iov_count);
        settle(s);
        return moved;
    case TLS_FAILED: return -s->session.read_error;
    case TLS_LINGERING: case TLS_CLOSED: return -EBADF;
    default: return -EAGAIN;
    }
}

static ssize_t tls_writev(struct stream *stream, const struct iovec *iov, int iov_count)
{
    struct tls_stream *s = (struct tls_stream *)stream;
    switch (s->state) {
    case TLS_OPEN: break;
    case TLS_FAILED: return -s->session.read_error;
    case TLS_LINGERING: case TLS_CLOSED: return -EBADF;
    default: return -EAGAIN;
    }
    ssize_t moved = tls_session_write(&s->session, iov, iov_count);
    settle(s);
    return moved;
}

static void tls_want(struct stream *stream, unsigned interest)
{
    struct tls_stream *s = (struct tls_stream *)stream;
    if (s->state == TLS_LINGERING || s->state == TLS_CLOSED)
        return;
    s->interest = interest;
    settle(s);
}

static void tls_info(const struct stream *stream, struct stream_info *info_p)
{
    const struct tls_stream *s = (const struct tls_stream *)stream;
    memset(info_p, 0, sizeof *info_p);
    if (s->session.inner)
        s->session.inner->ops->info(s->session.inner, info_p);
    else
        memcpy(info_p->remote, s->remote, sizeof info_p->remote);
    info_p->held_bytes += s->session.out_end - s->session.out_begin;
    memcpy(info_p->refusal, s->session.refusal, sizeof info_p->refusal);
}

static void tls_pace(struct stream *stream, uint64_t bytes_per_s)
{
    const struct tls_stream *s = (const struct tls_stream *)stream;
    if (s->session.inner && s->session.inner->ops->pace)
        s->session.inner->ops->pace(s->session.inner, bytes_per_s);
}

static int tls_rest(struct stream *stream)
{
    const struct tls_stream *s = (const struct tls_stream *)stream;
    return !s->session.inner || !s->session.inner->ops->rest || s->session.inner->ops->rest(s->session.inner);
}

/* -- readiness -------------------------------------------------------------------------------------------- */

static void on_dial_end(struct tls_stream *s, unsigned what)
{
    uint8_t byte;
    struct iovec iov = {&byte, 1};
    if (!(what & TRANSPORT_READ)) {
        start_and_shake(s);
        return;
    }
    ssize_t error = s->session.inner->ops->readv(s->session.inner, &iov, 1);
    fail(s, error < 0 && error != -EAGAIN ? (int)-error : ECONNRESET);
}

/* What of the inner stream's report is to be passed on. */
static unsigned on_inner(struct tls_stream *s, unsigned what)
{
    unsigned passed = 0;
    switch (s->state) {
    case TLS_CONNECTING: on_dial_end(s, what); break;
    case TLS_ACCEPTED: start_and_shake(s); break;
    case TLS_SHAKING: shake(s); break;
    case TLS_FAILED: (void)tls_session_flush(&s->session); break;
    case TLS_OPEN:
        passed = what & s->interest;
        if (!tls_session_flush(&s->session))
            passed &= ~(unsigned)TRANSPORT_WRITE;
        break;
    default: return 0; /* reap_lingering looks after it */
    }
    settle(s);
    return passed;
}

static void note_report(struct tls *t, struct tls_stream *s)
{
    s->reported = t->poll_number;
    s->announced = 0;
    settle(s);
}

/* Adds hot streams that were not yet reported in this poll; returns the new count. */
static int report_hot(struct tls *t, struct transport_ready *ready, int count, int cap)
{
    struct tls_stream *s = t->hot, *last = s ? s->prev : NULL;
    while (s && count < cap) {
        struct tls_stream *next = s == last ? NULL : s->next;
        if (s->reported != t->poll_number) {
            ready[count++] = (struct transport_ready){.stream = &s->base, .what = hot_readiness(s)};
            t->hot = s->next;
            note_report(t, s);
        }
        s = next;
    }
    return count;
}

static int report_inner(struct tls *t, uint64_t timeout_ns, struct transport_ready *ready, int count, int cap)
{
    struct transport_ready inner[TLS_BATCH];
    int inner_cap = cap - count < TLS_BATCH ? cap - count : TLS_BATCH;
    int inner_count = inner_cap ? t->inner->ops->poll(t->inner, timeout_ns, inner, inner_cap) : 0;
    for (int i = 0; i < inner_count; i++) {
        struct tls_stream *s = inner[i].stream ? inner[i].stream->user : NULL;
        unsigned what = s ? on_inner(s, inner[i].what) : inner[i].what;
        if (!what || (inner[i].stream && (!s || s->reported == t->poll_number)))
            continue;
        ready[count++] = (struct transport_ready){.stream = s ? &s->base : NULL, .what = what | (s ? s->announced : 0)};
        if (s)
            note_report(t, s);
    }
    return count;
}

static int tls_poll(struct transport *transport, uint64_t timeout_ns, struct transport_ready *ready, int cap)
{
    struct tls *t = (struct tls *)transport;
    bury_dead(t);
    reap_lingering(t);
    if (t->lingering && timeout_ns > TLS_LINGER_NS)
        timeout_ns = TLS_LINGER_NS;
    t->poll_number++;
    /* half of the room each, so that neither kind starves the other */
    int count = report_hot(t, ready, 0, (cap + (int)(t->poll_number & 1)) / 2);
    count = report_inner(t, count ? 0 : timeout_ns, ready, count, cap);
    return report_hot(t, ready, count, cap);
}

const struct transport_ops tls_ops = {
    .scheme = "tls", .seals = 1, .open = tls_open, .close = tls_close, .port = tls_port, .dial = tls_dial, .accept = tls_accept,
    .readv = tls_readv, .writev = tls_writev, .want = tls_want, .stream_close = tls_stream_close, .info = tls_info,
    .pace = tls_pace, .rest = tls_rest, .poll = tls_poll, .wake = tls_wake,
};
