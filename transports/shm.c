/* shm.c - "auto": TCP, but the bytes between two processes of one host go through memory that they share.
 *
 * Every stream is a stream of tcp.c. One that is dialled to an address of this host is upgraded if the other side can:
 * the dialler makes the memory (two rings of shm_ring.h), passes its descriptor with a random token over a UNIX socket,
 * and then dials; the token is the first it writes to the TCP stream, and tells the acceptor which memory belongs to
 * which stream; the acceptor answers with one byte. From then on the TCP stream carries only doorbells: a byte to a
 * side that said it would sleep. So resets, ends and crashes are seen as tcp.c sees them, and a busy stream costs no
 * system calls.
 *
 * Whatever goes wrong before the answer ends in an ordinary TCP stream: the dialler dials again, plainly. How memory is
 * made, offered and taken is told in shm_offer.c.
 *
 * The acceptor learns of an offer when it accepts the TCP stream, since the offer was made before. While there are
 * offers, an accepted stream is undecided until its first bytes have told whether it is one of them.
 *
 * Engine thread only, except shm_wake (any thread). */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../csrc/transport.h"
#include "shm_offer.h"
#include "shm_ring.h"

enum { SHM_ANSWER = 'R', SHM_BATCH = 64 };

#define SHM_UNDECIDED_WAIT_NS 50000000u  /* how often poll looks whether an undecided stream still has to wait */

/* Laid out by the dialler at the front of the memory: [0] from it to the acceptor, [1] the other way. */
struct shm_head {
    struct shm_ring_shared ring[2];
};
static_assert(sizeof(struct shm_head) <= SHM_HEAD_BYTES, "the rings' heads fit before the rings");

enum shm_state {
    SHM_PLAIN,                          /* bytes go over TCP */
    SHM_DIALLING,                       /* an offer was made, TCP is not connected yet */
    SHM_ASKED,                          /* the token is written, the answer is awaited */
    SHM_UNDECIDED,                      /* accepted: the first bytes will tell */
    SHM_RING,
    SHM_BROKEN                          /* neither way could be dialled: `error` */
};

struct shm_stream {
    struct stream base;
    struct shm *shm;
    struct stream *inner;               /* NULL: closed, or broken */
    enum shm_state state;
    unsigned interest;
    unsigned announced;                 /* how the dial ended, to be reported whatever the interest */
    int error;
    int ended;
    struct shm_offer *offer;            /* dialler: ours */
    void *memory;                       /* SHM_RING */
    struct shm_ring in, out;
    uint8_t first[SHM_TOKEN_BYTES];     /* acceptor: the first bytes, which may be the engine's after all */
    uint32_t first_begin, first_end;
    uint64_t reported;                  /* the poll that reported it last */
    struct shm_stream *prev, *next;     /* in shm->watched, circular */
    struct shm_stream *next_dead;
    char address[80];                   /* dialled */
};

struct shm {
    struct transport base;
    struct transport *inner;
    struct shm_offers offers;           /* made to us */
    int undecided_count;
    struct shm_stream *watched;         /* those whose readiness is not TCP's alone; where the next scan begins */
    int watched_count;
    struct shm_stream *dead;
    uint64_t poll_number;
};

extern const struct transport_ops auto_ops;
extern const struct transport_ops tcp_ops;

/* -- the transport -------------------------------------------------------------------------------- */

static pccl_err shm_open_transport(const pccl_config *config, struct transport **transport_p, int *sys_errno_p)
{
    struct shm *t = calloc(1, sizeof *t);
    *sys_errno_p = ENOMEM;
    if (!t)
        return PCCL_ENOMEM;
    pccl_err err = tcp_ops.open(config, &t->inner, sys_errno_p);
    if (err != PCCL_OK) {
        free(t);
        return err;
    }
    char listen_text[sizeof config->listen + 1] = "";
    memcpy(listen_text, config->listen, sizeof config->listen);
    t->base.ops = &auto_ops;
    shm_offers_open(&t->offers, listen_text, tcp_ops.port(t->inner));
    *transport_p = &t->base;
    return PCCL_OK;
}

static void bury_dead(struct shm *t)
{
    while (t->dead) {
        struct shm_stream *s = t->dead;
        t->dead = s->next_dead;
        free(s);
    }
}

static void shm_close_transport(struct transport *transport)
{
    struct shm *t = (struct shm *)transport;
    bury_dead(t);
    shm_offers_close(&t->offers);
    tcp_ops.close(t->inner);
    free(t);
}

static int shm_port(const struct transport *transport)
{
    return tcp_ops.port(((const struct shm *)transport)->inner);
}

