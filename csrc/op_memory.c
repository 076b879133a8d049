/* op_memory.c - spans and segments of an op, and the backup of in-place inputs.
 *
 * A reduction's elements are cut into n spans, equal ones or by the weights that the plan gives the participants (a peer with
 * a slow uplink owns less of a mesh); a span is cut into segments of segment_elements. Offsets on the wire are bytes from
 * the beginning of the op's data. An in-place input is copied segment by segment, just before the segment is
 * overwritten for the first time, while its bytes are in the cache anyway. */
#include <string.h>

#include "codec.h"
#include "engine.h"
#include "err.h"

pccl_err spans_prepare(struct op *op, const uint32_t *weights)
{
    uint64_t total = 0, before = 0;
    for (uint32_t i = 0; weights && i < op->n; i++)
        total += weights[i];
    op->spans = mem_alloc((op->n + 1) * sizeof *op->spans);
    if (!op->spans)
        return PCCL_ENOMEM;
    for (uint32_t i = 0; i <= op->n; i++) {
        op->spans[i] = total ? (uint64_t)((unsigned __int128)op->request.count * before / total)
                             : op->request.count / op->n * i + op->request.count % op->n * i / op->n;
        if (total && i < op->n)
            before += weights[i];
    }
    return PCCL_OK;
}

static uint64_t span_elements(const struct op *op, uint32_t span)
{
    return op->spans[span + 1] - op->spans[span];
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
        .offset = (op->spans[span] + first) * op->element_bytes,
        .bytes = elements * op->element_bytes,
    };
}

uint32_t span_wire_bytes(const struct op *op, struct extent x)
{
    if (!op->request.codec)
        return x.bytes;
    return (uint32_t)codec_bytes((pccl_codec)op->request.codec, x.bytes / sizeof(float));
}

pccl_err span_locate(const struct op *op, uint32_t span, uint64_t offset, uint32_t bytes, uint32_t *segment_p)
{
    uint64_t begin = op->spans[span] * op->element_bytes;
    uint64_t segment_bytes = (uint64_t)op->segment_elements * op->element_bytes;
    if (offset < begin || (offset - begin) % segment_bytes != 0)
        return PCCL_EPROTO;
    uint64_t segment = (offset - begin) / segment_bytes;
    if (segment >= span_segments(op, span) || span_wire_bytes(op, span_segment(op, span, (uint32_t)segment)) != bytes)
        return PCCL_EPROTO;
    *segment_p = (uint32_t)segment;
    return PCCL_OK;
}

uint64_t span_segments_max(const struct op *op)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < op->n; i++)
        most = span_segments(op, i) > most ? span_segments(op, i) : most;
    return most;
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
    op->segments_per_span = (uint32_t)span_segments_max(op);
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
