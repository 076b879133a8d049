/* commands.c - what other threads ask for: checked and copied here, carried out on the engine's thread in order. */
#include <stdio.h>
#include <string.h>

#include "engine.h"
#include "err.h"
#include "reduce.h"

enum command_type {
    COMMAND_SUBMIT, COMMAND_ADVANCE, COMMAND_FORGET, COMMAND_PREPARE, COMMAND_FREEZE, COMMAND_CONFIGURE,
    COMMAND_FAIL_ALL, COMMAND_ABANDON, COMMAND_MEASURE, COMMAND_KILL_STREAM, COMMAND_OFFER, COMMAND_EXTEND, COMMAND_WITHDRAW,
    COMMAND_FETCH, COMMAND_CANCEL_FETCH, COMMAND_LIMIT, COMMAND_ACQUAINT, COMMAND_UNACQUAINT
};

struct command {
    struct command *next;
    enum command_type type;
    union {
        pccl_op_request submit;
        pccl_epoch configure;
        struct { uint32_t member_count, streams; } prepare;
        struct { uint64_t token; int status; } end;
        struct { pccl_peer_id peer; uint64_t bytes, duration_ns; } measure;
        struct { pccl_peer_id peer; uint32_t index; } kill;
        struct { pccl_region region; int whole; } offer;
        struct { uint8_t key[16]; uint64_t generation; struct range part; } region;
        pccl_fetch_request fetch;
        uint64_t token;
        struct { pccl_priority priority; uint64_t bytes_per_s; } limit;
        struct { pccl_member member; uint32_t streams; } acquaint;
        pccl_peer_id peer;
        uint32_t number;           /* boundary or change */
    } u;
    /* SUBMIT: origin ids; FETCH: runs, then seeds; PREPARE: members; CONFIGURE: members, then verdicts */
    uint64_t tail[];
};

static struct command *command_new(enum command_type type, size_t tail_bytes)
{
    struct command *c = mem_alloc(sizeof *c + tail_bytes);
    if (c)
        c->type = type;
    else
        err_set("out of memory");
    return c;
}

static pccl_err command_push(pccl_engine *e, struct command *c)
{
    if (!c)
        return PCCL_ENOMEM;
    pthread_mutex_lock(&e->lock);
    if (e->close_asked) {
        pthread_mutex_unlock(&e->lock);
        mem_free(c);
        err_set("the engine is closed");
        return PCCL_ECLOSED;
    }
    int first = !e->commands_first;
    if (first)
        e->commands_first = c;
    else
        e->commands_last->next = c;
    e->commands_last = c;
    if (first && e->has_thread)
        e->ops->wake(e->transport);
    pthread_mutex_unlock(&e->lock);
    return PCCL_OK;
}

/* -- carrying out (engine thread) ------------------------------------------------------------------------------------ */

static void do_advance(pccl_engine *e, uint32_t boundary)
{
    if (boundary <= e->boundary)
        return;
    lanes_pass(e, boundary);
    tombstone_forget(e, boundary);
}

static void do_prepare(pccl_engine *e, const struct command *c)
{
    const pccl_member *members = (const pccl_member *)c->tail;
    for (struct link *l = e->links; l; l = l->next)
        l->prepared = 0;
    for (uint32_t i = 0; i < c->u.prepare.member_count; i++) {
        if (peer_id_compare(&members[i].id, &e->config.self) == 0)
            continue;
        struct link *l = link_want(e, &members[i], c->u.prepare.streams);
        if (l)
            l->prepared = 1;
    }
    epoch_close_unwanted(e);
}

static void do_abandon(pccl_engine *e, uint64_t token, int status)
{
    for (struct op *op = e->ops_first; op; op = op->next)
        if (op->request.token == token) {
            op_end(op, (pccl_err)status);
            return;
        }
}

static void do_measure(pccl_engine *e, const struct command *c)
{
    struct link *l = link_find(e, &c->u.measure.peer, 0);
    if (l && l->open)
        probe_begin(l, c->u.measure.bytes, c->u.measure.duration_ns);
}

