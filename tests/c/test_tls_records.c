/* test_tls_records.c - our TLS 1.3 records against the standard's own example, and what hostile ones are answered
 * with. */
#include "test.h"
#include "tls_ends.h"

enum { READ_BYTES = 40000, BODY_AT = TLS_HEADER_BYTES };

static struct tls_context context;
static const unsigned suites[] = {SUITE_AES_128, SUITE_AES_256, SUITE_CHACHA};
static uint8_t got[READ_BYTES];

/* 0: there is no OpenSSL here. */
static int is_ready(void)
{
    if (!context.ctx && openssl())
        CHECK_EQ_INT(tls_context_by_key(&context), PCCL_OK);
    return context.ctx != NULL;
}

static ssize_t read_all(struct forged *f)
{
    struct iovec iov = {got, sizeof got};
    return tls_session_read(&f->end->session, &iov, 1);
}

/* The end has said this alert, in its last record. */
static void check_alert(struct forged *f, int alert)
{
    uint8_t content[TLS_PLAIN_BYTES];
    size_t bytes;
    CHECK_EQ_INT(forged_receive(f, content, &bytes), TLS_ALERT);
    CHECK_EQ_INT(bytes, 2);
    CHECK_EQ_INT(content[0], alert == TLS_CLOSE_NOTIFY ? 1 : 2);
    CHECK_EQ_INT(content[1], alert);
    CHECK_EQ_INT(forged_receive(f, content, &bytes), 0);
}

/* What has come is refused with this alert, for good. */
static void check_broken(struct forged *f, int error, int alert)
{
    CHECK_EQ_INT(read_all(f), -error);
    CHECK_EQ_INT(read_all(f), -error);
    CHECK(strstr(f->end->session.refusal, "TLS: what came cannot be read: alert") != NULL);
    struct iovec iov = {got, 1};
    CHECK_EQ_INT(tls_session_write(&f->end->session, &iov, 1), -error);
    check_alert(f, alert);
}

/* -- the standard's example (RFC 8448, section 3) ---------------------------------------------------------- */

static const struct tls_secret EXAMPLE_SECRET = {
    {0x9e, 0x40, 0x64, 0x6c, 0xe7, 0x9a, 0x7f, 0x9d, 0xc0, 0x5a, 0xf8, 0x88, 0x9b, 0xce, 0x65, 0x52,
     0x87, 0x5a, 0xfa, 0x0b, 0x06, 0xdf, 0x00, 0x87, 0xf7, 0x92, 0xeb, 0xb7, 0xc1, 0x75, 0x04, 0xa5},
    32};
static const uint8_t EXAMPLE_IV[12] = {0x5b, 0x78, 0x92, 0x3d, 0xee, 0x08, 0x57, 0x90, 0x33, 0xe5, 0x23, 0xd9};
static const uint8_t EXAMPLE_RECORD[72] = {
    0x17, 0x03, 0x03, 0x00, 0x43, 0xa2, 0x3f, 0x70, 0x54, 0xb6, 0x2c, 0x94, 0xd0, 0xaf, 0xfa, 0xfe, 0x82, 0x28,
    0xba, 0x55, 0xcb, 0xef, 0xac, 0xea, 0x42, 0xf9, 0x14, 0xaa, 0x66, 0xbc, 0xab, 0x3f, 0x2b, 0x98, 0x19, 0xa8,
    0xa5, 0xb4, 0x6b, 0x39, 0x5b, 0xd5, 0x4a, 0x9a, 0x20, 0x44, 0x1e, 0x2b, 0x62, 0x97, 0x4e, 0x1f, 0x5a, 0x62,
    0x92, 0xa2, 0x97, 0x70, 0x14, 0xbd, 0x1e, 0x3d, 0xea, 0xe6, 0x3a, 0xee, 0xbb, 0x21, 0x69, 0x49, 0x15, 0xe4};

