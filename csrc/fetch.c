/* fetch.c - fetches from other peers: asked for, taken segment by segment, ended once.
 *
 * QUEUED until the link has room for one more, then ASKED. An end of the other side's making (everything has arrived, a DENY) frees it
 * at once. An end of our own (cancelled, overdue) must reach the other side by a DROP, which may not overtake the FETCH: until
 * that is acknowledged the fetch lives on as OVER, and takes nothing any more. So does one that goes another way since an epoch: what is
 * left of it on its former way ends so, and the fetch begins again on the new one, under another number. */
#include <string.h>

#include "engine.h"
#include "err.h"

enum fetch_state { FETCH_QUEUED, FETCH_ASKED, FETCH_OVER };

/* How a run is cut. */
struct layout {
    uint64_t position;         /* in the concatenation */
    uint32_t segment;          /* its first segment, or the one that it is in */
    uint32_t shared;           /* runs in the segment that begins with it; 0: it is in one that began earlier */
};

struct fetch {
    struct sender sender;      /* first: flows find their fetch by it. It sends the FETCH. */
    struct flow flow;
    struct segment segment;    /* the flow's ring, of one */
    enum fetch_state state;
    uint64_t id, token, deadline_ns, started_ns;
    struct fetch *id_next, *token_next;
    struct list_node of_engine, of_link, waiting;
    uint32_t segment_bytes, run_count;
    uint32_t segments, left;   /* of all, those that have not arrived */
    uint64_t received_bytes;
    struct run *runs;          /* the targets */
    struct layout *layouts;    /* one per run */
    uint64_t *taken;           /* bits: segments that have arrived */
    uint8_t *body;             /* the FETCH's payload */
    struct part_sums sums;
};

/* -- how runs are cut ----------------------------------------------------------------------------------------------- */

static int shares(const struct run *run, uint32_t segment_bytes)
{
    return run->bytes <= segment_bytes / 2;
}

uint32_t cut_next(const struct run *runs, uint32_t run_count, uint64_t into, uint32_t segment_bytes, uint32_t *bytes_p)
{
    uint64_t left = runs->bytes - into;
    uint32_t n = 1, bytes = left < segment_bytes ? (uint32_t)left : segment_bytes;
    while (shares(runs, segment_bytes) && n < run_count && n < SHARE_RUNS_MAX && shares(&runs[n], segment_bytes) &&
           bytes + runs[n].bytes <= segment_bytes)
        bytes += (uint32_t)runs[n++].bytes;
    *bytes_p = bytes;
    return n;
}

/* Fills the layouts, unless they are NULL; returns the number of segments. */
static uint64_t lay_out(const struct run *runs, uint32_t run_count, uint32_t segment_bytes, struct layout *layouts)
{
    uint64_t position = 0, segments = 0;
    for (uint32_t i = 0; i < run_count;) {
        uint32_t bytes, n = cut_next(&runs[i], run_count - i, 0, segment_bytes, &bytes);
        for (uint32_t k = 0; k < n; k++, i++) {
            if (layouts)
                layouts[i] = (struct layout){position, (uint32_t)segments, k ? 0 : n};
            position += runs[i].bytes;
        }
        segments += n > 1 ? 1 : (runs[i - 1].bytes + segment_bytes - 1) / segment_bytes;
    }
    return segments;
}

