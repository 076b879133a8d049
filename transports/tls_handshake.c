/* tls_handshake.c - the handshake, by OpenSSL, which reads and writes the session's buffers by a BIO of ours.
 *
 * OpenSSL does all that proves anything. When it has, the traffic secrets, which it tells as it would for a key log,
 * become the keys of our records, and its connection is freed: it asks its BIO for one record at a time, so what
 * came behind its last one still lies in the session's buffer. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tls_session.h"

/* -- OpenSSL's way to the session's buffers ---------------------------------------------------------------- */

static int bio_read(void *bio, char *data, int bytes)
{
    const struct openssl *o = openssl();
    struct tls_session *s = o->BIO_get_data(bio);
    o->BIO_clear_flags(bio, OSSL_BIO_AGAIN_MASK);
    if (s->in_begin == s->in_end && tls_session_refill(s) <= 0) {
        if (!s->read_error)
            o->BIO_set_flags(bio, OSSL_BIO_READ_AGAIN);
        return -1;
    }
    uint32_t there = s->in_end - s->in_begin, part = (uint32_t)bytes < there ? (uint32_t)bytes : there;
    memcpy(data, s->in + s->in_begin, part);
    s->in_begin += part;
    return (int)part;
}

static int bio_write(void *bio, const char *data, int bytes)
{
    const struct openssl *o = openssl();
    struct tls_session *s = o->BIO_get_data(bio);
    o->BIO_clear_flags(bio, OSSL_BIO_AGAIN_MASK);
    if (s->out_begin == s->out_end)
        s->out_begin = s->out_end = 0;
    if ((size_t)bytes > TLS_OUT_BYTES - s->out_end) {
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

/* -- secrets ------------------------------------------------------------------------------------------------ */

static int digit(char c)
{
    static const char DIGITS[] = "0123456789abcdef";
    const char *at = c ? strchr(DIGITS, c) : NULL;
    return at ? (int)(at - DIGITS) : -1;
}

static void take_digits(struct tls_secret *secret, const char *text)
{
    secret->count = 0;
    for (; digit(text[0]) >= 0 && digit(text[1]) >= 0 && secret->count < TLS_SECRET_BYTES; text += 2)
        secret->bytes[secret->count++] = (uint8_t)(digit(text[0]) << 4 | digit(text[1]));
}

/* A line of a key log: what it is, the client's random number, the secret. OpenSSL wipes it. */
void tls_session_note_secret(const void *ssl, const char *line)
{
    static const char CLIENT[] = "CLIENT_TRAFFIC_SECRET_0 ", SERVER[] = "SERVER_TRAFFIC_SECRET_0 ";
    const struct openssl *o = openssl();
    struct tls_session *s = o->BIO_get_data(o->SSL_get_rbio(ssl));
    const char *last = strrchr(line, ' ');
    if (strncmp(line, CLIENT, sizeof CLIENT - 1) == 0)
        take_digits(&s->client, last + 1);
    else if (strncmp(line, SERVER, sizeof SERVER - 1) == 0)
        take_digits(&s->server, last + 1);
}

static void wipe_secrets(struct tls_session *s)
{
    explicit_bzero(&s->client, sizeof s->client);
    explicit_bzero(&s->server, sizeof s->server);
}

/* -- beginning and end -------------------------------------------------------------------------------------- */

int tls_session_begin(struct tls_session *s, int is_dialler)
{
    const struct openssl *o = s->context->o;
    void *bio = o->BIO_new(s->context->bio_method);
    s->is_dialler = s->control.is_dialler = is_dialler;
    s->in = malloc(TLS_IN_BYTES);
    s->out = malloc(TLS_OUT_BYTES);
    s->ssl = bio && s->in && s->out ? o->SSL_new(s->context->ctx) : NULL;
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

static void free_ssl(struct tls_session *s)
{
    if (s->ssl)
        s->context->o->SSL_free(s->ssl);
    s->ssl = NULL;
    wipe_secrets(s);
}

void tls_session_free(struct tls_session *s)
{
    free_ssl(s);
    tls_way_end(&s->in_way);
    tls_way_end(&s->out_way);
    free(s->in);
    free(s->out);
    s->in = s->out = NULL;
    s->plain = NULL;
    s->in_begin = s->in_end = s->plain_bytes = s->out_begin = s->out_end = 0;
}

int tls_session_take_over(struct tls_session *s, unsigned suite, const struct tls_secret *in,
                          const struct tls_secret *out)
{
    int ok = tls_way_begin(&s->in_way, s->context->o, suite, in, 0)
             && tls_way_begin(&s->out_way, s->context->o, suite, out, 1);
    free_ssl(s);
    return ok;
}

/* -- the handshake ------------------------------------------------------------------------------------------ */

/* Keeps in words why OpenSSL will not go on. The oldest of its errors is the cause. */
static void note_refusal(struct tls_session *s)
{
    const struct openssl *o = s->context->o;
    unsigned long error = o->ERR_get_error();
    unsigned long reason = error & OSSL_REASON_MASK;
    const char *text = o->ERR_reason_error_string(error);
    long verify = o->SSL_get_verify_result(s->ssl);
    int plain = reason == OSSL_REASON_WRONG_VERSION || reason == OSSL_REASON_HTTP_REQUEST
                || reason == OSSL_REASON_TOO_LONG;
    snprintf(s->refusal, sizeof s->refusal, "TLS: %s%s%s%s", text ? text : "not proven", verify ? ": " : "",
             verify ? o->X509_verify_cert_error_string(verify) : "", plain ? ": it does not speak TLS" : "");
    o->ERR_clear_error();
}

/* OpenSSL has come to the end: nothing of what is not its own may be left in it. */
static int end_handshake(struct tls_session *s)
{
    const struct openssl *o = s->context->o;
    unsigned suite = o->SSL_CIPHER_get_protocol_id(o->SSL_get_current_cipher(s->ssl));
    const struct tls_secret *in = s->is_dialler ? &s->server : &s->client;
    const struct tls_secret *out = s->is_dialler ? &s->client : &s->server;
    if (!o->SSL_has_pending(s->ssl) && tls_session_take_over(s, suite, in, out))
        return 1;
    snprintf(s->refusal, sizeof s->refusal, "TLS: cannot go on after the handshake, with cipher suite 0x%04x", suite);
    return 0;
}

int tls_session_shake(struct tls_session *s)
{
    const struct openssl *o = s->context->o;
    o->ERR_clear_error();
    int result = o->SSL_do_handshake(s->ssl);
    int error = result == 1 ? 0 : o->SSL_get_error(s->ssl, result);
    int waits = error == OSSL_ERROR_WANT_READ || error == OSSL_ERROR_WANT_WRITE;
    if (!s->read_error && !waits) {
        int proven = result == 1 && tls_context_proven(s->context, s->ssl);
        if (!proven)
            note_refusal(s);
        if (!proven || !end_handshake(s))
            s->read_error = EACCES;
    }
    o->ERR_clear_error();
    if (!tls_session_flush(s) && s->write_error && !s->read_error)
        s->read_error = s->write_error;
    s->maybe_more = !s->read_error && result == 1 && tls_session_has_more(s);
    return s->read_error ? -1 : result == 1;
}
