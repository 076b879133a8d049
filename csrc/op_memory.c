/* op_memory.c - spans and segments of an op, and the backup of in-place inputs.
 *
 * A reduction's elements are cut into n spans, the i-th beginning at count * i / n; a span is cut into segments of
 * segment_elements. For exchanges (direct.c) there is one span per participant of `count` elements. Offsets on the wire are bytes
 * from the beginning of the op's data. An in-place input is copied segment by segment, just before the segment is
 * overwritten for the first time, while its bytes are in the cache anyway. */
#include <string.h>

#include "engine.h"
#include "err.h"

uint64_t span_begin(uint64_t count, uint32_t n, uint32_t index)
{
    return count / n * index + count % n * index / n;
}

static uint64_t span_elements(const struct op *op, uint32_t span)
{
    return span_begin(op->request.count, op->n, span + 1) - span_begin(op->request.count, op->n, span);
}

uint32_t span_segments(const struct op *op, uint32_t span)
{
    return (uint32_t)((span_elements(op, span) + op->segment_elements - 1) / op->segment_elements);
}

struct extent span_segment(const struct op *op, uint32_t span, uint32_t segment)
{
    uint64_t first = (uint64_t)segment * op->segment_elements;
    uint64_t left = span_elements(op, span) - first;
    uint32_t elements = left < op->segment_elements ? (uint32_t)left : op->segment_elements;
    return (struct extent){
        .offset = (span_begin(op->request.count, op->n, span) + first) * op->element_bytes,
        .bytes = elements * op->element_bytes,
    };
}

pccl_err span_locate(const struct op *op, uint32_t span, uint64_t offset, uint32_t bytes, uint32_t *segment_p)
{
    uint64_t begin = span_begin(op->request.count, op->n, span) * op->element_bytes;
    uint64_t segment_bytes = (uint64_t)op->segment_elements * op->element_bytes;
    if (offset < begin || (offset - begin) % segment_bytes != 0)
        return PCCL_EPROTO;
    uint64_t segment = (offset - begin) / segment_bytes;
    if (segment >= span_segments(op, span) || span_segment(op, span, (uint32_t)segment).bytes != bytes)
        return PCCL_EPROTO;
    *segment_p = (uint32_t)segment;
    return PCCL_OK;
}

uint64_t span_segments_max(const struct op *op)
{
    return (op->request.count / op->n + op->segment_elements) / op->segment_elements;
}

/* -- arrivals -------------------------------------------------------------------------------------------------- */

pccl_err arrivals_prepare(struct op *op, uint32_t groups, uint64_t segments_per_group)
{
    if (engine_defect(op->engine, PCCL_DEFECT_NO_DEDUPE))
        return PCCL_OK;
    op->arrivals_per_group = (uint32_t)segments_per_group;
    op->arrivals = mem_alloc(groups * segments_per_group);
    return op->arrivals ? PCCL_OK : PCCL_ENOMEM;
}

int arrival_is_new(const struct op *op, uint32_t group, uint64_t segment)
{
    return !op->arrivals || !op->arrivals[(uint64_t)group * op->arrivals_per_group + segment];
}

int arrival_take(struct op *op, uint32_t group, uint64_t segment)
{
    if (!arrival_is_new(op, group, segment))
        return 0;
    if (op->arrivals)
        op->arrivals[(uint64_t)group * op->arrivals_per_group + segment] = 1;
    return 1;
}

/* -- backup ---------------------------------------------------------------------------------------------------- */

pccl_err backup_prepare(struct op *op)
{
    if (op->request.in != op->request.out || engine_defect(op->engine, PCCL_DEFECT_NO_BACKUP))
        return PCCL_OK;
    op->segments_per_span = 0;
    for (uint32_t i = 0; i < op->n; i++)
        if (span_segments(op, i) > op->segments_per_span)
            op->segments_per_span = span_segments(op, i);
    op->backup_bytes = op->request.count * op->element_bytes;
    op->backed = mem_alloc((size_t)op->n * op->segments_per_span);
    op->backup = pool_take(&op->engine->pool, op->backup_bytes);
    return op->backed && op->backup ? PCCL_OK : PCCL_ENOMEM;
}

void backup_segment(struct op *op, uint32_t span, uint32_t segment)
{
    if (!op->backup)
        return;
    uint8_t *backed = &op->backed[(size_t)span * op->segments_per_span + segment];
    if (*backed)
        return;
    struct extent x = span_segment(op, span, segment);
    memcpy(op->backup + x.offset, (const uint8_t *)op->request.in + x.offset, x.bytes);
    *backed = 1;
}

void backup_restore(struct op *op)
{
    if (!op->backup)
        return;
    for (uint32_t span = 0; span < op->n; span++)
        for (uint32_t i = 0; i < span_segments(op, span); i++) {
            if (!op->backed[(size_t)span * op->segments_per_span + i])
                continue;
            struct extent x = span_segment(op, span, i);
            memcpy((uint8_t *)op->request.out + x.offset, op->backup + x.offset, x.bytes);
        }
    backup_drop(op);
}

void backup_drop(struct op *op)
{
    pool_give(&op->engine->pool, op->backup, op->backup_bytes);
    mem_free(op->backed);
    op->backup = NULL;
    op->backed = NULL;
}

void op_push(struct op *op, uint32_t to, const struct segment *segment)
{
    struct flow *f = &op->flows[to];
    if (f->count == f->cap && engine_defect(op->engine, PCCL_DEFECT_NO_DEDUPE))
        return;
    flow_push(f, segment);
}
