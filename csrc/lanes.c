/* lanes.c - how many ops of each lane this peer has called: what tells late frames of an op that has ended from early
 * frames of one still to be called.
 *
 * The table is that of the present boundary. What it was at earlier ones is kept as records, until nobody in the group can
 * have an op of theirs pending: a frozen engine reports them, so that the coordinator can tell an op that has ended here
 * from one that was never called. Boundaries in which the same was called share a record. */
#include <string.h>

#include "engine.h"

static uint32_t slot_for(const struct lane_table *t, uint64_t lane)
{
    uint32_t i = (uint32_t)((lane * 0x9E3779B97F4A7C15ULL) >> 32) & (t->cap - 1);
    while (t->lanes[i].used && t->lanes[i].lane != lane)
        i = (i + 1) & (t->cap - 1);
    return i;
}

uint32_t lane_posted(const pccl_engine *e, uint64_t lane)
{
    if (!e->lanes.cap)
        return 0;
    const struct lane *found = &e->lanes.lanes[slot_for(&e->lanes, lane)];
    return found->used ? found->posted : 0;
}

static pccl_err grow(struct lane_table *t)
{
    struct lane_table bigger = {.cap = t->cap ? 2 * t->cap : 64, .count = t->count};
    bigger.lanes = mem_alloc(bigger.cap * sizeof *bigger.lanes);
    if (!bigger.lanes)
        return PCCL_ENOMEM;
    for (uint32_t i = 0; i < t->cap; i++)
        if (t->lanes[i].used)
            bigger.lanes[slot_for(&bigger, t->lanes[i].lane)] = t->lanes[i];
    mem_free(t->lanes);
    *t = bigger;
    return PCCL_OK;
}

pccl_err lane_note(pccl_engine *e, uint64_t lane, uint32_t posted)
{
    struct lane_table *t = &e->lanes;
    if (2 * (t->count + 1) > t->cap && grow(t) != PCCL_OK)
        return PCCL_ENOMEM;
    struct lane *found = &t->lanes[slot_for(t, lane)];
    if (!found->used)
        t->count++;
    *found = (struct lane){.lane = lane, .posted = posted, .used = 1};
    return PCCL_OK;
}

/* -- earlier boundaries ---------------------------------------------------------------------------------------------- */

static void drop_oldest_record(pccl_engine *e)
{
    struct lane_record *oldest = e->records_first;
    e->records_first = oldest->next;
    if (!e->records_first)
        e->records_last = NULL;
    e->record_lanes -= oldest->count;
    mem_free(oldest);
}

/* A record of no lanes counts as well: it has an entry in the report. */
static uint32_t fill_entries(const struct lane_table *t, uint32_t boundary, pccl_lane_state *entries)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < t->cap; i++)
        if (t->lanes[i].used)
            entries[count++] = (pccl_lane_state){.lane = t->lanes[i].lane, .boundary = boundary, .posted = t->lanes[i].posted};
    if (!count)
        entries[count++] = (pccl_lane_state){.boundary = boundary};
    return count;
}

static uint32_t entry_count(const struct lane_table *t)
{
    return t->count ? t->count : 1;
}

static int says_the_same(const pccl_engine *e, const struct lane_record *r)
{
    if (!e->lanes.count || !r->lanes[0].posted)
        return !e->lanes.count && !r->lanes[0].posted;
    if (r->count != e->lanes.count)
        return 0;
    for (uint32_t i = 0; i < r->count; i++)
        if (lane_posted(e, r->lanes[i].lane) != r->lanes[i].posted)
            return 0;
    return 1;
}

/* The table, as it is, becomes that of `boundary` and of those after it. Without memory everything earlier is forgotten. */
static void keep_record(pccl_engine *e, uint32_t boundary)
{
    if (e->records_last && says_the_same(e, e->records_last))
        return;
    struct lane_record *r = mem_alloc(sizeof *r + entry_count(&e->lanes) * sizeof *r->lanes);
    while (!r && e->records_first)
        drop_oldest_record(e);
    if (!r)
        return;
    r->count = fill_entries(&e->lanes, boundary, r->lanes);
    if (e->records_last)
        e->records_last->next = r;
    else
        e->records_first = r;
    e->records_last = r;
    e->record_lanes += r->count;
    while (e->record_lanes > LIMIT_RECORD_LANES)
        drop_oldest_record(e);
}

static void clear_table(struct lane_table *t)
{
    for (uint32_t i = 0; i < t->cap; i++)
        t->lanes[i].used = 0;
    t->count = 0;
}

void lanes_pass(pccl_engine *e, uint32_t boundary)
{
    keep_record(e, e->boundary);
    clear_table(&e->lanes);
    if (boundary > e->boundary + 1)
        keep_record(e, e->boundary + 1);
    e->boundary = boundary;
}

void lanes_forget(pccl_engine *e, uint32_t boundary)
{
    while (e->records_first) {
        const struct lane_record *next = e->records_first->next;
        if ((next ? next->lanes[0].boundary : e->boundary) > boundary)
            return;
        drop_oldest_record(e);
    }
}

pccl_lane_state *lanes_report(const pccl_engine *e, uint32_t *count_p)
{
    pccl_lane_state *entries = mem_alloc((e->record_lanes + entry_count(&e->lanes)) * sizeof *entries);
    uint32_t count = 0;
    for (const struct lane_record *r = e->records_first; entries && r; r = r->next) {
        memcpy(entries + count, r->lanes, r->count * sizeof *entries);
        count += r->count;
    }
    *count_p = entries ? count + fill_entries(&e->lanes, e->boundary, entries + count) : 0;
    return entries;
}

void lanes_free(pccl_engine *e)
{
    while (e->records_first)
        drop_oldest_record(e);
    mem_free(e->lanes.lanes);
}

int op_is_over(const pccl_engine *e, const pccl_op_name *name)
{
    if (name->boundary != e->boundary)
        return name->boundary < e->boundary;
    return name->seq < lane_posted(e, name->lane);
}
