/* tls_ends.h - a TLS session over pipes in memory, for tests and the fuzzer: what goes in and comes out lies there
 * to be looked at, and to be forged. */
#ifndef PCCL_TLS_ENDS_H
#define PCCL_TLS_ENDS_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/transport.h"
#include "../../transports/tls_session.h"

enum { PIPE_BYTES = 1 << 20, SUITE_AES_128 = 0x1301, SUITE_AES_256 = 0x1302, SUITE_CHACHA = 0x1303 };

struct pipe {
    size_t begin, end;
    int is_cut;                            /* behind its bytes comes the end of the stream */
    uint8_t bytes[PIPE_BYTES];
};

/* The inner stream of a session. */
struct pipes {
    struct stream base;
    struct pipe in, out;
    size_t most;                           /* bytes that one call moves */
};

static inline void pipe_put(struct pipe *p, const void *bytes, size_t count)
{
    if (p->begin == p->end)
        p->begin = p->end = 0;
    if (count > PIPE_BYTES - p->end)
        abort();
    memcpy(p->bytes + p->end, bytes, count);
    p->end += count;
}

static inline ssize_t pipes_readv(struct stream *stream, const struct iovec *iov, int iov_count)
{
    struct pipes *p = (struct pipes *)stream;
    size_t there = p->in.end - p->in.begin, bytes = there < p->most ? there : p->most;
    if (iov_count != 1 || !iov->iov_len)
        abort();
    if (!there)
        return p->in.is_cut ? 0 : -EAGAIN;
    bytes = bytes < iov->iov_len ? bytes : iov->iov_len;
    memcpy(iov->iov_base, p->in.bytes + p->in.begin, bytes);
    p->in.begin += bytes;
    return (ssize_t)bytes;
}

static inline ssize_t pipes_writev(struct stream *stream, const struct iovec *iov, int iov_count)
{
    struct pipes *p = (struct pipes *)stream;
    size_t bytes = iov->iov_len < p->most ? iov->iov_len : p->most;
    if (iov_count != 1)
        abort();
    if (p->out.begin != p->out.end && bytes > PIPE_BYTES - p->out.end)
        return -EAGAIN;
    pipe_put(&p->out, iov->iov_base, bytes);
    return (ssize_t)bytes;
}

static const struct transport_ops pipes_ops = {.scheme = "pipes", .readv = pipes_readv, .writev = pipes_writev};

/* One end: a session, and its inner stream. */
struct tls_end {
    struct tls_session session;
    struct pipes pipes;
    struct tls_end *next_spare;
};

static struct tls_end *spare_ends;         /* large, so their memory is kept */

static inline void tls_end_free(struct tls_end *e)
{
    tls_session_free(&e->session);
    e->next_spare = spare_ends;
    spare_ends = e;
}

static inline struct tls_end *tls_end_new(const struct tls_context *context)
{
    struct tls_end *e = spare_ends;
    if (e)
        spare_ends = e->next_spare;
    else
        e = malloc(sizeof *e);
    if (!e)
        abort();
    memset(&e->session, 0, sizeof e->session);
    e->pipes.base = (struct stream){.ops = &pipes_ops};
    e->pipes.in.begin = e->pipes.in.end = e->pipes.out.begin = e->pipes.out.end = 0;
    e->pipes.in.is_cut = e->pipes.out.is_cut = 0;
    e->pipes.most = SIZE_MAX;
    e->session.context = context;
    e->session.inner = &e->pipes.base;
    return e;
}

/* As if it had come through its handshake, with these secrets. 0: OpenSSL cannot do it. */
static inline int tls_end_open(struct tls_end *e, unsigned suite, int is_dialler, struct tls_secret in,
                               struct tls_secret out)
{
    e->session.is_dialler = e->session.control.is_dialler = is_dialler;
    e->session.in = malloc(TLS_IN_BYTES);
    e->session.out = malloc(TLS_OUT_BYTES);
    return e->session.in && e->session.out && tls_session_take_over(&e->session, suite, &in, &out);
}

static inline pccl_err tls_context_by_key(struct tls_context *c)
{
    const pccl_config config = {.size = sizeof config, .psk = "the run's", .has_psk = 1, .transport = "tls"};
    return tls_context_open(c, &config);
}

static inline struct tls_secret secret_of(unsigned suite, uint8_t first)
{
    struct tls_secret secret = {.count = suite == SUITE_AES_256 ? 48 : 32};
    for (size_t i = 0; i < secret.count; i++)
        secret.bytes[i] = (uint8_t)(first + i);
    return secret;
}

/* An open end, and the other side's two ways, to forge and to look with. */
struct forged {
    struct tls_end *end;
    struct tls_way to, from;
};

static inline int forged_begin(struct forged *f, const struct tls_context *context, unsigned suite, int is_dialler)
{
    struct tls_secret in = secret_of(suite, 1), out = secret_of(suite, 101);
    f->end = tls_end_new(context);
    return tls_end_open(f->end, suite, is_dialler, in, out)
           && tls_way_begin(&f->to, context->o, suite, &in, 1)
           && tls_way_begin(&f->from, context->o, suite, &out, 0);
}

static inline void forged_end(struct forged *f)
{
    tls_way_end(&f->to);
    tls_way_end(&f->from);
    tls_end_free(f->end);
}

/* A record of this content and type goes to the end. */
static inline void forged_send(struct forged *f, int type, const void *content, size_t bytes)
{
    uint8_t record[TLS_RECORD_BYTES];
    struct iovec iov = {(void *)(uintptr_t)content, bytes};
    struct tls_cursor from = tls_cursor_of(&iov, 1);
    size_t made = tls_record_seal(&f->to, (uint8_t)type, &from, record);
    pipe_put(&f->end->pipes.in, record, made);
}

/* Opens the next record that the end has sent; its type, or 0: there is none. */
static inline int forged_receive(struct forged *f, uint8_t content[TLS_PLAIN_BYTES], size_t *bytes_p)
{
    struct pipe *p = &f->end->pipes.out;
    int bytes = tls_record_bytes(p->bytes + p->begin, p->end - p->begin);
    *bytes_p = 0;
    if (bytes <= 0 || (size_t)bytes > p->end - p->begin)
        return bytes < 0 ? bytes : 0;
    int type = tls_record_open(&f->from, p->bytes + p->begin, (size_t)bytes, content, bytes_p);
    p->begin += (size_t)bytes;
    return type;
}

#endif