static void do_kill_stream(pccl_engine *e, const struct command *c)
{
    struct link *l = link_find(e, &c->u.kill.peer, 0);
    uint32_t skip = l && l->open ? c->u.kill.index % l->open : 0;
    for (uint32_t i = 0; l && i < l->streams; i++) {
        if (!l->conns[i] || l->conns[i]->state != CONN_OPEN || skip-- > 0)
            continue;
        conn_fail(l->conns[i], PCCL_CAUSE_RESET, 0);
        return;
    }
}

static size_t tail_bytes(size_t bytes)
{
    return (bytes + 7) / 8 * 8;
}

static void do_configure(pccl_engine *e, struct command *c)
{
    pccl_epoch *config = &c->u.configure;
    config->members = (const pccl_member *)c->tail;
    const uint8_t *tail = (const uint8_t *)c->tail + tail_bytes(config->member_count * sizeof(pccl_member));
    config->verdicts = (const pccl_verdict *)tail;
    epoch_install(e, config);
}

static void carry_out(pccl_engine *e, struct command *c)
{
    switch (c->type) {
    case COMMAND_SUBMIT: (void)op_submit(e, &c->u.submit, (const pccl_peer_id *)c->tail); break;
    case COMMAND_ADVANCE: do_advance(e, c->u.number); break;
    case COMMAND_FORGET: lanes_forget(e, c->u.number); break;
    case COMMAND_PREPARE: do_prepare(e, c); break;
    case COMMAND_FREEZE: epoch_freeze(e, c->u.number); break;
    case COMMAND_CONFIGURE: do_configure(e, c); break;
    case COMMAND_FAIL_ALL: engine_fail_all(e, (pccl_err)c->u.end.status); break;
    case COMMAND_ABANDON: do_abandon(e, c->u.end.token, c->u.end.status); break;
    case COMMAND_MEASURE: do_measure(e, c); break;
    case COMMAND_KILL_STREAM: do_kill_stream(e, c); break;
    case COMMAND_OFFER: region_offer(e, &c->u.offer.region, c->u.offer.whole); break;
    case COMMAND_EXTEND: region_extend(e, c->u.region.key, c->u.region.generation, c->u.region.part); break;
    case COMMAND_WITHDRAW: region_withdraw(e, c->u.region.key, c->u.region.generation); break;
    case COMMAND_FETCH: fetch_begin(e, &c->u.fetch); break;
    case COMMAND_CANCEL_FETCH: fetch_cancel(e, c->u.token); break;
    case COMMAND_LIMIT: serve_limit(e, c->u.limit.priority, c->u.limit.bytes_per_s); break;
    case COMMAND_ACQUAINT: epoch_acquaint(e, &c->u.acquaint.member, c->u.acquaint.streams); break;
    case COMMAND_UNACQUAINT: epoch_unacquaint(e, &c->u.peer); break;
    }
}

/* After the shutdown there is nobody to start anything: what comes so late ends at once. */
static void turn_away(pccl_engine *e, const struct command *c)
{
    pccl_event event = {.status = PCCL_ECLOSED};
    switch (c->type) {
    case COMMAND_SUBMIT:
        event.kind = PCCL_EVENT_OP;
        event.token = c->u.submit.token;
        break;
    case COMMAND_OFFER:
        event.kind = PCCL_EVENT_WITHDRAWN;
        event.token = c->u.offer.region.token;
        break;
    case COMMAND_FETCH:
        event.kind = PCCL_EVENT_FETCH;
        event.token = c->u.fetch.token;
        break;
    default: return;
    }
    engine_emit(e, &event);
}

void engine_commands(pccl_engine *e)
{
    pthread_mutex_lock(&e->lock);
    struct command *c = e->commands_first;
    e->commands_first = e->commands_last = NULL;
    pthread_mutex_unlock(&e->lock);
    while (c) {
        struct command *next = c->next;
        if (e->transport)
            carry_out(e, c);
        else
            turn_away(e, c);
        mem_free(c);
        c = next;
    }
}

/* -- asking (any thread) ----------------------------------------------------------------------------------------------- */

