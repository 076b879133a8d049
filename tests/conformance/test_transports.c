/* test_transports.c - the contract of csrc/transport.h, checked against every transport by the same tests.
 *
 *     test_transports [all]              every scheme, one after the other
 *     test_transports tcp [part]         one scheme; only tests whose name contains the part
 *
 * "tcp6" and "auto6" are at the IPv6 loopback. The program is made of all files of this directory: here are opening,
 * bytes, readiness, ends, wakes and faults, and which schemes there are. */
#include "peers.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

/* -- tests: opening and dialling ------------------------------------------------------------------ */

TEST(knows_the_schemes)
{
    CHECK(transport_find(subject.scheme) != NULL);
    CHECK(transport_find("carrier pigeon") == NULL);
    CHECK(transport_find("faulty+") == NULL);
    CHECK(transport_find("faulty+faulty+tcp") == NULL);
}

TEST(says_where_it_listens)
{
    begin();
    if (is_sim())
        CHECK_EQ_INT(ops->port(b), 2);
    else
        CHECK(ops->port(b) > 0);
    struct end *there, *here;
    connect_pair(&there, &here);
    struct stream_info info;
    ops->info(there->stream, &info);
    CHECK_EQ_STR(info.remote, address_b);
    finish();
}

TEST(refuses_bad_addresses)
{
    begin();
    struct transport *t;
    struct stream *stream;
    const char *const bad[] = {"", "nonsense", ":", "sim:", "sim:x", "sim:1000000", "127.0.0.1", "127.0.0.1:",
                               "a.b.example:80", "127.0.0.1:70000", "[::1]", "::1:80", "[]:1"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        int sys_errno = 0;
        CHECK_EQ_INT(open_one(bad[i], &t, &sys_errno), PCCL_EINVAL);
        CHECK_EQ_INT(ops->dial(a, bad[i], &stream, &sys_errno), PCCL_EINVAL);
    }
    finish();
}

TEST(an_address_has_one_listener)
{
    begin();
    struct transport *t;
    int sys_errno = 0;
    CHECK_EQ_INT(open_one(address_b, &t, &sys_errno), PCCL_EIO);
    CHECK_EQ_INT(sys_errno, EADDRINUSE);
    finish();
}

TEST(a_dial_to_nobody_is_refused)
{
    begin();
    char address[80];
    dead_address(address, sizeof address);
    struct end *e = dial(address);
    TURN_UNTIL(e->ready);
    CHECK_EQ_INT(e->ready, TRANSPORT_READ | TRANSPORT_WRITE);
    for (int again = 0; again < 2; again++) {
        CHECK_EQ_INT(read_some(e, buffer, 1), -ECONNREFUSED);
        CHECK_EQ_INT(write_some(e, "x", 1), -ECONNREFUSED);
    }
    finish();
}

TEST(a_dial_can_be_given_up)
{
    begin();
    end_close(dial(address_b), 1);
    end_close(dial(address_b), 0);
    settle();
    struct end *there, *here;
    connect_pair(&there, &here);
    check_text(there, here, "still alive");
    finish();
}

/* -- tests: bytes ----------------------------------------------------------------------------------- */

TEST(bytes_go_both_ways)
{
    begin();
    struct end *there, *here;
    connect_pair(&there, &here);
    check_text(there, here, "what have you got?");
    check_text(here, there, "bytes");
    check_text(there, here, "more of them");
    finish();
}

TEST(one_byte_at_a_time)
{
    begin();
    struct end *there, *here;
    connect_pair(&there, &here);
    for (int i = 0; i < 1000; i++) {
        uint8_t sent = (uint8_t)i, got = (uint8_t)~i;
        ssize_t last;
        CHECK(write_all(there, &sent, 1));
        CHECK_EQ_INT(read_until(here, &got, 1, &last), 1);
        CHECK_EQ_INT(got, sent);
    }
    finish();
}

