/* test_transfer.c - transfers over the simulated network: what arrives, how each of them ends, and that nothing is touched afterwards. */
#include "transfers.h"

/* -- what arrives ----------------------------------------------------------------------------------------------------- */

TEST(a_region_is_fetched)
{
    begin();
    offer(1);
    fetch_all(1);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(1), PCCL_OK);
    CHECK_EQ_BYTES(target, source, BYTES);
    CHECK_EQ_INT(fetched(1)->received_bytes, BYTES);
    CHECK_EQ_INT(fetched(1)->span_count, BYTES);
    CHECK(fetched(1)->duration_ns >= 2 * MS && peer_id_compare(&fetched(1)->peer, &(pccl_peer_id[]){node_id(0)}[0]) == 0);
    CHECK_EQ_INT(stats_of(0).transfer_sent_bytes, BYTES);
    CHECK_EQ_INT(stats_of(1).transfer_received_bytes, BYTES);
    CHECK_EQ_INT(withdrawn(0, 70), -1);
    expect_nothing_left();
    cluster_close(&c);
}

TEST(a_watched_region_tells_who_fetches)
{
    begin();
    pccl_region region = {.size = sizeof region, .generation = 7, .data = source, .bytes = BYTES, .token = 70, .watched = 1};
    memcpy(region.key, key, sizeof region.key);
    CHECK_EQ_INT(pccl_engine_offer(c.engines[0], &region, 0), PCCL_OK);
    c.wake_ns[0] = 0;
    fetch_all(1);
    cluster_run(&c, SECOND);
    const pccl_event *asked = cluster_event(&c, 0, PCCL_EVENT_ASKED, 70);
    CHECK(asked && peer_id_compare(&asked->peer, &(pccl_peer_id[]){node_id(1)}[0]) == 0);
    CHECK_EQ_INT(status_of(1), -1);
    extend(0, BYTES);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(1), PCCL_OK);
    cluster_close(&c);
}

/* Runs of all sizes in any order, to places of any order: what was asked for is there, and what lies between is as it was. */
TEST(many_runs_are_scattered)
{
    static pccl_fetch_run runs[4096];
    static uint8_t expected[sizeof target];
    for (uint64_t seed = 1; seed <= 6; seed++) {
        uint64_t state = seed, total = 0, at = 0;
        begin_with("sim", seed, seed % 2 ? 1024 : 64 << 10);
        memcpy(expected, target, sizeof target);
        uint32_t n = 0;
        for (; n < 4096; n++) {
            uint64_t bytes = test_random(&state) % 10 ? 1 + test_random(&state) % 300 : 1 + test_random(&state) % 5000;
            at += test_random(&state) % 3;
            if (at + bytes > sizeof target)
                break;
            runs[n] = (pccl_fetch_run){test_random(&state) % (BYTES - bytes), bytes, target + at};
            memcpy(expected + at, source + runs[n].offset, bytes);
            at += bytes;
            total += bytes;
        }
        CHECK(n > 2000);
        offer(1);
        fetch_runs(runs, n, 1);
        cluster_run(&c, 3 * SECOND);
        CHECK_EQ_INT(status_of(1), PCCL_OK);
        CHECK_EQ_BYTES(target, expected, sizeof target);
        CHECK_EQ_INT(fetched(1) ? fetched(1)->received_bytes : 0, total);
        expect_nothing_left();
        cluster_close(&c);
    }
}

/* 1 MiB in so many runs, backwards, takes so many frames. */
static void expect_frames(uint32_t count, uint32_t segment_bytes, uint32_t frames)
{
    static pccl_fetch_run runs[256];
    uint32_t bytes = BYTES / count;
    begin_with("sim", 1, segment_bytes);
    offer(1);
    cluster_run(&c, SECOND);
    uint32_t before = c.engines[0]->links->send_next;
    for (uint32_t i = 0; i < count; i++)
        runs[i] = (pccl_fetch_run){(uint64_t)(count - 1 - i) * bytes, bytes, target + (count - 1 - i) * bytes};
    fetch_runs(runs, count, 1);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(1), PCCL_OK);
    CHECK_EQ_BYTES(target, source, BYTES);
    CHECK_EQ_INT(c.engines[0]->links->send_next - before, frames);
    cluster_close(&c);
}

TEST(runs_share_frames)
{
    expect_frames(256, 64 << 10, 16);
    expect_frames(16, 256 << 10, 4);
    expect_frames(8, 256 << 10, 4); /* half a segment each */
    expect_frames(4, 256 << 10, 4);
}

