/* test_transports.c - the contract of csrc/transport.h, checked against every transport by the same tests.
 *
 *     test_transports                    every scheme, one after the other
 *     test_transports tcp [part]         one scheme; only tests whose name contains the part
 *
 * "tcp6" is tcp at the IPv6 loopback. Two transports, a and b, live in one thread; turn() polls both, notes what was
 * reported in the struct end behind stream->user, and moves the virtual clock when nothing is ready. */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "../../csrc/transport.h"
#include "../c/test.h"

enum { ENDS_MAX = 512, BATCH = 64, PATIENCE_S = 30, HUGE_BYTES = 32 << 20, BUFFER_BYTES = 128 << 10,
       MILLISECOND = 1000000 };

struct end {
    struct stream *stream;
    unsigned ready;                    /* reported since it was last cleared */
};

static struct {
    const char *scheme;                /* as transport_find knows it */
    const char *listen;                /* tcp: where both listen */
    uint64_t fault_seed;
} subject;

static const struct transport_ops *ops;
static struct transport *a, *b;
static char address_b[80];
static pccl_sim *sim;
static struct end ends[ENDS_MAX];
static int end_count;
static struct end *accepted[ENDS_MAX]; /* by b, in order */
static int accepted_count;
static unsigned seen_without_stream;
static uint8_t buffer[BUFFER_BYTES];

/* -- the two transports and their loop --------------------------------------------------------- */

static int is_sim(void)
{
    return strstr(subject.scheme, "sim") != NULL;
}

static int is_faulty(void)
{
    return strstr(subject.scheme, "faulty") != NULL;
}

static pccl_err open_one(const char *listen, struct transport **transport_p, int *sys_errno_p)
{
    pccl_config config = {.size = sizeof config, .fault_seed = subject.fault_seed, .sim = sim};
    snprintf(config.transport, sizeof config.transport, "%s", subject.scheme);
    snprintf(config.listen, sizeof config.listen, "%s", listen);
    return ops->open(&config, transport_p, sys_errno_p);
}

static void address_of(const struct transport *t, char *text, size_t bytes)
{
    if (is_sim())
        snprintf(text, bytes, "sim:%d", ops->port(t));
    else
        snprintf(text, bytes, "%.*s:%d", (int)(strrchr(subject.listen, ':') - subject.listen), subject.listen,
                 ops->port(t));
}

static void set_delay(uint64_t delay_ns)
{
    const pccl_sim_path path = {.delay_ns = delay_ns, .jitter_ns = delay_ns / 2};
    CHECK_EQ_INT(pccl_sim_set_path(sim, 1, 2, &path), PCCL_OK);
    CHECK_EQ_INT(pccl_sim_set_path(sim, 2, 1, &path), PCCL_OK);
}

static void begin(void)
{
    int sys_errno;
    end_count = accepted_count = 0;
    seen_without_stream = 0;
    ops = transport_find(subject.scheme);
    sim = NULL;
    if (is_sim()) {
        CHECK_EQ_INT(pccl_sim_new(7, &sim), PCCL_OK);
        set_delay(1000000);
    }
    CHECK_EQ_INT(open_one(is_sim() ? "sim:1" : subject.listen, &a, &sys_errno), PCCL_OK);
    CHECK_EQ_INT(open_one(is_sim() ? "sim:2" : subject.listen, &b, &sys_errno), PCCL_OK);
    address_of(b, address_b, sizeof address_b);
}

static void end_close(struct end *e, int abort)
{
    if (e->stream)
        ops->stream_close(e->stream, abort);
    e->stream = NULL;
}

static void finish(void)
{
    for (int i = 0; i < end_count; i++)
        end_close(&ends[i], 0);
    ops->close(a);
    ops->close(b);
    pccl_sim_free(sim);
}

static struct end *end_new(struct stream *stream)
{
    struct end *e = &ends[end_count++];
    *e = (struct end){.stream = stream};
    stream->user = e;
    return e;
}

