/* link_meter.c - passive measurement of a link from its real traffic: bandwidth, loss, round-trip time; and the limits that it sets.
 *
 * Bandwidth is what arrived at the other side, over all streams, in one round trip, when for one before there had always been
 * more to send than the streams took, or more on its way than could arrive. Three figures of the last windows count: the best (pauses make
 * a link look slower than it is), what is usual, and for planners the median.
 *
 * On a long link that is known, the streams are held to it. Their pace: all together a little above the best, each with its part; now
 * and then much above it, to find a link that has become faster; but never much above what the link usually carries, since its best is
 * what others left it for a moment, where links share a bottleneck. And no more is given to them than fills the link twice, however many
 * they are: what is too much waits here and not in the queue before the bottleneck, where it would be lost. Streams that look for
 * bandwidth each for itself begin every op with a burst of several times what the link carries, overfill that queue, and wait. */
#include <stdlib.h>
#include <string.h>

#include "engine.h"

#define WINDOW_MIN_NS (25 * MILLISECOND)
#define PACE_FROM_RTT_US 5000u
/* A stream is told so often that it rests: more often than any connection looks for what it could see then (bbr: 10 s). */
#define REST_EVERY_NS (4000 * MILLISECOND)
#define AT_REST_BYTES 16384u

enum {
    KNOWN_AFTER_WINDOWS = 12,
    LATELY_WINDOWS = 4,
    PROBE_EVERY_WINDOWS = 8,     /* paced well above the best, and for a while after a window that was clearly better */
    PROBE_WINDOWS = 3,
    CRUISE_PERCENT = 103,        /* of the best */
    PROBE_PERCENT = 125,
    USUAL_PERCENT = 125,
    FLIGHT_PERCENT = 200,        /* of what the link usually carries in a round trip */
    LOOKS_PER_RTT = 64,
    PING_MEMORY = 256
};

/* A pace that differs by less than this part is not set anew. */
#define PACE_CHANGE_PART 32
#define CLEARLY_BETTER_PART 16
/* A segment may wait in each stream. */
#define SPARE_BYTES (256u << 10)

struct reading {
    uint64_t held_bytes, packets, packets_again;
    uint32_t rtt_us;
};

static struct reading read_streams(const struct link *l)
{
    struct reading r = {0};
    for (uint32_t i = 0; i < l->streams; i++) {
        struct stream_info info;
        if (!l->conns[i] || l->conns[i]->state != CONN_OPEN)
            continue;
        l->engine->ops->info(l->conns[i]->stream, &info);
        r.held_bytes += info.held_bytes;
        r.packets += info.packets;
        r.packets_again += info.packets_again;
        if (info.rtt_us && (!r.rtt_us || info.rtt_us < r.rtt_us))
            r.rtt_us = (uint32_t)info.rtt_us;
    }
    return r;
}

/* -- pace ---------------------------------------------------------------------------------------------------------- */

static int is_known(const struct link *l)
{
    return l->engine->ops->pace && l->rtt_us >= PACE_FROM_RTT_US && l->used && l->meter.windows >= KNOWN_AFTER_WINDOWS;
}

static uint64_t pace_of_all(const struct meter *m)
{
    uint32_t since = m->windows_since_better;
    int probe = since < PROBE_WINDOWS || since % PROBE_EVERY_WINDOWS == 0;
    uint64_t best = m->best_bytes_per_s * (probe ? PROBE_PERCENT : CRUISE_PERCENT) / 100;
    uint64_t usual = m->usual_bytes_per_s * USUAL_PERCENT / 100;
    return best < usual ? best : usual;
}

void meter_pace(struct link *l)
{
    struct meter *m = &l->meter;
    if (!is_known(l))
        return;
    uint64_t pace = pace_of_all(m) / l->used;
    uint64_t change = pace > m->pace ? pace - m->pace : m->pace - pace;
    if (change < m->pace / PACE_CHANGE_PART)
        return;
    m->pace = pace;
    for (uint32_t i = 0; i < l->streams; i++)
        if (l->conns[i] && l->conns[i]->state == CONN_OPEN)
            l->engine->ops->pace(l->conns[i]->stream, pace);
}

/* -- room -------------------------------------------------------------------------------------------------------- */

void meter_pong(struct link *l, uint32_t rtt_us)
{
    struct meter *m = &l->meter;
    m->ping_us += m->ping_us / PING_MEMORY;
    if (!m->ping_us || rtt_us < m->ping_us)
        m->ping_us = rtt_us;
}

void meter_look(struct link *l)
{
    struct meter *m = &l->meter;
    m->room_bytes = INT64_MAX;
    if (!is_known(l) || queues_empty(l))
        return;
    uint32_t rtt_us = m->ping_us > l->rtt_us ? m->ping_us : l->rtt_us;
    uint64_t fill = m->usual_bytes_per_s * rtt_us / 1000000 * FLIGHT_PERCENT / 100 + l->used * SPARE_BYTES;
    m->room_bytes = (int64_t)fill - (int64_t)read_streams(l).held_bytes;
    uint64_t pause_ns = l->rtt_us * 1000ULL / LOOKS_PER_RTT;
    l->look_at_ns = l->engine->now_ns + (pause_ns > MILLISECOND ? pause_ns : MILLISECOND);
    engine_wake_at(l->engine, l->look_at_ns);
}

