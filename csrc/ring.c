/* ring.c - the ring all-reduce: 2 (n - 1) hops, each peer talks to its two neighbours only.
 *
 * n peers, n spans. In step s < n - 1 (reduce-scatter) rank r sends span (r - s) mod n to rank r + 1 and folds span
 * (r - s - 1) mod n, as it arrives from rank r - 1, with its own input; after n - 1 steps rank r holds span (r + 1) mod n
 * whole. In steps n - 1 + s (all-gather) it sends span (r + 1 - s) mod n and receives span (r - s) mod n. A segment moves on as
 * soon as it is there; nothing waits for a whole span. Bytes on the wire: 2 (n - 1) / n * size per peer.
 *
 * Order of summation of a span: ring order from the rank after its last owner's neighbour, fixed by the plan. Result bytes are
 * made once, by the last folder, and forwarded as they are, checksum included.
 *
 * Why sending from user memory is safe: a segment is overwritten by a later step only after every rank's contribution to it
 * was received, so a frame that must be sent again with changed bytes is a duplicate, and receivers drop duplicates unread. */
#include <string.h>

#include "engine.h"
#include "err.h"
#include "reduce.h"

static uint32_t wrap(const struct op *op, int64_t span)
{
    int64_t n = op->n;
    return (uint32_t)(((span % n) + n) % n);
}

static uint32_t next_rank(const struct op *op) { return wrap(op, (int64_t)op->rank + 1); }
static uint32_t prev_rank(const struct op *op) { return wrap(op, (int64_t)op->rank - 1); }

static uint32_t sent_span(const struct op *op, uint32_t step)
{
    uint32_t hops = op->n - 1;
    return step < hops ? wrap(op, (int64_t)op->rank - step) : wrap(op, (int64_t)op->rank + 1 - (step - hops));
}

static uint32_t received_span(const struct op *op, uint32_t step)
{
    uint32_t hops = op->n - 1;
    return step < hops ? wrap(op, (int64_t)op->rank - step - 1) : wrap(op, (int64_t)op->rank - (step - hops));
}

static void push(struct op *op, uint32_t step, struct extent x, const void *base, const uint32_t *crc)
{
    struct segment s = {
        .payload.data = (const uint8_t *)base + x.offset, .offset = x.offset, .bytes = x.bytes, .step = (uint16_t)step,
        .crc = crc ? *crc : 0, .crc_known = crc != NULL,
        .fresh = step > 0,
    };
    op_push(op, next_rank(op), &s);
}

static pccl_err start(struct op *op)
{
    uint32_t steps = 2 * (op->n - 1), to_send = 0;
    struct ring_state *r = &op->u.ring;
    for (uint32_t step = 0; step < steps; step++) {
        to_send += span_segments(op, sent_span(op, step));
        r->left += span_segments(op, received_span(op, step));
    }
    struct flow *f = &op->flows[next_rank(op)];
    f->cap = to_send ? to_send : 1;
    f->segments = mem_alloc(f->cap * sizeof *f->segments);
    if (!f->segments || backup_prepare(op) != PCCL_OK ||
        arrivals_prepare(op, steps, span_segments_max(op)) != PCCL_OK)
        return PCCL_ENOMEM;
    if (r->left)
        link_notify(op->peers[prev_rank(op)], &op->sender.frame, FRAME_GRANT, UINT32_MAX);
    uint32_t own = sent_span(op, 0);
    for (uint32_t i = 0; i < span_segments(op, own); i++)
        push(op, 0, span_segment(op, own, i), op->request.in, NULL);
    if (!r->left)
        op_finished(op);
    return PCCL_OK;
}

static pccl_err place(struct op *op, uint32_t from, const struct frame *frame, uint8_t **target_p)
{
    uint32_t segment, hops = op->n - 1;
    if (from != prev_rank(op) || frame->step >= 2 * hops)
        return PCCL_EPROTO;
    uint32_t span = received_span(op, frame->step);
    if (span_locate(op, span, frame->offset, frame->payload_bytes, &segment) != PCCL_OK ||
        !arrival_is_new(op, frame->step, segment))
        return PCCL_EPROTO;
    if (frame->step < hops) {
        *target_p = NULL;
        return PCCL_OK;
    }
    /* A result contains what this peer folded before; only its own first span it never folds. */
    if (frame->step > hops && op->arrivals && arrival_is_new(op, frame->step - hops - 1, segment))
        return PCCL_EPROTO;
    backup_segment(op, span, segment);
    *target_p = (uint8_t *)op->request.out + frame->offset;
    return PCCL_OK;
}

/* Folds a partial sum with the own input, into the output. */
static void fold(struct op *op, const struct frame *frame, uint32_t segment, const uint8_t *payload, int last)
{
    backup_segment(op, received_span(op, frame->step), segment);
    pccl_redop redop = (pccl_redop)op->request.redop;
    if (redop == PCCL_AVG && !last)
        redop = PCCL_SUM;
    const void *sources[2] = {payload, (const uint8_t *)op->request.in + frame->offset};
    reduce_kernel((pccl_dtype)op->request.dtype, redop)((uint8_t *)op->request.out + frame->offset, sources, 2,
                                                        frame->payload_bytes / op->element_bytes, op->n);
}

static void arrived(struct op *op, uint32_t from, const struct frame *frame, const uint8_t *payload)
{
    (void)from;
    struct ring_state *r = &op->u.ring;
    uint32_t segment, hops = op->n - 1;
    struct extent x = {frame->offset, frame->payload_bytes};
    if (span_locate(op, received_span(op, frame->step), frame->offset, frame->payload_bytes, &segment) != PCCL_OK ||
        !arrival_take(op, frame->step, segment))
        return;
    if (frame->step < hops)
        fold(op, frame, segment, payload, frame->step + 1u == hops);
    if (frame->step + 1u < 2 * hops)
        push(op, frame->step + 1u, x, op->request.out, frame->step < hops ? NULL : frame_crc(frame));
    if (r->left && --r->left == 0)
        op_finished(op);
}

const struct algorithm ring_all_reduce = {"ring", start, place, arrived, NULL};