static void accept_all(struct transport *t)
{
    struct stream *stream;
    while (ops->accept(t, &stream) == PCCL_OK)
        accepted[accepted_count++] = end_new(stream);
}

/* Returns how much of what was reported is news: streams stay ready until their test does something about it. */
static int poll_one(struct transport *t, uint64_t timeout_ns)
{
    struct transport_ready ready[BATCH];
    int count = ops->poll(t, timeout_ns, ready, BATCH), news = 0;
    for (int i = 0; i < count; i++) {
        struct end *e = ready[i].stream ? ready[i].stream->user : NULL;
        unsigned *seen_p = e ? &e->ready : &seen_without_stream;
        news += (ready[i].what & ~*seen_p) != 0;
        *seen_p |= ready[i].what;
        if (ready[i].what & TRANSPORT_ACCEPT)
            accept_all(t);
    }
    return news;
}

/* Polls both once; 0 when there is no news and none is on its way. */
static int turn(void)
{
    if (poll_one(a, 0) + poll_one(b, 0) > 0)
        return 1;
    if (!is_sim())
        return poll_one(a, 200000) + poll_one(b, 200000) > 0;
    uint64_t next_ns = pccl_sim_next(sim);
    if (next_ns == UINT64_MAX)
        return 0;
    pccl_sim_advance(sim, next_ns);
    return 1;
}

static int is_late(void)
{
    static struct timespec start;
    static const char *test;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (test != test_running) {
        test = test_running;
        start = now;
    }
    return now.tv_sec - start.tv_sec > PATIENCE_S;
}

#define TURN_UNTIL(condition)               \
    do {                                    \
        while (!(condition) && !is_late())  \
            turn();                         \
        CHECK(condition);                   \
    } while (0)

/* Turns until nothing more happens. */
static void settle(void)
{
    for (int idle = 0; idle < 20 && !is_late();)
        idle = turn() ? 0 : idle + 1;
}

/* -- streams ------------------------------------------------------------------------------------ */

static struct end *dial(const char *address)
{
    struct stream *stream;
    int sys_errno;
    if (ops->dial(a, address, &stream, &sys_errno) != PCCL_OK)
        return NULL;
    return end_new(stream);
}

/* A connection from a to b: its two ends. */
static void connect_pair(struct end **dialled_p, struct end **accepted_p)
{
    int before = accepted_count;
    struct end *e = dial(address_b);
    TURN_UNTIL((e->ready & TRANSPORT_WRITE) && accepted_count > before);
    CHECK_EQ_INT(e->ready, TRANSPORT_WRITE);
    e->ready = 0;
    *dialled_p = e;
    *accepted_p = accepted[before];
}

static ssize_t read_some(struct end *e, void *to, size_t bytes)
{
    struct iovec iov = {.iov_base = to, .iov_len = bytes};
    return ops->readv(e->stream, &iov, 1);
}

static ssize_t write_some(struct end *e, const void *from, size_t bytes)
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)from, .iov_len = bytes};
    return ops->writev(e->stream, &iov, 1);
}

/* Writes all, turning while it would block; false if the stream died. */
static int write_all(struct end *e, const void *from, size_t bytes)
{
    const uint8_t *at = from;
    while (bytes > 0 && !is_late()) {
        ssize_t moved = write_some(e, at, bytes);
        if (moved < 0 && moved != -EAGAIN)
            return 0;
        if (moved == -EAGAIN)
            turn();
        else {
            at += moved;
            bytes -= (size_t)moved;
        }
    }
    return bytes == 0;
}