TEST(the_example_of_the_standard_holds)
{
    uint8_t plain[50], record[TLS_RECORD_BYTES], opened[50];
    struct tls_way out, in;
    size_t bytes = 0;
    if (!is_ready())
        return;
    for (size_t i = 0; i < sizeof plain; i++)
        plain[i] = (uint8_t)i;
    CHECK(tls_way_begin(&out, context.o, SUITE_AES_128, &EXAMPLE_SECRET, 1));
    CHECK(tls_way_begin(&in, context.o, SUITE_AES_128, &EXAMPLE_SECRET, 0));
    CHECK_EQ_BYTES(out.iv, EXAMPLE_IV, sizeof EXAMPLE_IV);
    struct iovec iov[] = {{plain, 0}, {plain, 17}, {plain + 17, 33}};
    struct tls_cursor from = tls_cursor_of(iov, 3);
    CHECK_EQ_INT(tls_record_seal(&out, TLS_DATA, &from, record), sizeof EXAMPLE_RECORD);
    CHECK_EQ_BYTES(record, EXAMPLE_RECORD, sizeof EXAMPLE_RECORD);
    CHECK_EQ_INT(tls_record_bytes(EXAMPLE_RECORD, 4), 0);
    CHECK_EQ_INT(tls_record_bytes(EXAMPLE_RECORD, 5), sizeof EXAMPLE_RECORD);
    CHECK_EQ_INT(tls_record_open(&in, EXAMPLE_RECORD, sizeof EXAMPLE_RECORD, opened, &bytes), TLS_DATA);
    CHECK_EQ_INT(bytes, sizeof plain);
    CHECK_EQ_BYTES(opened, plain, sizeof plain);
    tls_way_end(&out);
    tls_way_end(&in);
}

TEST(secrets_of_another_size_or_suite_are_refused)
{
    struct tls_way w;
    struct tls_secret short_one = secret_of(SUITE_AES_128, 1), long_one = secret_of(SUITE_AES_256, 1);
    struct tls_secret none = {.count = 0};
    if (!is_ready())
        return;
    CHECK(!tls_way_begin(&w, context.o, SUITE_AES_128, &long_one, 1));
    CHECK(!tls_way_begin(&w, context.o, SUITE_AES_256, &short_one, 1));
    CHECK(!tls_way_begin(&w, context.o, 0x1304, &short_one, 1));
    CHECK(!tls_way_begin(&w, context.o, SUITE_AES_128, &none, 1));
}

TEST(nothing_is_left_of_a_secret)
{
    static const uint8_t NOTHING[TLS_SECRET_BYTES];
    struct forged f;
    if (!is_ready())
        return;
    CHECK(forged_begin(&f, &context, SUITE_AES_128, 1));
    CHECK_EQ_BYTES(f.end->session.client.bytes, NOTHING, sizeof NOTHING);
    CHECK_EQ_BYTES(f.end->session.server.bytes, NOTHING, sizeof NOTHING);
    tls_session_free(&f.end->session);
    CHECK_EQ_BYTES(f.end->session.in_way.secret.bytes, NOTHING, sizeof NOTHING);
    CHECK_EQ_BYTES(f.end->session.out_way.secret.bytes, NOTHING, sizeof NOTHING);
    CHECK_EQ_BYTES(f.end->session.out_way.iv, NOTHING, sizeof f.end->session.out_way.iv);
    forged_end(&f);
}

/* -- whatever the pieces ------------------------------------------------------------------------------------ */

/* Cuts memory into at most `cap` entries of random sizes, some of them empty. */
static int cut(uint8_t *memory, size_t bytes, struct iovec *iov, int cap, uint64_t *random)
{
    int count = 0;
    for (size_t at = 0; at < bytes && count < cap; count++) {
        size_t left = bytes - at, most = (test_random(random) & 3) ? 100 : 40000, part = test_random(random) % most;
        if (count == cap - 1 || part > left)
            part = left;
        iov[count] = (struct iovec){memory + at, part};
        at += part;
    }
    return count;
}

