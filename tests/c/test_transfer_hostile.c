/* test_transfer_hostile.c - what a member that lies about transfers can do to another: nothing but lose its stream, and be told no.
 *
 * The liar is a real engine whose link is given frames that it would never make; numbers, acknowledgements and checksums are right, so that
 * each arrives where transfers are looked after. */
#include "transfers.h"

enum { LIES = 2100, LIE_BYTES = 512 << 10, CUT = 16 << 10 };

struct lie {
    struct sender sender;
    struct flow flow;
    struct segment segment;
};

static struct lie lies[LIES];
static uint32_t lie_count;
static uint8_t poison[LIE_BYTES];

static struct link *link_of(uint32_t node, uint32_t to)
{
    pccl_peer_id id = node_id(to);
    return link_find(c.engines[node], &id, 0);
}

/* Node `from` says to node `to` what nobody should say. */
static struct lie *tell(uint32_t from, uint32_t to, struct frame frame, const uint8_t *payload, uint32_t bytes)
{
    struct lie *lie = &lies[lie_count++];
    *lie = (struct lie){.segment = {.payload.data = payload, .bytes = bytes, .offset = frame.offset, .step = frame.step}};
    lie->sender = (struct sender){.priority = NORMAL, .frame = frame};
    lie->flow = (struct flow){.sender = &lie->sender, .link = link_of(from, to), .segments = &lie->segment, .cap = 1, .called = 1};
    flow_push(&lie->flow, &lie->segment);
    c.wake_ns[from] = 0;
    return lie;
}

static void tell_piece(uint64_t id, uint64_t offset, uint32_t bytes)
{
    struct frame frame = {.type = FRAME_PIECE, .name = {.lane = id}, .offset = offset};
    (void)tell(0, 1, frame, poison, bytes);
}

enum { RUNS = 256 };

static uint64_t bare_seeds[RUNS], bare_digests[RUNS];

/* Everything, in so many runs of one size. */
static void fetch_in_runs(uint8_t *to, uint32_t count, int bare, uint64_t token)
{
    static pccl_fetch_run runs[RUNS];
    uint64_t bytes = BYTES / count;
    for (uint32_t i = 0; i < count; i++)
        runs[i] = (pccl_fetch_run){i * bytes, bytes, to + i * bytes};
    pccl_fetch_request r = request_of(runs, count, token);
    if (bare) {
        r.part_count = count;
        r.bare = 1;
        r.part_bytes = bytes;
        r.seeds = bare_seeds;
        r.digests = bare_digests;
    }
    send_request(&r);
}

/* Everything, without checksums, as one part. */
static void fetch_bare(uint64_t token)
{
    fetch_in_runs(target, 1, 1, token);
}

/* The liar speaks the truth again: what it has said, and would say again, is void. */
static void repent(void)
{
    for (uint32_t i = 0; i < lie_count; i++)
        link_detach(lies[i].flow.link, &lies[i].flow);
    lie_count = 0;
}

static void begin_lying_with(uint32_t segment_bytes)
{
    memset(poison, 0x66, sizeof poison);
    lie_count = 0;
    begin_with("sim", 1, segment_bytes);
}

static void begin_lying(void)
{
    begin_lying_with(CUT);
}

static void expect_untouched(void)
{
    static uint8_t expected[sizeof target];
    memset(expected, 0xAA, sizeof expected);
    CHECK_EQ_BYTES(target, expected, sizeof expected);
}

/* Of the frames since `before` so many ended their stream (0: none), so many were stale. */
static void expect_refused(uint32_t node, pccl_stats before, int corrupt, uint64_t stale)
{
    pccl_stats now = stats_of(node);
    CHECK_EQ_INT(now.frames_corrupt > before.frames_corrupt, corrupt);
    CHECK_EQ_INT(now.frames_stale - before.frames_stale, stale);
}

