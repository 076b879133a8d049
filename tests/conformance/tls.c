/* tls.c - tests of who is let in by TLS: every wrong way ends in -EACCES with a reason, and never in bytes. */
#include "peers.h"

#include <errno.h>

#include "../../transports/openssl.h"

static pccl_config config_of(const char *transport, const char *psk)
{
    pccl_config config = {.size = sizeof config, .has_psk = psk != NULL};
    snprintf(config.transport, sizeof config.transport, "%s", transport);
    snprintf(config.listen, sizeof config.listen, "%s", subject.listen);
    if (psk)
        memcpy(config.psk, psk, strlen(psk));
    return config;
}

/* The plain subject only: what is wrapped or wraps has nothing to add. */
static int is_plain_tls(void)
{
    return strcmp(subject.scheme, "tls") == 0;
}

static void check_refused(struct end *e, const char *reason)
{
    struct stream_info info;
    ssize_t last;
    CHECK_EQ_INT(read_until(e, buffer, 1, &last), 0);
    CHECK_EQ_INT(last, -EACCES);
    CHECK_EQ_INT(write_some(e, "x", 1), -EACCES);
    ops->info(e->stream, &info);
    if (!strstr(info.refusal, reason))
        CHECK_EQ_STR(info.refusal, reason);
}

TEST(another_key_is_refused_on_both_sides)
{
    if (!is_plain_tls())
        return;
    begin();
    const pccl_config config = config_of("tls", "another run's");
    int sys_errno;
    ops->close(a);
    CHECK_EQ_INT(ops->open(&config, &a, &sys_errno), PCCL_OK);
    struct end *e = dial(address_b);
    TURN_UNTIL(e->ready && accepted_count == 1);
    CHECK_EQ_INT(e->ready, TRANSPORT_READ | TRANSPORT_WRITE);
    check_refused(accepted[0], "TLS: ");
    end_close(accepted[0], 1); /* the reason still gets out */
    check_refused(e, "alert");
    finish();
}

TEST(without_a_key_or_certificates_nothing_opens)
{
    if (!is_plain_tls())
        return;
    pccl_config config = config_of("tls", NULL);
    struct transport *t;
    int sys_errno;
    CHECK_EQ_INT(transport_find("tls")->open(&config, &t, &sys_errno), PCCL_EINVAL);
    CHECK_EQ_INT(sys_errno, 0);
    CHECK_EQ_STR(pccl_last_error(), "TLS needs the run's secret, or certificates");
    snprintf(config.tls_ca, sizeof config.tls_ca, "/nowhere/ca.pem");
    CHECK_EQ_INT(transport_find("tls")->open(&config, &t, &sys_errno), PCCL_EINVAL);
    snprintf(config.tls_cert, sizeof config.tls_cert, "/nowhere/cert.pem");
    snprintf(config.tls_key, sizeof config.tls_key, "/nowhere/key.pem");
    CHECK_EQ_INT(transport_find("tls")->open(&config, &t, &sys_errno), PCCL_EINVAL);
    CHECK(strstr(pccl_last_error(), "/nowhere/ca.pem") != NULL);
}

/* A stream that says `said` in plain to b's port. */
static void check_plain_dialler(const void *said, size_t bytes, const char *reason)
{
    begin();
    const pccl_config config = config_of("tcp", NULL);
    const struct transport_ops *tcp = transport_find("tcp");
    struct transport *plain;
    struct stream *stream;
    struct transport_ready ready[BATCH];
    int sys_errno;
    CHECK_EQ_INT(tcp->open(&config, &plain, &sys_errno), PCCL_OK);
    CHECK_EQ_INT(tcp->dial(plain, address_b, &stream, &sys_errno), PCCL_OK);
    struct iovec iov = {(void *)(uintptr_t)said, bytes};
    while (tcp->writev(stream, &iov, 1) < 0 && !is_late())
        (void)tcp->poll(plain, MILLISECOND, ready, BATCH);
    TURN_UNTIL(accepted_count == 1);
    check_refused(accepted[0], reason);
    tcp->stream_close(stream, 1);
    tcp->close(plain);
    finish();
}