/* Two sessions of ours, one to the other, by lists of any form and streams that move any number of bytes. */
static void check_pieces(unsigned suite, uint64_t random)
{
    enum { BYTES = 300000, ENTRIES = 12 };
    static uint8_t sent[BYTES], received[BYTES];
    struct tls_end *out = tls_end_new(&context), *in = tls_end_new(&context);
    struct tls_secret secret = secret_of(suite, 7);
    struct iovec iov[ENTRIES];
    size_t at = 0, came = 0;
    CHECK(tls_end_open(out, suite, 1, secret, secret));
    CHECK(tls_end_open(in, suite, 0, secret, secret));
    for (size_t i = 0; i < BYTES; i++)
        sent[i] = (uint8_t)test_random(&random);
    memset(received, 0, sizeof received);
    for (int turns = 0; came < BYTES && turns < 100000; turns++) {
        out->pipes.most = 1 + test_random(&random) % 50000;
        in->pipes.most = 1 + test_random(&random) % 50000;
        int count = cut(sent + at, BYTES - at, iov, ENTRIES, &random);
        ssize_t moved = count ? tls_session_write(&out->session, iov, count) : 0;
        at += moved > 0 ? (size_t)moved : 0;
        pipe_put(&in->pipes.in, out->pipes.out.bytes + out->pipes.out.begin, out->pipes.out.end - out->pipes.out.begin);
        out->pipes.out.begin = out->pipes.out.end;
        size_t room = 1 + test_random(&random) % (BYTES - came);
        moved = tls_session_read(&in->session, iov, cut(received + came, room, iov, ENTRIES, &random));
        came += moved > 0 ? (size_t)moved : 0;
        CHECK(moved > 0 || moved == -EAGAIN);
    }
    CHECK_EQ_INT(came, BYTES);
    CHECK_EQ_BYTES(received, sent, BYTES);
    tls_end_free(out);
    tls_end_free(in);
}

TEST(bytes_come_as_they_went_whatever_the_pieces)
{
    if (!is_ready())
        return;
    for (uint64_t i = 0; i < 30; i++)
        check_pieces(suites[i % 3], i);
}

/* A payload of whole records goes in records of its own, whatever small things stand before and behind it. */
TEST(an_entry_that_fills_records_begins_one)
{
    static uint8_t memory[3 * TLS_PLAIN_BYTES];
    static const size_t EXPECTED[] = {64, TLS_PLAIN_BYTES, TLS_PLAIN_BYTES, 100 + 64 + 7, TLS_PLAIN_BYTES, 6};
    uint8_t content[TLS_PLAIN_BYTES];
    size_t bytes;
    struct forged f;
    if (!is_ready())
        return;
    CHECK(forged_begin(&f, &context, SUITE_AES_128, 1));
    struct iovec iov[] = {{memory, 0}, {memory, 64}, {memory, 2 * TLS_PLAIN_BYTES + 100}, {memory, 64}, {memory, 7},
                          {memory, TLS_PLAIN_BYTES}, {memory, 6}, {memory, 0}};
    CHECK_EQ_INT(tls_session_write(&f.end->session, iov, 8), 3 * TLS_PLAIN_BYTES + 100 + 64 + 64 + 7 + 6);
    for (size_t i = 0; i < sizeof EXPECTED / sizeof EXPECTED[0]; i++) {
        CHECK_EQ_INT(forged_receive(&f, content, &bytes), TLS_DATA);
        CHECK_EQ_INT(bytes, EXPECTED[i]);
    }
    CHECK_EQ_INT(forged_receive(&f, content, &bytes), 0);
    forged_end(&f);
}