static void end_lying(void)
{
    repent();
    cluster_run(&c, SECOND);
    expect_nothing_left();
    fetch_all(1000);
    cluster_run(&c, 2 * SECOND);
    CHECK_EQ_INT(status_of(1000), PCCL_OK);
    CHECK_EQ_BYTES(target, source, BYTES);
    cluster_close(&c);
}

/* -- a server that lies ------------------------------------------------------------------------------------------------- */

TEST(pieces_and_denials_that_nobody_asked_for_are_stale)
{
    begin_lying();
    offer(1);
    pccl_stats before = stats_of(1);
    tell_piece(1, 0, CUT);
    tell_piece(UINT64_MAX, 0, CUT);
    (void)tell(0, 1, (struct frame){.type = FRAME_DENY, .name = {.lane = 1}, .step = DENY_GONE}, NULL, 0);
    (void)tell(0, 1, (struct frame){.type = FRAME_DROP, .name = {.lane = 1}}, NULL, 0);
    cluster_run(&c, SECOND / 10);
    expect_refused(1, before, 0, 3);
    expect_untouched();
    end_lying();
}

/* Three runs of a concatenation of 40000 bytes: [0, 1000) and [1000, 3000) share a piece, [3000, 40000) is cut into 16 KiB. */
TEST(a_piece_that_is_no_segment_of_its_fetch_ends_the_stream)
{
    static const struct { uint64_t offset; uint32_t bytes; } wrong[] = {
        {0, 1000}, {0, 2999}, {0, 3001}, {1, 2999}, {1000, 2000}, {2999, 1}, {3000, CUT - 1}, {3000, CUT + 1}, {3001, CUT},
        {3000, 1}, {3000 + CUT, 2 * CUT}, {3000 + 2 * CUT, CUT}, {3000 + 3 * CUT, CUT}, {40000, 1}, {39999, 1}, {40000, CUT},
        {3000 + 4 * CUT, 1}, {(1ULL << 40) - 1, CUT},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        pccl_fetch_run runs[] = {{0, 1000, target}, {5000, 2000, target + 5000}, {10000, 37000, target + 10000}};
        begin_lying();
        offer(0);
        fetch_runs(runs, 3, 1);
        cluster_run(&c, SECOND / 10);
        pccl_stats before = stats_of(1);
        tell_piece(1, wrong[i].offset, wrong[i].bytes);
        cluster_run(&c, SECOND / 10);
        expect_refused(1, before, 1, 0);
        expect_untouched();
        CHECK_EQ_INT(status_of(1), -1);
        repent();
        extend(0, BYTES);
        cluster_run(&c, 2 * SECOND);
        CHECK_EQ_INT(status_of(1), PCCL_OK);
        CHECK_EQ_BYTES(target + 10000, source + 10000, 37000);
        end_lying();
    }
}

TEST(a_segment_is_taken_once)
{
    begin_lying();
    offer(0);
    extend(0, CUT);
    fetch_all(1);
    cluster_run(&c, SECOND / 10);
    CHECK_EQ_BYTES(target, source, CUT);
    pccl_stats before = stats_of(1);
    tell_piece(1, 0, CUT);
    cluster_run(&c, SECOND / 10);
    expect_refused(1, before, 1, 0);
    CHECK_EQ_BYTES(target, source, CUT);
    CHECK_EQ_INT(stats_of(1).transfer_received_bytes, CUT);
    repent();
    extend(0, BYTES);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(1), PCCL_OK);
    end_lying();
}

/* The same segment under two numbers, so long that each has a stream of its own and begins before the other has ended: one is taken, the
 * other ends its stream. */
