/* region.c - what this peer offers to others: regions of its memory, and which parts of them may be fetched yet. */
#include <string.h>

#include "engine.h"
#include "err.h"

static uint32_t bucket_of(const uint8_t *key, uint64_t generation)
{
    uint64_t a, b;
    memcpy(&a, key, 8);
    memcpy(&b, key + 8, 8);
    uint64_t hash = (a ^ b * 0x9E3779B97F4A7C15ULL ^ generation * 0xBF58476D1CE4E5B9ULL) * 0x94D049BB133111EBULL;
    return (uint32_t)(hash >> 32) % TRANSFER_BUCKETS;
}

static struct region **place_of(const pccl_engine *e, const uint8_t *key, uint64_t generation)
{
    struct region **at = &e->transfers.regions[bucket_of(key, generation)];
    while (*at && ((*at)->offer.generation != generation || memcmp((*at)->offer.key, key, sizeof (*at)->offer.key) != 0))
        at = &(*at)->hash_next;
    return at;
}

struct region *region_find(const pccl_engine *e, const uint8_t *key, uint64_t generation)
{
    return e->transfers.regions ? *place_of(e, key, generation) : NULL;
}

static void emit_withdrawn(pccl_engine *e, uint64_t token, pccl_err status)
{
    pccl_event event = {.kind = PCCL_EVENT_WITHDRAWN, .token = token, .status = (int32_t)status};
    engine_emit(e, &event);
}

static pccl_err offer_new(pccl_engine *e, const pccl_region *offer, int whole)
{
    struct transfers *t = &e->transfers;
    if (!t->regions)
        t->regions = mem_alloc(TRANSFER_BUCKETS * sizeof *t->regions);
    if (!t->regions || t->region_count == LIMIT_REGIONS)
        return PCCL_ENOMEM;
    struct region **at = place_of(e, offer->key, offer->generation);
    if (*at)
        return PCCL_EINVAL;
    struct region *r = mem_alloc(sizeof *r);
    if (!r)
        return PCCL_ENOMEM;
    r->offer = *offer;
    r->whole = whole;
    *at = r;
    t->region_count++;
    return PCCL_OK;
}

void region_offer(pccl_engine *e, const pccl_region *offer, int whole)
{
    pccl_err err = offer_new(e, offer, whole);
    if (err != PCCL_OK)
        emit_withdrawn(e, offer->token, err);
}

static void end_at(pccl_engine *e, struct region **at, pccl_err status)
{
    struct region *r = *at;
    serve_region_gone(r);
    *at = r->hash_next;
    e->transfers.region_count--;
    emit_withdrawn(e, r->offer.token, status);
    mem_free(r->ranges);
    mem_free(r);
}

void region_withdraw(pccl_engine *e, const uint8_t *key, uint64_t generation)
{
    if (region_find(e, key, generation))
        end_at(e, place_of(e, key, generation), PCCL_OK);
}

void region_withdraw_all(pccl_engine *e, pccl_err status)
{
    for (uint32_t i = 0; e->transfers.regions && i < TRANSFER_BUCKETS; i++)
        while (e->transfers.regions[i])
            end_at(e, &e->transfers.regions[i], status);
    mem_free(e->transfers.regions);
    e->transfers.regions = NULL;
}

/* -- which parts are there ------------------------------------------------------------------------------------------ */

/* The first range that ends at `offset` or behind it. */
static uint32_t range_at(const struct region *r, uint64_t offset)
{
    uint32_t low = 0, high = r->range_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (r->ranges[middle].end < offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

int region_has(const struct region *r, struct range part)
{
    uint32_t i = range_at(r, part.end);
    return r->whole || (i < r->range_count && r->ranges[i].begin <= part.begin);
}

static int make_room(struct region *r)
{
    if (r->range_count < r->range_cap)
        return 1;
    uint32_t cap = r->range_cap ? 2 * r->range_cap : 8;
    struct range *bigger = mem_grow(r->ranges, cap * sizeof *bigger);
    if (!bigger)
        return 0;
    r->ranges = bigger;
    r->range_cap = cap;
    return 1;
}

/* Enters the part, as one with the ranges that it meets. */
static int add_range(struct region *r, struct range part)
{
    uint32_t first = range_at(r, part.begin), last = first;
    for (; last < r->range_count && r->ranges[last].begin <= part.end; last++) {
        part.begin = r->ranges[last].begin < part.begin ? r->ranges[last].begin : part.begin;
        part.end = r->ranges[last].end > part.end ? r->ranges[last].end : part.end;
    }
    if (first == last && !make_room(r))
        return 0;
    memmove(r->ranges + first + 1, r->ranges + last, (r->range_count - last) * sizeof *r->ranges);
    r->range_count = r->range_count + 1 - (last - first);
    r->ranges[first] = part;
    return 1;
}

void region_extend(pccl_engine *e, const uint8_t *key, uint64_t generation, struct range part)
{
    struct region *r = region_find(e, key, generation);
    if (!r)
        return;
    part.end = part.end < r->offer.bytes ? part.end : r->offer.bytes;
    if (part.begin >= part.end || r->whole)
        return;
    ASSERT(add_range(r, part));
    r->whole = r->ranges[0].begin == 0 && r->ranges[0].end == r->offer.bytes;
    serve_region_grew(r);
}
