/* openssl.h - what tls.c needs of OpenSSL 3, loaded when it is asked for.
 *
 * The prototypes are those of the stable public functions of libssl.so.3 and libcrypto.so.3, so that neither building nor
 * using pccl needs OpenSSL's headers, and nobody who uses no TLS needs the library. Types are opaque: void. */
#ifndef PCCL_OPENSSL_H
#define PCCL_OPENSSL_H

#include <stddef.h>
#include <stdint.h>

/* OpenSSL's public constants that are used here. */
enum {
    OSSL_TLS_1_3 = 0x0304,
    OSSL_CTRL_SESSION_CACHE = 44, OSSL_CTRL_MIN_VERSION = 123, OSSL_CTRL_MAX_VERSION = 124,
    OSSL_OP_NO_TICKET = 1 << 14,
    OSSL_VERIFY_PEER = 1, OSSL_VERIFY_MUST = 2,
    OSSL_FILE_PEM = 1,
    OSSL_ERROR_WANT_READ = 2, OSSL_ERROR_WANT_WRITE = 3,
    OSSL_BIO_READ_AGAIN = 1 | 8, OSSL_BIO_WRITE_AGAIN = 2 | 8, OSSL_BIO_AGAIN_MASK = 15,
    OSSL_BIO_CTRL_FLUSH = 11,
    OSSL_BIO_TYPE_SOURCE_SINK = 0x0400,
    OSSL_AEAD_GET_TAG = 16, OSSL_AEAD_SET_TAG = 17,
    OSSL_REASON_MASK = 0x7fffff,
    OSSL_REASON_HTTP_REQUEST = 156, OSSL_REASON_TOO_LONG = 198, OSSL_REASON_WRONG_VERSION = 267
};
#define OSSL_INIT_NO_ATEXIT 0x00080000u

typedef int ossl_use_session(void *ssl, const void *digest, const unsigned char **id, size_t *id_bytes, void **session_p);
typedef int ossl_find_session(void *ssl, const unsigned char *id, size_t id_bytes, void **session_p);
typedef void ossl_keylog(const void *ssl, const char *line);
typedef int ossl_password(char *text, int cap, int for_writing, void *unused);
typedef int ossl_bio_read(void *bio, char *data, int bytes);
typedef int ossl_bio_write(void *bio, const char *data, int bytes);
typedef long ossl_bio_ctrl(void *bio, int command, long number, void *pointer);

