/* two_level.c - an all-reduce over regions: what crosses between regions does so once, on all members' uplinks at once.
 *
 * Span j has an owner j. In every other region one member is its agent (agent_of): the members of a region send their
 * contributions to the agent (step 0), the agent folds them with its own and sends the partial sum to the owner (step 1). The
 * owner folds its own region's contributions in rank order, then the partial sums in the order of regions, and sends the
 * result to its region and to the agents (step 2), who pass it on in theirs (step 3). With R regions of m members a peer's
 * uplink carries 2 (R - 1) / R * size / m each way instead of a ring's 2 (n - 1) / n * size.
 *
 * Whoever collects a span (owner or agent) has a slot for every source and segment, so sources need not wait. */
#include <string.h>

#include "engine.h"
#include "err.h"
#include "reduce.h"

enum { STEP_CONTRIBUTION = 0, STEP_PARTIAL = 1, STEP_RESULT = 2, STEP_FORWARD = 3, STEPS = 4 };

static uint16_t region_of(const struct op *op, uint32_t rank)
{
    return op->members[rank]->region;
}

static int neighbours(const struct op *op, uint32_t a, uint32_t b)
{
    return region_of(op, a) == region_of(op, b);
}

/* Position of a rank within its region. */
static uint32_t place_in_region(const struct op *op, uint32_t rank)
{
    uint32_t place = 0;
    for (uint32_t i = 0; i < rank; i++)
        place += (uint32_t)neighbours(op, i, rank);
    return place;
}

static uint32_t region_size(const struct op *op, uint16_t region)
{
    uint32_t size = 0;
    for (uint32_t i = 0; i < op->n; i++)
        size += region_of(op, i) == region;
    return size;
}

/* Who collects the contributions to a span in the region of `member`: the owner itself, or its agent there. */
static uint32_t agent_of(const struct op *op, uint32_t span, uint32_t member)
{
    if (neighbours(op, span, member))
        return span;
    uint32_t place = place_in_region(op, span) % region_size(op, region_of(op, member));
    for (uint32_t i = 0;; i++)
        if (neighbours(op, i, member) && place-- == 0)
            return i;
}

/* What a rank sends for a span to another rank; STEPS if nothing. A pair never has two things to say about one span. */
static uint32_t step_between(const struct op *op, uint32_t span, uint32_t from, uint32_t to, int results)
{
    int close = neighbours(op, from, to);
    if (!results) {
        if (close)
            return from != to && agent_of(op, span, from) == to ? STEP_CONTRIBUTION : STEPS;
        return to == span && agent_of(op, span, from) == from ? STEP_PARTIAL : STEPS;
    }
    if (from == span)
        return from != to && (close || agent_of(op, span, to) == to) ? STEP_RESULT : STEPS;
    return close && from != to && to != span && agent_of(op, span, from) == from && !neighbours(op, from, span)
               ? STEP_FORWARD : STEPS;
}

static int collects(const struct op *op, uint32_t span)
{
    return agent_of(op, span, op->rank) == op->rank;
}

/* How many others send something to a collector of the span. */
static uint32_t source_count(const struct op *op, uint32_t span)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < op->n; i++)
        count += step_between(op, span, i, op->rank, 0) < STEPS;
    return count;
}

static uint32_t source_index(const struct op *op, uint32_t span, uint32_t from)
{
    uint32_t index = 0;
    for (uint32_t i = 0; i < from; i++)
        index += step_between(op, span, i, op->rank, 0) < STEPS;
    return index;
}

static uint64_t span_bytes(const struct op *op, uint32_t span)
{
    return (op->spans[span + 1] - op->spans[span]) * op->element_bytes;
}

static uint8_t *slot(const struct op *op, uint32_t span, uint32_t from, struct extent x)
{
    const struct two_level_state *t = &op->u.two_level;
    uint64_t within = x.offset - op->spans[span] * op->element_bytes;
    return t->slots + t->slots_begin[span] + source_index(op, span, from) * span_bytes(op, span) + within;
}

/* -- sending ---------------------------------------------------------------------------------------------------------- */

static void push(struct op *op, uint32_t to, uint32_t step, struct extent x, const uint8_t *data, const uint32_t *crc)
{
    struct segment s = {.payload.data = data, .offset = x.offset, .bytes = x.bytes, .step = (uint16_t)step,
                        .crc = crc ? *crc : 0, .crc_known = crc != NULL};
    op_push(op, to, &s);
}

