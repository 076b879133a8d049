/* serve.c - sends what others fetch, straight out of the regions' memory.
 *
 * A serving has one segment in its link's queue at a time. When that has been given to a stream the next one is cut, as soon as its part
 * of the region is there and the rate cap of its class allows. Servings of one region to one peer, of one class, have turns in the
 * order in which they were asked for: each is done before the next begins, unless it must wait for the region. It ends when
 * everything is acknowledged, when the requester drops it, or when the region is withdrawn. */
#include <string.h>

#include "engine.h"
#include "err.h"

enum waits { WAITS_NOT, WAITS_REGION, WAITS_LIMIT, WAITS_TURN };

struct serving {
    struct sender sender;      /* first: flows find their serving by it */
    struct flow flow;
    struct segment segment;    /* the flow's ring, of one */
    struct region *region;
    struct list_node of_region, of_link, waiting;
    enum waits waits;
    int all_cut;               /* no segment is left */
    uint32_t segment_bytes;
    uint32_t run, run_count;   /* the next one to be cut, */
    uint64_t into;             /* of which so many bytes have been, */
    uint64_t position;         /* and so many in all */
    struct run runs[];
};

/* -- the rate cap --------------------------------------------------------------------------------------------------- */

static struct rate_limit *limit_of(pccl_engine *e, const struct serving *s)
{
    return &e->transfers.limits[s->sender.priority];
}

/* What was not used for 20 ms is lost: what is sent for it all at once waits in front of what is urgent. */
static void limit_fill(const pccl_engine *e, struct rate_limit *limit)
{
    double rate = (double)limit->bytes_per_s, most = rate / 50;
    double tokens = (double)limit->tokens + rate * (double)(e->now_ns - limit->filled_ns) / 1e9;
    if (tokens - (double)limit->tokens < 1)
        return;
    limit->tokens = (int64_t)(tokens < most ? tokens : most);
    limit->filled_ns = e->now_ns;
}

void serve_charge(pccl_engine *e, uint32_t bytes)
{
    struct rate_limit *low = &e->transfers.limits[PCCL_PRIORITY_LOW];
    if (!low->bytes_per_s)
        return;
    limit_fill(e, low);
    low->tokens -= bytes;
}

static void limit_wake(pccl_engine *e, const struct rate_limit *limit)
{
    double owed = limit->tokens < 0 ? 1 - (double)limit->tokens : 1;
    engine_wake_at(e, e->now_ns + 1 + (uint64_t)(owed * 1e9 / (double)limit->bytes_per_s));
}

/* May so many bytes be sent? If not, the serving waits, behind those that do unless it was the first of them. */
static int limit_take(pccl_engine *e, struct serving *s, uint32_t bytes, int is_first)
{
    struct rate_limit *limit = limit_of(e, s);
    if (!limit->bytes_per_s)
        return 1;
    limit_fill(e, limit);
    if (limit->tokens > 0 && (is_first || !limit->waiting.first)) {
        limit->tokens -= bytes;
        return 1;
    }
    s->waits = WAITS_LIMIT;
    list_append(&limit->waiting, &s->waiting);
    limit_wake(e, limit);
    return 0;
}

/* -- segments ------------------------------------------------------------------------------------------------------- */

static int is_there(const struct serving *s, uint32_t runs, uint32_t bytes)
{
    const uint8_t *data = s->region->offer.data;
    if (engine_defect(s->flow.link->engine, PCCL_DEFECT_SERVE_UNREADY))
        return 1;
    for (uint32_t i = 0; i < runs && !s->region->whole; i++) {
        const struct run *run = &s->runs[s->run + i];
        uint64_t begin = (uint64_t)(run->at - data) + s->into;
        if (!region_has(s->region, (struct range){begin, begin + (runs == 1 ? bytes : run->bytes)}))
            return 0;
    }
    return 1;
}