/* X(library, result, name, arguments) */
#define OSSL_FUNCTIONS(X)                                                                         \
    X(ssl, int, OPENSSL_init_ssl, (uint64_t options, const void *settings))                      \
    X(ssl, const void *, TLS_method, (void))                                                     \
    X(ssl, void *, SSL_CTX_new, (const void *method))                                            \
    X(ssl, void, SSL_CTX_free, (void *ctx))                                                      \
    X(ssl, long, SSL_CTX_ctrl, (void *ctx, int command, long number, void *pointer))             \
    X(ssl, uint64_t, SSL_CTX_set_options, (void *ctx, uint64_t options))                         \
    X(ssl, int, SSL_CTX_set_ciphersuites, (void *ctx, const char *names))                        \
    X(ssl, int, SSL_CTX_set_session_id_context, (void *ctx, const unsigned char *id, unsigned bytes)) \
    X(ssl, int, SSL_CTX_set_num_tickets, (void *ctx, size_t count))                              \
    X(ssl, void, SSL_CTX_set_default_passwd_cb, (void *ctx, ossl_password *callback))            \
    X(ssl, void, SSL_CTX_set_verify, (void *ctx, int mode, void *callback))                      \
    X(ssl, int, SSL_CTX_load_verify_locations, (void *ctx, const char *file, const char *dir))   \
    X(ssl, int, SSL_CTX_use_certificate_chain_file, (void *ctx, const char *file))               \
    X(ssl, int, SSL_CTX_use_PrivateKey_file, (void *ctx, const char *file, int type))            \
    X(ssl, int, SSL_CTX_check_private_key, (const void *ctx))                                    \
    X(ssl, int, SSL_CTX_set_ex_data, (void *ctx, int index, void *data))                         \
    X(ssl, void *, SSL_CTX_get_ex_data, (const void *ctx, int index))                            \
    X(ssl, void *, SSL_get_SSL_CTX, (const void *ssl))                                           \
    X(ssl, void, SSL_CTX_set_psk_use_session_callback, (void *ctx, ossl_use_session *callback))  \
    X(ssl, void, SSL_CTX_set_psk_find_session_callback, (void *ctx, ossl_find_session *callback)) \
    X(ssl, void, SSL_CTX_set_keylog_callback, (void *ctx, ossl_keylog *callback))                \
    X(ssl, void *, SSL_SESSION_new, (void))                                                      \
    X(ssl, void, SSL_SESSION_free, (void *session))                                              \
    X(ssl, int, SSL_SESSION_set1_master_key, (void *session, const unsigned char *key, size_t bytes)) \
    X(ssl, int, SSL_SESSION_set1_id_context, (void *session, const unsigned char *id, unsigned bytes)) \
    X(ssl, int, SSL_SESSION_set_cipher, (void *session, const void *cipher))                     \
    X(ssl, int, SSL_SESSION_set_protocol_version, (void *session, int version))                  \
    X(ssl, const void *, SSL_CIPHER_find, (void *ssl, const unsigned char *code))                \
    X(ssl, uint16_t, SSL_CIPHER_get_protocol_id, (const void *cipher))                           \
    X(ssl, void *, SSL_new, (void *ctx))                                                         \
    X(ssl, void, SSL_free, (void *ssl))                                                          \
    X(ssl, void, SSL_set_bio, (void *ssl, void *read_bio, void *write_bio))                      \
    X(ssl, void *, SSL_get_rbio, (const void *ssl))                                              \
    X(ssl, void, SSL_set_connect_state, (void *ssl))                                             \
    X(ssl, void, SSL_set_accept_state, (void *ssl))                                              \
    X(ssl, int, SSL_do_handshake, (void *ssl))                                                   \
    X(ssl, int, SSL_session_reused, (const void *ssl))                                           \
    X(ssl, long, SSL_get_verify_result, (const void *ssl))                                       \
    X(ssl, const void *, SSL_get_current_cipher, (const void *ssl))                              \
    X(ssl, int, SSL_has_pending, (const void *ssl))                                              \
    X(ssl, int, SSL_get_error, (const void *ssl, int result))                                    \
    X(ssl, const char *, SSL_alert_desc_string_long, (int alert))                                \
    X(crypto, void *, BIO_meth_new, (int type, const char *name))                                \
    X(crypto, void, BIO_meth_free, (void *method))                                               \
    X(crypto, int, BIO_meth_set_read, (void *method, ossl_bio_read *callback))                   \
    X(crypto, int, BIO_meth_set_write, (void *method, ossl_bio_write *callback))                 \
    X(crypto, int, BIO_meth_set_ctrl, (void *method, ossl_bio_ctrl *callback))                   \
    X(crypto, void *, BIO_new, (const void *method))                                             \
    X(crypto, int, BIO_free, (void *bio))                                                        \
    X(crypto, void, BIO_set_data, (void *bio, void *data))                                       \
    X(crypto, void *, BIO_get_data, (void *bio))                                                 \
    X(crypto, void, BIO_set_init, (void *bio, int is_ready))                                     \
    X(crypto, void, BIO_set_flags, (void *bio, int flags))                                       \
    X(crypto, void, BIO_clear_flags, (void *bio, int flags))                                     \
    X(crypto, void *, EVP_CIPHER_fetch, (void *library, const char *name, const char *properties)) \
    X(crypto, void, EVP_CIPHER_free, (void *cipher))                                             \
    X(crypto, void *, EVP_CIPHER_CTX_new, (void))                                                \
    X(crypto, void, EVP_CIPHER_CTX_free, (void *ctx))                                            \
    X(crypto, int, EVP_CIPHER_CTX_ctrl, (void *ctx, int command, int number, void *pointer))     \
    X(crypto, int, EVP_CipherInit_ex,                                                            \
      (void *ctx, const void *cipher, void *engine, const uint8_t *key, const uint8_t *iv, int seals)) \
    X(crypto, int, EVP_CipherUpdate, (void *ctx, uint8_t *to, int *made, const uint8_t *from, int bytes)) \
    X(crypto, int, EVP_CipherFinal_ex, (void *ctx, uint8_t *to, int *made))                      \
    X(crypto, uint8_t *, EVP_Q_mac,                                                              \
      (void *library, const char *name, const char *properties, const char *hash, const void *settings, \
       const void *key, size_t key_bytes, const uint8_t *data, size_t bytes, uint8_t *to, size_t room, size_t *made)) \
    X(crypto, unsigned long, ERR_get_error, (void))                                              \
    X(crypto, const char *, ERR_reason_error_string, (unsigned long error))                      \
    X(crypto, void, ERR_clear_error, (void))                                                     \
    X(crypto, const char *, X509_verify_cert_error_string, (long error))                         \
    X(crypto, const char *, OpenSSL_version, (int what))

#define OSSL_MEMBER(library, result, name, arguments) result (*name) arguments;
struct openssl {
    OSSL_FUNCTIONS(OSSL_MEMBER)
};
#undef OSSL_MEMBER

/* Loads the two libraries by these names. 1, or 0 with a sentence about what is missing in `why`. */
int openssl_load(const char *ssl_name, const char *crypto_name, struct openssl *functions, char *why, size_t why_bytes);

/* The library, loaded once per process; NULL if it cannot be, and then openssl_missing() says why and what to install. Any
 * thread. */
const struct openssl *openssl(void);
const char *openssl_missing(void);

#endif
