/* tls_context.c - TLS 1.3 and nothing else; both sides prove themselves, by the run's pre-shared key or by certificates.
 *
 * With the key: an external PSK with an ephemeral exchange (psk_dhe_ke), so that a key that leaks later opens no recording. No
 * certificate is ever accepted then: there is no authority that could have signed one. With certificates: each side shows one,
 * and the other verifies it against the given authority; names are not compared, since peers are dialled by number.
 * No session outlives its connection: no tickets, no cache, no early data. */
#include "tls_context.h"

#include <stdlib.h>
#include <string.h>

#include "../csrc/err.h"
#include "tls_session.h"

static const char SUITE[] = "TLS_AES_128_GCM_SHA256";
static const unsigned char SUITE_CODE[2] = {0x13, 0x01};
static const unsigned char SESSION_CONTEXT[4] = "pccl"; /* OpenSSL takes a PSK for a session, which must be of this context */
static const char PSK_IDENTITY[] = "pccl/1";

static const struct tls_context *context_of(void *ssl)
{
    const struct openssl *o = openssl();
    return o->SSL_CTX_get_ex_data(o->SSL_get_SSL_CTX(ssl), 0);
}

/* The key in the form that OpenSSL takes it. NULL: no memory. */
static void *psk_session(const struct tls_context *c, void *ssl)
{
    const struct openssl *o = c->o;
    void *session = o->SSL_SESSION_new();
    if (session && o->SSL_SESSION_set1_master_key(session, c->psk, sizeof c->psk) == 1
        && o->SSL_SESSION_set1_id_context(session, SESSION_CONTEXT, sizeof SESSION_CONTEXT) == 1
        && o->SSL_SESSION_set_cipher(session, o->SSL_CIPHER_find(ssl, SUITE_CODE)) == 1
        && o->SSL_SESSION_set_protocol_version(session, OSSL_TLS_1_3) == 1)
        return session;
    o->SSL_SESSION_free(session);
    return NULL;
}

/* The dialler's side. `digest` is set when the server has chosen another one, which our one suite never lets it. */
static int use_psk(void *ssl, const void *digest, const unsigned char **id, size_t *id_bytes, void **session_p)
{
    (void)digest;
    *session_p = psk_session(context_of(ssl), ssl);
    *id = (const unsigned char *)PSK_IDENTITY;
    *id_bytes = sizeof PSK_IDENTITY - 1;
    return *session_p != NULL;
}

/* The acceptor's side: an unknown identity is no error here, but without a certificate the handshake then fails. */
static int find_psk(void *ssl, const unsigned char *id, size_t id_bytes, void **session_p)
{
    *session_p = NULL;
    if (id_bytes != sizeof PSK_IDENTITY - 1 || memcmp(id, PSK_IDENTITY, id_bytes) != 0)
        return 1;
    *session_p = psk_session(context_of(ssl), ssl);
    return *session_p != NULL;
}

/* A key with a password is refused rather than asked about at a terminal. */
static int no_password(char *text, int cap, int for_writing, void *unused)
{
    (void)text, (void)cap, (void)for_writing, (void)unused;
    return -1;
}

static pccl_err complain(const struct openssl *o, const char *what, const char *file)
{
    const char *reason = o->ERR_reason_error_string(o->ERR_get_error());
    o->ERR_clear_error();
    err_set("TLS: cannot use %s \"%s\": %s", what, file, reason ? reason : "it cannot be read");
    return PCCL_EINVAL;
}

static pccl_err use_certificates(struct tls_context *c, const pccl_config *config)
{
    const struct openssl *o = c->o;
    o->ERR_clear_error();
    o->SSL_CTX_set_default_passwd_cb(c->ctx, no_password);
    if (o->SSL_CTX_load_verify_locations(c->ctx, config->tls_ca, NULL) != 1)
        return complain(o, "the authority's certificate", config->tls_ca);
    if (o->SSL_CTX_use_certificate_chain_file(c->ctx, config->tls_cert) != 1)
        return complain(o, "the certificate", config->tls_cert);
    if (o->SSL_CTX_use_PrivateKey_file(c->ctx, config->tls_key, OSSL_FILE_PEM) != 1
        || o->SSL_CTX_check_private_key(c->ctx) != 1)
        return complain(o, "the private key", config->tls_key);
    return PCCL_OK;
}