/* 0: it has nothing to send now, the turn is the next one's. */
static int cut_now(struct serving *s)
{
    pccl_engine *e = s->flow.link->engine;
    uint32_t bytes, runs;
    int is_first = s->waits == WAITS_LIMIT;
    s->waits = WAITS_NOT;
    if (s->run == s->run_count) {
        s->all_cut = 1;
        s->flow.link->transfers.busy--;
        return 0;
    }
    const struct run *run = &s->runs[s->run];
    runs = cut_next(run, s->run_count - s->run, s->into, s->segment_bytes, &bytes);
    if (!is_there(s, runs, bytes)) {
        s->waits = WAITS_REGION;
        return 0;
    }
    if (!limit_take(e, s, bytes, is_first))
        return 1;
    struct segment segment = {.offset = s->position, .bytes = bytes};
    if (runs == 1)
        segment.payload.data = run->at + s->into;
    else
        segment.payload.runs = run;
    segment.payload.changes = s->region->offer.changes;
    s->position += bytes;
    s->into += bytes;
    if (runs > 1 || s->into == run->bytes) {
        s->run += runs;
        s->into = 0;
    }
    flow_push(&s->flow, &segment);
    return 1;
}

static struct serving *serving_of(struct flow *f)
{
    return (struct serving *)(void *)f->sender;
}

/* -- turns ---------------------------------------------------------------------------------------------------------- */

static int has_turn(const struct serving *s)
{
    return s->flow.count || s->waits == WAITS_LIMIT;
}

static int in_line(const struct serving *s, const struct link *l, uint8_t priority)
{
    return s->flow.link == l && s->sender.priority == priority;
}

static void pass_turn(const struct region *r, const struct link *l, uint8_t priority)
{
    for (struct list_node *n = r->servings.first; n; n = n->next) {
        struct serving *s = LIST_OWNER(n, struct serving, of_region);
        if (s->waits == WAITS_TURN && in_line(s, l, priority) && cut_now(s))
            return;
    }
}

/* By who has the turn. */
static void cut(struct serving *s)
{
    if (!cut_now(s))
        pass_turn(s->region, s->flow.link, s->sender.priority);
}

static void ask_for_turn(struct serving *s)
{
    for (struct list_node *n = s->region->servings.first; n; n = n->next) {
        const struct serving *other = LIST_OWNER(n, struct serving, of_region);
        if (other != s && in_line(other, s->flow.link, s->sender.priority) && has_turn(other)) {
            s->waits = WAITS_TURN;
            return;
        }
    }
    cut(s);
}

static void forget(struct serving *s)
{
    struct link *l = s->flow.link;
    link_detach(l, &s->flow);
    if (s->waits == WAITS_LIMIT)
        list_remove(&limit_of(l->engine, s)->waiting, &s->waiting);
    list_remove(&s->region->servings, &s->of_region);
    list_remove(&l->transfers.servings, &s->of_link);
    l->transfers.busy -= !s->all_cut;
    l->engine->stats.transfers_served--;
    mem_free(s);
}

static void end(struct serving *s)
{
    const struct region *r = s->region;
    const struct link *l = s->flow.link;
    uint8_t priority = s->sender.priority;
    int had_turn = has_turn(s);
    forget(s);
    if (had_turn)
        pass_turn(r, l, priority);
}

static void on_sent(struct flow *f)
{
    struct serving *s = serving_of(f);
    f->link->engine->stats.transfer_sent_bytes += s->segment.bytes;
    cut(s);
}

static void on_acked(struct flow *f)
{
    if (serving_of(f)->all_cut && !engine_defect(f->link->engine, PCCL_DEFECT_KEEP_SERVING))
        end(serving_of(f));
}

/* -- what the other side asks for ----------------------------------------------------------------------------------------- */

static void deny(struct link *l, uint64_t id, enum deny_reason reason)
{
    struct frame frame = {.name = {.lane = id}, .step = (uint16_t)reason};
    link_notify(l, &frame, FRAME_DENY, 0);
}

/* The runs of the region's memory; 0: one is not in the region. */
static int take_runs(struct serving *s, const uint8_t *payload)
{
    const pccl_region *offer = &s->region->offer;
    for (uint32_t i = 0; i < s->run_count; i++) {
        struct fetch_run run = wire_decode_fetch_run(payload, i);
        if (run.offset > offer->bytes || run.bytes > offer->bytes - run.offset)
            return 0;
        s->runs[i] = (struct run){(uint8_t *)(uintptr_t)offer->data + run.offset, run.bytes};
    }
    return 1;
}

