/* op.c - the life of an op: from submission over attempts in one epoch or several to its one end. */
#include "op.h"

#include <string.h>

#include "engine.h"
#include "err.h"
#include "reduce.h"

/* Rows: state; columns: START, RESULT (this peer holds it whole), AGAIN (back for another attempt), END. */
#define NONE OP_STATE_COUNT
static const enum op_state transitions[OP_STATE_COUNT][OP_INPUT_COUNT] = {
    [OP_QUEUED] = {OP_RUNNING, NONE, OP_QUEUED, OP_ENDED},
    [OP_RUNNING] = {NONE, OP_FINISHED, OP_QUEUED, OP_ENDED},
    [OP_FINISHED] = {NONE, NONE, OP_QUEUED, OP_ENDED},
    [OP_ENDED] = {NONE, NONE, NONE, NONE},
};

static void input(struct op *op, enum op_input in)
{
    op->state = transitions[op->state][in];
    ASSERT(op->state != NONE);
}

/* -- who takes part --------------------------------------------------------------------------------------------- */

int op_is_pair(const struct op *op)
{
    return op->request.kind == PCCL_SEND_RECV;
}

int op_awaits_receipt(const struct op *op)
{
    return op_is_pair(op) && peer_id_compare(&op->request.root, &op->engine->config.self) == 0;
}

int op_sums_once(const struct op *op)
{
    uint32_t links = 0;
    for (uint32_t i = 0; i < op->n; i++)
        links += op->peers[i] && !op->peers[i]->in_memory;
    return links > 1 && !op->engine->ops->seals;
}

uint32_t op_rank_of(const struct op *op, const struct link *l)
{
    for (uint32_t i = 0; i < op->n; i++)
        if (op->peers[i] == l)
            return i;
    return op->n;
}

static int takes_part(const struct op *op, const pccl_member *m)
{
    if (m->since > op->request.name.boundary)
        return 0;
    return !op_is_pair(op) || peer_id_compare(&m->id, &op->request.root) == 0 ||
           peer_id_compare(&m->id, &op->request.target) == 0;
}

/* Is this peer itself among those that the epoch has for the op, and can it do without whoever is missing? */
static pccl_err check_needs(const struct op *op, const struct epoch *epoch)
{
    uint32_t n = 0, root_here = 0, self_here = 0;
    for (uint32_t i = 0; i < epoch->member_count; i++) {
        const pccl_member *m = &epoch->members[i];
        if (!takes_part(op, m))
            continue;
        n++;
        root_here |= peer_id_compare(&m->id, &op->request.root) == 0;
        self_here += peer_id_compare(&m->id, &op->engine->config.self) == 0;
    }
    if (self_here != 1)
        return PCCL_EPROTO;
    if (op_is_pair(op) && n != 2)
        return PCCL_EPEER;
    if (op->request.kind == PCCL_BROADCAST && !root_here)
        return PCCL_EPEER;
    return PCCL_OK;
}

/* -- one attempt --------------------------------------------------------------------------------------------------- */

static int is_near(const struct op *op)
{
    for (uint32_t i = 0; i < op->n; i++)
        if (op->peers[i] && !meter_near(op->peers[i]))
            return 0;
    return op->n > 1;
}

static pccl_err attempt_layout(struct op *op, struct epoch *epoch)
{
    pccl_engine *e = op->engine;
    uint32_t n = 0;
    for (uint32_t i = 0; i < epoch->member_count; i++)
        n += takes_part(op, &epoch->members[i]) != 0;
    op->peers = mem_alloc(n * sizeof *op->peers);
    op->flows = mem_alloc(n * sizeof *op->flows);
    op->fins = mem_alloc(n);
    op->members = mem_alloc(n * sizeof *op->members);
    op->epoch = epoch;
    epoch->ops++;
    if (!op->peers || !op->flows || !op->fins || !op->members)
        return PCCL_ENOMEM;
    op->fin_count = 0;
    op->n = 0;
    for (uint32_t i = 0; i < epoch->member_count; i++) {
        const pccl_member *m = &epoch->members[i];
        if (!takes_part(op, m))
            continue;
        uint32_t rank = op->n++;
        op->members[rank] = m;
        if (peer_id_compare(&m->id, &e->config.self) == 0) {
            op->rank = rank;
            continue;
        }
        op->peers[rank] = epoch_link(e, epoch, m);
        ASSERT(op->peers[rank]);
        op->flows[rank].sender = &op->sender;
        op->flows[rank].link = op->peers[rank];
    }
    op->near = is_near(op);
    e->ops_near += (uint32_t)op->near;
    return PCCL_OK;
}