static void shm_wake(struct transport *transport)
{
    tcp_ops.wake(((struct shm *)transport)->inner);
}

/* -- streams: beginnings -------------------------------------------------------------------------- */

static void watch(struct shm_stream *s)
{
    struct shm *t = s->shm;
    t->watched_count++;
    if (!t->watched) {
        t->watched = s->next = s->prev = s;
        return;
    }
    s->next = t->watched;
    s->prev = t->watched->prev;
    s->prev->next = s->next->prev = s;
}

static void unwatch(struct shm_stream *s)
{
    if (!s->next)
        return;
    s->shm->watched_count--;
    if (s->shm->watched == s)
        s->shm->watched = s->next == s ? NULL : s->next;
    s->prev->next = s->next;
    s->next->prev = s->prev;
    s->next = s->prev = NULL;
}

/* The inner stream may be NULL: a dial that is still to begin. */
static struct shm_stream *stream_new(struct shm *t, struct stream *inner)
{
    struct shm_stream *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->base.ops = &auto_ops;
    s->shm = t;
    s->interest = TRANSPORT_READ;
    s->inner = inner;
    if (inner)
        inner->user = s;
    return s;
}

static pccl_err dial_inner(struct shm_stream *s, int *sys_errno_p)
{
    pccl_err err = tcp_ops.dial(s->shm->inner, s->address, &s->inner, sys_errno_p);
    if (err == PCCL_OK)
        s->inner->user = s;
    return err;
}

static pccl_err shm_dial(struct transport *transport, const char *address, struct stream **stream_p, int *sys_errno_p)
{
    struct shm *t = (struct shm *)transport;
    struct shm_stream *s = stream_new(t, NULL);
    *sys_errno_p = ENOMEM;
    if (!s)
        return PCCL_ENOMEM;
    snprintf(s->address, sizeof s->address, "%s", address);
    s->offer = shm_offer_make(address);
    pccl_err err = dial_inner(s, sys_errno_p);
    if (err != PCCL_OK) {
        shm_offer_free(s->offer);
        free(s);
        return err;
    }
    if (s->offer) {
        s->state = SHM_DIALLING;
        watch(s);
    }
    *stream_p = &s->base;
    return PCCL_OK;
}

static pccl_err shm_accept(struct transport *transport, struct stream **stream_p)
{
    struct shm *t = (struct shm *)transport;
    struct stream *inner;
    while (tcp_ops.accept(t->inner, &inner) == PCCL_OK) {
        struct shm_stream *s = stream_new(t, inner);
        if (!s) {
            tcp_ops.stream_close(inner, 1);
            continue;
        }
        shm_offers_receive(&t->offers);
        if (t->offers.first) {
            s->state = SHM_UNDECIDED;
            t->undecided_count++;
            watch(s);
        }
        *stream_p = &s->base;
        return PCCL_OK;
    }
    return PCCL_EAGAIN;
}

/* From here on the bytes go over TCP; those that were read while it was undecided come first. */
static void become_plain(struct shm_stream *s)
{
    s->shm->undecided_count -= s->state == SHM_UNDECIDED;
    s->state = SHM_PLAIN;
    if (s->first_begin == s->first_end)
        unwatch(s);
    tcp_ops.want(s->inner, s->interest);
}

/* Takes the offer. */
static void become_ring(struct shm_stream *s, struct shm_offer *offer, int is_dialler)
{
    struct shm_head *head = offer->memory;
    uint8_t *data = (uint8_t *)offer->memory + SHM_HEAD_BYTES;
    s->shm->undecided_count -= s->state == SHM_UNDECIDED;
    s->state = SHM_RING;
    s->memory = offer->memory;
    offer->memory = NULL;
    shm_offer_free(offer);
    shm_ring_init(&s->out, &head->ring[!is_dialler], data + !is_dialler * SHM_RING_BYTES, SHM_RING_BYTES, 1);
    shm_ring_init(&s->in, &head->ring[is_dialler], data + is_dialler * SHM_RING_BYTES, SHM_RING_BYTES, 0);
    tcp_ops.want(s->inner, TRANSPORT_READ);
}

/* -- streams: moving bytes ------------------------------------------------------------------------ */

static int is_closed(const struct shm_stream *s)
{
    return !s->inner && s->state != SHM_BROKEN;
}

static void fail(struct shm_stream *s, ssize_t error)
{
    s->error = (int)-error;
    if (s->inner)
        tcp_ops.want(s->inner, 0);
}