TEST(lists_of_buffers_are_joined)
{
    begin();
    struct end *there, *here;
    connect_pair(&there, &here);
    char text[] = "scatter and gather";
    char got[sizeof text] = "";
    size_t sent = 0, read = 0;
    while (read < sizeof text && !is_late()) {
        struct iovec out[3] = {{text + sent, 0}, {text + sent, (sizeof text - sent + 1) / 2}, {NULL, 0}};
        out[2].iov_base = text + sent + out[1].iov_len;
        out[2].iov_len = sizeof text - sent - out[1].iov_len;
        ssize_t moved = sent < sizeof text ? ops->writev(there->stream, out, 3) : 0;
        sent += moved > 0 ? (size_t)moved : 0;
        turn();
        struct iovec in[2] = {{got + read, 1}, {got + read + 1, sizeof text - read - 1}};
        moved = ops->readv(here->stream, in, 2);
        read += moved > 0 ? (size_t)moved : 0;
    }
    CHECK_EQ_STR(got, text);
    finish();
}

TEST(a_huge_message_waits_for_its_reader)
{
    begin();
    struct end *there, *here;
    connect_pair(&there, &here);
    size_t sent = write_until_full(there, HUGE_BYTES), got = 0, wrong = 0;
    CHECK(sent > 0 && sent < HUGE_BYTES);
    ops->want(there->stream, TRANSPORT_READ | TRANSPORT_WRITE);
    while (got < HUGE_BYTES && !is_late()) {
        turn();
        if (there->ready & TRANSPORT_WRITE) {
            ssize_t moved = write_some(there, buffer, fill_pattern(sent, HUGE_BYTES));
            CHECK(moved > 0 || moved == -EAGAIN);
            sent += moved > 0 ? (size_t)moved : 0;
            if (sent == HUGE_BYTES)
                ops->want(there->stream, TRANSPORT_READ);
        }
        there->ready = 0;
        if (here->ready & TRANSPORT_READ) {
            ssize_t moved = read_some(here, buffer, BUFFER_BYTES);
            CHECK(moved > 0 || moved == -EAGAIN);
            wrong += moved > 0 ? wrong_bytes(got, (size_t)moved) : 0;
            got += moved > 0 ? (size_t)moved : 0;
        }
        here->ready = 0;
    }
    CHECK_EQ_INT(got, HUGE_BYTES);
    CHECK_EQ_INT(wrong, 0);
    finish();
}

TEST(two_hundred_streams_at_once)
{
    enum { COUNT = 200 };
    begin();
    struct end *mine[COUNT];
    for (uint32_t i = 0; i < COUNT; i++)
        mine[i] = dial(address_b);
    for (uint32_t i = 0; i < COUNT; i++) {
        TURN_UNTIL(mine[i]->ready & TRANSPORT_WRITE);
        CHECK(write_all(mine[i], &i, sizeof i));
    }
    TURN_UNTIL(accepted_count == COUNT);
    uint8_t seen[COUNT] = {0};
    for (int i = 0; i < accepted_count; i++) {
        uint32_t number = 0;
        ssize_t last;
        CHECK_EQ_INT(read_until(accepted[i], &number, sizeof number, &last), sizeof number);
        CHECK(number < COUNT && !seen[number]);
        seen[number % COUNT] = 1;
        CHECK(write_all(accepted[i], &number, sizeof number));
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        uint32_t number = COUNT;
        ssize_t last;
        CHECK_EQ_INT(read_until(mine[i], &number, sizeof number, &last), sizeof number);
        CHECK_EQ_INT(number, i);
    }
    finish();
}

/* -- tests: readiness --------------------------------------------------------------------------------- */

TEST(readiness_follows_the_interest)
{
    begin();
    struct end *there, *here;
    connect_pair(&there, &here);
    settle();
    CHECK_EQ_INT(there->ready | here->ready, 0);
    CHECK(write_all(there, "xy", 2));
    for (int again = 0; again < 3; again++) {
        here->ready = 0;
        TURN_UNTIL(here->ready);
        CHECK_EQ_INT(here->ready, TRANSPORT_READ);
    }
    ops->want(here->stream, 0);
    settle();
    here->ready = 0;
    settle();
    CHECK_EQ_INT(here->ready, 0);
    ops->want(here->stream, TRANSPORT_WRITE);
    TURN_UNTIL(here->ready);
    CHECK_EQ_INT(here->ready, TRANSPORT_WRITE);
    ops->want(here->stream, TRANSPORT_READ);
    here->ready = 0;
    TURN_UNTIL(here->ready);
    CHECK_EQ_INT(here->ready, TRANSPORT_READ);
    finish();
}

