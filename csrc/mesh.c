/* mesh.c - reduce by owners: every peer sends span j straight to its owner j, the owner folds all contributions in
 * rank order and, for an all-reduce, sends the result to all. 2 one-way delays (reduce-scatter: 1). Bytes on the wire:
 * 2 (n - 1) / n * size per peer.
 *
 * Contributions that wait for others lie in slots: slot (source, segment mod slot_count). A source may send a segment when
 * its slot is free: GRANT carries how many segments a source may have sent so far. With two peers there is nothing to wait for,
 * and the fold reads the receive scratch itself. The fold makes one pass over all sources (reduce.h), so narrow floats are
 * rounded once, and the sum does not depend on the order of arrival.
 *
 * With a codec, segments travel encoded: a contribution is encoded once by its peer and decoded into its slot by the owner, a
 * result is encoded once by the owner, who keeps what the others will decode, so all peers hold equal bytes. Offsets on the
 * wire remain those of the decoded data. */
#include <string.h>

#include "codec.h"
#include "crc32c.h"
#include "engine.h"
#include "err.h"
#include "reduce.h"

enum { STEP_CONTRIBUTION = 0, STEP_RESULT = 1 };

static pccl_codec codec_of(const struct op *op)
{
    return (pccl_codec)op->request.codec;
}

/* Do contributions lie in slots until all are there? Between two peers plain ones are folded from where they were read. */
static int uses_slots(const struct op *op)
{
    return op->n > 2 || codec_of(op) != PCCL_CODEC_NONE;
}

static int sends_result(const struct op *op)
{
    return op->request.kind == PCCL_ALL_REDUCE;
}

/* Index of a source among the others: the own rank has no slots. */
static uint32_t source_index(const struct op *op, uint32_t from)
{
    return from < op->rank ? from : from - 1;
}

static uint8_t *slot(const struct op *op, uint32_t from, uint32_t segment)
{
    const struct mesh_state *m = &op->u.mesh;
    uint64_t index = (uint64_t)source_index(op, from) * m->slot_count + segment % m->slot_count;
    return m->slots + index * op->segment_elements * op->element_bytes;
}

static uint32_t choose_slot_count(const struct op *op)
{
    uint64_t segment_bytes = (uint64_t)op->segment_elements * op->element_bytes;
    uint64_t count = MESH_SCRATCH_BYTES / segment_bytes / (op->n - 1);
    uint64_t unasked = op->engine->config.eager_bytes / segment_bytes + 1;
    count = count > MESH_SLOTS_MIN ? count : MESH_SLOTS_MIN;
    count = count > unasked ? count : unasked;
    uint32_t segments = span_segments(op, op->rank);
    return count < segments ? (uint32_t)count : segments;
}

static pccl_err take_slots(struct op *op)
{
    struct mesh_state *m = &op->u.mesh;
    uint32_t segments = span_segments(op, op->rank);
    m->arrived = mem_alloc((size_t)segments * sizeof *m->arrived);
    m->slot_count = segments ? choose_slot_count(op) : 0;
    m->granted = uses_slots(op) ? m->slot_count : UINT32_MAX;
    if (uses_slots(op) && segments) {
        m->slots_bytes = (uint64_t)(op->n - 1) * m->slot_count * op->segment_elements * op->element_bytes;
        m->slots = pool_take(&op->engine->pool, m->slots_bytes);
        if (!m->slots)
            return PCCL_ENOMEM;
    }
    if (engine_defect(op->engine, PCCL_DEFECT_ARRIVAL_ORDER))
        m->order = mem_alloc((size_t)segments * op->n);
    return m->arrived ? PCCL_OK : PCCL_ENOMEM;
}

static pccl_err reserve_flow(struct op *op, uint32_t to)
{
    struct flow *f = &op->flows[to];
    f->cap = span_segments(op, to) + (sends_result(op) ? span_segments(op, op->rank) : 0);
    f->cap = f->cap ? f->cap : 1;
    f->segments = mem_alloc(f->cap * sizeof *f->segments);
    return f->segments ? PCCL_OK : PCCL_ENOMEM;
}

/* -- encoded segments ------------------------------------------------------------------------------------------------ */

