/* test_sim.c - the simulated network does what pccl_api.h says of it, to the nanosecond, and the same every time. */
#include <errno.h>

#include "transport.h"

#include "test.h"

enum { MS = 1000000, NODES = 4, CHUNK_BYTES = 1 << 16 };

static const uint64_t SECOND = 1000000000u;

static pccl_sim *sim;
static uint64_t now_ns;
static const struct transport_ops *ops;
static struct transport *node[NODES];
static uint8_t buffer[4 * CHUNK_BYTES];

/* -- the network under test --------------------------------------------------------------------- */

static struct transport *listen_at(int number)
{
    pccl_config config = {.size = sizeof config, .transport = "sim", .sim = sim};
    struct transport *t = NULL;
    int sys_errno;
    snprintf(config.listen, sizeof config.listen, "sim:%d", number);
    CHECK_EQ_INT(ops->open(&config, &t, &sys_errno), PCCL_OK);
    return t;
}

static void set_path(uint32_t from, uint32_t to, pccl_sim_path path)
{
    CHECK_EQ_INT(pccl_sim_set_path(sim, from, to, &path), PCCL_OK);
}

static void set_both(pccl_sim_path path)
{
    set_path(0, 1, path);
    set_path(1, 0, path);
}

static void begin(uint64_t seed)
{
    ops = transport_find("sim");
    now_ns = 0;
    CHECK_EQ_INT(pccl_sim_new(seed, &sim), PCCL_OK);
    for (int i = 0; i < NODES; i++)
        node[i] = listen_at(i);
    set_both((pccl_sim_path){.delay_ns = 10 * MS});
}

static void finish(void)
{
    for (int i = 0; i < NODES; i++)
        ops->close(node[i]);
    pccl_sim_free(sim);
}

static uint32_t go_to(uint64_t to_ns)
{
    now_ns = to_ns;
    return pccl_sim_advance(sim, to_ns);
}

static void go_by(uint64_t ns)
{
    go_to(now_ns + ns);
}

static void run_dry(void)
{
    while (pccl_sim_next(sim) != UINT64_MAX)
        go_to(pccl_sim_next(sim));
}

static struct stream *dial(int from, int to)
{
    char address[32];
    struct stream *s = NULL;
    int sys_errno;
    snprintf(address, sizeof address, "sim:%d", to);
    CHECK_EQ_INT(ops->dial(node[from], address, &s, &sys_errno), PCCL_OK);
    return s;
}

static struct stream *accept_one(int at)
{
    struct stream *s = NULL;
    CHECK_EQ_INT(ops->accept(node[at], &s), PCCL_OK);
    return s;
}

/* A connection from node 0 to node 1. */
static void connect_pair(struct stream **dialled_p, struct stream **accepted_p)
{
    *dialled_p = dial(0, 1);
    while (ops->accept(node[1], accepted_p) != PCCL_OK && pccl_sim_next(sim) != UINT64_MAX)
        go_to(pccl_sim_next(sim));
    go_by(10 * MS);
    struct transport_ready ready[8];
    CHECK(ops->poll(node[0], 0, ready, 8) >= 1);
}

static ssize_t write_some(struct stream *s, const void *data, size_t bytes)
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = bytes};
    return ops->writev(s, &iov, 1);
}

static ssize_t read_some(struct stream *s, void *data, size_t bytes)
{
    struct iovec iov = {.iov_base = data, .iov_len = bytes};
    return ops->readv(s, &iov, 1);
}

static void close_pair(struct stream *x, struct stream *y)
{
    ops->stream_close(x, 0);
    ops->stream_close(y, 0);
}

static unsigned readiness(struct transport *t)
{
    struct transport_ready ready[8];
    unsigned what = 0;
    int count = ops->poll(t, UINT64_MAX, ready, 8);
    for (int i = 0; i < count; i++)
        what |= ready[i].what;
    return what;
}

/* -- time -------------------------------------------------------------------------------------------- */

TEST(a_dial_takes_the_delay_of_both_ways)
{
    begin(1);
    set_path(1, 0, (pccl_sim_path){.delay_ns = 7 * MS});
    struct stream *s = dial(0, 1);
    CHECK_EQ_INT(pccl_sim_next(sim), 10 * MS);
    go_to(10 * MS - 1);
    CHECK_EQ_INT(readiness(node[1]), 0);
    go_to(10 * MS);
    CHECK_EQ_INT(readiness(node[1]), TRANSPORT_ACCEPT);
    CHECK_EQ_INT(readiness(node[0]), 0);
    CHECK_EQ_INT(write_some(s, "x", 1), -EAGAIN);
    CHECK_EQ_INT(go_to(17 * MS), 1);
    CHECK_EQ_INT(readiness(node[0]), TRANSPORT_WRITE);
    CHECK_EQ_INT(pccl_sim_next(sim), UINT64_MAX);
    ops->stream_close(s, 0);
    finish();
}

