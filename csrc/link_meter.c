/* link_meter.c - passive measurement of a link from its real traffic: bandwidth, round-trip time, loss (loss_meter.c);
 * and the limits that it sets.
 *
 * Bandwidth is what arrived at the other side, over all streams, in two round trips in which there had always been more to send
 * than the link was given. Three figures of the last readings count: what is usual, the best (pauses make a link look slower
 * than it is), and for planners the median.
 *
 * A long link is held to what was read. Its streams are paced, each to its part of a little more than is usual: left alone, streams
 * begin every op with a burst of several times what the link carries, overfill the queue before the bottleneck, and wait. One that has
 * less to send than those beside it on the line is paced by its share of that (line_share.c), and not read meanwhile. No more is
 * given to the streams than fills the link and a queue, a short one where only transfers are under way: what is too much waits here, where
 * it is not lost. A link begins with little and grows as long as each reading is clearly better; what was read meanwhile is then forgotten.
 *
 * An outage tells nothing about bandwidth, and neither does what streams carry while they get over it: readings far below what is usual
 * are dropped then, but so many only that a link that has become slow is soon known to be. */
#include <stdlib.h>
#include <string.h>

#include "engine.h"

#define WINDOW_MIN_NS (25 * MILLISECOND)
#define PACE_FROM_RTT_US 5000u
/* A stream is told so often that it rests: more often than any connection looks for what it could see then (bbr: 10 s). */
#define REST_EVERY_NS (200 * MILLISECOND)
#define AT_REST_BYTES 16384u

enum {
    LATELY_READINGS = 4,
    DOUBTED_READINGS = METER_SAMPLES,  /* low ones, that are dropped after an outage; what comes then is believed */
    DOUBTED_BELOW_PERCENT = 50,  /* of what is usual */
    FLAT_WINDOWS = 3,            /* not clearly better ones, after which a link is known */
    CLEARLY_BETTER_PERCENT = 112,
    OVERFLOW_PERCENT = 1,        /* of the packets sent again: then it has grown too far */
    GROWING_PERCENT = 225,       /* of the best: pace and flight while it grows, */
    PROBED_PERCENT = 125,        /* of one that only filler grows, and that may be known soon: an op would wait behind it */
    PACE_PERCENT = 125,          /* of what is usual: a stream makes up a little for one that waits for what was lost */
    NOISE_PERCENT = 150,         /* of what is usual: what is read up to there may be acknowledgements that came at once */
    LOOKS_PER_RTT = 16,          /* asking the transport is a system call for each stream */
    SETTLE_RTTS = 4,             /* until round trips show the queue that is kept */
    SHORT_QUEUE_PART = 4,        /* of a round trip, */
    CROWDED_QUEUES = 3,          /* which shows that others fill the queue where it is longer than so many make it */
    GROWTH_RTTS = 2,             /* with a short queue: as long as a reading, */
    GROWTH_PART = 8,             /* for one part in so many of the time, */
    GROWTH_PERCENT = 25,         /* by so much of a round trip more is on its way */
    PING_MEMORY = 256
};

/* A pace that differs by less than this part is not set anew. */
#define PACE_CHANGE_PART 32
/* What may wait in the sockets and before the bottleneck: a round trip's worth, but not more than queues usually hold. */
#define QUEUE_US_MAX 80000u
/* A segment may wait in each stream, as far as that is soon sent. */
#define SPARE_STREAM_BYTES (256u << 10)
#define SPARE_LEAST_BYTES (128u << 10)
#define SPARE_US 20000u
/* In place of both, with SPARE_LEAST_BYTES, where only transfers are under way: what is urgent among them waits behind that, and so does the
 * word that one is aborted. */
#define SHORT_QUEUE_US_MIN 7000u
/* So long it is not tried where others fill the queue, and twice as long each time that this proves true. */
#define CROWDED_NS_MIN (10000 * MILLISECOND)
#define CROWDED_NS_MAX (60000 * MILLISECOND)
/* Three times what goes in one round while nothing is known of the link: of such ops none shall wait for the acknowledgements of its own
 * beginning. */
#define FIRST_FLIGHT_BYTES (3u << 20)
#define FIRST_FILLER_BYTES (128u << 10)
#define LEAST_FLIGHT_BYTES (64u << 10)

struct reading {
    uint64_t held_bytes, packets, packets_again;
    uint32_t rtt_us, rtt_now_us;
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
        if (info.rtt_now_us && (!r.rtt_now_us || info.rtt_now_us < r.rtt_now_us))
            r.rtt_now_us = (uint32_t)info.rtt_now_us;
    }
    return r;
}