static int needs_in(const pccl_op_request *r, const pccl_engine *e)
{
    if (r->kind == PCCL_BARRIER)
        return 0;
    if (r->kind == PCCL_BROADCAST || r->kind == PCCL_SEND_RECV)
        return peer_id_compare(&r->root, &e->config.self) == 0;
    return 1;
}

static int needs_out(const pccl_op_request *r, const pccl_engine *e)
{
    if (r->kind == PCCL_BARRIER)
        return 0;
    if (r->kind == PCCL_BROADCAST || r->kind == PCCL_SEND_RECV)
        return !needs_in(r, e);
    return 1;
}

static pccl_err check_request(const pccl_engine *e, const pccl_op_request *r)
{
    int reduces = r->kind == PCCL_ALL_REDUCE || r->kind == PCCL_REDUCE_SCATTER;
    if (r->size != sizeof *r)
        err_set("pccl_op_request.size is %u, expected %zu", r->size, sizeof *r);
    else if (r->kind == 0 || r->kind >= PCCL_KIND_COUNT || r->dtype >= PCCL_DTYPE_COUNT ||
             r->redop >= PCCL_REDOP_COUNT || r->algorithm >= PCCL_ALGORITHM_COUNT || r->priority >= PCCL_PRIORITY_COUNT)
        err_set("unknown kind, dtype, op, algorithm or priority");
    else if (reduces && !reduce_kernel((pccl_dtype)r->dtype, (pccl_redop)r->redop))
        err_set("%s of %s is not defined", redop_name((pccl_redop)r->redop), dtype_name((pccl_dtype)r->dtype));
    else if (r->codec >= PCCL_CODEC_COUNT ||
             (r->codec && (r->kind != PCCL_ALL_REDUCE || r->dtype != PCCL_FLOAT32 ||
                           r->algorithm == PCCL_ALGORITHM_RING || r->algorithm == PCCL_ALGORITHM_TWO_LEVEL)))
        err_set("a codec is for all-reduces of float32 by the mesh or in one round");
    else if (r->count > DESC_COUNT_MAX)
        err_set("count %llu is too large", (unsigned long long)r->count);
    else if (r->count && ((needs_in(r, e) && !r->in) || (needs_out(r, e) && !r->out)))
        err_set("a buffer is missing");
    else if (r->kind == PCCL_SEND_RECV && peer_id_compare(&r->root, &r->target) == 0)
        err_set("sender and receiver are the same peer");
    else if (r->origin_count > LIMIT_PEERS || (r->origin_count && !r->origin))
        err_set("origin is missing or too long");
    else
        return PCCL_OK;
    return PCCL_EINVAL;
}

pccl_err pccl_engine_submit(pccl_engine *engine, const pccl_op_request *request)
{
    pccl_engine *e = engine;
    pccl_err err = check_request(e, request);
    if (err != PCCL_OK)
        return err;
    size_t tail = request->origin_count * sizeof *request->origin;
    struct command *c = command_new(COMMAND_SUBMIT, tail);
    if (c) {
        c->u.submit = *request;
        c->u.submit.origin = NULL;
        if (tail)
            memcpy(c->tail, request->origin, tail);
    }
    return command_push(e, c);
}

static pccl_err push_number(pccl_engine *engine, enum command_type type, uint32_t number)
{
    struct command *c = command_new(type, 0);
    if (c)
        c->u.number = number;
    return command_push(engine, c);
}

pccl_err pccl_engine_advance(pccl_engine *engine, uint32_t boundary)
{
    return push_number(engine, COMMAND_ADVANCE, boundary);
}

pccl_err pccl_engine_forget(pccl_engine *engine, uint32_t boundary)
{
    return push_number(engine, COMMAND_FORGET, boundary);
}

pccl_err pccl_engine_freeze(pccl_engine *engine, uint32_t change)
{
    return push_number(engine, COMMAND_FREEZE, change);
}

static pccl_err check_members(const pccl_member *members, uint32_t count, uint32_t streams)
{
    if (count > LIMIT_PEERS || streams == 0 || streams > LIMIT_STREAMS) {
        err_set("%u members and %u streams are out of range", count, streams);
        return PCCL_EINVAL;
    }
    for (uint32_t i = 0; i < count; i++)
        if (!memchr(members[i].address, 0, sizeof members[i].address)) {
            err_set("address of member %u is not terminated", i);
            return PCCL_EINVAL;
        }
    return PCCL_OK;
}