static ssize_t inner_move(struct shm_stream *s, int writes, void *memory, size_t bytes)
{
    struct iovec iov = {memory, bytes};
    return writes ? tcp_ops.writev(s->inner, &iov, 1) : tcp_ops.readv(s->inner, &iov, 1);
}

/* The other side said that it would sleep. */
static void ring_bell(struct shm_stream *s)
{
    uint8_t bell = 0;
    ssize_t sent = s->ended || s->error ? 1 : inner_move(s, 1, &bell, 1);
    if (sent < 0 && sent != -EAGAIN)
        fail(s, sent);
}

static ssize_t moved(struct shm_stream *s, struct shm_ring *ring, ssize_t bytes)
{
    if (bytes > 0 && shm_ring_must_wake(ring))
        ring_bell(s);
    if (bytes == -EPROTO)
        fail(s, bytes);
    return bytes;
}

/* Bytes that lie in the ring come before the end, and before an error. */
static ssize_t ring_readv(struct shm_stream *s, const struct iovec *iov, int iov_count)
{
    ssize_t bytes = moved(s, &s->in, shm_ring_move(&s->in, iov, iov_count));
    if (bytes != -EAGAIN)
        return bytes;
    if (s->error)
        return -s->error;
    return s->ended ? 0 : -EAGAIN;
}

static ssize_t ring_writev(struct shm_stream *s, const struct iovec *iov, int iov_count)
{
    if (s->error)
        return -s->error;
    if (s->ended)
        return -EPIPE;
    return moved(s, &s->out, shm_ring_move(&s->out, iov, iov_count));
}

/* The engine's own bytes, read while the stream was undecided. */
static ssize_t read_first(struct shm_stream *s, const struct iovec *iov, int iov_count)
{
    ssize_t done = 0;
    for (int i = 0; i < iov_count; i++) {
        size_t left = s->first_end - s->first_begin;
        size_t bytes = iov[i].iov_len < left ? iov[i].iov_len : left;
        if (!bytes)
            continue;
        memcpy(iov[i].iov_base, s->first + s->first_begin, bytes);
        s->first_begin += (uint32_t)bytes;
        done += (ssize_t)bytes;
    }
    if (s->first_begin == s->first_end)
        unwatch(s);
    return done;
}

static ssize_t shm_readv(struct stream *stream, const struct iovec *iov, int iov_count)
{
    struct shm_stream *s = (struct shm_stream *)stream;
    if (is_closed(s))
        return -EBADF;
    switch (s->state) {
    case SHM_PLAIN:
        if (s->first_begin < s->first_end)
            return read_first(s, iov, iov_count);
        return tcp_ops.readv(s->inner, iov, iov_count);
    case SHM_RING: return ring_readv(s, iov, iov_count);
    case SHM_BROKEN: return -s->error;
    default: return -EAGAIN;
    }
}

static ssize_t shm_writev(struct stream *stream, const struct iovec *iov, int iov_count)
{
    struct shm_stream *s = (struct shm_stream *)stream;
    if (is_closed(s))
        return -EBADF;
    switch (s->state) {
    case SHM_PLAIN: return tcp_ops.writev(s->inner, iov, iov_count);
    case SHM_RING: return ring_writev(s, iov, iov_count);
    case SHM_BROKEN: return -s->error;
    default: return -EAGAIN;
    }
}

static void shm_want(struct stream *stream, unsigned interest)
{
    struct shm_stream *s = (struct shm_stream *)stream;
    s->interest = interest;
    if (s->state == SHM_PLAIN && s->inner)
        tcp_ops.want(s->inner, interest);
}

static void shm_info(const struct stream *stream, struct stream_info *info_p)
{
    const struct shm_stream *s = (const struct shm_stream *)stream;
    memset(info_p, 0, sizeof *info_p);
    if (s->inner)
        tcp_ops.info(s->inner, info_p);
    else
        memcpy(info_p->remote, s->address, sizeof info_p->remote);
    if (s->state == SHM_RING)
        info_p->held_bytes = shm_ring_used(&s->out);
    info_p->in_memory = s->state == SHM_RING;
}

static void shm_pace(struct stream *stream, uint64_t bytes_per_s)
{
    const struct shm_stream *s = (const struct shm_stream *)stream;
    if (s->state == SHM_PLAIN && s->inner)
        tcp_ops.pace(s->inner, bytes_per_s);
}

static int shm_rest(struct stream *stream)
{
    const struct shm_stream *s = (const struct shm_stream *)stream;
    return s->state != SHM_PLAIN || !s->inner || tcp_ops.rest(s->inner);
}