static uint64_t window_ns(const struct link *l)
{
    uint64_t rtt_ns = l->rtt_us * 1000ULL;
    return rtt_ns > WINDOW_MIN_NS ? rtt_ns : WINDOW_MIN_NS;
}

static uint64_t delivered_of(const struct link *l, const struct reading *r)
{
    return l->sent_bytes > r->held_bytes ? l->sent_bytes - r->held_bytes : 0;
}

uint64_t meter_delivered(const struct link *l)
{
    struct reading r = read_streams(l);
    return delivered_of(l, &r);
}

/* -- pace ---------------------------------------------------------------------------------------------------------- */

static int is_held(const struct link *l)
{
    return l->engine->ops->pace && l->rtt_us >= PACE_FROM_RTT_US && l->used;
}

static uint64_t bytes_in(uint64_t bytes_per_s, uint64_t ns)
{
    return (uint64_t)((unsigned __int128)bytes_per_s * ns / 1000000000U);
}

static uint64_t growing(const struct link *l)
{
    const struct meter *m = &l->meter;
    return m->best_bytes_per_s * (l->probe.bytes && m->flat_windows ? PROBED_PERCENT : GROWING_PERCENT) / 100;
}

static uint64_t first_flight(const struct link *l)
{
    return l->probe.bytes ? FIRST_FILLER_BYTES : FIRST_FLIGHT_BYTES;
}

static uint64_t least_pace(const struct link *l)
{
    return LEAST_FLIGHT_BYTES * 1000000ULL / l->rtt_us;
}

/* What is usual; or the best, where that is so much more that pauses, or others on the line, must have lowered what is usual. */
static uint64_t carried(const struct meter *m)
{
    return m->best_bytes_per_s > m->usual_bytes_per_s * NOISE_PERCENT / 100 ? m->best_bytes_per_s : m->usual_bytes_per_s;
}

/* Of the whole link. */
static uint64_t pace_of(const struct link *l)
{
    const struct meter *m = &l->meter;
    if (!m->known)
        return growing(l) + first_flight(l) * 1000000ULL / l->rtt_us;
    /* never next to nothing, which is all that is read while a link is dead */
    return carried(m) * PACE_PERCENT / 100 + least_pace(l);
}

/* The same, or the link's share of the line it is on. */
static uint64_t chosen_pace(struct link *l)
{
    uint64_t pace = pace_of(l), share = line_share(l);
    l->meter.held_back = l->meter.known && share < pace;
    if (!l->meter.held_back)
        return pace;
    return share > least_pace(l) ? share : least_pace(l);
}

