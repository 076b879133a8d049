/* tls_session.c - plain bytes to ciphertext and back, by OpenSSL.
 *
 * OpenSSL reads ciphertext from the inner stream by a BIO of ours, and decrypts into its own buffer, from which it copies to
 * the caller. It writes ciphertext into a buffer of ours that holds a few records, which then leave by one inner writev.
 * Records are made only when that buffer is empty, so OpenSSL never has to be asked twice to write the same bytes, and what
 * was taken from the caller is at most SESSION_OUT_RECORDS records ahead of the inner stream. */
#include "tls_session.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SESSION_RECORD_BYTES = 16 << 10,       /* of plain bytes, by the standard */
    SESSION_RECORD_ROOM = SESSION_RECORD_BYTES + 256,
    SESSION_OUT_RECORDS = 8,
    SESSION_SPARE_BYTES = 16 << 10,        /* for what the handshake and key updates add */
    SESSION_OUT_BYTES = SESSION_OUT_RECORDS * SESSION_RECORD_ROOM + SESSION_SPARE_BYTES,
    SESSION_RECORDS_PER_KEY = 1 << 16      /* far below the 2^24 that AES-GCM allows */
};

/* -- ciphertext ---------------------------------------------------------------------------------------- */

static int bio_read(void *bio, char *data, int bytes)
{
    const struct openssl *o = openssl();
    struct tls_session *s = o->BIO_get_data(bio);
    struct iovec iov = {data, (size_t)bytes};
    o->BIO_clear_flags(bio, OSSL_BIO_AGAIN_MASK);
    ssize_t moved = s->inner->ops->readv(s->inner, &iov, 1);
    if (moved == -EAGAIN)
        o->BIO_set_flags(bio, OSSL_BIO_READ_AGAIN);
    else if (moved <= 0)
        s->inner_error = moved < 0 ? (int)-moved : ECONNRESET; /* an end without close_notify: it was cut */
    return moved > 0 ? (int)moved : -1;
}

static int bio_write(void *bio, const char *data, int bytes)
{
    const struct openssl *o = openssl();
    struct tls_session *s = o->BIO_get_data(bio);
    o->BIO_clear_flags(bio, OSSL_BIO_AGAIN_MASK);
    if (s->out_begin == s->out_end)
        s->out_begin = s->out_end = 0;
    if ((size_t)bytes > SESSION_OUT_BYTES - s->out_end) {
        o->BIO_set_flags(bio, OSSL_BIO_WRITE_AGAIN);
        return -1;
    }
    memcpy(s->out + s->out_end, data, (size_t)bytes);
    s->out_end += (uint32_t)bytes;
    return bytes;
}

static long bio_ctrl(void *bio, int command, long number, void *pointer)
{
    (void)bio, (void)number, (void)pointer;
    return command == OSSL_BIO_CTRL_FLUSH;
}

void *tls_session_bio_method(const struct openssl *o)
{
    void *method = o->BIO_meth_new(OSSL_BIO_TYPE_SOURCE_SINK, "pccl stream");
    if (method && o->BIO_meth_set_read(method, bio_read) && o->BIO_meth_set_write(method, bio_write)
        && o->BIO_meth_set_ctrl(method, bio_ctrl))
        return method;
    o->BIO_meth_free(method);
    return NULL;
}

int tls_session_flush(struct tls_session *s)
{
    while (tls_session_is_sending(s)) {
        struct iovec iov = {s->out + s->out_begin, s->out_end - s->out_begin};
        ssize_t moved = s->inner->ops->writev(s->inner, &iov, 1);
        if (moved == -EAGAIN || moved == 0)
            return 0;
        if (moved < 0)
            s->write_error = (int)-moved;
        else
            s->out_begin += (uint32_t)moved;
    }
    return !s->write_error;
}

/* -- beginning and end ----------------------------------------------------------------------------------- */