TEST(bytes_take_the_delay)
{
    begin(1);
    struct stream *x, *y;
    connect_pair(&x, &y);
    char got[8] = "";
    CHECK_EQ_INT(write_some(x, "hello", 5), 5);
    go_by(10 * MS - 1);
    CHECK_EQ_INT(read_some(y, got, 8), -EAGAIN);
    go_by(1);
    CHECK_EQ_INT(readiness(node[1]), TRANSPORT_READ);
    CHECK_EQ_INT(read_some(y, got, 8), 5);
    CHECK_EQ_STR(got, "hello");
    close_pair(x, y);
    finish();
}

TEST(jitter_reorders_streams_but_not_bytes)
{
    begin(1);
    struct stream *x[8], *y[8];
    for (int i = 0; i < 8; i++)
        connect_pair(&x[i], &y[i]);
    set_both((pccl_sim_path){.delay_ns = 10 * MS, .jitter_ns = 20 * MS});
    for (uint8_t i = 0; i < 100; i++)
        for (int stream = 0; stream < 8; stream++)
            CHECK_EQ_INT(write_some(x[stream], &i, 1), 1);
    uint64_t begin_ns = now_ns;
    CHECK(pccl_sim_next(sim) >= begin_ns + 10 * MS);
    int streams_ahead = 0;
    go_by(15 * MS);
    for (int stream = 0; stream < 8; stream++)
        streams_ahead += read_some(y[stream], buffer, 1) == 1 && buffer[0] == 0;
    CHECK(streams_ahead > 0 && streams_ahead < 8);
    run_dry();
    CHECK(now_ns <= begin_ns + 30 * MS);
    for (int stream = 0; stream < 8; stream++) {
        ssize_t bytes = read_some(y[stream], buffer, 100);
        CHECK(bytes == 99 || bytes == 100);
        for (ssize_t i = 1; i < bytes; i++)
            CHECK_EQ_INT(buffer[i], buffer[i - 1] + 1);
        close_pair(x[stream], y[stream]);
    }
    finish();
}

TEST(the_rate_is_shared_by_the_streams_of_a_path)
{
    begin(1);
    struct stream *x[2], *y[2];
    connect_pair(&x[0], &y[0]);
    connect_pair(&x[1], &y[1]);
    set_both((pccl_sim_path){.delay_ns = 10 * MS, .bytes_per_s = CHUNK_BYTES});
    CHECK_EQ_INT(write_some(x[0], buffer, CHUNK_BYTES), CHUNK_BYTES);
    CHECK_EQ_INT(write_some(x[1], buffer, CHUNK_BYTES), CHUNK_BYTES);
    uint64_t begin_ns = now_ns;
    CHECK_EQ_INT(pccl_sim_next(sim), begin_ns + SECOND + 10 * MS);
    go_to(pccl_sim_next(sim));
    CHECK_EQ_INT(read_some(y[0], buffer, sizeof buffer), CHUNK_BYTES);
    CHECK_EQ_INT(read_some(y[1], buffer, sizeof buffer), -EAGAIN);
    CHECK_EQ_INT(pccl_sim_next(sim), begin_ns + 2 * SECOND + 10 * MS);
    CHECK_EQ_INT(write_some(y[0], buffer, 1), 1);
    CHECK(pccl_sim_next(sim) < begin_ns + SECOND + 21 * MS); /* the other direction is free */
    close_pair(x[0], y[0]);
    close_pair(x[1], y[1]);
    finish();
}