TEST(a_segment_that_comes_twice_at_a_time_counts_once)
{
    begin_lying_with(LIE_BYTES);
    set_paths(2 * MS, 10000000);
    offer(0);
    fetch_all(1);
    cluster_run(&c, SECOND / 10);
    pccl_stats before = stats_of(1);
    tell_piece(1, 0, LIE_BYTES);
    tell_piece(1, 0, LIE_BYTES);
    cluster_run(&c, SECOND / 2);
    expect_refused(1, before, 1, 0);
    CHECK_EQ_INT(stats_of(1).transfer_received_bytes, LIE_BYTES);
    CHECK_EQ_BYTES(target, poison, LIE_BYTES);
    memset(target, 0xAA, LIE_BYTES);
    expect_untouched();
    CHECK_EQ_INT(pccl_engine_cancel_fetch(c.engines[1], 1), PCCL_OK);
    extend(0, BYTES);
    set_paths(2 * MS, 0);
    end_lying();
}

/* A payload whose checksum is wrong ends the stream, and its segment is not taken. */
TEST(a_piece_with_a_wrong_checksum_is_not_taken)
{
    begin_lying();
    offer(0);
    fetch_all(1);
    cluster_run(&c, SECOND / 10);
    pccl_stats before = stats_of(1);
    tell_piece(1, CUT, CUT);
    lies[0].segment.crc_known = 1;
    cluster_run(&c, SECOND / 10);
    expect_refused(1, before, 1, 0);
    CHECK_EQ_INT(stats_of(1).transfer_received_bytes, 0);
    memset(target + CUT, 0xAA, CUT);
    expect_untouched();
    repent();
    extend(0, BYTES);
    cluster_run(&c, 2 * SECOND);
    CHECK_EQ_INT(status_of(1), PCCL_OK);
    CHECK_EQ_BYTES(target, source, BYTES);
    end_lying();
}

/* Who asks for checksums gets no payload without; who asks for none takes one with its checksum, which is then looked at. */
TEST(a_bare_piece_that_nobody_asked_for_ends_the_stream)
{
    for (int bare = 0; bare < 2; bare++) {
        begin_lying();
        offer(0);
        if (bare)
            fetch_bare(1);
        else
            fetch_all(1);
        cluster_run(&c, SECOND / 10);
        pccl_stats before = stats_of(1);
        (void)tell(0, 1, (struct frame){.type = FRAME_PIECE, .name = {.lane = 1}, .bare = 1}, poison, CUT);
        cluster_run(&c, SECOND / 10);
        expect_refused(1, before, !bare, 0);
        CHECK_EQ_INT(stats_of(1).transfer_received_bytes, bare ? CUT : 0);
        before = stats_of(1);
        tell_piece(1, CUT, CUT);
        lies[1].segment.crc_known = 1;
        cluster_run(&c, SECOND / 10);
        expect_refused(1, before, 1, 0);
        CHECK_EQ_INT(stats_of(1).transfer_received_bytes, bare ? CUT : 0);
        repent();
        CHECK_EQ_INT(pccl_engine_cancel_fetch(c.engines[1], 1), PCCL_OK);
        extend(0, BYTES);
        end_lying();
    }
}

/* The same segment under two numbers, both under way at a time: the digests are of what lies there when the fetch has ended. */
static void expect_nothing_changes_after_its_digest(uint32_t runs)
{
    static uint8_t other[LIE_BYTES];
    memset(other, 0x99, sizeof other);
    begin_lying_with(LIE_BYTES);
    set_paths(2 * MS, 10000000);
    offer(0);
    fetch_in_runs(target, runs, 1, 1);
    cluster_run(&c, SECOND / 10);
    (void)tell(0, 1, (struct frame){.type = FRAME_PIECE, .name = {.lane = 1}, .bare = 1}, poison, LIE_BYTES);
    (void)tell(0, 1, (struct frame){.type = FRAME_PIECE, .name = {.lane = 1}, .bare = 1}, other, LIE_BYTES);
    cluster_run(&c, SECOND / 2);
    CHECK_EQ_INT(stats_of(1).transfer_received_bytes, LIE_BYTES);
    repent();
    extend(0, BYTES);
    set_paths(2 * MS, 0);
    cluster_run(&c, 2 * SECOND);
    CHECK_EQ_INT(status_of(1), PCCL_OK);
    for (uint32_t i = 0; i < runs; i++) {
        uint64_t offset = i * (uint64_t)(BYTES / runs), found;
        pccl_digest_pieces(target, &offset, BYTES / runs, &bare_seeds[i], 1, &found);
        CHECK(found == bare_digests[i]);
    }
    end_lying();
}