/* -- bandwidth ----------------------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static uint64_t mean(const uint64_t *samples, uint32_t from, uint32_t to)
{
    uint64_t sum = 0;
    for (uint32_t i = from; i < to; i++)
        sum += samples[i % METER_SAMPLES];
    return sum / (to - from);
}

/* Usual is the mean without the worst quarter, or of late, if that is more. Planners hear the median: what the link carries in its
 * turn among those that share a bottleneck with it. */
static void summarize(struct meter *m)
{
    uint32_t count = m->windows < METER_SAMPLES ? m->windows : METER_SAMPLES;
    uint64_t sorted[METER_SAMPLES];
    memcpy(sorted, m->samples, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, by_value);
    m->best_bytes_per_s = sorted[count - 1];
    m->bytes_per_s = sorted[count / 2];
    m->usual_bytes_per_s = mean(sorted, count / 4, count);
    uint64_t lately = count < LATELY_WINDOWS ? 0 : mean(m->samples, m->windows - LATELY_WINDOWS, m->windows);
    if (lately > m->usual_bytes_per_s)
        m->usual_bytes_per_s = lately;
}

static void take_window(struct link *l, uint64_t bytes_per_s)
{
    struct meter *m = &l->meter;
    int better = bytes_per_s > m->best_bytes_per_s + m->best_bytes_per_s / CLEARLY_BETTER_PART;
    m->windows_since_better = better ? 0 : m->windows_since_better + 1;
    m->samples[m->windows++ % METER_SAMPLES] = bytes_per_s;
    summarize(m);
    meter_pace(l);
}

static uint64_t window_ns(const struct link *l)
{
    uint64_t rtt_ns = l->rtt_us * 1000ULL;
    return rtt_ns > WINDOW_MIN_NS ? rtt_ns : WINDOW_MIN_NS;
}

/* The window is over: it counts if it was measured in time and the link had always something to do. */
static void end_window(struct link *l, int saturated)
{
    struct meter *m = &l->meter;
    struct reading r = read_streams(l);
    uint64_t now_ns = l->engine->now_ns, held = r.held_bytes;
    uint64_t delivered = l->sent_bytes > held ? l->sent_bytes - held : 0;
    uint64_t bytes = delivered > m->window_delivered ? delivered - m->window_delivered : 0;
    int in_time = now_ns <= m->window_end_ns + window_ns(l);
    int busy = !m->window_gap || m->window_held > bytes + bytes / 4;
    if (m->window_begin_ns && m->window_streams == l->used && bytes && in_time && busy)
        take_window(l, (uint64_t)((unsigned __int128)bytes * 1000000000U / (now_ns - m->window_begin_ns)));
    int goes_on = in_time && (saturated || (busy && held > bytes));
    m->window_begin_ns = goes_on ? now_ns : 0;
    m->window_end_ns = goes_on ? now_ns + window_ns(l) : 0;
    m->window_delivered = delivered;
    m->window_held = held;
    m->window_streams = l->used;
    m->window_gap = !saturated;
}

void meter_sent(struct link *l, int saturated)
{
    struct meter *m = &l->meter;
    m->window_gap |= !saturated;
    if (saturated && !m->window_end_ns)
        m->window_end_ns = l->engine->now_ns + window_ns(l);
    if (m->window_end_ns && l->engine->now_ns >= m->window_end_ns)
        end_window(l, saturated);
}

/* -- the rest ------------------------------------------------------------------------------------------------------ */

void meter_rest(struct link *l)
{
    if (!l->engine->ops->rest || l->rtt_us < PACE_FROM_RTT_US)
        return;
    for (uint32_t i = 0; i < l->streams; i++) {
        struct conn *c = l->conns[i];
        struct stream_info info;
        if (!c || c->state != CONN_OPEN || l->engine->now_ns < c->rested_ns + REST_EVERY_NS)
            continue;
        l->engine->ops->info(c->stream, &info);
        if (info.held_bytes < AT_REST_BYTES && l->engine->ops->rest(c->stream))
            c->rested_ns = l->engine->now_ns;
    }
}

/* The median: what the path loses again and again, and not what an overfull queue lost once. */
static void add_loss(struct meter *m, uint64_t ppm)
{
    m->losses[m->loss_readings++ % METER_LOSSES] = ppm;
    uint32_t count = m->loss_readings < METER_LOSSES ? m->loss_readings : METER_LOSSES;
    uint64_t sorted[METER_LOSSES];
    memcpy(sorted, m->losses, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, by_value);
    m->loss_ppm = (uint32_t)sorted[count / 2];
}

void meter_ask(struct link *l)
{
    struct reading r = read_streams(l);
    if (r.rtt_us)
        l->rtt_us = r.rtt_us;
    struct meter *m = &l->meter;
    /* Streams come and go, and their counters with them: then this round tells nothing. */
    if (r.packets > m->packets + 100 && r.packets_again >= m->packets_again)
        add_loss(m, (r.packets_again - m->packets_again) * 1000000U / (r.packets - m->packets));
    m->packets = r.packets;
    m->packets_again = r.packets_again;
}