TEST(a_writer_waits_for_the_network_and_for_its_reader)
{
    begin(1);
    struct stream *x, *y;
    connect_pair(&x, &y);
    ops->want(x, TRANSPORT_WRITE);
    size_t sent = 0, read = 0;
    ssize_t moved;
    while ((moved = write_some(x, buffer, sizeof buffer)) > 0)
        sent += (size_t)moved;
    CHECK_EQ_INT(moved, -EAGAIN);
    CHECK_EQ_INT(sent, 256 << 10);
    CHECK_EQ_INT(readiness(node[0]), 0);
    run_dry();
    CHECK_EQ_INT(readiness(node[0]), TRANSPORT_WRITE);
    while ((moved = write_some(x, buffer, sizeof buffer)) > 0) {
        sent += (size_t)moved;
        run_dry();
    }
    CHECK_EQ_INT(sent, 1 << 20);
    CHECK_EQ_INT(pccl_sim_next(sim), UINT64_MAX);
    while (pccl_sim_next(sim) == UINT64_MAX && (moved = read_some(y, buffer, 1000)) > 0)
        read += (size_t)moved;
    CHECK_EQ_INT(pccl_sim_next(sim), now_ns + 10 * MS); /* the news of the room travels, so a writer is woken */
    CHECK_EQ_INT(go_to(pccl_sim_next(sim)), 1);
    CHECK_EQ_INT(readiness(node[0]), TRANSPORT_WRITE);
    while ((moved = read_some(y, buffer, sizeof buffer)) > 0)
        read += (size_t)moved;
    CHECK_EQ_INT(read, sent);
    close_pair(x, y);
    finish();
}

/* -- cuts and crashes ------------------------------------------------------------------------------------ */

TEST(a_cut_holds_bytes_until_it_is_healed)
{
    begin(1);
    struct stream *x, *y;
    connect_pair(&x, &y);
    CHECK_EQ_INT(write_some(x, "under way, ", 11), 11);
    set_path(0, 1, (pccl_sim_path){.delay_ns = 10 * MS, .cut = 1});
    CHECK_EQ_INT(write_some(x, "written in the cut", 18), 18);
    CHECK_EQ_INT(write_some(y, "back", 4), 4);
    go_by(60 * SECOND);
    CHECK_EQ_INT(pccl_sim_next(sim), UINT64_MAX);
    CHECK_EQ_INT(read_some(y, buffer, 64), -EAGAIN);
    CHECK_EQ_INT(read_some(x, buffer, 64), 4); /* one direction only is cut */
    set_path(0, 1, (pccl_sim_path){.delay_ns = 5 * MS});
    CHECK_EQ_INT(pccl_sim_next(sim), now_ns + 5 * MS);
    CHECK_EQ_INT(write_some(x, ".", 1), 1);
    go_by(5 * MS);
    char got[64] = "";
    CHECK_EQ_INT(read_some(y, got, sizeof got), 30);
    CHECK_EQ_STR(got, "under way, written in the cut.");
    close_pair(x, y);
    finish();
}

TEST(a_cut_that_ends_in_time_delays_nothing)
{
    begin(1);
    struct stream *x, *y;
    connect_pair(&x, &y);
    CHECK_EQ_INT(write_some(x, "x", 1), 1);
    uint64_t due_ns = pccl_sim_next(sim);
    set_path(0, 1, (pccl_sim_path){.delay_ns = 10 * MS, .cut = 1});
    go_by(9 * MS);
    set_path(0, 1, (pccl_sim_path){.delay_ns = 10 * MS});
    CHECK_EQ_INT(pccl_sim_next(sim), due_ns);
    go_to(due_ns);
    CHECK_EQ_INT(read_some(y, buffer, 8), 1);
    close_pair(x, y);
    finish();
}

TEST(a_dial_into_a_cut_times_out)
{
    for (int direction = 0; direction < 2; direction++) {
        begin(1);
        set_path(direction ? 1 : 0, direction ? 0 : 1, (pccl_sim_path){.delay_ns = 10 * MS, .cut = 1});
        struct stream *s = dial(0, 1);
        go_to(3 * SECOND - 1);
        CHECK_EQ_INT(readiness(node[0]), 0);
        go_to(3 * SECOND);
        CHECK_EQ_INT(readiness(node[0]), TRANSPORT_READ | TRANSPORT_WRITE);
        CHECK_EQ_INT(read_some(s, buffer, 1), -ETIMEDOUT);
        CHECK_EQ_INT(write_some(s, buffer, 1), -ETIMEDOUT);
        set_both((pccl_sim_path){.delay_ns = 10 * MS});
        run_dry();
        CHECK_EQ_INT(read_some(s, buffer, 1), -ETIMEDOUT);
        struct stream *half;
        if (ops->accept(node[1], &half) == PCCL_OK) {
            CHECK_EQ_INT(direction, 1);
            CHECK_EQ_INT(read_some(half, buffer, 1), -ECONNRESET);
            ops->stream_close(half, 0);
        }
        ops->stream_close(s, 0);
        finish();
    }
}