TEST(many_fetches_wait_their_turn)
{
    begin_with("sim", 1, 1024);
    offer(1);
    for (uint32_t i = 0; i < 2048; i++)
        fetch_part(i * 512, 512, (pccl_priority)(i % 3), 0, 1 + i);
    cluster_run(&c, 5 * SECOND);
    for (uint32_t i = 0; i < 2048; i++)
        CHECK_EQ_INT(status_of(1 + i), PCCL_OK);
    CHECK_EQ_BYTES(target, source, BYTES);
    expect_nothing_left();
    cluster_close(&c);
}

/* -- regions that come bit by bit ---------------------------------------------------------------------------------------- */

TEST(a_fetch_waits_for_what_is_not_there_yet)
{
    begin();
    offer(0);
    fetch_all(1);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(stats_of(0).transfer_sent_bytes, 0);
    extend(64 << 10, BYTES / 2);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(stats_of(0).transfer_sent_bytes, 0);
    extend(0, 64 << 10);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(stats_of(0).transfer_sent_bytes, (64 << 10) + BYTES / 2);
    CHECK_EQ_BYTES(target, source, (64 << 10) + BYTES / 2);
    CHECK_EQ_INT(status_of(1), -1);
    extend(BYTES / 2, UINT64_MAX);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(1), PCCL_OK);
    CHECK_EQ_BYTES(target, source, BYTES);
    expect_nothing_left();
    cluster_close(&c);
}

TEST(parts_come_in_any_order)
{
    begin_with("sim", 3, 1024);
    offer(0);
    fetch_all(1);
    for (uint32_t i = 0; i < 256; i++) {
        extend((i * 37 % 256) * 4096 + 4000, 4096);   /* each overlaps, or meets, its neighbours; the last leads beyond the end */
        if (i % 16 == 0)
            cluster_run(&c, MS);
    }
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(1), -1);
    extend(0, 4000);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(1), PCCL_OK);
    CHECK_EQ_BYTES(target, source, BYTES);
    CHECK(c.engines[0]->transfers.region_count == 1);
    cluster_close(&c);
}

/* Node 1 hands on to node 2 what it has, while it is still being fetched from node 0. */
TEST(a_relay_cuts_through)
{
    static uint8_t last[BYTES];
    fill();
    cluster_open(&c, 3, 1, "sim", 0);
    c.segment_bytes = 16 << 10;
    cluster_epoch(&c, 1, 0, 0, 7, ~0u, NULL, 0);
    cluster_run(&c, SECOND / 10);
    offer(1);
    offer_of(1, key, 7, target, BYTES, 0, 71);
    pccl_fetch_run whole = {0, BYTES, last};
    pccl_fetch_request r = request_of(&whole, 1, 9);
    r.peer = node_id(1);
    CHECK_EQ_INT(pccl_engine_fetch(c.engines[2], &r), PCCL_OK);
    for (uint32_t i = 0; i < 4; i++) {
        fetch_part(i * BYTES / 4, BYTES / 4, NORMAL, 0, 1 + i);
        cluster_run(&c, SECOND / 10);
        CHECK_EQ_INT(status_of(1 + i), PCCL_OK);
        CHECK_EQ_INT(pccl_engine_extend(c.engines[1], key, 7, i * BYTES / 4, BYTES / 4), PCCL_OK);
        cluster_run(&c, SECOND / 10);
        CHECK_EQ_INT(stats_of(2).transfer_received_bytes, (i + 1) * BYTES / 4);
    }
    const pccl_event *e = cluster_event(&c, 2, PCCL_EVENT_FETCH, 9);
    CHECK(e && e->status == PCCL_OK);
    CHECK_EQ_BYTES(last, source, BYTES);
    cluster_close(&c);
}

/* -- ends ------------------------------------------------------------------------------------------------------------- */

TEST(what_is_not_offered_is_gone)
{
    begin();
    offer(1);
    pccl_fetch_run runs[] = {{0, 100, target}, {BYTES - 10, 11, target + 100}, {UINT64_MAX - 20, 10, target + 200}};
    fetch_runs(runs, 2, 1);
    fetch_runs(runs + 2, 1, 2);
    pccl_fetch_request r = request_of(runs, 1, 3);
    r.generation = 8;
    send_request(&r);
    r = request_of(runs, 1, 4);
    memcpy(r.key, "another region..", sizeof r.key);
    send_request(&r);
    cluster_run(&c, SECOND);
    for (uint64_t token = 1; token <= 4; token++)
        CHECK_EQ_INT(status_of(token), PCCL_EGONE);
    CHECK_EQ_INT(fetched(1)->received_bytes, 0);
    expect_nothing_left();
    cluster_close(&c);
}

