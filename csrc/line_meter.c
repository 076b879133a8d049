/* line_meter.c - decides whether this peer's long links have a line in common that holds them back, and what it carries.
 *
 * In windows of at least three round trips. A line shows when several links that have always more to send carry clearly less
 * together than each has been seen to carry by itself; but so they do if other peers' lines hold them back. What tells it is that
 * whichever of them contend, they carry the same together, and nothing that goes out is ever more. Once that is known, it holds as
 * long as nothing speaks against it. What comes in can be any part of what the line could carry, and what was lost on the way comes
 * with all that waited for it, as a burst: the median is a lower bound. */
#include <stdlib.h>
#include <string.h>

#include "engine.h"

#define WINDOW_MIN_NS (250 * MILLISECOND)
#define LONG_RTT_US 1000u

enum {
    WINDOW_RTTS = 3,
    LINKS_MIN = 2,
    PART_PERCENT = 10,         /* of the total: who carries less does not count */
    HELD_BACK_PERCENT = 150,   /* of the line: so much would the links carry if nothing were shared */
    CEILING_PERCENT = 125,     /* of the line: what is read may be so much better than it is, in bursts of acknowledgements */
    PROOFS_MIN = 4,
    REFUTED_PERCENT = 120      /* of a line that is known, on top: so much more must have gone out to refute it */
};

/* -- what a window tells ------------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void add_total(struct line_totals *t, uint64_t total)
{
    t->totals[t->count++ % LINE_TOTALS] = total;
}

/* The best total of late but one, which may be a burst. */
static uint64_t peak(const struct line_totals *t)
{
    uint32_t count = t->count < LINE_TOTALS ? t->count : LINE_TOTALS;
    uint64_t best = 0, second = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t total = t->totals[i];
        if (total >= best) {
            second = best;
            best = total;
        } else if (total > second) {
            second = total;
        }
    }
    return second;
}

/* By more than noise. */
static int is_below(uint64_t line, uint64_t seen)
{
    return line * CEILING_PERCENT / 100 < seen;
}

struct sums {
    uint64_t sent, received, best_bytes_per_s;
    uint64_t best_of_one;      /* of those that count */
    uint32_t links;            /* that count: saturated, with a part of the whole */
};

static struct sums sums_of(const struct line_share *shares, uint32_t count)
{
    struct sums s = {0};
    for (uint32_t i = 0; i < count; i++) {
        s.sent += shares[i].sent_bytes;
        s.received += shares[i].received_bytes;
    }
    int all_saturated = 1;
    for (uint32_t i = 0; i < count; i++) {
        if (shares[i].sent_bytes * 100 < s.sent * PART_PERCENT)
            continue;
        all_saturated &= shares[i].saturated;
        s.links++;
        s.best_bytes_per_s += shares[i].best_bytes_per_s;
        if (shares[i].best_bytes_per_s > s.best_of_one)
            s.best_of_one = shares[i].best_bytes_per_s;
    }
    s.links = all_saturated ? s.links : 0;
    return s;
}

static uint64_t quantile(const uint64_t *values, uint32_t count, uint32_t quarters)
{
    uint64_t sorted[LINE_TOTALS] = {0};
    memcpy(sorted, values, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, by_value);
    return sorted[count * quarters / 4];
}

/* Compared with the line, not with the window's own total: where everything stood still for a while, that is low whatever links share. And
 * they look up to 1.4 times as good as they are, by acknowledgements that waited and come at once. */
static uint32_t proofs_of(const struct line_meter *m, uint64_t line)
{
    uint32_t proofs = 0;
    for (uint32_t i = 0; i < LINE_SAMPLES; i++)
        proofs += m->bests[i] >= line * HELD_BACK_PERCENT / 100;
    return proofs;
}

/* The upper quartile, since pauses make a line look slower than it is; 0: the samples are no line's. It takes more to refute a line
 * than to doubt it: half of the samples. */
static uint64_t estimate(const struct line_meter *m)
{
    uint32_t count = m->sample_count < LINE_SAMPLES ? m->sample_count : LINE_SAMPLES;
    int known = m->up_bytes_per_s != 0;
    if (!count)
        return 0;
    uint64_t line = quantile(m->samples, count, 3);
    if (!known && proofs_of(m, line) < PROOFS_MIN)
        return 0;
    int vague = is_below(quantile(m->samples, count, known ? 2 : 1), line);
    return vague || is_below(known ? line * REFUTED_PERCENT / 100 : line, peak(&m->sent)) ? 0 : line;
}