/* What a firewall does: streams pass that were dialled from behind it, and their bytes in both directions. */
TEST(dials_are_lost_or_refused_in_one_direction)
{
    for (uint8_t dials = 1; dials <= 2; dials++) {
        begin(1);
        set_both((pccl_sim_path){.delay_ns = 10 * MS});
        set_path(0, 1, (pccl_sim_path){.delay_ns = 10 * MS, .dials = dials});
        struct stream *s = dial(0, 1);
        go_to(20 * MS);
        CHECK_EQ_INT(readiness(node[0]), dials == 1 ? 0 : TRANSPORT_READ | TRANSPORT_WRITE);
        go_to(3 * SECOND);
        CHECK_EQ_INT(read_some(s, buffer, 1), dials == 1 ? -ETIMEDOUT : -ECONNREFUSED);
        ops->stream_close(s, 0);
        struct stream *out = dial(1, 0), *in;
        run_dry();
        CHECK(ops->accept(node[0], &in) == PCCL_OK);
        CHECK_EQ_INT(write_some(in, "there", 5), 5);
        CHECK_EQ_INT(write_some(out, "back", 4), 4);
        run_dry();
        CHECK_EQ_INT(read_some(out, buffer, 64), 5);
        CHECK_EQ_INT(read_some(in, buffer, 64), 4);
        close_pair(out, in);
        finish();
    }
}

TEST(a_dial_outlives_a_short_cut)
{
    begin(1);
    set_both((pccl_sim_path){.delay_ns = 10 * MS, .cut = 1});
    struct stream *s = dial(0, 1);
    go_to(2 * SECOND);
    set_both((pccl_sim_path){.delay_ns = 10 * MS});
    go_by(20 * MS);
    CHECK_EQ_INT(readiness(node[0]), TRANSPORT_WRITE);
    struct stream *t = accept_one(1);
    go_to(10 * SECOND);
    CHECK_EQ_INT(write_some(s, "x", 1), 1);
    close_pair(s, t);
    finish();
}

TEST(a_crash_resets_the_others)
{
    begin(1);
    struct stream *x, *y;
    connect_pair(&x, &y);
    struct stream *late = dial(0, 1);
    CHECK_EQ_INT(write_some(y, "lost", 4), 4);
    set_path(1, 0, (pccl_sim_path){.delay_ns = 5 * MS});
    CHECK_EQ_INT(pccl_sim_crash(sim, 1), PCCL_OK);
    go_by(5 * MS - 1);
    CHECK_EQ_INT(read_some(x, buffer, 8), -EAGAIN);
    go_by(1);
    CHECK_EQ_INT(read_some(x, buffer, 8), -ECONNRESET);
    CHECK_EQ_INT(write_some(x, buffer, 8), -ECONNRESET);
    run_dry();
    CHECK_EQ_INT(read_some(late, buffer, 1), -ECONNREFUSED);
    struct stream *again = dial(0, 1);
    run_dry();
    CHECK_EQ_INT(read_some(again, buffer, 1), -ECONNREFUSED);
    close_pair(x, y);
    close_pair(late, again);
    finish();
}

TEST(a_crashed_node_can_come_back)
{
    begin(1);
    struct stream *x, *y, *unused;
    int sys_errno = 0;
    connect_pair(&x, &y);
    struct stream *never_accepted = dial(0, 1);
    go_by(10 * MS);
    CHECK_EQ_INT(pccl_sim_crash(sim, 1), PCCL_OK);
    CHECK_EQ_INT(pccl_sim_crash(sim, 1), PCCL_OK);
    CHECK_EQ_INT(ops->dial(node[1], "sim:0", &unused, &sys_errno), PCCL_EIO);
    CHECK_EQ_INT(sys_errno, ENETDOWN);
    struct transport *old = node[1];
    node[1] = listen_at(1);
    ops->stream_close(y, 0);
    ops->close(old);
    run_dry();
    CHECK_EQ_INT(read_some(x, buffer, 1), -ECONNRESET);
    CHECK_EQ_INT(read_some(never_accepted, buffer, 1), -ECONNRESET);
    close_pair(x, never_accepted);
    connect_pair(&x, &y);
    CHECK_EQ_INT(write_some(x, "x", 1), 1);
    run_dry();
    CHECK_EQ_INT(read_some(y, buffer, 8), 1);
    close_pair(x, y);
    finish();
}

/* -- faults ------------------------------------------------------------------------------------------------ */

