/* test_transports.c - the contract of csrc/transport.h, checked against every transport by the same tests.
 *
 *     test_transports                    every scheme, one after the other
 *     test_transports tcp [part]         one scheme; only tests whose name contains the part
 *
 * "tcp6" and "auto6" are at the IPv6 loopback. Two transports, a and b, live in one thread; turn() polls both, notes
 * what was reported in the struct end behind stream->user, and moves the virtual clock when nothing is ready. */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../csrc/transport.h"
#include "../../transports/shm_ring.h"
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

/* -- tests: shared memory ------------------------------------------------------------------------------------------- */

static int is_auto(void)
{
    return strcmp(subject.scheme, "auto") == 0;
}

/* How many times memory of this transport is mapped here: one per end of an upgraded stream. */
static int memories_mapped(void)
{
    char line[512];
    int count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps))
        count += strstr(line, "/memfd:pccl") != NULL;
    if (maps)
        fclose(maps);
    return count;
}

TEST(peers_of_one_host_share_memory)
{
    if (!is_auto())
        return;
    begin();
    struct end *there, *here, *more[2];
    connect_pair(&there, &here);
    CHECK_EQ_INT(memories_mapped(), 2);
    connect_pair(&more[0], &more[1]);
    CHECK_EQ_INT(memories_mapped(), 4);
    check_text(there, here, "through memory");
    end_close(there, 0);
    CHECK_EQ_INT(memories_mapped(), 3);
    end_close(here, 1);
    CHECK_EQ_INT(memories_mapped(), 2);
    finish();
    CHECK_EQ_INT(memories_mapped(), 0);
}

/* A listener at every address is met under each of them. */
TEST(a_listener_everywhere_shares_memory_too)
{
    if (!is_auto())
        return;
    const char *listen = subject.listen;
    subject.listen = listen[0] == '[' ? "[::]:0" : "0.0.0.0:0";
    begin();
    snprintf(address_b, sizeof address_b, "127.0.0.1:%d", ops->port(b));
    struct end *there, *here;
    connect_pair(&there, &here);
    CHECK_EQ_INT(memories_mapped(), 2);
    /* another host's port of the same number is not ours: it is offered nothing */
    char elsewhere[40];
    snprintf(elsewhere, sizeof elsewhere, "203.0.113.1:%d", ops->port(b));
    (void)dial(elsewhere);
    CHECK_EQ_INT(memories_mapped(), 2);
    finish();
    subject.listen = listen;
}

/* A third transport, of plain TCP, beside a and b. */
static const struct transport_ops *tcp;
static struct transport *plain;

static void begin_beside_plain(void)
{
    int sys_errno;
    begin();
    tcp = transport_find("tcp");
    pccl_config config = {.size = sizeof config, .transport = "tcp"};
    snprintf(config.listen, sizeof config.listen, "%s", subject.listen);
    CHECK_EQ_INT(tcp->open(&config, &plain, &sys_errno), PCCL_OK);
}

static void turn_with_plain(void)
{
    struct transport_ready ready[BATCH];
    (void)tcp->poll(plain, MILLISECOND, ready, BATCH);
    turn();
}

static struct stream *accepted_by_plain(void)
{
    struct stream *stream = NULL;
    while (tcp->accept(plain, &stream) != PCCL_OK && !is_late())
        turn_with_plain();
    return stream;
}

/* The plain end of the stream speaks first, and hears the other. */
static void check_plain_end(struct stream *end, struct end *other)
{
    char sent = 'y', got = 0;
    struct iovec out = {&sent, 1}, in = {&got, 1};
    while (tcp->writev(end, &out, 1) != 1 && !is_late())
        turn_with_plain();
    while (read_some(other, &got, 1) != 1 && !is_late())
        turn_with_plain();
    CHECK_EQ_INT(got, 'y');
    CHECK(write_all(other, "z", 1));
    while (tcp->readv(end, &in, 1) != 1 && !is_late())
        turn_with_plain();
    CHECK_EQ_INT(got, 'z');
}