/* A record that has its place in the caller's memory is opened there: nothing of it waits inside. */
TEST(whole_records_go_straight_to_the_caller)
{
    static uint8_t content[TLS_PLAIN_BYTES];
    struct forged f;
    if (!is_ready())
        return;
    CHECK(forged_begin(&f, &context, SUITE_AES_128, 1));
    memset(content, 5, sizeof content);
    memset(got, 0, sizeof got);
    forged_send(&f, TLS_DATA, content, sizeof content);
    forged_send(&f, TLS_DATA, content, 100);
    struct iovec iov[] = {{got, TLS_PLAIN_BYTES}, {got + TLS_PLAIN_BYTES, 99}};
    CHECK_EQ_INT(tls_session_read(&f.end->session, iov, 2), TLS_PLAIN_BYTES + 99);
    CHECK_EQ_BYTES(got, content, sizeof content);
    CHECK_EQ_INT(got[TLS_PLAIN_BYTES + 98], 5);
    CHECK_EQ_INT(got[TLS_PLAIN_BYTES + 99], 0);
    CHECK_EQ_INT(f.end->session.plain_bytes, 1);
    CHECK(f.end->session.maybe_more);
    CHECK_EQ_INT(read_all(&f), 1);
    CHECK(!f.end->session.maybe_more);
    forged_end(&f);
}

/* -- records that are wrong ---------------------------------------------------------------------------------- */

/* `error` before any byte has come is EACCES, after it EPROTO. */
static void with_and_without_bytes(void (*check)(struct forged *f, int error))
{
    struct forged f;
    if (!is_ready())
        return;
    for (int i = 0; i < 6; i++) {
        CHECK(forged_begin(&f, &context, suites[i / 2], 1));
        if (i % 2) {
            forged_send(&f, TLS_DATA, "abc", 3);
            CHECK_EQ_INT(read_all(&f), 3);
            CHECK_EQ_BYTES(got, "abc", 3);
        }
        check(&f, i % 2 ? EPROTO : EACCES);
        forged_end(&f);
    }
}

/* One bit of a record is another; what it decrypts to is wiped from the caller's memory. */
static void check_one_bit(struct forged *f, int error)
{
    static const uint8_t content[1000] = {1, 2, 3}, nothing[1000];
    struct pipe *in = &f->end->pipes.in;
    forged_send(f, TLS_DATA, content, sizeof content);
    in->bytes[in->end - (error == EACCES ? 1 : 100)] ^= 8; /* in the tag, or before it */
    memset(got, 9, sizeof got);
    check_broken(f, error, TLS_BAD_RECORD_MAC);
    CHECK_EQ_BYTES(got, nothing, sizeof nothing);
    CHECK_EQ_INT(got[sizeof nothing], 9);
}

TEST(a_bit_that_changed_ends_it)
{
    with_and_without_bytes(check_one_bit);
}

static void check_header_bit(struct forged *f, int error)
{
    struct pipe *in = &f->end->pipes.in;
    forged_send(f, TLS_DATA, "abc", 3);
    in->bytes[in->begin + 1] ^= 1; /* its version, which nobody looks at, but the tag covers */
    check_broken(f, error, TLS_BAD_RECORD_MAC);
}

TEST(a_header_that_changed_ends_it)
{
    with_and_without_bytes(check_header_bit);
}

/* Sent twice, or one left out: the number is another. */
static void check_again(struct forged *f, int error)
{
    f->to.sequence++;
    forged_send(f, TLS_DATA, "abc", 3);
    check_broken(f, error, TLS_BAD_RECORD_MAC);
}

TEST(a_record_out_of_order_ends_it)
{
    with_and_without_bytes(check_again);
}

static void check_header(struct forged *f, int error, int type, int bytes, int alert)
{
    const uint8_t header[TLS_HEADER_BYTES] = {(uint8_t)type, 3, 3, (uint8_t)(bytes >> 8), (uint8_t)bytes};
    pipe_put(&f->end->pipes.in, header, sizeof header);
    check_broken(f, error, alert);
}