static void shm_stream_close(struct stream *stream, int abort)
{
    struct shm_stream *s = (struct shm_stream *)stream;
    if (is_closed(s))
        return;
    shm_memory_unmap(s->memory); /* what lies in the ring stays readable to the other side */
    s->memory = NULL;
    shm_offer_free(s->offer);
    s->offer = NULL;
    s->shm->undecided_count -= s->state == SHM_UNDECIDED;
    unwatch(s);
    if (s->inner)
        tcp_ops.stream_close(s->inner, abort);
    s->inner = NULL;
    s->state = SHM_PLAIN;
    s->base.user = NULL;
    s->next_dead = s->shm->dead;
    s->shm->dead = s;
}

/* -- the upgrade, step by step -------------------------------------------------------------------- */

/* No answer will come: dials again without an offer. */
static void dial_plainly(struct shm_stream *s)
{
    shm_offer_free(s->offer);
    s->offer = NULL;
    tcp_ops.stream_close(s->inner, 1);
    s->inner = NULL;
    if (dial_inner(s, &s->error) == PCCL_OK) {
        become_plain(s);
        return;
    }
    s->state = SHM_BROKEN;
    s->announced = TRANSPORT_READ | TRANSPORT_WRITE;
}

/* TCP is connected, or its dial has failed, which is then reported as it is. */
static unsigned on_dial_end(struct shm_stream *s, unsigned what)
{
    if (what & TRANSPORT_READ) {
        shm_offer_free(s->offer);
        s->offer = NULL;
        become_plain(s);
        return what;
    }
    s->state = SHM_ASKED;
    if (inner_move(s, 1, s->offer->token, SHM_TOKEN_BYTES) != SHM_TOKEN_BYTES)
        dial_plainly(s);
    return 0;
}

static void on_answer(struct shm_stream *s)
{
    uint8_t answer;
    ssize_t bytes = inner_move(s, 0, &answer, 1);
    if (bytes == -EAGAIN)
        return;
    if (bytes != 1 || answer != SHM_ANSWER) {
        dial_plainly(s);
        return;
    }
    struct shm_offer *offer = s->offer;
    s->offer = NULL;
    become_ring(s, offer, 1);
    s->announced = TRANSPORT_WRITE;
}

/* An offer whose memory cannot be used is answered with a reset: the other side dials again, plainly. */
static void accept_offer(struct shm_stream *s, struct shm_offer *offer)
{
    uint8_t answer = SHM_ANSWER;
    if (offer->memory && inner_move(s, 1, &answer, 1) == 1) {
        become_ring(s, offer, 0);
        return;
    }
    shm_offer_free(offer);
    s->first_begin = s->first_end = 0;
    s->shm->undecided_count--;
    s->state = SHM_BROKEN;
    tcp_ops.stream_close(s->inner, 1);
    s->inner = NULL;
    fail(s, -ECONNRESET);
}

static void on_first_bytes(struct shm_stream *s)
{
    ssize_t bytes = inner_move(s, 0, s->first + s->first_end, SHM_TOKEN_BYTES - s->first_end);
    if (bytes == -EAGAIN)
        return;
    s->first_end += bytes > 0 ? (uint32_t)bytes : 0;
    struct shm_offer *offer = bytes > 0 ? shm_offers_match(&s->shm->offers, s->first, s->first_end) : NULL;
    if (!offer)
        become_plain(s);
    else if (s->first_end == SHM_TOKEN_BYTES)
        accept_offer(s, offer);
}

/* The bell itself says nothing: whoever was woken looks at the ring. */
static void on_bell(struct shm_stream *s)
{
    uint8_t bells[64];
    ssize_t bytes = inner_move(s, 0, bells, sizeof bells);
    if (bytes == 0) {
        s->ended = 1;
        tcp_ops.want(s->inner, 0);
    } else if (bytes < 0 && bytes != -EAGAIN) {
        fail(s, bytes);
    }
}

/* What of TCP's report is to be passed on at once. */
static unsigned on_inner(struct shm_stream *s, unsigned what)
{
    switch (s->state) {
    case SHM_DIALLING: return on_dial_end(s, what);
    case SHM_ASKED: on_answer(s); return 0;
    case SHM_UNDECIDED: on_first_bytes(s); return 0;
    case SHM_RING: on_bell(s); return 0;
    default: return what;
    }
}

/* -- readiness ------------------------------------------------------------------------------------ */