TEST(nothing_changes_after_its_digest)
{
    expect_nothing_changes_after_its_digest(1);
    expect_nothing_changes_after_its_digest(BYTES / (LIE_BYTES / 4)); /* four share a segment */
}

/* Fields that a frame of a transfer does not have must be 0. */
TEST(frames_with_fields_of_ops_end_the_stream)
{
    struct frame piece = {.type = FRAME_PIECE, .name = {.lane = 1}}, wrong[8];
    for (int i = 0; i < 8; i++)
        wrong[i] = piece;
    wrong[0].step = 1;
    wrong[1].epoch = 1;
    wrong[2].name.boundary = 1;
    wrong[3].name.seq = 1;
    wrong[4].shape = 1;
    wrong[5].desc = 1;
    wrong[6].offset = 1ULL << 40;
    wrong[7].type = FRAME_TYPE_END;
    for (int i = 0; i < 8; i++) {
        begin_lying();
        offer(0);
        fetch_all(1);
        cluster_run(&c, SECOND / 10);
        pccl_stats before = stats_of(1);
        (void)tell(0, 1, wrong[i], poison, CUT);
        cluster_run(&c, SECOND / 10);
        expect_refused(1, before, 1, 0);
        expect_untouched();
        repent();
        extend(0, BYTES);
        end_lying();
    }
}

/* The targets are freed the moment the engine says so; the liar goes on sending. */
static void expect_nothing_after_a_cancel(uint32_t runs)
{
    begin_lying();
    set_paths(2 * MS, 20000000);
    offer(0);
    uint8_t *memory = malloc(BYTES);
    fetch_in_runs(memory, runs, 0, 1);
    cluster_run(&c, SECOND / 10);
    for (uint32_t i = 0; i < 16; i++)
        tell_piece(1, i * CUT, CUT);
    cluster_run(&c, 8 * MS);
    CHECK(stats_of(1).transfer_received_bytes > 0);
    CHECK(stats_of(1).transfer_received_bytes < 16 * CUT);
    CHECK_EQ_INT(pccl_engine_cancel_fetch(c.engines[1], 1), PCCL_OK);
    (void)pccl_engine_step(c.engines[1], c.now_ns);
    c.event_count[1] += (uint32_t)pccl_engine_events(c.engines[1], c.events[1] + c.event_count[1], 16);
    CHECK_EQ_INT(status_of(1), PCCL_ECANCELLED);
    free(memory);
    pccl_stats before = stats_of(1);
    cluster_run(&c, SECOND);
    CHECK(stats_of(1).frames_stale > before.frames_stale);
    CHECK_EQ_INT(stats_of(1).frames_corrupt, before.frames_corrupt);
    withdraw();
    cluster_run(&c, SECOND / 10);
    offer(1);
    set_paths(2 * MS, 0);
    end_lying();
}

TEST(pieces_after_a_cancel_write_nothing)
{
    expect_nothing_after_a_cancel(1);
    expect_nothing_after_a_cancel(BYTES / (CUT / 4)); /* four share a segment */
}