/* Room for one encoded segment of every span: contributions to the others', results of the own. */
static pccl_err take_encoded(struct op *op)
{
    struct mesh_state *m = &op->u.mesh;
    if (codec_of(op) == PCCL_CODEC_NONE)
        return PCCL_OK;
    m->encoded_stride = codec_bytes(codec_of(op), op->segment_elements);
    m->encoded_bytes = op->n * span_segments_max(op) * m->encoded_stride;
    m->encoded = pool_take(&op->engine->pool, m->encoded_bytes);
    return m->encoded ? PCCL_OK : PCCL_ENOMEM;
}

/* What travels of a segment that lies at `base` + its offset. */
static struct segment wire_segment(struct op *op, uint32_t span, uint32_t index, const void *base, uint16_t step)
{
    const struct mesh_state *m = &op->u.mesh;
    struct extent x = span_segment(op, span, index);
    struct segment s = {.payload.data = (const uint8_t *)base + x.offset, .offset = x.offset, .bytes = x.bytes, .step = step,
                        .windowed = step == STEP_CONTRIBUTION};
    if (codec_of(op) != PCCL_CODEC_NONE) {
        uint8_t *encoded = m->encoded + (span * span_segments_max(op) + index) * m->encoded_stride;
        codec_encode(codec_of(op), s.payload.data, x.bytes / sizeof(float), encoded);
        s.payload.data = encoded;
        s.bytes = span_wire_bytes(op, x);
    }
    return s;
}

/* Decodes what came for a segment; bytes that no encoder makes are ignored, and the op ends by its deadline. */
static int decode(struct op *op, struct extent x, const uint8_t *encoded, uint8_t *target)
{
    size_t count = x.bytes / sizeof(float);
    return codec_decode(codec_of(op), encoded, codec_bytes(codec_of(op), count), target, count) == PCCL_OK;
}

/* -- sending --------------------------------------------------------------------------------------------------------- */

static void send_contributions(struct op *op, uint32_t to)
{
    for (uint32_t i = 0; i < span_segments(op, to); i++) {
        struct segment s = wire_segment(op, to, i, op->request.in, STEP_CONTRIBUTION);
        op_push(op, to, &s);
    }
}

static pccl_err start(struct op *op)
{
    struct mesh_state *m = &op->u.mesh;
    if (take_slots(op) != PCCL_OK || take_encoded(op) != PCCL_OK || backup_prepare(op) != PCCL_OK ||
        arrivals_prepare(op, 2 * op->n, span_segments_max(op)) != PCCL_OK)
        return PCCL_ENOMEM;
    for (uint32_t i = 0; i < op->n; i++)
        if (i != op->rank && reserve_flow(op, i) != PCCL_OK)
            return PCCL_ENOMEM;
    m->left = span_segments(op, op->rank);
    /* Begin with the next rank, so that not everybody sends to the same owner first. */
    for (uint32_t k = 1; k < op->n; k++) {
        uint32_t peer = (op->rank + k) % op->n;
        if (sends_result(op))
            m->left += span_segments(op, peer);
        link_notify(op->peers[peer], &op->sender.frame, FRAME_GRANT, m->granted);
        send_contributions(op, peer);
    }
    if (!m->left)
        op_finished(op);
    return PCCL_OK;
}

static uint32_t arrival_group(const struct op *op, uint32_t from, const struct frame *frame)
{
    return frame->step * op->n + from;
}

static pccl_err place(struct op *op, uint32_t from, const struct frame *frame, uint8_t **target_p)
{
    const struct mesh_state *m = &op->u.mesh;
    uint32_t segment;
    int result = frame->step == STEP_RESULT && sends_result(op);
    if (frame->step != STEP_CONTRIBUTION && !result)
        return PCCL_EPROTO;
    if (span_locate(op, result ? from : op->rank, frame->offset, frame->payload_bytes, &segment) != PCCL_OK ||
        !arrival_is_new(op, arrival_group(op, from, frame), segment))
        return PCCL_EPROTO;
    if (!result && segment >= m->first_open + m->slot_count && uses_slots(op))
        return PCCL_EPROTO;
    if (codec_of(op) != PCCL_CODEC_NONE) {
        *target_p = NULL;
    } else if (result) {
        backup_segment(op, from, segment);
        *target_p = (uint8_t *)op->request.out + frame->offset;
    } else {
        *target_p = op->n > 2 ? slot(op, from, segment) : NULL;
    }
    return PCCL_OK;
}