/* Whoever has heard of an offer, by whatever way, finds it: what was offered before a request is looked at is there, though the request
 * has come while the engine had no turn. */
TEST(an_offer_is_there_before_the_request_that_was_made_for_it)
{
    begin();
    c.stopped[0] = 1;
    fetch_all(1);
    cluster_run(&c, SECOND / 10);
    offer(1);
    c.stopped[0] = 0;
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(1), PCCL_OK);
    CHECK_EQ_BYTES(target, source, BYTES);
    expect_nothing_left();
    cluster_close(&c);
}

/* The memory is freed the moment the engine says so: ASan sees who still reads it. */
TEST(a_withdrawn_region_is_not_read_any_more)
{
    for (uint64_t after_ns = MS / 2; after_ns < 40 * MS; after_ns += 3 * MS) {
        static pccl_fetch_run runs[1000];
        begin_with("sim", after_ns, 4096);
        set_paths(2 * MS, 20000000);
        uint8_t *memory = malloc(BYTES);
        memcpy(memory, source, BYTES);
        offer_of(0, key, 7, memory, BYTES, 1, 70);
        fetch_all(1);
        for (uint32_t i = 0; i < 1000; i++)
            runs[i] = (pccl_fetch_run){i * 512, 500, target + BYTES + i * 500};
        fetch_runs(runs, 1000, 2);
        cluster_run(&c, after_ns);
        withdraw();
        (void)pccl_engine_step(c.engines[0], c.now_ns);
        pccl_event events[8];
        CHECK(pccl_engine_events(c.engines[0], events, 8) == 1 && events[0].kind == PCCL_EVENT_WITHDRAWN &&
              events[0].status == PCCL_OK && events[0].token == 70);
        memset(memory, 0, BYTES);
        free(memory);
        cluster_run(&c, 2 * SECOND);
        CHECK_EQ_INT(status_of(1), PCCL_EGONE);
        CHECK(status_of(2) == PCCL_EGONE || status_of(2) == PCCL_OK);
        CHECK_EQ_BYTES(target, source, fetched(1)->span_count);
        CHECK(fetched(1)->span_count <= fetched(1)->received_bytes && fetched(1)->received_bytes < BYTES);
        fetch_all(3);
        cluster_run(&c, SECOND);
        CHECK_EQ_INT(status_of(3), PCCL_EGONE);
        expect_nothing_left();
        cluster_close(&c);
    }
}

TEST(a_region_can_be_offered_once_at_a_time)
{
    begin();
    offer(1);
    offer_of(0, key, 7, source, BYTES, 1, 71);
    offer_of(0, key, 8, source, 10, 1, 72);
    cluster_run(&c, MS);
    CHECK_EQ_INT(withdrawn(0, 71), PCCL_EINVAL);
    CHECK_EQ_INT(withdrawn(0, 72), -1);
    withdraw();
    withdraw();
    cluster_run(&c, MS);
    CHECK_EQ_INT(withdrawn(0, 70), PCCL_OK);
    offer_of(0, key, 7, source, BYTES, 1, 73);
    fetch_all(1);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(1), PCCL_OK);
    cluster_close(&c);
}

/* The targets are freed the moment the engine says so. */
static void expect_no_write_after_end(int by_deadline, uint64_t after_ns)
{
    static pccl_fetch_run runs[500];
    begin_with("sim", after_ns, 4096);
    set_paths(2 * MS, 20000000);
    uint8_t *memory = malloc(BYTES);
    offer(1);
    for (uint32_t i = 0; i < 500; i++)
        runs[i] = (pccl_fetch_run){i * 512, 500, memory + i * 500};
    pccl_fetch_request small = request_of(runs, 500, 1);
    pccl_fetch_run rest = {BYTES / 2, BYTES / 2, memory + BYTES / 2};
    pccl_fetch_request large = request_of(&rest, 1, 2);
    small.deadline_ns = large.deadline_ns = by_deadline ? c.now_ns + after_ns : 0;
    send_request(&large);
    send_request(&small);
    cluster_run(&c, after_ns);
    for (uint64_t token = 1; token <= 2 && !by_deadline; token++)
        CHECK_EQ_INT(pccl_engine_cancel_fetch(c.engines[1], token), PCCL_OK);
    (void)pccl_engine_step(c.engines[1], c.now_ns);
    c.event_count[1] += (uint32_t)pccl_engine_events(c.engines[1], c.events[1] + c.event_count[1], 16);
    CHECK_EQ_INT(status_of(2), by_deadline ? PCCL_ETIMEOUT : PCCL_ECANCELLED);
    CHECK(status_of(1) == PCCL_OK || status_of(1) == status_of(2));
    free(memory);
    cluster_run(&c, 2 * SECOND);
    expect_nothing_left();
    fetch_all(3);
    cluster_run(&c, 2 * SECOND);
    CHECK_EQ_INT(status_of(3), PCCL_OK);
    cluster_close(&c);
}