static int is_large(const struct op *op)
{
    return op->n > 2 && op->request.count * op->element_bytes > op->epoch->mesh_bytes_max;
}

static int one_region(const struct op *op)
{
    for (uint32_t i = 1; i < op->n; i++)
        if (op->members[i]->region != op->members[0]->region)
            return 0;
    return 1;
}

/* What the plan has for an op of this size. */
static pccl_algorithm planned(const struct op *op)
{
    const struct epoch *epoch = op->epoch;
    if (op->request.kind == PCCL_ALL_REDUCE && op->request.count * op->element_bytes <= epoch->one_round_bytes_max)
        return PCCL_ALGORITHM_ONE_ROUND;
    if (!is_large(op))
        return PCCL_ALGORITHM_MESH;
    return epoch->large_algorithm ? (pccl_algorithm)epoch->large_algorithm : PCCL_ALGORITHM_RING;
}

/* Every participant comes to the same answer: it sees the same epoch and the same op. */
static pccl_algorithm resolve(const struct op *op)
{
    int reduces = op->request.kind == PCCL_ALL_REDUCE;
    if (!reduces && op->request.kind != PCCL_BROADCAST)
        return PCCL_ALGORITHM_MESH;
    pccl_algorithm asked = (pccl_algorithm)op->request.algorithm;
    if (asked == PCCL_ALGORITHM_AUTO)
        asked = planned(op);
    if (asked == PCCL_ALGORITHM_ONE_ROUND && !(reduces && one_round_fits(op)))
        asked = PCCL_ALGORITHM_MESH;
    if (op->request.codec)            /* a ring would encode again at every hop */
        return asked == PCCL_ALGORITHM_ONE_ROUND ? asked : PCCL_ALGORITHM_MESH;
    if (asked == PCCL_ALGORITHM_TWO_LEVEL && (!reduces || one_region(op)))
        asked = PCCL_ALGORITHM_RING;
    int narrow = op->request.dtype == PCCL_FLOAT16 || op->request.dtype == PCCL_BFLOAT16;
    if (asked == PCCL_ALGORITHM_RING && op->request.algorithm == PCCL_ALGORITHM_AUTO && narrow && reduces)
        asked = PCCL_ALGORITHM_MESH;  /* one rounding instead of one per hop */
    return asked;
}

/* Equal spans, or by the plan's weights; in one round everything is one span. */
static pccl_err cut_spans(struct op *op, pccl_algorithm algorithm)
{
    uint32_t weights[LIMIT_PEERS];
    int whole = algorithm == PCCL_ALGORITHM_ONE_ROUND;
    int weighted = op->request.kind == PCCL_ALL_REDUCE && algorithm != PCCL_ALGORITHM_RING && is_large(op);
    for (uint32_t i = 0; i < op->n; i++)
        weights[i] = whole ? i == 0 : op->members[i]->weight;
    return spans_prepare(op, weighted || whole ? weights : NULL);
}

static const struct algorithm *implementation(const struct op *op, pccl_algorithm algorithm)
{
    static const struct algorithm *const all_reduces[PCCL_ALGORITHM_COUNT] = {
        [PCCL_ALGORITHM_RING] = &ring_all_reduce, [PCCL_ALGORITHM_MESH] = &mesh_reduce,
        [PCCL_ALGORITHM_TWO_LEVEL] = &two_level_reduce, [PCCL_ALGORITHM_ONE_ROUND] = &one_round_reduce,
    };
    if (op->n > 1 && op->request.kind == PCCL_ALL_REDUCE)
        return all_reduces[algorithm];
    return op->n > 1 && op->request.kind == PCCL_REDUCE_SCATTER ? &mesh_reduce : &direct_exchange;
}

static pccl_err attempt_describe(struct op *op)
{
    op->element_bytes = (uint32_t)dtype_bytes((pccl_dtype)op->request.dtype);
    op->segment_elements = op->epoch->segment_bytes / op->element_bytes;
    pccl_algorithm algorithm = resolve(op);
    struct desc desc = {
        .kind = op->request.kind, .dtype = op->request.dtype, .redop = op->request.redop,
        .algorithm = (uint8_t)algorithm, .codec = op->request.codec, .count = op->request.count,
    };
    op->sender.frame = (struct frame){
        .type = FRAME_DATA, .epoch = op->epoch->number, .name = op->request.name, .shape = op->request.shape,
        .desc = desc_pack(&desc),
    };
    op->algorithm = implementation(op, algorithm);
    return cut_spans(op, algorithm);
}

