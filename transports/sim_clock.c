/* sim_clock.c - which event of the simulated network is next: a heap, ordered by (time, sequence).
 *
 * The sequence is the order in which events were queued, so that equal runs have equal orders. */
#include "sim.h"

#include <stdlib.h>

static int event_before(const struct sim_event *a, const struct sim_event *b)
{
    return a->due_ns != b->due_ns ? a->due_ns < b->due_ns : a->sequence < b->sequence;
}

static void heap_put(pccl_sim *sim, size_t index, struct sim_event *event)
{
    sim->heap[index] = event;
    event->heap_index = index;
}

/* Puts the event where it belongs, starting from a free place. */
static void heap_sift(pccl_sim *sim, size_t index, struct sim_event *event)
{
    while (index > 0 && event_before(event, sim->heap[(index - 1) / 2])) {
        heap_put(sim, index, sim->heap[(index - 1) / 2]);
        index = (index - 1) / 2;
    }
    for (;;) {
        size_t child = 2 * index + 1;
        if (child + 1 < sim->heap_count && event_before(sim->heap[child + 1], sim->heap[child]))
            child++;
        if (child >= sim->heap_count || !event_before(sim->heap[child], event))
            break;
        heap_put(sim, index, sim->heap[child]);
        index = child;
    }
    heap_put(sim, index, event);
}

void sim_event_cancel(pccl_sim *sim, struct sim_event *event)
{
    if (!event->queued)
        return;
    event->queued = 0;
    struct sim_event *last = sim->heap[--sim->heap_count];
    if (last != event)
        heap_sift(sim, event->heap_index, last);
}

void sim_event_at(pccl_sim *sim, struct sim_event *event, uint64_t due_ns)
{
    sim_event_cancel(sim, event);
    event->due_ns = max_u64(due_ns, sim->now_ns);
    event->sequence = sim->sequence++;
    event->queued = 1;
    sim->heap_count++;
    heap_sift(sim, sim->heap_count - 1, event);
}

pccl_err sim_heap_reserve(pccl_sim *sim, size_t event_count)
{
    if (event_count <= sim->heap_room)
        return PCCL_OK;
    struct sim_event **heap = realloc(sim->heap, 2 * event_count * sizeof *heap);
    if (!heap)
        return PCCL_ENOMEM;
    sim->heap = heap;
    sim->heap_room = 2 * event_count;
    return PCCL_OK;
}