TEST(a_plain_listener_is_met_over_tcp)
{
    if (!is_auto())
        return;
    begin_beside_plain();
    snprintf(strrchr(address_b, ':'), 8, ":%d", tcp->port(plain));
    struct end *e = dial(address_b);
    struct stream *odd = accepted_by_plain();
    TURN_UNTIL(e->ready & TRANSPORT_WRITE);
    check_plain_end(odd, e);
    CHECK_EQ_INT(memories_mapped(), 0);
    tcp->stream_close(odd, 0);
    tcp->close(plain);
    finish();
}

/* Also while an offer of somebody else is open, who never comes: the listener may speak first all the same. */
TEST(a_plain_dialler_is_met_over_tcp)
{
    if (!is_auto())
        return;
    begin_beside_plain();
    for (int with_offer = 0; with_offer < 2; with_offer++) {
        struct end *other = with_offer ? dial(address_b) : NULL;
        if (other)
            end_close(other, 1);
        struct stream *odd;
        int sys_errno, before = accepted_count;
        CHECK_EQ_INT(tcp->dial(plain, address_b, &odd, &sys_errno), PCCL_OK);
        while (accepted_count <= before + with_offer && !is_late())
            turn_with_plain();
        /* the one that was given up is in the queue too, before it */
        struct end *heard = accepted[before + with_offer];
        ops->want(heard->stream, TRANSPORT_WRITE);
        while (!(heard->ready & TRANSPORT_WRITE) && !is_late())
            turn_with_plain();
        CHECK(heard->ready & TRANSPORT_WRITE);
        check_plain_end(odd, heard);
        tcp->stream_close(odd, 0);
    }
    tcp->close(plain);
    finish();
}

/* -- tests: shared memory, by hand ------------------------------------------------------------------------------------ */

enum { TOKEN_BYTES = 16, RING_BYTES = 1 << 20, MEMORY_BYTES = 4096 + 2 * RING_BYTES };

/* The abstract socket beside b's TCP port. */
static socklen_t name_beside_b(struct sockaddr_un *name_p)
{
    *name_p = (struct sockaddr_un){.sun_family = AF_UNIX};
    int bytes = snprintf(name_p->sun_path + 1, 80, "pccl-shm-1/%s/%s", subject.listen[0] == '[' ? "::1" : "127.0.0.1",
                         strrchr(address_b, ':') + 1);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)bytes);
}

static int connect_tcp_to_b(void)
{
    uint16_t port = htons((uint16_t)atoi(strrchr(address_b, ':') + 1));
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = port, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = port, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int is_v6 = subject.listen[0] == '[';
    int fd = socket(is_v6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
    const struct sockaddr *to = is_v6 ? (const struct sockaddr *)&v6 : (const struct sockaddr *)&v4;
    CHECK_EQ_INT(connect(fd, to, is_v6 ? sizeof v6 : sizeof v4), 0);
    return fd;
}

/* Offers b so many copies of the descriptor, under the token; returns the UNIX socket. */
static int offer_copies(const char *token, size_t token_bytes, int memory_fd, size_t copies)
{
    struct sockaddr_un name;
    socklen_t bytes = name_beside_b(&name);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    CHECK_EQ_INT(connect(fd, (struct sockaddr *)&name, bytes), 0);
    const int fds[] = {memory_fd, memory_fd};
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof fds)];
    } control = {.header = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(copies * sizeof(int))}};
    memcpy(CMSG_DATA(&control.header), fds, copies * sizeof(int));
    struct iovec iov = {(void *)(uintptr_t)token, token_bytes};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.room,
                             .msg_controllen = copies ? CMSG_SPACE(copies * sizeof(int)) : 0};
    CHECK_EQ_INT(sendmsg(fd, &message, MSG_NOSIGNAL), token_bytes);
    return fd;
}