TEST(a_cancelled_fetch_writes_nothing_any_more)
{
    for (uint64_t after_ns = 1; after_ns < 30 * MS; after_ns += 2 * MS)
        expect_no_write_after_end(0, after_ns);
}

TEST(an_overdue_fetch_writes_nothing_any_more)
{
    for (uint64_t after_ns = 1; after_ns < 30 * MS; after_ns += 3 * MS)
        expect_no_write_after_end(1, after_ns);
}

TEST(a_cancelled_fetch_is_dropped_at_the_other_side)
{
    begin();
    offer(0);
    fetch_all(1);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(stats_of(0).transfers_served, 1);
    CHECK_EQ_INT(pccl_engine_cancel_fetch(c.engines[1], 1), PCCL_OK);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(1), PCCL_ECANCELLED);
    expect_nothing_left();
    extend(0, BYTES);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(stats_of(0).transfer_sent_bytes, 0);
    cluster_close(&c);
}

/* Cancelled in the same breath: nothing of it reaches the other side. */
TEST(a_fetch_that_was_never_sent_leaves_no_trace)
{
    begin();
    offer(0);
    fetch_all(1);
    CHECK_EQ_INT(pccl_engine_cancel_fetch(c.engines[1], 1), PCCL_OK);
    CHECK_EQ_INT(pccl_engine_cancel_fetch(c.engines[1], 99), PCCL_OK);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(1), PCCL_ECANCELLED);
    expect_nothing_left();
    cluster_close(&c);
}

/* The path is cut, or the other side's process does not run: the deadline is kept to the millisecond. */
TEST(a_deadline_is_kept_whatever_the_other_side_does)
{
    for (int frozen = 0; frozen < 2; frozen++) {
        begin();
        set_paths(2 * MS, 10000000);
        offer(1);
        fetch_part(0, BYTES, NORMAL, c.now_ns + SECOND / 2, 1);
        cluster_run(&c, SECOND / 20);
        if (frozen)
            c.stopped[0] = 1;
        else
            cluster_cut(&c, 0, 1);
        cluster_run(&c, SECOND);
        CHECK_EQ_INT(status_of(1), PCCL_ETIMEOUT);
        CHECK(fetched(1) && fetched(1)->duration_ns >= SECOND / 2 && fetched(1)->duration_ns < SECOND / 2 + MS);
        CHECK(fetched(1) && fetched(1)->received_bytes > 0 && fetched(1)->received_bytes < BYTES);
        c.stopped[0] = 0;
        set_paths(2 * MS, 0);
        cluster_run(&c, 10 * SECOND);
        expect_nothing_left();
        cluster_close(&c);
    }
}

TEST(who_has_no_link_is_told_so)
{
    begin();
    pccl_fetch_run run = {0, 10, target};
    pccl_fetch_request r = request_of(&run, 1, 1);
    r.peer = node_id(5);
    send_request(&r);
    cluster_run(&c, MS);
    CHECK_EQ_INT(status_of(1), PCCL_EPEER);
    cluster_close(&c);
}

/* Node 0 is out of the group in the next epoch. */
TEST(a_closed_link_ends_its_fetches)
{
    begin();
    offer(0);
    fetch_all(1);
    cluster_run(&c, SECOND / 10);
    CHECK(pccl_engine_freeze(c.engines[1], 1) == PCCL_OK);
    cluster_epoch(&c, 2, 1, 0, 2, ~0u, NULL, 0);
    cluster_run(&c, SECOND / 10);
    CHECK_EQ_INT(status_of(1), PCCL_EPEER);
    CHECK_EQ_INT(stats_of(1).transfers_pending, 0);
    cluster_close(&c);
}