pccl_err pccl_engine_prepare(pccl_engine *engine, const pccl_member *members, uint32_t member_count, uint32_t streams)
{
    pccl_err err = check_members(members, member_count, streams);
    if (err != PCCL_OK)
        return err;
    struct command *c = command_new(COMMAND_PREPARE, member_count * sizeof *members);
    if (c) {
        c->u.prepare.member_count = member_count;
        c->u.prepare.streams = streams;
        memcpy(c->tail, members, member_count * sizeof *members);
    }
    return command_push(engine, c);
}

static int is_self(const pccl_engine *e, const pccl_member *m)
{
    return peer_id_compare(&m->id, &e->config.self) == 0;
}

/* A member that is reached through another: through one that has a link to us, and is neither of the two. */
static int detour_is_one(const pccl_engine *e, const pccl_epoch *epoch, const pccl_member *m)
{
    if (!m->via)
        return 1;
    const pccl_member *via = m->via <= epoch->member_count ? &epoch->members[m->via - 1] : m;
    return via != m && !via->via && !is_self(e, m) && !is_self(e, via);
}

static pccl_err check_epoch(const pccl_engine *e, const pccl_epoch *epoch)
{
    pccl_err err = check_members(epoch->members, epoch->member_count, epoch->streams);
    if (err != PCCL_OK)
        return err;
    int self = 0, detours_ok = 1;
    for (uint32_t i = 0; i < epoch->member_count; i++) {
        self |= is_self(e, &epoch->members[i]);
        detours_ok &= detour_is_one(e, epoch, &epoch->members[i]);
    }
    if (epoch->size != sizeof *epoch)
        err_set("pccl_epoch.size is %u, expected %zu", epoch->size, sizeof *epoch);
    else if (!self)
        err_set("epoch %u does not name this peer", epoch->epoch);
    else if (!detours_ok)
        err_set("epoch %u has a detour that is none", epoch->epoch);
    else if (epoch->large_algorithm >= PCCL_ALGORITHM_COUNT)
        err_set("unknown algorithm %u", epoch->large_algorithm);
    else if (epoch->segment_bytes == 0 || epoch->segment_bytes % 64 || epoch->segment_bytes > LIMIT_SEGMENT_BYTES)
        err_set("segment_bytes %u is not a multiple of 64 up to %d", epoch->segment_bytes, LIMIT_SEGMENT_BYTES);
    else
        return PCCL_OK;
    return PCCL_EINVAL;
}

pccl_err pccl_engine_configure(pccl_engine *engine, const pccl_epoch *epoch)
{
    pccl_engine *e = engine;
    pccl_err err = check_epoch(e, epoch);
    if (err != PCCL_OK)
        return err;
    size_t members = epoch->member_count * sizeof(pccl_member);
    size_t verdicts = epoch->verdict_count * sizeof(pccl_verdict);
    struct command *c = command_new(COMMAND_CONFIGURE, tail_bytes(members) + verdicts);
    if (c) {
        uint8_t *tail = (uint8_t *)c->tail;
        c->u.configure = *epoch;
        memcpy(tail, epoch->members, members);
        if (verdicts)
            memcpy(tail + tail_bytes(members), epoch->verdicts, verdicts);
    }
    return command_push(e, c);
}

static pccl_err push_end(pccl_engine *engine, enum command_type type, uint64_t token, int status)
{
    struct command *c = command_new(type, 0);
    if (c) {
        c->u.end.token = token;
        c->u.end.status = status;
    }
    return command_push(engine, c);
}

pccl_err pccl_engine_fail_all(pccl_engine *engine, int status)
{
    return push_end(engine, COMMAND_FAIL_ALL, 0, status);
}

pccl_err pccl_engine_abandon(pccl_engine *engine, uint64_t token, int status)
{
    return push_end(engine, COMMAND_ABANDON, token, status);
}

