/* lanes.c - how many ops of each lane this peer has called since its boundary: what tells late frames of an op that has
 * ended from early frames of one still to be called. Forgotten at every boundary. */
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

void lane_forget_all(pccl_engine *e)
{
    for (uint32_t i = 0; i < e->lanes.cap; i++)
        e->lanes.lanes[i].used = 0;
    e->lanes.count = 0;
}

int op_is_over(const pccl_engine *e, const pccl_op_name *name)
{
    if (name->boundary != e->boundary)
        return name->boundary < e->boundary;
    return name->seq < lane_posted(e, name->lane);
}