TEST(a_closed_engine_ends_everything)
{
    begin();
    offer(1);
    fetch_all(1);
    offer_of(1, key, 7, source, 10, 1, 71);
    cluster_step_all(&c);
    for (uint32_t i = 0; i < 2; i++)
        engine_shutdown(c.engines[i]);
    offer_of(1, key, 9, source, 10, 1, 72);
    fetch_all(2);
    engine_commands(c.engines[1]);
    for (uint32_t i = 0; i < 2; i++)
        c.event_count[i] += (uint32_t)pccl_engine_events(c.engines[i], c.events[i] + c.event_count[i], 16);
    CHECK_EQ_INT(status_of(1), PCCL_ECLOSED);
    CHECK_EQ_INT(status_of(2), PCCL_ECLOSED);
    CHECK_EQ_INT(withdrawn(0, 70), PCCL_ECLOSED);
    CHECK_EQ_INT(withdrawn(1, 71), PCCL_ECLOSED);
    CHECK_EQ_INT(withdrawn(1, 72), PCCL_ECLOSED);
    cluster_close(&c);
}

/* Its offers are not withdrawn, it is gone: that is what fetches end with, once the word is out. */
TEST(who_fetches_from_a_closed_engine_hears_that_the_peer_is_lost)
{
    begin();
    offer(0);
    fetch_all(1);
    cluster_run(&c, SECOND / 10);
    engine_shutdown(c.engines[0]);
    c.stopped[0] = 1;
    cluster_run(&c, SECOND / 10);
    CHECK_EQ_INT(stats_of(1).transfers_pending, 1);
    CHECK(pccl_engine_freeze(c.engines[1], 1) == PCCL_OK);
    cluster_epoch(&c, 2, 1, 0, 2, ~0u, NULL, 0);
    cluster_run(&c, SECOND / 10);
    CHECK_EQ_INT(status_of(1), PCCL_EPEER);
    cluster_close(&c);
}

TEST(bad_requests_are_refused_at_once)
{
    begin();
    pccl_fetch_run runs[] = {{0, 10, target}, {0, 0, target}};
    pccl_fetch_request good = request_of(runs, 1, 1), bad[6];
    for (int i = 0; i < 6; i++)
        bad[i] = good;
    bad[0].size--;
    bad[1].run_count = 0;
    bad[2].run_count = 4097;
    bad[3].run_count = 2;
    bad[4].priority = PCCL_PRIORITY_COUNT;
    bad[5].peer = node_id(1);
    for (int i = 0; i < 6; i++)
        CHECK_EQ_INT(pccl_engine_fetch(c.engines[1], &bad[i]), PCCL_EINVAL);
    pccl_region region = {.size = sizeof region, .data = source};
    CHECK_EQ_INT(pccl_engine_offer(c.engines[0], &region, 1), PCCL_EINVAL);
    CHECK_EQ_INT(pccl_engine_limit(c.engines[0], 3, 1), PCCL_EINVAL);
    pccl_member self = {.id = node_id(0)};
    CHECK_EQ_INT(pccl_engine_acquaint(c.engines[0], &self, 1), PCCL_EINVAL);
    CHECK_EQ_INT(pccl_engine_acquaint(c.engines[1], &self, 0), PCCL_EINVAL);
    cluster_run(&c, MS);
    CHECK_EQ_INT(c.event_count[1], 1);  /* LINK_UP */
    cluster_close(&c);
}

/* -- streams that die, epochs that change ---------------------------------------------------------------------------------- */

TEST(streams_that_die_cost_nothing)
{
    begin();
    set_paths(2 * MS, 20000000);
    offer(1);
    fetch_all(1);
    for (uint32_t i = 0; i < 10; i++) {
        cluster_run(&c, 5 * MS);
        (void)pccl_sim_reset(c.sim, 0, 1, i);
        if (i == 5)
            (void)pccl_sim_reset(c.sim, 0, 1, 0);   /* both at once */
    }
    cluster_run(&c, 3 * SECOND);
    CHECK_EQ_INT(status_of(1), PCCL_OK);
    CHECK_EQ_BYTES(target, source, BYTES);
    CHECK(stats_of(0).frames_resent > 0);
    expect_nothing_left();
    cluster_close(&c);
}