static void check_quiet(int abort)
{
    begin();
    struct end *there, *here;
    connect_pair(&there, &here);
    ops->want(here->stream, 0);
    end_close(there, abort);
    for (int i = 0; i < 5; i++)
        turn();
    here->ready = 0;
    for (int i = 0; i < 50; i++)
        turn();
    CHECK_EQ_INT(here->ready, 0);
    CHECK(is_sim() || poll_ns(b, MILLISECOND) >= MILLISECOND); /* it waits: the loop is not kept busy */
    ops->want(here->stream, TRANSPORT_READ);
    TURN_UNTIL(here->ready);
    ssize_t last;
    CHECK_EQ_INT(read_until(here, buffer, 1, &last), 0);
    CHECK_EQ_INT(last, abort ? -ECONNRESET : 0);
    finish();
}

TEST(wanting_nothing_is_quiet_even_after_an_error)
{
    check_quiet(1);
}

TEST(wanting_nothing_is_quiet_even_after_the_end)
{
    check_quiet(0);
}

TEST(a_small_array_starves_nobody)
{
    enum { COUNT = 20 };
    begin();
    struct end *there, *here;
    for (int i = 0; i < COUNT; i++) {
        connect_pair(&there, &here);
        CHECK(write_all(there, "x", 1));
    }
    for (int i = 0; i < COUNT; i++)
        TURN_UNTIL(accepted[i]->ready & TRANSPORT_READ);
    for (int i = 0; i < COUNT; i++)
        accepted[i]->ready = 0;
    int reported = 0;
    for (int polls = 0; polls < 4 * COUNT; polls++) {
        struct transport_ready ready[2];
        int count = ops->poll(b, 0, ready, 2);
        CHECK(count >= 0 && count <= 2);
        for (int i = 0; i < count; i++) {
            struct end *e = ready[i].stream->user;
            reported += e->ready == 0;
            e->ready |= ready[i].what;
        }
    }
    CHECK_EQ_INT(reported, COUNT);
    finish();
}

/* -- tests: ends ---------------------------------------------------------------------------------------- */

TEST(the_end_comes_after_the_bytes)
{
    begin();
    struct end *there, *here;
    connect_pair(&there, &here);
    size_t sent = write_until_full(there, HUGE_BYTES), got = 0, wrong = 0;
    end_close(there, 0);
    ssize_t last = 1;
    while (last > 0 && !is_late()) {
        size_t moved = read_until(here, buffer, BUFFER_BYTES, &last);
        wrong += wrong_bytes(got, moved);
        got += moved;
    }
    CHECK_EQ_INT(last, 0);
    CHECK_EQ_INT(got, sent);
    CHECK_EQ_INT(wrong, 0);
    here->ready = 0;
    TURN_UNTIL(here->ready & TRANSPORT_READ);
    CHECK_EQ_INT(read_until(here, buffer, 1, &last), 0);
    CHECK_EQ_INT(last, 0);
    finish();
}

TEST(writing_to_a_closed_stream_fails)
{
    begin();
    struct end *there, *here;
    connect_pair(&there, &here);
    CHECK(write_all(there, "why", 3));
    end_close(there, 0);
    ssize_t moved = 0;
    while ((moved >= 0 || moved == -EAGAIN) && !is_late()) {
        moved = write_some(here, "x", 1);
        turn();
    }
    CHECK(moved == -EPIPE || moved == -ECONNRESET);
    CHECK(write_some(here, "x", 1) < 0);
    char got[4] = "";
    ssize_t last;
    CHECK_EQ_INT(read_until(here, got, 3, &last), 3); /* what came before the error is still there */
    CHECK_EQ_STR(got, "why");
    finish();
}