/* Reads until `bytes` bytes, the end or an error; returns how many. *last_p: the last answer. */
static size_t read_until(struct end *e, void *to, size_t bytes, ssize_t *last_p)
{
    size_t done = 0;
    *last_p = -EAGAIN;
    while (done < bytes && !is_late()) {
        *last_p = read_some(e, (uint8_t *)to + done, bytes - done);
        if (*last_p > 0)
            done += (size_t)*last_p;
        else if (*last_p == -EAGAIN)
            turn();
        else
            break;
    }
    return done;
}

static void check_text(struct end *from, struct end *to, const char *text)
{
    char got[64] = "";
    ssize_t last;
    CHECK(write_all(from, text, strlen(text)));
    CHECK_EQ_INT(read_until(to, got, strlen(text), &last), strlen(text));
    CHECK_EQ_STR(got, text);
}

/* Byte number `at` of the endless test message. */
static uint8_t pattern(size_t at)
{
    return (uint8_t)((at * 2654435761u) >> 11 ^ at >> 16);
}

static size_t fill_pattern(size_t at, size_t end)
{
    size_t bytes = end - at < BUFFER_BYTES ? end - at : BUFFER_BYTES;
    for (size_t i = 0; i < bytes; i++)
        buffer[i] = pattern(at + i);
    return bytes;
}

static size_t wrong_bytes(size_t at, size_t bytes)
{
    size_t wrong = 0;
    for (size_t i = 0; i < bytes; i++)
        wrong += buffer[i] != pattern(at + i);
    return wrong;
}

/* Writes the pattern until the stream takes no more; returns how far it came. */
static size_t write_until_full(struct end *e, size_t end)
{
    size_t at = 0;
    ops->want(e->stream, TRANSPORT_WRITE);
    e->ready = TRANSPORT_WRITE;
    while ((e->ready & TRANSPORT_WRITE) && at < end && !is_late()) {
        ssize_t moved = write_some(e, buffer, fill_pattern(at, end));
        if (moved > 0)
            at += (size_t)moved;
        if (moved != -EAGAIN)
            continue;
        e->ready = 0;
        settle();
    }
    return at;
}

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