static void check_too_long(struct forged *f, int error)
{
    check_header(f, error, TLS_DATA, TLS_PLAIN_BYTES + TLS_ADDED_BYTES + 1, TLS_RECORD_OVERFLOW);
}

static void check_too_short(struct forged *f, int error)
{
    check_header(f, error, TLS_DATA, TLS_ADDED_BYTES - 1, TLS_DECODE_ERROR);
}

static void check_not_sealed(struct forged *f, int error)
{
    check_header(f, error, error == EACCES ? TLS_ALERT : TLS_HANDSHAKE, 2, TLS_UNEXPECTED_MESSAGE);
}

TEST(headers_that_cannot_be_end_it_before_their_records_have_come)
{
    with_and_without_bytes(check_too_long);
    with_and_without_bytes(check_too_short);
    with_and_without_bytes(check_not_sealed);
}

static void check_no_type(struct forged *f, int error)
{
    static const uint8_t nothing[300];
    forged_send(f, 0, nothing, error == EACCES ? 0 : sizeof nothing);
    check_broken(f, error, TLS_UNEXPECTED_MESSAGE);
}

static void check_other_type(struct forged *f, int error)
{
    forged_send(f, error == EACCES ? 20 : 99, "abc", 3);
    check_broken(f, error, TLS_UNEXPECTED_MESSAGE);
}

TEST(content_of_no_known_type_ends_it)
{
    with_and_without_bytes(check_no_type);
    with_and_without_bytes(check_other_type);
}

TEST(padding_is_taken_off)
{
    struct forged f;
    if (!is_ready())
        return;
    CHECK(forged_begin(&f, &context, SUITE_AES_128, 0));
    forged_send(&f, 0, "abc\x17\0\0\0", 7); /* the type is the last byte that is not 0 */
    forged_send(&f, 0, "\x17", 1);          /* of nothing at all */
    forged_send(&f, TLS_DATA, "def\0\0", 5);
    CHECK_EQ_INT(read_all(&f), 8);
    CHECK_EQ_BYTES(got, "abcdef\0\0", 8);
    forged_end(&f);
}

/* Empty records are allowed, but not for ever. */
static void check_quiet(struct forged *f, int error)
{
    for (int i = 0; i < 32; i++)
        forged_send(f, TLS_DATA, "", 0);
    CHECK_EQ_INT(read_all(f), -EAGAIN);
    forged_send(f, TLS_DATA, "", 0);
    check_broken(f, error, TLS_UNEXPECTED_MESSAGE);
}

TEST(records_without_end_that_hold_nothing_end_it)
{
    with_and_without_bytes(check_quiet);
}

/* -- what the other side says of itself -------------------------------------------------------------------- */

TEST(an_end_is_an_end_and_comes_after_the_bytes)
{
    struct forged f;
    if (!is_ready())
        return;
    CHECK(forged_begin(&f, &context, SUITE_AES_128, 1));
    forged_send(&f, TLS_DATA, "abc", 3);
    forged_send(&f, TLS_ALERT, "\1\132", 2); /* user_canceled */
    forged_send(&f, TLS_ALERT, "\1\0", 2);
    forged_send(&f, TLS_DATA, "def", 3);
    CHECK_EQ_INT(read_all(&f), 3);
    CHECK_EQ_INT(read_all(&f), 0);
    CHECK_EQ_INT(read_all(&f), 0);
    tls_session_say_end(&f.end->session);
    check_alert(&f, TLS_CLOSE_NOTIFY);
    forged_end(&f);
}

TEST(an_end_without_a_word_is_a_reset)
{
    struct forged f;
    if (!is_ready())
        return;
    CHECK(forged_begin(&f, &context, SUITE_AES_128, 1));
    forged_send(&f, TLS_DATA, "abc", 3);
    forged_send(&f, TLS_DATA, "def", 3);
    f.end->pipes.in.end--;
    f.end->pipes.in.is_cut = 1;
    CHECK_EQ_INT(read_all(&f), 3);
    CHECK_EQ_INT(read_all(&f), -ECONNRESET);
    forged_end(&f);
}

