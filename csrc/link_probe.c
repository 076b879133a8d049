/* link_probe.c - how long filler is sent to measure a link of which nothing is known.
 *
 * A probe is a load like any other: the meter reads it, and the link is held to what was read. It goes on until the link has
 * stopped growing (one that is known already: until it has been read as often as that takes), but no longer than it was given
 * bytes and time for. It never competes with ops or transfers: where one is under way here, or the other side sends something of
 * one, what is left of the probe is dropped. */
#include "crc32c.h"
#include "engine.h"

/* As many as become_known keeps: with them a link that was known has been read anew. */
enum { PROBE_READINGS = 4 };

/* No zeros: what lies between may compress. The same for all: it says nothing. */
static int make_filler(pccl_engine *e)
{
    if (e->filler)
        return 1;
    e->filler = mem_alloc(WIRE_PROBE_BYTES_MAX);
    if (!e->filler)
        return 0;
    uint32_t x = 1;
    for (uint32_t i = 0; i < WIRE_PROBE_BYTES_MAX; i++) {
        x = x * 1664525u + 1013904223u;
        e->filler[i] = (uint8_t)(x >> 24);
    }
    e->filler_crc = crc32c(0, e->filler, WIRE_PROBE_BYTES_MAX);
    return 1;
}

static int is_busy(const pccl_engine *e)
{
    return e->ops_first || e->transfers.fetches.first || e->stats.transfers_served;
}

void probe_begin(struct link *l, uint64_t bytes, uint64_t duration_ns)
{
    pccl_engine *e = l->engine;
    if (is_busy(e) || !make_filler(e))
        return;
    l->probe = (struct probe){
        .bytes = bytes, .end_ns = e->now_ns + duration_ns, .until_readings = l->meter.readings + PROBE_READINGS,
    };
    link_mark_dirty(l);
}

/* What comes now is no filler, and need not begin as slowly. */
void probe_end(struct link *l)
{
    if (!l->probe.bytes)
        return;
    l->probe.bytes = 0;
    meter_pace(l);
}

void probe_look(struct link *l)
{
    const struct meter *m = &l->meter;
    int measured = m->known && m->readings >= l->probe.until_readings;
    if (is_busy(l->engine) || measured || l->engine->now_ns >= l->probe.end_ns)
        probe_end(l);
}

void probe_next(struct link *l, struct frame *frame, const uint8_t **payload_p)
{
    const pccl_engine *e = l->engine;
    uint64_t left = l->probe.bytes;
    uint32_t bytes = left < WIRE_PROBE_BYTES_MAX ? (uint32_t)left : WIRE_PROBE_BYTES_MAX;
    *frame = (struct frame){
        .type = FRAME_PROBE, .payload_bytes = bytes,
        .payload_crc = bytes == WIRE_PROBE_BYTES_MAX ? e->filler_crc : crc32c(0, e->filler, bytes),
    };
    *payload_p = e->filler;
    l->probe.bytes -= bytes;
}