/* All contributions to a segment of the own span are here. */
static void fold(struct op *op, uint32_t segment, const uint8_t *payload)
{
    const struct mesh_state *m = &op->u.mesh;
    struct extent x = span_segment(op, op->rank, segment);
    const void *sources[LIMIT_PEERS];
    for (uint32_t i = 0; i < op->n; i++) {
        uint32_t rank = m->order ? m->order[(size_t)segment * op->n + i] : i;
        if (rank == op->rank)
            sources[i] = (const uint8_t *)op->request.in + x.offset;
        else
            sources[i] = uses_slots(op) ? slot(op, rank, segment) : payload;
    }
    backup_segment(op, op->rank, segment);
    reduce_kernel((pccl_dtype)op->request.dtype, (pccl_redop)op->request.redop)(
        (uint8_t *)op->request.out + x.offset, sources, op->n, x.bytes / op->element_bytes, op->n);
}

static void send_result(struct op *op, uint32_t segment)
{
    struct extent x = span_segment(op, op->rank, segment);
    struct segment s = wire_segment(op, op->rank, segment, op->request.out, STEP_RESULT);
    s.fresh = 1;
    if (codec_of(op) != PCCL_CODEC_NONE)
        ASSERT(decode(op, x, s.payload.data, (uint8_t *)op->request.out + x.offset));
    s.crc_known = (uint8_t)op_sums_once(op);
    if (s.crc_known)
        s.crc = crc32c(0, s.payload.data, s.bytes);
    for (uint32_t k = 1; k < op->n; k++)
        op_push(op, (op->rank + k) % op->n, &s);
}

/* Slots of folded segments are free again: tell the sources, in batches. */
static void slide_window(struct op *op)
{
    struct mesh_state *m = &op->u.mesh;
    uint32_t segments = span_segments(op, op->rank);
    while (m->first_open < segments && m->arrived[m->first_open] == op->n)
        m->first_open++;
    uint32_t room = m->first_open + m->slot_count;
    if (!uses_slots(op) || m->granted >= segments || room - m->granted < (m->slot_count + 3) / 4)
        return;
    m->granted = room;
    for (uint32_t i = 0; i < op->n; i++)
        if (op->peers[i])
            link_notify(op->peers[i], &op->sender.frame, FRAME_GRANT, room);
}

static void on_contribution(struct op *op, uint32_t from, uint32_t segment, const uint8_t *payload)
{
    struct mesh_state *m = &op->u.mesh;
    uint32_t *arrived = &m->arrived[segment];
    if (m->order && *arrived < op->n - 1)
        m->order[(size_t)segment * op->n + 1 + *arrived] = (uint8_t)from;
    if (m->order)
        m->order[(size_t)segment * op->n] = (uint8_t)op->rank;
    if (*arrived >= op->n - 1 || ++*arrived < op->n - 1)
        return;
    fold(op, segment, payload);
    *arrived = op->n;
    if (sends_result(op))
        send_result(op, segment);
    slide_window(op);
    if (m->left && --m->left == 0)
        op_finished(op);
}

/* An encoded segment goes to its slot, or a result to its place; plain ones are there already. */
static int take_encoded_payload(struct op *op, uint32_t from, const struct frame *frame, uint32_t segment,
                                const uint8_t *payload)
{
    if (codec_of(op) == PCCL_CODEC_NONE)
        return 1;
    if (frame->step == STEP_CONTRIBUTION)
        return decode(op, span_segment(op, op->rank, segment), payload, slot(op, from, segment));
    backup_segment(op, from, segment);
    return decode(op, span_segment(op, from, segment), payload, (uint8_t *)op->request.out + frame->offset);
}

static void arrived(struct op *op, uint32_t from, const struct frame *frame, const uint8_t *payload)
{
    struct mesh_state *m = &op->u.mesh;
    uint32_t segment, span = frame->step == STEP_RESULT ? from : op->rank;
    if (span_locate(op, span, frame->offset, frame->payload_bytes, &segment) != PCCL_OK ||
        !arrival_take(op, arrival_group(op, from, frame), segment) || !take_encoded_payload(op, from, frame, segment, payload))
        return;
    if (frame->step == STEP_CONTRIBUTION)
        on_contribution(op, from, segment, payload);
    else if (m->left && --m->left == 0)
        op_finished(op);
}

static void drop(struct op *op)
{
    pool_give(&op->engine->pool, op->u.mesh.slots, op->u.mesh.slots_bytes);
    pool_give(&op->engine->pool, op->u.mesh.encoded, op->u.mesh.encoded_bytes);
    mem_free(op->u.mesh.arrived);
    mem_free(op->u.mesh.order);
}

const struct algorithm mesh_reduce = {"mesh", start, place, arrived, drop};
