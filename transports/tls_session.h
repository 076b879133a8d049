/* tls_session.h - one TLS 1.3 connection over an inner stream: ciphertext below, plain bytes above. Decides nothing about
 * readiness or about when it is closed. */
#ifndef PCCL_TLS_SESSION_H
#define PCCL_TLS_SESSION_H

#include "../csrc/transport.h"
#include "tls_context.h"

struct tls_session {
    const struct tls_context *context;
    struct stream *inner;
    void *ssl;                             /* NULL: not begun */
    uint8_t *out;                          /* ciphertext on its way: [out_begin, out_end) */
    uint32_t out_begin, out_end;
    uint32_t records;                      /* written with the present key */
    int has_read;                          /* plain bytes have come */
    int maybe_more;                        /* the last read did not take all that OpenSSL holds */
    int inner_error;                       /* errno that reading ciphertext met in this call */
    int read_error, write_error;           /* errno; they stay */
    int ended;                             /* the other side said so */
    char refusal[STREAM_REFUSAL_BYTES];
};

/* 0: no memory. */
int tls_session_begin(struct tls_session *s, int is_dialler);
/* Goes on with the handshake. 1: it is done, and the other side has proved itself; 0: it waits for bytes; -1: read_error. */
int tls_session_shake(struct tls_session *s);
/* As transport.h says of readv and writev. */
ssize_t tls_session_read(struct tls_session *s, const struct iovec *iov, int iov_count);
ssize_t tls_session_write(struct tls_session *s, const struct iovec *iov, int iov_count);
/* Lets ciphertext leave. 1: all of it has; 0: it would block, or write_error is set. */
int tls_session_flush(struct tls_session *s);
/* Says to the other side that no more will come. */
void tls_session_say_end(struct tls_session *s);
void tls_session_free(struct tls_session *s);

/* What tls_context_open hands to OpenSSL as the way to an inner stream. NULL: no memory. */
void *tls_session_bio_method(const struct openssl *o);

static inline int tls_session_is_sending(const struct tls_session *s)
{
    return s->out_begin < s->out_end && !s->write_error;
}

#endif