static void check_their_alert(struct forged *f, int error)
{
    uint8_t content[TLS_PLAIN_BYTES];
    size_t bytes;
    forged_send(f, TLS_ALERT, "\2\60", 2);
    CHECK_EQ_INT(read_all(f), -error);
    CHECK_EQ_STR(f->end->session.refusal, "TLS: the other side has ended it: alert 48, unknown CA");
    CHECK_EQ_INT(forged_receive(f, content, &bytes), 0); /* an alert is not answered */
}

static void check_half_alert(struct forged *f, int error)
{
    forged_send(f, TLS_ALERT, "\2\60\0", error == EACCES ? 1 : 3);
    check_broken(f, error, TLS_DECODE_ERROR);
}

TEST(alerts_end_it_with_their_reason)
{
    with_and_without_bytes(check_their_alert);
    with_and_without_bytes(check_half_alert);
}

/* A message of this many bytes, with others in its record or cut over several. */
TEST(tickets_are_read_over_by_the_dialler)
{
    uint8_t ticket[4 + 200] = {4, 0, 0, 200};
    uint8_t two[2 * sizeof ticket];
    struct forged f;
    if (!is_ready())
        return;
    memcpy(two, ticket, sizeof ticket);
    memcpy(two + sizeof ticket, ticket, sizeof ticket);
    CHECK(forged_begin(&f, &context, SUITE_AES_128, 1));
    forged_send(&f, TLS_HANDSHAKE, two, sizeof two);
    forged_send(&f, TLS_HANDSHAKE, ticket, 2);
    forged_send(&f, TLS_HANDSHAKE, ticket + 2, 50);
    forged_send(&f, TLS_HANDSHAKE, ticket + 52, sizeof ticket - 52);
    forged_send(&f, TLS_DATA, "abc", 3);
    CHECK_EQ_INT(read_all(&f), 3);
    forged_end(&f);
    CHECK(forged_begin(&f, &context, SUITE_AES_128, 0));
    forged_send(&f, TLS_HANDSHAKE, ticket, sizeof ticket);
    check_broken(&f, EACCES, TLS_UNEXPECTED_MESSAGE);
    forged_end(&f);
}

struct bad_message {
    const char *bytes;
    size_t count;
    int alert;
};

TEST(other_messages_end_it)
{
    static const struct bad_message BAD[] = {
        {"", 0, TLS_UNEXPECTED_MESSAGE},
        {"\1\0\0\0", 4, TLS_UNEXPECTED_MESSAGE},            /* ClientHello */
        {"\15\0\0\2ab", 6, TLS_UNEXPECTED_MESSAGE},         /* CertificateRequest */
        {"\30\0\0\1\2", 5, TLS_ILLEGAL_PARAMETER},          /* KeyUpdate that asks for what there is not */
        {"\30\0\0\2\0\0", 6, TLS_DECODE_ERROR},             /* of another length */
        {"\30\0\0\0", 4, TLS_DECODE_ERROR},
        {"\30\0\0\1\0\4\0\0\0", 9, TLS_UNEXPECTED_MESSAGE}, /* not the last of its record */
    };
    struct forged f;
    if (!is_ready())
        return;
    for (size_t i = 0; i < sizeof BAD / sizeof BAD[0]; i++) {
        CHECK(forged_begin(&f, &context, SUITE_AES_128, 1));
        forged_send(&f, TLS_HANDSHAKE, BAD[i].bytes, BAD[i].count);
        check_broken(&f, EACCES, BAD[i].alert);
        forged_end(&f);
    }
}