TEST(a_reset_takes_one_stream_at_both_ends)
{
    begin(1);
    struct stream *x[3], *y[3];
    CHECK_EQ_INT(pccl_sim_reset(sim, 0, 1, 0), PCCL_EAGAIN);
    for (int i = 0; i < 3; i++)
        connect_pair(&x[i], &y[i]);
    CHECK_EQ_INT(pccl_sim_reset(sim, 1, 0, 4), PCCL_OK); /* 4 modulo 3 */
    run_dry();
    for (int i = 0; i < 3; i++) {
        CHECK_EQ_INT(read_some(x[i], buffer, 1), i == 1 ? -ECONNRESET : -EAGAIN);
        CHECK_EQ_INT(read_some(y[i], buffer, 1), i == 1 ? -ECONNRESET : -EAGAIN);
    }
    CHECK_EQ_INT(pccl_sim_reset(sim, 0, 1, 0), PCCL_OK);
    CHECK_EQ_INT(pccl_sim_reset(sim, 0, 1, 0), PCCL_OK);
    CHECK_EQ_INT(pccl_sim_reset(sim, 0, 1, 0), PCCL_EAGAIN);
    for (int i = 0; i < 3; i++)
        close_pair(x[i], y[i]);
    finish();
}

TEST(a_write_may_meet_a_reset)
{
    begin(1);
    struct stream *x, *y;
    connect_pair(&x, &y);
    set_path(0, 1, (pccl_sim_path){.delay_ns = 4 * MS, .reset_ppm = 1000000});
    CHECK_EQ_INT(write_some(x, "x", 1), 1);
    CHECK_EQ_INT(write_some(x, "x", 1), -EAGAIN);
    go_by(4 * MS);
    CHECK_EQ_INT(read_some(y, buffer, 1), -ECONNRESET);
    CHECK_EQ_INT(read_some(x, buffer, 1), -EAGAIN);
    go_by(6 * MS);
    CHECK_EQ_INT(read_some(x, buffer, 1), -ECONNRESET);
    close_pair(x, y);
    finish();
}

TEST(a_write_may_arrive_with_one_bit_changed)
{
    begin(1);
    struct stream *x, *y;
    connect_pair(&x, &y);
    set_path(0, 1, (pccl_sim_path){.corrupt_ppm = 1000000});
    static uint8_t zeros[CHUNK_BYTES + 100];
    CHECK_EQ_INT(write_some(x, zeros, sizeof zeros), sizeof zeros);
    run_dry();
    CHECK_EQ_INT(read_some(y, buffer, sizeof buffer), sizeof zeros);
    int bits = 0;
    for (size_t i = 0; i < sizeof zeros; i++)
        bits += __builtin_popcount(buffer[i]);
    CHECK_EQ_INT(bits, 1);
    close_pair(x, y);
    finish();
}

TEST(a_write_may_arrive_twice)
{
    begin(1);
    struct stream *x, *y;
    connect_pair(&x, &y);
    set_path(0, 1, (pccl_sim_path){.duplicate_ppm = 1000000});
    CHECK_EQ_INT(write_some(x, "tick", 4), 4);
    ops->stream_close(x, 0);
    run_dry();
    char got[16] = "";
    CHECK_EQ_INT(read_some(y, got, sizeof got), 8);
    CHECK_EQ_STR(got, "ticktick");
    CHECK_EQ_INT(read_some(y, got, sizeof got), 0);
    ops->stream_close(y, 0);
    finish();
}

TEST(chances_are_those_that_were_asked_for)
{
    begin(1);
    struct stream *x, *y;
    connect_pair(&x, &y);
    set_path(0, 1, (pccl_sim_path){.duplicate_ppm = 250000});
    for (int i = 0; i < 4000; i++)
        CHECK_EQ_INT(write_some(x, "x", 1), 1);
    run_dry();
    ssize_t bytes = read_some(y, buffer, sizeof buffer);
    CHECK(bytes > 4800 && bytes < 5200);
    close_pair(x, y);
    finish();
}

/* -- determinism ----------------------------------------------------------------------------------------------- */

enum { STORM_STREAMS = 24, STORM_STEPS = 3000, STORM_CRASH = 1500, STORM_RETURN = 2000 };

static void storm_weather(void)
{
    for (uint32_t from = 0; from < NODES; from++)
        for (uint32_t to = 0; to < NODES; to++)
            set_path(from, to, (pccl_sim_path){.delay_ns = (from + 1) * MS, .jitter_ns = 3 * MS,
                                               .bytes_per_s = 100000000, .reset_ppm = 3000,
                                               .corrupt_ppm = 10000, .duplicate_ppm = 10000});
}

