/* direct.c - exchanges without arithmetic: all-gather, all-to-all, broadcast, send/recv, barrier, and every op of a lone peer.
 *
 * Everybody sends what the others need, straight to them, in one step; a broadcast of the ring kind travels along the ring from its
 * root instead, forwarded segment by segment with its checksum. Offsets on the wire are bytes within one peer's contribution. The op
 * is finished when everything has arrived; that nobody finishes a barrier before all have called it is the FINs' doing. */
#include <string.h>

#include "engine.h"
#include "err.h"
#include "reduce.h"

static uint64_t row_bytes(const struct op *op)
{
    return op->request.count * op->element_bytes;
}

static uint32_t row_segments(const struct op *op)
{
    return (uint32_t)((op->request.count + op->segment_elements - 1) / op->segment_elements);
}

static const pccl_peer_id *id_of(const struct op *op, uint32_t rank)
{
    return op->peers[rank] ? &op->peers[rank]->id : &op->engine->config.self;
}

static int is_chain(const struct op *op)
{
    struct desc desc;
    return desc_unpack(op->sender.frame.desc, &desc) == PCCL_OK && desc.kind == PCCL_BROADCAST && desc.algorithm == PCCL_ALGORITHM_RING;
}

static int is_root(const struct op *op, uint32_t rank)
{
    return peer_id_compare(id_of(op, rank), &op->request.root) == 0;
}

static int in_exchange(const struct op *op)
{
    return op->request.kind == PCCL_ALL_GATHER || op->request.kind == PCCL_ALL_TO_ALL;
}

/* Does `from` send a row to `to` on its own account (not forwarding)? */
static int sends_row(const struct op *op, uint32_t from, uint32_t to)
{
    if (in_exchange(op))
        return 1;
    if ((op->request.kind != PCCL_BROADCAST && op->request.kind != PCCL_SEND_RECV) || !is_root(op, from))
        return 0;
    return !is_chain(op) || to == (from + 1) % op->n;
}

/* Does this rank receive a row from `from`? */
static int receives_row(const struct op *op, uint32_t from)
{
    if (!is_chain(op))
        return sends_row(op, from, op->rank);
    return !is_root(op, op->rank) && op->rank == (from + 1) % op->n;
}

/* Which row the caller has named this rank's? -1: none. */
static int64_t row_named(const struct op *op, uint32_t rank)
{
    for (uint32_t i = 0; i < op->request.origin_count; i++)
        if (peer_id_compare(&op->origin[i], id_of(op, rank)) == 0)
            return i;
    return -1;
}

/* Has the caller named rows, but none for this rank? Ranks are those of the op's epoch, the names are older. */
static int is_unnamed(const struct op *op, uint32_t rank)
{
    return in_exchange(op) && op->request.origin_count && row_named(op, rank) < 0;
}

/* Which row of `in` is meant for this rank? -1: the caller named no row for it. */
static int64_t row_for(const struct op *op, uint32_t to)
{
    return op->request.kind == PCCL_ALL_TO_ALL ? row_named(op, to) : 0;
}

/* The rows of an all-gather may be named, those of an all-to-all's result are by rank. */
static uint8_t *out_row(const struct op *op, uint32_t from)
{
    int64_t row = from;
    if (op->request.kind == PCCL_ALL_GATHER && op->request.origin_count)
        row = row_named(op, from);
    return (uint8_t *)op->request.out + (in_exchange(op) ? (uint64_t)row * row_bytes(op) : 0);
}

static void push(struct op *op, uint32_t to, const uint8_t *row, uint64_t offset, uint32_t bytes, const uint32_t *crc)
{
    struct segment s = {.payload.data = row + offset, .offset = offset, .bytes = bytes, .crc = crc ? *crc : 0,
                        .crc_known = crc != NULL};
    op_push(op, to, &s);
}

