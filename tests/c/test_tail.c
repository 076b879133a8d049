/* test_tail.c - a stream that stalls without dying does not hold up the end of an op: what it has goes again on another. */
#include <errno.h>
#include <stdlib.h>

#include "../../csrc/engine.h"
#include "cluster.h"

enum { BYTES = 4 << 20, RATE = 20000000, STREAMS = 3, SOCKET_BYTES = 200000, THROUGH_BYTES = 20001 };

static struct cluster c;
static uint8_t *in[2], *out[2];

/* The simulator's transport, of which one stream of engine 0 may stall: THROUGH_BYTES still pass, then its socket fills. */
static struct transport_ops stalling;
static const struct transport_ops *smooth;
static struct stream *stalled;
static uint8_t socket_bytes[SOCKET_BYTES];
static size_t through_left, socket_used;
static unsigned stalled_interest;
/* What was lost is at the front of the stalled socket: what lies behind has arrived, and is of no use. */
static int is_gap;

static size_t into_socket(const struct iovec *iov, int iov_count)
{
    size_t taken = 0;
    for (int i = 0; i < iov_count; i++) {
        size_t room = SOCKET_BYTES - socket_used, bytes = iov[i].iov_len < room ? iov[i].iov_len : room;
        memcpy(socket_bytes + socket_used, iov[i].iov_base, bytes);
        socket_used += bytes;
        taken += bytes;
    }
    return taken;
}

static ssize_t stall_writev(struct stream *s, const struct iovec *iov, int iov_count)
{
    if (s != stalled)
        return smooth->writev(s, iov, iov_count);
    if (through_left) {
        struct iovec first = iov[0];
        first.iov_len = first.iov_len < through_left ? first.iov_len : through_left;
        ssize_t bytes = smooth->writev(s, &first, 1);
        through_left -= bytes > 0 ? (size_t)bytes : 0;
        return bytes;
    }
    size_t taken = into_socket(iov, iov_count);
    return taken ? (ssize_t)taken : -EAGAIN;
}

static void stall_want(struct stream *s, unsigned interest)
{
    if (s == stalled)
        stalled_interest = interest;
    smooth->want(s, s == stalled ? interest & ~(unsigned)TRANSPORT_WRITE : interest);
}

static void stall_info(const struct stream *s, struct stream_info *info)
{
    smooth->info(s, info);
    if (s == stalled && is_gap && socket_used)
        info->behind_gap_bytes = socket_used - 1;
    if (s == stalled)
        info->held_bytes += socket_used - info->behind_gap_bytes;
}

static void stall_close(struct stream *s, int abort)
{
    if (s == stalled)
        stalled = NULL;
    smooth->stream_close(s, abort);
}

static struct link *link_of(uint32_t node)
{
    return c.engines[node]->links;
}

static void stall(uint32_t index)
{
    stalled = link_of(0)->conns[index]->stream;
    through_left = THROUGH_BYTES;
    socket_used = 0;
    stalled_interest = link_of(0)->conns[index]->interest;
}

static void stall_ends(void)
{
    struct stream *s = stalled;
    stalled = NULL;
    for (size_t sent = 0; sent < socket_used;) {
        struct iovec rest = {socket_bytes + sent, socket_used - sent};
        ssize_t bytes = smooth->writev(s, &rest, 1);
        if (bytes > 0)
            sent += (size_t)bytes;
        else
            cluster_run(&c, SECOND / 1000);
    }
    smooth->want(s, stalled_interest);
    c.wake_ns[0] = 0;
}

static void open_pair(void)
{
    cluster_open(&c, 2, 7, "sim", 0);
    pccl_sim_path path = {.delay_ns = 40000000, .bytes_per_s = RATE};
    CHECK(pccl_sim_set_path(c.sim, 0, 1, &path) == PCCL_OK && pccl_sim_set_path(c.sim, 1, 0, &path) == PCCL_OK);
    c.streams = STREAMS;
    c.segment_bytes = 64 << 10;
    c.mesh_bytes_max = 1ULL << 40;
    smooth = c.engines[0]->ops;
    stalling = *smooth;
    stalling.writev = stall_writev;
    stalling.want = stall_want;
    stalling.info = stall_info;
    stalling.stream_close = stall_close;
    c.engines[0]->ops = &stalling;
    stalled = NULL;
    is_gap = 0;
    cluster_epoch(&c, 1, 0, 0, 3, 3, NULL, 0);
    cluster_run(&c, 2 * SECOND);    /* the round trip is known by then */
}

static void submit(uint32_t seq)
{
    for (uint32_t i = 0; i < 2; i++) {
        in[i] = malloc(BYTES);
        out[i] = malloc(BYTES);
        for (uint32_t k = 0; k < BYTES; k++)
            in[i][k] = (uint8_t)(k * 7 + k / 251 + seq + i);
        pccl_op_request r = {.kind = PCCL_ALL_REDUCE, .dtype = PCCL_UINT8, .name = {.seq = seq}, .count = BYTES, .in = in[i],
                             .out = out[i], .token = seq + 1};
        cluster_submit(&c, i, &r);
    }
}

