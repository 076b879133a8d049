/* test_tls_plain.c - our TLS against OpenSSL's own, through the whole life of a connection: each reads what the
 * other has written.
 *
 * The other side is OpenSSL alone, with its SSL_read and SSL_write, over its BIOs in memory. */
#include <dlfcn.h>

#include "test.h"
#include "tls_ends.h"

enum { BYTES = 200000, KEY_UPDATE_ASKED = 1, RETURNED_ZERO = 6, BLOCK = 512 };

/* What only tests need of OpenSSL. */
static struct {
    int (*SSL_read)(void *ssl, void *to, int bytes);
    int (*SSL_write)(void *ssl, const void *from, int bytes);
    int (*SSL_key_update)(void *ssl, int kind);
    int (*SSL_shutdown)(void *ssl);
    int (*SSL_CTX_set_block_padding)(void *ctx, size_t bytes);
    uint64_t (*SSL_CTX_clear_options)(void *ctx, uint64_t options);
    const void *(*BIO_s_mem)(void);
    int (*BIO_read)(void *bio, void *to, int bytes);
    int (*BIO_write)(void *bio, const void *from, int bytes);
} more;

static struct tls_context ours, theirs;
static unsigned suite;                     /* that both sides take now */
static uint8_t sent[BYTES], received[BYTES];

struct named_suite {
    unsigned number;
    const char *name;
};

static const struct named_suite SUITES[] = {
    {SUITE_AES_128, "TLS_AES_128_GCM_SHA256"},
    {SUITE_AES_256, "TLS_AES_256_GCM_SHA384"},
    {SUITE_CHACHA, "TLS_CHACHA20_POLY1305_SHA256"},
};

static void find(void *library, const char *name, void *function_p)
{
    void *symbol = dlsym(library, name);
    CHECK(symbol != NULL);
    memcpy(function_p, &symbol, sizeof symbol);
}

static void find_more(void)
{
    void *ssl = dlopen("libssl.so.3", RTLD_NOW), *crypto = dlopen("libcrypto.so.3", RTLD_NOW);
    find(ssl, "SSL_read", &more.SSL_read);
    find(ssl, "SSL_write", &more.SSL_write);
    find(ssl, "SSL_key_update", &more.SSL_key_update);
    find(ssl, "SSL_shutdown", &more.SSL_shutdown);
    find(ssl, "SSL_CTX_set_block_padding", &more.SSL_CTX_set_block_padding);
    find(ssl, "SSL_CTX_clear_options", &more.SSL_CTX_clear_options);
    find(crypto, "BIO_s_mem", &more.BIO_s_mem);
    find(crypto, "BIO_read", &more.BIO_read);
    find(crypto, "BIO_write", &more.BIO_write);
}

/* -- a key of any suite: the transport's own is of one -------------------------------------------------------- */

static void *session_of(void *ssl)
{
    static const unsigned char KEY[TLS_SECRET_BYTES] = "of all the run", CONTEXT[4] = "pccl";
    const unsigned char code[2] = {(unsigned char)(suite >> 8), (unsigned char)suite};
    const struct openssl *o = openssl();
    void *session = o->SSL_SESSION_new();
    CHECK_EQ_INT(o->SSL_SESSION_set1_master_key(session, KEY, suite == SUITE_AES_256 ? 48 : 32), 1);
    CHECK_EQ_INT(o->SSL_SESSION_set1_id_context(session, CONTEXT, sizeof CONTEXT), 1);
    CHECK_EQ_INT(o->SSL_SESSION_set_cipher(session, o->SSL_CIPHER_find(ssl, code)), 1);
    CHECK_EQ_INT(o->SSL_SESSION_set_protocol_version(session, OSSL_TLS_1_3), 1);
    return session;
}

static int use_key(void *ssl, const void *digest, const unsigned char **id, size_t *id_bytes, void **session_p)
{
    (void)digest;
    *id = (const unsigned char *)"pccl/1";
    *id_bytes = 6;
    *session_p = session_of(ssl);
    return 1;
}

static int find_key(void *ssl, const unsigned char *id, size_t id_bytes, void **session_p)
{
    (void)id, (void)id_bytes;
    *session_p = session_of(ssl);
    return 1;
}

