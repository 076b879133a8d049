/* events.c - what the engine tells the rest of the process: the event ring, its descriptor, and the counters. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "engine.h"
#include "err.h"

#define LINKS_EVERY_NS (50 * MILLISECOND)

static void grow_events(pccl_engine *e)
{
    uint32_t cap = e->event_cap ? 2 * e->event_cap : 256;
    pccl_event *bigger = mem_alloc(cap * sizeof *bigger);
    ASSERT(bigger);
    for (uint32_t i = 0; i < e->event_count; i++)
        bigger[i] = e->events[(e->event_head + i) % e->event_cap];
    mem_free(e->events);
    e->events = bigger;
    e->event_head = 0;
    e->event_cap = cap;
}

void engine_emit(pccl_engine *e, const pccl_event *event)
{
    pthread_mutex_lock(&e->lock);
    if (e->event_count == e->event_cap)
        grow_events(e);
    e->events[(e->event_head + e->event_count++) % e->event_cap] = *event;
    pthread_mutex_unlock(&e->lock);
}

void engine_refused(pccl_engine *e, const pccl_event *event, const char *remote, const char *reason)
{
    pthread_mutex_lock(&e->lock);
    snprintf(e->refusal, sizeof e->refusal, "%s: %s", remote, reason);
    pthread_mutex_unlock(&e->lock);
    engine_emit(e, event);
}

int pccl_engine_refusal(pccl_engine *engine, char *text, int cap)
{
    pccl_engine *e = engine;
    pthread_mutex_lock(&e->lock);
    int length = snprintf(text, cap > 0 ? (size_t)cap : 0, "%s", e->refusal);
    pthread_mutex_unlock(&e->lock);
    return length;
}

/* Under the lock, so that a reader that has just emptied the ring cannot be left with a descriptor that says otherwise. */
static void signal_events(pccl_engine *e)
{
    if (!e->event_count || e->event_signalled)
        return;
    uint64_t one = 1;
    ssize_t n = write(e->event_fd, &one, sizeof one);
    ASSERT(n == (ssize_t)sizeof one);
    e->event_signalled = 1;
}

int pccl_engine_events(pccl_engine *engine, pccl_event *events, int cap)
{
    pccl_engine *e = engine;
    int count = 0;
    pthread_mutex_lock(&e->lock);
    while (count < cap && e->event_count) {
        events[count++] = e->events[e->event_head];
        e->event_head = (e->event_head + 1) % e->event_cap;
        e->event_count--;
    }
    if (!e->event_count && e->event_signalled) {
        uint64_t drained;
        ssize_t n = read(e->event_fd, &drained, sizeof drained);
        ASSERT(n == (ssize_t)sizeof drained);
        e->event_signalled = 0;
    }
    pthread_mutex_unlock(&e->lock);
    return count;
}

static void count_links(pccl_engine *e)
{
    e->stats.links = e->stats.streams = 0;
    for (const struct link *l = e->links; l; l = l->next) {
        if (l->detour_epoch)
            continue;
        e->stats.links += l->open != 0;
        e->stats.streams += l->open;
    }
    e->stats.conns = 0;
    for (const struct conn *c = e->conns; c; c = c->next)
        e->stats.conns += c->stream && c->state != CONN_DEAD;
    e->stats.relays = e->relays;
    e->stats.regions = e->transfers.region_count;
}

static void publish_links(pccl_engine *e)
{
    uint32_t count = 0;
    for (const struct link *l = e->links; l; l = l->next)
        count++;
    if (count > e->links_shared_cap) {
        mem_free(e->links_shared);
        e->links_shared = mem_alloc(count * sizeof *e->links_shared);
        ASSERT(e->links_shared);
        e->links_shared_cap = count;
    }
    e->links_shared_count = 0;
    for (const struct link *l = e->links; l; l = l->next)
        if (!l->detour_epoch)
            e->links_shared[e->links_shared_count++] = (pccl_link_stats){
                .peer = l->id, .streams = l->used, .rtt_us = l->rtt_us,
                .bytes_per_s = l->meter.bytes_per_s, .loss_ppm = l->meter.loss.is_known ? l->meter.loss.ppm : UINT32_MAX, .sent_bytes = l->sent_bytes,
                .received_bytes = l->received_bytes, .unacked_frames = l->send_next - l->send_acked,
            };
}

/* Ops are in the order of their boundaries. */
static uint32_t oldest_boundary(const pccl_engine *e)
{
    uint32_t first = e->ops_first ? e->ops_first->request.name.boundary : UINT32_MAX;
    return first < e->boundary ? first : e->boundary;
}

void engine_publish(pccl_engine *e)
{
    int with_links = e->now_ns - e->published_ns >= LINKS_EVERY_NS;
    e->stats.pool_bytes = e->pool.held_bytes;
    e->stats.oldest_boundary = oldest_boundary(e);
    e->stats.up_bytes_per_s = e->line.up_bytes_per_s;
    e->stats.down_bytes_per_s = e->line.down_bytes_per_s;
    e->stats.went_up_bytes_per_s = e->line.went_up_bytes_per_s;
    e->stats.went_down_bytes_per_s = e->line.went_down_bytes_per_s;
    count_links(e);
    pthread_mutex_lock(&e->lock);
    signal_events(e);
    e->stats_shared = e->stats;
    if (with_links) {
        publish_links(e);
        e->published_ns = e->now_ns;
    }
    pthread_mutex_unlock(&e->lock);
}

void pccl_engine_stats(pccl_engine *engine, pccl_stats *stats)
{
    pccl_engine *e = engine;
    pthread_mutex_lock(&e->lock);
    *stats = e->stats_shared;
    pthread_mutex_unlock(&e->lock);
    stats->size = sizeof *stats;
}

int pccl_engine_links(pccl_engine *engine, pccl_link_stats *links, int cap)
{
    pccl_engine *e = engine;
    pthread_mutex_lock(&e->lock);
    int count = (int)e->links_shared_count;
    for (int i = 0; i < count && i < cap; i++)
        links[i] = e->links_shared[i];
    pthread_mutex_unlock(&e->lock);
    return count;
}