/* The op is over and its sums are right; its memory is given back, so that nobody may touch it any more. */
static void take_back(uint32_t seq)
{
    for (uint32_t i = 0; i < 2; i++) {
        const pccl_event *e = cluster_event(&c, i, PCCL_EVENT_OP, seq + 1);
        CHECK(e && e->status == PCCL_OK);
        uint32_t wrong = 0;
        for (uint32_t k = 0; k < BYTES; k++)
            wrong += out[i][k] != (uint8_t)(in[0][k] + in[1][k]);
        CHECK_EQ_INT(wrong, 0);
    }
    for (uint32_t i = 0; i < 2; i++) {
        free(in[i]);
        free(out[i]);
    }
}

static void run_until_copied(void)
{
    for (int i = 0; i < 3000 && !c.engines[0]->stats.frames_copied; i++)
        cluster_run(&c, SECOND / 1000);
    CHECK(c.engines[0]->stats.frames_copied > 0);
}

TEST(a_smooth_link_copies_nothing)
{
    open_pair();
    for (uint32_t seq = 0; seq < 3; seq++) {
        submit(seq);
        cluster_run(&c, SECOND);
        take_back(seq);
    }
    CHECK_EQ_INT(c.engines[0]->stats.frames_copied + c.engines[1]->stats.frames_copied, 0);
    cluster_close(&c);
}

TEST(an_op_does_not_wait_for_a_stream_that_stalls)
{
    open_pair();
    stall(1);
    submit(0);
    cluster_run(&c, 3 * SECOND / 2);
    CHECK(stalled && socket_used == SOCKET_BYTES);
    take_back(0);
    uint64_t copied = c.engines[0]->stats.frames_copied;
    CHECK(copied > 0 && copied * c.segment_bytes <= 2 << 20);
    CHECK_EQ_INT(c.engines[1]->stats.frames_duplicate, 0);
    stall_ends();
    cluster_run(&c, SECOND);
    CHECK(c.engines[1]->stats.frames_duplicate > 0 && c.engines[1]->stats.frames_duplicate <= copied);
    CHECK(link_is_drained(link_of(0)) && link_is_drained(link_of(1)));
    submit(1);
    cluster_run(&c, SECOND);
    take_back(1);
    CHECK_EQ_INT(c.engines[0]->stats.frames_copied, copied);
    CHECK(c.engines[0]->stats.frames_resent == 0 && c.engines[1]->stats.frames_corrupt == 0 && link_of(1)->open == STREAMS);
    cluster_close(&c);
}

TEST(what_arrived_behind_a_gap_goes_again)
{
    open_pair();
    stall(1);
    is_gap = 1;
    submit(0);
    cluster_run(&c, 3 * SECOND / 2);
    CHECK(stalled && socket_used == SOCKET_BYTES);
    take_back(0);
    CHECK(c.engines[0]->stats.frames_copied > 0);
    stall_ends();
    cluster_run(&c, SECOND);
    CHECK(link_is_drained(link_of(0)) && link_is_drained(link_of(1)));
    cluster_close(&c);
}

/* Every stream but the one that stalls breaks, and with them some copies; or that one; or all. */
static void break_amid_copies(uint32_t which)
{
    open_pair();
    stall(1);
    submit(0);
    run_until_copied();
    for (uint32_t i = 0; i < STREAMS; i++)
        if (which & 1u << i)
            conn_fail(link_of(0)->conns[i], PCCL_CAUSE_RESET, ECONNRESET);
    c.wake_ns[0] = 0;
    cluster_run(&c, 3 * SECOND);
    take_back(0);
    CHECK(c.engines[0]->stats.frames_resent > 0);
    if (stalled)
        stall_ends();
    cluster_run(&c, SECOND);
    CHECK(link_is_drained(link_of(0)) && link_of(0)->open == STREAMS && c.engines[1]->stats.frames_corrupt == 0);
    submit(1);
    cluster_run(&c, SECOND);
    take_back(1);
    cluster_close(&c);
}

TEST(copies_whose_stream_breaks_go_again) { break_amid_copies(5); }

TEST(originals_whose_stream_breaks_go_again) { break_amid_copies(2); }

TEST(copies_and_originals_whose_streams_break_go_again) { break_amid_copies(7); }

/* The stall ends as the copies are on their way: the other side meets both, half read, in any order. */
TEST(copies_that_race_are_taken_once)
{
    for (uint64_t later_ms = 0; later_ms < 80; later_ms += 4) {
        open_pair();
        stall(1);
        submit(0);
        run_until_copied();
        cluster_run(&c, later_ms * SECOND / 1000);
        stall_ends();
        cluster_run(&c, 2 * SECOND);
        take_back(0);
        CHECK(link_is_drained(link_of(0)) && c.engines[1]->stats.frames_corrupt == 0 && link_of(1)->open == STREAMS);
        cluster_close(&c);
    }
}

TEST_MAIN("tail")