/* Numbers of fetches are counted up, and so easy to guess: those asked of another peer mean nothing on this link. */
TEST(nobody_answers_for_another_peer)
{
    begin_lying();
    cluster_close(&c);
    cluster_open(&c, 3, 1, "sim", 0);
    c.segment_bytes = CUT;
    cluster_epoch(&c, 1, 0, 0, 7, ~0u, NULL, 0);
    cluster_run(&c, SECOND / 10);
    offer(0);
    fetch_all(1);
    cluster_run(&c, SECOND / 10);
    pccl_stats before = stats_of(1);
    (void)tell(2, 1, (struct frame){.type = FRAME_PIECE, .name = {.lane = 1}}, poison, CUT);
    (void)tell(2, 1, (struct frame){.type = FRAME_DENY, .name = {.lane = 1}, .step = DENY_GONE}, NULL, 0);
    (void)tell(2, 0, (struct frame){.type = FRAME_DROP, .name = {.lane = 1}}, NULL, 0);
    cluster_run(&c, SECOND / 10);
    expect_refused(1, before, 0, 2);
    expect_untouched();
    CHECK_EQ_INT(status_of(1), -1);
    CHECK_EQ_INT(stats_of(0).transfers_served, 1);
    extend(0, BYTES);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(1), PCCL_OK);
    end_lying();
}

/* -- a requester that lies ---------------------------------------------------------------------------------------------- */

enum { ASK_BYTES = WIRE_FETCH_HEAD_BYTES + WIRE_FETCH_RUNS_MAX * WIRE_FETCH_RUN_BYTES + WIRE_FETCH_RUN_BYTES };

static uint8_t bodies[LIES][WIRE_FETCH_HEAD_BYTES + 2 * WIRE_FETCH_RUN_BYTES], large_body[ASK_BYTES];

static struct fetch_head head_of(uint32_t run_count)
{
    struct fetch_head head = {.generation = 7, .segment_bytes = CUT, .run_count = run_count};
    memcpy(head.key, key, sizeof head.key);
    return head;
}

/* A FETCH of number `id` with these two runs. */
static void ask_for(uint64_t id, struct fetch_head head, struct fetch_run a, struct fetch_run b, uint32_t bytes)
{
    uint8_t *body = bodies[lie_count];
    wire_encode_fetch(&head, body);
    wire_encode_fetch_run(a, 0, body);
    wire_encode_fetch_run(b, 1, body);
    (void)tell(1, 0, (struct frame){.type = FRAME_FETCH, .name = {.lane = id}}, body, bytes);
}

TEST(asks_beyond_the_offer_are_denied)
{
    static const struct fetch_run beyond[] = {
        {BYTES, 1}, {BYTES - 1, 2}, {0, BYTES + 1}, {UINT64_MAX - 1, 1}, {1ULL << 39, 1}, {0, 1ULL << 39}, {BYTES - 1, 1ULL << 39},
    };
    const uint32_t n = sizeof beyond / sizeof beyond[0];
    begin_lying();
    offer(1);
    pccl_stats before = stats_of(0);
    for (uint32_t i = 0; i < n; i++)
        ask_for(50 + i, head_of(2), (struct fetch_run){0, 1}, beyond[i], sizeof bodies[0]);
    struct fetch_head other = head_of(2);
    other.generation = 8;
    ask_for(70, other, (struct fetch_run){0, 1}, (struct fetch_run){0, 1}, sizeof bodies[0]);
    other = head_of(2);
    other.key[0] ^= 1;
    ask_for(71, other, (struct fetch_run){0, 1}, (struct fetch_run){0, 1}, sizeof bodies[0]);
    cluster_run(&c, SECOND / 10);
    expect_refused(0, before, 0, 0);
    CHECK_EQ_INT(stats_of(0).transfer_sent_bytes, 0);
    CHECK_EQ_INT(stats_of(1).frames_stale, n + 2);   /* the DENYs: it never began such fetches */
    end_lying();
}