/* Sends one segment of a span's result to everybody who has it from this rank. */
static void spread_result(struct op *op, uint32_t span, struct extent x, const uint32_t *crc)
{
    for (uint32_t k = 1; k < op->n; k++) {
        uint32_t to = (op->rank + k) % op->n, step = step_between(op, span, op->rank, to, 1);
        if (step < STEPS)
            push(op, to, step, x, (const uint8_t *)op->request.out + x.offset, crc);
    }
}

/* -- folding ---------------------------------------------------------------------------------------------------------- */

/* The sources of a segment in the order of summation: the collector's region by rank, then the other regions' agents by rank. */
static uint32_t sources_in_order(const struct op *op, uint32_t span, struct extent x, const void **sources)
{
    uint32_t count = 0;
    for (int close = 1; close >= 0; close--)
        for (uint32_t i = 0; i < op->n; i++) {
            if (neighbours(op, i, op->rank) != close)
                continue;
            if (i == op->rank)
                sources[count++] = (const uint8_t *)op->request.in + x.offset;
            else if (step_between(op, span, i, op->rank, 0) < STEPS)
                sources[count++] = slot(op, span, i, x);
        }
    return count;
}

static void note_result(struct op *op)
{
    struct two_level_state *t = &op->u.two_level;
    if (t->left && --t->left == 0)
        op_finished(op);
}

/* Everything this collector waits for is here: an agent sends its partial sum, an owner the result. */
static void on_collected(struct op *op, uint32_t span, uint32_t segment)
{
    const void *sources[LIMIT_PEERS];
    struct extent x = span_segment(op, span, segment);
    uint32_t count = sources_in_order(op, span, x, sources);
    int owner = span == op->rank;
    pccl_redop redop = (pccl_redop)op->request.redop;
    if (redop == PCCL_AVG && !owner)
        redop = PCCL_SUM;
    /* An agent's partial sum takes the place of one of its sources; alone it sends its own input as it is. */
    uint8_t *target = (uint8_t *)op->request.out + x.offset;
    if (!owner)
        target = count > 1 ? (uint8_t *)(uintptr_t)sources[sources[0] == (const uint8_t *)op->request.in + x.offset]
                           : (uint8_t *)(uintptr_t)sources[0];
    if (owner)
        backup_segment(op, span, segment);
    if (owner || count > 1)
        reduce_kernel((pccl_dtype)op->request.dtype, redop)(target, sources, count, x.bytes / op->element_bytes, op->n);
    if (!owner) {
        push(op, span, STEP_PARTIAL, x, target, NULL);
        return;
    }
    spread_result(op, span, x, NULL);
    note_result(op);
}

/* -- the algorithm ------------------------------------------------------------------------------------------------------ */

static pccl_err take_memory(struct op *op)
{
    struct two_level_state *t = &op->u.two_level;
    uint64_t per_span = span_segments_max(op);
    t->arrived = mem_alloc(op->n * per_span * sizeof *t->arrived);
    t->slots_begin = mem_alloc(op->n * sizeof *t->slots_begin);
    if (!t->arrived || !t->slots_begin)
        return PCCL_ENOMEM;
    for (uint32_t span = 0; span < op->n; span++) {
        t->slots_begin[span] = t->slots_bytes;
        if (collects(op, span))
            t->slots_bytes += source_count(op, span) * span_bytes(op, span);
    }
    t->slots = pool_take(&op->engine->pool, t->slots_bytes);
    return t->slots ? PCCL_OK : PCCL_ENOMEM;
}

static uint64_t traffic(const struct op *op, uint32_t from, uint32_t to)
{
    uint64_t segments = 0;
    for (uint32_t span = 0; span < op->n; span++)
        for (int results = 0; results < 2; results++)
            if (step_between(op, span, from, to, results) < STEPS)
                segments += span_segments(op, span);
    return segments;
}

static pccl_err reserve_flows(struct op *op)
{
    for (uint32_t k = 1; k < op->n; k++) {
        uint32_t peer = (op->rank + k) % op->n;
        struct flow *f = &op->flows[peer];
        f->cap = (uint32_t)traffic(op, op->rank, peer);
        f->segments = mem_alloc(f->cap * sizeof *f->segments);
        if (!f->segments)
            return PCCL_ENOMEM;
        if (traffic(op, peer, op->rank))
            link_notify(op->peers[peer], &op->sender.frame, FRAME_GRANT, UINT32_MAX);
    }
    return PCCL_OK;
}