void meter_pace(struct link *l)
{
    struct meter *m = &l->meter;
    if (!is_held(l) || !m->windows)
        return;
    uint64_t pace = chosen_pace(l) / l->used;
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

static uint32_t rtt_of(const struct link *l)
{
    return l->meter.ping_us > l->rtt_us ? l->meter.ping_us : l->rtt_us;
}

static uint32_t short_queue_us(const struct link *l)
{
    uint32_t part = rtt_of(l) / SHORT_QUEUE_PART;
    return part > SHORT_QUEUE_US_MIN ? part : SHORT_QUEUE_US_MIN;
}

/* Has it been read often enough, is there no op that wants it full, whatever happens on the way, and nobody else who fills it? */
static int wants_short_queue(const struct link *l)
{
    const struct meter *m = &l->meter;
    return m->known && m->windows >= METER_SAMPLES && l->transfers.busy && !l->engine->ops_first &&
           l->engine->now_ns >= m->crowded_until_ns;
}

/* Who keeps a short queue would have nothing of a line on which others keep a long one. Each time that it was tried in vain it is not tried for
 * twice as long. */
static void look_for_others(struct link *l, uint32_t rtt_now_us)
{
    struct meter *m = &l->meter;
    uint64_t now_ns = l->engine->now_ns, settle_ns = SETTLE_RTTS * (uint64_t)rtt_of(l) * 1000;
    if (!wants_short_queue(l)) {
        m->short_since_ns = 0;
        return;
    }
    if (!m->short_since_ns)
        m->short_since_ns = now_ns;
    if (!m->saturated_since_ns || now_ns < m->saturated_since_ns + settle_ns || now_ns < m->short_since_ns + settle_ns)
        return;
    if (rtt_now_us < rtt_of(l) + CROWDED_QUEUES * short_queue_us(l)) {
        m->crowded_ns = 0;
        return;
    }
    m->crowded_ns = m->crowded_ns ? 2 * m->crowded_ns : CROWDED_NS_MIN;
    m->crowded_ns = m->crowded_ns < CROWDED_NS_MAX ? m->crowded_ns : CROWDED_NS_MAX;
    m->crowded_until_ns = now_ns + m->crowded_ns;
}

/* What fills the link and no more would show it no faster than it was: so now and then there is more. */
static uint64_t short_flight(const struct link *l)
{
    uint64_t rtt_us = rtt_of(l), rounds = l->engine->now_ns / (GROWTH_RTTS * rtt_us * 1000);
    uint64_t growth_us = rounds % GROWTH_PART ? 0 : rtt_us * GROWTH_PERCENT / 100;
    return bytes_in(l->meter.best_bytes_per_s, (rtt_us + short_queue_us(l) + growth_us) * 1000) + SPARE_LEAST_BYTES;
}

/* What may be on its way, all in all. */
static uint64_t flight_of(const struct link *l)
{
    const struct meter *m = &l->meter;
    uint64_t rtt_us = rtt_of(l);
    if (!m->known)
        return bytes_in(growing(l), rtt_us * 1000) + first_flight(l);
    if (wants_short_queue(l))
        return short_flight(l);
    uint64_t queue_us = rtt_us < QUEUE_US_MAX ? rtt_us : QUEUE_US_MAX;
    uint64_t spare = l->used * SPARE_STREAM_BYTES, soon = bytes_in(m->usual_bytes_per_s, SPARE_US * 1000) + SPARE_LEAST_BYTES;
    return bytes_in(m->usual_bytes_per_s, (rtt_us + queue_us) * 1000) + (spare < soon ? spare : soon);
}

/* A stream on which nothing is on its way may do what would disturb later. */
static void rest_streams(struct link *l)
{
    for (uint32_t i = 0; i < l->streams && l->engine->ops->rest; i++) {
        struct conn *c = l->conns[i];
        struct stream_info info;
        if (!c || c->state != CONN_OPEN || l->engine->now_ns < c->rested_ns + REST_EVERY_NS)
            continue;
        l->engine->ops->info(c->stream, &info);
        if (info.held_bytes < AT_REST_BYTES && l->engine->ops->rest(c->stream))
            c->rested_ns = l->engine->now_ns;
    }
}

static void look_again_later(struct link *l)
{
    uint64_t pause_ns = l->rtt_us * 1000ULL / LOOKS_PER_RTT;
    l->look_at_ns = l->engine->now_ns + (pause_ns > MILLISECOND ? pause_ns : MILLISECOND);
    engine_wake_at(l->engine, l->look_at_ns);
}

/* Until the next look what is handed over takes from the room, and what arrives gives nothing to it. */
void meter_look(struct link *l)
{
    struct meter *m = &l->meter;
    if (!is_held(l) || !link_has_load(l)) {
        m->room_bytes = INT64_MAX;
        l->look_at_ns = NEVER;
        return;
    }
    if (l->look_at_ns != NEVER)
        return;
    rest_streams(l);
    struct reading r = read_streams(l);
    look_for_others(l, r.rtt_now_us);
    loss_count(&m->loss, l->engine->now_ns, window_ns(l), r.packets, r.packets_again);
    m->room_bytes = (int64_t)flight_of(l) - (int64_t)r.held_bytes;
    look_again_later(l);
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
 * turn among those that share a bottleneck with it; and nothing while it grows. */
static void summarize(struct meter *m)
{
    uint32_t count = m->windows < METER_SAMPLES ? m->windows : METER_SAMPLES;
    uint64_t sorted[METER_SAMPLES];
    memcpy(sorted, m->samples, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, by_value);
    m->best_bytes_per_s = sorted[count - 1];
    m->bytes_per_s = m->known ? sorted[count / 2] : 0;
    m->usual_bytes_per_s = mean(sorted, count / 4, count);
    uint64_t lately = count < LATELY_READINGS ? 0 : mean(m->samples, m->windows - LATELY_READINGS, m->windows);
    if (lately > m->usual_bytes_per_s)
        m->usual_bytes_per_s = lately;
}

/* What a link carried while its streams grew tells nothing: the last windows are all that is kept of that. */
static void become_known(struct meter *m)
{
    uint64_t last[FLAT_WINDOWS + 1];
    for (uint32_t i = 0; i <= FLAT_WINDOWS; i++)
        last[i] = m->samples[(m->windows - FLAT_WINDOWS - 1 + i) % METER_SAMPLES];
    memcpy(m->samples, last, sizeof last);
    m->windows = FLAT_WINDOWS + 1;
    m->known = 1;
}

/* It has gone on as long as the link was clearly better each time. */
static void look_for_end_of_growth(struct meter *m, int overflown)
{
    if (!m->known && m->windows > FLAT_WINDOWS && (overflown || m->flat_windows >= FLAT_WINDOWS))
        become_known(m);
}

/* Low, after an outage, and not for long yet. */
static int is_doubtful(struct meter *m, uint64_t bytes_per_s)
{
    if (!m->in_doubt)
        return 0;
    if (bytes_per_s < m->usual_bytes_per_s * DOUBTED_BELOW_PERCENT / 100)
        return m->doubted < DOUBTED_READINGS && ++m->doubted;
    m->in_doubt = 0;
    m->doubted = 0;
    return 0;
}

static void take_reading(struct link *l, uint64_t bytes_per_s, int overflown)
{
    struct meter *m = &l->meter;
    if (is_doubtful(m, bytes_per_s))
        return;
    m->flat_windows = bytes_per_s > m->best_bytes_per_s * CLEARLY_BETTER_PERCENT / 100 ? 0 : m->flat_windows + 1;
    m->samples[m->windows++ % METER_SAMPLES] = bytes_per_s;
    m->readings++;
    look_for_end_of_growth(m, overflown);
    summarize(m);
}

/* Acknowledgements that wait in the queues of the way back come late, and then all at once: a reading is of two windows. */
static void add_window(struct link *l, uint64_t bytes, uint64_t ns, int overflown)
{
    struct meter *m = &l->meter;
    if (m->last_ns)
        take_reading(l, (uint64_t)((unsigned __int128)(bytes + m->last_bytes) * 1000000000U / (ns + m->last_ns)), overflown);
    m->last_bytes = bytes;
    m->last_ns = ns;
}

/* Nothing was learned, except of a link that grows and always had more to send: it takes what there is. One that ran dry may carry any
 * amount: were it known by what little it was given, it would be paced at that, and short ops would never show it to be more. */
static void skip_window(struct meter *m)
{
    m->last_ns = 0;
    if (m->known || !m->windows)
        return;
    m->flat_windows += m->window_begin_ns != 0 && !m->window_gap;
    look_for_end_of_growth(m, 0);
    summarize(m);
}

/* The window is over: it counts if it was measured in time and the link had always something to do. */
static void end_window(struct link *l, int saturated)
{
    struct meter *m = &l->meter;
    struct reading r = read_streams(l);
    uint64_t now_ns = l->engine->now_ns;
    uint64_t delivered = delivered_of(l, &r);
    uint64_t bytes = delivered > m->window_delivered ? delivered - m->window_delivered : 0;
    int in_time = now_ns <= m->window_end_ns + window_ns(l);
    int same = m->window_streams == l->used && m->window_changes == l->stream_changes;
    if (m->known && m->window_begin_ns && (m->window_changes != l->stream_changes || (!bytes && !m->window_gap)))
        m->in_doubt = 1;
    if (m->window_begin_ns && same && bytes && in_time && !m->window_gap && !m->held_back)
        add_window(l, bytes, now_ns - m->window_begin_ns,
                   (r.packets_again - m->window_again) * 100 > (r.packets - m->window_packets) * OVERFLOW_PERCENT);
    else
        skip_window(m);
    meter_pace(l);
    int goes_on = in_time && saturated;
    m->window_begin_ns = goes_on ? now_ns : 0;
    m->window_end_ns = goes_on ? now_ns + window_ns(l) : 0;
    m->window_delivered = delivered;
    m->window_packets = r.packets;
    m->window_again = r.packets_again;
    m->window_streams = l->used;
    m->window_changes = l->stream_changes;
    m->window_gap = !saturated;
}

void meter_sent(struct link *l, int saturated)
{
    struct meter *m = &l->meter;
    m->window_gap |= !saturated;
    if (!saturated && m->held_back)
        meter_pace(l);
    if (!saturated)
        m->saturated_since_ns = 0;
    else if (!m->saturated_since_ns)
        m->saturated_since_ns = l->engine->now_ns;
    if (saturated && !m->window_end_ns)
        m->window_end_ns = l->engine->now_ns + window_ns(l);
    if (m->window_end_ns && l->engine->now_ns >= m->window_end_ns)
        end_window(l, saturated);
}

/* -- the rest ------------------------------------------------------------------------------------------------------ */

int meter_near(const struct link *l)
{
    uint32_t rtt_us = l->rtt_us ? l->rtt_us : read_streams(l).rtt_us;
    return rtt_us && rtt_us <= NEAR_RTT_US;
}

void meter_ask(struct link *l)
{
    struct reading r = read_streams(l);
    if (r.rtt_us)
        l->rtt_us = r.rtt_us;
    loss_count(&l->meter.loss, l->engine->now_ns, window_ns(l), r.packets, r.packets_again);
}
