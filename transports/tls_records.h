/* tls_records.h - the records of TLS 1.3 (RFC 8446, section 5): one direction of a connection, from its traffic
 * secret on.
 *
 * A record is sealed straight from the caller's memory, however scattered, and opened straight into it. Reads and
 * writes no stream, and knows only the forms of records, not what they are good for. */
#ifndef PCCL_TLS_RECORDS_H
#define PCCL_TLS_RECORDS_H

#include <sys/uio.h>

#include "openssl.h"

enum {
    TLS_HEADER_BYTES = 5,
    TLS_PLAIN_BYTES = 16 << 10,            /* of content in one record at most */
    TLS_ADDED_BYTES = 1 + 16,              /* the type of the content, which is sealed with it, and the tag */
    TLS_RECORD_BYTES = TLS_HEADER_BYTES + TLS_PLAIN_BYTES + TLS_ADDED_BYTES,
    TLS_SECRET_BYTES = 48,                 /* of the longest hash */
    TLS_IV_BYTES = 12
};

enum tls_content { TLS_ALERT = 21, TLS_HANDSHAKE = 22, TLS_DATA = 23 };

/* Descriptions of alerts. */
enum {
    TLS_CLOSE_NOTIFY = 0, TLS_UNEXPECTED_MESSAGE = 10, TLS_BAD_RECORD_MAC = 20, TLS_RECORD_OVERFLOW = 22,
    TLS_ILLEGAL_PARAMETER = 47, TLS_DECODE_ERROR = 50, TLS_USER_CANCELED = 90
};

struct tls_suite;

struct tls_secret {
    uint8_t bytes[TLS_SECRET_BYTES];
    size_t count;
};

struct tls_way {
    const struct openssl *o;
    const struct tls_suite *suite;
    void *aead;                            /* NULL: not begun */
    int seals;                             /* else it opens */
    uint64_t sequence;                     /* of the next record with the present key */
    uint8_t iv[TLS_IV_BYTES];
    struct tls_secret secret;              /* of which the next key comes */
};

/* Where a list of memory goes on. */
struct tls_cursor {
    const struct iovec *iov;
    size_t at;                             /* within the first */
    size_t left;                           /* bytes in all */
};

struct tls_cursor tls_cursor_of(const struct iovec *iov, int iov_count);
/* The next piece that lies in one place, of at most `most` bytes; 0: none is left. */
size_t tls_cursor_next(struct tls_cursor *c, size_t most, uint8_t **piece_p);
/* How many bytes lie in one place from here on. */
size_t tls_cursor_stretch(struct tls_cursor *c);

/* `suite`: the number of the cipher suite. 0: no such suite here, or the secret is not of its size, or no memory. */
int tls_way_begin(struct tls_way *w, const struct openssl *o, unsigned suite, const struct tls_secret *secret,
                  int seals);
/* The next key, as after a KeyUpdate. 0: OpenSSL fails. */
int tls_way_renew(struct tls_way *w);
void tls_way_end(struct tls_way *w);

/* Makes one record of what comes next at the cursor: TLS_PLAIN_BYTES, or all there is, or what is before an entry
 * that fills a record itself. Returns the record's bytes; 0: OpenSSL fails. */
size_t tls_record_seal(struct tls_way *w, uint8_t type, struct tls_cursor *from, uint8_t to[TLS_RECORD_BYTES]);

/* Bytes of the record that begins here, of which `have` have come; 0: too few to tell; negative: it is none, the
 * alert says why. */
int tls_record_bytes(const uint8_t *record, size_t have);
/* Opens a whole record of so many bytes into `to`, which has room for TLS_HEADER_BYTES + TLS_ADDED_BYTES less, and
 * may be within the record, behind its header. Returns the type of its content; negative: the alert that says what
 * is wrong, and then nothing is left of what it may have held. */
int tls_record_open(struct tls_way *w, const uint8_t *record, size_t bytes, uint8_t *to, size_t *content_bytes_p);

#endif