pccl_err pccl_engine_measure(pccl_engine *engine, const pccl_peer_id *peer, uint64_t bytes, uint64_t duration_ns)
{
    if (!bytes || bytes > PROBE_BYTES_MAX || !duration_ns || duration_ns > PROBE_NS_MAX) {
        err_set("a probe of %llu bytes in %llu ns is out of range", (unsigned long long)bytes,
                (unsigned long long)duration_ns);
        return PCCL_EINVAL;
    }
    struct command *c = command_new(COMMAND_MEASURE, 0);
    if (c) {
        c->u.measure.peer = *peer;
        c->u.measure.bytes = bytes;
        c->u.measure.duration_ns = duration_ns;
    }
    return command_push(engine, c);
}

pccl_err pccl_engine_kill_stream(pccl_engine *engine, const pccl_peer_id *peer, uint32_t index)
{
    struct command *c = command_new(COMMAND_KILL_STREAM, 0);
    if (c) {
        c->u.kill.peer = *peer;
        c->u.kill.index = index;
    }
    return command_push(engine, c);
}

pccl_err pccl_engine_frozen(pccl_engine *engine, pccl_op_state *ops, uint32_t *op_count, pccl_lane_state *lanes,
                            uint32_t *lane_count)
{
    pccl_engine *e = engine;
    pthread_mutex_lock(&e->lock);
    for (uint32_t i = 0; i < *op_count && i < e->frozen_op_count; i++)
        ops[i] = e->frozen_ops[i];
    for (uint32_t i = 0; i < *lane_count && i < e->frozen_lane_count; i++)
        lanes[i] = e->frozen_lanes[i];
    int fits = e->frozen_op_count <= *op_count && e->frozen_lane_count <= *lane_count;
    *op_count = e->frozen_op_count;
    *lane_count = e->frozen_lane_count;
    pthread_mutex_unlock(&e->lock);
    return fits ? PCCL_OK : PCCL_EAGAIN;
}

/* -- asking for transfers (any thread) ------------------------------------------------------------------------------- */

pccl_err pccl_engine_offer(pccl_engine *engine, const pccl_region *region, int whole)
{
    if (region->size != sizeof *region || !region->data || !region->bytes) {
        err_set("pccl_region: size %u (expected %zu), or no memory", region->size, sizeof *region);
        return PCCL_EINVAL;
    }
    struct command *c = command_new(COMMAND_OFFER, 0);
    if (c) {
        c->u.offer.region = *region;
        c->u.offer.whole = whole != 0;
    }
    return command_push(engine, c);
}

static pccl_err push_region(pccl_engine *engine, enum command_type type, const uint8_t *key, uint64_t generation, struct range part)
{
    struct command *c = command_new(type, 0);
    if (c) {
        memcpy(c->u.region.key, key, sizeof c->u.region.key);
        c->u.region.generation = generation;
        c->u.region.part = part;
    }
    return command_push(engine, c);
}

pccl_err pccl_engine_extend(pccl_engine *engine, const uint8_t *key, uint64_t generation, uint64_t offset, uint64_t bytes)
{
    uint64_t end = bytes > UINT64_MAX - offset ? UINT64_MAX : offset + bytes;
    return push_region(engine, COMMAND_EXTEND, key, generation, (struct range){offset, end});
}

pccl_err pccl_engine_withdraw(pccl_engine *engine, const uint8_t *key, uint64_t generation)
{
    return push_region(engine, COMMAND_WITHDRAW, key, generation, (struct range){0, 0});
}

static pccl_err check_runs(const pccl_fetch_request *r)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < r->run_count; i++) {
        const pccl_fetch_run *run = &r->runs[i];
        if (!run->bytes || !run->target || run->bytes > WIRE_TRANSFER_BYTES_MAX - total || run->offset > UINT64_MAX - run->bytes) {
            err_set("run %u of a fetch has no bytes, no target, or leads beyond 1 TiB", i);
            return PCCL_EINVAL;
        }
        total += run->bytes;
    }
    return PCCL_OK;
}