static void emit_asked(const struct link *l, const struct region *r)
{
    pccl_event event = {.kind = PCCL_EVENT_ASKED, .token = r->offer.token, .peer = l->id};
    engine_emit(l->engine, &event);
}

static void begin(struct link *l, struct serving *s, const struct frame *frame)
{
    s->sender = (struct sender){
        .priority = (uint8_t)frame->step, .sent = on_sent, .acked = on_acked,
        .frame = {.type = FRAME_PIECE, .name = {.lane = frame->name.lane}, .bare = frame->bare},
    };
    s->flow = (struct flow){.sender = &s->sender, .link = l, .segments = &s->segment, .cap = 1, .called = 1};
    list_append(&s->region->servings, &s->of_region);
    list_append(&l->transfers.servings, &s->of_link);
    l->transfers.busy++;
    l->engine->stats.transfers_served++;
    if (s->region->offer.watched)
        emit_asked(l, s->region);
    ask_for_turn(s);
}

pccl_err serve_on_fetch(struct link *l, const struct frame *frame, const uint8_t *payload)
{
    struct fetch_head head;
    if (wire_decode_fetch(payload, frame->payload_bytes, &head) != PCCL_OK)
        return PCCL_EPROTO;
    struct region *r = region_find(l->engine, head.key, head.generation);
    struct serving *s = NULL;
    if (r && l->transfers.busy < LIMIT_SERVED)
        s = mem_alloc(sizeof *s + head.run_count * sizeof *s->runs);
    if (s) {
        s->region = r;
        s->segment_bytes = head.segment_bytes;
        s->run_count = head.run_count;
    }
    if (s && take_runs(s, payload)) {
        begin(l, s, frame);
        return PCCL_OK;
    }
    deny(l, frame->name.lane, r && !s ? DENY_BUSY : DENY_GONE);
    mem_free(s);
    return PCCL_OK;
}

void serve_on_drop(struct link *l, const struct frame *frame)
{
    for (struct list_node *n = l->transfers.servings.first, *next; n; n = next) {
        struct serving *s = LIST_OWNER(n, struct serving, of_link);
        next = n->next;
        if (s->sender.frame.name.lane == frame->name.lane)
            end(s);
    }
}

/* -- what becomes of regions, links and limits -------------------------------------------------------------------------- */

void serve_region_grew(struct region *r)
{
    for (struct list_node *n = r->servings.first; n; n = n->next) {
        struct serving *s = LIST_OWNER(n, struct serving, of_region);
        if (s->waits == WAITS_REGION)
            ask_for_turn(s);
    }
}

void serve_region_gone(struct region *r)
{
    while (r->servings.first) {
        struct serving *s = LIST_OWNER(r->servings.first, struct serving, of_region);
        deny(s->flow.link, s->sender.frame.name.lane, DENY_GONE);
        forget(s);
    }
}

void serve_link_closed(struct link *l)
{
    while (l->transfers.servings.first)
        forget(LIST_OWNER(l->transfers.servings.first, struct serving, of_link));
}

static void limit_release(pccl_engine *e, struct rate_limit *limit)
{
    while (limit->waiting.first && (!limit->bytes_per_s || limit->tokens > 0)) {
        struct serving *s = LIST_OWNER(limit->waiting.first, struct serving, waiting);
        list_remove(&limit->waiting, &s->waiting);
        cut(s);
    }
    if (limit->waiting.first)
        limit_wake(e, limit);
}

void serve_limit(pccl_engine *e, pccl_priority priority, uint64_t bytes_per_s)
{
    struct rate_limit *limit = &e->transfers.limits[priority];
    limit->bytes_per_s = bytes_per_s;
    limit->tokens = 1;
    limit->filled_ns = e->now_ns;
    limit_release(e, limit);
}

void serve_on_time(pccl_engine *e)
{
    for (uint32_t i = 0; i < PCCL_PRIORITY_COUNT; i++) {
        struct rate_limit *limit = &e->transfers.limits[i];
        if (!limit->waiting.first)
            continue;
        limit_fill(e, limit);
        limit_release(e, limit);
    }
}