TEST(plain_speech_and_garbage_are_refused)
{
    uint8_t noise[4096];
    uint64_t random = 5;
    if (!is_plain_tls())
        return;
    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (uint8_t)test_random(&random);
    check_plain_dialler("PCCL\1\0\1\0 and then some", 22, "it does not speak TLS");
    check_plain_dialler("GET / HTTP/1.1\r\n\r\n", 18, "it does not speak TLS");
    check_plain_dialler(noise, sizeof noise, "TLS: ");
    noise[0] = 22, noise[1] = 3, noise[2] = 1, noise[3] = 2, noise[4] = 0;
    check_plain_dialler(noise, sizeof noise, "TLS: ");
}

/* Who hangs up in the middle of a handshake has not been refused. */
TEST(hanging_up_is_a_reset)
{
    if (!is_plain_tls())
        return;
    begin();
    struct end *e = dial(address_b);
    TURN_UNTIL(accepted_count == 1);
    end_close(e, 0);
    ssize_t last;
    CHECK_EQ_INT(read_until(accepted[0], buffer, 1, &last), 0);
    CHECK_EQ_INT(last, -ECONNRESET);
    finish();
}

/* So many records that the key changes more than once on the way. */
TEST(keys_are_renewed_on_the_way)
{
    enum { RECORDS = 140000 };
    if (!is_plain_tls())
        return;
    begin();
    struct end *there, *here;
    connect_pair(&there, &here);
    int sent = 0, got = 0, wrong = 0;
    while (got < RECORDS && !is_late()) {
        uint8_t byte = pattern((size_t)sent);
        ssize_t moved = sent < RECORDS ? write_some(there, &byte, 1) : -EAGAIN;
        sent += moved == 1;
        if (moved == 1)
            continue;
        turn();
        ssize_t came = read_some(here, buffer, BUFFER_BYTES);
        wrong += came > 0 ? (int)wrong_bytes((size_t)got, (size_t)came) : 0;
        got += came > 0 ? (int)came : 0;
    }
    CHECK_EQ_INT(got, RECORDS);
    CHECK_EQ_INT(wrong, 0);
    finish();
}

/* Bits that change on their way break the stream; no wrong byte ever comes out. */
TEST(harm_below_is_never_bytes)
{
    if (strcmp(subject.scheme, "tls+faulty+tcp") != 0)
        return;
    subject.fault_seed |= 1ull << 63;
    int broken = 0;
    begin();
    for (int i = 0; i < 10; i++) {
        struct end *e = dial(address_b);
        int before = accepted_count;
        size_t at = 0, sent = 0, wrong = 0;
        TURN_UNTIL(accepted_count > before && e->ready);
        struct end *here = accepted[before];
        for (ssize_t moved = -EAGAIN; at < 2000 && (moved > 0 || moved == -EAGAIN) && !is_late();) {
            uint8_t byte = pattern(sent);
            sent += write_some(e, &byte, 1) == 1;
            turn();
            moved = read_some(here, buffer, 1);
            wrong += moved == 1 && buffer[0] != pattern(at);
            at += moved == 1;
            broken += moved <= 0 && moved != -EAGAIN;
        }
        end_close(e, 1);
        end_close(here, 1);
        CHECK_EQ_INT(wrong, 0);
    }
    CHECK(broken > 0);
    finish();
    subject.fault_seed &= ~(1ull << 63);
}

TEST(a_library_that_is_missing_is_named)
{
    struct openssl functions;
    char why[400] = "";
    if (!is_plain_tls())
        return;
    CHECK_EQ_INT(openssl_load("libssl.so.nowhere", "libcrypto.so.3", &functions, why, sizeof why), 0);
    CHECK(strstr(why, "libssl.so.nowhere") != NULL);
    CHECK(strstr(why, "libssl3") != NULL);
    CHECK_EQ_INT(openssl_load("libc.so.6", "libcrypto.so.3", &functions, why, sizeof why), 0);
    CHECK(strstr(why, "it has no ") != NULL);
}