/* Of the last totals. */
static uint64_t total(const struct line_totals *t, uint32_t quarters)
{
    return quantile(t->totals, t->count < LINE_TOTALS ? t->count : LINE_TOTALS, quarters);
}

/* What went over the line is known of any; the upper quartile leaves out bursts, and most of the time with little to do. */
static void summarize(struct line_meter *m)
{
    m->up_bytes_per_s = estimate(m);
    m->went_up_bytes_per_s = total(&m->sent, 3);
    m->went_down_bytes_per_s = total(&m->received, 3);
    uint64_t usual = total(&m->received, 2);
    m->down_bytes_per_s = !m->up_bytes_per_s ? 0 : usual > m->up_bytes_per_s ? usual : m->up_bytes_per_s;
}

static uint64_t per_s(uint64_t bytes, uint64_t ns)
{
    return (uint64_t)((unsigned __int128)bytes * 1000000000U / ns);
}

void line_take(struct line_meter *m, const struct line_share *shares, uint32_t count, uint64_t ns)
{
    struct sums s = sums_of(shares, count);
    uint64_t line = per_s(s.sent, ns);
    if (!line)
        return;
    add_total(&m->sent, line);
    add_total(&m->received, per_s(s.received, ns));
    if (s.links >= LINKS_MIN) {
        m->bests[m->sample_count % LINE_SAMPLES] = is_below(line, s.best_of_one) ? 0 : s.best_bytes_per_s;
        m->samples[m->sample_count++ % LINE_SAMPLES] = line;
    }
    summarize(m);
}

/* -- windows ------------------------------------------------------------------------------------------------------- */

int line_is_long(const struct link *l)
{
    return !l->detour_epoch && l->open && l->rtt_us >= LONG_RTT_US;
}

static uint64_t window_ns(const struct line_meter *m)
{
    return m->rtt_ns * WINDOW_RTTS > WINDOW_MIN_NS ? m->rtt_ns * WINDOW_RTTS : WINDOW_MIN_NS;
}

/* Only while something is sent as fast as it goes: else nothing is learned, and nothing is asked of the transport. */
static void begin_window(pccl_engine *e)
{
    struct line_meter *m = &e->line;
    int saturated = 0;
    m->rtt_ns = 0;
    for (const struct link *l = e->links; l; l = l->next) {
        if (!line_is_long(l))
            continue;
        saturated |= l->meter.saturated_since_ns != 0;
        m->rtt_ns = l->rtt_us * 1000ULL > m->rtt_ns ? l->rtt_us * 1000ULL : m->rtt_ns;
    }
    m->begin_ns = saturated ? e->now_ns : 0;
    m->end_ns = e->now_ns + window_ns(m);
    for (struct link *l = e->links; saturated && l; l = l->next) {
        l->meter.line_streams = line_is_long(l) ? l->used : 0;
        l->meter.line_sent = line_is_long(l) ? meter_delivered(l) : 0;
        l->meter.line_received = l->received_bytes;
    }
}

/* Nobody knows what a link did whose streams have come or gone. */
static int share_of(const struct link *l, struct line_share *share)
{
    const struct line_meter *m = &l->engine->line;
    const struct meter *meter = &l->meter;
    uint64_t delivered = meter_delivered(l);
    if (meter->line_streams != l->used || delivered < meter->line_sent)
        return 0;
    *share = (struct line_share){
        .sent_bytes = delivered - meter->line_sent,
        .received_bytes = l->received_bytes - meter->line_received,
        .best_bytes_per_s = meter->best_bytes_per_s,
        .saturated = meter->known && meter->saturated_since_ns && meter->saturated_since_ns + m->rtt_ns <= m->begin_ns,
    };
    return 1;
}

static void end_window(pccl_engine *e)
{
    struct line_share shares[LIMIT_PEERS];
    uint32_t count = 0;
    for (const struct link *l = e->links; l; l = l->next) {
        if (!line_is_long(l))
            continue;
        if (count == LIMIT_PEERS || !share_of(l, &shares[count++]))
            return;
    }
    line_take(&e->line, shares, count, e->now_ns - e->line.begin_ns);
}

void line_look(pccl_engine *e)
{
    struct line_meter *m = &e->line;
    if (e->now_ns < m->end_ns)
        return;
    int in_time = e->now_ns <= m->end_ns + window_ns(m) / 2;
    if (m->begin_ns && in_time)
        end_window(e);
    begin_window(e);
}