static int offer(const char *token, size_t token_bytes, int memory_fd)
{
    return offer_copies(token, token_bytes, memory_fd, memory_fd >= 0);
}

static int memory(size_t bytes, int allocate, int seals)
{
    int fd = memfd_create("pccl", MFD_ALLOW_SEALING);
    CHECK_EQ_INT(ftruncate(fd, (off_t)bytes), 0);
    if (allocate)
        CHECK_EQ_INT(fallocate(fd, 0, 0, (off_t)bytes), 0);
    CHECK_EQ_INT(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

/* What b answers to an offer and its token: 1 a ring, 0 a reset or an end. */
static int answer_to(int tcp_fd, const char *token)
{
    char answer = 0;
    CHECK_EQ_INT(send(tcp_fd, token, TOKEN_BYTES, MSG_NOSIGNAL), TOKEN_BYTES);
    ssize_t bytes = -1;
    while (!is_late() && (bytes = recv(tcp_fd, &answer, 1, MSG_DONTWAIT)) < 0 && errno == EAGAIN)
        turn();
    return bytes == 1 && answer == 'R';
}

TEST(memory_that_could_hurt_is_refused)
{
    if (!is_auto())
        return;
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    begin();
    const struct {
        int memory_fd, is_good;
    } cases[] = {
        {memory(MEMORY_BYTES, 1, seals), 1},
        {memory(MEMORY_BYTES - 4096, 1, seals), 0},
        {memory(MEMORY_BYTES + 4096, 1, seals), 0},
        {memory(MEMORY_BYTES, 0, seals), 0},
        {memory(MEMORY_BYTES, 1, F_SEAL_GROW), 0},
        {memory(MEMORY_BYTES, 1, seals | F_SEAL_WRITE), 0},
        {open("/dev/zero", O_RDWR), 0},
        {-1, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char token[TOKEN_BYTES + 1];
        snprintf(token, sizeof token, "a token number %zu", i);
        int unix_fd = offer(token, TOKEN_BYTES, cases[i].memory_fd), tcp_fd = connect_tcp_to_b();
        CHECK_EQ_INT(answer_to(tcp_fd, token), cases[i].is_good);
        CHECK_EQ_INT(memories_mapped(), cases[i].is_good);
        for (int k = 0; k < accepted_count; k++)
            end_close(accepted[k], 1);
        close(unix_fd);
        close(tcp_fd);
        if (cases[i].memory_fd >= 0)
            close(cases[i].memory_fd);
    }
    struct end *there, *here;
    connect_pair(&there, &here);
    check_text(there, here, "unimpressed");
    finish();
}

TEST(nonsense_offers_are_dropped)
{
    if (!is_auto())
        return;
    int before = fds_open();
    begin();
    int memory_fd = memory(MEMORY_BYTES, 1, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    int unix_fd[] = {offer("short", 5, memory_fd), offer("much too long a token", 21, memory_fd),
                     offer("nobody dials me.", TOKEN_BYTES, memory_fd), offer_copies("two at a time", 13, memory_fd, 2)};
    struct end *there, *here;
    connect_pair(&there, &here);
    check_text(there, here, "none of them is this one");
    int tcp_fd = connect_tcp_to_b(), before_it = accepted_count;
    TURN_UNTIL(accepted_count > before_it);
    end_close(accepted[before_it], 1); /* while it is undecided */
    settle();
    CHECK(poll_ns(b, 100 * MILLISECOND) >= 100 * MILLISECOND);
    for (int i = 0; i < 4; i++)
        close(unix_fd[i]);
    close(tcp_fd);
    connect_pair(&there, &here);
    check_text(here, there, "nor this one");
    close(memory_fd);
    finish();
    CHECK_EQ_INT(fds_open(), before);
    CHECK_EQ_INT(memories_mapped(), 0);
}

/* The other side of a ring, in a thread: when its byte has been read it writes the next, a little later each time, so
 * that it comes while b is about to sleep; and rings only when b has said that it sleeps. */
enum { LATE_BYTES = 20000 };
static struct shm_ring_shared *late_ring;
static int late_fd;

static void *write_late(void *unused)
{
    for (uint64_t i = 1; i <= LATE_BYTES; i++) {
        while (atomic_load(&late_ring->read) < i - 1)
            sched_yield();
        for (volatile uint64_t pause = i % 512; pause > 0; pause--)
            ;
        atomic_store(&late_ring->written, i);
        if (atomic_load(&late_ring->reader_sleeps) && atomic_exchange(&late_ring->reader_sleeps, 0))
            (void)!send(late_fd, "b", 1, MSG_NOSIGNAL);
    }
    return unused;
}

TEST(falling_asleep_it_looks_once_more)
{
    if (!is_auto())
        return;
    begin();
    int memory_fd = memory(MEMORY_BYTES, 1, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), got = 0;
    int unix_fd = offer("sixteen letters.", TOKEN_BYTES, memory_fd);
    late_fd = connect_tcp_to_b();
    CHECK(answer_to(late_fd, "sixteen letters."));
    late_ring = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
    pthread_t thread;
    CHECK_EQ_INT(pthread_create(&thread, NULL, write_late, NULL), 0);
    struct transport_ready ready[BATCH];
    while (got < LATE_BYTES && !is_late()) {
        (void)ops->poll(b, (uint64_t)2 * PATIENCE_S * 1000000000u, ready, BATCH);
        ssize_t moved = read_some(accepted[0], buffer, 1);
        got += moved > 0;
    }
    CHECK_EQ_INT(got, LATE_BYTES);
    pthread_join(thread, NULL);
    munmap(late_ring, MEMORY_BYTES);
    close(memory_fd);
    close(unix_fd);
    close(late_fd);
    finish();
}

/* The other side writes positions that cannot be true: an error of that stream, and of nothing else. */
TEST(a_lying_ring_ends_its_stream)
{
    if (!is_auto())
        return;
    begin();
    for (int of_reader = 0; of_reader < 2; of_reader++) {
        int memory_fd = memory(MEMORY_BYTES, 1, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), before = accepted_count;
        int unix_fd = offer("sixteen letters.", TOKEN_BYTES, memory_fd), tcp_fd = connect_tcp_to_b();
        CHECK(answer_to(tcp_fd, "sixteen letters."));
        struct shm_ring_shared *ring = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
        struct end *victim = accepted[before];
        CHECK_EQ_INT(write_some(victim, "honest", 6), 6);
        CHECK_EQ_INT(read_some(victim, buffer, 1), -EAGAIN);
        if (of_reader)
            atomic_store(&ring[1].read, 7);
        else
            atomic_store(&ring[0].written, RING_BYTES + 1);
        victim->ready = 0;
        ops->want(victim->stream, TRANSPORT_READ | TRANSPORT_WRITE);
        TURN_UNTIL(victim->ready & (of_reader ? TRANSPORT_WRITE : TRANSPORT_READ));
        CHECK_EQ_INT(of_reader ? write_some(victim, "x", 1) : read_some(victim, buffer, sizeof buffer), -EPROTO);
        CHECK_EQ_INT(write_some(victim, "x", 1), -EPROTO);
        end_close(victim, 1);
        munmap(ring, MEMORY_BYTES);
        close(unix_fd);
        close(tcp_fd);
        close(memory_fd);
    }
    finish();
}

/* Somebody takes offers in b's name, but b knows nothing of them and hangs up: the dialler comes back over TCP. */
TEST(an_upgrade_refused_ends_in_tcp)
{
    if (!is_auto())
        return;
    begin_beside_plain();
    snprintf(strrchr(address_b, ':'), 8, ":%d", tcp->port(plain));
    struct sockaddr_un name;
    socklen_t bytes = name_beside_b(&name);
    int squatter = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    CHECK_EQ_INT(bind(squatter, (struct sockaddr *)&name, bytes), 0);
    CHECK_EQ_INT(listen(squatter, 5), 0);
    struct end *e = dial(address_b);
    struct stream *first = accepted_by_plain();
    char token[TOKEN_BYTES];
    struct iovec iov = {token, sizeof token};
    while (tcp->readv(first, &iov, 1) != TOKEN_BYTES && !is_late())
        turn_with_plain();
    CHECK_EQ_INT(e->ready, 0);
    tcp->stream_close(first, 1);
    struct stream *second = accepted_by_plain();
    TURN_UNTIL(e->ready);
    CHECK_EQ_INT(e->ready, TRANSPORT_WRITE);
    check_plain_end(second, e);
    CHECK_EQ_INT(memories_mapped(), 0);
    tcp->stream_close(second, 0);
    tcp->close(plain);
    close(squatter);
    finish();
}

/* -- tests: shared memory, between processes ------------------------------------------------------------------------------ */

/* A peer of its own: dials the address, or (NULL) listens and tells its port; then writes and reads for ever. */
static void be_a_peer(const char *address, int port_fd)
{
    struct transport *t;
    struct stream *stream = NULL;
    struct transport_ready ready[BATCH];
    int sys_errno;
    alarm(PATIENCE_S);
    if (open_one(subject.listen, &t, &sys_errno) != PCCL_OK)
        _exit(1);
    int port = ops->port(t);
    if (write(port_fd, &port, sizeof port) != sizeof port)
        _exit(1);
    if (address && ops->dial(t, address, &stream, &sys_errno) != PCCL_OK)
        _exit(1);
    struct iovec iov = {buffer, sizeof buffer};
    for (;;) {
        (void)ops->poll(t, MILLISECOND, ready, BATCH);
        if (!stream && ops->accept(t, &stream) != PCCL_OK)
            continue;
        (void)ops->writev(stream, &iov, 1);
        (void)ops->readv(stream, &iov, 1);
    }
}

/* A peer of its own that listens, sends back what it gets, and sleeps without a time-out in between. */
static void be_an_echo(int port_fd)
{
    struct transport *t;
    struct stream *stream = NULL;
    struct transport_ready ready[BATCH];
    size_t have = 0, done = 0;
    int sys_errno;
    alarm(2 * PATIENCE_S);
    if (open_one(subject.listen, &t, &sys_errno) != PCCL_OK)
        _exit(1);
    int port = ops->port(t);
    if (write(port_fd, &port, sizeof port) != sizeof port)
        _exit(1);
    for (;;) {
        (void)ops->poll(t, UINT64_MAX, ready, BATCH);
        if (!stream && ops->accept(t, &stream) != PCCL_OK)
            continue;
        struct iovec in = {buffer, sizeof buffer};
        ssize_t moved = done == have ? ops->readv(stream, &in, 1) : 0;
        if (moved > 0) {
            have = (size_t)moved;
            done = 0;
        }
        struct iovec out = {buffer + done, have - done};
        moved = done < have ? ops->writev(stream, &out, 1) : 0;
        done += moved > 0 ? (size_t)moved : 0;
        ops->want(stream, done < have ? TRANSPORT_WRITE : TRANSPORT_READ);
    }
}

/* `echoes`: it listens and echoes, whatever the address. */
static pid_t fork_peer(int echoes, const char *address, int *port_p)
{
    int channel[2];
    CHECK_EQ_INT(pipe(channel), 0);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0 && echoes)
        be_an_echo(channel[1]);
    if (child == 0)
        be_a_peer(address, channel[1]);
    CHECK_EQ_INT(read(channel[0], port_p, sizeof *port_p), sizeof *port_p);
    close(channel[0]);
    close(channel[1]);
    return child;
}

static void kill_and_reap(pid_t child)
{
    CHECK_EQ_INT(kill(child, SIGKILL), 0);
    CHECK_EQ_INT(waitpid(child, NULL, 0), child);
}

/* Reads what is left and then the end; returns how long that took. */
static uint64_t ns_until_end(struct end *e)
{
    struct timespec before, after;
    ssize_t last = 1;
    clock_gettime(CLOCK_MONOTONIC, &before);
    while (last > 0 && !is_late())
        (void)read_until(e, buffer, sizeof buffer, &last);
    clock_gettime(CLOCK_MONOTONIC, &after);
    CHECK(last == 0 || last == -ECONNRESET);
    return (uint64_t)((after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec);
}

TEST(a_crash_of_either_side_is_seen_and_leaves_nothing)
{
    if (is_sim() || is_faulty())
        return;
    int fds = fds_open();
    for (int dialler_dies = 0; dialler_dies < 2; dialler_dies++) {
        begin();
        int port;
        pid_t child = fork_peer(0, dialler_dies ? address_b : NULL, &port);
        if (!dialler_dies)
            snprintf(strrchr(address_b, ':'), 8, ":%d", port);
        struct end *e = dialler_dies ? NULL : dial(address_b);
        TURN_UNTIL(dialler_dies ? accepted_count == 1 : e->ready & TRANSPORT_WRITE);
        e = e ? e : accepted[0];
        ssize_t last;
        CHECK_EQ_INT(read_until(e, buffer, sizeof buffer, &last), sizeof buffer); /* it is in full swing */
        CHECK_EQ_INT(memories_mapped(), is_auto());
        kill_and_reap(child);
        CHECK(ns_until_end(e) < 100 * (uint64_t)MILLISECOND);
        CHECK(write_some(e, "x", 1) < 0 || write_some(e, "x", 1) < 0);
        finish();
    }
    CHECK_EQ_INT(fds_open(), fds);
    CHECK_EQ_INT(memories_mapped(), 0);
}

/* Sends bytes through the echo, `window` at most before they are back; sleeps without a time-out that would help. */
static size_t echo_bytes(struct end *e, size_t bytes, size_t window)
{
    size_t sent = 0, got = 0, wrong = 0;
    uint8_t back[4096];
    while (got < bytes && !is_late()) {
        size_t most = sent - got < window ? window - (sent - got) : 0;
        most = most < bytes - sent ? most : bytes - sent;
        ssize_t moved = most ? write_some(e, buffer, fill_pattern(sent, sent + most)) : 0;
        sent += moved > 0 ? (size_t)moved : 0;
        struct iovec in = {back, sizeof back};
        ssize_t came = ops->readv(e->stream, &in, 1);
        for (ssize_t i = 0; i < came; i++)
            wrong += back[i] != pattern(got + (size_t)i);
        got += came > 0 ? (size_t)came : 0;
        ops->want(e->stream, TRANSPORT_READ | (moved == -EAGAIN ? TRANSPORT_WRITE : 0u));
        if (came == -EAGAIN && moved <= 0)
            poll_one(a, (uint64_t)2 * PATIENCE_S * 1000000000u);
    }
    CHECK_EQ_INT(wrong, 0);
    return got;
}

TEST(no_wake_between_processes_is_lost)
{
    if (is_sim())
        return;
    begin();
    int port;
    pid_t child = fork_peer(1, NULL, &port);
    snprintf(strrchr(address_b, ':'), 8, ":%d", port);
    struct end *e = dial(address_b);
    TURN_UNTIL(e->ready & TRANSPORT_WRITE);
    CHECK_EQ_INT(echo_bytes(e, 3000, 1), 3000);               /* both sides wait for bytes */
    CHECK_EQ_INT(echo_bytes(e, 8 << 20, 8 << 20), 8 << 20);   /* and for room */
    kill_and_reap(child);
    finish();
}

/* A child that was only forked, and outlives its parent's streams, holds none of the memory. */
TEST(a_forked_child_does_not_hold_the_memory)
{
    if (!is_auto())
        return;
    begin();
    struct end *there, *here;
    connect_pair(&there, &here);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        _exit(memories_mapped());
    int status;
    CHECK_EQ_INT(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    finish();
}

/* In another network namespace the same address is another place, for the UNIX sockets too. Returns 1 if it is so,
 * 2 if there is no right to try. */
static int dial_from_another_namespace(void)
{
    if (unshare(CLONE_NEWNET) != 0)
        return 2;
    struct sockaddr_un name;
    socklen_t bytes = name_beside_b(&name);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    if (connect(fd, (struct sockaddr *)&name, bytes) == 0)
        return 0;
    struct transport *t;
    struct stream *stream;
    struct transport_ready ready[BATCH];
    int sys_errno = 0, count = 0;
    if (system("ip link set lo up") != 0)
        return 2;
    if (open_one(subject.listen, &t, &sys_errno) != PCCL_OK)
        return 0;
    if (ops->dial(t, address_b, &stream, &sys_errno) != PCCL_OK)
        return sys_errno == ECONNREFUSED;
    while (count == 0 && !is_late())
        count = ops->poll(t, MILLISECOND, ready, BATCH);
    struct iovec iov = {buffer, 1};
    return ops->readv(stream, &iov, 1) == -ECONNREFUSED;
}

TEST(another_namespace_is_another_host)
{
    if (!is_auto())
        return;
    begin();
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        alarm(PATIENCE_S);
        _exit(dial_from_another_namespace());
    }
    int status = 0;
    CHECK_EQ_INT(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) != 0);
    finish();
}

/* Joins this namespace with that of the process by a cable, and gives our end an address. */
static int lay_cable(pid_t to)
{
    char command[160];
    snprintf(command, sizeof command, "ip link add west type veth peer name east netns %d && "
             "ip addr add 10.77.0.1/24 dev west && ip link set west up", (int)to);
    return system(command);
}

/* The peer at the other end of the cable: dials once there is one. */
static void be_a_peer_in_the_east(int ready_fd, int go_fd)
{
    char address[32];
    if (unshare(CLONE_NEWNET) != 0 || write(ready_fd, "r", 1) != 1 || read(go_fd, address, sizeof address) <= 0
        || system("ip addr add 10.77.0.2/24 dev east && ip link set east up") != 0)
        _exit(1);
    be_a_peer(address, ready_fd);
}

/* In a child: 1 if bytes came through the cable and none of our memory is mapped, 2 if there is no right to try. */
static int talk_between_namespaces(void)
{
    int ready[2], go[2], result = 2;
    char byte, address[32] = "";
    if (unshare(CLONE_NEWNET) != 0 || pipe(ready) != 0 || pipe(go) != 0)
        return 2;
    subject.listen = "0.0.0.0:0";
    pid_t east = fork();
    if (east == 0)
        be_a_peer_in_the_east(ready[1], go[0]);
    begin();
    snprintf(address, sizeof address, "10.77.0.1:%d", ops->port(b));
    if (read(ready[0], &byte, 1) == 1 && lay_cable(east) == 0 && write(go[1], address, sizeof address) > 0) {
        ssize_t last;
        while (accepted_count == 0 && !is_late())
            turn();
        result = accepted_count == 1 && read_until(accepted[0], buffer, sizeof buffer, &last) == sizeof buffer
                 && memories_mapped() == 0;
    }
    kill(east, SIGKILL);
    return result;
}

TEST(between_namespaces_it_is_tcp)
{
    if (!is_auto() || subject.listen[0] == '[')
        return;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        alarm(PATIENCE_S);
        _exit(talk_between_namespaces());
    }
    int status = 0;
    CHECK_EQ_INT(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) != 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 2)
        printf("between_namespaces_it_is_tcp: not tried, it takes the right to make namespaces\n");
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