static void prepare(struct tls_context *c, const char *name)
{
    CHECK_EQ_INT(tls_context_by_key(c), PCCL_OK);
    CHECK_EQ_INT(c->o->SSL_CTX_set_ciphersuites(c->ctx, name), 1);
    c->o->SSL_CTX_set_psk_use_session_callback(c->ctx, use_key);
    c->o->SSL_CTX_set_psk_find_session_callback(c->ctx, find_key);
}

/* 0: there is no OpenSSL here. */
static int begin(const struct named_suite *named)
{
    if (!openssl())
        return 0;
    if (!more.SSL_read)
        find_more();
    suite = named->number;
    prepare(&ours, named->name);
    prepare(&theirs, named->name);
    theirs.o->SSL_CTX_set_keylog_callback(theirs.ctx, NULL);
    for (size_t i = 0; i < BYTES; i++)
        sent[i] = (uint8_t)(i * 2654435761u >> 13);
    return 1;
}

static void end(void)
{
    tls_context_close(&ours);
    tls_context_close(&theirs);
}

/* -- the two sides ---------------------------------------------------------------------------------------------- */

struct sides {
    struct tls_end *our;
    void *ssl, *to_ssl, *from_ssl;
};

/* What either has said goes to the other. */
static void carry(struct sides *s)
{
    uint8_t some[4096];
    struct pipe *out = &s->our->pipes.out;
    size_t said = out->end - out->begin;
    if (said)
        CHECK_EQ_INT(more.BIO_write(s->to_ssl, out->bytes + out->begin, (int)said), said);
    out->begin = out->end;
    for (int bytes; (bytes = more.BIO_read(s->from_ssl, some, sizeof some)) > 0;)
        pipe_put(&s->our->pipes.in, some, (size_t)bytes);
}

static void sides_new(struct sides *s, int we_dial, size_t most)
{
    const struct openssl *o = theirs.o;
    s->our = tls_end_new(&ours);
    CHECK(tls_session_begin(&s->our->session, we_dial));
    s->our->pipes.most = most;
    s->ssl = o->SSL_new(theirs.ctx);
    s->to_ssl = o->BIO_new(more.BIO_s_mem());
    s->from_ssl = o->BIO_new(more.BIO_s_mem());
    o->SSL_set_bio(s->ssl, s->to_ssl, s->from_ssl);
    if (we_dial)
        o->SSL_set_accept_state(s->ssl);
    else
        o->SSL_set_connect_state(s->ssl);
}

static void sides_begin(struct sides *s, int we_dial, size_t most)
{
    int done = 0;
    sides_new(s, we_dial, most);
    for (int turns = 0; done != 3 && turns < 100000; turns++) {
        done |= !(done & 1) && tls_session_shake(&s->our->session) == 1 ? 1 : 0;
        done |= !(done & 2) && theirs.o->SSL_do_handshake(s->ssl) == 1 ? 2 : 0;
        carry(s);
    }
    CHECK_EQ_INT(done, 3);
    CHECK(s->our->session.ssl == NULL);
}

static void sides_end(struct sides *s)
{
    theirs.o->SSL_free(s->ssl);
    tls_end_free(s->our);
}

/* All the bytes from OpenSSL to us. */
static void check_from_them(struct sides *s)
{
    size_t at = 0, came = 0;
    memset(received, 0, sizeof received);
    for (int turns = 0; came < BYTES && turns < 1000000; turns++) {
        if (at < BYTES && s->our->pipes.in.begin == s->our->pipes.in.end) {
            size_t part = BYTES - at < 50000 ? BYTES - at : 50000;
            int moved = more.SSL_write(s->ssl, sent + at, (int)part);
            at += moved > 0 ? (size_t)moved : 0;
        }
        carry(s);
        size_t half = (BYTES - came) / 2;
        struct iovec iov[] = {{received + came, half}, {received + came + half, BYTES - came - half}};
        ssize_t moved = tls_session_read(&s->our->session, iov, 2);
        came += moved > 0 ? (size_t)moved : 0;
    }
    CHECK_EQ_INT(came, BYTES);
    CHECK_EQ_BYTES(received, sent, BYTES);
}

