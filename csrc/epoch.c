/* epoch.c - epochs: freezing them, installing the next one with the coordinator's verdicts, retiring old ones. */
#include <string.h>

#include "engine.h"
#include "err.h"

struct epoch *epoch_for(const pccl_engine *e, uint32_t boundary)
{
    for (struct epoch *epoch = e->epochs; epoch; epoch = epoch->next)
        if (epoch->from_boundary <= boundary)
            return epoch;
    return NULL;
}

struct link *epoch_link(pccl_engine *e, const struct epoch *epoch, const pccl_member *member)
{
    return link_find(e, &member->id, member->via ? epoch->number : 0);
}

const pccl_member *epoch_member(const pccl_engine *e, const pccl_peer_id *id, const struct epoch **epoch_p)
{
    for (const struct epoch *epoch = e->epochs; epoch; epoch = epoch->next)
        for (uint32_t i = 0; i < epoch->member_count; i++) {
            if (peer_id_compare(&epoch->members[i].id, id) != 0)
                continue;
            if (epoch_p)
                *epoch_p = epoch;
            return &epoch->members[i];
        }
    return NULL;
}

int epoch_live(const pccl_engine *e, uint32_t number)
{
    for (const struct epoch *epoch = e->epochs; epoch; epoch = epoch->next)
        if (epoch->number == number)
            return 1;
    return 0;
}

uint32_t epoch_newest(const pccl_engine *e)
{
    return e->epochs ? e->epochs->number : 0;
}

uint32_t epoch_oldest(const pccl_engine *e)
{
    const struct epoch *epoch = e->epochs;
    while (epoch && epoch->next)
        epoch = epoch->next;
    return epoch ? epoch->number : 0;
}

static void epoch_free(struct epoch *epoch)
{
    mem_free(epoch->members);
    mem_free(epoch);
}

void epoch_free_all(pccl_engine *e)
{
    while (e->epochs) {
        struct epoch *next = e->epochs->next;
        epoch_free(e->epochs);
        e->epochs = next;
    }
}

/* -- freezing -------------------------------------------------------------------------------------------------------- */

static void take_snapshot(pccl_engine *e)
{
    uint32_t op_count = 0, lane_count;
    pccl_op_state *ops = mem_alloc(e->table.count * sizeof *ops);
    pccl_lane_state *lanes = lanes_report(e, &lane_count);
    ASSERT(ops && lanes);
    for (const struct op *op = e->ops_first; op; op = op->next)
        ops[op_count++] = (pccl_op_state){.name = op->request.name, .token = op->request.token,
                                          .finished = op->state == OP_FINISHED};
    pthread_mutex_lock(&e->lock);
    mem_free(e->frozen_ops);
    mem_free(e->frozen_lanes);
    e->frozen_ops = ops;
    e->frozen_op_count = op_count;
    e->frozen_lanes = lanes;
    e->frozen_lane_count = lane_count;
    pthread_mutex_unlock(&e->lock);
}

static void freeze_ops(pccl_engine *e)
{
    e->frozen = 1;
    for (struct op *op = e->ops_first; op; op = op->next)
        op_freeze(op);
}

void epoch_freeze(pccl_engine *e, uint32_t change)
{
    freeze_ops(e);
    take_snapshot(e);
    pccl_event event = {.kind = PCCL_EVENT_FROZEN, .token = change, .epoch = epoch_newest(e)};
    engine_emit(e, &event);
}

/* -- verdicts -------------------------------------------------------------------------------------------------------- */

static int same_name(const pccl_op_name *a, const pccl_op_name *b)
{
    return a->lane == b->lane && a->boundary == b->boundary && a->seq == b->seq;
}

static const pccl_verdict *verdict_on(const pccl_epoch *config, const pccl_op_name *name)
{
    for (uint32_t i = 0; i < config->verdict_count; i++)
        if (same_name(&config->verdicts[i].name, name))
            return &config->verdicts[i];
    return NULL;
}

static void judge(struct op *op, const pccl_verdict *verdict)
{
    if (!verdict) {
        op_reset(op);
        return;
    }
    pccl_err status = (pccl_err)verdict->status;
    /* A peer that has not finished cannot have told the coordinator so. */
    if (status == PCCL_OK && op->state != OP_FINISHED)
        status = PCCL_EPROTO;
    op_end(op, status);
}

static void bury(pccl_engine *e, const pccl_epoch *config)
{
    for (uint32_t i = 0; i < config->verdict_count; i++) {
        const pccl_verdict *v = &config->verdicts[i];
        if (v->status == PCCL_OK || op_table_find(&e->table, &v->name) || op_is_over(e, &v->name))
            continue;
        struct tombstone *t = mem_alloc(sizeof *t);
        ASSERT(t);
        *t = (struct tombstone){.next = e->tombstones, .verdict = *v};
        e->tombstones = t;
    }
}

pccl_err tombstone_take(pccl_engine *e, const pccl_op_name *name)
{
    for (struct tombstone **at = &e->tombstones; *at; at = &(*at)->next) {
        struct tombstone *t = *at;
        if (!same_name(&t->verdict.name, name))
            continue;
        pccl_err status = (pccl_err)t->verdict.status;
        *at = t->next;
        mem_free(t);
        return status;
    }
    return PCCL_OK;
}