static void contribute(struct op *op, uint32_t span)
{
    uint32_t agent = agent_of(op, span, op->rank);
    int alone = agent == op->rank && source_count(op, span) == 0;
    for (uint32_t i = 0; i < span_segments(op, span); i++) {
        struct extent x = span_segment(op, span, i);
        if (agent != op->rank)
            push(op, agent, STEP_CONTRIBUTION, x, (const uint8_t *)op->request.in + x.offset, NULL);
        else if (alone)
            on_collected(op, span, i);
    }
}

static pccl_err start(struct op *op)
{
    struct two_level_state *t = &op->u.two_level;
    if (take_memory(op) != PCCL_OK || backup_prepare(op) != PCCL_OK ||
        arrivals_prepare(op, op->n * (op->n + 1), span_segments_max(op)) != PCCL_OK || reserve_flows(op) != PCCL_OK)
        return PCCL_ENOMEM;
    for (uint32_t span = 0; span < op->n; span++)
        t->left += span_segments(op, span);
    /* Spans whose sums have farthest to go first. */
    for (int close = 0; close < 2; close++)
        for (uint32_t k = 0; k < op->n; k++)
            if (neighbours(op, (op->rank + k) % op->n, op->rank) == close)
                contribute(op, (op->rank + k) % op->n);
    if (!t->left)
        op_finished(op);
    return PCCL_OK;
}

/* Which span does the frame belong to? n if its offset is in none. */
static uint32_t span_at(const struct op *op, uint64_t offset)
{
    uint64_t element = offset / op->element_bytes;
    for (uint32_t i = 0; i < op->n; i++)
        if (element >= op->spans[i] && element < op->spans[i + 1])
            return i;
    return op->n;
}

/* Groups of arrivals: a collector's source and span, and one for the results of all spans. */
static uint32_t group_of(const struct op *op, uint32_t span, uint32_t from, int result)
{
    return span * (op->n + 1) + (result ? op->n : from);
}

static pccl_err locate(const struct op *op, uint32_t from, const struct frame *frame, uint32_t *span_p, uint32_t *segment_p)
{
    uint32_t span = span_at(op, frame->offset);
    int result = frame->step >= STEP_RESULT;
    if (span == op->n || frame->step >= STEPS || step_between(op, span, from, op->rank, result) != frame->step)
        return PCCL_EPROTO;
    *span_p = span;
    return span_locate(op, span, frame->offset, frame->payload_bytes, segment_p);
}

static pccl_err place(struct op *op, uint32_t from, const struct frame *frame, uint8_t **target_p)
{
    uint32_t span, segment;
    int result = frame->step >= STEP_RESULT;
    if (locate(op, from, frame, &span, &segment) != PCCL_OK ||
        !arrival_is_new(op, group_of(op, span, from, result), segment))
        return PCCL_EPROTO;
    if (result) {
        backup_segment(op, span, segment);
        *target_p = (uint8_t *)op->request.out + frame->offset;
    } else {
        *target_p = slot(op, span, from, span_segment(op, span, segment));
    }
    return PCCL_OK;
}

static void arrived(struct op *op, uint32_t from, const struct frame *frame, const uint8_t *payload)
{
    (void)payload;
    uint32_t span, segment;
    int result = frame->step >= STEP_RESULT;
    if (locate(op, from, frame, &span, &segment) != PCCL_OK || !arrival_take(op, group_of(op, span, from, result), segment))
        return;
    if (result) {
        spread_result(op, span, span_segment(op, span, segment), frame_crc(frame));
        note_result(op);
        return;
    }
    uint32_t *count = &op->u.two_level.arrived[span * span_segments_max(op) + segment];
    if (++*count == source_count(op, span))
        on_collected(op, span, segment);
}

static void drop(struct op *op)
{
    struct two_level_state *t = &op->u.two_level;
    pool_give(&op->engine->pool, t->slots, t->slots_bytes);
    mem_free(t->slots_begin);
    mem_free(t->arrived);
}

const struct algorithm two_level_reduce = {"two_level", start, place, arrived, drop};