TEST(words_before_a_close_survive_a_writer)
{
    begin();
    struct end *there, *here;
    connect_pair(&there, &here);
    CHECK(write_all(here, "I am still talking", 18));
    settle();
    CHECK(write_all(there, "goodbye", 7));
    end_close(there, 0);
    settle();
    char got[8] = "";
    ssize_t last;
    CHECK_EQ_INT(read_until(here, got, 7, &last), 7);
    CHECK_EQ_STR(got, "goodbye");
    CHECK_EQ_INT(read_until(here, got, 1, &last), 0);
    CHECK_EQ_INT(last, 0);
    finish();
}

TEST(an_abort_is_a_reset)
{
    begin();
    struct end *there, *here;
    connect_pair(&there, &here);
    check_text(there, here, "hello");
    end_close(there, 1);
    ssize_t last;
    CHECK_EQ_INT(read_until(here, buffer, 1, &last), 0);
    CHECK_EQ_INT(last, -ECONNRESET);
    CHECK_EQ_INT(read_until(here, buffer, 1, &last), 0);
    CHECK_EQ_INT(last, -ECONNRESET);
    CHECK(write_some(here, "x", 1) < 0);
    finish();
}

TEST(closing_twice_is_closing_once)
{
    begin();
    struct end *there, *here;
    connect_pair(&there, &here);
    ops->stream_close(there->stream, 0);
    ops->stream_close(there->stream, 1);
    CHECK_EQ_INT(read_some(there, buffer, 1), -EBADF);
    CHECK_EQ_INT(write_some(there, "x", 1), -EBADF);
    there->stream = NULL;
    ssize_t last;
    CHECK_EQ_INT(read_until(here, buffer, 1, &last), 0);
    CHECK_EQ_INT(last, 0);
    finish();
}

/* Whoever walks a batch may close any stream of it: the rest of the batch still names live memory, whose user is NULL. */
TEST(a_batch_survives_closes)
{
    enum { COUNT = 8 };
    begin();
    struct end *there, *here;
    for (int i = 0; i < COUNT; i++) {
        connect_pair(&there, &here);
        CHECK(write_all(there, "x", 1));
    }
    settle();
    struct transport_ready ready[BATCH];
    int count = ops->poll(b, 0, ready, BATCH), alive = 0;
    CHECK_EQ_INT(count, COUNT);
    for (int i = 0; i < count; i++) {
        struct end *e = ready[i].stream->user;
        if (!e)
            continue;
        alive++;
        for (int other = 0; other < accepted_count; other++)
            if (accepted[other] != e)
                end_close(accepted[other], other % 2);
    }
    CHECK_EQ_INT(alive, 1);
    CHECK_EQ_INT(ops->poll(b, 0, ready, BATCH), 1);
    finish();
}

/* -- tests: wake and time ----------------------------------------------------------------------------------- */

TEST(a_wake_is_reported_once)
{
    begin();
    ops->wake(b);
    ops->wake(b);
    struct transport_ready ready[BATCH];
    CHECK_EQ_INT(ops->poll(b, UINT64_MAX, ready, BATCH), 1);
    CHECK_EQ_INT(ready[0].what, TRANSPORT_WAKE);
    CHECK(ready[0].stream == NULL);
    CHECK_EQ_INT(ops->poll(b, 0, ready, BATCH), 0);
    ops->wake(b);
    CHECK_EQ_INT(ops->poll(b, 0, ready, BATCH), 1);
    finish();
}

enum { WAKES = 20000 };
static atomic_int work_posted;

static void *wake_often(void *unused)
{
    for (int i = 0; i < WAKES; i++) {
        atomic_fetch_add(&work_posted, 1);
        ops->wake(b);
    }
    return unused;
}