/* The run in which the position lies. */
static uint32_t run_at(const struct fetch *f, uint64_t position)
{
    uint32_t low = 0, high = f->run_count - 1;
    while (low < high) {
        uint32_t middle = (low + high + 1) / 2;
        if (f->layouts[middle].position <= position)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

static int is_taken(const struct fetch *f, uint32_t segment)
{
    return (int)(f->taken[segment / 64] >> (segment % 64) & 1);
}

/* The segment that the PIECE is; PCCL_EPROTO: it is none, or has been taken. */
static pccl_err locate(const struct fetch *f, const struct frame *frame, uint32_t *run_p, uint32_t *segment_p)
{
    uint32_t run = run_at(f, frame->offset), bytes;
    const struct layout *layout = &f->layouts[run];
    uint64_t into = frame->offset - layout->position;
    if (!layout->shared || into >= f->runs[run].bytes || into % f->segment_bytes)
        return PCCL_EPROTO;
    (void)cut_next(&f->runs[run], f->run_count - run, into, f->segment_bytes, &bytes);
    *run_p = run;
    *segment_p = layout->segment + (uint32_t)(into / f->segment_bytes);
    return frame->payload_bytes == bytes && !is_taken(f, *segment_p) ? PCCL_OK : PCCL_EPROTO;
}

/* Bytes at the beginning that have arrived without a gap. */
static uint64_t bytes_in_order(const struct fetch *f)
{
    uint64_t position = 0, into = 0;
    uint32_t segment = 0, bytes;
    for (uint32_t run = 0; run < f->run_count && is_taken(f, segment); segment++) {
        uint32_t n = cut_next(&f->runs[run], f->run_count - run, into, f->segment_bytes, &bytes);
        position += bytes;
        into += bytes;
        if (n > 1 || into == f->runs[run].bytes) {
            run += n;
            into = 0;
        }
    }
    return position;
}

/* -- tables --------------------------------------------------------------------------------------------------------- */

static uint32_t bucket_of(uint64_t number)
{
    return (uint32_t)(number ^ number >> 32) % TRANSFER_BUCKETS;
}

static struct fetch *find(const struct link *l, uint64_t id)
{
    const struct transfers *t = &l->engine->transfers;
    struct fetch *f = t->by_id ? t->by_id[bucket_of(id)] : NULL;
    while (f && (f->id != id || f->flow.link != l))
        f = f->id_next;
    return f;
}

static int enter(pccl_engine *e, struct fetch *f)
{
    struct transfers *t = &e->transfers;
    if (!t->by_id) {
        t->by_id = mem_alloc(TRANSFER_BUCKETS * sizeof(struct fetch *));
        t->by_token = mem_alloc(TRANSFER_BUCKETS * sizeof(struct fetch *));
    }
    if (!t->by_id || !t->by_token)
        return 0;
    f->id = ++t->last_id;
    f->id_next = t->by_id[bucket_of(f->id)];
    t->by_id[bucket_of(f->id)] = f;
    f->token_next = t->by_token[bucket_of(f->token)];
    t->by_token[bucket_of(f->token)] = f;
    list_append(&t->fetches, &f->of_engine);
    e->stats.transfers_pending++;
    return 1;
}

static void leave(pccl_engine *e, struct fetch *f)
{
    struct transfers *t = &e->transfers;
    struct fetch **at = &t->by_id[bucket_of(f->id)];
    while (*at != f)
        at = &(*at)->id_next;
    *at = f->id_next;
    for (at = &t->by_token[bucket_of(f->token)]; *at != f;)
        at = &(*at)->token_next;
    *at = f->token_next;
    list_remove(&t->fetches, &f->of_engine);
    e->stats.transfers_pending--;
}

/* -- asking --------------------------------------------------------------------------------------------------------- */

static struct fetch *fetch_of(struct flow *flow)
{
    return (struct fetch *)(void *)flow->sender;
}

/* Asks for as many as the link has room for; higher classes find some that lower ones may not have. */
static void ask(struct link *l)
{
    static const uint8_t order[] = {PCCL_PRIORITY_HIGH, PCCL_PRIORITY_NORMAL, PCCL_PRIORITY_LOW};
    struct link_transfers *t = &l->transfers;
    for (uint32_t i = 0; i < PCCL_PRIORITY_COUNT; i++)
        while (t->waiting[order[i]].first && t->asked < LIMIT_ASKED - i * ASKED_RESERVE) {
            struct fetch *f = LIST_OWNER(t->waiting[order[i]].first, struct fetch, waiting);
            struct segment segment = {.payload.data = f->body, .step = f->sender.priority,
                                      .bytes = WIRE_FETCH_HEAD_BYTES + f->run_count * WIRE_FETCH_RUN_BYTES};
            list_remove(&t->waiting[order[i]], &f->waiting);
            f->state = FETCH_ASKED;
            t->asked++;
            flow_push(&f->flow, &segment);
        }
}

/* The other side has the FETCH, or will never see it. */
static void let_go(struct fetch *f)
{
    struct link *l = f->flow.link;
    link_detach(l, &f->flow);
    if (f->state == FETCH_QUEUED)
        list_remove(&l->transfers.waiting[f->sender.priority], &f->waiting);
    else
        l->transfers.asked--;
    list_remove(&l->transfers.fetches, &f->of_link);
    mem_free(f);
}

static void drop(struct fetch *f)
{
    struct frame frame = {.name = {.lane = f->id}};
    link_notify(f->flow.link, &frame, FRAME_DROP, 0);
}

static void on_acked(struct flow *flow)
{
    struct fetch *f = fetch_of(flow);
    struct link *l = flow->link;
    if (f->state != FETCH_OVER)
        return;
    drop(f);
    let_go(f);
    ask(l);
}

static void emit_end(pccl_engine *e, const struct fetch *f, pccl_err status)
{
    pccl_event event = {
        .kind = PCCL_EVENT_FETCH, .status = (int32_t)status, .token = f->token, .peer = f->flow.link->id,
        .received_bytes = f->received_bytes, .span_count = bytes_in_order(f), .duration_ns = e->now_ns - f->started_ns,
    };
    engine_emit(e, &event);
}

/* Nothing is written to its targets any more. */
static void divert(const struct fetch *f)
{
    const struct link *l = f->flow.link;
    for (uint32_t i = 0; i < l->streams; i++)
        if (l->conns[i] && l->conns[i]->state == CONN_OPEN)
            conn_detach(l->conns[i], &f->sender);
}

static void finish(struct fetch *f, pccl_err status)
{
    pccl_engine *e = f->flow.link->engine;
    leave(e, f);
    divert(f);
    emit_end(e, f, status);
}

/* By the other side's doing, or the link's. */
static void end(struct fetch *f, pccl_err status)
{
    struct link *l = f->flow.link;
    finish(f, status);
    let_go(f);
    if (l->state != LINK_CLOSED)
        ask(l);
}

/* The other side is told as soon as it can be. */
static void abandon(struct fetch *f)
{
    struct link *l = f->flow.link;
    int is_sent = f->state == FETCH_ASKED && !f->flow.count;
    if (is_sent && f->flow.unacked) {
        f->state = FETCH_OVER;
        return;
    }
    if (is_sent)
        drop(f);
    let_go(f);
    ask(l);
}

/* By our own. */
static void give_up(struct fetch *f, pccl_err status)
{
    finish(f, status);
    abandon(f);
}

/* -- beginning ------------------------------------------------------------------------------------------------------ */

/* The detour of the newest epoch, if there is one; else the link. */
static struct link *link_to(pccl_engine *e, const pccl_peer_id *peer)
{
    const struct epoch *epoch;
    const pccl_member *member = epoch_member(e, peer, &epoch);
    struct link *detour = member && member->via ? link_find(e, peer, epoch->number) : NULL;
    return detour ? detour : link_find(e, peer, 0);
}

static size_t words_of(uint64_t segments)
{
    return (size_t)((segments + 63) / 64);
}

/* One block: the fetch, its runs, their layouts, the bits, the sums, the FETCH's payload. */
static size_t size_of(uint32_t run_count, uint64_t segments, uint32_t part_count)
{
    return sizeof(struct fetch) + run_count * (sizeof(struct run) + sizeof(struct layout)) +
           (words_of(segments) + 2 * (size_t)part_count) * 8 + WIRE_FETCH_HEAD_BYTES + (size_t)run_count * WIRE_FETCH_RUN_BYTES;
}

static void point_into(struct fetch *f, uint32_t run_count, uint64_t segments, uint32_t part_count)
{
    f->runs = (struct run *)(f + 1);
    f->layouts = (struct layout *)(f->runs + run_count);
    f->taken = (uint64_t *)(f->layouts + run_count);
    f->body = (uint8_t *)(f->taken + words_of(segments) + 2 * (size_t)part_count);
}

/* NULL: no memory. */
static struct fetch *fetch_new(const pccl_fetch_request *request, uint32_t segment_bytes)
{
    uint32_t n = request->run_count;
    struct run targets[WIRE_FETCH_RUNS_MAX];
    for (uint32_t i = 0; i < n; i++)
        targets[i] = (struct run){request->runs[i].target, request->runs[i].bytes};
    uint64_t segments = lay_out(targets, n, segment_bytes, NULL);
    if (segments > UINT32_MAX)
        return NULL;
    struct fetch *f = mem_alloc(size_of(n, segments, request->part_count));
    if (!f)
        return NULL;
    point_into(f, n, segments, request->part_count);
    sums_begin(&f->sums, request, f->taken + words_of(segments));
    memcpy(f->runs, targets, n * sizeof *targets);
    lay_out(f->runs, n, segment_bytes, f->layouts);
    f->run_count = n;
    f->segment_bytes = segment_bytes;
    f->segments = f->left = (uint32_t)segments;
    return f;
}

static void write_body(struct fetch *f, const pccl_fetch_request *request)
{
    struct fetch_head head = {
        .generation = request->generation, .segment_bytes = f->segment_bytes, .run_count = f->run_count,
    };
    memcpy(head.key, request->key, sizeof head.key);
    wire_encode_fetch(&head, f->body);
    for (uint32_t i = 0; i < f->run_count; i++)
        wire_encode_fetch_run((struct fetch_run){request->runs[i].offset, request->runs[i].bytes}, i, f->body);
}

/* The earliest deadline is what timers look at. */
static void note_deadline(pccl_engine *e, uint64_t deadline_ns)
{
    struct transfers *t = &e->transfers;
    if (!deadline_ns)
        return;
    if (!t->deadline_ns || deadline_ns < t->deadline_ns)
        t->deadline_ns = deadline_ns;
    engine_wake_at(e, deadline_ns);
}

static void emit_stillborn(pccl_engine *e, const pccl_fetch_request *request, pccl_err status)
{
    pccl_event event = {.kind = PCCL_EVENT_FETCH, .status = (int32_t)status, .token = request->token, .peer = request->peer};
    engine_emit(e, &event);
}

static void go(struct fetch *f, struct link *l, uint8_t priority, uint8_t bare)
{
    f->state = FETCH_QUEUED;
    f->sender = (struct sender){.priority = priority, .acked = on_acked,
                                .frame = {.type = FRAME_FETCH, .name = {.lane = f->id}, .bare = bare}};
    f->flow = (struct flow){.sender = &f->sender, .link = l, .segments = &f->segment, .cap = 1, .called = 1};
    list_append(&l->transfers.fetches, &f->of_link);
    list_append(&l->transfers.waiting[priority], &f->waiting);
    ask(l);
}

void fetch_begin(pccl_engine *e, const pccl_fetch_request *request)
{
    struct link *l = link_to(e, &request->peer);
    uint32_t segment_bytes = e->epochs ? e->epochs->segment_bytes : TRANSFER_SEGMENT_BYTES;
    int is_full = e->stats.transfers_pending == LIMIT_FETCHES;
    struct fetch *f = l && !is_full ? fetch_new(request, segment_bytes) : NULL;
    if (!f) {
        emit_stillborn(e, request, l ? PCCL_ENOMEM : PCCL_EPEER);
        return;
    }
    f->token = request->token;
    f->deadline_ns = request->deadline_ns;
    f->started_ns = e->now_ns;
    if (!enter(e, f)) {
        mem_free(f);
        emit_stillborn(e, request, PCCL_ENOMEM);
        return;
    }
    write_body(f, request);
    note_deadline(e, request->deadline_ns);
    go(f, l, request->priority, request->bare);
}

/* -- going another way ------------------------------------------------------------------------------------------------ */

/* One that has not been sent yet. NULL: no memory. */
static struct fetch *copy_of(const struct fetch *f)
{
    size_t bytes = size_of(f->run_count, f->segments, f->sums.count);
    struct fetch *copy = mem_alloc(bytes);
    if (!copy)
        return NULL;
    memcpy(copy, f, bytes);
    point_into(copy, f->run_count, f->segments, f->sums.count);
    copy->sums.sums = copy->taken + words_of(f->segments);
    copy->sums.seeds = copy->sums.sums + f->sums.count;
    memset(copy->taken, 0, words_of(f->segments) * 8);
    memset(copy->sums.sums, 0, f->sums.count * sizeof *copy->sums.sums);
    copy->of_engine = copy->of_link = copy->waiting = (struct list_node){0};
    copy->left = f->segments;
    copy->received_bytes = 0;
    return copy;
}

static void move(struct fetch *f, struct link *l)
{
    pccl_engine *e = l->engine;
    struct fetch *copy = copy_of(f);
    if (!copy)
        return;
    leave(e, f);
    divert(f);
    ASSERT(enter(e, copy));
    go(copy, l, f->sender.priority, f->sender.frame.bare);
    abandon(f);
}

void fetch_reroute(pccl_engine *e)
{
    for (struct list_node *n = e->transfers.fetches.first, *next; n; n = next) {
        struct fetch *f = LIST_OWNER(n, struct fetch, of_engine);
        struct link *l = link_to(e, &f->flow.link->id);
        next = n->next;
        if (l && l != f->flow.link && !engine_defect(e, PCCL_DEFECT_STAY_ON_WAY))
            move(f, l);
    }
}

/* -- what the other side sends ---------------------------------------------------------------------------------------- */

pccl_err fetch_place(struct link *l, struct conn *c)
{
    struct fetch *f = find(l, c->frame.name.lane);
    uint32_t run, segment;
    if (!f || f->state != FETCH_ASKED) {
        l->engine->stats.frames_stale++;
        c->wanted = 0;
        return PCCL_OK;
    }
    if (c->frame.bare > f->sender.frame.bare || locate(f, &c->frame, &run, &segment) != PCCL_OK)
        return PCCL_EPROTO;
    c->owner = &f->sender;
    if (f->layouts[run].shared > 1)
        c->targets = &f->runs[run];
    else
        c->target = f->runs[run].at + (c->frame.offset - f->layouts[run].position);
    return PCCL_OK;
}

/* All that the segment brought, which begins in this run. */
static void add_sums(const struct fetch *f, uint32_t run, const struct frame *frame)
{
    uint64_t position = frame->offset, into = position - f->layouts[run].position;
    for (uint32_t left = f->sums.count ? frame->payload_bytes : 0; left; into = 0, run++) {
        uint64_t rest = f->runs[run].bytes - into;
        uint32_t bytes = rest < left ? (uint32_t)rest : left;
        sums_add(&f->sums, position, f->runs[run].at + into, bytes);
        position += bytes;
        left -= bytes;
    }
}

/* An honest other side sends a segment under one number, of which only one copy is read on; but two numbers may have begun at a time: of what
 * has been digested nothing may change any more. */
static void stop_others(const struct fetch *f, const struct frame *frame)
{
    const struct link *l = f->flow.link;
    for (uint32_t i = 0; f->sums.count && i < l->streams; i++) {
        struct conn *other = l->conns[i];
        if (other && other->owner == &f->sender && &other->frame != frame && other->frame.offset == frame->offset)
            conn_detach(other, &f->sender);
    }
}

pccl_err fetch_on_piece(struct link *l, const struct frame *frame)
{
    struct fetch *f = find(l, frame->name.lane);
    uint32_t run, segment;
    if (!f)
        return PCCL_OK;
    if (locate(f, frame, &run, &segment) != PCCL_OK)
        return PCCL_EPROTO;
    stop_others(f, frame);
    add_sums(f, run, frame);
    f->taken[segment / 64] |= 1ULL << (segment % 64);
    f->received_bytes += frame->payload_bytes;
    l->engine->stats.transfer_received_bytes += frame->payload_bytes;
    if (--f->left)
        return PCCL_OK;
    sums_end(&f->sums);
    end(f, PCCL_OK);
    return PCCL_OK;
}

void fetch_on_deny(struct link *l, const struct frame *frame)
{
    struct fetch *f = find(l, frame->name.lane);
    if (f && f->state == FETCH_ASKED)
        end(f, frame->step == DENY_BUSY ? PCCL_ENOMEM : PCCL_EGONE);
    else
        l->engine->stats.frames_stale++;
}

/* -- other ends ------------------------------------------------------------------------------------------------------- */

void fetch_cancel(pccl_engine *e, uint64_t token)
{
    struct fetch *f = e->transfers.by_token ? e->transfers.by_token[bucket_of(token)] : NULL;
    for (struct fetch *next; f; f = next) {
        next = f->token_next;
        if (f->token == token && !engine_defect(e, PCCL_DEFECT_IGNORE_CANCEL))
            give_up(f, PCCL_ECANCELLED);
    }
}

void fetch_link_closed(struct link *l)
{
    for (struct list_node *n = l->transfers.fetches.first, *next; n; n = next) {
        struct fetch *f = LIST_OWNER(n, struct fetch, of_link);
        next = n->next;
        if (f->state == FETCH_OVER)
            let_go(f);
        else
            end(f, PCCL_EPEER);
    }
}

void fetch_on_time(pccl_engine *e)
{
    struct transfers *t = &e->transfers;
    if (!t->deadline_ns)
        return;
    if (t->deadline_ns > e->now_ns) {
        engine_wake_at(e, t->deadline_ns);
        return;
    }
    t->deadline_ns = 0;
    for (struct list_node *n = t->fetches.first, *next; n; n = next) {
        struct fetch *f = LIST_OWNER(n, struct fetch, of_engine);
        next = n->next;
        if (f->deadline_ns && f->deadline_ns <= e->now_ns)
            give_up(f, PCCL_ETIMEOUT);
        else
            note_deadline(e, f->deadline_ns);
    }
}

void fetch_end_all(pccl_engine *e, pccl_err status)
{
    struct transfers *t = &e->transfers;
    while (t->fetches.first)
        give_up(LIST_OWNER(t->fetches.first, struct fetch, of_engine), status);
}