TEST(a_bad_network_changes_nothing)
{
    static pccl_fetch_run runs[512];
    for (uint64_t seed = 1; seed <= 20; seed++) {
        begin_with(seed % 2 ? "sim" : "faulty+sim", seed, 2048);
        pccl_sim_path path = {.delay_ns = 2 * MS, .jitter_ns = MS, .reset_ppm = 2000, .corrupt_ppm = 2000, .duplicate_ppm = 0};
        CHECK(pccl_sim_set_path(c.sim, 0, 1, &path) == PCCL_OK && pccl_sim_set_path(c.sim, 1, 0, &path) == PCCL_OK);
        offer(0);
        for (uint32_t i = 0; i < 512; i++)
            runs[i] = (pccl_fetch_run){i * 600, 600, target + BYTES + i * 600};
        fetch_all(1);
        fetch_runs(runs, 512, 2);
        for (uint32_t i = 0; i < 16; i++) {
            extend(i * BYTES / 16, BYTES / 16);
            cluster_run(&c, 5 * MS);
        }
        cluster_run(&c, 60 * SECOND);
        CHECK_EQ_INT(status_of(1), PCCL_OK);
        CHECK_EQ_INT(status_of(2), PCCL_OK);
        CHECK_EQ_BYTES(target, source, BYTES);
        CHECK_EQ_BYTES(target + BYTES, source, 512 * 600);
        expect_nothing_left();
        cluster_close(&c);
    }
}

/* Growth, freeze and change while a fetch is under way: it does not notice. */
TEST(transfers_belong_to_no_epoch)
{
    begin();
    set_paths(2 * MS, 10000000);
    offer(1);
    fetch_all(1);
    cluster_run(&c, 20 * MS);
    cluster_epoch(&c, 2, 0, 1, 3, ~0u, NULL, 0);
    cluster_run(&c, 20 * MS);
    uint64_t before = stats_of(1).transfer_received_bytes;
    for (uint32_t i = 0; i < 2; i++)
        CHECK(pccl_engine_freeze(c.engines[i], 1) == PCCL_OK);
    cluster_run(&c, 20 * MS);
    CHECK(stats_of(1).transfer_received_bytes > before + 100000);
    cluster_epoch(&c, 3, 1, 0, 3, ~0u, NULL, 0);
    cluster_run(&c, SECOND);
    CHECK_EQ_INT(status_of(1), PCCL_OK);
    CHECK_EQ_BYTES(target, source, BYTES);
    cluster_close(&c);
}

/* Memory that is written to while it is fetched: every frame is one that its checksum fits, first or sent again, whatever is in it, so no
 * stream is lost to it; what was not written to arrives as it is. */
TEST(a_region_that_changes_breaks_no_stream)
{
    uint64_t state = 11;
    pccl_region region = {.size = sizeof region, .generation = 7, .data = source, .bytes = BYTES, .token = 70, .changes = 1};
    begin_with("sim", 3, 64 << 10);
    set_paths(2 * MS, 10000000);
    memcpy(region.key, key, sizeof key);
    CHECK_EQ_INT(pccl_engine_offer(c.engines[0], &region, 1), PCCL_OK);
    pccl_fetch_run runs[] = {{0, BYTES / 2, target}, {BYTES / 2, 3000, target + BYTES}, {BYTES / 2 + 3000, 3000, target + BYTES + 3000},
                             {BYTES / 2 + 6000, BYTES / 2 - 6000, target + BYTES / 2 + 6000}};
    fetch_runs(runs, 4, 1);
    for (uint32_t i = 0; i < 4000 && status_of(1) == -1; i++) {
        if (i == 300 || i == 350)
            CHECK_EQ_INT(pccl_engine_kill_stream(c.engines[0], &(pccl_peer_id[]){node_id(1)}[0], i == 300), PCCL_OK);
        source[test_random(&state) % (BYTES / 4)] ^= 0x55;
        source[BYTES / 2 + test_random(&state) % 3000] ^= 0x55;
        cluster_run(&c, MS / 10);
    }
    cluster_run(&c, SECOND / 10);
    CHECK_EQ_INT(status_of(1), PCCL_OK);
    CHECK_EQ_INT(stats_of(1).frames_corrupt, 0);
    CHECK(stats_of(0).frames_resent > 0);
    CHECK(memcmp(target, source, BYTES / 4) != 0);
    CHECK_EQ_BYTES(target + BYTES / 4, source + BYTES / 4, BYTES / 4);
    CHECK_EQ_BYTES(target + BYTES + 3000, source + BYTES / 2 + 3000, 3000);
    CHECK_EQ_BYTES(target + BYTES / 2 + 6000, source + BYTES / 2 + 6000, BYTES / 2 - 6000);
    expect_nothing_left();
    cluster_close(&c);
}

TEST_MAIN("transfer")