int tls_session_begin(struct tls_session *s, int is_dialler)
{
    const struct openssl *o = s->context->o;
    void *bio = o->BIO_new(s->context->bio_method);
    s->out = malloc(SESSION_OUT_BYTES);
    s->ssl = bio && s->out ? o->SSL_new(s->context->ctx) : NULL;
    if (!s->ssl) {
        o->BIO_free(bio);
        return 0;
    }
    o->BIO_set_data(bio, s);
    o->BIO_set_init(bio, 1);
    o->SSL_set_bio(s->ssl, bio, bio);
    if (is_dialler)
        o->SSL_set_connect_state(s->ssl);
    else
        o->SSL_set_accept_state(s->ssl);
    return 1;
}

void tls_session_free(struct tls_session *s)
{
    if (s->ssl)
        s->context->o->SSL_free(s->ssl);
    free(s->out);
    s->ssl = NULL;
    s->out = NULL;
    s->out_begin = s->out_end = 0;
}

/* Keeps in words why OpenSSL will not go on. The oldest of its errors is the cause. */
static void note_refusal(struct tls_session *s)
{
    const struct openssl *o = s->context->o;
    unsigned long error = o->ERR_get_error();
    unsigned long reason = error & OSSL_REASON_MASK;
    const char *text = o->ERR_reason_error_string(error);
    long verify = o->SSL_get_verify_result(s->ssl);
    int plain = reason == OSSL_REASON_WRONG_VERSION || reason == OSSL_REASON_HTTP_REQUEST || reason == OSSL_REASON_TOO_LONG;
    snprintf(s->refusal, sizeof s->refusal, "TLS: %s%s%s%s", text ? text : "not proven", verify ? ": " : "",
             verify ? o->X509_verify_cert_error_string(verify) : "", plain ? ": it does not speak TLS" : "");
    o->ERR_clear_error();
}

int tls_session_shake(struct tls_session *s)
{
    const struct openssl *o = s->context->o;
    o->ERR_clear_error();
    s->inner_error = 0;
    int result = o->SSL_do_handshake(s->ssl);
    int error = result == 1 ? 0 : o->SSL_get_error(s->ssl, result);
    int waits = error == OSSL_ERROR_WANT_READ || error == OSSL_ERROR_WANT_WRITE;
    if (s->inner_error) {
        s->read_error = s->inner_error;
    } else if (!waits && (result != 1 || !tls_context_proven(s->context, s->ssl))) {
        note_refusal(s);
        s->read_error = EACCES;
    }
    o->ERR_clear_error();
    if (!tls_session_flush(s) && s->write_error && !s->read_error)
        s->read_error = s->write_error;
    s->maybe_more = result == 1 && o->SSL_has_pending(s->ssl);
    return s->read_error ? -1 : result == 1;
}

void tls_session_say_end(struct tls_session *s)
{
    const struct openssl *o = s->context->o;
    o->ERR_clear_error();
    (void)o->SSL_shutdown(s->ssl);
    o->ERR_clear_error();
    (void)tls_session_flush(s);
}

/* -- plain bytes in --------------------------------------------------------------------------------------- */

/* OpenSSL had none for us: why. 0: the end; else a negative errno. */
static ssize_t nothing_read(struct tls_session *s, int result)
{
    const struct openssl *o = s->context->o;
    int error = o->SSL_get_error(s->ssl, result);
    s->maybe_more = 0;
    if (error == OSSL_ERROR_WANT_READ || error == OSSL_ERROR_WANT_WRITE)
        return -EAGAIN;
    if (error == OSSL_ERROR_ENDED) {
        s->ended = 1;
        return 0;
    }
    if (s->inner_error) {
        s->read_error = s->inner_error;
    } else { /* the dialler's handshake is over before the acceptor has looked at its certificate */
        s->read_error = s->has_read ? EPROTO : EACCES;
        note_refusal(s);
    }
    o->ERR_clear_error();
    return -s->read_error;
}

static ssize_t read_into(struct tls_session *s, uint8_t *to, size_t room)
{
    size_t done = 0;
    while (done < room) {
        size_t most = room - done < INT32_MAX ? room - done : INT32_MAX;
        int moved = s->context->o->SSL_read(s->ssl, to + done, (int)most);
        if (moved <= 0) {
            ssize_t why = nothing_read(s, moved);
            return done ? (ssize_t)done : why;
        }
        s->has_read = 1;
        done += (size_t)moved;
    }
    return (ssize_t)done;
}

