/* tls_records.c - seals and opens records, by OpenSSL's AEAD ciphers, and derives their keys.
 *
 * The nonce is the direction's iv with the sequence number over its end; the header is what is authenticated
 * besides. Padding is never made, and taken off where it comes. */
#include "tls_records.h"

#include <string.h>

struct tls_suite {
    unsigned number;
    const char *cipher, *hash;
    size_t key_bytes, hash_bytes;
};

enum { TAG_BYTES = TLS_ADDED_BYTES - 1, KEY_BYTES_MAX = 32, LABEL_BYTES_MAX = 12, VERSION = 0x0303 };

static const struct tls_suite suites[] = {
    {0x1301, "AES-128-GCM", "SHA256", 16, 32},
    {0x1302, "AES-256-GCM", "SHA384", 32, 48},
    {0x1303, "ChaCha20-Poly1305", "SHA256", 32, 32},
};

/* -- memory in pieces ------------------------------------------------------------------------------------ */

struct tls_cursor tls_cursor_of(const struct iovec *iov, int iov_count)
{
    struct tls_cursor c = {.iov = iov};
    for (int i = 0; i < iov_count; i++)
        c.left += iov[i].iov_len;
    return c;
}

size_t tls_cursor_stretch(struct tls_cursor *c)
{
    if (!c->left)
        return 0;
    while (c->at == c->iov->iov_len) {
        c->iov++;
        c->at = 0;
    }
    return c->iov->iov_len - c->at;
}

size_t tls_cursor_next(struct tls_cursor *c, size_t most, uint8_t **piece_p)
{
    size_t stretch = tls_cursor_stretch(c), bytes = stretch < most ? stretch : most;
    if (!bytes)
        return 0;
    *piece_p = (uint8_t *)c->iov->iov_base + c->at;
    c->at += bytes;
    c->left -= bytes;
    return bytes;
}

/* -- keys ------------------------------------------------------------------------------------------------ */

/* HKDF-Expand-Label with an empty context (RFC 8446, 7.1), of at most one hash: one round of HMAC. */
static int expand(const struct tls_way *w, const char *label, uint8_t *to, size_t bytes)
{
    static const char PREFIX[6] = "tls13 ";
    uint8_t info[3 + sizeof PREFIX + LABEL_BYTES_MAX + 2] = {(uint8_t)(bytes >> 8), (uint8_t)bytes};
    uint8_t hash[TLS_SECRET_BYTES];
    size_t label_bytes = strlen(label), at = 3 + sizeof PREFIX + label_bytes, got = 0;
    info[2] = (uint8_t)(sizeof PREFIX + label_bytes);
    memcpy(info + 3, PREFIX, sizeof PREFIX);
    memcpy(info + 3 + sizeof PREFIX, label, label_bytes);
    info[at++] = 0; /* the length of the context */
    info[at++] = 1; /* the round */
    const void *made = w->o->EVP_Q_mac(NULL, "HMAC", NULL, w->suite->hash, NULL, w->secret.bytes, w->secret.count,
                                       info, at, hash, sizeof hash, &got);
    int ok = made && got == w->secret.count && bytes <= got;
    if (ok)
        memcpy(to, hash, bytes);
    explicit_bzero(hash, sizeof hash);
    return ok;
}

/* Makes the key and the iv of the present secret. `cipher`: NULL, the one that the AEAD has. */
static int take_key(struct tls_way *w, const void *cipher)
{
    uint8_t key[KEY_BYTES_MAX];
    int ok = expand(w, "key", key, w->suite->key_bytes) && expand(w, "iv", w->iv, sizeof w->iv)
             && w->o->EVP_CipherInit_ex(w->aead, cipher, NULL, key, NULL, w->seals) == 1;
    explicit_bzero(key, sizeof key);
    w->sequence = 0;
    return ok;
}

int tls_way_begin(struct tls_way *w, const struct openssl *o, unsigned suite, const struct tls_secret *secret,
                  int seals)
{
    *w = (struct tls_way){.o = o, .seals = seals, .secret = *secret};
    for (size_t i = 0; i < sizeof suites / sizeof suites[0]; i++)
        if (suites[i].number == suite && suites[i].hash_bytes == secret->count)
            w->suite = &suites[i];
    void *cipher = w->suite ? o->EVP_CIPHER_fetch(NULL, w->suite->cipher, NULL) : NULL;
    w->aead = cipher ? o->EVP_CIPHER_CTX_new() : NULL;
    int ok = w->aead && take_key(w, cipher);
    o->EVP_CIPHER_free(cipher);
    if (!ok)
        tls_way_end(w);
    return ok;
}

int tls_way_renew(struct tls_way *w)
{
    return expand(w, "traffic upd", w->secret.bytes, w->secret.count) && take_key(w, NULL);
}

void tls_way_end(struct tls_way *w)
{
    if (w->aead)
        w->o->EVP_CIPHER_CTX_free(w->aead);
    w->aead = NULL;
    explicit_bzero(w->iv, sizeof w->iv);
    explicit_bzero(&w->secret, sizeof w->secret);
}