static void detach(struct op *op)
{
    for (uint32_t i = 0; i < op->n; i++)
        if (op->peers[i])
            link_detach(op->peers[i], &op->flows[i]);
}

/* Ends the attempt: nothing of the engine refers to the op's memory any more. */
static void attempt_drop(struct op *op)
{
    if (!op->epoch)
        return;
    detach(op);
    for (uint32_t i = 0; op->flows && i < op->n; i++)
        mem_free(op->flows[i].segments);
    if (op->algorithm && op->algorithm->drop)
        op->algorithm->drop(op);
    memset(&op->u, 0, sizeof op->u);
    mem_free(op->arrivals);
    mem_free(op->peers);
    mem_free(op->flows);
    mem_free(op->fins);
    mem_free(op->members);
    mem_free(op->spans);
    op->members = NULL;
    op->spans = NULL;
    op->arrivals = NULL;
    op->peers = NULL;
    op->flows = NULL;
    op->fins = NULL;
    op->n = 0;
    op->algorithm = NULL;
    op->engine->ops_near -= (uint32_t)op->near;
    op->near = 0;
    op->epoch->ops--;
    op->epoch = NULL;
}

void op_try_start(struct op *op)
{
    pccl_engine *e = op->engine;
    struct epoch *epoch = epoch_for(e, op->request.name.boundary);
    if (op->state != OP_QUEUED || e->frozen || !epoch)
        return;
    pccl_err err = check_needs(op, epoch);
    if (err == PCCL_OK)
        err = attempt_layout(op, epoch);
    if (err == PCCL_OK)
        err = attempt_describe(op);
    if (err == PCCL_OK) {
        input(op, OP_START);
        pccl_op_name name = op->request.name;
        err = op->algorithm->start(op);
        if (err == PCCL_OK) {
            struct link *l = e->links;
            for (; l && (op = op_table_find(&e->table, &name)) != NULL; l = l->next)
                if (op_rank_of(op, l) < op->n)
                    link_unpark(l, op);
            return;
        }
    }
    op_end(op, err);
}

void op_reset(struct op *op)
{
    if (op->state != OP_QUEUED) {
        op->engine->ops_thrown_back += op->sender.retries == 0;
        op->sender.retries++;
        op->engine->stats.ops_retried++;
    }
    detach(op);
    backup_restore(op);
    attempt_drop(op);
    input(op, OP_AGAIN);
    op->frozen = 0;
    op->told_mismatch = 0;
}

void op_freeze(struct op *op)
{
    op->frozen = 1;
    if (op->epoch)
        detach(op);
}

/* -- submission and end ------------------------------------------------------------------------------------------------ */

static void ops_append(struct op *op)
{
    pccl_engine *e = op->engine;
    op->prev = e->ops_last;
    if (e->ops_last)
        e->ops_last->next = op;
    else
        e->ops_first = op;
    e->ops_last = op;
}

static void ops_remove(struct op *op)
{
    pccl_engine *e = op->engine;
    if (op->prev)
        op->prev->next = op->next;
    else
        e->ops_first = op->next;
    if (op->next)
        op->next->prev = op->prev;
    else
        e->ops_last = op->prev;
}

/* An op that cannot even be entered in the table still gets its event. */
static void emit_stillborn(pccl_engine *e, const pccl_op_request *request, pccl_err status)
{
    pccl_event event = {.kind = PCCL_EVENT_OP, .status = (int32_t)status, .token = request->token,
                        .epoch = epoch_newest(e)};
    e->stats.ops_failed++;
    engine_emit(e, &event);
}

pccl_err op_submit(pccl_engine *e, const pccl_op_request *request, const pccl_peer_id *origin)
{
    pccl_err verdict = tombstone_take(e, &request->name);
    struct op *op = mem_alloc(sizeof *op);
    size_t origin_bytes = request->origin_count * sizeof *origin;
    pccl_peer_id *rows = mem_alloc(origin_bytes);
    if (op_table_find(&e->table, &request->name))
        verdict = PCCL_EINVAL;
    if (!op || !rows || lane_note(e, request->name.lane, request->name.seq + 1) != PCCL_OK)
        verdict = PCCL_ENOMEM;
    if (verdict != PCCL_OK) {
        mem_free(op);
        mem_free(rows);
        emit_stillborn(e, request, verdict);
        return verdict;
    }
    if (origin_bytes)
        memcpy(rows, origin, origin_bytes);
    op->engine = e;
    op->request = *request;
    op->sender.priority = request->priority;
    op->sender.number = e->ops_submitted++;
    op->origin = rows;
    op->started_ns = e->now_ns;
    op_table_add(&e->table, op);
    ops_append(op);
    e->stats.ops_pending++;
    if (request->deadline_ns)
        engine_wake_at(e, request->deadline_ns);
    op_try_start(op);
    return PCCL_OK;
}