TEST(wakes_from_another_thread_are_never_lost)
{
    if (is_sim())
        return;
    begin();
    atomic_store(&work_posted, 0);
    pthread_t thread;
    CHECK_EQ_INT(pthread_create(&thread, NULL, wake_often, NULL), 0);
    int seen = 0;
    while (seen < WAKES && !is_late()) {
        struct transport_ready ready[BATCH];
        int count = ops->poll(b, (uint64_t)PATIENCE_S * 1000000000u, ready, BATCH);
        CHECK_EQ_INT(count, 1); /* not the time-out */
        seen = atomic_load(&work_posted);
    }
    CHECK_EQ_INT(seen, WAKES);
    pthread_join(thread, NULL);
    finish();
}

TEST(short_timeouts_are_kept)
{
    if (is_sim())
        return;
    begin();
    for (int i = 0; i < 10; i++)
        CHECK(poll_ns(b, MILLISECOND / 5) >= MILLISECOND / 5);
    finish();
}

/* -- tests: the fault injector ------------------------------------------------------------------------------------ */

/* Sends bytes until the stream breaks; counts those that were changed. */
static int bytes_changed_until_reset(void)
{
    struct end *there, *here;
    connect_pair(&there, &here);
    int changed = 0;
    while (!is_late()) {
        uint8_t got = 0;
        ssize_t last;
        if (!write_all(there, "x", 1) || read_until(here, &got, 1, &last) != 1)
            break;
        changed += got != 'x';
    }
    there->ready = here->ready = 0;
    TURN_UNTIL((there->ready & TRANSPORT_READ) && (here->ready & TRANSPORT_READ));
    return changed;
}

TEST(harm_is_done_only_when_asked_for)
{
    if (strncmp(subject.scheme, "faulty+", 7) != 0)
        return;
    subject.fault_seed |= 1ull << 63;
    begin();
    int changed = 0;
    while (changed == 0 && !is_late())
        changed = bytes_changed_until_reset();
    CHECK(changed > 0);
    finish();
    subject.fault_seed &= ~(1ull << 63);
}

/* -- the schemes ------------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    const char *scheme;
    const char *listen;
} SUBJECTS[] = {
    {"tcp", "tcp", "127.0.0.1:0"},
    {"tcp6", "tcp", "[::1]:0"},
    {"auto", "auto", "127.0.0.1:0"},
    {"auto6", "auto", "[::1]:0"},
    {"tls", "tls", "127.0.0.1:0"},
    {"tls6", "tls", "[::1]:0"},
    {"sim", "sim", ""},
    {"faulty+tcp", "faulty+tcp", "127.0.0.1:0"},
    {"faulty+auto", "faulty+auto", "127.0.0.1:0"},
    {"faulty+tls", "faulty+tls", "127.0.0.1:0"},
    {"tls+faulty", "tls+faulty+tcp", "127.0.0.1:0"},
    {"faulty+sim", "faulty+sim", ""},
};

/* 1 if the machine lacks what the subject needs (IPv6, OpenSSL). */
static int is_absent(void)
{
    struct transport *t;
    int sys_errno = 0;
    ops = transport_find(subject.scheme);
    if (is_sim())
        return 0;
    if (is_tls() && *pccl_tls_missing())
        return 1;
    if (open_one(subject.listen, &t, &sys_errno) != PCCL_OK)
        return sys_errno == EADDRNOTAVAIL || sys_errno == EAFNOSUPPORT;
    ops->close(t);
    return 0;
}

int main(int argc, char **argv)
{
    int failed = 0, ran = 0;
    for (size_t i = 0; i < sizeof SUBJECTS / sizeof SUBJECTS[0]; i++) {
        if (argc > 1 && strcmp(argv[1], "all") != 0 && strcmp(argv[1], SUBJECTS[i].name) != 0)
            continue;
        char name[64];
        snprintf(name, sizeof name, "transports %s", SUBJECTS[i].name);
        subject.scheme = SUBJECTS[i].scheme;
        subject.listen = SUBJECTS[i].listen;
        subject.fault_seed = 42;
        ran++;
        if (is_absent())
            printf("%s: absent on this machine\n", name);
        else
            failed |= test_run_all(name, argc > 2 ? argv[2] : NULL);
        fflush(stdout);
    }
    return failed || ran == 0;
}