static pccl_err use_key(struct tls_context *c, const pccl_config *config)
{
    if (!config->has_psk) {
        err_set("TLS needs the run's secret, or certificates");
        return PCCL_EINVAL;
    }
    c->by_psk = 1;
    memcpy(c->psk, config->psk, sizeof c->psk);
    c->o->SSL_CTX_set_psk_use_session_callback(c->ctx, use_psk);
    c->o->SSL_CTX_set_psk_find_session_callback(c->ctx, find_psk);
    return PCCL_OK;
}

static int set_rules(struct tls_context *c)
{
    const struct openssl *o = c->o;
    o->SSL_CTX_set_ex_data(c->ctx, 0, c);
    o->SSL_CTX_set_options(c->ctx, OSSL_OP_NO_TICKET);
    o->SSL_CTX_set_session_id_context(c->ctx, SESSION_CONTEXT, sizeof SESSION_CONTEXT);
    o->SSL_CTX_set_verify(c->ctx, OSSL_VERIFY_PEER | OSSL_VERIFY_MUST, NULL);
    o->SSL_CTX_ctrl(c->ctx, OSSL_CTRL_SESSION_CACHE, 0, NULL);
    o->SSL_CTX_set_keylog_callback(c->ctx, tls_session_note_secret);
    /* no ticket: the first record with the keys that we take over has to be ours, lest a nonce be used twice */
    return o->SSL_CTX_set_num_tickets(c->ctx, 0) == 1
           && o->SSL_CTX_ctrl(c->ctx, OSSL_CTRL_MIN_VERSION, OSSL_TLS_1_3, NULL) == 1
           && o->SSL_CTX_ctrl(c->ctx, OSSL_CTRL_MAX_VERSION, OSSL_TLS_1_3, NULL) == 1
           && o->SSL_CTX_set_ciphersuites(c->ctx, SUITE) == 1;
}

static int is_terminated(const char *text, size_t cap)
{
    return memchr(text, 0, cap) != NULL;
}

pccl_err tls_context_open(struct tls_context *c, const pccl_config *config)
{
    int given = (config->tls_ca[0] != 0) + (config->tls_cert[0] != 0) + (config->tls_key[0] != 0);
    memset(c, 0, sizeof *c);
    if (!is_terminated(config->tls_ca, sizeof config->tls_ca) || !is_terminated(config->tls_cert, sizeof config->tls_cert)
        || !is_terminated(config->tls_key, sizeof config->tls_key) || (given != 0 && given != 3)) {
        err_set("TLS with certificates takes three files: the authority's certificate, ours and its private key");
        return PCCL_EINVAL;
    }
    c->o = openssl();
    if (!c->o) {
        err_set("%s", openssl_missing());
        return PCCL_EIO;
    }
    c->ctx = c->o->SSL_CTX_new(c->o->TLS_method());
    c->bio_method = tls_session_bio_method(c->o);
    pccl_err err = PCCL_EIO;
    if (!c->ctx || !c->bio_method)
        err_set("TLS: OpenSSL has no memory");
    else if (set_rules(c))
        err = given ? use_certificates(c, config) : use_key(c, config);
    else
        err_set("TLS: this OpenSSL does not offer TLS 1.3 with %s", SUITE);
    if (err != PCCL_OK)
        tls_context_close(c);
    return err;
}

void tls_context_close(struct tls_context *c)
{
    if (c->o) {
        c->o->SSL_CTX_free(c->ctx);
        c->o->BIO_meth_free(c->bio_method);
    }
    explicit_bzero(c->psk, sizeof c->psk);
    c->ctx = c->bio_method = NULL;
}

int tls_context_proven(const struct tls_context *c, const void *ssl)
{
    return c->by_psk ? c->o->SSL_session_reused(ssl) == 1 : c->o->SSL_get_verify_result(ssl) == 0;
}