void tombstone_forget(pccl_engine *e, uint32_t boundary)
{
    struct tombstone **at = &e->tombstones;
    while (*at) {
        struct tombstone *t = *at;
        if (t->verdict.name.boundary < boundary) {
            *at = t->next;
            mem_free(t);
        } else {
            at = &t->next;
        }
    }
}

/* -- installing ------------------------------------------------------------------------------------------------------ */

static struct epoch *epoch_new(const pccl_epoch *config)
{
    struct epoch *epoch = mem_alloc(sizeof *epoch);
    pccl_member *members = mem_alloc(config->member_count * sizeof *members);
    ASSERT(epoch && members);
    memcpy(members, config->members, config->member_count * sizeof *members);
    *epoch = (struct epoch){
        .number = config->epoch, .from_boundary = config->from_boundary, .member_count = config->member_count,
        .members = members, .streams = config->streams, .segment_bytes = config->segment_bytes,
        .one_round_bytes_max = config->one_round_bytes_max, .mesh_bytes_max = config->mesh_bytes_max,
        .large_algorithm = config->large_algorithm,
    };
    return epoch;
}

static void want_links(pccl_engine *e, const struct epoch *epoch)
{
    for (uint32_t i = 0; i < epoch->member_count; i++) {
        const pccl_member *m = &epoch->members[i];
        uint32_t streams = m->streams ? m->streams : epoch->streams;
        if (peer_id_compare(&m->id, &e->config.self) == 0)
            continue;
        ASSERT(link_want(e, m, streams));
        if (m->via)
            ASSERT(link_want_detour(e, m, &epoch->members[m->via - 1], epoch->number, streams));
    }
}

/* A detour whose epoch is over: what it has still to say, the last FINs above all, may be what the other side waits for. */
static int lingers(pccl_engine *e, struct link *l)
{
    if (!l->linger_until_ns)
        l->linger_until_ns = e->now_ns + LINGER_NS;
    if (link_is_drained(l) || l->linger_until_ns <= e->now_ns)
        return 0;
    e->lingering = 1;
    return 1;
}

/* `at_once`: no frame of an epoch that is over is of use to anybody. */
static void close_unwanted_links(pccl_engine *e, int at_once)
{
    e->lingering = 0;
    for (struct link *l = e->links, *next; l; l = next) {
        next = l->next;
        int is_member = epoch_member(e, &l->id, NULL) != NULL, wanted = is_member || l->prepared || l->acquainted;
        if (l->detour_epoch)
            wanted = is_member && (epoch_live(e, l->detour_epoch) || (!at_once && lingers(e, l)));
        if (!wanted)
            link_close(l);
    }
    relay_drop_strangers(e);
}

void epoch_close_unwanted(pccl_engine *e)
{
    close_unwanted_links(e, 0);
}

void epoch_acquaint(pccl_engine *e, const pccl_member *member, uint32_t streams)
{
    struct link *l = link_find(e, &member->id, 0);
    if (l && l->incarnation < member->incarnation && !epoch_member(e, &member->id, NULL)) {
        link_close(l); /* the other side has closed it, or will: another one comes in its place */
        l = NULL;
    }
    if (!l)
        l = link_want(e, member, streams);
    ASSERT(l);
    l->acquainted = 1;
}

void epoch_unacquaint(pccl_engine *e, const pccl_peer_id *peer)
{
    struct link *l = link_find(e, peer, 0);
    if (!l)
        return;
    l->acquainted = 0;
    close_unwanted_links(e, 0);
}

static void drop_old_frames(pccl_engine *e)
{
    for (struct link *l = e->links; l; l = l->next)
        link_drop_parked(l, epoch_oldest(e));
}

/* The new epoch replaces all others: every op is judged, or starts again in it. */
static void replace_epochs(pccl_engine *e, struct epoch *epoch, const pccl_epoch *config)
{
    struct epoch *old = e->epochs;
    freeze_ops(e);
    for (struct op *op = e->ops_first, *next; op; op = next) {
        next = op->next;
        judge(op, verdict_on(config, &op->request.name));
    }
    while (old) {
        struct epoch *next = old->next;
        ASSERT(old->ops == 0);
        epoch_free(old);
        old = next;
    }
    epoch->next = NULL;
    e->epochs = epoch;
    e->frozen = 0;
}

void epoch_install(pccl_engine *e, const pccl_epoch *config)
{
    struct epoch *epoch = epoch_new(config);
    bury(e, config);
    if (config->change) {
        replace_epochs(e, epoch, config);
    } else {
        epoch->next = e->epochs;
        e->epochs = epoch;
    }
    for (struct link *l = e->links; l; l = l->next)
        l->prepared = 0; /* whom a hold named is a member now, or will not be one */
    want_links(e, epoch);
    fetch_reroute(e);
    close_unwanted_links(e, config->change != 0);
    drop_old_frames(e);
    for (struct op *op = e->ops_first, *next; op; op = next) {
        next = op->next;
        op_try_start(op);
    }
}

/* An old epoch is dead when this peer can call no more ops of it and none is left. */
void epoch_retire(pccl_engine *e)
{
    int retired = 0;
    for (struct epoch *newer = e->epochs; newer && newer->next; newer = newer->next) {
        struct epoch *older = newer->next;
        if (older->next || older->ops || newer->from_boundary > e->boundary)
            continue;
        newer->next = NULL;
        epoch_free(older);
        retired = 1;
        break;
    }
    if (retired || e->lingering)
        close_unwanted_links(e, 0);
    if (retired)
        drop_old_frames(e);
}