TEST(malformed_asks_end_the_stream)
{
    enum { WRONG = 12 };
    const uint32_t whole = sizeof bodies[0], one = whole - WIRE_FETCH_RUN_BYTES;
    struct fetch_head heads[WRONG];
    struct fetch_run runs[WRONG][2];
    uint32_t bytes[WRONG];
    for (uint32_t i = 0; i < WRONG; i++) {
        heads[i] = head_of(2);
        runs[i][0] = runs[i][1] = (struct fetch_run){0, 100};
        bytes[i] = whole;
    }
    heads[0].run_count = 0;
    heads[1].run_count = 1;
    heads[2].run_count = UINT32_MAX;
    heads[3].run_count = WIRE_FETCH_RUNS_MAX + 1;
    heads[4].segment_bytes = 0;
    heads[5].segment_bytes = 100;
    heads[6].segment_bytes = WIRE_PAYLOAD_BYTES_MAX + 64;
    runs[7][1].bytes = 0;
    runs[8][1] = (struct fetch_run){UINT64_MAX, 2};
    runs[9][0].bytes = runs[9][1].bytes = (1ULL << 39) + 1;
    bytes[10] = one;
    bytes[11] = one + 1;
    for (uint32_t i = 0; i < WRONG; i++) {
        begin_lying();
        offer(1);
        pccl_stats before = stats_of(0);
        ask_for(50, heads[i], runs[i][0], runs[i][1], bytes[i]);
        cluster_run(&c, SECOND / 10);
        expect_refused(0, before, 1, 0);
        CHECK_EQ_INT(stats_of(0).transfers_served, 0);
        CHECK_EQ_INT(stats_of(0).transfer_sent_bytes, 0);
        end_lying();
    }
}

TEST(asks_of_a_class_or_of_more_runs_than_there_are_end_the_stream)
{
    struct fetch_head head = head_of(WIRE_FETCH_RUNS_MAX + 1);
    struct frame frame = {.type = FRAME_FETCH, .name = {.lane = 50}};
    for (int i = 0; i < 2; i++) {
        begin_lying();
        offer(1);
        wire_encode_fetch(&head, large_body);
        for (uint32_t k = 0; k < head.run_count; k++)
            wire_encode_fetch_run((struct fetch_run){0, 1}, k, large_body);
        pccl_stats before = stats_of(0);
        frame.step = i ? PCCL_PRIORITY_COUNT : 0;
        (void)tell(1, 0, frame, large_body, i ? ASK_BYTES - WIRE_FETCH_RUN_BYTES : ASK_BYTES);
        cluster_run(&c, SECOND / 10);
        expect_refused(0, before, 1, 0);
        CHECK_EQ_INT(stats_of(0).transfers_served, 0);
        end_lying();
        head.run_count--;
    }
}

/* It asks again and again for what does not come: 1024 are served at a time, the others are told that it is busy. */
TEST(so_many_asks_are_served_at_a_time)
{
    begin_lying();
    offer(0);
    for (uint32_t i = 0; i < 2000; i++)
        ask_for(50 + i, head_of(2), (struct fetch_run){0, 100}, (struct fetch_run){0, 100}, sizeof bodies[0]);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(stats_of(0).transfers_served, LIMIT_SERVED);
    CHECK_EQ_INT(stats_of(1).frames_stale, 2000 - LIMIT_SERVED);
    repent();
    for (uint32_t i = 0; i < 2000; i++)
        (void)tell(1, 0, (struct frame){.type = FRAME_DROP, .name = {.lane = 50 + i}}, NULL, 0);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(stats_of(0).transfers_served, 0);
    CHECK_EQ_INT(stats_of(0).frames_corrupt, 0);
    extend(0, BYTES);
    end_lying();
}

/* One number twice are two transfers, which one DROP ends. */
TEST(a_number_that_is_used_twice_ends_with_both)
{
    begin_lying();
    offer(0);
    for (int i = 0; i < 2; i++)
        ask_for(50, head_of(2), (struct fetch_run){0, BYTES}, (struct fetch_run){0, BYTES}, sizeof bodies[0]);
    cluster_run(&c, SECOND / 10);
    CHECK_EQ_INT(stats_of(0).transfers_served, 2);
    (void)tell(1, 0, (struct frame){.type = FRAME_DROP, .name = {.lane = 50}}, NULL, 0);
    cluster_run(&c, SECOND / 10);
    CHECK_EQ_INT(stats_of(0).transfers_served, 0);
    extend(0, BYTES);
    end_lying();
}

TEST_MAIN("transfer_hostile")