static void storm_close_all(struct stream *open[STORM_STREAMS])
{
    for (int i = 0; i < STORM_STREAMS; i++) {
        if (open[i])
            ops->stream_close(open[i], i % 2);
        open[i] = NULL;
    }
}

/* Does to one stream what the dice say. */
static struct stream *storm_step(struct stream *s, uint64_t dice, int at)
{
    struct stream *taken;
    if (!s)
        return ops->accept(node[at], &taken) == PCCL_OK ? taken : dial(at, (int)(dice >> 58) % NODES);
    if (dice >> 63)
        (void)read_some(s, buffer, sizeof buffer);
    else if (write_some(s, buffer, (dice >> 32) % 5000) < 0 && dice >> 62 == 0) {
        ops->stream_close(s, (int)(dice >> 61) & 1);
        return NULL;
    }
    return s;
}

/* Traffic among all nodes with every fault; node 3 crashes and comes back. */
static uint64_t digest_of_a_storm(uint64_t seed, uint32_t *deliveries_p)
{
    struct stream *open[STORM_STREAMS] = {NULL};
    uint64_t random = 5;
    begin(seed);
    storm_weather();
    for (int step = 0; step < STORM_STEPS; step++) {
        uint64_t dice = test_random(&random);
        int others = step >= STORM_CRASH && step < STORM_RETURN;
        struct stream **s = &open[dice % STORM_STREAMS];
        *s = storm_step(*s, dice, (int)(dice >> 40) % (others ? NODES - 1 : NODES));
        for (int i = 0; i < NODES; i++)
            (void)readiness(node[i]);
        *deliveries_p += go_to(now_ns + (dice >> 46));
        if (step == STORM_CRASH - 1)
            CHECK_EQ_INT(pccl_sim_crash(sim, 3), PCCL_OK);
        if (step == STORM_RETURN - 1) {
            storm_close_all(open);
            ops->close(node[3]);
            node[3] = listen_at(3);
        }
    }
    storm_close_all(open);
    run_dry();
    uint64_t digest = pccl_sim_digest(sim);
    finish();
    return digest;
}

TEST(equal_seeds_give_equal_runs)
{
    uint32_t deliveries = 0, again = 0, other = 0;
    uint64_t first = digest_of_a_storm(11, &deliveries);
    void *shift = malloc(12345); /* other addresses must not matter */
    CHECK(digest_of_a_storm(11, &again) == first);
    CHECK_EQ_INT(again, deliveries);
    CHECK(deliveries > STORM_STEPS / 3);
    free(shift);
    CHECK(digest_of_a_storm(12, &other) != first);
}

static uint64_t digest_of_bytes(const char *text, uint64_t pause_ns)
{
    begin(1);
    struct stream *x, *y;
    connect_pair(&x, &y);
    go_by(pause_ns);
    CHECK_EQ_INT(write_some(x, text, 4), 4);
    run_dry();
    uint64_t digest = pccl_sim_digest(sim);
    close_pair(x, y);
    finish();
    return digest;
}

TEST(the_digest_sees_bytes_and_times)
{
    uint64_t digest = digest_of_bytes("abcd", 0);
    CHECK(digest == digest_of_bytes("abcd", 0));
    CHECK(digest != digest_of_bytes("abcc", 0));
    CHECK(digest != digest_of_bytes("abcd", 1));
}

TEST(bad_arguments_are_refused)
{
    begin(1);
    const pccl_sim_path path = {.reset_ppm = 1000001};
    CHECK_EQ_INT(pccl_sim_set_path(sim, 0, 1, &path), PCCL_EINVAL);
    CHECK_EQ_INT(pccl_sim_set_path(sim, 0, 1, NULL), PCCL_EINVAL);
    CHECK_EQ_INT(pccl_sim_set_path(sim, 0, 1 << 20, &path), PCCL_EINVAL);
    CHECK_EQ_INT(pccl_sim_set_path(NULL, 0, 1, &path), PCCL_EINVAL);
    CHECK_EQ_INT(pccl_sim_crash(sim, 1 << 20), PCCL_EINVAL);
    CHECK_EQ_INT(pccl_sim_reset(sim, 1 << 20, 0, 0), PCCL_EINVAL);
    CHECK_EQ_INT(pccl_sim_new(1, NULL), PCCL_EINVAL);
    pccl_sim_free(NULL);
    finish();
}

TEST_MAIN("sim")
