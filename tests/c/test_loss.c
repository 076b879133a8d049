/* test_loss.c - what a path loses by chance is counted, what an overfull queue loses is not. */
#include "loss_meter.h"

#include "test.h"

enum { ROUND_NS = 80000000, ROUND = 3400 };

struct path {
    struct loss_meter meter;
    uint64_t now_ns, packets, again, seed;
};

/* One round more, in which each packet is lost with that chance, and a burst besides. */
static void send(struct path *p, uint32_t packets, uint32_t chance_ppm, uint32_t burst)
{
    p->now_ns += ROUND_NS;
    for (uint32_t i = 0; i < packets; i++)
        p->again += test_random(&p->seed) % 1000000 < chance_ppm;
    p->packets += packets;
    p->again += burst;
    loss_count(&p->meter, p->now_ns, ROUND_NS, p->packets, p->again);
}

static struct path begun(void)
{
    struct path p = {.seed = 7};
    send(&p, 0, 0, 0);
    return p;
}

static void check_about(const struct path *p, uint32_t ppm)
{
    CHECK(p->meter.is_known);
    CHECK(p->meter.ppm > ppm * 6 / 10 && p->meter.ppm < ppm * 14 / 10);
}

TEST(what_is_lost_by_chance_is_counted)
{
    static const uint32_t chances[] = {100, 1000, 10000, 50000};
    for (size_t i = 0; i < sizeof chances / sizeof *chances; i++) {
        struct path p = begun();
        for (int round = 0; round < LOSS_ROUNDS; round++)
            send(&p, ROUND, chances[i], 0);
        check_about(&p, chances[i]);
    }
}

TEST(what_an_overfull_queue_loses_is_not)
{
    struct path p = begun();
    for (int round = 0; round < 3 * LOSS_ROUNDS; round++) {
        static const uint32_t bursts[] = {270, 40, 3, 0, 0, 0, 0, 2, 110, 1, 0, 0}; /* seen, but for more rounds without any */
        send(&p, ROUND, 0, bursts[round % 12]);
        CHECK(!p.meter.is_known || p.meter.ppm < 30);
    }
    CHECK(p.meter.is_known);
    struct path clean = begun();
    for (int round = 0; round < LOSS_ROUNDS; round++)
        send(&clean, ROUND, 0, round < 5 ? 1700 : 0); /* while it grew */
    CHECK_EQ_INT(clean.meter.ppm, 0);
}

TEST(both_at_once_are_told_apart)
{
    static const uint32_t chances[] = {100, 1000, 10000};
    for (size_t i = 0; i < sizeof chances / sizeof *chances; i++) {
        struct path p = begun();
        for (int round = 0; round < LOSS_ROUNDS; round++)
            send(&p, ROUND, chances[i], round % 6 ? 0 : 400);
        check_about(&p, chances[i]);
    }
}

TEST(where_bursts_are_usual_they_are_what_the_path_is_like)
{
    struct path p = begun();
    for (int round = 0; round < LOSS_ROUNDS; round++)
        send(&p, ROUND, 0, round % 4 ? 34 : 0);
    check_about(&p, 7500);
}

TEST(few_packets_tell_nothing_and_rounds_wait_for_more)
{
    struct path p = begun();
    for (int round = 0; round < 5; round++)
        send(&p, ROUND, 1000, 0);
    CHECK(!p.meter.is_known);
    struct path slow = begun();
    for (int round = 0; round < 18 * LOSS_ROUNDS; round++)
        send(&slow, 60, 10000, 0);
    CHECK_EQ_INT(slow.meter.rounds, LOSS_ROUNDS);
    check_about(&slow, 10000);
}

TEST(rounds_last_long_enough)
{
    struct path p = begun();
    for (int look = 0; look < 64; look++) {
        p.now_ns += ROUND_NS / 64;
        p.packets += ROUND;
        loss_count(&p.meter, p.now_ns, ROUND_NS, p.packets, p.again);
    }
    CHECK_EQ_INT(p.meter.rounds, 1);
}

TEST(streams_that_come_and_go_are_no_losses)
{
    struct path p = begun();
    for (int round = 0; round < LOSS_ROUNDS; round++) {
        send(&p, ROUND, 0, 0);
        if (round % 3 == 0) {
            p.packets = p.again = 0;
            send(&p, 0, 0, 0);
        }
    }
    CHECK(p.meter.is_known);
    CHECK_EQ_INT(p.meter.ppm, 0);
    CHECK_EQ_INT(p.meter.rounds, LOSS_ROUNDS);
}

TEST_MAIN("loss")
