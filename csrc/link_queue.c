/* link_queue.c - whose segment a link sends next.
 *
 * A flow stands in the queue of its sender's priority class while it has segments. A higher class goes first, segment by segment; but a
 * class that has let STARVED_AFTER segments of higher ones pass gets the next, so nothing waits for ever. Within a class ops and transfers take turns;
 * only those that a change of membership has thrown back go before the others, the oldest first: the next result after a loss
 * should not wait for everything that was in flight. Of one flow, segments go in the order in which they were pushed; only where a link is
 * memory, what is fresh goes first, as long as the cache has it. The order is the sender's own affair: peers need not agree on it. */
#include "engine.h"
#include "err.h"

enum { STARVED_AFTER = 15 };

/* The queues in the order of service. */
static const uint8_t place_of[PCCL_PRIORITY_COUNT] = {
    [PCCL_PRIORITY_HIGH] = 0, [PCCL_PRIORITY_NORMAL] = 1, [PCCL_PRIORITY_LOW] = 2,
};

static struct flow_queue *queue_of(const struct flow *f)
{
    return &f->link->queues[place_of[f->sender->priority]];
}

void flow_push(struct flow *f, const struct segment *segment)
{
    ASSERT(f->count < f->cap);
    int first = segment->fresh && f->link->in_memory;
    if (first)
        f->head = (f->head + f->cap - 1) % f->cap;
    f->segments[(f->head + (first ? 0 : f->count)) % f->cap] = *segment;
    f->count++;
    struct flow_queue *q = queue_of(f);
    if (!f->next) {
        if (q->flows) {
            f->next = q->flows;
            f->prev = q->flows->prev;
            f->prev->next = f;
            q->flows->prev = f;
        } else {
            f->next = f->prev = f;
            q->flows = f;
        }
    }
    link_mark_dirty(f->link);
}

void flow_drop(struct flow *f)
{
    struct flow_queue *q = queue_of(f);
    f->count = 0;
    if (!f->next)
        return;
    if (f->next == f) {
        *q = (struct flow_queue){0};
    } else {
        f->prev->next = f->next;
        f->next->prev = f->prev;
        if (q->flows == f)
            q->flows = f->next;
    }
    f->next = f->prev = NULL;
}

int queues_empty(const struct link *l)
{
    for (uint32_t i = 0; i < PCCL_PRIORITY_COUNT; i++)
        if (l->queues[i].flows)
            return 0;
    return 1;
}

/* May the flow's first segment go now? A receiver that has not called the op takes only so many bytes. */
static int may_send(const struct flow *f)
{
    const struct segment *s = &f->segments[f->head];
    const struct link *l = f->link;
    if (!f->called)
        return l->eager_outstanding + s->bytes <= l->engine->config.eager_bytes;
    return !s->windowed || f->windowed_sent < f->granted;
}

static struct flow *next_in(const struct flow_queue *q)
{
    struct flow *first = q->flows, *f = first, *best = NULL;
    if (!f)
        return NULL;
    do {
        if (may_send(f)) {
            if (!f->link->engine->ops_thrown_back)
                return f;
            if (!best || (f->sender->retries && (!best->sender->retries || f->sender->number < best->sender->number)))
                best = f;
        }
        f = f->next;
    } while (f != first);
    return best;
}

struct flow *queues_next(const struct link *l)
{
    struct flow *f = NULL;
    for (uint32_t i = 0; i < PCCL_PRIORITY_COUNT && !f; i++)
        if (l->queues[i].passed_over >= STARVED_AFTER)
            f = next_in(&l->queues[i]);
    for (uint32_t i = 0; i < PCCL_PRIORITY_COUNT && !f; i++)
        f = next_in(&l->queues[i]);
    return f;
}

void flow_served(struct flow *f)
{
    struct flow_queue *q = queue_of(f), *end = f->link->queues + PCCL_PRIORITY_COUNT;
    q->flows = f->next;
    q->passed_over = 0;
    for (struct flow_queue *lower = q + 1; lower < end; lower++)
        lower->passed_over += lower->flows && lower->passed_over < STARVED_AFTER;
    f->head = (f->head + 1) % f->cap;
    if (--f->count == 0)
        flow_drop(f);
}