/* -- records --------------------------------------------------------------------------------------------- */

static int begin_record(struct tls_way *w, const uint8_t header[TLS_HEADER_BYTES])
{
    uint8_t nonce[TLS_IV_BYTES];
    int none;
    memcpy(nonce, w->iv, sizeof nonce);
    for (int i = 0; i < 8; i++)
        nonce[TLS_IV_BYTES - 1 - i] ^= (uint8_t)(w->sequence >> 8 * i);
    w->sequence++;
    return w->o->EVP_CipherInit_ex(w->aead, NULL, NULL, NULL, nonce, w->seals) == 1
           && w->o->EVP_CipherUpdate(w->aead, NULL, &none, header, TLS_HEADER_BYTES) == 1;
}

/* Of one record, so of few bytes. */
static int crypt(struct tls_way *w, uint8_t *to, const uint8_t *from, size_t bytes)
{
    int made;
    return w->o->EVP_CipherUpdate(w->aead, to, &made, from, (int)bytes) == 1 && (size_t)made == bytes;
}

/* What goes into the next record: as much as it takes, but an entry that fills a record begins one. So what the
 * engine reads into one place at the other side comes in records that have their place there, whatever header went
 * before it. */
static size_t next_content(const struct tls_cursor *from)
{
    const struct iovec *iov = from->iov;
    size_t bytes = 0, stretch = from->left ? iov->iov_len - from->at : 0;
    while (bytes < from->left && bytes < TLS_PLAIN_BYTES && (!bytes || stretch < TLS_PLAIN_BYTES)) {
        bytes += stretch;
        stretch = bytes < from->left ? (++iov)->iov_len : 0;
    }
    return bytes < TLS_PLAIN_BYTES ? bytes : TLS_PLAIN_BYTES;
}

size_t tls_record_seal(struct tls_way *w, uint8_t type, struct tls_cursor *from, uint8_t to[TLS_RECORD_BYTES])
{
    const size_t bytes = next_content(from), body = bytes + TLS_ADDED_BYTES;
    uint8_t *at = to + TLS_HEADER_BYTES, *end = at + bytes, *piece, none[TAG_BYTES];
    int none_bytes;
    to[0] = TLS_DATA, to[1] = VERSION >> 8, to[2] = VERSION & 255;
    to[3] = (uint8_t)(body >> 8), to[4] = (uint8_t)body;
    int ok = begin_record(w, to);
    while (ok && at < end) {
        size_t piece_bytes = tls_cursor_next(from, (size_t)(end - at), &piece);
        ok = crypt(w, at, piece, piece_bytes);
        at += piece_bytes;
    }
    ok = ok && crypt(w, at, &type, 1) && w->o->EVP_CipherFinal_ex(w->aead, none, &none_bytes) == 1
         && w->o->EVP_CIPHER_CTX_ctrl(w->aead, OSSL_AEAD_GET_TAG, TAG_BYTES, at + 1) == 1;
    return ok ? TLS_HEADER_BYTES + body : 0;
}

/* The version is to be ignored, says the standard; the tag covers it. */
int tls_record_bytes(const uint8_t *record, size_t have)
{
    if (have < TLS_HEADER_BYTES)
        return 0;
    int body = record[3] << 8 | record[4];
    if (record[0] != TLS_DATA)
        return -TLS_UNEXPECTED_MESSAGE;
    if (body > TLS_PLAIN_BYTES + TLS_ADDED_BYTES)
        return -TLS_RECORD_OVERFLOW;
    return body < TLS_ADDED_BYTES ? -TLS_DECODE_ERROR : TLS_HEADER_BYTES + body;
}

int tls_record_open(struct tls_way *w, const uint8_t *record, size_t bytes, uint8_t *to, size_t *content_bytes_p)
{
    const size_t most = bytes - TLS_HEADER_BYTES - TLS_ADDED_BYTES;
    const uint8_t *body = record + TLS_HEADER_BYTES;
    uint8_t type, tag[TAG_BYTES], none[TAG_BYTES];
    int none_bytes;
    memcpy(tag, record + bytes - TAG_BYTES, TAG_BYTES);
    int ok = begin_record(w, record) && (!most || crypt(w, to, body, most)) && crypt(w, &type, body + most, 1)
             && w->o->EVP_CIPHER_CTX_ctrl(w->aead, OSSL_AEAD_SET_TAG, TAG_BYTES, tag) == 1
             && w->o->EVP_CipherFinal_ex(w->aead, none, &none_bytes) == 1;
    if (!ok) {
        explicit_bzero(to, most);
        w->o->ERR_clear_error();
        return -TLS_BAD_RECORD_MAC;
    }
    size_t content = most;
    while (!type && content)
        type = to[--content];
    *content_bytes_p = content;
    return type ? type : -TLS_UNEXPECTED_MESSAGE;
}