/* An address at which nobody listens any more. */
static void dead_address(char *text, size_t bytes)
{
    struct transport *t;
    int sys_errno;
    CHECK_EQ_INT(open_one(is_sim() ? "sim:3" : subject.listen, &t, &sys_errno), PCCL_OK);
    address_of(t, text, bytes);
    ops->close(t);
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

/* Polls when nothing should be ready; returns how long that took. */
static uint64_t poll_ns(struct transport *t, uint64_t timeout_ns)
{
    struct transport_ready ready[BATCH];
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    CHECK_EQ_INT(ops->poll(t, timeout_ns, ready, BATCH), 0);
    clock_gettime(CLOCK_MONOTONIC, &after);
    return (uint64_t)((after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec);
}

TEST(wanting_nothing_is_quiet_even_after_an_error)
{
    begin();
    struct end *there, *here;
    connect_pair(&there, &here);
    ops->want(here->stream, 0);
    end_close(there, 1);
    for (int i = 0; i < 5; i++)
        turn();
    here->ready = 0;
    for (int i = 0; i < 50; i++)
        turn();
    CHECK_EQ_INT(here->ready, 0);
    CHECK(is_sim() || poll_ns(b, MILLISECOND) >= MILLISECOND); /* it waits: the error does not keep the loop busy */
    ops->want(here->stream, TRANSPORT_READ);
    TURN_UNTIL(here->ready);
    CHECK_EQ_INT(read_some(here, buffer, 1), -ECONNRESET);
    finish();
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

/* -- tests: descriptors ---------------------------------------------------------------------------------------- */

static int fds_open(void)
{
    int count = 0;
    DIR *directory = opendir("/proc/self/fd");
    while (directory && readdir(directory))
        count++;
    if (directory)
        closedir(directory);
    return count;
}

TEST(no_descriptor_leaks)
{
    int before = fds_open();
    begin();
    char address[80];
    dead_address(address, sizeof address);
    for (int i = 0; i < 20; i++) {
        struct end *there, *here;
        connect_pair(&there, &here);
        dial(address);
        end_close(i % 2 ? there : here, i % 3 == 0);
    }
    dial(address_b);
    finish();
    CHECK_EQ_INT(fds_open(), before);
}

/* Takes every descriptor below a low limit, beside those taken before; returns how many are taken now. */
static int take_descriptors(int taken[64], int count)
{
    struct rlimit limit;
    CHECK_EQ_INT(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = 64;
    CHECK_EQ_INT(setrlimit(RLIMIT_NOFILE, &limit), 0);
    while (count < 64 && (taken[count] = dup(STDERR_FILENO)) >= 0)
        count++;
    return count;
}

/* With no descriptor left a connection is dropped, and the listener does not stay ready for ever. */
TEST(running_out_of_descriptors_does_not_spin)
{
    if (is_sim())
        return;
    begin();
    struct end *e = dial(address_b);
    struct rlimit old;
    CHECK_EQ_INT(getrlimit(RLIMIT_NOFILE, &old), 0);
    int taken[64], taken_count = take_descriptors(taken, 0);
    TURN_UNTIL(seen_without_stream & TRANSPORT_ACCEPT);
    while (!(e->ready & TRANSPORT_WRITE) && !is_late()) {
        poll_one(a, MILLISECOND); /* the dialler may give descriptors back and try again */
        taken_count = take_descriptors(taken, taken_count);
        poll_one(b, MILLISECOND);
    }
    settle();
    CHECK_EQ_INT(accepted_count, 0);
    seen_without_stream = 0;
    struct transport_ready ready[BATCH];
    CHECK_EQ_INT(ops->poll(b, 1000000, ready, BATCH), 0);
    CHECK_EQ_INT(setrlimit(RLIMIT_NOFILE, &old), 0);
    while (taken_count > 0)
        close(taken[--taken_count]);
    ssize_t last;
    CHECK_EQ_INT(read_until(e, buffer, 1, &last), 0);
    CHECK(last == 0 || last == -ECONNRESET);
    struct end *there, *here;
    connect_pair(&there, &here);
    check_text(there, here, "recovered");
    finish();
}

TEST(any_address_means_both_families)
{
    if (strcmp(subject.listen, "[::1]:0") != 0)
        return;
    const char *listen = subject.listen;
    subject.listen = "[::]:0";
    begin();
    const char *const hosts[] = {"127.0.0.1", "[::1]"};
    for (int i = 0; i < 2; i++) {
        snprintf(address_b, sizeof address_b, "%s:%d", hosts[i], ops->port(b));
        struct end *there, *here;
        connect_pair(&there, &here);
        struct stream_info info;
        ops->info(here->stream, &info);
        CHECK(strncmp(info.remote, hosts[i], strlen(hosts[i])) == 0);
    }
    finish();
    subject.listen = listen;
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
    if (!is_faulty())
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
    {"sim", "sim", ""},
    {"faulty+tcp", "faulty+tcp", "127.0.0.1:0"},
    {"faulty+auto", "faulty+auto", "127.0.0.1:0"},
    {"faulty+sim", "faulty+sim", ""},
};

/* 1 if the machine lacks what the subject needs (IPv6). */
static int is_absent(void)
{
    struct transport *t;
    int sys_errno = 0;
    ops = transport_find(subject.scheme);
    if (is_sim())
        return 0;
    if (open_one(subject.listen, &t, &sys_errno) != PCCL_OK)
        return sys_errno == EADDRNOTAVAIL || sys_errno == EAFNOSUPPORT;
    ops->close(t);
    return 0;
}

int main(int argc, char **argv)
{
    int failed = 0, ran = 0;
    for (size_t i = 0; i < sizeof SUBJECTS / sizeof SUBJECTS[0]; i++) {
        if (argc > 1 && strcmp(argv[1], SUBJECTS[i].name) != 0)
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