static pccl_err check_parts(const pccl_fetch_request *r)
{
    uint64_t parts = 0;
    int whole = 1;
    if (!r->part_count && !r->bare)
        return PCCL_OK;
    if (!r->part_bytes || r->part_bytes % 8 || r->part_bytes > DIGEST_STRETCH_BYTES || !r->seeds || !r->digests) {
        err_set("parts of a fetch have a multiple of 8 bytes, 16 MiB at most, and seeds and digests");
        return PCCL_EINVAL;
    }
    for (uint32_t i = 0; i < r->run_count; i++) {
        whole &= r->runs[i].bytes % r->part_bytes == 0;
        parts += r->runs[i].bytes / r->part_bytes;
    }
    if (whole && r->part_count == parts && parts <= WIRE_FETCH_RUNS_MAX)
        return PCCL_OK;
    err_set("the runs of a fetch are not its %u parts of %llu bytes, of which there are %d at most", r->part_count,
            (unsigned long long)r->part_bytes, WIRE_FETCH_RUNS_MAX);
    return PCCL_EINVAL;
}

static pccl_err check_fetch(const pccl_engine *e, const pccl_fetch_request *r)
{
    if (r->size != sizeof *r)
        err_set("pccl_fetch_request.size is %u, expected %zu", r->size, sizeof *r);
    else if (r->priority >= PCCL_PRIORITY_COUNT)
        err_set("unknown priority %u", r->priority);
    else if (!r->run_count || r->run_count > WIRE_FETCH_RUNS_MAX || !r->runs)
        err_set("a fetch of %u runs; it may have 1 to %d", r->run_count, WIRE_FETCH_RUNS_MAX);
    else if (peer_id_compare(&r->peer, &e->config.self) == 0)
        err_set("a peer does not fetch from itself");
    else
        return check_runs(r);
    return PCCL_EINVAL;
}

pccl_err pccl_engine_fetch(pccl_engine *engine, const pccl_fetch_request *request)
{
    pccl_err err = check_fetch(engine, request);
    if (err == PCCL_OK)
        err = check_parts(request);
    if (err != PCCL_OK)
        return err;
    size_t runs = request->run_count * sizeof *request->runs, seeds = request->part_count * sizeof *request->seeds;
    struct command *c = command_new(COMMAND_FETCH, runs + seeds);
    if (c) {
        c->u.fetch = *request;
        c->u.fetch.bare = request->bare != 0;
        c->u.fetch.runs = memcpy(c->tail, request->runs, runs);
        c->u.fetch.seeds = seeds ? memcpy(c->tail + runs / 8, request->seeds, seeds) : NULL;
    }
    return command_push(engine, c);
}

pccl_err pccl_engine_cancel_fetch(pccl_engine *engine, uint64_t token)
{
    struct command *c = command_new(COMMAND_CANCEL_FETCH, 0);
    if (c)
        c->u.token = token;
    return command_push(engine, c);
}

pccl_err pccl_engine_limit(pccl_engine *engine, int priority, uint64_t bytes_per_s)
{
    if (priority < 0 || priority >= PCCL_PRIORITY_COUNT) {
        err_set("unknown priority %d", priority);
        return PCCL_EINVAL;
    }
    struct command *c = command_new(COMMAND_LIMIT, 0);
    if (c) {
        c->u.limit.priority = (pccl_priority)priority;
        c->u.limit.bytes_per_s = bytes_per_s;
    }
    return command_push(engine, c);
}

pccl_err pccl_engine_acquaint(pccl_engine *engine, const pccl_member *member, uint32_t streams)
{
    pccl_err err = check_members(member, 1, streams);
    if (err == PCCL_OK && is_self(engine, member)) {
        err_set("a peer has no link to itself");
        err = PCCL_EINVAL;
    }
    if (err != PCCL_OK)
        return err;
    struct command *c = command_new(COMMAND_ACQUAINT, 0);
    if (c) {
        c->u.acquaint.member = *member;
        c->u.acquaint.streams = streams;
    }
    return command_push(engine, c);
}

pccl_err pccl_engine_unacquaint(pccl_engine *engine, const pccl_peer_id *peer)
{
    struct command *c = command_new(COMMAND_UNACQUAINT, 0);
    if (c)
        c->u.peer = *peer;
    return command_push(engine, c);
}