static void send_row(struct op *op, uint32_t to, const uint8_t *row)
{
    uint64_t segment_bytes = (uint64_t)op->segment_elements * op->element_bytes;
    for (uint64_t offset = 0; offset < row_bytes(op); offset += segment_bytes) {
        uint64_t left = row_bytes(op) - offset;
        push(op, to, row, offset, (uint32_t)(left < segment_bytes ? left : segment_bytes), NULL);
    }
}

/* The part that does not travel: the own row, and all of an op of a lone peer. */
static void copy_own(struct op *op)
{
    const uint8_t *in = op->request.in;
    uint8_t *out = NULL;
    if (in_exchange(op)) {
        int64_t row = row_for(op, op->rank);
        if (row < 0)
            return;
        in += (uint64_t)row * row_bytes(op);
        out = out_row(op, op->rank);
    } else if (op->request.kind == PCCL_ALL_REDUCE || op->request.kind == PCCL_REDUCE_SCATTER) {
        out = op->request.out;
    }
    if (out && out != in && row_bytes(op))
        memcpy(out, in, row_bytes(op));
}

static pccl_err start_with_peer(struct op *op, uint32_t peer)
{
    struct flow *f = &op->flows[peer];
    int forwards = is_chain(op) && peer == (op->rank + 1) % op->n && !is_root(op, peer);
    int64_t row = sends_row(op, op->rank, peer) ? row_for(op, peer) : -1;
    if ((row < 0 && sends_row(op, op->rank, peer)) || is_unnamed(op, peer))
        return PCCL_EPEER;
    if (receives_row(op, peer)) {
        op->u.direct.left += row_segments(op);
        link_notify(op->peers[peer], &op->sender.frame, FRAME_GRANT, UINT32_MAX);
    }
    if (row < 0 && !forwards)
        return PCCL_OK;
    f->cap = row_segments(op) ? row_segments(op) : 1;
    f->segments = mem_alloc(f->cap * sizeof *f->segments);
    if (!f->segments)
        return PCCL_ENOMEM;
    if (row >= 0)
        send_row(op, peer, (const uint8_t *)op->request.in + (uint64_t)row * row_bytes(op));
    return PCCL_OK;
}

static pccl_err start(struct op *op)
{
    if (is_unnamed(op, op->rank))
        return PCCL_EPEER;
    copy_own(op);
    if (arrivals_prepare(op, op->n, row_segments(op)) != PCCL_OK)
        return PCCL_ENOMEM;
    for (uint32_t k = 1; k < op->n; k++) {
        pccl_err err = start_with_peer(op, (op->rank + k) % op->n);
        if (err != PCCL_OK)
            return err;
    }
    if (!op->u.direct.left && !op_awaits_receipt(op))
        op_finished(op);
    return PCCL_OK;
}

static pccl_err place(struct op *op, uint32_t from, const struct frame *frame, uint8_t **target_p)
{
    uint64_t segment_bytes = (uint64_t)op->segment_elements * op->element_bytes;
    uint64_t left = row_bytes(op) > frame->offset ? row_bytes(op) - frame->offset : 0;
    uint64_t expected = left < segment_bytes ? left : segment_bytes;
    if (!receives_row(op, from) || frame->step != 0 || frame->offset % segment_bytes != 0 ||
        frame->payload_bytes != expected || !arrival_is_new(op, from, frame->offset / segment_bytes))
        return PCCL_EPROTO;
    *target_p = out_row(op, from) + frame->offset;
    return PCCL_OK;
}

static void arrived(struct op *op, uint32_t from, const struct frame *frame, const uint8_t *payload)
{
    uint32_t next = (op->rank + 1) % op->n;
    if (!arrival_take(op, from, frame->offset / ((uint64_t)op->segment_elements * op->element_bytes)))
        return;
    if (is_chain(op) && !is_root(op, next))
        push(op, next, payload - frame->offset, frame->offset, frame->payload_bytes, frame_crc(frame));
    if (op->u.direct.left && --op->u.direct.left == 0)
        op_finished(op);
}

const struct algorithm direct_exchange = {"direct", start, place, arrived, NULL};