/* All the bytes from us to OpenSSL. */
static void check_from_us(struct sides *s)
{
    size_t at = 0, came = 0;
    memset(received, 0, sizeof received);
    for (int turns = 0; came < BYTES && turns < 1000000; turns++) {
        size_t third = (BYTES - at) / 3;
        struct iovec iov[] = {{sent + at, third}, {sent + at + third, BYTES - at - third}};
        ssize_t moved = at < BYTES ? tls_session_write(&s->our->session, iov, 2) : 0;
        at += moved > 0 ? (size_t)moved : 0;
        carry(s);
        int got = more.SSL_read(s->ssl, received + came, (int)(BYTES - came));
        came += got > 0 ? (size_t)got : 0;
    }
    CHECK_EQ_INT(came, BYTES);
    CHECK_EQ_BYTES(received, sent, BYTES);
}

/* Each says that it has no more, and the other hears it as an end. */
static void check_ends(struct sides *s)
{
    uint8_t byte;
    struct iovec iov = {&byte, 1};
    CHECK_EQ_INT(more.SSL_shutdown(s->ssl), 0);
    carry(s);
    CHECK_EQ_INT(tls_session_read(&s->our->session, &iov, 1), 0);
    tls_session_say_end(&s->our->session);
    carry(s);
    int got = more.SSL_read(s->ssl, &byte, 1);
    CHECK_EQ_INT(theirs.o->SSL_get_error(s->ssl, got), RETURNED_ZERO);
}

static void check_all(const struct named_suite *named, int we_dial, size_t most)
{
    struct sides s;
    sides_begin(&s, we_dial, most);
    CHECK_EQ_INT(theirs.o->SSL_CIPHER_get_protocol_id(theirs.o->SSL_get_current_cipher(s.ssl)), named->number);
    check_from_them(&s);
    check_from_us(&s);
    CHECK_EQ_INT(more.SSL_key_update(s.ssl, KEY_UPDATE_ASKED), 1);
    check_from_them(&s);
    CHECK_EQ_INT(s.our->session.renew, 1);
    check_from_us(&s);
    CHECK_EQ_INT(s.our->session.renew, 0);
    check_from_them(&s);
    check_ends(&s);
    sides_end(&s);
}

/* -- the tests ---------------------------------------------------------------------------------------------------- */

TEST(both_understand_each_other_in_every_suite)
{
    for (size_t i = 0; i < sizeof SUITES / sizeof SUITES[0]; i++) {
        if (!begin(&SUITES[i]))
            return;
        for (int we_dial = 0; we_dial < 2; we_dial++) {
            check_all(&SUITES[i], we_dial, SIZE_MAX);
            check_all(&SUITES[i], we_dial, 997);
        }
        end();
    }
}

/* They say the first words together with the last ones of their handshake. */
TEST(bytes_right_behind_the_handshake_are_not_lost)
{
    struct sides s;
    struct iovec iov = {received, BYTES};
    if (!begin(&SUITES[0]))
        return;
    sides_new(&s, 0, SIZE_MAX);
    CHECK(theirs.o->SSL_do_handshake(s.ssl) <= 0);
    carry(&s);
    CHECK_EQ_INT(tls_session_shake(&s.our->session), 0);
    carry(&s);
    CHECK_EQ_INT(theirs.o->SSL_do_handshake(s.ssl), 1);
    CHECK_EQ_INT(more.SSL_write(s.ssl, "abc", 3), 3);
    carry(&s);
    CHECK_EQ_INT(tls_session_shake(&s.our->session), 1);
    CHECK_EQ_INT(s.our->pipes.in.begin, s.our->pipes.in.end);
    CHECK(s.our->session.maybe_more);
    CHECK_EQ_INT(tls_session_read(&s.our->session, &iov, 1), 3);
    CHECK_EQ_BYTES(received, "abc", 3);
    check_from_us(&s);
    sides_end(&s);
    end();
}