TEST(nothing_may_come_within_a_message)
{
    struct forged f;
    if (!is_ready())
        return;
    for (int type = TLS_ALERT; type <= TLS_DATA; type += TLS_DATA - TLS_ALERT) {
        CHECK(forged_begin(&f, &context, SUITE_AES_128, 1));
        forged_send(&f, TLS_HANDSHAKE, "\30\0", 2);
        forged_send(&f, type, "\1\0", 2);
        check_broken(&f, EACCES, TLS_UNEXPECTED_MESSAGE);
        forged_end(&f);
    }
}

/* The other side's new key holds from the next record on; if it asks for one of ours, we renew it before the next
 * bytes. */
TEST(new_keys_are_taken_and_given)
{
    uint8_t content[TLS_PLAIN_BYTES];
    size_t bytes;
    struct forged f;
    struct iovec iov = {"xyz", 3};
    if (!is_ready())
        return;
    for (int i = 0; i < 3; i++) {
        CHECK(forged_begin(&f, &context, suites[i], i == 1));
        forged_send(&f, TLS_HANDSHAKE, "\30\0\0\1\0", 5);
        CHECK(tls_way_renew(&f.to));
        forged_send(&f, TLS_DATA, "abc", 3);
        CHECK_EQ_INT(read_all(&f), 3);
        CHECK_EQ_INT(tls_session_write(&f.end->session, &iov, 1), 3);
        CHECK_EQ_INT(forged_receive(&f, content, &bytes), TLS_DATA);
        forged_send(&f, TLS_HANDSHAKE, "\30\0\0", 3); /* in two records */
        forged_send(&f, TLS_HANDSHAKE, "\1\1", 2);
        CHECK(tls_way_renew(&f.to));
        forged_send(&f, TLS_DATA, "def", 3);
        CHECK_EQ_INT(read_all(&f), 3);
        CHECK_EQ_INT(forged_receive(&f, content, &bytes), 0); /* there is time until the next bytes */
        CHECK_EQ_INT(tls_session_write(&f.end->session, &iov, 1), 3);
        CHECK_EQ_INT(forged_receive(&f, content, &bytes), TLS_HANDSHAKE);
        CHECK_EQ_INT(bytes, 5);
        CHECK_EQ_BYTES(content, "\30\0\0\1\0", 5);
        CHECK(tls_way_renew(&f.from));
        CHECK_EQ_INT(forged_receive(&f, content, &bytes), TLS_DATA);
        CHECK_EQ_BYTES(content, "xyz", 3);
        forged_end(&f);
    }
}

/* Records with the old key after a new one was announced. */
static void check_old_key(struct forged *f, int error)
{
    forged_send(f, TLS_HANDSHAKE, "\30\0\0\1\0", 5);
    forged_send(f, TLS_DATA, "abc", 3);
    check_broken(f, error, TLS_BAD_RECORD_MAC);
}

TEST(the_old_key_holds_no_longer)
{
    with_and_without_bytes(check_old_key);
}

TEST(no_key_seals_more_than_its_records)
{
    uint8_t content[TLS_PLAIN_BYTES];
    size_t bytes, sealed = 0, most = 0, keys = 1, wrong = 0;
    struct forged f;
    if (!is_ready())
        return;
    CHECK(forged_begin(&f, &context, SUITE_AES_128, 0));
    for (int i = 0; i < 3 * TLS_RECORDS_PER_KEY; i++) {
        uint8_t byte = (uint8_t)i;
        struct iovec iov = {&byte, 1};
        wrong += tls_session_write(&f.end->session, &iov, 1) != 1;
        for (int type; (type = forged_receive(&f, content, &bytes)) != 0; sealed++) {
            wrong += type < 0 || (type == TLS_DATA && content[0] != byte);
            most = sealed > most ? sealed : most;
            if (type == TLS_HANDSHAKE && tls_way_renew(&f.from))
                sealed = 0, keys++;
        }
    }
    CHECK_EQ_INT(wrong, 0);
    CHECK_EQ_INT(keys, 4);
    CHECK(most < TLS_RECORDS_PER_KEY);
    forged_end(&f);
}

TEST_MAIN("tls records")