/* The end and errors stay, and come after the bytes before them. */
ssize_t tls_session_read(struct tls_session *s, const struct iovec *iov, int iov_count)
{
    ssize_t done = 0;
    if (s->ended || s->read_error)
        return s->ended ? 0 : -s->read_error;
    s->context->o->ERR_clear_error();
    s->inner_error = 0;
    s->maybe_more = 1;
    for (int i = 0; i < iov_count && s->maybe_more; i++) {
        ssize_t moved = read_into(s, iov[i].iov_base, iov[i].iov_len);
        if (moved > 0)
            done += moved;
        else if (!s->maybe_more && !done)
            done = moved;
    }
    s->maybe_more = s->maybe_more && s->context->o->SSL_has_pending(s->ssl);
    (void)tls_session_flush(s); /* what reading makes OpenSSL say: key updates, alerts */
    return done;
}

/* -- plain bytes out -------------------------------------------------------------------------------------- */

/* One record. The buffer has room for it, so it is made or the session is broken. */
static int seal(struct tls_session *s, const uint8_t *from, size_t bytes)
{
    const struct openssl *o = s->context->o;
    if (++s->records >= SESSION_RECORDS_PER_KEY) {
        s->records = 0;
        if (o->SSL_key_update(s->ssl, OSSL_KEY_UPDATE_OURS) != 1)
            s->write_error = EPROTO;
    }
    if (!s->write_error && o->SSL_write(s->ssl, from, (int)bytes) != (int)bytes)
        s->write_error = EPROTO;
    if (s->write_error)
        o->ERR_clear_error();
    return !s->write_error;
}

/* Where the caller's list goes on. */
struct cursor {
    const struct iovec *iov;
    int count;
    size_t at;                             /* within the first */
};

static void skip_empty(struct cursor *c)
{
    while (c->count > 0 && c->at == c->iov->iov_len) {
        c->iov++;
        c->count--;
        c->at = 0;
    }
}

/* Takes a record's worth: from the caller's memory if one entry has it all, else gathered. */
static size_t next_record(struct cursor *c, uint8_t gathered[SESSION_RECORD_BYTES], const uint8_t **from_p)
{
    size_t done = 0;
    *from_p = gathered;
    for (skip_empty(c); c->count > 0 && done < SESSION_RECORD_BYTES; skip_empty(c)) {
        const uint8_t *from = (const uint8_t *)c->iov->iov_base + c->at;
        size_t left = c->iov->iov_len - c->at, room = SESSION_RECORD_BYTES - done;
        size_t bytes = left < room ? left : room;
        c->at += bytes;
        done += bytes;
        if (done == bytes && (bytes == SESSION_RECORD_BYTES || c->count == 1)) {
            *from_p = from;
            return bytes;
        }
        memcpy(gathered + done - bytes, from, bytes);
    }
    return done;
}

/* As many records as the empty buffer holds. Returns the bytes that went into them. */
static ssize_t seal_some(struct tls_session *s, struct cursor *c)
{
    uint8_t gathered[SESSION_RECORD_BYTES];
    const uint8_t *from;
    ssize_t done = 0;
    for (int i = 0; i < SESSION_OUT_RECORDS; i++) {
        size_t bytes = next_record(c, gathered, &from);
        if (!bytes || !seal(s, from, bytes))
            break;
        done += (ssize_t)bytes;
    }
    return done;
}

ssize_t tls_session_write(struct tls_session *s, const struct iovec *iov, int iov_count)
{
    struct cursor cursor = {.iov = iov, .count = iov_count};
    ssize_t done = 0, sealed = 1;
    while (sealed && !s->read_error && tls_session_flush(s)) {
        sealed = seal_some(s, &cursor);
        done += sealed;
    }
    if (s->write_error || s->read_error)
        return s->write_error ? -s->write_error : -s->read_error;
    return done ? done : -EAGAIN;
}