TEST(what_they_pad_comes_without)
{
    struct sides s;
    if (!begin(&SUITES[0]))
        return;
    CHECK_EQ_INT(more.SSL_CTX_set_block_padding(theirs.ctx, BLOCK), 1);
    sides_begin(&s, 1, SIZE_MAX);
    CHECK_EQ_INT(more.SSL_write(s.ssl, "abc", 3), 3);
    carry(&s);
    CHECK(s.our->pipes.in.end - s.our->pipes.in.begin >= BLOCK);
    struct iovec iov = {received, BYTES};
    CHECK_EQ_INT(tls_session_read(&s.our->session, &iov, 1), 3);
    check_from_them(&s);
    sides_end(&s);
    end();
}

/* A server that hands out tickets, which is no business of ours. */
TEST(their_tickets_are_read_over)
{
    struct sides s;
    if (!begin(&SUITES[0]))
        return;
    (void)more.SSL_CTX_clear_options(theirs.ctx, OSSL_OP_NO_TICKET);
    CHECK_EQ_INT(theirs.o->SSL_CTX_set_num_tickets(theirs.ctx, 2), 1);
    sides_begin(&s, 1, SIZE_MAX);
    carry(&s);
    CHECK(s.our->pipes.in.end > s.our->pipes.in.begin || s.our->session.in_end > s.our->session.in_begin);
    struct iovec iov = {received, BYTES};
    CHECK_EQ_INT(tls_session_read(&s.our->session, &iov, 1), -EAGAIN);
    CHECK(s.our->session.in_way.sequence > 0);
    check_from_them(&s);
    check_from_us(&s);
    sides_end(&s);
    end();
}

TEST(they_follow_our_new_keys)
{
    enum { RECORDS = TLS_RECORDS_PER_KEY + 1000 };
    struct sides s;
    size_t wrong = 0;
    if (!begin(&SUITES[0]))
        return;
    sides_begin(&s, 0, SIZE_MAX);
    for (int i = 0; i < RECORDS; i++) {
        uint8_t byte = (uint8_t)i, got = (uint8_t)~i;
        struct iovec iov = {&byte, 1};
        wrong += tls_session_write(&s.our->session, &iov, 1) != 1;
        carry(&s);
        wrong += more.SSL_read(s.ssl, &got, 1) != 1 || got != byte;
    }
    CHECK_EQ_INT(wrong, 0);
    CHECK(s.our->session.out_way.sequence < 2000);
    check_ends(&s);
    sides_end(&s);
    end();
}

/* They tell us why they end it, and we them. */
TEST(alerts_are_understood_both_ways)
{
    struct sides s;
    uint8_t byte;
    struct iovec iov = {&byte, 1};
    if (!begin(&SUITES[0]))
        return;
    sides_begin(&s, 1, SIZE_MAX);
    CHECK_EQ_INT(more.SSL_write(s.ssl, "abc", 3), 3);
    carry(&s);
    s.our->pipes.in.bytes[s.our->pipes.in.end - 1] ^= 1;
    CHECK_EQ_INT(tls_session_read(&s.our->session, &iov, 1), -EACCES);
    carry(&s);
    CHECK(more.SSL_read(s.ssl, &byte, 1) <= 0);
    const char *reason = theirs.o->ERR_reason_error_string(theirs.o->ERR_get_error());
    CHECK(reason && strstr(reason, "bad record mac"));
    theirs.o->ERR_clear_error();
    sides_end(&s);
    sides_begin(&s, 1, SIZE_MAX);
    CHECK_EQ_INT(tls_session_write(&s.our->session, &(struct iovec){"abc", 3}, 1), 3);
    s.our->pipes.out.bytes[s.our->pipes.out.end - 1] ^= 1;
    carry(&s);
    CHECK(more.SSL_read(s.ssl, &byte, 1) <= 0);
    theirs.o->ERR_clear_error();
    carry(&s);
    CHECK_EQ_INT(tls_session_read(&s.our->session, &iov, 1), -EACCES);
    CHECK_EQ_STR(s.our->session.refusal, "TLS: the other side has ended it: alert 20, bad record mac");
    sides_end(&s);
    end();
}

TEST_MAIN("tls against openssl")
