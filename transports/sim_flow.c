/* sim_flow.c - what travels: when it arrives, in which order, and what chance does to it on the way.
 *
 * It is a queue of segments per flow, each with its due time; only the first of a queue stands in the heap of events,
 * so a flow is in order whatever jitter says. When its path is cut the flow stays out of the heap until the path is
 * healed. The fate of a write is drawn when it is made, all from one generator. */
#include "sim.h"

#include <stdlib.h>
#include <string.h>

enum { SIM_SEGMENT_BYTES = 64 << 10 };  /* largest single delivery */

#define NS_PER_S 1000000000ull

/* -- chance ------------------------------------------------------------------------------------ */

static uint64_t draw(pccl_sim *sim)
{
    sim->random += 0x9e3779b97f4a7c15u;
    return sim_mix(sim->random);
}

int sim_chance(pccl_sim *sim, uint32_t ppm)
{
    return ppm != 0 && draw(sim) % SIM_PPM < ppm;
}

static uint64_t draw_jitter(pccl_sim *sim, const struct sim_path *path)
{
    return path->now.jitter_ns ? draw(sim) % saturating_add(path->now.jitter_ns, 1) : 0;
}

/* -- queues ------------------------------------------------------------------------------------ */

void sim_queue_append(struct sim_queue *queue, struct sim_segment *segment)
{
    segment->next = NULL;
    if (queue->last)
        queue->last->next = segment;
    else
        queue->first = segment;
    queue->last = segment;
}

struct sim_segment *sim_queue_take(struct sim_queue *queue)
{
    struct sim_segment *segment = queue->first;
    queue->first = segment->next;
    if (!queue->first)
        queue->last = NULL;
    return segment;
}

void sim_segment_free(struct sim_segment *segment)
{
    if (segment->kind == SIM_BYTES)
        free(segment);
}

void sim_queue_clear(struct sim_queue *queue)
{
    while (queue->first)
        sim_segment_free(sim_queue_take(queue));
}

static void queue_move(struct sim_queue *from, struct sim_queue *to)
{
    while (from->first)
        sim_queue_append(to, sim_queue_take(from));
}

static struct sim_segment *segment_new(size_t bytes)
{
    struct sim_segment *segment = malloc(sizeof *segment + bytes);
    if (segment)
        *segment = (struct sim_segment){.kind = SIM_BYTES, .bytes = bytes, .data = (uint8_t *)(segment + 1)};
    return segment;
}

/* -- flows ------------------------------------------------------------------------------------- */

void sim_flow_schedule(pccl_sim *sim, struct sim_flow *flow)
{
    if (flow->queue.first)
        sim_event_at(sim, &flow->first, flow->queue.first->due_ns);
    else
        sim_event_cancel(sim, &flow->first);
}

/* When bytes that are sent now arrive: behind what the path has yet to send, never before the flow's last ones. */
static uint64_t flow_due(pccl_sim *sim, struct sim_flow *flow, size_t bytes, uint64_t jitter_ns)
{
    struct sim_path *path = flow->path;
    uint64_t departure_ns = sim->now_ns;
    if (path->now.bytes_per_s) {
        departure_ns = max_u64(departure_ns, path->free_ns);
        departure_ns = saturating_add(departure_ns, bytes * NS_PER_S / path->now.bytes_per_s);
        path->free_ns = departure_ns;
    }
    uint64_t due_ns = saturating_add(departure_ns, saturating_add(path->now.delay_ns, jitter_ns));
    flow->last_due_ns = max_u64(flow->last_due_ns, due_ns);
    return flow->last_due_ns;
}

static void flow_append(pccl_sim *sim, struct sim_flow *flow, struct sim_segment *segment, uint64_t due_ns)
{
    segment->due_ns = due_ns;
    flow->flight_bytes += segment->bytes;
    sim_queue_append(&flow->queue, segment);
    if (flow->queue.first == segment)
        sim_flow_schedule(sim, flow);
}

void sim_flow_send(pccl_sim *sim, struct sim_flow *flow, struct sim_segment *segment, enum sim_kind kind)
{
    segment->kind = kind;
    flow_append(sim, flow, segment, flow_due(sim, flow, 0, draw_jitter(sim, flow->path)));
}

void sim_flow_end(pccl_sim *sim, struct sim_flow *flow)
{
    if (flow->ended)
        return;
    flow->ended = 1;
    sim_flow_send(sim, flow, &flow->end, SIM_END);
}

