/* one_round.c - an all-reduce of little data: everybody sends everything to all others, and each folds it all by itself.
 *
 * One one-way delay (and that of the FIN) where the mesh takes two, for (n - 1) * size bytes per peer where the mesh sends
 * 2 (n - 1) / n * size. All fold in the order of ranks, in one pass (reduce.h), so all hold equal bytes.
 *
 * What is sent must stay as it is until it is acknowledged, but an in-place input is overwritten as soon as the others'
 * contributions are here: such an input is copied first, and the copy, which is the op's backup, is what is sent and folded. With a
 * codec a peer encodes its input once, and it too folds what the others decode.
 *
 * The whole is one span, number 0. A contribution lies in its source's slot until all are there; between two peers plain ones are
 * folded from where they were read. */
#include <string.h>

#include "codec.h"
#include "crc32c.h"
#include "engine.h"
#include "err.h"
#include "reduce.h"

static pccl_codec codec_of(const struct op *op)
{
    return (pccl_codec)op->request.codec;
}

static int uses_slots(const struct op *op)
{
    return op->n > 2 || codec_of(op) != PCCL_CODEC_NONE;
}

static uint64_t row_bytes(const struct op *op)
{
    return op->request.count * op->element_bytes;
}

int one_round_fits(const struct op *op)
{
    return row_bytes(op) * (op->n - 1) <= ONE_ROUND_BYTES_MAX;
}

static uint8_t *slot(const struct op *op, uint32_t from, uint64_t offset)
{
    uint32_t index = from < op->rank ? from : from - 1;
    return op->u.one_round.slots + index * row_bytes(op) + offset;
}

/* What this peer sends of its input. */
static const uint8_t *own(const struct op *op)
{
    return op->backup ? op->backup : op->request.in;
}

/* What this peer folds of its input: with a codec, what the others decode; it lies where the result will be. */
static const uint8_t *own_share(const struct op *op)
{
    return codec_of(op) == PCCL_CODEC_NONE ? own(op) : op->request.out;
}

static pccl_err take_memory(struct op *op)
{
    struct one_round_state *o = &op->u.one_round;
    uint32_t segments = span_segments(op, 0);
    o->arrived = mem_alloc(segments * sizeof *o->arrived);
    if (!o->arrived || backup_prepare(op) != PCCL_OK || arrivals_prepare(op, op->n, segments) != PCCL_OK)
        return PCCL_ENOMEM;
    if (uses_slots(op)) {
        o->slots_bytes = (op->n - 1) * row_bytes(op);
        o->slots = pool_take(&op->engine->pool, o->slots_bytes);
    }
    if (codec_of(op) != PCCL_CODEC_NONE) {
        o->encoded_stride = codec_bytes(codec_of(op), op->segment_elements);
        o->encoded_bytes = segments * o->encoded_stride;
        o->encoded = pool_take(&op->engine->pool, o->encoded_bytes);
    }
    for (uint32_t i = 0; i < op->n; i++) {
        struct flow *f = &op->flows[i];
        if (i == op->rank)
            continue;
        f->cap = segments ? segments : 1;
        f->segments = mem_alloc(f->cap * sizeof *f->segments);
        if (!f->segments)
            return PCCL_ENOMEM;
    }
    int complete = (o->slots || !uses_slots(op)) && (o->encoded || codec_of(op) == PCCL_CODEC_NONE);
    return complete ? PCCL_OK : PCCL_ENOMEM;
}

/* Bytes that no encoder makes are ignored, and the op ends by its deadline. */
static int decode(struct op *op, struct extent x, const uint8_t *encoded, uint8_t *target)
{
    size_t count = x.bytes / sizeof(float);
    return codec_decode(codec_of(op), encoded, codec_bytes(codec_of(op), count), target, count) == PCCL_OK;
}

/* What travels of a segment. */
static struct segment wire_segment(struct op *op, uint32_t index)
{
    const struct one_round_state *o = &op->u.one_round;
    struct extent x = span_segment(op, 0, index);
    struct segment s = {.payload.data = own(op) + x.offset, .offset = x.offset, .bytes = x.bytes,
                        .crc_known = (uint8_t)op_sums_once(op)};
    if (codec_of(op) != PCCL_CODEC_NONE) {
        uint8_t *encoded = o->encoded + index * o->encoded_stride;
        codec_encode(codec_of(op), s.payload.data, x.bytes / sizeof(float), encoded);
        ASSERT(decode(op, x, encoded, (uint8_t *)op->request.out + x.offset));
        s.payload.data = encoded;
        s.bytes = span_wire_bytes(op, x);
    }
    if (s.crc_known)
        s.crc = crc32c(0, s.payload.data, s.bytes);
    return s;
}

static pccl_err start(struct op *op)
{
    uint32_t segments = span_segments(op, 0);
    if (take_memory(op) != PCCL_OK)
        return PCCL_ENOMEM;
    for (uint32_t k = 1; k < op->n; k++)
        link_notify(op->peers[(op->rank + k) % op->n], &op->sender.frame, FRAME_GRANT, UINT32_MAX);
    for (uint32_t i = 0; i < segments; i++) {
        backup_segment(op, 0, i);
        struct segment s = wire_segment(op, i);
        for (uint32_t k = 1; k < op->n; k++)
            op_push(op, (op->rank + k) % op->n, &s);
    }
    op->u.one_round.left = segments;
    if (!segments)
        op_finished(op);
    return PCCL_OK;
}

static pccl_err place(struct op *op, uint32_t from, const struct frame *frame, uint8_t **target_p)
{
    uint32_t segment;
    if (frame->step != 0 || span_locate(op, 0, frame->offset, frame->payload_bytes, &segment) != PCCL_OK ||
        !arrival_is_new(op, from, segment))
        return PCCL_EPROTO;
    int in_slot = uses_slots(op) && codec_of(op) == PCCL_CODEC_NONE;
    *target_p = in_slot ? slot(op, from, frame->offset) : NULL;
    return PCCL_OK;
}

/* All contributions to a segment are here. */
static void fold(struct op *op, struct extent x, const uint8_t *payload)
{
    const void *sources[LIMIT_PEERS];
    for (uint32_t i = 0; i < op->n; i++)
        sources[i] = i == op->rank ? own_share(op) + x.offset : uses_slots(op) ? slot(op, i, x.offset) : payload;
    reduce_kernel((pccl_dtype)op->request.dtype, (pccl_redop)op->request.redop)(
        (uint8_t *)op->request.out + x.offset, sources, op->n, x.bytes / op->element_bytes, op->n);
}

static void arrived(struct op *op, uint32_t from, const struct frame *frame, const uint8_t *payload)
{
    struct one_round_state *o = &op->u.one_round;
    uint32_t segment;
    if (span_locate(op, 0, frame->offset, frame->payload_bytes, &segment) != PCCL_OK || !arrival_take(op, from, segment))
        return;
    struct extent x = span_segment(op, 0, segment);
    if (codec_of(op) != PCCL_CODEC_NONE && !decode(op, x, payload, slot(op, from, x.offset)))
        return;
    uint32_t *count = &o->arrived[segment];
    if (*count >= op->n - 1 || ++*count < op->n - 1)
        return;
    fold(op, x, payload);
    if (o->left && --o->left == 0)
        op_finished(op);
}

static void drop(struct op *op)
{
    struct one_round_state *o = &op->u.one_round;
    pool_give(&op->engine->pool, o->slots, o->slots_bytes);
    pool_give(&op->engine->pool, o->encoded, o->encoded_bytes);
    mem_free(o->arrived);
}

const struct algorithm one_round_reduce = {"one_round", start, place, arrived, drop};
