/* tls_session.h - one TLS 1.3 connection over an inner stream: ciphertext below, plain bytes above. Decides nothing
 * about readiness or about when it is closed.
 *
 * tls_handshake.c lets OpenSSL prove both sides and takes the keys from it; tls_session.c moves bytes in records
 * from then on. */
#ifndef PCCL_TLS_SESSION_H
#define PCCL_TLS_SESSION_H

#include "../csrc/transport.h"
#include "tls_context.h"
#include "tls_control.h"
#include "tls_records.h"

/* Whole records, so that a stream of full ones leaves no part of one behind when it is read or written. */
enum {
    TLS_IN_BYTES = 8 * TLS_RECORD_BYTES,
    TLS_OUT_RECORDS = 8,
    TLS_SPARE_BYTES = 256,                 /* for a key update and alerts */
    TLS_OUT_BYTES = TLS_OUT_RECORDS * TLS_RECORD_BYTES + TLS_SPARE_BYTES,
    TLS_RECORDS_PER_KEY = 1 << 16          /* far below the 2^24 that AES-GCM allows */
};

struct tls_session {
    const struct tls_context *context;
    struct stream *inner;
    int is_dialler;
    void *ssl;                             /* OpenSSL's, while the handshake goes on */
    struct tls_secret client, server;      /* the traffic secrets, until the records begin */
    struct tls_way in_way, out_way;
    struct tls_control control;
    uint8_t *in;                           /* ciphertext that has come: [in_begin, in_end) */
    uint32_t in_begin, in_end;
    const uint8_t *plain;                  /* opened and not yet read, in `in` before in_begin */
    uint32_t plain_bytes;
    uint32_t quiet;                        /* records in a row that had no plain bytes */
    uint8_t *out;                          /* ciphertext on its way: [out_begin, out_end) */
    uint32_t out_begin, out_end;
    int renew;                             /* the other side asks for a new key of ours */
    int has_read;                          /* plain bytes have come */
    int maybe_more;                        /* plain bytes, or a record, wait in `in` */
    int read_error, write_error;           /* errno; they stay */
    int ended;                             /* the other side said so */
    char refusal[STREAM_REFUSAL_BYTES];
};

/* -- tls_handshake.c -- */

/* 0: no memory. */
int tls_session_begin(struct tls_session *s, int is_dialler);
/* Goes on with the handshake. 1: it is done, and the other side has proved itself; 0: it waits for bytes; -1:
 * read_error. */
int tls_session_shake(struct tls_session *s);
/* From now on there are records. 0: no memory, or no such cipher suite. */
int tls_session_take_over(struct tls_session *s, unsigned suite, const struct tls_secret *in,
                          const struct tls_secret *out);
void tls_session_free(struct tls_session *s);

/* What tls_context_open hands to OpenSSL: the way to an inner stream (NULL: no memory), and to whom secrets are
 * told. */
void *tls_session_bio_method(const struct openssl *o);
void tls_session_note_secret(const void *ssl, const char *line);

/* -- tls_session.c -- */

/* As transport.h says of readv and writev. */
ssize_t tls_session_read(struct tls_session *s, const struct iovec *iov, int iov_count);
ssize_t tls_session_write(struct tls_session *s, const struct iovec *iov, int iov_count);
/* Lets ciphertext leave. 1: all of it has; 0: it would block, or write_error is set. */
int tls_session_flush(struct tls_session *s);
/* Reads more ciphertext, as readv does; its end and its errors are read_error. */
ssize_t tls_session_refill(struct tls_session *s);
/* 1: tls_session_read has something to do whatever the inner stream says. */
int tls_session_has_more(const struct tls_session *s);
/* Says to the other side that no more will come. */
void tls_session_say_end(struct tls_session *s);

static inline int tls_session_is_sending(const struct tls_session *s)
{
    return s->out_begin < s->out_end && !s->write_error;
}

#endif