/* Drops what would arrive after due_ns. */
static void flow_truncate(pccl_sim *sim, struct sim_flow *flow, uint64_t due_ns)
{
    struct sim_queue kept = {NULL, NULL};
    while (flow->queue.first && flow->queue.first->due_ns <= due_ns)
        sim_queue_append(&kept, sim_queue_take(&flow->queue));
    for (struct sim_segment *lost = flow->queue.first; lost; lost = lost->next)
        flow->flight_bytes -= lost->bytes;
    sim_queue_clear(&flow->queue);
    flow->queue = kept;
    flow->last_due_ns = kept.last ? kept.last->due_ns : 0;
    sim_flow_schedule(sim, flow);
}

void sim_flow_clear(pccl_sim *sim, struct sim_flow *flow)
{
    sim_queue_clear(&flow->queue);
    flow->flight_bytes = 0;
    sim_event_cancel(sim, &flow->first);
}

void sim_flow_reset_in_order(pccl_sim *sim, struct sim_flow *flow)
{
    if (flow->was_reset)
        return;
    flow->was_reset = flow->ended = 1;
    flow->reset.kind = SIM_RESET;
    uint64_t due_ns = saturating_add(sim->now_ns, flow->path->now.delay_ns);
    flow->last_due_ns = max_u64(flow->last_due_ns, due_ns);
    flow_append(sim, flow, &flow->reset, flow->last_due_ns);
}

void sim_flow_reset(pccl_sim *sim, struct sim_flow *flow)
{
    if (!flow->was_reset)
        flow_truncate(sim, flow, saturating_add(sim->now_ns, flow->path->now.delay_ns));
    sim_flow_reset_in_order(sim, flow);
}

void sim_flow_heal(pccl_sim *sim, struct sim_flow *flow)
{
    if (!flow->queue.first || flow->first.queued)
        return;
    flow->last_due_ns = 0;
    for (struct sim_segment *segment = flow->queue.first; segment; segment = segment->next)
        segment->due_ns = flow_due(sim, flow, segment->bytes, 0);
    sim_flow_schedule(sim, flow);
}

/* -- writes ------------------------------------------------------------------------------------ */

/* Copies `bytes` bytes into new segments. */
static pccl_err gather(const struct iovec *iov, size_t bytes, struct sim_queue *queue_p)
{
    struct sim_queue queue = {NULL, NULL};
    size_t offset = 0;
    while (bytes > 0) {
        struct sim_segment *segment = segment_new(bytes < SIM_SEGMENT_BYTES ? bytes : SIM_SEGMENT_BYTES);
        if (!segment) {
            sim_queue_clear(&queue);
            return PCCL_ENOMEM;
        }
        for (size_t done = 0; done < segment->bytes;) {
            size_t left = iov->iov_len - offset;
            size_t taken = left < segment->bytes - done ? left : segment->bytes - done;
            memcpy(segment->data + done, (const uint8_t *)iov->iov_base + offset, taken);
            done += taken;
            offset += taken;
            if (offset == iov->iov_len) {
                iov++;
                offset = 0;
            }
        }
        bytes -= segment->bytes;
        sim_queue_append(&queue, segment);
    }
    *queue_p = queue;
    return PCCL_OK;
}

static void corrupt_byte(pccl_sim *sim, struct sim_queue *queue, size_t bytes)
{
    uint64_t dice = draw(sim);
    size_t at = (size_t)(dice % bytes);
    struct sim_segment *segment = queue->first;
    for (; at >= segment->bytes; segment = segment->next)
        at -= segment->bytes;
    segment->data[at] ^= (uint8_t)(1u << (dice >> 61));
}

/* What one write becomes: its segments, twice if chance says so. */
pccl_err sim_flow_write(pccl_sim *sim, struct sim_flow *flow, const struct iovec *iov, size_t bytes)
{
    struct sim_queue queue = {NULL, NULL}, again = {NULL, NULL};
    int twice = sim_chance(sim, flow->path->now.duplicate_ppm);
    if (gather(iov, bytes, &queue) != PCCL_OK || (twice && gather(iov, bytes, &again) != PCCL_OK)) {
        sim_queue_clear(&queue);
        return PCCL_ENOMEM;
    }
    if (sim_chance(sim, flow->path->now.corrupt_ppm))
        corrupt_byte(sim, &queue, bytes);
    queue_move(&again, &queue);
    uint64_t jitter_ns = draw_jitter(sim, flow->path);
    while (queue.first) {
        struct sim_segment *segment = sim_queue_take(&queue);
        flow_append(sim, flow, segment, flow_due(sim, flow, segment->bytes, jitter_ns));
    }
    return PCCL_OK;
}