static void describe_end(const struct op *op, pccl_err status, pccl_event *event)
{
    *event = (pccl_event){
        .kind = PCCL_EVENT_OP, .status = (int32_t)status, .token = op->request.token,
        .epoch = op->epoch ? op->epoch->number : epoch_newest(op->engine), .retries = op->sender.retries, .desc = op->sender.frame.desc,
        .shape = op->request.shape, .member_count = op->n, .sent_bytes = op->sender.sent_bytes,
        .received_bytes = op->received_bytes, .duration_ns = op->engine->now_ns - op->started_ns,
    };
    if (op->request.kind == PCCL_REDUCE_SCATTER && op->spans) {
        event->span_offset = op->spans[op->rank];
        event->span_count = op->spans[op->rank + 1] - event->span_offset;
    }
}

void op_end(struct op *op, pccl_err status)
{
    pccl_engine *e = op->engine;
    pccl_event event;
    input(op, OP_END);
    describe_end(op, status, &event);
    uint32_t was_retried = op->sender.retries != 0;
    detach(op);
    if (status == PCCL_OK)
        backup_drop(op);
    else
        backup_restore(op);
    attempt_drop(op);
    ops_remove(op);
    op_table_remove(&e->table, op);
    mem_free(op->origin);
    mem_free(op);
    e->stats.ops_pending--;
    e->ops_thrown_back -= was_retried;
    if (status == PCCL_OK)
        e->stats.ops_committed++;
    else
        e->stats.ops_failed++;
    engine_emit(e, &event);
}

/* -- finishing ---------------------------------------------------------------------------------------------------------- */

static void try_commit(struct op *op)
{
    int all = op->fin_count + 1 == op->n || engine_defect(op->engine, PCCL_DEFECT_COMMIT_EARLY);
    if (op->state == OP_FINISHED && all && !op->frozen)
        op_end(op, PCCL_OK);
}

void op_finished(struct op *op)
{
    if (op->state != OP_RUNNING)
        return;
    input(op, OP_RESULT);
    for (uint32_t i = 0; i < op->n; i++)
        if (op->peers[i])
            link_notify(op->peers[i], &op->sender.frame, FRAME_FIN, 0);
    try_commit(op);
}

void op_on_fin(struct op *op, uint32_t from)
{
    op->fin_count += !op->fins[from];
    op->fins[from] = 1;
    if (op->state == OP_RUNNING && op_awaits_receipt(op))
        op_finished(op);
    else
        try_commit(op);
}

/* -- trouble ------------------------------------------------------------------------------------------------------------ */

void op_on_mismatch(struct op *op, const struct link *from, const struct frame *frame)
{
    if (op->told_mismatch)
        return;
    op->told_mismatch = 1;
    pccl_event event = {.kind = PCCL_EVENT_MISMATCH, .status = PCCL_EMISMATCH, .token = op->request.token,
                        .peer = from->id, .desc = frame->desc, .shape = frame->shape, .epoch = frame->epoch};
    engine_emit(op->engine, &event);
}

/* Whom to name: first a peer that has not even called the op, else one that has not finished it. */
static const struct link *laggard(const struct op *op)
{
    const struct link *late = NULL;
    for (uint32_t i = 0; i < op->n; i++) {
        if (!op->peers[i] || op->fins[i])
            continue;
        if (!op->flows[i].called)
            return op->peers[i];
        late = late ? late : op->peers[i];
    }
    return late;
}

void op_on_overdue(struct op *op)
{
    if (op->told_overdue || engine_defect(op->engine, PCCL_DEFECT_IGNORE_DEADLINE))
        return;
    op->told_overdue = 1;
    const struct link *late = laggard(op);
    pccl_event event = {.kind = PCCL_EVENT_OVERDUE, .status = PCCL_ETIMEOUT, .token = op->request.token,
                        .epoch = epoch_newest(op->engine)};
    if (late)
        event.peer = late->id;
    engine_emit(op->engine, &event);
}