/* What a watched stream is ready for. */
static unsigned readiness(const struct shm_stream *s)
{
    unsigned what = 0;
    if (s->error || s->ended)
        what = TRANSPORT_READ | TRANSPORT_WRITE;
    else if (s->state == SHM_RING)
        what = (shm_ring_ready(&s->in) ? TRANSPORT_READ : 0u) | (shm_ring_ready(&s->out) ? TRANSPORT_WRITE : 0u);
    else if (s->first_begin < s->first_end && s->state == SHM_PLAIN)
        what = TRANSPORT_READ;
    return (what & s->interest) | s->announced;
}

/* Adds watched streams that are ready and were not yet reported in this poll; returns the new count. */
static int report_watched(struct shm *t, struct transport_ready *ready, int count, int cap)
{
    struct shm_stream *first = t->watched, *s = first;
    if (!first)
        return count;
    do {
        unsigned what = count < cap && s->reported != t->poll_number ? readiness(s) : 0;
        if (what) {
            ready[count++] = (struct transport_ready){.stream = &s->base, .what = what};
            s->reported = t->poll_number;
            s->announced = 0;
            t->watched = s->next;
        }
        s = s->next;
    } while (s != first);
    return count;
}

static int report_inner(struct shm *t, uint64_t timeout_ns, struct transport_ready *ready, int count, int cap)
{
    struct transport_ready inner[SHM_BATCH];
    int inner_cap = cap - count < SHM_BATCH ? cap - count : SHM_BATCH;
    int inner_count = inner_cap ? tcp_ops.poll(t->inner, timeout_ns, inner, inner_cap) : 0;
    for (int i = 0; i < inner_count; i++) {
        struct shm_stream *s = inner[i].stream ? inner[i].stream->user : NULL;
        unsigned what = s ? on_inner(s, inner[i].what) : inner[i].what;
        if (!what || (s && s->reported == t->poll_number))
            continue;
        ready[count++] = (struct transport_ready){.stream = s ? &s->base : NULL, .what = what};
        if (s)
            s->reported = t->poll_number;
    }
    return count;
}

/* Tells the others that we sleep, or do not: never outside poll, because a bell rung for a stream that is closed would
 * be answered with a reset, and hide its end. Returns 1 if a stream is ready after all. */
static int set_sleep(struct shm *t, int sleeps)
{
    struct shm_stream *s = t->watched;
    int any = 0;
    if (!s)
        return 0;
    do {
        if (s->state == SHM_RING && (s->interest & TRANSPORT_READ))
            shm_ring_sleep(&s->in, sleeps);
        if (s->state == SHM_RING && (s->interest & TRANSPORT_WRITE))
            shm_ring_sleep(&s->out, sleeps);
        any |= readiness(s) != 0;
        s = s->next;
    } while (s != t->watched);
    return any;
}

/* Offers that were given up are dropped, but only after every stream had its chance to name them; when there are none
 * left, what is undecided is plain. */
static void decide(struct shm *t)
{
    shm_offers_receive(&t->offers);
    struct shm_stream *s = t->watched, *next;
    for (int left = t->watched_count; left > 0; left--, s = next) {
        next = s->next;
        if (s->state == SHM_UNDECIDED)
            on_first_bytes(s);
    }
    shm_offers_drop_gone(&t->offers);
    s = t->watched;
    for (int left = t->offers.first ? 0 : t->watched_count; left > 0; left--, s = next) {
        next = s->next;
        if (s->state == SHM_UNDECIDED)
            become_plain(s);
    }
}

static int shm_poll(struct transport *transport, uint64_t timeout_ns, struct transport_ready *ready, int cap)
{
    struct shm *t = (struct shm *)transport;
    bury_dead(t);
    t->poll_number++;
    if (t->undecided_count)
        decide(t);
    if (t->undecided_count && timeout_ns > SHM_UNDECIDED_WAIT_NS)
        timeout_ns = SHM_UNDECIDED_WAIT_NS;
    /* half of the room each, so that neither kind starves the other */
    int count = report_watched(t, ready, 0, (cap + (int)(t->poll_number & 1)) / 2);
    int sleeps = count == 0 && timeout_ns > 0;
    if (count || (sleeps && set_sleep(t, 1)))
        timeout_ns = 0;
    count = report_inner(t, timeout_ns, ready, count, cap);
    if (sleeps)
        (void)set_sleep(t, 0);
    return report_watched(t, ready, count, cap);
}

const struct transport_ops auto_ops = {
    .scheme = "auto", .open = shm_open_transport, .close = shm_close_transport, .port = shm_port, .dial = shm_dial,
    .accept = shm_accept, .readv = shm_readv, .writev = shm_writev, .want = shm_want,
    .stream_close = shm_stream_close, .info = shm_info, .pace = shm_pace, .rest = shm_rest, .poll = shm_poll, .wake = shm_wake,
};
